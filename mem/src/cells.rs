use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::{Buf, MemError};

/// Words that a device or another core may read and write at any time: queues, doorbell pages,
/// PRP lists. Bounds-checked atomics over a [`Buf`]; never a slice.
pub struct Cells {
    buf: Buf,
}

impl Cells {
    /// The words of `buf`.
    ///
    /// # Errors
    /// `EINVAL` if its address or length is not a multiple of 8.
    pub fn new(buf: Buf) -> Result<Cells, MemError> {
        if !buf.addr().addr().is_multiple_of(8) || !buf.len().is_multiple_of(8) {
            return Err(MemError::new(
                libc::EINVAL,
                format!(
                    "words over {} bytes at {:p}: address and length must be multiples of 8",
                    buf.len(),
                    buf.addr()
                ),
            ));
        }
        Ok(Cells { buf })
    }

    /// Length in bytes.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.buf.len()
    }

    /// The address of the first word in this process.
    #[inline]
    pub fn addr(&self) -> *mut u8 {
        self.buf.addr()
    }

    /// The address of the first word for devices.
    #[inline]
    pub fn iova(&self) -> Option<u64> {
        self.buf.iova()
    }

    /// The 32-bit word `index`, at byte `4 * index`.
    ///
    /// # Panics
    /// If it lies beyond the end.
    #[inline]
    pub fn u32(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.buf.len() / 4, "word {index} of {}", self.buf.len() / 4);
        // SAFETY: in range and aligned, checked; nothing but atomics reaches these bytes here,
        // and a device's or another `Cells`' accesses are as atomic as ours. They may differ in
        // size: Rust leaves open what that means, all processors that we run on define it.
        unsafe { AtomicU32::from_ptr(self.buf.addr().cast::<u32>().add(index)) }
    }

    /// The 64-bit word `index`, at byte `8 * index`.
    ///
    /// # Panics
    /// If it lies beyond the end.
    #[inline]
    pub fn u64(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.buf.len() / 8, "word {index} of {}", self.buf.len() / 8);
        // SAFETY: as for `u32`.
        unsafe { AtomicU64::from_ptr(self.buf.addr().cast::<u64>().add(index)) }
    }

    /// `N` 64-bit words from `index` on, with one check for all.
    ///
    /// # Panics
    /// If some lie beyond the end.
    #[inline]
    pub fn u64s<const N: usize>(&self, index: usize) -> &[AtomicU64; N] {
        let words = self.buf.len() / 8;
        assert!(N <= words && index <= words - N, "{N} words from {index} of {words}");
        // SAFETY: as for `u32`; an array of atomics is laid out as its words are.
        unsafe { &*self.buf.addr().cast::<u64>().add(index).cast() }
    }

    /// The buffer, when no device knows it any more.
    pub fn into_buf(self) -> Buf {
        self.buf
    }
}

impl fmt::Debug for Cells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cells").field(&self.buf).finish()
    }
}
