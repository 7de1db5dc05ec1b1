//! What the host says of a block device.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oxblock_engine::{Error, ErrorKind};

use super::probe;

/// A block device, as the kernel and its sysfs describe it. Lengths in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) length: u64,
    pub(super) logical_block: u32,
    pub(super) physical_block: u32,
    pub(super) read_only: bool,
    /// What the device does best in one request; 0 if it does not say.
    pub(super) optimal: u32,
    /// The longest discard; 0 for a device without.
    pub(super) discard_max: u64,
    pub(super) discard_granularity: u32,
    /// The longest range of zeroes that the device writes itself; 0 for one that cannot.
    pub(super) zeroes_max: u64,
    /// The device keeps writes in a volatile cache, or does not say.
    pub(super) write_back: bool,
}

impl Device {
    /// Looks at an open block device.
    ///
    /// # Errors
    /// What the kernel says; `NotSupported` for a zoned device.
    pub(super) fn look_at(path: &Path, file: &File) -> Result<Device, Error> {
        let fail = |e| {
            let text = format!("file {}: cannot ask the device for its size", path.display());
            Error::from_io(text, e)
        };
        let told = probe::device_size(file).map_err(fail)?;
        let queue = queue_folder(file.metadata().map_err(fail)?.rdev());
        let queue = Queue(queue);
        if let Some(zoned) = queue.word("zoned").filter(|zoned| zoned != "none") {
            let text = format!(
                "file {}: it is a zoned device ({zoned}), which takes writes in order only; use a \
                 conventional device, or a file on a file system for zones",
                path.display()
            );
            return Err(Error::new(ErrorKind::NotSupported, text));
        }
        Ok(Device {
            discard_max: queue.number("discard_max_bytes"),
            discard_granularity: queue.number("discard_granularity").try_into().unwrap_or(0),
            zeroes_max: queue.number("write_zeroes_max_bytes"),
            optimal: queue.number("optimal_io_size").try_into().unwrap_or(0),
            write_back: queue.word("write_cache").is_none_or(|cache| cache != "write through"),
            ..told
        })
    }
}

/// Where sysfs describes the queue of a device; that of a partition is its disk's.
fn queue_folder(rdev: u64) -> PathBuf {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    if device.join("partition").exists() { device.join("../queue") } else { device.join("queue") }
}

struct Queue(PathBuf);

impl Queue {
    fn word(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.0.join(name)).ok()?;
        Some(text.trim().to_owned())
    }

    fn number(&self, name: &str) -> u64 {
        self.word(name).and_then(|word| word.parse().ok()).unwrap_or(0)
    }
}
