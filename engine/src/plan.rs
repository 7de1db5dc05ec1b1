//! Fragments: how much of an operation a leaf takes at once, and over which memory.

use oxblock_mem::View;

use crate::{ErrorKind, Fault, Limits, MemoryRule, Op, OpFlags, OpKind};

/// The longest piece that goes through a bounce buffer at once.
pub(crate) const BOUNCE_LEN: usize = 128 << 10;

/// A leaf's limits, arranged for the checks that every operation passes.
#[derive(Debug)]
pub(crate) struct Rules {
    pub length: u64,
    pub block_size: u64,
    block_mask: Option<u64>,
    /// Bits that neither offset nor length may have: all of them, where no mask tells a block.
    unaligned_bits: u64,
    max_transfer: u64,
    boundary: u64,
    max_segments: usize,
    memory: MemoryRule,
    /// Neither boundary nor memory needs a look.
    takes_any: bool,
    pub max_write_zeroes: u64,
    pub max_discard: u64,
    pub compare: bool,
    /// Whether FUA must be made up for by a flush.
    pub emulate_fua: bool,
    pub no_flush: bool,
    pub read_only: bool,
    inactive: bool,
    /// How long an operation may be that goes whole; never more than the node.
    longest_plain: u64,
    /// Bits of the kinds that may go whole, and the flags with which they may not.
    plain_kinds: u8,
    minded_flags: OpFlags,
}

/// How the next fragment reaches its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Memory {
    Direct,
    Bounce,
}

impl Rules {
    pub fn new(limits: &Limits) -> Self {
        let block_size = u64::from(limits.block_size.max(1));
        let whole_blocks = |bytes: u64| bytes / block_size * block_size;
        let unlimited = |bytes: u64| if bytes == 0 { u64::MAX } else { bytes };
        let max_transfer =
            unlimited(whole_blocks(limits.max_transfer.into())).min(whole_blocks(1 << 30));
        let minds_fua = !limits.fua && limits.volatile_cache || limits.no_flush;
        Self {
            length: limits.length,
            block_size,
            block_mask: block_size.is_power_of_two().then(|| block_size - 1),
            unaligned_bits: if block_size.is_power_of_two() { block_size - 1 } else { u64::MAX },
            max_transfer,
            boundary: limits.boundary.into(),
            max_segments: if limits.max_segments == 0 {
                usize::MAX
            } else {
                limits.max_segments as usize
            },
            memory: limits.memory,
            takes_any: limits.memory == MemoryRule::Any
                && limits.boundary == 0
                && limits.max_segments == 0,
            max_write_zeroes: whole_blocks(limits.max_write_zeroes),
            max_discard: whole_blocks(limits.max_discard),
            compare: limits.compare,
            emulate_fua: !limits.fua && limits.volatile_cache && !limits.no_flush,
            no_flush: limits.no_flush,
            read_only: limits.read_only,
            inactive: limits.inactive,
            longest_plain: max_transfer.min(limits.length),
            plain_kinds: 1 << OpKind::Read as u8
                | u8::from(!limits.read_only) << OpKind::Write as u8,
            minded_flags: if minds_fua { OpFlags::all() } else { OpFlags::empty() },
        }
    }

    /// Whether some operation may need a bounce buffer.
    pub fn may_bounce(&self) -> bool {
        self.memory != MemoryRule::Any || self.max_segments != usize::MAX || !self.compare
    }

    /// Refuses an operation that the node cannot take whatever is done to it.
    #[inline]
    pub fn check(&self, op: &Op) -> Result<(), Fault> {
        let aligned = match self.block_mask {
            Some(mask) => (op.offset | op.len) & mask == 0,
            None => {
                op.offset.is_multiple_of(self.block_size) && op.len.is_multiple_of(self.block_size)
            }
        };
        let inside = op.offset.checked_add(op.len).is_some_and(|end| end <= self.length);
        let data_fits = !op.kind.has_data() || op.data.len() as u64 == op.len;
        if aligned && inside && data_fits && !(self.read_only && op.kind.is_write()) {
            return Ok(());
        }
        Err(self.explain(op, aligned, inside))
    }

    #[cold]
    fn explain(&self, op: &Op, aligned: bool, inside: bool) -> Fault {
        let (kind, text) = if !inside {
            (ErrorKind::Invalid, "the range ends beyond the node")
        } else if !aligned {
            (ErrorKind::Invalid, "offset and length must be multiples of the node's block size")
        } else if self.inactive && op.kind.is_write() {
            let text = "the node is inactive, its image is handed over to another process; activate \
                        it before you write to it";
            (ErrorKind::Denied, text)
        } else if self.read_only && op.kind.is_write() {
            (ErrorKind::ReadOnly, "the node takes no writes")
        } else {
            (ErrorKind::Invalid, "the length differs from that of the buffers")
        };
        Fault::text(kind, op.offset, text)
    }

    /// Whether an operation that begins at `offset` here is allowed, and can go to the leaf whole
    /// and as it is: the common case.
    #[inline(always)]
    pub fn is_straight(&self, op: &Op, offset: u64) -> bool {
        self.is_plain(op, offset) && (self.takes_any || self.is_straight_memory(op, offset))
    }

    /// Whether an operation is allowed and may be straight, as far as that is not a question of
    /// its memory.
    #[inline(always)]
    pub fn is_plain(&self, op: &Op, offset: u64) -> bool {
        let aligned = (offset | op.len) & self.unaligned_bits == 0;
        let fits = op.len.wrapping_sub(1) < self.longest_plain
            && offset <= self.length.wrapping_sub(op.len)
            && op.data.len() as u64 == op.len;
        let plain =
            self.plain_kinds >> op.kind as u8 & 1 != 0 && (op.flags & self.minded_flags).is_empty();
        aligned && fits && plain
    }

    fn is_straight_memory(&self, op: &Op, offset: u64) -> bool {
        self.to_boundary(offset) >= op.len && self.allows(op.data.whole())
    }

    /// The length and the memory of the next fragment of a transfer: `data` is what is
    /// left of the operation, at `offset` of the node.
    pub fn transfer(&self, offset: u64, data: View<'_>) -> (u64, Memory) {
        let mut len = (data.len() as u64).min(self.max_transfer);
        let room = self.to_boundary(offset) / self.block_size * self.block_size;
        if room > 0 {
            len = len.min(room);
        }
        let view = data.slice(0, len as usize);
        if self.allows(view) {
            return (len, Memory::Direct);
        }
        let prefix = self.allowed_prefix(view) / self.block_size * self.block_size;
        if prefix > 0 {
            return (prefix, Memory::Direct);
        }
        let bounce = BOUNCE_LEN as u64 / self.block_size * self.block_size;
        (len.min(bounce.max(self.block_size)), Memory::Bounce)
    }

    /// Whether an operation is over before it begins: it does nothing here.
    pub fn is_needless(&self, kind: OpKind) -> bool {
        match kind {
            OpKind::Discard => self.max_discard == 0,
            OpKind::Flush => self.no_flush,
            _ => false,
        }
    }

    /// What is left of an operation's flags here.
    pub fn flags(&self, flags: OpFlags) -> OpFlags {
        let fua = if self.no_flush { OpFlags::FUA } else { OpFlags::empty() };
        let unmap = if self.max_discard == 0 { OpFlags::MAY_UNMAP } else { OpFlags::empty() };
        flags - fua - unmap
    }

    /// The length of the next fragment of a kind without data, `left` bytes before the end.
    pub fn span(&self, kind: OpKind, left: u64) -> u64 {
        let most = match kind {
            OpKind::WriteZeroes => self.max_write_zeroes,
            OpKind::Discard => self.max_discard,
            _ => u64::MAX,
        };
        left.min(most)
    }

    fn to_boundary(&self, offset: u64) -> u64 {
        if self.boundary == 0 { u64::MAX } else { self.boundary - offset % self.boundary }
    }

    fn allows(&self, view: View<'_>) -> bool {
        self.allowed_prefix(view) == view.len() as u64
    }

    /// How many bytes from the start of `view` the leaf takes as they lie.
    fn allowed_prefix(&self, view: View<'_>) -> u64 {
        let mut taken = 0;
        let mut previous_end = 0;
        for (count, piece) in view.pieces().enumerate() {
            if count == self.max_segments {
                return taken;
            }
            let len = piece.len() as u64;
            let (address, align, prp_page) = match self.memory {
                MemoryRule::Any => {
                    taken += len;
                    continue;
                }
                MemoryRule::Aligned(align) => (piece.addr() as u64, align, None),
                MemoryRule::Dma { segment_align, prp_page } => {
                    let Some(iova) = piece.iova() else { return taken };
                    (iova, segment_align, prp_page)
                }
            };
            let align = u64::from(align.max(1));
            if !address.is_multiple_of(align) {
                return taken;
            }
            if let Some(page) = prp_page {
                let page = u64::from(page);
                if count > 0 && (address % page != 0 || previous_end % page != 0) {
                    return taken;
                }
                previous_end = address + len;
            }
            if !len.is_multiple_of(align) {
                return taken + len / align * align;
            }
            taken += len;
        }
        taken
    }
}
