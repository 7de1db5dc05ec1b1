//! Where tests get a hand in: fault switches are an implementation of [`Hooks`], and a
//! controller without them is compiled without the calls.

use oxblock_nvme::{Command, Completion, PAGE_BYTES, Status};

/// What the controller does in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// What it should.
    Serve,
    /// It fails: CSTS.CFS.
    Fail,
    /// Nothing, as if it were not there.
    Silent,
}

/// What becomes of a command that was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is carried out.
    CarryOut,
    /// It is not carried out, and completes with this dword 0 and status, exactly.
    Answer(u32, Status),
    /// It is not carried out, and completes only if it is aborted or its queue is deleted.
    Hang,
    /// The controller fails at it: CSTS.CFS.
    Fail,
}

/// What becomes of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Posting {
    /// Posted as it is.
    Once,
    /// Posted, and posted again.
    Twice,
    /// Never posted.
    Lost,
    /// Posted later, behind others.
    Late(Due),
    /// Its fields are written, its phase tag only later.
    Torn(Due),
}

/// When something that is held back is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// After this many more passes.
    Passes(u32),
    /// At this time of the core's clock, in ns.
    At(u64),
}

/// A change of state that takes a controller its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    /// RDY comes.
    Ready,
    /// RDY goes.
    Disabled,
    /// A shutdown is complete.
    ShutDown,
}

/// Hands for tests. Every method does nothing unless it is overridden.
pub(crate) trait Hooks {
    /// Whether any of this can do anything: lets the controller skip what only hooks need.
    const ACTIVE: bool = false;

    /// A pass begins, at this time of the core's clock.
    #[inline(always)]
    fn turn(&mut self, _now_ns: u64) -> Turn {
        Turn::Serve
    }

    /// When the hooks want a pass, if nothing else happens: 0 is at once, all ones never.
    #[inline(always)]
    fn wakes_at(&self) -> u64 {
        u64::MAX
    }

    /// An identify page on its way to the host.
    #[inline(always)]
    fn identify(&mut self, _command: &Command, _page: &mut [u8; PAGE_BYTES]) {}

    /// A command that was fetched from a queue.
    #[inline(always)]
    fn command(&mut self, _sqid: u16, _command: &Command) -> Fate {
        Fate::CarryOut
    }

    /// A completion on its way to the host; `sqid` is where its command came from.
    #[inline(always)]
    fn completion(&mut self, _sqid: u16, _completion: &mut Completion) -> Posting {
        Posting::Once
    }

    /// All queues are gone, and the commands in them with no completion.
    #[inline(always)]
    fn queues_forgotten(&mut self) {}

    /// Whether a change of state that is due may happen by now.
    #[inline(always)]
    fn may(&mut self, _what: Transition) -> bool {
        true
    }
}

/// No hooks.
pub(crate) struct NoHooks;

impl Hooks for NoHooks {}
