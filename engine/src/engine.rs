//! The engine: reactors on threads of their own, one for each core.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use oxblock_mem::{Arena, Memory, spsc};

use crate::core::Core;
use crate::reactor::{Options, Plan, Reactor, Rings};
use crate::shared::EngineShared;
use crate::{Error, ErrorKind, Events, Remote};

/// Messages that a ring between two cores holds.
const RING_LEN: usize = 256;

/// Reactors on threads of their own. Several engines may live in one process; they share
/// nothing.
pub struct Engine {
    shared: Arc<EngineShared>,
    memory: Memory,
    arena: Arena,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts a reactor, pinned, on each of these processors. With more reactors than
    /// processors some share one, and give each other turns when idle.
    ///
    /// # Errors
    /// No memory, no eventfd, no thread, or an empty list.
    pub fn new(cpus: &[usize], options: Options) -> Result<Self, Error> {
        if cpus.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "an engine needs at least one processor"));
        }
        let known = core_affinity::get_core_ids().unwrap_or_default();
        let crowded = crowded(cpus);
        let plan = Arc::new(Plan::new(options, cpus.len())?);
        let (shared, memory) = (plan.shared.clone(), plan.memory.clone());
        let mut engine = Self { shared, memory, arena: plan.arena.clone(), threads: Vec::new() };
        for ((id, rings), &cpu) in rings(cpus.len()).into_iter().enumerate().zip(cpus) {
            let pin = known.iter().copied().find(|core| core.id == cpu);
            let plan = plan.clone();
            let thread = std::thread::Builder::new()
                .name(format!("oxblock-{id}"))
                .spawn(move || reactor_thread(&plan, id, rings, pin, crowded))
                .map_err(|e| Error::from_io("starting a reactor's thread", e))?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }

    /// Starts `count` reactors on the first processors that this process may use.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn with_cores(count: usize, options: Options) -> Result<Self, Error> {
        let known = core_affinity::get_core_ids().unwrap_or_default();
        let known: Vec<usize> = known.iter().map(|core| core.id).collect();
        let cpus: Vec<usize> =
            (0..count).map(|n| known.get(n % known.len().max(1)).copied().unwrap_or(0)).collect();
        Self::new(&cpus, options)
    }

    /// How many reactors there are.
    pub fn cores(&self) -> usize {
        self.shared.mailboxes.len()
    }

    /// All memory that the engine's devices may reach.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The engine's arena.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// What happens to devices and nodes from now on.
    pub fn events(&self) -> Events {
        self.shared.events.subscribe()
    }

    /// Sends work to a core. None if there is no such core.
    pub fn remote(&self, core: usize) -> Option<Remote> {
        self.shared.mailboxes.get(core).cloned().map(Remote)
    }

    /// Runs a future on a core and blocks the calling thread, which must not be one of
    /// the engine's, until it is done.
    ///
    /// # Errors
    /// There is no such core, or the engine failed or was shut down meanwhile.
    pub fn run<T, F, M>(&self, core: usize, make: M) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
        M: FnOnce(Core) -> F + Send + 'static,
    {
        let Some(remote) = self.remote(core) else {
            let text = format!("there is no core {core}; the engine has {}", self.cores());
            return Err(Error::new(ErrorKind::Invalid, text));
        };
        let result = remote.spawn(make).wait();
        result.map_err(|error| self.shared.failure().err().unwrap_or(error))
    }

    /// Whether the engine still works; the reason if not.
    ///
    /// # Errors
    /// What made it fail: a panic in a task or a poller.
    pub fn check(&self) -> Result<(), Error> {
        self.shared.failure()
    }

    /// Ends in good order: what was registered with [`Core::at_shutdown`] and the queues
    /// of open nodes close in the reverse order of their opening, each after its I/O in
    /// flight; then the threads end.
    ///
    /// # Errors
    /// The first that something reported; the rest is closed all the same.
    pub fn shutdown(mut self) -> Result<(), Error> {
        let outcome =
            self.shared.close_all(|closer| self.run(closer.core, move |core| (closer.close)(core)));
        let failure = self.join();
        failure.and(outcome)
    }

    fn join(&mut self) -> Result<(), Error> {
        self.shared.exit();
        for (id, thread) in self.threads.drain(..).enumerate() {
            // A task's panic was caught and told; this one came while the core ended.
            if let Err(panic) = thread.join() {
                self.shared.fail_by_panic(id, &*panic);
            }
        }
        self.shared.failure()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

fn reactor_thread(
    plan: &Plan,
    id: usize,
    rings: Rings,
    pin: Option<core_affinity::CoreId>,
    crowded: bool,
) {
    if let Some(pin) = pin {
        core_affinity::set_for_current(pin);
    }
    let mut reactor = Reactor::with_plan(plan, id, rings);
    reactor.yields = crowded;
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| reactor.run())) {
        plan.shared.fail_by_panic(id, &*panic);
    }
    reactor.end();
}

/// Whether two reactors share a processor.
fn crowded(cpus: &[usize]) -> bool {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let mut sorted = cpus.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.len() < cpus.len() || cpus.len() > available
}

/// A ring from each core to each other.
pub(crate) fn rings(cores: usize) -> Vec<Rings> {
    let mut all: Vec<Rings> = (0..cores).map(|_| Rings::default()).collect();
    for from in 0..cores {
        for to in 0..cores {
            if from == to {
                all[from].to.push(None);
                continue;
            }
            let (producer, consumer) = spsc::ring(RING_LEN);
            all[from].to.push(Some(producer));
            all[to].from.push(consumer);
        }
    }
    all
}
