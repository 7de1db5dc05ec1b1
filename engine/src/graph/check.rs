//! Whether all users of all nodes can live with each other. Asked of the copy of the graph that a
//! change was made on, before it becomes the graph.

use std::collections::BTreeMap;

use super::tables::{Edge, NodeId, Parent, Tables};
use super::{Access, ChildAsk, Permissions};
use crate::{Error, ErrorKind};

impl<B> Tables<B> {
    /// Asks of each edge between nodes what its parent's rule says, from the users down, and
    /// looks whether the users of each node bear with each other.
    ///
    /// Errors: `Denied`, naming both parties and the permissions, or the node that takes no
    /// writes.
    pub fn settle(&mut self) -> Result<(), Error> {
        for id in self.parents_first() {
            self.check_users(id)?;
            let together = self.cumulative(id);
            self.check_writes(id, together)?;
            self.ask_children(id, together)?;
        }
        Ok(())
    }

    /// What all users of a node together ask for and leave.
    pub fn cumulative(&self, id: NodeId) -> Access {
        self.parents(id).fold(Access::NONE, |together, edge| together.and(self.in_force(edge)))
    }

    /// What an edge counts for: nothing while its child is inactive.
    fn in_force(&self, edge: &Edge) -> Access {
        let is_inactive = self.nodes.get(&edge.child).is_some_and(|child| child.inactive);
        if is_inactive { Access::NONE } else { edge.access }
    }

    fn ask_children(&mut self, id: NodeId, parent: Access) -> Result<(), Error> {
        let node = self.node(id)?;
        let (rule, writable, inactive) = (node.child_rule, !node.read_only, node.inactive);
        let children = node.children.clone();
        for edge_id in children {
            let edge = self.edge(edge_id)?;
            let mut access = match inactive {
                true => Access::NONE,
                false => rule(ChildAsk { role: edge.role, parent, writable }),
            };
            if self.node(edge.child)?.force_share {
                access.shared = Permissions::all();
            }
            if let Some(edge) = self.edges.get_mut(&edge_id) {
                edge.access = access;
            }
        }
        Ok(())
    }

    fn check_users(&self, id: NodeId) -> Result<(), Error> {
        let users: Vec<&Edge> = self.parents(id).collect();
        if self.node(id)?.inactive {
            return self.check_users_of_inactive(id, &users);
        }
        for (at, one) in users.iter().enumerate() {
            for other in &users[at + 1..] {
                self.check_pair(id, one, other)?;
                self.check_pair(id, other, one)?;
            }
        }
        Ok(())
    }

    fn check_users_of_inactive(&self, id: NodeId, users: &[&Edge]) -> Result<(), Error> {
        for user in users {
            if let Parent::Root(root) = &user.parent
                && user.access.asked.intersects(Permissions::ANY_WRITE)
                && !root.gives_way()
            {
                let (name, who) = (&self.node(id)?.name, root.describe());
                let text = format!(
                    "Node '{name}' is inactive: {who} cannot write to it before it is activated"
                );
                return Err(Error::new(ErrorKind::Denied, text));
            }
        }
        Ok(())
    }

    /// Whether `asks` asks for no more than `shares` leaves.
    fn check_pair(&self, node: NodeId, asks: &Edge, shares: &Edge) -> Result<(), Error> {
        let conflict = self.in_force(asks).asked - self.in_force(shares).shared;
        if conflict.is_empty() {
            return Ok(());
        }
        let node = &self.node(node)?.name;
        let text = format!(
            "Permission conflict on node '{node}': permissions '{conflict}' are both required by \
             {} (uses node '{node}' as '{}' child) and unshared by {} (uses node '{node}' as '{}' \
             child).",
            self.describe(&asks.parent),
            asks.name,
            self.describe(&shares.parent),
            shares.name,
        );
        Err(Error::new(ErrorKind::Denied, text))
    }

    fn check_writes(&self, id: NodeId, together: Access) -> Result<(), Error> {
        if !together.asked.intersects(Permissions::ANY_WRITE) {
            return Ok(());
        }
        let node = self.node(id)?;
        if node.read_only {
            let text = format!("Block node is read-only: '{}'", node.name);
            return Err(Error::new(ErrorKind::Denied, text));
        }
        if node.has_ragged_end && !together.asked.contains(Permissions::RESIZE) {
            let text = format!(
                "Node '{}': cannot get 'write' permission without 'resize': image size is not a \
                 multiple of request alignment",
                node.name
            );
            return Err(Error::new(ErrorKind::Denied, text));
        }
        Ok(())
    }

    /// All nodes, each after its parents.
    pub fn parents_first(&self) -> Vec<NodeId> {
        let is_node = |edge: &&Edge| matches!(edge.parent, Parent::Node(_));
        let mut waits: BTreeMap<NodeId, usize> =
            self.nodes.keys().map(|&id| (id, self.parents(id).filter(is_node).count())).collect();
        let mut ready: Vec<NodeId> =
            waits.iter().filter(|(_, parents)| **parents == 0).map(|(&id, _)| id).collect();
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(id) = ready.pop() {
            order.push(id);
            for edge in self.children(id) {
                let Some(left) = waits.get_mut(&edge.child) else { continue };
                *left -= 1;
                if *left == 0 {
                    ready.push(edge.child);
                }
            }
        }
        order
    }
}
