//! Namespaces with 8 bytes of metadata for each block, and protection information in them (NVM
//! Command Set 1.0, 5.2 and 5.3): a 16-bit guard, an application tag and a reference tag.
//!
//! A namespace without metadata pays nothing: one that has it is not open, and its commands come
//! by here. Reads and writes go through the memory of a long command.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crc::{CRC_16_T10_DIF, Crc};
use oxblock_engine::Op;
use oxblock_mem::{Buf, IoVector, MappedWords, MemError};
use oxblock_nvme::command::{FUA, PRACT, PRCHK_APP, PRCHK_GUARD, PRCHK_REF};
use oxblock_nvme::opcode::nvm;
use oxblock_nvme::{Command, Status};

use crate::data::HostMemory;
use crate::namespace::{COPY_BYTES, Geometry};
use crate::nvm::Rules;

/// Bytes of metadata of a block.
pub(crate) const METADATA: u64 = 8;

static GUARD: Crc<u16> = Crc::<u16>::new(&CRC_16_T10_DIF);

/// What Format NVM says of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Protection type 1 to 3; 0 is metadata that nobody looks at.
    pub(crate) kind: u8,
    /// Protection information comes first in the metadata, which makes no difference here.
    pub(crate) first: bool,
    /// Metadata follows the data of its block, instead of having a buffer of its own.
    pub(crate) extended: bool,
}

/// The metadata of a namespace. Blocks that were never written have all ones, which is no check.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) layout: Layout,
    /// Inverted: a word that was never stored is 0.
    words: MappedWords,
}

impl Metadata {
    pub(crate) fn new(blocks: u64, layout: Layout) -> Result<Metadata, MemError> {
        let count = usize::try_from(blocks).unwrap_or(usize::MAX);
        Ok(Metadata { layout, words: MappedWords::anonymous(count)? })
    }

    fn get(&self, lba: u64) -> u64 {
        self.words.get(lba as usize).map_or(u64::MAX, |word| !word.load(Ordering::Relaxed))
    }

    fn set(&self, lba: u64, value: u64) {
        if let Some(word) = self.words.get(lba as usize) {
            word.store(!value, Ordering::Relaxed);
        }
    }

    /// Blocks are as if they were never written.
    pub(crate) fn clear(&self, slba: u64, blocks: u64) {
        let words = self.words.iter().skip(slba as usize).take(blocks as usize);
        // A word that is only read takes no memory.
        for word in words.filter(|word| word.load(Ordering::Relaxed) != 0) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// What Write Zeroes makes of the metadata of blocks.
    ///
    /// # Errors
    /// The controller is not to insert protection information.
    pub(crate) fn zero(&self, command: &Command) -> Result<(), Status> {
        let tags = Tags::of(command);
        if self.layout.kind != 0 && tags.prinfo & PRACT == 0 {
            return Err(Status::INVALID_FIELD);
        }
        for index in 0..u64::from(command.blocks()) {
            // The guard of zeroes is zero.
            let value =
                if self.layout.kind == 0 { 0 } else { tags.expected(self.layout, 0, index) };
            self.set(command.slba() + index, value);
        }
        Ok(())
    }
}

/// What a command says of protection information: dwords 12, 14 and 15.
#[derive(Clone, Copy)]
struct Tags {
    prinfo: u32,
    reference: u32,
    app: u16,
    mask: u16,
}

impl Tags {
    fn of(command: &Command) -> Tags {
        let (prinfo, reference) = (command.cdw12(), command.cdw14());
        let dword = command.cdw15();
        Tags { prinfo, reference, app: dword as u16, mask: (dword >> 16) as u16 }
    }

    /// The protection information of the block with this index in the command.
    fn expected(self, layout: Layout, guard: u16, index: u64) -> u64 {
        let step = if layout.kind == 3 { 0 } else { index as u32 };
        let reference = self.reference.wrapping_add(step);
        u64::from(guard) << 48 | u64::from(self.app) << 32 | u64::from(reference)
    }

    /// Whether the command may ask for these checks.
    fn permit(self, layout: Layout, slba: u64) -> Result<(), Status> {
        let checks_reference = self.prinfo & PRCHK_REF != 0;
        let wrong = match layout.kind {
            1 => checks_reference && self.reference != slba as u32,
            3 => checks_reference,
            _ => false,
        };
        if wrong { Err(Status::INVALID_PROTECTION_INFORMATION) } else { Ok(()) }
    }

    /// Checks a block against its protection information.
    fn check(self, layout: Layout, value: u64, block: &[u8], index: u64) -> Result<(), Status> {
        let (guard, app, reference) = ((value >> 48) as u16, (value >> 32) as u16, value as u32);
        let escaped = app == u16::MAX && (layout.kind != 3 || reference == u32::MAX);
        if layout.kind == 0 || escaped {
            return Ok(());
        }
        if self.prinfo & PRCHK_GUARD != 0 && guard != GUARD.checksum(block) {
            return Err(Status::GUARD_CHECK_ERROR);
        }
        if self.prinfo & PRCHK_APP != 0 && (app ^ self.app) & self.mask != 0 {
            return Err(Status::APPLICATION_TAG_ERROR);
        }
        let expected = self.expected(layout, 0, index) as u32;
        if self.prinfo & PRCHK_REF != 0 && reference != expected {
            return Err(Status::REFERENCE_TAG_ERROR);
        }
        Ok(())
    }
}

/// A Read, Write, Compare or Verify on its way, piece by piece.
pub(crate) struct Transfer {
    metadata: Arc<Metadata>,
    opcode: u8,
    tags: Tags,
    fua: bool,
    slba: u64,
    blocks: u64,
    shift: u32,
    /// Where the blocks lie on the node.
    offset: u64,
    /// Blocks that are done.
    done: u64,
    data: IoVector,
    /// The metadata that the host has in a buffer of its own.
    apart: IoVector,
    /// A block, what the host has in its place to compare with, and the metadata of the blocks that
    /// are being written.
    block: Vec<u8>,
    theirs: Vec<u8>,
    values: Vec<u64>,
}

/// A block that is not as it should be: its LBA, and why.
pub(crate) type Bad = (u64, Status);

impl Transfer {
    /// # Errors
    /// What is wrong with the command.
    pub(crate) fn new(
        command: &Command,
        namespace: &Geometry,
        metadata: &Arc<Metadata>,
        rules: &Rules,
        memory: &mut HostMemory,
    ) -> Result<Transfer, Status> {
        let (slba, blocks) = (command.slba(), u64::from(command.blocks()));
        let range = namespace.range(slba, blocks)?;
        let (layout, tags) = (metadata.layout, Tags::of(command));
        tags.permit(layout, slba)?;
        let compares = command.opcode() == nvm::COMPARE;
        if compares && layout.kind != 0 && tags.prinfo & PRACT != 0 {
            return Err(Status::INVALID_PROTECTION_INFORMATION);
        }
        let mut transfer = Transfer {
            metadata: Arc::clone(metadata),
            opcode: command.opcode(),
            tags,
            fua: command.cdw12() & FUA != 0 || !rules.write_cache,
            slba,
            blocks,
            shift: namespace.shift,
            offset: range.offset,
            done: 0,
            data: IoVector::new(),
            apart: IoVector::new(),
            block: vec![0; 1 << namespace.shift],
            theirs: vec![0; if compares { 1 << namespace.shift } else { 0 }],
            values: Vec::new(),
        };
        if command.opcode() == nvm::VERIFY {
            return Ok(transfer);
        }
        let len = rules.transfer(blocks * transfer.stride())?;
        transfer.data = memory.map_data(command, len)?;
        if transfer.has_metadata() && !layout.extended {
            transfer.apart = memory.map_metadata(command, (blocks * METADATA) as usize)?;
        }
        Ok(transfer)
    }

    /// Whether the host has the metadata, too, and the controller does not make it or strip it.
    fn has_metadata(&self) -> bool {
        self.metadata.layout.kind == 0 || self.tags.prinfo & PRACT == 0
    }

    /// Bytes from one block of the host's data to the next.
    fn stride(&self) -> u64 {
        let inline = self.has_metadata() && self.metadata.layout.extended;
        (1 << self.shift) + if inline { METADATA } else { 0 }
    }

    /// Blocks of the next piece; 0 at the end.
    fn piece(&self) -> u64 {
        (self.blocks - self.done).min(u64::from(COPY_BYTES) >> self.shift)
    }

    /// Bytes of the next piece; 0 at the end.
    pub(crate) fn piece_bytes(&self) -> usize {
        (self.piece() << self.shift) as usize
    }

    /// The operation for the next piece, in memory as long as that.
    ///
    /// # Errors
    /// A block to be written is not as it should be; the memory comes back.
    pub(crate) fn next(&mut self, mut memory: Buf) -> Result<Op, (Bad, Buf)> {
        let offset = self.offset + (self.done << self.shift);
        if self.opcode != nvm::WRITE {
            return Ok(Op::read(offset, memory));
        }
        match self.gather(&mut memory) {
            Ok(()) if self.fua => Ok(Op::write(offset, memory).fua()),
            Ok(()) => Ok(Op::write(offset, memory)),
            Err(bad) => Err((bad, memory)),
        }
    }

    fn gather(&mut self, memory: &mut Buf) -> Result<(), Bad> {
        self.values.clear();
        let layout = self.metadata.layout;
        for at in 0..self.piece() {
            let index = self.done + at;
            self.data.read_at((index * self.stride()) as usize, &mut self.block);
            let value = if self.has_metadata() {
                let value = self.host_value(index);
                let checked = self.tags.check(layout, value, &self.block, index);
                checked.map_err(|status| (self.slba + index, status))?;
                value
            } else {
                self.tags.expected(layout, GUARD.checksum(&self.block), index)
            };
            self.values.push(value);
            memory.write_at((at << self.shift) as usize, &self.block);
        }
        Ok(())
    }

    fn host_value(&self, index: u64) -> u64 {
        let mut bytes = [0; METADATA as usize];
        match self.metadata.layout.extended {
            true => self.data.read_at(self.inline_at(index), &mut bytes),
            false => self.apart.read_at((index * METADATA) as usize, &mut bytes),
        }
        u64::from_be_bytes(bytes)
    }

    fn inline_at(&self, index: u64) -> usize {
        (index * self.stride() + (1 << self.shift)) as usize
    }

    /// A piece was read into this memory, or written from it.
    ///
    /// # Errors
    /// A block that was read is not as it should be.
    pub(crate) fn completed(&mut self, memory: &IoVector) -> Result<(), Bad> {
        let (first, count) = (self.done, self.piece());
        self.done += count;
        if self.opcode == nvm::WRITE {
            for (lba, value) in (self.slba + first..).zip(&self.values) {
                self.metadata.set(lba, *value);
            }
            return Ok(());
        }
        for at in 0..count {
            memory.read_at((at << self.shift) as usize, &mut self.block);
            self.hand_over(first + at)?;
        }
        Ok(())
    }

    /// Checks a block that was read, and gives it to the host, or compares it with the host's.
    fn hand_over(&mut self, index: u64) -> Result<(), Bad> {
        let layout = self.metadata.layout;
        let lba = self.slba + index;
        let value = self.metadata.get(lba);
        let checked = self.tags.check(layout, value, &self.block, index);
        checked.map_err(|status| (lba, status))?;
        match self.opcode {
            nvm::VERIFY => return Ok(()),
            nvm::COMPARE => return self.compare(index, lba, value),
            _ => {}
        }
        self.data.write_at((index * self.stride()) as usize, &self.block);
        let (bytes, at) = (value.to_be_bytes(), self.inline_at(index));
        match (self.has_metadata(), layout.extended) {
            (false, _) => {}
            (true, true) => self.data.write_at(at, &bytes),
            (true, false) => self.apart.write_at((index * METADATA) as usize, &bytes),
        }
        Ok(())
    }

    /// Protection information is checked, and not compared: other metadata is.
    fn compare(&mut self, index: u64, lba: u64, value: u64) -> Result<(), Bad> {
        self.data.read_at((index * self.stride()) as usize, &mut self.theirs);
        let same_metadata = self.metadata.layout.kind != 0 || self.host_value(index) == value;
        match self.theirs == self.block && same_metadata {
            true => Ok(()),
            false => Err((lba, Status::COMPARE_FAILURE)),
        }
    }
}
