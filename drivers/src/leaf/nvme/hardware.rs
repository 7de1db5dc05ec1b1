//! The registers of a controller, and the ways to stop and start it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oxblock_engine::{Core, CoreWaker, Error, ErrorKind};
use oxblock_nvme::regs::{self, Cap, Cc, Crto, Csts};
use oxblock_pci::{Bar, Function, PciError, Reg32, Reg64};

use super::Quirks;
use super::health::{Health, Heart, Pulse};
use super::looks::Looks;

/// The unit of CAP.TO and CRTO, and the least that a controller gets: 0 is not "for ever", and
/// not "at once" either.
const READY_UNIT: Duration = Duration::from_millis(500);
/// How long the drop of a controller that was never shut down waits for RDY=0.
const DROP_WAIT: Duration = Duration::from_millis(200);
/// How long some devices must be left alone after CC.EN was cleared.
const READY_DELAY: Duration = Duration::from_millis(2300);

/// The registers of one controller.
pub(super) struct Hardware {
    heart: Heart,
    /// Looks after the controller.
    home: CoreWaker,
    address: String,
    bar: Arc<dyn Bar>,
    cap: Cap,
    version: u32,
    /// max(CAP.TO x 500 ms, CRTO), and never zero (row 3).
    ready_timeout: Duration,
    cc: Reg32,
    csts: Reg32,
    /// What is known of the device; more, once it has said who it is.
    quirks: AtomicU32,
}

impl Hardware {
    /// Finds the registers of a controller that the core of `home` will look after, and its
    /// capabilities.
    ///
    /// # Errors
    /// The function has no BAR 0 with registers, or reads as all ones.
    pub fn open(function: &dyn Function, home: CoreWaker, quirks: Quirks) -> Result<Self, Error> {
        let bar = function.bar(0).map_err(pci_error)?;
        let reg32 = |offset| Reg32::new(&bar, offset).map_err(pci_error);
        let cap = Reg64::new(&bar, regs::CAP).map_err(pci_error)?.read();
        let (cc, csts) = (reg32(regs::CC)?, reg32(regs::CSTS)?);
        if cap == u64::MAX || Csts(csts.read()).is_gone() {
            return Err(gone());
        }
        let (cap, version) = (Cap(cap), reg32(regs::VS)?.read());
        let mut units = u32::from(cap.to());
        if cap.crwms() || cap.crims() {
            units = units.max(u32::from(Crto(reg32(regs::CRTO)?.read()).crwmt()));
        }
        Ok(Self {
            heart: Heart::new(),
            home,
            address: function.address(),
            cap,
            version,
            ready_timeout: READY_UNIT * units.max(1),
            cc,
            csts,
            quirks: AtomicU32::new(quirks.bits()),
            bar,
        })
    }

    /// Where the controller is, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Controller Capabilities.
    pub fn cap(&self) -> Cap {
        self.cap
    }

    /// The VS register.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What is known of the device.
    pub fn quirks(&self) -> Quirks {
        Quirks::from_bits_truncate(self.quirks.load(Ordering::Relaxed))
    }

    /// This is known of it from now on.
    pub fn set_quirks(&self, quirks: Quirks) {
        self.quirks.store(quirks.bits(), Ordering::Relaxed);
    }

    /// Entries of the largest I/O queue (row 5).
    pub fn entries_max(&self) -> u16 {
        let quirks = self.quirks();
        match self.cap.mqes() {
            0 if quirks.contains(Quirks::MQES_IS_64) => 64,
            _ if quirks.contains(Quirks::TWO_ENTRIES) => 2,
            mqes => mqes.saturating_add(1),
        }
    }

    /// A 32-bit register, such as a doorbell.
    pub fn register(&self, offset: u64) -> Result<Reg32, Error> {
        Reg32::new(&self.bar, offset).map_err(pci_error)
    }

    /// A 64-bit register.
    pub fn register64(&self, offset: u64) -> Result<Reg64, Error> {
        Reg64::new(&self.bar, offset).map_err(pci_error)
    }

    /// The largest I/O queue ID whose doorbells lie inside the BAR; 0 if there is none.
    pub fn qid_max(&self) -> u16 {
        let stride = regs::doorbell_stride(self.cap.dstrd());
        // A doorbell takes 4 bytes of its stride.
        let room = self.bar.len().saturating_sub(regs::DOORBELLS);
        let doorbells = (room + stride).saturating_sub(4) / stride;
        u16::try_from((doorbells / 2).saturating_sub(1)).unwrap_or(u16::MAX)
    }

    /// What is known of the controller, in one load.
    #[inline]
    pub fn pulse(&self) -> Pulse {
        self.heart.pulse()
    }

    /// Where the controller stands.
    pub fn health(&self) -> Health {
        self.pulse().health()
    }

    /// The controller reaches memory no more.
    pub fn is_quiet(&self) -> bool {
        self.health().is_quiet()
    }

    /// Something went wrong that only a reset cures. The home core takes it from here.
    pub fn fail(&self) {
        if self.heart.advance(&[Health::Live, Health::Restarting], Health::Resetting) {
            self.home.wake();
        }
    }

    /// Has the home core look.
    pub fn wake_home(&self) {
        self.home.wake();
    }

    /// Looks at the controller: notices that it is gone or failed (rows 1 and 4), and lets the
    /// queues know when it is well. For the home core, now and then.
    pub fn watch(&self) {
        if self.is_quiet() {
            return;
        }
        match self.status() {
            Ok(csts) if csts.cfs() => self.fail(),
            Ok(_) => self.heart.tick(),
            Err(_) => {}
        }
    }

    /// Disables a controller that is being reset, where no task can: called again and again until
    /// it is quiet, by whoever must end now.
    pub fn step(&self) {
        if self.health() != Health::Resetting {
            return;
        }
        let Ok(csts) = self.status() else { return };
        let cc = Cc(self.cc.read());
        if cc.en() {
            self.cc.write(cc.with_en(false).0);
        } else if !csts.rdy() {
            self.down();
        }
    }

    /// The controller that is being reset was seen to be disabled.
    pub fn down(&self) {
        self.heart.advance(&[Health::Resetting], Health::Down);
    }

    /// The controller that is disabled is about to be enabled: the life that begins with it, or
    /// none if it is not disabled.
    pub fn restart(&self) -> Option<u32> {
        let begun = self.heart.advance(&[Health::Down], Health::Restarting);
        begun.then(|| self.pulse().life())
    }

    /// All that was there before the reset is there again; false if another reset is due.
    pub fn revive(&self) -> bool {
        self.heart.advance(&[Health::Restarting], Health::Live)
    }

    /// The controller is disabled, or cut off from memory, and not used any more.
    pub fn retire(&self) {
        self.heart.end(Health::Failed);
    }

    /// Tries to make a controller quiet that nobody shut down; for drops, which cannot wait long.
    pub fn quiesce_now(&self) {
        self.fail();
        let begun = Instant::now();
        while !self.is_quiet() && begun.elapsed() < DROP_WAIT {
            self.step();
            std::thread::yield_now();
        }
    }

    /// Disables the controller by the book: a controller that is still becoming ready is let
    /// finish first (row 2), then CC.EN=0 and wait for RDY=0.
    ///
    /// # Errors
    /// The controller is gone, or did not disable in time.
    pub async fn disable(&self, core: &Core) -> Result<(), Error> {
        if Cc(self.read(&self.cc)?).en() && !self.status()?.rdy() {
            let ready = |csts: Csts| csts.rdy() || csts.cfs();
            let wait = self.wait(core, self.ready_timeout, "becoming ready", ready);
            if let Err(error) = wait.await
                && error.kind() == ErrorKind::Gone
            {
                return Err(error);
            }
        }
        self.disable_now(core).await
    }

    /// Disables the controller, also one that is becoming ready: it had its time.
    ///
    /// # Errors
    /// As [`Hardware::disable`].
    pub async fn disable_now(&self, core: &Core) -> Result<(), Error> {
        let cc = Cc(self.read(&self.cc)?);
        if cc.en() {
            self.cc.write(cc.with_shn(regs::SHN_NONE).with_en(false).0);
            if self.quirks().contains(Quirks::DELAY_BEFORE_READY) {
                core.sleep(READY_DELAY).await;
            }
        }
        let down = |csts: Csts| !csts.rdy();
        self.wait(core, self.ready_timeout, "disabling (RDY=0)", down).await
    }

    /// Enables the controller with an admin queue pair: its sizes and addresses.
    ///
    /// # Errors
    /// The controller is gone, fatally failed, or did not become ready in time.
    pub async fn enable(&self, core: &Core, aqa: u32, asq: u64, acq: u64) -> Result<(), Error> {
        self.register(regs::AQA)?.write(aqa);
        self.register64(regs::ASQ)?.write(asq);
        self.register64(regs::ACQ)?.write(acq);
        let css = if self.cap.css_io() { regs::CSS_ALL } else { regs::CSS_NVM };
        let cc = Cc::default().with_css(css).with_iosqes(6).with_iocqes(4);
        self.cc.write(cc.with_en(true).0);
        let up = |csts: Csts| csts.rdy() || csts.cfs();
        self.wait(core, self.ready_timeout, "enabling (RDY=1)", up).await?;
        if self.status()?.cfs() {
            let text = "enabling: the controller reports a fatal error (CSTS.CFS)";
            return Err(Error::new(ErrorKind::Io, text));
        }
        Ok(())
    }

    /// Tells the controller to shut down (SHN) and waits until it has (row 31), then disables it.
    ///
    /// # Errors
    /// The controller is gone, or did not shut down or disable in time.
    pub async fn shut_down(&self, core: &Core, shn: u8, timeout: Duration) -> Result<(), Error> {
        let cc = Cc(self.read(&self.cc)?);
        self.cc.write(cc.with_shn(shn).0);
        let done = |csts: Csts| csts.shst() == regs::SHST_COMPLETE || csts.cfs();
        let what = "shutting down (SHST=10b)";
        let mut outcome = self.wait(core, timeout, what, done).await;
        if outcome.is_ok() && self.status()?.cfs() {
            let text = format!("{what}: the controller reports a fatal error (CSTS.CFS)");
            outcome = Err(Error::new(ErrorKind::Io, text));
        }
        self.disable(core).await?;
        self.heart.end(Health::ShutDown);
        outcome
    }

    /// Waits for a state of CSTS. The controller that is gone ends any wait at once.
    async fn wait(
        &self,
        core: &Core,
        timeout: Duration,
        what: &str,
        done: impl Fn(Csts) -> bool,
    ) -> Result<(), Error> {
        let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        let deadline_ns = core.now().saturating_add(timeout_ns);
        let mut looks = Looks::new();
        loop {
            // The time first: a thread that was held up looks once more before it gives up.
            let late = core.now() >= deadline_ns;
            let csts = self.status()?;
            if done(csts) {
                return Ok(());
            }
            if late {
                let fatal = if csts.cfs() { ", fatal status" } else { "" };
                let text = format!(
                    "{what}: the controller took longer than {timeout:?} (CSTS {:#x}{fatal})",
                    csts.0
                );
                return Err(Error::new(ErrorKind::TimedOut, text));
            }
            looks.pause(core).await;
        }
    }

    /// CSTS, unless it says that the controller is gone.
    pub fn status(&self) -> Result<Csts, Error> {
        self.read(&self.csts).map(Csts)
    }

    /// A register that never is all ones; once it was, nothing is read any more.
    fn read(&self, register: &Reg32) -> Result<u32, Error> {
        if self.health() == Health::Gone {
            return Err(gone());
        }
        match register.read() {
            u32::MAX => {
                self.heart.end(Health::Gone);
                Err(gone())
            }
            value => Ok(value),
        }
    }
}

/// An error of a PCI function as the engine has them.
/// An error of a PCI function as the engine has them.
pub fn pci_error(error: PciError) -> Error {
    Error::new(ErrorKind::from_errno(error.errno()), error.to_string())
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Gone,
        "the controller's registers read as all ones: it is gone, or not powered",
    )
}
