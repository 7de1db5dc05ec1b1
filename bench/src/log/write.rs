//! The other end of a log: a thread that takes what the cores of a job recorded, and writes it.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use oxblock_engine::{Error, ErrorKind};

use super::hdr::HdrLog;
use super::{Entry, NONE, Pipe, Span};
use crate::bins;
use crate::options::{JobOptions, Logs};

/// How often the thread looks.
const LOOK: Duration = Duration::from_millis(2);
/// Entries that wait to be written in memory at most, in chunks: 2 GiB.
const WAITING_CHUNKS: usize = 8192;

/// What a log of entries is of, in the order of an entry's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bandwidth,
    Iops,
    Submission,
    Completion,
    Total,
}

impl Kind {
    const ALL: [Kind; 5] =
        [Kind::Bandwidth, Kind::Iops, Kind::Submission, Kind::Completion, Kind::Total];

    /// What fio puts after the prefix.
    fn suffix(self) -> &'static str {
        match self {
            Kind::Bandwidth => "bw",
            Kind::Iops => "iops",
            Kind::Submission => "slat",
            Kind::Completion => "clat",
            Kind::Total => "lat",
        }
    }

    fn prefix(self, logs: &Logs) -> Option<&str> {
        let prefix = match self {
            Kind::Bandwidth => &logs.bandwidth,
            Kind::Iops => &logs.iops,
            _ => &logs.latency,
        };
        prefix.as_deref()
    }
}

/// The thread that writes the logs of one job.
pub(crate) struct Writer {
    thread: JoinHandle<Result<(), Error>>,
    over: Arc<AtomicBool>,
    pipes: Vec<Arc<Pipe>>,
}

impl Writer {
    /// Makes the files and the thread; `None` where the job has no logs.
    ///
    /// Errors: a file that cannot be made.
    pub fn start(options: &JobOptions) -> Result<Option<Writer>, Error> {
        if !options.watch.logs.is_any() {
            return Ok(None);
        }
        let (mut pipes, mut clones) = (Vec::new(), Vec::new());
        for clone in 0..options.num_jobs {
            let pipe = Pipe::new(&options.watch.logs);
            clones.push(CloneLogs::open(options, options.first_number + clone, pipe.clone())?);
            pipes.push(pipe);
        }
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let thread = std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || write_all(&mut clones, &is_over))
            .map_err(|error| Error::from_io("starting the thread that writes logs", error))?;
        Ok(Some(Writer { thread, over, pipes }))
    }

    /// What each clone records to.
    pub fn pipes(&self) -> &[Arc<Pipe>] {
        &self.pipes
    }

    /// Writes the rest. How many entries were lost for want of room.
    ///
    /// Errors: a file that could not be written.
    pub fn finish(self) -> Result<u64, Error> {
        self.over.store(true, SeqCst);
        let gone = |_| Err(Error::new(ErrorKind::Failed, "the thread that writes logs panicked"));
        self.thread.join().unwrap_or_else(gone)?;
        Ok(self.pipes.iter().map(|pipe| pipe.lost.load(Relaxed)).sum())
    }
}

fn write_all(clones: &mut [CloneLogs], over: &AtomicBool) -> Result<(), Error> {
    let mut result = Ok(());
    loop {
        // Looked at first: what is recorded before it is set is found below.
        let is_over = over.load(SeqCst);
        let mut found = 0;
        for clone in clones.iter_mut() {
            found += clone.take();
            let written = clone.write();
            // The first failure is what counts; what follows is only taken, to be thrown away.
            result = result.and(written);
        }
        if found == 0 && is_over {
            let ended = clones.iter_mut().map(CloneLogs::end).fold(Ok(()), Result::and);
            return result.and(ended);
        }
        if found == 0 {
            std::thread::sleep(LOOK);
        }
    }
}

/// The logs of one clone.
struct CloneLogs {
    pipe: Arc<Pipe>,
    logs: Logs,
    entries: Vec<(Kind, Output)>,
    histogram: Option<Output>,
    hdr: Option<(Output, HdrLog)>,
    /// Taken, and not written yet.
    waiting: Vec<Vec<Entry>>,
}

/// A file that is written.
struct Output {
    path: PathBuf,
    file: BufWriter<File>,
}

impl CloneLogs {
    fn open(options: &JobOptions, number: u32, pipe: Arc<Pipe>) -> Result<CloneLogs, Error> {
        let logs = &options.watch.logs;
        let open = |prefix: &str, suffix: &str, ending: &str| {
            let prefix = if prefix.is_empty() { &options.name } else { prefix };
            let path = match logs.shared {
                true => format!("{prefix}_{suffix}.{ending}"),
                false => format!("{prefix}_{suffix}.{number}.{ending}"),
            };
            Output::create(path.into(), logs.shared)
        };
        let mut entries = Vec::new();
        for kind in Kind::ALL {
            if let Some(prefix) = kind.prefix(logs) {
                entries.push((kind, open(prefix, kind.suffix(), "log")?));
            }
        }
        let histogram = logs.histogram.as_deref();
        let hdr = logs.hdr.as_deref();
        Ok(CloneLogs {
            histogram: histogram.map(|prefix| open(prefix, "clat_hist", "log")).transpose()?,
            hdr: hdr
                .map(|prefix| open(prefix, "clat", "hlog").map(|file| (file, HdrLog::default())))
                .transpose()?,
            entries,
            pipe,
            logs: logs.clone(),
            waiting: Vec::new(),
        })
    }

    /// Takes chunks over and gives the core new ones, as far as there is memory. How many.
    fn take(&mut self) -> usize {
        let before = self.waiting.len();
        while self.waiting.len() < WAITING_CHUNKS
            && let Some(chunk) = self.pipe.full.pop()
        {
            self.waiting.push(chunk);
        }
        if self.waiting.len() > before {
            self.pipe.fill();
        }
        self.waiting.len() + self.pipe.spans.len()
    }

    /// Writes what waits, and looks after the core from time to time.
    fn write(&mut self) -> Result<(), Error> {
        while !self.waiting.is_empty() {
            for mut chunk in std::mem::take(&mut self.waiting) {
                let epoch_ms = self.pipe.epoch_ns.load(Relaxed) / 1_000_000;
                let zero_ms = if self.logs.unix_epoch { epoch_ms } else { 0 };
                for (kind, output) in &mut self.entries {
                    let has_offset = self.logs.offset;
                    output.write(|file| {
                        chunk
                            .iter()
                            .try_for_each(|entry| line(file, *kind, entry, zero_ms, has_offset))
                    })?;
                }
                chunk.clear();
                // No room: the core has as many as it may have.
                let _ = self.pipe.empty.push(chunk);
                self.take();
            }
        }
        while let Some(mut span) = self.pipe.spans.pop() {
            self.write_span(&span)?;
            span.latency.clear();
            let _ = self.pipe.spares.push(span.latency);
        }
        Ok(())
    }

    fn write_span(&mut self, span: &Span) -> Result<(), Error> {
        let epoch_ns = self.pipe.epoch_ns.load(Relaxed);
        if let Some((output, log)) = &mut self.hdr {
            output.write(|file| file.write_all(&log.text(span, epoch_ns)?))?;
        }
        let Some(output) = &mut self.histogram else { return Ok(()) };
        let zero_ms = if self.logs.unix_epoch { epoch_ns / 1_000_000 } else { 0 };
        let mut counts = vec![0u64; bins::BINS >> self.logs.coarseness];
        for (bin, count) in bins::counts(&span.latency) {
            counts[bin >> self.logs.coarseness] += count;
        }
        output.write(|file| {
            let at_ms = zero_ms + span.to_ns / 1_000_000;
            write!(file, "{at_ms}, {}, {}", span.way, span.len)?;
            counts.iter().try_for_each(|count| write!(file, ", {count}"))?;
            writeln!(file)
        })
    }

    fn end(&mut self) -> Result<(), Error> {
        let entries = self.entries.iter_mut().map(|(_, output)| output);
        let others = self.histogram.iter_mut().chain(self.hdr.iter_mut().map(|(output, _)| output));
        entries.chain(others).map(|o| o.write(|file| file.flush())).fold(Ok(()), Result::and)
    }
}

impl Output {
    /// A new file, or the end of one that several clones write to.
    fn create(path: PathBuf, append: bool) -> Result<Output, Error> {
        let mut options = File::options();
        options.create(true).write(true).append(append).truncate(!append);
        let what = || format!("creating the log {}", path.display());
        let file = options.open(&path).map_err(|error| Error::from_io(what(), error))?;
        Ok(Output { file: BufWriter::with_capacity(1 << 16, file), path })
    }

    fn write(
        &mut self,
        work: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), Error> {
        work(&mut self.file).map_err(|error| {
            Error::from_io(format!("writing the log {}", self.path.display()), error)
        })
    }
}

fn line(
    file: &mut impl Write,
    kind: Kind,
    entry: &Entry,
    zero_ms: u64,
    has_offset: bool,
) -> io::Result<()> {
    let value = entry.values[kind as usize];
    if value == NONE {
        return Ok(());
    }
    let (at_ms, way, len) = (zero_ms + entry.at_ns / 1_000_000, entry.way, entry.len);
    match has_offset {
        true => writeln!(file, "{at_ms}, {value}, {way}, {len}, {}, 0", entry.offset),
        false => writeln!(file, "{at_ms}, {value}, {way}, {len}, 0"),
    }
}
