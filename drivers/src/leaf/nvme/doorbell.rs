//! Doorbells: a register, with its shadow in memory where the controller offers one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use oxblock_engine::Error;
use oxblock_mem::{Arena, Cells};
use oxblock_nvme::PAGE_BYTES;
use oxblock_nvme::queue::ShadowDoorbell;
use oxblock_nvme::regs;
use oxblock_pci::Reg32;

use super::hardware::Hardware;
use super::memory::DeviceMemory;

/// One doorbell of one queue.
pub(super) struct Doorbell {
    shadow: Option<ShadowDoorbell<Arc<Cells>>>,
    register: Reg32,
    qid: u16,
    is_cq: bool,
    dstrd: u8,
}

impl Doorbell {
    /// The doorbell of a queue. The register must lie inside the BAR; a queue past the end of the
    /// shadow pages has the register alone.
    pub fn new(
        hardware: &Hardware,
        shadow: Option<&ShadowPages>,
        qid: u16,
        is_cq: bool,
    ) -> Result<Self, Error> {
        let dstrd = hardware.cap().dstrd();
        let register = hardware.register(regs::doorbell_offset(qid, is_cq, dstrd))?;
        let mut doorbell = Self { shadow: None, register, qid, is_cq, dstrd };
        doorbell.restart(shadow);
        Ok(doorbell)
    }

    /// After a reset: with the pages that the controller was told about, if it took them.
    pub fn restart(&mut self, shadow: Option<&ShadowPages>) {
        let place = |pages: &ShadowPages| pages.doorbell(self.qid, self.is_cq, self.dstrd);
        self.shadow = shadow.and_then(place);
        self.clear();
    }

    /// Tells the controller that the value went from `old` to `new`.
    #[inline]
    pub fn ring(&self, old: u16, new: u16) {
        match &self.shadow {
            Some(shadow) if !shadow.ring(old, new) => {}
            _ => self.register.write(u32::from(new)),
        }
    }

    /// Back to zero: a queue ID may be used again, and must not inherit values (row 18).
    pub fn clear(&self) {
        if let Some(shadow) = &self.shadow {
            shadow.clear();
        }
    }
}

/// The shadow doorbell page and the EventIdx page.
pub(super) struct ShadowPages {
    shadow: Arc<Cells>,
    event_index: Arc<Cells>,
    /// The controller took them.
    taken: AtomicBool,
    /// Dropped last.
    memory: DeviceMemory,
}

impl ShadowPages {
    pub fn new(arena: &Arena, hardware: &Arc<Hardware>) -> Result<Self, Error> {
        let mut memory = DeviceMemory::new(arena, 2 * PAGE_BYTES, hardware)?;
        let shadow = Arc::new(memory.cells(PAGE_BYTES)?);
        let event_index = Arc::new(memory.cells(PAGE_BYTES)?);
        Ok(Self { shadow, event_index, taken: AtomicBool::new(false), memory })
    }

    /// IOVAs of the shadow page and of the EventIdx page, told to the controller from here on.
    pub fn expose(&self) -> Result<(u64, u64), Error> {
        let iovas = (self.memory.iova_of(&self.shadow)?, self.memory.iova_of(&self.event_index)?);
        self.memory.expose();
        Ok(iovas)
    }

    /// The controller took them, or refused them.
    pub fn set_taken(&self, taken: bool) {
        self.taken.store(taken, Ordering::Release);
        if !taken {
            self.memory.conceal();
        }
    }

    /// Whether the controller took them.
    pub fn are_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }

    fn doorbell(&self, qid: u16, is_cq: bool, dstrd: u8) -> Option<ShadowDoorbell<Arc<Cells>>> {
        if !self.are_taken() {
            return None;
        }
        let bytes = regs::doorbell_index(qid, is_cq) * regs::doorbell_stride(dstrd);
        let index = usize::try_from(bytes / 4).ok()?;
        ShadowDoorbell::new(self.shadow.clone(), self.event_index.clone(), index)
    }
}
