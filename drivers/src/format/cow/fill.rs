//! Taking clusters into memory, and out of it: what the overlay's tasks do.

use std::ops::Range;

use oxblock_engine::{Completion, ErrorKind, Fault, Op, OpFlags, OpKind, SlowDone, SlowRequest};
use oxblock_mem::IoVector;

use super::clusters::Held;
use super::{BACKING, Cow};

/// What is copied from below at once, in bytes.
const COPY: u64 = 64 << 10;
/// The most clusters that one task takes at once.
const MOST: u64 = 256;

/// Clusters that a task has taken; it lets go of them when this is dropped, and whoever waits
/// for them hears of it.
struct Taken<'a> {
    cow: &'a Cow,
    clusters: Range<u64>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.clusters.clone().for_each(|cluster| self.cow.clusters.let_go(cluster));
        self.clusters.clone().for_each(|cluster| self.cow.waits.wake(cluster));
    }
}

impl Cow {
    /// Does what `map` could not, for as many clusters as go together.
    pub(super) async fn work(
        &self,
        request: &mut SlowRequest,
        buffer: &mut Option<IoVector>,
    ) -> Result<SlowDone, Fault> {
        let (start, end) = (request.offset(), request.offset() + request.len_bytes());
        let first = self.clusters.of(start);
        let in_first = self.clusters.is_whole(start, self.clusters.end_of(start).min(end));
        let erases = matches!(request.kind(), OpKind::WriteZeroes | OpKind::Discard) && in_first;
        let forgets_part = request.kind() == OpKind::Discard && !in_first;
        let wanted = |held| match held {
            Held::Memory => erases,
            Held::Nothing | Held::Zero => !forgets_part,
        };
        let last = if in_first { first + self.whole_after(start, end) } else { first + 1 };
        let Some(taken) = self.take(first..last, wanted) else {
            // Somebody else is at it, or was until now.
            self.waits.wait(request, first, || self.clusters.is_free(first)).await;
            return if request.is_cancelled() {
                Err(cancelled(start))
            } else {
                Ok(SlowDone::Again)
            };
        };
        if erases {
            return self.erase(request, &taken).await;
        }
        let count = taken.clusters.end - first;
        if !self.clusters.reserve(count) {
            let text = "the overlay has taken all of its max-memory";
            return Err(Fault::text(ErrorKind::NoSpace, start, text));
        }
        let filled = self.fill(request, &taken, buffer).await;
        if filled.is_err() {
            self.give_memory_back(request, &taken.clusters).await;
            self.clusters.unreserve(count);
        }
        filled
    }

    /// How many clusters from `start` on, where one begins, end before `end` or with the node.
    fn whole_after(&self, start: u64, end: u64) -> u64 {
        let clusters = &self.clusters;
        let past =
            if end == clusters.length { end.div_ceil(clusters.size) } else { clusters.of(end) };
        (past - clusters.of(start)).min(MOST)
    }

    /// Takes the first of these clusters and those after it that are free and wanted.
    fn take(&self, clusters: Range<u64>, wanted: impl Fn(Held) -> bool) -> Option<Taken<'_>> {
        let mut taken = Taken { cow: self, clusters: clusters.start..clusters.start };
        for cluster in clusters {
            if !self.clusters.take(cluster, &wanted) {
                break;
            }
            taken.clusters.end = cluster + 1;
        }
        (!taken.clusters.is_empty()).then_some(taken)
    }

    /// Brings clusters into memory, with what is written to them.
    async fn fill(
        &self,
        request: &mut SlowRequest,
        taken: &Taken<'_>,
        buffer: &mut Option<IoVector>,
    ) -> Result<SlowDone, Fault> {
        let whole = self.clusters.bytes(&taken.clusters);
        let start = request.offset();
        let end = whole.end.min(start + request.len_bytes());
        for rest in [whole.start..start, end..whole.end] {
            self.copy_up(request, rest, buffer).await?;
        }
        request.pass_on(self.memory(), start, 0, end - start).await?;
        for cluster in taken.clusters.clone() {
            self.clusters.set(cluster, Held::Memory);
        }
        Ok(SlowDone::Bytes(end - start))
    }

    /// Brings into memory what a range of one cluster reads as.
    async fn copy_up(
        &self,
        request: &SlowRequest,
        range: Range<u64>,
        buffer: &mut Option<IoVector>,
    ) -> Result<(), Fault> {
        if range.is_empty() {
            return Ok(());
        }
        let is_below = self.clusters.held(self.clusters.of(range.start)) == Held::Nothing;
        let is_below = is_below && self.has_backing;
        let below = if is_below { request.child_length(BACKING) } else { 0 };
        let mut at = range.start;
        while at < below.min(range.end) {
            let len = (below.min(range.end) - at).min(COPY);
            let mut data = match buffer.take() {
                Some(data) => data,
                None => self.buffer(request)?,
            };
            let rest = data.split_off(len as usize);
            let Completion { op, result } = request.run(BACKING, Op::read(at, data)).await;
            let written = match result {
                Ok(()) => request.run(self.memory(), Op::write(at, op.data)).await,
                Err(_) => Completion { op, result },
            };
            let mut data = written.op.data;
            data.mend(rest);
            *buffer = Some(data);
            written.result?;
            at += len;
        }
        if at < range.end {
            // Its memory may hold what a write left there that was late for a discard.
            request.run(self.memory(), Op::write_zeroes(at, range.end - at)).await.result?;
        }
        Ok(())
    }

    /// A task's own buffer, which it keeps.
    fn buffer(&self, request: &SlowRequest) -> Result<IoVector, Fault> {
        let len = COPY.min(self.clusters.size) as usize;
        let buffer = request.core().arena().alloc(len, 4096);
        let text = "no memory to copy a cluster in; give the engine a larger arena";
        buffer
            .map(IoVector::from)
            .map_err(|_| Fault::text(ErrorKind::OutOfMemory, request.offset(), text))
    }

    /// Makes whole clusters zeroes, which take no memory.
    async fn erase(&self, request: &SlowRequest, taken: &Taken<'_>) -> Result<SlowDone, Fault> {
        let mut in_memory = 0;
        for cluster in taken.clusters.clone() {
            in_memory += u64::from(self.clusters.held(cluster) == Held::Memory);
            self.clusters.set(cluster, Held::Zero);
        }
        if in_memory > 0 {
            self.give_memory_back(request, &taken.clusters).await;
            self.clusters.unreserve(in_memory);
        }
        let end = self.clusters.bytes(&taken.clusters).end;
        Ok(SlowDone::Bytes(end - request.offset()))
    }

    /// Gives back the memory of clusters that are not in memory any more, or not yet.
    async fn give_memory_back(&self, request: &SlowRequest, clusters: &Range<u64>) {
        let Range { start, end } = self.clusters.bytes(clusters);
        let discard = Op::write_zeroes(start, end - start).flags(OpFlags::MAY_UNMAP);
        // Memory takes this always; if the node is being closed, it goes altogether.
        let _ = request.child(self.memory()).run(discard).await;
    }
}

fn cancelled(offset: u64) -> Fault {
    Fault::new(ErrorKind::Cancelled, offset)
}
