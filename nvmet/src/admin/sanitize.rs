//! Sanitize (Base 2.0, 5.24 and 8.21): its rules, its state, and its log page.
//!
//! Block erase writes zeroes, overwrite writes its pattern, both over every node and with a flush
//! at the end: as far as a controller in software reaches. Crypto erase is not offered, since
//! nothing is encrypted here.

use oxblock_nvme::log::SanitizeStatus;
use oxblock_nvme::opcode::admin;
use oxblock_nvme::sanitize as wire;
use oxblock_nvme::{Command, Status};
use zerocopy::IntoBytes;

use crate::erase::How;

/// SANICAP.
pub(crate) const SANICAP: u32 =
    wire::CAP_BLOCK_ERASE | wire::CAP_OVERWRITE | wire::CAP_NOT_MODIFIED_AFTER;

/// SPROG and the times of the log page where they say nothing.
const NO_PROGRESS: u16 = u16::MAX;
const NOT_REPORTED: u32 = u32::MAX;

/// Where the last sanitize stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Never,
    InProgress,
    Succeeded,
    Failed,
    /// It failed, and the failure was left.
    Left,
}

/// The last sanitize.
pub(crate) struct Sanitize {
    state: State,
    cdw10: u32,
    passes_done: u32,
    /// Of 65,536.
    progress: u16,
    /// Writes that had been counted when it succeeded.
    writes: u64,
}

/// What a Sanitize command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// An erasure, in so many passes.
    Erase(How, u32),
    /// To leave the failure mode.
    Exit,
}

impl Sanitize {
    pub(crate) fn new() -> Sanitize {
        Sanitize { state: State::Never, cdw10: 0, passes_done: 0, progress: NO_PROGRESS, writes: 0 }
    }

    /// What a command asks for.
    ///
    /// # Errors
    /// One is in progress, the action is not supported, or it cannot leave the failure.
    pub(crate) fn decode(&self, command: &Command) -> Result<Asked, Status> {
        let cdw10 = command.cdw10();
        let unrestricted = cdw10 & wire::AUSE != 0;
        if self.state == State::InProgress {
            return Err(Status::SANITIZE_IN_PROGRESS);
        }
        // A failure that began restricted ends by a sanitize that is restricted, and succeeds.
        let restricted = self.state == State::Failed && self.cdw10 & wire::AUSE == 0;
        let may_unmap = cdw10 & wire::NDAS == 0;
        match wire::action(cdw10) {
            wire::EXIT_FAILURE_MODE if restricted => Err(Status::SANITIZE_FAILED),
            wire::EXIT_FAILURE_MODE => Ok(Asked::Exit),
            wire::BLOCK_ERASE | wire::OVERWRITE if restricted && unrestricted => {
                Err(Status::SANITIZE_FAILED)
            }
            wire::BLOCK_ERASE => Ok(Asked::Erase(How::Zeroes { may_unmap }, 1)),
            wire::OVERWRITE => {
                let (word, invert) = (command.cdw11(), cdw10 & wire::OIPBP != 0);
                Ok(Asked::Erase(How::Pattern { word, invert }, wire::passes(cdw10)))
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// Refuses admin commands that must not be carried out during a sanitize, or after one that
    /// failed (Base 2.0, figure 283).
    pub(crate) fn permits(&self, opcode: u8) -> Result<(), Status> {
        const PROHIBITED: [u8; 5] = [
            admin::FORMAT_NVM,
            admin::NAMESPACE_MANAGEMENT,
            admin::NAMESPACE_ATTACHMENT,
            admin::FIRMWARE_COMMIT,
            admin::FIRMWARE_DOWNLOAD,
        ];
        match self.closed() {
            Some(status) if PROHIBITED.contains(&opcode) => Err(status),
            _ => Ok(()),
        }
    }

    /// Why I/O commands are refused, if they are.
    pub(crate) fn closed(&self) -> Option<Status> {
        match self.state {
            State::InProgress => Some(Status::SANITIZE_IN_PROGRESS),
            State::Failed => Some(Status::SANITIZE_FAILED),
            State::Never | State::Succeeded | State::Left => None,
        }
    }

    pub(crate) fn begin(&mut self, cdw10: u32) {
        self.state = State::InProgress;
        (self.cdw10, self.passes_done, self.progress) = (cdw10, 0, 0);
    }

    pub(crate) fn advance(&mut self, progress: u32, passes_done: u32) {
        self.progress = progress as u16;
        self.passes_done = passes_done;
    }

    /// It has ended, after `writes` writes of hosts.
    pub(crate) fn end(&mut self, succeeded: bool, writes: u64) {
        self.state = if succeeded { State::Succeeded } else { State::Failed };
        (self.progress, self.writes) = (NO_PROGRESS, writes);
    }

    /// Leaves the failure mode.
    pub(crate) fn exit(&mut self) {
        if self.state == State::Failed {
            self.state = State::Left;
        }
    }

    /// The log page, after `writes` writes of hosts.
    pub(crate) fn page(&self, writes: u64) -> Vec<u8> {
        let mut page = SanitizeStatus::boxed();
        let state = match self.state {
            State::Never => wire::STATE_NEVER,
            State::InProgress => wire::STATE_IN_PROGRESS,
            State::Succeeded => wire::STATE_SUCCEEDED,
            State::Failed | State::Left => wire::STATE_FAILED,
        };
        let passes = match wire::action(self.cdw10) {
            wire::OVERWRITE => (self.passes_done.min(31) as u16) << 3,
            _ => 0,
        };
        let untouched = self.state == State::Succeeded && writes == self.writes;
        let erased = if untouched { wire::GLOBAL_DATA_ERASED } else { 0 };
        page.sprog = self.progress.into();
        page.sstat = (state | passes | erased).into();
        page.scdw10 = self.cdw10.into();
        let times = [
            &mut page.eto,
            &mut page.etbe,
            &mut page.etce,
            &mut page.etond,
            &mut page.etbend,
            &mut page.etcend,
        ];
        times.into_iter().for_each(|time| *time = NOT_REPORTED.into());
        page.as_bytes().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(sanitize: &Sanitize, cdw10: u32) -> Result<Asked, Status> {
        sanitize.decode(&Command::sanitize(cdw10, 0xabcd))
    }

    #[test]
    fn what_is_not_offered_is_refused() {
        let sanitize = Sanitize::new();
        for action in [0, wire::CRYPTO_ERASE, 5, 6, 7] {
            assert_eq!(ask(&sanitize, action), Err(Status::INVALID_FIELD));
        }
        assert_eq!(ask(&sanitize, wire::EXIT_FAILURE_MODE), Ok(Asked::Exit));
        let zeroes = |may_unmap| Ok(Asked::Erase(How::Zeroes { may_unmap }, 1));
        assert_eq!(ask(&sanitize, wire::BLOCK_ERASE), zeroes(true));
        assert_eq!(ask(&sanitize, wire::BLOCK_ERASE | wire::NDAS), zeroes(false));
        let how = How::Pattern { word: 0xabcd, invert: true };
        assert_eq!(ask(&sanitize, wire::OVERWRITE | wire::OIPBP), Ok(Asked::Erase(how, 16)));
    }

    #[test]
    fn a_restricted_failure_ends_by_a_restricted_sanitize_only() {
        let mut sanitize = Sanitize::new();
        sanitize.begin(wire::BLOCK_ERASE);
        assert_eq!(ask(&sanitize, wire::BLOCK_ERASE), Err(Status::SANITIZE_IN_PROGRESS));
        assert_eq!(sanitize.permits(admin::FORMAT_NVM), Err(Status::SANITIZE_IN_PROGRESS));
        assert_eq!(sanitize.permits(admin::IDENTIFY), Ok(()));
        sanitize.end(false, 0);
        assert_eq!(sanitize.closed(), Some(Status::SANITIZE_FAILED));
        assert_eq!(ask(&sanitize, wire::EXIT_FAILURE_MODE), Err(Status::SANITIZE_FAILED));
        let unrestricted = wire::BLOCK_ERASE | wire::AUSE;
        assert_eq!(ask(&sanitize, unrestricted), Err(Status::SANITIZE_FAILED));
        assert!(ask(&sanitize, wire::BLOCK_ERASE).is_ok());
        sanitize.begin(unrestricted);
        sanitize.end(false, 0);
        assert_eq!(ask(&sanitize, wire::EXIT_FAILURE_MODE), Ok(Asked::Exit));
        sanitize.exit();
        assert_eq!(sanitize.closed(), None);
    }

    #[test]
    fn the_log_tells_how_far_it_is_and_whether_anything_was_written_since() {
        let mut sanitize = Sanitize::new();
        assert_eq!(sanitize.page(0)[..4], [0xff, 0xff, 0, 0]);
        sanitize.begin(wire::OVERWRITE | wire::with_passes(3));
        sanitize.advance(0x1234, 2);
        assert_eq!(sanitize.page(0)[..4], [0x34, 0x12, 2 << 3 | 2, 0]);
        sanitize.end(true, 7);
        assert_eq!(sanitize.page(7)[..4], [0xff, 0xff, 2 << 3 | 1, 1]);
        assert_eq!(sanitize.page(8)[3], 0);
    }
}
