//! Nodes: a named driver and its limits, shared by all cores.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::{Counter, Driver, ErrorKind, Fault, Limits};

/// A named node of the graph. Cores open a [`Channel`](crate::Channel) on it to do I/O.
pub struct Node {
    name: Arc<str>,
    driver: Box<dyn Driver>,
    limits: Mutex<Arc<Limits>>,
    withdrawn: OnceLock<Refusal>,
}

/// Why operations are refused.
pub(crate) type Refusal = (ErrorKind, &'static str);

impl Node {
    /// A node called `name` over `driver`. The limits are read here, and again whenever
    /// [`Core::refresh`](crate::Core::refresh) is asked to.
    pub fn new(name: impl Into<Arc<str>>, driver: Box<dyn Driver>) -> Arc<Self> {
        let limits = Mutex::new(Arc::new(driver.limits()));
        let node = Arc::new(Self { name: name.into(), driver, limits, withdrawn: OnceLock::new() });
        node.driver.joined(&node);
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

    /// What the driver counts of the device, for all nodes on it.
    pub fn counters(&self) -> Vec<Counter> {
        self.driver.counters()
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Why the node takes no operations any more, if it was withdrawn.
    pub fn withdrawn(&self) -> Option<Fault> {
        let (kind, text) = self.refusal()?;
        Some(Fault::text(kind, 0, text))
    }

    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.withdrawn.get().copied()
    }

    /// True if it was not withdrawn before.
    pub(crate) fn set_withdrawn(&self, refusal: Refusal) -> bool {
        self.withdrawn.set(refusal).is_ok()
    }

    /// Reads the limits from the driver: those before, and those from now on.
    pub(crate) fn reread(&self) -> (Arc<Limits>, Arc<Limits>) {
        // Read under the lock, so that of two readers the later one's stay.
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Arc::new(self.driver.limits());
        (std::mem::replace(&mut *limits, new.clone()), new)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("driver", &self.driver.name())
            .finish()
    }
}
