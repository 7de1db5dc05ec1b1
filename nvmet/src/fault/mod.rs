//! Fault switches: a controller that misbehaves as it is told, for tests of drivers.
//!
//! | part | where |
//! |---|---|
//! | switches, by hand | [`Faults`] |
//! | which command, and what goes wrong | `rules` |
//! | random faults from a seed | `plan` |
//! | the hooks in the controller | `layer` |
//!
//! A layer on the controller, not a part of it: [`start`] wraps its registers and hooks into its
//! commands, and a controller started without it is compiled without the hooks. Switches can be
//! thrown at any time from any thread.

mod layer;
mod plan;
mod rules;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use oxblock_engine::{Core, CoreWaker, Error};
use oxblock_nvme::Status;
use oxblock_nvme::event::{self, Event};
use oxblock_nvme::log::LID_ERROR;
use oxblock_nvme::regs::CAP;
use oxblock_pci::Function;
use oxblock_pci::soft::{Device, SoftFunction};

use crate::admin::identify::ABORTS_MAX;
use crate::admin::logs::SPARE_IS_LOW;
use crate::hooks::Transition;
use crate::transport::pci::{Notice, Shared};
use crate::{Controller, ControllerOptions};
use layer::{FaultDevice, FaultHooks};
use plan::Chance;
use rules::{Pace, Rule};

pub use plan::{Chances, FaultEvent, FaultPlan};
pub use rules::{CommandFault, CompletionFault, Match, Readiness};

/// Lines that the log keeps.
const LOG_LINES: usize = 10_000;

/// How late a controller of a plan is ready when it is late.
const READY_LATE: Duration = Duration::from_millis(700);

/// Something inside is broken for good.
const PERSISTENT_ERROR: Event = Event {
    kind: event::TYPE_ERROR,
    information: event::ERROR_PERSISTENT_INTERNAL,
    log_page: LID_ERROR,
};

/// Starts a controller whose faults are switched by `faults`.
///
/// # Errors
/// As [`Controller::start`].
pub async fn start(
    core: &Core,
    options: ControllerOptions,
    faults: &Arc<Faults>,
) -> Result<Arc<Controller>, Error> {
    let hooks = FaultHooks(Arc::clone(faults));
    let shared = Arc::clone(faults);
    let wrap =
        move |device| -> Arc<dyn Device> { Arc::new(FaultDevice { device, faults: shared }) };
    let controller = Controller::start_with(core, options, hooks, wrap).await?;
    *faults.handles() = Some(Handles {
        waker: core.waker(),
        function: Arc::downgrade(controller.soft_function()),
        shared: controller.weak_shared(),
    });
    Ok(Arc::new(controller))
}

/// The switches. Nothing is wrong until one is thrown. Those of one controller.
#[derive(Default)]
pub struct Faults {
    switches: Mutex<Switches>,
    handles: Mutex<Option<Handles>>,
}

/// The controller that the switches are for.
struct Handles {
    waker: CoreWaker,
    function: Weak<SoftFunction>,
    shared: Weak<Shared>,
}

#[derive(Default)]
struct Switches {
    gone: bool,
    /// When it comes back by itself.
    back_at_ns: Option<u64>,
    chance: Option<Chance>,
    /// CSTS.CFS is to be shown.
    fail: bool,
    /// The function was reset.
    function_reset: bool,
    registers: HashMap<u64, u32>,
    csts_set: u32,
    csts_clear: u32,
    pace: Pace,
    commands: Vec<Rule<CommandFault>>,
    completions: Vec<Rule<CompletionFault>>,
    /// Faults of the completions of commands in work: queue and command identifier.
    pending: HashMap<(u16, u16), CompletionFault>,
    /// Commands that hang: queue and command identifier, and opcode.
    hanging: HashMap<(u16, u16), u8>,
    identify: Vec<(u8, usize, Vec<u8>)>,
    seen: HashMap<(bool, u8), u64>,
    /// The time of the controller's last pass.
    now_ns: u64,
    log: Vec<String>,
}

impl Switches {
    /// It is gone, for as long as the plan says; for ever without one.
    fn vanish(&mut self) {
        self.gone = true;
        let gone_for = self.chance.as_ref().map(|chance| chance.gone_for().as_nanos() as u64);
        self.back_at_ns = gone_for.map(|time| self.now_ns.saturating_add(time));
    }

    /// It is back, if it is time.
    fn come_back(&mut self) {
        let now_ns = self.now_ns;
        if self.back_at_ns.take_if(|at_ns| *at_ns <= now_ns).is_some() {
            self.gone = false;
            self.note(format_args!("back"));
        }
    }

    /// An event of the plan, as far as switches go.
    fn take(&mut self, event: FaultEvent) {
        match event {
            FaultEvent::Fatal => self.fail = true,
            FaultEvent::Gone => self.vanish(),
            FaultEvent::DisableHangs => self.pace.set_once(Transition::Disabled, Readiness::Never),
            FaultEvent::ReadyLate => {
                let late = Readiness::AfterTime(READY_LATE);
                self.pace.set_once(Transition::Ready, late);
            }
            FaultEvent::FunctionResetFails
            | FaultEvent::PersistentError
            | FaultEvent::SmartWarning
            | FaultEvent::BusError
            | FaultEvent::Removed => {}
        }
    }

    /// Whether as many aborts hang as there may be at a time (ACL).
    fn aborts_are_many(&self, sqid: u16, opcode: u8) -> bool {
        let aborts = self
            .hanging
            .iter()
            .filter(|((of, _), code)| *of == 0 && **code == oxblock_nvme::opcode::admin::ABORT);
        let is_abort = sqid == 0 && opcode == oxblock_nvme::opcode::admin::ABORT;
        is_abort && aborts.count() >= usize::from(ABORTS_MAX)
    }

    /// A line for the log.
    fn note(&mut self, what: fmt::Arguments<'_>) {
        if self.log.len() < LOG_LINES {
            self.log.push(format!("{:>14} ns: {what}", self.now_ns));
        }
    }
}

impl Faults {
    /// Switches that are all off.
    #[must_use]
    pub fn new() -> Arc<Faults> {
        Arc::default()
    }

    /// All registers read as all ones and ignore writes, and nothing is fetched or completed; or
    /// it goes on where it was, as behind a link that was down.
    pub fn set_gone(&self, gone: bool) {
        self.change(|switches| {
            switches.gone = gone;
            switches.note(format_args!("gone: {gone}"));
        });
    }

    /// The controller fails: CSTS.CFS, and nothing is served until it is reset.
    pub fn fail(&self) {
        self.change(|switches| {
            switches.fail = true;
            switches.note(format_args!("fatal status"));
        });
    }

    /// A 32-bit register reads as this, whatever it holds; `None` undoes it.
    pub fn set_register(&self, offset: u64, value: Option<u32>) {
        let registers = &mut self.lock().registers;
        match value {
            Some(value) => registers.insert(offset, value),
            None => registers.remove(&offset),
        };
    }

    /// CAP reads as this.
    pub fn set_cap(&self, cap: u64) {
        self.set_register(CAP, Some(cap as u32));
        self.set_register(CAP + 4, Some((cap >> 32) as u32));
    }

    /// CSTS reads with these bits set and those cleared, whatever they are. The controller itself
    /// goes on: [`fail`](Faults::fail) stops it.
    pub fn set_csts(&self, set: u32, clear: u32) {
        let mut switches = self.lock();
        (switches.csts_set, switches.csts_clear) = (set, clear);
    }

    /// When the controller becomes ready, from the next enable on.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.change(|switches| switches.pace.set(Transition::Ready, readiness));
    }

    /// When a controller that was disabled has RDY gone, from the next time on. A reset of the
    /// function disables it at once.
    pub fn set_disabling(&self, readiness: Readiness) {
        self.change(|switches| switches.pace.set(Transition::Disabled, readiness));
    }

    /// When a shutdown completes, from the next one on.
    pub fn set_shutdown(&self, readiness: Readiness) {
        self.change(|switches| switches.pace.set(Transition::ShutDown, readiness));
    }

    /// Commands that match complete with this, and are not carried out.
    pub fn answer(&self, which: Match, dword0: u32, status: Status) {
        self.command(which, CommandFault::Answer(dword0, status));
    }

    /// Commands that match go wrong in this way.
    pub fn command(&self, which: Match, what: CommandFault) {
        self.lock().commands.push(Rule::new(which, what));
    }

    /// Completions of commands that match are wrong in this way.
    pub fn complete(&self, which: Match, what: CompletionFault) {
        self.lock().completions.push(Rule::new(which, what));
    }

    /// Identify pages of this CNS have these bytes at an offset. What lies past the page is
    /// left out.
    pub fn patch_identify(&self, cns: u8, offset: usize, bytes: &[u8]) {
        self.lock().identify.push((cns, offset, bytes.to_vec()));
    }

    /// Faults and events come by chance from now on, as a plan says.
    pub fn follow(&self, plan: FaultPlan) {
        self.change(|switches| {
            switches.note(format_args!("{plan:?}"));
            switches.chance = Some(Chance::new(plan, switches.now_ns));
        });
    }

    /// Throws all switches off. What was counted stays, and so do commands that hang.
    pub fn clear(&self) {
        self.change(|switches| {
            let Switches { seen, hanging, now_ns, log, .. } = std::mem::take(switches);
            *switches = Switches { seen, hanging, now_ns, log, ..Switches::default() };
        });
    }

    /// How many commands with an opcode have been fetched: admin commands, or I/O commands of
    /// all queues.
    #[must_use]
    pub fn seen(&self, admin: bool, opcode: u8) -> u64 {
        self.lock().seen.get(&(admin, opcode)).copied().unwrap_or(0)
    }

    /// How many commands with an opcode hang: admin commands, or I/O commands of all queues.
    #[must_use]
    pub fn hanging(&self, admin: bool, opcode: u8) -> usize {
        let switches = self.lock();
        let hanging = switches.hanging.iter();
        hanging.filter(|((sqid, _), code)| (*sqid == 0) == admin && **code == opcode).count()
    }

    /// What went wrong so far and when, a line each, for tests that fail.
    #[must_use]
    pub fn log(&self) -> String {
        self.lock().log.join("\n")
    }

    /// Throws a switch, and has the controller look.
    fn change(&self, throw: impl FnOnce(&mut Switches)) {
        throw(&mut self.lock());
        if let Some(handles) = &*self.handles() {
            handles.waker.wake();
        }
    }

    /// An event of a plan, as far as the function and the host go.
    fn tell(&self, event: FaultEvent) {
        let handles = self.handles();
        let Some(Handles { function, shared, .. }) = &*handles else { return };
        let (Some(function), Some(shared)) = (function.upgrade(), shared.upgrade()) else { return };
        drop(handles);
        match event {
            FaultEvent::FunctionResetFails => function.fail_next_resets(1),
            FaultEvent::PersistentError => shared.notify(Notice::Raw(PERSISTENT_ERROR)),
            FaultEvent::SmartWarning => shared.notify(Notice::CriticalWarning(SPARE_IS_LOW)),
            FaultEvent::BusError => function.events().error.signal(),
            FaultEvent::Removed => function.set_present(false),
            FaultEvent::Fatal
            | FaultEvent::Gone
            | FaultEvent::DisableHangs
            | FaultEvent::ReadyLate => {}
        }
    }

    fn handles(&self) -> MutexGuard<'_, Option<Handles>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Switches> {
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Controller {
    /// Reports an event that did not happen, as far as the host asked for its kind.
    pub fn report(&self, event: Event) {
        self.raise(event);
    }

    /// More namespaces have changed than the log of them holds: it overflows, and the host is
    /// told.
    pub fn report_too_many_changed(&self) {
        self.notify(Notice::TooManyChanged);
    }
}
