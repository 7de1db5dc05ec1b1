//! What the thread sees that waits for a job: rates, how steady they are, and, where it is asked
//! for, reports of a job that goes on.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use super::Job;
use crate::job::Progress;
use crate::report::{CloneReport, Report};
use crate::series::{Point, Series};
use crate::stats::Samples;
use crate::steady::{self, Judge, Steadiness};

/// How often rates are sampled, as fio does (`bwavgtime`, `iopsavgtime`).
const SAMPLE: Duration = Duration::from_millis(500);
/// How often the caller is shown where the job stands.
const SHOW: Duration = Duration::from_millis(100);

/// Where a job stands.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Since the start.
    pub elapsed: Duration,
    /// How much of the job is done, 0 to 1.
    pub done: f64,
    /// Reads and writes a second, of late.
    pub iops: [f64; 2],
    /// Bytes a second, of late.
    pub bandwidth: f64,
    /// Reading back and checking.
    pub checking: bool,
    /// What there would be to report by now, once each
    /// [`status_interval`](crate::options::JobOptions::status_interval).
    pub status: Option<Arc<Report>>,
}

impl Snapshot {
    /// Takes a later one over; a status stays until there is a new one.
    pub fn replace_by(&mut self, later: &Snapshot) {
        let status = later.status.clone().or_else(|| self.status.take());
        *self = Snapshot { status, ..later.clone() };
    }
}

/// Waits for the clones; shows where they stand, and samples their rates.
pub(super) fn watch_clones(
    job: &Job,
    target: &str,
    progress: &[Arc<Progress>],
    watch: &mut dyn FnMut(&Mark, &Snapshot),
) -> Watched {
    let begun = Instant::now();
    let mut inquiry = Inquiry::new(job, begun, progress.len());
    let mut judged = Judged::new(job, begun);
    let mut samples = vec![<[Samples; 2]>::default(); progress.len()];
    let mut series = Series::default();
    let (mut shown, mut sampled) = (Mark::new(begun, progress), Mark::new(begun, progress));
    while job.running.load(SeqCst) > 0 {
        std::thread::park_timeout(SHOW);
        let now = Mark::new(Instant::now(), progress);
        judged.look(now.at, job, progress);
        if now.at - begun < job.options.ramp_time {
            sampled = now.clone();
        } else if now.at - sampled.at >= SAMPLE {
            for (samples, rate) in samples.iter_mut().zip(now.rates_since(&sampled)) {
                for (samples, rate) in samples.iter_mut().zip(rate) {
                    samples.iops.push(rate);
                    samples.bandwidth.push(rate * job.options.mean_block_size());
                }
            }
            sampled = now.clone();
        }
        if now.at - shown.at >= SHOW {
            let status = inquiry.look(now.at, job, progress);
            let status = status.map(|clones| status_report(job, target, clones, &samples, &series));
            watch(&now, &Snapshot { status, ..snapshot(job, progress, begun, &now, &shown) });
            if shown.at - begun >= job.options.ramp_time {
                series.add(point(job, begun, &now, &shown));
            }
            shown = now;
        }
    }
    Watched { samples, series, steadiness: judged.end() }
}

/// What the watching thread saw.
pub(super) struct Watched {
    /// Of each clone, reads and writes.
    pub samples: Vec<[Samples; 2]>,
    pub series: Series,
    pub steadiness: Option<Steadiness>,
}

/// Judges how steady the clones are, and ends them when they are.
struct Judged {
    judge: Option<Judge>,
    /// When rates were read last; at first, when that begins.
    read: Instant,
    /// I/Os and bytes up to then.
    done: Option<[u64; 2]>,
}

impl Judged {
    fn new(job: &Job, begun: Instant) -> Judged {
        let begins = begun + job.options.ramp_time + job.options.watch.steady_ramp;
        Judged { judge: Judge::new(&job.options.watch), read: begins, done: None }
    }

    fn look(&mut self, now: Instant, job: &Job, progress: &[Arc<Progress>]) {
        let Some(judge) = &mut self.judge else { return };
        // Once it is steady, or reads back what it wrote, there is nothing to judge.
        if judge.is_attained() || progress.iter().any(|clone| clone.checking.load(Relaxed)) {
            return;
        }
        let since = now.saturating_duration_since(self.read);
        if now < self.read || (self.done.is_some() && since < steady::EACH) {
            return;
        }
        let (size, is_plain) = (job.options.block_size, !job.options.is_shaped());
        let done = progress.iter().map(|clone| clone.done(size, is_plain));
        let done = done.fold([0, 0], |sum, more| [sum[0] + more[0], sum[1] + more[1]]);
        if let Some(before) = self.done {
            let rate = |of: usize| done[of].saturating_sub(before[of]) as f64 / since.as_secs_f64();
            if judge.add(rate(0), rate(1)) {
                progress.iter().for_each(|clone| clone.end.store(true, Relaxed));
            }
        }
        (self.read, self.done) = (now, Some(done));
    }

    fn end(self) -> Option<Steadiness> {
        self.judge.map(Judge::end)
    }
}

/// What was done between two marks, all clones together.
fn point(job: &Job, begun: Instant, now: &Mark, before: &Mark) -> Point {
    let zero = begun + job.options.ramp_time;
    let count = |mark: &Mark, way: usize| mark.ios.iter().map(|ios| ios[way]).sum::<u64>();
    let ios = [0, 1].map(|way| count(now, way).saturating_sub(count(before, way)) as f64);
    Point {
        start: before.at.saturating_duration_since(zero),
        end: now.at.saturating_duration_since(zero),
        ios,
        bytes: ios.map(|ios| ios * f64::from(job.options.block_size)),
    }
}

fn snapshot(
    job: &Job,
    progress: &[Arc<Progress>],
    begun: Instant,
    now: &Mark,
    shown: &Mark,
) -> Snapshot {
    let rates = now.rates_since(shown);
    let iops = [0, 1].map(|way| rates.iter().map(|rate| rate[way]).sum());
    let elapsed = now.at - begun;
    let time = job.options.runtime.map(|time| time + job.options.ramp_time);
    let by_time = time.map_or(0.0, |time| elapsed.as_secs_f64() / time.as_secs_f64());
    let passes = if job.options.reads_back() { 2.0 } else { 1.0 };
    let by_count = now.total() as f64 / (job.plan.limit as f64 * passes * progress.len() as f64);
    Snapshot {
        elapsed,
        done: by_time.max(by_count).min(1.0),
        iops,
        bandwidth: (iops[0] + iops[1]) * job.options.mean_block_size(),
        checking: progress.iter().any(|clone| clone.checking.load(Relaxed)),
        status: None,
    }
}

/// The report of a job that has not ended.
fn status_report(
    job: &Job,
    target: &str,
    mut clones: Vec<CloneReport>,
    samples: &[[Samples; 2]],
    series: &Series,
) -> Arc<Report> {
    for (clone, [read, write]) in clones.iter_mut().zip(samples) {
        (clone.read.samples, clone.write.samples) = (read.clone(), write.clone());
    }
    Arc::new(Report {
        options: job.options.clone(),
        group_id: 0,
        target: target.to_owned(),
        clones,
        serving: Vec::new(),
        devices: job.devices(),
        series: series.clone(),
        steadiness: None,
        log_entries_lost: 0,
        interrupted: false,
    })
}

/// Asks the clones for their figures, once each interval.
struct Inquiry {
    each: Option<Duration>,
    next: Instant,
    asked: bool,
    /// What each clone told last.
    told: Vec<CloneReport>,
}

impl Inquiry {
    fn new(job: &Job, begun: Instant, clones: usize) -> Inquiry {
        let each = job.options.status_interval;
        let told = vec![CloneReport { merged: 1, ..CloneReport::default() }; clones];
        Inquiry { each, next: begun + each.unwrap_or_default(), asked: false, told }
    }

    /// Asks, or takes what was answered since the last look.
    fn look(
        &mut self,
        now: Instant,
        job: &Job,
        progress: &[Arc<Progress>],
    ) -> Option<Vec<CloneReport>> {
        let each = self.each?;
        if self.asked {
            self.asked = false;
            for (told, clone) in self.told.iter_mut().zip(progress) {
                if let Some(report) = clone.inquiry.answered() {
                    *told = *report;
                }
            }
            return Some(self.told.clone());
        }
        if now >= self.next {
            self.next += each;
            self.asked = true;
            let times_submission = job.options.watch.measures_submission();
            progress.iter().for_each(|clone| clone.inquiry.ask(times_submission));
        }
        None
    }
}

/// The counts of all clones at one moment.
#[derive(Clone)]
pub(super) struct Mark {
    at: Instant,
    ios: Vec<[u64; 2]>,
}

impl Mark {
    pub fn new(at: Instant, progress: &[Arc<Progress>]) -> Mark {
        let counts = |clone: &Arc<Progress>| [0, 1].map(|way: usize| clone.ios[way].load(Relaxed));
        Mark { at, ios: progress.iter().map(counts).collect() }
    }

    /// I/Os of all clones and directions.
    pub fn total(&self) -> u64 {
        self.ios.iter().flatten().sum()
    }

    /// I/Os a second since `earlier`.
    fn rates_since(&self, earlier: &Mark) -> Vec<[f64; 2]> {
        let seconds = (self.at - earlier.at).as_secs_f64().max(1e-9);
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let clones = self.ios.iter().zip(&earlier.ios);
        clones.map(|(now, then)| [0, 1].map(|way: usize| rate(now[way], then[way]))).collect()
    }
}
