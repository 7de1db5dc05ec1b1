//! Changes of a node that is open: other limits, or no operations at all any more. Each core
//! keeps rules of its own, and hears of a change by message, so that the I/O path reads nothing
//! that another core writes.

use std::sync::Arc;

use oxblock_mem::Arena;

use crate::io::{Halt, Io};
use crate::node::Refusal;
use crate::plan::Rules;
use crate::slot::{State, Step};
use crate::{Core, Error, ErrorKind, EventKind, Limits, Node};

impl Core {
    /// Reads a node's limits from its driver afresh and has every core keep to them, open
    /// channels included: a driver asks for it when its device has changed. When it returns, what
    /// the node has grown by can be used on all cores. Operations that no longer fit and have not
    /// reached the device fail as if they were submitted now; what the device has it answers. The
    /// limits of the nodes above follow.
    ///
    /// The block size must not change: driver and device would take the same numbers for other
    /// places. [`withdraw`](Core::withdraw) such a node.
    ///
    /// # Errors
    /// A core has ended, or has no memory for what the new limits need.
    pub async fn refresh(&self, node: &Arc<Node>) -> Result<(), Error> {
        let mut outcome = Ok(());
        for node in node.and_above() {
            let (old, new) = node.reread();
            if old != new {
                outcome = outcome.and(self.tell_cores(&node).await);
                self.publish_changes(&node, &old, &new);
            }
        }
        outcome
    }

    /// Has every core refuse all operations on a node from now on, for good: its device, or what
    /// it was on it, is no more. What the device has it answers; everything else fails with this
    /// kind and these words. A new node may take its place.
    ///
    /// # Errors
    /// A core has ended.
    pub async fn withdraw(
        &self,
        node: &Arc<Node>,
        kind: ErrorKind,
        text: &'static str,
    ) -> Result<(), Error> {
        if !node.set_withdrawn((kind, text)) {
            return Ok(());
        }
        let outcome = self.tell_cores(node).await;
        self.publish(node.name(), EventKind::NodeGone, text);
        outcome
    }

    /// Has every core keep operations on a node in their slots, in order, until
    /// [`resume`](Core::resume): its device asks not to be disturbed for a while. What the device
    /// has goes on.
    ///
    /// # Errors
    /// A core has ended.
    pub async fn hold(&self, node: &Arc<Node>) -> Result<(), Error> {
        node.set_held(true);
        self.tell_cores(node).await
    }

    /// Lets operations on a node that was held go on.
    ///
    /// # Errors
    /// A core has ended.
    pub async fn resume(&self, node: &Arc<Node>) -> Result<(), Error> {
        node.set_held(false);
        self.tell_cores(node).await
    }

    async fn tell_cores(&self, node: &Arc<Node>) -> Result<(), Error> {
        let mut outcome = Ok(());
        for id in 0..self.count() {
            let node = node.clone();
            let told = self.call(id, move |core| async move {
                core.0.io.borrow_mut().follow(&node, &core.0.arena)
            });
            outcome = outcome.and(told.await.and_then(|result| result));
        }
        outcome.map_err(|error| error.node(node.name()))
    }

    pub(crate) fn publish_changes(&self, node: &Arc<Node>, old: &Limits, new: &Limits) {
        let (from, to) = (old.length, new.length);
        if from != to {
            let verb = if to > from { "grew" } else { "shrank" };
            let text = format!("{verb} from {from} to {to} bytes");
            self.publish(node.name(), EventKind::NodeResized { from, to }, text);
        }
        match (old.read_only, new.read_only) {
            (false, true) => {
                self.publish(node.name(), EventKind::NodeReadOnly, "takes no writes any more");
            }
            (true, false) => {
                self.publish(node.name(), EventKind::NodeWritable, "takes writes again");
            }
            _ => {}
        }
    }
}

impl Io {
    /// Takes over what a node says of itself now, if this core has it open.
    fn follow(&mut self, node: &Arc<Node>, arena: &Arena) -> Result<(), Error> {
        let rules = Rules::new(&node.limits());
        self.follow_routes(node);
        let Some(index) = self.leaf_of(node) else { return Ok(()) };
        let provided = self.provide(&rules, arena);
        if let Some(leaf) = self.leaf_mut(index) {
            leaf.rules = rules;
            let no_memory: Refusal =
                (ErrorKind::OutOfMemory, "no memory for what the node's new limits need");
            let no_memory = provided.is_err().then_some(Halt::Refused(no_memory));
            // A leaf that refuses already is being closed, and stays so.
            if !matches!(leaf.halt, Some(Halt::Refused(_))) {
                leaf.halt = no_memory.or(node.halt());
            }
        }
        self.check_again(index);
        provided
    }

    /// Fails what has not reached the leaf in all, and would not be admitted now. The next turn
    /// hands it out.
    fn check_again(&mut self, leaf: u16) {
        for index in 0..self.slots().len() as u32 {
            let slot = &self.slots()[index];
            // What the leaf has in all, and the flush after it, it answers.
            let is_underway = slot.state == State::Running
                && slot.leaf == leaf
                && !matches!(slot.step, Step::Straight | Step::FlushAfter)
                && slot.cursor < self.total(index);
            if is_underway && let Err(fault) = self.check(index) {
                self.slots_mut()[index].fail(fault);
            }
        }
    }
}
