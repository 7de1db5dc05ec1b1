//! A whole engine on one thread, in simulated time, in an order that follows from a seed.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::clock::{ClockSource, SimulatedClock};
use crate::core::Core;
use crate::engine::rings;
use crate::reactor::{Options, Plan, Reactor};
use crate::{Error, ErrorKind, Sleep};

/// The most that one turn takes, in simulated ns.
const TURN_NS: u64 = 200;
/// Turns without any work after which time jumps to the next deadline, for each core.
const IDLE_TURNS: usize = 4;
/// The furthest that time jumps while something must be polled, in ns.
const SPIN_NS: u64 = 10_000_000;

/// Reactors that take turns on the calling thread. Which one is next, and how long its
/// turn takes, follow from the seed, so that a run can be had again.
///
/// Everything that the engine does is simulated with it, as long as the leaves are:
/// null, memory and the software NVMe controller are, files are not.
pub struct Simulation {
    reactors: Vec<Reactor>,
    clock: SimulatedClock,
    random: u64,
    /// How often tasks had yielded when time jumped last.
    yields: u64,
}

impl Simulation {
    /// An engine of `cores` reactors whose every choice follows from `seed`.
    ///
    /// # Errors
    /// No memory, or no eventfd.
    pub fn new(cores: usize, seed: u64, options: Options) -> Result<Self, Error> {
        let clock = SimulatedClock::new();
        let options =
            Options { clock: ClockSource::Simulated(clock.clone()), seed: Some(seed), ..options };
        let plan = Arc::new(Plan::new(options, cores.max(1))?);
        let reactors = rings(cores.max(1))
            .into_iter()
            .enumerate()
            .map(|(id, rings)| Reactor::with_plan(&plan, id, rings))
            .collect();
        Ok(Self { reactors, clock, random: seed | 1, yields: 0 })
    }

    /// The time.
    pub fn clock(&self) -> &SimulatedClock {
        &self.clock
    }

    /// The handle of a core.
    pub fn core(&self, id: usize) -> &Core {
        self.reactors[id].core()
    }

    /// Runs a future on a core until it is done.
    ///
    /// # Errors
    /// Nothing is left to do, no deadline is ahead, and the future still waits: a
    /// deadlock.
    pub fn run<T, F, M>(&mut self, core: usize, make: M) -> Result<T, Error>
    where
        T: 'static,
        F: Future<Output = T> + 'static,
        M: FnOnce(Core) -> F,
    {
        let core = self.reactors[core].core();
        let mut handle = Box::pin(core.spawn(make(core.clone())));
        let mut context = Context::from_waker(Waker::noop());
        let mut idle = 0;
        loop {
            if let Poll::Ready(result) = handle.as_mut().poll(&mut context) {
                return result;
            }
            if self.step() > 0 {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle > IDLE_TURNS * self.reactors.len() && self.all_idle() {
                self.jump()?;
                idle = 0;
            }
        }
    }

    /// Runs what was registered with [`Core::at_shutdown`] and closes the nodes, the last
    /// opened first.
    ///
    /// # Errors
    /// The first that something reported; the rest is closed all the same.
    pub fn shutdown(mut self) -> Result<(), Error> {
        let shared = self.core(0).0.shared.clone();
        shared.close_all(|closer| self.run(closer.core, move |core| (closer.close)(core)))
    }

    /// One turn of one reactor. Returns how much there was to do; a task that does nothing but
    /// yield has nothing to do.
    pub fn step(&mut self) -> usize {
        let next = self.next_random();
        self.clock.advance(1 + next % TURN_NS);
        let reactor = (next >> 32) as usize % self.reactors.len();
        self.reactors[reactor].poll_for_news()
    }

    /// A turn of each, to be sure that none was left out by chance.
    fn all_idle(&self) -> bool {
        self.reactors.iter().map(Reactor::poll_for_news).sum::<usize>() == 0
    }

    /// Moves the time to the next deadline.
    fn jump(&mut self) -> Result<(), Error> {
        let mut next = None;
        let mut spinning = false;
        for reactor in &self.reactors {
            reactor.deadlines(|sleep| match sleep {
                Sleep::Until(at_ns) | Sleep::FdUntil(_, at_ns) => {
                    next = Some(next.map_or(at_ns, |n: u64| n.min(at_ns)))
                }
                Sleep::Never => spinning = true,
                Sleep::Woken | Sleep::Fd(_) => {}
            });
        }
        let now_ns = self.clock.now();
        // Who yields looks again, and may see something in a later turn.
        let yields = self.reactors.iter().map(|reactor| reactor.core().0.yields.get()).sum();
        let yielding = std::mem::replace(&mut self.yields, yields) != yields;
        match next {
            Some(at_ns) if spinning => {
                self.clock.advance(at_ns.saturating_sub(now_ns).min(SPIN_NS));
            }
            Some(at_ns) => self.clock.advance(at_ns.saturating_sub(now_ns)),
            None if spinning || yielding => self.clock.advance(TURN_NS),
            None => {
                let text = format!("deadlock at {now_ns} ns: nothing to do and no timer set");
                return Err(Error::new(ErrorKind::TimedOut, text));
            }
        }
        Ok(())
    }

    fn next_random(&mut self) -> u64 {
        // xorshift64* (Marsaglia; Vigna).
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
