//! The system calls under regions: files of pages, mappings, locks, NUMA nodes, fork.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};

use crate::{MemError, PageSize};

/// A shared mapping of a file of its own; dropped, it is unmapped.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    page_size: PageSize,
    locked: bool,
    fd: OwnedFd,
    /// Its pages are those of the file, in its order.
    in_order: bool,
}

impl Mapping {
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn page_size(&self) -> PageSize {
        self.page_size
    }

    pub(crate) fn locked(&self) -> bool {
        self.locked
    }

    /// The file, if another process that maps it sees the same.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.in_order.then(|| self.fd.as_fd())
    }

    /// Maps the whole file, its base a multiple of `align`.
    pub(crate) fn of_file(
        fd: OwnedFd,
        len: usize,
        page_size: PageSize,
        align: usize,
    ) -> io::Result<Mapping> {
        let base = match align <= page_size.bytes() {
            true => map_shared(ptr::null_mut(), len, &fd, 0)?,
            false => map_aligned(len, &fd, align)?,
        };
        // Hugepages are never swapped.
        let locked = page_size != PageSize::Small4K;
        Ok(Mapping { base, len, page_size, locked, fd, in_order: true })
    }

    /// Keeps these pages, in this order, and gives the others back.
    pub(crate) fn into_run(self, pages: &[usize]) -> io::Result<Mapping> {
        let page = self.page_size.bytes();
        let total = self.len / page;
        let fd = self.fd.try_clone()?;
        let (base, len) = (reserve(pages.len() * page, page)?, pages.len() * page);
        let page_size = self.page_size;
        let run = Mapping { base, len, page_size, locked: true, fd, in_order: false };
        for (to, &from) in pages.iter().enumerate() {
            let offset = (from * page) as libc::off_t;
            let at = run.base.as_ptr().wrapping_add(to * page);
            map_shared_at(at.cast(), page, &run.fd, libc::MAP_FIXED, offset)?;
        }
        drop(self);
        for other in (0..total).filter(|page| !pages.contains(page)) {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let (at, fd) = ((other * page) as libc::off_t, run.fd.as_raw_fd());
            // SAFETY: a system call on our own file; nobody maps that page.
            if unsafe { libc::fallocate(fd, mode, at, page as libc::off_t) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(run)
    }

    /// Takes the pages from one NUMA node; must come before they are populated.
    pub(crate) fn bind(&self, node: u32) -> io::Result<()> {
        const MPOL_BIND: libc::c_long = 2;
        let bits = usize::BITS;
        let mut mask = vec![0usize; (node / bits + 1) as usize];
        mask[(node / bits) as usize] = 1 << (node % bits);
        // The kernel takes one bit off the count.
        let max_node = mask.len() as u32 * bits + 1;
        let (addr, len) = (self.base.as_ptr(), self.len);
        // SAFETY: the mapping is ours, and the mask has the bits that max_node says.
        let rc = unsafe {
            libc::syscall(libc::SYS_mbind, addr, len, MPOL_BIND, mask.as_ptr(), max_node, 0)
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Makes the pages of the file, or fails where a later touch would raise SIGBUS.
    pub(crate) fn populate(&self) -> io::Result<()> {
        // SAFETY: a system call on our own file.
        let rc = unsafe { libc::fallocate(self.fd.as_raw_fd(), 0, 0, self.len as libc::off_t) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Asks for hugepages behind the scenes, where the system has them for shared memory.
    pub(crate) fn prefer_huge(&self) {
        // SAFETY: a hint on our own mapping.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_HUGEPAGE) };
    }

    /// Keeps the pages in memory, and makes them.
    pub(crate) fn lock(&mut self) -> io::Result<()> {
        // SAFETY: the mapping is ours.
        let rc = unsafe { libc::mlock(self.base.as_ptr().cast(), self.len) };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        self.locked = true;
        Ok(())
    }
}

/// Maps a file where the system likes, which is at a multiple of its page size; or, with
/// MAP_FIXED, at an address of the caller's own.
fn map_shared(
    at: *mut libc::c_void,
    len: usize,
    fd: &OwnedFd,
    flags: libc::c_int,
) -> io::Result<NonNull<u8>> {
    map_shared_at(at, len, fd, flags, 0)
}

/// The same from an offset of the file on.
fn map_shared_at(
    at: *mut libc::c_void,
    len: usize,
    fd: &OwnedFd,
    flags: libc::c_int,
    offset: libc::off_t,
) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = flags | libc::MAP_SHARED;
    // SAFETY: a new mapping; MAP_FIXED replaces only address space that the caller reserved.
    let base = unsafe { libc::mmap(at, len, protection, flags, fd.as_raw_fd(), offset) };
    match NonNull::new(base.cast::<u8>()) {
        Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(base),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Maps a file at a multiple of `align` that its pages alone would not give.
fn map_aligned(len: usize, fd: &OwnedFd, align: usize) -> io::Result<NonNull<u8>> {
    let room = len.checked_add(align).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    // SAFETY: a new mapping of address space only, at an address of the system's choice.
    let space = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0)
    };
    if space == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let space = space.cast::<u8>();
    let skip = space.align_offset(align);
    let base = map_shared(space.wrapping_add(skip).cast(), len, fd, libc::MAP_FIXED);
    // SAFETY: the parts of our own address space around the mapping. Where the mapping failed,
    // its place is left alone: it may be a hole by now, and another thread's memory in it.
    unsafe {
        if skip > 0 {
            libc::munmap(space.cast(), skip);
        }
        if room > skip + len {
            libc::munmap(space.add(skip + len).cast(), room - skip - len);
        }
    }
    base
}

/// Address space of our own, at a multiple of `align`, with nothing in it.
fn reserve(len: usize, align: usize) -> io::Result<NonNull<u8>> {
    let room = len.checked_add(align).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    // SAFETY: a new mapping of address space only, at an address of the system's choice.
    let space = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0)
    };
    if space == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let space = space.cast::<u8>();
    let skip = space.align_offset(align);
    // SAFETY: the parts of our own address space before and after what is kept.
    unsafe {
        if skip > 0 {
            libc::munmap(space.cast(), skip);
        }
        libc::munmap(space.add(skip + len).cast(), room - skip - len);
    }
    NonNull::new(space.wrapping_add(skip)).ok_or_else(io::Error::last_os_error)
}

/// Has the page at an offset of our own mapping in the page table.
pub(crate) fn touch(base: NonNull<u8>, at: usize) {
    // SAFETY: the caller's range is mapped; the byte is looked at, not used.
    unsafe { base.as_ptr().add(at).read_volatile() };
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: LIVE: the region's last owner is gone, so nothing names these bytes.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Keeps a mapped range from being inherited by `fork`.
pub(crate) fn dont_fork(base: NonNull<u8>, len: usize) -> Result<(), MemError> {
    // SAFETY: changes what fork copies, not memory.
    if unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_DONTFORK) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    do_fork(base, len);
    let hint = match error.raw_os_error() {
        Some(libc::ENOMEM) => "; all of it must be mapped",
        Some(libc::EINVAL) => "; on hugepages, address and length must be multiples of their size",
        _ => "",
    };
    Err(MemError::os(
        &error,
        format_args!("keep {len} bytes at {base:?} from fork (madvise){hint}"),
    ))
}

/// Lets `fork` copy a range again.
pub(crate) fn do_fork(base: NonNull<u8>, len: usize) {
    // SAFETY: changes what fork copies, not memory.
    unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_DOFORK) };
}

/// The soft limit on locked memory in bytes, `RLIM_INFINITY` if there is none.
pub(crate) fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills the struct.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (rc == 0).then_some(limit.rlim_cur)
}

/// What makes `memfd` a file of hugepages.
pub(crate) fn hugetlb_flags(page_size: PageSize) -> libc::c_uint {
    match page_size {
        PageSize::Small4K => 0,
        PageSize::Huge2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        PageSize::Huge1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
    }
}

/// An anonymous file of `len` bytes that nobody can resize, so that whoever gets its descriptor
/// can not make our accesses fault.
pub(crate) fn memfd(flags: libc::c_uint, len: usize) -> io::Result<OwnedFd> {
    let flags = flags | libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string; a descriptor that comes back is ours.
    let fd = unsafe {
        let fd = libc::memfd_create(c"oxblock".as_ptr(), flags);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    resize(&fd, len)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: a system call on our own file.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// A file without a name in a mounted hugetlbfs.
pub(crate) fn hugetlbfs_file(path: &Path, len: usize) -> io::Result<OwnedFd> {
    let mut template = path.join("oxblock-XXXXXX").as_os_str().as_bytes().to_vec();
    template.push(0);
    // SAFETY: the template is a C string that mkostemp rewrites in place; the descriptor is ours.
    let fd = unsafe {
        let name = template.as_mut_ptr().cast();
        let fd = libc::mkostemp(name, libc::O_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::unlink(name);
        OwnedFd::from_raw_fd(fd)
    };
    resize(&fd, len)?;
    Ok(fd)
}

pub(crate) fn hugetlbfs_page_size(path: &Path) -> Result<PageSize, MemError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| MemError::new(libc::EINVAL, "hugetlbfs path with a NUL byte"))?;
    // SAFETY: a plain C struct of integers.
    let mut info: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the name is a C string, and the struct is filled.
    if unsafe { libc::statfs(name.as_ptr(), &mut info) } != 0 {
        return Err(MemError::last_os(format_args!("hugetlbfs at {}", path.display())));
    }
    let sizes = [PageSize::Huge2M, PageSize::Huge1G];
    let found = sizes.into_iter().find(|size| size.bytes() as i64 == info.f_bsize as i64);
    match found {
        Some(size) if info.f_type as i64 == libc::HUGETLBFS_MAGIC => Ok(size),
        _ => Err(MemError::new(
            libc::ENOTSUP,
            format!(
                "{} is not a hugetlbfs of 2 MiB or 1 GiB pages; mount one on an empty folder: `sudo \
                 mount -t hugetlbfs -o pagesize=2M none FOLDER`",
                path.display()
            ),
        )),
    }
}

fn resize(fd: &OwnedFd, len: usize) -> io::Result<()> {
    // SAFETY: a system call on our own file.
    let rc = unsafe { libc::ftruncate(fd.as_raw_fd(), len as libc::off_t) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
