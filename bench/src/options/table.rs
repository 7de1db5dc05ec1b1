//! The options of a job, and how each reads its value.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::{BlockSizes, Contents, JobOptions, Rw, files, pace_table, shape, watch_table};
use crate::units::{parse_bytes, parse_number, parse_size, parse_time};
use crate::verify::{Method, Pattern};

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
    /// What the option means where its value is left out; `None`: it needs one.
    pub bare: Option<&'static str>,
    pub(super) set: fn(&mut JobOptions, &str) -> Result<(), String>,
}

impl OptionSpec {
    /// The option of that name or alias.
    pub fn find(name: &str) -> Option<&'static OptionSpec> {
        let mut all = OPTIONS.iter().copied();
        all.find(|spec| spec.name == name || spec.aliases.contains(&name))
    }

    /// Reads `value` into `job`.
    ///
    /// Errors: what is wrong with the value.
    pub fn set(&self, job: &mut JobOptions, value: &str) -> Result<(), String> {
        (self.set)(job, value)
    }
}

macro_rules! option {
    ($name:literal $aliases:tt bare $bare:literal, $value:literal, $help:literal, $set:expr) => {
        OptionSpec {
            name: $name,
            aliases: &$aliases,
            value: $value,
            help: $help,
            bare: Some($bare),
            set: $set,
        }
    };
    ($name:literal $aliases:tt, $value:literal, $help:literal, $set:expr) => {
        OptionSpec {
            name: $name,
            aliases: &$aliases,
            value: $value,
            help: $help,
            bare: None,
            set: $set,
        }
    };
}

macro_rules! switch {
    ($name:literal, $help:literal, $set:expr) => {
        switch!($name, [], $help, $set)
    };
    ($name:literal, $aliases:tt, $help:literal, $set:expr) => {
        OptionSpec {
            name: $name,
            aliases: &$aliases,
            value: "0|1",
            help: $help,
            bare: Some("1"),
            set: |job, word| {
                let set: fn(&mut $crate::options::JobOptions, bool) = $set;
                $crate::options::table::parse_bool(word).map(|on| set(job, on))
            },
        }
    };
}

pub(super) use {option, switch};

/// Every option of a job, in the order in which help shows them.
pub static OPTIONS: LazyLock<Vec<&'static OptionSpec>> = LazyLock::new(|| {
    let (files, pace, watch) = (files::FILES, pace_table::PACE, watch_table::WATCH);
    JOB.iter().chain(files).chain(pace).chain(watch).collect()
});

/// What a job does.
static JOB: &[OptionSpec] = &[
    option!(
        "rw"["readwrite"],
        "MODE",
        "read, write, trim, rw, trimwrite, or at random: randread, randwrite, randtrim, randrw, randtrimwrite; then :N, the I/Os for each random place, or the bytes left out after each sequential one",
        |job, word| { set_rw(job, word) }
    ),
    option!("rw_sequencer"[], "HOW", "With randread:N and such, where the I/Os after the first go: sequential, identical [sequential]", |job, word| {
        job.shape.run_is_identical = match word {
            "sequential" => false,
            "identical" => true,
            _ => return Err(format!("`{word}` is neither sequential nor identical")),
        };
        Ok(())
    }),
    option!(
        "bs"["blocksize"],
        "SIZE",
        "Bytes per I/O; or of reads,writes,trims [4k]",
        |job, word| {
            let before = job.shape.sizes.clone().unwrap_or([0, 1, 2].map(|_| one(job.block_size)));
            let sizes = shape::triple(word, before, |part| shape::block_size(part).map(one));
            sizes.map(|sizes| job.set_sizes(sizes))
        }
    ),
    option!(
        "bsrange"["blocksize_range"],
        "RANGE",
        "Bytes per I/O, from-to; or of reads,writes,trims",
        |job, word| {
            let before = [0, 1, 2].map(|_| one(job.block_size));
            shape::triple(word, before, shape::range).map(|sizes| job.set_sizes(sizes))
        }
    ),
    option!("bssplit"[], "LIST", "Sizes and their shares, such as 4k/60:64k/40; or of reads,writes,trims", |job, word| {
        let before = [0, 1, 2].map(|_| one(job.block_size));
        shape::triple(word, before, shape::split).map(|sizes| job.set_sizes(sizes))
    }),
    option!(
        "blockalign"["ba"],
        "SIZE",
        "What random offsets are multiples of [the least bs]",
        |job, word| {
            shape::triple(word, [4096; 3], shape::block_size)
                .map(|align| job.shape.align = Some(align))
        }
    ),
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
    option!("verify"[], "HASH", "Write blocks that can be checked, and check them: crc32c, xxhash, sha256, meta, pattern, ... [0]", |job, word| {
        Method::parse(word).map(|method| job.verify.method = method)
    }),
    option!(
        "verify_pattern"[],
        "PATTERN",
        "What verified blocks are filled with: 0x hex, decimal, \"text\", %o (their offset)",
        |job, word| {
            Pattern::parse(word).map(|pattern| job.verify.pattern = Some(Arc::new(pattern)))
        }
    ),
    option!("verify_interval"[], "SIZE", "Bytes for each header [what all blocks have in common]", |job, word| {
        shape::block_size(word).map(|size| job.verify.interval = Some(size))
    }),
    option!("verify_offset"[], "SIZE", "Where in each interval the header stands [0]", |job, word| {
        parse_bytes(word).map(|at| job.verify.offset = u32::try_from(at).unwrap_or(u32::MAX))
    }),
    switch!("do_verify", "Read back and check after writing [1]", |job, on| job.verify.after = on),
    switch!("verify_only", "Write nothing: check what an earlier run wrote [0]", |job, on| {
        job.verify.only = on;
    }),
    switch!("verify_fatal", "Stop at the first mismatch [0]", |job, on| job.verify.fatal = on),
    option!("verify_backlog"[], "N", "Check after each so many writes [at the end]", |job, word| {
        parse_range(word, 0, 1 << 24).map(|writes| job.verify.backlog = writes)
    }),
    option!("verify_backlog_batch"[], "N", "Blocks checked then [verify_backlog]", |job, word| {
        parse_range(word, 0, u32::MAX)
            .map(|blocks| job.verify.backlog_batch = Some(blocks).filter(|&blocks| blocks > 0))
    }),
    switch!(
        "verify_state_save",
        "Keep the log of writes in a file that outlives a kill [0]",
        |job, on| {
            job.verify.state_save = on;
        }
    ),
    switch!("verify_state_load", "Check what the log of an earlier run says [0]", |job, on| {
        job.verify.state_load = on;
    }),
    option!("verify_state"[], "FILE", "That log [local-NAME-0-verify.state]", |job, word| {
        job.verify.state = Some(PathBuf::from(word)).filter(|path| !path.as_os_str().is_empty());
        Ok(())
    }),
    switch!("experimental_verify", "fio's word; what is checked is the same either way", |_, _| ()),
    switch!("trim_verify_zero", "What was trimmed must read as zeroes [1]", |job, on| {
        job.verify.trims_to_zero = on;
    }),
    switch!("direct", "Open a file target with O_DIRECT [0]", |job, on| job.direct = on),
    option!("random_distribution"[], "DIST", "random, zipf:THETA, pareto:H, normal:DEV, zoned:LIST or zoned_abs:LIST [random]", |job, word| {
        shape::distribution(word).map(|distribution| job.shape.distribution = distribution)
    }),
    option!("percentage_random"[], "PERCENT", "Random offsets in a hundred of a random job [100]", |job, word| {
        let read = |part: &str| parse_range(part, 0, 100).map(|percent| percent as u8);
        shape::triple(word, [100; 3], read).map(|percent| job.shape.random_percent = percent)
    }),
    switch!("randrepeat", "The same seed each run, where none is given [1]", |job, on| job
        .rand_repeat =
        on),
    switch!("allrandrepeat", "The same [1]", |job, on| job.rand_repeat = on),
    option!("offset_increment"[], "SIZE", "Bytes between the ranges of clones [0]", |job, word| {
        parse_bytes(word).map(|bytes| job.offset_increment = bytes)
    }),
    option!("filesize"[], "SIZE", "The length of a file that is made; size's default", |job, word| {
        parse_bytes(word).map(|bytes| job.file_size = Some(bytes).filter(|&b| b > 0))
    }),
    option!("number_ios"[], "N", "I/Os of each clone, at most", |job, word| {
        parse_number(word).map(|ios| job.shape.number_ios = Some(ios).filter(|&ios| ios > 0))
    }),
    option!("loops"[], "N", "Do the job so many times over [1]", |job, word| {
        parse_range(word, 1, u32::MAX).map(|loops| job.loops = loops)
    }),
    option!(
        "startdelay"["start_delay"],
        "TIME",
        "Wait this long before the start [0]",
        |job, word| { parse_time(word).map(|time| job.shape.start_delay = time) }
    ),
    option!(
        "iodepth_batch"["iodepth_batch_submit"],
        "N",
        "I/Os submitted together, at most",
        |job, word| { parse_range(word, 1, 65_536).map(|batch| job.shape.batch = Some(batch)) }
    ),
    option!(
        "iodepth_batch_complete_min"["iodepth_batch_complete"],
        "N",
        "Refill a full queue after so many completions [1]",
        |job, word| {
            parse_range(word, 0, 65_536).map(|least| job.shape.batch_complete_min = least.max(1))
        }
    ),
    option!("iodepth_low"[], "N", "Drain a full queue to this depth before it is filled again", |job, word| {
        parse_range(word, 0, 65_536).map(|low| job.shape.depth_low = Some(low).filter(|&low| low > 0))
    }),
    option!("rate"[], "SIZE", "Bytes a second of each clone; or of reads,writes,trims", |job, word| {
        shape::rates(word, parse_bytes).map(|rate| job.shape.rate = rate)
    }),
    option!("rate_iops"[], "N", "I/Os a second of each clone; or of reads,writes,trims", |job, word| {
        shape::rates(word, parse_bytes).map(|rate| job.shape.rate_iops = rate)
    }),
    option!("rate_process"[], "WORD", "Under a rate: linear or poisson [linear]", |job, word| {
        match word {
            "linear" => job.shape.poisson = false,
            "poisson" => job.shape.poisson = true,
            _ => return Err(format!("`{word}` is neither linear nor poisson")),
        }
        Ok(())
    }),
    option!("thinktime"[], "TIME", "Rest so long after each thinktime_blocks I/Os (us) [0]", |job, word| {
        parse_time_us(word).map(|time| job.shape.think = time)
    }),
    option!("thinktime_blocks"[], "N", "I/Os between rests [1]", |job, word| {
        parse_range(word, 1, u32::MAX).map(|blocks| job.shape.think_blocks = Some(blocks))
    }),
    option!("fsync"[], "N", "Flush after each so many writes [0]", |job, word| {
        parse_range(word, 0, u32::MAX).map(|writes| job.shape.fsync = writes)
    }),
    option!("fdatasync"[], "N", "The same", |job, word| {
        parse_range(word, 0, u32::MAX).map(|writes| job.shape.fsync = writes)
    }),
    switch!("end_fsync", "Flush at the end [0]", |job, on| job.shape.end_fsync = on),
    switch!("zero_buffers", "Write zeroes [0]", |job, on| {
        job.contents = if on { Contents::Zero } else { Contents::Random };
    }),
    switch!("refill_buffers", "New contents for each write [0]", |job, on| job.shape.refill = on),
    option!("buffer_pattern"[], "PATTERN", "Write this, such as 0xdeadbeef or \"text\"", |job, word| {
        shape::pattern(word).map(|bytes| job.contents = Contents::Pattern(bytes))
    }),
    option!("buffer_compress_percentage"[], "PERCENT", "Zeroes in a hundred bytes written", |job, word| {
        parse_range(word, 0, 100).map(|percent| job.contents = Contents::Compressible(percent as u8))
    }),
    option!("continue_on_error"[], "WORD", "Go on after I/Os that fail: none, read, write, io, all [none]", |job, word| {
        shape::continued(word).map(|on| job.shape.continue_on_error = on)
    }),
    option!("percentile_list"[], "LIST", "Percentiles of the JSON, such as 50:99:99.9", |job, word| {
        shape::percentiles(word).map(|list| job.percentiles = list)
    }),
    switch!("group_reporting", "Report the clones of a job as one [0]", |job, on| {
        job.group_reporting = on;
    }),
    option!("ioengine"[], "ENGINE", "null: the null target, whatever filename says; else ignored", |job, word| {
        parse_engine(word).map(|null| job.null_engine = null)
    }),
    switch!("buffered", "The opposite of direct [1]", |job, on| job.direct = !on),
    switch!(
        "stonewall",
        ["wait_for_previous"],
        "Begin when all jobs before have ended [0]",
        |job, on| {
            job.stonewall = on;
        }
    ),
    switch!(
        "new_group",
        "Report this job and the next ones as a group of their own [0]",
        |job, on| {
            job.new_group = on;
        }
    ),
    switch!("exitall", "End the jobs beside this one when it ends [0]", |job, on| job.exit_all =
        on),
    switch!("thread", "fio's word; jobs always are threads", |_, _| ()),
    option!("cpus_allowed"[], "LIST", "Processors for the clones, in turn, such as 0-3,6", |job, word| {
        parse_cpus(word).map(|cpus| job.cpus = cpus)
    }),
    option!("cpus_allowed_policy"[], "POLICY", "split; each clone always has one processor", |_, word| {
        match word {
            "split" => Ok(()),
            "shared" => Err("clones are pinned, each to one processor of cpus_allowed: `split`".to_owned()),
            _ => Err(format!("`{word}` is not split")),
        }
    }),
    option!("description"[], "TEXT", "Words about the job; change nothing", |_, _| Ok(())),
    option!("name"[], "NAME", "The job's name in reports", |job, word| {
        job.name = word.to_owned();
        Ok(())
    }),
];

/// A mode, and behind a `:` what fio has there.
fn set_rw(job: &mut JobOptions, word: &str) -> Result<(), String> {
    let (mode, more) = word.split_once(':').map_or((word, None), |(mode, more)| (mode, Some(more)));
    job.rw = parse_rw(mode)?;
    (job.shape.run, job.shape.hole) = match more {
        None => (1, 0),
        Some(more) if job.rw.is_random() => (parse_range(more, 1, u32::MAX)?, 0),
        Some(more) if more.starts_with('-') => {
            return Err(format!("`{more}`: going backwards is not offered"));
        }
        Some(more) => (1, parse_bytes(more)?),
    };
    Ok(())
}

fn parse_rw(word: &str) -> Result<Rw, String> {
    const ALL: [Rw; 10] = [
        Rw::Read,
        Rw::Write,
        Rw::RandRead,
        Rw::RandWrite,
        Rw::ReadWrite,
        Rw::RandRw,
        Rw::Trim,
        Rw::RandTrim,
        Rw::TrimWrite,
        Rw::RandTrimWrite,
    ];
    let found = ALL.into_iter().find(|rw| rw.word() == word);
    found.or((word == "readwrite").then_some(Rw::ReadWrite)).ok_or_else(|| {
        format!("`{word}` is none of read, write, trim, rw (readwrite), trimwrite, randread, randwrite, randtrim, randrw, randtrimwrite")
    })
}

fn one(size: u32) -> BlockSizes {
    BlockSizes::Range(size, size)
}

/// A time that is in microseconds where it has no unit.
pub(super) fn parse_time_us(word: &str) -> Result<Duration, String> {
    let bare = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    if bare { parse_time(&format!("{word}us")) } else { parse_time(word) }
}

pub(super) fn parse_range(word: &str, low: u32, high: u32) -> Result<u32, String> {
    match parse_number(word)? {
        value if (u64::from(low)..=u64::from(high)).contains(&value) => Ok(value as u32),
        _ => Err(format!("`{word}` is not between {low} and {high}")),
    }
}

fn parse_runtime(word: &str) -> Result<Option<Duration>, String> {
    parse_time(word).map(|time| Some(time).filter(|time| !time.is_zero()))
}

pub(super) fn parse_bool(word: &str) -> Result<bool, String> {
    match word {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!("`{word}` is neither 0 nor 1")),
    }
}

/// Is fio's `ioengine` the one that does nothing? The others all mean: do the I/O, which the
/// target does in its own way.
fn parse_engine(word: &str) -> Result<bool, String> {
    const DONE: [&str; 10] = [
        "sync", "psync", "vsync", "pvsync", "pvsync2", "libaio", "posixaio", "io_uring", "mmap",
        "nvme",
    ];
    match word {
        "null" => Ok(true),
        _ if DONE.contains(&word) => Ok(false),
        _ => Err(format!("`{word}` is not an engine whose work a target of ours does")),
    }
}

/// A list such as `0-3,6` or `0:2`.
fn parse_cpus(word: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("`{word}` is not a list of processors such as 0-3,6");
    let number = |word: &str| match word.trim().parse::<usize>() {
        Ok(cpu) if cpu < 4096 => Ok(cpu),
        _ => Err(wrong()),
    };
    let mut cpus = Vec::new();
    for part in word.split([',', ':']) {
        match part.split_once('-') {
            Some((low, high)) => cpus.extend(number(low)?..=number(high)?),
            None => cpus.push(number(part)?),
        }
    }
    if cpus.is_empty() { Err(wrong()) } else { Ok(cpus) }
}
