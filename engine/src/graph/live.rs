//! Changes of a graph while I/O goes on: one operation of the book and of the nodes' views.
//!
//! The permissions of a change are settled on a copy of the book first. Then the nodes whose
//! children are others get new views, and channels new ways, as [`view`](crate::view) does it;
//! the copy becomes the book at the moment from which on the views hold.

use std::sync::Arc;

use super::book::NewChild;
use super::driver_info::Drivers;
use super::policy::OpenPolicy;
use super::tables::{Edge, EdgeId, NodeId, Parent, Tables};
use super::{ChildRole, Graph};
use crate::options::NodeOptions;
use crate::view::ViewChange;
use crate::{Core, Error, ErrorKind, Node, View};

/// Changes of a graph while I/O goes on, from one core; made by [`Graph::live`].
///
/// Each is one transaction. An error has changed nothing: a rule of the graph that does not hold,
/// a format that does not work over such children, a core that cannot open a queue of a leaf, a
/// user that would find another block size, or another process that stands against the new users.
/// Operations on the nodes wait in their slots meanwhile; all others go on. Dropped before its end,
/// a change is made as a whole or not at all.
pub struct Live<'a> {
    graph: &'a mut Graph<Arc<Node>>,
    core: &'a Core,
}

/// What the nodes of a graph are made of.
pub(super) type NodeTables = Tables<Arc<Node>>;

impl Graph<Arc<Node>> {
    /// Changes of this graph while I/O goes on, made from this core.
    pub fn live<'a>(&'a mut self, core: &'a Core) -> Live<'a> {
        Live { graph: self, core }
    }
}

impl Live<'_> {
    /// Gives a node another child.
    ///
    /// # Errors
    /// As all changes: see [`Live`].
    pub async fn attach(&mut self, parent: NodeId, child: NewChild) -> Result<EdgeId, Error> {
        self.change(&[], |tables| tables.attach(parent, child)).await
    }

    /// Takes a child away. What then nobody uses or owns is gone.
    ///
    /// # Errors
    /// As all changes: see [`Live`].
    pub async fn detach(&mut self, edge: EdgeId) -> Result<(), Error> {
        self.refuse_root(edge)?;
        self.change(&[], |tables| tables.remove_edge(edge)).await
    }

    /// Lets a parent use another child in this one's place.
    ///
    /// # Errors
    /// As all changes: see [`Live`].
    pub async fn replace_child(&mut self, edge: EdgeId, to: NodeId) -> Result<(), Error> {
        self.refuse_root(edge)?;
        self.change(&[], |tables| tables.replace_child(edge, to)).await
    }

    /// Lets all users of a node use another instead (`bdrv_replace_node`): nodes above it, users
    /// from outside and channels, but for those that stay at it and for nodes beneath the other.
    ///
    /// # Errors
    /// As all changes: see [`Live`].
    pub async fn replace_node(&mut self, from: NodeId, to: NodeId) -> Result<(), Error> {
        self.change(&[(from, to)], |tables| tables.replace_node(from, to)).await
    }

    /// Puts an overlay that has no backing file yet over a node, and lets the node's users use the
    /// overlay (`bdrv_append`, `blockdev-snapshot`).
    ///
    /// # Errors
    /// `Invalid`: the overlay has users or a backing file already. As all changes: see [`Live`].
    pub async fn append(&mut self, overlay: NodeId, base: NodeId) -> Result<(), Error> {
        let name = &self.graph.node(overlay)?.name;
        if self.graph.parents(overlay).next().is_some() {
            let text = format!("The overlay '{name}' is already in use");
            return Err(Error::new(ErrorKind::Busy, text));
        }
        if self.graph.child(overlay, BACKING).is_some() {
            let text = format!("The overlay '{name}' already has a backing image");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.change(&[(base, overlay)], |tables| {
            tables.attach(overlay, backing(base))?;
            tables.replace_node(base, overlay)
        })
        .await
    }

    /// Changes what a node lies over: another backing file, or none (`bdrv_set_backing_hd`).
    ///
    /// # Errors
    /// As all changes: see [`Live`].
    pub async fn set_backing(&mut self, node: NodeId, to: Option<NodeId>) -> Result<(), Error> {
        let known = self.graph.child(node, BACKING);
        self.change(&[], |tables| match (known, to) {
            (Some(edge), Some(to)) => tables.replace_child(edge, to),
            (Some(edge), None) => tables.remove_edge(edge),
            (None, Some(to)) => tables.attach(node, backing(to)).map(|_| ()),
            (None, None) => Ok(()),
        })
        .await
    }

    /// Opens a node that has `over` for a child (by its name, in the options), and lets all other
    /// users of that use the new node instead: a filter goes in between.
    ///
    /// # Errors
    /// As [`Graph::open`]; `Invalid`: the options name no such child. As all changes: see [`Live`].
    pub async fn insert_filter(
        &mut self,
        drivers: &Drivers,
        options: NodeOptions,
        over: NodeId,
    ) -> Result<NodeId, Error> {
        let name = self.graph.node(over)?.name.clone();
        let planned =
            self.graph.plan_owned(self.core, drivers, options, &OpenPolicy::default()).await?;
        let filter = planned.node().clone();
        let node = self.graph.node(over)?.body.clone();
        if !filter.children().iter().any(|child| Arc::ptr_eq(child, &node)) {
            let text = format!("node '{}' does not stand on '{name}'", filter.name());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let (tables, id) = self.graph.try_change(|tables| {
            let id = tables.insert_planned(planned)?;
            tables.replace_node(over, id)?;
            Ok(id)
        })?;
        self.make(tables, vec![(node, filter)]).await?;
        Ok(id)
    }

    /// Takes a node out that shows its child as it is: its users use the child instead, and it is
    /// gone (`bdrv_drop_filter`).
    ///
    /// # Errors
    /// `Invalid`: the node is no filter; `Busy`: a user stays at it. As all changes: see [`Live`].
    pub async fn remove_filter(&mut self, filter: NodeId) -> Result<(), Error> {
        let name = self.graph.node(filter)?.name.clone();
        let is_filtered = |edge: &&Edge| edge.role.contains(ChildRole::FILTERED);
        let Some(child) = self.graph.children(filter).find(is_filtered).map(|edge| edge.child)
        else {
            let text = format!("node '{name}' shows no child as it is, so it cannot be left out");
            return Err(Error::new(ErrorKind::Invalid, text));
        };
        self.change(&[(filter, child)], |tables| {
            if let Some(node) = tables.nodes.get_mut(&filter) {
                node.owned = false;
            }
            // Before its users are led past it, it lets go of what it asks of the child.
            tables.replace_node(filter, child)?;
            match tables.nodes.contains_key(&filter) {
                false => Ok(()),
                true => {
                    let text = format!("node '{name}' is in use by one that stays at it");
                    Err(Error::new(ErrorKind::Busy, text))
                }
            }
        })
        .await
    }

    /// Makes a change of the book and of what follows from it. `moves` says which nodes' channels
    /// go to others.
    async fn change<T>(
        &mut self,
        moves: &[(NodeId, NodeId)],
        change: impl FnOnce(&mut NodeTables) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let body = |id| self.graph.node(id).map(|node| node.body.clone());
        let moves = moves.iter().map(|&(from, to)| Ok((body(from)?, body(to)?)));
        let moves: Vec<(Arc<Node>, Arc<Node>)> = moves.collect::<Result<_, Error>>()?;
        let (tables, outcome) = self.graph.try_change(change)?;
        self.make(tables, moves).await?;
        Ok(outcome)
    }

    /// Makes a copy of the book the book, and has views and channels follow.
    async fn make(
        &mut self,
        tables: NodeTables,
        moves: Vec<(Arc<Node>, Arc<Node>)>,
    ) -> Result<(), Error> {
        let views = changed_views(self.graph.tables(), &tables)?;
        let graph = &mut *self.graph;
        self.core
            .change_views(ViewChange { views, moves, ..ViewChange::default() }, || {
                graph.keep(tables)
            })
            .await
    }

    fn refuse_root(&self, edge: EdgeId) -> Result<(), Error> {
        match self.graph.edge(edge)?.parent {
            Parent::Node(_) => Ok(()),
            Parent::Root(_) => {
                let text = "the edge is a user's from outside, which has channels of its own";
                Err(Error::new(ErrorKind::Invalid, text))
            }
        }
    }
}

/// What a backing file is called.
const BACKING: &str = "backing";

fn backing(node: NodeId) -> NewChild {
    NewChild { name: BACKING, role: ChildRole::COW, node }
}

/// The views of the nodes whose children are others in a changed book.
pub(super) fn changed_views(
    old: &NodeTables,
    new: &NodeTables,
) -> Result<Vec<(Arc<Node>, View)>, Error> {
    let mut changed = Vec::new();
    for (&id, entry) in &new.nodes {
        let node = &entry.body;
        let edges = |tables: &NodeTables| -> Vec<(&'static str, NodeId)> {
            tables.children(id).map(|edge| (edge.name, edge.child)).collect()
        };
        let (before, now) = (edges(old), edges(new));
        // A new node has the view that it was opened with.
        if before == now || !old.nodes.contains_key(&id) {
            continue;
        }
        let Some(View { format, children: known }) = node.view() else {
            let text = format!("driver '{}' has no children", entry.driver);
            return Err(Error::new(ErrorKind::NotSupported, text).node(&entry.name));
        };
        let body = |edge: &Edge| new.node(edge.child).map(|child| child.body.clone());
        let mut children = new.children(id).map(body).collect::<Result<Vec<_>, _>>()?;
        // Behind those of the book come the format's own.
        children.extend(known.iter().skip(before.len()).cloned());
        let names = |edges: &[(&'static str, NodeId)]| -> Vec<&'static str> {
            edges.iter().map(|(name, _)| *name).collect()
        };
        let format = if names(&before) == names(&now) {
            format
        } else {
            format.with_children(&names(&now)).map_err(|error| error.node(&entry.name))?
        };
        changed.push((node.clone(), View { format, children: children.into() }));
    }
    Ok(changed)
}
