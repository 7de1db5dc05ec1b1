//! Where tests get a hand in: fault switches are an implementation of [`Hooks`], and a
//! controller without them is compiled without the calls.

use oxblock_nvme::{Command, Completion, PAGE_BYTES, Status};

/// What becomes of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Posting {
    /// Posted as it is.
    Once,
    /// Posted, and posted again.
    Twice,
    /// Never posted.
    Lost,
    /// Posted after this many more passes.
    Late(u32),
    /// Its fields are written, its phase tag only after this many more passes.
    Torn(u32),
}

/// Hands for tests. Every method does nothing unless it is overridden.
pub(crate) trait Hooks {
    /// Whether any of this can do anything: lets the controller skip what only hooks need.
    const ACTIVE: bool = false;

    /// An identify page on its way to the host.
    #[inline(always)]
    fn identify(&mut self, _command: &Command, _page: &mut [u8; PAGE_BYTES]) {}

    /// A command that was fetched from a queue. With an answer (dword 0 and status) it is not
    /// carried out.
    #[inline(always)]
    fn command(&mut self, _sqid: u16, _command: &Command) -> Option<(u32, Status)> {
        None
    }

    /// A completion on its way to the host; `sqid` is where its command came from.
    #[inline(always)]
    fn completion(&mut self, _sqid: u16, _completion: &mut Completion) -> Posting {
        Posting::Once
    }

    /// All queues are gone, and the commands in them with no completion.
    #[inline(always)]
    fn queues_forgotten(&mut self) {}

    /// Whether the controller may become ready.
    #[inline(always)]
    fn may_be_ready(&mut self) -> bool {
        true
    }
}

/// No hooks.
pub(crate) struct NoHooks;

impl Hooks for NoHooks {}
