//! Namespaces: logical blocks over a node of the engine.

use oxblock_engine::{Channel, Limits};
use oxblock_nvme::Status;

use crate::options::NamespaceOptions;

/// Copy: logical blocks of one command in bytes, which are read whole before they are written,
/// so that overlapping ranges come out right.
pub(crate) const COPY_BYTES: u32 = 256 << 10;

/// Copy: source ranges of one command.
pub(crate) const COPY_RANGES: usize = 128;

/// A namespace as the controller's core sees it.
pub(crate) struct Namespace {
    pub(crate) channel: Channel,
    pub(crate) geometry: Geometry,
    pub(crate) usage: Usage,
}

/// What does not change while the controller runs.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub(crate) nsid: u32,
    /// Logical blocks.
    pub(crate) blocks: u64,
    /// Bytes of a block, as a power of two.
    pub(crate) shift: u32,
    pub(crate) read_only: bool,
    pub(crate) noiob: u16,
    pub(crate) limits: Limits,
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
    pub(crate) fn new(nsid: u32, options: &NamespaceOptions) -> Geometry {
        let limits = options.node.limits().clone();
        let shift = options.block_size.trailing_zeros();
        let boundary = u16::try_from(limits.boundary >> shift).unwrap_or(0);
        // A boundary inside a block is none that a host could keep to.
        let whole = limits.boundary.is_multiple_of(options.block_size);
        let noiob = if whole { boundary } else { 0 };
        Geometry {
            nsid,
            blocks: limits.length >> shift,
            shift,
            read_only: options.read_only || limits.read_only,
            noiob: options.noiob.unwrap_or(noiob),
            limits,
        }
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
        Ok(Range { offset: slba << self.shift, len: blocks << self.shift })
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
        Geometry {
            nsid: 1,
            blocks,
            shift,
            read_only: false,
            noiob: 0,
            limits: Limits::new(blocks << shift, 512),
        }
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
