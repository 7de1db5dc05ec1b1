//! From a request to a command: the part of a queue that knows its namespace.

use std::sync::atomic::Ordering;

use oxblock_engine::{Error, ErrorKind, Fault, OpFlags, OpKind, Request};
use oxblock_mem::{Cells, Piece};
use oxblock_nvme::command::{self, DataPointer};
use oxblock_nvme::opcode::nvm;
use oxblock_nvme::queue::Words;
use oxblock_nvme::{Command, dsm, prp, sgl};

use super::memory::DeviceMemory;
use super::namespace::{Protection, Shape};

/// Bytes of a tracker's page: a PRP list, an SGL segment, or ranges to deallocate.
const LIST_BYTES: usize = 4096;
/// Words of it.
const LIST_WORDS: usize = LIST_BYTES / 8;

/// Builds the commands of one namespace, with a page for the lists of each tracker.
pub(super) struct Commands {
    shape: Shape,
    lists: Cells,
    lists_iova: u64,
}

impl Commands {
    /// Bytes that the lists of so many trackers take.
    pub fn list_bytes(trackers: usize) -> usize {
        trackers * LIST_BYTES
    }

    /// For a namespace, with lists in the next [`Commands::list_bytes`] of `memory`.
    pub fn new(
        shape: Shape,
        memory: &mut DeviceMemory,
        trackers: usize,
    ) -> Result<Commands, Error> {
        let lists = memory.cells(Commands::list_bytes(trackers))?;
        Ok(Commands { shape, lists_iova: memory.iova_of(&lists)?, lists })
    }

    /// Log2 of the namespace's block size.
    pub fn block_shift(&self) -> u8 {
        self.shape.block_shift as u8
    }

    /// The command for a request, with lists in the page of the tracker `index`. None if there is
    /// nothing to send.
    #[inline]
    pub fn of(&self, request: &Request<'_>, index: usize) -> Result<Option<Command>, Fault> {
        let fua = if request.flags.contains(OpFlags::FUA) { command::FUA } else { 0 };
        match request.kind {
            OpKind::Read => self.transfer(nvm::READ, 0, request, index).map(Some),
            OpKind::Write => self.transfer(nvm::WRITE, fua, request, index).map(Some),
            OpKind::Compare => self.transfer(nvm::COMPARE, 0, request, index).map(Some),
            OpKind::WriteZeroes if self.shape.zeroes_by_deallocate => {
                self.deallocate(request, index).map(Some)
            }
            OpKind::WriteZeroes => self.write_zeroes(fua, request).map(Some),
            OpKind::Discard => self.deallocate(request, index).map(Some),
            OpKind::Flush if self.shape.volatile_cache => Ok(Some(Command::flush(self.shape.nsid))),
            // Without a volatile cache every completed write is durable already.
            OpKind::Flush => Ok(None),
        }
    }

    /// A command with data. PRPs where two of them do, or where there are no SGLs.
    #[inline]
    fn transfer(
        &self,
        opcode: u8,
        cdw12: u32,
        request: &Request<'_>,
        index: usize,
    ) -> Result<Command, Fault> {
        let (slba, blocks) = self.range(request, request.data.len() as u64)?;
        let Protection { prinfo, tag_mask } = self.shape.protection;
        let command = Command::nvm(opcode, self.shape.nsid, slba, blocks, cdw12 | prinfo)
            .with_reference_tag(slba & tag_mask);
        if request.len > 2 * prp::PAGE
            && let Some(data) = self.sgl(request, index)
        {
            return Ok(command.with_data(data));
        }
        let pieces = request.data.pieces().map(iova_and_len);
        let (first, list) = self.list(index);
        match prp::build(pieces, &self.lists, first, list) {
            Ok((prp1, prp2)) => Ok(command.with_prp(prp1, prp2)),
            Err(_) => match self.sgl(request, index) {
                Some(data) => Ok(command.with_data(data)),
                None => Err(unreachable_memory(request)),
            },
        }
    }

    fn sgl(&self, request: &Request<'_>, index: usize) -> Option<DataPointer> {
        let align = self.shape.sgl_align?;
        let pieces = request.data.pieces().map(iova_and_len);
        let (first, list) = self.list(index);
        let sgl = sgl::build(pieces, align, &self.lists, first, list);
        sgl.ok().map(DataPointer::Sgl)
    }

    fn write_zeroes(&self, fua: u32, request: &Request<'_>) -> Result<Command, Fault> {
        let (slba, blocks) = self.range(request, request.len)?;
        let unmap = request.flags.contains(OpFlags::MAY_UNMAP) && self.shape.deallocate_zeroes;
        let deac = if unmap { command::DEAC } else { 0 };
        let Protection { prinfo, tag_mask } = self.shape.protection;
        // There is nothing to check.
        let pract = prinfo & command::PRACT;
        let command = Command::write_zeroes(self.shape.nsid, slba, blocks, fua | deac | pract);
        Ok(command.with_reference_tag(slba & tag_mask))
    }

    /// Deallocates, in as many ranges as the longest range makes it take.
    fn deallocate(&self, request: &Request<'_>, index: usize) -> Result<Command, Fault> {
        let (first, list) = self.list(index);
        let mut slba = request.offset >> self.shape.block_shift;
        let mut left = request.len >> self.shape.block_shift;
        let mut ranges = 0;
        while left > 0 {
            if ranges == self.shape.ranges_max {
                return Err(beyond_limits(request));
            }
            let blocks = left.min(self.shape.range_blocks_max.into());
            let words = dsm::Range::new(slba, blocks as u32).to_words();
            let at = first + ranges as usize * 2;
            self.lists.store64(at, words[0], Ordering::Relaxed);
            self.lists.store64(at + 1, words[1], Ordering::Relaxed);
            slba += blocks;
            left -= blocks;
            ranges += 1;
        }
        if ranges == 0 {
            return Err(beyond_limits(request));
        }
        let command = Command::dataset_management(self.shape.nsid, ranges, dsm::AD);
        Ok(command.with_prp(list, 0))
    }

    /// Starting LBA and blocks of a request of `len` bytes.
    #[inline]
    fn range(&self, request: &Request<'_>, len: u64) -> Result<(u64, u32), Fault> {
        let blocks = len >> self.shape.block_shift;
        if blocks.wrapping_sub(1) > 0xffff {
            return Err(beyond_limits(request));
        }
        Ok((request.offset >> self.shape.block_shift, blocks as u32))
    }

    /// A tracker's page: its first word, and its IOVA.
    #[inline]
    fn list(&self, index: usize) -> (usize, u64) {
        let iova = self.lists_iova + (index * LIST_BYTES) as u64;
        (index * LIST_WORDS, iova)
    }
}

/// Memory without an IOVA gets an address that no builder takes.
#[inline]
fn iova_and_len(piece: Piece<'_>) -> (u64, u64) {
    (piece.iova().unwrap_or(u64::MAX), piece.len() as u64)
}

#[cold]
fn unreachable_memory(request: &Request<'_>) -> Fault {
    let text = "the controller can not reach this memory, or not in these pieces";
    Fault::text(ErrorKind::Invalid, request.offset, text)
}

#[cold]
fn beyond_limits(request: &Request<'_>) -> Fault {
    let text = "the length is zero, or beyond what one command can carry";
    Fault::text(ErrorKind::Invalid, request.offset, text)
}
