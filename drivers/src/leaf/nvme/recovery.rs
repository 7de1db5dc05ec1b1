//! Resets of a controller, led by a task of its home core, with I/O in flight on other cores.
//!
//! ```text
//! Live -> Resetting   disable; where that fails, reset the function; where that fails too, cut it
//!                     off from memory and give it up
//!      -> Down        every queue pair decides what becomes of its commands, and parks
//!      -> Restarting  enable, set up as at attach, create the queue pairs anew
//!      -> Live        the queue pairs send what is to be sent again
//! ```
//!
//! Each step is bounded in time. A reset that fails is tried once more, by way of a reset of the
//! function; one that fails then ends in `Failed`, and with it all I/O.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use oxblock_engine::{Core, Error, ErrorKind, EventKind};

use super::blocking;
use super::controller::Controller;
use super::events;
use super::health::Health;
use super::looks::Looks;
use super::queue_pair::{Created, create_queues};
use super::setup::{Setup, set_up};

/// How long a core may take to park its queue pairs.
const PARK_NS: u64 = 30_000_000_000;

/// What is known of a controller's resets.
#[derive(Default)]
pub(super) struct Recovery {
    /// The one that is under way was asked for: nothing is wrong with the commands that it ends.
    asked: AtomicBool,
    pub done: AtomicU64,
    pub failed: AtomicU64,
    /// Why the last one failed.
    why: Mutex<Option<Error>>,
}

impl Recovery {
    /// Whether the reset that is under way was asked for.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// The next reset is asked for.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
    }

    /// Why the controller was given up, if it was.
    pub fn why(&self) -> Option<Error> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Resets a controller that is `Resetting`. It is `Live` afterwards, or over.
pub(super) async fn reset(core: &Core, controller: &Arc<Controller>) {
    let recovery = controller.recovery();
    let asked = recovery.is_asked();
    let why = if asked { "is being reset, as asked" } else { "is being reset; I/O waits" };
    core.publish(controller.name(), EventKind::ResetBegun, why);
    let mut outcome = attempt(core, controller, false).await;
    let gone = |error: &Error| error.kind() == ErrorKind::Gone;
    if outcome.as_ref().is_err_and(|error| !gone(error)) {
        recovery.failed.fetch_add(1, Ordering::Relaxed);
        outcome = attempt(core, controller, true).await;
    }
    recovery.asked.store(false, Ordering::Release);
    match outcome {
        Ok(()) => {
            recovery.done.fetch_add(1, Ordering::Relaxed);
            core.publish(controller.name(), EventKind::ResetDone, "was reset, and I/O goes on");
        }
        Err(error) => {
            recovery.failed.fetch_add(1, Ordering::Relaxed);
            let text = format!("could not be reset: {error}");
            *recovery.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            give_up(core, controller).await;
            core.publish(controller.name(), EventKind::ResetFailed, text);
        }
    }
    controller.stations().wake();
}

/// One way from `Resetting` to `Live`.
async fn attempt(core: &Core, controller: &Arc<Controller>, harder: bool) -> Result<(), Error> {
    let hardware = controller.hardware();
    hardware.fail();
    bring_down(core, controller, harder).await?;
    park(core, controller).await?;
    controller.admin().restart();
    let Some(life) = hardware.restart() else { return Err(overtaken(controller)) };
    let outcome = bring_up(core, controller, life).await;
    if outcome.is_err() {
        hardware.fail();
    }
    outcome
}

/// Until the controller is disabled, and reaches memory no more (row 21).
async fn bring_down(core: &Core, controller: &Controller, harder: bool) -> Result<(), Error> {
    let hardware = controller.hardware();
    let disabled = match harder {
        false => hardware.disable(core).await,
        true => hardware.disable_now(core).await,
    };
    if disabled.as_ref().is_err_and(|error| error.kind() == ErrorKind::Gone) {
        return disabled;
    }
    if harder || disabled.is_err() {
        // Row 33.
        blocking::reset_function(core, controller.function()).await?;
        hardware.disable_now(core).await?;
    }
    hardware.down();
    Ok(())
}

/// Until every queue pair is parked, or has ended.
async fn park(core: &Core, controller: &Controller) -> Result<(), Error> {
    let life = controller.hardware().pulse().life();
    let begun = core.now();
    let mut looks = Looks::new();
    loop {
        for station in controller.stations().all() {
            station.park_again(life);
            station.wake();
        }
        controller.admin().restart();
        if controller.stations().are_parked() {
            return Ok(());
        }
        if core.now() - begun > PARK_NS {
            let text = "a core did not let go of its I/O queue";
            return Err(Error::new(ErrorKind::TimedOut, text));
        }
        looks.pause(core).await;
    }
}

/// From enabled to all that there was before.
async fn bring_up(core: &Core, controller: &Arc<Controller>, life: u32) -> Result<(), Error> {
    let hardware = controller.hardware();
    let (aqa, asq, acq) = controller.admin().expose()?;
    hardware.enable(core, aqa, asq, acq).await?;
    let work = async {
        let known = controller.known();
        let setup = set_up(core, controller.admin(), hardware, known).await?;
        controller.recognize(&setup)?;
        recreate(core, controller, life, &setup).await?;
        Ok(setup)
    };
    let setup = while_restarting(controller, work).await?;
    controller.limit_queues(setup.io_queues);
    controller.set_firmware(&setup.page);
    if !hardware.revive() {
        return Err(overtaken(controller));
    }
    events::begin(core, controller, setup.page.aerl);
    follow(core, controller, setup);
    Ok(())
}

/// Lets open nodes follow what the controller has now. A task of its own: it waits for all cores,
/// which a further reset must not.
fn follow(core: &Core, controller: &Arc<Controller>, setup: Setup) {
    let (there, controller) = (core.clone(), controller.clone());
    drop(core.spawn(async move {
        controller.namespaces_known().renew(&there, controller.hardware(), setup.found).await;
    }));
}

/// Carries on with the set-up for as long as no further reset is due.
async fn while_restarting<T>(
    controller: &Controller,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Poll::Ready(outcome) = work.as_mut().poll(context) {
            return Poll::Ready(outcome);
        }
        match controller.hardware().health() {
            Health::Restarting => Poll::Pending,
            _ => Poll::Ready(Err(overtaken(controller))),
        }
    })
    .await
}

/// Creates the queue pairs that are parked, each with the memory that it had.
async fn recreate(
    core: &Core,
    controller: &Controller,
    life: u32,
    setup: &Setup,
) -> Result<(), Error> {
    for station in controller.stations().all() {
        if !station.create(life) {
            continue;
        }
        if !setup.has(&station.shape) {
            station.strand(life);
            continue;
        }
        if station.qid > setup.io_queues {
            station.refuse(life);
            continue;
        }
        match create_queues(core, controller, &station).await? {
            Created::Both => {}
            Created::Neither(_) | Created::Unknown(_) => station.refuse(life),
        }
    }
    Ok(())
}

/// The end: makes sure that the controller reaches no memory, and lets all I/O fail.
pub(super) async fn give_up(core: &Core, controller: &Controller) {
    let hardware = controller.hardware();
    hardware.fail();
    if !hardware.is_quiet() && hardware.disable_now(core).await.is_err() {
        // A function that does not master the bus reads and writes nothing.
        let _ = oxblock_pci::disable(controller.function().config());
    }
    hardware.retire();
    controller.admin().wake_all();
}

/// Something else went wrong during a reset.
fn overtaken(controller: &Controller) -> Error {
    match controller.hardware().status() {
        Err(error) => error,
        Ok(csts) => {
            let text =
                format!("the controller failed while it was being reset (CSTS {:#x})", csts.0);
            Error::new(ErrorKind::Io, text)
        }
    }
}

impl Controller {
    /// Resets the controller, without losing I/O: what is in flight is sent again, and what is
    /// submitted meanwhile waits. A reset that is under way counts. It may be asked from any core.
    ///
    /// # Errors
    /// The controller did not come back, is gone, or was shut down; all its I/O fails.
    pub async fn reset(&self, core: &Core) -> Result<(), Error> {
        let named = |error: Error| error.context(format!("resetting {}", self.name()));
        self.settled(core).await.map_err(named)?;
        let life = self.hardware().pulse().life();
        self.recovery().ask();
        self.hardware().fail();
        let mut looks = Looks::new();
        while self.hardware().pulse().life() == life && !self.hardware().health().is_over() {
            looks.pause(core).await;
        }
        self.settled(core).await.map_err(named)
    }

    /// Waits until no reset is under way.
    ///
    /// # Errors
    /// The controller is over: why.
    pub(super) async fn settled(&self, core: &Core) -> Result<(), Error> {
        let mut looks = Looks::new();
        loop {
            let health = self.hardware().health();
            if health == Health::Live {
                return Ok(());
            }
            if health.is_over() {
                let why = self.recovery().why().filter(|_| health == Health::Failed);
                return Err(why.unwrap_or_else(|| Error::from(health.fault(0))));
            }
            looks.pause(core).await;
        }
    }
}
