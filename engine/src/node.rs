//! Nodes: a named driver and its limits, shared by all cores.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::io::Halt;
use crate::{Body, Counter, Driver, Error, ErrorKind, Fault, Format, Limits};

/// A named node of the graph. Cores open a [`Channel`](crate::Channel) on it to do I/O.
pub struct Node {
    name: Arc<str>,
    work: Work,
    restrictions: Mutex<Restrictions>,
    limits: Mutex<Arc<Limits>>,
    parents: Mutex<Vec<Weak<Node>>>,
    withdrawn: OnceLock<Refusal>,
    held: AtomicBool,
    inactive: AtomicBool,
}

/// What a node does not let through, whatever its driver can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restrictions {
    /// Writes are refused.
    pub read_only: bool,
    /// Discards do nothing, and zeroes that are written free no space.
    pub no_discard: bool,
    /// Flushes, and force unit access, do nothing.
    pub no_flush: bool,
}

impl Restrictions {
    /// What remains of the driver's limits.
    pub(crate) fn apply(self, limits: Limits) -> Limits {
        Limits {
            read_only: limits.read_only || self.read_only,
            max_discard: if self.no_discard { 0 } else { limits.max_discard },
            no_flush: self.no_flush,
            ..limits
        }
    }
}

enum Work {
    Leaf(Mutex<Arc<dyn Driver>>),
    Over(Mutex<View>),
}

/// How a node that stands on others finds its bytes in them. It is replaced as a whole, while no
/// operation is on its way through the node.
#[derive(Clone)]
pub struct View {
    /// What says where bytes live.
    pub format: Arc<dyn Format>,
    /// The nodes that it speaks of, in the order that it counts them in.
    pub children: Arc<[Arc<Node>]>,
}

/// Why operations are refused.
pub(crate) type Refusal = (ErrorKind, &'static str);

impl Node {
    /// A leaf called `name` over `driver`. The limits are read here, and again whenever
    /// [`Core::refresh`](crate::Core::refresh) is asked to.
    pub fn new(name: impl Into<Arc<str>>, driver: Box<dyn Driver>) -> Arc<Self> {
        Self::with_body(name, Body::Leaf(driver), false)
    }

    /// A node of either kind; one that is read-only refuses writes whatever its driver says.
    pub fn with_body(name: impl Into<Arc<str>>, body: Body, read_only: bool) -> Arc<Self> {
        Self::restricted(name, body, Restrictions { read_only, ..Restrictions::default() })
    }

    /// A node of either kind that does not let everything through.
    pub fn restricted(
        name: impl Into<Arc<str>>,
        body: Body,
        restrictions: Restrictions,
    ) -> Arc<Self> {
        let work = match body {
            Body::Leaf(driver) => Work::Leaf(Mutex::new(driver.into())),
            Body::Over(format, children) => {
                Work::Over(Mutex::new(View { format, children: children.into() }))
            }
        };
        let limits = Mutex::new(Arc::new(restrictions.apply(work.limits())));
        let (name, withdrawn, held) = (name.into(), OnceLock::new(), AtomicBool::new(false));
        let (parents, restrictions) = (Mutex::default(), Mutex::new(restrictions));
        let inactive = AtomicBool::new(false);
        let node =
            Arc::new(Self { name, work, restrictions, limits, parents, withdrawn, held, inactive });
        match &node.work {
            Work::Leaf(driver) => lock(driver).joined(&node),
            Work::Over(_) => node.join_children(),
        }
        node
    }

    /// The node's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What one request may ask, as of now: a device may be resized, or turn read-only, while it
    /// is open. Control plane; each core checks operations against a copy of its own.
    pub fn limits(&self) -> Arc<Limits> {
        lock(&self.limits).clone()
    }

    /// What the drivers of the node's leaves count of their devices since they were attached, for
    /// all nodes on them: resets, retries, what was late. It may be asked at any time and from any
    /// thread; [`Counter::since`] tells what was added.
    pub fn counters(&self) -> Vec<Counter> {
        match &self.work {
            Work::Leaf(driver) => lock(driver).counters(),
            Work::Over(_) => self.children().iter().flat_map(|node| node.counters()).collect(),
        }
    }

    /// The driver's name, as blockdev-add has it.
    pub fn driver_name(&self) -> &'static str {
        match &self.work {
            Work::Leaf(driver) => lock(driver).name(),
            Work::Over(view) => lock(view).format.name(),
        }
    }

    /// What the node's user should know about how its leaves work here, a line for each that has
    /// something to say.
    pub fn notices(&self) -> Vec<String> {
        match &self.work {
            Work::Leaf(driver) => lock(driver).notice().map(str::to_owned).into_iter().collect(),
            Work::Over(_) => self.children().iter().flat_map(|c| c.notices()).collect(),
        }
    }

    /// The driver of a leaf, as of now.
    ///
    /// # Errors
    /// `Invalid`: the node stands on others.
    pub fn driver(&self) -> Result<Arc<dyn Driver>, Error> {
        match &self.work {
            Work::Leaf(driver) => Ok(lock(driver).clone()),
            Work::Over(_) => {
                let error = Error::new(ErrorKind::Invalid, "the node is no leaf of the graph");
                Err(error.node(&self.name))
            }
        }
    }

    /// Whether the node stands on no others.
    pub fn is_leaf(&self) -> bool {
        matches!(self.work, Work::Leaf(_))
    }

    /// The format of a node that stands on others, as of now.
    pub fn format(&self) -> Option<Arc<dyn Format>> {
        Some(self.view()?.format)
    }

    /// What the node stands on as of now, in the order that its format counts them in.
    pub fn children(&self) -> Arc<[Arc<Node>]> {
        self.view().map_or_else(|| Arc::from([]), |view| view.children)
    }

    /// How a node that stands on others finds its bytes, as of now.
    pub fn view(&self) -> Option<View> {
        match &self.work {
            Work::Leaf(_) => None,
            Work::Over(view) => Some(lock(view).clone()),
        }
    }

    /// The nodes that stand on this one.
    pub fn parents(&self) -> Vec<Arc<Node>> {
        lock(&self.parents).iter().filter_map(Weak::upgrade).collect()
    }

    /// This node and all beneath it, each once, this one first.
    pub fn subtree(self: &Arc<Self>) -> Vec<Arc<Node>> {
        closure(self, |node| node.children().to_vec())
    }

    /// This node and all above it, each after all of these that it stands on.
    pub fn and_above(self: &Arc<Self>) -> Vec<Arc<Node>> {
        let mut order = Vec::new();
        visit_parents(self, &mut order);
        order.reverse();
        order
    }

    /// Replaces the view. No operation is on its way through the node on any core.
    pub(crate) fn set_view(self: &Arc<Self>, new: View) {
        let Work::Over(view) = &self.work else { return };
        let old = std::mem::replace(&mut *lock(view), new);
        for child in old.children.iter() {
            let is_other = |parent: &Weak<Node>| !std::ptr::eq(parent.as_ptr(), Arc::as_ptr(self));
            lock(&child.parents).retain(is_other);
        }
        self.join_children();
    }

    /// Replaces the driver of a leaf, and gives the old one. No operation is on its way through the
    /// node on any core.
    pub(crate) fn set_driver(self: &Arc<Self>, new: Arc<dyn Driver>) -> Option<Arc<dyn Driver>> {
        let Work::Leaf(driver) = &self.work else { return None };
        let old = std::mem::replace(&mut *lock(driver), new.clone());
        new.joined(self);
        Some(old)
    }

    pub(crate) fn set_restrictions(&self, new: Restrictions) {
        *lock(&self.restrictions) = new;
    }

    fn join_children(self: &Arc<Self>) {
        for child in self.children().iter() {
            let mut parents = lock(&child.parents);
            parents.retain(|parent| parent.strong_count() > 0);
            if !parents.iter().any(|parent| std::ptr::eq(parent.as_ptr(), Arc::as_ptr(self))) {
                parents.push(Arc::downgrade(self));
            }
        }
    }

    /// Why the node takes no operations any more, if it was withdrawn.
    pub fn withdrawn(&self) -> Option<Fault> {
        let (kind, text) = *self.withdrawn.get()?;
        Some(Fault::text(kind, 0, text))
    }

    /// What the cores are to do with operations instead of handing them on.
    pub(crate) fn halt(&self) -> Option<Halt> {
        let withdrawn = self.withdrawn.get().map(|refusal| Halt::Refused(*refusal));
        withdrawn.or(self.held.load(Ordering::SeqCst).then_some(Halt::Held))
    }

    pub(crate) fn set_held(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }

    /// True if it was not withdrawn before.
    pub(crate) fn set_withdrawn(&self, refusal: Refusal) -> bool {
        self.withdrawn.set(refusal).is_ok()
    }

    /// The node's limits where its driver has these.
    pub(crate) fn with_own_limits(&self, limits: Limits) -> Limits {
        self.restrict(self.restrictions(), limits)
    }

    /// What remains of limits under such restrictions.
    pub(crate) fn restrict(&self, restrictions: Restrictions, limits: Limits) -> Limits {
        let limits = restrictions.apply(limits);
        match self.inactive.load(Ordering::SeqCst) {
            true => Limits { read_only: true, inactive: true, ..limits },
            false => Limits { inactive: false, ..limits },
        }
    }

    /// What the node does not let through.
    pub(crate) fn restrictions(&self) -> Restrictions {
        *lock(&self.restrictions)
    }

    /// Has the node refuse writes, or not, from when its limits are read next.
    pub(crate) fn set_inactive(&self, inactive: bool) {
        self.inactive.store(inactive, Ordering::SeqCst);
    }

    /// Reads the limits from the driver: those before, and those from now on.
    pub(crate) fn reread(&self) -> (Arc<Limits>, Arc<Limits>) {
        // Read under the lock, so that of two readers the later one's stay.
        let mut limits = lock(&self.limits);
        let new = Arc::new(self.with_own_limits(self.work.limits()));
        (std::mem::replace(&mut *limits, new.clone()), new)
    }
}

impl Work {
    fn limits(&self) -> Limits {
        match self {
            Self::Leaf(driver) => lock(driver).limits(),
            Self::Over(view) => {
                let View { format, children } = lock(view).clone();
                let limits: Vec<Arc<Limits>> =
                    children.iter().map(|child| child.limits()).collect();
                format.limits(&limits)
            }
        }
    }
}

/// What is reached from a node, itself included and first, each once.
pub(crate) fn closure(
    from: &Arc<Node>,
    next: impl Fn(&Arc<Node>) -> Vec<Arc<Node>>,
) -> Vec<Arc<Node>> {
    let mut nodes = vec![from.clone()];
    let mut at = 0;
    while let Some(node) = nodes.get(at).cloned() {
        for other in next(&node) {
            if !is_among(&nodes, &other) {
                nodes.push(other);
            }
        }
        at += 1;
    }
    nodes
}

fn visit_parents(node: &Arc<Node>, order: &mut Vec<Arc<Node>>) {
    for parent in node.parents() {
        if !is_among(order, &parent) {
            visit_parents(&parent, order);
        }
    }
    order.push(node.clone());
}

pub(crate) fn is_among(nodes: &[Arc<Node>], node: &Arc<Node>) -> bool {
    nodes.iter().any(|known| Arc::ptr_eq(known, node))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("driver", &self.driver_name())
            .finish()
    }
}
