//! Namespaces: logical blocks over a node of the engine.

use std::sync::Arc;

use oxblock_engine::{Channel, Limits};
use oxblock_nvme::Status;
use oxblock_nvme::feature::WriteProtection;

use crate::options::NamespaceOptions;
use crate::protection::Metadata;

/// Copy: logical blocks of one command in bytes, which are read whole before they are written,
/// so that overlapping ranges come out right.
pub(crate) const COPY_BYTES: u32 = 256 << 10;

/// Copy: source ranges of one command.
pub(crate) const COPY_RANGES: usize = 128;

/// LBA formats that every namespace lists first, as powers of two.
pub(crate) const FORMATS: [u32; 2] = [9, 12];

/// A node that namespaces lie on, as the controller's core reaches it.
pub(crate) struct Backing {
    pub(crate) channel: Channel,
    pub(crate) usage: Usage,
}

/// Where a namespace lies, and how it is cut into blocks.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub(crate) nsid: u32,
    /// Tells it from all others that had its number before.
    pub(crate) incarnation: u32,
    /// The node that it lies on: its index.
    pub(crate) backing: usize,
    /// Its first byte there, and its length in bytes.
    pub(crate) base: u64,
    pub(crate) len: u64,
    /// Logical blocks.
    pub(crate) blocks: u64,
    /// Bytes of a block, as a power of two.
    pub(crate) shift: u32,
    /// A format that it has besides the usual ones.
    pub(crate) extra_format: Option<u32>,
    /// Whether it lists the usual formats with metadata, too, after all others.
    pub(crate) lists_metadata: bool,
    /// The metadata of its blocks, if they have any.
    pub(crate) metadata: Option<Arc<Metadata>>,
    pub(crate) read_only: bool,
    /// Whether it is so by a feature that the host set.
    pub(crate) protection: WriteProtection,
    pub(crate) noiob: u16,
    pub(crate) limits: Limits,
}

/// A range of a node for a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) backing: usize,
    pub(crate) base: u64,
    pub(crate) len: u64,
}

/// Whether a node can be cut into blocks of this size.
pub(crate) fn permits(limits: &Limits, shift: u32) -> bool {
    limits.block_size != 0 && (1u32 << shift).is_multiple_of(limits.block_size)
}

/// What the SMART log counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    pub(crate) media_errors: u64,
}

/// A byte range of the node, inside the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Geometry {
    /// A namespace over all of a node.
    pub(crate) fn new(nsid: u32, backing: usize, options: &NamespaceOptions) -> Geometry {
        let limits = (*options.node.limits()).clone();
        let shift = options.block_size.trailing_zeros();
        let extra_format = (!FORMATS.contains(&shift)).then_some(shift);
        let (len, read_only) = (limits.length, options.read_only || limits.read_only);
        let mut geometry = Geometry {
            nsid,
            incarnation: 0,
            backing,
            base: 0,
            len,
            blocks: 0,
            shift,
            extra_format,
            lists_metadata: options.metadata,
            metadata: None,
            read_only,
            protection: WriteProtection::None,
            noiob: 0,
            limits,
        };
        geometry.reshape(shift);
        geometry.noiob = options.noiob.unwrap_or(geometry.noiob);
        geometry
    }

    /// A namespace over a range of a node.
    pub(crate) fn part(nsid: u32, at: Part, shift: u32, limits: Limits) -> Geometry {
        let Part { backing, base, len } = at;
        let mut geometry = Geometry {
            nsid,
            incarnation: 0,
            backing,
            base,
            len,
            blocks: 0,
            shift,
            extra_format: None,
            lists_metadata: false,
            metadata: None,
            read_only: limits.read_only,
            protection: WriteProtection::None,
            noiob: 0,
            limits,
        };
        geometry.reshape(shift);
        geometry
    }

    /// Cuts it into blocks of another size.
    pub(crate) fn reshape(&mut self, shift: u32) {
        let block_size = 1u32 << shift;
        let boundary = self.limits.boundary;
        // A boundary inside a block is none that a host could keep to.
        let whole = boundary.is_multiple_of(block_size);
        let aligned = boundary == 0 || self.base.is_multiple_of(boundary.into());
        self.shift = shift;
        self.blocks = self.len >> shift;
        self.noiob = match u16::try_from(boundary >> shift) {
            Ok(noiob) if whole && aligned => noiob,
            _ => 0,
        };
    }

    /// How many LBA formats it lists.
    pub(crate) fn formats(&self) -> u8 {
        let with_metadata = if self.lists_metadata { FORMATS.len() as u8 } else { 0 };
        self.plain_formats() + with_metadata
    }

    /// How many of them have no metadata.
    fn plain_formats(&self) -> u8 {
        FORMATS.len() as u8 + u8::from(self.extra_format.is_some())
    }

    /// Whether the blocks of an LBA format have metadata.
    pub(crate) fn has_metadata(&self, index: u8) -> bool {
        (self.plain_formats()..self.formats()).contains(&index)
    }

    /// The block size of an LBA format, as a power of two; `None` if it does not exist, or the node
    /// below does not permit it.
    pub(crate) fn format(&self, index: u8) -> Option<u32> {
        let index = match self.has_metadata(index) {
            true => usize::from(index - self.plain_formats()),
            false => usize::from(index),
        };
        let shift = match FORMATS.get(index) {
            Some(&shift) => shift,
            None => self.extra_format.filter(|_| index == FORMATS.len())?,
        };
        let fits = permits(&self.limits, shift) && self.len >> shift > 0;
        fits.then_some(shift)
    }

    /// The index of the LBA format in use.
    pub(crate) fn format_index(&self) -> u8 {
        let index = FORMATS.iter().position(|&shift| shift == self.shift);
        let index = index.unwrap_or(FORMATS.len()) as u8;
        if self.metadata.is_some() { self.plain_formats() + index } else { index }
    }

    /// What its identifiers derive from: the number, and how often it was given away before.
    pub(crate) fn identifier(&self) -> u32 {
        self.nsid | self.incarnation << 16
    }

    /// The bytes of `blocks` blocks from `slba` on.
    ///
    /// # Errors
    /// The range ends past the namespace, however large the numbers are.
    #[inline]
    pub(crate) fn range(&self, slba: u64, blocks: u64) -> Result<Range, Status> {
        let end = slba.checked_add(blocks);
        if end.is_none_or(|end| end > self.blocks) {
            return Err(Status::LBA_OUT_OF_RANGE);
        }
        // In range of the node's length in bytes, so the shifts lose nothing.
        Ok(Range { offset: self.base + (slba << self.shift), len: blocks << self.shift })
    }

    /// Refuses to change a namespace that is write protected.
    #[inline]
    pub(crate) fn writable(&self) -> Result<(), Status> {
        if self.read_only {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        Ok(())
    }

    /// Blocks that one Copy may move (MCL), and one of its ranges (MSSRL).
    pub(crate) fn copy_blocks(&self) -> u32 {
        COPY_BYTES >> self.shift
    }

    /// A length of the node's limits in blocks, 0-based as Identify has it; `None` for none.
    pub(crate) fn blocks_of(&self, bytes: u32) -> Option<u16> {
        let blocks = bytes >> self.shift;
        let blocks = u16::try_from(blocks).unwrap_or(u16::MAX);
        blocks.checked_sub(1)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn geometry(blocks: u64, shift: u32) -> Geometry {
        let limits = Limits::new(blocks << shift, 512);
        let all = Part { backing: 0, base: 0, len: blocks << shift };
        Geometry::part(1, all, shift, limits)
    }

    #[test]
    fn a_namespace_stays_in_its_part_of_the_node() {
        let part = Part { backing: 0, base: 1 << 20, len: 10 << 12 };
        let mut g = Geometry::part(1, part, 12, Limits::new(1 << 30, 512));
        assert_eq!(g.range(9, 1), Ok(Range { offset: (1 << 20) + (9 << 12), len: 4096 }));
        assert_eq!(g.range(10, 1), Err(Status::LBA_OUT_OF_RANGE));
        assert_eq!((g.format(0), g.format(1), g.format(2)), (Some(9), Some(12), None));
        g.reshape(9);
        assert_eq!((g.blocks, g.format_index()), (80, 0));
        g.limits.block_size = 4096;
        assert_eq!((g.format(0), g.format(1)), (None, Some(12)));
    }

    #[test]
    fn ranges_end_with_the_namespace_and_do_not_overflow() {
        let g = geometry(100, 12);
        assert_eq!(g.range(99, 1), Ok(Range { offset: 99 << 12, len: 4096 }));
        assert_eq!(g.range(100, 0), Ok(Range { offset: 100 << 12, len: 0 }));
        let bad = [(100, 1), (99, 2), (u64::MAX, 1), (u64::MAX, u64::MAX), (0, 101)];
        for (slba, blocks) in bad {
            assert_eq!(g.range(slba, blocks), Err(Status::LBA_OUT_OF_RANGE));
        }
    }

    #[test]
    fn limits_become_blocks() {
        let g = geometry(100, 9);
        assert_eq!(g.blocks_of(4096), Some(7));
        assert_eq!(g.blocks_of(511), None);
        assert_eq!(g.blocks_of(u32::MAX), Some(u16::MAX - 1));
        assert_eq!(g.copy_blocks(), 512);
    }
}
