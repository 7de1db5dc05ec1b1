//! Operations on nodes that stand on others: each goes along its node's [`Route`] to the leaves.
//!
//! The common one lies in one place, and goes to that leaf whole. Any other goes extent by
//! extent: what there are of an operation at once is at one leaf, whose line it stands in when
//! that is full, and moves on to the next leaf when all of it has come back.

use std::sync::Arc;

use super::{Io, Leaf};
use crate::plan::Rules;
use crate::route::{NONE, Place, Route};
use crate::slot::{State, Step};
use crate::{ErrorKind, Fault, Intent, Node, OpFlags, OpKind};

/// What there is to do next for an operation on a route.
#[derive(PartialEq, Eq)]
pub(super) enum Next {
    /// There is an extent at the slot's leaf, a part of which has not been handed on.
    Extent,
    /// The next extent has to wait until what is at a leaf has come back.
    Later,
    /// The next extent's leaf has others waiting.
    Blocked,
    /// A task of a format has to find the next extent, or to do what there is to do.
    Slow,
    /// Nothing is left to hand on.
    Over,
}

impl Io {
    /// The index of a node's route on this core; made where there is none to the leaves that are
    /// open now. `None` if this core has no queue of one of its leaves.
    pub(crate) fn route_to(&mut self, node: &Arc<Node>) -> Option<u16> {
        let route = Route::new(node, &|leaf| self.leaf_of(leaf), &|node| self.slow_of(node))?;
        Some(self.keep_route(route))
    }

    /// The place of a route, or of one that is the same.
    pub(super) fn keep_route(&mut self, route: Route) -> u16 {
        let is_used = |index: usize| {
            let mut users = self.users.iter().filter(|user| user.is_used());
            users.any(|user| usize::from(user.route) == index)
        };
        let all = || 0..self.routes.len();
        let same = all().find(|&index| is_used(index) && self.routes[index].is_same(&route));
        if let Some(same) = same {
            return same as u16;
        }
        let unused = all().find(|&index| !is_used(index));
        match unused {
            Some(index) => self.routes[index] = route,
            None => self.routes.push(route),
        }
        unused.unwrap_or(self.routes.len() - 1) as u16
    }

    /// A node has other limits now.
    pub(crate) fn follow_routes(&mut self, node: &Arc<Node>) {
        for route in self.routes.iter_mut().filter(|route| Arc::ptr_eq(&route.node, node)) {
            route.rules = Rules::new(&node.limits());
        }
    }

    /// The route of a slot's user, if it has one.
    #[inline]
    pub(super) fn route(&self, user: u16) -> Option<&Route> {
        self.routes.get(self.users[user as usize].route as usize)
    }

    /// Whether a route that somebody uses leads to a leaf.
    pub(super) fn is_routed_to(&self, leaf: u16) -> bool {
        self.used_routes().any(|route| route.leads_to(leaf))
    }

    /// The routes that somebody uses.
    pub(super) fn used_routes(&self) -> impl Iterator<Item = &Route> {
        let users = self.users.iter().filter(|user| user.is_used());
        users.filter_map(|user| self.routes.get(user.route as usize))
    }

    /// Finds out what is next. Zeroes are read on the way.
    pub(super) fn next_extent(&mut self, index: u32) -> Next {
        loop {
            let total = self.total(index);
            let slot = &self.slots[index];
            if slot.failed || slot.cancelled || slot.cursor == total {
                return Next::Over;
            }
            if slot.cursor < slot.extent_end {
                return Next::Extent;
            }
            match self.place(index, total) {
                Ok(Place::Leaf { leaf, offset, len }) => {
                    let next = self.enter(index, leaf, offset, len);
                    if next != Next::Extent {
                        return next;
                    }
                }
                Ok(Place::Zero { len }) => self.read_zeroes(index, len),
                Ok(Place::Slow { .. }) if slot.outstanding > 0 => return Next::Later,
                Ok(Place::Slow { slow, offset, len }) => {
                    return self.note_slow(index, slow, offset, len);
                }
                Ok(Place::End) => {
                    let text = "the range ends beyond what lies beneath the node";
                    self.fail_here(index, ErrorKind::NoSpace, text);
                }
                Err(text) => self.fail_here(index, ErrorKind::Io, text),
            }
        }
    }

    /// Where the rest of an operation begins, cut to what the leaf has.
    fn place(&self, index: u32, total: u64) -> Result<Place, &'static str> {
        let slot = &self.slots[index];
        let Some(route) = self.route(slot.user) else { return Err("the node's route is gone") };
        if slot.op.kind == OpKind::Flush {
            let leaf = route.flushes.get(slot.cursor as usize).copied().unwrap_or(NONE);
            return Ok(Place::Leaf { leaf, offset: 0, len: 1 });
        }
        let (at, left) = (slot.op.offset + slot.cursor, total - slot.cursor);
        let place = route.resolve(at, left, slot.op.kind.into());
        let Place::Leaf { leaf: to, offset, len } = place else { return Ok(place) };
        // A leaf that is gone says so when it is entered.
        let Some(leaf) = self.leaf(to) else { return Ok(place) };
        let rules = &leaf.rules;
        if offset >= rules.length {
            let reads = Intent::from(slot.op.kind) == Intent::Read;
            return Ok(if reads { Place::Zero { len } } else { Place::End });
        }
        let len = len.min(rules.length - offset);
        let in_blocks = |bytes: u64| bytes.is_multiple_of(rules.block_size);
        if len == 0 || !in_blocks(offset) || !in_blocks(len) {
            return Err("the format answered with no whole blocks of the node beneath");
        }
        Ok(Place::Leaf { leaf: to, offset, len })
    }

    /// Lets an operation go on with `len` bytes at `offset` of a leaf.
    fn enter(&mut self, index: u32, to: u16, offset: u64, len: u64) -> Next {
        let Some(leaf) = self.leaves.get(to as usize).and_then(Option::as_ref) else {
            self.fail_here(index, ErrorKind::Gone, "a node beneath was closed");
            return Next::Over;
        };
        let slot = &mut self.slots[index];
        let kind = slot.op.kind;
        let read_only = (ErrorKind::ReadOnly, "a node beneath takes no writes");
        let refuses_writes = kind.is_write() && leaf.rules.read_only;
        if let Some((kind, text)) = leaf.refusal().or(refuses_writes.then_some(read_only)) {
            self.fail_here(index, kind, text);
            return Next::Over;
        }
        if kind == OpKind::Discard && leaf.rules.max_discard == 0 {
            slot.cursor += len;
            slot.extent_end = slot.cursor;
            return Next::Extent;
        }
        let moves = slot.leaf != to;
        let at = if kind == OpKind::Flush { 0 } else { slot.op.offset + slot.cursor };
        let shift = offset.wrapping_sub(at);
        // Where a compare differs is told by a place in the leaf.
        let alone = kind == OpKind::Compare && slot.shift != shift;
        if slot.outstanding > 0 && (moves || alone) {
            return Next::Later;
        }
        slot.mixed = slot.outstanding > 0 && (slot.mixed || slot.shift != shift);
        slot.leaf = to;
        slot.shift = shift;
        slot.extent_end = slot.cursor + len;
        if moves && !leaf.line.is_empty() { Next::Blocked } else { Next::Extent }
    }

    /// The next `len` bytes are zeroes already, or nowhere.
    fn read_zeroes(&mut self, index: u32, len: u64) {
        let slot = &mut self.slots[index];
        let left = slot.op.len - slot.cursor;
        let (at, len) = (slot.cursor, len.min(left));
        match slot.op.kind {
            OpKind::Read if len > 0 => slot.op.data.view(at as usize, len as usize).fill(0),
            OpKind::Compare if len > 0 => {
                let data = slot.op.data.view(at as usize, len as usize);
                if let Some(differs) = first_nonzero(data) {
                    let offset = slot.op.offset + at + differs;
                    slot.fail(Fault::new(ErrorKind::Mismatch, offset));
                }
            }
            OpKind::WriteZeroes | OpKind::Discard if len > 0 => {}
            _ => {
                let text = "the format answered with zeroes where there can be none";
                slot.fail(Fault::text(ErrorKind::Io, slot.op.offset + at, text));
            }
        }
        slot.cursor += len;
        slot.extent_end = slot.cursor;
    }

    pub(super) fn fail_here(&mut self, index: u32, kind: ErrorKind, text: &'static str) {
        let slot = &mut self.slots[index];
        slot.fail(Fault::text(kind, slot.op.offset + slot.cursor, text));
    }

    fn leaf(&self, leaf: u16) -> Option<&Leaf> {
        self.leaves.get(leaf as usize)?.as_ref()
    }

    /// Whether an operation on a route is over already for want of anything to do; see
    /// [`Io::check`].
    pub(super) fn check_routed(&self, index: u32, route: &Route) -> Result<bool, Fault> {
        let op = &self.slots[index].op;
        route.rules.check(op)?;
        if op.kind == OpKind::WriteZeroes
            && route.rules.max_write_zeroes == 0
            && op.flags.contains(OpFlags::NO_FALLBACK)
        {
            let text = "the node writes no zeroes by itself, and a fallback is forbidden";
            return Err(Fault::text(ErrorKind::NotSupported, op.offset, text));
        }
        let mut flushed = route.flushes.iter().filter_map(|&leaf| self.leaf(leaf));
        if op.flags.contains(OpFlags::FUA)
            && op.kind.is_write()
            && route.flushes.len() > 1
            && flushed.any(|leaf| leaf.rules.emulate_fua)
        {
            let text = "force unit access over several leaves: flush after the write instead";
            return Err(Fault::text(ErrorKind::NotSupported, op.offset, text));
        }
        Ok(self.total(index) == 0 || route.rules.is_needless(op.kind))
    }

    /// A fault of a leaf, as the user of the node above it sees it.
    pub(super) fn translate(&self, index: u32, fault: Fault) -> Fault {
        let slot = &self.slots[index];
        if self.route(slot.user).is_none() {
            return fault;
        }
        let (start, len) = (slot.op.offset, slot.op.len);
        let offset = fault.offset.wrapping_sub(slot.shift);
        let is_inside = !slot.mixed && offset.wrapping_sub(start) < len;
        Fault { offset: if is_inside { offset } else { start }, ..fault }
    }

    /// Whether a slot's operation has ended while nothing of it was at a leaf.
    pub(super) fn is_over(&self, index: u32) -> bool {
        let slot = &self.slots[index];
        let stopped = slot.failed || slot.cancelled || slot.cursor == self.total(index);
        slot.state == State::Running
            && slot.outstanding == 0
            && stopped
            && slot.step == Step::Direct
    }
}

/// Where the first byte is that is not 0.
fn first_nonzero(data: oxblock_mem::View<'_>) -> Option<u64> {
    if data.is_all(0) {
        return None;
    }
    let mut at = 0;
    let mut len = data.len();
    while len > 1 {
        let half = len / 2;
        if data.slice(at, half).is_all(0) {
            at += half;
            len -= half;
        } else {
            len = half;
        }
    }
    Some(at as u64)
}
