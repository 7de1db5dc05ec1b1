//! The classic traps of VFIO, each in words: what it is, and what to do.

use std::io;

use oxblock_mem::MemError;

use crate::host::Root;
use crate::{Address, PciError, PciErrorKind};

/// The container's file could not be opened.
pub(super) fn open_container(path: &str, error: io::Error) -> PciError {
    let advice = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "the kernel's VFIO driver is not loaded; run: sudo modprobe vfio-pci"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "this user may not open it, which by itself gives no device away; run: sudo chmod \
             0666 /dev/vfio/vfio"
        }
        _ => "it cannot be opened",
    };
    PciError::io(format!("{path}: {advice}"), error)
}

/// The iommufd could not be opened.
pub(super) fn open_iommufd(path: &str, error: io::Error) -> PciError {
    let advice = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "the kernel has no iommufd; run: sudo modprobe iommufd"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "this user may not open it, which by itself gives no device away; run: sudo chmod \
             0666 /dev/iommu"
        }
        _ => "it cannot be opened",
    };
    PciError::io(format!("{path}: {advice}"), error)
}

/// A device did not go to an iommufd. The kernel says of one that is open that it is invalid.
pub(super) fn bind_iommufd(path: &str, address: Address, error: io::Error) -> PciError {
    if error.raw_os_error() == Some(libc::EINVAL) {
        let text = format!(
            "{path}: another process has {address} open; end that first: sudo fuser -v {path}"
        );
        return PciError::new(PciErrorKind::Busy, text);
    }
    PciError::io(format!("{path}: {address} did not go to the iommufd"), error)
}

/// A group's file could not be opened.
pub(super) fn open_group(path: &str, error: io::Error) -> PciError {
    let advice = match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "the group was not handed over; give its function to vfio-pci: sudo oxblock pci bind \
             ADDRESS"
        }
        Some(libc::EACCES) => {
            "this user may not open the group; hand it to them: sudo oxblock pci bind ADDRESS \
             --owner USER"
        }
        Some(libc::EPERM) => {
            "the kernel refuses: without an IOMMU it asks for CAP_SYS_RAWIO; run as root"
        }
        Some(libc::EBUSY) => {
            "another process has the group open (a group has one user at a time); end that \
             first: sudo fuser -v /dev/vfio/*"
        }
        _ => "it cannot be opened",
    };
    PciError::io(format!("{path}: {advice}"), error)
}

/// A group did not go into a new container.
pub(super) fn adopt(path: &str, error: io::Error) -> PciError {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "the IOMMU does not isolate interrupts (no interrupt remapping): turn it on in the \
             firmware (x2APIC, VT-d), or take the risk that a device forges interrupts: \
             /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
        }
        Some(libc::EINVAL) => {
            "the kernel cannot give the group an address space of its own; dmesg says why"
        }
        Some(libc::ENODEV) => "no IOMMU driver takes it; run: sudo modprobe vfio_iommu_type1",
        _ => "the group did not go into a container",
    };
    PciError::io(format!("{path}: {advice}"), error)
}

/// Others of the group are still with the kernel.
pub(super) fn not_viable(root: &Root, number: &str) -> PciError {
    let folder = format!("sys/kernel/iommu_groups/{number}/devices");
    let with_kernel: Vec<String> = root
        .names(&folder)
        .into_iter()
        .filter_map(|name| {
            let driver = root.link_name(&format!("sys/bus/pci/devices/{name}/driver"))?;
            let fits = driver.contains("vfio") || driver == "pci-stub" || driver == "pcieport";
            (!fits).then(|| format!("{name} (driver {driver})"))
        })
        .collect();
    let text = format!(
        "/dev/vfio/{number}: the group is not viable: the kernel drives others of it: {}. The \
         IOMMU cannot tell them apart, so all go together: sudo oxblock pci bind each of them, \
         or move the card to another slot",
        with_kernel.join(", ")
    );
    PciError::new(PciErrorKind::Busy, text)
}

/// A function of an open group could not be opened.
pub(super) fn open_device(address: Address, number: &str, error: io::Error) -> PciError {
    let advice = match error.raw_os_error() {
        Some(libc::ENODEV) => "it is not bound to vfio-pci; run: sudo oxblock pci bind ADDRESS",
        Some(libc::EBUSY) => "another process has it open; end that first",
        Some(libc::EACCES) => {
            "the kernel asks for a token: it is a virtual function of a device in user space"
        }
        Some(libc::EINVAL | libc::EIO) => "it could not be enabled; dmesg says why",
        _ => "it cannot be opened",
    };
    PciError::io(format!("{address} of IOMMU group {number}: {advice}"), error)
}

/// A function that is not there, or not in a state to be opened, by what sysfs says of it.
pub(super) fn not_ready(root: &Root, address: Address) -> Option<PciError> {
    let folder = format!("sys/bus/pci/devices/{address}");
    let error = |kind, text| Some(PciError::new(kind, text));
    if !root.exists(&folder) {
        let text = format!("there is no PCI function {address}; see: oxblock pci list");
        return error(PciErrorKind::NotFound, text);
    }
    let driver = root.link_name(&format!("{folder}/driver"));
    if driver.as_deref().is_some_and(|driver| driver.contains("vfio")) {
        return None;
    }
    let has = match driver {
        Some(driver) => format!("the kernel's driver `{driver}` has it"),
        None => "no driver has it".to_owned(),
    };
    let text = format!("{address}: {has}; give it to vfio-pci: sudo oxblock pci bind {address}");
    error(PciErrorKind::Busy, text)
}

/// A function without an IOMMU group.
pub(super) fn no_group(address: Address) -> PciError {
    let text = format!(
        "{address} is in no IOMMU group: the kernel drives no IOMMU. Turn it on in the firmware \
         (VT-d, AMD-Vi) and on the kernel's command line (intel_iommu=on); oxblock doctor \
         --for=nvme looks at it"
    );
    PciError::new(PciErrorKind::NotSupported, text)
}

/// A function that nothing keeps from any memory, and nobody asked for that.
pub(super) fn no_iommu(address: Address) -> PciError {
    let text = format!(
        "{address} is bound without an IOMMU: it reaches all memory, and a mistake overwrites the \
         kernel. If that is what you want, say so: noiommu:{address}"
    );
    PciError::new(PciErrorKind::NotSupported, text)
}

/// Memory could not be mapped for devices.
pub(super) fn map_dma(
    error: &io::Error,
    len: usize,
    iova: u64,
    mapped: usize,
    left: Option<u32>,
) -> MemError {
    let advice = match error.raw_os_error() {
        Some(libc::ENOMEM) => format!(
            "the limit of locked memory (RLIMIT_MEMLOCK, {}) is too low: the kernel counts all \
             memory that devices reach, hugepages too; raise it by {} KiB: ulimit -l, or a \
             memlock line in /etc/security/limits.conf",
            memlock_limit(),
            (len >> 10).max(1)
        ),
        Some(libc::ENOSPC) => format!(
            "the kernel's limit of mappings is reached ({mapped} are in use, {} left): register \
             fewer, larger ranges, or raise \
             /sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
            left.map_or("unknown".to_owned(), |left| left.to_string())
        ),
        Some(libc::EINVAL) => {
            "the address is outside what the IOMMU can map, or no multiple of its pages".to_owned()
        }
        Some(libc::EEXIST) => "the address is taken".to_owned(),
        Some(libc::EFAULT) => {
            "the memory is not there, read-only, or of a kind that cannot be pinned".to_owned()
        }
        _ => "the kernel refuses".to_owned(),
    };
    MemError::os(error, format_args!("map {len:#x} bytes at IOVA {iova:#x}: {advice}"))
}

/// RLIMIT_MEMLOCK for people.
fn memlock_limit() -> String {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    match (rc, limit.rlim_cur) {
        (0, libc::RLIM_INFINITY) => "unlimited; memory itself is short".to_owned(),
        (0, bytes) => format!("{} KiB", bytes >> 10),
        _ => "unknown".to_owned(),
    }
}
