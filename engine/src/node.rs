//! Nodes: a named driver and its limits, shared by all cores.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::io::Halt;
use crate::{Body, Counter, Driver, Error, ErrorKind, Fault, Format, Limits};

/// A named node of the graph. Cores open a [`Channel`](crate::Channel) on it to do I/O.
pub struct Node {
    name: Arc<str>,
    body: Body,
    read_only: bool,
    limits: Mutex<Arc<Limits>>,
    withdrawn: OnceLock<Refusal>,
    held: AtomicBool,
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
        let limits = Mutex::new(Arc::new(body.limits(read_only)));
        let (name, withdrawn, held) = (name.into(), OnceLock::new(), AtomicBool::new(false));
        let node = Arc::new(Self { name, body, read_only, limits, withdrawn, held });
        if let Body::Leaf(driver) = &node.body {
            driver.joined(&node);
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
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the drivers of the node's leaves count of their devices, for all nodes on them.
    pub fn counters(&self) -> Vec<Counter> {
        match &self.body {
            Body::Leaf(driver) => driver.counters(),
            Body::Over(_, children) => children.iter().flat_map(|node| node.counters()).collect(),
        }
    }

    /// The driver's name, as blockdev-add has it.
    pub fn driver_name(&self) -> &'static str {
        match &self.body {
            Body::Leaf(driver) => driver.name(),
            Body::Over(format, _) => format.name(),
        }
    }

    /// What the node's user should know about how its leaves work here, a line for each that has
    /// something to say.
    pub fn notices(&self) -> Vec<String> {
        match &self.body {
            Body::Leaf(driver) => driver.notice().map(str::to_owned).into_iter().collect(),
            Body::Over(_, children) => children.iter().flat_map(|c| c.notices()).collect(),
        }
    }

    /// The driver of a leaf.
    ///
    /// # Errors
    /// `Invalid`: the node stands on others.
    pub fn driver(&self) -> Result<&dyn Driver, Error> {
        match &self.body {
            Body::Leaf(driver) => Ok(&**driver),
            Body::Over(..) => {
                let error = Error::new(ErrorKind::Invalid, "the node is no leaf of the graph");
                Err(error.node(&self.name))
            }
        }
    }

    /// The format of a node that stands on others.
    pub fn format(&self) -> Option<&Arc<dyn Format>> {
        match &self.body {
            Body::Leaf(_) => None,
            Body::Over(format, _) => Some(format),
        }
    }

    /// What does its work.
    pub(crate) fn body(&self) -> &Body {
        &self.body
    }

    /// What the node stands on, in the order that its format counts them in.
    pub fn children(&self) -> &[Arc<Node>] {
        match &self.body {
            Body::Leaf(_) => &[],
            Body::Over(_, children) => children,
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

    /// Reads the limits from the driver: those before, and those from now on.
    pub(crate) fn reread(&self) -> (Arc<Limits>, Arc<Limits>) {
        // Read under the lock, so that of two readers the later one's stay.
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Arc::new(self.body.limits(self.read_only));
        (std::mem::replace(&mut *limits, new.clone()), new)
    }
}

impl Body {
    fn limits(&self, read_only: bool) -> Limits {
        let limits = match self {
            Self::Leaf(driver) => driver.limits(),
            Self::Over(format, children) => {
                let limits: Vec<Arc<Limits>> =
                    children.iter().map(|child| child.limits()).collect();
                format.limits(&limits)
            }
        };
        Limits { read_only: limits.read_only || read_only, ..limits }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("driver", &self.driver_name())
            .finish()
    }
}
