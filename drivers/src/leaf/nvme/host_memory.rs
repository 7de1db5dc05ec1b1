//! The host memory buffer (Base 2.0, 8.9): memory lent to a controller that has little of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_mem::Cells;
use oxblock_nvme::Command;
use oxblock_nvme::feature::{HMB_EHM, HMB_MR, HostMemoryPiece};
use oxblock_nvme::identify::Controller as ControllerPage;
use oxblock_nvme::queue::Words;

use super::hardware::Hardware;
use super::memory::DeviceMemory;

/// The memory page, which sizes count in.
const PAGE: u64 = 4096;
/// Of what is free in the arena, the controller gets one part of so many at most: the rest is for
/// queues and data.
const SHARE: u64 = 4;

/// A buffer for the controller, in one piece.
pub(super) struct HostMemory {
    pages: u32,
    /// The descriptor list, of one entry.
    list_iova: u64,
    /// The controller had it before: it comes back as it was left.
    was_lent: bool,
    /// The buffer and the list: never freed while the controller may use them.
    memory: DeviceMemory,
}

impl HostMemory {
    /// As much as the controller prefers (HMPRE), within `limit` bytes and a quarter of what is
    /// free in the arena, if that is as much as it needs (HMMIN). None if it asks for nothing; else
    /// why it gets nothing.
    pub fn new(
        core: &Core,
        hardware: &Arc<Hardware>,
        page: &ControllerPage,
        limit: u64,
    ) -> Result<Result<Option<HostMemory>, String>, Error> {
        let preferred = u64::from(page.hmpre.get());
        if preferred == 0 || limit == 0 {
            return Ok(Ok(None));
        }
        let least = page.hmmin.get().max(page.hmminds.get()).max(1).into();
        let free = core.arena().available() as u64 / SHARE;
        let mut pages = preferred.min(limit / PAGE).min(free / PAGE).min(u32::MAX.into());
        while pages >= least {
            match HostMemory::of(core, hardware, pages as u32) {
                Ok(memory) => return Ok(Ok(Some(memory))),
                // In pieces it may be there, but not in one.
                Err(error) if error.kind() == ErrorKind::OutOfMemory => pages /= 2,
                Err(error) => return Err(error),
            }
        }
        let kib = |pages: u64| pages * (PAGE >> 10);
        Ok(Err(format!(
            "no host memory buffer: the controller prefers {} KiB and needs {}; the limit is {} KiB, \
             and a quarter of the arena's free memory {} KiB; it works without, but slower",
            kib(preferred),
            kib(least),
            limit >> 10,
            free >> 10
        )))
    }

    fn of(core: &Core, hardware: &Arc<Hardware>, pages: u32) -> Result<HostMemory, Error> {
        let len = u64::from(pages) * PAGE;
        let mut memory = DeviceMemory::new(core.arena(), (len + PAGE) as usize, hardware)?;
        let (buffer, list) = (memory.cells(len as usize)?, memory.cells(PAGE as usize)?);
        let (badd, list_iova) = (memory.iova_of(&buffer)?, memory.iova_of(&list)?);
        write_list(&list, HostMemoryPiece { badd, bsize: pages });
        Ok(HostMemory { pages, list_iova, was_lent: false, memory })
    }

    /// The command that gives it to the controller, which may use it from here on.
    pub fn lend(&mut self) -> Command {
        self.memory.expose();
        let flags = if self.was_lent { HMB_EHM | HMB_MR } else { HMB_EHM };
        Command::host_memory_buffer(flags, self.pages, self.list_iova, 1)
    }

    /// The controller has taken it.
    pub fn lent(&mut self) {
        self.was_lent = true;
    }

    /// The controller does not use it, or does no more.
    pub fn free(self) {
        self.memory.conceal();
    }

    /// Its length.
    pub fn len_bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE
    }
}

fn write_list(list: &Cells, piece: HostMemoryPiece) {
    for (at, word) in piece.to_words().into_iter().enumerate() {
        list.store64(at, word, Ordering::Relaxed);
    }
}
