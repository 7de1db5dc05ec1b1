//! The admin queue pair: commands as futures.
//!
//! The home core's poller reaps it; whoever waits for a command reaps it too, so that a queue can
//! be deleted even while its home core is busy ending. It is control plane: a mutex guards it, and
//! the I/O path never comes here.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use oxblock_engine::{Core, CoreWaker, Error, ErrorKind};
use oxblock_mem::{Buf, Cells};
use oxblock_nvme::queue::{CompletionQueue, SubmissionQueue};
use oxblock_nvme::regs::Aqa;
use oxblock_nvme::{Command, Completion};

use super::doorbell::Doorbell;
use super::hardware::Hardware;
use super::memory::DeviceMemory;

/// Entries of both admin queues.
const ENTRIES: u16 = 32;
/// Commands in flight: one slot of the ring stays empty, and no identifier may be FFFFh.
const SLOTS: usize = ENTRIES as usize - 1;
/// Bits of a command identifier that hold the slot; the others hold its generation.
const INDEX_BITS: u32 = 5;
/// What an idle slot has for an identifier.
const IDLE: u16 = u16::MAX;
/// How often a command that found no slot looks again.
const RETRY_INTERVAL: Duration = Duration::from_micros(50);

/// The admin queue pair of a controller.
pub(super) struct Admin {
    /// Commands that somebody waits for; asynchronous event requests do not count.
    outstanding: AtomicUsize,
    /// Aborts that may be in flight at once: ACL + 1 (row 20).
    aborts_max: AtomicUsize,
    inner: Mutex<Inner>,
    home: CoreWaker,
    hardware: Arc<Hardware>,
    timeout: Duration,
}

struct Inner {
    sq: SubmissionQueue<Cells>,
    cq: CompletionQueue<Cells>,
    sq_doorbell: Doorbell,
    cq_doorbell: Doorbell,
    slots: Vec<Slot>,
    closed: bool,
    /// Completions that named no command in flight, or no place in the queue.
    rejected: u64,
    memory: DeviceMemory,
    hardware: Arc<Hardware>,
}

/// What a command is to whoever keeps count of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Somebody waits for it.
    Awaited,
    /// An asynchronous event request: it may take for ever.
    Background,
    /// An abort.
    Abort,
}

struct Slot {
    cid: u16,
    next_cid: u16,
    kind: Kind,
    /// Whoever waited is gone; the slot keeps the memory until the controller is done with it.
    detached: bool,
    /// The identifier of the command that ended last, until whoever waits for it has looked; and
    /// its completion, unless a reset ended it.
    ended: Option<(u16, Option<Completion>)>,
    waker: Option<Waker>,
    buf: Option<Buf>,
}

/// What a finished command gives back.
pub(super) struct Done {
    /// The completion, of whatever status.
    pub completion: Completion,
    /// The memory that was handed in.
    pub buf: Option<Buf>,
}

impl Admin {
    /// An admin queue pair in the memory of `core`, which becomes its home.
    pub fn new(
        core: &Core,
        hardware: &Arc<Hardware>,
        timeout: Duration,
    ) -> Result<Arc<Self>, Error> {
        let mut memory = DeviceMemory::new(core.arena(), 2 * 4096, hardware)?;
        let (sq, cq) = (memory.cells(4096)?, memory.cells(4096)?);
        let slot = |cid| Slot {
            cid: IDLE,
            next_cid: cid,
            kind: Kind::Awaited,
            detached: false,
            ended: None,
            waker: None,
            buf: None,
        };
        let inner = Inner {
            sq: SubmissionQueue::new(sq, ENTRIES.into()).map_err(ring_error)?,
            cq: CompletionQueue::new(cq, ENTRIES.into()).map_err(ring_error)?,
            // Never shadowed: controllers differ on whether they look at the admin queue's.
            sq_doorbell: Doorbell::new(hardware, None, 0, false)?,
            cq_doorbell: Doorbell::new(hardware, None, 0, true)?,
            slots: (0..SLOTS as u16).map(slot).collect(),
            closed: false,
            rejected: 0,
            memory,
            hardware: hardware.clone(),
        };
        Ok(Arc::new(Self {
            outstanding: AtomicUsize::new(0),
            aborts_max: AtomicUsize::new(1),
            inner: Mutex::new(inner),
            home: core.waker(),
            hardware: hardware.clone(),
            timeout,
        }))
    }

    /// Values of AQA, ASQ and ACQ. From here on the controller counts as knowing the queues.
    pub fn expose(&self) -> Result<(u32, u64, u64), Error> {
        let inner = self.lock();
        let asq = inner.memory.iova_of(inner.sq.words())?;
        let acq = inner.memory.iova_of(inner.cq.words())?;
        inner.memory.expose();
        Ok((Aqa::new(ENTRIES, ENTRIES).0, asq, acq))
    }

    /// The controller was disabled again: it knows the queues no more.
    pub fn conceal(&self) {
        self.lock().memory.conceal();
    }

    /// Carries out a command. The slot keeps `buf`, which the command names, until the controller
    /// is done with it, also if the future is dropped.
    ///
    /// # Errors
    /// The controller failed, is gone, or did not answer in time. A status that is an error is no
    /// error here.
    pub async fn execute(
        self: &Arc<Self>,
        core: &Core,
        command: Command,
        buf: Option<Buf>,
    ) -> Result<Done, Error> {
        self.execute_within(core, command, buf, self.timeout).await
    }

    /// As [`Admin::execute`], with a time of its own for the controller to answer.
    pub async fn execute_within(
        self: &Arc<Self>,
        core: &Core,
        command: Command,
        buf: Option<Buf>,
        timeout: Duration,
    ) -> Result<Done, Error> {
        let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        let deadline_ns = core.now().saturating_add(timeout_ns);
        let mut buf = buf;
        let ticket = loop {
            if let Some(ticket) = self.start(command, &mut buf, Kind::Awaited)? {
                break ticket;
            }
            if core.now() >= deadline_ns {
                return Err(self.late(&command, timeout));
            }
            core.sleep(RETRY_INTERVAL).await;
        };
        let mut deadline = core.sleep_until(deadline_ns);
        poll_fn(|context| {
            if let Some(done) = ticket.poll(Some(context.waker())) {
                return Poll::Ready(done);
            }
            match Pin::new(&mut deadline).poll(context) {
                Poll::Ready(()) => Poll::Ready(Err(self.late(&command, timeout))),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Starts a command; None if there is no room for it now.
    pub fn start(
        self: &Arc<Self>,
        command: Command,
        buf: &mut Option<Buf>,
        kind: Kind,
    ) -> Result<Option<Ticket>, Error> {
        let mut inner = self.lock();
        let health = self.hardware.health();
        if inner.closed || !health.takes_admin() {
            return Err(Error::from(health.fault(0)));
        }
        let Some((index, cid)) = inner.push(command, buf, kind) else {
            return Ok(None);
        };
        if kind != Kind::Background {
            self.outstanding.fetch_add(1, Ordering::SeqCst);
        }
        drop(inner);
        // The home core polls while something is outstanding.
        self.home.wake();
        Ok(Some(Ticket { admin: self.clone(), index, cid }))
    }

    /// Asks the controller to abort an I/O command, unless as many aborts are in flight as it takes
    /// at once. Whether it was asked; what comes of it, the command's completion tells.
    pub fn start_abort(self: &Arc<Self>, qid: u16, cid: u16) -> bool {
        if self.lock().aborts() >= self.aborts_max.load(Ordering::Relaxed) {
            return false;
        }
        let ticket = self.start(Command::abort(qid, cid), &mut None, Kind::Abort);
        matches!(ticket, Ok(Some(_)))
    }

    /// The Abort Command Limit that the controller reports, 0's based.
    pub fn set_abort_limit(&self, acl: u8) {
        self.aborts_max.store(usize::from(acl) + 1, Ordering::Relaxed);
    }

    /// After the controller was disabled: commands in flight end without a completion, and the
    /// rings are as new.
    pub fn restart(&self) {
        let mut inner = self.lock();
        inner.sq.reset();
        inner.cq.reset();
        for slot in inner.slots.iter_mut().filter(|slot| slot.cid != IDLE) {
            slot.end(None);
        }
        self.outstanding.store(0, Ordering::SeqCst);
    }

    /// The controller's registers.
    pub fn hardware(&self) -> &Arc<Hardware> {
        &self.hardware
    }

    /// How long a command may take that says nothing else.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Takes completions; returns how many.
    pub fn reap(&self) -> usize {
        self.lock().reap(&self.outstanding)
    }

    /// Whether there are completions to take.
    pub fn is_ready(&self) -> bool {
        self.lock().cq.is_ready()
    }

    /// Commands that somebody waits for.
    pub fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::SeqCst)
    }

    /// Completions that were not believed.
    pub fn rejected(&self) -> u64 {
        self.lock().rejected
    }

    /// Wakes everybody who waits: the controller is quiet and will not answer.
    pub fn wake_all(&self) {
        for slot in &mut self.lock().slots {
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }

    /// From now on no command is taken, and those that wait end.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake_all();
    }

    #[cold]
    fn late(&self, command: &Command, timeout: Duration) -> Error {
        let csts = self.hardware.status();
        self.hardware.fail();
        let opcode = command.opcode();
        let text = match csts {
            Err(error) => return error,
            Ok(csts) => format!(
                "admin command {opcode:02x}h got no answer in {timeout:?} (CSTS {:#x}); the \
                 controller is being reset",
                csts.0
            ),
        };
        Error::new(ErrorKind::TimedOut, text)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn push(
        &mut self,
        command: Command,
        buf: &mut Option<Buf>,
        kind: Kind,
    ) -> Option<(usize, u16)> {
        let idle = |slot: &Slot| slot.cid == IDLE && slot.ended.is_none();
        let index = self.slots.iter().position(idle)?;
        let slot = self.slots.get_mut(index)?;
        let cid = slot.next_cid;
        if !self.sq.push(&command.with_cid(cid)) {
            return None;
        }
        slot.cid = cid;
        slot.kind = kind;
        slot.detached = false;
        slot.buf = buf.take();
        if let Some((old, new)) = self.sq.pending() {
            self.sq_doorbell.ring(old, new);
            self.sq.rang();
        }
        Some((index, cid))
    }

    fn reap(&mut self, outstanding: &AtomicUsize) -> usize {
        let mut count = 0;
        // Bounded, so that a controller that posts without end does not hold the core.
        while count < usize::from(ENTRIES)
            && let Some(entry) = self.cq.pop()
        {
            count += 1;
            if !self.complete(entry, outstanding) {
                self.rejected += 1;
            }
        }
        if let Some((old, new)) = self.cq.pending()
            && self.hardware.health().takes_admin()
        {
            self.cq_doorbell.ring(old, new);
            self.cq.rang();
        }
        if self.slots.iter().all(|slot| slot.cid == IDLE) {
            self.sq.drained();
        }
        count
    }

    /// False if the completion is not to be believed, or not in all.
    fn complete(&mut self, entry: Completion, outstanding: &AtomicUsize) -> bool {
        if entry.sqid() != 0 {
            return false;
        }
        let believed = self.sq.fetched(entry.sqhd()).is_ok();
        let index = usize::from(entry.cid() & ((1 << INDEX_BITS) - 1));
        let Some(slot) = self.slots.get_mut(index) else {
            return false;
        };
        if slot.cid != entry.cid() {
            return false;
        }
        if slot.kind != Kind::Background {
            outstanding.fetch_sub(1, Ordering::SeqCst);
        }
        slot.end(Some(entry));
        believed
    }
}

impl Inner {
    /// Aborts in flight.
    fn aborts(&self) -> usize {
        self.slots.iter().filter(|slot| slot.cid != IDLE && slot.kind == Kind::Abort).count()
    }
}

impl Slot {
    /// The command in flight has ended: with its completion, or by a reset.
    fn end(&mut self, completion: Option<Completion>) {
        let cid = std::mem::replace(&mut self.cid, IDLE);
        self.next_cid = self.next_cid.wrapping_add(1 << INDEX_BITS);
        if self.detached {
            self.buf = None;
            return;
        }
        self.ended = Some((cid, completion));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.hardware.is_quiet() {
            return;
        }
        // The controller may still write what its commands name.
        for slot in self.slots.iter_mut().filter(|slot| slot.cid != IDLE) {
            mem::forget(slot.buf.take());
        }
    }
}

/// An admin command in flight. Dropping it lets the command go on, unattended.
pub(super) struct Ticket {
    admin: Arc<Admin>,
    index: usize,
    cid: u16,
}

impl Ticket {
    /// The outcome, if there is one; else the waker is woken when there is.
    pub fn poll(&self, waker: Option<&Waker>) -> Option<Result<Done, Error>> {
        let mut inner = self.admin.lock();
        let health = self.admin.hardware.health();
        if !health.is_quiet() {
            inner.reap(&self.admin.outstanding);
        }
        let closed = inner.closed || !health.takes_admin();
        let slot = inner.slots.get_mut(self.index)?;
        if slot.cid == self.cid {
            if closed {
                return Some(Err(Error::from(health.fault(0))));
            }
            slot.waker = waker.cloned();
            return None;
        }
        let (_, completion) = slot.ended.take_if(|(cid, _)| *cid == self.cid)?;
        let buf = slot.buf.take();
        Some(match completion {
            Some(completion) => Ok(Done { completion, buf }),
            None => {
                let text = "the controller was reset before it answered this admin command";
                Err(Error::new(ErrorKind::Io, text))
            }
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.admin.lock();
        let Some(slot) = inner.slots.get_mut(self.index) else {
            return;
        };
        // The slot may be somebody else's by now.
        if slot.cid == self.cid {
            slot.waker = None;
            slot.detached = true;
        } else if slot.ended.is_some_and(|(cid, _)| cid == self.cid) {
            slot.ended = None;
            slot.buf = None;
        }
    }
}

pub(super) fn ring_error(error: oxblock_nvme::queue::RingError) -> Error {
    Error::new(ErrorKind::Invalid, error.to_string())
}
