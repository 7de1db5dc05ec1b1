//! Creation and deletion of I/O queues (Base 2.0, 5.4 to 5.7), and the way of admin commands.

use oxblock_engine::Core;
use oxblock_nvme::opcode::admin;
use oxblock_nvme::queue::{CompletionSink, SubmissionSource};
use oxblock_nvme::{Command, Completion, Status, feature};

use super::Surroundings;
use super::features::Situation;
use crate::data::{DataPath, HostMemory};
use crate::hooks::Hooks;
use crate::lifecycle::place;
use crate::queue::{CompletionQueue, SubmissionQueue, Tag, Work};
use crate::service::{Service, Stalled};

/// Create, dword 11: the queue is physically contiguous.
const CONTIGUOUS: u32 = 1;

/// Create completion queue, dword 11: interrupts are enabled.
const INTERRUPTS: u32 = 1 << 1;

/// CC.IOSQES and CC.IOCQES: entries of 64 and 16 bytes.
const SQ_ENTRY: u8 = 6;
const CQ_ENTRY: u8 = 4;

/// What becomes of an admin command.
pub(super) enum Outcome {
    /// It is done; dword 0 of its completion.
    Done(u32),
    /// It stays in its slot until something happens.
    Held,
}

/// The data of admin commands, which take no SGL.
pub(super) struct AdminData<'a>(pub(super) &'a mut HostMemory);

impl DataPath for AdminData<'_> {
    fn map(&mut self, command: &Command, len: usize) -> Result<oxblock_mem::IoVector, Status> {
        self.0.map_admin(command, len)
    }
}

impl<H: Hooks> Service<H> {
    /// Carries out an admin command that was just fetched.
    pub(crate) fn start_admin(&mut self, tag: Tag, command: &Command, core: &Core) {
        if H::ACTIVE && self.is_doomed(tag, command) {
            return;
        }
        match self.admin_outcome(tag, command, core) {
            Ok(Outcome::Done(dword)) => self.complete(tag, dword, Status::SUCCESS),
            Ok(Outcome::Held) => self.set_work(tag, Work::Held),
            Err(status) => self.complete(tag, 0, status),
        }
    }

    fn admin_outcome(
        &mut self,
        tag: Tag,
        command: &Command,
        core: &Core,
    ) -> Result<Outcome, Status> {
        let conflict = |cid| {
            move |(slot, other): (u16, &crate::queue::Slot)| slot != tag.slot && other.cid == cid
        };
        if self.queues.sq(0).is_some_and(|sq| sq.in_work().any(conflict(command.cid()))) {
            return Err(Status::CID_CONFLICT);
        }
        if command.fuse() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        self.admin.sanitize.permits(command.opcode())?;
        if self.has_host_memory() {
            self.check_host_memory(1);
        }
        let done = Ok(Outcome::Done(0));
        match command.opcode() {
            admin::CREATE_CQ => self.create_cq(command).and(done),
            admin::CREATE_SQ => self.create_sq(command).and(done),
            admin::DELETE_CQ => self.delete_cq(command).and(done),
            admin::DELETE_SQ => self.delete_sq(tag, command),
            admin::ABORT => Ok(Outcome::Done(self.abort(command))),
            admin::ASYNC_EVENT => {
                self.admin.events.hold(tag.slot)?;
                Ok(Outcome::Held)
            }
            admin::FORMAT_NVM => self.format(tag, command),
            admin::NAMESPACE_MANAGEMENT => self.manage(tag, command),
            admin::NAMESPACE_ATTACHMENT => self.attachment(tag, command),
            admin::SANITIZE => self.sanitize(command, core).map(Outcome::Done),
            admin::DOORBELL_BUFFER_CONFIG => self.configure_shadows(command).and(done),
            admin::KEEP_ALIVE if self.admin.features.has(feature::KEEP_ALIVE_TIMER) => {
                self.keep_alive(core);
                done
            }
            admin::SET_FEATURES | admin::GET_FEATURES
                if command.cdw10() as u8 == feature::HOST_MEMORY_BUFFER
                    && self.admin.features.has(feature::HOST_MEMORY_BUFFER) =>
            {
                self.host_memory(command).map(Outcome::Done)
            }
            admin::SET_FEATURES | admin::GET_FEATURES
                if command.cdw10() as u8 == feature::NAMESPACE_WRITE_PROTECTION =>
            {
                self.write_protection(command).map(Outcome::Done)
            }
            _ => self.execute(command, core).map(Outcome::Done),
        }
    }

    fn execute(&mut self, command: &Command, core: &Core) -> Result<u32, Status> {
        let situation = Situation {
            has_io_queues: self.queues.has_io_queues(),
            now_ms: core.now() / 1_000_000,
        };
        let around = Surroundings {
            usage: self.usage(),
            situation,
            inventory: &self.inventory,
            data: &mut AdminData(&mut self.memory),
        };
        let dword = self.admin.execute(command, around, &mut self.hooks)?;
        self.settle_features(command, core);
        Ok(dword)
    }

    fn create_cq(&mut self, command: &Command) -> Result<(), Status> {
        let cqid = command.cdw10() as u16;
        let granted = self.admin.features.queues().completion;
        if cqid == 0 || cqid > granted || self.queues.cq(cqid).is_some() {
            return Err(Status::INVALID_QID);
        }
        let entries = self.entries(command, self.cc.iocqes() == CQ_ENTRY)?;
        let vector = (command.cdw11() >> 16) as u16;
        let interrupts = command.cdw11() & INTERRUPTS != 0;
        if interrupts && vector >= self.vectors {
            return Err(Status::INVALID_INTERRUPT_VECTOR);
        }
        let place = place(self.base(command)?, entries, Completion::BYTES);
        let cells = self.memory.translator.cells(place.iova, place.bytes);
        let cells = cells.map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let sink = CompletionSink::new(cells, entries);
        let sink = sink.map_err(|_| Status::INVALID_QUEUE_SIZE)?;
        let vector = interrupts.then_some(vector);
        self.queues.add_cq(CompletionQueue::new(cqid, place, sink, vector));
        self.shared.doorbells.set_cq(cqid, true);
        self.attach_shadow_cq(cqid);
        Ok(())
    }

    fn create_sq(&mut self, command: &Command) -> Result<(), Status> {
        let sqid = command.cdw10() as u16;
        let cqid = (command.cdw11() >> 16) as u16;
        let granted = self.admin.features.queues().submission;
        if cqid == 0 || self.queues.cq(cqid).is_none() {
            // A number that no queue could have is invalid otherwise than one that none has.
            let possible = cqid != 0 && cqid <= self.admin.features.queues().completion;
            return Err(if possible { Status::CQ_INVALID } else { Status::INVALID_QID });
        }
        if sqid == 0 || sqid > granted || self.queues.sq(sqid).is_some() {
            return Err(Status::INVALID_QID);
        }
        let entries = self.entries(command, self.cc.iosqes() == SQ_ENTRY)?;
        let place = place(self.base(command)?, entries, Command::BYTES);
        let cells = self.memory.translator.cells(place.iova, place.bytes);
        let cells = cells.map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let source = SubmissionSource::new(cells, entries);
        let source = source.map_err(|_| Status::INVALID_QUEUE_SIZE)?;
        let generation = self.queues.next_generation();
        self.shared.doorbells.set_sq(sqid, true);
        let sq = SubmissionQueue::new(sqid, cqid, generation, place, source);
        self.stalled.reserve(sq.capacity());
        self.queues.add_sq(sq);
        self.attach_shadow_sq(sqid);
        Ok(())
    }

    /// Entries of a queue to create. Its entry size must have been set in CC before.
    fn entries(&self, command: &Command, size_is_set: bool) -> Result<u32, Status> {
        let entries = (command.cdw10() >> 16) + 1;
        if !size_is_set || entries < 2 || entries > self.max_queue_entries {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        Ok(entries)
    }

    /// Where a queue to create lies. It must be contiguous (CAP.CQR), and start on a page.
    fn base(&self, command: &Command) -> Result<u64, Status> {
        let page = 4096u64 << self.cc.mps();
        if command.cdw11() & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        if !command.prp1().is_multiple_of(page) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        Ok(command.prp1())
    }

    fn delete_cq(&mut self, command: &Command) -> Result<(), Status> {
        let cqid = command.cdw10() as u16;
        let cq = if cqid == 0 { None } else { self.queues.cq(cqid) };
        let cq = cq.ok_or(Status::INVALID_QID)?;
        if cq.users > 0 {
            return Err(Status::INVALID_QUEUE_DELETION);
        }
        self.shared.doorbells.set_cq(cqid, false);
        self.queues.remove_cq(cqid);
        Ok(())
    }

    /// Stops a submission queue. Commands that the engine has are asked to end; the deletion
    /// completes after the last of them.
    fn delete_sq(&mut self, tag: Tag, command: &Command) -> Result<Outcome, Status> {
        let sqid = command.cdw10() as u16;
        let sq = if sqid == 0 { None } else { self.queues.sq(sqid) };
        let sq = sq.filter(|sq| sq.deleting.is_none());
        let sq = sq.ok_or(Status::INVALID_QID)?;
        sq.deleting = Some(tag.slot);
        let generation = sq.generation;
        let (mut running, mut hung) = (Vec::new(), Vec::new());
        for (at, slot) in sq.in_work() {
            match slot.work {
                Work::Hung => hung.push(Tag { sqid, slot: at, generation }),
                Work::Submitted(id) => running.push((slot.nsid, id)),
                Work::Long(place) => {
                    if let Some(job) = self.jobs.get(place) {
                        job.abort(Status::ABORTED_SQ_DELETION);
                    }
                }
                _ => {}
            }
        }
        self.shared.doorbells.set_sq(sqid, false);
        for (nsid, id) in running {
            if let Some(channel) = self.channel(nsid) {
                channel.cancel(id);
            }
        }
        self.drop_stalled_of(sqid);
        for tag in hung {
            self.complete(tag, 0, Status::ABORTED_SQ_DELETION);
        }
        self.deletions += 1;
        self.finish_deletions();
        Ok(Outcome::Held)
    }

    /// Completes what of a queue has not reached the engine.
    fn drop_stalled_of(&mut self, sqid: u16) {
        let mut left = self.stalled.len();
        while left > 0
            && let Some(stalled) = self.stalled.pop_front()
        {
            left -= 1;
            let tag = stalled.tag();
            if tag.sqid == sqid {
                self.complete(tag, 0, Status::ABORTED_SQ_DELETION);
            } else {
                self.stalled.push_back(stalled);
            }
        }
    }

    /// Completes deletions whose queues are idle by now.
    pub(crate) fn finish_deletions(&mut self) {
        let over = |sq: &mut SubmissionQueue| match sq.deleting {
            Some(slot) if sq.is_idle() => Some((sq.sqid, slot)),
            _ => None,
        };
        loop {
            let Some((sqid, slot)) = self.queues.sqs().find_map(over) else { return };
            self.deletions -= 1;
            self.queues.remove_sq(sqid);
            if let Some(generation) = self.queues.sq(0).map(|sq| sq.generation) {
                let tag = Tag { sqid: 0, slot, generation };
                self.complete(tag, 0, Status::SUCCESS);
            }
        }
    }
}

impl Stalled {
    /// The command that waits.
    pub(crate) fn tag(&self) -> Tag {
        match self {
            Stalled::Op(_, op) => Tag::from_bits(op.tag),
            Stalled::Long(tag, _) => *tag,
        }
    }
}
