//! Which processors take the interrupts of the disk under a file.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// The processors that take the interrupts of the disk under a file or block device: a core that
/// waits there needs no other to wake it. Empty where that cannot be told.
pub fn processors(file: &Path) -> Vec<usize> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let beside = || folder.unwrap_or(Path::new(".")).metadata().ok();
    let Some(metadata) = file.metadata().ok().or_else(beside) else { return Vec::new() };
    let is_device = metadata.file_type().is_block_device();
    let number = if is_device { metadata.rdev() } else { metadata.dev() };
    let name = format!("dev/block/{}:{}", libc::major(number), libc::minor(number));
    of_device(Path::new("/sys"), Path::new("/proc/irq"), &name)
}

/// The same of a device by its path in sysfs. Its interrupts are those of the first function
/// above it that has any.
fn of_device(sysfs: &Path, irqs: &Path, name: &str) -> Vec<usize> {
    let Ok(device) = sysfs.join(name).canonicalize() else { return Vec::new() };
    let folders = device.ancestors().map(|folder| folder.join("msi_irqs"));
    let Some(entries) = folders.filter_map(|folder| fs::read_dir(folder).ok()).next() else {
        return Vec::new();
    };
    let mut processors: Vec<usize> = entries
        .filter_map(|entry| fs::read_to_string(affinity(irqs, &entry.ok()?)).ok())
        .flat_map(|list| read_list(list.trim()))
        .collect();
    processors.sort_unstable();
    processors.dedup();
    processors
}

fn affinity(irqs: &Path, entry: &fs::DirEntry) -> std::path::PathBuf {
    irqs.join(entry.file_name()).join("effective_affinity_list")
}

/// A list of the kernel's, such as `0-3,6`; what cannot be read is left out.
fn read_list(list: &str) -> Vec<usize> {
    let number = |word: &str| word.parse::<usize>().ok().filter(|&cpu| cpu < 65_536);
    list.split(',')
        .filter_map(|part| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            Some(number(low)?..=number(high)?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partitions_interrupts_are_those_of_the_function_above_it() {
        let root = tempfile::tempdir().expect("a folder");
        let function = root.path().join("devices/0000:00:02.0");
        let disk = function.join("virtio1/block/vda/vda1");
        fs::create_dir_all(&disk).expect("a disk");
        fs::create_dir_all(function.join("msi_irqs")).expect("its interrupts");
        fs::create_dir_all(root.path().join("dev/block")).expect("its number");
        std::os::unix::fs::symlink(&disk, root.path().join("dev/block/254:1")).expect("a link");
        let irqs = root.path().join("irq");
        for (irq, list) in [("35", "1\n"), ("36", "3-4,1\n"), ("37", "junk\n")] {
            fs::write(function.join("msi_irqs").join(irq), "msix\n").expect("an interrupt");
            fs::create_dir_all(irqs.join(irq)).expect("its folder");
            fs::write(irqs.join(irq).join("effective_affinity_list"), list).expect("its list");
        }
        assert_eq!(of_device(root.path(), &irqs, "dev/block/254:1"), [1, 3, 4]);
        assert!(of_device(root.path(), &irqs, "dev/block/9:9").is_empty());
        assert!(processors(Path::new("/no/such/folder/file")).is_empty());
    }
}
