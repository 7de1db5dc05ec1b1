//! The file driver: a regular file through io_uring, one ring for each core.
//!
//! Short reads and writes of bytes that are in memory already (tmpfs, the page cache) are made
//! at once, with a plain call or one with RWF_NOWAIT, which costs less than a ring. Where
//! io_uring is forbidden, each core has a few threads that make the calls.
//!
//! Buffered files take requests of any length at any offset. Direct I/O (`direct`) goes past
//! the page cache and takes what statx(2) says; a file whose length is no multiple of that is
//! rounded up: its tail reads as zeroes, and a write there extends the file.
//!
//! A flush is an fdatasync, and covers the writes that completed before it. Once one has
//! failed, the kernel no longer knows which bytes it lost, so that every later flush and
//! durable write fails too, until the file is opened anew.

mod calls;
mod probe;
mod queue;
mod syscall;
mod uring;
mod workers;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI32;

use oxblock_engine::{Core, Driver, Error, ErrorKind, Limits, LocalFuture, MemoryRule, Queue};

use probe::Cpus;
use queue::FileQueue;
use syscall::{AtOnce, SEGMENTS_MAX};

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
    /// Whether reads and writes of bytes in memory may be made at once, without `engine`.
    pub at_once: bool,
    /// How other calls are made.
    pub engine: FileEngine,
}

/// How the file driver's calls are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileEngine {
    /// Through io_uring, and by threads where that is forbidden.
    #[default]
    Best,
    /// Through io_uring.
    Uring,
    /// By threads.
    Workers,
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
            at_once: true,
            engine: FileEngine::Best,
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
    probe::end_nonblocking(&file).map_err(|e| fail("set it to blocking", e))?;
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
    let can_punch = !options.read_only && probe::can_punch(&file, file_length);
    let limits = limits(file_length, block_size, direct, can_punch, options.read_only);
    let at_once = match options.direct || !options.at_once {
        true => None,
        false => probe::at_once(&file),
    };
    let (workers, notice) = workers(&options)?;
    let shared = Shared {
        file,
        at_once,
        direct_block: direct.map(|d| d.offset),
        workers,
        queue_depth: options.queue_depth,
        failed_sync: AtomicI32::new(0),
    };
    Ok(Box::new(FileDriver { path: options.path, limits, notice, shared: Arc::new(shared) }))
}

/// The threads of a queue where there is no io_uring: as many calls wait at once.
const WORKERS: u8 = 4;

/// How many, and the processors that they may use.
type Threads = (u8, Cpus);

/// Whether calls are made by threads, and what to say if that was not asked for.
fn workers(options: &FileOptions) -> Result<(Option<Threads>, Option<String>), Error> {
    let path = options.path.display();
    let forbidden = match options.engine {
        FileEngine::Uring => return Ok((None, None)),
        FileEngine::Workers => None,
        FileEngine::Best => match uring::try_out() {
            Err(e) if is_forbidden(&e) => Some(ring_hint(&e)),
            // Any other failure is told where the queue is opened.
            _ => return Ok((None, None)),
        },
    };
    let cpus = probe::cpus()
        .map_err(|e| Error::from_io(format!("file {path}: cannot ask for the processors"), e))?;
    let notice = forbidden.map(|hint| {
        format!(
            "file {path}: threads make its calls, which is slower: there is no io_uring ({hint})"
        )
    });
    Ok((Some((WORKERS, cpus)), notice))
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
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
fn direct_alignment(path: &Path, file: &File) -> Result<probe::DirectAlignment, Error> {
    let path = path.display();
    let told = probe::direct_alignment(file)
        .map_err(|e| Error::from_io(format!("file {path}: cannot ask for its alignment"), e))?;
    let page = probe::DirectAlignment { memory: 4096, offset: 4096 };
    match told.unwrap_or(page) {
        probe::DirectAlignment { offset: 0, .. } => {
            let text = format!("file {path}: it cannot do direct I/O; open it without `direct`");
            Err(Error::new(ErrorKind::NotSupported, text))
        }
        alignment => Ok(alignment),
    }
}

fn limits(
    file_length: u64,
    block_size: u32,
    direct: Option<probe::DirectAlignment>,
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
    notice: Option<String>,
    shared: Arc<Shared>,
}

/// What all queues on a file share.
struct Shared {
    file: File,
    /// With direct I/O, the block that offsets and lengths are multiples of.
    direct_block: Option<u32>,
    /// How reads and writes are made without the ring, if they can be.
    at_once: Option<AtOnce>,
    /// Without io_uring: the threads of each queue, and the processors that they may use.
    workers: Option<Threads>,
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

    fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let queue = FileQueue::new(self.shared.clone())
            .map(|queue| Box::new(queue) as Box<dyn Queue>)
            .map_err(|e| match self.shared.workers {
                None => ring_error(&self.path, e),
                Some(_) => {
                    let path = self.path.display();
                    Error::from_io(format!("file {path}: cannot start its threads"), e)
                }
            });
        Box::pin(async move { queue })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// Why there is no way to the kernel, and what would help.
fn ring_error(path: &Path, error: io::Error) -> Error {
    let what = format!("file {}: cannot set up an io_uring", path.display());
    Error::from_io(format!("{what} ({})", ring_hint(&error)), error)
}

/// What would help to get a ring.
fn ring_hint(error: &io::Error) -> &'static str {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    match error.raw_os_error() {
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
    }
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
        probe::end_nonblocking(&file).unwrap();
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
