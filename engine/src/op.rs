//! Operations: what a user asks of a node, and what comes back.

use std::fmt;

use bitflags::bitflags;
use oxblock_mem::IoVector;

use crate::Fault;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpKind {
    /// Bytes of the node go into the buffers.
    Read,
    /// The buffers' bytes go to the node.
    Write,
    /// Every write completed before this one survives a power cut once this completes.
    Flush,
    /// The range reads as zeroes afterwards.
    WriteZeroes,
    /// The range is not needed any more; what it reads as is the node's affair.
    Discard,
    /// The node's bytes are compared with the buffers'.
    Compare,
}

impl OpKind {
    /// How many kinds there are; statistics are arrays of this length.
    pub const COUNT: usize = 6;

    /// Whether the operation carries buffers of its own length.
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::Compare)
    }

    /// Whether the operation changes what the node holds.
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::WriteZeroes | Self::Discard)
    }
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::WriteZeroes => "write zeroes",
            Self::Discard => "discard",
            Self::Compare => "compare",
        })
    }
}

bitflags! {
    /// How an operation is to be carried out.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpFlags: u8 {
        /// Force unit access: this write is on stable media when it completes.
        const FUA = 1;
        /// Write zeroes may free the space.
        const MAY_UNMAP = 2;
        /// Write zeroes must fail rather than write buffers of zeroes.
        const NO_FALLBACK = 4;
    }
}

/// One operation on a node. It owns its buffers from submit to completion.
#[derive(Debug)]
pub struct Op {
    /// What to do.
    pub kind: OpKind,
    /// How to do it.
    pub flags: OpFlags,
    /// The first byte of the node.
    pub offset: u64,
    /// The length in bytes; that of `data` where the kind has data.
    pub len: u64,
    /// The buffers, empty where the kind has none.
    pub data: IoVector,
    /// The caller's own mark, given back with the completion.
    pub tag: u64,
}

impl Op {
    /// Reads `data.len()` bytes at `offset` into `data`.
    #[inline(always)]
    pub fn read(offset: u64, data: impl Into<IoVector>) -> Self {
        Self::with_data(OpKind::Read, offset, data.into())
    }

    /// Writes `data` at `offset`.
    #[inline(always)]
    pub fn write(offset: u64, data: impl Into<IoVector>) -> Self {
        Self::with_data(OpKind::Write, offset, data.into())
    }

    /// Compares `data` with the node's bytes at `offset`.
    pub fn compare(offset: u64, data: impl Into<IoVector>) -> Self {
        Self::with_data(OpKind::Compare, offset, data.into())
    }

    /// Makes every write completed so far durable.
    pub fn flush() -> Self {
        Self::without_data(OpKind::Flush, 0, 0)
    }

    /// Makes the range read as zeroes.
    pub fn write_zeroes(offset: u64, len: u64) -> Self {
        Self::without_data(OpKind::WriteZeroes, offset, len)
    }

    /// Says that the range's bytes are not needed any more.
    pub fn discard(offset: u64, len: u64) -> Self {
        Self::without_data(OpKind::Discard, offset, len)
    }

    /// Adds force unit access.
    #[must_use]
    pub fn fua(mut self) -> Self {
        self.flags |= OpFlags::FUA;
        self
    }

    /// Adds flags.
    #[must_use]
    pub fn flags(mut self, flags: OpFlags) -> Self {
        self.flags |= flags;
        self
    }

    /// Marks the operation; the completion carries the mark.
    #[must_use]
    #[inline(always)]
    pub fn tag(mut self, tag: u64) -> Self {
        self.tag = tag;
        self
    }

    #[inline(always)]
    fn with_data(kind: OpKind, offset: u64, data: IoVector) -> Self {
        let len = data.len() as u64;
        Self { kind, flags: OpFlags::empty(), offset, len, data, tag: 0 }
    }

    fn without_data(kind: OpKind, offset: u64, len: u64) -> Self {
        Self { kind, flags: OpFlags::empty(), offset, len, data: IoVector::new(), tag: 0 }
    }
}

/// The core's slot table is full: the operation comes back, to be submitted again after a poll.
#[derive(Debug)]
pub struct Full(pub Op);

/// What became of an operation that was submitted where it stands; see
/// [`Channel::submit_in_place`](crate::Channel::submit_in_place).
#[derive(Debug)]
pub enum InPlace {
    /// It was carried out, and is still where it was.
    Done,
    /// It is on its way, or has failed already, and is to be polled for; an empty one is left in
    /// its place.
    Running(OpId),
    /// The core's slot table is full, and the operation still where it was, to be submitted again
    /// after a poll.
    Full,
}

/// A finished operation, with the buffers it borrowed.
#[derive(Debug)]
pub struct Completion {
    /// The operation as it was submitted; its buffers come back here.
    pub op: Op,
    /// Whether it succeeded.
    pub result: Result<(), Fault>,
}

/// Names an operation in flight: its slot and the slot's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}
