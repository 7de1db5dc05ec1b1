//! A large piece of memory that every thread may copy to and from at any time.

use std::fmt;
use std::ptr::{self, NonNull};

use crate::raw;
use crate::{MemError, View};

/// Zeroed memory of the process, for disks in RAM: bounds-checked copies from any thread, no
/// lock. Copies that race tear, as on a disk; no byte is ever lent as a slice (SHARED).
///
/// On 2 MiB pages where the system gives them without asking (transparent hugepages), unless it is
/// sparse. It takes no memory until it is written to. No device reaches it. Not inherited by
/// `fork`.
pub struct SharedBytes {
    base: NonNull<u8>,
    len: usize,
    /// What is given back to the system at once.
    page: usize,
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
        Self::on_pages(len, HUGE, libc::MADV_HUGEPAGE)
    }

    /// As [`new`](Self::new), on the system's small pages: where little of it is ever written,
    /// little is taken, and [`release`](Self::release) gives back what it can.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn sparse(len: usize) -> Result<SharedBytes, MemError> {
        // SAFETY: no arguments that could be wrong.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).unwrap_or(HUGE);
        Self::on_pages(len, page, libc::MADV_NOHUGEPAGE)
    }

    fn on_pages(len: usize, page: usize, advice: libc::c_int) -> Result<SharedBytes, MemError> {
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
            libc::madvise(base.cast(), mapped, advice);
            libc::madvise(base.cast(), mapped, libc::MADV_DONTFORK);
            Ok(SharedBytes { base: NonNull::new_unchecked(base), len, page })
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

    /// Makes the bytes zero, and gives whole pages back to the system: a system call if there are
    /// any. Panics beyond the end.
    pub fn release(&self, at: usize, len: usize) {
        let base = self.range(at, len);
        let end = at + len;
        let (first, last) = (at.next_multiple_of(self.page), end / self.page * self.page);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arena, ArenaOptions, IoVector, Memory, PagePolicy};

    fn arena() -> Arena {
        let options = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(16 << 20) };
        Memory::new().add_arena(&options).unwrap()
    }

    /// A list of `len` bytes in pieces of 1, 2, 3, ... bytes.
    fn list(arena: &Arena, len: usize) -> IoVector {
        let mut list = IoVector::new();
        let mut part = 1;
        while list.len() < len {
            let left = len - list.len();
            list.push(arena.alloc(part.min(left), 1).unwrap());
            part += 1;
        }
        list
    }

    #[test]
    fn copies_go_through_lists_of_any_shape() {
        let arena = arena();
        let bytes = SharedBytes::new(10_000).unwrap();
        let mut data = list(&arena, 3000);
        let pattern: Vec<u8> = (0..3000).map(|n| (n % 251) as u8 + 1).collect();
        data.write_at(0, &pattern);
        bytes.copy_from(7000, data.view(0, 3000));
        bytes.copy_from(1, data.view(1000, 17));

        let back = list(&arena, 3002);
        bytes.copy_to(6998, back.view(0, 3002));
        let mut read = vec![9; 3002];
        back.read_at(0, &mut read);
        assert_eq!(read[..2], [0, 0]);
        assert_eq!(read[2..], pattern);
        assert_eq!(bytes.compare(1, data.view(1000, 17)), None);
        assert_eq!(bytes.compare(7000, data.view(0, 3000)), None);
    }

    #[test]
    fn compare_finds_the_first_difference() {
        let arena = arena();
        let bytes = SharedBytes::new(8192).unwrap();
        let mut data = list(&arena, 4000);
        for at in [0, 1, 511, 512, 513, 3999] {
            data.fill(0, 4000, 0);
            data.fill(at, 4000 - at, 1);
            assert_eq!(bytes.compare(5, data.view(0, 4000)), Some(at));
        }
    }

    #[test]
    fn released_and_cleared_bytes_are_zero_and_their_neighbours_are_not() {
        let arena = arena();
        let len = 7 * HUGE;
        for bytes in [SharedBytes::new(len).unwrap(), SharedBytes::sparse(len).unwrap()] {
            release_and_look(&arena, len, &bytes);
        }
    }

    fn release_and_look(arena: &Arena, len: usize, bytes: &SharedBytes) {
        let mut ones: IoVector = arena.alloc(HUGE, 4096).unwrap().into();
        ones.fill(0, HUGE, 1);
        for at in (0..len).step_by(HUGE) {
            bytes.copy_from(at, ones.view(0, HUGE));
        }
        bytes.release(HUGE - 3, 3 * HUGE + 5);
        bytes.release(5 * HUGE + 1, HUGE - 2);
        bytes.clear(6 * HUGE + 10, 10);
        let back: IoVector = arena.alloc(HUGE, 4096).unwrap().into();
        for at in (0..len).step_by(HUGE) {
            bytes.copy_to(at, back.view(0, HUGE));
            let mut read = vec![0; HUGE];
            back.read_at(0, &mut read);
            for (offset, byte) in read.into_iter().enumerate() {
                let at = at + offset;
                let zero = (HUGE - 3..4 * HUGE + 2).contains(&at)
                    || (5 * HUGE + 1..6 * HUGE - 1).contains(&at)
                    || (6 * HUGE + 10..6 * HUGE + 20).contains(&at);
                assert_eq!(byte == 0, zero, "at {at}");
            }
        }
    }

    #[test]
    fn nothing_goes_beyond_the_end() {
        let arena = arena();
        let bytes = SharedBytes::new(100).unwrap();
        let data: IoVector = arena.alloc(64, 64).unwrap().into();
        for (at, len) in [(100, 1), (37, 64), (usize::MAX, 1), (usize::MAX - 10, 64)] {
            let copy = std::panic::AssertUnwindSafe(|| bytes.copy_to(at, data.view(0, len)));
            assert!(std::panic::catch_unwind(copy).is_err(), "{len} at {at}");
        }
        bytes.copy_to(36, data.view(0, 64));
        assert!(SharedBytes::new(0).is_err());
        assert!(SharedBytes::new(usize::MAX).is_err());
    }
}
