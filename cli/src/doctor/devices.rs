//! What an NVMe device in user space needs: an IOMMU, vfio-pci, and a device that nobody holds.

use serde_json::{Value, json};

use super::finding::{Finding, Purpose};
use super::memory::has_capability;
use oxblock_pci::host::Holders;
use oxblock_pci::host::Root;

/// Base class, sub-class and programming interface of an NVM Express I/O controller.
const NVME_CLASS: &str = "0x010802";
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
    let groups = root.names("sys/kernel/iommu_groups");
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
    groups.retain(|name| name.bytes().all(|b| b.is_ascii_digit()));
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
    let mut holders = Holders::new(root);
    let names = root.names("sys/bus/pci/devices");
    let devices: Vec<Device> = names
        .into_iter()
        .filter(|address| is_address(address))
        .filter(|address| has_nvme_class(root, address))
        .map(|address| Device::look(root, &mut holders, address))
        .collect();
    for device in &devices {
        finding.found(device.words());
    }
    finding.details = devices.iter().map(Device::json).collect();
    if devices.is_empty() {
        finding.found("no PCI function of class 010802h");
        finding.lacks("there is no NVMe device", &[Purpose::Nvme]);
        finding.mend("# everything runs on the software controller: oxblock bench --target=soft");
    } else if !devices.iter().any(Device::is_ready) {
        finding.lacks("no device is bound to vfio-pci", &[Purpose::Nvme]);
        match devices.iter().find(|device| device.is_free()) {
            Some(device) => device.hand_over(&mut finding),
            None => finding.mend(
                "# each is in use: unmount what lies on it, or add another; never hand over a disk \
                 that the system runs on",
            ),
        }
    }
    if !devices.is_empty() && !has_capability(root, CAP_SYS_ADMIN) {
        finding.found("not root: what other mount namespaces hold is not seen");
    }
    finding
}

/// One NVMe controller.
struct Device {
    address: String,
    driver: Option<String>,
    group: Option<String>,
    /// Other functions of its IOMMU group that have a driver: they are handed over together.
    companions: Vec<String>,
    node: Option<String>,
    namespaces: Vec<String>,
    held_by: Vec<String>,
}

impl Device {
    fn look(root: &Root, holders: &mut Holders<'_>, address: String) -> Device {
        let folder = format!("sys/bus/pci/devices/{address}");
        let group = root.link_name(&format!("{folder}/iommu_group"));
        let namespaces = namespaces(root, &folder);
        let held_by = namespaces.iter().flat_map(|name| holders.of(name)).collect();
        let companions = match &group {
            None => Vec::new(),
            Some(group) => companions(root, group, &address),
        };
        Device {
            driver: root.link_name(&format!("{folder}/driver")),
            node: root.text(&format!("{folder}/numa_node")).filter(|node| node != "-1"),
            address,
            group,
            companions,
            namespaces,
            held_by,
        }
    }

    fn is_ready(&self) -> bool {
        self.driver.as_deref() == Some("vfio-pci")
    }

    fn is_free(&self) -> bool {
        self.held_by.is_empty()
    }

    fn words(&self) -> String {
        let mut words = format!("{}: ", self.address);
        match self.driver.as_deref() {
            Some(driver) => words.push_str(&format!("driver {driver}")),
            None => words.push_str("no driver"),
        }
        if let Some(group) = &self.group {
            words.push_str(&format!(", group {group}"));
        }
        if let Some(node) = &self.node {
            words.push_str(&format!(", node {node}"));
        }
        for name in &self.namespaces {
            words.push_str(&format!(", {name}"));
        }
        match (self.held_by.is_empty(), self.namespaces.is_empty()) {
            (false, _) => words.push_str(&format!("; IN USE: {}", self.held_by.join(", "))),
            (true, false) => words.push_str("; not in use"),
            (true, true) => {}
        }
        words
    }

    fn json(&self) -> Value {
        json!({
            "address": self.address,
            "driver": self.driver,
            "iommu_group": self.group,
            "group_companions": self.companions,
            "numa_node": self.node.as_deref().and_then(|node| node.parse::<u32>().ok()),
            "namespaces": self.namespaces,
            "held_by": self.held_by,
            "ready": self.is_ready(),
        })
    }

    /// Adds the commands that give the device to vfio-pci.
    fn hand_over(&self, finding: &mut Finding) {
        let address = &self.address;
        finding.mend("sudo modprobe vfio-pci");
        finding.mend(format!(
            "echo vfio-pci | sudo tee /sys/bus/pci/devices/{address}/driver_override"
        ));
        if self.driver.is_some() {
            finding.mend(format!(
                "echo {address} | sudo tee /sys/bus/pci/devices/{address}/driver/unbind"
            ));
        }
        finding.mend(format!("echo {address} | sudo tee /sys/bus/pci/drivers_probe"));
        if !self.companions.is_empty() {
            finding.mend(format!(
                "# and so for the others of its IOMMU group: {}",
                self.companions.join(", ")
            ));
        }
    }
}

/// Block devices of the controller in `folder`. With native multipath the path `nvme0c1n2`
/// belongs to the head `nvme0n2`, which is the one that is mounted.
fn namespaces(root: &Root, folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for controller in root.names(&format!("{folder}/nvme")) {
        for name in root.names(&format!("{folder}/nvme/{controller}")) {
            if let Some(name) = block_name(&name)
                && !found.contains(&name)
            {
                found.push(name);
            }
        }
    }
    found
}

/// `nvme0n1` of `nvme0n1` and of `nvme0c3n1`; `None` for what names no namespace.
fn block_name(name: &str) -> Option<String> {
    let rest = name.strip_prefix("nvme")?;
    let (front, namespace) = rest.split_once('n')?;
    let instance = front.split('c').next()?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(instance) && digits(namespace)).then(|| format!("nvme{instance}n{namespace}"))
}

/// Bridges need not be handed over: vfio leaves them to the kernel.
fn companions(root: &Root, group: &str, address: &str) -> Vec<String> {
    let folder = format!("sys/kernel/iommu_groups/{group}/devices");
    let mut names = root.names(&folder);
    names.retain(|name| {
        let class = root.text(&format!("sys/bus/pci/devices/{name}/class")).unwrap_or_default();
        is_address(name) && name != address && !class.starts_with("0x0604")
    });
    names
}

fn has_nvme_class(root: &Root, address: &str) -> bool {
    let class = root.text(&format!("sys/bus/pci/devices/{address}/class"));
    class.is_some_and(|class| class.eq_ignore_ascii_case(NVME_CLASS))
}

/// Is it a domain, bus, device and function, and so safe in a command?
fn is_address(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_hexdigit() || b == b':' || b == b'.';
    name.len() <= 16 && name.contains(':') && name.bytes().all(allowed)
}
