//! Doorbell Buffer Config (Base 2.0, 5.8): doorbells in host memory.
//!
//! While it polls, the controller reads the host's values from memory and leaves EventIdx
//! behind, so that the host does not ring. Before it sleeps it says up to where it has seen,
//! and looks once more.

use std::sync::atomic::Ordering;

use oxblock_mem::Cells;
use oxblock_nvme::command::PSDT_PRP;
use oxblock_nvme::queue::ShadowSource;
use oxblock_nvme::regs::{doorbell_index, doorbell_stride};
use oxblock_nvme::{Command, Status};
use oxblock_pci::soft::Translator;

use crate::hooks::Hooks;
use crate::service::Service;

/// The two pages of a host: its doorbells, and how far the controller has seen them.
pub(crate) struct ShadowPages {
    shadow: u64,
    event_index: u64,
    bytes: usize,
    /// Where the two lie in this process.
    memory: [*mut u8; 2],
}

impl ShadowPages {
    /// Two pages of `bytes` bytes; `None` if they are not mapped.
    fn new(
        translator: &mut Translator,
        shadow: u64,
        event_index: u64,
        bytes: usize,
    ) -> Option<ShadowPages> {
        let mut at = |iova| translator.buf(iova, bytes).ok().map(|buf| buf.addr());
        let memory = [at(shadow)?, at(event_index)?];
        Some(ShadowPages { shadow, event_index, bytes, memory })
    }

    /// Whether the host still has its pages mapped where they were.
    pub(crate) fn is_mapped(&self, translator: &mut Translator) -> bool {
        let now = ShadowPages::new(translator, self.shadow, self.event_index, self.bytes);
        now.is_some_and(|now| now.memory == self.memory)
    }
}

impl<H: Hooks> Service<H> {
    /// Takes the host's pages for all I/O queues, those that exist among them.
    pub(crate) fn configure_shadows(&mut self, command: &Command) -> Result<(), Status> {
        if !self.admin.identity.shadow_doorbells {
            return Err(Status::INVALID_OPCODE);
        }
        let page = 4096u64 << self.cc.mps();
        let (shadow, event_index) = (command.prp1(), command.prp2());
        let aligned = shadow % page == 0 && event_index % page == 0;
        if command.psdt() != PSDT_PRP || !aligned || shadow == event_index {
            return Err(Status::INVALID_FIELD);
        }
        let translator = &mut self.memory.translator;
        let pages = ShadowPages::new(translator, shadow, event_index, page as usize);
        let pages = pages.ok_or(Status::INVALID_FIELD)?;
        self.shadow = Some(pages);
        let sqs: Vec<u16> = self.queues.sqs().map(|sq| sq.sqid).collect();
        let cqs: Vec<u16> = self.queues.cqs().map(|cq| cq.cqid).collect();
        sqs.into_iter().for_each(|sqid| self.attach_shadow_sq(sqid));
        cqs.into_iter().for_each(|cqid| self.attach_shadow_cq(cqid));
        Ok(())
    }

    /// Serves a submission queue from its shadow doorbell, if there is one and it fits the page.
    /// What the host has rung so far goes there.
    pub(crate) fn attach_shadow_sq(&mut self, sqid: u16) {
        let Some(cells) = self.shadow_of(sqid, false) else { return };
        if let Some(sq) = self.queues.sq(sqid) {
            sq.shadow = cells.source(u32::from(sq.source.tail()));
        }
    }

    /// Serves a completion queue from its shadow doorbell.
    pub(crate) fn attach_shadow_cq(&mut self, cqid: u16) {
        let Some(cells) = self.shadow_of(cqid, true) else { return };
        if let Some(cq) = self.queues.cq(cqid) {
            cq.shadow = cells.source(u32::from(cq.sink.head()));
        }
    }

    /// Before sleep: asks every host to ring for what comes next. True if there is something
    /// already.
    pub(crate) fn arm_shadows(&mut self) -> bool {
        if self.shadow.is_none() {
            return false;
        }
        let mut news = false;
        for sq in self.queues.sqs() {
            let seen = sq.source.tail();
            if let Some(shadow) = &sq.shadow {
                let value = shadow.arm(seen);
                news |= value != u32::from(seen) && sq.refused != Some(value);
            }
        }
        for cq in self.queues.cqs() {
            let seen = cq.sink.head();
            if !cq.overflow.is_empty()
                && let Some(shadow) = &cq.shadow
            {
                let value = shadow.arm(seen);
                news |= value != u32::from(seen) && cq.refused != Some(value);
            }
        }
        news
    }

    /// The words of a queue's doorbell; the admin queues have none.
    fn shadow_of(&mut self, qid: u16, is_cq: bool) -> Option<ShadowCells> {
        let pages = self.shadow.as_ref()?;
        if qid == 0 {
            return None;
        }
        let stride = doorbell_stride(self.shared.registers.cap().dstrd());
        let at = doorbell_index(qid, is_cq).checked_mul(stride)?;
        let index = usize::try_from(at / 4).ok()?;
        if (index + 1) * 4 > pages.bytes {
            return None;
        }
        let translator = &mut self.memory.translator;
        let shadow = translator.cells(pages.shadow, pages.bytes).ok()?;
        let event_index = translator.cells(pages.event_index, pages.bytes).ok()?;
        Some(ShadowCells { shadow, event_index, index })
    }
}

struct ShadowCells {
    shadow: Cells,
    event_index: Cells,
    index: usize,
}

impl ShadowCells {
    /// The doorbell, at `value` to begin with.
    fn source(self, value: u32) -> Option<ShadowSource<Cells>> {
        self.shadow.u32(self.index).store(value, Ordering::Release);
        self.event_index.u32(self.index).store(value, Ordering::Release);
        ShadowSource::new(self.shadow, self.event_index, self.index)
    }
}
