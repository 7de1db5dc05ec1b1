//! The handle of a core: what tasks, pollers and drivers on it can do.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use oxblock_mem::{Arena, Memory, Region, spsc};

use crate::channel::Channel;
use crate::clock::Time;
use crate::drain::Sources;
use crate::io::{Entry, Io, Standing};
use crate::poller::{Poller, PollerId, Pollers};
use crate::remote::{Mailbox, Message, remote_call, remote_task};
use crate::shared::{Closer, EngineShared};
use crate::stats::CoreStats;
use crate::task::{JoinHandle, Tasks};
use crate::timer::{SleepUntil, Timers};
use crate::{
    CoreWaker, Driver, Error, ErrorKind, Event, EventKind, Events, LocalFuture, Node, Queue, Remote,
};

/// How often memory that is to be given back is looked at.
const UNREGISTER_RETRY: Duration = Duration::from_micros(50);
/// How often a change of the graph that an opening waits for is looked at.
const OPEN_RETRY: Duration = Duration::from_micros(20);

/// The handle of the reactor that the caller runs on. Cheap to clone; stays on its thread.
#[derive(Clone)]
pub struct Core(pub(crate) Rc<CoreInner>);

/// A queue of a driver that is to take another's place.
pub(crate) struct NewQueue {
    pub driver: Arc<dyn Driver>,
    pub queue: Box<dyn Queue>,
}

pub(crate) struct CoreInner {
    pub id: usize,
    pub time: Rc<Time>,
    pub memory: Memory,
    pub arena: Arena,
    pub io: RefCell<Io>,
    pub tasks: Tasks,
    pub timers: Timers,
    pub pollers: Pollers,
    pub shared: Arc<EngineShared>,
    /// Rings to the other cores, by their number; none to itself.
    pub outboxes: Vec<RefCell<Option<spsc::Producer<Message>>>>,
    /// Rings from the other cores.
    pub inboxes: RefCell<Vec<spsc::Consumer<Message>>>,
    pub random: Cell<u64>,
    /// How often the reactor slept.
    pub sleeps: Cell<u64>,
    /// How often a task let others have a turn.
    pub yields: Cell<u64>,
    /// Nodes whose queue is being opened.
    pub opening: RefCell<Vec<Arc<Node>>>,
    /// Queues of drivers that are to be their nodes'.
    pub new_queues: RefCell<Vec<NewQueue>>,
    /// What makes requests of its own, and keeps still where a node is drained.
    pub sources: Sources,
    /// The number of the next drain that is begun here.
    pub next_drain: Cell<u64>,
}

impl CoreInner {
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.shared.mailboxes[self.id]
    }
}

impl Core {
    /// The number of this core in its engine, from 0.
    pub fn id(&self) -> usize {
        self.0.id
    }

    /// How many cores the engine has.
    pub fn count(&self) -> usize {
        self.0.shared.mailboxes.len()
    }

    /// The time in ns since the engine began: a fresh reading of the clock.
    #[inline]
    pub fn now(&self) -> u64 {
        self.0.time.now()
    }

    /// The time of the current turn of the reactor: one reading, taken when it is first
    /// asked for in a turn.
    #[inline]
    pub fn pass_now(&self) -> u64 {
        self.0.time.turn_now()
    }

    /// Waits. Resolution is that of the reactor's turns.
    pub fn sleep(&self, time: Duration) -> SleepUntil {
        self.sleep_until(self.now().saturating_add(time.as_nanos() as u64))
    }

    /// Waits until a moment of this core's clock, in ns.
    pub fn sleep_until(&self, at_ns: u64) -> SleepUntil {
        SleepUntil::new(self.clone(), at_ns)
    }

    /// Lets everything else on this core have a turn.
    pub fn yield_now(&self) -> impl Future<Output = ()> + use<> {
        let core = self.clone();
        let mut yielded = false;
        std::future::poll_fn(move |context| {
            if std::mem::replace(&mut yielded, true) {
                return std::task::Poll::Ready(());
            }
            core.0.yields.set(core.0.yields.get() + 1);
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        })
    }

    /// Runs a future on this core. Dropping the handle lets it go on.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
    {
        let (handle, fulfil) = JoinHandle::new();
        let (handle, fulfil) = (handle, Rc::new(Cell::new(Some(fulfil))));
        let theirs = fulfil.clone();
        let task = Box::pin(async move {
            let output = future.await;
            if let Some(fulfil) = theirs.take() {
                fulfil(Ok(output));
            }
        });
        if let Err(error) = self.0.tasks.spawn(task)
            && let Some(fulfil) = fulfil.take()
        {
            fulfil(Err(error));
        }
        handle
    }

    /// Runs a future whose result travels by itself. Without room for it, it is dropped.
    pub(crate) fn spawn_detached(&self, future: impl Future<Output = ()> + 'static) {
        let _ = self.0.tasks.spawn(Box::pin(future));
    }

    /// Runs a future on another core, or this one, and gives its result. The message goes
    /// through the bounded ring between the two cores, and waits while that is full.
    pub async fn call<T, F, M>(&self, core: usize, make: M) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
        M: FnOnce(Core) -> F + Send + 'static,
    {
        let (handle, message) = remote_task(make);
        self.send(core, message).await;
        handle.await
    }

    /// Does something on another core, or this one, in its next turn and without a task, and
    /// gives the result. The core's I/O state is free to be borrowed.
    pub(crate) async fn tell<T: Send + 'static>(
        &self,
        core: usize,
        run: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (handle, message) = remote_call(run);
        self.send(core, message).await;
        handle.await
    }

    async fn send(&self, core: usize, mut message: Message) {
        if core == self.id() {
            return message(self);
        }
        loop {
            match self.push(core, message) {
                Ok(()) => break,
                Err(back) => message = back,
            }
            self.yield_now().await;
        }
        CoreWaker(self.0.shared.mailboxes[core].clone()).wake();
    }

    fn push(&self, core: usize, message: Message) -> Result<(), Message> {
        let Some(outbox) = self.0.outboxes.get(core) else {
            return Ok(());
        };
        match &mut *outbox.borrow_mut() {
            Some(ring) if !self.0.shared.mailboxes[core].is_closed() => ring.push(message),
            // Dropped, the message fulfils its handle with an error.
            _ => Ok(()),
        }
    }

    /// Adds work to every turn of this reactor.
    pub fn add_poller(&self, poller: Box<dyn Poller>) -> PollerId {
        self.0.pollers.add(poller)
    }

    /// Takes a poller away, at the end of the current turn at the latest.
    pub fn remove_poller(&self, id: PollerId) {
        self.0.pollers.remove(id);
    }

    /// All memory that the engine's devices may reach.
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// The engine's arena.
    pub fn arena(&self) -> &Arena {
        &self.0.arena
    }

    /// Takes memory back that was registered with [`Memory::register`]: waits until no
    /// operation names it any more, and no device can reach it. Then it is its owner's
    /// again.
    ///
    /// It waits for as long as somebody holds a [`Buf`](oxblock_mem::Buf) of the region, or
    /// another handle of it.
    pub async fn unregister(&self, region: Region) {
        let mut region = region;
        while let Err(busy) = region.try_unregister() {
            region = busy;
            self.sleep(UNREGISTER_RETRY).await;
        }
    }

    /// A random number, from the engine's seed where it has one.
    pub fn random(&self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
        let state = self.0.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Sends work to a core from any thread. None if there is no such core.
    pub fn remote(&self, core: usize) -> Option<Remote> {
        self.0.shared.mailboxes.get(core).cloned().map(Remote)
    }

    /// Wakes this core from any thread.
    pub fn waker(&self) -> CoreWaker {
        CoreWaker(self.0.mailbox().clone())
    }

    /// What happens to devices and nodes from now on.
    pub fn events(&self) -> Events {
        self.0.shared.events.subscribe()
    }

    /// Tells those who subscribed to the engine's events of one: `subject` is the name of a node,
    /// or where a device is. Control plane.
    pub fn publish(&self, subject: &str, kind: EventKind, text: impl Into<String>) {
        let (at_ns, subject, text) = (self.now(), subject.into(), text.into());
        self.0.shared.events.publish(&Event { at_ns, subject, kind, text });
    }

    /// What drivers keep for all nodes of the engine: one value of each type, made when it is
    /// first asked for, and dropped after the cores.
    pub fn engine_wide<T: Default + std::any::Any + Send + Sync>(&self) -> Arc<T> {
        self.0.shared.value()
    }

    /// Opens a node for I/O from this core. The first channel opens the core's queue; all
    /// share it.
    ///
    /// # Errors
    /// What the driver says, with the node's name; or the engine is shutting down.
    pub async fn open(&self, node: &Arc<Node>) -> Result<Channel, Error> {
        self.open_as(node, false).await
    }

    /// Opens a node to serve I/O on it to others, such as the hosts of a software controller.
    /// Users of this very core may be among them, and wait with all their slots for what is
    /// served: this channel also has a reserve of slots and bounce buffers that they cannot
    /// take.
    ///
    /// # Errors
    /// As [`Core::open`].
    pub async fn open_to_serve(&self, node: &Arc<Node>) -> Result<Channel, Error> {
        self.open_as(node, true).await
    }

    async fn open_as(&self, node: &Arc<Node>, serves: bool) -> Result<Channel, Error> {
        loop {
            self.open_leaves(node).await?;
            // Where the graph is being changed, the leaves may be others afterwards.
            if !self.waits_for_change().await {
                break;
            }
        }
        let standing = if serves { Standing::Serving } else { Standing::User };
        self.channel(node, standing)
    }

    /// A channel on a node whose leaves are open on this core.
    pub(crate) fn channel(&self, node: &Arc<Node>, standing: Standing) -> Result<Channel, Error> {
        self.start_slow(node)?;
        let mut io = self.0.io.borrow_mut();
        let entry = if node.is_leaf() {
            io.leaf_of(node).map(Entry::Leaf)
        } else {
            io.route_to(node).map(Entry::Route)
        };
        let entry = entry.ok_or_else(|| {
            Error::new(ErrorKind::Gone, "a node beneath was closed").node(node.name())
        })?;
        let user = io.add_user(node, entry, standing);
        Ok(Channel::new(self.clone(), user))
    }

    /// Waits until no change of the graph is being made; whether there was one.
    async fn waits_for_change(&self) -> bool {
        let is_held = || self.0.io.borrow().drains.iter().any(|drain| drain.holds_opens);
        let has_waited = is_held();
        while is_held() {
            self.sleep(OPEN_RETRY).await;
        }
        has_waited
    }

    /// Opens this core's queues of all leaves beneath a node.
    fn open_leaves<'a>(&'a self, node: &'a Arc<Node>) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if node.is_leaf() {
                return self.open_leaf(node).await.map(|_| ());
            }
            self.refuse_if_withdrawn(node)?;
            for child in node.children().iter() {
                self.open_leaves(child).await?;
            }
            Ok(())
        })
    }

    fn refuse_if_withdrawn(&self, node: &Arc<Node>) -> Result<(), Error> {
        match node.withdrawn() {
            Some(fault) => Err(Error::from(fault).node(node.name())),
            None => Ok(()),
        }
    }

    /// Opens this core's queue of a leaf, or finds it.
    pub(crate) async fn open_leaf(&self, node: &Arc<Node>) -> Result<u16, Error> {
        loop {
            self.0.shared.refuse_if_ending()?;
            self.refuse_if_withdrawn(node)?;
            let known = self.0.io.borrow().leaf_of(node);
            if let Some(leaf) = known {
                return Ok(leaf);
            }
            // One task opens the queue; the others wait for it.
            let Some(_opening) = Opening::begin(self, node) else {
                self.yield_now().await;
                continue;
            };
            let driver = node.driver()?;
            let queue = driver.queue(self).await.map_err(|e| e.node(node.name()))?;
            // It was reopened meanwhile.
            if !Arc::ptr_eq(&driver, &node.driver()?) {
                continue;
            }
            return self.add_leaf(node, queue);
        }
    }

    fn add_leaf(&self, node: &Arc<Node>, queue: Box<dyn Queue>) -> Result<u16, Error> {
        let leaf = self.0.io.borrow_mut().add_leaf(node, queue, &self.0.arena)?;
        let node = node.clone();
        self.at_shutdown(move |core| Box::pin(async move { core.close(&node).await }));
        Ok(leaf)
    }

    /// Closes this core's queue of a node: what is in flight ends, later operations fail.
    ///
    /// # Errors
    /// The device would not let go of the memory of requests in flight; that memory is
    /// then never used again.
    pub async fn close(&self, node: &Arc<Node>) -> Result<(), Error> {
        self.close_within(node, crate::close::DRAIN).await
    }

    /// As [`close`](Core::close), with the time that what is in flight has to end by itself; then
    /// the device is told to let go of it.
    ///
    /// # Errors
    /// As [`close`](Core::close).
    pub async fn close_within(&self, node: &Arc<Node>, drain: Duration) -> Result<(), Error> {
        crate::close::close_leaf(self, node, drain).await
    }

    /// Registers what an orderly shutdown does on this core. The last registered runs
    /// first, over all cores of the engine, one at a time.
    pub fn at_shutdown<F>(&self, close: F)
    where
        F: FnOnce(Core) -> LocalFuture<'static, Result<(), Error>> + Send + 'static,
    {
        self.0.shared.add_closer(Closer { core: self.id(), close: Box::new(close) });
    }

    /// What the slot table holds and saw, and how often the reactor slept.
    pub fn stats(&self) -> CoreStats {
        CoreStats { sleeps: self.0.sleeps.get(), ..self.0.io.borrow().stats() }
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.0.timers
    }
}

/// A node whose queue is being opened on this core.
struct Opening<'a> {
    core: &'a Core,
    node: &'a Arc<Node>,
}

impl<'a> Opening<'a> {
    /// None if another task is at it already.
    fn begin(core: &'a Core, node: &'a Arc<Node>) -> Option<Self> {
        let mut opening = core.0.opening.borrow_mut();
        if opening.iter().any(|known| Arc::ptr_eq(known, node)) {
            return None;
        }
        opening.push(node.clone());
        Some(Self { core, node })
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.core.0.opening.borrow_mut().retain(|known| !Arc::ptr_eq(known, self.node));
    }
}
