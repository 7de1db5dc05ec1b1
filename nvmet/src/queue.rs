//! Submission and completion queues as the controller serves them.
//!
//! A queue is memory of the host. Each entry is copied out once before anything looks at it,
//! and every index is checked. A submission queue has a fixed table of slots, one for each
//! command between fetch and completion; with none free it leaves its entries to the host. A
//! completion that finds its queue full waits in a line that the slots bound.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use oxblock_engine::OpId;
use oxblock_mem::Cells;
use oxblock_nvme::completion::PHASE;
use oxblock_nvme::queue::{CompletionSink, RingError, ShadowSource, SubmissionSource};
use oxblock_nvme::{Command, Completion, Status};

use crate::hooks::{Due, Hooks, Posting};

/// Commands of one submission queue that can be in work at once.
const SLOTS_MAX: u32 = 1024;

/// Names a command while the engine or a long command works for it.
///
/// As the tag of an engine's operation: queue in bits 31:16, slot in bits 15:0, and the
/// generation of the queue in bits 62:32. Bit 63 is for operations of long commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) sqid: u16,
    pub(crate) slot: u16,
    pub(crate) generation: u32,
}

/// The bit that tells an operation of a long command from one of a slot.
pub(crate) const LONG: u64 = 1 << 63;

impl Tag {
    #[inline]
    pub(crate) fn to_bits(self) -> u64 {
        let generation = u64::from(self.generation & GENERATION_MASK) << 32;
        generation | u64::from(self.sqid) << 16 | u64::from(self.slot)
    }

    #[inline]
    pub(crate) fn from_bits(bits: u64) -> Tag {
        Tag {
            sqid: (bits >> 16) as u16,
            slot: bits as u16,
            generation: (bits >> 32) as u32 & GENERATION_MASK,
        }
    }
}

const GENERATION_MASK: u32 = 0x7fff_ffff;

/// Where the memory of a queue lies for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) iova: u64,
    pub(crate) bytes: usize,
}

/// What a slot's command is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// The slot is free.
    Free,
    /// Being looked at, or waiting for room in the engine.
    Starting,
    /// The engine has an operation.
    Submitted(OpId),
    /// It takes several operations.
    Long(u8),
    /// A request for asynchronous events, or a deletion that waits for its queue.
    Held,
    /// A hook keeps it from being carried out.
    Hung,
}

/// A command between fetch and completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) cid: u16,
    pub(crate) work: Work,
    pub(crate) nsid: u32,
    pub(crate) slba: u64,
}

const FREE: Slot = Slot { cid: 0, work: Work::Free, nsid: 0, slba: 0 };

/// A submission queue.
pub(crate) struct SubmissionQueue {
    pub(crate) sqid: u16,
    pub(crate) cqid: u16,
    pub(crate) generation: u32,
    pub(crate) place: Place,
    pub(crate) source: SubmissionSource<Cells>,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// The admin slot of the command that deletes this queue.
    pub(crate) deleting: Option<u16>,
    pub(crate) shadow: Option<ShadowSource<Cells>>,
    /// The last doorbell value that was refused, to report it once.
    pub(crate) refused: Option<u32>,
    /// Commands that came with the last fetch.
    pub(crate) burst: usize,
}

impl SubmissionQueue {
    pub(crate) fn new(
        sqid: u16,
        cqid: u16,
        generation: u32,
        place: Place,
        source: SubmissionSource<Cells>,
    ) -> SubmissionQueue {
        let count = source.entries().min(SLOTS_MAX) as u16;
        SubmissionQueue {
            sqid,
            cqid,
            generation,
            place,
            source,
            slots: vec![FREE; usize::from(count)].into(),
            free: (0..count).rev().collect(),
            deleting: None,
            shadow: None,
            refused: None,
            burst: 0,
        }
    }

    /// Slots in all.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Slots that are free.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    /// Loads the next entry of an empty queue, so that it comes from the host's cache along with
    /// the next tail and not after it. Only while commands come one by one: a host that writes
    /// many would have the line taken away under its hands.
    #[inline]
    pub(crate) fn look_ahead(&self) {
        const FEW: usize = 2;
        if self.burst <= FEW {
            let next = usize::from(self.source.head()) * (Command::BYTES / 8);
            std::hint::black_box(self.source.words().u64(next).load(Ordering::Relaxed));
        }
    }

    /// Whether no command is between fetch and completion.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// A slot for a command that was just fetched.
    #[inline]
    pub(crate) fn take(&mut self, command: &Command) -> Option<Tag> {
        let slot = self.free.pop()?;
        *self.slots.get_mut(usize::from(slot))? = Slot {
            cid: command.cid(),
            work: Work::Starting,
            nsid: command.nsid(),
            slba: command.slba(),
        };
        Some(Tag { sqid: self.sqid, slot, generation: self.generation })
    }

    /// The command of a slot, if it is in work.
    #[inline]
    pub(crate) fn slot(&mut self, slot: u16) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(usize::from(slot))?;
        (slot.work != Work::Free).then_some(slot)
    }

    /// Frees a slot and returns what was in it.
    #[inline]
    pub(crate) fn release(&mut self, slot: u16) -> Option<Slot> {
        let entry = self.slots.get_mut(usize::from(slot))?;
        if entry.work == Work::Free {
            return None;
        }
        let was = *entry;
        entry.work = Work::Free;
        self.free.push(slot);
        Some(was)
    }

    /// Commands in work, with their slots.
    pub(crate) fn in_work(&self) -> impl Iterator<Item = (u16, &Slot)> {
        let all = (0u16..).zip(self.slots.iter());
        all.filter(|(_, slot)| slot.work != Work::Free)
    }
}

/// A completion queue.
pub(crate) struct CompletionQueue {
    pub(crate) cqid: u16,
    pub(crate) place: Place,
    pub(crate) sink: CompletionSink<Cells>,
    /// The interrupt vector, if interrupts are enabled.
    pub(crate) vector: Option<u16>,
    /// Submission queues that complete here.
    pub(crate) users: u16,
    /// Completions that found the ring full, oldest first.
    pub(crate) overflow: VecDeque<Completion>,
    /// Completions that a hook holds back.
    held_back: Vec<(Due, Completion)>,
    /// Completions since the last interrupt.
    pub(crate) posted: u32,
    /// When the interrupt for them was first held back, if it is.
    pub(crate) since_ns: Option<u64>,
    pub(crate) shadow: Option<ShadowSource<Cells>>,
    pub(crate) refused: Option<u32>,
}

impl CompletionQueue {
    pub(crate) fn new(
        cqid: u16,
        place: Place,
        sink: CompletionSink<Cells>,
        vector: Option<u16>,
    ) -> CompletionQueue {
        CompletionQueue {
            cqid,
            place,
            sink,
            vector,
            users: 0,
            overflow: VecDeque::new(),
            held_back: Vec::new(),
            posted: 0,
            since_ns: None,
            shadow: None,
            refused: None,
        }
    }

    /// Posts a completion, or puts it in line behind those that found the ring full.
    #[inline]
    pub(crate) fn post(&mut self, completion: Completion) {
        self.posted = self.posted.wrapping_add(1);
        if !self.overflow.is_empty() || !self.sink.post(completion) {
            self.overflow.push_back(completion);
        }
    }

    /// Whether the host should be asked how far it has read.
    #[inline]
    pub(crate) fn wants_head(&self) -> bool {
        !self.overflow.is_empty() || self.sink.free() < self.sink.entries() / 2
    }

    /// Takes the head that the host wrote, and posts what waited for it.
    ///
    /// # Errors
    /// The host has not been given that many completions; the value is ignored.
    pub(crate) fn set_head(&mut self, head: u32) -> Result<(), RingError> {
        self.sink.set_head(head)?;
        while let Some(&completion) = self.overflow.front() {
            if !self.sink.post(completion) {
                break;
            }
            self.posted = self.posted.wrapping_add(1);
            self.overflow.pop_front();
        }
        Ok(())
    }

    /// Posts as a hook says.
    #[cold]
    pub(crate) fn post_as(&mut self, posting: Posting, completion: Completion) {
        match posting {
            Posting::Once => self.post(completion),
            Posting::Twice => {
                self.post(completion);
                self.post(completion);
            }
            Posting::Lost => {}
            Posting::Late(due) => self.held_back.push((due, completion)),
            Posting::Torn(due) => {
                self.tear(completion);
                self.held_back.push((due, completion));
            }
        }
    }

    /// Writes an entry but for its phase tag, which stays that of the lap before.
    fn tear(&mut self, completion: Completion) {
        if self.sink.is_full() || !self.overflow.is_empty() {
            return;
        }
        let at = usize::from(self.sink.tail()) * 2;
        let words = self.sink.words();
        let old = words.u64(at + 1).load(Ordering::Relaxed) & PHASE;
        words.u64(at).store(completion.0[0], Ordering::Relaxed);
        let high = completion.0[1] & !PHASE | old;
        words.u64(at + 1).store(high, Ordering::Release);
    }

    /// Posts what of that which a hook holds back is due, one pass later.
    #[cold]
    pub(crate) fn age(&mut self, now_ns: u64) {
        let mut index = 0;
        while let Some((due, _)) = self.held_back.get_mut(index) {
            let is_due = match due {
                Due::Passes(0) => true,
                Due::Passes(left) => {
                    *left -= 1;
                    false
                }
                Due::At(at_ns) => *at_ns <= now_ns,
            };
            if !is_due {
                index += 1;
                continue;
            }
            let (_, completion) = self.held_back.remove(index);
            self.post(completion);
        }
    }

    /// Whether a hook holds something back.
    pub(crate) fn holds_back(&self) -> bool {
        !self.held_back.is_empty()
    }

    /// When the first of what a hook holds back is due: 0 is the next pass, all ones never.
    pub(crate) fn holds_back_until(&self) -> u64 {
        let due = self.held_back.iter().map(|(due, _)| match due {
            Due::Passes(_) => 0,
            Due::At(at_ns) => *at_ns,
        });
        due.min().unwrap_or(u64::MAX)
    }
}

/// All queues of a controller, by their identifiers.
pub(crate) struct Queues {
    sqs: Box<[Option<Box<SubmissionQueue>>]>,
    cqs: Box<[Option<Box<CompletionQueue>>]>,
    /// Submission queues that exist, in the order of their creation.
    active: Vec<u16>,
    /// Completion queues that exist, likewise.
    active_cqs: Vec<u16>,
    generation: u32,
}

impl Queues {
    /// Places for the admin queues and `io_queues` of each kind.
    pub(crate) fn new(io_queues: u16) -> Queues {
        let count = usize::from(io_queues) + 1;
        Queues {
            sqs: (0..count).map(|_| None).collect(),
            cqs: (0..count).map(|_| None).collect(),
            active: Vec::with_capacity(count),
            active_cqs: Vec::with_capacity(count),
            generation: 0,
        }
    }

    #[inline]
    pub(crate) fn sq(&mut self, sqid: u16) -> Option<&mut SubmissionQueue> {
        self.sqs.get_mut(usize::from(sqid))?.as_deref_mut()
    }

    #[inline]
    pub(crate) fn cq(&mut self, cqid: u16) -> Option<&mut CompletionQueue> {
        self.cqs.get_mut(usize::from(cqid))?.as_deref_mut()
    }

    /// A submission queue and the completion queue that it uses.
    #[inline]
    pub(crate) fn pair(
        &mut self,
        sqid: u16,
    ) -> Option<(&mut SubmissionQueue, &mut CompletionQueue)> {
        let sq = self.sqs.get_mut(usize::from(sqid))?.as_deref_mut()?;
        let cq = self.cqs.get_mut(usize::from(sq.cqid))?.as_deref_mut()?;
        Some((sq, cq))
    }

    /// Identifiers of the submission queues that exist.
    #[inline]
    pub(crate) fn active(&self) -> &[u16] {
        &self.active
    }

    /// Identifiers of the completion queues that exist.
    #[inline]
    pub(crate) fn active_cqs(&self) -> &[u16] {
        &self.active_cqs
    }

    pub(crate) fn sqs(&mut self) -> impl Iterator<Item = &mut SubmissionQueue> {
        self.sqs.iter_mut().filter_map(Option::as_deref_mut)
    }

    pub(crate) fn cqs(&mut self) -> impl Iterator<Item = &mut CompletionQueue> {
        self.cqs.iter_mut().filter_map(Option::as_deref_mut)
    }

    /// Whether any I/O queue exists.
    pub(crate) fn has_io_queues(&self) -> bool {
        self.active.iter().chain(&self.active_cqs).any(|&id| id != 0)
    }

    /// The generation for the next submission queue.
    pub(crate) fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1) & GENERATION_MASK;
        self.generation
    }

    /// Adds a completion queue in its free place.
    pub(crate) fn add_cq(&mut self, cq: CompletionQueue) {
        let cqid = cq.cqid;
        if let Some(place) = self.cqs.get_mut(usize::from(cqid)) {
            *place = Some(Box::new(cq));
            self.active_cqs.push(cqid);
        }
    }

    /// Adds a submission queue in its free place, for a completion queue that exists.
    pub(crate) fn add_sq(&mut self, sq: SubmissionQueue) {
        let (sqid, slots) = (sq.sqid, sq.capacity());
        if let Some(cq) = self.cq(sq.cqid) {
            cq.users += 1;
            cq.overflow.reserve(slots);
        }
        if let Some(place) = self.sqs.get_mut(usize::from(sqid)) {
            *place = Some(Box::new(sq));
            self.active.push(sqid);
        }
    }

    pub(crate) fn remove_sq(&mut self, sqid: u16) {
        let removed = self.sqs.get_mut(usize::from(sqid)).and_then(Option::take);
        if let Some(sq) = removed {
            self.active.retain(|&id| id != sqid);
            if let Some(cq) = self.cq(sq.cqid) {
                cq.users -= 1;
            }
        }
    }

    pub(crate) fn remove_cq(&mut self, cqid: u16) {
        if let Some(place) = self.cqs.get_mut(usize::from(cqid)) {
            *place = None;
            self.active_cqs.retain(|&id| id != cqid);
        }
    }

    /// Forgets all queues. No command may be in work.
    pub(crate) fn clear(&mut self) {
        self.sqs.iter_mut().for_each(|q| *q = None);
        self.cqs.iter_mut().for_each(|q| *q = None);
        self.active.clear();
        self.active_cqs.clear();
    }

    /// Completes the command of a slot: frees the slot and posts. Returns what was in it.
    #[inline]
    pub(crate) fn complete<H: Hooks>(
        &mut self,
        tag: Tag,
        dword: u32,
        status: Status,
        hooks: &mut H,
    ) -> Option<Slot> {
        let (sq, cq) = self.pair(tag.sqid)?;
        if sq.generation != tag.generation {
            return None;
        }
        let slot = sq.release(tag.slot)?;
        let head = sq.source.head();
        let mut entry = Completion::new(u64::from(dword), head, tag.sqid, slot.cid, status);
        if H::ACTIVE {
            let posting = hooks.completion(tag.sqid, &mut entry);
            cq.post_as(posting, entry);
        } else {
            cq.post(entry);
        }
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_survive_the_engine() {
        for (sqid, slot, generation) in [(0, 0, 0), (7, 1023, 9), (65535, 65535, u32::MAX >> 1)] {
            let tag = Tag { sqid, slot, generation };
            assert_eq!(Tag::from_bits(tag.to_bits()), tag);
            assert_eq!(tag.to_bits() & LONG, 0);
        }
    }
}
