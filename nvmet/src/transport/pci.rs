//! The controller as a PCI function: registers and doorbells in BAR 0, memory behind them or in
//! BAR 2.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use oxblock_engine::CoreWaker;
use oxblock_nvme::event::Event;
use oxblock_nvme::regs::DOORBELLS;
use oxblock_pci::soft::{Device, Window};

use crate::bar_memory::BarMemory;
use crate::doorbells::Doorbells;
use crate::registers::{Events, Registers, Written};

/// The BAR with the registers (PCIe Transport 1.0, 3.1).
pub(crate) const REGISTER_BAR: u8 = 0;

/// How long a reset of the function waits for the controller to be quiet.
const RESET_WAIT: Duration = Duration::from_secs(10);

/// Notices that wait for the controller's core.
const NOTICES_MAX: usize = 1024;

/// What host threads and the controller's core share.
pub(crate) struct Shared {
    pub(crate) registers: Registers,
    pub(crate) doorbells: Doorbells,
    pub(crate) memory: BarMemory,
    waker: CoreWaker,
    /// The controller has stopped for good: nothing answers.
    stopped: AtomicBool,
    /// The thread that serves the controller.
    server: ThreadId,
    notices: Mutex<Vec<Notice>>,
    /// Flushes that reached a node.
    pub(crate) flushes: AtomicU64,
    /// How often a host took back memory that it had lent.
    pub(crate) broken_promises: AtomicU64,
}

/// Something that the owner of the controller wants its host to know.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Notice {
    /// A namespace has changed.
    NamespaceChanged(u32),
    /// More namespaces have changed than there is room to tell.
    TooManyChanged,
    /// The critical warnings of the SMART log are these.
    CriticalWarning(u8),
    /// Any event, for tests.
    Raw(Event),
}

impl Shared {
    /// To be called on the thread that serves the controller.
    pub(crate) fn new(
        registers: Registers,
        doorbells: Doorbells,
        memory: BarMemory,
        waker: CoreWaker,
    ) -> Shared {
        Shared {
            registers,
            doorbells,
            memory,
            waker,
            stopped: AtomicBool::new(false),
            server: thread::current().id(),
            notices: Mutex::default(),
            flushes: AtomicU64::new(0),
            broken_promises: AtomicU64::new(0),
        }
    }

    /// Wakes the controller's core, if it sleeps. What it should find must be stored before.
    #[inline]
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// Leaves a notice. With too many waiting it is dropped; namespaces are looked up afresh
    /// anyway.
    pub(crate) fn notify(&self, notice: Notice) {
        {
            let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
            if notices.len() < NOTICES_MAX {
                notices.push(notice);
            }
        }
        self.registers.raise(Events::NOTICE);
        self.wake();
    }

    pub(crate) fn take_notices(&self) -> Vec<Notice> {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *notices)
    }

    /// Asks the controller to stop for good.
    pub(crate) fn stop(&self) {
        self.registers.raise(Events::STOP);
        self.wake();
    }

    pub(crate) fn set_stopped(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

impl Device for Shared {
    fn bar_len(&self, bar: u8) -> u64 {
        let registers = if bar == REGISTER_BAR { DOORBELLS + self.doorbells.span() } else { 0 };
        match registers.max(self.memory.end(bar)) {
            0 => 0,
            end => end.next_power_of_two(),
        }
    }

    fn window(&self, bar: u8) -> Option<Window> {
        let doorbells = || self.doorbells.window().filter(|_| bar == REGISTER_BAR);
        self.memory.window(bar).or_else(doorbells).cloned()
    }

    fn read(&self, bar: u8, offset: u64, size: u8) -> u64 {
        if self.is_stopped() {
            return u64::MAX >> (64 - 8 * u32::from(size));
        }
        if offset >= DOORBELLS || bar != REGISTER_BAR {
            // Doorbells are write-only (PCIe Transport 1.0, 3.1.2).
            return self.memory.read(bar, offset, size).unwrap_or(0);
        }
        self.registers.read(offset, size)
    }

    #[inline]
    fn write(&self, bar: u8, offset: u64, size: u8, value: u64) {
        if bar != REGISTER_BAR {
            self.memory.write(bar, offset, size, value);
            return;
        }
        if offset >= DOORBELLS {
            let rung = size == 4 && self.doorbells.ring(offset - DOORBELLS, value as u32);
            if !rung && !self.memory.write(bar, offset, size, value) {
                self.registers.raise(Events::INVALID_DOORBELL);
            }
            return self.wake();
        }
        if self.registers.write(offset, size, value) == Written::Event {
            self.wake();
        }
    }

    /// Returns when the controller is quiet. On the controller's own thread, where waiting
    /// would be for ever, it returns at once: CSTS.RDY tells there.
    fn reset(&self) {
        let edges = self.registers.reset();
        self.wake();
        if thread::current().id() == self.server {
            return;
        }
        let begun = Instant::now();
        while self.registers.acknowledged() != edges
            && !self.is_stopped()
            && begun.elapsed() < RESET_WAIT
        {
            thread::sleep(Duration::from_micros(50));
        }
    }
}
