//! Device registers, checked once.

use std::fmt;
use std::sync::Arc;

use oxblock_mem::Buf;

use crate::{PciError, PciErrorKind};

/// A mapped base address register, as its back end gives it.
///
/// Drivers use [`Reg32`] and [`Reg64`], which check range and alignment once. A back end must
/// still be sound for every offset: what lies outside reads as all ones and ignores writes,
/// as a bus does. Each method is one access of just that size.
pub trait Bar: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the 32-bit word at a byte offset.
    fn read32(&self, offset: u64) -> u32;

    /// Reads the 64-bit word at a byte offset.
    fn read64(&self, offset: u64) -> u64;

    /// Writes the 32-bit word at a byte offset.
    fn write32(&self, offset: u64, value: u32);

    /// Writes the 64-bit word at a byte offset.
    fn write64(&self, offset: u64, value: u64);

    /// A part of the BAR that is memory and no registers, such as a Controller Memory Buffer, to
    /// be reached without a call for each access. What holds it keeps it mapped. Its address for
    /// devices is not known here ([`Buf::iova`] gives none): the device's specification says how
    /// it is named.
    ///
    /// # Errors
    /// Offset or length is not a multiple of 4 KiB, the part does not lie inside the BAR, or the
    /// back end can map no such memory.
    fn memory(&self, offset: u64, len: u64) -> Result<Buf, PciError>;
}

/// Refuses what [`Bar::memory`] cannot be asked for, whatever the BAR.
pub(crate) fn check_memory(bar: &dyn Bar, offset: u64, len: u64) -> Result<(), PciError> {
    const PAGE: u64 = 4096;
    let inside = offset.checked_add(len).is_some_and(|end| end <= bar.len());
    if inside && len > 0 && (offset | len).is_multiple_of(PAGE) {
        return Ok(());
    }
    Err(PciError::new(
        PciErrorKind::OutOfRange,
        format!(
            "{len:#x} bytes of memory at {offset:#x} do not fit a BAR of {:#x} bytes, or are no \
             whole pages; the device describes memory that it does not have",
            bar.len()
        ),
    ))
}

/// What [`Bar::memory`] says of registers.
pub(crate) fn no_memory(offset: u64) -> PciError {
    let text = format!("at {offset:#x} of the BAR there is no memory that can be mapped");
    PciError::new(PciErrorKind::NotSupported, text)
}

/// A 32-bit register of a device.
#[derive(Clone)]
pub struct Reg32 {
    bar: Arc<dyn Bar>,
    offset: u64,
}

impl Reg32 {
    /// The register at a byte offset of a BAR.
    ///
    /// # Errors
    /// The offset is not a multiple of four, or the register does not lie inside the BAR.
    pub fn new(bar: &Arc<dyn Bar>, offset: u64) -> Result<Reg32, PciError> {
        check(&**bar, offset, 4)?;
        Ok(Reg32 { bar: Arc::clone(bar), offset })
    }

    /// Reads the register; memory read afterwards is at least as new as this value.
    #[inline]
    #[must_use]
    pub fn read(&self) -> u32 {
        let value = self.bar.read32(self.offset);
        barrier::after_read();
        value
    }

    /// Writes the register; memory written before is visible to the device first.
    #[inline]
    pub fn write(&self, value: u32) {
        barrier::before_write();
        self.bar.write32(self.offset, value);
    }

    /// Byte offset in the BAR.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl fmt::Debug for Reg32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reg32({:#x})", self.offset)
    }
}

/// A 64-bit register of a device.
#[derive(Clone)]
pub struct Reg64 {
    bar: Arc<dyn Bar>,
    offset: u64,
}

impl Reg64 {
    /// The register at a byte offset of a BAR.
    ///
    /// # Errors
    /// The offset is not a multiple of eight, or the register does not lie inside the BAR.
    pub fn new(bar: &Arc<dyn Bar>, offset: u64) -> Result<Reg64, PciError> {
        check(&**bar, offset, 8)?;
        Ok(Reg64 { bar: Arc::clone(bar), offset })
    }

    /// Reads the register; memory read afterwards is at least as new as this value.
    #[inline]
    #[must_use]
    pub fn read(&self) -> u64 {
        let value = self.bar.read64(self.offset);
        barrier::after_read();
        value
    }

    /// Writes the register; memory written before is visible to the device first.
    #[inline]
    pub fn write(&self, value: u64) {
        barrier::before_write();
        self.bar.write64(self.offset, value);
    }

    /// Byte offset in the BAR.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl fmt::Debug for Reg64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reg64({:#x})", self.offset)
    }
}

fn check(bar: &dyn Bar, offset: u64, size: u64) -> Result<(), PciError> {
    let inside = offset.checked_add(size).is_some_and(|end| end <= bar.len());
    if offset.is_multiple_of(size) && inside {
        return Ok(());
    }
    Err(PciError::new(
        PciErrorKind::OutOfRange,
        format!(
            "a {}-bit register at {offset:#x} does not fit a BAR of {:#x} bytes; \
             the device describes registers that it does not have",
            size * 8,
            bar.len()
        ),
    ))
}

/// Order between memory and device registers.
///
/// A language fence orders memory between processors only. On x86-64 that is enough: stores
/// reach uncached registers in program order. Elsewhere a barrier for the outer domain is
/// needed, or the device may read a queue entry that is not there yet.
mod barrier {
    use std::sync::atomic::{Ordering, fence};

    #[inline(always)]
    pub(super) fn before_write() {
        fence(Ordering::Release);
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a barrier changes no register and no memory.
        unsafe {
            std::arch::asm!("dmb oshst", options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    pub(super) fn after_read() {
        fence(Ordering::Acquire);
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a barrier changes no register and no memory.
        unsafe {
            std::arch::asm!("dmb oshld", options(nostack, preserves_flags));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Words(Mutex<[u8; 16]>);

    impl Bar for Words {
        fn len(&self) -> u64 {
            16
        }
        fn read32(&self, offset: u64) -> u32 {
            let at = offset as usize;
            u32::from_le_bytes(self.0.lock().unwrap()[at..at + 4].try_into().unwrap())
        }
        fn read64(&self, offset: u64) -> u64 {
            let at = offset as usize;
            u64::from_le_bytes(self.0.lock().unwrap()[at..at + 8].try_into().unwrap())
        }
        fn write32(&self, offset: u64, value: u32) {
            let at = offset as usize;
            self.0.lock().unwrap()[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        fn write64(&self, offset: u64, value: u64) {
            let at = offset as usize;
            self.0.lock().unwrap()[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        fn memory(&self, offset: u64, len: u64) -> Result<Buf, PciError> {
            check_memory(self, offset, len).and(Err(no_memory(offset)))
        }
    }

    fn bar() -> Arc<dyn Bar> {
        Arc::new(Words(Mutex::new([0; 16])))
    }

    #[test]
    fn a_register_must_lie_inside_its_bar() {
        let bar = bar();
        assert!(Reg32::new(&bar, 12).is_ok());
        assert!(Reg64::new(&bar, 8).is_ok());
        for offset in [13, 16, 20, u64::MAX - 3, u64::MAX] {
            assert_eq!(Reg32::new(&bar, offset).unwrap_err().kind(), PciErrorKind::OutOfRange);
        }
        for offset in [4, 12, 16, u64::MAX - 7] {
            assert_eq!(Reg64::new(&bar, offset).unwrap_err().kind(), PciErrorKind::OutOfRange);
        }
    }

    #[test]
    fn a_register_reads_what_was_written() {
        let bar = bar();
        Reg64::new(&bar, 8).unwrap().write(0x1122_3344_5566_7788);
        assert_eq!(Reg32::new(&bar, 8).unwrap().read(), 0x5566_7788);
        Reg32::new(&bar, 12).unwrap().write(0xaabb_ccdd);
        assert_eq!(Reg64::new(&bar, 8).unwrap().read(), 0xaabb_ccdd_5566_7788);
    }
}
