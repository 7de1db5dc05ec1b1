//! The host memory buffer (Base 2.0, 8.9): memory lent to a controller that has little of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_mem::Cells;
use oxblock_nvme::Command;
use oxblock_nvme::feature::{HMB_EHM, HMB_MR, HostMemoryPiece};
use oxblock_nvme::identify::Controller as ControllerPage;
use oxblock_nvme::queue::Words;

use super::admin::Admin;
use super::hardware::Hardware;
use super::memory::DeviceMemory;

/// The memory page, which sizes count in.
const PAGE: u64 = 4096;
/// Of what is free in the arena, the controller gets one part of so many at most: the rest is for
/// queues and data.
const SHARE: u64 = 4;

/// A buffer that the controller has, in one piece.
pub(super) struct HostMemory {
    pages: u32,
    /// The descriptor list, of one entry.
    list_iova: u64,
    /// The buffer and the list: never freed while the controller may use them.
    memory: DeviceMemory,
}

/// What came of a gift: the buffer that the controller took, nothing because it asks for none, or
/// why it has none.
type Given = Result<Option<HostMemory>, String>;

impl HostMemory {
    /// Gives the controller what it prefers (HMPRE), within `limit` bytes and a quarter of what is
    /// free in the arena, if that is as much as it needs (HMMIN).
    pub async fn give(
        core: &Core,
        admin: &Arc<Admin>,
        hardware: &Arc<Hardware>,
        page: &ControllerPage,
        limit: u64,
    ) -> Result<Given, Error> {
        let preferred = u64::from(page.hmpre.get());
        if preferred == 0 || limit == 0 {
            return Ok(Ok(None));
        }
        let least = page.hmmin.get().max(page.hmminds.get()).max(1).into();
        let free = core.arena().available() as u64 / SHARE;
        let mut pages = preferred.min(limit / PAGE).min(free / PAGE).min(u32::MAX.into());
        while pages >= least {
            match HostMemory::new(core, hardware, pages as u32) {
                Ok(memory) => return memory.hand_over(core, admin, HMB_EHM).await,
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

    /// Gives it the same buffer after a reset, with what it left in it.
    pub async fn give_again(self, core: &Core, admin: &Arc<Admin>) -> Result<Given, Error> {
        self.hand_over(core, admin, HMB_EHM | HMB_MR).await
    }

    /// Takes it back: freed if the controller agrees, else kept.
    pub async fn take_back(mut self, core: &Core, admin: &Arc<Admin>) -> Option<HostMemory> {
        let command = Command::host_memory_buffer(0, 0, 0, 0);
        let done = admin.execute(core, command, None).await;
        if !done.is_ok_and(|done| done.completion.is_success()) {
            return Some(self);
        }
        self.memory.conceal();
        None
    }

    /// Its length.
    pub fn len_bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE
    }

    fn new(core: &Core, hardware: &Arc<Hardware>, pages: u32) -> Result<HostMemory, Error> {
        let len = u64::from(pages) * PAGE;
        let mut memory = DeviceMemory::new(core.arena(), (len + PAGE) as usize, hardware)?;
        let (buffer, list) = (memory.cells(len as usize)?, memory.cells(PAGE as usize)?);
        let (badd, list_iova) = (memory.iova_of(&buffer)?, memory.iova_of(&list)?);
        write_list(&list, HostMemoryPiece { badd, bsize: pages });
        Ok(HostMemory { pages, list_iova, memory })
    }

    async fn hand_over(
        mut self,
        core: &Core,
        admin: &Arc<Admin>,
        flags: u32,
    ) -> Result<Given, Error> {
        self.memory.expose();
        let command = Command::host_memory_buffer(flags, self.pages, self.list_iova, 1);
        let done = admin.execute(core, command, None).await?;
        if done.completion.is_success() {
            return Ok(Ok(Some(self)));
        }
        self.memory.conceal();
        Ok(Err(format!(
            "no host memory buffer: the controller asks for one, and refuses it: {}",
            done.completion.status()
        )))
    }
}

fn write_list(list: &Cells, piece: HostMemoryPiece) {
    for (at, word) in piece.to_words().into_iter().enumerate() {
        list.store64(at, word, Ordering::Relaxed);
    }
}
