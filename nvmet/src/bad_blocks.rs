//! Write Uncorrectable (NVM Command Set 1.0, 3.2.7): blocks whose reads fail until they are written.
//!
//! A namespace without such blocks pays nothing: one that has some is not open, and its commands
//! come by here.

use oxblock_nvme::opcode::nvm;
use oxblock_nvme::{Command, Status};

use crate::hooks::Hooks;
use crate::namespace::Range;
use crate::queue::Tag;
use crate::service::Service;

impl<H: Hooks> Service<H> {
    /// Marks the blocks that the command names.
    pub(crate) fn write_uncorrectable(
        &mut self,
        tag: Tag,
        command: &Command,
    ) -> Result<(), Status> {
        let nsid = command.nsid();
        let geometry = self.inventory.usable(nsid)?;
        geometry.writable()?;
        let (slba, blocks) = (command.slba(), u64::from(command.blocks()));
        geometry.range(slba, blocks)?;
        self.inventory.mark_bad(nsid, slba, blocks)?;
        self.complete(tag, 0, Status::SUCCESS);
        Ok(())
    }

    /// What bad blocks mean to a command of one operation: reads of them fail, writes mend them.
    pub(crate) fn mind_bad_blocks(&mut self, tag: Tag, command: &Command) -> Result<(), Status> {
        let (nsid, slba) = (command.nsid(), command.slba());
        let blocks = u64::from(command.blocks());
        let geometry = self.inventory.usable(nsid)?;
        match command.opcode() {
            nvm::READ | nvm::COMPARE | nvm::VERIFY => {
                geometry.range(slba, blocks)?;
                self.refuse_bad(tag, nsid, slba, blocks)
            }
            nvm::WRITE | nvm::WRITE_ZEROES => {
                geometry.range(slba, blocks)?;
                geometry.writable()?;
                self.inventory.clear_bad(nsid, slba, blocks);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The same for ranges of a long command: those that it reads, and those that it changes.
    pub(crate) fn mind_bad_ranges(
        &mut self,
        tag: Tag,
        nsid: u32,
        reads: &[Range],
        changes: &[Range],
    ) -> Result<(), Status> {
        let Some(geometry) = self.inventory.allocated(nsid) else { return Ok(()) };
        let (base, shift) = (geometry.base, geometry.shift);
        let metadata = geometry.metadata.clone();
        let blocks = |range: &Range| ((range.offset - base) >> shift, range.len >> shift);
        for (slba, blocks) in reads.iter().map(blocks) {
            self.refuse_bad(tag, nsid, slba, blocks)?;
        }
        for (slba, blocks) in changes.iter().map(blocks) {
            self.inventory.clear_bad(nsid, slba, blocks);
            if let Some(metadata) = &metadata {
                metadata.clear(slba, blocks);
            }
        }
        Ok(())
    }

    /// Fails at the first bad block, and has the error log name it.
    fn refuse_bad(&mut self, tag: Tag, nsid: u32, slba: u64, blocks: u64) -> Result<(), Status> {
        let Some(bad) = self.inventory.first_bad(nsid, slba, blocks) else { return Ok(()) };
        if let Some(slot) = self.queues.sq(tag.sqid).and_then(|sq| sq.slot(tag.slot)) {
            slot.slba = bad;
        }
        Err(Status::UNRECOVERED_READ_ERROR.dnr())
    }
}
