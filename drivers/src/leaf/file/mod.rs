//! The file driver: a regular file or a block device of the host through io_uring, one ring for
//! each core.
//!
//! Short reads and writes of bytes that are in memory already (tmpfs, the page cache) are made
//! at once, with a plain call or one with RWF_NOWAIT, which costs less than a ring. Where
//! io_uring is forbidden, each core has a few threads that make the calls.
//!
//! Buffered files take requests of any length at any offset. Direct I/O (`direct`) goes past
//! the page cache and takes what statx(2) says; a file whose length is no multiple of that is
//! rounded up: its tail reads as zeroes, and a write there extends the file.
//!
//! A block device has its own size and block, and is opened for writing only if nobody has
//! mounted it. Zoned devices are refused. A discard goes to the device if it can zero ranges
//! (io_uring has no other discard) or if threads make the calls.
//!
//! Direct I/O may poll the device for what ends (`hipri`), where it has queues for that, instead of
//! having it interrupt.
//!
//! What the users of the node do to the file, and do not bear of others, is told to other processes
//! by locks on the bytes of QEMU's: the two keep each other out.
//!
//! A flush is an fdatasync, and covers the writes that completed before it. Once one has
//! failed, the kernel no longer knows which bytes it lost, so that every later flush and
//! durable write fails too, until the file is opened anew.

mod backing;
mod calls;
mod device;
mod info;
mod lock;
mod polled;
mod probe;
mod queue;
mod syscall;
mod uring;
mod workers;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use oxblock_engine::graph::{Access, NodeSettings, Opening};
use oxblock_engine::{Core, Driver, Error, ErrorKind, Limits, LocalFuture, Queue};

pub use info::{FILE, HOST_DEVICE};
pub use lock::Locking;

use backing::Backing;
use lock::FileLock;
use probe::Cpus;
use queue::FileQueue;
use syscall::AtOnce;
use uring::RingKind;

/// Which file or block device to open, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// The name of the file.
    pub path: PathBuf,
    /// With a size, the file is made if there is none and extended if it is shorter; it is
    /// never cut, and left alone if it is opened for reading only. `None` opens what is there.
    /// In bytes.
    pub size: Option<u64>,
    /// Whether the space of a file that is made or extended is allocated at once, where its file
    /// system can; otherwise it is sparse.
    pub preallocate: bool,
    /// Whether to go past the page cache (O_DIRECT).
    pub direct: bool,
    /// Whether to refuse writes, and to open the file for reading only.
    pub read_only: bool,
    /// Whether to do so where the file cannot be opened for writing.
    pub auto_read_only: bool,
    /// The granularity of requests in bytes; 0 for the finest that the file takes.
    pub block_size: u32,
    /// How many requests one core has in the kernel at once, 1 to 4096.
    pub queue_depth: u16,
    /// Whether reads and writes of bytes in memory may be made at once, without `engine`.
    pub at_once: bool,
    /// How other calls are made.
    pub engine: FileEngine,
    /// Whether a thread of the kernel takes the calls off each ring (IORING_SETUP_SQPOLL): no
    /// system calls while it is awake, at the cost of the processor that it polls on. Where the
    /// kernel refuses, [`Driver::notice`] says so and there is none.
    pub sqthread_poll: bool,
    /// Whether the device is polled for the ends of reads and writes (IORING_SETUP_IOPOLL) instead
    /// of interrupting: with `direct` alone, and where the device has queues to be polled, which
    /// nvme has with its parameter `poll_queues`. Where the kernel takes such calls and has the
    /// device interrupt all the same, [`Driver::notice`] says so.
    pub hipri: bool,
    /// Whether other processes are kept from what does not go with what the node's users do.
    pub locking: Locking,
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
            preallocate: false,
            direct: false,
            read_only: false,
            auto_read_only: false,
            block_size: 0,
            queue_depth: 128,
            at_once: true,
            engine: FileEngine::Best,
            sqthread_poll: false,
            hipri: false,
            locking: Locking::Auto,
        }
    }
}

/// Opens a regular file or a block device.
///
/// # Errors
/// What open(2) says; `Invalid` if it is neither, or if the block size does not suit the device
/// or direct I/O; `NotSupported` if its file system has no direct I/O, or for a zoned device;
/// `NoSpace` for a device shorter than the size that is asked for; `Busy` for a file that is to be
/// extended, and that another process keeps.
pub fn open(options: FileOptions) -> Result<Box<dyn Driver>, Error> {
    open_beside(options, None)
}

/// The same, of a file that is open already: it has to be the same file, and its locks and what
/// became of its flushes are common to both.
fn open_beside(options: FileOptions, other: Option<&Shared>) -> Result<Box<dyn Driver>, Error> {
    if !(1..=4096).contains(&options.queue_depth) {
        let text = "the queue depth must be from 1 to 4096";
        let text = format!("file {}: {text}", options.path.display());
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let (workers, mut notice) = workers(&options)?;
    let mut sqthread_poll = options.sqthread_poll && workers.is_none();
    let with_thread = RingKind { sqthread_poll: true, polled: options.hipri };
    if sqthread_poll && let Err(error) = uring::try_out(with_thread) {
        sqthread_poll = false;
        let path = options.path.display();
        notice = Some(format!(
            "file {path}: this kernel lets us have no thread that polls for calls ({error}): we make them; run as root, or leave sqthread_poll out"
        ));
    }
    if options.hipri {
        can_poll(&options, workers.is_some())?;
    }
    let backing = Backing::open(&options, workers.is_some(), other)?;
    if options.hipri {
        notice = try_polling(&options.path, &backing)?.or(notice);
    }
    let at_once = match options.direct || !options.at_once {
        true => None,
        false => probe::at_once(&backing.file),
    };
    let failed_sync = other.map_or(0, |other| other.failed_sync.load(Ordering::Relaxed));
    let shared = Shared {
        file: backing.file,
        direct_block: backing.direct_block,
        discard_by_ioctl: backing.discard_by_ioctl,
        zeroes_are_data: backing.zeroes_are_data,
        at_once,
        workers,
        sqthread_poll,
        hipri: options.hipri,
        queue_depth: options.queue_depth,
        failed_sync: AtomicI32::new(failed_sync),
        lock: backing.lock,
    };
    let limits = backing.limits;
    Ok(Box::new(FileDriver { options, limits, notice, shared: Arc::new(shared) }))
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
        FileEngine::Best => match uring::try_out(RingKind::default()) {
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

/// Refuses to poll where that cannot be, whatever the file is.
fn can_poll(options: &FileOptions, by_threads: bool) -> Result<(), Error> {
    let path = options.path.display();
    if !options.direct {
        let text = "hipri polls the device for what goes past the page cache: open it with direct \
                    I/O (direct), or leave hipri out";
        return Err(Error::new(ErrorKind::Invalid, format!("file {path}: {text}")));
    }
    if by_threads {
        let text = "hipri needs io_uring, and threads make the calls; leave hipri out";
        return Err(Error::new(ErrorKind::NotSupported, format!("file {path}: {text}")));
    }
    Ok(())
}

/// Tries a read that is polled for. What to say where it interrupts all the same.
///
/// # Errors
/// The kernel takes no such read of this file.
fn try_polling(path: &Path, backing: &Backing) -> Result<Option<String>, Error> {
    const MEND: &str = "give its driver queues to poll (load nvme with poll_queues=1, or boot with \
                        nvme.poll_queues=1), or leave hipri out";
    let shown = path.display();
    let block = backing.direct_block.unwrap_or(4096) as usize;
    match uring::try_polling(&backing.file, block) {
        Ok(()) if device::has_poll_queues(&backing.file) == Some(false) => Ok(Some(format!(
            "file {shown}: its device has no queues to poll, and interrupts in spite of hipri; {MEND}"
        ))),
        Ok(()) => Ok(None),
        Err(error) if is_unpolled(&error) => {
            let text = format!("file {shown}: it cannot be polled for what ends (hipri); {MEND}");
            Err(Error::new(ErrorKind::NotSupported, text))
        }
        Err(error) => {
            let text = format!("file {shown}: cannot try a read that is polled for (hipri)");
            Err(Error::from_io(text, error))
        }
    }
}

fn is_unpolled(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}

struct FileDriver {
    options: FileOptions,
    limits: Limits,
    notice: Option<String>,
    shared: Arc<Shared>,
}

/// What all queues on a file share.
struct Shared {
    file: File,
    /// With direct I/O, the block that offsets and lengths are multiples of.
    direct_block: Option<u32>,
    /// A discard is an ioctl, which threads can make; otherwise it is a hole.
    discard_by_ioctl: bool,
    /// What zeroes a range would write data: a block device that cannot.
    zeroes_are_data: bool,
    /// How reads and writes are made without the ring, if they can be.
    at_once: Option<AtOnce>,
    /// Without io_uring: the threads of each queue, and the processors that they may use.
    workers: Option<Threads>,
    /// A thread of the kernel takes the calls off the ring.
    sqthread_poll: bool,
    /// The device is polled for the ends of reads and writes.
    hipri: bool,
    queue_depth: u16,
    /// The errno of the first sync that failed, or 0.
    failed_sync: AtomicI32,
    /// What other processes see of what is done here. It goes last.
    lock: Option<Arc<FileLock>>,
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

    fn check_access(&self, access: Access) -> Result<(), Error> {
        self.shared.lock.as_ref().map_or(Ok(()), |lock| lock.check(access))
    }

    fn set_access(&self, access: Access) {
        if let Some(lock) = &self.shared.lock {
            lock.set(access);
        }
    }

    fn reopen<'a>(
        &'a self,
        opening: &'a Opening<'a>,
    ) -> LocalFuture<'a, Result<Option<Box<dyn Driver>>, Error>> {
        let NodeSettings { read_only, auto_read_only, direct, .. } = *opening.common;
        let options = FileOptions { read_only, auto_read_only, direct, ..self.options.clone() };
        Box::pin(async move { open_beside(options, Some(&self.shared)).map(Some) })
    }

    fn queue<'a>(&'a self, core: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        // Copies to and from the page cache have no use for registered memory.
        let memory = self.shared.direct_block.map(|_| core.arena().region());
        let queue = FileQueue::new(self.shared.clone(), memory)
            .map(|queue| Box::new(queue) as Box<dyn Queue>)
            .map_err(|e| match self.shared.workers {
                None => ring_error(&self.options.path, e),
                Some(_) => {
                    let path = self.options.path.display();
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

    #[test]
    fn a_device_that_cannot_be_polled_is_refused_with_a_way_out() {
        let directory = tempfile::tempdir().expect("a folder");
        let path = directory.path().join("disk");
        let hipri = |direct, engine| FileOptions {
            size: Some(1 << 20),
            direct,
            engine,
            hipri: true,
            ..FileOptions::new(&path)
        };
        let refused = |options| open(options).err().expect("a refusal");
        let error = refused(hipri(false, FileEngine::Uring));
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("direct"), "{error}");
        let error = refused(hipri(true, FileEngine::Workers));
        assert!(error.to_string().contains("io_uring"), "{error}");
        assert!(!path.exists(), "nothing is made for what is refused");
        // What the host's own disk says is its own affair; it says how to mend it.
        let said = match open(hipri(true, FileEngine::Uring)) {
            Err(error) => Some(error.to_string()),
            Ok(driver) => driver.notice().map(str::to_owned),
        };
        if let Some(said) = said {
            assert!(said.contains("poll_queues") || said.contains("direct"), "{said}");
        }
    }
}
