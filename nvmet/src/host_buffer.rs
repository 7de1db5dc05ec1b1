//! The Host Memory Buffer (Base 2.0, 5.27.1.10 and 8.9): memory that the host lends, and that it
//! must leave alone until it is returned.
//!
//! The controller keeps a pattern of its own in every page, and looks for it whenever it comes by:
//! at each admin command, when the IOMMU's table changes, and before it gives the buffer back. A
//! host that has unmapped or overwritten a page by then broke its promise, which is fatal.

use oxblock_nvme::feature::{HMB_EHM, HMB_MR, HostMemoryPiece};
use oxblock_nvme::opcode::admin;
use oxblock_nvme::{Command, Status, feature};
use oxblock_pci::soft::Translator;

use crate::hooks::Hooks;
use crate::service::Service;

/// What the pattern is kept in: the first bytes of each 4 KiB.
const PAGE: u64 = 4096;
const MARK_BYTES: usize = 512;

/// Entries of the descriptor list, and pages in all, that are taken.
const PIECES_MAX: u32 = 4096;
const PAGES_MAX: u64 = 1 << 20;

/// Bytes of the attributes that Get Features returns, and of an entry of the list.
const ATTRIBUTES_BYTES: usize = 4096;
const PIECE_BYTES: usize = 16;

/// The buffer, if the controller has one.
#[derive(Default)]
pub(crate) struct HostBuffer {
    enabled: bool,
    /// As the host described it last: size in memory pages, list, entries.
    described: (u32, u64, u32),
    /// The addresses of its pages of 4 KiB. Kept when it is given back, since the host may return
    /// it as it was (MR).
    pages: Vec<u64>,
    /// How often each page was written.
    ages: Vec<u32>,
    /// The page to look at next.
    next: usize,
}

impl HostBuffer {
    /// Writes the pattern to every page, as for memory that is new.
    fn fill(&mut self, memory: &mut Translator) -> Result<(), Status> {
        self.ages = vec![0; self.pages.len()];
        (0..self.pages.len()).try_for_each(|page| self.write(page, memory))
    }

    /// Looks at one page after the other, and writes each anew. False if one is not as it was.
    pub(crate) fn visit(&mut self, count: usize, memory: &mut Translator) -> bool {
        (0..count.min(self.pages.len())).all(|_| {
            let page = self.next % self.pages.len();
            self.next = page + 1;
            self.holds(page, memory) && self.write(page, memory).is_ok()
        })
    }

    fn holds(&self, page: usize, memory: &mut Translator) -> bool {
        let mut found = [0; MARK_BYTES];
        let at = self.pages.get(page).copied().unwrap_or(0);
        memory.read(at, &mut found).is_ok() && found == self.mark(page)
    }

    fn write(&mut self, page: usize, memory: &mut Translator) -> Result<(), Status> {
        if let Some(age) = self.ages.get_mut(page) {
            *age = age.wrapping_add(1);
        }
        let at = self.pages.get(page).copied().unwrap_or(0);
        memory.write(at, &self.mark(page)).map_err(|_| Status::DATA_TRANSFER_ERROR)
    }

    fn mark(&self, page: usize) -> [u8; MARK_BYTES] {
        let age = self.ages.get(page).copied().unwrap_or(0);
        let word = (page as u64) << 32 | u64::from(age);
        let word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        std::array::from_fn(|at| word[at % 8] ^ (at / 8) as u8)
    }

    /// A reset: the buffer is the host's again.
    pub(crate) fn forget(&mut self) {
        self.enabled = false;
    }
}

impl<H: Hooks> Service<H> {
    /// Set Features and Get Features for the buffer; dword 0 of the completion.
    pub(crate) fn host_memory(&mut self, command: &Command) -> Result<u32, Status> {
        if command.opcode() == admin::GET_FEATURES {
            return self.describe_host_memory(command);
        }
        let wanted = command.cdw11() & HMB_EHM != 0;
        match (wanted, self.host_buffer.enabled) {
            (true, true) => Err(Status::SEQUENCE_ERROR),
            (true, false) => self.take_host_memory(command).and(Ok(0)),
            (false, false) => Ok(0),
            (false, true) => {
                self.check_host_memory(usize::MAX);
                self.host_buffer.forget();
                Ok(0)
            }
        }
    }

    /// Looks at some pages of the buffer; a host that took one back too early finds the controller
    /// failed.
    #[cold]
    pub(crate) fn check_host_memory(&mut self, count: usize) {
        let kept = self.host_buffer.visit(count, &mut self.memory.translator);
        if !kept {
            self.host_buffer.forget();
            self.shared.broken_promises.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.admin.logs.record(0, 0xffff, 0, 0, Status::INTERNAL_ERROR);
            self.fail();
        }
    }

    /// A reset: every page is looked at for the last time.
    pub(crate) fn give_back_host_memory(&mut self) {
        if self.has_host_memory() {
            self.check_host_memory(usize::MAX);
            self.host_buffer.forget();
        }
    }

    /// Whether the host has lent a buffer.
    pub(crate) fn has_host_memory(&self) -> bool {
        self.host_buffer.enabled
    }

    fn take_host_memory(&mut self, command: &Command) -> Result<(), Status> {
        let (size, entries) = (command.cdw12(), command.cdw15());
        let list = u64::from(command.cdw14()) << 32 | u64::from(command.cdw13() & !0xf);
        let page_bytes = 4096u64 << self.cc.mps();
        let bytes = u64::from(size) * page_bytes;
        let least = u64::from(self.admin.identity.host_memory.1) * PAGE;
        if bytes < least || bytes / PAGE > PAGES_MAX || entries == 0 || entries > PIECES_MAX {
            return Err(Status::INVALID_FIELD);
        }
        let mut pages = Vec::new();
        for entry in 0..u64::from(entries) {
            let mut raw = [0; PIECE_BYTES];
            let at = list.checked_add(entry * PIECE_BYTES as u64).ok_or(Status::INVALID_FIELD)?;
            let read = self.memory.translator.read(at, &mut raw);
            read.map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            let (low, high) = (raw[..8].as_chunks::<8>().0, raw[8..].as_chunks::<8>().0);
            let words = [u64::from_le_bytes(low[0]), u64::from_le_bytes(high[0])];
            let piece = HostMemoryPiece::from_words(words);
            let len = u64::from(piece.bsize) * page_bytes;
            let fits = (pages.len() as u64 * PAGE).saturating_add(len) <= bytes;
            let end = piece.badd.checked_add(len);
            if !piece.badd.is_multiple_of(page_bytes) || !fits || end.is_none() {
                return Err(Status::INVALID_FIELD);
            }
            pages.extend((0..len / PAGE).map(|n| piece.badd + n * PAGE));
        }
        if pages.len() as u64 * PAGE != bytes {
            return Err(Status::INVALID_FIELD);
        }
        let returned = command.cdw11() & HMB_MR != 0 && pages == self.host_buffer.pages;
        self.host_buffer.pages = pages;
        self.host_buffer.described = (size, list, entries);
        if !returned {
            self.host_buffer.fill(&mut self.memory.translator)?;
        }
        self.host_buffer.enabled = true;
        if returned {
            self.check_host_memory(usize::MAX);
        }
        Ok(())
    }

    fn describe_host_memory(&mut self, command: &Command) -> Result<u32, Status> {
        match (command.cdw10() >> 8 & 7) as u8 {
            feature::SEL_SUPPORTED => {
                return Ok(crate::admin::features::supported(feature::HOST_MEMORY_BUFFER));
            }
            feature::SEL_CURRENT..=feature::SEL_SAVED => {}
            _ => return Err(Status::INVALID_FIELD),
        }
        let current = command.cdw10() >> 8 & 7 == 0 && self.host_buffer.enabled;
        let (size, list, entries) = if current { self.host_buffer.described } else { (0, 0, 0) };
        let mut page = [0; ATTRIBUTES_BYTES];
        page[..4].copy_from_slice(&size.to_le_bytes());
        page[4..12].copy_from_slice(&list.to_le_bytes());
        page[12..16].copy_from_slice(&entries.to_le_bytes());
        let mut to = self.memory.map_admin(command, page.len())?;
        to.write_at(0, &page);
        Ok(u32::from(current) * HMB_EHM)
    }
}
