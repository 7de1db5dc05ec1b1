//! A plain job with a single I/O in flight.
//!
//! Where its target does an I/O at once, as one in memory does, the operation never leaves the
//! worker, and the reading of the clock that ends one I/O begins the next: a latency then has in it
//! what the harness does between two I/Os, and the latencies of a pass add up to its time.

use oxblock_engine::{Core, InPlace, OpKind};

use super::Worker;

/// How long a pass goes on with I/Os that are done at once, and with how many at most: a turn of
/// the reactor for each would cost more than they do.
const PASS_NS: u64 = 10_000;
const PASS_IOS: usize = 256;

impl Worker {
    /// As [`Worker::pass`], for a job with one I/O in flight.
    #[inline]
    pub(super) fn pass_single(&mut self, core: &Core) -> usize {
        let count = self.collect(core);
        if !self.is_starved() {
            return count;
        }
        if !self.held.is_empty() {
            self.refill(core);
            return count;
        }
        count + self.do_at_once(core)
    }

    /// Does one I/O after the other, until one takes its time or they are enough for a pass. How
    /// many were done.
    fn do_at_once(&mut self, core: &Core) -> usize {
        let (start, block_size) = (self.phase.start, u64::from(self.phase.block_size));
        let mut stamp_ns = core.now();
        let pass_ends_ns = self.ends_ns.min(stamp_ns.saturating_add(PASS_NS));
        let mut count = 0;
        while count < PASS_IOS && stamp_ns < pass_ends_ns {
            let Some(step) = self.next_step() else {
                self.closing = true;
                break;
            };
            let Some(op) = self.rest.last_mut() else { break };
            op.offset = start + step.block * block_size;
            op.kind = if step.write { OpKind::Write } else { OpKind::Read };
            match self.channel.submit_in_place(op) {
                InPlace::Done => {}
                InPlace::Running(_) => {
                    self.leave(stamp_ns);
                    break;
                }
                InPlace::Full => {
                    self.held.extend(self.rest.pop());
                    break;
                }
            }
            let now = core.now();
            self.counts.count(usize::from(step.write), now.saturating_sub(stamp_ns));
            stamp_ns = now;
            count += 1;
        }
        if count > 0 {
            self.count_singles(stamp_ns, count as u64);
        }
        count
    }

    /// Notes that the I/O takes its time.
    fn leave(&mut self, stamp_ns: u64) {
        // The operation is in its slot now, and comes back from there.
        self.rest.pop();
        self.submitted_ns[0] = stamp_ns;
        self.in_flight = 1;
        self.channel.kick();
        self.counts.report.submitted.record(0, 1);
        self.counts.report.depths.record(1, 1);
    }

    /// Counts I/Os that were done one after the other, but for their latencies.
    fn count_singles(&mut self, now: u64, count: u64) {
        let counts = &mut self.counts;
        counts.last_ns = counts.last_ns.max(now);
        counts.report.submitted.record(0, count);
        counts.report.completed.record(0, count);
        counts.report.depths.record(1, count);
        self.show();
    }
}
