//! The hot loop: one clone of a job on one core.
//!
//! A clone is a poller of its core. Each pass takes what has completed, counts it, and submits as
//! many I/Os again, with the buffers that came back; then one kick. Each I/O of the queue has a
//! buffer and a place in a table for its whole life, so that nothing is allocated.
//!
//! # How latency is taken
//! Two readings of the core's clock ([`CLOCK`]) bound an I/O: one before its submission, and one
//! for each pass that found completions, taken after the last of them was fetched. The latency
//! is thus never told too short; an I/O that was fetched first in its pass is told too long by as
//! much as the fetching of the others took. Where the only I/O in flight was done at once, the
//! reading after it is also the one before the next (`single`). Submission is not timed apart from
//! completion (fio's `slat`): that would be a further reading.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Poll, Waker};

use oxblock_engine::{Channel, Core, Error, Fault, Full, Op, OpId, OpKind, Poller, Sleep};
use oxblock_mem::counting_alloc::{allocations, is_installed};
use oxblock_mem::thread_usage::ThreadUsage;
use oxblock_mem::{Arena, ArenaOptions, Buf, IoVector};

use crate::options::Contents;
use crate::pattern::{Prng, Step, Steps};
use crate::report::{Allocations, CloneReport, FailedIo};
use crate::stats::{CpuUse, Direction, ShortLatencies};
use inquiry::Inquiry;
use shaped::Shaped;

mod filler;
mod inquiry;
mod pace;
mod shaped;
mod single;
mod target;
mod verified;
mod watch;

pub(crate) use shaped::Shaped as ShapedWork;
pub(crate) use verified::Verified;
pub(crate) use watch::Watching;

/// The clock that latencies are taken with.
pub const CLOCK: &str = "the core's cycle counter, tied to CLOCK_MONOTONIC";

/// Submissions of one pass that share a reading of the clock: it is taken before the first of
/// them, so the others' latency is told a little too long, by the time of their submission.
const SUBMISSIONS_PER_READING: u32 = 4;
/// I/Os after which a pass goes around no more, though what it submitted was done at once, as with
/// a target in memory: a reactor's turn for each would cost more than they do.
const ENOUGH_FOR_A_PASS: usize = 16;
/// Empty passes of which one looks at the clock.
const PASSES_PER_READING: u32 = 64;
/// How soon a clone that waits for its device sees that the user wants to stop.
const STOP_CHECK_NS: u64 = 50_000_000;

/// What one clone of a job does in one phase.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    pub steps: Steps,
    /// First byte of the clone's range.
    pub start: u64,
    pub block_size: u32,
    /// Steps to take.
    pub limit: u64,
    pub runtime_ns: Option<u64>,
    pub ramp_ns: u64,
}

/// What a clone shows of itself while it runs; written by its core alone.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Progress {
    pub ios: [AtomicU64; 2],
    /// Of a shaped job.
    pub bytes: AtomicU64,
    pub checking: AtomicBool,
    /// Set by who watches: the clone is to end, for it has done what it was to do.
    pub end: AtomicBool,
    pub inquiry: Inquiry,
}

/// One clone in one phase; see the module's documentation.
pub(crate) struct Worker {
    channel: Channel,
    /// Those of the job's other files; only a job with a shape has any.
    others: Vec<Channel>,
    phase: Phase,
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
    /// I/Os that the progress showed before those that are counted now.
    shown_before: [u64; 2],
    /// By tag: when the operation was submitted.
    submitted_ns: Box<[u64]>,
    /// Operations that are not in flight, each with its tag and its buffer; those that came back
    /// in this pass are last. They are changed in place, all before the first is submitted: an
    /// operation that is copied right after one of its words was stored waits for that store.
    rest: Vec<Op>,
    /// Operations that found the core's slot table full; normally none.
    held: Vec<Op>,
    in_flight: u32,
    taken: u64,
    /// No more submissions: the limit, the time, a fault or the user said so.
    closing: bool,
    interrupted: bool,
    /// An I/O failed, and the job does not go on after that.
    failed: bool,
    started: bool,
    empty_passes: u32,
    /// The clock's last reading for submissions, and for how many more of this pass it holds.
    stamp_ns: u64,
    stamp_left: u32,
    ends_ns: u64,
    ramp_ends_ns: u64,
    counts: Counts,
    fault: Option<FailedIo>,
    /// Set for jobs whose blocks, places or pace are not plain.
    shaped: Option<Box<Shaped>>,
}

/// What starts anew when the ramp ends.
struct Counts {
    from_ns: u64,
    last_ns: u64,
    report: CloneReport,
    /// Of a plain job, reads and writes: latencies that are still to go into the report.
    short: [ShortLatencies; 2],
    usage: ThreadUsage,
    /// Allocations and I/Os up to when every operation had been used.
    steady: Option<Allocations>,
    /// And up to the last pass that found any.
    latest: Allocations,
}

/// What a finished phase leaves behind.
pub(crate) struct Outcome {
    pub report: CloneReport,
    /// The buffers, for the next phase.
    pub buffers: Vec<IoVector>,
    pub interrupted: bool,
    /// An I/O that failed ended it.
    pub failed: bool,
}

impl Counts {
    fn new(now: u64) -> Counts {
        let (report, usage) = (CloneReport::default(), ThreadUsage::now());
        Counts {
            from_ns: now,
            last_ns: now,
            report,
            short: [(); 2].map(|()| ShortLatencies::new()),
            usage,
            steady: None,
            latest: Allocations::default(),
        }
    }

    /// Counts an I/O of a plain job.
    #[inline(always)]
    fn count(&mut self, way: usize, latency_ns: u64) {
        let stats = if way == 0 { &mut self.report.read } else { &mut self.report.write };
        stats.ios += 1;
        self.short[way].record(latency_ns, &mut stats.latency);
    }

    /// Makes the report whole.
    fn settle(&mut self) {
        let [reads, writes] = &mut self.short;
        reads.settle(&mut self.report.read.latency);
        writes.settle(&mut self.report.write.latency);
    }
}

impl Progress {
    /// I/Os and bytes of all directions; a plain job counts no bytes, as all its I/Os are of
    /// `block_size`.
    pub fn done(&self, block_size: u32, is_plain: bool) -> [u64; 2] {
        let ios = self.ios().iter().sum();
        [ios, if is_plain { ios * u64::from(block_size) } else { self.bytes.load(Relaxed) }]
    }

    /// What was written is read back whole, however steady it came.
    #[inline]
    fn is_told_to_end(&self) -> bool {
        self.end.load(Relaxed) && !self.checking.load(Relaxed)
    }

    /// Only the clone's core adds: no other store comes between.
    #[inline]
    fn add_bytes(&self, bytes: u64) {
        self.bytes.store(self.bytes.load(Relaxed).wrapping_add(bytes), Relaxed);
    }

    fn ios(&self) -> [u64; 2] {
        [0, 1].map(|way: usize| self.ios[way].load(Relaxed))
    }
}

/// Runs one phase on this core to its end.
pub(crate) async fn run_phase(core: &Core, worker: Worker) -> Outcome {
    let shared = Rc::new(RefCell::new(Shared { worker, waker: None }));
    let poller = core.add_poller(Box::new(WorkerPoller(shared.clone())));
    poll_fn(|context| {
        let mut shared = shared.borrow_mut();
        if shared.worker.is_over() {
            return Poll::Ready(());
        }
        shared.waker = Some(context.waker().clone());
        Poll::Pending
    })
    .await;
    core.remove_poller(poller);
    let mut shared = shared.borrow_mut();
    shared.worker.finish()
}

/// A worker between its poller and the task that waits for its end.
struct Shared {
    worker: Worker,
    waker: Option<Waker>,
}

struct WorkerPoller(Rc<RefCell<Shared>>);

impl Poller for WorkerPoller {
    #[inline]
    fn poll(&mut self, core: &Core) -> usize {
        let mut shared = self.0.borrow_mut();
        if shared.worker.is_over() {
            return 0;
        }
        let count = shared.worker.pass(core);
        if shared.worker.is_over()
            && let Some(waker) = shared.waker.take()
        {
            waker.wake();
        }
        count
    }

    fn sleep(&mut self) -> Sleep<'_> {
        let worker = &self.0.borrow().worker;
        match worker.is_over() {
            true => Sleep::Woken,
            false => Sleep::Until(worker.wake_at_ns(worker.channel.core().now())),
        }
    }
}

impl Worker {
    /// A worker with one I/O in flight for each of `buffers`.
    pub fn new(
        channel: Channel,
        phase: Phase,
        buffers: Vec<IoVector>,
        stop: Arc<AtomicBool>,
        progress: Arc<Progress>,
    ) -> Worker {
        let depth = buffers.len();
        let rest = (0..).zip(buffers).map(|(tag, data)| Op::read(0, data).tag(tag)).collect();
        Worker {
            channel,
            others: Vec::new(),
            phase,
            stop,
            shown_before: progress.ios(),
            progress,
            submitted_ns: vec![0; depth].into(),
            rest,
            held: Vec::with_capacity(depth),
            in_flight: 0,
            taken: 0,
            closing: false,
            interrupted: false,
            failed: false,
            started: false,
            empty_passes: 0,
            stamp_ns: 0,
            stamp_left: 0,
            ends_ns: u64::MAX,
            ramp_ends_ns: 0,
            counts: Counts::new(0),
            fault: None,
            shaped: None,
        }
    }

    /// The same, of a job with a shape. `others` are the channels of its files but the first.
    pub fn shaped(self, shaped: Shaped, others: Vec<Channel>) -> Worker {
        Worker { shaped: Some(Box::new(shaped)), others, ..self }
    }

    /// One pass: takes what has completed, and submits as much again. How many had completed.
    #[inline]
    pub fn pass(&mut self, core: &Core) -> usize {
        self.stamp_left = 0;
        if let Some(shaped) = self.shaped.take() {
            return self.pass_shaped(core, shaped);
        }
        if self.submitted_ns.len() == 1 {
            return self.pass_single(core);
        }
        let mut count = self.round(core);
        while count < ENOUGH_FOR_A_PASS && !self.closing && self.channel.has_completions() {
            self.stamp_left = 0;
            count += self.round(core);
        }
        count
    }

    #[inline]
    fn round(&mut self, core: &Core) -> usize {
        let count = self.collect(core);
        if count > 0 || self.is_starved() {
            self.refill(core);
        }
        count
    }

    /// Takes what has completed, counts it, and ends what should end. How many had completed.
    #[inline]
    fn collect(&mut self, core: &Core) -> usize {
        let rested = self.rest.len();
        let (rest, fault) = (&mut self.rest, &mut self.fault);
        let count = self.channel.fetch(rest, |op, error| note_fault(fault, op.kind, error));
        if count == 0 && self.started && self.in_flight > 0 {
            // A reading of the clock costs more than the rest of an empty pass.
            self.empty_passes = self.empty_passes.wrapping_add(1);
            if !self.empty_passes.is_multiple_of(PASSES_PER_READING) && self.held.is_empty() {
                return 0;
            }
        }
        let now = core.now();
        if !self.started {
            self.start(now);
        }
        self.watch(now);
        if count > 0 {
            self.account(now, rested);
        }
        count
    }

    /// Is everything submitted and back?
    pub fn is_over(&self) -> bool {
        self.closing
            && self.in_flight == 0
            && self.shaped.as_ref().is_none_or(|shaped| self.held.is_empty() && shaped.is_done())
    }

    /// When [`Worker::pass`] must be called even if nothing completes.
    pub fn wake_at_ns(&self, now: u64) -> u64 {
        let shaped = self.shaped.as_ref().map_or(u64::MAX, |shaped| shaped.wake_at_ns());
        self.ends_ns.min(now + STOP_CHECK_NS).min(shaped.max(now))
    }

    fn start(&mut self, now: u64) {
        self.started = true;
        self.ramp_ends_ns = now + self.phase.ramp_ns;
        self.ends_ns = self.phase.runtime_ns.map_or(u64::MAX, |ns| self.ramp_ends_ns + ns);
        self.counts = Counts::new(now);
    }

    /// Ends what should end, apart from completions.
    #[inline]
    fn watch(&mut self, now: u64) {
        if now >= self.ends_ns || self.progress.is_told_to_end() {
            self.closing = true;
        }
        if self.stop.load(Relaxed) {
            self.interrupted = true;
            self.closing = true;
        }
        if self.progress.inquiry.is_asked() {
            self.answer();
        }
        if self.phase.ramp_ns > 0 && now >= self.ramp_ends_ns {
            self.phase.ramp_ns = 0;
            self.counts = Counts::new(now);
            self.shown_before = self.progress.ios();
        }
    }

    /// Could more be in flight than completions will bring about by themselves?
    fn is_starved(&self) -> bool {
        !self.closing && (self.in_flight == 0 || !self.held.is_empty())
    }

    /// Counts the operations that rest from place `first` on.
    #[inline]
    fn account(&mut self, now: u64, first: usize) {
        let count = self.rest.len() - first;
        self.in_flight -= count as u32;
        let counts = &mut self.counts;
        counts.last_ns = now;
        counts.report.completed.record(count - 1, 1);
        if self.fault.is_some() {
            // Which of them failed is not known here any more; the job ends with the fault.
            (self.closing, self.failed) = (true, true);
            return;
        }
        for op in &self.rest[first..] {
            let latency_ns = now.saturating_sub(self.submitted_ns[op.tag as usize]);
            counts.count(usize::from(op.kind != OpKind::Read), latency_ns);
        }
        self.show();
    }

    /// Shows what was counted to who watches, and notes what was allocated until then.
    #[inline]
    fn show(&mut self) {
        let counts = &mut self.counts;
        let shown = [counts.report.read.ios, counts.report.write.ios];
        for way in [0, 1] {
            self.progress.ios[way].store(self.shown_before[way] + shown[way], Relaxed);
        }
        let mark = Allocations { count: allocations(), ios: counts.report.ios() };
        if counts.steady.is_none() && mark.ios >= self.submitted_ns.len() as u64 {
            counts.steady = Some(mark);
        }
        counts.latest = mark;
    }

    /// Submits until every operation is in flight or nothing is left to do.
    #[inline]
    fn refill(&mut self, core: &Core) {
        let before = self.in_flight;
        let mut ready = self.prepare();
        if !self.held.is_empty() {
            self.submit_held(core);
        }
        while ready > 0 {
            ready -= 1;
            self.submit(core);
        }
        let fresh = self.in_flight - before;
        if fresh > 0 {
            self.channel.kick();
            self.counts.report.submitted.record(fresh as usize - 1, 1);
            self.counts.report.depths.record(self.in_flight as usize, u64::from(fresh));
        }
    }

    /// Makes the resting operations, from the last on, what is to be done next. How many.
    #[inline]
    fn prepare(&mut self) -> usize {
        if self.closing {
            self.rest.append(&mut self.held);
            return 0;
        }
        for place in (0..self.rest.len()).rev() {
            let Some(step) = self.next_step() else {
                self.closing = true;
                return self.rest.len() - 1 - place;
            };
            let op = &mut self.rest[place];
            op.offset = self.phase.start + step.block * u64::from(self.phase.block_size);
            op.kind = if step.write { OpKind::Write } else { OpKind::Read };
        }
        self.rest.len()
    }

    #[cold]
    fn submit_held(&mut self, core: &Core) {
        while let Some(op) = self.held.pop() {
            self.rest.push(op);
            if !self.submit(core) {
                break;
            }
        }
    }

    /// Submits the last of the resting operations, or holds it while the core's slots are all
    /// taken.
    #[inline(always)]
    fn submit(&mut self, core: &Core) -> bool {
        let Some(op) = self.rest.last() else { return false };
        self.stamp(core, op.tag);
        let is_taken = self.channel.submit_last(&mut self.rest).is_some();
        if is_taken {
            self.in_flight += 1;
        } else {
            self.held.extend(self.rest.pop());
        }
        is_taken
    }

    /// Notes when an operation is submitted.
    #[inline]
    fn stamp(&mut self, core: &Core, tag: u64) {
        if self.stamp_left == 0 {
            self.stamp_left = SUBMISSIONS_PER_READING;
            self.stamp_ns = core.now();
        }
        self.stamp_left -= 1;
        self.submitted_ns[tag as usize] = self.stamp_ns;
    }

    #[inline]
    fn submitted(&mut self, result: Result<OpId, Full>) -> bool {
        match result {
            Ok(_) => {
                self.in_flight += 1;
                true
            }
            Err(full) => {
                self.held.push(full.0);
                false
            }
        }
    }

    #[inline]
    fn next_step(&mut self) -> Option<Step> {
        if self.taken == self.phase.limit {
            return None;
        }
        self.taken += 1;
        Some(self.phase.steps.next_step())
    }

    /// Takes the results and the buffers out of a worker that is over.
    fn finish(&mut self) -> Outcome {
        self.counts.settle();
        let Counts { from_ns, last_ns, mut report, usage, steady, latest, .. } =
            std::mem::replace(&mut self.counts, Counts::new(0));
        report.allocations = steady.filter(|_| is_installed()).map(|steady| Allocations {
            count: latest.count - steady.count,
            ios: latest.ios - steady.ios,
        });
        self.sum_up(&mut report, from_ns, last_ns, usage);
        report.fault = self.fault;
        if let Some(watching) = self.shaped.as_mut().and_then(|shaped| shaped.watching()) {
            watching.finish(last_ns);
            report.ending = watching.ending();
            report.found_depth = watching.found_depth();
        }
        report.verify = self.shaped.as_mut().and_then(|shaped| shaped.take_findings());
        Outcome {
            report,
            buffers: self.rest.drain(..).map(|op| op.data).collect(),
            interrupted: self.interrupted,
            failed: self.failed,
        }
    }

    /// Fills in what follows from the counts.
    fn sum_up(&self, report: &mut CloneReport, from_ns: u64, last_ns: u64, usage: ThreadUsage) {
        report.merged = 1;
        report.runtime_ns = last_ns.saturating_sub(from_ns);
        report.cpu = CpuUse::between(usage, ThreadUsage::now());
        for direction in [&mut report.read, &mut report.write, &mut report.trim] {
            if self.shaped.is_none() {
                direction.bytes = direction.ios * u64::from(self.phase.block_size);
            }
            direction.runtime_ns = if direction.ios > 0 { report.runtime_ns } else { 0 };
        }
    }

    /// Tells who watches how it stands.
    #[cold]
    fn answer(&mut self) {
        let Some(mut report) = self.progress.inquiry.taken() else { return };
        self.counts.settle();
        let counts = &self.counts;
        report.copy_figures(&counts.report);
        self.sum_up(&mut report, counts.from_ns, counts.last_ns, counts.usage);
        report.fault = self.fault;
        self.progress.inquiry.answer(report);
    }
}

#[cold]
fn note_fault(first: &mut Option<FailedIo>, kind: OpKind, fault: Fault) {
    let direction = match kind {
        OpKind::Read => Direction::Read,
        OpKind::Discard => Direction::Trim,
        _ => Direction::Write,
    };
    first.get_or_insert(FailedIo { direction, fault });
}

/// One buffer of `len` bytes for each of `depth` I/Os: of the engine's memory, which devices know
/// already, if it has room for all; else of an arena of their own.
pub(crate) fn buffers(
    core: &Core,
    depth: u32,
    len: u32,
    contents: &Contents,
) -> Result<Vec<IoVector>, Error> {
    let (depth, len) = (depth as usize, len as usize);
    let size = depth * len.next_multiple_of(4096);
    let alloc = |arena: &Arena| (0..depth).map(|_| arena.alloc(len, 4096)).collect();
    let engines: Result<Vec<Buf>, _> = alloc(core.arena());
    let bufs = match engines {
        Ok(bufs) => bufs,
        Err(_) => alloc(&core.memory().add_arena(&ArenaOptions::new(size))?)?,
    };
    let mut random = Prng::new(0);
    let fill = |mut buf: Buf| {
        if let Some(block) = buf.as_mut_slice() {
            contents.fill(&mut random, block);
        }
        buf.into()
    };
    Ok(bufs.into_iter().map(fill).collect())
}
