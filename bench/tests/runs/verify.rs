//! Jobs that write blocks which can be checked, over drivers that keep what they get.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use oxblock_bench::options::JobOptions;
use oxblock_bench::report::{CloneReport, Report, VerifyReport};
use oxblock_bench::run::{Session, run_on_files};
use oxblock_bench::text;
use oxblock_bench::verify::{Finding, Method};
use oxblock_drivers::null::{self, NullOptions};
use oxblock_engine::{Driver, Engine, Error, Node, Options};

use super::{alone, file_driver, memory_driver, options, run_one};

/// `name=value` words, and switches.
pub fn words(line: &str) -> JobOptions {
    let pairs = line.split_whitespace().map(|word| word.split_once('=').unwrap_or((word, "1")));
    options(&pairs.collect::<Vec<_>>())
}

/// As [`super::run_all`], all on one engine: there are many runs here, and making an engine takes
/// longer than most of them.
pub fn run_all(driver: Box<dyn Driver>, jobs: Vec<JobOptions>) -> Vec<Result<Report, Error>> {
    run_all_on(vec![driver], jobs)
}

/// The same over several files.
pub fn run_all_on(
    drivers: Vec<Box<dyn Driver>>,
    jobs: Vec<JobOptions>,
) -> Vec<Result<Report, Error>> {
    static ENGINE: LazyLock<Mutex<Engine>> =
        LazyLock::new(|| Mutex::new(Engine::with_cores(2, Options::default()).expect("an engine")));
    let _alone = alone();
    let engine = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    let nodes = drivers.into_iter().map(|driver| Node::new("target", driver));
    let nodes: Vec<Arc<Node>> = nodes.collect();
    let stop = Arc::new(AtomicBool::new(false));
    let session = Session {
        engine: &engine,
        node: &nodes[0],
        target: "target",
        cores: &[0, 1],
        serving: &[],
        stop: &stop,
    };
    let run = |job| run_on_files(&session, &nodes, job, &mut |_| {});
    jobs.into_iter().map(run).collect()
}

/// Runs a job over 1 MiB of memory, all of whose checks must pass.
fn verified(line: &str) -> (CloneReport, VerifyReport) {
    let report = run_all(memory_driver(1 << 20), vec![words(line)]).remove(0).expect(line);
    assert!(report.is_good(), "{line}: {}", text::report(&report));
    let group = report.group();
    let verify = group.verify.clone().expect(line);
    (group, verify)
}

#[test]
fn what_was_written_verifies() {
    for rw in ["write", "randwrite", "rw", "randrw"] {
        for jobs in ["1", "2"] {
            let words = [("rw", rw), ("verify", "crc32c"), ("iodepth", "16"), ("numjobs", jobs)];
            let report = run_one(memory_driver(1 << 20), &words);
            let group = report.group();
            let verify = group.verify.clone().expect("it was verified");
            // Of two clones each writes the whole range; a mix is checked as it reads, too.
            assert!(verify.bad == 0 && report.is_good(), "{rw}");
            assert!(verify.checked >= group.write.ios / 2 && verify.checked >= 64, "{rw}");
        }
    }
}

#[test]
fn a_flipped_byte_is_found_and_named_by_offset() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let size = 1 << 20;
    let base = [("rw", "randwrite"), ("verify", "crc32c"), ("iodepth", "16")];
    let with = |name, value| [&base[..], &[(name, value)]].concat();
    let written = run_one(file_driver(file.path(), size), &with("do_verify", "0"));
    assert!(written.is_good() && written.group().verify.is_none());

    let check = || run_one(file_driver(file.path(), size), &with("verify_only", "1"));
    let clean = check();
    assert_eq!(clean.group().verify.map(|verify| (verify.checked, verify.bad)), Some((256, 0)));
    assert_eq!(clean.group().write.ios, 0);

    let at = 700_123;
    let (expected, found) = flip(file.path(), at);
    let report = check();
    let verify = report.group().verify.expect("it was verified");
    assert_eq!((report.is_good(), report.group().errno(), verify.bad), (false, 84, 1));
    let mismatch = &verify.mismatches[0];
    assert_eq!(mismatch.offset, at / 4096 * 4096);
    assert_eq!(mismatch.finding, Finding::Damaged { first: at, expected, found, differing: 1 });
    assert!(text::report(&report).contains("first wrong byte at offset 700123"));
}

/// Flips a bit behind the engine's back. The byte before and after.
fn flip(path: &Path, at: u64) -> (u8, u8) {
    let mut file = std::fs::File::options().read(true).write(true).open(path).expect("the file");
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut byte)).expect("a byte");
    let before = byte[0];
    byte[0] ^= 0x40;
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&byte)).expect("a byte");
    (before, byte[0])
}

#[test]
fn a_target_that_keeps_nothing_does_not_verify() {
    let words = [("rw", "write"), ("verify", "crc32c"), ("size", "1m")];
    let zeroes = null::open(NullOptions { read_zeroes: true, ..NullOptions::default() });
    let verify = run_one(zeroes.expect("a null driver"), &words).group().verify;
    let verify = verify.expect("it was verified");
    assert_eq!((verify.checked, verify.bad), (256, 256));
    assert_eq!(verify.mismatches[0].finding, Finding::Constant { byte: 0 });
}

#[test]
fn lost_writes_of_a_second_run_are_found() {
    // Both runs write the same places from the same seed: only the stamp tells them apart.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let other = tempfile::NamedTempFile::new().expect("a file");
    let words = [("rw", "write"), ("verify", "crc32c"), ("do_verify", "0")];
    run_one(file_driver(file.path(), 65_536), &words);
    run_one(file_driver(other.path(), 65_536), &words);
    let first = std::fs::read(file.path()).expect("the first run's bytes");
    let mut second = std::fs::read(other.path()).expect("the second run's bytes");
    second[8192..12_288].copy_from_slice(&first[8192..12_288]);
    std::fs::write(other.path(), second).expect("a write");
    let words = [("rw", "write"), ("verify", "crc32c"), ("verify_only", "1")];
    let verify = run_one(file_driver(other.path(), 65_536), &words).group().verify;
    let verify = verify.expect("it was verified");
    assert_eq!((verify.bad, verify.mismatches[0].offset), (1, 8192));
    assert_eq!(verify.mismatches[0].finding, Finding::Stale);
}

#[test]
fn every_method_verifies_what_it_wrote() {
    for method in Method::all() {
        let pattern = if method.needs_pattern() { "verify_pattern=0xab%o" } else { "" };
        let word = method.word();
        let line = format!("rw=randwrite bs=8k iodepth=4 verify={word} {pattern}");
        assert_eq!(verified(&line).1.checked, 128, "{word}");
        let line = format!("rw=write bs=8k verify={word} verify_interval=1k {pattern}");
        let intervals = if method.has_header() { 1024 } else { 128 };
        assert_eq!(verified(&line).1.checked, intervals, "{word}");
        if method.has_header() {
            verified(&format!("rw=randwrite verify={word} verify_offset=2048 {pattern}"));
        }
    }
}

#[test]
fn verification_goes_with_every_shape_of_job() {
    for line in [
        "rw=randwrite bsrange=1k-16k io_size=4m iodepth=16",
        "rw=randwrite bssplit=4k/60:64k/40 io_size=4m iodepth=8",
        "rw=write bs=4k,6k,2k loops=3",
        "rw=randrw bs=2k,8k io_size=4m iodepth=8 rwmixread=30",
        "rw=randwrite norandommap io_size=4m iodepth=32",
        "rw=randrw random_distribution=zipf:1.2 io_size=4m iodepth=32",
        "rw=randwrite random_distribution=pareto:0.2 blockalign=512 io_size=2m iodepth=8",
        "rw=randwrite percentage_random=30 number_ios=500 iodepth=4",
        "rw=randwrite runtime=100ms time_based iodepth=16",
        "rw=randwrite rate_iops=2000 number_ios=200",
        "rw=write fsync=8 end_fsync thinktime=50 thinktime_blocks=32 refill_buffers",
        "rw=randwrite numjobs=2 iodepth=16 norandommap io_size=4m",
        "rw=randrw numjobs=2 iodepth=16 bsrange=1k-8k random_distribution=normal:5 io_size=4m",
        "rw=randwrite numjobs=2 size=512k offset_increment=512k iodepth=8",
        "rw=randwrite numjobs=2 size=512k offset_increment=130k iodepth=8",
        "rw=randwrite offset=100k size=300k bs=12k iodepth=3",
        "rw=randwrite iodepth=32 iodepth_batch=4 iodepth_low=8 io_size=3m",
    ] {
        let (group, verify) = verified(&format!("verify=crc32c {line}"));
        assert!(group.write.ios > 0 && verify.checked >= 20, "{line}: {}", verify.checked);
        assert_eq!(verify.doubts.total(), 0, "{line}");
    }
}

#[test]
fn what_is_read_between_is_checked_if_it_was_written() {
    let (group, verify) =
        verified("rw=randrw random_distribution=zipf:0.9 io_size=8m verify=xxhash do_verify=0");
    // One at a time, no read races; many places were written before they are read.
    assert!(verify.checked > 200 && verify.checked <= group.read.ios, "{}", verify.checked);
    assert_eq!(verify.raced, 0);
    // In a place that is written all the time, reads race, and nothing is called lost for it.
    let line = "rw=randrw size=8k norandommap io_size=16m iodepth=32 numjobs=2 verify=crc32c";
    let (_, verify) = verified(line);
    assert!(verify.raced + verify.checked > 1000, "{verify:?}");
}

#[test]
fn verified_jobs_do_not_allocate_on_their_way() {
    for line in [
        "rw=randwrite verify=crc32c iodepth=16 io_size=16m norandommap",
        "rw=randrw verify=xxhash iodepth=16 io_size=16m bsrange=1k-8k random_distribution=zipf:1.1",
        "rw=randwrite verify=sha256 iodepth=16 io_size=16m loops=2 verify_backlog=64",
    ] {
        let allocations = verified(line).0.allocations.expect("this test counts");
        assert_eq!(allocations.count, 0, "{line}: in {} I/Os", allocations.ios);
        assert!(allocations.ios > 3000);
    }
}

#[test]
fn a_backlog_is_checked_while_writing() {
    let line = "rw=randwrite verify=crc32c iodepth=8 do_verify=0 verify_backlog=16";
    assert_eq!(verified(line).1.checked, 256);
    let (group, verify) = verified(&format!("{line} verify_backlog_batch=4"));
    assert_eq!((group.write.ios, verify.checked, group.read.ios), (256, 64, 64));
    let (_, verify) = verified(&format!("{line} verify_backlog_batch=24"));
    assert_eq!(verify.checked, 384);
    // At the end everything is checked once more, unless do_verify=0 says otherwise.
    let line = "rw=randwrite verify=crc32c iodepth=8 verify_backlog=16";
    assert_eq!(verified(line).1.checked, 512);
}

#[test]
fn trims_are_verified_as_zeroes() {
    let (group, verify) = verified("rw=randtrim bs=8k verify=crc32c iodepth=4");
    assert_eq!((group.trim.ios, verify.checked), (128, 128));
    let line = "rw=trim verify=crc32c trim_verify_zero=0";
    let report = run_all(memory_driver(1 << 20), vec![words(line)]).remove(0).expect("a run");
    assert_eq!(report.group().verify.map(|verify| verify.checked), Some(0));
}

#[test]
fn a_later_run_checks_what_an_earlier_one_wrote_by_going_through_its_steps() {
    for line in [
        "rw=randwrite bssplit=2k/50:8k/50 io_size=3m iodepth=8",
        "rw=randrw random_distribution=zipf:1.1 number_ios=700 iodepth=8",
        "rw=write loops=2 numjobs=2 offset_increment=128k size=512k",
    ] {
        let line = format!("verify=crc32c {line}");
        let later = |more: &str| words(&format!("{line} {more}"));
        let jobs =
            vec![later("do_verify=0"), later("verify_only"), later("verify_only randseed=9")];
        let mut reports = run_all(memory_driver(1 << 20), jobs).into_iter();
        let mut next = || reports.next().expect("three runs").expect("a run");
        assert!(next().is_good());
        let good = next();
        assert!(good.is_good(), "{}", text::report(&good));
        assert!(good.group().verify.is_some_and(|verify| verify.checked > 20), "{line}");
        assert_eq!(good.group().write.ios, 0);
        // Another seed is another run.
        let bad = next();
        assert_eq!(bad.group().errno(), 84);
        let findings = bad.group().verify.expect("it was verified").mismatches;
        assert!(findings.iter().any(|bad| matches!(bad.finding, Finding::OtherSeed { .. })));
    }
}

#[test]
fn a_reading_job_checks_blocks_by_themselves() {
    let write = "rw=write bs=8k verify=sha256 verify_interval=4k do_verify=0";
    let jobs = [write, "rw=randread bs=4k verify=sha256", "rw=read bs=2k verify=sha256"];
    let reports = run_all(memory_driver(1 << 20), jobs.map(words).to_vec());
    let verify = |at: usize| {
        let report = reports[at].as_ref().expect("a run");
        (report.is_good(), report.group().verify)
    };
    assert_eq!(verify(1).1.map(|verify| verify.checked), Some(256));
    assert!(verify(1).0);
    let smaller = verify(2).1.expect("it was verified");
    assert_eq!((smaller.checked, smaller.bad), (512, 512));
    let finding = &smaller.mismatches[0].finding;
    assert_eq!(*finding, Finding::OtherLength { length: 4096 });
}

#[test]
fn a_state_tells_a_later_run_how_far_it_got() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state");
    let job = |more: &str| {
        let line = "rw=randwrite bsrange=1k-8k norandommap iodepth=8 verify=crc32c";
        words(&format!("{line} verify_state={} {more}", path.display()))
    };
    // By time: only the state knows what was written.
    let save = "runtime=50ms time_based do_verify=0 verify_state_save";
    let jobs = vec![job(save), job("verify_only verify_state_load"), job("verify_only randseed=4")];
    let reports = run_all(memory_driver(1 << 20), jobs);
    let loaded = reports[1].as_ref().expect("a run");
    assert!(loaded.is_good(), "{}", text::report(loaded));
    let verify = loaded.group().verify.expect("it was verified");
    assert!(verify.checked > 100 && verify.doubts.total() == 0, "{verify:?}");
    assert!(!reports[2].as_ref().expect("a run").is_good());

    let refused = |line: &str| {
        let result = run_all(memory_driver(1 << 20), vec![words(line)]).remove(0);
        result.map(|_| ()).expect_err(line).to_string()
    };
    let state = format!("verify_state={} verify_state_load", path.display());
    let other = format!("rw=read bs=4k verify=md5 {state}");
    assert!(refused(&other).contains("crc32c as verify"), "{}", refused(&other));
    let none = "rw=read verify=md5 verify_state_load verify_state=/no/such/state";
    assert!(refused(none).contains("/no/such/state"));
}

#[test]
fn each_file_of_a_job_is_verified() {
    // Clones with files of their own once had one log for all: each called the other's writes lost.
    for line in [
        "nrfiles=2 numjobs=2 iodepth=8",
        "nrfiles=4 bsrange=1k-8k norandommap io_size=4m iodepth=16",
        "nrfiles=4 file_service_type=zipf:1.2 io_size=4m verify_backlog=64 iodepth=8",
        "nrfiles=1 numjobs=4 size=256k iodepth=4 loops=2",
        "filename=a:b:c:d numjobs=2 rw=randrw io_size=4m iodepth=8",
    ] {
        let line = format!("rw=randwrite verify=crc32c {line}");
        let four = || (0..4).map(|_| memory_driver(1 << 20)).collect();
        let jobs = vec![words(&line), words(&format!("{line} verify_only"))];
        for report in run_all_on(four(), jobs) {
            let report = report.expect(&line);
            assert!(report.is_good(), "{line}: {}", text::report(&report));
            let verify = report.group().verify.expect("it was verified");
            assert!(verify.checked >= 256 && verify.doubts.total() == 0, "{line}: {verify:?}");
        }
    }
}
