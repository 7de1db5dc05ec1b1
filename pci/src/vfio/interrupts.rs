//! Interrupt vectors as eventfds: MSI-X, or MSI where there is no MSI-X.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_REQ_IRQ_INDEX,
};

use super::bar::VfioBar;
use super::device::Device;
use super::ioctl;
use crate::{Bar, EventFd, Events, Interrupts, PciError, PciErrorKind};

/// What stands for no eventfd.
const NONE: RawFd = -1;
/// Bytes of an entry of the MSI-X table, where in it Vector Control lies, and its Mask Bit (PCI
/// 3.0, 6.8.2.9).
const ENTRY: u64 = 16;
const VECTOR_CONTROL: u64 = 12;
const MASK_BIT: u32 = 1;

pub(super) struct VfioInterrupts {
    device: Arc<Device>,
    index: u32,
    count: u32,
    /// Vectors that the kernel has set up, from 0 on: those enabled, and those before them.
    enabled: Mutex<Vec<Option<Arc<EventFd>>>>,
    /// The MSI-X table, where the kernel lets us map it.
    table: Option<MsixTable>,
}

/// Where the MSI-X table of a device lies.
pub(super) struct MsixTable {
    pub(super) bar: VfioBar,
    pub(super) offset: u64,
}

impl VfioInterrupts {
    pub(super) fn new(device: &Arc<Device>, table: Option<MsixTable>) -> VfioInterrupts {
        let count = |index| ioctl::irq_info(device.fd(), index).map_or(0, |info| info.count);
        let kinds = [VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX];
        let kinds = kinds.map(|index| (index, count(index)));
        let (index, count) = kinds.into_iter().find(|(_, count)| *count > 0).unwrap_or(kinds[0]);
        let table = table.filter(|_| index == VFIO_PCI_MSIX_IRQ_INDEX);
        VfioInterrupts { device: device.clone(), index, count, enabled: Mutex::default(), table }
    }

    fn check(&self, vector: u32) -> Result<usize, PciError> {
        if vector < self.count {
            return Ok(vector as usize);
        }
        let (address, count) = (self.device.address(), self.count);
        let text = format!("{address}: interrupt vector {vector} of {count}");
        Err(PciError::new(PciErrorKind::OutOfRange, text))
    }

    fn set(&self, start: usize, events: &[Option<Arc<EventFd>>]) -> Result<(), PciError> {
        let fds: Vec<RawFd> =
            events.iter().map(|e| e.as_ref().map_or(NONE, |event| event.as_raw_fd())).collect();
        ioctl::set_irqs(self.device.fd(), self.index, start as u32, &fds).map_err(|error| {
            let what = format!("setting up {} interrupt vectors", start + fds.len());
            self.device.error(&what, error)
        })
    }

    fn disable_all(&self) -> Result<(), PciError> {
        ioctl::disable_irqs(self.device.fd(), self.index)
            .map_err(|error| self.device.error("turning interrupts off", error))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Arc<EventFd>>>> {
        self.enabled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupts for VfioInterrupts {
    fn count(&self) -> u32 {
        self.count
    }

    fn enable(&self, vector: u32, event: Arc<EventFd>) -> Result<(), PciError> {
        let at = self.check(vector)?;
        let mut enabled = self.lock();
        if at < enabled.len() {
            self.set(at, &[Some(event.clone())])?;
            enabled[at] = Some(event);
            return Ok(());
        }
        // Not all kernels let the number of vectors grow: take them down and set up more.
        let before = enabled.len();
        if before > 0 {
            self.disable_all()?;
        }
        let mut more = enabled.clone();
        more.resize(at, None);
        more.push(Some(event));
        let outcome = match self.set(0, &more) {
            Ok(()) => {
                *enabled = more;
                Ok(())
            }
            Err(error) => {
                if before > 0 && self.set(0, &enabled).is_err() {
                    enabled.clear();
                }
                Err(error)
            }
        };
        // What came while they were down is lost; whoever waits shall look.
        enabled.iter().take(before).flatten().for_each(|event| event.signal());
        outcome
    }

    fn disable(&self, vector: u32) -> Result<(), PciError> {
        let at = self.check(vector)?;
        let mut enabled = self.lock();
        let Some(slot) = enabled.get_mut(at) else { return Ok(()) };
        if slot.is_some() {
            self.set(at, &[None])?;
            *slot = None;
        }
        if enabled.iter().all(Option::is_none) && !enabled.is_empty() {
            self.disable_all()?;
            enabled.clear();
        }
        Ok(())
    }

    fn mask(&self, vector: u32, masked: bool) -> bool {
        let known = self.check(vector).is_ok();
        known && self.table.as_ref().is_some_and(|table| table.mask(vector, masked))
    }
}

impl MsixTable {
    /// Sets the Mask Bit of a vector that is enabled. The kernel has it clear from when the vector
    /// is enabled, and may clear it again when it moves an interrupt to another processor: one
    /// interrupt too many, no harm.
    fn mask(&self, vector: u32, masked: bool) -> bool {
        let at = self.offset + ENTRY * u64::from(vector) + VECTOR_CONTROL;
        if !self.bar.is_mapped(at) {
            return false;
        }
        let control = self.bar.read32(at);
        if control == u32::MAX {
            return false;
        }
        let mask = if masked { MASK_BIT } else { 0 };
        self.bar.write32(at, control & !MASK_BIT | mask);
        true
    }
}

impl Drop for VfioInterrupts {
    fn drop(&mut self) {
        if !self.lock().is_empty() {
            let _ = self.disable_all();
        }
    }
}

/// Sets up what the kernel tells of a device: that an error was reported, that it wants it back.
/// Where it has no such event, the eventfd stays silent.
pub(super) fn events(device: &Device) -> Result<Events, PciError> {
    let events = Events::new()?;
    for (index, event) in
        [(VFIO_PCI_ERR_IRQ_INDEX, &events.error), (VFIO_PCI_REQ_IRQ_INDEX, &events.removal)]
    {
        let has = ioctl::irq_info(device.fd(), index)
            .is_ok_and(|info| info.count > 0 && info.flags & VFIO_IRQ_INFO_EVENTFD != 0);
        if has {
            ioctl::set_irqs(device.fd(), index, 0, &[event.as_raw_fd()])
                .map_err(|error| device.error("asking for its events", error))?;
        }
    }
    Ok(events)
}
