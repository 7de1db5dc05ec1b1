//! Registers of a device, mapped.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

/// A part of a device's file as memory.
///
/// - **MAPPED**: the pages are mapped from the making of a `Mapping` to its drop, though
///   [`detach`](Mapping::detach) may put others in their place; nobody else names them, and
///   accesses to them are volatile, aligned and inside.
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: MAPPED: registers may be reached from any thread; the pointer is freed by the drop alone.
unsafe impl Send for Mapping {}
// SAFETY: as above; volatile accesses of one size do not tear.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes at `offset`, both of whole pages.
    pub(super) fn new(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Mapping> {
        let too_large = |_| io::Error::from_raw_os_error(libc::EOVERFLOW);
        let at = libc::off_t::try_from(offset).map_err(too_large)?;
        let len = usize::try_from(len).map_err(too_large)?;
        map(len, libc::MAP_SHARED, fd.as_raw_fd(), at)
    }

    /// Puts memory in the place of the registers that reads as all ones: the device is not mapped
    /// any more, and accesses that come all the same find what a bus without a device says.
    pub(super) fn detach(&self) -> io::Result<()> {
        let ones = map(self.len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
        // SAFETY: MAPPED: `ones` was just made, writable and so long.
        unsafe { ones.base.as_ptr().write_bytes(0xff, ones.len) };
        let (from, to) = (ones.base.as_ptr(), self.base.as_ptr());
        // SAFETY: MAPPED: both are mappings of ours of this length. The pages of `ones` take the
        // place of the registers in one step, for accesses on other threads too.
        let moved = unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            libc::mremap(from.cast(), self.len, self.len, flags, to)
        };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // It has no pages of its own any more.
        std::mem::forget(ones);
        Ok(())
    }

    /// Bytes of it.
    pub(super) fn len(&self) -> u64 {
        self.len as u64
    }

    /// The 32 bits at an aligned offset inside.
    #[inline]
    pub(super) fn read32(&self, offset: u64) -> u32 {
        match self.place(offset, 4) {
            // SAFETY: MAPPED: aligned and inside, checked.
            Some(at) => u32::from_le(unsafe { at.cast::<u32>().read_volatile() }),
            None => u32::MAX,
        }
    }

    /// The 64 bits at an aligned offset inside.
    #[inline]
    pub(super) fn read64(&self, offset: u64) -> u64 {
        match self.place(offset, 8) {
            // SAFETY: MAPPED: aligned and inside, checked.
            Some(at) => u64::from_le(unsafe { at.cast::<u64>().read_volatile() }),
            None => u64::MAX,
        }
    }

    /// Stores 32 bits at an aligned offset inside.
    #[inline]
    pub(super) fn write32(&self, offset: u64, value: u32) {
        if let Some(at) = self.place(offset, 4) {
            // SAFETY: MAPPED: aligned and inside, checked.
            unsafe { at.cast::<u32>().write_volatile(value.to_le()) }
        }
    }

    /// Stores 64 bits at an aligned offset inside.
    #[inline]
    pub(super) fn write64(&self, offset: u64, value: u64) {
        if let Some(at) = self.place(offset, 8) {
            // SAFETY: MAPPED: aligned and inside, checked.
            unsafe { at.cast::<u64>().write_volatile(value.to_le()) }
        }
    }

    #[inline]
    fn place(&self, offset: u64, size: u64) -> Option<NonNull<u8>> {
        let fits = offset.is_multiple_of(size)
            && offset.checked_add(size).is_some_and(|end| end <= self.len as u64);
        // SAFETY: MAPPED: inside, checked.
        fits.then(|| unsafe { self.base.add(offset as usize) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: MAPPED: this is its end.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

fn map(len: usize, kind: i32, fd: i32, offset: libc::off_t) -> io::Result<Mapping> {
    // SAFETY: a new mapping, at an address of the system's choice.
    let base = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(ptr::null_mut(), len, protection, kind, fd, offset)
    };
    let base = NonNull::new(base.cast::<u8>()).filter(|b| b.as_ptr().cast() != libc::MAP_FAILED);
    let Some(base) = base else { return Err(io::Error::last_os_error()) };
    let mapping = Mapping { base, len };
    // A child of a fork must not reach registers of its parent's device.
    // SAFETY: changes what fork copies of our own mapping.
    match unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_DONTFORK) } {
        0 => Ok(mapping),
        _ => Err(io::Error::last_os_error()),
    }
}
