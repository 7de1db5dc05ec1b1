//! The way from a node that stands on others down to the leaves, as one core goes it.

use std::sync::Arc;

use crate::plan::Rules;
use crate::stats::LeafStats;
use crate::{Extent, Format, Intent, Node, Op, OpKind, View};

/// What an index says that names nothing: a channel on a leaf has no route, one on a route no
/// leaf of its own.
pub(crate) const NONE: u16 = u16::MAX;

/// An immutable view of the nodes beneath one, and this core's queues of their leaves.
pub(crate) struct Route {
    pub node: Arc<Node>,
    pub rules: Rules,
    pub stats: LeafStats,
    /// The leaves that a flush goes to, in this order.
    pub flushes: Vec<u16>,
    /// The top comes first, and each before its children.
    hops: Vec<Hop>,
}

enum Hop {
    Leaf(u16),
    Format {
        format: Arc<dyn Format>,
        /// Where the first child is among the hops: it is asked for most.
        first: u16,
        /// Where all are.
        children: Vec<u16>,
        /// The place of its tasks on this core, or [`NONE`].
        slow: u16,
    },
}

/// Where the first bytes of a range are, for the core that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a leaf.
    Leaf { leaf: u16, offset: u64, len: u64 },
    /// Nowhere: zeroes.
    Zero { len: u64 },
    /// Beyond what takes writes.
    End,
    /// Where tasks of a format have to find out, at this offset of the format's node.
    Slow { slow: u16, offset: u64, len: u64 },
}

impl Route {
    /// The route of a node whose leaves this core has queues of, as `leaf_of` knows them; `None`
    /// if one is missing. `slow_of` knows the places of tasks.
    pub fn new(
        node: &Arc<Node>,
        leaf_of: &dyn Fn(&Arc<Node>) -> Option<u16>,
        slow_of: &dyn Fn(&Arc<Node>) -> Option<u16>,
    ) -> Option<Self> {
        let nodes = node.subtree();
        let place = |node: &Arc<Node>| {
            nodes.iter().position(|known| Arc::ptr_eq(known, node)).map_or(NONE, |at| at as u16)
        };
        let hop = |node: &Arc<Node>| match node.view() {
            None => leaf_of(node).map(Hop::Leaf),
            Some(View { format, children }) => {
                let children: Vec<u16> = children.iter().map(place).collect();
                let first = children.first().copied().unwrap_or(NONE);
                let slow = slow_of(node).unwrap_or(NONE);
                Some(Hop::Format { format, first, children, slow })
            }
        };
        let hops: Vec<Hop> = nodes.iter().map(hop).collect::<Option<_>>()?;
        let mut flushes = Vec::new();
        collect_flushes(node, leaf_of, &mut flushes);
        let (rules, stats) = (Rules::new(&node.limits()), LeafStats::default());
        Some(Self { node: node.clone(), rules, stats, flushes, hops })
    }

    /// Whether it is the way of the same node by the same tasks to the same leaves.
    pub fn is_same(&self, other: &Route) -> bool {
        let ends = |route: &Route| -> Vec<(Option<u16>, u16)> {
            let end = |hop: &Hop| match hop {
                Hop::Leaf(leaf) => (Some(*leaf), NONE),
                Hop::Format { slow, .. } => (None, *slow),
            };
            route.hops.iter().map(end).collect()
        };
        Arc::ptr_eq(&self.node, &other.node) && ends(self) == ends(other)
    }

    /// Whether it leads to this leaf.
    pub fn leads_to(&self, leaf: u16) -> bool {
        self.hops.iter().any(|hop| matches!(hop, Hop::Leaf(known) if *known == leaf))
    }

    /// Whether it leads by the tasks in this place.
    pub fn leads_by(&self, slow: u16) -> bool {
        self.hops.iter().any(|hop| matches!(hop, Hop::Format { slow: known, .. } if *known == slow))
    }

    /// Where an operation goes that is plain, and lies in one place: to which leaf, and the offset
    /// there. Any other to none, [`NONE`].
    pub fn straight(&self, op: &Op) -> (u16, u64) {
        if !self.rules.is_plain(op, op.offset) {
            return (NONE, 0);
        }
        let intent = if op.kind == OpKind::Read { Intent::Read } else { Intent::Write };
        let (mut at, mut offset) = (0, op.offset);
        loop {
            let (format, first, children) = match self.hops.get(usize::from(at)) {
                Some(Hop::Format { format, first, children, .. }) => (format, *first, children),
                Some(Hop::Leaf(leaf)) => return (*leaf, offset),
                None => return (NONE, 0),
            };
            let (child, len) = match format.map(offset, op.len, intent) {
                Extent::Data { child, offset: there, len } => {
                    offset = there;
                    (child, len)
                }
                Extent::Below { child, len } => (child, len),
                Extent::Zero { .. } | Extent::End | Extent::Slow => return (NONE, 0),
            };
            if len < op.len {
                return (NONE, 0);
            }
            at = if child == 0 { first } else { children.get(child).copied().unwrap_or(NONE) };
        }
    }

    /// Where the first of `len` bytes at `offset` are, and how many more with them.
    #[inline]
    pub fn resolve(&self, offset: u64, len: u64, intent: Intent) -> Place {
        let (mut at, mut offset, mut left) = (0, offset, len);
        loop {
            let (format, first, children, slow) = match self.hops.get(at) {
                Some(Hop::Leaf(leaf)) => return Place::Leaf { leaf: *leaf, offset, len: left },
                Some(Hop::Format { format, first, children, slow }) => {
                    (format, *first, children, *slow)
                }
                None => return Place::End,
            };
            let (child, len) = match format.map(offset, left, intent) {
                Extent::Data { child, offset: there, len } => {
                    offset = there;
                    (child, len)
                }
                Extent::Below { child, len } => (child, len),
                Extent::Zero { len } => return Place::Zero { len: left.min(len) },
                Extent::End if intent == Intent::Read => return Place::Zero { len: left },
                Extent::End => return Place::End,
                Extent::Slow => return Place::Slow { slow, offset, len: left },
            };
            left = left.min(len);
            at = match child {
                0 => first,
                child => children.get(child).copied().unwrap_or(NONE),
            }
            .into();
        }
    }
}

fn collect_flushes(
    node: &Arc<Node>,
    leaf_of: &dyn Fn(&Arc<Node>) -> Option<u16>,
    flushes: &mut Vec<u16>,
) {
    if node.limits().no_flush {
        return;
    }
    match node.view() {
        Some(View { format, children }) => {
            for child in format.flushes().iter().filter_map(|&child| children.get(child)) {
                collect_flushes(child, leaf_of, flushes);
            }
        }
        None => {
            let leaf = leaf_of(node).filter(|leaf| !flushes.contains(leaf));
            flushes.extend(leaf);
        }
    }
}
