//! Memory that is not ours: of another process or of a device, by a file descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Weak;

use crate::region::RegionShared;
use crate::sigbus::Guard;
use crate::{MemError, PageSize, Region, map};

/// A mapping of part of a file that is not ours; dropped, it is unmapped.
pub(crate) struct Foreign {
    /// Declared first: the watch ends before the addresses are free for others.
    guard: Guard,
    mapping: Span,
    /// The part that was asked for.
    base: NonNull<u8>,
    len: usize,
    page_size: PageSize,
}

/// The pages around it.
struct Span {
    base: NonNull<u8>,
    len: usize,
}

impl Region {
    /// Maps `len` bytes at `offset` of a file that another process sent, to read and to write.
    /// The region belongs to no [`Memory`](crate::Memory), and is [shared](Region::is_shared):
    /// its bytes may change at any time. They may even vanish, with the file: then reads give
    /// anything, and [`is_lost`](Region::is_lost) tells.
    ///
    /// # Errors
    /// `EINVAL` if offset or length is not a multiple of 4 KiB, or this is no regular file with
    /// that many bytes; what the system says, such as `EACCES` for a descriptor that is not open
    /// for writing.
    pub fn import(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Region, MemError> {
        Foreign::map(fd, offset, len)?.into_region()
    }

    /// Maps `len` bytes at `offset` of a device's file: memory in a BAR, to read and to write. As
    /// an [imported](Region::import) region it is shared, belongs to no
    /// [`Memory`](crate::Memory), and may vanish. No device reaches it by DMA.
    ///
    /// # Errors
    /// `EINVAL` if offset or length is not a multiple of 4 KiB; what the driver of the device
    /// says.
    pub fn of_device(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Region, MemError> {
        Foreign::map_device(fd, offset, len)?.into_region()
    }
}

impl Foreign {
    fn map(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Foreign, MemError> {
        let what = format_args!("map {len:#x} bytes at {offset:#x} of another process's file");
        let refused = |why: &str| MemError::new(libc::EINVAL, format!("{what}: {why}"));
        let end = offset.checked_add(len).filter(|_| len > 0);
        let aligned = (offset | len).is_multiple_of(PageSize::Small4K.bytes() as u64);
        let Some(end) = end.filter(|_| aligned) else {
            return Err(refused("offset and length must be multiples of 4096, and not too large"));
        };
        let file = File::of(fd).map_err(|error| MemError::os(&error, what))?;
        if !file.is_regular || end > file.len {
            return Err(refused(&format!("there is no such range in it, of {:#x}", file.len)));
        }
        // Hugepages are mapped whole.
        let page = file.page_size.bytes() as u64;
        let first = offset / page * page;
        let skip = (offset - first) as usize;
        let span_len = (end - first).div_ceil(page).checked_mul(page);
        let (Some(span_len), Ok(at)) = (span_len, libc::off_t::try_from(first)) else {
            return Err(refused("it is too large"));
        };
        let mapping = Span::map(fd, at, span_len).map_err(|error| MemError::os(&error, what))?;
        let (start, page) = (mapping.base.addr().get(), file.page_size.bytes());
        let guard = Guard::new(start, mapping.len, page)?;
        // SAFETY: inside the mapping, whose first page `offset` lies in.
        let base = unsafe { mapping.base.add(skip) };
        Ok(Foreign { guard, mapping, base, len: len as usize, page_size: file.page_size })
    }

    /// A device's file has no length, and its driver refuses what it does not have.
    fn map_device(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Foreign, MemError> {
        let what = format_args!("map {len:#x} bytes at {offset:#x} of a device's file");
        let page = PageSize::Small4K.bytes();
        let at = libc::off_t::try_from(offset).ok();
        let aligned = len > 0 && (offset | len).is_multiple_of(page as u64);
        let Some(at) = at.filter(|_| aligned && offset.checked_add(len).is_some()) else {
            let why = "offset and length must be multiples of 4096, and not too large";
            return Err(MemError::new(libc::EINVAL, format!("{what}: {why}")));
        };
        let mapping = Span::map(fd, at, len).map_err(|error| MemError::os(&error, what))?;
        let guard = Guard::new(mapping.base.addr().get(), mapping.len, page)?;
        let (base, len) = (mapping.base, mapping.len);
        Ok(Foreign { guard, mapping, base, len, page_size: PageSize::Small4K })
    }

    fn into_region(self) -> Result<Region, MemError> {
        map::dont_fork(self.mapping.base, self.mapping.len)?;
        Ok(Region::new(RegionShared::of_foreign(self, Weak::new())))
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The size of its pages, if it is made of whole ones.
    pub(crate) fn page_size(&self) -> PageSize {
        let page = self.page_size.bytes();
        let whole = self.base.addr().get().is_multiple_of(page) && self.len.is_multiple_of(page);
        if whole { self.page_size } else { PageSize::Small4K }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }
}

impl Span {
    fn map(fd: BorrowedFd<'_>, at: libc::off_t, len: u64) -> io::Result<Span> {
        let len = usize::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let raw = fd.as_raw_fd();
        // SAFETY: a new mapping at an address of the system's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, raw, at) };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Span { base, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // SAFETY: LIVE: the region's last owner is gone, so nothing names these bytes.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// What there is to know of a file.
struct File {
    is_regular: bool,
    len: u64,
    page_size: PageSize,
}

impl File {
    fn of(fd: BorrowedFd<'_>) -> io::Result<File> {
        // SAFETY: plain structs of integers.
        let (mut stat, mut info): (libc::stat, libc::statfs) = unsafe { std::mem::zeroed() };
        // SAFETY: both calls fill their struct.
        let failed = unsafe {
            libc::fstat(fd.as_raw_fd(), &mut stat) != 0
                || libc::fstatfs(fd.as_raw_fd(), &mut info) != 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        let sizes = [PageSize::Huge2M, PageSize::Huge1G];
        let huge = sizes.into_iter().find(|size| size.bytes() as i64 == info.f_bsize);
        let page_size = match info.f_type == libc::HUGETLBFS_MAGIC {
            true => huge.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTSUP))?,
            false => PageSize::Small4K,
        };
        let is_regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        Ok(File { is_regular, len: u64::try_from(stat.st_size).unwrap_or(0), page_size })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::{AsFd, OwnedFd};

    use super::*;
    use crate::{ArenaOptions, Cells, Memory, PagePolicy};

    /// A file of `len` bytes that its owner may cut short.
    fn unsealed(len: i64) -> OwnedFd {
        use std::os::fd::FromRawFd;
        // SAFETY: a C string; a descriptor that comes back is ours.
        let fd = unsafe {
            let fd = libc::memfd_create(c"foreign".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0);
            OwnedFd::from_raw_fd(fd)
        };
        cut(&fd, len);
        fd
    }

    fn cut(fd: &OwnedFd, len: i64) {
        // SAFETY: a system call on our own file.
        assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), len) }, 0);
    }

    #[test]
    fn both_sides_see_the_same_bytes() {
        let options = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(4 * 4096) };
        let arena = Memory::new().add_arena(&options).unwrap();
        let (mine, region) = (arena.alloc(4 * 4096, 4096).unwrap(), arena.region());
        let (fd, at) = region.fd().unwrap();
        let theirs = Region::import(fd, at + 4096, 8192).unwrap();
        assert!(theirs.is_shared() && !theirs.dma() && theirs.len() == 8192);
        Cells::new(theirs.buf(4096, 8).unwrap())
            .unwrap()
            .u64(0)
            .store(7, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(mine.as_slice().unwrap()[8192], 7);
        assert!(!theirs.is_lost());
    }

    #[test]
    fn only_what_a_file_has_is_mapped() {
        let fd = unsealed(16384);
        let import = |offset, len| Region::import(fd.as_fd(), offset, len).unwrap_err().errno();
        let cases = [
            (0, 0),
            (0, 4095),
            (512, 4096),
            (0, 20480),
            (16384, 4096),
            (u64::MAX - 4095, 8192),
            (u64::MAX - 4095, 4096),
            (1 << 63, 4096),
        ];
        for (offset, len) in cases {
            assert_eq!(import(offset, len), libc::EINVAL, "{len:#x} at {offset:#x}");
        }
        let zero = fs::File::open("/dev/zero").unwrap();
        assert_eq!(Region::import(zero.as_fd(), 0, 4096).unwrap_err().errno(), libc::EINVAL);
        let read_only = fs::File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        let error = Region::import(read_only.as_fd(), 0, 4096).unwrap_err();
        assert_eq!(error.errno(), libc::EACCES, "{error}");
    }

    /// A device's file is none of bytes: what its length says does not matter.
    #[test]
    fn memory_of_a_device_is_mapped_as_its_driver_allows() {
        let zero = fs::File::options().read(true).write(true).open("/dev/zero").unwrap();
        let region = Region::of_device(zero.as_fd(), 0, 8192).unwrap();
        assert!(region.is_shared() && !region.dma() && region.len() == 8192);
        let words = Cells::new(region.buf(4096, 4096).unwrap()).unwrap();
        drop(region);
        words.u64(511).store(7, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(words.u64(511).load(std::sync::atomic::Ordering::Relaxed), 7);
        for (offset, len) in [(0, 0), (0, 100), (512, 4096), (u64::MAX - 4095, 8192)] {
            let error = Region::of_device(zero.as_fd(), offset, len).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL, "{len:#x} at {offset:#x}");
        }
    }

    /// A client that cut its memory short ended the server, and so all its other clients:
    /// the next access raised SIGBUS.
    #[test]
    fn memory_that_vanishes_is_replaced() {
        let fd = unsealed(3 * 4096);
        let region = Region::import(fd.as_fd(), 0, 3 * 4096).unwrap();
        let other = Region::import(fd.as_fd(), 0, 4096).unwrap();
        let mut buf = region.buf(0, 3 * 4096).unwrap();
        buf.write_at(0, &[1; 3 * 4096]);
        assert!(!region.is_lost());
        cut(&fd, 4096);
        buf.write_at(0, &[2; 3 * 4096]);
        let mut back = vec![0; 3 * 4096];
        buf.read_at(0, &mut back);
        assert_eq!(back[..4096], [2; 4096]);
        assert!(region.is_lost() && !other.is_lost());
        drop(buf);
        let again = Region::import(fd.as_fd(), 0, 4096).unwrap();
        assert!(!again.is_lost());
    }
}
