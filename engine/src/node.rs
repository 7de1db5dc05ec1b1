//! Nodes: a named driver and its limits, shared by all cores.

use std::fmt;
use std::sync::Arc;

use crate::{Driver, Limits};

/// A named node of the graph. Cores open a [`Channel`](crate::Channel) on it to do I/O.
pub struct Node {
    name: Arc<str>,
    driver: Box<dyn Driver>,
    limits: Limits,
}

impl Node {
    /// A node called `name` over `driver`. The limits are read once, here.
    pub fn new(name: impl Into<Arc<str>>, driver: Box<dyn Driver>) -> Arc<Self> {
        let limits = driver.limits();
        Arc::new(Self { name: name.into(), driver, limits })
    }

    /// The node's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What one request may ask.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
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
