//! An I/O queue pair: the path of every read and write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use oxblock_engine::{Busy, Core, Error, Pass, Request, Sleep, Token};
use oxblock_mem::Cells;
use oxblock_nvme::command::QPRIO_MEDIUM;
use oxblock_nvme::queue::{CompletionQueue, SubmissionQueue};
use oxblock_nvme::{Command, Completion};

use super::admin::{Admin, ring_error};
use super::commands::Commands;
use super::controller::Controller;
use super::doorbell::Doorbell;
use super::ending::Ending;
use super::guest::Guest;
use super::hardware::Hardware;
use super::health::{Health, Pulse};
use super::interrupts::{self, Waiting};
use super::leaf::Leaf;
use super::lending::{Ask, Guests, Lender};
use super::looks::Looks;
use super::memory::DeviceMemory;
use super::namespace::Shape;
use super::retry::Patience;
use super::station::Station;
use super::tracker::{OWN, TRACKERS_MAX, Trackers};
use super::{Quirks, status};

/// How long a queue pair is tried to be opened when resets come between, in ns.
const OPEN_NS: u64 = 60_000_000_000;

/// What the queues of a controller saw that should not be. Touched only then.
#[derive(Default)]
pub(super) struct QueueCounters {
    pub bad_cid: AtomicU64,
    pub bad_sqhd: AtomicU64,
    pub bad_sqid: AtomicU64,
    pub timeouts: AtomicU64,
    pub aborts: AtomicU64,
    pub retries: AtomicU64,
    pub late: AtomicU64,
}

/// Whether requests are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// Not until the controller was reset: requests wait with the engine.
    Held,
    /// Never again: requests fail.
    Closed,
}

/// A submission queue, its completion queue, and the commands in flight. Fields of every I/O come
/// first.
pub(super) struct QueuePair {
    pub(super) sq: SubmissionQueue<Cells>,
    pub(super) cq: CompletionQueue<Cells>,
    pub(super) trackers: Trackers,
    pub(super) commands: Commands,
    /// What the controller's health was when it was last looked at.
    pub(super) seen: Pulse,
    pub(super) gate: Gate,
    pub(super) qid: u16,
    /// Cores that share it.
    pub(super) guests: Guests,
    pub(super) sq_doorbell: Doorbell,
    pub(super) cq_doorbell: Doorbell,
    pub(super) waiting: Waiting,
    pub(super) hardware: Arc<Hardware>,
    pub(super) counters: Arc<QueueCounters>,
    pub(super) patience: Patience,
    pub(super) station: Arc<Station>,
    pub(super) ending: Ending,
    /// When an end that waits for the home core counts as overdue.
    pub(super) until_ns: Option<u64>,
    /// Room to sort commands that are sent again: when they were first sent, and their trackers.
    pub(super) due: Vec<(u16, usize)>,
    /// The controller did not take the queue pair back after a reset.
    pub(super) refused: bool,
    /// Where its commands go since then.
    pub(super) guest: Option<Box<Guest>>,
    pub(super) memory: DeviceMemory,
    /// Last: it holds the way to memory open.
    pub(super) controller: Arc<Controller>,
}

/// Creates the queue pair `qid` for a namespace on the core that calls. A reset that comes between
/// delays it.
///
/// # Errors
/// No memory, or the controller refuses.
pub(super) async fn open(
    core: &Core,
    controller: Arc<Controller>,
    shape: Shape,
    qid: u16,
) -> Result<Leaf, Error> {
    let begun = core.now();
    loop {
        let before = controller.settled(core).await;
        let made = before.and_then(|()| make(core, controller.clone(), shape, qid));
        let mut pair = match made {
            Ok(pair) => pair,
            Err(error) => {
                controller.return_qid(qid);
                return Err(error);
            }
        };
        match create(core, &mut pair).await {
            Ok(()) => {
                pair.station.run();
                controller.add_lender(pair.guests.lender());
                return Ok(Leaf::new(core, pair));
            }
            Err(error) => {
                let was_reset = forget(core, &mut pair).await;
                let is_over = controller.hardware().health().is_over();
                if was_reset && !is_over && core.now() - begun < OPEN_NS {
                    continue;
                }
                // What the controller is not known to have deleted stays as it is.
                if matches!(pair.ending, Ending::Ended) {
                    controller.return_qid(qid);
                }
                return Err(error.context(format!("creating I/O queue {qid}")));
            }
        }
    }
}

/// After a creation that failed: waits for a reset that is under way, with which the controller
/// forgets what it may have created. Whether there was one.
async fn forget(core: &Core, pair: &mut QueuePair) -> bool {
    let mut looks = Looks::new();
    while pair.hardware.health() == Health::Resetting {
        looks.pause(core).await;
    }
    let pulse = pair.hardware.pulse();
    let forgotten = pulse.health().is_quiet() || pulse.life() != pair.seen.life();
    if forgotten || matches!(pair.ending, Ending::Ended) {
        pair.end();
    }
    pair.station.close(pulse);
    pair.controller.stations().remove(&pair.station);
    forgotten
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
    let theirs = controller.features().controller_queue(qid, sq_len);
    let total = Commands::list_bytes(trackers) + sq_len + cq_len;
    let mut memory = DeviceMemory::new(core.arena(), total, &hardware)?;
    let commands = Commands::new(shape, &mut memory, trackers)?;
    let (ours, cq) = (memory.cells(sq_len)?, memory.cells(cq_len)?);
    let (our_iova, cq_iova) = (memory.iova_of(&ours)?, memory.iova_of(&cq)?);
    let (sq, sq_iova) = theirs.unwrap_or((ours, our_iova));
    let waker = core.waker();
    let waiting = controller.vectors().waiting(core.id());
    let vector = waiting.vector();
    let station = Station::new(qid, entries.into(), cq_iova, sq_iova, vector, shape, waker);
    let station = Arc::new(station);
    // From here on a reset waits for this core.
    controller.stations().add(&station);
    let seen = hardware.pulse();
    let shadow = controller.shadow();
    Ok(QueuePair {
        commands,
        guests: Guests::new(Lender::new(core.waker())),
        sq: SubmissionQueue::new(sq, entries.into()).map_err(ring_error)?,
        cq: CompletionQueue::new(cq, entries.into()).map_err(ring_error)?,
        sq_doorbell: Doorbell::new(&hardware, shadow, qid, false)?,
        cq_doorbell: Doorbell::new(&hardware, shadow, qid, true)?,
        trackers: Trackers::new(trackers),
        seen,
        gate: Gate::Open,
        qid,
        waiting,
        counters: controller.counters().clone(),
        patience: controller.patience(),
        station,
        ending: Ending::Ended,
        until_ns: None,
        due: Vec::with_capacity(trackers),
        refused: false,
        guest: None,
        memory,
        hardware,
        controller,
    })
}

/// The controller's part of a queue pair that is being opened.
async fn create(core: &Core, pair: &mut QueuePair) -> Result<(), Error> {
    pair.memory.expose();
    // Until the controller has said no, it may know the queues.
    pair.ending = Ending::Open;
    match create_queues(core, &pair.controller, &pair.station).await? {
        Created::Both => Ok(()),
        Created::Neither(error) => {
            pair.end();
            Err(error)
        }
        Created::Unknown(error) => Err(error),
    }
}

/// What came of creating a queue pair.
pub(super) enum Created {
    Both,
    /// The controller said no, and has nothing of it.
    Neither(Error),
    /// The controller said no, and may have kept the completion queue.
    Unknown(Error),
}

/// Has the controller create the completion queue, then the submission queue.
///
/// # Errors
/// The controller does not answer.
pub(super) async fn create_queues(
    core: &Core,
    controller: &Controller,
    station: &Station,
) -> Result<Created, Error> {
    let admin = controller.admin();
    let (qid, entries) = (station.qid, station.entries);
    let command = Command::create_cq(qid, entries, station.cq, station.vector);
    let done = admin.execute(core, command, None).await?;
    if !done.completion.is_success() {
        let status = done.completion.status();
        return Ok(Created::Neither(status::error("create completion queue", status)));
    }
    if let Some(vector) = station.vector.filter(|_| controller.coalesces()) {
        // A controller that has none of it works as well.
        admin.execute(core, interrupts::coalesce_vector(vector), None).await?;
    }
    let mut command = Command::create_sq(qid, entries, station.sq, qid);
    if admin.hardware().quirks().contains(Quirks::MEDIUM_PRIORITY) {
        command = command.with_cdw10_11(command.cdw10(), command.cdw11() | QPRIO_MEDIUM);
    }
    let done = admin.execute(core, command, None).await?;
    if done.completion.is_success() {
        return Ok(Created::Both);
    }
    let error = status::error("create submission queue", done.completion.status());
    let deleted = admin.execute(core, Command::delete_cq(qid), None).await?;
    let is_deleted = deleted.completion.is_success();
    Ok(if is_deleted { Created::Neither(error) } else { Created::Unknown(error) })
}

/// Deletes the queues of an ID, whoever owns them.
pub(super) async fn delete(core: &Core, admin: &Arc<Admin>, qid: u16) -> Result<(), Error> {
    for command in [Command::delete_sq(qid), Command::delete_cq(qid)] {
        admin.execute(core, command, None).await?;
    }
    Ok(())
}

impl QueuePair {
    #[inline]
    pub fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        let is_open = self.gate == Gate::Open;
        let Some(index) = self.trackers.next().filter(|_| !self.sq.is_full() && is_open) else {
            return self.submit_full(request, pass);
        };
        match self.commands.of(request, index) {
            Ok(Some(command)) => {
                let (token, offset) = (request.token, request.offset);
                if let Some(cid) = self.trackers.take(token, offset, OWN, &command) {
                    self.sq.push(&command.with_cid(cid));
                }
            }
            Ok(None) => pass.done(request.token, Ok(())),
            Err(fault) => pass.done(request.token, Err(fault)),
        }
        Ok(())
    }

    #[inline]
    pub fn ring(&mut self) {
        if let Some((old, new)) = self.sq.pending()
            && self.gate == Gate::Open
        {
            self.sq_doorbell.ring(old, new);
            self.sq.rang();
        }
    }

    #[inline]
    pub fn poll(&mut self, pass: &mut Pass) -> usize {
        if self.hardware.pulse() != self.seen {
            return self.poll_news(pass);
        }
        self.poll_well(pass)
    }

    #[inline]
    pub fn poll_well(&mut self, pass: &mut Pass) -> usize {
        let count = self.reap(pass);
        if self.guests.has_any() {
            self.serve_guests();
        }
        count
    }

    pub fn cancel(&mut self, token: Token) {
        match &mut self.guest {
            Some(guest) => guest.cancel(token, &self.trackers),
            None => self.cancel_of(token, OWN),
        }
    }

    pub fn in_flight(&self) -> usize {
        self.trackers.in_flight()
    }

    pub fn sleep(&mut self, now_ns: u64) -> Sleep<'_> {
        if let Some(guest) = &self.guest {
            return guest.sleep(self.trackers.in_flight());
        }
        if self.gate == Gate::Held && self.is_parked() {
            // The home core wakes it.
            return Sleep::Woken;
        }
        if self.guests.wait() {
            return Sleep::Never;
        }
        if self.trackers.in_flight() == 0 {
            return Sleep::Woken;
        }
        let (cq, hardware, seen) = (&self.cq, &self.hardware, self.seen);
        self.waiting.sleep(now_ns, || cq.is_ready() || hardware.pulse() != seen)
    }

    pub fn orphans(&self) -> &AtomicUsize {
        self.controller.orphans()
    }

    /// Whether nobody but its guests needs the queue pair any more.
    pub fn is_only_lent(&self) -> bool {
        let open = matches!(self.ending, Ending::Open) && !self.hardware.health().is_over();
        open && self.gate != Gate::Closed && self.guests.has_any() && !self.trackers.any_of(OWN)
    }

    /// Takes commands of guests as far as there is room, and tells guests what has ended. When its
    /// own core waits for room too, they take turns.
    fn serve_guests(&mut self) {
        self.guests.admit();
        self.guests.wake();
        if self.gate != Gate::Open || self.trackers.next().is_none() || !self.guests.take_turn() {
            return;
        }
        while self.trackers.next().is_some()
            && !self.sq.is_full()
            && let Some((seat, ask)) = self.guests.next()
        {
            match ask {
                Ask::Command { command, cid } => {
                    let token = Token(cid.into());
                    let taken = self.trackers.take(token, 0, seat, &command);
                    if let Some(cid) = taken {
                        self.sq.push(&command.with_cid(cid));
                    }
                }
                Ask::Cancel { cid } => self.cancel_of(Token(cid.into()), seat),
            }
        }
        self.ring();
    }

    /// No command of a guest is in work any more, and none is taken from now on.
    pub fn leave_guests(&mut self) {
        self.controller.remove_lender(self.guests.lender());
        self.guests.end(true);
    }

    /// Nothing can be sent. A queue that takes nothing any more says so, full or not: its ring may
    /// stay full for ever.
    #[cold]
    fn submit_full(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        match self.gate {
            Gate::Open => self.guests.own_core_waits(),
            Gate::Held => {}
            Gate::Closed => return self.submit_closed(request, pass),
        }
        Err(Busy)
    }

    fn submit_closed(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        let Some(guest) = &mut self.guest else {
            pass.done(request.token, Err(self.ended(request.offset)));
            return Ok(());
        };
        guest.submit(request, &mut self.trackers, &self.commands, pass)?;
        guest.kick();
        Ok(())
    }

    #[inline]
    pub fn reap(&mut self, pass: &mut Pass) -> usize {
        let (taken, count) = self.take_all(pass);
        if taken > 0 {
            self.after_reap(pass);
        }
        count
    }

    /// Reaps from a controller that is not to be told of it.
    pub fn reap_silently(&mut self, pass: &mut Pass) -> usize {
        self.take_all(pass).1
    }

    /// Takes completions: how many there were, and how many named a command of ours.
    #[inline]
    fn take_all(&mut self, pass: &mut Pass) -> (u32, usize) {
        let (mut taken, mut count) = (0, 0);
        // Bounded, so that a controller that posts without end does not hold the core.
        while taken < self.cq.entries()
            && let Some(entry) = self.cq.pop()
        {
            taken += 1;
            count += usize::from(self.complete(entry, pass));
        }
        (taken, count)
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
        if !entry.is_success() {
            return self.complete_aside(entry, pass);
        }
        let Some((token, _, seat)) = self.trackers.complete(entry.cid()) else {
            return self.complete_aside(entry, pass);
        };
        if seat == OWN {
            pass.done(token, Ok(()));
        } else {
            self.guests.answer(seat, token, Ok(()));
        }
        true
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.controller.remove_lender(self.guests.lender());
        let pulse = self.hardware.pulse();
        self.guests.end(pulse.health().is_quiet() || matches!(self.ending, Ending::Ended));
        self.station.close(pulse);
        self.controller.stations().remove(&self.station);
    }
}

#[cold]
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
