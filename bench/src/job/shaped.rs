//! The hot loop of a job with a [`Shape`](crate::options::Shape): blocks of several sizes, rates,
//! rests, flushes. Apart from the plain loop, which pays one branch a pass for it.

use oxblock_engine::{Completion, Core, Op, OpKind};
use oxblock_mem::IoVector;
use oxblock_mem::counting_alloc::allocations;
use std::sync::atomic::Ordering::Relaxed;

use super::filler::Filler;
use super::pace::{Due, Pace, Think};
use super::verified::Verified;
use super::watch::{Look, Watching};
use super::{Counts, Worker, note_fault};
use crate::generate::{Budget, Piece, Pieces};
use crate::options::{JobOptions, Plan};
use crate::report::{Allocations, VerifyReport, errno_of};

/// How soon a write looks again whether another one of its place is still in flight, which may be
/// that of another core.
const PLACE_CHECK_NS: u64 = 20_000;

/// What such a job keeps beside the rest of its worker.
#[derive(Debug)]
pub(crate) struct Shaped {
    pieces: Pieces,
    /// By tag: the file of the I/O; and the last that was written to.
    files: Box<[u16]>,
    written: u16,
    /// Drawn, and waiting for its time or, due then, for its place.
    next: Option<(Piece, Option<Due>)>,
    /// By tag: what the I/O leaves unused of its buffer.
    tails: Box<[IoVector]>,
    /// Operations that failed in this pass and do not end the job.
    failed: Vec<Op>,
    continues: [bool; 2],
    /// Errnos that are no failure.
    ignored: [Vec<i32>; 2],
    budget: Budget,
    /// Of a job that is verified.
    verified: Option<Verified>,
    /// How long to wait before the start, and when that is over.
    delay_ns: u64,
    begins_ns: Option<u64>,
    pace: Option<Pace>,
    think: Option<Think>,
    batch: u32,
    complete_min: u32,
    depth_low: Option<u32>,
    depth: u32,
    completed: u32,
    /// The queue was full, and is not filled again before enough has completed.
    full: bool,
    fsync: u32,
    unsynced: u32,
    /// Files to flush at the end.
    end_fsyncs: usize,
    filler: Option<Filler>,
    /// Nothing can be submitted before, whatever completes.
    wait_until_ns: u64,
    watching: Option<Box<Watching>>,
}

/// What a worker is to do now.
enum Next {
    Do(Piece, Due),
    Flush,
    Wait,
    End,
}

impl Shaped {
    /// `files` are the plan of each file and where its range starts; at least one.
    pub fn new(options: &JobOptions, files: &[(Plan, u64)], seed: u64) -> Shaped {
        let shape = &options.shape;
        let budget = files.first().map(|(plan, _)| Budget::new(options, plan));
        let depth = options.io_depth;
        Shaped {
            pieces: Pieces::new(options, files, seed),
            files: vec![0; depth as usize].into(),
            written: 0,
            next: None,
            tails: (0..depth).map(|_| IoVector::new()).collect(),
            failed: Vec::with_capacity(depth as usize),
            continues: shape.continue_on_error,
            ignored: shape.ignored_errors.clone(),
            budget: budget.unwrap_or_default(),
            verified: None,
            delay_ns: shape.start_delay.as_nanos() as u64,
            begins_ns: None,
            pace: Pace::new(shape, seed),
            think: Think::new(shape),
            batch: shape.batch.unwrap_or(u32::MAX),
            complete_min: shape.batch_complete_min,
            depth_low: shape.depth_low,
            depth,
            completed: 0,
            full: false,
            fsync: if options.rw.writes() { shape.fsync } else { 0 },
            unsynced: 0,
            end_fsyncs: if shape.end_fsync && options.rw.writes() { files.len() } else { 0 },
            filler: Filler::new(options, seed),
            wait_until_ns: u64::MAX,
            watching: None,
        }
    }

    /// The same, under a watch.
    pub fn watched(self, watching: Option<Watching>) -> Shaped {
        Shaped { watching: watching.map(Box::new), ..self }
    }

    /// The watch over it.
    pub fn watching(&mut self) -> Option<&mut Watching> {
        self.watching.as_deref_mut()
    }

    /// The same, of a job that is verified.
    pub fn verified(self, verified: Option<Verified>) -> Shaped {
        Shaped { verified, ..self }
    }

    /// What checking found.
    pub fn take_findings(&mut self) -> Option<VerifyReport> {
        self.verified.take().and_then(Verified::report)
    }

    /// Takes note of an operation that is back. `false`: a block is bad, and the job is to end.
    #[inline]
    fn complete(&mut self, op: &mut Op, done: bool) -> bool {
        self.restore(op);
        let file = self.files[op.tag as usize];
        self.verified.as_mut().is_none_or(|verified| verified.complete(op, file, done))
    }

    /// Is nothing left to do once the worker closes?
    pub fn is_done(&self) -> bool {
        self.end_fsyncs == 0
    }

    /// When it must be looked after even if nothing completes.
    pub fn wake_at_ns(&self) -> u64 {
        self.wait_until_ns
    }

    #[inline]
    fn next(&mut self, now: u64, in_flight: u32) -> Next {
        if self.fsync > 0 && self.unsynced >= self.fsync {
            self.unsynced = 0;
            return Next::Flush;
        }
        if let Some(piece) = self.verified.as_mut().and_then(Verified::next_of_backlog) {
            return Next::Do(piece, None);
        }
        if self.budget.is_spent() {
            let may_check =
                in_flight > 0 && self.verified.as_ref().is_some_and(Verified::has_backlog);
            return if may_check { Next::Wait } else { Next::End };
        }
        if let Some(Err(until_ns)) = self.think.as_mut().map(|think| think.is_over(now, in_flight))
        {
            self.wait_until_ns = until_ns.unwrap_or(u64::MAX);
            return Next::Wait;
        }
        let Some((piece, due)) = self.next.take().or_else(|| Some((self.draw()?, None))) else {
            return Next::End;
        };
        let due = match (due, &mut self.pace) {
            (Some(due), _) => due,
            (None, None) => None,
            (None, Some(pace)) => match pace.take(&piece, now) {
                Ok(due) => due,
                Err(due) => {
                    self.next = Some((piece, None));
                    self.wait_until_ns = due;
                    return Next::Wait;
                }
            },
        };
        if self.verified.as_ref().is_some_and(|verified| !verified.claim(&piece)) {
            self.next = Some((piece, Some(due)));
            self.wait_until_ns = now + PLACE_CHECK_NS;
            return Next::Wait;
        }
        self.budget.spend(piece.len);
        if let Some(think) = &mut self.think {
            think.submitted();
        }
        self.unsynced += u32::from(piece.way == 1);
        Next::Do(piece, due)
    }

    fn draw(&mut self) -> Option<Piece> {
        match &mut self.verified {
            Some(verified) if verified.reads_back() => verified.next_known(),
            _ => Some(self.pieces.next()),
        }
    }

    /// Makes a resting operation the piece that is due.
    fn prepare(&mut self, op: &mut Op, piece: &Piece, start: u64) {
        self.files[op.tag as usize] = piece.file;
        op.offset = start.wrapping_add(piece.offset);
        op.len = u64::from(piece.len);
        op.kind = [OpKind::Read, OpKind::Write, OpKind::Discard][piece.way];
        if op.kind == OpKind::Write {
            self.written = piece.file;
        }
        if op.kind != OpKind::Discard && (piece.len as usize) < op.data.len() {
            self.tails[op.tag as usize] = op.data.split_off(piece.len as usize);
        }
        if let (OpKind::Write, Some(filler)) = (op.kind, &mut self.filler)
            && let Some(Some(block)) = op.data.slices_mut().next()
        {
            filler.fill(block);
        }
        if let Some(verified) = &mut self.verified {
            verified.prepare(op, piece.file);
        }
    }

    /// Makes a resting operation the flush of a file.
    fn prepare_flush(&mut self, op: &mut Op, file: u16) {
        self.files[op.tag as usize] = file;
        (op.kind, op.offset, op.len) = (OpKind::Flush, 0, 0);
    }

    /// Puts the parts of an operation's buffer together again.
    fn restore(&mut self, op: &mut Op) {
        let tail = &mut self.tails[op.tag as usize];
        if tail.is_empty() {
            return;
        }
        let (head, tail) = (std::mem::take(&mut op.data), std::mem::take(tail));
        // Both are one piece of the same block: they always join.
        if let (Some(mut head), Some(tail)) = (head.into_single(), tail.into_single()) {
            let _ = head.try_join(tail);
            op.data = head.into();
        }
    }

    /// May the queue be filled, or has too little completed since it was full?
    fn may_fill(&mut self, in_flight: u32) -> bool {
        if !self.full {
            return true;
        }
        let drained = self.depth_low.is_none_or(|low| in_flight <= low);
        let enough = self.completed >= self.complete_min || in_flight == 0;
        self.full = !(drained && enough);
        !self.full
    }
}

impl Worker {
    /// As [`Worker::pass`], for a job with a shape.
    pub(super) fn pass_shaped(&mut self, core: &Core, mut shaped: Box<Shaped>) -> usize {
        let rested = self.rest.len();
        let (rest, fault) = (&mut self.rest, &mut self.fault);
        let mut ends = false;
        let mut take = |completion: Completion| match completion.result {
            Ok(()) => rest.push(completion.op),
            Err(error) => {
                let way = usize::from(completion.op.kind != OpKind::Read);
                if !shaped.ignored[way].contains(&errno_of(error)) {
                    note_fault(fault, completion.op.kind, error);
                    ends |= !shaped.continues[way];
                }
                shaped.failed.push(completion.op);
            }
        };
        let channels = std::iter::once(&self.channel).chain(&self.others);
        let count: usize = channels.map(|channel| channel.poll(&mut take)).sum();
        self.closing |= ends;
        self.failed |= ends;
        let now = core.now();
        if !self.started {
            let begins = *shaped.begins_ns.get_or_insert(now + shaped.delay_ns);
            if now < begins && !self.stop.load(Relaxed) {
                shaped.wait_until_ns = begins;
                self.shaped = Some(shaped);
                return 0;
            }
            self.start(now);
        }
        self.watch(now);
        self.closing |= shaped.verified.as_ref().is_some_and(Verified::is_given_up);
        if let Some(watching) = &mut shaped.watching {
            let is_ramp = self.phase.ramp_ns > 0;
            watching.begin(self.counts.from_ns, !is_ramp, &mut self.counts.report);
        }
        if count > 0 {
            self.account_shaped(now, rested, count as u32, &mut shaped);
        }
        if let Some(watching) = &mut shaped.watching {
            match watching.look(now) {
                Look::GoOn => {}
                Look::CountAnew => {
                    self.counts = Counts::new(now);
                    self.shown_before = self.progress.ios();
                }
                Look::End => self.closing = true,
            }
        }
        self.submit_shaped(core, now, &mut shaped);
        self.shaped = Some(shaped);
        count
    }

    fn account_shaped(&mut self, now: u64, first: usize, count: u32, shaped: &mut Shaped) {
        self.in_flight -= count;
        shaped.completed += count;
        let counts = &mut self.counts;
        counts.last_ns = now;
        counts.report.completed.record(count as usize - 1, 1);
        let mut bytes = 0;
        for op in &mut self.rest[first..] {
            self.closing |= !shaped.complete(op, true);
            let submitted_ns = self.submitted_ns[op.tag as usize];
            let latency = now.saturating_sub(submitted_ns);
            let stats = match op.kind {
                OpKind::Read => &mut counts.report.read,
                OpKind::Discard => &mut counts.report.trim,
                OpKind::Flush => {
                    counts.report.sync.record(latency);
                    continue;
                }
                _ => &mut counts.report.write,
            };
            stats.ios += 1;
            stats.bytes += op.len;
            bytes += op.len;
            match &mut shaped.watching {
                None => stats.latency.record(latency),
                Some(watching) => watching.completed(op, submitted_ns, now, stats),
            }
        }
        self.progress.add_bytes(bytes);
        while let Some(mut op) = shaped.failed.pop() {
            shaped.complete(&mut op, false);
            counts.report.errors += 1;
            self.rest.push(op);
        }
        let report = &counts.report;
        let shown = [report.read.ios, report.write.ios + report.trim.ios];
        for way in [0, 1] {
            self.progress.ios[way].store(self.shown_before[way] + shown[way], Relaxed);
        }
        let mark = Allocations { count: allocations(), ios: counts.report.ios() };
        if counts.steady.is_none() && mark.ios >= self.submitted_ns.len() as u64 {
            counts.steady = Some(mark);
        }
        counts.latest = mark;
    }

    fn submit_shaped(&mut self, core: &Core, now: u64, shaped: &mut Shaped) {
        shaped.wait_until_ns = u64::MAX;
        while let Some(op) = self.held.pop() {
            let tag = op.tag as usize;
            if !self.submit_to(core, op, shaped) {
                return;
            }
            if let Some(watching) = shaped.watching.as_mut().filter(|w| w.wants_issue()) {
                watching.issued(tag, self.submitted_ns[tag], core.now());
            }
        }
        if self.closing {
            self.end_shaped(core, shaped);
            return;
        }
        if !shaped.may_fill(self.in_flight) {
            return;
        }
        let mut fresh = 0;
        let deepest = shaped.watching.as_ref().map_or(u32::MAX, |watching| watching.depth());
        let times_submission = shaped.watching.as_ref().is_some_and(|w| w.wants_issue());
        while self.in_flight < deepest
            && let Some(mut op) = self.rest.pop()
        {
            let due = match shaped.next(now, self.in_flight) {
                Next::Do(piece, due) => {
                    shaped.prepare(&mut op, &piece, self.phase.start);
                    due
                }
                Next::Flush => {
                    shaped.prepare_flush(&mut op, shaped.written);
                    None
                }
                next => {
                    self.rest.push(op);
                    self.closing |= matches!(next, Next::End);
                    break;
                }
            };
            let tag = op.tag as usize;
            if times_submission {
                self.stamp_left = 0;
            }
            let submitted = self.submit_to(core, op, shaped);
            if let (true, Some(watching)) = (times_submission, &mut shaped.watching) {
                watching.issued(tag, self.submitted_ns[tag], core.now());
            }
            if let Some(due) = due {
                self.submitted_ns[tag] = due;
            }
            if !submitted {
                break;
            }
            fresh += 1;
            if fresh == shaped.batch {
                self.submitted_batch(std::mem::take(&mut fresh));
            }
        }
        self.submitted_batch(fresh);
        if self.in_flight == shaped.depth {
            (shaped.full, shaped.completed) = (true, 0);
        }
        if self.closing && self.in_flight == 0 {
            self.end_shaped(core, shaped);
        }
    }

    /// Submits an operation to its file, or holds it while the core's slots are all taken.
    #[inline]
    fn submit_to(&mut self, core: &Core, op: Op, shaped: &Shaped) -> bool {
        self.stamp(core, op.tag);
        let file = usize::from(shaped.files[op.tag as usize]);
        let channel = match file.checked_sub(1) {
            Some(other) => &self.others[other],
            None => &self.channel,
        };
        let result = channel.submit(op);
        self.submitted(result)
    }

    fn submitted_batch(&mut self, fresh: u32) {
        if fresh > 0 {
            self.channel.kick();
            self.counts.report.submitted.record(fresh as usize - 1, 1);
            self.counts.report.depths.record(self.in_flight as usize, u64::from(fresh));
        }
    }

    /// The flush at the end, once everything else is back.
    fn end_shaped(&mut self, core: &Core, shaped: &mut Shaped) {
        if self.in_flight > 0 || shaped.end_fsyncs == 0 {
            return;
        }
        let files = std::mem::take(&mut shaped.end_fsyncs);
        if self.fault.is_some() {
            return;
        }
        // One after the other where the queue is not as deep as there are files.
        for file in (0..files).rev() {
            let Some(mut op) = self.rest.pop() else {
                shaped.end_fsyncs = file + 1;
                break;
            };
            shaped.prepare_flush(&mut op, file as u16);
            if !self.submit_to(core, op, shaped) {
                break;
            }
        }
        self.channel.kick();
    }
}
