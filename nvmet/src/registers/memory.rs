//! The registers of memory in BARs: Controller Memory Buffer (Base 2.0, 3.1.3.11 to 3.1.3.15) and
//! Persistent Memory Region (3.1.3.22 to 3.1.3.28). A controller without has zeroes there.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use oxblock_nvme::cmb::{CMBSTS_CBAI, Cmbloc, Cmbmsc, Cmbsz};
use oxblock_nvme::pmr::{PMRCTL_EN, PMRMSCL_CMSE, Pmrcap, Pmrsts};
use oxblock_nvme::regs;

use super::put_half;

const CMBMSC_HIGH: u64 = regs::CMBMSC + 4;

/// What there is; all zeroes is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryCapabilities {
    pub(crate) cmbloc: Cmbloc,
    pub(crate) cmbsz: Cmbsz,
    pub(crate) pmrcap: Pmrcap,
}

/// The registers.
pub(super) struct MemoryRegisters {
    capabilities: MemoryCapabilities,
    cmbmsc: AtomicU64,
    cmbsts: AtomicU32,
    pmrctl: AtomicU32,
    pmrsts: AtomicU32,
    pmrmsc: AtomicU64,
}

/// What a host wants of memory in BARs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryControl {
    /// The address of the Controller Memory Buffer, if it is to have one.
    pub(crate) cmb: Option<u64>,
    /// The Persistent Memory Region is enabled.
    pub(crate) pmr_enabled: bool,
    /// Its address, if it is to have one.
    pub(crate) pmr: Option<u64>,
}

impl MemoryRegisters {
    pub(super) fn new(capabilities: MemoryCapabilities) -> MemoryRegisters {
        let registers = MemoryRegisters {
            capabilities,
            cmbmsc: AtomicU64::new(0),
            cmbsts: AtomicU32::new(0),
            pmrctl: AtomicU32::new(0),
            pmrsts: AtomicU32::new(0),
            pmrmsc: AtomicU64::new(0),
        };
        registers.reset();
        registers
    }

    /// Defaults, as after a reset of the function. A reset of the controller changes nothing here.
    pub(super) fn reset(&self) {
        self.cmbmsc.store(0, Ordering::Relaxed);
        self.cmbsts.store(0, Ordering::Relaxed);
        self.pmrctl.store(0, Ordering::Relaxed);
        self.pmrmsc.store(0, Ordering::Relaxed);
        self.set_status(false, Pmrsts::default().with_nrdy(self.has_pmr()));
    }

    pub(super) fn control(&self) -> MemoryControl {
        let cmbmsc = Cmbmsc(self.cmbmsc.load(Ordering::Acquire));
        let pmrmsc = self.pmrmsc.load(Ordering::Acquire);
        let pmr_enabled = self.pmrctl.load(Ordering::Acquire) & PMRCTL_EN != 0;
        let pmr_placed = pmr_enabled && pmrmsc & u64::from(PMRMSCL_CMSE) != 0;
        MemoryControl {
            cmb: (cmbmsc.cre() && cmbmsc.cmse()).then(|| cmbmsc.cba()),
            pmr_enabled,
            pmr: pmr_placed.then_some(pmrmsc & !0xfff),
        }
    }

    /// By the controller's core only: whether the address of the Controller Memory Buffer is
    /// invalid, and how the Persistent Memory Region is.
    pub(super) fn set_status(&self, cmb_invalid: bool, pmrsts: Pmrsts) {
        let cmbsts = if cmb_invalid { CMBSTS_CBAI } else { 0 };
        self.cmbsts.store(cmbsts, Ordering::Release);
        self.pmrsts.store(pmrsts.0, Ordering::Release);
    }

    pub(super) fn word(&self, offset: u64) -> u64 {
        let cmbmsc = self.cmbmsc.load(Ordering::Relaxed);
        let told = Cmbmsc(cmbmsc).cre();
        let pmrmsc = self.pmrmsc.load(Ordering::Relaxed);
        match offset {
            regs::CMBLOC if told => self.capabilities.cmbloc.0.into(),
            regs::CMBSZ if told => self.capabilities.cmbsz.0.into(),
            regs::CMBMSC => cmbmsc & 0xffff_ffff,
            CMBMSC_HIGH => cmbmsc >> 32,
            regs::CMBSTS => self.cmbsts.load(Ordering::Acquire).into(),
            regs::PMRCAP => self.capabilities.pmrcap.0.into(),
            regs::PMRCTL => self.pmrctl.load(Ordering::Relaxed).into(),
            regs::PMRSTS => self.pmrsts.load(Ordering::Acquire).into(),
            regs::PMRMSCL => pmrmsc & 0xffff_ffff,
            regs::PMRMSCU => pmrmsc >> 32,
            _ => 0,
        }
    }

    /// False if nothing is there to be written.
    pub(super) fn write(&self, offset: u64, value: u32) -> bool {
        const RESERVED: u32 = 0xffc;
        match offset {
            regs::CMBMSC if self.has_cmb() => put_half(&self.cmbmsc, 0, value & !RESERVED),
            CMBMSC_HIGH if self.has_cmb() => put_half(&self.cmbmsc, 32, value),
            regs::PMRCTL if self.has_pmr() => {
                self.pmrctl.store(value & PMRCTL_EN, Ordering::Release);
            }
            regs::PMRMSCL if self.has_pmr() => {
                put_half(&self.pmrmsc, 0, value & (!0xfff | PMRMSCL_CMSE));
            }
            regs::PMRMSCU if self.has_pmr() => put_half(&self.pmrmsc, 32, value),
            _ => return false,
        }
        true
    }

    fn has_cmb(&self) -> bool {
        self.capabilities.cmbsz.sz() != 0
    }

    fn has_pmr(&self) -> bool {
        self.capabilities.pmrcap.0 != 0
    }
}
