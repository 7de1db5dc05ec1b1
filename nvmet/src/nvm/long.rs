//! Commands that take several operations of the engine: Dataset Management, Verify, Copy, and
//! Flush of all namespaces.
//!
//! There are a few places for them, each with a list of ranges and a piece of memory that were
//! allocated when the controller started. A job does one operation at a time.

use oxblock_engine::{Completion, Op, OpId, OpKind};
use oxblock_mem::{Arena, Buf, IoVector};
use oxblock_nvme::Status;

use crate::namespace::{COPY_BYTES, Range};
use crate::protection::{Bad, Transfer};
use crate::queue::Tag;
use crate::status;

/// Long commands that can be in work at once.
pub(crate) const PLACES: usize = 4;

/// Most ranges of a long command: Dataset Management has 256.
const RANGES: usize = 256;

/// What a long command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Discards each range.
    Deallocate,
    /// Reads each range and throws it away.
    Verify,
    /// Reads all ranges, then writes them in one.
    Copy,
    /// Flushes all nodes.
    FlushAll,
    /// Reads, writes or verifies blocks with metadata.
    Protected,
}

/// A place for a long command.
pub(crate) struct Job {
    kind: Kind,
    /// The command, or none: the flush of a shutdown.
    pub(crate) owner: Option<Tag>,
    /// Index of the namespace's node; of the next one for a flush of all.
    pub(crate) backing: usize,
    ranges: Vec<Range>,
    /// The range in work, and how much of it is done.
    next: usize,
    done: u64,
    /// Copy: where to, and whether the write is FUA.
    to: Range,
    fua: bool,
    writing: bool,
    /// The scratch memory that is free, and the part that is filled.
    free: Option<Buf>,
    filled: Option<Buf>,
    /// The operation that the engine has.
    pub(crate) running: Option<OpId>,
    /// An operation that the engine had no room for.
    pub(crate) stalled: Option<Op>,
    /// Blocks with metadata, and the first of them that was not as it should be.
    transfer: Option<Transfer>,
    pub(crate) bad_block: Option<u64>,
    status: Status,
}

/// What a job does next.
pub(crate) enum Step {
    /// This, on the job's node.
    Submit(Op),
    /// It is over, with this status.
    Over(Status),
}

impl Job {
    fn new(scratch: Buf) -> Job {
        let nowhere = Range { offset: 0, len: 0 };
        Job {
            kind: Kind::Verify,
            owner: None,
            backing: 0,
            ranges: Vec::with_capacity(RANGES),
            next: 0,
            done: 0,
            to: nowhere,
            fua: false,
            writing: false,
            free: Some(scratch),
            filled: None,
            running: None,
            stalled: None,
            transfer: None,
            bad_block: None,
            status: Status::SUCCESS,
        }
    }

    /// Starts afresh, without ranges.
    pub(crate) fn begin(&mut self, kind: Kind) {
        self.kind = kind;
        self.ranges.clear();
        (self.next, self.done) = (0, 0);
        (self.fua, self.writing) = (false, false);
        (self.transfer, self.bad_block) = (None, None);
        self.status = Status::SUCCESS;
    }

    /// Starts afresh with blocks that have metadata.
    pub(crate) fn begin_transfer(&mut self, transfer: Transfer) {
        self.begin(Kind::Protected);
        self.transfer = Some(transfer);
    }

    /// Adds a range. There is room for as many as any command has.
    pub(crate) fn push(&mut self, range: Range) {
        self.ranges.push(range);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Where a copy goes.
    pub(crate) fn destination(&self) -> Range {
        self.to
    }

    pub(crate) fn set_destination(&mut self, to: Range, fua: bool) {
        (self.to, self.fua) = (to, fua);
    }

    /// Ends the job early: what runs is let end, nothing new begins.
    pub(crate) fn abort(&mut self, status: Status) {
        if self.status.is_success() {
            self.status = status;
        }
    }

    /// The next operation, with `backings` nodes in all.
    pub(crate) fn step(&mut self, backings: usize) -> Step {
        let op = if self.status.is_success() { self.next_op(backings) } else { None };
        match op {
            Some(op) => Step::Submit(op),
            None => Step::Over(self.status),
        }
    }

    fn next_op(&mut self, backings: usize) -> Option<Op> {
        match self.kind {
            Kind::Deallocate => {
                let range = self.ranges.get(self.next)?;
                Some(Op::discard(range.offset, range.len))
            }
            Kind::Verify => self.next_read(),
            Kind::Copy if self.writing => None,
            Kind::Copy => {
                let read = self.next_read();
                read.or_else(|| self.write_back())
            }
            Kind::FlushAll if self.backing < backings => Some(Op::flush()),
            Kind::FlushAll => None,
            Kind::Protected => self.next_piece(),
        }
    }

    fn next_piece(&mut self) -> Option<Op> {
        let transfer = self.transfer.as_mut()?;
        let len = transfer.piece_bytes();
        if len == 0 {
            return None;
        }
        let mut memory = self.free.take()?;
        let rest = memory.split_off(len);
        if !rest.is_empty() {
            self.free = Some(rest);
        }
        match transfer.next(memory) {
            Ok(op) => Some(op),
            Err((bad, memory)) => {
                self.refuse(bad);
                self.free = join(Some(memory), self.free.take());
                None
            }
        }
    }

    fn refuse(&mut self, (lba, status): Bad) {
        self.bad_block = Some(lba);
        self.abort(status.dnr());
    }

    /// Reads on in the range in work, as much as fits the free memory.
    fn next_read(&mut self) -> Option<Op> {
        let range = self.ranges.get(self.next)?;
        let mut into = self.free.take()?;
        let len = (range.len - self.done).min(into.len() as u64);
        let rest = into.split_off(len as usize);
        if !rest.is_empty() {
            self.free = Some(rest);
        }
        Some(Op::read(range.offset + self.done, into))
    }

    fn write_back(&mut self) -> Option<Op> {
        self.writing = true;
        let op = Op::write(self.to.offset, self.filled.take()?);
        Some(if self.fua { op.fua() } else { op })
    }

    /// An operation of this job has ended.
    pub(crate) fn completed(&mut self, completion: Completion) {
        self.running = None;
        let Completion { op, result } = completion;
        if let Err(fault) = result {
            self.abort(status::of_fault(&fault, op.kind));
        }
        if self.status.is_success()
            && let Some(transfer) = &mut self.transfer
            && let Err(bad) = transfer.completed(&op.data)
        {
            self.refuse(bad);
        }
        match op.kind {
            OpKind::Read => self.advance(op.len),
            OpKind::Discard => self.next += 1,
            OpKind::Flush => self.backing += 1,
            _ => {}
        }
        let keep = self.kind == Kind::Copy && op.kind == OpKind::Read;
        self.take_back(op.data, keep);
    }

    fn advance(&mut self, len: u64) {
        self.done += len;
        let range = self.ranges.get(self.next);
        if range.is_none_or(|range| self.done >= range.len) {
            self.next += 1;
            self.done = 0;
        }
    }

    /// Memory comes back: to the part that is filled, or to the part that is free.
    fn take_back(&mut self, data: IoVector, keep: bool) {
        let Some(buf) = data.into_single() else {
            return;
        };
        if keep {
            self.filled = join(self.filled.take(), Some(buf));
        } else {
            self.free = join(Some(buf), self.free.take());
        }
    }

    /// Makes the memory whole again for the next command.
    pub(crate) fn end(&mut self) {
        if let Some(op) = self.stalled.take() {
            self.take_back(op.data, self.kind == Kind::Copy && op.kind == OpKind::Read);
        }
        self.free = join(self.filled.take(), self.free.take());
        self.running = None;
        self.owner = None;
        self.transfer = None;
    }

    /// The ranges that it reads or discards.
    pub(crate) fn ranges(&self) -> &[Range] {
        &self.ranges
    }
}

/// Two neighbouring pieces of memory, or the one that there is.
fn join(first: Option<Buf>, second: Option<Buf>) -> Option<Buf> {
    let (mut first, second) = match (first, second) {
        (Some(first), Some(second)) => (first, second),
        (first, second) => return first.or(second),
    };
    // Pieces of one allocation, split in this order.
    let joined = first.try_join(second);
    debug_assert!(joined.is_ok(), "the pieces of a job's memory are neighbours");
    Some(first)
}

/// All places for long commands.
pub(crate) struct Jobs {
    places: Vec<Job>,
    free: Vec<u8>,
}

impl Jobs {
    /// # Errors
    /// The arena has no room.
    pub(crate) fn new(arena: &Arena) -> Result<Jobs, oxblock_mem::MemError> {
        let scratch = || arena.alloc(COPY_BYTES as usize, 4096);
        let places: Result<Vec<Job>, _> = (0..PLACES).map(|_| scratch().map(Job::new)).collect();
        Ok(Jobs { places: places?, free: (0..PLACES as u8).rev().collect() })
    }

    /// A free place, if there is one. It is taken for good with [`Jobs::keep`].
    pub(crate) fn free(&mut self) -> Option<(u8, &mut Job)> {
        let place = *self.free.last()?;
        let job = self.places.get_mut(usize::from(place))?;
        Some((place, job))
    }

    /// Takes the place that [`Jobs::free`] gave.
    pub(crate) fn keep(&mut self) {
        self.free.pop();
    }

    pub(crate) fn get(&mut self, place: u8) -> Option<&mut Job> {
        self.places.get_mut(usize::from(place))
    }

    /// The job in a place is over.
    pub(crate) fn release(&mut self, place: u8) {
        if let Some(job) = self.places.get_mut(usize::from(place)) {
            job.end();
            self.free.push(place);
        }
    }

    /// Places in use.
    pub(crate) fn busy(&self) -> impl Iterator<Item = u8> + '_ {
        (0..PLACES as u8).filter(|place| !self.free.contains(place))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == PLACES
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::data::DataPath;
    use oxblock_engine::{ErrorKind, Fault};
    use oxblock_mem::{ArenaOptions, ArenaSource, Memory, PagePolicy};
    use oxblock_nvme::Command;

    fn arena() -> Arena {
        let options = ArenaOptions {
            size: 2 << 20,
            pages: PagePolicy::Unlocked,
            node: None,
            source: ArenaSource::Memfd,
        };
        Memory::new().add_arena(&options).unwrap()
    }

    pub(crate) fn job() -> Job {
        Job::new(arena().alloc(COPY_BYTES as usize, 4096).unwrap())
    }

    /// The data of a command, in memory of our own.
    pub(crate) struct Ram(Vec<u8>);

    impl Ram {
        pub(crate) fn new(bytes: &[u8]) -> Ram {
            Ram(bytes.to_vec())
        }
    }

    impl DataPath for Ram {
        fn map(&mut self, _: &Command, len: usize) -> Result<IoVector, Status> {
            let mut buf = arena().alloc(len, 8).unwrap();
            buf.write_at(0, &self.0[..len]);
            Ok(buf.into())
        }
    }

    fn run(job: &mut Job, mut answer: impl FnMut(&Op) -> Result<(), Fault>) -> (Vec<Op>, Status) {
        let mut ops = Vec::new();
        loop {
            match job.step(3) {
                Step::Over(status) => {
                    job.end();
                    assert_eq!(job.free.as_ref().unwrap().len(), COPY_BYTES as usize);
                    return (ops, status);
                }
                Step::Submit(op) => {
                    let Op { kind, flags, offset, len, .. } = op;
                    let data = IoVector::new();
                    ops.push(Op { kind, flags, offset, len, data, tag: 0 });
                    let result = answer(&op);
                    job.completed(Completion { op, result });
                }
            }
        }
    }

    #[test]
    fn a_copy_reads_all_before_it_writes() {
        let mut job = job();
        job.begin(Kind::Copy);
        job.push(Range { offset: 8192, len: 4096 });
        job.push(Range { offset: 0, len: 8192 });
        job.set_destination(Range { offset: 4096, len: 12288 }, true);
        let (ops, status) = run(&mut job, |_| Ok(()));
        assert!(status.is_success());
        let shape: Vec<_> = ops.iter().map(|op| (op.kind, op.offset, op.len)).collect();
        let expected = [(OpKind::Read, 8192, 4096), (OpKind::Read, 0, 8192)];
        assert_eq!(shape[..2], expected);
        assert_eq!(shape[2], (OpKind::Write, 4096, 12288));
        assert_eq!(shape.len(), 3);
    }

    #[test]
    fn a_verify_goes_through_its_scratch_memory_piece_by_piece() {
        let mut job = job();
        job.begin(Kind::Verify);
        let len = u64::from(COPY_BYTES) * 2 + 4096;
        job.push(Range { offset: 0, len });
        let (ops, _) = run(&mut job, |_| Ok(()));
        let lens: Vec<_> = ops.iter().map(|op| op.len).collect();
        assert_eq!(lens, [COPY_BYTES.into(), COPY_BYTES.into(), 4096]);
    }

    #[test]
    fn the_first_fault_ends_a_job() {
        let mut job = job();
        job.begin(Kind::Deallocate);
        (0..5).for_each(|n| job.push(Range { offset: n * 4096, len: 4096 }));
        let fail = |op: &Op| match op.offset {
            8192 => Err(Fault::new(ErrorKind::NoSpace, 8192)),
            _ => Ok(()),
        };
        let (ops, status) = run(&mut job, fail);
        assert_eq!((ops.len(), status), (3, Status::CAPACITY_EXCEEDED.dnr()));
        job.begin(Kind::FlushAll);
        job.backing = 0;
        let (ops, status) = run(&mut job, |_| Ok(()));
        assert_eq!((ops.len(), status), (3, Status::SUCCESS));
    }
}
