//! Calls of the file driver through an io_uring. Pointers as in [`syscall`](super::syscall):
//! the lists are freed only once `in_kernel` is zero, and leaked otherwise.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use oxblock_mem::Region;

use super::Shared;
use super::syscall::{Call, Lists, write_flags};

/// What marks the completions of cancellations, and of the watch over an eventfd.
const CANCEL: u64 = u64::MAX;
const EVENT: u64 = u64::MAX - 1;

/// An io_uring on one file, with a list of memory for each of its slots. At most one call
/// per slot is outstanding.
pub(super) struct Ring {
    uring: ManuallyDrop<IoUring>,
    lists: ManuallyDrop<Lists>,
    /// Memory that the kernel holds pinned and mapped, in parts of [`FIXED_MAX`].
    fixed: Option<Region>,
    /// Calls, cancellations included, whose completion is still to come.
    in_kernel: usize,
    /// Calls pushed since the ring was made.
    pushed: u64,
    /// The descriptor that the ring watches for the reactor.
    watched: Option<RawFd>,
    /// Results turn up only while the ring is entered, which then polls the device.
    polls: bool,
}

/// How a ring is set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RingKind {
    /// A thread of the kernel takes the calls (IORING_SETUP_SQPOLL).
    pub(super) sqthread_poll: bool,
    /// The device is polled for results (IORING_SETUP_IOPOLL): reads and writes of direct I/O
    /// alone.
    pub(super) polled: bool,
}

impl Ring {
    /// A ring on the file, which the kernel keeps open as long as the ring lives.
    ///
    /// `memory`, from which most requests' memory comes, is registered where the limit of locked
    /// memory allows: the kernel then need not look up its pages for each call.
    pub(super) fn new(shared: &Shared, kind: RingKind, memory: Option<Region>) -> io::Result<Self> {
        let depth = shared.queue_depth;
        let uring = build(u32::from(depth), kind)?;
        uring.submitter().register_files(&[shared.file.as_raw_fd()])?;
        let fixed = memory.filter(|region| register(&uring, region).is_ok());
        Ok(Self {
            uring: ManuallyDrop::new(uring),
            lists: ManuallyDrop::new(Lists::new(depth)),
            fixed,
            in_kernel: 0,
            pushed: 0,
            watched: None,
            // Otherwise the kernel's thread polls.
            polls: kind.polled && !kind.sqthread_poll,
        })
    }

    /// The lists of memory, one for each slot.
    pub(super) fn lists(&mut self) -> &mut Lists {
        &mut self.lists
    }

    /// Queues a call for the slot; the next [`enter`](Self::enter) hands it to the kernel.
    /// `None` if the submission ring is full or has no such call, otherwise the call's number.
    pub(super) fn push(&mut self, slot: u16, call: Call) -> Option<u64> {
        let entry = self.entry(slot, call)?.user_data(u64::from(slot));
        self.push_entry(&entry)?;
        self.in_kernel += 1;
        Some(self.pushed - 1)
    }

    /// Asks the kernel to end the slot's call early, if there is room to ask.
    pub(super) fn cancel(&mut self, slot: u16) {
        let entry = opcode::AsyncCancel::new(u64::from(slot)).build().user_data(CANCEL);
        self.in_kernel += usize::from(self.push_aside(&entry));
    }

    /// Asks the kernel to end all calls early.
    pub(super) fn cancel_all(&mut self) {
        let all = types::CancelBuilder::any();
        let entry = opcode::AsyncCancel2::new(all).build().user_data(CANCEL);
        self.in_kernel += usize::from(self.push_aside(&entry));
    }

    /// Whether calls wait to be handed over, or the kernel waits to be let run.
    pub(super) fn wants_enter(&mut self) -> bool {
        let sq = self.uring.submission();
        !sq.is_empty() || sq.taskrun() || sq.cq_overflow()
    }

    /// Whether the kernel must be entered for results to turn up.
    pub(super) fn wants_look(&mut self) -> bool {
        self.wants_enter() || (self.polls && self.in_kernel > 0)
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

    /// Hands all queued calls over, and sleeps until one has completed, `event` turns readable or
    /// the time is up. `false` if this kernel or ring cannot.
    pub(super) fn wait(&mut self, event: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
        if !self.uring.params().is_feature_ext_arg() || !self.watch(event.as_raw_fd()) {
            return false;
        }
        let span = timeout.map(types::Timespec::from);
        let args = types::SubmitArgs::new();
        let args = match &span {
            Some(span) => args.timespec(span),
            None => args,
        };
        // A failure is found anew, and told, by the next `enter`.
        let _ = self.uring.submitter().submit_with_args(1, &args);
        true
    }

    /// Lets the ring watch a descriptor that the reactor keeps open as long as the queue.
    fn watch(&mut self, fd: RawFd) -> bool {
        if self.watched.is_some() {
            return self.watched == Some(fd);
        }
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build();
        if self.push_aside(&entry.user_data(EVENT)) {
            self.watched = Some(fd);
        }
        self.watched.is_some()
    }

    /// How many calls the kernel has taken: those with a lower number than this.
    pub(super) fn taken(&mut self) -> u64 {
        self.pushed - self.uring.submission().len() as u64
    }

    /// Takes the next result off the ring: slot and result of its call.
    pub(super) fn reap(&mut self) -> Option<(u16, i32)> {
        loop {
            let cqe = self.uring.completion().next()?;
            if cqe.user_data() == EVENT {
                self.watched = None;
                continue;
            }
            self.in_kernel -= 1;
            if cqe.user_data() != CANCEL {
                return Some((cqe.user_data() as u16, cqe.result()));
            }
        }
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

    fn entry(&self, slot: u16, call: Call) -> Option<squeue::Entry> {
        const FILE: types::Fixed = types::Fixed(0);
        let list = self.lists.live(slot);
        Some(match (call, list) {
            (Call::Read { offset }, [one]) if let Some(index) = self.fixed_index(one) => {
                opcode::ReadFixed::new(FILE, one.iov_base.cast(), one.iov_len as u32, index)
                    .offset(offset)
                    .build()
            }
            (Call::Read { offset }, [one]) => {
                opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                    .offset(offset)
                    .build()
            }
            (Call::Read { offset }, many) => {
                opcode::Readv::new(FILE, many.as_ptr(), many.len() as u32).offset(offset).build()
            }
            (Call::Write { offset, durable }, [one]) if let Some(index) = self.fixed_index(one) => {
                opcode::WriteFixed::new(FILE, one.iov_base.cast(), one.iov_len as u32, index)
                    .offset(offset)
                    .rw_flags(write_flags(durable))
                    .build()
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
            (Call::Discard { .. }, _) => return None,
        })
    }

    /// The registered part in which a piece of memory lies.
    fn fixed_index(&self, piece: &libc::iovec) -> Option<u16> {
        let region = self.fixed.as_ref()?;
        let first = piece.iov_base.addr().checked_sub(region.addr().addr())?;
        let last = first.checked_add(piece.iov_len.checked_sub(1)?)?;
        let part = first / FIXED_MAX;
        (last < region.len() && last / FIXED_MAX == part).then_some(part as u16)
    }

    /// Pushes what is no call of a slot, if that leaves room for one call of every slot.
    fn push_aside(&mut self, entry: &squeue::Entry) -> bool {
        let sq = self.uring.submission();
        let room = sq.len() + self.lists.len() < sq.capacity();
        drop(sq);
        room && self.push_entry(entry).is_some()
    }

    fn push_entry(&mut self, entry: &squeue::Entry) -> Option<()> {
        // SAFETY: the module's invariant covers every pointer of the entry, and the entry's
        // list does not change until its completion is reaped.
        unsafe { self.uring.submission().push(entry) }.ok()?;
        self.pushed += 1;
        Some(())
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
        // The kernel takes a ring apart later on; whoever opens a device again wants it free now.
        let _ = self.uring.submitter().unregister_files();
        // SAFETY: dropped here and nowhere else, and not used afterwards.
        unsafe {
            ManuallyDrop::drop(&mut self.uring);
            ManuallyDrop::drop(&mut self.lists);
        }
    }
}

/// The kernel takes no longer piece of memory as one registered buffer.
const FIXED_MAX: usize = 1 << 30;

fn register(uring: &IoUring, region: &Region) -> io::Result<()> {
    let parts: Vec<libc::iovec> = (0..region.len())
        .step_by(FIXED_MAX)
        .map(|at| libc::iovec {
            iov_base: region.addr().wrapping_add(at).cast(),
            iov_len: FIXED_MAX.min(region.len() - at),
        })
        .collect();
    // SAFETY: the memory stays mapped as long as the ring keeps the region.
    unsafe { uring.submitter().register_buffers(&parts) }
}

/// Task work is left until we enter: no interrupts from the kernel. Deferred task work
/// (IORING_SETUP_DEFER_TASKRUN) would go further, but then a completion does not turn the
/// ring's descriptor readable, and a sleeping reactor sleeps on.
///
/// With `sqthread_poll` a thread of the kernel takes the calls, and sleeps when it has found none
/// for [`SQTHREAD_IDLE_MS`].
fn build(depth: u32, kind: RingKind) -> io::Result<IoUring> {
    let entries = depth.next_power_of_two() * 2;
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp();
    if kind.polled {
        builder.setup_iopoll();
    }
    if kind.sqthread_poll {
        return builder.setup_sqpoll(SQTHREAD_IDLE_MS).build(entries);
    }
    match builder.clone().setup_coop_taskrun().setup_taskrun_flag().build(entries) {
        // Older than Linux 5.19.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => builder.build(entries),
        other => other,
    }
}

/// How long the kernel's thread polls in vain before it sleeps.
const SQTHREAD_IDLE_MS: u32 = 100;

/// Makes a ring and gives it back: is it allowed?
pub(super) fn try_out(kind: RingKind) -> io::Result<()> {
    build(1, kind).map(drop)
}

/// Reads the first `block` bytes, up to 64 KiB, of a file that is open for direct I/O, through a
/// ring that polls: do its device and file system take that? `EOPNOTSUPP` or `EINVAL` where they
/// do not.
pub(super) fn try_polling(file: &File, block: usize) -> io::Result<()> {
    #[repr(align(65536))]
    struct Room([u8; 64 << 10]);
    let mut uring = build(1, RingKind { polled: true, sqthread_poll: false })?;
    // On every early way out it is leaked, since the kernel may be writing to it.
    let mut room = ManuallyDrop::new(Box::new(Room([0; 64 << 10])));
    let len = block.clamp(512, room.0.len()) as u32;
    let fd = types::Fd(file.as_raw_fd());
    let read = opcode::Read::new(fd, room.0.as_mut_ptr(), len).build();
    // SAFETY: the room is given back only once the kernel is done with it.
    unsafe { uring.submission().push(&read) }.map_err(io::Error::other)?;
    let result = loop {
        no_error_if_busy(uring.submit_and_wait(1)).map_err(io::Error::from_raw_os_error)?;
        if let Some(cqe) = uring.completion().next() {
            break cqe.result();
        }
    };
    drop(ManuallyDrop::into_inner(room));
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

fn no_error_if_busy(result: io::Result<usize>) -> Result<(), i32> {
    match result.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO)) {
        Ok(_) | Err(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
        Err(errno) => Err(errno),
    }
}
