//! The users of one core's leaves: channels, and the futures of their operations.

use std::sync::Arc;
use std::task::Waker;

use super::{BOUNCE_RESERVE, Io, NESTED_RESERVE, SLOT_RESERVE};
use crate::route::{NONE, Route};
use crate::slot::{Line, Owner, State, Step, token};
use crate::{Completion, ErrorKind, Fault, Node, Op, OpId};

/// A channel's completions.
pub(super) struct User {
    /// Where new operations go, or [`NONE`] if they have a route to go, or none.
    pub(super) leaf: u16,
    /// By which route new operations go, or [`NONE`].
    pub(super) way_in: u16,
    /// By which route those go that are under way, or [`NONE`].
    pub(super) route: u16,
    /// What it uses.
    pub(super) node: Arc<Node>,
    /// Operations that wait for the end of a drained section, while there is one.
    pub(super) parked: Option<Line>,
    /// Whether it keeps to its node when that is replaced by another.
    pub(super) stays: bool,
    /// Its operations that are over, to be fetched.
    pub(super) done: Line,
    pub(super) open: bool,
    pub(super) in_flight: u32,
    pub(super) standing: Standing,
    /// How many free slots and bounce buffers it leaves to others.
    pub(super) keep_slots: usize,
    pub(super) keep_bounce: usize,
}

/// A future that found no free slot.
pub(super) struct Waiting {
    ticket: u64,
    /// How many free slots it leaves to others.
    keep: usize,
    waker: Waker,
}

/// What others wait for of a channel's user.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Standing {
    /// Nothing.
    User,
    /// It serves users who may be on this core.
    Serving,
    /// It is a format's task, whose requests need so many levels of tasks beneath them in turn.
    Task(usize),
}

impl Standing {
    /// How many slots of a table with this reserve it leaves to others. Each level of tasks has
    /// some that none above it may take: so the lowest always get on, and then those above them.
    fn keeps_slots(self, reserve: usize) -> usize {
        match self {
            Self::User => reserve,
            Self::Serving => reserve - SLOT_RESERVE,
            Self::Task(levels) => levels * NESTED_RESERVE,
        }
    }
}

/// Where a channel's operations enter.
#[derive(Clone, Copy)]
pub(crate) enum Entry {
    /// At a leaf.
    Leaf(u16),
    /// At a node that stands on others.
    Route(u16),
    /// They fail: the node was closed.
    Nowhere,
}

impl User {
    /// From now on operations enter here. None is under way.
    pub(super) fn enter(&mut self, entry: Entry) {
        (self.leaf, self.route) = match entry {
            Entry::Leaf(leaf) => (leaf, NONE),
            Entry::Route(route) => (NONE, route),
            Entry::Nowhere => (NONE, NONE),
        };
        self.way_in = self.route;
    }

    /// Where an operation goes that can go whole: to which leaf, or [`NONE`], and the offset there.
    #[inline(always)]
    pub(super) fn aim(&self, routes: &[Route], op: &Op) -> (u16, u64) {
        if self.leaf != NONE {
            return (self.leaf, op.offset);
        }
        routes.get(self.way_in as usize).map_or((NONE, 0), |route| route.straight(op))
    }

    /// New operations find no way in.
    pub(super) fn close_way(&mut self) {
        (self.leaf, self.way_in) = (NONE, NONE);
    }

    /// Whether there is somebody, or something under way.
    pub(super) fn is_used(&self) -> bool {
        self.open || self.in_flight > 0
    }
}

impl Io {
    /// Adds a user of a leaf, or of a route.
    pub fn add_user(&mut self, node: &Arc<Node>, entry: Entry, standing: Standing) -> u16 {
        let mut user = User {
            leaf: NONE,
            way_in: NONE,
            route: NONE,
            node: node.clone(),
            parked: None,
            // A task's channels are what its node stands on.
            stays: matches!(standing, Standing::Task(_)),
            done: Line::new(),
            open: true,
            in_flight: 0,
            standing,
            keep_slots: standing.keeps_slots(self.slots.reserve()),
            keep_bounce: if matches!(standing, Standing::User) { BOUNCE_RESERVE } else { 0 },
        };
        user.enter(entry);
        let index = match self.users.iter().position(|user| !user.is_used()) {
            Some(index) => {
                self.users[index] = user;
                index
            }
            None => {
                self.users.push(user);
                self.users.len() - 1
            }
        };
        self.follow_drains();
        index as u16
    }

    /// The node that a user uses.
    pub fn node_of(&self, user: u16) -> Arc<Node> {
        self.users[user as usize].node.clone()
    }

    /// The length of a user's node, as this core keeps to it.
    pub fn length_for(&self, user: u16) -> u64 {
        if let Some(route) = self.route(user) {
            return route.rules.length;
        }
        let leaf = self.leaves.get(self.users[user as usize].leaf as usize);
        leaf.and_then(Option::as_ref).map_or(0, |leaf| leaf.rules.length)
    }

    /// A user keeps to its node from now on.
    pub fn let_stay(&mut self, user: u16) {
        self.users[user as usize].stays = true;
    }

    /// Ends a user: what it has in flight is detached, what it did not fetch is dropped.
    pub fn remove_user(&mut self, user: u16) {
        while let Some(index) = self.next_done(user) {
            drop(self.take_result(index));
        }
        for slot in self.slots.iter_mut() {
            if slot.user == user && slot.state == State::Running {
                slot.owner = Owner::Detached;
                slot.rare.waker = None;
            }
        }
        self.users[user as usize].open = false;
        self.end_unused_tasks();
    }

    /// Provides slots for the requests of so many levels of tasks.
    pub(super) fn provide_levels(&mut self, levels: usize) {
        let wanted = SLOT_RESERVE + levels * NESTED_RESERVE;
        let missing = wanted.saturating_sub(self.slots.reserve());
        if missing == 0 {
            return;
        }
        self.slots.add_reserve(missing);
        self.pass.done.reserve(self.slots.len() * super::MAX_FRAGMENTS as usize);
        for user in &mut self.users {
            user.keep_slots = user.standing.keeps_slots(self.slots.reserve());
        }
    }

    /// The slot of a polling user's next completion.
    #[inline(always)]
    pub fn next_done(&mut self, user: u16) -> Option<u32> {
        self.users[user as usize].done.pop_front(&self.slots)
    }

    /// Completions that wait to be fetched by a user, those included of leaves that
    /// completed within their submit.
    #[inline]
    pub fn completions_waiting(&mut self, user: u16) -> usize {
        if !self.pass.done.is_empty() {
            self.drain();
        }
        self.users[user as usize].done.len()
    }

    /// Puts a user's operations that are over at the end of `ops`; `failed` hears of faults. How
    /// many there were.
    #[inline(always)]
    pub fn fetch(
        &mut self,
        user: u16,
        ops: &mut Vec<Op>,
        mut failed: impl FnMut(&Op, Fault),
    ) -> usize {
        let count = self.completions_waiting(user);
        for _ in 0..count {
            let Some(index) = self.next_done(user) else { break };
            let slot = &mut self.slots[index];
            if let Err(fault) = slot.result() {
                failed(&slot.op, fault);
            }
            ops.push(slot.take_op());
            self.release(index);
        }
        count
    }

    /// A user's operations between submit and the fetching of their completions.
    pub fn user_in_flight(&self, user: u16) -> usize {
        self.users[user as usize].in_flight as usize
    }

    /// The result of a future's operation, once it is there.
    pub fn poll_future(&mut self, id: OpId, waker: &Waker) -> Option<Completion> {
        let slot = self.slots.find(id)?;
        if slot.state == State::Done {
            return Some(self.take_result(id.index));
        }
        if !slot.rare.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            slot.rare.waker = Some(waker.clone());
        }
        None
    }

    /// The future of this operation is gone; the slot keeps the buffers until the leaf is done.
    pub fn detach(&mut self, id: OpId) {
        let Some(slot) = self.slots.find(id) else {
            return;
        };
        slot.owner = Owner::Detached;
        slot.rare.waker = None;
        if slot.state == State::Done {
            drop(self.take_result(id.index));
        }
    }

    /// Wakes this waker when there is a slot for this user. `ticket` is the place in the line,
    /// where it has one.
    pub fn wait_for_slot(&mut self, user: u16, ticket: &mut Option<u64>, waker: &Waker) {
        let mut waiting = self.admission.iter_mut();
        if let Some(known) = waiting.find(|known| Some(known.ticket) == *ticket) {
            return known.waker.clone_from(waker);
        }
        let (keep, waker) = (self.users[user as usize].keep_slots, waker.clone());
        let number = *ticket.insert(self.next_ticket);
        self.next_ticket += 1;
        self.admission.push_back(Waiting { ticket: number, keep, waker });
    }

    /// Somebody waits for a slot no more, and has none. If it was woken for one, that is another's.
    pub fn give_up_waiting(&mut self, ticket: Option<u64>) {
        if ticket.is_some() && !self.leave_admission(ticket) {
            self.admit_next();
        }
    }

    /// Takes somebody out of the line for slots. Whether it was there.
    pub fn leave_admission(&mut self, ticket: Option<u64>) -> bool {
        let before = self.admission.len();
        self.admission.retain(|known| Some(known.ticket) != ticket);
        self.admission.len() < before
    }

    /// Wakes the first of those who wait for a slot and may have one of those that are free.
    #[cold]
    pub fn admit_next(&mut self) {
        let free = self.slots.free();
        let next = self.admission.iter().position(|waiting| free > waiting.keep);
        if let Some(waiting) = next.and_then(|next| self.admission.remove(next)) {
            waiting.waker.wake();
        }
    }

    /// Asks for an early end. Whether the operation was still there.
    pub fn cancel(&mut self, id: OpId) -> bool {
        let Some(slot) = self.slots.find(id) else {
            return false;
        };
        if slot.state != State::Running {
            return false;
        }
        if slot.step == Step::Parked {
            self.cancel_parked(id.index);
            return true;
        }
        let (index, leaf_index) = (id.index, slot.leaf as usize);
        if slot.step == Step::Slow {
            self.cancel_slow(index);
            return true;
        }
        let Some(Some(leaf)) = self.leaves.get_mut(leaf_index) else {
            return false;
        };
        slot.cancelled = true;
        if slot.outstanding > 0 {
            leaf.queue.cancel(token(index, id.generation));
        } else if slot.waiting {
            slot.waiting = false;
            slot.fail(Fault::new(ErrorKind::Cancelled, 0));
            leaf.line.remove(&mut self.slots, index);
            self.finish(index);
        }
        true
    }
}
