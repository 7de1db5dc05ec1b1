//! Logs of a job as it runs, in fio's formats and HdrHistogram's.
//!
//! The core that does the I/O puts entries into chunks of memory that are there already
//! ([`record::Recorder`]); a thread of the job takes the full ones, gives empty ones back, and
//! writes ([`write::Writer`]). Between them is a queue without locks for each way. The thread
//! makes more chunks when the core is ahead of it, so a log grows in memory rather than to hold
//! the I/O up; entries for which there still is no room are left out and counted.
//!
//! # Formats
//! Entries are lines `time, value, direction, block size[, offset], priority`, in ms since the
//! job's start (without the ramp) and 0 for reads, 1 for writes, 2 for trims. The value is KiB/s
//! (of a single I/O: bytes in each ms of its completion latency), I/Os a second (of a single I/O:
//! 1), or a latency in ns. Histograms are lines `time, direction, block size`, then the counts of
//! all [bins](crate::bins) since the line before.

mod hdr;
pub(crate) mod record;
pub(crate) mod write;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crossbeam::queue::ArrayQueue;

use crate::options::Logs;
use crate::stats::Latency;

/// Entries of one chunk.
const CHUNK: usize = 4096;
/// Chunks on their way to the writer, at most.
const CHUNKS: usize = 64;
/// Histograms that a core has to write to, for each direction.
const SPARES: usize = 3;
/// A value that there is none of.
const NONE: u64 = u64::MAX;

/// What became of one I/O, or of all of one direction in one span.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Since the job's start, ns.
    at_ns: u64,
    way: u8,
    /// Bytes; 0 for a span.
    len: u32,
    offset: u64,
    /// In the order of [`write::Kind`]; [`NONE`] where there is none.
    values: [u64; 5],
}

/// The completion latencies of one direction in one span.
struct Span {
    from_ns: u64,
    to_ns: u64,
    way: u8,
    len: u32,
    latency: Latency,
}

/// What goes between the core of a clone and the writer of its logs.
pub(crate) struct Pipe {
    full: ArrayQueue<Vec<Entry>>,
    empty: ArrayQueue<Vec<Entry>>,
    spans: ArrayQueue<Span>,
    spares: ArrayQueue<Latency>,
    /// When the job's entries begin, as a Unix time in ns.
    epoch_ns: AtomicU64,
    /// Entries for which there was no room.
    lost: AtomicU64,
}

impl Pipe {
    /// An empty one, with memory for the core to write to.
    pub fn new(logs: &Logs) -> Arc<Pipe> {
        let pipe = Pipe {
            full: ArrayQueue::new(CHUNKS),
            empty: ArrayQueue::new(CHUNKS),
            spans: ArrayQueue::new(3 * SPARES),
            spares: ArrayQueue::new(3 * SPARES),
            epoch_ns: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        };
        if logs.has_entries() {
            pipe.fill();
        }
        if logs.histogram_span_ms().is_some() {
            while pipe.spares.push(Latency::new()).is_ok() {}
        }
        Arc::new(pipe)
    }

    /// Gives the core as many chunks as it may have.
    fn fill(&self) {
        while !self.empty.is_full() && self.empty.push(Vec::with_capacity(CHUNK)).is_ok() {}
    }
}
