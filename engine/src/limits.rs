//! What a node can take in one request.

/// The limits of a node. The engine splits and bounces requests so that a leaf sees
/// only what it can take. Lengths and alignments are in bytes; 0 means "no limit"
/// unless a field says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The size of the node.
    pub length: u64,
    /// Offsets and lengths of every operation are multiples of this; never 0.
    pub block_size: u32,
    /// The longest read, write or compare.
    pub max_transfer: u32,
    /// A read or write must not cross a multiple of this (NOIOB); any number, not only a
    /// power of two.
    pub boundary: u32,
    /// The most pieces of memory in one request.
    pub max_segments: u32,
    /// Which memory a request may name.
    pub memory: MemoryRule,
    /// The longest write zeroes; 0 if the node has none (the engine then writes zeroes).
    pub max_write_zeroes: u64,
    /// The longest discard; 0 if the node has none (a discard then does nothing).
    pub max_discard: u64,
    /// Discards work best in multiples of this.
    pub discard_alignment: u32,
    /// Write zeroes work best in multiples of this.
    pub write_zeroes_alignment: u32,
    /// The length that the node does best.
    pub optimal_transfer: u32,
    /// Writes up to this length are atomic with respect to other requests.
    pub atomic_write: u32,
    /// Writes up to this length are atomic across a power cut.
    pub atomic_write_power_fail: u32,
    /// Completed writes may be lost in a power cut until they are flushed.
    pub volatile_cache: bool,
    /// The node does force unit access itself; otherwise the engine flushes after the write.
    pub fua: bool,
    /// The node has a compare of its own; otherwise the engine refuses it.
    pub compare: bool,
    /// Writes are refused.
    pub read_only: bool,
    /// The image is handed over to another process: writes are refused until the node is active
    /// again.
    pub inactive: bool,
    /// Flushes, and force unit access, do nothing; of a node whose options say so, never of a
    /// driver.
    pub no_flush: bool,
}

impl Limits {
    /// Limits of a node that takes anything at a granularity of `block_size`.
    pub fn new(length: u64, block_size: u32) -> Self {
        Self {
            length,
            block_size: block_size.max(1),
            max_transfer: 0,
            boundary: 0,
            max_segments: 0,
            memory: MemoryRule::Any,
            max_write_zeroes: 0,
            max_discard: 0,
            discard_alignment: 0,
            write_zeroes_alignment: 0,
            optimal_transfer: 0,
            atomic_write: 0,
            atomic_write_power_fail: 0,
            volatile_cache: false,
            fua: false,
            compare: false,
            read_only: false,
            inactive: false,
            no_flush: false,
        }
    }
}

/// Which memory a request to a leaf may name. What breaks the rule goes through a
/// bounce buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryRule {
    /// Any memory at any address, reached by the CPU or the kernel.
    Any,
    /// Any memory whose pieces' addresses and lengths are multiples of this, in bytes
    /// (O_DIRECT).
    Aligned(u32),
    /// Memory with an IOVA, reached by a device.
    Dma {
        /// Addresses and lengths of all pieces are multiples of this.
        segment_align: u32,
        /// With `Some(page)`, only the first piece may begin inside a page and only the
        /// last may end inside one (NVMe PRP).
        prp_page: Option<u32>,
    },
}
