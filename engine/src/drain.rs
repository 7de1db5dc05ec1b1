//! Drained sections: for as long as one lasts, nothing is on its way through a node.
//!
//! A drain goes in steps, each of which all cores acknowledge before the next begins. First those
//! who make requests of their own ([`DrainedSource`]) come to rest, with all I/O going on. Then
//! each core keeps new operations of the users above in their slots, and counts down what it has
//! under way. Operations under way never wait for one that is kept, so drains that cross do not
//! wait for each other either.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::node::is_among;
use crate::{Core, Error, ErrorKind, JoinHandle, Node};

/// Turns after which what is under way is looked at less often.
const EAGER_TURNS: u32 = 64;
/// How often, from then on.
const RETRY: Duration = Duration::from_micros(20);

/// What is drained.
#[derive(Clone, Debug)]
pub enum Scope {
    /// All nodes.
    Everything,
    /// These nodes: whatever goes through one of them, from above or from its own users.
    Nodes(Vec<Arc<Node>>),
    /// These nodes and all that they stand on, now and after changes of the graph: also what other
    /// users do to those.
    Subtrees(Vec<Arc<Node>>),
}

impl Scope {
    /// Whether what a user of this node does is drained.
    pub(crate) fn touches(&self, user: &Arc<Node>) -> bool {
        let meets = |nodes: &[Arc<Node>]| user.subtree().iter().any(|node| is_among(nodes, node));
        match self {
            Self::Everything => true,
            Self::Nodes(nodes) => meets(nodes),
            Self::Subtrees(tops) => tops.iter().any(|top| meets(&top.subtree())),
        }
    }
}

/// Who makes requests of its own on a core, beyond the operations of its channels: a job, a
/// filter with a timer, an export. It is told when a node that it uses is to be drained.
pub trait DrainedSource {
    /// From now on it begins nothing new. What it has begun it brings to an end; its operations
    /// are still carried out.
    fn drained_begin(&self);

    /// Whether something that it had begun is not at its end yet. Asked again and again until it
    /// says no.
    fn drained_poll(&self) -> bool;

    /// It may go on.
    fn drained_end(&self);
}

/// The sources of one core.
#[derive(Default)]
pub(crate) struct Sources {
    list: RefCell<Vec<Registered>>,
    next: Cell<u64>,
}

struct Registered {
    id: u64,
    node: Arc<Node>,
    source: Rc<dyn DrainedSource>,
    is_drained: bool,
}

/// Registers a [`DrainedSource`] for as long as it lives.
pub struct SourceGuard {
    core: Core,
    id: u64,
}

impl Drop for SourceGuard {
    fn drop(&mut self) {
        let mut list = self.core.0.sources.list.borrow_mut();
        let source = list.extract_if(.., |known| known.id == self.id).next();
        drop(list);
        drop(source);
    }
}

/// Names a drain in its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DrainId(usize, u64);

/// How far a drain has come on a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Nothing is kept back, whatever else the drain stands for.
    Open,
    /// Sources come to rest.
    Resting,
    /// Operations of users are kept in their slots; where everything is drained, those go on
    /// that serve others, who may be users on this engine.
    Parking,
    /// All are.
    Still,
}

/// A drain as one core knows it.
pub(crate) struct Drained {
    pub id: DrainId,
    pub scope: Scope,
    pub stage: Stage,
    /// Whether no node is opened meanwhile.
    pub holds_opens: bool,
}

impl Core {
    /// Begins a drained section: when it returns, nothing is on its way through the nodes on any
    /// core, and nothing will be until the [`Drain`] ends. Operations that are submitted meanwhile
    /// wait in their slots, and go on in order. Sections may overlap and be nested; an operation
    /// goes on when the last has ended.
    ///
    /// Who is in the section must not wait for an operation of its own on those nodes: it waits
    /// for the section's end. An operation that was submitted before and is still under way is no
    /// hindrance. With a table full of operations that wait, other users of the core wait for a
    /// slot; a channel [opened to serve](Core::open_to_serve) has a reserve.
    ///
    /// # Errors
    /// A core has ended, or has no room for a task. Nothing is drained then.
    pub async fn drain(&self, scope: Scope) -> Result<Drain, Error> {
        let drain = Drain::new(self, scope).await?;
        drain.announce(false).await?;
        drain.settle().await?;
        Ok(drain)
    }

    /// Whether operations of a user of this node would wait on this core: a drained section has
    /// begun.
    pub fn is_drained(&self, node: &Arc<Node>) -> bool {
        self.0.io.borrow().drains.iter().any(|drain| drain.scope.touches(node))
    }

    /// Tells a source of drains of the node that it uses, until the guard is dropped. If the node
    /// is drained already, it is told at once.
    #[must_use = "it is told of nothing any more when the guard is dropped"]
    pub fn add_drained_source(
        &self,
        node: &Arc<Node>,
        source: Rc<dyn DrainedSource>,
    ) -> SourceGuard {
        let sources = &self.0.sources;
        let id = sources.next.replace(sources.next.get() + 1);
        let (node, is_drained) = (node.clone(), false);
        sources.list.borrow_mut().push(Registered { id, node, source, is_drained });
        self.follow_drains();
        SourceGuard { core: self.clone(), id }
    }

    /// Has users and sources of this core do as its drains say.
    pub(crate) fn follow_drains(&self) {
        self.0.io.borrow_mut().follow_drains();
        let mut told = Vec::new();
        let io = self.0.io.borrow();
        for known in self.0.sources.list.borrow_mut().iter_mut() {
            let mut drains = io.drains.iter().filter(|drain| drain.stage >= Stage::Resting);
            let is_drained = drains.any(|drain| drain.scope.touches(&known.node));
            if std::mem::replace(&mut known.is_drained, is_drained) != is_drained {
                told.push((known.source.clone(), is_drained));
            }
        }
        drop(io);
        for (source, is_drained) in told {
            if is_drained { source.drained_begin() } else { source.drained_end() }
        }
    }

    fn begin_drain(&self, drain: Drained) {
        self.0.io.borrow_mut().drains.push(drain);
        self.follow_drains();
    }

    fn set_stage(&self, id: DrainId, stage: Stage) {
        let mut io = self.0.io.borrow_mut();
        for drain in io.drains.iter_mut().filter(|drain| drain.id == id) {
            drain.stage = stage;
        }
        drop(io);
        self.follow_drains();
    }

    fn end_drain(&self, id: DrainId) {
        self.0.io.borrow_mut().drains.retain(|drain| drain.id != id);
        self.follow_drains();
    }

    /// Whether nothing that the drain waits for at its stage is under way on this core.
    fn is_at_rest(&self, id: DrainId) -> bool {
        let io = self.0.io.borrow();
        let Some(drain) = io.drains.iter().find(|drain| drain.id == id) else { return true };
        if drain.stage >= Stage::Parking {
            return io.is_at_rest(drain);
        }
        let list = self.0.sources.list.borrow();
        let touched = list.iter().filter(|known| drain.scope.touches(&known.node));
        let sources: Vec<_> = touched.map(|known| known.source.clone()).collect();
        drop((io, list));
        !sources.iter().any(|source| source.drained_poll())
    }

    async fn rest(self, id: DrainId) {
        let mut turns = 0;
        while !self.is_at_rest(id) {
            turns += 1;
            if turns < EAGER_TURNS { self.yield_now().await } else { self.sleep(RETRY).await }
        }
    }
}

/// A drained section. It ends with [`end`](Drain::end); dropped, it ends as well, but nobody hears
/// when.
#[must_use = "the section ends when this is dropped"]
pub struct Drain {
    core: Core,
    id: DrainId,
    scope: Scope,
    signal: Rc<Signal>,
    /// A task that waits to end the section: so this needs no room when it comes to that.
    ender: Option<JoinHandle<()>>,
}

impl Drain {
    pub(crate) async fn new(core: &Core, scope: Scope) -> Result<Self, Error> {
        let number = core.0.next_drain.replace(core.0.next_drain.get() + 1);
        let (id, signal) = (DrainId(core.id(), number), Rc::new(Signal::default()));
        let (raised, there) = (signal.clone(), core.clone());
        let ender = core.spawn(async move {
            raised.wait().await;
            for core in 0..there.count() {
                // A core that has ended keeps nothing back.
                let _ = there.tell(core, move |core| core.end_drain(id)).await;
            }
        });
        if ender.is_finished() {
            // It was given no room.
            ender.await?;
            return Err(Error::new(ErrorKind::Failed, "the core ended"));
        }
        Ok(Self { core: core.clone(), id, scope, signal, ender: Some(ender) })
    }

    /// Lets what was kept back go on, and waits until all cores have done so.
    pub async fn end(mut self) {
        self.signal.raise();
        if let Some(ender) = self.ender.take() {
            let _ = ender.await;
        }
    }

    /// Makes the drain known to all cores, and waits until sources are at rest.
    pub(crate) async fn announce(&self, holds_opens: bool) -> Result<(), Error> {
        for core in 0..self.core.count() {
            let (id, scope, stage) = (self.id, self.scope.clone(), Stage::Resting);
            let drain = Drained { id, scope, stage, holds_opens };
            self.core.tell(core, move |core| core.begin_drain(drain)).await?;
        }
        self.rest().await
    }

    /// Waits until nothing is on its way.
    pub(crate) async fn settle(&self) -> Result<(), Error> {
        self.go_to(Stage::Parking).await?;
        self.rest().await?;
        if matches!(self.scope, Scope::Everything) {
            self.go_to(Stage::Still).await?;
            self.rest().await?;
        }
        Ok(())
    }

    /// Brings the drain to a stage on all cores.
    pub(crate) async fn go_to(&self, stage: Stage) -> Result<(), Error> {
        let mut outcome = Ok(());
        for core in 0..self.core.count() {
            let id = self.id;
            outcome =
                outcome.and(self.core.tell(core, move |core| core.set_stage(id, stage)).await);
        }
        outcome
    }

    async fn rest(&self) -> Result<(), Error> {
        for core in 0..self.core.count() {
            let id = self.id;
            self.core.call(core, move |core| core.rest(id)).await?;
        }
        Ok(())
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.signal.raise();
    }
}

/// Raised once, and waited for by one task.
#[derive(Default)]
struct Signal {
    is_raised: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    fn raise(&self) {
        self.is_raised.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn wait(&self) {
        poll_fn(|context| {
            if self.is_raised.get() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}
