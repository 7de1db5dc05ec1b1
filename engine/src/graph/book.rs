//! The graph, and its changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::blockers::{Blocker, OpType};
use super::tables::{Edge, EdgeId, NodeEntry, NodeId, Parent, Root, Tables};
use super::{Access, ChildEvent, ChildRole, NodeBody, Origin};
use crate::{Error, ErrorKind};

/// The nodes, their children, and who may do what to them. `B` does a node's work.
///
/// The changes here are of the book alone. Those of a graph of [`Node`](crate::Node)s, which change
/// where I/O goes as well, are [`Live`](super::Live)'s.
pub struct Graph<B> {
    tables: Tables<B>,
    blockers: BTreeMap<NodeId, Vec<Blocker>>,
    made_up: u64,
    warnings: Vec<String>,
}

/// A child that a node is to have.
#[derive(Clone, Copy, Debug)]
pub struct NewChild {
    /// What the parent calls it.
    pub name: &'static str,
    /// What it is to the parent.
    pub role: ChildRole,
    /// The child.
    pub node: NodeId,
}

/// A parent that was told of an event beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The edge on which it heard of it.
    pub edge: EdgeId,
    /// The node that told it.
    pub child: NodeId,
}

impl<B> Default for Graph<B> {
    fn default() -> Self {
        Self {
            tables: Tables::default(),
            blockers: BTreeMap::new(),
            made_up: 0,
            warnings: Vec::new(),
        }
    }
}

impl<B: NodeBody> Graph<B> {
    /// A graph without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    // --- looking ---

    /// The node of this name.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.tables.find(name)
    }

    /// A node.
    ///
    /// # Errors
    /// `NotFound`: it is gone.
    pub fn node(&self, id: NodeId) -> Result<&NodeEntry<B>, Error> {
        self.tables.node(id)
    }

    /// An edge.
    ///
    /// # Errors
    /// `NotFound`: it is gone.
    pub fn edge(&self, id: EdgeId) -> Result<&Edge, Error> {
        self.tables.edge(id)
    }

    /// All nodes, each after its parents.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.tables.parents_first()
    }

    /// How a node was opened.
    pub(super) fn origin(&self, id: NodeId) -> Option<&Origin> {
        self.tables.origins.get(&id).map(|origin| &**origin)
    }

    /// The edges to a node's children, in the order in which they were joined.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = &Edge> {
        self.tables.children(id)
    }

    /// The edges from a node's users.
    pub fn parents(&self, id: NodeId) -> impl Iterator<Item = &Edge> {
        self.tables.parents(id)
    }

    /// The edge to the child that a node calls `name`.
    pub fn child(&self, id: NodeId, name: &str) -> Option<EdgeId> {
        let children = &self.tables.nodes.get(&id)?.children;
        let is_called = |edge: &EdgeId| self.tables.edges.get(edge).is_some_and(|e| e.name == name);
        children.iter().copied().find(is_called)
    }

    /// What all users of a node together ask for and leave to others.
    pub fn cumulative(&self, id: NodeId) -> Access {
        self.tables.cumulative(id)
    }

    /// The first node from here down that is no filter which nobody asked for.
    pub fn skip_implicit(&self, id: NodeId) -> NodeId {
        let mut at = id;
        while let Ok(node) = self.node(at)
            && node.implicit
            && let Some(child) = self.filtered(at)
        {
            at = child;
        }
        at
    }

    /// Whether `other` may take the place of `node` unseen by its users: it is `node`, or what
    /// only filters stand between.
    pub fn can_replace(&self, node: NodeId, other: NodeId) -> bool {
        let mut at = Some(node);
        while let Some(id) = at {
            if id == other {
                return true;
            }
            at = self.filtered(id);
        }
        false
    }

    fn filtered(&self, id: NodeId) -> Option<NodeId> {
        let is_filter = self.node(id).is_ok_and(|node| node.is_filter);
        let mut children = self.children(id).filter(|_| is_filter);
        children.find(|edge| edge.role.contains(ChildRole::FILTERED)).map(|edge| edge.child)
    }

    // --- warning ---

    /// What whoever opens nodes should know, since this was last asked.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    pub(super) fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }

    // --- changing ---

    /// A name for a node that was given none.
    pub fn make_up_name(&mut self) -> String {
        loop {
            self.made_up += 1;
            let name = format!("#block{:03}", self.made_up);
            if self.find(&name).is_none() {
                return name;
            }
        }
    }

    /// Adds a node over its children.
    ///
    /// # Errors
    /// A name that is none, or taken; a permission that its children's other users do not leave.
    pub fn add(&mut self, node: NodeEntry<B>, children: &[NewChild]) -> Result<NodeId, Error> {
        self.change(|tables| {
            let id = tables.insert_node(node)?;
            for child in children {
                tables.insert_edge(new_edge(id, *child))?;
            }
            Ok(id)
        })
    }

    /// Lets go of a node that was added to stay. It goes, and what only it used.
    ///
    /// # Errors
    /// `Busy`: it has users; or it is gone.
    pub fn release(&mut self, id: NodeId) -> Result<(), Error> {
        let (tables, ()) = self.try_release(id)?;
        self.keep(tables)
    }

    /// The graph as it would be without a node that nobody uses.
    pub(super) fn try_release(&self, id: NodeId) -> Result<(Tables<B>, ()), Error> {
        let name = &self.node(id)?.name;
        if let Some(edge) = self.parents(id).next() {
            let by = self.tables.describe(&edge.parent);
            let text = format!("Block device {name} is in use by {by} as '{}' child", edge.name);
            return Err(Error::new(ErrorKind::Busy, text));
        }
        self.try_change(|tables| {
            if let Some(node) = tables.nodes.get_mut(&id) {
                node.owned = false;
            }
            tables.drop_unused(id);
            Ok(())
        })
    }

    /// Joins a user from outside to a node.
    ///
    /// # Errors
    /// `Denied`: it asks for what others do not leave, or leaves too little.
    pub fn attach_root(
        &mut self,
        node: NodeId,
        root: Arc<dyn Root>,
        access: Access,
    ) -> Result<EdgeId, Error> {
        let (parent, role) = (Parent::Root(root), ChildRole::FILTERED | ChildRole::PRIMARY);
        let edge = Edge { parent, child: node, name: "root", role, access, frozen: 0 };
        self.change(|tables| tables.insert_edge(edge))
    }

    /// Changes what a user from outside asks for and leaves.
    ///
    /// # Errors
    /// As [`attach_root`](Self::attach_root); `Invalid` for an edge between nodes, which follows
    /// from its parent's users.
    pub fn set_root_access(&mut self, edge: EdgeId, access: Access) -> Result<(), Error> {
        self.change(|tables| match tables.edges.get_mut(&edge) {
            Some(Edge { parent: Parent::Root(_), access: known, .. }) => {
                *known = access;
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::Invalid, "the edge is no user's from outside")),
        })
    }

    /// Gives a node another child.
    ///
    /// # Errors
    /// It would be beneath itself; it has a child of that name; permissions conflict.
    pub fn attach(&mut self, parent: NodeId, child: NewChild) -> Result<EdgeId, Error> {
        self.change(|tables| tables.attach(parent, child))
    }

    /// Takes an edge away. What then nobody uses or owns is gone.
    ///
    /// # Errors
    /// `Busy`: it is frozen.
    pub fn detach(&mut self, edge: EdgeId) -> Result<(), Error> {
        self.change(|tables| tables.remove_edge(edge))
    }

    /// Lets an edge lead to another node. If then nobody uses or owns the old one, it is gone.
    ///
    /// # Errors
    /// `Busy`: it is frozen; or as [`attach`](Self::attach).
    pub fn replace_child(&mut self, edge: EdgeId, to: NodeId) -> Result<(), Error> {
        self.change(|tables| tables.replace_child(edge, to))
    }

    /// Lets all users of a node use another instead, but for those that keep to it and for those
    /// that are beneath the other: so a node that was added over `from` goes in between.
    ///
    /// # Errors
    /// As [`replace_child`](Self::replace_child).
    pub fn replace_node(&mut self, from: NodeId, to: NodeId) -> Result<(), Error> {
        self.change(|tables| tables.replace_node(from, to))
    }

    /// Has a node refuse writes, or take them.
    ///
    /// # Errors
    /// `Denied`: somebody writes to it; or its children's other users do not leave it the
    /// permission to write.
    pub fn set_read_only(&mut self, id: NodeId, read_only: bool) -> Result<(), Error> {
        self.change(|tables| {
            tables.node(id)?;
            if let Some(node) = tables.nodes.get_mut(&id) {
                node.read_only = read_only;
            }
            Ok(())
        })
    }

    /// One transaction: makes `change` on a copy, and keeps it if the rules hold and every body
    /// whose users change has got what it needs for them.
    pub(super) fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Tables<B>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (tables, outcome) = self.try_change(change)?;
        self.keep(tables)?;
        Ok(outcome)
    }

    /// The graph as it would be after a change, if the rules hold.
    pub(super) fn try_change<T>(
        &self,
        change: impl FnOnce(&mut Tables<B>) -> Result<T, Error>,
    ) -> Result<(Tables<B>, T), Error> {
        let mut tables = self.tables.clone();
        let outcome = change(&mut tables)?;
        tables.settle()?;
        Ok((tables, outcome))
    }

    /// Makes a copy on which a change was made the graph, if every body whose users change gets
    /// what it needs for them.
    pub(super) fn keep(&mut self, tables: Tables<B>) -> Result<(), Error> {
        self.tables.hand_over_to(&tables)?;
        self.tables = tables;
        self.blockers.retain(|id, _| self.tables.nodes.contains_key(id));
        Ok(())
    }

    pub(super) fn tables(&self) -> &Tables<B> {
        &self.tables
    }

    // --- holding ---

    /// Has an edge stay as it is until it was thawed as often.
    ///
    /// # Errors
    /// `NotFound`: it is gone.
    pub fn freeze(&mut self, edge: EdgeId) -> Result<(), Error> {
        self.tables.edge(edge)?;
        if let Some(edge) = self.tables.edges.get_mut(&edge) {
            edge.frozen += 1;
        }
        Ok(())
    }

    /// Takes one freeze back.
    pub fn thaw(&mut self, edge: EdgeId) {
        if let Some(edge) = self.tables.edges.get_mut(&edge) {
            edge.frozen = edge.frozen.saturating_sub(1);
        }
    }

    /// Forbids operations on a node for a reason, until [`unblock`](Self::unblock).
    ///
    /// # Errors
    /// `NotFound`: it is gone.
    pub fn block(&mut self, id: NodeId, ops: &[OpType], reason: &str) -> Result<(), Error> {
        self.node(id)?;
        let blockers = ops.iter().map(|&op| Blocker { op, reason: reason.into() });
        self.blockers.entry(id).or_default().extend(blockers);
        Ok(())
    }

    /// Takes back what was forbidden for this reason, once for each operation.
    pub fn unblock(&mut self, id: NodeId, ops: &[OpType], reason: &str) {
        let Some(blockers) = self.blockers.get_mut(&id) else { return };
        for op in ops {
            let is_it = |blocker: &Blocker| blocker.op == *op && blocker.reason == reason;
            if let Some(at) = blockers.iter().position(is_it) {
                blockers.remove(at);
            }
        }
    }

    /// Whether an operation is allowed on a node.
    ///
    /// # Errors
    /// `Busy`, with the first reason why not.
    pub fn check_op(&self, id: NodeId, op: OpType) -> Result<(), Error> {
        let name = &self.node(id)?.name;
        let mut blockers = self.blockers.get(&id).into_iter().flatten();
        match blockers.find(|blocker| blocker.op == op) {
            None => Ok(()),
            Some(blocker) => {
                let text = format!("Node '{name}' is busy: {blocker}");
                Err(Error::new(ErrorKind::Busy, text))
            }
        }
    }

    // --- telling ---

    /// Tells the parents of a node of something. A parent that is a node is asked by `passes`
    /// whether the same is now true of it; then its own parents are told.
    pub fn tell_parents(
        &self,
        node: NodeId,
        event: &ChildEvent,
        mut passes: impl FnMut(&Self, NodeId, &Edge) -> bool,
    ) -> Vec<Told> {
        let mut told: Vec<Told> = Vec::new();
        let mut next = vec![node];
        while let Some(child) = next.pop() {
            let parents = self.tables.nodes.get(&child).map(|node| node.parents.clone());
            for edge_id in parents.unwrap_or_default() {
                let Some(edge) = self.tables.edges.get(&edge_id) else { continue };
                if told.iter().any(|told| told.edge == edge_id) {
                    continue;
                }
                told.push(Told { edge: edge_id, child });
                match &edge.parent {
                    Parent::Root(root) => root.child_event(event),
                    Parent::Node(parent) if passes(self, *parent, edge) => next.push(*parent),
                    Parent::Node(_) => {}
                }
            }
        }
        told
    }
}

/// An edge between nodes; what is asked on it follows when the change is checked.
pub(super) fn new_edge(parent: NodeId, child: NewChild) -> Edge {
    let NewChild { name, role, node } = child;
    Edge { parent: Parent::Node(parent), child: node, name, role, access: Access::NONE, frozen: 0 }
}
