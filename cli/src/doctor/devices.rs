//! What an NVMe device in user space needs: an IOMMU, vfio-pci, and a device that nobody holds.

use oxblock_pci::host::{HostFunction, Root};
use serde_json::{Value, json};

use super::finding::{Finding, Purpose};
use super::memory::has_capability;
/// CAP_SYS_ADMIN of capability.h.
const CAP_SYS_ADMIN: u32 = 21;

/// The IOMMU and its groups.
pub fn iommu(root: &Root) -> Finding {
    let mut finding = Finding::new(
        "IOMMU",
        "iommu",
        "it lets a device reach the engine's memory and nothing else; without it a wrong address \
         overwrites the kernel",
    );
    let mut groups = root.names("sys/kernel/iommu_groups");
    // VFIO makes up a group where there is no IOMMU and unsafe use was allowed.
    groups.retain(|group| {
        let name = root.text(&format!("sys/kernel/iommu_groups/{group}/name"));
        name.as_deref() != Some("vfio-noiommu")
    });
    let units = root.names("sys/class/iommu");
    let command_line = root.text("proc/cmdline").unwrap_or_default();
    let words: Vec<&str> =
        command_line.split_whitespace().filter(|word| word.contains("iommu")).collect();
    finding.found(format!("{} groups, {} units", groups.len(), units.len()));
    if !words.is_empty() {
        finding.found(format!("kernel command line: {}", words.join(" ")));
    }
    finding.details = json!({ "groups": groups.len(), "units": units, "command_line": words });
    if groups.is_empty() {
        finding.lacks("no group: the kernel drives no IOMMU", &[Purpose::Nvme]);
        let info = root.text("proc/cpuinfo").unwrap_or_default();
        if info.contains("GenuineIntel") && !words.contains(&"intel_iommu=on") {
            finding.mend_command_line("intel_iommu=on iommu=pt");
        }
        finding.mend(
            "# turn it on in the firmware (VT-d, AMD-Vi, SMMU); in a virtual machine, ask \
             the host for a virtual IOMMU",
        );
    }
    finding
}

/// The driver that hands devices to user space.
pub fn vfio(root: &Root) -> Finding {
    let mut finding = Finding::new(
        "vfio-pci",
        "vfio-pci",
        "the kernel's driver that hands a PCI function to a process, behind the IOMMU",
    );
    let loaded = root.exists("sys/bus/pci/drivers/vfio-pci");
    let container = root.exists("dev/vfio/vfio");
    let accessible = root.is_accessible("dev/vfio/vfio");
    let mut groups = root.names("dev/vfio");
    groups.retain(|name| {
        let number = name.strip_prefix("noiommu-").unwrap_or(name);
        number.bytes().all(|b| b.is_ascii_digit())
    });
    let closed: Vec<&String> =
        groups.iter().filter(|name| !root.is_accessible(&format!("dev/vfio/{name}"))).collect();
    finding.details = json!({
        "loaded": loaded, "dev_vfio": container, "accessible": accessible, "groups": groups,
    });
    finding.found(if loaded { "the driver is there" } else { "the driver is not loaded" });
    if container {
        finding.found(format!("/dev/vfio/vfio is there; groups handed over: {}", groups.len()));
    } else {
        finding.found("/dev/vfio/vfio is not there");
    }
    if let Some(limit) = root.number("sys/module/vfio_iommu_type1/parameters/dma_entry_limit") {
        finding.found(format!("an engine may have {limit} pieces of memory mapped for devices"));
    }
    let iommufd = root.exists("dev/iommu");
    if iommufd {
        finding.found("/dev/iommu is there: used for devices whose groups cannot be opened");
    }
    let by_node = iommufd && root.exists("dev/vfio/devices");
    if loaded && container && !by_node && !root.exists("sys/module/vfio_iommu_type1") {
        finding.lacks("the module vfio_iommu_type1", &[Purpose::Nvme]);
        finding.mend("sudo modprobe vfio_iommu_type1");
    }
    if !loaded || !container {
        finding.lacks("the module vfio-pci", &[Purpose::Nvme]);
        finding.mend("sudo modprobe vfio-pci");
    } else if !accessible {
        finding.lacks("this user may not open /dev/vfio/vfio", &[Purpose::Nvme]);
        finding.mend("sudo chmod 0666 /dev/vfio/vfio");
    }
    for group in closed {
        finding.lacks(format!("this user may not open /dev/vfio/{group}"), &[Purpose::Nvme]);
        finding.mend(format!("sudo chown \"$USER\" /dev/vfio/{group}"));
    }
    finding
}

/// NVMe devices, and who holds them.
pub fn nvme(root: &Root) -> Finding {
    let mut finding = Finding::new(
        "NVMe devices",
        "nvme-devices",
        "a device is driven by the kernel or from user space, never by both: one that holds a \
         mounted file system must stay with the kernel",
    );
    let mut devices = HostFunction::all(root);
    devices.retain(HostFunction::is_nvme);
    for device in &devices {
        finding.found(words(device));
    }
    finding.details = devices.iter().map(details).collect();
    let bound: Vec<&HostFunction> = devices.iter().filter(|device| device.is_bound()).collect();
    if devices.is_empty() {
        finding.found("no PCI function of class 010802h");
        finding.lacks("there is no NVMe device", &[Purpose::Nvme]);
        finding.mend("# everything runs on the software controller: oxblock bench --target=soft");
    } else if bound.is_empty() {
        finding.lacks("no device is bound to vfio-pci", &[Purpose::Nvme]);
        match devices.iter().find(|device| device.held_by.is_empty()) {
            Some(device) => hand_over(device, &mut finding),
            None => finding.mend(
                "# each is in use: unmount what lies on it, or add another; never hand over a disk \
                 that the system runs on",
            ),
        }
    }
    for device in bound {
        look_at_group(device, &mut finding);
    }
    if !devices.is_empty() && !has_capability(root, CAP_SYS_ADMIN) {
        finding.found("not root: what others have open, or mounted elsewhere, is not seen");
    }
    finding
}

/// A group of which the kernel drives a part cannot be opened.
fn look_at_group(device: &HostFunction, finding: &mut Finding) {
    let with_kernel = device.companions.iter().filter(|other| {
        let driver = other.driver.as_deref();
        driver.is_some_and(|driver| !driver.contains("vfio") && driver != "pci-stub")
    });
    for other in with_kernel {
        let what = format!(
            "the group of {} is not viable: the kernel drives {} of it",
            device.address, other.address
        );
        finding.lacks(what, &[Purpose::Nvme]);
        finding.mend(format!("sudo oxblock pci bind --force {}", other.address));
    }
    if device.no_iommu {
        finding.found(format!(
            "{} is bound without an IOMMU: what it does wrong, it does to any memory",
            device.address
        ));
    }
}

/// A device for people.
fn words(device: &HostFunction) -> String {
    let mut words = format!("{}: ", device.address);
    match device.driver.as_deref() {
        Some(driver) => words.push_str(&format!("driver {driver}")),
        None => words.push_str("no driver"),
    }
    if let Some(group) = &device.group {
        words.push_str(&format!(", group {group}"));
    }
    if let Some(node) = device.numa_node {
        words.push_str(&format!(", node {node}"));
    }
    for name in &device.namespaces {
        words.push_str(&format!(", {name}"));
    }
    match (device.held_by.is_empty(), device.namespaces.is_empty()) {
        (false, _) => words.push_str(&format!("; IN USE: {}", device.held_by.join(", "))),
        (true, false) => words.push_str("; not in use"),
        (true, true) => {}
    }
    words
}

/// A device for scripts.
pub fn details(device: &HostFunction) -> Value {
    let companions = device.companions.iter().map(|other| other.address.to_string());
    json!({
        "address": device.address.to_string(),
        "driver": device.driver,
        "iommu_group": device.group,
        "group_companions": companions.collect::<Vec<_>>(),
        "numa_node": device.numa_node,
        "namespaces": device.namespaces,
        "held_by": device.held_by,
        "ready": device.is_bound(),
    })
}

/// Adds the commands that give the device to vfio-pci.
fn hand_over(device: &HostFunction, finding: &mut Finding) {
    finding.mend(format!("sudo oxblock pci bind {} --owner \"$USER\"", device.address));
    if !device.companions.is_empty() {
        let others: Vec<String> =
            device.companions.iter().map(|other| other.address.to_string()).collect();
        finding.mend(format!("# and so for the others of its IOMMU group: {}", others.join(", ")));
    }
}
