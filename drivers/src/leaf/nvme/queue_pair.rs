//! An I/O queue pair: the path of every read and write.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use oxblock_engine::{
    Busy, Core, Error, ErrorKind, Fault, Pass, Poller, PollerId, Queue, Request, Sleep, Token,
};
use oxblock_mem::Cells;
use oxblock_nvme::queue::{CompletionQueue, SubmissionQueue};
use oxblock_nvme::{Command, Completion};

use super::admin::{Admin, Ticket, ring_error};
use super::commands::Commands;
use super::controller::Controller;
use super::doorbell::Doorbell;
use super::hardware::{Hardware, Health};
use super::interrupts::{self, Waiting};
use super::lending::{Ask, Guests, Lender};
use super::memory::DeviceMemory;
use super::namespace::Shape;
use super::status;
use super::tracker::{OWN, TRACKERS_MAX, Trackers};

/// How long the controller may take to delete a queue, in ns, before it counts as failed.
pub(super) const DELETE_NS: u64 = 3_000_000_000;

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
    commands: Commands,
    /// Nothing is submitted any more.
    refusing: bool,
    qid: u16,
    /// Cores that share it.
    guests: Guests,
    sq_doorbell: Doorbell,
    cq_doorbell: Doorbell,
    waiting: Waiting,
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

/// Creates the queue pair `qid` for a namespace on the core that calls.
///
/// # Errors
/// No memory, or the controller refuses.
pub(super) async fn open(
    core: &Core,
    controller: Arc<Controller>,
    shape: Shape,
    qid: u16,
) -> Result<Leaf, Error> {
    let made = make(core, controller.clone(), shape, qid);
    let mut pair = match made {
        Ok(pair) => pair,
        Err(error) => {
            controller.return_qid(qid);
            return Err(error);
        }
    };
    match create(core, &mut pair).await {
        Ok(()) => {
            controller.add_lender(pair.guests.lender());
            Ok(Leaf { core: core.clone(), pair: Some(pair) })
        }
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
    let total = Commands::list_bytes(trackers) + sq_len + cq_len;
    let mut memory = DeviceMemory::new(core.arena(), total, &hardware)?;
    let commands = Commands::new(shape, &mut memory, trackers)?;
    let (sq, cq) = (memory.cells(sq_len)?, memory.cells(cq_len)?);
    Ok(QueuePair {
        commands,
        guests: Guests::new(Lender::new(core.waker())),
        sq: SubmissionQueue::new(sq, entries.into()).map_err(ring_error)?,
        cq: CompletionQueue::new(cq, entries.into()).map_err(ring_error)?,
        sq_doorbell: Doorbell::new(&hardware, controller.shadow(), qid, false)?,
        cq_doorbell: Doorbell::new(&hardware, controller.shadow(), qid, true)?,
        trackers: Trackers::new(trackers),
        refusing: false,
        qid,
        waiting: controller.vectors().waiting(core.id()),
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
    let vector = pair.waiting.vector();
    let command = Command::create_cq(qid, entries, cq, vector);
    let done = admin.execute(core, command, None).await?;
    if !done.completion.is_success() {
        pair.end();
        let status = done.completion.status();
        return Err(status::error("create completion queue", status));
    }
    if let Some(vector) = vector.filter(|_| pair.controller.vectors().coalescing().is_some()) {
        // A controller that has none of it works as well.
        admin.execute(core, interrupts::coalesce_vector(vector), None).await?;
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

/// A queue pair as the leaf of the core that it was created on. Closed while others share it, it
/// goes on as a poller of that core until they have left.
pub(super) struct Leaf {
    core: Core,
    pair: Option<QueuePair>,
}

impl Queue for Leaf {
    #[inline]
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        match &mut self.pair {
            Some(pair) => pair.submit(request, pass),
            None => Err(Busy),
        }
    }

    #[inline]
    fn kick(&mut self, _pass: &mut Pass) {
        if let Some(pair) = &mut self.pair {
            pair.ring();
        }
    }

    #[inline]
    fn poll(&mut self, pass: &mut Pass) -> usize {
        self.pair.as_mut().map_or(0, |pair| pair.poll(pass))
    }

    fn cancel(&mut self, token: Token) {
        if let Some(pair) = &mut self.pair {
            pair.cancel(token);
        }
    }

    fn in_flight(&self) -> usize {
        self.pair.as_ref().map_or(0, |pair| pair.trackers.in_flight())
    }

    fn is_worth_polling(&self, now_ns: u64) -> bool {
        self.pair.as_ref().is_none_or(|pair| pair.waiting.is_worth_polling(now_ns))
    }

    fn sleep(&mut self) -> Sleep<'_> {
        match &mut self.pair {
            Some(pair) => pair.sleep(self.core.pass_now()),
            None => Sleep::Woken,
        }
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        let Some(pair) = &mut self.pair else { return true };
        if pair.is_only_lent() {
            let pair = self.pair.take();
            Orphan::add(&self.core, pair);
            return true;
        }
        pair.quiesce(pass)
    }
}

/// A queue pair whose own core is done with it, while others still share it.
struct Orphan {
    pair: Option<QueuePair>,
    pass: Pass,
    id: Rc<Cell<Option<PollerId>>>,
}

impl Orphan {
    fn add(core: &Core, pair: Option<QueuePair>) {
        if let Some(pair) = &pair {
            pair.controller.orphans().fetch_add(1, Ordering::SeqCst);
        }
        let id = Rc::new(Cell::new(None));
        let orphan = Orphan { pair, pass: Pass::new(1), id: id.clone() };
        id.set(Some(core.add_poller(Box::new(orphan))));
    }

    fn end(&mut self) {
        if let Some(pair) = self.pair.take() {
            pair.controller.orphans().fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Poller for Orphan {
    fn poll(&mut self, core: &Core) -> usize {
        self.pass.begin(core.pass_now());
        let Some(pair) = &mut self.pair else { return 0 };
        let over = if pair.is_only_lent() {
            pair.poll(&mut self.pass);
            false
        } else {
            pair.quiesce(&mut self.pass)
        };
        // It has no requests of its own.
        self.pass.drain().for_each(drop);
        if over {
            self.end();
            if let Some(id) = self.id.take() {
                core.remove_poller(id);
            }
        }
        usize::from(over)
    }

    fn sleep(&mut self) -> Sleep<'_> {
        match &mut self.pair {
            Some(pair) if pair.is_only_lent() => pair.sleep(self.pass.now()),
            Some(_) => Sleep::Never,
            None => Sleep::Woken,
        }
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        self.end();
    }
}

impl QueuePair {
    #[inline]
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        let Some(index) = self.trackers.next().filter(|_| !self.sq.is_full() && !self.refusing)
        else {
            return self.submit_full(request, pass);
        };
        match self.commands.of(request, index) {
            Ok(Some(command)) => {
                if let Some(cid) = self.trackers.take(request.token, request.offset, OWN) {
                    self.sq.push(&command.with_cid(cid));
                }
            }
            Ok(None) => pass.done(request.token, Ok(())),
            Err(fault) => pass.done(request.token, Err(fault)),
        }
        Ok(())
    }

    #[inline]
    fn ring(&mut self) {
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
        let count = self.reap(pass);
        if self.guests.has_any() {
            self.serve_guests();
        }
        count
    }

    fn cancel(&mut self, token: Token) {
        if let Some(cid) = self.trackers.find(token, OWN) {
            self.abort(cid);
        }
    }

    /// Best effort: where there is no room for an abort, the command takes its time.
    fn abort(&self, cid: u16) {
        let command = Command::abort(self.qid, cid);
        let _ = self.controller.admin().start(command, &mut None, false);
    }

    fn sleep(&mut self, now_ns: u64) -> Sleep<'_> {
        if self.guests.wait() {
            return Sleep::Never;
        }
        if self.trackers.in_flight() == 0 {
            return Sleep::Woken;
        }
        let (cq, hardware) = (&self.cq, &self.hardware);
        self.waiting.sleep(now_ns, || cq.is_ready() || hardware.health() != Health::Live)
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        self.refusing = true;
        if self.hardware.is_quiet() {
            self.fail_all(pass);
            self.leave_guests();
            self.ending = Ending::Ended;
            return true;
        }
        self.step_ending(pass);
        matches!(self.ending, Ending::Ended)
    }

    /// Whether nobody but its guests needs the queue pair any more.
    fn is_only_lent(&self) -> bool {
        let open = matches!(self.ending, Ending::Open) && !self.hardware.is_quiet();
        open && !self.refusing && self.guests.has_any() && !self.trackers.any_of(OWN)
    }

    /// Takes commands of guests as far as there is room, and tells guests what has ended. When its
    /// own core waits for room too, they take turns.
    fn serve_guests(&mut self) {
        self.guests.admit();
        self.guests.wake();
        if self.trackers.next().is_none() || !self.guests.take_turn() {
            return;
        }
        while self.trackers.next().is_some()
            && !self.sq.is_full()
            && let Some((seat, ask)) = self.guests.next()
        {
            match ask {
                Ask::Command { command, cid } => {
                    let taken = self.trackers.take(Token(cid.into()), 0, seat);
                    if let Some(cid) = taken {
                        self.sq.push(&command.with_cid(cid));
                    }
                }
                Ask::Cancel { cid } => {
                    if let Some(cid) = self.trackers.find(Token(cid.into()), seat) {
                        self.abort(cid);
                    }
                }
            }
        }
        self.ring();
    }

    /// No command of a guest is in work any more, and none is taken from now on.
    fn leave_guests(&mut self) {
        self.controller.remove_lender(self.guests.lender());
        self.guests.end(true);
    }

    /// Nothing can be sent. A queue that takes nothing any more says so, full or not: its ring may
    /// stay full for ever.
    #[cold]
    fn submit_full(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        if !self.refusing {
            self.guests.own_core_waits();
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
            self.after_reap(pass);
        }
        count
    }

    /// The head doorbell is rung late, once a quarter of the queue is to be given back: one
    /// doorbell for many passes, and the controller never runs out of room.
    #[inline]
    fn after_reap(&mut self, pass: &Pass) {
        if self.cq.unrung() * 4 >= self.cq.entries()
            && let Some((old, new)) = self.cq.pending()
        {
            self.cq_doorbell.ring(old, new);
            self.cq.rang();
        }
        if self.trackers.in_flight() == 0 {
            self.sq.drained();
        }
        if self.waiting.wants_to_know() {
            self.waiting.reaped(pass.now());
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
        let Some((token, offset, seat)) = self.trackers.complete(entry.cid()) else {
            count(&self.counters.bad_cid);
            return false;
        };
        if seat != OWN {
            self.guests.answer(seat, token, Some(entry.status()));
            return true;
        }
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
            let count = self.fail_all(pass);
            self.leave_guests();
            return count;
        }
        let count = self.reap(pass);
        self.guests.wake();
        count
    }

    /// Fails all commands in flight; nothing may touch their memory any more.
    fn fail_all(&mut self, pass: &mut Pass) -> usize {
        let mut count = 0;
        while let Some((token, offset, seat)) =
            self.trackers.any().and_then(|cid| self.trackers.complete(cid))
        {
            count += 1;
            if seat != OWN {
                self.guests.answer(seat, token, None);
                continue;
            }
            let health = self.hardware.health();
            let fault = if health == Health::Live {
                Fault::text(ErrorKind::Cancelled, offset, "the I/O queue was deleted")
            } else {
                health.fault(offset)
            };
            pass.done(token, Err(fault));
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
        self.leave_guests();
        self.sq_doorbell.clear();
        self.cq_doorbell.clear();
        self.memory.conceal();
        self.ending = Ending::Ended;
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.controller.remove_lender(self.guests.lender());
        self.guests.end(self.hardware.is_quiet() || matches!(self.ending, Ending::Ended));
    }
}

/// The outcome of a deletion, once there is one.
fn deleted(ticket: &Ticket) -> Option<bool> {
    let done = ticket.poll(None)?;
    Some(done.is_ok_and(|done| done.completion.is_success()))
}

#[cold]
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
