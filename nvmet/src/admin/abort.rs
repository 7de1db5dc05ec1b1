//! Abort (Base 2.0, 5.1).

use oxblock_nvme::{Command, Status};

use crate::hooks::Hooks;
use crate::queue::{Tag, Work};
use crate::service::Service;

/// Dword 0 of the completion: the command was not aborted.
const NOT_ABORTED: u32 = 1;

impl<H: Hooks> Service<H> {
    /// Aborts a command that waits, or asks the engine to end it early; dword 0 of the
    /// completion. A command that the engine has completes by itself, with or without success,
    /// so it counts as not aborted.
    pub(crate) fn abort(&mut self, command: &Command) -> u32 {
        let (sqid, cid) = (command.cdw10() as u16, (command.cdw10() >> 16) as u16);
        let found = self.queues.sq(sqid).and_then(|sq| {
            let generation = sq.generation;
            let (slot, found) = sq.in_work().find(|(_, slot)| slot.cid == cid)?;
            let tag = Tag { sqid, slot, generation };
            Some((tag, found.work, found.nsid))
        });
        let Some((tag, work, nsid)) = found else {
            return NOT_ABORTED;
        };
        match work {
            Work::Submitted(id) => {
                if let Some(channel) = self.channel(nsid) {
                    channel.cancel(id);
                }
                NOT_ABORTED
            }
            Work::Long(place) => {
                if let Some(job) = self.jobs.get(place) {
                    job.abort(Status::ABORT_REQUESTED);
                }
                NOT_ABORTED
            }
            Work::Held if self.admin.events.release(tag.slot) => {
                self.complete(tag, 0, Status::ABORT_REQUESTED);
                0
            }
            Work::Hung => {
                self.complete(tag, 0, Status::ABORT_REQUESTED);
                0
            }
            Work::Starting => self.abort_stalled(tag),
            Work::Held | Work::Free => NOT_ABORTED,
        }
    }

    fn abort_stalled(&mut self, tag: Tag) -> u32 {
        let before = self.stalled.len();
        self.stalled.retain(|stalled| stalled.tag() != tag);
        if self.stalled.len() == before {
            return NOT_ABORTED;
        }
        self.complete(tag, 0, Status::ABORT_REQUESTED);
        0
    }
}
