//! Fault switches: a controller that misbehaves as it is told, for tests of drivers.
//!
//! A layer on the controller, not a part of it: [`start`] wraps its registers and hooks into its
//! commands, and a controller started without it is compiled without the hooks. Switches can be
//! thrown at any time from any thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxblock_engine::{Core, Error};
use oxblock_nvme::event::Event;
use oxblock_nvme::regs::{CAP, CSTS};
use oxblock_nvme::{Command, Completion, PAGE_BYTES, Status};
use oxblock_pci::soft::{Device, Window};

use crate::hooks::{Hooks, Posting};
use crate::{Controller, ControllerOptions};

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
    Ok(Arc::new(controller))
}

/// Which commands a fault is for. All conditions must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The submission queue; `None` is any.
    pub sqid: Option<u16>,
    /// The opcode; `None` is any.
    pub opcode: Option<u8>,
    /// The low byte of dword 10, a feature or a log page; `None` is any.
    pub selector: Option<u8>,
    /// Which of the commands that match otherwise, counted from 1; 0 is each of them.
    pub nth: u32,
}

impl Match {
    /// Every admin command with an opcode.
    #[must_use]
    pub fn admin(opcode: u8) -> Match {
        Match { sqid: Some(0), opcode: Some(opcode), ..Match::default() }
    }

    /// Every command with an opcode in a queue.
    #[must_use]
    pub fn io(sqid: u16, opcode: u8) -> Match {
        Match { sqid: Some(sqid), opcode: Some(opcode), ..Match::default() }
    }

    /// Only the `nth` of them, counted from 1.
    #[must_use]
    pub fn nth(self, nth: u32) -> Match {
        Match { nth, ..self }
    }

    /// Only those with this in the low byte of dword 10.
    #[must_use]
    pub fn selector(self, selector: u8) -> Match {
        Match { selector: Some(selector), ..self }
    }

    fn fits(&self, sqid: u16, command: &Command) -> bool {
        self.sqid.is_none_or(|id| id == sqid)
            && self.opcode.is_none_or(|opcode| opcode == command.opcode())
            && self.selector.is_none_or(|low| low == command.cdw10() as u8)
    }
}

/// What is wrong with a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionFault {
    /// It carries this command identifier.
    Cid(u16),
    /// It carries this SQ head pointer.
    Sqhd(u16),
    /// It carries this submission queue identifier.
    Sqid(u16),
    /// It carries this status; the command was carried out all the same.
    Status(Status),
    /// It is posted twice.
    Twice,
    /// It is never posted.
    Lost,
    /// It is posted after this many more passes, behind later ones.
    Late(u32),
    /// Its fields are written at once, its phase tag after this many more passes.
    Torn(u32),
}

/// When a controller that was enabled becomes ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// At once.
    #[default]
    AtOnce,
    /// After this many passes.
    After(u32),
    /// Never.
    Never,
}

/// The switches. Nothing is wrong until one is thrown.
#[derive(Default)]
pub struct Faults(Mutex<Switches>);

#[derive(Default)]
struct Switches {
    gone: bool,
    registers: HashMap<u64, u32>,
    csts_set: u32,
    csts_clear: u32,
    readiness: Readiness,
    passes: u32,
    answers: Vec<Rule<(u32, Status)>>,
    completions: Vec<Rule<CompletionFault>>,
    /// Faults of commands that are in work: queue and command identifier.
    pending: HashMap<(u16, u16), CompletionFault>,
    identify: Vec<(u8, usize, Vec<u8>)>,
    seen: HashMap<(bool, u8), u64>,
}

struct Rule<T> {
    which: Match,
    seen: u32,
    what: T,
}

impl<T: Copy> Rule<T> {
    fn applies(&mut self, sqid: u16, command: &Command) -> Option<T> {
        if !self.which.fits(sqid, command) {
            return None;
        }
        self.seen += 1;
        (self.which.nth == 0 || self.which.nth == self.seen).then_some(self.what)
    }
}

impl Faults {
    /// Switches that are all off.
    #[must_use]
    pub fn new() -> Arc<Faults> {
        Arc::default()
    }

    /// All registers read as all ones and ignore writes, or answer again.
    pub fn set_gone(&self, gone: bool) {
        self.lock().gone = gone;
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

    /// CSTS reads with these bits set and those cleared, whatever they are: CFS on demand, RDY
    /// that does not go.
    pub fn set_csts(&self, set: u32, clear: u32) {
        let mut switches = self.lock();
        (switches.csts_set, switches.csts_clear) = (set, clear);
    }

    /// When the controller becomes ready, from the next enable on.
    pub fn set_readiness(&self, readiness: Readiness) {
        let mut switches = self.lock();
        (switches.readiness, switches.passes) = (readiness, 0);
    }

    /// Commands that match complete with this, and are not carried out.
    pub fn answer(&self, which: Match, dword0: u32, status: Status) {
        let what = (dword0, status);
        self.lock().answers.push(Rule { which, seen: 0, what });
    }

    /// Completions of commands that match are wrong in this way.
    pub fn complete(&self, which: Match, what: CompletionFault) {
        self.lock().completions.push(Rule { which, seen: 0, what });
    }

    /// Identify pages of this CNS have these bytes at an offset. What lies past the page is
    /// left out.
    pub fn patch_identify(&self, cns: u8, offset: usize, bytes: &[u8]) {
        self.lock().identify.push((cns, offset, bytes.to_vec()));
    }

    /// Throws all switches off. What was counted stays.
    pub fn clear(&self) {
        let mut switches = self.lock();
        let seen = std::mem::take(&mut switches.seen);
        *switches = Switches { seen, ..Switches::default() };
    }

    /// How many commands with an opcode have been fetched: admin commands, or I/O commands of
    /// all queues.
    #[must_use]
    pub fn seen(&self, admin: bool, opcode: u8) -> u64 {
        self.lock().seen.get(&(admin, opcode)).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Switches> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Controller {
    /// Reports an event that did not happen, as far as the host asked for its kind.
    pub fn report(&self, event: Event) {
        self.raise(event);
    }
}

/// The registers, as the switches show them.
struct FaultDevice {
    device: Arc<dyn Device>,
    faults: Arc<Faults>,
}

impl FaultDevice {
    fn word(&self, bar: u8, offset: u64) -> u64 {
        let switches = self.faults.lock();
        if let Some(&value) = switches.registers.get(&offset) {
            return value.into();
        }
        let (set, clear) = (switches.csts_set, switches.csts_clear);
        drop(switches);
        let value = self.device.read(bar, offset, 4);
        if offset == CSTS {
            return value & !u64::from(clear) | u64::from(set);
        }
        value
    }
}

impl Device for FaultDevice {
    fn bar_len(&self, bar: u8) -> u64 {
        self.device.bar_len(bar)
    }

    fn read(&self, bar: u8, offset: u64, size: u8) -> u64 {
        if self.faults.lock().gone {
            return u64::MAX >> (64 - 8 * u32::from(size));
        }
        match size {
            8 => self.word(bar, offset) | self.word(bar, offset + 4) << 32,
            _ => self.word(bar, offset),
        }
    }

    fn write(&self, bar: u8, offset: u64, size: u8, value: u64) {
        if !self.faults.lock().gone {
            self.device.write(bar, offset, size, value);
        }
    }

    fn reset(&self) {
        self.device.reset();
    }

    fn window(&self, bar: u8) -> Option<Window> {
        self.device.window(bar)
    }
}

struct FaultHooks(Arc<Faults>);

impl Hooks for FaultHooks {
    const ACTIVE: bool = true;

    fn identify(&mut self, command: &Command, page: &mut [u8; PAGE_BYTES]) {
        for (cns, offset, bytes) in &self.0.lock().identify {
            if *cns == command.cdw10() as u8 {
                let place = page.iter_mut().skip(*offset);
                place.zip(bytes).for_each(|(to, from)| *to = *from);
            }
        }
    }

    fn command(&mut self, sqid: u16, command: &Command) -> Option<(u32, Status)> {
        let mut switches = self.0.lock();
        *switches.seen.entry((sqid == 0, command.opcode())).or_default() += 1;
        let mut faults = switches.completions.iter_mut();
        if let Some(fault) = faults.find_map(|rule| rule.applies(sqid, command)) {
            switches.pending.insert((sqid, command.cid()), fault);
        }
        let mut answers = switches.answers.iter_mut();
        answers.find_map(|rule| rule.applies(sqid, command))
    }

    fn completion(&mut self, sqid: u16, completion: &mut Completion) -> Posting {
        let fault = self.0.lock().pending.remove(&(sqid, completion.cid()));
        let Some(fault) = fault else { return Posting::Once };
        let was = *completion;
        let result = u64::from(was.dw1()) << 32 | u64::from(was.dw0());
        let make = |sqhd, sqid, cid, status| Completion::new(result, sqhd, sqid, cid, status);
        match fault {
            CompletionFault::Cid(cid) => {
                *completion = make(was.sqhd(), was.sqid(), cid, was.status());
            }
            CompletionFault::Sqhd(sqhd) => {
                *completion = make(sqhd, was.sqid(), was.cid(), was.status());
            }
            CompletionFault::Sqid(sqid) => {
                *completion = make(was.sqhd(), sqid, was.cid(), was.status());
            }
            CompletionFault::Status(status) => {
                *completion = make(was.sqhd(), was.sqid(), was.cid(), status);
            }
            CompletionFault::Twice => return Posting::Twice,
            CompletionFault::Lost => return Posting::Lost,
            CompletionFault::Late(passes) => return Posting::Late(passes),
            CompletionFault::Torn(passes) => return Posting::Torn(passes),
        }
        Posting::Once
    }

    fn may_be_ready(&mut self) -> bool {
        let mut switches = self.0.lock();
        match switches.readiness {
            Readiness::AtOnce => true,
            Readiness::After(passes) => {
                switches.passes += 1;
                switches.passes > passes
            }
            Readiness::Never => false,
        }
    }
}
