//! A job in fio's words.
//!
//! [`OPTIONS`] is the one table of what a job may say: the command line and job files are both read
//! through [`JobOptions::set`], so that a word means the same everywhere.

use std::fmt;
use std::time::Duration;

use crate::pattern::{Order, mix64};
use crate::units::Size;

mod errors;
mod files;
mod names;
mod pace_table;
mod shape;
mod table;
mod verify;
mod watch;
mod watch_table;

pub use files::{Files, Service};
pub use names::{FIO_OPTIONS, nearest};
pub use shape::{BlockSizes, Contents, Distribution, Shape};
pub use table::{OPTIONS, OptionSpec};
pub use verify::VerifyOptions;
pub use watch::{Latencies, LatencyTarget, Logs, Steady, Unified, Watch};

/// What one job does, before it meets a target. [`Default`] is fio's default where fio has one.
#[derive(Clone, Debug)]
pub struct JobOptions {
    /// The job's name, shown in reports.
    pub name: String,
    /// Direction and order.
    pub rw: Rw,
    /// Bytes per I/O; a multiple of the target's block size.
    pub block_size: u32,
    /// I/Os in flight per job.
    pub io_depth: u32,
    /// Clones of the job, each on a core of its own while there are cores.
    pub num_jobs: u32,
    /// Ends the job after this time, finished or not.
    pub runtime: Option<Duration>,
    /// Go around again until `runtime` ends; `None`: when neither `size` nor `io_size` is given.
    pub time_based: Option<bool>,
    /// Runs this long before anything is counted.
    pub ramp_time: Duration,
    /// Where the job's range starts on the target.
    pub offset: Size,
    /// The length of the job's range; `None`: to the end of the target.
    pub size: Option<Size>,
    /// Bytes to move; `None`: as many as the range has.
    pub io_size: Option<u64>,
    /// Reads in a hundred, where `rw` mixes.
    pub read_percent: u8,
    /// Random blocks may repeat before all have been touched.
    pub no_random_map: bool,
    /// Seeds order and contents.
    pub seed: u64,
    /// Contents written so that they can be checked.
    pub verify: VerifyOptions,
    /// Open files with O_DIRECT.
    pub direct: bool,
    /// Report the clones of a job as one.
    pub group_reporting: bool,
    /// Sizes, places and pace beyond the plain.
    pub shape: Shape,
    /// What is written where nothing is verified.
    pub contents: Contents,
    /// What is logged and looked at as the job runs.
    pub watch: Watch,
    /// The number of the job's first clone among all clones of the run, from 1; names logs.
    pub first_number: u32,
    /// The same seed for each run, where none is given.
    pub rand_repeat: bool,
    /// How many times over the job is done.
    pub loops: u32,
    /// The length of a file that is made, bytes.
    pub file_size: Option<u64>,
    /// Bytes from the start of one clone's range to that of the next.
    pub offset_increment: u64,
    /// The percentiles that are reported; empty: fio's.
    pub percentiles: Vec<f64>,
    /// What the job runs against.
    pub files: Files,
    /// fio's null engine was asked for: nothing that `files` names may be touched.
    pub null_engine: bool,
    /// Begins when all jobs before it have ended.
    pub stonewall: bool,
    /// Begins a new group of reports.
    pub new_group: bool,
    /// When this job ends, others end too.
    pub exit_all: bool,
    /// The same, only when it ends with an error.
    pub exit_all_on_error: bool,
    /// Which others.
    pub exit_what: ExitWhat,
    /// Processors for the clones, in turn; empty: left to the command.
    pub cpus: Vec<usize>,
    /// How often a report of the running job is made.
    pub status_interval: Option<Duration>,
    /// The words that were given, in order, for the report.
    pub given: Vec<(&'static str, String)>,
}

impl Default for JobOptions {
    fn default() -> JobOptions {
        JobOptions {
            name: "oxblock".to_owned(),
            rw: Rw::Read,
            block_size: 4096,
            io_depth: 1,
            num_jobs: 1,
            runtime: None,
            time_based: None,
            ramp_time: Duration::ZERO,
            offset: Size::Bytes(0),
            size: None,
            io_size: None,
            read_percent: 50,
            no_random_map: false,
            seed: 0x6f78_626c_6f63_6b00,
            verify: VerifyOptions::default(),
            direct: false,
            group_reporting: false,
            shape: Shape::default(),
            contents: Contents::Random,
            watch: Watch::default(),
            first_number: 1,
            rand_repeat: true,
            loops: 1,
            file_size: None,
            offset_increment: 0,
            percentiles: Vec::new(),
            files: Files::default(),
            null_engine: false,
            stonewall: false,
            new_group: false,
            exit_all: false,
            exit_all_on_error: false,
            exit_what: ExitWhat::Group,
            cpus: Vec::new(),
            status_interval: None,
            given: Vec::new(),
        }
    }
}

/// fio's `rw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rw {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Sequential reads and writes, mixed.
    ReadWrite,
    /// Random reads and writes, mixed.
    RandRw,
    /// Sequential trims.
    Trim,
    /// Random trims.
    RandTrim,
    /// Each block is trimmed and then written, in sequence.
    TrimWrite,
    /// The same, at random.
    RandTrimWrite,
}

impl Rw {
    /// fio's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Rw::Read => "read",
            Rw::Write => "write",
            Rw::RandRead => "randread",
            Rw::RandWrite => "randwrite",
            Rw::ReadWrite => "rw",
            Rw::RandRw => "randrw",
            Rw::Trim => "trim",
            Rw::TrimWrite => "trimwrite",
            Rw::RandTrimWrite => "randtrimwrite",
            Rw::RandTrim => "randtrim",
        }
    }

    /// Are offsets random?
    pub fn is_random(self) -> bool {
        use Rw::{RandRead, RandRw, RandTrim, RandTrimWrite, RandWrite};
        matches!(self, RandRead | RandWrite | RandRw | RandTrim | RandTrimWrite)
    }

    /// Does it trim?
    pub fn trims(self) -> bool {
        matches!(self, Rw::Trim | Rw::RandTrim) || self.trims_then_writes()
    }

    /// Does it write each block that it trimmed?
    pub fn trims_then_writes(self) -> bool {
        matches!(self, Rw::TrimWrite | Rw::RandTrimWrite)
    }

    /// Does it read?
    pub fn reads(self) -> bool {
        matches!(self, Rw::Read | Rw::RandRead) || self.is_mixed()
    }

    /// Does it change what the target holds?
    pub fn writes(self) -> bool {
        !matches!(self, Rw::Read | Rw::RandRead)
    }

    /// Does it both read and write?
    pub fn is_mixed(self) -> bool {
        matches!(self, Rw::ReadWrite | Rw::RandRw)
    }
}

/// fio's `exit_what`: the jobs that end with one that has `exitall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitWhat {
    /// Those of its group.
    Group,
    /// All that run.
    Stonewall,
    /// Those too that would have run afterwards.
    All,
}

/// A word that is unknown, or a value that it cannot take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    /// The option at fault.
    pub option: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "option `{}`: {}", self.option, self.message)
    }
}

impl std::error::Error for OptionError {}

impl JobOptions {
    /// Takes one of fio's words. Later words overrule earlier ones.
    ///
    /// Errors: an unknown name, or a value that the option cannot take.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        self.set_word(name, Some(value))
    }

    /// The same, for a word that may stand without a value where it is a switch.
    ///
    /// Errors: as [`JobOptions::set`]; a name of fio's that is not offered here is told from one
    /// that is nobody's, for which the nearest is named.
    pub fn set_word(&mut self, name: &str, value: Option<&str>) -> Result<(), OptionError> {
        let fail = |message| OptionError { option: name.to_owned(), message };
        let spec = OptionSpec::find(name).ok_or_else(|| fail(names::unknown(name)))?;
        let value = match value {
            Some(value) => value,
            None => match spec.bare {
                Some(bare) => bare,
                None => return Err(fail(format!("needs a value: {name}={}", spec.value))),
            },
        };
        spec.set(self, value).map_err(fail)?;
        self.given.push((spec.name, value.to_owned()));
        Ok(())
    }

    /// Sets the block sizes of reads, writes and trims.
    fn set_sizes(&mut self, sizes: [BlockSizes; 3]) {
        self.block_size = sizes.iter().map(BlockSizes::max).max().unwrap_or(self.block_size);
        let same = sizes.iter().all(|s| *s == BlockSizes::Range(self.block_size, self.block_size));
        self.shape.sizes = (!same).then_some(sizes);
    }

    /// Was the option given by name?
    pub fn is_given(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == name)
    }

    /// The seed of one clone's steps.
    pub(crate) fn clone_seed(&self, number: u64) -> u64 {
        mix64(self.seed.wrapping_add(number))
    }

    /// Does it ask more of the hot loop than blocks of one size as fast as they go?
    pub fn is_shaped(&self) -> bool {
        !self.shape.is_plain()
            || self.rw.trims()
            || self.verify.is_on()
            || self.watch.needs_each_io()
            || self.files.each() > 1
    }

    /// Where the job's range ends on each of its files, if the job says so in bytes.
    pub fn end_bytes(&self) -> Option<u64> {
        let own = match (self.offset, self.size) {
            (Size::Bytes(offset), Some(Size::Bytes(_))) => {
                self.size_in(0).and_then(|size| offset.checked_add(size))
            }
            _ => None,
        };
        let others = self.offset_increment.saturating_mul(u64::from(self.num_jobs) - 1);
        own.map(|end| end.saturating_add(others)).max(self.file_size)
    }

    /// The order of offsets that the options ask for.
    pub fn order(&self) -> Order {
        match (self.rw.is_random(), self.no_random_map) {
            (false, _) => Order::Sequential,
            (true, false) => Order::RandomOnce,
            (true, true) => Order::Random,
        }
    }

    /// Reads in a hundred, for every `rw`.
    pub fn reads_in_hundred(&self) -> u8 {
        match self.rw {
            Rw::Read | Rw::RandRead => 100,
            Rw::Write | Rw::RandWrite | Rw::Trim | Rw::RandTrim => 0,
            Rw::TrimWrite | Rw::RandTrimWrite => 0,
            Rw::ReadWrite | Rw::RandRw => self.read_percent,
        }
    }

    /// The length of the range of one file of `length` bytes: files share a size in bytes.
    fn size_in(&self, length: u64) -> Option<u64> {
        self.size.map(|size| match size {
            Size::Bytes(bytes) => bytes / u64::from(self.files.each()),
            share => share.of(length),
        })
    }

    /// Fits the job to files, each of so many bytes in blocks of so many bytes. What each plan
    /// says of the work as a whole is that of all of them.
    ///
    /// Errors: as [`JobOptions::plan`].
    pub fn plan_files(&self, files: &[(u64, u32)]) -> Result<Vec<Plan>, OptionError> {
        let plan = |&(length, block_size): &(u64, u32)| self.plan(length, block_size);
        let mut plans: Vec<Plan> = files.iter().map(plan).collect::<Result<_, _>>()?;
        if self.io_size.is_none() {
            let sum = |of: fn(&Plan) -> u64| plans.iter().map(of).fold(0, u64::saturating_add);
            let most = self.shape.number_ios.unwrap_or(u64::MAX);
            let (limit, bytes) = (sum(|plan| plan.limit).min(most), sum(|plan| plan.bytes));
            plans.iter_mut().for_each(|plan| (plan.limit, plan.bytes) = (limit, bytes));
        }
        Ok(plans)
    }

    /// Fits the job to a target of `length` bytes in blocks of `block_size` bytes.
    ///
    /// Errors: options that contradict each other, or that the target cannot satisfy.
    pub fn plan(&self, length: u64, block_size: u32) -> Result<Plan, OptionError> {
        self.files.check()?;
        self.check_verify()?;
        self.shape.check(self.io_depth)?;
        self.watch.check(&self.shape.rate, &self.shape.rate_iops)?;
        self.check_sizes(block_size.max(1))?;
        let step = u64::from(self.least_block_size());
        let start = self.offset.of(length) / step * step;
        if start >= length {
            return Err(wrong("offset", format!("{start} lies past the target's {length} bytes")));
        }
        let room = self.file_size.unwrap_or(length).min(length).saturating_sub(start);
        let range = self.size_in(length).unwrap_or(room);
        let last = self.offset_increment.saturating_mul(u64::from(self.num_jobs.max(1)) - 1);
        if range.saturating_add(last) > length - start {
            let option = if last > 0 { "offset_increment" } else { "size" };
            return Err(wrong(
                option,
                format!(
                    "{range} bytes from offset {start} (of the last clone: plus {last}) go past the target's {length} bytes"
                ),
            ));
        }
        let blocks = range / step;
        if blocks == 0 || range < u64::from(self.block_size) {
            let size = self.block_size;
            let text = format!("the range of {range} bytes holds no block of {size} bytes");
            return Err(wrong("size", text));
        }
        let time_based = self.is_time_based();
        if time_based && self.runtime.is_none() {
            return Err(wrong("time_based", "needs a runtime, such as runtime=10".to_owned()));
        }
        let loops = u64::from(self.loops);
        let (bytes, mut limit) = match self.io_size {
            _ if time_based => (u64::MAX, u64::MAX),
            None => ((range - range % step).saturating_mul(loops), blocks.saturating_mul(loops)),
            Some(bytes) => {
                (bytes.saturating_mul(loops), (bytes / step).max(1).saturating_mul(loops))
            }
        };
        if self.shape.sizes.is_some() && limit != u64::MAX {
            limit = (bytes as f64 / self.mean_block_size()).ceil() as u64;
        }
        limit = limit.min(self.shape.number_ios.unwrap_or(u64::MAX));
        Ok(Plan { start, blocks, range, stride: self.offset_increment, limit, bytes })
    }

    /// The smallest block that the job may move, bytes.
    pub(crate) fn least_block_size(&self) -> u32 {
        let sizes = self.shape.sizes.iter().flatten().map(BlockSizes::min);
        sizes.min().unwrap_or(self.block_size).max(1)
    }

    /// What the job moves in one I/O, in the mean, bytes.
    pub fn mean_block_size(&self) -> f64 {
        let Some([read, write, trim]) = &self.shape.sizes else {
            return f64::from(self.block_size);
        };
        let reads = f64::from(self.reads_in_hundred()) / 100.0;
        match self.rw.trims() {
            true => trim.mean(),
            false => reads * read.mean() + (1.0 - reads) * write.mean(),
        }
    }

    fn check_sizes(&self, block_size: u32) -> Result<(), OptionError> {
        let aligned = self
            .shape
            .align
            .is_none_or(|align| align.iter().all(|align| align.is_multiple_of(block_size)));
        if !aligned {
            return Err(wrong(
                "blockalign",
                format!("is not a multiple of the target's block size of {block_size}"),
            ));
        }
        let fits = match &self.shape.sizes {
            None => self.block_size.is_multiple_of(block_size),
            Some(sizes) => sizes.iter().all(|sizes| sizes.fit(block_size)),
        };
        if !fits {
            let what = self.least_block_size();
            let text =
                format!("{what} is not a multiple of the target's block size of {block_size}");
            return Err(wrong("bs", text));
        }
        Ok(())
    }

    /// Does the job start over until its runtime ends?
    pub fn is_time_based(&self) -> bool {
        self.time_based.unwrap_or(
            self.runtime.is_some()
                && self.size.is_none()
                && self.io_size.is_none()
                && self.file_size.is_none()
                && self.shape.number_ios.is_none()
                && !self.verify.is_on(),
        )
    }
}

/// A job fitted to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// First byte of the first clone's range.
    pub start: u64,
    /// Blocks in each clone's range.
    pub blocks: u64,
    /// Length of each clone's range, bytes.
    pub range: u64,
    /// Bytes from the start of one clone's range to that of the next.
    pub stride: u64,
    /// I/Os that each clone does; `u64::MAX` when only time ends it.
    pub limit: u64,
    /// Bytes that each clone moves; `u64::MAX` when only time or a count ends it.
    pub bytes: u64,
}

fn wrong(option: &str, message: String) -> OptionError {
    OptionError { option: option.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Method;

    fn job(words: &[(&str, &str)]) -> Result<JobOptions, OptionError> {
        let mut job = JobOptions::default();
        for (name, value) in words {
            job.set(name, value)?;
        }
        Ok(job)
    }

    #[test]
    fn fio_words_are_taken() {
        let job = job(&[
            ("readwrite", "randrw"),
            ("bs", "16k"),
            ("iodepth", "32"),
            ("numjobs", "2"),
            ("runtime", "500ms"),
            ("size", "1g"),
            ("io_size", "2g"),
            ("rwmixread", "70"),
            ("randseed", "0x10"),
            ("verify", "crc32c"),
            ("do_verify", "0"),
            ("name", "x"),
        ])
        .expect("all are good words");
        assert_eq!(job.rw, Rw::RandRw);
        assert_eq!((job.block_size, job.io_depth, job.num_jobs), (16_384, 32, 2));
        assert_eq!(job.runtime, Some(Duration::from_millis(500)));
        assert_eq!((job.size, job.io_size), (Some(Size::Bytes(1 << 30)), Some(2 << 30)));
        assert_eq!((job.read_percent, job.seed, job.verify.method), (70, 16, Some(Method::Crc32c)));
        assert!(!job.verify.after && job.name == "x");
        assert_eq!(job.given[0], ("rw", "randrw".to_owned()));
    }

    #[test]
    fn wrong_words_say_what_is_wrong() {
        for (name, value, hint) in [
            ("rww", "read", "no such option"),
            ("rw", "raed", "randread"),
            ("bs", "0", "between"),
            ("iodepth", "0", "between 1 and"),
            ("rwmixread", "101", "between 0 and 100"),
            ("verify", "md6", "crc32c"),
            ("do_verify", "2", "neither 0 nor 1"),
        ] {
            let error = job(&[(name, value)]).expect_err(name);
            assert!(error.to_string().contains(hint), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn fios_null_engine_touches_no_file() {
        for words in [
            [("ioengine", "null"), ("filename", "/dev/sda")],
            [("filename", "/dev/sda"), ("ioengine", "null")],
        ] {
            assert_eq!(job(&words).expect("good words").targets(), ["null"]);
        }
        let other = job(&[("ioengine", "libaio"), ("filename", "/dev/sda")]).expect("good words");
        assert_eq!(other.targets(), ["/dev/sda"]);
    }

    #[test]
    fn no_option_appears_twice() {
        let mut names: Vec<&str> =
            OPTIONS.iter().flat_map(|o| o.aliases.iter().chain([&o.name])).copied().collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_plan_fits_the_target() {
        let plan = |words: &[(&str, &str)]| job(words).and_then(|job| job.plan(1 << 20, 512));
        assert_eq!(
            plan(&[]),
            Ok(Plan {
                start: 0,
                blocks: 256,
                range: 1 << 20,
                stride: 0,
                limit: 256,
                bytes: 1 << 20
            })
        );
        assert_eq!(
            plan(&[("offset", "50%"), ("runtime", "1")]).map(|p| (p.start, p.blocks, p.limit)),
            Ok((1 << 19, 128, u64::MAX))
        );
        assert_eq!(
            plan(&[("size", "64k"), ("runtime", "1")]).map(|p| (p.blocks, p.limit)),
            Ok((16, 16))
        );
        assert_eq!(plan(&[("size", "64k"), ("io_size", "128k")]).map(|p| p.limit), Ok(32));
        assert_eq!(plan(&[("verify", "crc32c"), ("rw", "write"), ("numjobs", "2")]), plan(&[]));
        for bad in [
            &[("bs", "1000")][..],
            &[("size", "2m")],
            &[("offset", "1m")],
            &[("size", "1k")],
            &[("time_based", "1")],
            &[("verify_only", "1")],
        ] {
            assert!(plan(bad).is_err(), "{bad:?}");
        }
    }
}
