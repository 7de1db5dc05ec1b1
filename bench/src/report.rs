//! What a run found, job by job.

use std::fmt;
use std::sync::Arc;

use oxblock_engine::{Counter, Fault, Source};

use crate::options::{JobOptions, Unified};
use crate::series::Series;
use crate::stats::{CpuUse, Depths, Direction, DirectionStats, Latency};
use crate::steady::Steadiness;
use crate::verify::Mismatch;

/// The result of one job with all its clones.
#[derive(Clone, Debug)]
pub struct Report {
    /// The job as it was asked for.
    pub options: Arc<JobOptions>,
    /// The group of jobs that it is reported with (fio's `groupid`).
    pub group_id: usize,
    /// What it ran against, in words.
    pub target: String,
    /// One entry per clone.
    pub clones: Vec<CloneReport>,
    /// What the cores spent that serve the target; empty if there are none, or the job was over
    /// within a moment.
    pub serving: Vec<ServingReport>,
    /// What the drivers of its files counted of their devices meanwhile, jobs beside it included;
    /// empty where they count nothing.
    pub devices: Vec<DeviceReport>,
    /// Rates of all clones over the run.
    pub series: Series,
    /// How steady the rates became, where that was asked for.
    pub steadiness: Option<Steadiness>,
    /// Entries of logs for which there was no memory.
    pub log_entries_lost: u64,
    /// Ended before its time by the user.
    pub interrupted: bool,
}

/// The result of one clone of a job, or of several merged.
#[derive(Clone, Debug, Default)]
pub struct CloneReport {
    /// Clones merged into this one.
    pub merged: u32,
    /// The core that it ran on; of several, the first's.
    pub core: usize,
    /// Reads; those of a verify phase too.
    pub read: DirectionStats,
    /// Writes.
    pub write: DirectionStats,
    /// Trims.
    pub trim: DirectionStats,
    /// Flushes.
    pub sync: Latency,
    /// I/Os that failed.
    pub errors: u64,
    /// From the first submission that counts to the last completion, ns.
    pub runtime_ns: u64,
    /// What its thread spent in that time.
    pub cpu: CpuUse,
    /// Heap allocations of its thread in the steady state (from when every I/O of the queue had
    /// completed once), and the I/Os of that state; `None` where the program does not count.
    pub allocations: Option<Allocations>,
    /// How deep the queue was, for each I/O.
    pub depths: Depths,
    /// How many I/Os each batch of submissions had, less one.
    pub submitted: Depths,
    /// How many I/Os each pass that found any found complete, less one.
    pub completed: Depths,
    /// The first I/O that failed, which ended the job.
    pub fault: Option<FailedIo>,
    /// Which of its figures ended it, if one did.
    pub ending: Option<Ending>,
    /// The depth that a latency target came to; of several clones, the least.
    pub found_depth: Option<u32>,
    /// What checking found, if anything was checked.
    pub verify: Option<VerifyReport>,
}

/// What a core spent that serves the target, from soon after the job's start.
#[derive(Clone, Copy, Debug)]
pub struct ServingReport {
    /// The core.
    pub core: usize,
    /// I/Os of the job meanwhile.
    pub ios: u64,
    /// What its thread spent.
    pub cpu: CpuUse,
    /// Heap allocations of its thread; `None` where the program does not count.
    pub allocations: Option<Allocations>,
}

/// What a driver counted of its device during a job.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// The node.
    pub node: String,
    /// The counts.
    pub counters: Vec<Counter>,
}

/// Heap allocations over a count of I/Os.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocations {
    /// Calls that took memory.
    pub count: u64,
    /// I/Os completed meanwhile.
    pub ios: u64,
}

/// An I/O that failed.
#[derive(Clone, Copy, Debug)]
pub struct FailedIo {
    /// Read or write.
    pub direction: Direction,
    /// What the engine said.
    pub fault: Fault,
}

/// What ended a clone that looked at its own figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// An I/O took longer than `max_latency`.
    MaxLatency {
        /// Of which direction.
        direction: Direction,
        /// What it took.
        ns: u64,
        /// What it may take.
        limit_ns: u64,
    },
    /// A rate fell below `rate_min` or `rate_iops_min`.
    RateTooLow {
        /// Which of the two.
        option: &'static str,
        /// Of which direction.
        direction: Direction,
        /// What must be done in a second.
        limit: u64,
        /// What was.
        rate: u64,
    },
    /// Not even one I/O at a time kept to the latency target.
    TargetMissed {
        /// The target.
        target_ns: u64,
    },
}

impl Ending {
    /// The errno that fio ends with.
    pub fn errno(self) -> i32 {
        const EIO: i32 = 5;
        const ETIMEDOUT: i32 = 110;
        match self {
            Ending::RateTooLow { .. } => EIO,
            Ending::MaxLatency { .. } | Ending::TargetMissed { .. } => ETIMEDOUT,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::MaxLatency { direction, ns, limit_ns } => write!(
                f,
                "a {} took {ns} ns: more than max_latency of {limit_ns} ns",
                direction.word()
            ),
            Ending::RateTooLow { option, direction, limit, rate } => {
                write!(
                    f,
                    "{}s were {rate} a second: less than {option} of {limit}",
                    direction.word()
                )
            }
            Ending::TargetMissed { target_ns } => {
                write!(f, "one I/O at a time already misses latency_target of {target_ns} ns")
            }
        }
    }
}

/// The errno of a fault: the system's own, or that of its kind.
pub(crate) fn errno_of(fault: Fault) -> i32 {
    match fault.source {
        Source::Errno(errno) => errno,
        _ => fault.kind.errno(),
    }
}

/// What checking found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Blocks (intervals of `verify_interval` bytes) read and checked.
    pub checked: u64,
    /// Blocks that were not what had been written.
    pub bad: u64,
    /// Blocks that were written or trimmed while they were read, and could not be checked then.
    pub raced: u64,
    /// Blocks whose last write had not been seen to end.
    pub doubts: Doubts,
    /// The first bad ones, described.
    pub mismatches: Vec<Mismatch>,
}

/// What blocks hold whose last write failed, or was in flight when the run was killed. None of
/// these is bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    /// What was there before.
    pub old: u64,
    /// What was being written.
    pub new: u64,
    /// Some of the target's own blocks hold the one, some the other.
    pub torn: u64,
    /// It had not been written before: what it held then is not known.
    pub unknown: u64,
}

impl VerifyReport {
    /// Adds what another clone or phase found.
    pub fn merge(&mut self, other: &VerifyReport) {
        self.checked += other.checked;
        self.bad += other.bad;
        self.raced += other.raced;
        self.doubts.merge(other.doubts);
        self.mismatches.extend(other.mismatches.iter().cloned());
    }
}

impl VerifyReport {
    /// What there is to say beside good and bad, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let Doubts { old, new, torn, unknown } = self.doubts;
        let mut notes = Vec::new();
        if self.doubts.total() > 0 {
            notes.push(format!(
                "{} blocks were in flight when the run ended, or their write failed: {old} hold \
                 what was there before, {new} what was being written, {torn} some of both (each \
                 block of the target whole), and of {unknown} it cannot be told",
                self.doubts.total()
            ));
        }
        if self.raced > 0 {
            notes.push(format!(
                "{} blocks were being written while they were read, and were not checked then",
                self.raced
            ));
        }
        notes
    }
}

impl Doubts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.old + self.new + self.torn + self.unknown
    }

    fn merge(&mut self, other: Doubts) {
        self.old += other.old;
        self.new += other.new;
        self.torn += other.torn;
        self.unknown += other.unknown;
    }
}

impl Allocations {
    /// Allocations for each I/O.
    pub fn per_io(self) -> f64 {
        self.count as f64 / self.ios.max(1) as f64
    }
}

impl ServingReport {
    /// CPU time for each I/O of the job, ns; polling in vain included.
    pub fn cpu_ns_per_io(&self) -> f64 {
        self.cpu.total_ns() as f64 / self.ios.max(1) as f64
    }
}

/// What is reported as one: a clone, or with `group_reporting` all clones of a group of jobs.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The job; of a group, its first.
    pub report: &'a Report,
    /// Its figures.
    pub clone: CloneReport,
}

/// What is reported of some jobs, in the order in which they ran.
pub fn entries(reports: &[Report]) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    let mut reports = reports.iter().peekable();
    while let Some(report) = reports.next() {
        if !report.options.group_reporting {
            let clones = report.clones.iter().cloned();
            entries.extend(clones.map(|clone| Entry { report, clone }));
            continue;
        }
        let mut clone = report.group();
        while let Some(more) = reports.next_if(|next| report.is_reported_with(next)) {
            clone.merge(&more.group());
        }
        entries.push(Entry { report, clone });
    }
    entries
}

impl Report {
    /// Is the job after this one reported together with it?
    pub fn is_reported_with(&self, next: &Report) -> bool {
        self.options.group_reporting
            && next.options.group_reporting
            && next.group_id == self.group_id
    }

    /// All clones as one.
    pub fn group(&self) -> CloneReport {
        let mut clones = self.clones.iter();
        let mut group = clones.next().cloned().unwrap_or_default();
        for clone in clones {
            group.merge(clone);
        }
        group
    }

    /// Did every I/O succeed and every check pass?
    pub fn is_good(&self) -> bool {
        self.clones.iter().all(|clone| clone.errno() == 0)
    }
}

impl CloneReport {
    /// One direction's figures.
    pub fn direction(&self, direction: Direction) -> &DirectionStats {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
            Direction::Trim => &self.trim,
        }
    }

    /// All directions together, as fio's `unified_rw_reporting` has them.
    pub fn mixed(&self) -> DirectionStats {
        let mut mixed = self.read.clone();
        mixed.merge(&self.write);
        mixed.merge(&self.trim);
        mixed
    }

    /// The directions that are shown apart, or together, with fio's words for them.
    pub fn shown(&self, unified: Unified) -> Vec<(&'static str, DirectionStats)> {
        let apart = || Direction::ALL.map(|way| (way.word(), self.direction(way).clone()));
        let mixed = || ("mixed", self.mixed());
        match unified {
            Unified::None => apart().to_vec(),
            Unified::Mixed => vec![mixed()],
            Unified::Both => apart().into_iter().chain([mixed()]).collect(),
        }
    }

    /// What went wrong first, in words; `None`: nothing.
    pub fn error_message(&self) -> Option<String> {
        let fault = self.fault.map(|f| format!("{}: {}", f.direction.word(), f.fault));
        fault.or(self.ending.map(|ending| ending.to_string()))
    }

    /// I/Os of all directions.
    pub fn ios(&self) -> u64 {
        self.read.ios + self.write.ios + self.trim.ios
    }

    /// I/Os a second of all directions.
    pub fn iops(&self) -> f64 {
        self.read.iops() + self.write.iops() + self.trim.iops()
    }

    /// CPU time of the job's thread for each I/O, ns; generator and accounting included.
    pub fn cpu_ns_per_io(&self) -> f64 {
        self.cpu.total_ns() as f64 / self.ios().max(1) as f64
    }

    /// Heap allocations for each I/O of the steady state, if they were counted.
    pub fn allocations_per_io(&self) -> Option<f64> {
        self.allocations.map(Allocations::per_io)
    }

    /// 0, or the errno of what went wrong first: an I/O (its errno) or a check (EILSEQ, as fio).
    pub fn errno(&self) -> i32 {
        const EILSEQ: i32 = 84;
        match (&self.fault, &self.verify) {
            (Some(failed), _) => errno_of(failed.fault),
            _ if let Some(ending) = self.ending => ending.errno(),
            (None, Some(verify)) if verify.bad > 0 => EILSEQ,
            _ => 0,
        }
    }

    /// Takes the counts of another over; allocates nothing if the same latencies are there.
    pub(crate) fn copy_figures(&mut self, from: &CloneReport) {
        self.core = from.core;
        self.read.copy_figures(&from.read);
        self.write.copy_figures(&from.write);
        self.trim.copy_figures(&from.trim);
        self.sync.copy(&from.sync);
        self.errors = from.errors;
        (self.depths, self.submitted, self.completed) =
            (from.depths, from.submitted, from.completed);
    }

    /// Adds a clone that ran beside this one.
    pub fn merge(&mut self, other: &CloneReport) {
        self.merged += other.merged;
        self.read.merge(&other.read);
        self.write.merge(&other.write);
        self.trim.merge(&other.trim);
        self.sync.merge(&other.sync);
        self.errors += other.errors;
        self.runtime_ns = self.runtime_ns.max(other.runtime_ns);
        self.cpu.merge(&other.cpu);
        self.depths.merge(&other.depths);
        self.submitted.merge(&other.submitted);
        self.completed.merge(&other.completed);
        self.fault = self.fault.or(other.fault);
        self.ending = self.ending.or(other.ending);
        self.found_depth = self.found_depth.min(other.found_depth).or(other.found_depth);
        if let (Some(mine), Some(theirs)) = (&mut self.allocations, other.allocations) {
            mine.count += theirs.count;
            mine.ios += theirs.ios;
        }
        if let Some(theirs) = &other.verify {
            self.verify.get_or_insert_default().merge(theirs);
        }
    }
}
