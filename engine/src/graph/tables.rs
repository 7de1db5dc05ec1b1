//! The graph as data: nodes, and the edges from parents to children. A change is made on a copy,
//! which becomes the graph once all its rules hold; see [`check`](super::check).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::book::{NewChild, new_edge};
use super::recipe::Recipe;
use super::{Access, ChildRole, ChildRule, Origin};
use crate::{Error, ErrorKind, Node};

/// Names a node. It is never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) u64);

/// Names an edge, from a parent to a child. It is never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EdgeId(pub(super) u64);

/// A node, as the rules of the graph see it.
#[derive(Clone)]
pub struct NodeEntry<B> {
    /// Its name, which no other node has.
    pub name: Arc<str>,
    /// What drives it.
    pub driver: &'static str,
    /// Whether it takes no writes.
    pub read_only: bool,
    /// Whether the nodes above it bear with all that others do to it.
    pub force_share: bool,
    /// Whether it is a filter that nobody asked for by name.
    pub implicit: bool,
    /// Whether its image is handed over to another process.
    pub inactive: bool,
    /// Whether it shows its `FILTERED` child as it is.
    pub is_filter: bool,
    /// Whether its length is one that users without the permission to resize could not write to
    /// the end.
    pub has_ragged_end: bool,
    /// What it asks of its children.
    pub child_rule: ChildRule,
    /// Whether it stays when nobody uses it, until it is released.
    pub owned: bool,
    /// What does its work.
    pub body: B,
    pub(super) children: Vec<EdgeId>,
    pub(super) parents: Vec<EdgeId>,
}

/// Who uses a node from outside the graph: a device, an export, a job.
pub trait Root: Send + Sync {
    /// Who it is, as messages have it: `block device 'drive0'`.
    fn describe(&self) -> String;

    /// Something happened to the node or beneath it.
    fn child_event(&self, event: &ChildEvent);

    /// Whether it does nothing while its node is inactive, and is content to go on once that is
    /// active: it stops when it is told, or waits.
    fn gives_way(&self) -> bool {
        false
    }

    /// Whether it keeps to its node when that is replaced by another.
    fn stays_at_node(&self) -> bool {
        false
    }
}

/// What parents are told of their children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChildEvent {
    /// The length is another.
    Resized,
    /// A medium was put in or taken out.
    MediumChanged,
    /// The node is in use again, after it had been handed over.
    Activated,
    /// The node was handed over: no writes and no permissions any more.
    Inactivated,
    /// The node's name for people and images is another.
    FilenameChanged,
}

/// Where an edge comes from.
#[derive(Clone)]
pub enum Parent {
    /// Another node.
    Node(NodeId),
    /// A user outside the graph.
    Root(Arc<dyn Root>),
}

/// From a parent to a child.
#[derive(Clone)]
pub struct Edge {
    /// Who uses the child.
    pub parent: Parent,
    /// The child.
    pub child: NodeId,
    /// What the parent calls it.
    pub name: &'static str,
    /// What it is to the parent.
    pub role: ChildRole,
    /// What the parent asks of it and leaves to others.
    pub access: Access,
    /// How many hold that it must stay.
    pub(super) frozen: u32,
}

impl Edge {
    /// Whether it must stay as it is.
    pub fn is_frozen(&self) -> bool {
        self.frozen > 0
    }
}

/// All nodes and edges.
#[derive(Clone)]
pub(super) struct Tables<B> {
    pub nodes: BTreeMap<NodeId, NodeEntry<B>>,
    pub edges: BTreeMap<EdgeId, Edge>,
    /// How nodes were opened; those that came otherwise have none.
    pub origins: BTreeMap<NodeId, Arc<Origin>>,
    /// How nodes were opened that were opened from options.
    pub recipes: BTreeMap<NodeId, Arc<Recipe>>,
    next_id: u64,
}

impl<B> Default for Tables<B> {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            edges: BTreeMap::new(),
            origins: BTreeMap::new(),
            recipes: BTreeMap::new(),
            next_id: 0,
        }
    }
}

impl<B> Tables<B> {
    pub fn node(&self, id: NodeId) -> Result<&NodeEntry<B>, Error> {
        self.nodes.get(&id).ok_or_else(|| Error::new(ErrorKind::NotFound, "the node is gone"))
    }

    pub fn edge(&self, id: EdgeId) -> Result<&Edge, Error> {
        self.edges.get(&id).ok_or_else(|| Error::new(ErrorKind::NotFound, "the child is gone"))
    }

    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().find(|(_, node)| &*node.name == name).map(|(&id, _)| id)
    }

    pub fn insert_node(&mut self, node: NodeEntry<B>) -> Result<NodeId, Error> {
        check_name(&node.name)?;
        if self.find(&node.name).is_some() {
            return Err(duplicate(&node.name));
        }
        let id = NodeId(self.take_id());
        self.nodes.insert(id, node);
        Ok(id)
    }

    /// Joins a child to its parent.
    ///
    /// Errors: it would be beneath itself; the parent has a child of this name.
    pub fn insert_edge(&mut self, edge: Edge) -> Result<EdgeId, Error> {
        let child = self.node(edge.child)?;
        if let Parent::Node(parent) = edge.parent {
            let parent_entry = self.node(parent)?;
            let (of, name) = (&child.name, edge.name);
            if self.is_beneath(edge.child, parent) {
                let text = format!(
                    "Making '{of}' a {name} child of '{}' would create a cycle",
                    parent_entry.name
                );
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            let taken = |id: &EdgeId| self.edges.get(id).is_some_and(|edge| edge.name == name);
            if parent_entry.children.iter().any(taken) {
                let text = format!("Node '{}' has a {name} child already", parent_entry.name);
                return Err(Error::new(ErrorKind::Invalid, text));
            }
        }
        let id = EdgeId(self.take_id());
        if let Parent::Node(parent) = edge.parent
            && let Some(parent) = self.nodes.get_mut(&parent)
        {
            parent.children.push(id);
        }
        if let Some(child) = self.nodes.get_mut(&edge.child) {
            child.parents.push(id);
        }
        self.edges.insert(id, edge);
        Ok(id)
    }

    /// Gives a node another child.
    pub fn attach(&mut self, parent: NodeId, child: NewChild) -> Result<EdgeId, Error> {
        self.node(parent)?;
        self.insert_edge(new_edge(parent, child))
    }

    /// Lets an edge lead to another node; the old one goes if nobody uses it.
    pub fn replace_child(&mut self, id: EdgeId, to: NodeId) -> Result<(), Error> {
        let from = self.edge(id)?.child;
        self.redirect(id, to)?;
        self.drop_unused(from);
        Ok(())
    }

    /// Lets the users of a node use another, but for those that stay and those beneath the other.
    pub fn replace_node(&mut self, from: NodeId, to: NodeId) -> Result<(), Error> {
        for edge in self.node(from)?.parents.clone() {
            let moves = match &self.edge(edge)?.parent {
                Parent::Root(root) => !root.stays_at_node(),
                Parent::Node(parent) => !self.is_beneath(to, *parent),
            };
            if moves {
                self.redirect(edge, to)?;
            }
        }
        self.drop_unused(from);
        Ok(())
    }

    /// Takes an edge away; whoever is then beneath nobody goes.
    pub fn remove_edge(&mut self, id: EdgeId) -> Result<(), Error> {
        let edge = self.edge(id)?;
        self.refuse_if_frozen(edge, None)?;
        let child = edge.child;
        self.unlink(id);
        self.drop_unused(child);
        Ok(())
    }

    /// Lets an edge lead to another child. The old one stays, used or not.
    pub fn redirect(&mut self, id: EdgeId, to: NodeId) -> Result<(), Error> {
        let edge = self.edge(id)?;
        self.refuse_if_frozen(edge, Some(to))?;
        let (from, parent) = (edge.child, edge.parent.clone());
        if let Parent::Node(parent) = parent
            && self.is_beneath(to, parent)
        {
            let (child, parent) = (&self.node(to)?.name, &self.node(parent)?.name);
            let name = edge.name;
            let text =
                format!("Making '{child}' a {name} child of '{parent}' would create a cycle");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.node(to)?;
        if let Some(old) = self.nodes.get_mut(&from) {
            old.parents.retain(|edge| *edge != id);
        }
        if let Some(new) = self.nodes.get_mut(&to) {
            new.parents.push(id);
        }
        if let Some(edge) = self.edges.get_mut(&id) {
            edge.child = to;
        }
        Ok(())
    }

    /// Removes a node that nobody uses, and then its children likewise.
    pub fn drop_unused(&mut self, id: NodeId) {
        let mut unused = vec![id];
        while let Some(id) = unused.pop() {
            let is_used = |node: &NodeEntry<B>| node.owned || !node.parents.is_empty();
            if self.nodes.get(&id).is_none_or(is_used) {
                continue;
            }
            self.origins.remove(&id);
            self.recipes.remove(&id);
            let children = self.nodes.remove(&id).map(|node| node.children).unwrap_or_default();
            for edge in children {
                unused.extend(self.edges.get(&edge).map(|edge| edge.child));
                self.unlink(edge);
            }
        }
    }

    fn unlink(&mut self, id: EdgeId) {
        let Some(edge) = self.edges.remove(&id) else { return };
        if let Parent::Node(parent) = edge.parent
            && let Some(parent) = self.nodes.get_mut(&parent)
        {
            parent.children.retain(|edge| *edge != id);
        }
        if let Some(child) = self.nodes.get_mut(&edge.child) {
            child.parents.retain(|edge| *edge != id);
        }
    }

    /// Whether `node` is `above` or somewhere beneath it.
    pub fn is_beneath(&self, above: NodeId, node: NodeId) -> bool {
        let mut seen = Vec::new();
        let mut next = vec![above];
        while let Some(id) = next.pop() {
            if id == node {
                return true;
            }
            if seen.contains(&id) {
                continue;
            }
            seen.push(id);
            next.extend(self.children(id).map(|edge| edge.child));
        }
        false
    }

    /// The edges to a node's children, in the order in which they were joined.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = &Edge> {
        let children = self.nodes.get(&id).map(|node| node.children.as_slice());
        children.unwrap_or_default().iter().filter_map(|id| self.edges.get(id))
    }

    /// The edges from a node's parents.
    pub fn parents(&self, id: NodeId) -> impl Iterator<Item = &Edge> {
        let parents = self.nodes.get(&id).map(|node| node.parents.as_slice());
        parents.unwrap_or_default().iter().filter_map(|id| self.edges.get(id))
    }

    /// Who the parent of an edge is, as messages have it.
    pub fn describe(&self, parent: &Parent) -> String {
        match parent {
            Parent::Root(root) => root.describe(),
            Parent::Node(id) => match self.nodes.get(id) {
                Some(node) => format!("node '{}'", node.name),
                None => "a node that is gone".into(),
            },
        }
    }

    fn refuse_if_frozen(&self, edge: &Edge, to: Option<NodeId>) -> Result<(), Error> {
        if !edge.is_frozen() {
            return Ok(());
        }
        let name = |id| self.nodes.get(&id).map_or("(none)", |node| &*node.name);
        let (of, from) = (self.describe(&edge.parent), name(edge.child));
        let to = to.map_or("(none)", name);
        let text =
            format!("Cannot change frozen '{}' link of {of} from '{from}' to '{to}'", edge.name);
        Err(Error::new(ErrorKind::Busy, text))
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

pub(super) fn duplicate(name: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("Duplicate nodes with node-name='{name}'"))
}

/// The longest name of a node, in bytes.
const MAX_NAME: usize = 31;

/// Refuses what is no name of a node: a letter, then letters, digits, `-`, `.` and `_`. Names
/// made up by the engine begin with `#`.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let rest =
        name.strip_prefix("#block").map(|digits| digits.trim_start_matches(char::is_numeric));
    let is_made_up = rest == Some("");
    let begins_well = name.starts_with(|first: char| first.is_ascii_alphabetic());
    let is_inner = |char: char| char.is_ascii_alphanumeric() || "-._".contains(char);
    let is_given = begins_well && name.chars().all(is_inner);
    if !is_made_up && !is_given {
        let text = format!("Invalid node-name: '{name}'");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    if name.len() > MAX_NAME {
        return Err(Error::new(ErrorKind::Invalid, format!("Node name too long: '{name}'")));
    }
    Ok(())
}

impl NodeEntry<Arc<Node>> {
    /// The entry of a node that was made by hand, which asks of its children what the rule says. It
    /// stays until it is released.
    pub fn new(node: Arc<Node>, child_rule: ChildRule) -> Self {
        Self {
            name: node.name().clone(),
            driver: node.driver_name(),
            read_only: node.limits().read_only,
            force_share: false,
            implicit: false,
            inactive: false,
            is_filter: false,
            has_ragged_end: false,
            child_rule,
            owned: true,
            body: node,
            children: Vec::new(),
            parents: Vec::new(),
        }
    }
}

impl<B> fmt::Debug for NodeEntry<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut entry = f.debug_struct("NodeEntry");
        entry.field("name", &self.name).field("driver", &self.driver).finish_non_exhaustive()
    }
}
