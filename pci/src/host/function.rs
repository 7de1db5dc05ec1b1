//! A PCI function as the kernel knows it.

use super::{Holders, Root};
use crate::{Address, PciError, PciErrorKind};

/// The class of an NVM Express I/O controller (PCI Code and ID Assignment, 1.2).
pub const NVME_CLASS: u32 = 0x01_08_02;
/// The class of bridges between PCI buses, without the interface. VFIO leaves them to the kernel.
const BRIDGE_CLASS: u32 = 0x06_04;

/// A PCI function: what it is, who drives it, and who uses what it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFunction {
    /// Where it is.
    pub address: Address,
    /// Class, subclass and interface from the top byte down; [`NVME_CLASS`] for one.
    pub class: u32,
    /// Vendor.
    pub vendor: u16,
    /// Device, as the vendor counts.
    pub device: u16,
    /// The driver that has it.
    pub driver: Option<String>,
    /// The NUMA node whose memory is nearest, if the platform says so.
    pub numa_node: Option<u32>,
    /// The IOMMU group's number; none without an IOMMU.
    pub group: Option<String>,
    /// The group is none of an IOMMU's: VFIO made it up, and nothing keeps the function from any
    /// memory.
    pub no_iommu: bool,
    /// Who else is in the group, and is handed over with it: bridges left out.
    pub companions: Vec<Companion>,
    /// Block devices of the kernel on it: `nvme0n1`.
    pub namespaces: Vec<String>,
    /// Who uses it, in words: mounts, swap, stacked devices, processes. Empty: nobody, as far as
    /// this user can see.
    pub held_by: Vec<String>,
}

/// Another function of an IOMMU group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// Where it is.
    pub address: Address,
    /// The driver that has it.
    pub driver: Option<String>,
}

impl HostFunction {
    /// All functions, in the order of their addresses.
    pub fn all(root: &Root) -> Vec<HostFunction> {
        let mut holders = Holders::new(root);
        let names = root.names("sys/bus/pci/devices");
        let mut addresses: Vec<Address> = names.iter().filter_map(|n| n.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.into_iter().map(|address| Self::look(root, &mut holders, address)).collect()
    }

    /// The function at an address.
    ///
    /// # Errors
    /// There is none.
    pub fn at(root: &Root, address: Address) -> Result<HostFunction, PciError> {
        if !root.exists(&folder(address)) {
            let text = format!("there is no PCI function {address}; see: oxblock pci list --all");
            return Err(PciError::new(PciErrorKind::NotFound, text));
        }
        Ok(Self::look(root, &mut Holders::new(root), address))
    }

    /// Whether it is an NVMe controller.
    pub fn is_nvme(&self) -> bool {
        self.class == NVME_CLASS
    }

    /// Whether it was given to VFIO.
    pub fn is_bound(&self) -> bool {
        self.driver.as_deref().is_some_and(is_vfio)
    }

    /// The file of its group that a process opens.
    pub fn group_path(&self) -> Option<String> {
        let group = self.group.as_ref()?;
        let prefix = if self.no_iommu { "noiommu-" } else { "" };
        Some(format!("dev/vfio/{prefix}{group}"))
    }

    fn look(root: &Root, holders: &mut Holders<'_>, address: Address) -> HostFunction {
        let folder = folder(address);
        let group = root.link_name(&format!("{folder}/iommu_group"));
        let name = |group: &String| root.text(&format!("sys/kernel/iommu_groups/{group}/name"));
        let namespaces = namespaces(root, &folder);
        let number = |name| hex(root, &format!("{folder}/{name}")).unwrap_or(0);
        let mut function = HostFunction {
            address,
            class: number("class"),
            vendor: number("vendor") as u16,
            device: number("device") as u16,
            driver: root.link_name(&format!("{folder}/driver")),
            numa_node: root.text(&format!("{folder}/numa_node")).and_then(|n| n.parse().ok()),
            no_iommu: group.as_ref().and_then(name).is_some_and(|name| name == "vfio-noiommu"),
            companions: group.iter().flat_map(|group| companions(root, group, address)).collect(),
            group,
            held_by: Vec::new(),
            namespaces,
        };
        function.held_by = function.users(root, holders, &folder);
        function
    }

    fn users(&self, root: &Root, holders: &mut Holders<'_>, folder: &str) -> Vec<String> {
        let mut users: Vec<String> =
            self.namespaces.iter().flat_map(|name| holders.of(name)).collect();
        for controller in root.names(&format!("{folder}/nvme")) {
            users.extend(holders.openers(&format!("/dev/{controller}")));
        }
        if self.is_bound() {
            users.extend(self.group_path().iter().flat_map(|p| holders.openers(&format!("/{p}"))));
            let nodes = root.names(&format!("{folder}/vfio-dev"));
            let nodes = nodes.iter().map(|node| format!("/dev/vfio/devices/{node}"));
            users.extend(nodes.flat_map(|node| holders.openers(&node)));
        }
        users
    }
}

/// Whether a driver of this name hands functions to processes; some vendors have one of their own.
pub fn is_vfio(driver: &str) -> bool {
    driver.contains("vfio")
}

/// Where sysfs has a function.
pub(crate) fn folder(address: Address) -> String {
    format!("sys/bus/pci/devices/{address}")
}

/// The number that a file holds in hexadecimal digits.
pub(super) fn hex(root: &Root, path: &str) -> Option<u32> {
    u32::from_str_radix(root.text(path)?.trim_start_matches("0x"), 16).ok()
}

fn companions(root: &Root, group: &str, address: Address) -> Vec<Companion> {
    let names = root.names(&format!("sys/kernel/iommu_groups/{group}/devices"));
    let mut addresses: Vec<Address> = names.iter().filter_map(|name| name.parse().ok()).collect();
    addresses.retain(|other| {
        let class = hex(root, &format!("{}/class", folder(*other)));
        *other != address && class.unwrap_or(0) >> 8 != BRIDGE_CLASS
    });
    let driver = |address| root.link_name(&format!("{}/driver", folder(address)));
    addresses.iter().map(|&address| Companion { address, driver: driver(address) }).collect()
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
