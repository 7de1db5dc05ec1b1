//! Changes of what nodes stand on, of what drives them, and of the nodes that channels use, while
//! I/O goes on.
//!
//! Every core prepares: it opens queues of the leaves that are new to it, and of new drivers. If
//! one cannot, nothing has changed anywhere. Then the nodes are drained, the nodes' views are
//! replaced at one moment, and each core leads its users along them before their operations go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::core::NewQueue;
use crate::drain::{Drain, Scope, Stage};
use crate::node::{closure, is_among};
use crate::plan::Rules;
use crate::{Core, Driver, Error, ErrorKind, Limits, Node, Restrictions, View};

/// What is to be another.
#[derive(Clone, Default)]
pub(crate) struct ViewChange {
    /// Nodes, and their new views.
    pub views: Vec<(Arc<Node>, View)>,
    /// Nodes whose channels are to use others instead, but for those that stay.
    pub moves: Vec<(Arc<Node>, Arc<Node>)>,
    /// Leaves, and their new drivers.
    pub drivers: Vec<(Arc<Node>, Arc<dyn Driver>)>,
    /// Nodes, and what they are not to let through.
    pub restrictions: Vec<(Arc<Node>, Restrictions)>,
}

/// What has been found out about a change before it is made.
struct Planned {
    change: ViewChange,
    /// The nodes whose limits may be others, and what they will be.
    limits: Vec<(Arc<Node>, Arc<Limits>)>,
    /// It will not be made: nobody takes what is prepared for it.
    is_given_up: AtomicBool,
}

impl ViewChange {
    fn children(&self, node: &Arc<Node>) -> Vec<Arc<Node>> {
        let new = self.views.iter().find(|(changed, _)| Arc::ptr_eq(changed, node));
        let children = new.map_or_else(|| node.children(), |(_, view)| view.children.clone());
        children.to_vec()
    }

    /// The node that a user of this one is to use.
    fn target<'a>(&'a self, node: &'a Arc<Node>, stays: bool) -> &'a Arc<Node> {
        let moved = self.moves.iter().find(|(from, _)| !stays && Arc::ptr_eq(from, node));
        moved.map_or(node, |(_, to)| to)
    }

    /// The nodes that are others themselves.
    fn changed(&self) -> impl Iterator<Item = &Arc<Node>> {
        let views = self.views.iter().map(|(node, _)| node);
        let drivers = self.drivers.iter().map(|(node, _)| node);
        views.chain(drivers).chain(self.restrictions.iter().map(|(node, _)| node))
    }

    fn changes(&self, node: &Arc<Node>) -> bool {
        self.changed().any(|changed| Arc::ptr_eq(changed, node))
    }

    fn driver(&self, node: &Arc<Node>) -> Option<&Arc<dyn Driver>> {
        let new = self.drivers.iter().find(|(changed, _)| Arc::ptr_eq(changed, node));
        new.map(|(_, driver)| driver)
    }

    /// What a node's limits will be over children of these.
    fn limits(&self, node: &Arc<Node>, children: &[Arc<Limits>]) -> Option<Limits> {
        let limits = if node.is_leaf() {
            self.driver(node).cloned().or_else(|| node.driver().ok())?.limits()
        } else {
            let view = self.views.iter().find(|(changed, _)| Arc::ptr_eq(changed, node));
            let format = view.map(|(_, view)| view.format.clone()).or_else(|| node.format());
            format?.limits(children)
        };
        let own = self.restrictions.iter().find(|(changed, _)| Arc::ptr_eq(changed, node));
        Some(match own {
            Some((_, restrictions)) => node.restrict(*restrictions, limits),
            None => node.with_own_limits(limits),
        })
    }

    /// What has to be still for the change: what is another from then on, and what is beneath it
    /// anew, since that may be drained with it.
    fn scope(&self) -> Scope {
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        let views = self.views.iter().flat_map(|(node, view)| {
            let old = node.children();
            let new = view.children.iter().filter(move |child| !is_among(&old, child));
            std::iter::once(node).chain(new).cloned()
        });
        let moves = self.moves.iter().flat_map(|(from, to)| [from.clone(), to.clone()]);
        for node in views.chain(moves).chain(self.changed().cloned()) {
            if !is_among(&nodes, &node) {
                nodes.push(node);
            }
        }
        Scope::Nodes(nodes)
    }

    fn plan(self) -> Planned {
        let mut limits: Vec<(Arc<Node>, Arc<Limits>)> = Vec::new();
        // Above a node as it is now is at least what is above it afterwards, but for new parents,
        // which are themselves among the changed.
        let mut order: Vec<Arc<Node>> = Vec::new();
        for node in self.changed() {
            for above in node.and_above() {
                if !is_among(&order, &above) {
                    order.push(above);
                }
            }
        }
        let mut waiting = order;
        while !waiting.is_empty() {
            let is_ready = |node: &Arc<Node>| {
                !self.children(node).iter().any(|child| is_among(&waiting, child))
            };
            // The graph has no cycles, so one is ready always.
            let Some(at) = waiting.iter().position(is_ready) else { break };
            let node = waiting.remove(at);
            let children: Vec<Arc<Limits>> = (self.children(&node).iter())
                .map(|child| {
                    let planned = limits.iter().find(|(known, _)| Arc::ptr_eq(known, child));
                    planned.map_or_else(|| child.limits(), |(_, limits)| limits.clone())
                })
                .collect();
            let Some(new) = self.limits(&node, &children) else { continue };
            limits.push((node, Arc::new(new)));
        }
        Planned { change: self, limits, is_given_up: AtomicBool::new(false) }
    }
}

/// Queues of new drivers on all cores; without a change that takes them they are dropped.
struct Prepared<'a> {
    core: &'a Core,
    planned: &'a Arc<Planned>,
    is_taken: bool,
}

impl Prepared<'_> {
    fn are_taken(mut self) {
        self.is_taken = true;
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if !self.is_taken && !self.planned.change.drivers.is_empty() {
            self.planned.is_given_up.store(true, Ordering::SeqCst);
            let (core, planned) = (self.core.clone(), self.planned.clone());
            self.core.spawn_detached(core.drop_new_queues(planned));
        }
    }
}

impl Planned {
    fn limits(&self, node: &Arc<Node>) -> Arc<Limits> {
        let planned = self.limits.iter().find(|(known, _)| Arc::ptr_eq(known, node));
        planned.map_or_else(|| node.limits(), |(_, limits)| limits.clone())
    }
}

impl Core {
    /// Makes a change of views on all cores. `commit` is called at the moment from which on it
    /// holds, unless that fails; dropped before, this changes nothing, dropped later, the change
    /// goes its way.
    ///
    /// # Errors
    /// A core could not open a queue of a leaf that is new to it; a user would find another block
    /// size; what `commit` says; a core has ended. Nothing has changed.
    pub(crate) async fn change_views(
        &self,
        change: ViewChange,
        commit: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let drain = Drain::new(self, change.scope()).await?;
        let planned = Arc::new(change.plan());
        let prepared = Prepared { core: self, planned: &planned, is_taken: false };
        drain.announce(true).await?;
        let mut leaves = Vec::new();
        let mut outcome = Ok(());
        for id in 0..self.count() {
            let planned = planned.clone();
            let preparing = self.call(id, move |core| async move { core.prepare(&planned).await });
            let known = preparing.await.and_then(|result| result);
            outcome = outcome.and(known.map(|known| leaves.push(known)));
            if outcome.is_err() {
                break;
            }
        }
        if outcome.is_ok() {
            outcome = drain.settle().await.and_then(|()| commit());
        }
        if let Err(error) = outcome {
            drop(prepared);
            self.close_unused(leaves).await;
            drain.end().await;
            return Err(error);
        }
        for (node, view) in &planned.change.views {
            node.set_view(view.clone());
        }
        prepared.are_taken();
        let drivers = &planned.change.drivers;
        let replaced: Vec<_> =
            drivers.iter().filter_map(|(node, new)| node.set_driver(new.clone())).collect();
        for (node, restrictions) in &planned.change.restrictions {
            node.set_restrictions(*restrictions);
        }
        let old: Vec<_> = (planned.limits.iter()).map(|(node, _)| node.reread()).collect();
        // From here on it is not to be stopped half way.
        let core = self.clone();
        let rest = self.spawn(async move {
            for id in 0..core.count() {
                let queues = planned.clone();
                // One that has ended has no users to lead.
                let _ = core.call(id, move |core| core.take_new_queues(queues)).await;
                let planned = planned.clone();
                let _ = core.tell(id, move |core| core.lead_users(&planned)).await;
            }
            for ((node, _), (old, new)) in planned.limits.iter().zip(&old) {
                core.publish_changes(node, old, new);
            }
            // Operations go on; nodes are opened again when the queues are closed.
            let _ = drain.go_to(Stage::Open).await;
            core.close_unused(leaves).await;
            drain.end().await;
            for driver in replaced {
                // What it says concerns nobody: another does its work.
                let _ = driver.close(&core).await;
            }
        });
        rest.await
    }

    /// Opens queues of what this core's users will reach, and gives the leaves that they reach
    /// now or then.
    async fn prepare(&self, planned: &Planned) -> Result<Vec<Arc<Node>>, Error> {
        let Planned { change, .. } = planned;
        let (mut reached, mut opened) = (Vec::new(), Vec::new());
        let mut outcome = Ok(());
        let users = self.0.io.borrow().users_and_nodes();
        'users: for (node, stays) in users {
            let to = change.target(&node, stays);
            let after = closure(to, |node| change.children(node));
            if Arc::ptr_eq(&node, to) && !after.iter().any(|node| change.changes(node)) {
                continue;
            }
            let (old, new) = (node.limits().block_size, planned.limits(to).block_size);
            if !old.is_multiple_of(new) {
                let text = format!(
                    "the node is in use with blocks of {old} bytes, and would have some of {new}; \
                     close its channels first"
                );
                outcome = Err(Error::new(ErrorKind::NotSupported, text).node(node.name()));
                break;
            }
            reached.extend(node.subtree().into_iter().filter(|node| node.is_leaf()));
            for leaf in after.iter().filter(|node| node.is_leaf()) {
                let is_new = self.0.io.borrow().leaf_of(leaf).is_none();
                if let Err(error) = self.open_leaf(leaf).await {
                    outcome = Err(error);
                    break 'users;
                }
                if is_new {
                    opened.push(leaf.clone());
                }
            }
        }
        if outcome.is_ok() {
            outcome = self.prepare_queues(planned).await;
        }
        if let Err(error) = outcome {
            self.close_unreached(opened).await;
            return Err(error);
        }
        reached.extend(opened);
        Ok(reached)
    }

    /// Opens queues of the new drivers of leaves that this core has open.
    async fn prepare_queues(&self, planned: &Planned) -> Result<(), Error> {
        for (leaf, driver) in &planned.change.drivers {
            if self.0.io.borrow().leaf_of(leaf).is_none() {
                continue;
            }
            let rules = Rules::new(&planned.limits(leaf));
            self.0.io.borrow_mut().provide(&rules, &self.0.arena)?;
            let queue = driver.queue(self).await.map_err(|e| e.node(leaf.name()))?;
            if !planned.is_given_up.load(Ordering::SeqCst) {
                let driver = driver.clone();
                self.0.new_queues.borrow_mut().push(NewQueue { driver, queue });
            }
        }
        Ok(())
    }

    async fn drop_new_queues(self, planned: Arc<Planned>) {
        for id in 0..self.count() {
            let planned = planned.clone();
            let dropped = self.tell(id, move |core| {
                let drivers = &planned.change.drivers;
                let is_its = |new: &mut NewQueue| {
                    drivers.iter().any(|(_, driver)| Arc::ptr_eq(driver, &new.driver))
                };
                let queues = core.0.new_queues.borrow_mut().extract_if(.., is_its).collect();
                drop::<Vec<_>>(queues);
            });
            let _ = dropped.await;
        }
    }

    /// Has the leaves of new drivers use their queues. Nothing is in the old ones.
    async fn take_new_queues(self, planned: Arc<Planned>) {
        for (leaf, driver) in &planned.change.drivers {
            if self.0.io.borrow().leaf_of(leaf).is_none() {
                continue;
            }
            let is_its = |new: &mut NewQueue| Arc::ptr_eq(&new.driver, driver);
            let ready = self.0.new_queues.borrow_mut().extract_if(.., is_its).next();
            let queue = match ready {
                Some(NewQueue { queue, .. }) => Ok(queue),
                // It was opened while the others were prepared.
                None => driver.queue(&self).await,
            };
            let old = self.0.io.borrow_mut().replace_queue(leaf, queue.ok());
            drop(old);
        }
        let mut io = self.0.io.borrow_mut();
        for (node, _) in &planned.limits {
            io.reread_leaf(node);
        }
    }

    /// Leads this core's users along the views of now, and to other nodes.
    fn lead_users(&self, planned: &Planned) {
        let change = &planned.change;
        // Tasks were made for the children that there were; those of now are there before their
        // users are led to them. Without them, what needs one fails.
        self.0.io.borrow_mut().end_tasks_of(|node| change.changes(node));
        let users = self.0.io.borrow().users_and_nodes();
        for (node, stays) in users {
            let _ = self.start_slow(change.target(&node, stays));
        }
        let mut io = self.0.io.borrow_mut();
        io.rebuild_routes(|node| node.subtree().iter().any(|node| change.changes(node)));
        io.move_users(|node, stays| change.target(node, stays).clone());
        io.end_unused_tasks();
        drop(io);
        self.follow_drains();
    }

    /// Flushes a node from this core, which opens its leaves for no longer than that.
    pub(crate) async fn flush_once(&self, node: &Arc<Node>) -> Result<(), Error> {
        let is_shut =
            |leaf: &Arc<Node>| leaf.is_leaf() && self.0.io.borrow().leaf_of(leaf).is_none();
        let shut = node.subtree().into_iter().filter(is_shut).collect();
        let channel = self.open(node).await?;
        let flushed = channel.flush().await;
        drop(channel);
        self.close_unreached(shut).await;
        flushed
    }

    /// Has nodes refuse writes, or take them again: when it returns, none is on its way.
    pub(crate) async fn set_inactive(
        &self,
        nodes: &[Arc<Node>],
        inactive: bool,
    ) -> Result<(), Error> {
        nodes.iter().for_each(|node| node.set_inactive(inactive));
        let restrictions = nodes.iter().map(|node| (node.clone(), node.restrictions())).collect();
        let change = ViewChange { restrictions, ..ViewChange::default() };
        self.change_views(change, || Ok(())).await
    }

    /// Closes queues of leaves that nobody of a core reaches any more: the leaves of each core.
    async fn close_unused(&self, leaves: Vec<Vec<Arc<Node>>>) {
        for (id, leaves) in leaves.into_iter().enumerate() {
            let closed =
                self.call(id, move |core| async move { core.close_unreached(leaves).await });
            let _ = closed.await;
        }
    }

    async fn close_unreached(&self, leaves: Vec<Arc<Node>>) {
        for leaf in leaves {
            let is_reached = self.0.io.borrow().is_reached(&leaf);
            if !is_reached {
                // What it says was told to those whose requests failed; the memory is safe.
                let _ = self.close(&leaf).await;
            }
        }
    }
}
