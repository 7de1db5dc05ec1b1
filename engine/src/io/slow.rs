//! Operations that a format's tasks have to see to: they wait in their slots, in the line of the
//! format's place on this core, until one of its tasks takes them, does its part, and lets them go
//! on. See [`crate::slow`] for the tasks' side.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use oxblock_mem::IoVector;

use super::routed::Next;
use super::{Io, SLOT_RESERVE};
use crate::slot::{Lent, Line, Slot, State, Step};
use crate::{ErrorKind, Fault, Node, OpFlags, OpId, OpKind, SlowDone};

/// Where the operations and the tasks of one format's node meet.
pub(crate) struct SlowPlace {
    node: Arc<Node>,
    /// Operations that no task has taken yet.
    line: Line,
    /// Tasks with nothing to do.
    idle: Vec<Waker>,
    /// Tasks that there are.
    tasks: usize,
    /// Nobody uses the node any more: the tasks are to end.
    over: bool,
}

/// What a task takes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlowPart {
    pub id: OpId,
    pub kind: OpKind,
    pub flags: OpFlags,
    pub offset: u64,
    pub len: u64,
}

impl Io {
    // --- the operations' side ---

    /// Notes what an operation needs a task for.
    pub(super) fn note_slow(&mut self, index: u32, place: u16, offset: u64, len: u64) -> Next {
        let is_there =
            matches!(self.slow.get(place as usize), Some(Some(place)) if place.tasks > 0);
        if !is_there {
            self.fail_here(index, ErrorKind::Io, "the format has no task for what it is slow at");
            return Next::Over;
        }
        let step = &mut self.slots[index].rare.slow;
        (step.place, step.offset, step.len) = (place, offset, len);
        Next::Slow
    }

    /// Lets an operation wait for a task.
    pub(super) fn begin_slow(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        slot.step = Step::Slow;
        slot.rare.slow.begun = false;
        if let Some(Some(place)) = self.slow.get_mut(slot.rare.slow.place as usize) {
            place.line.push_back(&mut self.slots, index);
            if let Some(idle) = place.idle.pop() {
                idle.wake();
            }
        }
    }

    /// Ends an operation that no task has taken yet, and asks the task of any other.
    pub(super) fn cancel_slow(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        slot.cancelled = true;
        if slot.rare.slow.begun {
            if let Some(waker) = slot.rare.slow.waker.take() {
                waker.wake();
            }
            return;
        }
        let place = slot.rare.slow.place;
        if let Some(Some(place)) = self.slow.get_mut(place as usize) {
            place.line.remove(&mut self.slots, index);
        }
        self.end_step(index, Err(Fault::new(ErrorKind::Cancelled, 0)));
    }

    fn end_step(&mut self, index: u32, result: Result<SlowDone, Fault>) {
        let total = self.total(index);
        let slot = &mut self.slots[index];
        slot.step = Step::Direct;
        slot.rare.slow.waker = None;
        match result {
            Ok(SlowDone::Again) => {}
            Ok(SlowDone::Bytes(bytes)) => slot.cursor += bytes.min(slot.rare.slow.len),
            Err(fault) => slot.fail(translate(slot, fault)),
        }
        slot.extent_end = slot.cursor;
        if slot.cancelled && slot.cursor < total {
            slot.fail(Fault::new(ErrorKind::Cancelled, 0));
        }
        if slot.failed {
            self.finish(index);
        } else {
            self.go_on(index);
        }
    }

    // --- the tasks' side ---

    /// The place of a node's tasks on this core.
    pub(crate) fn slow_of(&self, node: &Arc<Node>) -> Option<u16> {
        let is_its = |place: &Option<SlowPlace>| {
            place.as_ref().is_some_and(|place| !place.over && Arc::ptr_eq(&place.node, node))
        };
        self.slow.iter().position(is_its).map(|place| place as u16)
    }

    /// A place for the tasks of a node, with slots for the requests that they and so many levels
    /// of tasks beneath them make.
    pub(crate) fn add_slow(&mut self, node: &Arc<Node>, levels: usize, tasks: usize) -> u16 {
        self.provide_levels(levels);
        let place = SlowPlace {
            node: node.clone(),
            line: Line::new(),
            idle: Vec::with_capacity(tasks),
            tasks: 0,
            over: false,
        };
        let free = self.slow.iter().position(Option::is_none);
        match free {
            Some(free) => self.slow[free] = Some(place),
            None => self.slow.push(Some(place)),
        }
        free.unwrap_or(self.slow.len() - 1) as u16
    }

    /// How many slots only tasks may take.
    pub(super) fn slots_of_tasks(&self) -> usize {
        self.slots.reserve() - SLOT_RESERVE
    }

    /// A task has come to its place.
    pub(crate) fn add_task(&mut self, place: u16) {
        if let Some(Some(place)) = self.slow.get_mut(place as usize) {
            place.tasks += 1;
        }
    }

    /// A task has ended. With the last one its place goes, and what waited there fails.
    pub(crate) fn remove_task(&mut self, place: u16) {
        let at = place as usize;
        let Some(Some(place)) = self.slow.get_mut(at) else { return };
        place.tasks -= 1;
        if place.tasks > 0 {
            return;
        }
        while let Some(Some(place)) = self.slow.get_mut(at)
            && let Some(index) = place.line.pop_front(&self.slots)
        {
            let text = "the format's tasks have ended";
            self.end_step(index, Err(Fault::text(ErrorKind::Failed, 0, text)));
        }
        if self.slow[at].as_ref().is_some_and(|place| place.over) {
            self.slow[at] = None;
        }
    }

    /// Ends the tasks of nodes that are changed; others take their places.
    pub(crate) fn end_tasks_of(&mut self, is_changed: impl Fn(&Arc<Node>) -> bool) {
        for place in self.slow.iter_mut().flatten().filter(|place| is_changed(&place.node)) {
            place.over = true;
            place.idle.drain(..).for_each(Waker::wake);
        }
    }

    /// Ends the tasks of nodes that nobody uses.
    pub(crate) fn end_unused_tasks(&mut self) {
        for at in 0..self.slow.len() {
            if !self.used_routes().any(|route| route.leads_by(at as u16))
                && let Some(place) = &mut self.slow[at]
            {
                place.over = true;
                place.idle.drain(..).for_each(Waker::wake);
            }
        }
    }

    /// The next operation for a task of this place; `None` when there will be no more.
    pub(crate) fn next_slow(
        &mut self,
        place: u16,
        context: &mut Context<'_>,
    ) -> Poll<Option<SlowPart>> {
        let Some(Some(place)) = self.slow.get_mut(place as usize) else {
            return Poll::Ready(None);
        };
        let Some(index) = place.line.pop_front(&self.slots) else {
            if place.over {
                return Poll::Ready(None);
            }
            if !place.idle.iter().any(|idle| idle.will_wake(context.waker())) {
                place.idle.push(context.waker().clone());
            }
            return Poll::Pending;
        };
        let slot = &mut self.slots[index];
        slot.rare.slow.begun = true;
        let (op, step) = (&slot.op, &slot.rare.slow);
        Poll::Ready(Some(SlowPart {
            id: OpId { index, generation: slot.generation },
            kind: op.kind,
            flags: op.flags,
            offset: step.offset,
            len: step.len,
        }))
    }

    /// A task is done with its part.
    pub(crate) fn end_slow(&mut self, id: OpId, result: Result<SlowDone, Fault>) {
        if self.slow_slot(id).is_some() {
            self.end_step(id.index, result);
        }
    }

    /// Whether an operation's user asked for an early end; if not, `waker` hears of it.
    pub(crate) fn is_cancelled(&mut self, id: OpId, waker: Option<&Waker>) -> bool {
        let Some(slot) = self.slow_slot(id) else { return true };
        let step = &mut slot.rare.slow;
        if let Some(waker) = waker.filter(|_| !slot.cancelled)
            && !step.waker.as_ref().is_some_and(|known| known.will_wake(waker))
        {
            step.waker = Some(waker.clone());
        }
        slot.cancelled
    }

    /// Lends the buffers of `len` bytes of an operation, `at` bytes into a task's part.
    pub(crate) fn lend(&mut self, id: OpId, at: u64, len: u64) -> Option<IoVector> {
        let slot = self.slow_slot(id)?;
        let at = (slot.cursor + at) as usize;
        let mut head = std::mem::take(&mut slot.op.data);
        let count = head.segments().len();
        let mut data = head.split_off(at);
        let first_cut = head.segments().len() + data.segments().len() > count;
        let count = data.segments().len();
        let tail = data.split_off(len as usize);
        let second_cut = data.segments().len() + tail.segments().len() > count;
        slot.rare.slow.lent = Some(Lent { head, tail, cuts: [first_cut, second_cut] });
        Some(data)
    }

    /// Takes back what was lent; the operation has its buffers as they were.
    pub(crate) fn take_back(&mut self, id: OpId, data: IoVector) {
        let Some(slot) = self.slow_slot(id) else { return };
        let Some(Lent { mut head, tail, cuts }) = slot.rare.slow.lent.take() else { return };
        for (part, was_cut) in [data, tail].into_iter().zip(cuts) {
            if was_cut {
                head.mend(part);
            } else {
                head.join(part);
            }
        }
        slot.op.data = head;
    }

    /// The slot of an operation that a task is at.
    fn slow_slot(&mut self, id: OpId) -> Option<&mut Slot> {
        let is_at_it = |slot: &&mut Slot| {
            slot.state == State::Running && slot.step == Step::Slow && slot.rare.slow.begun
        };
        self.slots.find(id).filter(is_at_it)
    }
}

/// A fault in a format's node, as the user of the operation's own node sees it.
fn translate(slot: &Slot, fault: Fault) -> Fault {
    let into = fault.offset.wrapping_sub(slot.rare.slow.offset);
    let into = if into < slot.rare.slow.len { into } else { 0 };
    Fault { offset: slot.op.offset + slot.cursor + into, ..fault }
}
