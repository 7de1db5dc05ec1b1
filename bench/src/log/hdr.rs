//! HdrHistogram interval logs: a header, then a line for each direction and span, tagged with the
//! direction, with a compressed histogram (V2) of latencies in ns.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::Span;
use crate::stats::Direction;

/// Makes the text of one log.
#[derive(Default)]
pub(super) struct HdrLog {
    serializer: V2DeflateSerializer,
    has_header: bool,
}

impl HdrLog {
    /// The text of one span, after the header if it is the first.
    ///
    /// Errors: a histogram that cannot be compressed.
    pub fn text(&mut self, span: &Span, epoch_ns: u64) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut builder = IntervalLogWriterBuilder::new();
        if !std::mem::replace(&mut self.has_header, true) {
            let epoch = UNIX_EPOCH + Duration::from_nanos(epoch_ns);
            builder
                .add_comment("[Histogram log format version 1.3]")
                .add_comment("[Completion latencies and their maxima in nanoseconds]")
                .with_start_time(epoch)
                .with_base_time(epoch);
        }
        let mut log = builder.begin_log_with(&mut text, &mut self.serializer)?;
        let from = Duration::from_nanos(span.from_ns);
        let length = Duration::from_nanos(span.to_ns - span.from_ns);
        let way = Direction::ALL.get(usize::from(span.way)).map(|way| way.word());
        log.write_histogram(span.latency.histogram(), from, length, way.and_then(Tag::new))
            .map_err(io::Error::other)?;
        Ok(text)
    }
}
