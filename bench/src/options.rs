//! A job in fio's words.
//!
//! [`OPTIONS`] is the one table of what a job may say: the command line and, later, job files are
//! both read through [`JobOptions::set`], so that a word means the same everywhere.

use std::fmt;
use std::time::Duration;

use crate::pattern::Order;
use crate::units::{Size, parse_bytes, parse_number, parse_size, parse_time};

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
    pub verify: Verify,
    /// Read back and check after writing.
    pub do_verify: bool,
    /// Only read and check what an earlier run wrote with the same options.
    pub verify_only: bool,
    /// Stop at the first mismatch.
    pub verify_fatal: bool,
    /// Open files with O_DIRECT.
    pub direct: bool,
    /// Report the clones of a job as one.
    pub group_reporting: bool,
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
            verify: Verify::Off,
            do_verify: true,
            verify_only: false,
            verify_fatal: false,
            direct: false,
            group_reporting: false,
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
        }
    }

    /// Are offsets random?
    pub fn is_random(self) -> bool {
        matches!(self, Rw::RandRead | Rw::RandWrite | Rw::RandRw)
    }

    /// Does it write?
    pub fn writes(self) -> bool {
        !matches!(self, Rw::Read | Rw::RandRead)
    }

    /// Does it both read and write?
    pub fn is_mixed(self) -> bool {
        matches!(self, Rw::ReadWrite | Rw::RandRw)
    }
}

/// fio's `verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Contents are not checked.
    Off,
    /// Each block carries a header with a CRC-32C over the block; see [`crate::verify`].
    Crc32c,
}

/// One word that a job understands.
pub struct OptionSpec {
    /// fio's name.
    pub name: &'static str,
    /// fio's other names for it.
    pub aliases: &'static [&'static str],
    /// What stands for the value in help.
    pub value: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// The value may be left out and is then `1`.
    pub switch: bool,
    set: fn(&mut JobOptions, &str) -> Result<(), String>,
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

macro_rules! option {
    ($name:literal $aliases:tt, $value:literal, $help:literal, $set:expr) => {
        OptionSpec {
            name: $name,
            aliases: &$aliases,
            value: $value,
            help: $help,
            switch: false,
            set: $set,
        }
    };
}

macro_rules! switch {
    ($name:literal, $help:literal, $set:expr) => {
        OptionSpec {
            name: $name,
            aliases: &[],
            value: "0|1",
            help: $help,
            switch: true,
            set: |job, word| {
                let set: fn(&mut JobOptions, bool) = $set;
                parse_bool(word).map(|on| set(job, on))
            },
        }
    };
}

/// Every option of a job, in the order in which help shows them.
pub static OPTIONS: &[OptionSpec] = &[
    option!(
        "rw"["readwrite"],
        "MODE",
        "read, write, randread, randwrite, rw or randrw",
        |job, word| { parse_rw(word).map(|rw| job.rw = rw) }
    ),
    option!("bs"["blocksize"], "SIZE", "Bytes per I/O [4k]", |job, word| {
        parse_block_size(word).map(|bytes| job.block_size = bytes)
    }),
    option!("iodepth"[], "N", "I/Os in flight per job [1]", |job, word| {
        parse_range(word, 1, 65_536).map(|depth| job.io_depth = depth)
    }),
    option!("numjobs"[], "N", "Clones of the job, each on a core of its own [1]", |job, word| {
        parse_range(word, 1, 1024).map(|jobs| job.num_jobs = jobs)
    }),
    option!("runtime"[], "TIME", "End after this time (seconds, or 500ms, 2m, ...)", |job, word| {
        parse_runtime(word).map(|time| job.runtime = time)
    }),
    switch!("time_based", "Start over until runtime ends [when no size is given]", |job, on| {
        job.time_based = Some(on);
    }),
    option!("ramp_time"[], "TIME", "Run this long before counting [0]", |job, word| {
        parse_time(word).map(|time| job.ramp_time = time)
    }),
    option!("size"[], "SIZE", "Length of the job's range: bytes or % [the whole target]", |job, word| {
        parse_size(word).map(|size| job.size = Some(size))
    }),
    option!("offset"[], "SIZE", "Start of the job's range: bytes or % [0]", |job, word| {
        parse_size(word).map(|offset| job.offset = offset)
    }),
    option!("io_size"["io_limit"], "SIZE", "Bytes to move [size]", |job, word| {
        parse_bytes(word).map(|bytes| job.io_size = Some(bytes).filter(|&b| b > 0))
    }),
    option!("rwmixread"[], "PERCENT", "Reads in a hundred of a mix [50]", |job, word| {
        parse_range(word, 0, 100).map(|percent| job.read_percent = percent as u8)
    }),
    option!("rwmixwrite"[], "PERCENT", "Writes in a hundred of a mix [50]", |job, word| {
        parse_range(word, 0, 100).map(|percent| job.read_percent = 100 - percent as u8)
    }),
    switch!("norandommap", "Random blocks may repeat before all were touched [0]", |job, on| {
        job.no_random_map = on;
    }),
    option!("randseed"[], "N", "Seed of order and contents [the same each run]", |job, word| {
        parse_number(word).map(|seed| job.seed = seed)
    }),
    option!("verify"[], "HASH", "crc32c: write checkable blocks, then read them back; 0: off", |job, word| {
        parse_verify(word).map(|verify| job.verify = verify)
    }),
    switch!("do_verify", "Read back and check after writing [1]", |job, on| job.do_verify = on),
    switch!("verify_only", "Write nothing: check what an earlier run wrote [0]", |job, on| {
        job.verify_only = on;
    }),
    switch!("verify_fatal", "Stop at the first mismatch [0]", |job, on| job.verify_fatal = on),
    switch!("direct", "Open a file target with O_DIRECT [0]", |job, on| job.direct = on),
    switch!("group_reporting", "Report the clones of a job as one [0]", |job, on| {
        job.group_reporting = on;
    }),
    option!("name"[], "NAME", "The job's name in reports", |job, word| {
        job.name = word.to_owned();
        Ok(())
    }),
];

impl JobOptions {
    /// Takes one of fio's words. Later words overrule earlier ones.
    ///
    /// Errors: an unknown name, or a value that the option cannot take.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        let fail = |message| OptionError { option: name.to_owned(), message };
        let spec = OPTIONS
            .iter()
            .find(|spec| spec.name == name || spec.aliases.contains(&name))
            .ok_or_else(|| fail("no such option".to_owned()))?;
        (spec.set)(self, value).map_err(fail)?;
        self.given.push((spec.name, value.to_owned()));
        Ok(())
    }

    /// Was the option given by name?
    pub fn is_given(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == name)
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
            Rw::Write | Rw::RandWrite => 0,
            Rw::ReadWrite | Rw::RandRw => self.read_percent,
        }
    }

    /// Does the job check blocks that an earlier run wrote, as it reads them?
    pub fn checks_at_once(&self) -> bool {
        self.verify != Verify::Off && (self.verify_only || !self.rw.writes())
    }

    /// Does the job, once it has written, read its blocks back to check them?
    pub fn reads_back(&self) -> bool {
        self.verify != Verify::Off && self.do_verify && !self.checks_at_once()
    }

    /// Fits the job to a target of `length` bytes in blocks of `block_size` bytes.
    ///
    /// Errors: options that contradict each other, or that the target cannot satisfy.
    pub fn plan(&self, length: u64, block_size: u32) -> Result<Plan, OptionError> {
        self.check_verify()?;
        if !self.block_size.is_multiple_of(block_size.max(1)) {
            return Err(wrong(
                "bs",
                format!(
                    "{} is not a multiple of the target's block size of {block_size}",
                    self.block_size
                ),
            ));
        }
        let step = u64::from(self.block_size);
        let start = self.offset.of(length) / step * step;
        if start >= length {
            return Err(wrong("offset", format!("{start} lies past the target's {length} bytes")));
        }
        let room = length - start;
        let range = self.size.map_or(room, |size| size.of(length));
        if range > room {
            return Err(wrong(
                "size",
                format!("{range} bytes from offset {start} go past the target's {length} bytes"),
            ));
        }
        let jobs = u64::from(if self.verify == Verify::Off { 1 } else { self.num_jobs });
        let blocks = range / step / jobs;
        if blocks == 0 {
            return Err(wrong(
                "size",
                format!("the range of {range} bytes holds no block of {step} bytes for each job"),
            ));
        }
        let time_based = self.is_time_based();
        if time_based && self.runtime.is_none() {
            return Err(wrong("time_based", "needs a runtime, such as runtime=10".to_owned()));
        }
        let limit = match self.io_size {
            _ if time_based => u64::MAX,
            None => blocks,
            Some(bytes) => (bytes / step).max(1),
        };
        Ok(Plan { start, blocks, stride: if jobs == 1 { 0 } else { blocks * step }, limit })
    }

    /// Does the job start over until its runtime ends?
    pub fn is_time_based(&self) -> bool {
        self.time_based.unwrap_or(
            self.runtime.is_some()
                && self.size.is_none()
                && self.io_size.is_none()
                && self.verify == Verify::Off,
        )
    }

    fn check_verify(&self) -> Result<(), OptionError> {
        if self.verify == Verify::Off {
            return match self.verify_only {
                true => Err(wrong("verify_only", "needs verify=crc32c".to_owned())),
                false => Ok(()),
            };
        }
        if self.no_random_map && self.rw.is_random() {
            return Err(wrong(
                "norandommap",
                "blocks that repeat cannot be verified; leave it out".to_owned(),
            ));
        }
        if self.time_based == Some(true) {
            return Err(wrong(
                "time_based",
                "a verified job makes one pass; leave it out and use size".to_owned(),
            ));
        }
        if self.io_size.is_some()
            && self.size.is_none_or(|size| match size {
                Size::Bytes(size) => self.io_size > Some(size),
                Size::Percent(_) => true,
            })
        {
            return Err(wrong(
                "io_size",
                "a verified job makes one pass; give a size at least as large".to_owned(),
            ));
        }
        if self.block_size < 512 {
            return Err(wrong("bs", "a verified block is at least 512 bytes".to_owned()));
        }
        Ok(())
    }
}

/// A job fitted to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// First byte of the first clone's range.
    pub start: u64,
    /// Blocks in each clone's range.
    pub blocks: u64,
    /// Bytes from one clone's range to the next: 0, or the range when each has its own (verify).
    pub stride: u64,
    /// I/Os that each clone does; `u64::MAX` when only time ends it.
    pub limit: u64,
}

fn wrong(option: &str, message: String) -> OptionError {
    OptionError { option: option.to_owned(), message }
}

fn parse_rw(word: &str) -> Result<Rw, String> {
    const ALL: [Rw; 6] =
        [Rw::Read, Rw::Write, Rw::RandRead, Rw::RandWrite, Rw::ReadWrite, Rw::RandRw];
    let found = ALL.into_iter().find(|rw| rw.word() == word);
    found.or((word == "readwrite").then_some(Rw::ReadWrite)).ok_or_else(|| {
        format!("`{word}` is none of read, write, randread, randwrite, rw (readwrite), randrw")
    })
}

fn parse_block_size(word: &str) -> Result<u32, String> {
    let bytes = parse_bytes(word)?;
    match u32::try_from(bytes) {
        Ok(size) if size > 0 && size <= 1 << 30 => Ok(size),
        _ => Err(format!("`{word}` is not between 1 byte and 1 GiB")),
    }
}

fn parse_range(word: &str, low: u32, high: u32) -> Result<u32, String> {
    match parse_number(word)? {
        value if (u64::from(low)..=u64::from(high)).contains(&value) => Ok(value as u32),
        _ => Err(format!("`{word}` is not between {low} and {high}")),
    }
}

fn parse_runtime(word: &str) -> Result<Option<Duration>, String> {
    parse_time(word).map(|time| Some(time).filter(|time| !time.is_zero()))
}

fn parse_bool(word: &str) -> Result<bool, String> {
    match word {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!("`{word}` is neither 0 nor 1")),
    }
}

fn parse_verify(word: &str) -> Result<Verify, String> {
    match word {
        "0" | "none" => Ok(Verify::Off),
        "crc32c" | "crc32c-intel" => Ok(Verify::Crc32c),
        _ => Err(format!("`{word}` is not a check that we do; use crc32c, or 0 for none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!((job.read_percent, job.seed, job.verify), (70, 16, Verify::Crc32c));
        assert!(!job.do_verify && job.name == "x");
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
        assert_eq!(plan(&[]), Ok(Plan { start: 0, blocks: 256, stride: 0, limit: 256 }));
        assert_eq!(
            plan(&[("offset", "50%"), ("runtime", "1")]).map(|p| (p.start, p.blocks, p.limit)),
            Ok((1 << 19, 128, u64::MAX))
        );
        assert_eq!(
            plan(&[("size", "64k"), ("runtime", "1")]).map(|p| (p.blocks, p.limit)),
            Ok((16, 16))
        );
        assert_eq!(plan(&[("size", "64k"), ("io_size", "128k")]).map(|p| p.limit), Ok(32));
        assert_eq!(
            plan(&[("verify", "crc32c"), ("rw", "write"), ("numjobs", "2")]),
            Ok(Plan { start: 0, blocks: 128, stride: 1 << 19, limit: 128 })
        );
        for bad in [
            &[("bs", "1000")][..],
            &[("size", "2m")],
            &[("offset", "1m")],
            &[("size", "1k")],
            &[("time_based", "1")],
            &[("verify_only", "1")],
            &[("verify", "crc32c"), ("rw", "randwrite"), ("norandommap", "1")],
            &[("verify", "crc32c"), ("time_based", "1"), ("runtime", "1")],
        ] {
            assert!(plan(bad).is_err(), "{bad:?}");
        }
    }
}
