//! Controller registers (Base 2.0, 3.1.3) as a host and the controller's core share them.
//!
//! Host threads write what a host may write and leave a note in [`Events`]; the controller's
//! core reads the notes once a pass, acts, and is the only one that writes CSTS. Nothing waits.

mod memory;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use oxblock_nvme::pmr::Pmrsts;
use oxblock_nvme::regs::{self, Cap, Cc, Crto, Csts};

use memory::MemoryRegisters;
pub(crate) use memory::{MemoryCapabilities, MemoryControl};

/// Something for the controller's core to look at. Bits of one word, so that a pass without
/// news costs one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Events(pub(crate) u32);

impl Events {
    /// CC has been written, or the function was reset.
    pub(crate) const CONTROL: Events = Events(1 << 0);
    /// A doorbell that belongs to no queue has been written.
    pub(crate) const INVALID_DOORBELL: Events = Events(1 << 1);
    /// The controller is to stop for good.
    pub(crate) const STOP: Events = Events(1 << 2);
    /// A notice waits in the mailbox of the owner.
    pub(crate) const NOTICE: Events = Events(1 << 3);
    /// The control registers of memory in BARs have been written, or the function was reset.
    pub(crate) const MEMORY: Events = Events(1 << 4);

    pub(crate) fn has(self, other: Events) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The registers below the doorbells.
pub(crate) struct Registers {
    cap: Cap,
    version: u32,
    crto: Crto,
    /// CC in the low half. In the high half a count that moves whenever EN does, so that a
    /// pulse which is over before the controller looks is still seen.
    cc: AtomicU64,
    /// The count that the controller has acted on.
    acknowledged: AtomicU32,
    csts: AtomicU32,
    aqa: AtomicU32,
    asq: AtomicU64,
    acq: AtomicU64,
    memory: MemoryRegisters,
    events: AtomicU32,
}

/// CC as it stands, and how often EN has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) cc: Cc,
    pub(crate) edges: u32,
}

/// What a write to a register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Nothing to do.
    Quietly,
    /// The controller's core should look.
    Event,
}

impl Registers {
    pub(crate) fn new(cap: Cap, version: u32, crto: Crto, memory: MemoryCapabilities) -> Registers {
        Registers {
            memory: MemoryRegisters::new(memory),
            cap,
            version,
            crto,
            cc: AtomicU64::new(0),
            acknowledged: AtomicU32::new(0),
            csts: AtomicU32::new(0),
            aqa: AtomicU32::new(0),
            asq: AtomicU64::new(0),
            acq: AtomicU64::new(0),
            events: AtomicU32::new(0),
        }
    }

    /// Reads 4 or 8 bytes at an aligned offset below the doorbells. What is not there reads
    /// as zero.
    pub(crate) fn read(&self, offset: u64, size: u8) -> u64 {
        if size == 8 {
            return self.word(offset) | self.word(offset + 4) << 32;
        }
        self.word(offset)
    }

    /// Writes 4 or 8 bytes at an aligned offset below the doorbells.
    pub(crate) fn write(&self, offset: u64, size: u8, value: u64) -> Written {
        if size == 8 {
            let low = self.write_word(offset, value as u32);
            let high = self.write_word(offset + 4, (value >> 32) as u32);
            return if low == Written::Event { low } else { high };
        }
        self.write_word(offset, value as u32)
    }

    /// The reset of the function: registers at their defaults, EN cleared. Returns the count
    /// that the controller will [acknowledge](Registers::acknowledged) when it is quiet.
    pub(crate) fn reset(&self) -> u32 {
        self.aqa.store(0, Ordering::Relaxed);
        self.asq.store(0, Ordering::Relaxed);
        self.acq.store(0, Ordering::Relaxed);
        self.memory.reset();
        let before = self.cc.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
            Some((old >> 32).wrapping_add(1) << 32)
        });
        // The closure always agrees, so both arms hold the former value.
        let (Ok(before) | Err(before)) = before;
        self.raise(Events(Events::CONTROL.0 | Events::MEMORY.0));
        ((before >> 32) as u32).wrapping_add(1)
    }

    /// Leaves a note for the controller's core.
    pub(crate) fn raise(&self, events: Events) {
        self.events.fetch_or(events.0, Ordering::Release);
    }

    /// Takes the notes.
    #[inline]
    pub(crate) fn take_events(&self) -> Events {
        if self.events.load(Ordering::Relaxed) == 0 {
            return Events(0);
        }
        Events(self.events.swap(0, Ordering::Acquire))
    }

    pub(crate) fn cap(&self) -> Cap {
        self.cap
    }

    pub(crate) fn control(&self) -> Control {
        let word = self.cc.load(Ordering::Acquire);
        Control { cc: Cc(word as u32), edges: (word >> 32) as u32 }
    }

    pub(crate) fn aqa(&self) -> regs::Aqa {
        regs::Aqa(self.aqa.load(Ordering::Relaxed))
    }

    /// Base of the admin submission queue; the low twelve bits are reserved.
    pub(crate) fn asq(&self) -> u64 {
        self.asq.load(Ordering::Relaxed) & !0xfff
    }

    /// Base of the admin completion queue; the low twelve bits are reserved.
    pub(crate) fn acq(&self) -> u64 {
        self.acq.load(Ordering::Relaxed) & !0xfff
    }

    pub(crate) fn csts(&self) -> Csts {
        Csts(self.csts.load(Ordering::Acquire))
    }

    /// By the controller's core only. Whoever reads the new value sees all that was written
    /// to memory before.
    pub(crate) fn set_csts(&self, csts: Csts) {
        self.csts.store(csts.0, Ordering::Release);
    }

    /// What the host wants of memory in BARs.
    pub(crate) fn memory_control(&self) -> MemoryControl {
        self.memory.control()
    }

    /// By the controller's core only: whether the address of the Controller Memory Buffer is
    /// invalid, and how the Persistent Memory Region is.
    pub(crate) fn set_memory_status(&self, cmb_invalid: bool, pmrsts: Pmrsts) {
        self.memory.set_status(cmb_invalid, pmrsts);
    }

    /// The count of EN's moves that the controller has acted on.
    pub(crate) fn acknowledged(&self) -> u32 {
        self.acknowledged.load(Ordering::Acquire)
    }

    pub(crate) fn acknowledge(&self, edges: u32) {
        self.acknowledged.store(edges, Ordering::Release);
    }

    fn word(&self, offset: u64) -> u64 {
        let low = |value: u64| value & 0xffff_ffff;
        match offset {
            regs::CAP => low(self.cap.0),
            CAP_HIGH => self.cap.0 >> 32,
            regs::VS => u64::from(self.version),
            regs::CC => low(self.cc.load(Ordering::Acquire)),
            regs::CSTS => u64::from(self.csts.load(Ordering::Acquire)),
            regs::AQA => u64::from(self.aqa.load(Ordering::Relaxed)),
            regs::ASQ => low(self.asq()),
            ASQ_HIGH => self.asq() >> 32,
            regs::ACQ => low(self.acq()),
            ACQ_HIGH => self.acq() >> 32,
            regs::CRTO => u64::from(self.crto.0),
            _ => self.memory.word(offset),
        }
    }

    fn write_word(&self, offset: u64, value: u32) -> Written {
        match offset {
            regs::CC => {
                self.write_cc(value);
                return Written::Event;
            }
            regs::AQA => self.aqa.store(value & 0x0fff_0fff, Ordering::Relaxed),
            regs::ASQ => put_half(&self.asq, 0, value),
            ASQ_HIGH => put_half(&self.asq, 32, value),
            regs::ACQ => put_half(&self.acq, 0, value),
            ACQ_HIGH => put_half(&self.acq, 32, value),
            _ if self.memory.write(offset, value) => {
                self.raise(Events::MEMORY);
                return Written::Event;
            }
            // Interrupt masks do nothing with MSI-X (3.1.3.3); the rest is read-only or absent.
            _ => {}
        }
        Written::Quietly
    }

    fn write_cc(&self, value: u32) {
        let _ = self.cc.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
            let moved = Cc(old as u32).en() != Cc(value).en();
            let edges = ((old >> 32) as u32).wrapping_add(u32::from(moved));
            Some(u64::from(edges) << 32 | u64::from(value))
        });
        self.raise(Events::CONTROL);
    }
}

const CAP_HIGH: u64 = regs::CAP + 4;
const ASQ_HIGH: u64 = regs::ASQ + 4;
const ACQ_HIGH: u64 = regs::ACQ + 4;

fn put_half(word: &AtomicU64, shift: u32, value: u32) {
    let mask = 0xffff_ffff << shift;
    let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
        Some(old & !mask | u64::from(value) << shift)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> Registers {
        let none = MemoryCapabilities::default();
        Registers::new(Cap(0x1122_3344_5566_7788), 0x2_0000, Crto(9), none)
    }

    #[test]
    fn wide_and_narrow_accesses_see_the_same_registers() {
        let r = registers();
        assert_eq!(r.read(regs::CAP, 8), 0x1122_3344_5566_7788);
        assert_eq!(r.read(4, 4), 0x1122_3344);
        assert_eq!(r.read(regs::VS, 4), 0x2_0000);
        r.write(regs::ASQ, 8, 0x1_2345_6fff);
        assert_eq!(r.read(regs::ASQ, 8), 0x1_2345_6000);
        r.write(regs::ASQ + 4, 4, 7);
        assert_eq!(r.asq(), 0x7_2345_6000);
        r.write(regs::AQA, 4, u64::MAX);
        assert_eq!(r.aqa().0, 0x0fff_0fff);
        assert_eq!(r.read(regs::AQA, 4), 0x0fff_0fff);
    }

    #[test]
    fn read_only_and_absent_registers_ignore_writes() {
        let r = registers();
        for offset in (0..0x1000).step_by(8) {
            if ![regs::CC - 4, regs::AQA - 4, regs::ASQ, regs::ACQ].contains(&offset) {
                r.write(offset, 8, u64::MAX);
            }
        }
        assert_eq!(r.read(regs::CAP, 8), 0x1122_3344_5566_7788);
        assert_eq!(r.csts(), Csts(0));
        assert_eq!(r.read(regs::CMBLOC, 8), 0);
        assert_eq!(r.read(0xffc, 4), 0);
        assert_eq!(r.read(0xff8, 8), 0);
    }

    /// EN went 1, 0, 1 before the controller looked, which then took the second enable for
    /// the first and kept serving the queues of the old one.
    #[test]
    fn a_pulse_on_enable_is_seen() {
        let r = registers();
        r.write(regs::CC, 4, 1);
        let before = r.control();
        assert!(r.take_events().has(Events::CONTROL) && r.take_events().is_empty());
        r.write(regs::CC, 4, 0);
        r.write(regs::CC, 4, 1);
        let after = r.control();
        assert_eq!(after.cc, before.cc);
        assert_eq!(after.edges, before.edges + 2);
        r.write(regs::CC, 4, 1 | 1 << 14);
        assert_eq!(r.control().edges, after.edges);
    }

    #[test]
    fn a_reset_clears_what_the_host_wrote() {
        let r = registers();
        r.write(regs::AQA, 4, 3);
        r.write(regs::CC, 4, 1);
        let edges = r.reset();
        assert_eq!(edges, 2);
        assert_eq!((r.control().cc, r.control().edges), (Cc(0), 2));
        assert_eq!(r.aqa().0, 0);
    }
}
