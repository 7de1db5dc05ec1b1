//! What a leaf driver is to the engine: a [`Driver`] for control, and one [`Queue`] for
//! each core that does I/O on it.

use std::fmt;
use std::future::Future;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use oxblock_mem::View;

use crate::clock::{Clock, SimulatedClock, Time};
use crate::graph::{Access, Opening};
use crate::{Core, Counter, Error, Fault, Limits, Node, OpFlags, OpKind};

/// A boxed future that stays on its core. Control plane only.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The control plane of a node: what it is, and queues for the cores that use it.
pub trait Driver: Send + Sync {
    /// The driver's name, as blockdev-add has it.
    fn name(&self) -> &'static str;

    /// What one request may ask, as of now. A driver whose device can change while it is open
    /// has the node [refreshed](Core::refresh) when it does.
    fn limits(&self) -> Limits;

    /// The driver is that of this node now. One that will ask for the node to be refreshed or
    /// withdrawn keeps a `Weak` of it.
    fn joined(&self, node: &Arc<Node>) {
        let _ = node;
    }

    /// What its user should know about how it works here, in one line: what it does without,
    /// and how to mend that.
    fn notice(&self) -> Option<&str> {
        None
    }

    /// What the driver counts of its device; nothing where there is nothing to count.
    fn counters(&self) -> Vec<Counter> {
        Vec::new()
    }

    /// The users of the node together are about to ask for this, and to leave this to others: the
    /// driver takes whatever keeps other processes from what does not go with it, and with what it
    /// [was set to](Self::set_access) before. Nothing is given up yet. Control plane.
    ///
    /// # Errors
    /// Another process does not go with it. What was taken so far goes back when the access is set.
    fn check_access(&self, access: Access) -> Result<(), Error> {
        let _ = access;
        Ok(())
    }

    /// What the users of the node together ask for and leave from now on, which was checked, or
    /// still, since a check came to nothing: what is not needed for it is given up.
    fn set_access(&self, access: Access) {
        let _ = access;
    }

    /// The same file or device with other options, to take this driver's place while nothing is on
    /// its way through the node; this one goes on until then, and also if nothing comes of it.
    /// What must not end in between, such as locks, both have in common. `None`: the options that
    /// may change make no difference to it. Control plane.
    ///
    /// # Errors
    /// It cannot be opened so.
    fn reopen<'a>(
        &'a self,
        opening: &'a Opening<'a>,
    ) -> LocalFuture<'a, Result<Option<Box<dyn Driver>>, Error>> {
        let _ = opening;
        Box::pin(async { Ok(None) })
    }

    /// Opens the queue of the core that calls. It runs on that core, and may talk to
    /// others.
    fn queue<'a>(&'a self, core: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>>;

    /// Closes the driver in good order, after all its queues are closed.
    fn close<'a>(&'a self, core: &'a Core) -> LocalFuture<'a, Result<(), Error>>;
}

/// The data plane of a leaf on one core. Nothing here allocates, locks, blocks or logs.
///
/// Every request that [`submit`](Queue::submit) takes is completed exactly once, by
/// [`Pass::done`] in this or a later call. Until then, and no longer, the driver and its
/// device may touch the request's memory.
pub trait Queue {
    /// Starts one request, or says that the queue is full. Requests are told to the
    /// device by the next [`kick`](Queue::kick) at the latest.
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy>;

    /// Tells the device of all requests since the last kick: one doorbell, one system call.
    fn kick(&mut self, pass: &mut Pass);

    /// Reaps completions, and returns how many.
    fn poll(&mut self, pass: &mut Pass) -> usize;

    /// Asks that a request end early. It still completes exactly once.
    fn cancel(&mut self, token: Token);

    /// How many requests may still touch memory.
    fn in_flight(&self) -> usize;

    /// Whether what is in flight may end so soon that it pays to poll for it a while before
    /// going to sleep. A slow device's completions gather meanwhile, and cost less together.
    /// Asked now and then, at `now_ns` of the core's clock, while the reactor has nothing to do.
    fn is_worth_polling(&self, now_ns: u64) -> bool {
        let _ = now_ns;
        true
    }

    /// Asked when the reactor has nothing to do: may it sleep, and what wakes it? A queue that
    /// gives a descriptor has looked for completions after the last moment at which one would
    /// not make it readable.
    fn sleep(&mut self) -> Sleep<'_>;

    /// Blocks in the reactor's stead, where the queue can wait for its completions at less than
    /// its descriptor's cost: until there is news, or `event` turns readable, or the time is up;
    /// sooner is no harm. Asked right after [`sleep`](Queue::sleep) gave a [`Sleep::Fd`] that is the
    /// only one to watch. `false`, at once, where it cannot.
    fn wait(&mut self, event: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
        let _ = (event, timeout);
        false
    }

    /// Stops for good, as fast as the device allows: after `true`, nothing of it touches
    /// memory any more. Called again and again until then; `poll` goes on in between.
    fn quiesce(&mut self, pass: &mut Pass) -> bool;
}

/// One request as a leaf sees it: within its limits, and borrowed for the call. The
/// memory that `data` names stays live until the token is done.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Names the request in its completion.
    pub token: Token,
    /// What to do.
    pub kind: OpKind,
    /// How to do it.
    pub flags: OpFlags,
    /// The first byte.
    pub offset: u64,
    /// The length in bytes; for kinds with data, that of `data`.
    pub len: u64,
    /// The memory, empty for kinds without data.
    pub data: View<'a>,
}

/// Names a request between the engine and a leaf. A leaf stores it and gives it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Token(pub u64);

/// The leaf's queue is full: the engine keeps the request and submits it again, in order,
/// once something has completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy;

/// Whether, and how, a reactor may sleep.
#[derive(Clone, Copy, Debug)]
pub enum Sleep<'a> {
    /// Must be polled.
    Never,
    /// Nothing is outstanding, or whoever has news wakes the core itself.
    Woken,
    /// This descriptor turns readable when there is news.
    Fd(BorrowedFd<'a>),
    /// Must be polled at this time, in ns of the core's clock.
    Until(u64),
    /// Either, whichever comes first.
    FdUntil(BorrowedFd<'a>, u64),
}

/// One turn of the reactor as the leaves see it: the time, and where completions go.
pub struct Pass {
    time: Rc<Time>,
    pub(crate) done: Vec<(Token, Result<(), Fault>)>,
}

impl Pass {
    /// A pass for a queue without an engine, with room for `capacity` completions between
    /// two drains. Its time is what [`begin`](Self::begin) says.
    pub fn new(capacity: usize) -> Self {
        let clock = Clock::Simulated(SimulatedClock::new());
        Self::with_time(Rc::new(Time::new(clock)), capacity)
    }

    pub(crate) fn with_time(time: Rc<Time>, capacity: usize) -> Self {
        Self { time, done: Vec::with_capacity(capacity) }
    }

    /// Begins a turn at `now_ns`.
    pub fn begin(&mut self, now_ns: u64) {
        self.time.begin_turn(Some(now_ns));
    }

    /// The time of this turn in ns of the core's clock: one reading for all.
    #[inline]
    pub fn now(&self) -> u64 {
        self.time.turn_now()
    }

    /// Completes a request.
    #[inline]
    pub fn done(&mut self, token: Token, result: Result<(), Fault>) {
        self.done.push((token, result));
    }

    /// Whether a request that was submitted just now is the only one that is over, and well. It is
    /// then known, and no completion any more.
    #[inline(always)]
    pub(crate) fn took_no_time(&mut self, token: Token) -> bool {
        let is_over = matches!(self.done[..], [(done, Ok(()))] if done == token);
        if is_over {
            self.done.clear();
        }
        is_over
    }

    /// The completions so far, taken out; for tests of a queue without an engine.
    pub fn drain(&mut self) -> impl Iterator<Item = (Token, Result<(), Fault>)> + '_ {
        self.done.drain(..)
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("time", &self.time).field("done", &self.done.len()).finish()
    }
}
