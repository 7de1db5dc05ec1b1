//! The layer itself: the registers as the switches show them, and the hooks in the commands.

use std::sync::Arc;
use std::time::Duration;

use oxblock_nvme::regs::CSTS;
use oxblock_nvme::{Command, Completion, PAGE_BYTES, Status, opcode};
use oxblock_pci::soft::{Device, Window};

use super::plan::{Chance, Drawn};
use super::{CommandFault, CompletionFault, Faults, Switches};
use crate::hooks::{Due, Fate, Hooks, Posting, Transition, Turn};

/// The registers, as the switches show them.
pub(super) struct FaultDevice {
    pub(super) device: Arc<dyn Device>,
    pub(super) faults: Arc<Faults>,
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
        match (bar, size) {
            (0, 8) => self.word(bar, offset) | self.word(bar, offset + 4) << 32,
            (0, _) => self.word(bar, offset),
            _ => self.device.read(bar, offset, size),
        }
    }

    fn write(&self, bar: u8, offset: u64, size: u8, value: u64) {
        if !self.faults.lock().gone {
            self.device.write(bar, offset, size, value);
        }
    }

    fn reset(&self) {
        self.faults.lock().function_reset = true;
        self.device.reset();
    }

    fn window(&self, bar: u8) -> Option<Window> {
        self.device.window(bar)
    }
}

/// The hooks in the controller.
pub(super) struct FaultHooks(pub(super) Arc<Faults>);

impl Hooks for FaultHooks {
    const ACTIVE: bool = true;

    fn turn(&mut self, now_ns: u64) -> Turn {
        let mut switches = self.0.lock();
        switches.now_ns = now_ns;
        switches.come_back();
        if let Some(event) = switches.chance.as_mut().and_then(|chance| chance.event(now_ns)) {
            switches.note(format_args!("{event:?}"));
            switches.take(event);
            drop(switches);
            self.0.tell(event);
            switches = self.0.lock();
        }
        if switches.gone {
            return Turn::Silent;
        }
        match std::mem::take(&mut switches.fail) {
            true => Turn::Fail,
            false => Turn::Serve,
        }
    }

    fn wakes_at(&self) -> u64 {
        let switches = self.0.lock();
        let chance = switches.chance.as_ref().map_or(u64::MAX, Chance::wakes_at);
        let pace = if switches.gone { u64::MAX } else { switches.pace.wakes_at() };
        chance.min(pace).min(switches.back_at_ns.unwrap_or(u64::MAX))
    }

    fn identify(&mut self, command: &Command, page: &mut [u8; PAGE_BYTES]) {
        for (cns, offset, bytes) in &self.0.lock().identify {
            if *cns == command.cdw10() as u8 {
                let place = page.iter_mut().skip(*offset);
                place.zip(bytes).for_each(|(to, from)| *to = *from);
            }
        }
    }

    fn command(&mut self, sqid: u16, command: &Command) -> Fate {
        let mut switches = self.0.lock();
        *switches.seen.entry((sqid == 0, command.opcode())).or_default() += 1;
        let Switches { commands, completions, chance, .. } = &mut *switches;
        let mut wrong = completions.iter_mut().find_map(|rule| rule.applies(sqid, command));
        let mut fault = commands.iter_mut().find_map(|rule| rule.applies(sqid, command));
        if let Some(chance) = chance.as_mut().filter(|_| sqid != 0) {
            match chance.command(command) {
                Some(Drawn::Command(drawn)) => fault = fault.or(Some(drawn)),
                Some(Drawn::Completion(drawn)) => wrong = wrong.or(Some(drawn)),
                None => {}
            }
        }
        if let Some(wrong) = wrong {
            switches.pending.insert((sqid, command.cid()), wrong);
        }
        let Some(fault) = fault else { return Fate::CarryOut };
        switches.note(format_args!("{}: {fault:?}", Named(sqid, command.cid(), command.opcode())));
        match fault {
            CommandFault::Answer(dword0, status) => return Fate::Answer(dword0, status),
            CommandFault::Fail => return Fate::Fail,
            CommandFault::Hang if switches.aborts_are_many(sqid, command.opcode()) => {
                return Fate::Answer(1, Status::ABORT_LIMIT_EXCEEDED);
            }
            CommandFault::Hang => {}
            CommandFault::Vanish => switches.vanish(),
        }
        switches.hanging.insert((sqid, command.cid()), command.opcode());
        Fate::Hang
    }

    fn completion(&mut self, sqid: u16, completion: &mut Completion) -> Posting {
        let mut switches = self.0.lock();
        switches.hanging.remove(&(sqid, completion.cid()));
        if switches.gone {
            return Posting::Lost;
        }
        let Some(fault) = switches.pending.remove(&(sqid, completion.cid())) else {
            return Posting::Once;
        };
        let was = *completion;
        switches
            .note(format_args!("completion of command {} in queue {sqid}: {fault:?}", was.cid()));
        let result = u64::from(was.dw1()) << 32 | u64::from(was.dw0());
        let make = |sqhd, sqid, cid, status| Completion::new(result, sqhd, sqid, cid, status);
        let after =
            |time: Duration| Due::At(switches.now_ns.saturating_add(time.as_nanos() as u64));
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
            CompletionFault::Late(passes) => return Posting::Late(Due::Passes(passes)),
            CompletionFault::After(time) => return Posting::Late(after(time)),
            CompletionFault::Torn(passes) => return Posting::Torn(Due::Passes(passes)),
            CompletionFault::TornFor(time) => return Posting::Torn(after(time)),
        }
        Posting::Once
    }

    fn queues_forgotten(&mut self) {
        let mut switches = self.0.lock();
        switches.hanging.clear();
        switches.pending.clear();
    }

    /// A reset of the function mends a controller that cannot be disabled.
    fn may(&mut self, what: Transition) -> bool {
        let mut switches = self.0.lock();
        let reset = std::mem::take(&mut switches.function_reset);
        if what == Transition::Disabled && reset {
            return switches.pace.go(what);
        }
        let now_ns = switches.now_ns;
        switches.pace.may(what, now_ns)
    }
}

/// A command, as the log names it: queue, identifier, opcode.
struct Named(u16, u16, u8);

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Named(sqid, cid, code) = *self;
        let kind = match (sqid, code) {
            (0, opcode::admin::ABORT) => "abort",
            (0, opcode::admin::KEEP_ALIVE) => "keep alive",
            (0, _) => "admin command",
            (_, opcode::nvm::READ) => "read",
            (_, opcode::nvm::WRITE) => "write",
            (_, opcode::nvm::FLUSH) => "flush",
            _ => "command",
        };
        write!(f, "{kind} {cid} (opcode {code:02X}h) in queue {sqid}")
    }
}
