//! The orderly end of nodes.

use std::sync::Arc;

use super::{Graph, NodeId};
use crate::{Core, Error, Node};

impl Graph<Arc<Node>> {
    /// Lets go of a node that was opened to stay, and closes it and what only it used: on each core
    /// the queues, after what is in flight, and then the drivers, parents before children.
    /// Channels that are left fail.
    ///
    /// # Errors
    /// `Busy`: it has users, and stays. Otherwise it is gone: the first of what queues and drivers
    /// say.
    pub async fn close(&mut self, core: &Core, id: NodeId) -> Result<(), Error> {
        let (tables, ()) = self.try_release(id)?;
        let mut outcome = Ok(());
        // Locks are given up last, when nothing is under way to their files.
        for id in self.nodes().into_iter().filter(|id| !tables.nodes.contains_key(id)) {
            let node = self.node(id)?.body.clone();
            outcome = outcome.and(core.close_everywhere(&node).await);
        }
        outcome.and(self.keep(tables))
    }
}
