//! Dataset Management ranges (NVM Command Set 1.0, 3.2.3).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Attribute (dword 11): Integral Dataset for Read.
pub const IDR: u32 = 1 << 0;
/// Attribute (dword 11): Integral Dataset for Write.
pub const IDW: u32 = 1 << 1;
/// Attribute (dword 11): Deallocate.
pub const AD: u32 = 1 << 2;

/// Ranges that one command may carry.
pub const RANGES_MAX: usize = 256;

/// One range: 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Range {
    /// Context attributes: hints.
    pub cattr: U32,
    /// Length in logical blocks; not 0-based, zero does nothing.
    pub nlb: U32,
    /// Starting LBA.
    pub slba: U64,
}

impl Range {
    /// A range without context attributes.
    pub const fn new(slba: u64, blocks: u32) -> Self {
        Self { cattr: U32::ZERO, nlb: U32::new(blocks), slba: U64::new(slba) }
    }
    /// The range as the two 64-bit words of a ring or a list.
    pub const fn to_words(self) -> [u64; 2] {
        [self.cattr.get() as u64 | (self.nlb.get() as u64) << 32, self.slba.get()]
    }
    /// From two 64-bit words.
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self {
            cattr: U32::new(words[0] as u32),
            nlb: U32::new((words[0] >> 32) as u32),
            slba: U64::new(words[1]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memoffset::offset_of;

    #[test]
    fn layout() {
        assert_eq!(size_of::<Range>(), 16);
        assert_eq!(offset_of!(Range, nlb), 4);
        assert_eq!(offset_of!(Range, slba), 8);
        let range = Range::new(0x1122, 0x33);
        assert_eq!(range.as_bytes()[4..9], [0x33, 0, 0, 0, 0x22]);
        let words = range.to_words();
        assert_eq!(words[0].to_le_bytes(), range.as_bytes()[..8]);
        assert_eq!(words[1].to_le_bytes(), range.as_bytes()[8..]);
        assert_eq!(Range::from_words(words), range);
    }
}
