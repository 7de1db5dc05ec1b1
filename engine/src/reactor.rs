//! The reactor: one core's loop, run to completion.

use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::clock::{Clock, ClockSource, Time};
use crate::core::{Core, CoreInner};
use crate::io::Io;
use crate::remote::Message;
use crate::shared::EngineShared;
use crate::task::Tasks;
use crate::watched::Watched;
use crate::{CoreWaker, Error, Sleep};
use oxblock_mem::{Arena, ArenaOptions, Memory, spsc};

/// How long the devices get to stop when an engine ends with I/O in flight.
const STOP_DEVICES: Duration = Duration::from_secs(5);
/// Empty turns of which one looks at the clock.
const TURNS_PER_READING: u32 = 16;
/// Slots of a core unless asked for otherwise.
const DEFAULT_SLOTS: usize = 1024;
/// The engine's arena unless asked for otherwise, in bytes.
const DEFAULT_ARENA: usize = 32 << 20;

/// What a reactor does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollMode {
    /// Keeps polling: the shortest latency, a whole core.
    Pure,
    /// Polls on for this long, then sleeps until it is woken; at once where all that is in
    /// flight is too slow to be polled for ([`Queue::is_worth_polling`](crate::Queue)).
    Adaptive {
        /// How long to poll on, in µs.
        spin_us: u32,
    },
}

impl Default for PollMode {
    fn default() -> Self {
        Self::Adaptive { spin_us: 100 }
    }
}

/// How a reactor, or an engine's reactors, are set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Operations in flight on each core.
    pub slots: usize,
    /// What to do when there is nothing to do.
    pub poll_mode: PollMode,
    /// Where time comes from.
    pub clock: ClockSource,
    /// Where random numbers come from; None takes the system's.
    pub seed: Option<u64>,
    /// The engine's memory for devices.
    pub arena: ArenaOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            slots: DEFAULT_SLOTS,
            poll_mode: PollMode::default(),
            clock: ClockSource::default(),
            seed: None,
            arena: ArenaOptions { size: DEFAULT_ARENA, ..ArenaOptions::default() },
        }
    }
}

/// What all reactors of an engine are made from.
pub(crate) struct Plan {
    pub options: Options,
    pub shared: Arc<EngineShared>,
    pub memory: Memory,
    pub arena: Arena,
    pub start: Instant,
    pub seed: u64,
}

impl Plan {
    pub fn new(options: Options, cores: usize) -> Result<Self, Error> {
        let memory = Memory::new();
        let arena = memory.add_arena(&options.arena)?;
        let seed = options.seed.unwrap_or_else(system_seed);
        let shared = EngineShared::new(cores)?;
        Ok(Self { options, shared, memory, arena, start: Instant::now(), seed })
    }
}

fn system_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// The ends of the message rings that one core holds.
#[derive(Default)]
pub(crate) struct Rings {
    pub to: Vec<Option<spsc::Producer<Message>>>,
    pub from: Vec<spsc::Consumer<Message>>,
}

/// One core's loop. An [`Engine`](crate::Engine) runs one on each of its threads; a
/// program with an event loop of its own makes one and calls [`Reactor::poll`].
pub struct Reactor {
    core: Core,
    poll_mode: PollMode,
    /// Since when there was nothing to do, in ns.
    idle_since_ns: Cell<Option<u64>>,
    /// More reactors than processors: give others a turn when idle.
    pub(crate) yields: bool,
    turns: Cell<u32>,
    ended: Cell<bool>,
}

impl Reactor {
    /// A reactor by itself, for the thread that calls.
    ///
    /// # Errors
    /// No memory, or no eventfd.
    pub fn new(options: Options) -> Result<Self, Error> {
        let plan = Plan::new(options, 1)?;
        Ok(Self::with_plan(&plan, 0, Rings::default()))
    }

    pub(crate) fn with_plan(plan: &Plan, id: usize, rings: Rings) -> Self {
        let waker = CoreWaker(plan.shared.mailboxes[id].clone());
        let time = Rc::new(Time::new(Clock::new(&plan.options.clock, plan.start)));
        let inner = CoreInner {
            id,
            time: time.clone(),
            memory: plan.memory.clone(),
            arena: plan.arena.clone(),
            io: Io::new(time, plan.options.slots).into(),
            tasks: Tasks::new(waker),
            timers: Default::default(),
            pollers: Default::default(),
            shared: plan.shared.clone(),
            outboxes: rings.to.into_iter().map(Into::into).collect(),
            inboxes: rings.from.into(),
            opening: Default::default(),
            new_queues: Default::default(),
            sources: Default::default(),
            next_drain: Cell::new(0),
            sleeps: Cell::new(0),
            yields: Cell::new(0),
            random: Cell::new(plan.seed ^ (id as u64).wrapping_mul(0xa076_1d64_78bd_642f)),
        };
        Self {
            core: Core(inner.into()),
            poll_mode: plan.options.poll_mode,
            idle_since_ns: Cell::new(None),
            yields: false,
            turns: Cell::new(0),
            ended: Cell::new(false),
        }
    }

    /// The handle for everything that runs on this reactor.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// One turn: completions, pollers, doorbells, messages, timers, tasks. Returns how
    /// much there was to do.
    #[inline]
    pub fn poll(&self) -> usize {
        let inner = &*self.core.0;
        inner.time.begin_turn(None);
        let mut work = inner.io.borrow_mut().poll();
        work += inner.pollers.run(&self.core);
        inner.io.borrow_mut().kick();
        // What follows is rarer, and may take its time while the devices work.
        work += self.take_messages();
        work += self.fire_timers();
        if inner.tasks.has_ready() {
            work += inner.tasks.run();
            inner.io.borrow_mut().kick();
        }
        work
    }

    /// One turn. Returns how much there was to do beside tasks that only gave others theirs.
    pub(crate) fn poll_for_news(&self) -> usize {
        let yields = &self.core.0.yields;
        let before = yields.get();
        self.poll().saturating_sub((yields.get() - before) as usize)
    }

    /// Fires timers in turns that know the time anyway, and in every few others.
    fn fire_timers(&self) -> usize {
        let (inner, turns) = (&*self.core.0, self.turns.get().wrapping_add(1));
        self.turns.set(turns);
        let known = inner.time.turn_reading().is_some() || inner.time.is_simulated();
        if inner.timers.is_empty() || !(known || turns.is_multiple_of(TURNS_PER_READING)) {
            return 0;
        }
        inner.timers.fire(inner.time.turn_now())
    }

    fn take_messages(&self) -> usize {
        let inner = &*self.core.0;
        let mut count = 0;
        while let Some(message) = inner.mailbox().pop() {
            message(&self.core);
            count += 1;
        }
        let rings = inner.inboxes.borrow().len();
        for index in 0..rings {
            while let Some(message) = pop_ring(inner, index) {
                message(&self.core);
                count += 1;
            }
        }
        count
    }

    /// Turns until the future is done, sleeping in between as the options say.
    ///
    /// # Errors
    /// The core has too many tasks, or the engine failed.
    pub fn block_on<F: Future + 'static>(&self, future: F) -> Result<F::Output, Error> {
        let mut handle = Box::pin(self.core.spawn(future));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            if let std::task::Poll::Ready(result) = handle.as_mut().poll(&mut context) {
                return result;
            }
            self.core.0.shared.failure()?;
            self.turn();
        }
    }

    /// One turn, and sleep if there is nothing to do.
    pub fn turn(&self) {
        if self.poll() > 0 {
            self.idle_since_ns.set(None);
            return;
        }
        let PollMode::Adaptive { spin_us } = self.poll_mode else {
            return self.relax();
        };
        if !self.turns.get().is_multiple_of(TURNS_PER_READING) {
            return self.relax();
        }
        let now_ns = self.core.pass_now();
        let since_ns = self.idle_since_ns.get().unwrap_or(now_ns);
        self.idle_since_ns.set(Some(since_ns));
        let is_over = now_ns - since_ns >= u64::from(spin_us) * 1000
            || !self.core.0.io.borrow().is_worth_polling(now_ns);
        if is_over && !self.core.0.time.is_simulated() {
            self.try_sleep();
        } else {
            self.relax();
        }
    }

    fn relax(&self) {
        if self.yields {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }

    /// Sleeps, unless something must be polled or has turned up meanwhile.
    fn try_sleep(&self) {
        let inner = &*self.core.0;
        let mailbox = inner.mailbox();
        mailbox.announce_sleep();
        // What was published before the announcement is found by this turn; whatever
        // comes after it wakes the event.
        if self.poll() > 0 || inner.shared.is_exiting() || inner.shared.has_failed() {
            mailbox.awake();
            return self.idle_since_ns.set(None);
        }
        if self.sleep() {
            inner.sleeps.set(inner.sleeps.get() + 1);
        } else {
            // Something must be polled: look again for sleep only after another spin.
            self.idle_since_ns.set(Some(self.core.now()));
            self.relax();
        }
        mailbox.awake();
    }

    /// Blocks until there is news. False if something must be polled.
    fn sleep(&self) -> bool {
        let inner = &*self.core.0;
        let (mut io, mut pollers) = (inner.io.borrow_mut(), inner.pollers.borrow_mut());
        let event = inner.mailbox().event();
        let mut may_wait = true;
        loop {
            let mut until_ns = inner.timers.next().unwrap_or(u64::MAX);
            let mut watched = Watched::new(event);
            let mut waiter = None;
            let leaves = io.sleeps().enumerate().map(|(at, sleep)| (Some(at), sleep));
            let others = pollers.iter_mut().map(|(_, poller)| (None, poller.sleep()));
            for (leaf, sleep) in others.chain(leaves) {
                match sleep {
                    Sleep::Woken => {}
                    Sleep::Never => return false,
                    Sleep::Until(at_ns) => until_ns = until_ns.min(at_ns),
                    Sleep::Fd(fd) => {
                        waiter = leaf;
                        watched.add(fd);
                    }
                    Sleep::FdUntil(fd, at_ns) => {
                        until_ns = until_ns.min(at_ns);
                        watched.add(fd);
                    }
                }
            }
            let timeout = (until_ns < u64::MAX)
                .then(|| Duration::from_nanos(until_ns.saturating_sub(inner.time.now())));
            let Some(leaf) = waiter.filter(|_| may_wait && watched.is_one()) else {
                watched.wait(timeout);
                return true;
            };
            drop(watched);
            if io.wait(leaf, event, timeout) {
                return true;
            }
            may_wait = false;
        }
    }

    /// What everything on this core says about sleep, its timers included.
    pub(crate) fn deadlines(&self, mut say: impl FnMut(Sleep<'_>)) {
        let inner = &*self.core.0;
        if let Some(at_ns) = inner.timers.next() {
            say(Sleep::Until(at_ns));
        }
        inner.pollers.borrow_mut().iter_mut().for_each(|(_, poller)| say(poller.sleep()));
        inner.io.borrow_mut().sleeps().for_each(say);
    }

    /// Runs what was registered with [`Core::at_shutdown`], closes the nodes, and ends.
    ///
    /// # Errors
    /// The first that a closer reported; the others run all the same.
    pub fn shutdown(self) -> Result<(), Error> {
        let shared = self.core.0.shared.clone();
        let outcome = shared.close_all(|closer| {
            let core = self.core.clone();
            self.block_on(async move { (closer.close)(core).await })
        });
        self.end();
        outcome
    }

    /// An engine's thread: turns until the engine ends or fails.
    pub(crate) fn run(&self) {
        let shared = &self.core.0.shared;
        while !shared.is_exiting() && !shared.has_failed() {
            self.turn();
        }
    }

    /// Stops all devices, waits for the other cores to do so, and ends. Nothing is freed
    /// that a device may still write.
    pub(crate) fn end(&self) {
        if self.ended.replace(true) {
            return;
        }
        let inner = &*self.core.0;
        self.stop_devices();
        inner.mailbox().close();
        inner.io.borrow_mut().end_all();
        inner.tasks.clear();
        inner.pollers.clear();
        inner.timers.clear();
        inner.inboxes.borrow_mut().clear();
        for outbox in &inner.outboxes {
            outbox.take();
        }
    }

    /// Stops the devices of this core, and keeps its pollers going until no other core has
    /// one at work: a controller in this process may be what that core waits for.
    fn stop_devices(&self) {
        let inner = &*self.core.0;
        let cores = inner.shared.mailboxes.len();
        let begun = Instant::now();
        let (mut counted, mut pollers_work) = (false, true);
        while begun.elapsed() < STOP_DEVICES {
            inner.time.begin_turn(None);
            let Ok(mut io) = inner.io.try_borrow_mut() else { return };
            io.poll();
            if io.quiesce_all() && !counted {
                counted = true;
                inner.shared.quiet_cores.fetch_add(1, Ordering::SeqCst);
            }
            drop(io);
            let others_quiet = inner.shared.quiet_cores.load(Ordering::SeqCst) >= cores;
            if counted && (others_quiet || inner.time.is_simulated()) {
                return;
            }
            if pollers_work {
                let turn = AssertUnwindSafe(|| inner.pollers.run(&self.core));
                pollers_work = catch_unwind(turn).is_ok();
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.end();
    }
}

fn pop_ring(inner: &CoreInner, index: usize) -> Option<Message> {
    inner.inboxes.borrow_mut()[index].pop()
}
