//! The core's end of a log: entries and histograms into memory that is there already.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{CHUNK, Entry, NONE, Pipe, Span};
use crate::options::Logs;
use crate::stats::Latency;

/// One I/O that has completed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Io {
    /// 0: read, 1: write, 2: trim.
    pub way: usize,
    pub len: u32,
    pub offset: u64,
    /// Submission; `None` where it is not timed apart.
    pub slat_ns: Option<u64>,
    pub clat_ns: u64,
    pub lat_ns: u64,
}

/// Records the I/Os of one clone. Allocates only when built.
pub(crate) struct Recorder {
    pipe: Arc<Pipe>,
    chunk: Vec<Entry>,
    entries: bool,
    /// Span of an entry; 0: each I/O has one.
    average_ns: u64,
    max: bool,
    spans: [Sums; 3],
    span_from_ns: u64,
    /// Histograms, if there are any, and how long each is.
    histograms: Option<Box<[Histogram; 3]>>,
    histogram_ns: u64,
    histogram_from_ns: u64,
    epoch_ns: u64,
}

/// What one direction did in one span.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    ios: u64,
    bytes: u64,
    /// Of submission, completion and total latencies.
    latency_ns: [u64; 3],
    max_ns: [u64; 3],
    submissions: u64,
}

struct Histogram {
    latency: Latency,
    len: u32,
}

impl Recorder {
    pub fn new(logs: &Logs, pipe: Arc<Pipe>) -> Recorder {
        let histogram = || Histogram { latency: Latency::new(), len: 0 };
        let span = logs.histogram_span_ms();
        Recorder {
            chunk: pipe.empty.pop().unwrap_or_default(),
            pipe,
            entries: logs.has_entries(),
            average_ns: logs.average_ms * 1_000_000,
            max: logs.max,
            spans: [Sums::default(); 3],
            span_from_ns: 0,
            histograms: span.map(|_| Box::new([histogram(), histogram(), histogram()])),
            histogram_ns: span.unwrap_or(0) * 1_000_000,
            histogram_from_ns: 0,
            epoch_ns: 0,
        }
    }

    /// The figures that count begin now.
    pub fn start(&mut self, now: u64) {
        self.epoch_ns = now;
        (self.span_from_ns, self.histogram_from_ns) = (now, now);
        self.spans = [Sums::default(); 3];
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.pipe.epoch_ns.store(unix.as_nanos() as u64, Relaxed);
    }

    /// Counts an I/O that was found complete at `now`.
    #[inline]
    pub fn record(&mut self, now: u64, io: &Io) {
        if let Some(histograms) = &mut self.histograms {
            let histogram = &mut histograms[io.way];
            histogram.latency.record(io.clat_ns);
            histogram.len = io.len;
        }
        if !self.entries {
            return;
        }
        if self.average_ns > 0 {
            self.spans[io.way].add(io);
            return;
        }
        let bandwidth = (u64::from(io.len) * 1_000_000).checked_div(io.clat_ns).unwrap_or(0);
        self.push(Entry {
            at_ns: now - self.epoch_ns,
            way: io.way as u8,
            len: io.len,
            offset: io.offset,
            values: [bandwidth, 1, io.slat_ns.unwrap_or(NONE), io.clat_ns, io.lat_ns],
        });
    }

    /// Ends the spans that are over.
    #[inline]
    pub fn tick(&mut self, now: u64) {
        if self.average_ns > 0 && now - self.span_from_ns >= self.average_ns {
            self.end_span(now);
        }
        if self.histogram_ns > 0 && now - self.histogram_from_ns >= self.histogram_ns {
            self.end_histograms(now);
        }
    }

    /// Hands over what there is at the end.
    pub fn finish(&mut self, now: u64) {
        if self.average_ns > 0 && now > self.span_from_ns {
            self.end_span(now);
        }
        if self.histogram_ns > 0 {
            self.end_histograms(now);
        }
        let rest = std::mem::take(&mut self.chunk);
        if let Err(rest) = self.pipe.full.push(rest) {
            self.pipe.lost.fetch_add(rest.len() as u64, Relaxed);
        }
    }

    fn end_span(&mut self, now: u64) {
        let length_ns = (now - self.span_from_ns).max(1);
        for way in 0..3 {
            let sums = std::mem::take(&mut self.spans[way]);
            if sums.ios > 0 {
                let at_ns = now - self.epoch_ns;
                let values = sums.values(length_ns, self.max);
                self.push(Entry { at_ns, way: way as u8, len: 0, offset: 0, values });
            }
        }
        // Spans begin at multiples of their length, however late this one was ended.
        self.span_from_ns = now - (now - self.epoch_ns) % self.average_ns;
    }

    /// Hands the histograms of a span over, if there are empty ones to go on with; else it lasts
    /// until there are.
    fn end_histograms(&mut self, now: u64) {
        let Some(histograms) = &mut self.histograms else { return };
        let used = histograms.iter().filter(|histogram| histogram.latency.count() > 0).count();
        if self.pipe.spares.len() < used {
            return;
        }
        let now = now.max(self.histogram_from_ns);
        let (from_ns, to_ns) = (self.histogram_from_ns - self.epoch_ns, now - self.epoch_ns);
        for (way, histogram) in histograms.iter_mut().enumerate() {
            if histogram.latency.count() > 0
                && let Some(spare) = self.pipe.spares.pop()
            {
                let latency = std::mem::replace(&mut histogram.latency, spare);
                let len = histogram.len;
                // There are as many places as histograms: it is never full.
                let _ = self.pipe.spans.push(Span { from_ns, to_ns, way: way as u8, len, latency });
            }
        }
        self.histogram_from_ns = now - (now - self.epoch_ns) % self.histogram_ns;
    }

    #[inline]
    fn push(&mut self, entry: Entry) {
        let room = CHUNK.min(self.chunk.capacity());
        if self.chunk.len() >= room {
            self.change_chunk();
        }
        match self.chunk.len() < CHUNK.min(self.chunk.capacity()) {
            true => self.chunk.push(entry),
            false => {
                self.pipe.lost.fetch_add(1, Relaxed);
            }
        }
    }

    #[cold]
    fn change_chunk(&mut self) {
        // The queue for full ones has room whenever there is an empty one: they are that many.
        if let Some(empty) = self.pipe.empty.pop() {
            let full = std::mem::replace(&mut self.chunk, empty);
            if let Err(mut full) = self.pipe.full.push(full) {
                self.pipe.lost.fetch_add(full.len() as u64, Relaxed);
                full.clear();
                self.chunk = full;
            }
        }
    }
}

impl Sums {
    #[inline]
    fn add(&mut self, io: &Io) {
        self.ios += 1;
        self.bytes += u64::from(io.len);
        self.submissions += u64::from(io.slat_ns.is_some());
        let latencies = [io.slat_ns.unwrap_or(0), io.clat_ns, io.lat_ns];
        for (at, ns) in latencies.into_iter().enumerate() {
            self.latency_ns[at] += ns;
            self.max_ns[at] = self.max_ns[at].max(ns);
        }
    }

    /// The entry's values for a span of `length_ns`.
    fn values(&self, length_ns: u64, max: bool) -> [u64; 5] {
        let per_second =
            |count: u64| (u128::from(count) * 1_000_000_000 / u128::from(length_ns)) as u64;
        let [slat, clat, lat] = match max {
            true => self.max_ns,
            false => self.latency_ns.map(|sum| sum / self.ios),
        };
        let slat = if self.submissions > 0 { slat } else { NONE };
        [per_second(self.bytes) / 1024, per_second(self.ios), slat, clat, lat]
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("entries", &self.chunk.len()).finish_non_exhaustive()
    }
}
