//! The slot table: where an operation lives from submit to completion.

use std::task::Waker;

use oxblock_mem::IoVector;

use crate::route::NONE;
use crate::{ErrorKind, Fault, Op, OpId, Token};

/// The end of a list of slots.
pub(crate) const NIL: u32 = u32::MAX;

/// Where an operation stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// The slot is free.
    Free,
    /// Parts of the operation are at the leaf, or about to be.
    Running,
    /// The result is there, and its user has not fetched it yet.
    Done,
}

/// Who hears of the completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// A user polls for it.
    Poll,
    /// A future waits for it.
    Future,
    /// Nobody: the future was dropped.
    Detached,
}

/// What the fragment at the leaf does to the operation's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// The whole operation at once, over its own memory, with nothing to do afterwards.
    Straight,
    /// Parts of the operation, over its own memory.
    Direct,
    /// A read into the bounce buffer, copied to the operation's memory afterwards.
    BounceRead,
    /// A write or compare out of the bounce buffer.
    BounceWrite,
    /// A read into the bounce buffer, compared afterwards.
    EmulatedCompare,
    /// The flush that makes up for a missing FUA.
    FlushAfter,
    /// Nothing has been done yet: the node is drained.
    Parked,
    /// Nothing is at a leaf: a task of a format works on the operation, or is about to.
    Slow,
}

/// One operation in flight: what every I/O touches, in two cache lines.
#[repr(align(128))]
pub(crate) struct Slot {
    /// Meaningful while the slot is not free; its buffers are empty when it is.
    pub op: Op,
    /// Bytes of the operation handed to the leaf so far.
    pub cursor: u64,
    /// Where the extent at `leaf` ends, as the cursor counts. Meaningful, as the next two are,
    /// once the operation has not gone whole.
    pub extent_end: u64,
    /// What to add to an offset of the node to get that of the leaf, modulo 2^64.
    pub shift: u64,
    pub generation: u32,
    /// Fragments at the leaf.
    pub outstanding: u32,
    /// The next slot of the line that this one stands in: its leaf's, or its user's once it is over.
    pub next: u32,
    /// Where it is at the moment; names no leaf until a route has led to one.
    pub leaf: u16,
    pub user: u16,
    pub state: State,
    pub owner: Owner,
    pub step: Step,
    /// Whether the slot stands in its leaf's line.
    pub waiting: bool,
    /// Nothing more of it goes to the leaf.
    pub cancelled: bool,
    /// Whether there is a fault to report.
    pub failed: bool,
    /// Whether the fragments at the leaf have different shifts.
    pub mixed: bool,
    pub rare: Box<Rare>,
}

const _: () = assert!(size_of::<Slot>() == 128);

/// What few operations need.
pub(crate) struct Rare {
    /// Meaningful if the slot has `failed`.
    fault: Fault,
    pub waker: Option<Waker>,
    /// The bounce buffer, and the part of the operation that it stands for.
    pub bounce: Option<IoVector>,
    pub fragment_at: u64,
    pub fragment_len: u64,
    /// Meaningful while the step is slow.
    pub slow: SlowStep,
}

/// What a format's task is to do for an operation.
#[derive(Default)]
pub(crate) struct SlowStep {
    /// The place of the format's tasks.
    pub place: u16,
    /// Whether a task is at it; else the slot stands in the tasks' line.
    pub begun: bool,
    /// Where the operation's rest begins in the format's node, and how much the task may do.
    pub offset: u64,
    pub len: u64,
    /// The task, where it wants to hear of a cancellation.
    pub waker: Option<Waker>,
    /// The buffers before and behind those that were lent to the task's own requests.
    pub lent: Option<Lent>,
}

/// What is left of an operation's buffers while some are lent, and whether the cuts went through
/// a buffer.
pub(crate) struct Lent {
    pub head: IoVector,
    pub tail: IoVector,
    pub cuts: [bool; 2],
}

impl Slot {
    fn new() -> Self {
        Self {
            op: Op::flush(),
            cursor: 0,
            extent_end: 0,
            shift: 0,
            generation: 0,
            outstanding: 0,
            next: NIL,
            leaf: 0,
            user: 0,
            state: State::Free,
            owner: Owner::Poll,
            step: Step::Direct,
            waiting: false,
            cancelled: false,
            failed: false,
            mixed: false,
            rare: Box::new(Rare {
                fault: Fault::new(ErrorKind::Io, 0),
                waker: None,
                bounce: None,
                fragment_at: 0,
                fragment_len: 0,
                slow: SlowStep::default(),
            }),
        }
    }

    /// An operation takes the slot, which is free; nothing of it is at the leaf yet.
    #[inline(always)]
    pub fn begin(&mut self, user: u16, owner: Owner, op: Op) {
        self.state = State::Running;
        self.owner = owner;
        self.user = user;
        self.cancelled = false;
        self.failed = false;
        // A free slot's buffers are empty: there is nothing to drop.
        std::mem::forget(std::mem::replace(&mut self.op, op));
    }

    /// A leaf took the whole operation at once, which begins at `offset` there.
    #[inline(always)]
    pub fn hand_whole(&mut self, leaf: u16, offset: u64) {
        self.step = Step::Straight;
        self.outstanding = 1;
        self.leaf = leaf;
        self.cursor = self.op.len;
        self.shift = offset.wrapping_sub(self.op.offset);
        self.mixed = false;
    }

    /// A leaf did the whole operation at once, and well.
    #[inline(always)]
    pub fn end_whole(&mut self, leaf: u16) {
        self.step = Step::Straight;
        self.leaf = leaf;
        self.state = State::Done;
    }

    /// The operation goes in parts: to a leaf that has it in one place as the node does, or if it
    /// is [`NONE`], to where its route leads.
    pub fn begin_in_parts(&mut self, leaf: u16) {
        self.step = Step::Direct;
        self.leaf = leaf;
        self.cursor = 0;
        // A flush is one step.
        self.extent_end = if leaf == NONE { 0 } else { self.op.len.max(1) };
        self.shift = 0;
        self.mixed = false;
    }

    /// What was named by the slot is over: late words about it are known by the old name.
    #[inline(always)]
    pub fn forget_name(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Notes why the operation fails; the first reason stays.
    pub fn fail(&mut self, fault: Fault) {
        if !self.failed {
            self.failed = true;
            self.rare.fault = fault;
        }
    }

    /// The operation's outcome.
    #[inline]
    pub fn result(&self) -> Result<(), Fault> {
        if self.failed { Err(self.rare.fault) } else { Ok(()) }
    }
}

impl Slot {
    /// Takes the operation out, with its buffers.
    #[inline(always)]
    pub fn take_op(&mut self) -> Op {
        // As a whole: what is put together of fields waits for each of their stores.
        std::mem::replace(&mut self.op, Op::flush())
    }
}

/// A fixed number of slots, named by index and generation, and a reserve for those whom the
/// others wait for.
pub(crate) struct SlotTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
    reserve: usize,
}

impl SlotTable {
    pub fn new(count: usize, reserve: usize) -> Self {
        let count = (count.clamp(1, 1 << 16) + reserve) as u32;
        let slots = (0..count).map(|_| Slot::new()).collect();
        Self { slots, free: (0..count).rev().collect(), reserve }
    }

    /// Adds to the reserve.
    pub fn add_reserve(&mut self, count: usize) {
        let first = self.slots.len() as u32;
        self.slots.extend((0..count).map(|_| Slot::new()));
        self.free.extend(first..self.slots.len() as u32);
        self.reserve += count;
    }

    /// How many are kept in reserve.
    pub fn reserve(&self) -> usize {
        self.reserve
    }

    /// Slots without the reserve.
    pub fn unreserved(&self) -> usize {
        self.slots.len() - self.reserve
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Slots that are free, the reserve included.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Slots in use, completions not yet fetched included.
    pub fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a free slot, unless that leaves fewer than `keep`.
    #[inline]
    pub fn take(&mut self, keep: usize) -> Option<u32> {
        if self.free.len() <= keep {
            return None;
        }
        self.free.pop()
    }

    /// The slot that [`take`](Self::take) would take.
    #[inline]
    pub fn next_free(&self, keep: usize) -> Option<u32> {
        if self.free.len() <= keep {
            return None;
        }
        self.free.last().copied()
    }

    /// Takes the slot that [`next_free`](Self::next_free) gave.
    #[inline]
    pub fn take_next_free(&mut self) {
        self.free.pop();
    }

    /// Gives a slot back.
    #[inline]
    pub fn release(&mut self, index: u32) {
        let slot = &mut self[index];
        slot.forget_name();
        slot.state = State::Free;
        self.free.push(index);
    }

    /// The slot that a user's name stands for, if the operation is still there.
    pub fn find(&mut self, id: OpId) -> Option<&mut Slot> {
        self.slots
            .get_mut(id.index as usize)
            .filter(|slot| slot.generation == id.generation && slot.state != State::Free)
    }

    /// The slot that a leaf's token stands for, if it has a fragment at the leaf.
    #[inline]
    pub fn find_token(&mut self, token: Token) -> Option<u32> {
        let index = token.0 as u32;
        let slot = self.slots.get(index as usize)?;
        let live = slot.generation == (token.0 >> 32) as u32 && slot.outstanding > 0;
        live.then_some(index)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut()
    }
}

/// The token of a slot's fragments.
#[inline]
pub(crate) fn token(index: u32, generation: u32) -> Token {
    Token(u64::from(generation) << 32 | u64::from(index))
}

impl std::ops::Index<u32> for SlotTable {
    type Output = Slot;
    #[inline]
    fn index(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }
}

impl std::ops::IndexMut<u32> for SlotTable {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }
}

/// A first-in-first-out line of slots, linked through [`Slot::next`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    head: u32,
    tail: u32,
    len: u32,
}

impl Line {
    pub const fn new() -> Self {
        Self { head: NIL, tail: NIL, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn is_empty(&self) -> bool {
        self.head == NIL
    }

    pub fn front(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    #[inline]
    pub fn push_back(&mut self, slots: &mut SlotTable, index: u32) {
        slots[index].next = NIL;
        if self.head == NIL {
            self.head = index;
        } else {
            slots[self.tail].next = index;
        }
        self.tail = index;
        self.len += 1;
    }

    #[inline]
    pub fn pop_front(&mut self, slots: &SlotTable) -> Option<u32> {
        let index = self.front()?;
        self.head = slots[index].next;
        self.len -= 1;
        Some(index)
    }

    /// Takes a slot out of the middle. Walks the line.
    pub fn remove(&mut self, slots: &mut SlotTable, index: u32) {
        let (mut before, mut at) = (NIL, self.head);
        while at != NIL && at != index {
            (before, at) = (at, slots[at].next);
        }
        if at == NIL {
            return;
        }
        self.len -= 1;
        let next = slots[at].next;
        if before == NIL {
            self.head = next;
        } else {
            slots[before].next = next;
        }
        if self.tail == index {
            self.tail = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_slot_does_not_answer_to_its_old_names() {
        let mut table = SlotTable::new(1, 0);
        let index = table.take(0).unwrap();
        table[index].state = State::Running;
        table[index].outstanding = 1;
        let (id, old) = (
            OpId { index, generation: table[index].generation },
            token(index, table[index].generation),
        );
        assert_eq!(table.find_token(old), Some(index));
        table[index].outstanding = 0;
        table.release(index);
        let index = table.take(0).unwrap();
        table[index].state = State::Running;
        table[index].outstanding = 1;
        assert!(table.find(id).is_none());
        assert_eq!(table.find_token(old), None);
        assert_eq!(table.find_token(Token(7)), None);
    }

    #[test]
    fn a_reserve_is_kept_from_those_who_may_not_have_it() {
        let mut table = SlotTable::new(2, 1);
        assert_eq!(table.unreserved(), 2);
        assert!(table.take(1).is_some() && table.take(1).is_some());
        assert_eq!(table.take(1), None);
        assert!(table.take(0).is_some());
        assert_eq!(table.take(0), None);
    }

    #[test]
    fn a_line_keeps_its_order_when_the_middle_leaves() {
        let mut table = SlotTable::new(4, 0);
        let mut line = Line::new();
        for index in 0..4 {
            line.push_back(&mut table, index);
        }
        line.remove(&mut table, 2);
        line.remove(&mut table, 3);
        line.push_back(&mut table, 2);
        assert_eq!(line.len(), 3);
        let order: Vec<_> = std::iter::from_fn(|| line.pop_front(&table)).collect();
        assert_eq!((order, line.len()), (vec![0, 1, 2], 0));
        assert!(line.is_empty());
    }
}
