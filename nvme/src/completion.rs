//! Completion queue entry (Base 2.0, 4.2): 16 bytes.

use crate::status::Status;

/// A completion queue entry as two 64-bit words: dwords 1:0 and dwords 3:2.
///
/// The second word holds SQHD, SQID, CID, phase tag and status, so that one load sees the phase
/// together with everything it vouches for, but for the result in dwords 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Completion(pub [u64; 2]);

/// The phase tag in the second word.
pub const PHASE: u64 = 1 << 48;

impl Completion {
    /// Bytes of an entry.
    pub const BYTES: usize = 16;

    /// An entry with its phase tag clear; the ring sets it.
    #[inline]
    pub const fn new(result: u64, sqhd: u16, sqid: u16, cid: u16, status: Status) -> Self {
        let high = sqhd as u64
            | (sqid as u64) << 16
            | (cid as u64) << 32
            | (status.to_bits() as u64) << 48;
        Self([result, high])
    }
    /// From 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let v = u128::from_le_bytes(bytes);
        Self([v as u64, (v >> 64) as u64])
    }
    /// As 16 bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.0[1]) << 64 | u128::from(self.0[0])).to_le_bytes()
    }
    /// Dword 0: the command specific result.
    #[inline]
    pub const fn dw0(&self) -> u32 {
        self.0[0] as u32
    }
    /// Dword 1: the upper half of the result.
    pub const fn dw1(&self) -> u32 {
        (self.0[0] >> 32) as u32
    }
    /// SQ Head Pointer: what the controller says it has fetched. To be checked.
    #[inline]
    pub const fn sqhd(&self) -> u16 {
        self.0[1] as u16
    }
    /// SQ Identifier.
    #[inline]
    pub const fn sqid(&self) -> u16 {
        (self.0[1] >> 16) as u16
    }
    /// Command Identifier. To be checked.
    #[inline]
    pub const fn cid(&self) -> u16 {
        (self.0[1] >> 32) as u16
    }
    /// Phase Tag.
    #[inline]
    pub const fn phase(&self) -> bool {
        self.0[1] & PHASE != 0
    }
    /// Status, without the phase tag.
    #[inline]
    pub const fn status(&self) -> Status {
        Status::from_bits((self.0[1] >> 48) as u16)
    }
    /// SCT and SC are both zero: the same as `status().is_success()`, in one test.
    #[inline]
    pub const fn is_success(&self) -> bool {
        // SC is bits 8:1 and SCT bits 11:9 of the status half-word.
        self.0[1] >> 49 & 0x7ff == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_sit_where_the_specification_puts_them() {
        let entry =
            Completion::new(0x1122_3344_5566_7788, 0x0102, 0x0304, 0x0506, Status::INVALID_QID);
        let bytes = entry.to_bytes();
        assert_eq!(bytes[..4], 0x5566_7788u32.to_le_bytes());
        assert_eq!(bytes[4..8], 0x1122_3344u32.to_le_bytes());
        assert_eq!(bytes[8..10], [2, 1]);
        assert_eq!(bytes[10..12], [4, 3]);
        assert_eq!(bytes[12..14], [6, 5]);
        assert_eq!(bytes[14..16], Status::INVALID_QID.to_bits().to_le_bytes());
        assert_eq!(Completion::from_bytes(bytes), entry);
        assert_eq!((entry.sqhd(), entry.sqid(), entry.cid()), (0x0102, 0x0304, 0x0506));
        assert_eq!((entry.dw0(), entry.dw1()), (0x5566_7788, 0x1122_3344));
        assert!(!entry.phase());
    }

    #[test]
    fn the_short_test_for_success_agrees_with_the_long_one() {
        for bits in 0..=u16::MAX {
            let entry = Completion([0, u64::from(bits) << 48]);
            assert_eq!(entry.is_success(), entry.status().is_success(), "{bits:#06x}");
        }
    }
}
