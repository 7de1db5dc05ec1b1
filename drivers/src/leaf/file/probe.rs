//! What is asked of the kernel when a file is opened.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::device::Device;
use super::syscall::AtOnce;

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

/// Takes a shared lock on a byte for this open file description, or gives it back.
pub(super) fn lock_byte(file: &File, byte: u64, locked: bool) -> io::Result<()> {
    let kind = if locked { libc::F_RDLCK } else { libc::F_UNLCK };
    byte_lock(file, libc::F_OFD_SETLK, byte, kind).map(|_| ())
}

/// Whether another open file description has any lock on a byte.
pub(super) fn is_byte_locked(file: &File, byte: u64) -> io::Result<bool> {
    let found = byte_lock(file, libc::F_OFD_GETLK, byte, libc::F_WRLCK)?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

fn byte_lock(file: &File, command: i32, byte: u64, kind: i32) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte as libc::off_t,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: an open descriptor, and a lock that the call may write to.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if rc == 0 { Ok(lock) } else { Err(io::Error::last_os_error()) }
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
    let mut buf = MaybeUninit::<libc::statx>::zeroed();
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

/// Allocates the first `len` bytes of a file and makes it as long, where its file system can.
pub(super) fn preallocate(file: &File, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: an open descriptor; no memory is passed.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        error => Err(error),
    }
}

/// Whether, and how, reads and writes of a file through the page cache can be made at once.
pub(super) fn at_once(file: &File) -> Option<AtOnce> {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: an open descriptor and a buffer of the right type.
    let rc = unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) };
    // SAFETY: a zeroed statfs is a valid one, whether or not the call filled it.
    let kind = unsafe { stat.assume_init() }.f_type;
    if rc == 0 && [libc::TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind) {
        return Some(AtOnce::InMemory);
    }
    let mut byte = 0u8;
    let one = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: an open descriptor and one byte of our own.
    let rc = unsafe { libc::preadv2(file.as_raw_fd(), &one, 1, 0, libc::RWF_NOWAIT) };
    let would_wait = || io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
    (rc >= 0 || would_wait()).then_some(AtOnce::NoWait)
}

const RAMFS_MAGIC: libc::__fsword_t = 0x8584_58f6;

/// A set of processors.
#[derive(Clone, Copy)]
pub(super) struct Cpus(libc::cpu_set_t);

/// The processors that the calling thread may use.
pub(super) fn cpus() -> io::Result<Cpus> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    let len = size_of::<libc::cpu_set_t>();
    // SAFETY: a buffer of the given length.
    let rc = unsafe { libc::sched_getaffinity(0, len, set.as_mut_ptr()) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a zeroed set is a valid one, and the call has filled it.
    Ok(Cpus(unsafe { set.assume_init() }))
}

/// Lets the calling thread use these processors.
pub(super) fn run_on(cpus: &Cpus) -> io::Result<()> {
    // SAFETY: a set of the given length.
    let rc = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &cpus.0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An eventfd that does not keep its reader waiting.
pub(super) fn event() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes an eventfd readable.
pub(super) fn give_event(event: &OwnedFd) {
    let one = 1u64;
    // SAFETY: eight bytes of our own. It fails only if the eventfd is readable already.
    unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Makes an eventfd unreadable.
pub(super) fn take_event(event: &OwnedFd) {
    let mut count = 0u64;
    // SAFETY: eight bytes of our own. It fails only if the eventfd is unreadable already.
    unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), 8) };
}

/// The size of a block device, its blocks, and whether the host has it read-only; the rest is
/// left at nothing.
pub(super) fn device_size(file: &File) -> io::Result<Device> {
    let (mut length, mut logical, mut physical, mut read_only) = (0u64, 0i32, 0u32, 0i32);
    let fd = file.as_raw_fd();
    // SAFETY: each call writes one value of the type that it is documented to write.
    let answers = unsafe {
        [
            libc::ioctl(fd, BLKGETSIZE64, &raw mut length),
            libc::ioctl(fd, libc::BLKSSZGET, &raw mut logical),
            libc::ioctl(fd, libc::BLKPBSZGET, &raw mut physical),
            libc::ioctl(fd, BLKROGET, &raw mut read_only),
        ]
    };
    if answers.iter().any(|&rc| rc != 0) {
        return Err(io::Error::last_os_error());
    }
    let logical_block = u32::try_from(logical).unwrap_or(0).max(1);
    let read_only = read_only != 0;
    Ok(Device { length, logical_block, physical_block: physical, read_only, ..Device::default() })
}

/// linux/fs.h: `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: libc::Ioctl = 0x8000_1272 | ((size_of::<usize>() as libc::Ioctl) << 16);

/// linux/fs.h: `_IO(0x12, 94)`.
const BLKROGET: libc::Ioctl = 0x125e;
