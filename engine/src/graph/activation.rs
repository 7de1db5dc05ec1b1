//! Handing images over to other processes: a node is made inactive, another process writes to its
//! image, and the node is made active again.
//!
//! While it is inactive a node takes no writes, asks for nothing and leaves everything to others,
//! so that no locks stand in their way. Its users keep their channels.

use std::sync::Arc;

use super::{ChildEvent, Edge, Graph, NodeId, Parent, Permissions};
use crate::{Core, Error, ErrorKind, Node};

impl Graph<Arc<Node>> {
    /// Hands a node over, and all beneath it that no other active node stands on: what was written
    /// is flushed, and locks are given up (`blockdev-set-active` with `active=off`). Writes fail
    /// from then on, until it is [activated](Self::activate).
    ///
    /// # Errors
    /// `Busy`: a node above it is active; `Denied`: somebody writes to it who does not
    /// [give way](super::Root::gives_way); a flush that fails. The node is as before then.
    pub async fn inactivate(&mut self, core: &Core, id: NodeId) -> Result<(), Error> {
        if self.node(id)?.inactive {
            return Ok(());
        }
        if self.has_active_parent(id, &[]) {
            return Err(Error::new(ErrorKind::Busy, "Node has active parent node"));
        }
        let set = self.handed_over_with(id);
        self.refuse_writers_of(&set)?;
        let nodes = self.bodies(&set)?;
        let mut done = core.set_inactive(&nodes, true).await;
        if done.is_ok() {
            let flushed = core.flush_once(&self.node(id)?.body).await;
            done = flushed.map_err(|error| error.context("Failed to inactivate node"));
        }
        let done = done.and_then(|()| self.mark_inactive(&set, true));
        if done.is_err() {
            // What it says is less than why it came to this.
            let _ = core.set_inactive(&nodes, false).await;
            return done;
        }
        self.tell_users(&set, &ChildEvent::Inactivated);
        Ok(())
    }

    /// Takes a node back that was handed over, and all beneath it: its locks, and then what others
    /// made of the image, which is looked at anew (`blockdev-set-active` with `active=on`).
    ///
    /// # Errors
    /// `Busy`: another process has not let go of it; what the drivers say of the image. The node
    /// stays inactive then.
    pub async fn activate(&mut self, core: &Core, id: NodeId) -> Result<(), Error> {
        self.node(id)?;
        let is_to = |other: &NodeId| {
            self.node(*other).is_ok_and(|node| node.inactive)
                && self.tables().is_beneath(id, *other)
        };
        let set: Vec<NodeId> = self.nodes().into_iter().filter(is_to).collect();
        let nodes = self.bodies(&set)?;
        self.mark_inactive(&set, false)?;
        nodes.iter().for_each(|node| node.set_inactive(false));
        if let Err(error) = self.reopen_anew(core, &set).await {
            nodes.iter().for_each(|node| node.set_inactive(true));
            self.mark_inactive(&set, true)?;
            return Err(error);
        }
        self.tell_users(&set, &ChildEvent::Activated);
        Ok(())
    }

    /// A node, and what is beneath it and beneath no other active node.
    fn handed_over_with(&self, id: NodeId) -> Vec<NodeId> {
        let mut set = vec![id];
        let mut at = 0;
        while let Some(id) = set.get(at).copied() {
            for child in self.children(id).map(|edge| edge.child) {
                let is_active = self.node(child).is_ok_and(|node| !node.inactive);
                if is_active && !set.contains(&child) && !self.has_active_parent(child, &set) {
                    set.push(child);
                }
            }
            at += 1;
        }
        set
    }

    fn has_active_parent(&self, id: NodeId, but: &[NodeId]) -> bool {
        let is_active = |edge: &Edge| match edge.parent {
            Parent::Root(_) => false,
            Parent::Node(parent) => {
                !but.contains(&parent) && self.node(parent).is_ok_and(|node| !node.inactive)
            }
        };
        self.parents(id).any(is_active)
    }

    fn refuse_writers_of(&self, set: &[NodeId]) -> Result<(), Error> {
        let writes = |edge: &&Edge| edge.access.asked.intersects(Permissions::ANY_WRITE);
        for edge in set.iter().flat_map(|id| self.parents(*id)).filter(writes) {
            if let Parent::Root(root) = &edge.parent
                && !root.gives_way()
            {
                let (name, who) = (&self.node(edge.child)?.name, root.describe());
                let text = format!(
                    "Failed to inactivate node: Operation not permitted: {who} writes to '{name}'"
                );
                return Err(Error::new(ErrorKind::Denied, text));
            }
        }
        Ok(())
    }

    fn mark_inactive(&mut self, set: &[NodeId], inactive: bool) -> Result<(), Error> {
        self.change(|tables| {
            for id in set {
                if let Some(node) = tables.nodes.get_mut(id) {
                    node.inactive = inactive;
                }
            }
            Ok(())
        })
    }

    fn bodies(&self, set: &[NodeId]) -> Result<Vec<Arc<Node>>, Error> {
        set.iter().map(|id| self.node(*id).map(|node| node.body.clone())).collect()
    }

    fn tell_users(&self, set: &[NodeId], event: &ChildEvent) {
        for id in set {
            self.tell_parents(*id, event, |_, _, _| false);
        }
    }
}
