//! An I/O queue pair: the path of every read and write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use oxblock_engine::{
    Busy, Core, Error, ErrorKind, Fault, OpFlags, OpKind, Pass, Queue, Request, Sleep, Token,
};
use oxblock_mem::{Cells, Piece};
use oxblock_nvme::command::{self, DataPointer};
use oxblock_nvme::opcode::nvm;
use oxblock_nvme::queue::{CompletionQueue, SubmissionQueue, Words};
use oxblock_nvme::{Command, Completion, dsm, prp, sgl};

use super::admin::{Admin, Ticket, ring_error};
use super::controller::Controller;
use super::doorbell::Doorbell;
use super::hardware::{Hardware, Health};
use super::memory::DeviceMemory;
use super::namespace::Shape;
use super::status;
use super::tracker::{TRACKERS_MAX, Trackers};

/// Bytes of a tracker's page: a PRP list, an SGL segment, or ranges to deallocate.
const LIST_BYTES: usize = 4096;
/// Words of it.
const LIST_WORDS: usize = LIST_BYTES / 8;
/// How long the controller may take to delete a queue, in ns, before it counts as failed.
const DELETE_NS: u64 = 3_000_000_000;

/// What the queues of a controller saw that should not be. Touched only then.
#[derive(Default)]
pub(super) struct QueueCounters {
    pub bad_cid: AtomicU64,
    pub bad_sqhd: AtomicU64,
    pub bad_sqid: AtomicU64,
}

/// A submission queue, its completion queue, and the commands in flight. Fields of every I/O come
/// first.
pub(super) struct QueuePair {
    sq: SubmissionQueue<Cells>,
    cq: CompletionQueue<Cells>,
    trackers: Trackers,
    shape: Shape,
    /// Nothing is submitted any more.
    refusing: bool,
    qid: u16,
    /// One page for each tracker.
    lists: Cells,
    lists_iova: u64,
    sq_doorbell: Doorbell,
    cq_doorbell: Doorbell,
    hardware: Arc<Hardware>,
    counters: Arc<QueueCounters>,
    ending: Ending,
    memory: DeviceMemory,
    /// Last: it holds the way to memory open.
    controller: Arc<Controller>,
}

/// How far the end of a queue pair has come.
enum Ending {
    Open,
    DeletingSq {
        ticket: Ticket,
        until_ns: u64,
    },
    DeletingCq {
        ticket: Ticket,
        until_ns: u64,
    },
    /// The controller would not delete: it is being disabled.
    Disabling,
    Ended,
}

/// Creates a queue pair for a namespace on the core that calls.
///
/// # Errors
/// No queue is left, no memory, or the controller refuses.
pub(super) async fn open(
    core: &Core,
    controller: Arc<Controller>,
    shape: Shape,
) -> Result<QueuePair, Error> {
    let qid = controller.take_qid()?;
    let made = make(core, controller.clone(), shape, qid);
    let mut pair = match made {
        Ok(pair) => pair,
        Err(error) => {
            controller.return_qid(qid);
            return Err(error);
        }
    };
    match create(core, &mut pair).await {
        Ok(()) => Ok(pair),
        Err(error) => {
            // What the controller is not known to have deleted stays as it is.
            if matches!(pair.ending, Ending::Ended) {
                controller.return_qid(qid);
            }
            Err(error.context(format!("creating I/O queue {qid}")))
        }
    }
}

/// The host's part of a queue pair.
fn make(
    core: &Core,
    controller: Arc<Controller>,
    shape: Shape,
    qid: u16,
) -> Result<QueuePair, Error> {
    let hardware = controller.hardware().clone();
    let entries = controller.queue_entries();
    let trackers = (usize::from(entries) - 1).min(TRACKERS_MAX);
    let page = |len: usize| len.next_multiple_of(4096);
    let sq_len = page(usize::from(entries) * Command::BYTES);
    let cq_len = page(usize::from(entries) * Completion::BYTES);
    let total = trackers * LIST_BYTES + sq_len + cq_len;
    let mut memory = DeviceMemory::new(core.arena(), total, &hardware)?;
    let lists = memory.cells(trackers * LIST_BYTES)?;
    let (sq, cq) = (memory.cells(sq_len)?, memory.cells(cq_len)?);
    Ok(QueuePair {
        lists_iova: memory.iova_of(&lists)?,
        lists,
        sq: SubmissionQueue::new(sq, entries.into()).map_err(ring_error)?,
        cq: CompletionQueue::new(cq, entries.into()).map_err(ring_error)?,
        sq_doorbell: Doorbell::new(&hardware, controller.shadow(), qid, false)?,
        cq_doorbell: Doorbell::new(&hardware, controller.shadow(), qid, true)?,
        trackers: Trackers::new(trackers),
        shape,
        refusing: false,
        qid,
        counters: controller.counters().clone(),
        ending: Ending::Ended,
        memory,
        hardware,
        controller,
    })
}

/// The controller's part of a queue pair: the completion queue, then the submission queue.
async fn create(core: &Core, pair: &mut QueuePair) -> Result<(), Error> {
    let admin = pair.controller.admin().clone();
    let (qid, entries) = (pair.qid, pair.sq.entries());
    let cq = pair.memory.iova_of(pair.cq.words())?;
    let sq = pair.memory.iova_of(pair.sq.words())?;
    pair.memory.expose();
    // Until the controller has said no, it may know the queues.
    pair.ending = Ending::Open;
    let command = Command::create_cq(qid, entries, cq, None);
    let done = admin.execute(core, command, None).await?;
    if !done.completion.is_success() {
        pair.end();
        let status = done.completion.status();
        return Err(status::error("create completion queue", status));
    }
    let command = Command::create_sq(qid, entries, sq, qid);
    let done = admin.execute(core, command, None).await?;
    if done.completion.is_success() {
        return Ok(());
    }
    let status = done.completion.status();
    let deleted = admin.execute(core, Command::delete_cq(qid), None).await?;
    if deleted.completion.is_success() {
        pair.end();
    }
    Err(status::error("create submission queue", status))
}

/// Deletes the queues of an ID, whoever owns them.
pub(super) async fn delete(core: &Core, admin: &Arc<Admin>, qid: u16) -> Result<(), Error> {
    for command in [Command::delete_sq(qid), Command::delete_cq(qid)] {
        admin.execute(core, command, None).await?;
    }
    Ok(())
}

impl Queue for QueuePair {
    #[inline]
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        let Some(index) = self.trackers.next().filter(|_| !self.sq.is_full()) else {
            return self.submit_full(request, pass);
        };
        match self.command(request, index) {
            Ok(Some(command)) => {
                if let Some(cid) = self.trackers.take(request.token, request.offset) {
                    self.sq.push(&command.with_cid(cid));
                }
            }
            Ok(None) => pass.done(request.token, Ok(())),
            Err(fault) => pass.done(request.token, Err(fault)),
        }
        Ok(())
    }

    #[inline]
    fn kick(&mut self, _pass: &mut Pass) {
        if let Some((old, new)) = self.sq.pending()
            && !self.refusing
        {
            self.sq_doorbell.ring(old, new);
            self.sq.rang();
        }
    }

    #[inline]
    fn poll(&mut self, pass: &mut Pass) -> usize {
        if self.hardware.health() != Health::Live {
            return self.poll_dead(pass);
        }
        self.reap(pass)
    }

    fn cancel(&mut self, token: Token) {
        let Some(cid) = self.trackers.find(token) else {
            return;
        };
        // Best effort: where there is no room for an abort, the command takes its time.
        let command = Command::abort(self.qid, cid);
        let _ = self.controller.admin().start(command, &mut None, false);
    }

    fn in_flight(&self) -> usize {
        self.trackers.in_flight()
    }

    fn sleep(&mut self) -> Sleep<'_> {
        if self.trackers.in_flight() > 0 { Sleep::Never } else { Sleep::Woken }
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        self.refusing = true;
        if self.hardware.is_quiet() {
            self.fail_all(pass);
            self.ending = Ending::Ended;
            return true;
        }
        self.step_ending(pass);
        matches!(self.ending, Ending::Ended)
    }
}

impl QueuePair {
    /// The command for a request, with lists in the page of the tracker `index`. None if there is
    /// nothing to send.
    #[inline]
    fn command(&self, request: &Request<'_>, index: usize) -> Result<Option<Command>, Fault> {
        if self.refusing {
            return Err(self.hardware.health().fault(request.offset));
        }
        let fua = if request.flags.contains(OpFlags::FUA) { command::FUA } else { 0 };
        match request.kind {
            OpKind::Read => self.transfer(nvm::READ, 0, request, index).map(Some),
            OpKind::Write => self.transfer(nvm::WRITE, fua, request, index).map(Some),
            OpKind::Compare => self.transfer(nvm::COMPARE, 0, request, index).map(Some),
            OpKind::WriteZeroes => self.write_zeroes(fua, request).map(Some),
            OpKind::Discard => self.deallocate(request, index).map(Some),
            OpKind::Flush if self.shape.volatile_cache => Ok(Some(Command::flush(self.shape.nsid))),
            // Without a volatile cache every completed write is durable already.
            OpKind::Flush => Ok(None),
        }
    }

    /// A command with data. PRPs where two of them do, or where there are no SGLs.
    #[inline]
    fn transfer(
        &self,
        opcode: u8,
        cdw12: u32,
        request: &Request<'_>,
        index: usize,
    ) -> Result<Command, Fault> {
        let (slba, blocks) = self.range(request, request.data.len() as u64)?;
        let command = Command::nvm(opcode, self.shape.nsid, slba, blocks, cdw12);
        if request.len > 2 * prp::PAGE
            && let Some(data) = self.sgl(request, index)
        {
            return Ok(command.with_data(data));
        }
        let pieces = request.data.pieces().map(iova_and_len);
        let (first, list) = self.list(index);
        match prp::build(pieces, &self.lists, first, list) {
            Ok((prp1, prp2)) => Ok(command.with_prp(prp1, prp2)),
            Err(_) => match self.sgl(request, index) {
                Some(data) => Ok(command.with_data(data)),
                None => Err(unreachable_memory(request)),
            },
        }
    }

    fn sgl(&self, request: &Request<'_>, index: usize) -> Option<DataPointer> {
        let align = self.shape.sgl_align?;
        let pieces = request.data.pieces().map(iova_and_len);
        let (first, list) = self.list(index);
        let sgl = sgl::build(pieces, align, &self.lists, first, list);
        sgl.ok().map(DataPointer::Sgl)
    }

    fn write_zeroes(&self, fua: u32, request: &Request<'_>) -> Result<Command, Fault> {
        let (slba, blocks) = self.range(request, request.len)?;
        let unmap = request.flags.contains(OpFlags::MAY_UNMAP) && self.shape.deallocate_zeroes;
        let deac = if unmap { command::DEAC } else { 0 };
        let nsid = self.shape.nsid;
        Ok(Command::write_zeroes(nsid, slba, blocks, fua | deac))
    }

    /// Deallocates, in as many ranges as the longest range makes it take.
    fn deallocate(&self, request: &Request<'_>, index: usize) -> Result<Command, Fault> {
        let (first, list) = self.list(index);
        let mut slba = request.offset >> self.shape.block_shift;
        let mut left = request.len >> self.shape.block_shift;
        let mut ranges = 0;
        while left > 0 {
            if ranges == self.shape.ranges_max {
                return Err(beyond_limits(request));
            }
            let blocks = left.min(self.shape.range_blocks_max.into());
            let words = dsm::Range::new(slba, blocks as u32).to_words();
            let at = first + ranges as usize * 2;
            self.lists.store64(at, words[0], Ordering::Relaxed);
            self.lists.store64(at + 1, words[1], Ordering::Relaxed);
            slba += blocks;
            left -= blocks;
            ranges += 1;
        }
        if ranges == 0 {
            return Err(beyond_limits(request));
        }
        let command = Command::dataset_management(self.shape.nsid, ranges, dsm::AD);
        Ok(command.with_prp(list, 0))
    }

    /// Starting LBA and blocks of a request of `len` bytes.
    #[inline]
    fn range(&self, request: &Request<'_>, len: u64) -> Result<(u64, u32), Fault> {
        let blocks = len >> self.shape.block_shift;
        if blocks.wrapping_sub(1) > 0xffff {
            return Err(beyond_limits(request));
        }
        Ok((request.offset >> self.shape.block_shift, blocks as u32))
    }

    /// A tracker's page: its first word, and its IOVA.
    #[inline]
    fn list(&self, index: usize) -> (usize, u64) {
        let iova = self.lists_iova + (index * LIST_BYTES) as u64;
        (index * LIST_WORDS, iova)
    }

    /// Nothing can be sent. A queue that takes nothing any more says so, full or not: its ring may
    /// stay full for ever.
    #[cold]
    fn submit_full(&self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        if !self.refusing {
            return Err(Busy);
        }
        let fault = self.hardware.health().fault(request.offset);
        pass.done(request.token, Err(fault));
        Ok(())
    }

    #[inline]
    fn reap(&mut self, pass: &mut Pass) -> usize {
        let (mut taken, mut count) = (0, 0);
        // Bounded, so that a controller that posts without end does not hold the core.
        while taken < self.cq.entries()
            && let Some(entry) = self.cq.pop()
        {
            taken += 1;
            count += usize::from(self.complete(entry, pass));
        }
        if taken > 0 {
            self.after_reap();
        }
        count
    }

    /// The head doorbell is rung late, once a quarter of the queue is to be given back: one
    /// doorbell for many passes, and the controller never runs out of room.
    #[inline]
    fn after_reap(&mut self) {
        if self.cq.unrung() * 4 >= self.cq.entries()
            && let Some((old, new)) = self.cq.pending()
        {
            self.cq_doorbell.ring(old, new);
            self.cq.rang();
        }
        if self.trackers.in_flight() == 0 {
            self.sq.drained();
        }
    }

    /// Takes one completion; false if it names no command of ours.
    #[inline]
    fn complete(&mut self, entry: Completion, pass: &mut Pass) -> bool {
        if entry.sqid() != self.qid {
            count(&self.counters.bad_sqid);
            return false;
        }
        if self.sq.fetched(entry.sqhd()).is_err() {
            count(&self.counters.bad_sqhd);
        }
        let Some((token, offset)) = self.trackers.complete(entry.cid()) else {
            count(&self.counters.bad_cid);
            return false;
        };
        if entry.is_success() {
            pass.done(token, Ok(()));
        } else {
            pass.done(token, Err(status::fault(entry.status(), offset)));
        }
        true
    }

    /// The controller failed or is gone. What it completed counts; the rest fails once it is quiet.
    #[cold]
    fn poll_dead(&mut self, pass: &mut Pass) -> usize {
        self.refusing = true;
        self.hardware.step();
        if self.hardware.is_quiet() {
            return self.fail_all(pass);
        }
        self.reap(pass)
    }

    /// Fails all commands in flight; nothing may touch their memory any more.
    fn fail_all(&mut self, pass: &mut Pass) -> usize {
        let mut count = 0;
        while let Some((token, offset)) =
            self.trackers.any().and_then(|cid| self.trackers.complete(cid))
        {
            let health = self.hardware.health();
            let fault = if health == Health::Live {
                Fault::text(ErrorKind::Cancelled, offset, "the I/O queue was deleted")
            } else {
                health.fault(offset)
            };
            pass.done(token, Err(fault));
            count += 1;
        }
        count
    }

    /// Deletes the submission queue, then the completion queue; if the controller does not, it is
    /// disabled.
    fn step_ending(&mut self, pass: &mut Pass) {
        let now_ns = pass.now();
        match &self.ending {
            Ending::Open => {
                let ticket = self.start_delete(Command::delete_sq(self.qid));
                if let Some(ticket) = ticket {
                    let until_ns = now_ns.saturating_add(DELETE_NS);
                    self.ending = Ending::DeletingSq { ticket, until_ns };
                }
            }
            Ending::DeletingSq { ticket, until_ns } => match deleted(ticket) {
                Some(true) => {
                    // What was completed before the deletion is in the queue already.
                    self.reap(pass);
                    self.fail_all(pass);
                    let ticket = self.start_delete(Command::delete_cq(self.qid));
                    if let Some(ticket) = ticket {
                        let until_ns = now_ns.saturating_add(DELETE_NS);
                        self.ending = Ending::DeletingCq { ticket, until_ns };
                    }
                }
                None if now_ns < *until_ns => {}
                _ => self.disable(),
            },
            Ending::DeletingCq { ticket, until_ns } => match deleted(ticket) {
                Some(true) => {
                    self.end();
                    self.controller.return_qid(self.qid);
                }
                None if now_ns < *until_ns => {}
                _ => self.disable(),
            },
            Ending::Disabling => self.hardware.step(),
            Ending::Ended => {}
        }
    }

    /// Starts a deletion. None if there is no room for it now, or no controller.
    fn start_delete(&mut self, command: Command) -> Option<Ticket> {
        match self.controller.admin().start(command, &mut None, false) {
            Ok(ticket) => ticket,
            Err(_) => {
                self.disable();
                None
            }
        }
    }

    fn disable(&mut self) {
        self.hardware.fail();
        self.ending = Ending::Disabling;
    }

    /// The controller knows these queues no more.
    fn end(&mut self) {
        self.sq_doorbell.clear();
        self.cq_doorbell.clear();
        self.memory.conceal();
        self.ending = Ending::Ended;
    }
}

/// The outcome of a deletion, once there is one.
fn deleted(ticket: &Ticket) -> Option<bool> {
    let done = ticket.poll(None)?;
    Some(done.is_ok_and(|done| done.completion.is_success()))
}

/// Memory without an IOVA gets an address that no builder takes.
#[inline]
fn iova_and_len(piece: Piece<'_>) -> (u64, u64) {
    (piece.iova().unwrap_or(u64::MAX), piece.len() as u64)
}

#[cold]
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cold]
fn unreachable_memory(request: &Request<'_>) -> Fault {
    let text = "the controller can not reach this memory, or not in these pieces";
    Fault::text(ErrorKind::Invalid, request.offset, text)
}

#[cold]
fn beyond_limits(request: &Request<'_>) -> Fault {
    let text = "the length is zero, or beyond what one command can carry";
    Fault::text(ErrorKind::Invalid, request.offset, text)
}
