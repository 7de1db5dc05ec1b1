//! Jobs with sizes, places and pace of their own, over the null and memory drivers.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use oxblock_bench::json;
use oxblock_bench::options::JobOptions;
use oxblock_bench::report::{CloneReport, Report};
use oxblock_bench::run::{Session, run};
use oxblock_drivers::file::{self, FileOptions};
use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_drivers::null::{self, NullOptions};
use oxblock_engine::{
    Busy, Core, Driver, Engine, Error, ErrorKind, Fault, Limits, LocalFuture, Node, Options, Pass,
    Queue, Request, Sleep, Token,
};
use oxblock_mem::counting_alloc::CountingAllocator;

#[path = "shapes/own_time.rs"]
mod own_time;
#[path = "shapes/watch.rs"]
mod watch;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Reactors spin: engines that ran side by side would only wait for each other.
static ALONE: Mutex<()> = Mutex::new(());

fn try_run(driver: Box<dyn Driver>, words: &str) -> Result<Report, Error> {
    try_run_on(Options::default(), driver, words)
}

fn try_run_on(engine: Options, driver: Box<dyn Driver>, words: &str) -> Result<Report, Error> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut options = JobOptions::default();
    for word in words.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, "1"));
        options.set(name, value).expect("a good word");
    }
    let engine = Engine::with_cores(2, engine).expect("an engine");
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
    let report = run(&session, options, &mut |_| {});
    engine.shutdown().expect("an orderly end");
    report
}

fn memory_driver() -> Box<dyn Driver> {
    memory::open(MemoryOptions { size: 1 << 20, block_size: 512 }).expect("a memory driver")
}

fn on_memory(words: &str) -> CloneReport {
    let report = try_run(memory_driver(), words).expect("a run");
    assert!(report.is_good(), "{words}");
    report.group()
}

fn on_null(latency_ns: u64, words: &str) -> CloneReport {
    let null = null::open(NullOptions { latency_ns, ..NullOptions::default() });
    let report = try_run(null.expect("a null driver"), words).expect("a run");
    assert!(report.is_good(), "{words}");
    report.group()
}

#[test]
fn sizes_of_both_directions_are_kept_to() {
    let group = on_memory("rw=rw bs=4k,8k io_size=2m iodepth=4");
    assert_eq!(group.read.bytes, group.read.ios * 4096);
    assert_eq!(group.write.bytes, group.write.ios * 8192);
    let bytes = group.read.bytes + group.write.bytes;
    assert!((2 << 20..(2 << 20) + 8192).contains(&bytes), "{bytes}");
    let group = on_memory("rw=randwrite bssplit=512/50:64k/50 io_size=8m iodepth=16");
    let mean = group.write.bytes / group.write.ios;
    assert!((25_000..41_000).contains(&mean), "{mean}");
    assert_eq!(group.write.latency.count(), group.write.ios);
}

#[test]
fn shaped_jobs_do_not_allocate_either() {
    let words = "rw=randrw bsrange=512-16k random_distribution=zipf:1.1 io_size=64m iodepth=32 \
                 fsync=8 refill_buffers";
    let group = on_memory(words);
    let allocations = group.allocations.expect("this test counts");
    assert_eq!(allocations.count, 0, "in {} I/Os", allocations.ios);
    assert!(allocations.ios > 1000);
}

#[test]
fn counts_and_loops_end_a_job() {
    assert_eq!(on_memory("rw=randread number_ios=17 iodepth=8").read.ios, 17);
    assert_eq!(on_memory("rw=read loops=3").read.ios, 768);
    assert_eq!(on_memory("rw=read loops=2 bsrange=4k-8k").read.bytes, 2 << 20);
    let group = on_memory("rw=write size=256k offset_increment=256k numjobs=3");
    assert_eq!(group.write.bytes, 3 * (256 << 10));
    let error = try_run(memory_driver(), "rw=write size=256k offset_increment=512k numjobs=3");
    assert!(error.map(|_| ()).expect_err("too far").to_string().contains("offset_increment"));
}

#[test]
fn flushes_are_counted_apart() {
    let group = on_memory("rw=write fsync=16 end_fsync=1 iodepth=4");
    assert_eq!((group.write.ios, group.sync.count()), (256, 17));
    assert_eq!(on_memory("rw=read fsync=16 end_fsync=1").sync.count(), 0);
    assert_eq!(on_memory("rw=randwrite fdatasync=1").sync.count(), 256);
}

#[test]
fn trims_are_a_direction_of_their_own() {
    for words in ["rw=trim bs=64k", "rw=randtrim bs=64k iodepth=4", "rw=trim bsrange=64k-64k"] {
        let report = try_run(memory_driver(), words).expect("a run");
        let group = report.group();
        assert_eq!((group.trim.ios, group.trim.bytes, group.write.ios), (16, 1 << 20, 0));
        let document = json::document(&[report], SystemTime::UNIX_EPOCH);
        assert_eq!(document["jobs"][0]["trim"]["total_ios"], 16);
    }
}

#[test]
fn what_is_trimmed_is_written_after() {
    for words in ["rw=trimwrite bs=64k", "rw=randtrimwrite bs=64k iodepth=4"] {
        let group = on_memory(words);
        assert_eq!((group.trim.ios, group.write.ios, group.read.ios), (16, 16, 0), "{words}");
    }
    let group = on_memory("rw=randtrimwrite bs=4k number_ios=10 rate_iops=10000");
    assert_eq!((group.trim.ios, group.write.ios), (10, 10));
    // The block is written where it was trimmed, and after it: nothing is left empty.
    let bytes = written("rw=randtrimwrite bs=4k buffer_pattern=0xab");
    assert!(bytes.iter().all(|&byte| byte == 0xab));
}

#[test]
fn rates_are_kept() {
    for words in ["rate_iops=2000", "rate=8192000", "rate_iops=2000 rate_process=poisson"] {
        let begun = Instant::now();
        let group = on_null(0, &format!("rw=randread number_ios=600 iodepth=4 {words}"));
        assert_eq!(group.read.ios, 600);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(240) && took < Duration::from_secs(3), "{took:?}");
    }
    // Each direction has its own.
    let group = on_null(0, "rw=randrw rate_iops=1000,4000 runtime=300ms iodepth=4");
    assert!(group.read.ios <= 310 && group.write.ios <= 1210, "{group:?}");
}

#[test]
fn under_a_rate_latency_counts_from_when_the_io_was_due() {
    // A device of 2 ms at depth 1 does 500 a second; of 2000 that are due each second most wait
    // behind it, and the wait is theirs: a generator that slowed down with the device would tell
    // 2 ms for each.
    let group =
        on_null(2_000_000, "rw=randread number_ios=100 rate_iops=2000 rate_process=poisson");
    assert!(group.read.latency.max() > 80_000_000, "{}", group.read.latency.max());
    let plain = on_null(2_000_000, "rw=randread number_ios=100 iodepth_batch=1");
    assert!(plain.read.latency.percentile(50.0) < 40_000_000);
}

#[test]
fn rests_and_delays_take_their_time() {
    let begun = Instant::now();
    on_null(0, "rw=read number_ios=20 thinktime=10ms thinktime_blocks=4 iodepth=4");
    assert!(begun.elapsed() >= Duration::from_millis(40));
    let begun = Instant::now();
    let group = on_null(0, "rw=read number_ios=5 startdelay=150ms");
    assert!(begun.elapsed() >= Duration::from_millis(150));
    assert!(group.runtime_ns < 150_000_000);
}

#[test]
fn batches_are_no_larger_and_queues_drain() {
    let group = on_null(50_000, "rw=randread number_ios=2000 iodepth=32 iodepth_batch=4");
    assert_eq!(group.submitted.count_between(4, usize::MAX), 0);
    let words = "rw=randread number_ios=3200 iodepth=32 iodepth_batch_complete_min=16";
    let group = on_null(50_000, words);
    // No batch but the last may be below 16; they are counted less one, in powers of two.
    assert!(group.submitted.count_between(0, 7) <= 1);
    let group = on_null(50_000, "rw=randread number_ios=3200 iodepth=32 iodepth_low=4");
    assert!(group.submitted.count_between(0, 15) <= 1);
    assert_eq!(group.read.ios, 3200);
}

#[test]
fn percentiles_are_those_asked_for() {
    let words = "rw=read percentile_list=99.9:50:75";
    let report = try_run(memory_driver(), words).expect("a run");
    let document = json::document(&[report], SystemTime::UNIX_EPOCH);
    let list = document["jobs"][0]["read"]["clat_ns"]["percentile"].as_object().expect("a list");
    let keys: Vec<&String> = list.keys().collect();
    assert_eq!(keys, ["50.000000", "75.000000", "99.900000"]);
}

/// What a job leaves in a file of 64 KiB.
fn written(words: &str) -> Vec<u8> {
    let path = tempfile::NamedTempFile::new().expect("a file");
    let driver = file::open(FileOptions {
        size: Some(65_536),
        block_size: 512,
        ..FileOptions::new(path.path())
    });
    let words = format!("rw=write bs=4k {words}");
    assert!(try_run(driver.expect("a file driver"), &words).expect("a run").is_good());
    std::fs::read(path.path()).expect("its bytes")
}

#[test]
fn contents_are_those_asked_for() {
    assert!(written("zero_buffers").iter().all(|&byte| byte == 0));
    let pattern = written("buffer_pattern=0xdeadbeef");
    assert!(pattern.chunks(4).all(|four| four == [0xde, 0xad, 0xbe, 0xef]));
    for words in ["buffer_compress_percentage=75", "buffer_compress_percentage=75 refill_buffers"] {
        let bytes = written(words);
        assert!(bytes.chunks(512).all(|c| c[128..] == [0; 384] && c[..128] != [0; 128]), "{words}");
    }
    // One buffer, written over and over; unless it is filled anew.
    let same = |bytes: Vec<u8>| bytes[..4096] == bytes[4096..8192];
    assert!(same(written("")) && !same(written("refill_buffers")));
    assert!(written("").iter().any(|&byte| byte != 0));
}

#[test]
fn seeds_repeat_only_where_asked() {
    let seed = |words| try_run(memory_driver(), words).expect("a run").options.seed;
    assert_eq!(seed("rw=randread"), seed("rw=randread randrepeat=1"));
    assert_ne!(seed("rw=randread randrepeat=0"), seed("rw=randread randrepeat=0"));
    assert_eq!(seed("rw=randread randrepeat=0 randseed=5"), 5);
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
fn a_job_goes_on_after_errors_where_asked() {
    for (words, goes_on) in [
        ("rw=read iodepth=4 continue_on_error=read", true),
        ("rw=write iodepth=4 continue_on_error=io", true),
        ("rw=read iodepth=4 continue_on_error=write", false),
    ] {
        let report = try_run(Box::new(Broken), words).expect("a run");
        let group = report.group();
        // What failed is not counted as done, and the run is not called good.
        assert!(!report.is_good() && group.ios() <= 128, "{words}");
        assert_eq!((group.errors == 128, group.ios() + group.errors == 256), (goes_on, goes_on));
        let document = json::document(&[report], SystemTime::UNIX_EPOCH);
        assert_eq!(document["jobs"][0]["total_err"], group.errors);
    }
}
