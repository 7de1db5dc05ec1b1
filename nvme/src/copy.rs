//! Source range descriptors of the Copy command (NVM Command Set 1.0, 3.2.2).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Descriptor format 0h: 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SourceRange {
    /// Reserved.
    pub reserved0: [u8; 8],
    /// Starting LBA.
    pub slba: U64,
    /// Number of logical blocks, 0-based.
    pub nlb: U16,
    /// Reserved.
    pub reserved18: [u8; 6],
    /// Expected initial logical block reference tag.
    pub eilbrt: U32,
    /// Expected logical block application tag.
    pub elbat: U16,
    /// Expected logical block application tag mask.
    pub elbatm: U16,
}

/// Descriptor format 1h, for 64-bit guards: 40 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SourceRange1 {
    /// Reserved.
    pub reserved0: [u8; 8],
    /// Starting LBA.
    pub slba: U64,
    /// Number of logical blocks, 0-based.
    pub nlb: U16,
    /// Reserved.
    pub reserved18: [u8; 8],
    /// Expected storage and reference tags.
    pub elbt: [u8; 10],
    /// Expected logical block application tag.
    pub elbat: U16,
    /// Expected logical block application tag mask.
    pub elbatm: U16,
}

impl SourceRange {
    /// `blocks` is 1-based, 1 to 65,536.
    pub const fn new(slba: u64, blocks: u32) -> Self {
        Self {
            reserved0: [0; 8],
            slba: U64::new(slba),
            nlb: U16::new(blocks.wrapping_sub(1) as u16),
            reserved18: [0; 6],
            eilbrt: U32::ZERO,
            elbat: U16::ZERO,
            elbatm: U16::ZERO,
        }
    }
    /// Number of logical blocks, 1-based.
    pub const fn blocks(&self) -> u32 {
        self.nlb.get() as u32 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memoffset::offset_of;

    #[test]
    fn layout() {
        assert_eq!(size_of::<SourceRange>(), 32);
        assert_eq!(offset_of!(SourceRange, slba), 8);
        assert_eq!(offset_of!(SourceRange, nlb), 16);
        assert_eq!(offset_of!(SourceRange, eilbrt), 24);
        assert_eq!(offset_of!(SourceRange, elbat), 28);
        assert_eq!(offset_of!(SourceRange, elbatm), 30);
        assert_eq!(size_of::<SourceRange1>(), 40);
        assert_eq!(offset_of!(SourceRange1, elbt), 26);
        assert_eq!(offset_of!(SourceRange1, elbat), 36);
        assert_eq!(SourceRange::new(1, 65_536).blocks(), 65_536);
    }
}
