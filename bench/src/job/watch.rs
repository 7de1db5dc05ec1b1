//! What a clone looks at as its I/Os complete: logs, a latency target, limits that end it.

use oxblock_engine::{Op, OpKind};

use super::target::{Search, Verdict};
use crate::log::record::{Io, Recorder};
use crate::options::JobOptions;
use crate::report::{CloneReport, Ending};
use crate::stats::{Direction, DirectionStats};

/// The watch over one clone; only jobs that ask for it have one.
#[derive(Debug)]
pub(crate) struct Watching {
    recorder: Option<Recorder>,
    /// By tag: when the submission was through and how long it took, where that is asked for.
    issued: Option<Box<[Issued]>>,
    max_latency_ns: [u64; 3],
    least: Option<LeastRates>,
    search: Option<Search>,
    ending: Option<Ending>,
    /// When the record began that is being made.
    record_from_ns: u64,
    /// The ramp is over.
    counts: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Issued {
    at_ns: u64,
    took_ns: u64,
}

/// Rates that must not be fallen below, and what was done since they were looked at.
#[derive(Debug)]
struct LeastRates {
    bytes: [u64; 3],
    ios: [u64; 3],
    cycle_ns: u64,
    from_ns: u64,
    done_bytes: [u64; 3],
    done_ios: [u64; 3],
}

/// What is to be done after a look.
pub(crate) enum Look {
    GoOn,
    /// Count anew from here: the depth was found.
    CountAnew,
    End,
}

impl Watching {
    /// The watch that a job asks for; `None`: over nothing.
    pub fn new(options: &JobOptions, recorder: Option<Recorder>) -> Option<Watching> {
        let (watch, depth) = (&options.watch, options.io_depth);
        let only_trims = options.rw.trims() && !options.rw.trims_then_writes();
        let does = [options.rw.reads(), options.rw.writes() && !only_trims, options.rw.trims()];
        let own = |limits: [u64; 3]| [0, 1, 2].map(|way: usize| limits[way] * u64::from(does[way]));
        if !watch.needs_each_io() {
            return None;
        }
        let issued = watch.measures_submission();
        Some(Watching {
            recorder,
            issued: issued.then(|| vec![Issued::default(); depth as usize].into()),
            max_latency_ns: watch.max_latency_ns,
            least: watch.has_min_rate().then_some(LeastRates {
                bytes: own(watch.rate_min),
                ios: own(watch.rate_iops_min),
                cycle_ns: watch.rate_cycle.as_nanos() as u64,
                from_ns: 0,
                done_bytes: [0; 3],
                done_ios: [0; 3],
            }),
            search: (watch.target.target_ns > 0).then(|| Search::new(&watch.target, depth)),
            ending: None,
            record_from_ns: 0,
            counts: false,
        })
    }

    /// Is the time after each submission wanted?
    #[inline]
    pub fn wants_issue(&self) -> bool {
        self.issued.is_some()
    }

    /// The submission of the I/O of `tag` began at `from_ns` and was through at `now`.
    #[inline]
    pub fn issued(&mut self, tag: usize, from_ns: u64, now: u64) {
        if let Some(place) = self.issued.as_mut().and_then(|issued| issued.get_mut(tag)) {
            *place = Issued { at_ns: now, took_ns: now.saturating_sub(from_ns) };
        }
    }

    /// I/Os that may be in flight.
    #[inline]
    pub fn depth(&self) -> u32 {
        self.search.as_ref().map_or(u32::MAX, Search::depth)
    }

    /// The depth that a latency target came to.
    pub fn found_depth(&self) -> Option<u32> {
        self.search.as_ref().map(Search::depth)
    }

    /// What ended the job, if it was this.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Makes room in a record that begins, at `from_ns`. `counts`: what it counts is not a ramp.
    #[inline]
    pub fn begin(&mut self, from_ns: u64, counts: bool, report: &mut CloneReport) {
        if self.record_from_ns == from_ns {
            return;
        }
        self.record_from_ns = from_ns;
        if self.issued.is_some() {
            for stats in [&mut report.read, &mut report.write, &mut report.trim] {
                stats.apart = Some(Box::default());
            }
        }
        if self.counts || !counts {
            return;
        }
        self.counts = true;
        if let Some(recorder) = &mut self.recorder {
            recorder.start(from_ns);
        }
        if let Some(least) = &mut self.least {
            least.start(from_ns);
        }
    }

    /// Counts an I/O that was submitted at `submitted_ns` and found complete at `now`.
    #[inline]
    pub fn completed(&mut self, op: &Op, submitted_ns: u64, now: u64, stats: &mut DirectionStats) {
        let way = match op.kind {
            OpKind::Read => 0,
            OpKind::Discard => 2,
            _ => 1,
        };
        let total_ns = now.saturating_sub(submitted_ns);
        let issued = self.issued.as_ref().and_then(|issued| issued.get(op.tag as usize));
        let (slat_ns, clat_ns) = match issued {
            None => (None, total_ns),
            Some(issued) => {
                if let Some(apart) = &mut stats.apart {
                    apart.submission.record(issued.took_ns);
                    apart.total.record(total_ns);
                }
                (Some(issued.took_ns), now.saturating_sub(issued.at_ns))
            }
        };
        stats.latency.record(clat_ns);
        if !self.counts {
            return;
        }
        if let Some(recorder) = &mut self.recorder {
            let (len, offset) = (op.len as u32, op.offset);
            recorder.record(now, &Io { way, len, offset, slat_ns, clat_ns, lat_ns: total_ns });
        }
        if let Some(least) = &mut self.least {
            least.done_ios[way] += 1;
            least.done_bytes[way] += op.len;
        }
        if let Some(search) = &mut self.search {
            search.completed(submitted_ns, total_ns);
        }
        let limit_ns = self.max_latency_ns[way];
        if limit_ns > 0 && total_ns > limit_ns {
            let direction = Direction::ALL[way];
            self.ending.get_or_insert(Ending::MaxLatency { direction, ns: total_ns, limit_ns });
        }
    }

    /// Looks at the whole, after a pass.
    #[inline]
    pub fn look(&mut self, now: u64) -> Look {
        if !self.counts {
            return Look::GoOn;
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.tick(now);
        }
        if let Some(least) = &mut self.least {
            let ending = least.look(now);
            self.ending = self.ending.or(ending);
        }
        let verdict = self.search.as_mut().map_or(Verdict::GoOn, |search| search.look(now));
        match verdict {
            _ if self.ending.is_some() => Look::End,
            Verdict::GoOn => Look::GoOn,
            Verdict::Found => Look::CountAnew,
            Verdict::Over => Look::End,
            Verdict::Missed { target_ns } => {
                self.ending = Some(Ending::TargetMissed { target_ns });
                Look::End
            }
        }
    }

    /// The clone is over.
    pub fn finish(&mut self, now: u64) {
        if let Some(recorder) = &mut self.recorder
            && self.counts
        {
            recorder.finish(now);
        }
    }
}

impl LeastRates {
    fn start(&mut self, now: u64) {
        self.from_ns = now;
        (self.done_bytes, self.done_ios) = ([0; 3], [0; 3]);
    }

    /// Was less done in a cycle that is over than must be?
    fn look(&mut self, now: u64) -> Option<Ending> {
        let length_ns = now.saturating_sub(self.from_ns);
        if length_ns < self.cycle_ns {
            return None;
        }
        let rate = |count: u64| (u128::from(count) * 1_000_000_000 / u128::from(length_ns)) as u64;
        let short = |option, limits: &[u64; 3], done: &[u64; 3]| {
            let rates = done.iter().map(|&done| rate(done)).zip(limits).zip(Direction::ALL);
            let mut short = rates.filter(|((rate, limit), _)| rate < *limit);
            short.next().map(|((rate, &limit), direction)| Ending::RateTooLow {
                option,
                direction,
                limit,
                rate,
            })
        };
        let ending = short("rate_min", &self.bytes, &self.done_bytes)
            .or_else(|| short("rate_iops_min", &self.ios, &self.done_ios));
        self.start(now);
        ending
    }
}
