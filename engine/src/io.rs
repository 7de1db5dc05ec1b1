//! The I/O state of one core: slots, the leaves' queues, and the way between them.
//!
//! An operation takes a slot, passes its node's [`Rules`](crate::plan::Rules), and goes to the leaf in one or
//! more fragments. A fragment has no slot of its own: the slot counts those at the leaf
//! and remembers how far it has come, so a table of a single slot is enough for any
//! operation. What a leaf cannot take now waits in the leaf's line, in order.

mod drained;
mod leaves;
mod led;
mod routed;
mod slow;
mod users;

use std::collections::VecDeque;
use std::rc::Rc;

use oxblock_mem::{IoVector, Pool, View};

use crate::clock::Time;
use crate::drain::Drained;
use crate::plan::{BOUNCE_LEN, Memory};
use crate::route::Route;
use crate::slot::{Owner, Slot, SlotTable, State, Step, token};
use crate::{
    Completion, ErrorKind, Fault, InPlace, Op, OpFlags, OpId, OpKind, Pass, Request, Token,
};
pub(crate) use leaves::{Halt, Leaf};
use routed::Next;
pub(crate) use slow::SlowPart;
use slow::SlowPlace;
pub(crate) use users::{Entry, Standing};
use users::{User, Waiting};

/// Fragments of one operation at the leaf at once.
const MAX_FRAGMENTS: u32 = 8;
/// Bounce buffers of a core.
const BOUNCE_COUNT: usize = 16;
/// Slots and bounce buffers that only channels opened to serve may take.
const SLOT_RESERVE: usize = 64;
const BOUNCE_RESERVE: usize = 4;
/// Slots of each level of formats' tasks that none above it may take.
const NESTED_RESERVE: usize = 16;

/// What became of handing an operation's fragments to the leaf.
#[derive(PartialEq, Eq)]
enum Handed {
    /// A fragment went, and another may.
    More,
    /// The leaf has as much of it as it may have for now.
    Enough,
    /// The leaf's queue, or the bounce pool, is exhausted.
    Blocked,
    /// A task of a format has to do something first.
    Slow,
}

/// See the module's documentation.
pub(crate) struct Io {
    slots: SlotTable,
    leaves: Vec<Option<Leaf>>,
    routes: Vec<Route>,
    /// The formats' tasks; places of those that are gone are empty.
    slow: Vec<Option<SlowPlace>>,
    users: Vec<User>,
    /// The drained sections of now.
    pub drains: Vec<Drained>,
    pass: Pass,
    bounce: Option<Pool>,
    zeroes: Option<IoVector>,
    /// Futures that found no free slot, and the number of the next.
    admission: VecDeque<Waiting>,
    next_ticket: u64,
    /// Completions that named no fragment in flight.
    spurious: u64,
    /// Set once the engine failed: every operation ends with this.
    failed: Option<&'static str>,
}

impl Io {
    pub fn new(time: Rc<Time>, slot_count: usize) -> Self {
        let slots = SlotTable::new(slot_count, SLOT_RESERVE);
        let pass = Pass::with_time(time, slots.len() * MAX_FRAGMENTS as usize);
        Self {
            slots,
            leaves: Vec::new(),
            routes: Vec::new(),
            slow: Vec::new(),
            users: Vec::new(),
            drains: Vec::new(),
            pass,
            bounce: None,
            zeroes: None,
            admission: VecDeque::new(),
            next_ticket: 0,
            spurious: 0,
            failed: None,
        }
    }

    // --- the way down ---

    /// A slot for an operation that is submitted next.
    #[inline(always)]
    pub fn admit(&mut self, user: u16) -> Option<u32> {
        let entry = &mut self.users[user as usize];
        let index = self.slots.take(entry.keep_slots)?;
        entry.in_flight += 1;
        Some(index)
    }

    /// Starts an operation in the slot that it was [admitted](Self::admit) to. Its outcome, an
    /// immediate refusal too, is a completion.
    #[inline(always)]
    pub fn submit(&mut self, user: u16, index: u32, owner: Owner, op: Op) -> OpId {
        let Self { slots, users, routes, leaves, pass, .. } = self;
        let entry = &mut users[user as usize];
        let slot = &mut slots[index];
        slot.begin(user, owner, op);
        let id = OpId { index, generation: slot.generation };

        let (to, offset) = entry.aim(routes, &slot.op);
        if let Some(Some(leaf)) = leaves.get_mut(to as usize)
            && leaf.takes(&slot.op, offset)
        {
            let token = token(index, id.generation);
            if leaf.queue.submit(&whole_request(token, &slot.op, offset), pass).is_ok() {
                if owner == Owner::Poll && pass.took_no_time(token) {
                    slot.end_whole(to);
                    leaf.stats.count(slot.op.kind, slot.op.len, false);
                    if let Some(route) = routes.get_mut(entry.way_in as usize) {
                        route.stats.count(slot.op.kind, slot.op.len, false);
                    }
                    entry.done.push_back(slots, index);
                } else {
                    slot.hand_whole(to, offset);
                    leaf.dirty = true;
                }
                return id;
            }
        }
        self.start(index);
        id
    }

    /// Admits an operation that stays with its user if the leaf does it within its submission:
    /// it then takes no slot, only the name of a free one.
    #[inline(always)]
    pub fn submit_in_place(&mut self, user: u16, op: &mut Op) -> InPlace {
        if !self.pass.done.is_empty() {
            self.drain();
        }
        let entry = &mut self.users[user as usize];
        let (to, offset) = entry.aim(&self.routes, op);
        if let Some(index) = self.slots.next_free(entry.keep_slots)
            && let Some(Some(leaf)) = self.leaves.get_mut(to as usize)
            && leaf.takes(op, offset)
        {
            let slot = &mut self.slots[index];
            let token = token(index, slot.generation);
            if leaf.queue.submit(&whole_request(token, op, offset), &mut self.pass).is_ok() {
                if self.pass.took_no_time(token) {
                    slot.forget_name();
                    leaf.stats.count(op.kind, op.len, false);
                    if let Some(route) = self.routes.get_mut(entry.way_in as usize) {
                        route.stats.count(op.kind, op.len, false);
                    }
                    return InPlace::Done;
                }
                entry.in_flight += 1;
                slot.begin(user, Owner::Poll, std::mem::replace(op, Op::flush()));
                slot.hand_whole(to, offset);
                leaf.dirty = true;
                let id = OpId { index, generation: slot.generation };
                self.slots.take_next_free();
                return InPlace::Running(id);
            }
        }
        let Some(index) = self.admit(user) else { return InPlace::Full };
        let op = std::mem::replace(op, Op::flush());
        InPlace::Running(self.submit(user, index, Owner::Poll, op))
    }

    /// Checks an operation that did not go whole, and starts it behind those that wait already.
    #[inline(never)]
    fn start(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        slot.begin_in_parts(self.users[slot.user as usize].leaf);
        if self.park(index) {
            return;
        }
        match self.check(index) {
            Ok(false) => {}
            Ok(true) => return self.finish(index),
            Err(fault) => {
                self.slots[index].fail(fault);
                return self.finish(index);
            }
        }
        self.go_on(index);
    }

    /// Lets an operation go on, behind those that wait already where it is.
    fn go_on(&mut self, index: u32) {
        let handed = match self.leaves.get(self.slots[index].leaf as usize) {
            Some(Some(leaf)) if leaf.line.is_empty() => self.hand(index),
            None => self.hand(index),
            _ => Handed::Blocked,
        };
        match handed {
            Handed::Blocked => self.wait_in_line(index),
            Handed::Slow => self.begin_slow(index),
            Handed::More | Handed::Enough if self.is_over(index) => self.finish_writes(index),
            Handed::More | Handed::Enough => {}
        }
    }

    /// Whether an operation is allowed, and whether it is over already for want of
    /// anything to do.
    pub(crate) fn check(&self, index: u32) -> Result<bool, Fault> {
        let slot = &self.slots[index];
        let op = &slot.op;
        if let Some(text) = self.failed {
            return Err(Fault::text(ErrorKind::Failed, op.offset, text));
        }
        if let Some(route) = self.route(slot.user) {
            return self.check_routed(index, route);
        }
        let Some(Some(leaf)) = self.leaves.get(slot.leaf as usize) else {
            return Err(Fault::text(ErrorKind::Gone, op.offset, "the node was closed"));
        };
        if let Some((kind, text)) = leaf.refusal() {
            return Err(Fault::text(kind, op.offset, text));
        }
        let rules = &leaf.rules;
        rules.check(op)?;
        let no_fallback = op.flags.contains(OpFlags::NO_FALLBACK);
        if op.kind == OpKind::WriteZeroes && rules.max_write_zeroes == 0 && no_fallback {
            let text = "the node writes no zeroes by itself, and a fallback is forbidden";
            return Err(Fault::text(ErrorKind::NotSupported, op.offset, text));
        }
        Ok(self.total(index) == 0 || rules.is_needless(op.kind))
    }

    fn wait_in_line(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if let Some(Some(leaf)) = self.leaves.get_mut(slot.leaf as usize)
            && !slot.waiting
        {
            slot.waiting = true;
            leaf.line.push_back(&mut self.slots, index);
        }
    }

    /// Hands fragments of an operation to its leaf, as many as may be there at once.
    fn hand(&mut self, index: u32) -> Handed {
        loop {
            let slot = &self.slots[index];
            let one_at_a_time = slot.step != Step::Direct && slot.outstanding > 0;
            if one_at_a_time || slot.outstanding >= MAX_FRAGMENTS {
                return Handed::Enough;
            }
            match self.next_extent(index) {
                Next::Extent => {}
                Next::Later | Next::Over => return Handed::Enough,
                Next::Blocked => return Handed::Blocked,
                Next::Slow => return Handed::Slow,
            }
            if self.is_held(self.slots[index].leaf) {
                return Handed::Blocked;
            }
            match self.hand_fragment(index) {
                Handed::More => {}
                other => return other,
            }
        }
    }

    /// Hands the next fragment to the leaf.
    fn hand_fragment(&mut self, index: u32) -> Handed {
        let Self { slots, leaves, routes, users, pass, bounce, zeroes, .. } = self;
        let slot = &mut slots[index];
        let op = &slot.op;
        let Some(Some(leaf)) = leaves.get_mut(slot.leaf as usize) else {
            return Handed::Enough;
        };
        let route = routes.get(users[slot.user as usize].route as usize);
        let flags = route.map_or(op.flags, |route| route.rules.flags(op.flags));
        let offset = (op.offset + slot.cursor).wrapping_add(slot.shift);
        let left = slot.extent_end - slot.cursor;
        let mut request = Request {
            token: token(index, slot.generation),
            kind: op.kind,
            flags: leaf.rules.flags(flags),
            offset,
            len: left,
            data: View::empty(),
        };
        match op.kind {
            OpKind::Flush => (request.offset, request.len) = (0, 0),
            OpKind::WriteZeroes if leaf.rules.max_write_zeroes == 0 => {
                let Some(zeroes) = zeroes else {
                    return Handed::Blocked;
                };
                let part = left.min(zeroes.len() as u64) as usize;
                let (len, _) = leaf.rules.transfer(offset, zeroes.view(0, part));
                request.kind = OpKind::Write;
                request.len = len;
                request.data = zeroes.view(0, len as usize);
            }
            OpKind::WriteZeroes | OpKind::Discard => request.len = leaf.rules.span(op.kind, left),
            OpKind::Read | OpKind::Write | OpKind::Compare => {
                let data = op.data.view(slot.cursor as usize, left as usize);
                let (len, memory) = leaf.rules.transfer(offset, data);
                request.len = len;
                let emulated_compare = op.kind == OpKind::Compare && !leaf.rules.compare;
                if memory == Memory::Bounce || emulated_compare {
                    if slot.outstanding > 0 {
                        return Handed::Enough;
                    }
                    let len = len.min(BOUNCE_LEN as u64);
                    let keep = users[slot.user as usize].keep_bounce;
                    let own = slot.rare.bounce.take();
                    let Some(buffer) = own.or_else(|| take_bounce(bounce, keep)) else {
                        return Handed::Blocked;
                    };
                    let buffer = slot.rare.bounce.insert(buffer);
                    slot.rare.fragment_at = slot.cursor;
                    slot.rare.fragment_len = len;
                    request.len = len;
                    request.data = buffer.view(0, len as usize);
                    slot.step = match op.kind {
                        OpKind::Read => Step::BounceRead,
                        OpKind::Compare if emulated_compare => {
                            request.kind = OpKind::Read;
                            Step::EmulatedCompare
                        }
                        _ => {
                            request.data.copy_from_view(data.slice(0, len as usize));
                            Step::BounceWrite
                        }
                    };
                } else {
                    request.data = data.slice(0, len as usize);
                }
            }
        }
        if leaf.queue.submit(&request, pass).is_err() {
            return Handed::Blocked;
        }
        slot.cursor += if op.kind == OpKind::Flush { 1 } else { request.len };
        slot.outstanding += 1;
        leaf.dirty = true;
        Handed::More
    }

    /// Hands on what waits in the leaves' lines, in order.
    fn pump(&mut self) {
        for leaf in 0..self.leaves.len() {
            while let Some(index) = self.leaves[leaf].as_ref().and_then(|leaf| leaf.line.front()) {
                let fresh = self.slots[index].outstanding == 0;
                if self.slots[index].step == Step::FlushAfter {
                    if !self.hand_flush_after(index) {
                        break;
                    }
                } else {
                    match self.hand(index) {
                        Handed::Blocked if usize::from(self.slots[index].leaf) == leaf => break,
                        Handed::Blocked => {
                            // It goes on at another leaf, behind those that wait there.
                            self.leave_line(leaf, index);
                            self.wait_in_line(index);
                            continue;
                        }
                        Handed::Slow => {
                            self.leave_line(leaf, index);
                            self.begin_slow(index);
                            continue;
                        }
                        Handed::More | Handed::Enough => {}
                    }
                }
                self.leave_line(leaf, index);
                if fresh && self.slots[index].outstanding == 0 {
                    self.finish_writes(index);
                }
            }
        }
    }

    /// What a slot's cursor counts to: the leaves of a flush, else the operation's length in
    /// bytes.
    pub(crate) fn total(&self, index: u32) -> u64 {
        let slot = &self.slots[index];
        if slot.op.kind != OpKind::Flush {
            return slot.op.len;
        }
        self.route(slot.user).map_or(1, |route| route.flushes.len() as u64)
    }

    /// The slot that is the first in a leaf's line leaves it.
    fn leave_line(&mut self, leaf: usize, index: u32) {
        if let Some(leaf) = &mut self.leaves[leaf] {
            leaf.line.pop_front(&self.slots);
        }
        self.slots[index].waiting = false;
    }

    // --- the way up ---

    /// Polls the leaves once, completes what they completed, and hands on what waited.
    pub fn poll(&mut self) -> usize {
        for leaf in self.leaves.iter_mut().flatten() {
            leaf.queue.poll(&mut self.pass);
        }
        let work = self.drain();
        self.pump();
        work
    }

    /// Tells the leaves of what was submitted since the last kick.
    pub fn kick(&mut self) {
        for leaf in self.leaves.iter_mut().flatten().filter(|leaf| leaf.dirty) {
            leaf.dirty = false;
            leaf.queue.kick(&mut self.pass);
        }
    }

    pub(crate) fn drain(&mut self) -> usize {
        let mut count = 0;
        // A leaf may complete a request within its submit, so the list may grow meanwhile.
        while let Some((token, result)) = self.pass.done.get(count) {
            count += 1;
            // Copied only where it tells of a fault.
            let (token, result) = (*token, if result.is_ok() { Ok(()) } else { *result });
            self.complete(token, result);
        }
        self.pass.done.clear();
        count
    }

    #[inline]
    fn complete(&mut self, token: Token, result: Result<(), Fault>) {
        let Some(index) = self.slots.find_token(token) else {
            self.spurious += 1;
            return;
        };
        let slot = &mut self.slots[index];
        slot.outstanding -= 1;
        if slot.step == Step::Straight && result.is_ok() {
            return self.finish(index);
        }
        self.complete_slowly(index, result);
    }

    #[cold]
    fn complete_slowly(&mut self, index: u32, result: Result<(), Fault>) {
        let total = self.total(index);
        let result = result.map_err(|fault| self.translate(index, fault));
        let slot = &mut self.slots[index];
        let whole = slot.cursor == total;
        let result = result.and_then(|()| copy_back(slot));
        if let Err(fault) = result {
            slot.fail(fault);
        }
        if slot.outstanding > 0 {
            if !whole && !slot.failed && slot.step == Step::Direct {
                self.wait_in_line(index);
            }
            return;
        }
        if slot.step == Step::FlushAfter {
            return self.finish(index);
        }
        slot.step = Step::Direct;
        slot.rare.bounce = None;
        if slot.failed || slot.cancelled {
            if !whole && !slot.failed {
                slot.fail(Fault::new(ErrorKind::Cancelled, 0));
            }
            if slot.waiting {
                // It stands in line: the pump finds nothing left to hand and finishes it.
                return;
            }
            return self.finish(index);
        }
        if whole { self.finish_writes(index) } else { self.wait_in_line(index) }
    }

    /// Ends an operation that the leaf has done, by way of a flush where its FUA needs one.
    #[inline]
    fn finish_writes(&mut self, index: u32) {
        let slot = &self.slots[index];
        if slot.op.flags.contains(OpFlags::FUA)
            && slot.op.kind.is_write()
            && !slot.failed
            && let Some(Some(leaf)) = self.leaves.get(slot.leaf as usize)
            && leaf.rules.emulate_fua
        {
            self.slots[index].step = Step::FlushAfter;
            if !self.hand_flush_after(index) {
                self.wait_in_line(index);
            }
            return;
        }
        self.finish(index);
    }

    /// Hands the flush that makes up for FUA to the leaf. Whether it took it.
    fn hand_flush_after(&mut self, index: u32) -> bool {
        if self.is_held(self.slots[index].leaf) {
            return false;
        }
        let slot = &mut self.slots[index];
        let Some(Some(leaf)) = self.leaves.get_mut(slot.leaf as usize) else {
            return true;
        };
        let request = Request {
            token: token(index, slot.generation),
            kind: OpKind::Flush,
            flags: OpFlags::empty(),
            offset: 0,
            len: 0,
            data: View::empty(),
        };
        let taken = leaf.queue.submit(&request, &mut self.pass).is_ok();
        if taken {
            slot.outstanding += 1;
            leaf.dirty = true;
        }
        taken
    }

    /// The operation is over: its owner hears of it.
    #[inline]
    pub(crate) fn finish(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        debug_assert!(!slot.waiting, "a slot stands in one line at a time");
        slot.state = State::Done;
        if let Some(Some(leaf)) = self.leaves.get_mut(slot.leaf as usize) {
            leaf.stats.count(slot.op.kind, slot.op.len, slot.failed);
        }
        let user = &mut self.users[slot.user as usize];
        if let Some(route) = self.routes.get_mut(user.route as usize) {
            route.stats.count(slot.op.kind, slot.op.len, slot.failed);
        }
        if slot.step != Step::Straight {
            slot.rare.bounce = None;
        }
        if slot.owner == Owner::Poll {
            user.done.push_back(&mut self.slots, index);
        } else {
            self.finish_for_future(index);
        }
    }

    #[cold]
    fn finish_for_future(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.owner == Owner::Detached {
            let user = slot.user as usize;
            drop(self.take_result(index));
            if !self.users[user].open {
                self.end_unused_tasks();
            }
        } else if let Some(waker) = slot.rare.waker.take() {
            waker.wake();
        }
    }

    #[inline(always)]
    pub fn take_result(&mut self, index: u32) -> Completion {
        let slot = &mut self.slots[index];
        let completion = Completion { op: slot.take_op(), result: slot.result() };
        self.release(index);
        completion
    }

    /// The operation in a slot was taken out of it.
    #[inline(always)]
    fn release(&mut self, index: u32) {
        let user = self.slots[index].user as usize;
        self.users[user].in_flight -= 1;
        self.slots.release(index);
        if !self.admission.is_empty() {
            self.admit_next();
        }
    }
}

/// A whole operation as a leaf sees it that has it at `offset`.
#[inline(always)]
fn whole_request(token: Token, op: &Op, offset: u64) -> Request<'_> {
    let (kind, flags, len) = (op.kind, op.flags, op.len);
    Request { token, kind, flags, offset, len, data: op.data.whole() }
}

/// A bounce buffer, unless that leaves fewer than `keep`.
fn take_bounce(pool: &Option<Pool>, keep: usize) -> Option<IoVector> {
    let pool = pool.as_ref().filter(|pool| pool.available() > keep)?;
    Some(pool.take()?.into())
}

/// Brings what a bounced fragment read to where the operation wants it.
fn copy_back(slot: &Slot) -> Result<(), Fault> {
    let (op, Some(bounce)) = (&slot.op, &slot.rare.bounce) else {
        return Ok(());
    };
    let len = slot.rare.fragment_len as usize;
    let theirs = op.data.view(slot.rare.fragment_at as usize, len);
    match slot.step {
        Step::BounceRead => theirs.copy_from_view(bounce.view(0, len)),
        Step::EmulatedCompare => {
            if let Some(at) = theirs.compare_view(bounce.view(0, len)) {
                let offset = op.offset + slot.rare.fragment_at + at as u64;
                return Err(Fault::new(ErrorKind::Mismatch, offset));
            }
        }
        Step::Straight
        | Step::Direct
        | Step::BounceWrite
        | Step::FlushAfter
        | Step::Slow
        | Step::Parked => {}
    }
    Ok(())
}
