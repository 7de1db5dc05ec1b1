//! Calls to the kernel on a file, and the lists of memory that they take: made at once from
//! here, or carried to an io_uring or to another thread.
//!
//! The invariant of every pointer given to the kernel: it points into memory that a
//! [`Request`] named, which stays live until the request's token is done
//! ([`Queue::submit`](oxblock_engine::Queue)); into a list of [`Lists`], whose owner neither
//! changes it while its slot's call is outstanding nor frees it while any is; or into a
//! static.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use oxblock_engine::Request;
use oxblock_mem::Piece;

/// The most pieces of memory in one request: the length of each slot's list.
pub(super) const SEGMENTS_MAX: usize = 64;

/// The longest write of zeroes in one call.
pub(super) const ZEROES_MAX: u64 = (SEGMENTS_MAX * ZEROES.0.len()) as u64;

#[repr(C, align(4096))]
struct Zeroes([u8; 64 << 10]);

static ZEROES: Zeroes = Zeroes([0; 64 << 10]);

/// One call to the kernel on behalf of a slot.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// Reads into the slot's list.
    Read { offset: u64 },
    /// Writes from the slot's list, to stable media if `durable`.
    Write { offset: u64, durable: bool },
    /// fdatasync.
    Sync,
    /// fallocate with `mode`.
    Allocate { mode: i32, offset: u64, len: u64 },
    /// BLKDISCARD on a block device: by threads only.
    Discard { offset: u64, len: u64 },
}

/// A call with its memory, to be made by any thread.
pub(super) struct Job {
    call: Call,
    list: *const libc::iovec,
    count: usize,
}

// SAFETY: the module's invariant holds for the list and for what it names, whichever thread
// hands them to the kernel.
unsafe impl Send for Job {}

impl Job {
    /// Makes the call, and waits for it. The bytes moved, or an errno below zero, as an
    /// io_uring has them.
    pub(super) fn run(&self, file: &File) -> i32 {
        let (fd, list, count) = (file.as_raw_fd(), self.list, self.count as i32);
        match self.call {
            Call::Read { offset } => {
                // SAFETY: the module's invariant covers the list and its memory.
                outcome(unsafe { libc::preadv(fd, list, count, offset as i64) })
            }
            Call::Write { offset, durable } => {
                let flags = write_flags(durable);
                // SAFETY: as above.
                outcome(unsafe { libc::pwritev2(fd, list, count, offset as i64, flags) })
            }
            // SAFETY: an open descriptor; no memory is passed.
            Call::Sync => outcome(unsafe { libc::fdatasync(fd) } as isize),
            Call::Allocate { mode, offset, len } => {
                // SAFETY: as above.
                outcome(unsafe { libc::fallocate(fd, mode, offset as i64, len as i64) } as isize)
            }
            Call::Discard { offset, len } => {
                let range = [offset, len];
                // SAFETY: the call reads two words, which are ours.
                outcome(unsafe { libc::ioctl(fd, BLKDISCARD, range.as_ptr()) } as isize)
            }
        }
    }
}

/// linux/fs.h: `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// How a file's reads and writes are made at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtOnce {
    /// The file's bytes are always in memory: plain calls do not wait.
    InMemory,
    /// With RWF_NOWAIT: a call that would wait does nothing instead.
    NoWait,
}

/// Reads or writes a piece of memory at once. `true` if all of it is done; otherwise the
/// request is to be made anew, in another way, which also finds out what stands against it.
#[inline]
pub(super) fn at_once(
    file: &File,
    how: AtOnce,
    write: bool,
    offset: u64,
    piece: Piece<'_>,
) -> bool {
    let (fd, base, len) = (file.as_raw_fd(), piece.addr().cast::<libc::c_void>(), piece.len());
    let offset = offset as libc::off_t;
    let one = libc::iovec { iov_base: base, iov_len: len };
    // SAFETY: a piece's memory is live for as long as it is borrowed, and the kernel is done
    // with it when the call returns.
    let rc = unsafe {
        match (how, write) {
            (AtOnce::InMemory, false) => libc::pread(fd, base, len, offset),
            (AtOnce::InMemory, true) => libc::pwrite(fd, base, len, offset),
            (AtOnce::NoWait, false) => libc::preadv2(fd, &one, 1, offset, libc::RWF_NOWAIT),
            (AtOnce::NoWait, true) => libc::pwritev2(fd, &one, 1, offset, libc::RWF_NOWAIT),
        }
    };
    usize::try_from(rc) == Ok(len)
}

/// A list of memory for each slot of a queue.
pub(super) struct Lists(Box<[List]>);

// SAFETY: the pointers are used only by the owner and by the kernel; no thread-local state
// hangs on them.
unsafe impl Send for Lists {}

impl Lists {
    pub(super) fn new(depth: u16) -> Self {
        Self((0..depth).map(|_| List::new()).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Points the slot's list at the request's memory. `false` if it has too many pieces.
    pub(super) fn load(&mut self, slot: u16, request: &Request<'_>) -> bool {
        let list = &mut self.0[usize::from(slot)];
        list.clear();
        request.data.pieces().all(|piece| list.push(piece.addr(), piece.len()))
    }

    /// Makes the slot's list the same as another.
    pub(super) fn copy(&mut self, slot: u16, from: &[libc::iovec]) {
        let list = &mut self.0[usize::from(slot)];
        list.clear();
        for piece in from.iter().take(SEGMENTS_MAX) {
            list.push_apart(piece.iov_base.cast(), piece.iov_len);
        }
    }

    /// Points the slot's list at zeroes, to be written, and returns how many.
    pub(super) fn load_zeroes(&mut self, slot: u16, len: u64) -> u64 {
        let list = &mut self.0[usize::from(slot)];
        list.clear();
        let len = len.min(ZEROES_MAX);
        let mut left = len as usize;
        while left > 0 {
            let part = left.min(ZEROES.0.len());
            list.push_apart(ZEROES.0.as_ptr().cast_mut(), part);
            left -= part;
        }
        len
    }

    /// Takes the first `len` bytes off the slot's list: they are done.
    pub(super) fn advance(&mut self, slot: u16, len: usize) {
        self.0[usize::from(slot)].advance(len);
    }

    /// Fills all that is left of the slot's list with zeroes.
    pub(super) fn fill_rest(&mut self, slot: u16) {
        for entry in self.live(slot) {
            // SAFETY: the module's invariant; the slot's call has completed, so that the
            // kernel does not write there now. Raw, since a device or guest may look on.
            unsafe { std::ptr::write_bytes(entry.iov_base.cast::<u8>(), 0, entry.iov_len) };
        }
    }

    /// What is left of the slot's list.
    pub(super) fn live(&self, slot: u16) -> &[libc::iovec] {
        self.0[usize::from(slot)].live()
    }

    /// The call with the slot's list, for another thread.
    pub(super) fn job(&self, slot: u16, call: Call) -> Job {
        let list = self.live(slot);
        Job { call, list: list.as_ptr(), count: list.len() }
    }
}

/// The memory of one slot's request, as readv and writev take it.
struct List {
    entries: [libc::iovec; SEGMENTS_MAX],
    first: usize,
    end: usize,
}

impl List {
    fn new() -> Self {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { entries: [none; SEGMENTS_MAX], first: 0, end: 0 }
    }

    fn live(&self) -> &[libc::iovec] {
        &self.entries[self.first..self.end]
    }

    fn clear(&mut self) {
        self.first = 0;
        self.end = 0;
    }

    /// Appends a piece, joined to the one before where they touch.
    fn push(&mut self, base: *mut u8, len: usize) -> bool {
        if let Some(last) = self.entries[self.first..self.end].last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base
        {
            last.iov_len += len;
            return true;
        }
        self.push_apart(base, len)
    }

    fn push_apart(&mut self, base: *mut u8, len: usize) -> bool {
        let Some(entry) = self.entries.get_mut(self.end) else {
            return false;
        };
        *entry = libc::iovec { iov_base: base.cast(), iov_len: len };
        self.end += 1;
        true
    }

    fn advance(&mut self, mut len: usize) {
        while len > 0 && self.first < self.end {
            let entry = &mut self.entries[self.first];
            let part = len.min(entry.iov_len);
            entry.iov_base = entry.iov_base.cast::<u8>().wrapping_add(part).cast();
            entry.iov_len -= part;
            len -= part;
            if entry.iov_len == 0 {
                self.first += 1;
            }
        }
    }
}

pub(super) fn write_flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

fn outcome(rc: isize) -> i32 {
    match i32::try_from(rc) {
        Ok(bytes) if bytes >= 0 => bytes,
        _ => -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
    }
}
