//! Jobs from options to report, over the null, memory and file drivers.

mod faulty;
mod verify;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use oxblock_bench::options::JobOptions;
use oxblock_bench::report::Report;
use oxblock_bench::run::{Session, Snapshot, lay_out, run};
use oxblock_bench::stats::Direction;
use oxblock_bench::{json, text};
use oxblock_drivers::file::{self, FileOptions};
use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_drivers::null::{self, NullOptions};
use oxblock_engine::{
    Busy, Core, Driver, Engine, Error, ErrorKind, Fault, Limits, LocalFuture, Node, Options, Pass,
    Queue, Request, Sleep, Token,
};
use oxblock_mem::counting_alloc::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn options(words: &[(&str, &str)]) -> JobOptions {
    let mut options = JobOptions::default();
    for (name, value) in words {
        options.set(name, value).expect("a good word");
    }
    options
}

/// Reactors spin: engines that ran side by side would only wait for each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs jobs one after the other over one driver, with a core for each of two clones.
fn run_all(driver: Box<dyn Driver>, jobs: Vec<JobOptions>) -> Vec<Result<Report, Error>> {
    let _alone = alone();
    let engine = Engine::with_cores(2, Options::default()).expect("an engine");
    let node = Node::new("target", driver);
    let stop = Arc::new(AtomicBool::new(false));
    let session = Session {
        engine: &engine,
        node: &node,
        target: "target",
        cores: &[0, 1],
        serving: &[],
        stop: &stop,
    };
    let reports = jobs.into_iter().map(|job| run(&session, job, &mut |_| {})).collect();
    engine.shutdown().expect("an orderly end");
    reports
}

fn run_one(driver: Box<dyn Driver>, words: &[(&str, &str)]) -> Report {
    run_all(driver, vec![options(words)]).remove(0).expect("a run")
}

fn null_driver() -> Box<dyn Driver> {
    null::open(NullOptions::default()).expect("a null driver")
}

fn memory_driver(size: u64) -> Box<dyn Driver> {
    memory::open(MemoryOptions { size, block_size: 512 }).expect("a memory driver")
}

fn file_driver(path: &Path, size: u64) -> Box<dyn Driver> {
    file::open(FileOptions {
        size: Some(size),
        block_size: 512,
        queue_depth: 64,
        ..FileOptions::new(path)
    })
    .expect("a file driver")
}

#[test]
fn a_sized_job_does_each_block_once() {
    let report = run_one(memory_driver(1 << 20), &[("rw", "randread"), ("iodepth", "8")]);
    let group = report.group();
    assert_eq!((group.read.ios, group.write.ios), (256, 0));
    assert_eq!((group.read.bytes, group.read.latency.count()), (1 << 20, 256));
    assert!(report.is_good() && !report.interrupted);
    assert!(group.read.latency.max() <= group.runtime_ns);
    // Whatever the depth, the size is kept to.
    let report = run_one(memory_driver(1 << 20), &[("rw", "write"), ("iodepth", "1000")]);
    assert_eq!(report.group().write.ios, 256);
}

#[test]
fn io_size_goes_around() {
    let words = [("rw", "randrw"), ("size", "64k"), ("io_size", "1m"), ("iodepth", "3")];
    let group = run_one(memory_driver(1 << 20), &words).group();
    assert_eq!(group.ios(), 256);
    assert!(group.read.ios > 64 && group.write.ios > 64);
}

#[test]
fn runtime_ends_a_job_and_ramp_is_not_counted() {
    let begun = Instant::now();
    let words =
        [("rw", "randread"), ("runtime", "200ms"), ("ramp_time", "200ms"), ("iodepth", "4")];
    let report = run_one(null_driver(), &words);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(20), "{took:?}");
    let counted = Duration::from_nanos(report.group().runtime_ns);
    assert!(counted + Duration::from_millis(150) < took, "{counted:?} of {took:?}");
    assert!(report.group().read.ios > 0);
}

#[test]
fn the_io_path_does_not_allocate() {
    let words = [("rw", "randrw"), ("io_size", "128m"), ("size", "16m"), ("iodepth", "32")];
    for driver in [null_driver(), memory_driver(16 << 20)] {
        let allocations = run_one(driver, &words).group().allocations.expect("this test counts");
        assert_eq!(allocations.count, 0, "in {} I/Os", allocations.ios);
        assert!(allocations.ios > 32_000);
    }
}

#[test]
fn latency_is_that_of_the_device() {
    let driver = null::open(NullOptions { latency_ns: 2_000_000, ..NullOptions::default() });
    let words = [("rw", "randread"), ("runtime", "100ms"), ("iodepth", "2")];
    let read = run_one(driver.expect("a null driver"), &words).group().read;
    // The device counts from the start of the turn that submits, so a single I/O of a core that
    // was interrupted may seem faster.
    let median = read.latency.percentile(50.0);
    assert!((1_900_000..20_000_000).contains(&median), "{median}");
}

#[test]
fn clones_run_side_by_side_and_add_up() {
    let words = [("rw", "randread"), ("numjobs", "3"), ("size", "1m"), ("iodepth", "4")];
    let report = run_one(memory_driver(1 << 20), &words);
    assert_eq!(report.clones.len(), 3);
    assert!(report.clones.iter().all(|clone| clone.read.ios == 256));
    assert_eq!((report.group().read.ios, report.group().merged), (768, 3));
    assert_eq!(text::report(&report).matches("(groupid=0, jobs=1)").count(), 3);
    assert!(text::summary(&[report]).contains("io=3072KiB (3146kB)"));
}

#[test]
fn a_failing_io_ends_the_job_and_is_reported() {
    let group = |words: &[(&str, &str)]| {
        let report = run_one(Box::new(Broken), words);
        assert!(!report.is_good());
        assert!(text::report(&report).contains("media error at offset 524288"));
        report.group()
    };
    let clone = group(&[("rw", "read"), ("iodepth", "4")]);
    let failed = clone.fault.expect("a read failed");
    assert_eq!((failed.fault.offset, failed.direction), (1 << 19, Direction::Read));
    assert_eq!(clone.errno(), ErrorKind::Media.errno());
    assert!(clone.read.ios <= 128);
    // A job that failed to write does not go on to verify.
    let clone = group(&[("rw", "write"), ("verify", "crc32c")]);
    assert!(clone.verify.is_none() && clone.write.ios == 128);
}

/// A device of 1 MiB whose second half is a media error.
struct Broken;

impl Driver for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn limits(&self) -> Limits {
        Limits::new(1 << 20, 512)
    }

    fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        Box::pin(async { Ok(Box::new(Broken) as Box<dyn Queue>) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

impl Queue for Broken {
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        let result = match request.offset {
            0..0x8_0000 => Ok(()),
            offset => Err(Fault::new(ErrorKind::Media, offset)),
        };
        pass.done(request.token, result);
        Ok(())
    }

    fn kick(&mut self, _: &mut Pass) {}

    fn poll(&mut self, _: &mut Pass) -> usize {
        0
    }

    fn cancel(&mut self, _: Token) {}

    fn in_flight(&self) -> usize {
        0
    }

    fn sleep(&mut self) -> Sleep<'_> {
        Sleep::Woken
    }

    fn quiesce(&mut self, _: &mut Pass) -> bool {
        true
    }
}

#[test]
fn options_that_do_not_fit_the_target_are_refused() {
    let words: [&[(&str, &str)]; 3] = [&[("bs", "1000")], &[("size", "2m")], &[("offset", "1m")]];
    for words in words {
        let result = run_all(memory_driver(1 << 20), vec![options(words)]).remove(0);
        let error = result.map(|_| ()).expect_err("refused").to_string();
        assert!(error.contains(words[0].0), "{error}");
    }
}

#[test]
fn stopping_ends_early_with_what_there_is() {
    let _alone = alone();
    let engine = Engine::with_cores(1, Options::default()).expect("an engine");
    let node = Node::new("null", null_driver());
    let stop = Arc::new(AtomicBool::new(false));
    let session = Session {
        engine: &engine,
        node: &node,
        target: "null",
        cores: &[0],
        serving: &[],
        stop: &stop,
    };
    let mut seen = Vec::<Snapshot>::new();
    let begun = Instant::now();
    let job = options(&[("rw", "randread"), ("runtime", "100"), ("iodepth", "4")]);
    let report = run(&session, job, &mut |snapshot| {
        seen.push(snapshot.clone());
        stop.store(seen.len() == 3, std::sync::atomic::Ordering::Relaxed);
    })
    .expect("a run");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(report.interrupted && report.group().read.ios > 0);
    assert!(seen[2].iops[0] > 0.0 && seen[2].done < 0.5);
}

#[test]
fn layout_writes_every_byte() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let size = (1 << 20) + 512;
    let _alone = alone();
    let engine = Engine::with_cores(1, Options::default()).expect("an engine");
    let node = Node::new("file", file_driver(file.path(), size));
    let stop = Arc::new(AtomicBool::new(false));
    let session = Session {
        engine: &engine,
        node: &node,
        target: "file",
        cores: &[0],
        serving: &[],
        stop: &stop,
    };
    lay_out(&session, size, &mut |_| {}).expect("a layout");
    let bytes = std::fs::read(file.path()).expect("its bytes");
    assert_eq!(bytes.len() as u64, size);
    assert!(bytes.chunks(512).all(|sector| sector.iter().any(|&byte| byte != 0)));
}

/// Keys that fio 3.33 prints for each job, and for each direction of it.
const JOB_KEYS: &str = "jobname groupid error eta elapsed job_options read write trim sync \
    job_runtime usr_cpu sys_cpu ctx majf minf iodepth_level iodepth_submit iodepth_complete \
    latency_ns latency_us latency_ms latency_depth latency_target latency_percentile \
    latency_window";
const DIRECTION_KEYS: &str = "io_bytes io_kbytes bw_bytes bw iops runtime total_ios short_ios \
    drop_ios slat_ns clat_ns lat_ns bw_min bw_max bw_agg bw_mean bw_dev bw_samples iops_min \
    iops_max iops_mean iops_stddev iops_samples";

#[test]
fn json_has_the_shape_of_fio() {
    let words = [("rw", "randrw"), ("runtime", "700ms"), ("iodepth", "32"), ("name", "mix")];
    let report = run_one(null_driver(), &words);
    let document = json::document(&[report], SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    // Through text, as a reader gets it.
    let document: serde_json::Value =
        serde_json::from_str(&document.to_string()).expect("good JSON");
    assert_eq!(document["time"], "Thu Jan  1 00:00:01 1970");
    assert!(document["fio version"].as_str().is_some_and(|v| v.starts_with("fio-3.")));
    let job = &document["jobs"][0];
    for key in JOB_KEYS.split_whitespace() {
        assert!(!job[key.replace("job_options", "job options")].is_null(), "no {key}");
    }
    assert_eq!(job["job options"]["rw"], "randrw");
    for way in ["read", "write", "trim"] {
        for key in DIRECTION_KEYS.split_whitespace() {
            assert!(!job[way][key].is_null(), "no {way}.{key}");
        }
    }
    let read = &job["read"];
    for p in ["1.000000", "50.000000", "99.000000", "99.900000", "99.990000"] {
        assert!(read["clat_ns"]["percentile"][p].is_u64(), "no {p}");
    }
    assert_eq!(read["clat_ns"]["N"], read["total_ios"]);
    assert_eq!(read["io_bytes"].as_u64(), read["total_ios"].as_u64().map(|ios| ios * 4096));
    assert_eq!(read["bw_samples"], 1);
    let iops = read["iops"].as_f64().unwrap_or(0.0);
    let by_hand = read["total_ios"].as_f64().unwrap_or(0.0) * 1e9
        / job["oxblock"]["ns_per_io"].as_f64().unwrap_or(1.0);
    assert!(iops > 0.0 && by_hand > 0.0);
    for spread in [&["iodepth_level"][..], &["latency_ns", "latency_us", "latency_ms"]] {
        let sum: f64 = spread
            .iter()
            .flat_map(|key| job[*key].as_object().into_iter().flat_map(|map| map.values()))
            .filter_map(serde_json::Value::as_f64)
            .sum();
        assert!((sum - 100.0).abs() < 0.5, "{spread:?}: {sum}");
    }
    assert!((job["iodepth_level"]["32"].as_f64()).is_some_and(|share| share > 90.0));
    assert_eq!(job["oxblock"]["heap_allocations_per_io"], 0.0);
    assert!(job["oxblock"]["cpu_ns_per_io"].as_f64().is_some_and(|ns| ns > 1.0));
}

#[test]
fn grouped_json_has_one_entry() {
    let run_with = |grouped| {
        let words = [("numjobs", "2"), ("size", "64k"), ("group_reporting", grouped)];
        let report = run_one(memory_driver(1 << 20), &words);
        json::document(&[report], SystemTime::UNIX_EPOCH)["jobs"].as_array().map(Vec::len)
    };
    assert_eq!((run_with("0"), run_with("1")), (Some(2), Some(1)));
}
