//! PCI functions that the kernel handed over: VFIO (Linux, `Documentation/driver-api/vfio.rst`).
//!
//! A function belongs to an IOMMU group, the group goes into a container, and the container is
//! an address space that devices share. [`Vfio`] stands for the devices of one engine: they
//! share a container, so that memory is mapped once, however many there are. Where the kernel
//! offers no group of a function, but a node of its own and an iommufd, these take their place.
//!
//! What holds what, and so what closes first:
//!
//! ```text
//! Reg32 -> BAR -> device file -> group file -> container file -> regions of memory
//! ```
//!
//! A mapped register keeps its device open; a device keeps its group in the container; the
//! container, closing last, ends every mapping, and only then lets go of the memory. A device that
//! is released is unmapped and closed at once, with its group; what still names it finds nothing.

mod advice;
mod bar;
mod capability;
mod config;
mod container;
mod device;
mod group;
mod interrupts;
mod ioctl;
mod iommufd;
mod mapping;
mod space;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use oxblock_mem::DmaMapper;
use vfio_bindings::bindings::vfio::{VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET};

use crate::host::Root;
use crate::{
    Address, Bar, CapabilityId, ConfigSpace, Delays, Events, Function, Interrupts, PciError,
    PciErrorKind,
};
use bar::VfioBar;
use config::VfioConfig;
use device::Device;
use group::{Group, Number};
use interrupts::{MsixTable, VfioInterrupts};
use iommufd::Ioas;

/// The BARs of a function.
const BARS: u8 = 6;

/// The functions that one engine has from the kernel. They share an address space where the
/// kernel allows it, and so the memory mapped for them.
pub struct Vfio {
    root: Root,
    groups: Mutex<Vec<Weak<Group>>>,
    ioas: Mutex<Weak<Ioas>>,
}

impl Vfio {
    /// No function yet.
    pub fn new() -> Vfio {
        Vfio { root: Root::new("/"), groups: Mutex::default(), ioas: Mutex::default() }
    }

    /// Opens a function that is bound to vfio-pci.
    ///
    /// # Errors
    /// In words that say what to do: there is no such function, the kernel's own driver has it,
    /// there is no IOMMU, its group is not viable or is in use, this user may not have it.
    pub fn open(&self, address: Address) -> Result<Arc<VfioFunction>, PciError> {
        let number = self.number(address)?;
        match number.no_iommu {
            true => Err(advice::no_iommu(address)),
            false => self.open_in(&number, address),
        }
    }

    /// Opens a function that is bound to vfio-pci where there is no IOMMU. It reaches memory by
    /// its physical address, so all memory of its engine must lie in one piece
    /// ([`PagePolicy::Contiguous`](oxblock_mem::PagePolicy::Contiguous)). Nothing keeps it
    /// from any other memory: a driver's mistake overwrites the kernel.
    ///
    /// # Errors
    /// As [`open`](Vfio::open); the function is behind an IOMMU.
    pub fn open_without_iommu(&self, address: Address) -> Result<Arc<VfioFunction>, PciError> {
        let number = self.number(address)?;
        match number.no_iommu {
            true => self.open_in(&number, address),
            false => {
                let text = format!("{address} is behind an IOMMU: open it as what it is");
                Err(PciError::new(PciErrorKind::NotSupported, text))
            }
        }
    }

    /// The group of a function that is ready to be opened.
    fn number(&self, address: Address) -> Result<Number, PciError> {
        if let Some(error) = advice::not_ready(&self.root, address) {
            return Err(error);
        }
        let link = format!("sys/bus/pci/devices/{address}/iommu_group");
        let number = self.root.link_name(&link).ok_or_else(|| advice::no_group(address))?;
        let name = self.root.text(&format!("sys/kernel/iommu_groups/{number}/name"));
        Ok(Number { number, no_iommu: name.as_deref() == Some("vfio-noiommu") })
    }

    fn open_in(&self, number: &Number, address: Address) -> Result<Arc<VfioFunction>, PciError> {
        if let Some(node) = self.node(number, address) {
            return self.open_by_node(&node, address);
        }
        let group = self.group(number)?;
        let device = Device::new(group.device(address)?, address, group.clone());
        VfioFunction::new(device, group.container().clone(), self.numa_node(address))
    }

    /// The node of a function, where its group cannot be opened: groups and containers are the
    /// older way, and may be left out of a kernel.
    fn node(&self, number: &Number, address: Address) -> Option<String> {
        let has_group = self.root.exists(&format!("dev/vfio/{}", number.number));
        if number.no_iommu || has_group && self.root.exists(container::PATH) {
            return None;
        }
        let nodes = self.root.names(&format!("sys/bus/pci/devices/{address}/vfio-dev"));
        let node = nodes.into_iter().next()?;
        let is_there = |path: &str| self.root.exists(path);
        let both = is_there(iommufd::PATH) && is_there(&format!("dev/vfio/devices/{node}"));
        both.then_some(node)
    }

    fn open_by_node(&self, node: &str, address: Address) -> Result<Arc<VfioFunction>, PciError> {
        let ioas = {
            let mut shared = self.ioas.lock().unwrap_or_else(PoisonError::into_inner);
            match shared.upgrade() {
                Some(ioas) => ioas,
                None => {
                    let ioas = Arc::new(iommufd::open()?);
                    *shared = Arc::downgrade(&ioas);
                    ioas
                }
            }
        };
        let fd = iommufd::open_device(&ioas, node, address)?;
        let device = Device::new(fd, address, ioas.clone());
        VfioFunction::new(device, ioas, self.numa_node(address))
    }

    /// The group of this number: one that is open, or it is opened.
    fn group(&self, number: &Number) -> Result<Arc<Group>, PciError> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|group| group.strong_count() > 0);
        let open: Vec<Arc<Group>> = groups.iter().filter_map(Weak::upgrade).collect();
        if let Some(group) = open.iter().find(|group| group.number() == number) {
            return Ok(group.clone());
        }
        let mut containers: Vec<_> = open.iter().map(|group| group.container().clone()).collect();
        containers.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let group = Arc::new(Group::open(&self.root, number, &containers)?);
        groups.push(Arc::downgrade(&group));
        Ok(group)
    }

    fn numa_node(&self, address: Address) -> Option<u32> {
        // -1 where the platform does not say.
        let text = self.root.text(&format!("sys/bus/pci/devices/{address}/numa_node"))?;
        text.parse().ok()
    }
}

impl Default for Vfio {
    fn default() -> Vfio {
        Vfio::new()
    }
}

/// A function that the kernel handed over.
pub struct VfioFunction {
    // Interrupts are turned off, then the device is closed, then its address space.
    interrupts: VfioInterrupts,
    config: VfioConfig,
    events: Events,
    device: Arc<Device>,
    iommu: Arc<dyn DmaMapper>,
    numa_node: Option<u32>,
    can_reset: bool,
}

impl VfioFunction {
    fn new(
        device: Arc<Device>,
        iommu: Arc<dyn DmaMapper>,
        numa_node: Option<u32>,
    ) -> Result<Arc<VfioFunction>, PciError> {
        let info = ioctl::device_info(device.fd())
            .map_err(|error| device.error("asking what it is", error))?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            let text = format!("{}: the kernel says that it is no PCI device", device.address());
            return Err(PciError::new(PciErrorKind::NotSupported, text));
        }
        let config = VfioConfig::new(&device)?;
        let table = msix_table(&config)?.and_then(|(index, offset, len)| {
            let region = device.region(index.into()).ok()?;
            let bar = VfioBar::new(&device, &region, Some((offset, len))).ok()?;
            Some(MsixTable { bar, offset })
        });
        Ok(Arc::new(VfioFunction {
            interrupts: VfioInterrupts::new(&device, table),
            config,
            events: interrupts::events(&device)?,
            can_reset: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            device,
            iommu,
            numa_node,
        }))
    }
}

/// The BAR that the MSI-X table lies in, and its offset and length there (PCI 3.0, 6.8.2).
fn msix_table(config: &VfioConfig) -> Result<Option<(u8, u64, u64)>, PciError> {
    let capabilities = crate::capabilities(config)?;
    let Some(msix) = capabilities.iter().find(|c| c.id == CapabilityId::MSIX) else {
        return Ok(None);
    };
    let vectors = u64::from(config.read16(msix.offset + 2)? & 0x7ff) + 1;
    let table = config.read32(msix.offset + 4)?;
    Ok(Some(((table & 7) as u8, u64::from(table & !7), vectors * 16)))
}

impl Function for VfioFunction {
    fn address(&self) -> String {
        self.device.address().to_string()
    }

    fn numa_node(&self) -> Option<u32> {
        self.numa_node
    }

    fn config(&self) -> &dyn ConfigSpace {
        &self.config
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Bar>, PciError> {
        let address = self.device.address();
        let is_port = || {
            let low = self.config.read32(crate::config::offset::BAR0 + 4 * u16::from(index))?;
            Ok(low & 1 != 0)
        };
        if index >= BARS || is_port()? {
            let text = format!("{address} has no memory BAR {index}");
            return Err(PciError::new(PciErrorKind::NotSupported, text));
        }
        let region = self.device.region(index.into())?;
        let table = msix_table(&self.config)?.filter(|(bar, ..)| *bar == index);
        let table = table.map(|(_, offset, len)| (offset, len));
        Ok(Arc::new(VfioBar::new(&self.device, &region, table)?))
    }

    fn iommu(&self) -> Arc<dyn DmaMapper> {
        self.iommu.clone()
    }

    fn interrupts(&self) -> &dyn Interrupts {
        &self.interrupts
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn release(&self) {
        self.device.release();
    }

    fn delays(&self) -> Delays {
        Delays::Reset
    }

    fn reset(&self) -> Result<(), PciError> {
        if !self.can_reset {
            let text = format!(
                "{} has no reset of its own; unbind it and bind it again",
                self.device.address()
            );
            return Err(PciError::new(PciErrorKind::NotSupported, text));
        }
        ioctl::reset(self.device.fd()).map_err(|error| self.device.error("resetting", error))?;
        // A kernel may leave the command register as it is after a reset: all off.
        crate::enable(&self.config)
    }
}
