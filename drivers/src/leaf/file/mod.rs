//! The file driver: a regular file through io_uring, one ring for each core.
//!
//! Buffered files take requests of any length at any offset. Direct I/O (`direct`) goes past
//! the page cache and takes what statx(2) says; a file whose length is no multiple of that is
//! rounded up: its tail reads as zeroes, and a write there extends the file.
//!
//! A flush is an fdatasync, and covers the writes that completed before it. Once one has
//! failed, the kernel no longer knows which bytes it lost, so that every later flush and
//! durable write fails too, until the file is opened anew.

mod queue;
mod uring;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI32;

use oxblock_engine::{Core, Driver, Error, ErrorKind, Limits, LocalFuture, MemoryRule, Queue};

use queue::FileQueue;
use uring::SEGMENTS_MAX;

/// Which file to open, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// The name of the file.
    pub path: PathBuf,
    /// With a size, the file is made if there is none and extended if it is shorter; it is
    /// never cut, and left alone if it is opened for reading only. `None` opens what is there.
    /// In bytes.
    pub size: Option<u64>,
    /// Whether to go past the page cache (O_DIRECT).
    pub direct: bool,
    /// Whether to refuse writes, and to open the file for reading only.
    pub read_only: bool,
    /// The granularity of requests in bytes; 0 for the finest that the file takes.
    pub block_size: u32,
    /// How many requests one core has in the kernel at once, 1 to 4096.
    pub queue_depth: u16,
}

impl FileOptions {
    /// An existing file, buffered, for reading and writing.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            size: None,
            direct: false,
            read_only: false,
            block_size: 0,
            queue_depth: 128,
        }
    }
}

/// The longest request that goes to the kernel in one call.
const TRANSFER_MAX: u32 = 4 << 20;

/// The longest range that one fallocate call takes.
const ALLOCATE_MAX: u64 = 1 << 30;

/// Opens a regular file.
///
/// # Errors
/// What open(2) says; `Invalid` if it is no regular file, or if the block size does not suit
/// direct I/O; `NotSupported` if its file system has no direct I/O.
pub fn open(options: FileOptions) -> Result<Box<dyn Driver>, Error> {
    let path = options.path.display();
    let fail = |what: &str, e| Error::from_io(format!("file {path}: cannot {what}"), e);
    let invalid = |text: String| Error::new(ErrorKind::Invalid, format!("file {path}: {text}"));

    if !(1..=4096).contains(&options.queue_depth) {
        return Err(invalid("the queue depth must be from 1 to 4096".into()));
    }
    let file = open_file(&options).map_err(|e| fail(open_hint(&options, &e), e))?;
    let metadata = file.metadata().map_err(|e| fail("look at it", e))?;
    if !metadata.is_file() {
        return Err(invalid("it is no regular file; give the name of a regular file".into()));
    }
    uring::end_nonblocking(&file).map_err(|e| fail("set it to blocking", e))?;
    let mut file_length = metadata.len();
    if let Some(size) = options.size
        && size > file_length
        && !options.read_only
    {
        file.set_len(size).map_err(|e| fail("extend it", e))?;
        file_length = size;
    }
    let direct = match options.direct {
        true => Some(direct_alignment(&options.path, &file)?),
        false => None,
    };
    let finest = direct.map_or(1, |d| d.offset);
    let block_size = if options.block_size == 0 { finest } else { options.block_size };
    if !block_size.is_multiple_of(finest) {
        let text = format!("direct I/O takes multiples of {finest} bytes, not of {block_size}");
        return Err(invalid(text));
    }
    let can_punch = !options.read_only && uring::can_punch(&file, file_length);
    let limits = limits(file_length, block_size, direct, can_punch, options.read_only);
    let shared = Shared {
        file,
        direct_block: direct.map(|d| d.offset),
        queue_depth: options.queue_depth,
        failed_sync: AtomicI32::new(0),
    };
    Ok(Box::new(FileDriver { path: options.path, limits, shared: Arc::new(shared) }))
}

/// O_NONBLOCK, so that a pipe of that name does not keep us waiting.
fn open_file(options: &FileOptions) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .create(options.size.is_some() && !options.read_only)
        .custom_flags(if options.direct { libc::O_DIRECT } else { 0 } | libc::O_NONBLOCK)
        .mode(0o644)
        .open(&options.path)
}

fn open_hint(options: &FileOptions, error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EINVAL) if options.direct => {
            "open it for direct I/O, which its file system may lack (open it without `direct`)"
        }
        Some(libc::ENOENT) if options.size.is_none() => "open it (give a size to have it made)",
        Some(libc::EROFS | libc::EACCES) if !options.read_only => {
            "open it for writing (open it read-only, or change its permissions)"
        }
        _ => "open it",
    }
}

/// What the file asks of direct I/O; a page where the kernel does not tell.
fn direct_alignment(path: &Path, file: &File) -> Result<uring::DirectAlignment, Error> {
    let path = path.display();
    let told = uring::direct_alignment(file)
        .map_err(|e| Error::from_io(format!("file {path}: cannot ask for its alignment"), e))?;
    let page = uring::DirectAlignment { memory: 4096, offset: 4096 };
    match told.unwrap_or(page) {
        uring::DirectAlignment { offset: 0, .. } => {
            let text = format!("file {path}: it cannot do direct I/O; open it without `direct`");
            Err(Error::new(ErrorKind::NotSupported, text))
        }
        alignment => Ok(alignment),
    }
}

fn limits(
    file_length: u64,
    block_size: u32,
    direct: Option<uring::DirectAlignment>,
    can_punch: bool,
    read_only: bool,
) -> Limits {
    let transfer_max = TRANSFER_MAX - TRANSFER_MAX % block_size;
    let allocate_max = ALLOCATE_MAX - ALLOCATE_MAX % u64::from(block_size);
    Limits {
        max_transfer: transfer_max.max(block_size),
        max_segments: SEGMENTS_MAX as u32,
        memory: direct.map_or(MemoryRule::Any, |d| MemoryRule::Aligned(d.memory.max(d.offset))),
        max_write_zeroes: allocate_max,
        max_discard: if can_punch { allocate_max } else { 0 },
        volatile_cache: true,
        fua: true,
        read_only,
        ..Limits::new(file_length.next_multiple_of(u64::from(block_size)), block_size)
    }
}

struct FileDriver {
    path: PathBuf,
    limits: Limits,
    shared: Arc<Shared>,
}

/// What all queues on a file share.
struct Shared {
    file: File,
    /// With direct I/O, the block that offsets and lengths are multiples of.
    direct_block: Option<u32>,
    queue_depth: u16,
    /// The errno of the first sync that failed, or 0.
    failed_sync: AtomicI32,
}

impl Shared {
    /// Whether a read of so many bytes stopped at the end of the file: at nothing, or with
    /// direct I/O inside a block.
    fn is_end(&self, bytes: usize) -> bool {
        bytes == 0 || self.direct_block.is_some_and(|block| !bytes.is_multiple_of(block as usize))
    }
}

impl Driver for FileDriver {
    fn name(&self) -> &'static str {
        "file"
    }

    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let queue = FileQueue::new(self.shared.clone())
            .map(|queue| Box::new(queue) as Box<dyn Queue>)
            .map_err(|e| ring_error(&self.path, e));
        Box::pin(async move { queue })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// Why there is no ring, and what would help.
fn ring_error(path: &Path, error: io::Error) -> Error {
    let what = format!("file {}: cannot set up an io_uring", path.display());
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) if disabled.is_ok_and(|text| text.trim() != "0") => {
            "this host forbids it: set the sysctl kernel.io_uring_disabled to 0"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "a seccomp filter or security policy forbids it: allow io_uring_setup, \
             io_uring_enter and io_uring_register"
        }
        Some(libc::ENOSYS) => {
            "this kernel has none, or a seccomp filter (as containers set) hides it: allow \
             io_uring_setup, io_uring_enter and io_uring_register"
        }
        Some(libc::ENOMEM) => "raise the limit of locked memory (ulimit -l)",
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files (ulimit -n)",
        _ => "see the error below",
    };
    Error::from_io(format!("{what} ({hint})"), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    /// O_NONBLOCK keeps the open of a pipe from blocking, but io_uring fails with EAGAIN what
    /// would block on such a descriptor where the file system has no other way.
    #[test]
    fn the_descriptor_does_not_stay_nonblocking() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        let flags = |file: &File| {
            let info = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
            let text = std::fs::read_to_string(info).unwrap();
            let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            i32::from_str_radix(flags.trim(), 8).unwrap()
        };
        let file = open_file(&FileOptions::new(&path)).unwrap();
        assert_ne!(flags(&file) & libc::O_NONBLOCK, 0);
        uring::end_nonblocking(&file).unwrap();
        assert_eq!(flags(&file) & libc::O_NONBLOCK, 0);
    }

    #[test]
    fn a_forbidden_ring_is_named_with_a_way_out() {
        for (errno, hint) in [
            (libc::EPERM, "io_uring_"),
            (libc::ENOSYS, "seccomp"),
            (libc::ENOMEM, "ulimit -l"),
            (libc::EMFILE, "ulimit -n"),
        ] {
            let error = ring_error(Path::new("/x"), io::Error::from_raw_os_error(errno));
            let text = error.to_string();
            assert!(text.contains("/x") && text.contains("io_uring"), "{text}");
            assert!(text.contains(hint), "{text}");
        }
    }
}
