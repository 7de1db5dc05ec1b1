//! What a job counts while it runs, and how that is put together afterwards.

use hdrhistogram::Histogram;
use oxblock_mem::thread_usage::ThreadUsage;

use crate::options::Latencies;

/// The directions of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Trims (discards).
    Trim,
}

impl Direction {
    /// Those that move data, in the order of reports.
    pub const BOTH: [Direction; 2] = [Direction::Read, Direction::Write];
    /// All, in the order of reports.
    pub const ALL: [Direction; 3] = [Direction::Read, Direction::Write, Direction::Trim];

    /// `read`, `write` or `trim`.
    pub fn word(self) -> &'static str {
        match self {
            Direction::Read => "read",
            Direction::Write => "write",
            Direction::Trim => "trim",
        }
    }
}

/// The longest latency that is told apart, in ns: one hour.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// Completion latencies in ns, to three significant figures; recording allocates nothing.
#[derive(Clone, Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
}

impl Latency {
    /// An empty record.
    pub fn new() -> Latency {
        // These bounds are always good: 1 * 2 <= LONGEST_NS, and 3 is below 6.
        let histogram =
            Histogram::new_with_bounds(1, LONGEST_NS, 3).unwrap_or_else(|_| unreachable!());
        Latency { histogram }
    }

    /// Counts one I/O of `ns`. Above an hour counts as an hour.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
    }

    /// Takes all of `other`'s counts in.
    pub fn merge(&mut self, other: &Latency) {
        // Cannot fail: both have the same bounds.
        let _ = self.histogram.add(&other.histogram);
    }

    /// Takes `other`'s counts and forgets its own.
    pub(crate) fn copy(&mut self, other: &Latency) {
        // Cannot fail: both have the same bounds.
        let _ = self.histogram.set_to(&other.histogram);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.histogram.reset();
    }

    /// I/Os counted.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The smallest, in ns; 0 when empty.
    pub fn min(&self) -> u64 {
        self.histogram.min()
    }

    /// The largest, in ns, to the histogram's precision; 0 when empty.
    pub fn max(&self) -> u64 {
        self.histogram.max()
    }

    /// Arithmetic mean in ns; 0 when empty.
    pub fn mean(&self) -> f64 {
        self.histogram.mean()
    }

    /// Standard deviation in ns; 0 when empty.
    pub fn stddev(&self) -> f64 {
        self.histogram.stdev()
    }

    /// The latency that `percent` of all I/Os did not exceed, in ns.
    pub fn percentile(&self, percent: f64) -> u64 {
        self.histogram.value_at_percentile(percent)
    }

    /// I/Os of `low..high` ns; those of a bucket that lies across a bound count too.
    pub fn count_between(&self, low: u64, high: u64) -> u64 {
        if high <= low { 0 } else { self.histogram.count_between(low, high - 1) }
    }

    /// The histogram itself.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }
}

/// Latencies that the histogram tells apart to the ns, each counted by itself: at a fraction of the
/// cost of a record in the histogram, into which they go when somebody asks.
#[derive(Clone, Debug)]
pub(crate) struct ShortLatencies {
    counts: Box<[u64; SHORT]>,
}

/// Values below this have a bucket each, with three significant figures.
const SHORT: usize = 2048;

impl ShortLatencies {
    pub fn new() -> ShortLatencies {
        ShortLatencies { counts: Box::new([0; SHORT]) }
    }

    /// Counts one I/O of `ns` here, or in `latency` if it took longer.
    #[inline(always)]
    pub fn record(&mut self, ns: u64, latency: &mut Latency) {
        match self.counts.get_mut(ns as usize) {
            Some(count) => *count += 1,
            None => latency.record(ns),
        }
    }

    /// Moves all counts to `latency`.
    pub fn settle(&mut self, latency: &mut Latency) {
        for (ns, count) in (0..).zip(self.counts.iter_mut()).filter(|(_, count)| **count > 0) {
            latency.histogram.saturating_record_n(ns, std::mem::take(count));
        }
    }
}

impl Default for Latency {
    fn default() -> Latency {
        Latency::new()
    }
}

/// Latencies that are there where submission is timed apart from completion.
#[derive(Clone, Debug, Default)]
pub struct Apart {
    /// From just before the submission to just after it.
    pub submission: Latency,
    /// From just before the submission to the completion.
    pub total: Latency,
}

/// One direction of one job.
#[derive(Clone, Debug, Default)]
pub struct DirectionStats {
    /// I/Os completed.
    pub ios: u64,
    /// Bytes moved by them.
    pub bytes: u64,
    /// How long the job worked in this direction, ns.
    pub runtime_ns: u64,
    /// From submission to completion; see [`crate::job`] for how it is taken.
    pub latency: Latency,
    /// Where submission was timed apart: how long it took, and the whole; `latency` then is from
    /// the end of the submission.
    pub apart: Option<Box<Apart>>,
    /// I/Os and bytes a second, sampled through the run.
    pub samples: Samples,
}

impl DirectionStats {
    /// Adds a job's figures to a group's. Rates of jobs that ran side by side add up.
    pub fn merge(&mut self, other: &DirectionStats) {
        self.ios += other.ios;
        self.bytes += other.bytes;
        self.runtime_ns = self.runtime_ns.max(other.runtime_ns);
        self.merge_latency(other);
        self.samples.merge(&other.samples);
    }

    /// Takes another's counts over, without its samples.
    pub(crate) fn copy_figures(&mut self, from: &DirectionStats) {
        (self.ios, self.bytes) = (from.ios, from.bytes);
        self.latency.copy(&from.latency);
        if let (Some(mine), Some(theirs)) = (&mut self.apart, &from.apart) {
            mine.submission.copy(&theirs.submission);
            mine.total.copy(&theirs.total);
        }
    }

    /// How long the job worked in this direction, ms; as in fio at least 1, if it did.
    pub fn runtime_ms(&self) -> u64 {
        (self.runtime_ns / 1_000_000).max(u64::from(self.ios > 0))
    }

    /// Adds another's latencies, where one may have timed submissions apart and the other not.
    pub(crate) fn merge_latency(&mut self, other: &DirectionStats) {
        if self.apart.is_some() || other.apart.is_some() {
            let total = &self.latency;
            let mine = self.apart.get_or_insert_with(|| {
                Box::new(Apart { total: total.clone(), ..Apart::default() })
            });
            mine.total.merge(other.total());
            if let Some(theirs) = &other.apart {
                mine.submission.merge(&theirs.submission);
            }
        }
        self.latency.merge(&other.latency);
    }

    /// The whole latency, submission and completion.
    pub fn total(&self) -> &Latency {
        self.apart.as_ref().map_or(&self.latency, |apart| &apart.total)
    }

    /// Submission, completion and total latencies as they are shown: fio's words for them, and
    /// whether percentiles are; `None` where they are left out, or were not measured.
    pub fn shown(&self, switches: &Latencies) -> [(&'static str, Option<&Latency>, bool); 3] {
        let submission = self.apart.as_ref().map(|apart| &apart.submission);
        let clat = (!switches.disable_clat).then_some(&self.latency);
        let lat = (!switches.disable_lat).then(|| self.total());
        [
            ("slat", submission, switches.slat_percentiles),
            ("clat", clat, switches.clat_percentiles),
            ("lat", lat, switches.lat_percentiles),
        ]
    }

    /// I/Os a second.
    pub fn iops(&self) -> f64 {
        per_second(self.ios, self.runtime_ns)
    }

    /// Bytes a second.
    pub fn bandwidth(&self) -> f64 {
        per_second(self.bytes, self.runtime_ns)
    }
}

fn per_second(count: u64, ns: u64) -> f64 {
    if ns == 0 { 0.0 } else { count as f64 * 1e9 / ns as f64 }
}

/// Rates over the run, one sample every half second.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// I/Os a second.
    pub iops: Vec<f64>,
    /// Bytes a second.
    pub bandwidth: Vec<f64>,
}

impl Samples {
    fn merge(&mut self, other: &Samples) {
        add_each(&mut self.iops, &other.iops);
        add_each(&mut self.bandwidth, &other.bandwidth);
    }
}

fn add_each(sums: &mut Vec<f64>, others: &[f64]) {
    sums.resize(sums.len().max(others.len()), 0.0);
    for (sum, other) in sums.iter_mut().zip(others) {
        *sum += other;
    }
}

/// Smallest, largest, mean and standard deviation of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Smallest; 0 of none.
    pub min: f64,
    /// Largest; 0 of none.
    pub max: f64,
    /// Mean; 0 of none.
    pub mean: f64,
    /// Standard deviation of the sample; 0 of fewer than two.
    pub stddev: f64,
    /// Length of the list.
    pub count: usize,
}

impl Summary {
    /// Sums `values` up.
    pub fn of(values: &[f64]) -> Summary {
        if values.is_empty() {
            return Summary::default();
        }
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let square: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let stddev = if count < 2 { 0.0 } else { (square / (count - 1) as f64).sqrt() };
        let min = values.iter().copied().fold(f64::INFINITY, f64::min);
        let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Summary { min, max, mean, stddev, count }
    }
}

/// Counts in steps of powers of two: how deep the queue was, how large the batches were.
#[derive(Clone, Copy, Debug, Default)]
pub struct Depths {
    counts: [u64; 17],
}

impl Depths {
    /// Counts `weight` events at `depth`.
    #[inline]
    pub fn record(&mut self, depth: usize, weight: u64) {
        let step = (usize::BITS - depth.leading_zeros()) as usize;
        self.counts[step.min(16)] += weight;
    }

    /// Takes all of `other`'s counts in.
    pub fn merge(&mut self, other: &Depths) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
    }

    /// All events.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Events of `low..=high`, both at the edge of a step (`low` a power of two or 0, `high` one
    /// below a power of two).
    pub fn count_between(&self, low: usize, high: usize) -> u64 {
        let step = |depth: usize| ((usize::BITS - depth.leading_zeros()) as usize).min(16);
        self.counts[step(low)..=step(high)].iter().sum()
    }
}

/// What the thread of a job spent while it was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuUse {
    /// Time in user space, ns.
    pub user_ns: u64,
    /// Time in the kernel, ns.
    pub system_ns: u64,
    /// Context switches, of one's own will or not.
    pub context_switches: u64,
    /// Page faults that needed a disk.
    pub major_faults: u64,
    /// Page faults that did not.
    pub minor_faults: u64,
}

impl CpuUse {
    /// What a thread spent between two moments.
    pub fn between(start: ThreadUsage, end: ThreadUsage) -> CpuUse {
        CpuUse {
            user_ns: end.user_ns - start.user_ns,
            system_ns: end.system_ns - start.system_ns,
            context_switches: end.context_switches - start.context_switches,
            major_faults: end.major_faults - start.major_faults,
            minor_faults: end.minor_faults - start.minor_faults,
        }
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: &CpuUse) {
        self.user_ns += other.user_ns;
        self.system_ns += other.system_ns;
        self.context_switches += other.context_switches;
        self.major_faults += other.major_faults;
        self.minor_faults += other.minor_faults;
    }

    /// All CPU time, ns.
    pub fn total_ns(&self) -> u64 {
        self.user_ns + self.system_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_to_three_figures() {
        let mut latency = Latency::new();
        for ns in 1..=100_000 {
            latency.record(ns);
        }
        for (percent, value) in [(50.0, 50_000.0), (99.0, 99_000.0), (99.9, 99_900.0)] {
            let found = latency.percentile(percent) as f64;
            assert!((found / value - 1.0).abs() < 0.001, "{percent}: {found}");
        }
        assert_eq!((latency.count(), latency.min()), (100_000, 1));
        assert!((latency.mean() - 50_000.5).abs() < 50.0);
    }

    #[test]
    fn short_latencies_end_where_a_record_of_each_would_have_put_them() {
        let (mut short, mut settled, mut each) =
            (ShortLatencies::new(), Latency::new(), Latency::new());
        for round in 0..2 {
            for ns in (0..5000).step_by(7).chain([0, 1, 2047, 2048, 2049, u64::MAX]) {
                short.record(ns, &mut settled);
                each.record(ns);
            }
            short.settle(&mut settled);
            assert_eq!(settled.histogram(), each.histogram(), "round {round}");
            assert_eq!((settled.min(), settled.max()), (each.min(), each.max()));
            assert_eq!(settled.mean(), each.mean());
        }
    }

    #[test]
    fn extremes_are_kept_in_range() {
        let mut latency = Latency::new();
        latency.record(0);
        latency.record(u64::MAX);
        assert_eq!(latency.count(), 2);
        assert!(latency.max() >= LONGEST_NS);
    }

    #[test]
    fn merged_jobs_add_up() {
        let mut one = DirectionStats { ios: 1, bytes: 512, ..Default::default() };
        one.latency.record(100);
        one.samples.iops = vec![1.0, 2.0];
        let mut two = one.clone();
        two.samples.iops.push(5.0);
        one.merge(&two);
        assert_eq!((one.ios, one.bytes, one.latency.count()), (2, 1024, 2));
        assert_eq!(one.samples.iops, [2.0, 4.0, 5.0]);
    }

    #[test]
    fn depths_fall_into_steps() {
        let mut depths = Depths::default();
        for depth in [0, 1, 2, 3, 4, 32, 63, 64, 1 << 40] {
            depths.record(depth, 1);
        }
        assert_eq!(depths.total(), 9);
        assert_eq!(depths.count_between(0, 0), 1);
        assert_eq!(depths.count_between(1, 1), 1);
        assert_eq!(depths.count_between(2, 3), 2);
        assert_eq!(depths.count_between(32, 63), 2);
        assert_eq!(depths.count_between(64, usize::MAX), 2);
    }

    #[test]
    fn summaries_of_few_values() {
        assert_eq!(Summary::of(&[]), Summary::default());
        let summary = Summary::of(&[1.0, 3.0]);
        assert_eq!((summary.min, summary.max, summary.mean, summary.count), (1.0, 3.0, 2.0, 2));
        assert!((summary.stddev - 2f64.sqrt()).abs() < 1e-12);
    }
}
