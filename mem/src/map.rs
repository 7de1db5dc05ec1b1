//! The system calls under an arena: files of pages, mappings, locks, NUMA nodes.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};

use crate::{ArenaOptions, ArenaSource, MemError, PagePolicy, PageSize};

/// A shared mapping of a file of its own; dropped, it is unmapped.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    page_size: PageSize,
    locked: bool,
    fd: OwnedFd,
}

impl Mapping {
    /// Maps and populates what the options ask for, with a line on what they did not get.
    pub(crate) fn new(options: &ArenaOptions) -> Result<(Mapping, Option<String>), MemError> {
        if options.size == 0 {
            return Err(MemError::new(
                libc::EINVAL,
                "arena of 0 bytes: give it a size",
            ));
        }
        match (options.pages, &options.source) {
            (PagePolicy::Exactly(PageSize::Small4K), _) => small(options, Lock::Must),
            (PagePolicy::Unlocked, _) => small(options, Lock::No),
            (PagePolicy::Exactly(page_size), _) => huge(options, page_size),
            (PagePolicy::Best, _) => best(options),
        }
    }

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

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Maps the whole file, its base a multiple of `align`.
    fn of_file(fd: OwnedFd, len: usize, page_size: PageSize, align: usize) -> io::Result<Mapping> {
        let room = len
            .checked_add(align)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
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
        // SAFETY: skip + len <= room; MAP_FIXED replaces only our own address space.
        let base = unsafe {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            let at = space.add(skip).cast();
            libc::mmap(
                at,
                len,
                protection,
                flags | libc::MAP_FIXED,
                fd.as_raw_fd(),
                0,
            )
        };
        let error = io::Error::last_os_error();
        let mapped = base != libc::MAP_FAILED;
        // SAFETY: the parts of our own address space around the mapping, or all of it.
        unsafe {
            if !mapped {
                libc::munmap(space.cast(), room);
            } else {
                if skip > 0 {
                    libc::munmap(space.cast(), skip);
                }
                if room > skip + len {
                    libc::munmap(space.add(skip + len).cast(), room - skip - len);
                }
            }
        }
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if mapped => Ok(Mapping {
                base,
                len,
                page_size,
                locked: false,
                fd,
            }),
            _ => Err(error),
        }
    }

    /// Takes the pages from one NUMA node; must come before they are populated.
    fn bind(&self, node: u32) -> io::Result<()> {
        const MPOL_BIND: libc::c_long = 2;
        let bits = usize::BITS;
        let mut mask = vec![0usize; (node / bits + 1) as usize];
        mask[(node / bits) as usize] = 1 << (node % bits);
        // The kernel takes one bit off the count.
        let max_node = mask.len() as u32 * bits + 1;
        let (addr, len) = (self.base.as_ptr(), self.len);
        // SAFETY: the mapping is ours, and the mask has the bits that max_node says.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                addr,
                len,
                MPOL_BIND,
                mask.as_ptr(),
                max_node,
                0,
            )
        };
        if rc == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Makes the pages of the file, or fails where a later touch would raise SIGBUS.
    fn populate(&self) -> io::Result<()> {
        // SAFETY: a system call on our own file.
        let rc = unsafe { libc::fallocate(self.fd.as_raw_fd(), 0, 0, self.len as libc::off_t) };
        if rc == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn lock(&self) -> io::Result<()> {
        // SAFETY: the mapping is ours.
        let rc = unsafe { libc::mlock(self.base.as_ptr().cast(), self.len) };
        if rc == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
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

/// What to do so that `len` bytes more can be locked.
pub(crate) fn memlock_advice(len: usize) -> String {
    let need = (len >> 10).max(1);
    match memlock_limit() {
        None => "this process may not lock memory; give it CAP_IPC_LOCK".into(),
        Some(limit) => format!(
            "RLIMIT_MEMLOCK is {} KiB; run `ulimit -l {need}` or `ulimit -l unlimited` (root, or a \
             memlock line in /etc/security/limits.conf) and start again",
            limit >> 10
        ),
    }
}

/// The limit in bytes; `None` if there is none.
fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: fills the struct.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (rc == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lock {
    Must,
    Try,
    No,
}

type Mapped = Result<(Mapping, Option<String>), MemError>;

/// Hugepages if there are any, then 4 KiB pages, with one line of why.
fn best(options: &ArenaOptions) -> Mapped {
    let mut missed = None;
    for page_size in [PageSize::Huge1G, PageSize::Huge2M] {
        let suits = match page_size {
            PageSize::Huge1G => options.size.is_multiple_of(page_size.bytes()),
            _ => options.size >= page_size.bytes(),
        };
        if !suits || matches!(options.source, ArenaSource::HugetlbFs(_)) && missed.is_some() {
            continue;
        }
        match huge(options, page_size) {
            Ok(mapped) => return Ok(mapped),
            Err(error) if error.errno() == libc::EINVAL => return Err(error),
            Err(error) => missed = Some(error),
        }
    }
    let (mapping, notice) = small(options, Lock::Try)?;
    let missed = missed.map(|error| format!("using 4 KiB pages: {error}"));
    let notices: Vec<_> = missed.into_iter().chain(notice).collect();
    Ok((mapping, (!notices.is_empty()).then(|| notices.join("; "))))
}

fn small(options: &ArenaOptions, lock: Lock) -> Mapped {
    let len = round_up(options.size, PageSize::Small4K)?;
    let what = || format!("arena of {len} bytes on 4 KiB pages");
    let fd = memfd(0, len).map_err(|error| MemError::os(&error, what()))?;
    // 2 MiB where that costs nothing: IOMMUs then use larger pages, and queues align.
    let huge = PageSize::Huge2M.bytes();
    let align = if len >= huge {
        huge
    } else {
        PageSize::Small4K.bytes()
    };
    let mut mapping = Mapping::of_file(fd, len, PageSize::Small4K, align)
        .map_err(|error| MemError::os(&error, format_args!("{}: mmap", what())))?;
    let mut notice = place(&mapping, options.node)?;
    if lock != Lock::No {
        match mapping.lock() {
            Ok(()) => mapping.locked = true,
            Err(error) if lock == Lock::Must => {
                let advice = memlock_advice(len);
                let what = format!("{}: can not lock them (mlock): {advice}", what());
                return Err(MemError::os(&error, what));
            }
            Err(error) => {
                let advice = memlock_advice(len);
                let line = format!(
                    "memory is not locked and no hardware device can use it (mlock: {error}): \
                     {advice}"
                );
                notice = Some(notice.map_or(line.clone(), |first| format!("{first}; {line}")));
            }
        }
    }
    Ok((mapping, notice))
}

fn huge(options: &ArenaOptions, page_size: PageSize) -> Mapped {
    let (len, page_size, fd) = match &options.source {
        ArenaSource::Memfd => {
            let len = round_up(options.size, page_size)?;
            let flags = match page_size {
                PageSize::Huge1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
                _ => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
            };
            (len, page_size, memfd(flags, len))
        }
        ArenaSource::HugetlbFs(path) => {
            let found = hugetlbfs_page_size(path)?;
            if options.pages != PagePolicy::Best && found != page_size {
                let path = path.display();
                let text = format!("{path} has {found} pages, but the arena wants {page_size}");
                return Err(MemError::new(libc::EINVAL, text));
            }
            let len = round_up(options.size, found)?;
            (len, found, hugetlbfs_file(path, len))
        }
    };
    let explain = |error: io::Error| {
        let what = format!(
            "no {page_size} hugepages for {len} bytes: {}",
            advice(page_size, len)
        );
        match error.raw_os_error() {
            // Not the caller's mistake: the kernel lacks this size.
            Some(libc::EINVAL) => MemError::new(libc::ENODEV, format!("{what}: {error}")),
            _ => MemError::os(&error, what),
        }
    };
    let mut mapping = fd
        .and_then(|fd| Mapping::of_file(fd, len, page_size, page_size.bytes()))
        .map_err(explain)?;
    let notice = place(&mapping, options.node)?;
    mapping.populate().map_err(explain)?;
    // Hugepages are never swapped.
    mapping.locked = true;
    Ok((mapping, notice))
}

/// Binds to the node asked for. A node that does not exist is an error; a system that does not
/// let us choose is worth a line.
fn place(mapping: &Mapping, node: Option<u32>) -> Result<Option<String>, MemError> {
    let Some(node) = node else { return Ok(None) };
    match mapping.bind(node) {
        Ok(()) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(MemError::os(
            &error,
            format_args!("no NUMA node {node}: see /sys/devices/system/node/online"),
        )),
        Err(error) => Ok(Some(format!(
            "memory is not bound to NUMA node {node} (mbind: {error}): run under `numactl \
             --membind={node}`, or give the process CAP_SYS_NICE"
        ))),
    }
}

/// Why there are no hugepages, and the command that makes them.
fn advice(page_size: PageSize, len: usize) -> String {
    let dir = format!(
        "/sys/kernel/mm/hugepages/hugepages-{}kB",
        page_size.bytes() >> 10
    );
    let number = |name: &str| -> Option<usize> {
        fs::read_to_string(format!("{dir}/{name}"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let need = len / page_size.bytes();
    match (
        number("nr_hugepages"),
        number("free_hugepages"),
        number("resv_hugepages"),
    ) {
        (Some(total), Some(free), reserved) => {
            let free = free.saturating_sub(reserved.unwrap_or(0));
            let want = total + need.saturating_sub(free);
            format!("{free} of {need} are free; run `echo {want} | sudo tee {dir}/nr_hugepages`")
        }
        _ => "this kernel has none of that size".into(),
    }
}

fn round_up(size: usize, page_size: PageSize) -> Result<usize, MemError> {
    let len = size.checked_next_multiple_of(page_size.bytes());
    len.filter(|&len| len <= isize::MAX as usize)
        .ok_or_else(|| {
            MemError::new(
                libc::EINVAL,
                format!("arena of {size} bytes: larger than any address space"),
            )
        })
}

/// An anonymous file of `len` bytes that nobody can resize, so that whoever gets its descriptor
/// can not make our accesses fault.
fn memfd(flags: libc::c_uint, len: usize) -> io::Result<OwnedFd> {
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
fn hugetlbfs_file(path: &Path, len: usize) -> io::Result<OwnedFd> {
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

fn hugetlbfs_page_size(path: &Path) -> Result<PageSize, MemError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| MemError::new(libc::EINVAL, "hugetlbfs path with a NUL byte"))?;
    // SAFETY: a plain C struct of integers.
    let mut info: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the name is a C string, and the struct is filled.
    if unsafe { libc::statfs(name.as_ptr(), &mut info) } != 0 {
        return Err(MemError::last_os(format_args!(
            "hugetlbfs at {}",
            path.display()
        )));
    }
    let sizes = [PageSize::Huge2M, PageSize::Huge1G];
    let found = sizes
        .into_iter()
        .find(|size| size.bytes() as i64 == info.f_bsize as i64);
    match found {
        Some(size) if info.f_type as i64 == libc::HUGETLBFS_MAGIC => Ok(size),
        _ => Err(MemError::new(
            libc::ENOTSUP,
            format!(
                "{} is not a hugetlbfs of 2 MiB or 1 GiB pages; mount one: `sudo mount -t \
                 hugetlbfs -o pagesize=2M none {0}`",
                path.display()
            ),
        )),
    }
}

fn resize(fd: &OwnedFd, len: usize) -> io::Result<()> {
    // SAFETY: a system call on our own file.
    let rc = unsafe { libc::ftruncate(fd.as_raw_fd(), len as libc::off_t) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
