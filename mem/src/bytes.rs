//! A large piece of memory that every thread may copy to and from at any time.

use std::fmt;
use std::ptr::{self, NonNull};

use crate::raw;
use crate::{MemError, View};

/// Zeroed memory of the process, for disks in RAM: bounds-checked copies from any thread, no
/// lock. Copies that race tear, as on a disk; no byte is ever lent as a slice (SHARED).
///
/// On 2 MiB pages where the system gives them without asking (transparent hugepages). It takes
/// no memory until it is written to. No device reaches it. Not inherited by `fork`.
pub struct SharedBytes {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: SHARED: all access is by raw copies that may race.
unsafe impl Send for SharedBytes {}
// SAFETY: as above.
unsafe impl Sync for SharedBytes {}

const HUGE: usize = 2 << 20;

impl SharedBytes {
    /// Maps `len` bytes of zeroes.
    ///
    /// # Errors
    /// `EINVAL` for no bytes, `ENOMEM` for more than the system can map.
    pub fn new(len: usize) -> Result<SharedBytes, MemError> {
        let room = len.checked_next_multiple_of(HUGE).and_then(|len| len.checked_add(HUGE));
        let Some(room) = room.filter(|_| len > 0) else {
            return Err(MemError::new(libc::EINVAL, format!("cannot map {len} bytes of memory")));
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the system's choice.
        let space = unsafe { libc::mmap(ptr::null_mut(), room, access, flags, -1, 0) };
        if space == libc::MAP_FAILED {
            return Err(MemError::last_os(format_args!("map {len} bytes of memory")));
        }
        let space = space.cast::<u8>();
        let skip = space.align_offset(HUGE);
        let mapped = len.next_multiple_of(HUGE);
        // SAFETY: ends of our own mapping, multiples of a page, which nothing names; then
        // advice on what is left of it, which may fail without harm.
        unsafe {
            let base = space.add(skip);
            if skip > 0 {
                libc::munmap(space.cast(), skip);
            }
            if room > skip + mapped {
                libc::munmap(base.add(mapped).cast(), room - skip - mapped);
            }
            libc::madvise(base.cast(), mapped, libc::MADV_HUGEPAGE);
            libc::madvise(base.cast(), mapped, libc::MADV_DONTFORK);
            Ok(SharedBytes { base: NonNull::new_unchecked(base), len })
        }
    }

    /// How many bytes there are.
    #[allow(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies the bytes at `at` into all of `dst`. Panics beyond the end.
    #[inline]
    pub fn copy_to(&self, at: usize, dst: View<'_>) {
        let mut src = self.range(at, dst.len());
        for piece in dst.pieces() {
            // SAFETY: LIVE for the piece; `range` checked the sum of all pieces. SHARED.
            unsafe {
                raw::copy(src, piece.addr(), piece.len(), true);
                src = src.add(piece.len());
            }
        }
    }

    /// Copies all of `src` over the bytes at `at`. Panics beyond the end.
    #[inline]
    pub fn copy_from(&self, at: usize, src: View<'_>) {
        let mut dst = self.range(at, src.len());
        for piece in src.pieces() {
            // SAFETY: LIVE for the piece; `range` checked the sum of all pieces. SHARED.
            unsafe {
                raw::copy(piece.addr(), dst, piece.len(), true);
                dst = dst.add(piece.len());
            }
        }
    }

    /// Compares the bytes at `at` with all of `other`; where they first differ, or `None`.
    /// Panics beyond the end.
    pub fn compare(&self, at: usize, other: View<'_>) -> Option<usize> {
        let mut mine = self.range(at, other.len());
        let (mut a, mut b) = ([0u8; 512], [0u8; 512]);
        let mut done = 0;
        for piece in other.pieces() {
            let (mut theirs, mut left) = (piece.addr().cast_const(), piece.len());
            while left > 0 {
                let part = left.min(a.len());
                // SAFETY: as in `copy_to`; both go to private copies, which are then judged.
                unsafe {
                    raw::copy(mine, a.as_mut_ptr(), part, true);
                    raw::copy(theirs, b.as_mut_ptr(), part, true);
                    mine = mine.add(part);
                    theirs = theirs.add(part);
                }
                if a[..part] != b[..part] {
                    return a.iter().zip(&b).position(|(a, b)| a != b).map(|at| done + at);
                }
                left -= part;
                done += part;
            }
        }
        None
    }

    /// Makes the bytes zero. Panics beyond the end.
    pub fn clear(&self, at: usize, len: usize) {
        // SAFETY: in range. SHARED.
        unsafe { raw::fill(self.range(at, len), 0, len, true) };
    }

    /// Makes the bytes zero, and gives whole hugepages back to the system: a system call if
    /// there are any. Panics beyond the end.
    pub fn release(&self, at: usize, len: usize) {
        let end = at + len;
        let (first, last) = (at.next_multiple_of(HUGE), end / HUGE * HUGE);
        let base = self.range(at, len);
        if first >= last {
            return self.clear(at, len);
        }
        self.clear(at, first - at);
        // SAFETY: whole pages of our own mapping; they read as zeroes from now on. Whoever
        // copies meanwhile gets the old bytes or zeroes.
        let rc = unsafe {
            libc::madvise(base.add(first - at).cast(), last - first, libc::MADV_DONTNEED)
        };
        if rc != 0 {
            self.clear(first, last - first);
        }
        self.clear(last, end - last);
    }

    #[inline]
    fn range(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at <= self.len && len <= self.len - at, "{at} + {len} is beyond {}", self.len);
        // SAFETY: inside the mapping.
        unsafe { self.base.as_ptr().add(at) }
    }
}

impl Drop for SharedBytes {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nothing borrows from it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len.next_multiple_of(HUGE)) };
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBytes").field("len", &self.len).finish()
    }
}
