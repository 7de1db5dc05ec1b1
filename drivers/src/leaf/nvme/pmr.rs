//! The Persistent Memory Region (Base 2.0, 8.17): memory of the controller that outlives a power
//! cycle, for the embedder's own use.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_mem::Buf;
use oxblock_nvme::pmr::{PMRCTL_EN, Pmrcap, Pmrebs, Pmrsts};
use oxblock_nvme::regs;
use oxblock_pci::{Bar, Reg32};

use super::controller::Controller;
use super::hardware::{Hardware, pci_error};
use super::health::Health;

/// How often a wait looks at PMRSTS.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// A Persistent Memory Region that is enabled.
///
/// What is written to its memory is persistent once [`PersistentMemory::flush`] has said so, and
/// not before. It is off while the controller's function is reset: what is written then is lost, and
/// a flush afterwards cannot tell. It is enabled again with the controller.
pub struct PersistentMemory {
    bar: Arc<dyn Bar>,
    status: Reg32,
    by_status: bool,
    elasticity_bytes: u64,
    /// Keeps the controller attached.
    controller: Arc<Controller>,
}

impl PersistentMemory {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.bar.len()
    }

    /// False: a BAR has some length.
    pub fn is_empty(&self) -> bool {
        self.bar.is_empty()
    }

    /// Bytes that it takes at the speed of its bus before writes become slow; 0 is not reported.
    pub fn elasticity_bytes(&self) -> u64 {
        self.elasticity_bytes
    }

    /// A part of it, to be read and written by copies. I/O on a node copies to and from it, too.
    ///
    /// # Errors
    /// Offset or length is not a multiple of 4 KiB, the part does not lie inside the region, or the
    /// BAR cannot be mapped.
    pub fn memory(&self, offset: u64, len: u64) -> Result<Buf, Error> {
        let memory = self.bar.memory(offset, len).map_err(pci_error);
        memory.map_err(|error| error.context(self.controller.name()))
    }

    /// All that this core wrote to it before is persistent when this returns, by the barrier that
    /// the controller names (PMRWBM): a read of its status, or of the region.
    ///
    /// # Errors
    /// The controller is gone, the region is not ready, or it is not what it was: read-only or
    /// unreliable.
    pub fn flush(&self) -> Result<(), Error> {
        let named = |error: Error| error.context(self.controller.name());
        if self.controller.hardware().health() == Health::Gone {
            return Err(named(Error::from(Health::Gone.fault(0))));
        }
        fence(Ordering::SeqCst);
        if !self.by_status {
            let _ = self.bar.read64(0);
        }
        check(Pmrsts(self.status.read())).map_err(named)
    }
}

impl std::fmt::Debug for PersistentMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("PersistentMemory");
        out.field("controller", &self.controller.name()).field("len", &self.len()).finish()
    }
}

impl Controller {
    /// Enables the Persistent Memory Region and gives it to the caller.
    ///
    /// # Errors
    /// In words: there is none, its registers name a BAR that there is not, it does not become
    /// ready in time, it is not healthy, or it names no way to make writes persistent.
    pub async fn persistent_memory(
        self: &Arc<Self>,
        core: &Core,
    ) -> Result<PersistentMemory, Error> {
        let opened = self.open_persistent_memory(core).await;
        opened.map_err(|error| error.context(format!("persistent memory of {}", self.name())))
    }

    async fn open_persistent_memory(
        self: &Arc<Self>,
        core: &Core,
    ) -> Result<PersistentMemory, Error> {
        let refuse = |text: &str| Err(Error::new(ErrorKind::NotSupported, text));
        self.settled(core).await?;
        let hardware = self.hardware();
        if !hardware.cap().pmrs() {
            return refuse("the controller has none (CAP.PMRS 0)");
        }
        let cap = Pmrcap(hardware.register(regs::PMRCAP)?.read());
        // BARs 0 and 1 hold the registers.
        if !(2..=5).contains(&cap.bir()) {
            return refuse("it is said to be in a BAR that cannot hold it (PMRCAP.BIR)");
        }
        let bar = self.function().bar(cap.bir()).map_err(pci_error)?;
        if !cap.barrier_by_status() && !cap.barrier_by_read() {
            return refuse("nothing makes writes to it persistent (PMRCAP.PMRWBM 0)");
        }
        enable(core, hardware).await?;
        self.features().keep_persistent_memory();
        Ok(PersistentMemory {
            bar,
            status: hardware.register(regs::PMRSTS)?,
            by_status: cap.barrier_by_status(),
            elasticity_bytes: Pmrebs(hardware.register(regs::PMREBS)?.read()).bytes(),
            controller: self.clone(),
        })
    }
}

/// Enables the region and waits until it is ready, within PMRTO.
pub(super) async fn enable(core: &Core, hardware: &Hardware) -> Result<(), Error> {
    let timeout = Pmrcap(hardware.register(regs::PMRCAP)?.read()).timeout();
    let status = hardware.register(regs::PMRSTS)?;
    hardware.register(regs::PMRCTL)?.write(PMRCTL_EN);
    let until_ns = core.now().saturating_add(timeout.as_nanos() as u64);
    loop {
        // The time first: a thread that was held up looks once more before it gives up.
        let late = core.now() >= until_ns;
        let now = Pmrsts(status.read());
        if !now.nrdy() || late {
            return check(now);
        }
        core.sleep(LOOK_INTERVAL).await;
    }
}

fn check(status: Pmrsts) -> Result<(), Error> {
    let fail = |kind, text: &str| Err(Error::new(kind, format!("{text} (PMRSTS {:#x})", status.0)));
    if status.0 == u32::MAX {
        return fail(ErrorKind::Gone, "the controller is gone");
    }
    match status.hsts() {
        _ if status.nrdy() => fail(ErrorKind::TimedOut, "it is not ready"),
        0 => Ok(()),
        1 => fail(ErrorKind::Media, "what it held was not restored"),
        2 => fail(ErrorKind::ReadOnly, "it is read-only"),
        _ => fail(ErrorKind::Media, "it is unreliable"),
    }
}
