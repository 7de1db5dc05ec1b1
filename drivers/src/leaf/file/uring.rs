//! What the file driver asks of the kernel that the compiler cannot check: its io_uring, and
//! the probes at open. The only unsafe code of this crate.
//!
//! The invariant of every pointer given to the kernel: it points into memory that a
//! [`Request`] named, which stays live until the request's token is done
//! ([`Queue::submit`](oxblock_engine::Queue)); into a list of this ring, which is freed
//! only once `in_kernel` is zero and leaked otherwise; or into a static.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, squeue, types};
use oxblock_engine::Request;

/// The most pieces of memory in one request: the length of each slot's list.
pub(super) const SEGMENTS_MAX: usize = 64;

/// The longest write of zeroes in one call.
pub(super) const ZEROES_MAX: u64 = (SEGMENTS_MAX * ZEROES.0.len()) as u64;

/// What marks the completions of cancellations.
const CANCEL: u64 = u64::MAX;

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
}

/// An io_uring on one file, with a list of memory for each of its slots. At most one call
/// per slot is outstanding.
pub(super) struct Ring {
    uring: ManuallyDrop<IoUring>,
    lists: ManuallyDrop<Box<[List]>>,
    /// Calls, cancellations included, whose completion is still to come.
    in_kernel: usize,
    /// Calls pushed since the ring was made.
    pushed: u64,
}

impl Ring {
    /// A ring with `depth` slots on `file`, which the kernel keeps open as long as the ring
    /// lives.
    pub(super) fn new(file: &File, depth: u16) -> io::Result<Self> {
        let uring = build(u32::from(depth))?;
        uring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(Self {
            uring: ManuallyDrop::new(uring),
            lists: ManuallyDrop::new((0..depth).map(|_| List::new()).collect()),
            in_kernel: 0,
            pushed: 0,
        })
    }

    /// Points the slot's list at the request's memory. `false` if it has too many pieces.
    pub(super) fn load(&mut self, slot: u16, request: &Request<'_>) -> bool {
        let list = &mut self.lists[usize::from(slot)];
        list.clear();
        request.data.pieces().all(|piece| list.push(piece.addr(), piece.len()))
    }

    /// Points the slot's list at zeroes, to be written, and returns how many.
    pub(super) fn load_zeroes(&mut self, slot: u16, len: u64) -> u64 {
        let list = &mut self.lists[usize::from(slot)];
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
        self.lists[usize::from(slot)].advance(len);
    }

    /// Fills all that is left of the slot's list with zeroes.
    pub(super) fn fill_rest(&mut self, slot: u16) {
        for entry in self.lists[usize::from(slot)].live() {
            // SAFETY: the module's invariant; the slot's call has completed, so that the
            // kernel does not write there now. Raw, since a device or guest may look on.
            unsafe { std::ptr::write_bytes(entry.iov_base.cast::<u8>(), 0, entry.iov_len) };
        }
    }

    /// Queues a call for the slot; the next [`enter`](Self::enter) hands it to the kernel.
    /// `None` if the submission ring is full, otherwise the call's number.
    pub(super) fn push(&mut self, slot: u16, call: Call) -> Option<u64> {
        let entry = self.entry(slot, call).user_data(u64::from(slot));
        self.push_entry(&entry)
    }

    /// Asks the kernel to end the slot's call early, if there is room to ask.
    pub(super) fn cancel(&mut self, slot: u16) {
        let entry = opcode::AsyncCancel::new(u64::from(slot)).build().user_data(CANCEL);
        self.push_cancel(&entry);
    }

    /// Asks the kernel to end all calls early.
    pub(super) fn cancel_all(&mut self) {
        let all = types::CancelBuilder::any();
        self.push_cancel(&opcode::AsyncCancel2::new(all).build().user_data(CANCEL));
    }

    /// Whether calls wait to be handed over, or the kernel waits to be let run.
    pub(super) fn wants_enter(&mut self) -> bool {
        let sq = self.uring.submission();
        !sq.is_empty() || sq.taskrun() || sq.cq_overflow()
    }

    /// Hands all queued calls to the kernel: one system call. A busy kernel is no error; it
    /// takes them at a later one.
    pub(super) fn enter(&mut self) -> Result<(), i32> {
        no_error_if_busy(self.uring.submit())
    }

    /// As [`enter`](Self::enter), and waits until a call completes.
    fn enter_and_wait(&mut self) -> Result<(), i32> {
        no_error_if_busy(self.uring.submit_and_wait(1))
    }

    /// How many calls the kernel has taken: those with a lower number than this.
    pub(super) fn taken(&mut self) -> u64 {
        self.pushed - self.uring.submission().len() as u64
    }

    /// Takes the next result off the ring: slot and result of its call.
    pub(super) fn reap(&mut self) -> Option<(u16, i32)> {
        while self.in_kernel > 0 {
            let cqe = self.uring.completion().next()?;
            self.in_kernel -= 1;
            if cqe.user_data() != CANCEL {
                return Some((cqe.user_data() as u16, cqe.result()));
            }
        }
        None
    }

    /// How many calls are queued or in the kernel.
    pub(super) fn in_kernel(&self) -> usize {
        self.in_kernel
    }

    /// The descriptor that turns readable when a call has completed.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor, open as long as the ring is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) }
    }

    fn entry(&self, slot: u16, call: Call) -> squeue::Entry {
        const FILE: types::Fixed = types::Fixed(0);
        let list = self.lists[usize::from(slot)].live();
        match (call, list) {
            (Call::Read { offset }, [one]) => {
                opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                    .offset(offset)
                    .build()
            }
            (Call::Read { offset }, many) => {
                opcode::Readv::new(FILE, many.as_ptr(), many.len() as u32).offset(offset).build()
            }
            (Call::Write { offset, durable }, [one]) => {
                opcode::Write::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                    .offset(offset)
                    .rw_flags(write_flags(durable))
                    .build()
            }
            (Call::Write { offset, durable }, many) => {
                opcode::Writev::new(FILE, many.as_ptr(), many.len() as u32)
                    .offset(offset)
                    .rw_flags(write_flags(durable))
                    .build()
            }
            (Call::Sync, _) => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            (Call::Allocate { mode, offset, len }, _) => {
                opcode::Fallocate::new(FILE, len).offset(offset).mode(mode).build()
            }
        }
    }

    /// Cancellations leave room for one call of every slot.
    fn push_cancel(&mut self, entry: &squeue::Entry) {
        let sq = self.uring.submission();
        let room = sq.len() + self.lists.len() < sq.capacity();
        drop(sq);
        if room {
            self.push_entry(entry);
        }
    }

    fn push_entry(&mut self, entry: &squeue::Entry) -> Option<u64> {
        // SAFETY: the module's invariant covers every pointer of the entry, and the entry's
        // list does not change until its completion is reaped.
        unsafe { self.uring.submission().push(entry) }.ok()?;
        self.in_kernel += 1;
        self.pushed += 1;
        Some(self.pushed - 1)
    }
}

impl Drop for Ring {
    /// Waits for the kernel to finish, since it may be writing into memory of requests and
    /// reading lists. Where it cannot be waited for, all of it is leaked.
    fn drop(&mut self) {
        while self.in_kernel > 0 {
            if self.enter_and_wait().is_err() {
                return;
            }
            while self.reap().is_some() {}
        }
        // SAFETY: dropped here and nowhere else, and not used afterwards.
        unsafe {
            ManuallyDrop::drop(&mut self.uring);
            ManuallyDrop::drop(&mut self.lists);
        }
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

fn write_flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

/// Task work is left until we enter: no interrupts from the kernel. Deferred task work
/// (IORING_SETUP_DEFER_TASKRUN) would go further, but then a completion does not turn the
/// ring's descriptor readable, and a sleeping reactor sleeps on.
fn build(depth: u32) -> io::Result<IoUring> {
    let entries = depth.next_power_of_two() * 2;
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp();
    match builder.clone().setup_coop_taskrun().setup_taskrun_flag().build(entries) {
        // Older than Linux 5.19.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => builder.build(entries),
        other => other,
    }
}

fn no_error_if_busy(result: io::Result<usize>) -> Result<(), i32> {
    match result.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO)) {
        Ok(_) | Err(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Ends O_NONBLOCK on a file, under which io_uring fails with EAGAIN what it would otherwise
/// wait for, on file systems that cannot tell beforehand.
pub(super) fn end_nonblocking(file: &File) -> io::Result<()> {
    // SAFETY: system calls on an open descriptor; no memory is passed.
    let rc = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What direct I/O on a file asks of memory and of offsets, in bytes (statx(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectAlignment {
    pub(super) memory: u32,
    pub(super) offset: u32,
}

/// Asks for the alignment of direct I/O. `None` if the kernel or the file system does not
/// tell; zeroes if the file cannot do direct I/O.
pub(super) fn direct_alignment(file: &File) -> io::Result<Option<DirectAlignment>> {
    let mut buf = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let (flags, mask) = (libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN);
    // SAFETY: an open descriptor, a terminated empty path and a buffer of the right type.
    let rc = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, mask, buf.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statx succeeded, and a zeroed statx is a valid one in any case.
    let stat = unsafe { buf.assume_init() };
    if stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(None);
    }
    Ok(Some(DirectAlignment { memory: stat.stx_dio_mem_align, offset: stat.stx_dio_offset_align }))
}

/// Whether the file system can punch holes: asked for past the end of the file, where a hole
/// changes nothing.
pub(super) fn can_punch(file: &File, length: u64) -> bool {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let Ok(at) = libc::off_t::try_from(length.next_multiple_of(1 << 20)) else {
        return false;
    };
    // SAFETY: an open descriptor; no memory is passed.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, at, 1 << 20) == 0 }
}
