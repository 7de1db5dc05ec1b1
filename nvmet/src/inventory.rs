//! Which namespaces there are, on which parts of which nodes, and which of them take commands.
//!
//! Every node that the controller was given is capacity. A namespace is a contiguous range of one
//! node; deleted, its range is free again. Nothing of this outlives the controller.

use std::collections::BTreeMap;

use oxblock_engine::Limits;
use oxblock_nvme::feature::WriteProtection;
use oxblock_nvme::{NSID_ALL, Status};

use std::sync::Arc;

use crate::namespace::{FORMATS, Geometry, Part, permits};
use crate::protection::{Layout, Metadata};

/// What namespaces that hosts create are aligned to, and a multiple of, in bytes.
const GRANULARITY: u64 = 4096;

/// Ranges of bad blocks that are kept for a namespace.
const BAD_RANGES_MAX: usize = 4096;

/// All namespaces of a controller, and what they lie on.
pub(crate) struct Inventory {
    /// By number, from 1.
    places: Vec<Option<Entry>>,
    /// Nodes, by index.
    nodes: Vec<Limits>,
    /// Why no namespace takes I/O commands, if none does.
    closed: Option<Status>,
    /// Namespaces created so far.
    created: u32,
}

/// A namespace that is allocated.
struct Entry {
    geometry: Geometry,
    attached: bool,
    busy: Option<Busy>,
    /// Blocks that were marked by Write Uncorrectable: first block, and the one behind the last.
    /// Disjoint.
    bad: BTreeMap<u64, u64>,
    /// Whether I/O commands may come and need no more looking after: what follows from all that is
    /// said of it.
    is_open: bool,
}

/// What is being done to a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Busy {
    /// It is formatted; this many percent are left.
    Formatting(u8),
    /// It is deleted or detached.
    Leaving,
}

impl Inventory {
    /// The namespaces that a controller begins with, room for numbers up to `numbers`, and the
    /// nodes.
    pub(crate) fn new(first: Vec<Geometry>, numbers: u32, nodes: Vec<Limits>) -> Inventory {
        let entry = |geometry| {
            let bad = BTreeMap::new();
            Some(Entry { geometry, attached: true, busy: None, bad, is_open: true })
        };
        let mut places: Vec<Option<Entry>> = first.into_iter().map(entry).collect();
        let count = places.len().max(numbers as usize);
        places.resize_with(count, || None);
        Inventory { places, nodes, closed: None, created: 0 }
    }

    /// The largest namespace number that there can be (NN).
    pub(crate) fn numbers(&self) -> u32 {
        self.places.len() as u32
    }

    /// A namespace for an I/O command.
    ///
    /// # Errors
    /// It takes none, for the reason given.
    #[inline]
    pub(crate) fn open(&self, nsid: u32) -> Result<&Geometry, Status> {
        match self.places.get(nsid.wrapping_sub(1) as usize) {
            Some(Some(entry)) if entry.is_open => Ok(&entry.geometry),
            _ => Err(self.refusal(nsid)),
        }
    }

    /// The same for one that has bad blocks, too.
    ///
    /// # Errors
    /// As [`open`](Inventory::open).
    pub(crate) fn usable(&self, nsid: u32) -> Result<&Geometry, Status> {
        let entry = self.entry(nsid).filter(|entry| entry.attached && entry.busy.is_none());
        let entry = entry.filter(|_| self.closed.is_none());
        entry.map(|entry| &entry.geometry).ok_or_else(|| self.refusal(nsid))
    }

    /// The first bad block of a range, if it has one.
    pub(crate) fn first_bad(&self, nsid: u32, slba: u64, blocks: u64) -> Option<u64> {
        let end = slba.saturating_add(blocks);
        let (start, past) = self.entry(nsid)?.bad.range(..end).next_back()?;
        // Ranges are disjoint: the last that begins before the end is not the first that overlaps.
        let mut first = (*past > slba).then_some(*start)?;
        for (start, past) in self.entry(nsid)?.bad.range(..first).rev() {
            if *past <= slba {
                break;
            }
            first = *start;
        }
        Some(first.max(slba))
    }

    /// Marks blocks as bad.
    ///
    /// # Errors
    /// There are too many ranges of them.
    pub(crate) fn mark_bad(&mut self, nsid: u32, slba: u64, blocks: u64) -> Result<(), Status> {
        self.clear_bad(nsid, slba, blocks);
        let closed = self.closed.is_some();
        let entry = self.entry_mut(nsid).ok_or(Status::INVALID_NAMESPACE)?;
        if entry.bad.len() >= BAD_RANGES_MAX {
            return Err(Status::WRITE_FAULT);
        }
        entry.bad.insert(slba, slba.saturating_add(blocks));
        entry.settle(closed);
        Ok(())
    }

    /// Blocks have been written: they are good again.
    pub(crate) fn clear_bad(&mut self, nsid: u32, slba: u64, blocks: u64) {
        let closed = self.closed.is_some();
        let Some(entry) = self.entry_mut(nsid) else { return };
        let end = slba.saturating_add(blocks);
        let overlapping = entry.bad.range(..end).filter(|(_, past)| **past > slba);
        let overlapping: Vec<(u64, u64)> = overlapping.map(|(a, b)| (*a, *b)).collect();
        for (start, past) in overlapping {
            entry.bad.remove(&start);
            if start < slba {
                entry.bad.insert(start, slba);
            }
            if past > end {
                entry.bad.insert(end, past);
            }
        }
        entry.settle(closed);
    }

    /// All blocks of a namespace are good again.
    pub(crate) fn clear_all_bad(&mut self, nsid: u32) {
        self.clear_bad(nsid, 0, u64::MAX);
    }

    #[cold]
    fn refusal(&self, nsid: u32) -> Status {
        if !self.is_valid(nsid) {
            return Status::INVALID_NAMESPACE;
        }
        if let Some(status) = self.closed {
            return status;
        }
        match self.entry(nsid).map(|entry| entry.busy) {
            Some(Some(Busy::Formatting(_))) => Status::FORMAT_IN_PROGRESS,
            _ => Status::INVALID_FIELD,
        }
    }

    /// Whether a number can be that of a namespace (Base 2.0, 3.2.1.2).
    pub(crate) fn is_valid(&self, nsid: u32) -> bool {
        (1..=self.numbers()).contains(&nsid)
    }

    /// A namespace that is attached.
    pub(crate) fn active(&self, nsid: u32) -> Option<&Geometry> {
        self.entry(nsid).filter(|entry| entry.attached).map(|entry| &entry.geometry)
    }

    /// A namespace that exists, attached or not.
    pub(crate) fn allocated(&self, nsid: u32) -> Option<&Geometry> {
        self.entry(nsid).map(|entry| &entry.geometry)
    }

    /// Namespaces that are attached, in the order of their numbers.
    pub(crate) fn all_active(&self) -> impl Iterator<Item = &Geometry> {
        self.entries().filter(|entry| entry.attached).map(|entry| &entry.geometry)
    }

    /// Namespaces that exist, in the order of their numbers.
    pub(crate) fn all_allocated(&self) -> impl Iterator<Item = &Geometry> {
        self.entries().map(|entry| &entry.geometry)
    }

    /// What is being done to a namespace.
    pub(crate) fn busy(&self, nsid: u32) -> Option<Busy> {
        self.entry(nsid)?.busy
    }

    /// Whether any namespace is being formatted.
    pub(crate) fn is_formatting(&self) -> bool {
        self.entries().any(|entry| matches!(entry.busy, Some(Busy::Formatting(_))))
    }

    /// Begins or ends something that keeps I/O commands away.
    pub(crate) fn set_busy(&mut self, nsid: u32, busy: Option<Busy>) {
        let closed = self.closed.is_some();
        if let Some(entry) = self.entry_mut(nsid) {
            entry.busy = busy;
            entry.settle(closed);
        }
    }

    /// Keeps I/O commands away from all namespaces, or lets them come again.
    pub(crate) fn set_closed(&mut self, closed: Option<Status>) {
        self.closed = closed;
        for entry in self.places.iter_mut().flatten() {
            entry.settle(closed.is_some());
        }
    }

    /// Why no namespace takes I/O commands, if none does.
    pub(crate) fn closed(&self) -> Option<Status> {
        self.closed
    }

    pub(crate) fn set_attached(&mut self, nsid: u32, attached: bool) {
        let closed = self.closed.is_some();
        if let Some(entry) = self.entry_mut(nsid) {
            entry.attached = attached;
            entry.settle(closed);
        }
    }

    /// Write protects a namespace that is not read-only anyway, or lifts that.
    pub(crate) fn protect(&mut self, nsid: u32, protection: WriteProtection) {
        if let Some(entry) = self.entry_mut(nsid) {
            let was = entry.geometry.protection != WriteProtection::None;
            let by_nature = entry.geometry.read_only && !was;
            entry.geometry.protection = protection;
            entry.geometry.read_only = by_nature || protection != WriteProtection::None;
        }
    }

    /// Gives a namespace another LBA format.
    ///
    /// # Errors
    /// There is no room for its metadata. The namespace is as it was.
    pub(crate) fn reformat(&mut self, nsid: u32, index: u8, layout: Layout) -> Result<(), Status> {
        let closed = self.closed.is_some();
        let Some(entry) = self.entry_mut(nsid) else { return Ok(()) };
        let geometry = &mut entry.geometry;
        let Some(shift) = geometry.format(index) else { return Ok(()) };
        let metadata = match geometry.has_metadata(index) {
            true => Some(Metadata::new(geometry.len >> shift, layout)),
            false => None,
        };
        let metadata = metadata.transpose().map_err(|_| Status::INTERNAL_ERROR)?;
        geometry.reshape(shift);
        geometry.metadata = metadata.map(Arc::new);
        entry.settle(closed);
        Ok(())
    }

    /// Allocates a namespace of `blocks` blocks, and returns its number. It is not attached.
    ///
    /// # Errors
    /// No number or no room is left, or no node permits the format.
    pub(crate) fn create(&mut self, blocks: u64, format: u8) -> Result<u32, Status> {
        let shift = *FORMATS.get(usize::from(format)).ok_or(Status::INVALID_FORMAT)?;
        let fitting = || self.writable().filter(|(_, limits)| permits(limits, shift));
        if fitting().next().is_none() {
            return Err(Status::INVALID_FORMAT);
        }
        let len = blocks.checked_shl(shift).filter(|len| len >> shift == blocks);
        let len = len.and_then(|len| len.checked_next_multiple_of(GRANULARITY));
        let len = len.ok_or(Status::NAMESPACE_INSUFFICIENT_CAPACITY)?;
        let found = fitting().find_map(|(backing, limits)| {
            Some((Part { backing, base: self.gap(backing, len)?, len }, limits.clone()))
        });
        let place = self.places.iter().position(Option::is_none);
        let place = place.ok_or(Status::NAMESPACE_ID_UNAVAILABLE)?;
        let (part, limits) = found.ok_or(Status::NAMESPACE_INSUFFICIENT_CAPACITY)?;
        let nsid = place as u32 + 1;
        self.created = self.created.wrapping_add(1);
        let mut geometry = Geometry::part(nsid, part, shift, limits);
        geometry.blocks = blocks;
        geometry.incarnation = self.created;
        let bad = BTreeMap::new();
        let entry = Entry { geometry, attached: false, busy: None, bad, is_open: false };
        self.places[place] = Some(entry);
        Ok(nsid)
    }

    /// Frees a namespace's number and range.
    pub(crate) fn delete(&mut self, nsid: u32) {
        if let Some(place) = self.places.get_mut(nsid.wrapping_sub(1) as usize) {
            *place = None;
        }
    }

    /// Whether an LBA format that all namespaces list is permitted by any node.
    pub(crate) fn has_format(&self, shift: u32) -> bool {
        self.nodes.iter().any(|limits| permits(limits, shift))
    }

    /// Bytes in all, and those of them that no namespace has.
    pub(crate) fn capacity(&self) -> (u128, u128) {
        let total = self.nodes.iter().map(|limits| u128::from(limits.length)).sum();
        let free = self.writable().map(|(backing, limits)| {
            let used: u128 = self.on(backing).map(|g| u128::from(g.len)).sum();
            u128::from(limits.length).saturating_sub(used)
        });
        (total, free.sum())
    }

    /// Nodes in all.
    pub(crate) fn nodes(&self) -> &[Limits] {
        &self.nodes
    }

    /// Whether some node or namespace must not be changed.
    pub(crate) fn has_read_only(&self) -> bool {
        self.nodes.iter().any(|limits| limits.read_only)
            || self.entries().any(|e| e.geometry.read_only)
    }

    /// Nodes that namespaces may be created on.
    fn writable(&self) -> impl Iterator<Item = (usize, &Limits)> {
        self.nodes.iter().enumerate().filter(|(_, limits)| !limits.read_only)
    }

    /// Namespaces on a node.
    fn on(&self, backing: usize) -> impl Iterator<Item = &Geometry> {
        self.all_allocated().filter(move |g| g.backing == backing)
    }

    /// The first range of a node that is free and this long: where it begins.
    fn gap(&self, backing: usize, len: u64) -> Option<u64> {
        let mut taken: Vec<(u64, u64)> = self.on(backing).map(|g| (g.base, g.len)).collect();
        taken.sort_unstable();
        let mut at = 0u64;
        for (base, used) in taken {
            if base.checked_sub(at).is_some_and(|free| free >= len) {
                return Some(at);
            }
            at = base.checked_add(used)?.checked_next_multiple_of(GRANULARITY)?;
        }
        let end = at.checked_add(len)?;
        (end <= self.nodes.get(backing)?.length).then_some(at)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.places.iter().flatten()
    }

    fn entry(&self, nsid: u32) -> Option<&Entry> {
        self.places.get(nsid.wrapping_sub(1) as usize)?.as_ref()
    }

    fn entry_mut(&mut self, nsid: u32) -> Option<&mut Entry> {
        self.places.get_mut(nsid.wrapping_sub(1) as usize)?.as_mut()
    }
}

impl Entry {
    fn settle(&mut self, closed: bool) {
        let takes_io = self.attached && self.busy.is_none() && !closed;
        self.is_open = takes_io && self.bad.is_empty() && self.geometry.metadata.is_none();
    }
}

/// The namespaces that NSID names: one, or with FFFFFFFFh all that `of` gives.
pub(crate) fn named<'a>(nsid: u32, all: impl Iterator<Item = &'a Geometry>) -> Vec<u32> {
    match nsid {
        NSID_ALL => all.map(|g| g.nsid).collect(),
        nsid => vec![nsid],
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::namespace::tests::geometry;

    pub(crate) fn inventory(shifts: &[u32], numbers: u32) -> Inventory {
        let geometries = (1u32..).zip(shifts).map(|(nsid, &shift)| Geometry {
            nsid,
            backing: nsid as usize - 1,
            ..geometry(1000, shift)
        });
        let geometries: Vec<Geometry> = geometries.collect();
        let nodes = geometries.iter().map(|g| g.limits.clone()).collect();
        Inventory::new(geometries, numbers, nodes)
    }

    #[test]
    fn ranges_are_given_and_taken_back() {
        let mut inventory = Inventory::new(Vec::new(), 4, vec![Limits::new(1 << 20, 512)]);
        assert_eq!(inventory.capacity(), (1 << 20, 1 << 20));
        let blocks = (512 << 10) / 512;
        assert_eq!(inventory.create(blocks, 0), Ok(1));
        assert_eq!(inventory.create(blocks / 8, 1), Ok(2));
        assert_eq!(inventory.allocated(2).map(|g| g.base), Some(512 << 10));
        assert_eq!(inventory.create(1, 1), Err(Status::NAMESPACE_INSUFFICIENT_CAPACITY));
        assert_eq!(inventory.create(1, 2), Err(Status::INVALID_FORMAT));
        assert_eq!(inventory.create(u64::MAX, 0), Err(Status::NAMESPACE_INSUFFICIENT_CAPACITY));
        let first = inventory.allocated(1).map(Geometry::identifier);
        inventory.delete(1);
        assert_eq!(inventory.capacity().1, 512 << 10);
        // Three blocks take a whole unit of the allocation.
        assert_eq!(inventory.create(3, 0), Ok(1));
        assert_eq!(inventory.allocated(1).map(|g| (g.base, g.blocks, g.len)), Some((0, 3, 4096)));
        assert_ne!(inventory.allocated(1).map(Geometry::identifier), first);
        assert_eq!(inventory.create(1, 0), Ok(3));
        assert_eq!(inventory.create(1, 0), Ok(4));
        assert_eq!(inventory.create(1, 0), Err(Status::NAMESPACE_ID_UNAVAILABLE));
    }

    #[test]
    fn bad_blocks_are_marked_and_cleared_in_part() {
        let mut inventory = inventory(&[9], 1);
        inventory.mark_bad(1, 10, 10).unwrap();
        inventory.mark_bad(1, 30, 5).unwrap();
        assert!(inventory.open(1).is_err() && inventory.usable(1).is_ok());
        let first = |inventory: &Inventory, slba, blocks| inventory.first_bad(1, slba, blocks);
        assert_eq!(first(&inventory, 0, 10), None);
        assert_eq!(first(&inventory, 0, 1000), Some(10));
        assert_eq!(first(&inventory, 15, 100), Some(15));
        assert_eq!(first(&inventory, 20, 10), None);
        inventory.clear_bad(1, 12, 20);
        assert_eq!(first(&inventory, 11, 100), Some(11));
        assert_eq!(first(&inventory, 12, 100), Some(32));
        inventory.clear_all_bad(1);
        assert!(inventory.open(1).is_ok());
    }

    #[test]
    fn commands_are_refused_for_the_reason_that_there_is() {
        let mut inventory = inventory(&[9], 2);
        let open = |inventory: &Inventory, nsid| inventory.open(nsid).map(|g| g.nsid);
        assert_eq!(open(&inventory, 1), Ok(1));
        assert_eq!(open(&inventory, 2), Err(Status::INVALID_FIELD));
        for nsid in [0, 3, NSID_ALL] {
            assert_eq!(open(&inventory, nsid), Err(Status::INVALID_NAMESPACE));
        }
        inventory.set_busy(1, Some(Busy::Formatting(100)));
        assert_eq!(open(&inventory, 1), Err(Status::FORMAT_IN_PROGRESS));
        inventory.set_closed(Some(Status::SANITIZE_IN_PROGRESS));
        inventory.set_busy(1, None);
        assert_eq!(open(&inventory, 1), Err(Status::SANITIZE_IN_PROGRESS));
        inventory.set_closed(None);
        inventory.set_attached(1, false);
        assert_eq!(open(&inventory, 1), Err(Status::INVALID_FIELD));
        assert!(inventory.active(1).is_none() && inventory.allocated(1).is_some());
        inventory.set_attached(1, true);
        assert_eq!(open(&inventory, 1), Ok(1));
    }
}
