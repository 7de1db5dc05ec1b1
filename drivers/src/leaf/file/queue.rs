//! One core's queue on a file: what each request has come to, call by call.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use oxblock_engine::{Busy, ErrorKind, Fault, OpFlags, OpKind, Pass, Queue, Request, Sleep, Token};
use oxblock_mem::Region;

use super::Shared;
use super::calls::Calls;
use super::syscall::{self, Call};

/// The most bytes that are copied at once between two polls: what a poll may take is bounded.
const AT_ONCE_BYTES_MAX: u64 = 1 << 20;

/// The most requests that go to the ring after one that could not be made at once.
const PAUSE_MAX: u8 = 63;

/// So many calls are handed on without waiting for the kick: the device begins with them while
/// the next are being prepared.
const HANDED_ON: u8 = 4;

/// So many requests in flight are few.
const FEW: usize = 8;

/// How often a call that the kernel interrupts or puts off is made again.
const TRIES_MAX: u16 = 1000;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// The requests of one core on a file.
pub(super) struct FileQueue {
    calls: Calls,
    shared: Arc<Shared>,
    entries: Box<[Entry]>,
    free: Vec<u16>,
    at_once: AtOnceState,
    /// Calls that the kernel was not told of.
    unsent: u8,
    /// Set once the kernel refuses to be entered: what it has not taken never starts.
    broken: Option<i32>,
    stopping: bool,
}

/// A request in a slot.
#[derive(Clone)]
struct Entry {
    token: Option<Token>,
    kind: OpKind,
    flags: OpFlags,
    offset: u64,
    len: u64,
    /// How many bytes of it are done.
    done: u64,
    step: Step,
    /// The number of the outstanding call on the ring.
    call: u64,
    tries: u16,
}

/// What the outstanding call of a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read,
    Write,
    /// A write with RWF_DSYNC.
    DurableWrite,
    /// The same bytes once more without RWF_DSYNC, to learn whether the write ran out of
    /// space (then this fails too) or the sync of earlier writes did (with this errno).
    DoubtedWrite(i32),
    PunchHole,
    /// A block device's own discard.
    Discard,
    ZeroRange,
    /// Zeroes written as data, where the file system has no better way.
    WriteZeroes,
    Sync,
}

impl FileQueue {
    pub(super) fn new(shared: Arc<Shared>, memory: Option<Region>) -> std::io::Result<Self> {
        let depth = shared.queue_depth;
        let none = Entry {
            token: None,
            kind: OpKind::Flush,
            flags: OpFlags::empty(),
            offset: 0,
            len: 0,
            done: 0,
            step: Step::Sync,
            call: 0,
            tries: 0,
        };
        Ok(Self {
            calls: Calls::new(&shared, memory)?,
            shared,
            entries: vec![none; usize::from(depth)].into(),
            free: (0..depth).rev().collect(),
            at_once: AtOnceState::default(),
            unsent: 0,
            broken: None,
            stopping: false,
        })
    }

    /// The first step of a request, or why it fails without one.
    fn first_step(&self, request: &Request<'_>) -> Result<Step, Fault> {
        let durable = request.kind == OpKind::Flush || request.flags.contains(OpFlags::FUA);
        let failed_sync = self.shared.failed_sync.load(Ordering::Relaxed);
        if durable && failed_sync != 0 {
            let kind = ErrorKind::from_errno(failed_sync);
            let text = "an earlier flush failed, and what it had to save may be lost; check the \
                        data, and open the file anew";
            return Err(Fault::text(kind, request.offset, text));
        }
        Ok(match request.kind {
            OpKind::Read => Step::Read,
            OpKind::Write if durable => Step::DurableWrite,
            OpKind::Write => Step::Write,
            OpKind::Flush => Step::Sync,
            OpKind::Discard if self.shared.discard_by_ioctl => Step::Discard,
            OpKind::Discard => Step::PunchHole,
            OpKind::WriteZeroes if request.flags.contains(OpFlags::MAY_UNMAP) => Step::PunchHole,
            OpKind::WriteZeroes => {
                if self.shared.zeroes_are_data && request.flags.contains(OpFlags::NO_FALLBACK) {
                    let text = "the device does not zero ranges itself";
                    return Err(Fault::text(ErrorKind::NotSupported, request.offset, text));
                }
                Step::ZeroRange
            }
            OpKind::Compare => {
                let text = "a file has no compare of its own";
                return Err(Fault::text(ErrorKind::NotSupported, request.offset, text));
            }
        })
    }

    /// Makes a read or write without the ring, if it is short and need not wait. A ring costs
    /// more than such a copy. `false` if nothing came of it; a part that was done does no harm.
    #[inline]
    fn done_at_once(&mut self, request: &Request<'_>) -> bool {
        let Some(how) = self.shared.at_once else {
            return false;
        };
        let write = match request.kind {
            OpKind::Read => false,
            OpKind::Write => true,
            _ => return false,
        };
        let state = &mut self.at_once;
        let is_long = state.bytes + request.len > AT_ONCE_BYTES_MAX;
        if is_long || request.flags.contains(OpFlags::FUA) || self.stopping {
            return false;
        }
        if state.skip > 0 {
            state.skip -= 1;
            return false;
        }
        let mut offset = request.offset;
        for piece in request.data.pieces() {
            if !syscall::at_once(&self.shared.file, how, write, offset, piece) {
                state.has_failed();
                return false;
            }
            offset += piece.len() as u64;
        }
        state.has_succeeded(request.len);
        true
    }

    /// Queues the call of the slot's step.
    fn call(&mut self, slot: u16) -> Result<(), Fault> {
        let e = &self.entries[usize::from(slot)];
        let (offset, len) = (e.offset + e.done, e.len - e.done);
        if let Some(errno) = self.broken {
            return Err(Fault::errno(errno, offset));
        }
        let call = match e.step {
            Step::Read => Call::Read { offset },
            Step::Write | Step::DoubtedWrite(_) => Call::Write { offset, durable: false },
            Step::DurableWrite => Call::Write { offset, durable: true },
            Step::PunchHole => Call::Allocate { mode: PUNCH, offset, len },
            Step::ZeroRange => Call::Allocate { mode: ZERO, offset, len },
            Step::Discard => Call::Discard { offset, len },
            Step::WriteZeroes => {
                self.calls.lists().load_zeroes(slot, len);
                Call::Write { offset, durable: false }
            }
            Step::Sync => Call::Sync,
        };
        match self.calls.push(slot, call) {
            Some(number) => {
                self.entries[usize::from(slot)].call = number;
                self.unsent = self.unsent.saturating_add(1);
                Ok(())
            }
            None => Err(Fault::text(ErrorKind::Busy, offset, "the ring to the kernel is full")),
        }
    }

    /// Takes the result of the slot's call. `None` if another call follows.
    fn result(&mut self, slot: u16, result: i32) -> Option<Result<(), Fault>> {
        let next = match u32::try_from(result) {
            Ok(bytes) => self.succeeded(slot, bytes as usize),
            Err(_) => self.failed(slot, -result),
        };
        match next {
            Ok(Next::Done) => Some(Ok(())),
            Ok(Next::Call) => self.call(slot).err().map(Err),
            Err(fault) => Some(Err(fault)),
        }
    }

    fn succeeded(&mut self, slot: u16, bytes: usize) -> Result<Next, Fault> {
        let e = &mut self.entries[usize::from(slot)];
        e.tries = 0;
        match e.step {
            Step::Read => Ok(self.have_read(slot, bytes)),
            Step::Write | Step::DurableWrite | Step::WriteZeroes | Step::DoubtedWrite(_) => {
                self.have_written(slot, bytes)
            }
            Step::Sync => Ok(Next::Done),
            Step::PunchHole | Step::Discard | Step::ZeroRange => Ok(e.after_zeroes()),
        }
    }

    /// A short read goes on where it stopped; what lies past the end of the file is zeroes.
    fn have_read(&mut self, slot: u16, bytes: usize) -> Next {
        let e = &mut self.entries[usize::from(slot)];
        e.done += bytes as u64;
        self.calls.lists().advance(slot, bytes);
        if e.done < e.len && !self.shared.is_end(bytes) {
            return Next::Call;
        }
        self.calls.lists().fill_rest(slot);
        Next::Done
    }

    fn have_written(&mut self, slot: u16, bytes: usize) -> Result<Next, Fault> {
        let e = &mut self.entries[usize::from(slot)];
        // Direct I/O goes on at a whole block only.
        let bytes = bytes - bytes % self.shared.direct_block.unwrap_or(1) as usize;
        if bytes == 0 {
            let text = "the file took no byte of a write";
            return Err(Fault::text(ErrorKind::Io, e.offset + e.done, text));
        }
        e.done += bytes as u64;
        self.calls.lists().advance(slot, bytes);
        if e.done < e.len {
            return Ok(Next::Call);
        }
        match e.step {
            Step::WriteZeroes => Ok(e.after_zeroes()),
            Step::DoubtedWrite(errno) => Err(self.sync_failed(slot, errno)),
            _ => Ok(Next::Done),
        }
    }

    fn failed(&mut self, slot: u16, errno: i32) -> Result<Next, Fault> {
        let e = &mut self.entries[usize::from(slot)];
        let fault = Fault::errno(errno, e.offset + e.done);
        if matches!(errno, libc::EINTR | libc::EAGAIN) && e.tries < TRIES_MAX {
            e.tries += 1;
            return Ok(Next::Call);
        }
        let no_space = matches!(errno, libc::ENOSPC | libc::EDQUOT | libc::EFBIG);
        match e.step {
            Step::DurableWrite if no_space => e.step = Step::DoubtedWrite(errno),
            Step::DurableWrite | Step::Sync if errno != libc::ECANCELED => {
                return Err(self.sync_failed(slot, errno));
            }
            Step::PunchHole if errno == libc::EOPNOTSUPP && e.kind == OpKind::WriteZeroes => {
                e.step = Step::ZeroRange;
            }
            Step::ZeroRange if errno == libc::EOPNOTSUPP => {
                if e.flags.contains(OpFlags::NO_FALLBACK) {
                    return Err(fault);
                }
                e.step = Step::WriteZeroes;
            }
            _ => return Err(fault),
        }
        Ok(Next::Call)
    }

    /// The kernel tells of lost writes once, then calls the file clean: this driver goes on
    /// telling.
    fn sync_failed(&self, slot: u16, errno: i32) -> Fault {
        let first = &self.shared.failed_sync;
        let _ = first.compare_exchange(0, errno, Ordering::Relaxed, Ordering::Relaxed);
        Fault::errno(errno, self.entries[usize::from(slot)].offset)
    }

    fn finish(&mut self, slot: u16, result: Result<(), Fault>, pass: &mut Pass) {
        let e = &mut self.entries[usize::from(slot)];
        if let Some(token) = e.token.take() {
            self.free.push(slot);
            pass.done(token, result);
        }
    }

    /// One system call, if there is anything to say.
    fn enter(&mut self, pass: &mut Pass) {
        self.enter_by(Calls::enter, pass);
    }

    /// As [`enter`](Self::enter), before results are taken.
    fn look(&mut self, pass: &mut Pass) {
        self.enter_by(Calls::look, pass);
    }

    #[inline]
    fn enter_by(&mut self, how: impl FnOnce(&mut Calls) -> Result<(), i32>, pass: &mut Pass) {
        self.unsent = 0;
        if self.broken.is_some() {
            return;
        }
        if let Err(errno) = how(&mut self.calls) {
            self.broken = Some(errno);
            self.fail_untaken(errno, pass);
        }
    }

    fn fail_untaken(&mut self, errno: i32, pass: &mut Pass) {
        for slot in 0..self.entries.len() {
            let e = &self.entries[slot];
            if e.token.is_some() && !self.calls.is_taken(e.call) {
                let fault = Fault::errno(errno, e.offset);
                self.finish(slot as u16, Err(fault), pass);
            }
        }
    }

    fn reap(&mut self, pass: &mut Pass) -> usize {
        let mut finished = 0;
        while let Some((slot, result)) = self.calls.reap() {
            if let Some(result) = self.result(slot, result) {
                self.finish(slot, result, pass);
                finished += 1;
            }
        }
        finished
    }
}

/// How much a queue does at once, without the ring.
#[derive(Default)]
struct AtOnceState {
    /// Bytes since the last poll.
    bytes: u64,
    /// How many of the next requests do not try.
    skip: u8,
    /// How many did not try after the last vain attempt; grows with each in a row.
    pause: u8,
}

impl AtOnceState {
    fn has_succeeded(&mut self, len: u64) {
        self.bytes += len;
        self.pause = 0;
    }

    fn has_failed(&mut self) {
        self.pause = (2 * self.pause + 1).min(PAUSE_MAX);
        self.skip = self.pause;
    }
}

/// What follows a call that went well.
enum Next {
    Done,
    Call,
}

impl Entry {
    /// The zeroes are in the file; a durable request syncs them.
    fn after_zeroes(&mut self) -> Next {
        if !self.flags.contains(OpFlags::FUA) {
            return Next::Done;
        }
        self.step = Step::Sync;
        Next::Call
    }
}

impl Queue for FileQueue {
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        if self.done_at_once(request) {
            pass.done(request.token, Ok(()));
            return Ok(());
        }
        let step = match self.first_step(request) {
            Ok(step) => step,
            Err(fault) => {
                pass.done(request.token, Err(fault));
                return Ok(());
            }
        };
        let Some(slot) = self.free.pop() else {
            return Err(Busy);
        };
        self.entries[usize::from(slot)] = Entry {
            token: Some(request.token),
            kind: request.kind,
            flags: request.flags,
            offset: request.offset,
            len: request.len,
            done: 0,
            step,
            call: 0,
            tries: 0,
        };
        let started = if self.calls.lists().load(slot, request) {
            self.call(slot)
        } else {
            let text = "more pieces of memory than the limits of the file allow";
            Err(Fault::text(ErrorKind::Invalid, request.offset, text))
        };
        if let Err(fault) = started {
            self.finish(slot, Err(fault), pass);
        }
        if self.unsent >= HANDED_ON {
            self.enter(pass);
        }
        Ok(())
    }

    fn kick(&mut self, pass: &mut Pass) {
        self.enter(pass);
    }

    fn poll(&mut self, pass: &mut Pass) -> usize {
        self.at_once.bytes = 0;
        if self.calls.in_kernel() == 0 {
            return 0;
        }
        self.look(pass);
        let finished = self.reap(pass);
        self.enter(pass);
        finished
    }

    fn cancel(&mut self, token: Token) {
        // Fragments of one operation share its token.
        for slot in 0..self.entries.len() {
            if self.entries[slot].token == Some(token) {
                self.calls.cancel(slot as u16);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// With few in flight, their latency is what somebody waits for; with many, it is the
    /// processor's time that counts, which a disk is too slow to be polled for.
    fn is_worth_polling(&self, _now_ns: u64) -> bool {
        self.in_flight() < FEW || self.calls.must_be_polled()
    }

    fn sleep(&mut self) -> Sleep<'_> {
        if self.in_flight() == 0 { Sleep::Woken } else { self.calls.sleep() }
    }

    fn wait(&mut self, event: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
        self.unsent = 0;
        self.broken.is_none() && self.calls.wait(event, timeout)
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        if !self.stopping {
            self.stopping = true;
            self.calls.cancel_all();
        }
        self.look(pass);
        self.reap(pass);
        self.in_flight() == 0
    }
}

#[cfg(test)]
mod tests;
