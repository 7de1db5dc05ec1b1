//! What the host says of a block device.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
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
        let queue = Queue::of_number(file.metadata().map_err(fail)?.rdev());
        queue.refuse_zones(path)?;
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

/// Whether a block device, or the one under a regular file, has queues to be polled. `None` where
/// nobody says: a file system over several devices, or over none.
pub(super) fn has_poll_queues(file: &File) -> Option<bool> {
    let metadata = file.metadata().ok()?;
    let is_device = metadata.file_type().is_block_device();
    let number = if is_device { metadata.rdev() } else { metadata.dev() };
    Queue::of_number(number).word("io_poll").map(|word| word != "0")
}

/// The folder in which sysfs describes a device's queue.
struct Queue(PathBuf);

impl Queue {
    /// That of the device of this number.
    fn of_number(number: u64) -> Queue {
        let number = format!("{}:{}", libc::major(number), libc::minor(number));
        Queue::of(&Path::new("/sys/dev/block").join(number))
    }

    /// That of the device of this folder; a partition's is its disk's.
    fn of(device: &Path) -> Queue {
        let is_partition = device.join("partition").exists();
        Queue(if is_partition { device.join("../queue") } else { device.join("queue") })
    }

    fn refuse_zones(&self, path: &Path) -> Result<(), Error> {
        let Some(zoned) = self.word("zoned").filter(|zoned| zoned != "none") else {
            return Ok(());
        };
        let text = format!(
            "file {}: it is a zoned device ({zoned}), which takes writes in order only; use a \
             conventional device, or a file on a file system for zones",
            path.display()
        );
        Err(Error::new(ErrorKind::NotSupported, text))
    }

    fn word(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.0.join(name)).ok()?;
        Some(text.trim().to_owned())
    }

    fn number(&self, name: &str) -> u64 {
        self.word(name).and_then(|word| word.parse().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk and its first partition, as sysfs shows them.
    fn disk(zoned: &str) -> tempfile::TempDir {
        let disk = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(disk.path().join("queue")).expect("its queue");
        fs::create_dir_all(disk.path().join("disk1")).expect("its partition");
        fs::write(disk.path().join("disk1/partition"), "1\n").expect("its number");
        fs::write(disk.path().join("queue/zoned"), format!("{zoned}\n")).expect("its zones");
        fs::write(disk.path().join("queue/discard_max_bytes"), "4096\n").expect("its discards");
        disk
    }

    #[test]
    fn zoned_disks_and_their_partitions_are_refused_and_others_are_not() {
        for (zoned, refused) in [("none", false), ("host-managed", true), ("host-aware", true)] {
            let disk = disk(zoned);
            for device in [disk.path().to_owned(), disk.path().join("disk1")] {
                let result = Queue::of(&device).refuse_zones(Path::new("/dev/disk"));
                assert_eq!(result.is_err(), refused, "{zoned}");
                if let Err(error) = result {
                    assert_eq!(error.kind(), ErrorKind::NotSupported);
                    let text = error.to_string();
                    assert!(text.contains("/dev/disk") && text.contains(zoned), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_partition_has_the_limits_of_its_disk_and_what_is_not_told_is_nothing() {
        let disk = disk("none");
        for device in [disk.path().to_owned(), disk.path().join("disk1")] {
            let queue = Queue::of(&device);
            assert_eq!(
                (queue.number("discard_max_bytes"), queue.number("no_such_file")),
                (4096, 0)
            );
        }
    }
}
