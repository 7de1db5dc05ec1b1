//! Memory in BARs: the Controller Memory Buffer (Base 2.0, 8.5) and the Persistent Memory Region
//! (8.17). Hosts map it, or reach it word by word; commands name it by addresses that the host
//! chose, for queues, lists and data alike. It lasts as long as the controller: what the
//! Persistent Memory Region holds survives every reset.

use std::sync::atomic::Ordering;

use oxblock_engine::{Error, ErrorKind};
use oxblock_mem::{ArenaOptions, Cells, Memory, PagePolicy};
use oxblock_nvme::PAGE_BYTES;
use oxblock_nvme::cmb::{Cmbloc, Cmbsz};
use oxblock_nvme::pmr::{Pmrcap, Pmrsts};
use oxblock_pci::soft::{OwnMemory, Window};

use crate::hooks::Hooks;
use crate::options::ControllerOptions;
use crate::registers::MemoryCapabilities;
use crate::service::Service;
use crate::transport::pci::REGISTER_BAR;

/// The BAR for memory. The Persistent Memory Region takes all of it.
const MEMORY_BAR: u8 = 2;

/// CMBLOC: queues may lie in it in part, and commands may mix it with memory of the host (CQMMS,
/// CDPMLS, CDPCILS, CDMMMS, CQDA).
const UNRESTRICTED: u32 = 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;

/// CMBSZ: submission and completion queues, lists, data in both directions.
const EVERYTHING: u8 = 0x1f;

/// PMRCAP.PMRTO, units of 500 ms.
const PMR_TIMEOUT: u8 = 2;

/// PMRCAP.PMRWBM: a read of PMRSTS orders writes.
const BARRIER_BY_STATUS: u8 = 2;

/// The memory that a controller has in its BARs.
#[derive(Default)]
pub(crate) struct BarMemory {
    pub(crate) cmb: Option<Part>,
    pub(crate) pmr: Option<Part>,
}

/// A part of a BAR.
pub(crate) struct Part {
    bar: u8,
    window: Window,
    words: Cells,
}

impl BarMemory {
    /// What the options ask for. With both kinds the buffer lies behind the registers, which end
    /// at `registers` bytes.
    ///
    /// # Errors
    /// Memory is short.
    pub(crate) fn new(options: &ControllerOptions, registers: u64) -> Result<BarMemory, Error> {
        let part = |bar, offset, len| (len > 0).then(|| Part::new(bar, offset, len)).transpose();
        let (bar, offset) = match options.pmr_bytes {
            0 => (MEMORY_BAR, 0),
            _ => (REGISTER_BAR, registers.next_multiple_of(PAGE_BYTES as u64)),
        };
        let cmb = part(bar, offset, options.cmb_bytes)?;
        Ok(BarMemory { cmb, pmr: part(MEMORY_BAR, 0, options.pmr_bytes)? })
    }

    pub(crate) fn capabilities(&self) -> MemoryCapabilities {
        let unit = PAGE_BYTES as u64;
        let mut capabilities = MemoryCapabilities::default();
        if let Some(Part { bar, window, .. }) = &self.cmb {
            let location = Cmbloc(UNRESTRICTED).with_bir(*bar);
            capabilities.cmbloc = location.with_ofst((window.offset / unit) as u32);
            let size = Cmbsz::default().with_abilities(EVERYTHING);
            capabilities.cmbsz = size.with_sz((window.len / unit) as u32);
        }
        if let Some(Part { bar, .. }) = &self.pmr {
            let cap = Pmrcap::default().with_bir(*bar).with_timeout(PMR_TIMEOUT);
            let cap = cap.with_barriers(BARRIER_BY_STATUS).with_cmss(true);
            capabilities.pmrcap = cap.with_data(true, true);
        }
        capabilities
    }

    /// Where the memory in a BAR ends.
    pub(crate) fn end(&self, bar: u8) -> u64 {
        let ends = self.parts(bar).map(|part| part.window.offset + part.window.len);
        ends.max().unwrap_or(0)
    }

    /// What of a BAR a host can map.
    pub(crate) fn window(&self, bar: u8) -> Option<&Window> {
        self.parts(bar).map(|part| &part.window).next()
    }

    /// Reads 4 or 8 aligned bytes of a BAR, if there is memory.
    pub(crate) fn read(&self, bar: u8, offset: u64, size: u8) -> Option<u64> {
        let (part, at) = self.at(bar, offset)?;
        Some(match size {
            8 => part.words.u64(at / 8).load(Ordering::Relaxed),
            _ => part.words.u32(at / 4).load(Ordering::Relaxed).into(),
        })
    }

    /// Writes 4 or 8 aligned bytes of a BAR; false if there is no memory.
    pub(crate) fn write(&self, bar: u8, offset: u64, size: u8, value: u64) -> bool {
        let Some((part, at)) = self.at(bar, offset) else { return false };
        match size {
            8 => part.words.u64(at / 8).store(value, Ordering::Relaxed),
            _ => part.words.u32(at / 4).store(value as u32, Ordering::Relaxed),
        }
        true
    }

    fn at(&self, bar: u8, offset: u64) -> Option<(&Part, usize)> {
        self.parts(bar).find_map(|part| {
            let at = offset.checked_sub(part.window.offset)?;
            (at < part.window.len).then_some((part, at as usize))
        })
    }

    fn parts(&self, bar: u8) -> impl Iterator<Item = &Part> {
        self.cmb.iter().chain(&self.pmr).filter(move |part| part.bar == bar)
    }
}

impl Part {
    fn new(bar: u8, offset: u64, len: u64) -> Result<Part, Error> {
        // The file has the layout of the BAR, so what comes before is left out.
        let (start, all) = (offset as usize, (offset + len) as usize);
        let pages = PagePolicy::Unlocked;
        let options = ArenaOptions { pages, ..ArenaOptions::new(all) };
        let arena = Memory::new().add_arena(&options)?;
        let mut buf = arena.alloc(all, PAGE_BYTES)?;
        let memory = arena.region();
        if buf.addr() != memory.addr() {
            return Err(Error::new(
                ErrorKind::Failed,
                "memory for a BAR is not where it should be",
            ));
        }
        let mine = if start == 0 { buf } else { buf.split_off(start) };
        let window = Window { offset, len, memory };
        Ok(Part { bar, window, words: Cells::new(mine)? })
    }

    /// The memory at an address that the host chose; `None` past the end of all addresses.
    fn placed(&self, iova: u64) -> Option<OwnMemory> {
        let Window { offset, len, memory } = &self.window;
        iova.checked_add(*len)?;
        Some(OwnMemory { iova, len: *len, region: memory.clone(), offset: *offset })
    }
}

impl<H: Hooks> Service<H> {
    /// Acts on CMBMSC, PMRCTL and PMRMSC.
    #[cold]
    pub(crate) fn place_memory(&mut self) {
        let control = self.shared.registers.memory_control();
        let BarMemory { cmb, pmr } = &self.shared.memory;
        let place = |part: &Option<Part>, iova: Option<u64>| {
            let placed = iova.zip(part.as_ref()).map(|(iova, part)| part.placed(iova));
            (placed.clone().flatten(), placed.is_some_and(|placed| placed.is_none()))
        };
        let (cmb, cmb_invalid) = place(cmb, control.cmb);
        let (mut pmr, mut pmr_invalid) = place(pmr, control.pmr);
        let overlap =
            |a: &OwnMemory, b: &OwnMemory| a.iova < b.iova + b.len && b.iova < a.iova + a.len;
        if let (Some(a), Some(b)) = (&cmb, &pmr)
            && overlap(a, b)
        {
            (pmr, pmr_invalid) = (None, true);
        }
        self.memory.translator.set_own(cmb.into_iter().chain(pmr).collect());
        let not_ready = self.shared.memory.pmr.is_some() && !control.pmr_enabled;
        let pmrsts = Pmrsts::default().with_nrdy(not_ready).with_cbai(pmr_invalid);
        self.shared.registers.set_memory_status(cmb_invalid, pmrsts);
    }
}
