//! Where users are led when the graph changes. Nothing of theirs is under way.

use std::sync::Arc;

use super::users::User;
use super::{Entry, Halt, Io, Standing};
use crate::node::is_among;
use crate::plan::Rules;
use crate::route::{NONE, Route};
use crate::{ErrorKind, Node, Queue};

impl Io {
    /// The nodes that users use, and whether they stay at them.
    pub(crate) fn users_and_nodes(&self) -> Vec<(Arc<Node>, bool)> {
        self.used().map(|user| (user.node.clone(), user.stays)).collect()
    }

    /// Whether somebody's operations can go to a leaf. Tasks do what their node's users ask.
    pub(crate) fn is_reached(&self, leaf: &Arc<Node>) -> bool {
        let mut users = self.used().filter(|user| !matches!(user.standing, Standing::Task(_)));
        users.any(|user| is_among(&user.node.subtree(), leaf))
    }

    fn used(&self) -> impl Iterator<Item = &User> {
        self.users.iter().filter(|user| user.is_used())
    }

    /// Replaces the queue of a leaf, in which nothing is, and gives the old one. Without a new one
    /// the leaf takes nothing any more.
    pub(crate) fn replace_queue(
        &mut self,
        node: &Arc<Node>,
        new: Option<Box<dyn Queue>>,
    ) -> Option<Box<dyn Queue>> {
        let index = self.leaf_of(node)?;
        let leaf = self.leaf_mut(index)?;
        let Some(new) = new else {
            let text = "the node was reopened, and this core could not open it again; close it and \
                        open it anew";
            leaf.halt = Some(Halt::Refused((ErrorKind::Failed, text)));
            return None;
        };
        leaf.dirty = false;
        Some(std::mem::replace(&mut leaf.queue, new))
    }

    /// Takes over what a leaf says of itself now. Nothing is under way to it.
    pub(crate) fn reread_leaf(&mut self, node: &Arc<Node>) {
        if let Some(index) = self.leaf_of(node)
            && let Some(leaf) = self.leaf_mut(index)
        {
            leaf.rules = Rules::new(&node.limits());
            if !matches!(leaf.halt, Some(Halt::Refused(_))) {
                leaf.halt = node.halt();
            }
        }
    }

    /// Makes the routes of these nodes anew, along the views of now.
    pub(crate) fn rebuild_routes(&mut self, is_changed: impl Fn(&Arc<Node>) -> bool) {
        for index in 0..self.routes.len() {
            let is_used = self.used().any(|user| usize::from(user.route) == index);
            if is_used && is_changed(&self.routes[index].node) {
                let node = self.routes[index].node.clone();
                if let Some(mut route) = self.route_as_it_is(&node) {
                    route.stats = self.routes[index].stats;
                    self.routes[index] = route;
                }
            }
        }
    }

    /// Lets each user go to the node that `target` says for its own, or for one that stays.
    pub(crate) fn move_users(&mut self, target: impl Fn(&Arc<Node>, bool) -> Arc<Node>) {
        for index in 0..self.users.len() {
            let user = &self.users[index];
            let to = target(&user.node, user.stays);
            if !user.is_used() || Arc::ptr_eq(&user.node, &to) {
                continue;
            }
            let entry = if to.is_leaf() {
                self.leaf_of(&to).map_or(Entry::Nowhere, Entry::Leaf)
            } else {
                let route = self.route_as_it_is(&to);
                route.map_or(Entry::Nowhere, |route| Entry::Route(self.keep_route(route)))
            };
            let user = &mut self.users[index];
            user.node = to;
            user.enter(entry);
            if user.parked.is_some() {
                user.close_way();
            }
        }
    }

    /// A node's route; what lies on leaves that are closed fails.
    fn route_as_it_is(&self, node: &Arc<Node>) -> Option<Route> {
        let leaf_of = |leaf: &Arc<Node>| Some(self.leaf_of(leaf).unwrap_or(NONE));
        Route::new(node, &leaf_of, &|node| self.slow_of(node))
    }
}
