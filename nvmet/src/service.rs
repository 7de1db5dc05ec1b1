//! The controller at work: one pass after the other on one core.
//!
//! A pass looks at registers, completes what the engine has done, fetches what the host has
//! rung for, hands it to the engine, and raises interrupts. Nothing in it waits, and I/O
//! commands allocate nothing.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use oxblock_engine::{Channel, Completion, Core, Full, Op, OpKind, Poller, PollerId, Sleep};
use oxblock_nvme::command::FUSE_NONE;
use oxblock_nvme::event::{ERROR_INVALID_DOORBELL_REGISTER, ERROR_INVALID_DOORBELL_VALUE};
use oxblock_nvme::opcode::nvm;
use oxblock_nvme::regs::Cc;
use oxblock_nvme::{Command, Status};
use oxblock_pci::soft::Signals;

use crate::admin::Admin;
use crate::admin::dbbuf::ShadowPages;
use crate::data::HostMemory;
use crate::hooks::{Fate, Hooks, Turn};
use crate::host_buffer::HostBuffer;
use crate::inventory::Inventory;
use crate::lifecycle::Phase;
use crate::maintenance::{self, Maintenance};
use crate::namespace::{Backing, Range, Usage};
use crate::nvm::long::{Jobs, PLACES, Step};
use crate::nvm::{self as commands, Rules};
use crate::protection::Transfer;
use crate::queue::{LONG, Queues, Tag, Work};
use crate::registers::Events;
use crate::status;
use crate::timers::Timers;
use crate::transport::pci::Shared;

/// How often mapped doorbells are looked at by a core that would sleep, in ns.
const DOZE_NS: u64 = 100_000;

/// How often a core must have wanted to sleep, with nothing to do in between, before it looks at
/// mapped doorbells only now and then: about a second.
const WAKEFUL: u32 = 10_000;

/// Commands fetched from one queue in one go: what the others may have to wait for.
const BURST: usize = 64;

/// A controller on its core.
pub(crate) struct Service<H: Hooks> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) phase: Phase,
    /// The count of EN's moves that led to this phase.
    pub(crate) edges: u32,
    /// CC.SHN as it was acted on.
    pub(crate) shn: u8,
    /// CC as it was when the controller was enabled.
    pub(crate) cc: Cc,
    pub(crate) memory: HostMemory,
    pub(crate) signals: Signals,
    pub(crate) inventory: Inventory,
    /// The nodes that namespaces lie on, by index.
    pub(crate) backings: Vec<Backing>,
    pub(crate) queues: Queues,
    pub(crate) admin: Admin,
    pub(crate) jobs: Jobs,
    pub(crate) hooks: H,
    pub(crate) rules: Rules,
    pub(crate) shadow: Option<ShadowPages>,
    /// Commands that wait for a place, in order. At most as many as there are slots.
    pub(crate) stalled: std::collections::VecDeque<Stalled>,
    /// Deletions of submission queues that wait for commands in work.
    pub(crate) deletions: u32,
    pub(crate) maintenance: Maintenance,
    pub(crate) timers: Timers,
    pub(crate) host_buffer: HostBuffer,
    /// How interrupts of I/O queues are coalesced, if they are.
    pub(crate) coalescing: Option<(u32, u64)>,
    /// How long an activation of firmware without a reset takes, ns.
    pub(crate) firmware_pause_ns: u64,
    pub(crate) max_queue_entries: u32,
    max_in_work: usize,
    pub(crate) vectors: u16,
    doze: Doze,
    batch: Box<[Command; BURST]>,
    poller: Rc<Cell<Option<PollerId>>>,
}

/// Nobody tells of writes to mapped doorbells. A core that has had nothing to do for long looks
/// at them now and then, and sleeps in between.
#[derive(Default)]
struct Doze {
    /// How often the core wanted to sleep since there was something to do.
    asked: u32,
    /// When to look again.
    next_ns: u64,
}

/// A command that waits for a place.
pub(crate) enum Stalled {
    /// In the engine's table.
    Op(usize, Op),
    /// Among the long commands.
    Long(Tag, Command),
}

/// What a service is made from.
pub(crate) struct Parts<H> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) memory: HostMemory,
    pub(crate) signals: Signals,
    pub(crate) inventory: Inventory,
    pub(crate) backings: Vec<Backing>,
    pub(crate) admin: Admin,
    pub(crate) jobs: Jobs,
    pub(crate) hooks: H,
    pub(crate) io_queues: u16,
    pub(crate) max_queue_entries: u32,
    pub(crate) max_in_work: usize,
    pub(crate) vectors: u16,
    pub(crate) firmware_pause_ns: u64,
    /// Where the name of the poller will be, so that it can end itself.
    pub(crate) poller: Rc<Cell<Option<PollerId>>>,
}

impl<H: Hooks> Service<H> {
    pub(crate) fn new(parts: Parts<H>) -> Service<H> {
        let transfer_max = parts.admin.transfer_max().unwrap_or(u64::MAX);
        let write_cache = parts.admin.features.write_cache();
        Service {
            shared: parts.shared,
            phase: Phase::Disabled,
            edges: 0,
            shn: 0,
            cc: Cc::default(),
            memory: parts.memory,
            signals: parts.signals,
            inventory: parts.inventory,
            backings: parts.backings,
            queues: Queues::new(parts.io_queues),
            admin: parts.admin,
            jobs: parts.jobs,
            hooks: parts.hooks,
            rules: Rules { transfer_max, write_cache },
            shadow: None,
            stalled: std::collections::VecDeque::new(),
            deletions: 0,
            maintenance: Maintenance::default(),
            timers: Timers::default(),
            host_buffer: HostBuffer::default(),
            coalescing: None,
            firmware_pause_ns: parts.firmware_pause_ns,
            max_queue_entries: parts.max_queue_entries,
            max_in_work: parts.max_in_work,
            vectors: parts.vectors,
            doze: Doze::default(),
            batch: Box::new([Command::default(); BURST]),
            poller: parts.poller,
        }
    }

    /// Whether the controller takes commands.
    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Fetches from all submission queues.
    #[inline]
    fn serve(&mut self, core: &Core) -> usize {
        let mut work = 0;
        let mut index = 0;
        while let Some(&sqid) = self.queues.active().get(index) {
            index += 1;
            work += if sqid == 0 { self.serve_admin(core) } else { self.serve_io(sqid, core) };
        }
        work
    }

    /// Takes the tail of a queue, and copies out as many commands as can be in work.
    #[inline]
    fn fetch(&mut self, sqid: u16, core: &Core) -> usize {
        let Some((sq, cq)) = self.queues.pair(sqid) else {
            return 0;
        };
        let tail = match &sq.shadow {
            Some(shadow) => shadow.value(),
            None => self.shared.doorbells.tail(sqid),
        };
        if tail != u32::from(sq.source.tail()) && sq.source.set_tail(tail).is_err() {
            if sq.refused.replace(tail) != Some(tail) {
                self.admin.raise_error(ERROR_INVALID_DOORBELL_VALUE, sqid, Status::INVALID_FIELD);
            }
            return 0;
        }
        let waiting = sq.source.waiting() as usize;
        if waiting == 0 {
            sq.look_ahead();
            return 0;
        }
        if !cq.overflow.is_empty() || sq.deleting.is_some() {
            return 0;
        }
        // A slot of the engine for each command, so that none is fetched in vain.
        let in_work: usize = self.backings.iter().map(|b| b.channel.in_flight()).sum();
        let share = self.max_in_work.saturating_sub(in_work);
        let most = core.stats().slots_to_serve.min(share);
        let count = waiting.min(sq.room()).min(most).min(BURST);
        // All of them first: the loads from the host's cache overlap.
        let mut fetched = 0;
        for place in &mut self.batch[..count] {
            let Some(command) = sq.source.fetch() else { break };
            *place = command;
            fetched += 1;
        }
        sq.burst = fetched;
        fetched
    }

    #[inline]
    fn serve_io(&mut self, sqid: u16, core: &Core) -> usize {
        let count = self.fetch(sqid, core);
        for index in 0..count {
            let command = self.batch[index];
            let Some(tag) = self.queues.sq(sqid).and_then(|sq| sq.take(&command)) else {
                break;
            };
            self.start_io(tag, &command);
            if H::ACTIVE && !self.is_running() {
                break;
            }
        }
        count
    }

    fn serve_admin(&mut self, core: &Core) -> usize {
        let count = self.fetch(0, core);
        for index in 0..count {
            let command = self.batch[index];
            let Some(tag) = self.queues.sq(0).and_then(|sq| sq.take(&command)) else {
                break;
            };
            self.start_admin(tag, &command, core);
            if H::ACTIVE && !self.is_running() {
                break;
            }
        }
        count
    }

    #[inline]
    fn start_io(&mut self, tag: Tag, command: &Command) {
        if H::ACTIVE && self.is_doomed(tag, command) {
            return;
        }
        let started = if commands::is_long(command) {
            self.start_long(tag, command)
        } else {
            self.submit_io(tag, command)
        };
        if let Err(status) = started {
            self.complete(tag, 0, status);
        }
    }

    /// Whether a hook keeps a command from being carried out.
    #[cold]
    pub(crate) fn is_doomed(&mut self, tag: Tag, command: &Command) -> bool {
        match self.hooks.command(tag.sqid, command) {
            Fate::CarryOut => return false,
            Fate::Answer(dword, status) => self.complete_as(tag, dword, status),
            Fate::Hang => self.set_work(tag, Work::Hung),
            Fate::Fail => self.fail(),
        }
        true
    }

    #[inline]
    fn submit_io(&mut self, tag: Tag, command: &Command) -> Result<(), Status> {
        let geometry = match self.inventory.open(command.nsid()) {
            Ok(geometry) => geometry,
            Err(status) => return self.submit_minding(tag, command, status),
        };
        let op = commands::operation(command, geometry, &self.rules, &mut self.memory)?;
        let index = geometry.backing;
        let backing = self.backings.get(index).ok_or(Status::INTERNAL_ERROR)?;
        match backing.channel.submit(op.tag(tag.to_bits())) {
            Ok(id) => self.set_work(tag, Work::Submitted(id)),
            Err(Full(op)) => self.stalled.push_back(Stalled::Op(index, op)),
        }
        Ok(())
    }

    /// Starts a long command, or puts it in line for a place.
    fn start_long(&mut self, tag: Tag, command: &Command) -> Result<(), Status> {
        if command.opcode() == nvm::WRITE_UNCORRECTABLE {
            return self.write_uncorrectable(tag, command);
        }
        let flush_all = command.opcode() == nvm::FLUSH;
        let geometry = if flush_all {
            self.inventory.closed().map_or(Ok(None), Err)?
        } else {
            let open = self.inventory.usable(command.nsid());
            Some(open.map_err(|status| refused(command, status))?)
        };
        let has_metadata = geometry.is_some_and(|geometry| geometry.metadata.is_some());
        if has_metadata && command.opcode() != nvm::DATASET_MANAGEMENT {
            return self.start_protected(tag, command);
        }
        let Some((_, job)) = self.jobs.free() else {
            self.stalled.push_back(Stalled::Long(tag, *command));
            return Ok(());
        };
        job.backing = geometry.map_or(0, |geometry| geometry.backing);
        match geometry {
            None => job.begin(commands::long::Kind::FlushAll),
            Some(geometry) => {
                let memory = &mut self.memory;
                if !commands::prepare(command, geometry, &self.rules, memory, job)? {
                    self.complete(tag, 0, Status::SUCCESS);
                    return Ok(());
                }
            }
        }
        if !flush_all && self.inventory.open(command.nsid()).is_err() {
            let (ranges, to) = (job.ranges().to_vec(), [job.destination()]);
            let (reads, changes): (&[Range], &[Range]) = match command.opcode() {
                nvm::VERIFY => (&ranges, &[]),
                nvm::COPY => (&ranges, &to),
                _ => (&[], &ranges),
            };
            self.mind_bad_ranges(tag, command.nsid(), reads, changes)?;
        }
        self.run_long(tag)
    }

    /// The same for a namespace that is not open: perhaps it has bad blocks.
    #[cold]
    fn submit_minding(&mut self, tag: Tag, command: &Command, why: Status) -> Result<(), Status> {
        if self.inventory.usable(command.nsid()).is_err() {
            return Err(refused(command, why));
        }
        let geometry = self.inventory.usable(command.nsid())?;
        let index = geometry.backing;
        let metadata = geometry.metadata.clone();
        if metadata.is_some() {
            match command.opcode() {
                nvm::READ | nvm::WRITE | nvm::COMPARE => return self.start_protected(tag, command),
                _ => {}
            }
        }
        let op = commands::operation(command, geometry, &self.rules, &mut self.memory)?;
        if let Some(metadata) = metadata
            && command.opcode() == nvm::WRITE_ZEROES
        {
            metadata.zero(command)?;
        }
        self.mind_bad_blocks(tag, command)?;
        self.stalled.push_back(Stalled::Op(index, op.tag(tag.to_bits())));
        self.unstall();
        Ok(())
    }

    /// Starts a command on blocks with metadata, or puts it in line for a place.
    #[cold]
    fn start_protected(&mut self, tag: Tag, command: &Command) -> Result<(), Status> {
        let geometry = self.inventory.usable(command.nsid())?;
        let metadata = geometry.metadata.as_ref().ok_or(Status::INTERNAL_ERROR)?;
        if command.fuse() != FUSE_NONE || command.opcode() == nvm::COPY {
            return Err(Status::INVALID_FIELD);
        }
        if command.opcode() == nvm::WRITE {
            geometry.writable()?;
        }
        let Some((_, job)) = self.jobs.free() else {
            self.stalled.push_back(Stalled::Long(tag, *command));
            return Ok(());
        };
        job.backing = geometry.backing;
        let (rules, memory) = (&self.rules, &mut self.memory);
        job.begin_transfer(Transfer::new(command, geometry, metadata, rules, memory)?);
        self.mind_bad_blocks(tag, command)?;
        self.run_long(tag)
    }

    /// Runs the long command that was put in the free place.
    fn run_long(&mut self, tag: Tag) -> Result<(), Status> {
        let Some((place, job)) = self.jobs.free() else { return Err(Status::INTERNAL_ERROR) };
        job.owner = Some(tag);
        self.jobs.keep();
        self.set_work(tag, Work::Long(place));
        self.step_long(place);
        Ok(())
    }

    /// What the command of a slot is doing from now on.
    #[inline]
    pub(crate) fn set_work(&mut self, tag: Tag, work: Work) {
        if let Some(slot) = self.queues.sq(tag.sqid).and_then(|sq| sq.slot(tag.slot)) {
            slot.work = work;
        }
    }

    /// Takes a long command on by an operation, or completes it.
    pub(crate) fn step_long(&mut self, place: u8) {
        let Some(job) = self.jobs.get(place) else { return };
        let op = match job.stalled.take() {
            Some(op) => op,
            None => match job.step(self.backings.len()) {
                Step::Submit(op) => op.tag(LONG | u64::from(place)),
                Step::Over(status) => return self.end_long(place, status),
            },
        };
        let Some(backing) = self.backings.get(job.backing) else {
            return self.end_long(place, Status::INTERNAL_ERROR);
        };
        match backing.channel.submit(op) {
            Ok(id) => job.running = Some(id),
            Err(Full(op)) => job.stalled = Some(op),
        }
    }

    fn end_long(&mut self, place: u8, status: Status) {
        let job = self.jobs.get(place);
        let (owner, bad_block) = job.map_or((None, None), |job| (job.owner, job.bad_block));
        if let Some(tag) = owner
            && let Some(lba) = bad_block
            && let Some(slot) = self.queues.sq(tag.sqid).and_then(|sq| sq.slot(tag.slot))
        {
            slot.slba = lba;
        }
        self.jobs.release(place);
        match owner {
            Some(tag) => self.complete(tag, 0, status),
            None => self.flushed_for_shutdown(status),
        }
    }

    /// Takes up what waited for a place, in order.
    #[cold]
    pub(crate) fn unstall(&mut self) {
        for place in 0..PLACES as u8 {
            if self.jobs.get(place).is_some_and(|job| job.stalled.is_some()) {
                self.step_long(place);
            }
        }
        let mut left = self.stalled.len();
        while left > 0
            && let Some(stalled) = self.stalled.pop_front()
        {
            left -= 1;
            match stalled {
                Stalled::Op(index, op) => self.resubmit(index, op),
                Stalled::Long(tag, command) if self.jobs.free().is_some() => {
                    if let Err(status) = self.start_long(tag, &command) {
                        self.complete(tag, 0, status);
                    }
                }
                long => self.stalled.push_back(long),
            }
        }
    }

    fn resubmit(&mut self, index: usize, op: Op) {
        let tag = Tag::from_bits(op.tag);
        let Some(backing) = self.backings.get(index) else { return };
        match backing.channel.submit(op) {
            Ok(id) => self.set_work(tag, Work::Submitted(id)),
            Err(Full(op)) => self.stalled.push_front(Stalled::Op(index, op)),
        }
    }

    /// Completes what the engine has done.
    #[inline]
    fn reap(&mut self) -> usize {
        let mut work = 0;
        let mut index = 0;
        while let Some(backing) = self.backings.get_mut(index) {
            index += 1;
            let Backing { channel, usage } = backing;
            let (queues, hooks) = (&mut self.queues, &mut self.hooks);
            let (admin, memory) = (&mut self.admin, &mut self.memory);
            let (jobs, shared) = (&mut self.jobs, &self.shared);
            let maintenance = &mut self.maintenance;
            let mut stepped = 0u32;
            work += channel.poll(|completion| {
                let bits = completion.op.tag;
                if bits == LONG | u64::from(maintenance::PLACE) {
                    return maintenance.completed(completion);
                }
                if bits & LONG != 0 {
                    count(usage, &completion, shared);
                    if let Some(job) = jobs.get(bits as u8) {
                        job.completed(completion);
                        stepped |= 1 << (bits as u8);
                    }
                    return;
                }
                let status = match &completion.result {
                    Ok(()) => Status::SUCCESS,
                    Err(fault) => status::of_fault(fault, completion.op.kind),
                };
                count(usage, &completion, shared);
                let tag = Tag::from_bits(bits);
                let slot = queues.complete(tag, 0, status, hooks);
                if !status.is_success()
                    && let Some(slot) = slot
                {
                    admin.logs.record(tag.sqid, slot.cid, slot.nsid, slot.slba, status);
                }
                memory.recycle(completion.op.data);
            });
            while stepped != 0 {
                let place = stepped.trailing_zeros() as u8;
                stepped &= stepped - 1;
                self.step_long(place);
            }
        }
        work
    }

    /// Completes a command that is not, or no longer, in the engine.
    pub(crate) fn complete(&mut self, tag: Tag, dword: u32, status: Status) {
        self.complete_as(tag, dword, status::settled(status));
    }

    /// The same with the status as it is.
    fn complete_as(&mut self, tag: Tag, dword: u32, status: Status) {
        let slot = self.queues.complete(tag, dword, status, &mut self.hooks);
        if !status.is_success()
            && let Some(slot) = slot
        {
            let lba = if tag.sqid == 0 { 0 } else { slot.slba };
            self.admin.logs.record(tag.sqid, slot.cid, slot.nsid, lba, status);
        }
    }

    /// Looks how far the host has read where that matters, and raises interrupts.
    #[inline]
    fn finish_pass(&mut self, core: &Core) {
        let coalescing = self.coalescing;
        let now_ns = if H::ACTIVE || coalescing.is_some() { core.pass_now() } else { 0 };
        let (shared, signals, admin) = (&self.shared, &mut self.signals, &mut self.admin);
        let mut index = 0;
        while let Some(&cqid) = self.queues.active_cqs().get(index) {
            index += 1;
            let Some(cq) = self.queues.cq(cqid) else { continue };
            if H::ACTIVE && cq.holds_back() {
                cq.age(now_ns);
            }
            if cq.wants_head() {
                let head = match &cq.shadow {
                    Some(shadow) => shadow.value(),
                    None => shared.doorbells.head(cq.cqid),
                };
                let news = head != u32::from(cq.sink.head());
                if news && cq.set_head(head).is_err() && cq.refused.replace(head) != Some(head) {
                    let status = Status::INVALID_FIELD;
                    admin.raise_error(ERROR_INVALID_DOORBELL_VALUE, cq.cqid, status);
                }
            }
            if cq.posted == 0 {
                continue;
            }
            if let Some(vector) = cq.vector {
                if let Some(limits) = coalescing
                    && cqid != 0
                    && admin.features.coalesces(vector)
                    && cq.coalesces(limits, now_ns)
                {
                    continue;
                }
                signals.signal(vector);
            }
            cq.posted = 0;
        }
    }

    /// Answers requests for events.
    #[inline]
    fn report_events(&mut self) {
        while let Some((slot, event)) = self.admin.events.next() {
            let Some(generation) = self.queues.sq(0).map(|sq| sq.generation) else { return };
            let tag = Tag { sqid: 0, slot, generation };
            self.complete(tag, event.to_dword(), Status::SUCCESS);
        }
    }

    /// Notes that host threads left.
    #[cold]
    fn handle(&mut self, events: Events) {
        if events.has(Events::INVALID_DOORBELL) && self.is_running() {
            let status = Status::INVALID_FIELD;
            self.admin.raise_error(ERROR_INVALID_DOORBELL_REGISTER, 0, status);
        }
        if events.has(Events::NOTICE) {
            self.take_notices();
        }
        // Queues may lie in it: before what creates them.
        if events.has(Events::MEMORY) {
            self.place_memory();
        }
        if events.has(Events::CONTROL) {
            self.control();
        }
        if events.has(Events::STOP) {
            self.begin_stop();
        }
    }

    /// Whether hooks keep the controller from doing anything in this pass. Its owner can stop it
    /// all the same.
    #[cold]
    fn is_silent(&mut self, events: Events, core: &Core) -> bool {
        match self.hooks.turn(core.pass_now()) {
            Turn::Serve => false,
            Turn::Fail => {
                self.fail();
                false
            }
            Turn::Silent => {
                let stops = events.has(Events::STOP) || self.phase == Phase::Stopping;
                let is_silent = !stops && self.phase != Phase::Stopped;
                if is_silent && !events.is_empty() {
                    // For when it is back.
                    self.shared.registers.raise(events);
                }
                is_silent
            }
        }
    }

    /// When hooks want a pass: 0 is at once, all ones never.
    #[cold]
    fn hooks_wake_at(&mut self) -> u64 {
        let held_back = self.queues.cqs().map(|cq| cq.holds_back_until()).min();
        self.hooks.wakes_at().min(held_back.unwrap_or(u64::MAX))
    }

    /// The core has wanted to sleep: wide awake with work, else the time of the next look.
    #[cold]
    fn doze(&mut self, work: usize, core: &Core) {
        if work > 0 {
            self.doze.asked = 0;
        } else if self.doze.asked >= WAKEFUL - 1 {
            self.doze.next_ns = core.pass_now() + DOZE_NS;
        }
    }

    /// What hosts have done to all namespaces.
    pub(crate) fn usage(&self) -> Usage {
        self.backings.iter().fold(Usage::default(), |sum, n| Usage {
            reads: sum.reads + n.usage.reads,
            writes: sum.writes + n.usage.writes,
            bytes_read: sum.bytes_read + n.usage.bytes_read,
            bytes_written: sum.bytes_written + n.usage.bytes_written,
            media_errors: sum.media_errors + n.usage.media_errors,
        })
    }

    /// Operations that the engine has of this controller.
    pub(crate) fn in_flight(&self) -> usize {
        self.backings.iter().map(|backing| backing.channel.in_flight()).sum()
    }

    /// A channel that an operation in flight belongs to.
    pub(crate) fn channel(&self, nsid: u32) -> Option<&Channel> {
        let geometry = self.inventory.allocated(nsid)?;
        self.backings.get(geometry.backing).map(|backing| &backing.channel)
    }
}

impl<H: Hooks> Drop for Service<H> {
    /// However the core came to its end, the host finds the controller gone.
    fn drop(&mut self) {
        self.shared.set_stopped();
    }
}

impl<H: Hooks> Poller for Service<H> {
    fn poll(&mut self, core: &Core) -> usize {
        let events = self.shared.registers.take_events();
        if H::ACTIVE && self.is_silent(events, core) {
            return 0;
        }
        let mut work = 0;
        if !events.is_empty() {
            self.handle(events);
            work += 1;
        }
        if self.memory.translator.sync() {
            self.look_again_at_queues();
        }
        self.signals.sync();
        work += self.reap();
        if self.is_running() {
            if !self.stalled.is_empty() || !self.jobs.is_idle() {
                self.unstall();
            }
            let served = self.serve(core);
            if served > 0 {
                // Leaves that need no time have completed already.
                work += served + self.reap();
            }
            if self.deletions > 0 {
                self.finish_deletions();
            }
            if !self.maintenance.is_idle() {
                work += self.maintain();
            }
            self.report_events();
        } else {
            if !self.maintenance.is_idle() {
                work += self.maintain();
            }
            work += self.progress(core.pass_now() / 1_000_000);
        }
        if self.timers.any {
            self.pass_time(core.pass_now());
        }
        self.finish_pass(core);
        if self.doze.asked > 0 {
            self.doze(work, core);
        }
        if self.phase == Phase::Stopped
            && let Some(id) = self.poller.take()
        {
            core.remove_poller(id);
        }
        work
    }

    fn sleep(&mut self) -> Sleep<'_> {
        let waits = !self.stalled.is_empty() || self.maintenance.wants_turns();
        let hooks_ns = if H::ACTIVE { self.hooks_wake_at() } else { u64::MAX };
        let time_ns = if self.timers.any { self.time_wakes_at() } else { u64::MAX };
        let until_ns = hooks_ns.min(time_ns);
        if waits || until_ns == 0 || self.arm_shadows() {
            return Sleep::Never;
        }
        let rests = self.phase != Phase::Ready || self.shared.doorbells.window().is_none();
        match (rests, until_ns) {
            (true, u64::MAX) => return Sleep::Woken,
            (true, until_ns) => return Sleep::Until(until_ns),
            (false, _) => self.doze.asked = self.doze.asked.saturating_add(1),
        }
        match self.doze.asked {
            0..WAKEFUL => Sleep::Never,
            _ => Sleep::Until(self.doze.next_ns.min(until_ns)),
        }
    }
}

#[cold]
fn refused(command: &Command, status: Status) -> Status {
    match command.opcode() {
        nvm::FLUSH..=nvm::READ | nvm::COMPARE | nvm::WRITE_ZEROES => status,
        nvm::DATASET_MANAGEMENT | nvm::VERIFY | nvm::COPY | nvm::WRITE_UNCORRECTABLE => status,
        _ => Status::INVALID_OPCODE,
    }
}

/// Counts an operation that has ended.
#[inline]
fn count(usage: &mut Usage, completion: &Completion, shared: &Shared) {
    let op = &completion.op;
    if completion.result.is_err() {
        usage.media_errors += u64::from(is_media_error(completion));
        return;
    }
    match op.kind {
        OpKind::Read | OpKind::Compare => {
            usage.reads += 1;
            usage.bytes_read += op.len;
        }
        OpKind::Write => {
            usage.writes += 1;
            usage.bytes_written += op.len;
        }
        OpKind::Flush => {
            shared.flushes.fetch_add(1, Ordering::Relaxed);
        }
        OpKind::WriteZeroes | OpKind::Discard => {}
    }
}

#[cold]
fn is_media_error(completion: &Completion) -> bool {
    use oxblock_engine::ErrorKind::{Media, Protection};
    let fault = completion.result.err();
    fault.is_some_and(|fault| matches!(fault.kind, Media | Protection))
}
