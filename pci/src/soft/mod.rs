//! A PCI function in software: the building block of controllers that live in this process
//! or serve another one.
//!
//! A controller implements [`Device`]: registers in, registers out. [`SoftFunction`] puts the
//! rest around it: configuration space, decoding and bus-master bits, BARs, reset. The
//! controller reaches memory through a [`Translator`] on its own core and raises interrupts
//! through [`Signals`]; both are copies of a shared table, refreshed when its generation
//! moves, so that neither takes a lock per I/O.

mod config;
mod interrupts;
mod iommu;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use oxblock_mem::{Buf, DmaMapper, Region};

use crate::bar::{check_memory, no_memory};
use crate::{
    Bar, Command, ConfigSpace, Delays, Events, Function, Ids, Interrupts, PciError, PciErrorKind,
};
use config::SoftConfig;

pub use interrupts::{Signals, SoftInterrupts};
pub use iommu::{DmaFault, OwnMemory, SoftIommu, SoftIommuOptions, Translator};

/// The BAR that holds the MSI-X table and its pending bits.
pub const MSIX_BAR: u8 = 4;

/// A device as its registers.
///
/// Calls come from any thread, those of several at once. Offsets lie inside the BAR and are
/// multiples of the size, which is 4 or 8.
pub trait Device: Send + Sync {
    /// Length in bytes of a memory BAR (0 to 3); zero if there is none. Does not change.
    fn bar_len(&self, bar: u8) -> u64;

    /// Reads a register.
    fn read(&self, bar: u8, offset: u64, size: u8) -> u64;

    /// Writes a register.
    fn write(&self, bar: u8, offset: u64, size: u8, value: u64);

    /// Resets the device as a function-level reset does, and returns when it is quiet.
    fn reset(&self);

    /// The part of a BAR that is memory, so that a host can map it, one in another process too. A
    /// device polls it: nobody tells of writes. Does not change.
    fn window(&self, _bar: u8) -> Option<Window> {
        None
    }
}

/// A part of a BAR that is memory.
#[derive(Clone, Debug)]
pub struct Window {
    /// Where it begins in the BAR, a multiple of 4 KiB.
    pub offset: u64,
    /// Its length in bytes, a multiple of 4 KiB.
    pub len: u64,
    /// The memory: that of the BAR from its beginning to the end of the window, at least.
    pub memory: Region,
}

/// A PCI function around a [`Device`].
pub struct SoftFunction {
    address: String,
    shared: Arc<Shared>,
    config: SoftConfig,
    iommu: Arc<SoftIommu>,
    interrupts: Arc<SoftInterrupts>,
    events: Events,
    msix: Arc<MsixBar>,
}

impl SoftFunction {
    /// A function with this identity around a device. `address` is what messages call it
    /// (`soft:0`); `iommu` and `interrupts` are those that the device itself holds.
    ///
    /// # Errors
    /// There is no eventfd for its events.
    pub fn new(
        address: impl Into<String>,
        device: Arc<dyn Device>,
        ids: Ids,
        iommu: Arc<SoftIommu>,
        interrupts: Arc<SoftInterrupts>,
    ) -> Result<Arc<SoftFunction>, PciError> {
        let mut bar_len = [0; 6];
        for (bar, len) in (0u8..MSIX_BAR).zip(&mut bar_len) {
            *len = device.bar_len(bar);
        }
        let shared = Arc::new(Shared {
            device,
            present: AtomicBool::new(true),
            decodes: AtomicBool::new(false),
            failing_resets: AtomicU32::new(0),
        });
        let msix = Arc::new(MsixBar::new(interrupts.count(), Arc::clone(&shared)));
        bar_len[usize::from(MSIX_BAR)] = msix.len();
        let config = SoftConfig::new(ids, &bar_len, interrupts.count(), {
            let (shared, iommu) = (Arc::clone(&shared), Arc::clone(&iommu));
            Box::new(move |command| {
                let decodes = command & Command::MEMORY != 0;
                shared.decodes.store(decodes, Ordering::Release);
                iommu.set_bus_master(command & Command::BUS_MASTER != 0);
            })
        });
        let (address, events) = (address.into(), Events::new()?);
        let function = SoftFunction { address, shared, config, iommu, interrupts, events, msix };
        Ok(Arc::new(function))
    }

    /// Pulls the function from its bus, or puts it back. While it is absent, configuration
    /// space and BARs read as all ones, writes go nowhere, and it reaches no memory. Pulling it
    /// signals [`Events::removal`]; put back, it is as after power-on: its registers are reset,
    /// memory decoding and bus mastering are off.
    pub fn set_present(&self, present: bool) {
        self.shared.present.store(present, Ordering::Release);
        self.config.set_present(present);
        if !present {
            self.shared.device.reset();
            self.events.removal.signal();
        }
    }

    /// Whether a reset of the function works, as it does at first, or fails and changes nothing.
    pub fn set_reset_works(&self, works: bool) {
        self.fail_next_resets(if works { 0 } else { u32::MAX });
    }

    /// So many resets of the function fail from now on, and change nothing; `u32::MAX` is all.
    pub fn fail_next_resets(&self, count: u32) {
        self.shared.failing_resets.store(count, Ordering::Release);
    }

    /// The vectors, as the device signals them.
    #[must_use]
    pub fn soft_interrupts(&self) -> &Arc<SoftInterrupts> {
        &self.interrupts
    }

    /// The part of a BAR that a host in another process can map.
    #[must_use]
    pub fn window(&self, bar: u8) -> Option<Window> {
        self.shared.device.window(bar)
    }
}

impl Function for SoftFunction {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn numa_node(&self) -> Option<u32> {
        None
    }

    fn config(&self) -> &dyn ConfigSpace {
        &self.config
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Bar>, PciError> {
        if index == MSIX_BAR {
            return Ok(Arc::clone(&self.msix) as Arc<dyn Bar>);
        }
        let len = if index < MSIX_BAR { self.shared.device.bar_len(index) } else { 0 };
        if len == 0 {
            return Err(PciError::new(
                PciErrorKind::NotSupported,
                format!("{} has no BAR {index}", self.address),
            ));
        }
        Ok(Arc::new(SoftBar { index, len, shared: Arc::clone(&self.shared) }))
    }

    fn iommu(&self) -> Arc<dyn DmaMapper> {
        Arc::clone(&self.iommu) as Arc<dyn DmaMapper>
    }

    fn interrupts(&self) -> &dyn Interrupts {
        &*self.interrupts
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn delays(&self) -> Delays {
        Delays::None
    }

    fn reset(&self) -> Result<(), PciError> {
        if !self.shared.present.load(Ordering::Acquire) {
            return Err(PciError::new(
                PciErrorKind::Gone,
                format!("{} is gone; nothing is left to reset", self.address),
            ));
        }
        if self.shared.next_reset_fails() {
            return Err(PciError::new(
                PciErrorKind::Io,
                format!("{} did not come back from a reset; power-cycle it", self.address),
            ));
        }
        self.shared.device.reset();
        Ok(())
    }

    /// Turns decoding and bus mastering off. Who enables the function again has it again: there
    /// is nobody that it would have to be got from.
    fn release(&self) {
        // A function without a command register is absent, and answers nothing as it is.
        let _ = self.config.write16(crate::config::offset::COMMAND, 0);
    }
}

/// What the BARs of one function share.
struct Shared {
    device: Arc<dyn Device>,
    present: AtomicBool,
    /// Memory decoding, from the command register.
    decodes: AtomicBool,
    /// How many resets of the function fail from now on; all ones is all.
    failing_resets: AtomicU32,
}

impl Shared {
    fn next_reset_fails(&self) -> bool {
        let left = |count: u32| match count {
            0 => None,
            u32::MAX => Some(u32::MAX),
            count => Some(count - 1),
        };
        self.failing_resets.fetch_update(Ordering::AcqRel, Ordering::Acquire, left).is_ok()
    }

    /// Whether an access of `size` bytes at `offset` of a BAR of `len` bytes is answered.
    #[inline]
    fn answers(&self, offset: u64, size: u64, len: u64) -> bool {
        offset.is_multiple_of(size)
            && offset.checked_add(size).is_some_and(|end| end <= len)
            && self.decodes.load(Ordering::Acquire)
            && self.present.load(Ordering::Acquire)
    }
}

struct SoftBar {
    index: u8,
    len: u64,
    shared: Arc<Shared>,
}

impl Bar for SoftBar {
    fn len(&self) -> u64 {
        self.len
    }

    fn read32(&self, offset: u64) -> u32 {
        if !self.shared.answers(offset, 4, self.len) {
            return u32::MAX;
        }
        self.shared.device.read(self.index, offset, 4) as u32
    }

    fn read64(&self, offset: u64) -> u64 {
        if !self.shared.answers(offset, 8, self.len) {
            return u64::MAX;
        }
        self.shared.device.read(self.index, offset, 8)
    }

    fn write32(&self, offset: u64, value: u32) {
        if self.shared.answers(offset, 4, self.len) {
            let value = u64::from(value);
            self.shared.device.write(self.index, offset, 4, value);
        }
    }

    fn write64(&self, offset: u64, value: u64) {
        if self.shared.answers(offset, 8, self.len) {
            self.shared.device.write(self.index, offset, 8, value);
        }
    }

    /// The same pages at another address: the device's own view of them stays its own.
    fn memory(&self, offset: u64, len: u64) -> Result<Buf, PciError> {
        check_memory(self, offset, len)?;
        let window = self.shared.device.window(self.index);
        let inside = |w: &Window| offset >= w.offset && offset + len <= w.offset + w.len;
        let window = window.filter(inside).ok_or_else(|| no_memory(offset))?;
        let (file, at) = window.memory.fd().ok_or_else(|| no_memory(offset))?;
        let region = Region::import(file, at + offset, len);
        let buf = region.and_then(|region| region.buf(0, region.len()));
        buf.map_err(|error| PciError::new(PciErrorKind::Io, error.to_string()))
    }
}

/// The MSI-X table and pending bits: kept, and read by nobody here, since vectors are
/// eventfds. A guest that the function is handed to looks for them.
struct MsixBar {
    words: Vec<AtomicU32>,
    shared: Arc<Shared>,
}

impl MsixBar {
    fn new(vectors: u32, shared: Arc<Shared>) -> MsixBar {
        let len = config::msix_bar_len(vectors);
        MsixBar { words: (0..len / 4).map(|_| AtomicU32::new(0)).collect(), shared }
    }

    fn word(&self, offset: u64) -> Option<&AtomicU32> {
        if !self.shared.answers(offset, 4, self.len()) {
            return None;
        }
        self.words.get(usize::try_from(offset / 4).ok()?)
    }
}

impl Bar for MsixBar {
    fn len(&self) -> u64 {
        self.words.len() as u64 * 4
    }

    fn read32(&self, offset: u64) -> u32 {
        let word = self.word(offset);
        word.map_or(u32::MAX, |word| word.load(Ordering::Relaxed))
    }

    fn read64(&self, offset: u64) -> u64 {
        let low = self.read32(offset);
        let high = self.read32(offset.wrapping_add(4));
        u64::from(high) << 32 | u64::from(low)
    }

    fn write32(&self, offset: u64, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn write64(&self, offset: u64, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset.wrapping_add(4), (value >> 32) as u32);
    }

    fn memory(&self, offset: u64, _: u64) -> Result<Buf, PciError> {
        Err(no_memory(offset))
    }
}

#[cfg(test)]
mod tests;
