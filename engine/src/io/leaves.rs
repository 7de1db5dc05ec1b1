//! The queues of one core's leaves: opened, asked, closed.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use oxblock_mem::{Arena, Pool};

use super::{BOUNCE_COUNT, Io};
use crate::node::Refusal;
use crate::plan::{BOUNCE_LEN, Rules};
use crate::slot::{Line, SlotTable, State};
use crate::stats::{CoreStats, LeafStats};
use crate::{Error, ErrorKind, Node, Op, Queue, Sleep};

/// A node's queue on this core.
pub(crate) struct Leaf {
    pub(super) node: Arc<Node>,
    pub(super) queue: Box<dyn Queue>,
    pub(crate) rules: Rules,
    /// Slots whose next fragment the queue would not take yet.
    pub(super) line: Line,
    /// Whether requests were submitted since the last kick.
    pub(super) dirty: bool,
    /// Whether, and how, operations are kept from the queue.
    pub(crate) halt: Option<Halt>,
    pub(super) stats: LeafStats,
}

/// Why operations do not go to a leaf's queue.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Halt {
    /// The node is held: they wait in the leaf's line.
    Held,
    /// The leaf is being closed, or its node was withdrawn: they fail.
    Refused(Refusal),
}

impl Leaf {
    /// Whether an operation that begins at `offset` here can go to the queue now, whole and as it
    /// is.
    #[inline(always)]
    pub(super) fn takes(&self, op: &Op, offset: u64) -> bool {
        self.rules.is_straight(op, offset) && self.line.is_empty() && self.halt.is_none()
    }

    /// Why operations are refused, if they are.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        match self.halt {
            Some(Halt::Refused(refusal)) => Some(refusal),
            Some(Halt::Held) | None => None,
        }
    }
}

impl Io {
    /// The index of a node's queue on this core, if it has one.
    pub fn leaf_of(&self, node: &Arc<Node>) -> Option<u16> {
        let same = |leaf: &Option<Leaf>| leaf.as_ref().is_some_and(|l| Arc::ptr_eq(&l.node, node));
        self.leaves.iter().position(same).map(|index| index as u16)
    }

    /// Adds a node's queue.
    pub fn add_leaf(
        &mut self,
        node: &Arc<Node>,
        queue: Box<dyn Queue>,
        arena: &Arena,
    ) -> Result<u16, Error> {
        let rules = Rules::new(&node.limits());
        self.provide(&rules, arena)?;
        let leaf = Leaf {
            node: node.clone(),
            queue,
            rules,
            line: Line::new(),
            dirty: false,
            halt: node.halt(),
            stats: LeafStats::default(),
        };
        let free = (0..self.leaf_count()).find(|index| self.is_free(*index));
        let index = free.unwrap_or_else(|| {
            self.leaves.push(None);
            self.leaf_count() - 1
        });
        self.leaves[index as usize] = Some(leaf);
        Ok(index)
    }

    /// Whether another node may have this place: no channel and no slot means the one before.
    pub(super) fn is_free(&self, leaf: u16) -> bool {
        self.leaves[leaf as usize].is_none()
            && !self.users.iter().any(|user| user.open && user.leaf == leaf)
            && !self.is_routed_to(leaf)
            && !self.slots.iter().any(|slot| slot.state != State::Free && slot.leaf == leaf)
    }

    /// Takes the memory that a leaf of these rules needs beside its own.
    pub(crate) fn provide(&mut self, rules: &Rules, arena: &Arena) -> Result<(), Error> {
        if rules.may_bounce() && self.bounce.is_none() {
            self.bounce = Some(Pool::new(arena, BOUNCE_LEN, BOUNCE_COUNT)?);
        }
        if rules.max_write_zeroes == 0 && self.zeroes.is_none() {
            self.zeroes = Some(arena.alloc(BOUNCE_LEN, 4096)?.into());
        }
        Ok(())
    }

    /// What each leaf says about sleep.
    pub fn sleeps(&mut self) -> impl Iterator<Item = Sleep<'_>> {
        self.leaves.iter_mut().flatten().map(|leaf| leaf.queue.sleep())
    }

    /// Lets the leaf wait whose place among [`sleeps`](Self::sleeps) this is: see
    /// [`Queue::wait`].
    pub fn wait(&mut self, at: usize, event: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
        let leaf = self.leaves.iter_mut().flatten().nth(at);
        leaf.is_some_and(|leaf| leaf.queue.wait(event, timeout))
    }

    /// Whether to poll a while before sleep: always, unless all that is in flight is slow.
    pub fn is_worth_polling(&self, now_ns: u64) -> bool {
        let mut busy =
            self.leaves.iter().flatten().filter(|leaf| leaf.queue.in_flight() > 0).peekable();
        busy.peek().is_none() || busy.any(|leaf| leaf.queue.is_worth_polling(now_ns))
    }

    /// What the slot table holds and saw.
    pub fn stats(&self) -> CoreStats {
        CoreStats {
            slots: self.slots.unreserved(),
            slots_used: self.slots.used(),
            slots_to_serve: self.slots.free() - self.slots_of_tasks().min(self.slots.free()),
            spurious_completions: self.spurious,
            sleeps: 0,
        }
    }

    /// What a user's node did.
    pub fn leaf_stats(&self, user: u16) -> LeafStats {
        if let Some(route) = self.route(user) {
            return route.stats;
        }
        let leaf = self.leaf_of(&self.users[user as usize].node);
        let leaf = leaf.and_then(|leaf| self.leaves[leaf as usize].as_ref());
        leaf.map_or_else(LeafStats::default, |leaf| leaf.stats)
    }

    pub(super) fn is_held(&self, leaf: u16) -> bool {
        let leaf = self.leaves.get(leaf as usize).and_then(Option::as_ref);
        leaf.is_some_and(|leaf| matches!(leaf.halt, Some(Halt::Held)))
    }

    pub(crate) fn slots(&self) -> &SlotTable {
        &self.slots
    }

    pub(crate) fn slots_mut(&mut self) -> &mut SlotTable {
        &mut self.slots
    }

    pub(crate) fn leaf_count(&self) -> u16 {
        self.leaves.len() as u16
    }

    pub(crate) fn leaf_mut(&mut self, leaf: u16) -> Option<&mut Leaf> {
        self.leaves.get_mut(leaf as usize)?.as_mut()
    }

    pub(crate) fn take_leaf(&mut self, leaf: u16) -> Option<Leaf> {
        self.leaves.get_mut(leaf as usize)?.take()
    }

    /// Asks a leaf's device to stop; true once it has, or if there is no such leaf.
    pub(crate) fn quiesce(&mut self, leaf: u16) -> bool {
        match self.leaves.get_mut(leaf as usize) {
            Some(Some(leaf)) => leaf.queue.quiesce(&mut self.pass),
            _ => true,
        }
    }

    /// From now on every operation fails.
    pub(crate) fn set_failed(&mut self, text: &'static str) {
        self.failed = Some(text);
        for leaf in self.leaves.iter_mut().flatten() {
            leaf.halt = Some(Halt::Refused((ErrorKind::Failed, text)));
        }
    }
}
