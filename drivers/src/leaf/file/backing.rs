//! What stands under a file node: a regular file or a block device, opened and looked at.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oxblock_engine::graph::{Access, Permissions};
use oxblock_engine::{Error, ErrorKind, Limits, MemoryRule};

use super::device::Device;
use super::lock::{self, FileLock};
use super::probe::{self, DirectAlignment};
use super::syscall::SEGMENTS_MAX;
use super::{FileOptions, Shared};

/// The longest request that goes to the kernel in one call.
const TRANSFER_MAX: u32 = 4 << 20;

/// The longest range that one call zeroes or discards.
const ALLOCATE_MAX: u64 = 1 << 30;

/// A file that is open, and what it takes.
pub(super) struct Backing {
    pub(super) file: File,
    pub(super) limits: Limits,
    /// With direct I/O, the block that offsets and lengths are multiples of.
    pub(super) direct_block: Option<u32>,
    /// A discard is an ioctl, not a hole.
    pub(super) discard_by_ioctl: bool,
    /// The kernel would write zeroes as data.
    pub(super) zeroes_are_data: bool,
    pub(super) lock: Option<Arc<FileLock>>,
}

impl Backing {
    /// Opens the file. `by_threads` says who makes the calls.
    ///
    /// # Errors
    /// As those of [`open`](super::open).
    pub(super) fn open(
        options: &FileOptions,
        by_threads: bool,
        other: Option<&Shared>,
    ) -> Result<Backing, Error> {
        if options.auto_read_only && !options.read_only {
            let takes_writes = FileOptions { auto_read_only: false, ..options.clone() };
            return match Backing::open(&takes_writes, by_threads, other) {
                Err(error) if takes_no_writes(error.kind()) => {
                    let reads = FileOptions { read_only: true, ..takes_writes };
                    Backing::open(&reads, by_threads, other)
                }
                opened => opened,
            };
        }
        let path = options.path.display();
        let fail = |what: &str, e| fail(options, what, e);
        let exclusive = !options.read_only && is_device(&options.path);
        let name = openable(options, other);
        let file =
            open_file(options, &name, exclusive).map_err(|e| fail(open_hint(options, &e), e))?;
        let kind = file.metadata().map_err(|e| fail("look at it", e))?.file_type();
        let device = match kind {
            kind if kind.is_file() => None,
            kind if kind.is_block_device() => Some(Device::look_at(&options.path, &file)?),
            _ => {
                let what = "it is neither a regular file nor a block device; give the name of one";
                return Err(Error::new(ErrorKind::Invalid, format!("file {path}: {what}")));
            }
        };
        probe::end_nonblocking(&file).map_err(|e| fail("set it to blocking", e))?;
        let lock = match other {
            None => FileLock::new(options, &file)?.map(Arc::new),
            Some(other) => {
                let is_same = lock::check_is_same(&file, &other.file);
                is_same.map_err(|e| fail("reopen it", e))?;
                other.lock.clone()
            }
        };
        let length = match &device {
            Some(device) => device_length(options, device)?,
            None => file_length(options, &file, lock.as_deref())?,
        };
        let direct = match options.direct {
            true => Some(direct_alignment(&options.path, &file, device.as_ref())?),
            false => None,
        };
        let block_size = block_size(options, device.as_ref(), direct)?;
        let limits = limits(length, block_size, direct);
        let discard_by_ioctl = by_threads && device.is_some();
        let (limits, zeroes_are_data) = match device {
            Some(device) => {
                let can_discard = discard_by_ioctl || device.zeroes_max > 0;
                (device_limits(limits, &device, options, can_discard), device.zeroes_max == 0)
            }
            None => {
                let can_punch = !options.read_only && probe::can_punch(&file, length);
                let max_discard = if can_punch { limits.max_write_zeroes } else { 0 };
                (Limits { max_discard, read_only: options.read_only, ..limits }, false)
            }
        };
        let direct_block = direct.map(|d| d.offset);
        Ok(Backing { file, limits, direct_block, discard_by_ioctl, zeroes_are_data, lock })
    }
}

fn takes_no_writes(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Denied | ErrorKind::ReadOnly)
}

fn is_device(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// What the file is opened by. The name of a descriptor is good only while that is open: a file
/// that was first opened so is opened again by the descriptor that there is of it.
fn openable<'a>(options: &'a FileOptions, other: Option<&Shared>) -> Cow<'a, Path> {
    match other {
        Some(other) if options.path.starts_with("/proc/self/fd") => {
            PathBuf::from(format!("/proc/self/fd/{}", other.file.as_raw_fd())).into()
        }
        _ => Cow::Borrowed(&options.path),
    }
}

/// O_NONBLOCK, so that a pipe of that name does not keep us waiting; O_EXCL, so that nobody
/// writes to a device that is mounted.
fn open_file(options: &FileOptions, path: &Path, exclusive: bool) -> io::Result<File> {
    let direct = if options.direct { libc::O_DIRECT } else { 0 };
    let exclusive_flag = if exclusive { libc::O_EXCL } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .create(options.size.is_some() && !options.read_only && !exclusive)
        .custom_flags(direct | exclusive_flag | libc::O_NONBLOCK)
        .mode(0o644)
        .open(path)
}

fn open_hint(options: &FileOptions, error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EINVAL) if options.direct => {
            "open it for direct I/O, which its file system may lack (open it without `direct`)"
        }
        Some(libc::ENOENT) if options.size.is_none() => "open it (give a size to have it made)",
        Some(libc::EROFS | libc::EACCES | libc::EPERM) if !options.read_only => {
            "open it for writing (open it read-only, or change its permissions)"
        }
        Some(libc::EBUSY) => {
            "open it for writing while it is mounted or another program holds it (unmount it, or \
             open it read-only)"
        }
        _ => "open it",
    }
}

fn file_length(options: &FileOptions, file: &File, lock: Option<&FileLock>) -> Result<u64, Error> {
    let length = file.metadata().map_err(|e| fail(options, "look at it", e))?.len();
    match options.size {
        Some(size) if size > length && !options.read_only => {
            let Some(lock) = lock else { return extend(options, file, size) };
            let asked = Permissions::WRITE | Permissions::RESIZE;
            let access = Access { asked, shared: Permissions::RESIZE.complement() };
            let extended = lock.check(access).and_then(|()| extend(options, file, size));
            lock.set(Access::NONE);
            extended
        }
        _ => Ok(length),
    }
}

fn extend(options: &FileOptions, file: &File, size: u64) -> Result<u64, Error> {
    if options.preallocate {
        probe::preallocate(file, size).map_err(|e| fail(options, "allocate its space", e))?;
    }
    // Also where the file system allocates nothing ahead.
    file.set_len(size).map_err(|e| fail(options, "extend it", e))?;
    Ok(size)
}

fn fail(options: &FileOptions, what: &str, error: io::Error) -> Error {
    Error::from_io(format!("file {}: cannot {what}", options.path.display()), error)
}

fn device_length(options: &FileOptions, device: &Device) -> Result<u64, Error> {
    match options.size {
        Some(size) if size > device.length && !options.read_only => {
            let text = format!(
                "file {}: a device of {} bytes cannot be extended to {size}; give a smaller size, \
                 or none",
                options.path.display(),
                device.length
            );
            Err(Error::new(ErrorKind::NoSpace, text))
        }
        _ => Ok(device.length),
    }
}

/// What the file asks of direct I/O; where the kernel does not tell, a device's block or a page.
fn direct_alignment(
    path: &Path,
    file: &File,
    device: Option<&Device>,
) -> Result<DirectAlignment, Error> {
    let path = path.display();
    let told = probe::direct_alignment(file)
        .map_err(|e| Error::from_io(format!("file {path}: cannot ask for its alignment"), e))?;
    let page = device.map_or(4096, |device| device.logical_block);
    match told.unwrap_or(DirectAlignment { memory: page, offset: page }) {
        DirectAlignment { offset: 0, .. } => {
            let text = format!("file {path}: it cannot do direct I/O; open it without `direct`");
            Err(Error::new(ErrorKind::NotSupported, text))
        }
        alignment => Ok(alignment),
    }
}

fn block_size(
    options: &FileOptions,
    device: Option<&Device>,
    direct: Option<DirectAlignment>,
) -> Result<u32, Error> {
    let finest = device.map_or(1, |d| d.logical_block).max(direct.map_or(1, |d| d.offset));
    let block_size = if options.block_size == 0 { finest } else { options.block_size };
    if block_size.is_multiple_of(finest) {
        return Ok(block_size);
    }
    let what = if device.is_some() { "the device" } else { "direct I/O" };
    let path = options.path.display();
    let text =
        format!("file {path}: {what} takes multiples of {finest} bytes, not of {block_size}");
    Err(Error::new(ErrorKind::Invalid, text))
}

fn limits(length: u64, block_size: u32, direct: Option<DirectAlignment>) -> Limits {
    let transfer_max = TRANSFER_MAX - TRANSFER_MAX % block_size;
    let allocate_max = ALLOCATE_MAX - ALLOCATE_MAX % u64::from(block_size);
    Limits {
        max_transfer: transfer_max.max(block_size),
        max_segments: SEGMENTS_MAX as u32,
        memory: direct.map_or(MemoryRule::Any, |d| MemoryRule::Aligned(d.memory.max(d.offset))),
        max_write_zeroes: allocate_max,
        volatile_cache: true,
        fua: true,
        ..Limits::new(length.next_multiple_of(u64::from(block_size)), block_size)
    }
}

/// A device's length is no multiple of a block size larger than its own: the rest is left out.
fn device_limits(
    limits: Limits,
    device: &Device,
    options: &FileOptions,
    can_discard: bool,
) -> Limits {
    let block = u64::from(limits.block_size);
    let discard_max = device.discard_max.min(limits.max_write_zeroes);
    let max_discard = if can_discard { discard_max - discard_max % block } else { 0 };
    let read_only = options.read_only || device.read_only;
    Limits {
        length: device.length - device.length % block,
        max_discard: if read_only { 0 } else { max_discard },
        discard_alignment: device.discard_granularity,
        write_zeroes_alignment: device.physical_block,
        optimal_transfer: device.optimal,
        // The page cache is volatile in any case.
        volatile_cache: !options.direct || device.write_back,
        read_only,
        ..limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn space_is_allocated_ahead_only_where_asked() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        for preallocate in [false, true] {
            let path = directory.path().join(format!("disk.{preallocate}"));
            let options =
                FileOptions { size: Some(1 << 20), preallocate, ..FileOptions::new(&path) };
            let backing = Backing::open(&options, false, None).unwrap();
            assert_eq!(backing.limits.length, 1 << 20);
            let blocks = path.metadata().unwrap().blocks();
            assert_eq!(blocks >= 2048, preallocate, "{blocks} blocks of 512 bytes");
        }
    }

    /// Not even root may write to it.
    #[test]
    fn what_takes_no_writes_is_opened_for_reading_where_that_is_asked_for() {
        let options = FileOptions::new("/proc/sys/kernel/ostype");
        let error = Backing::open(&options, false, None).err().expect("a refusal");
        assert!(takes_no_writes(error.kind()), "{error}");
        let auto = FileOptions { auto_read_only: true, ..options };
        assert!(Backing::open(&auto, false, None).expect("for reading").limits.read_only);
        let writable = tempfile::NamedTempFile::new().expect("a file");
        let auto = FileOptions { path: writable.path().into(), ..auto };
        assert!(!Backing::open(&auto, false, None).expect("for writing").limits.read_only);
    }

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
        let file = open_file(&FileOptions::new(&path), &path, false).unwrap();
        assert_ne!(flags(&file) & libc::O_NONBLOCK, 0);
        probe::end_nonblocking(&file).unwrap();
        assert_eq!(flags(&file) & libc::O_NONBLOCK, 0);
    }
}
