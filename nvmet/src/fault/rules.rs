//! What can go wrong, and with what.

use std::time::Duration;

use oxblock_nvme::{Command, Status};

use crate::hooks::Transition;

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

/// What goes wrong with a command. It is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandFault {
    /// It completes with this dword 0 and this status, with the DNR and CRD that the status has.
    Answer(u32, Status),
    /// It never completes. An Abort or the deletion of its queue ends it.
    Hang,
    /// The controller fails at it: CSTS.CFS, and nothing is served until it is reset.
    Fail,
    /// The controller is gone from then on, as [`set_gone`](super::Faults::set_gone) does it.
    Vanish,
}

/// What is wrong with a completion. Its command was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionFault {
    /// It carries this command identifier.
    Cid(u16),
    /// It carries this SQ head pointer.
    Sqhd(u16),
    /// It carries this submission queue identifier.
    Sqid(u16),
    /// It carries this status.
    Status(Status),
    /// It is posted twice.
    Twice,
    /// It is never posted.
    Lost,
    /// It is posted after this many more passes, behind later ones.
    Late(u32),
    /// It is posted after this time, behind later ones.
    After(Duration),
    /// Its fields are written at once, its phase tag after this many more passes.
    Torn(u32),
    /// Its fields are written at once, its phase tag after this time.
    TornFor(Duration),
}

/// When a controller does what its host waits for: becomes ready, is disabled, is shut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// As soon as it can.
    #[default]
    AtOnce,
    /// After this many passes.
    After(u32),
    /// After this time.
    AfterTime(Duration),
    /// Never.
    Never,
}

/// A fault, and what it is for.
pub(super) struct Rule<T> {
    which: Match,
    seen: u32,
    what: T,
}

impl<T: Copy> Rule<T> {
    pub(super) fn new(which: Match, what: T) -> Rule<T> {
        Rule { which, seen: 0, what }
    }

    /// The fault, if it is for this command.
    pub(super) fn applies(&mut self, sqid: u16, command: &Command) -> Option<T> {
        if !self.which.fits(sqid, command) {
            return None;
        }
        self.seen += 1;
        (self.which.nth == 0 || self.which.nth == self.seen).then_some(self.what)
    }
}

/// How long changes of state take.
#[derive(Default)]
pub(super) struct Pace {
    ready: Readiness,
    disabled: Readiness,
    shut_down: Readiness,
    /// The change of state that goes at once again, after the next time.
    once: Option<Transition>,
    waiting: Option<Waiting>,
}

/// A change of state that is held up.
struct Waiting {
    what: Transition,
    passes: u32,
    /// When to look again: 0 is the next pass, all ones never.
    due_ns: u64,
}

impl Pace {
    pub(super) fn set(&mut self, what: Transition, pace: Readiness) {
        *self.of(what) = pace;
        (self.once, self.waiting) = (None, None);
    }

    /// The same for the next time only.
    pub(super) fn set_once(&mut self, what: Transition, pace: Readiness) {
        self.set(what, pace);
        self.once = Some(what);
    }

    /// Whether a change of state that is due may happen by now.
    pub(super) fn may(&mut self, what: Transition, now_ns: u64) -> bool {
        let pace = *self.of(what);
        let first = match pace {
            Readiness::AtOnce => return self.go(what),
            Readiness::After(_) => 0,
            Readiness::AfterTime(time) => now_ns.saturating_add(time.as_nanos() as u64),
            Readiness::Never => u64::MAX,
        };
        let waiting = self.waiting.take_if(|waiting| waiting.what == what);
        let mut waiting = waiting.unwrap_or(Waiting { what, passes: 0, due_ns: first });
        waiting.passes += 1;
        let over = match pace {
            Readiness::After(passes) => waiting.passes > passes,
            _ => waiting.due_ns <= now_ns,
        };
        self.waiting = Some(waiting);
        over && self.go(what)
    }

    pub(super) fn wakes_at(&self) -> u64 {
        self.waiting.as_ref().map_or(u64::MAX, |waiting| waiting.due_ns)
    }

    /// A change of state happens, whatever held it up.
    pub(super) fn go(&mut self, what: Transition) -> bool {
        self.waiting = None;
        if self.once.take_if(|once| *once == what).is_some() {
            *self.of(what) = Readiness::AtOnce;
        }
        true
    }

    fn of(&mut self, what: Transition) -> &mut Readiness {
        match what {
            Transition::Ready => &mut self.ready,
            Transition::Disabled => &mut self.disabled,
            Transition::ShutDown => &mut self.shut_down,
        }
    }
}
