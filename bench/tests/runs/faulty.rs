//! A disk that does wrong, and what a verified job makes of it.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxblock_bench::options::JobOptions;
use oxblock_bench::report::{Report, VerifyReport};
use oxblock_bench::text;
use oxblock_bench::verify::{Finding, Holding, Method};
use oxblock_engine::{
    Busy, Core, Driver, Error, ErrorKind, Fault, Limits, LocalFuture, OpKind, Pass, Queue, Request,
    Sleep, Token,
};

use super::verify::{run_all, run_all_on, words};

/// What one request of its kind meets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    /// A write stores a flipped bit in this byte.
    Flip(usize),
    /// A write or a trim stores nothing, and says that it did.
    Lose,
    /// A write goes to this offset instead.
    Misdirect(u64),
    /// A write stores only so many bytes.
    Tear(usize),
    /// A write stores only so many bytes, and says that it failed.
    Fail(usize),
    /// A read gets what is at this offset.
    Misread(u64),
}

impl Wrong {
    fn is_of(self, kind: OpKind) -> bool {
        match self {
            Wrong::Misread(_) => kind == OpKind::Read,
            Wrong::Lose => matches!(kind, OpKind::Write | OpKind::Discard),
            _ => kind == OpKind::Write,
        }
    }
}

const SIZE: usize = 1 << 20;

/// A disk of 1 MiB. The requests with these numbers, counted by kind from 1, meet what stands
/// beside them. All complete late and in any order.
struct Disk {
    bytes: Mutex<Vec<u8>>,
    wrongs: Vec<(u64, Wrong)>,
    /// Reads, and all else.
    counts: [AtomicU64; 2],
    /// Offsets of those that met something.
    hits: Mutex<Vec<u64>>,
}

impl Disk {
    fn new(wrongs: &[(u64, Wrong)]) -> Arc<Disk> {
        Arc::new(Disk {
            bytes: Mutex::new(vec![0; SIZE]),
            wrongs: wrongs.to_vec(),
            counts: Default::default(),
            hits: Mutex::default(),
        })
    }

    fn hits(&self) -> Vec<u64> {
        lock(&self.hits).clone()
    }

    fn wrong_of(&self, request: &Request<'_>) -> Option<Wrong> {
        let count = &self.counts[usize::from(request.kind != OpKind::Read)];
        let number = count.fetch_add(1, SeqCst) + 1;
        let own = |&&(at, wrong): &&(u64, Wrong)| at == number && wrong.is_of(request.kind);
        let (_, wrong) = self.wrongs.iter().find(own)?;
        lock(&self.hits).push(request.offset);
        Some(*wrong)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Faulty(Arc<Disk>);

impl Driver for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn limits(&self) -> Limits {
        Limits { max_discard: SIZE as u64, ..Limits::new(SIZE as u64, 512) }
    }

    fn queue<'a>(&'a self, core: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let (disk, random) = (self.0.clone(), core.random());
        let queue: Box<dyn Queue> = Box::new(FaultyQueue { disk, pending: Vec::new(), random });
        Box::pin(async { Ok(queue) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

struct FaultyQueue {
    disk: Arc<Disk>,
    pending: Vec<Pending>,
    random: u64,
}

/// A request that is not complete yet; a write or a trim with what it stores then.
struct Pending {
    token: Token,
    at: usize,
    stored: Vec<u8>,
    result: Result<(), Fault>,
}

impl FaultyQueue {
    fn finish_one(&mut self, pass: &mut Pass) {
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let at = (self.random >> 33) as usize % self.pending.len();
        let Pending { token, at, stored, result } = self.pending.swap_remove(at);
        lock(&self.disk.bytes)[at..at + stored.len()].copy_from_slice(&stored);
        pass.done(token, result);
    }
}

impl Queue for FaultyQueue {
    fn submit(&mut self, request: &Request<'_>, _: &mut Pass) -> Result<(), Busy> {
        let wrong = self.disk.wrong_of(request);
        let (mut at, len) = (request.offset as usize, request.len as usize);
        let mut stored = Vec::new();
        match (request.kind, wrong) {
            (OpKind::Read, wrong) => {
                let from = if let Some(Wrong::Misread(from)) = wrong { from as usize } else { at };
                request.data.copy_from(&lock(&self.disk.bytes)[from..from + len]);
            }
            (OpKind::Write, _) => {
                stored.resize(len, 0);
                request.data.copy_to(&mut stored);
            }
            (OpKind::Discard, _) => stored.resize(len, 0),
            _ => {}
        }
        let mut result = Ok(());
        match wrong {
            Some(Wrong::Flip(byte)) => stored[byte] ^= 0x04,
            Some(Wrong::Lose) => stored.clear(),
            Some(Wrong::Misdirect(to)) => at = to as usize,
            Some(Wrong::Tear(len)) => stored.truncate(len),
            Some(Wrong::Fail(len)) => {
                stored.truncate(len);
                result = Err(Fault::new(ErrorKind::Media, request.offset));
            }
            Some(Wrong::Misread(_)) | None => {}
        }
        self.pending.push(Pending { token: request.token, at, stored, result });
        Ok(())
    }

    fn kick(&mut self, _: &mut Pass) {}

    fn poll(&mut self, pass: &mut Pass) -> usize {
        let count = self.pending.len().div_ceil(3);
        (0..count).for_each(|_| self.finish_one(pass));
        count
    }

    fn cancel(&mut self, _: Token) {}

    fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn sleep(&mut self) -> Sleep<'_> {
        if self.pending.is_empty() { Sleep::Woken } else { Sleep::Never }
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        while !self.pending.is_empty() {
            self.finish_one(pass);
        }
        true
    }
}

fn run_on(disk: &Arc<Disk>, jobs: Vec<JobOptions>) -> Vec<Report> {
    let reports = run_all(Box::new(Faulty(disk.clone())), jobs);
    reports.into_iter().map(|report| report.expect("a run")).collect()
}

/// What a job finds, each with its offset, over a disk that does these wrongs; and which offsets
/// met one.
fn found(wrongs: &[(u64, Wrong)], line: &str) -> (Vec<(u64, Finding)>, Vec<u64>) {
    let disk = Disk::new(wrongs);
    let report = run_on(&disk, vec![words(line)]).remove(0);
    let verify = verify_of(&report, line);
    assert_eq!(report.is_good(), verify.bad == 0, "{line}");
    assert_eq!(report.group().errno(), if verify.bad > 0 { 84 } else { 0 }, "{line}");
    assert_eq!(verify.bad as usize, verify.mismatches.len(), "{line}");
    let named = verify.mismatches.into_iter().map(|bad| (bad.offset, bad.finding)).collect();
    (named, disk.hits())
}

fn verify_of(report: &Report, line: &str) -> VerifyReport {
    report.group().verify.unwrap_or_else(|| panic!("{line}: {}", text::report(report)))
}

fn methods() -> impl Iterator<Item = (Method, String)> {
    let checking = Method::all().filter(|&method| method != Method::Null);
    checking.map(|method| {
        let pattern = if method.needs_pattern() { " verify_pattern=0xab%o" } else { "" };
        (method, format!("verify={}{pattern}", method.word()))
    })
}

#[test]
fn a_good_disk_that_is_late_and_in_no_order_has_no_bad_blocks() {
    // Two writes of one place in flight together may be stored either way around.
    for line in [
        "verify=crc32c rw=randwrite norandommap size=64k io_size=4m iodepth=32",
        "verify=crc32c rw=randrw bsrange=512-8k random_distribution=zipf:1.2 io_size=2m iodepth=32",
        "verify=xxhash rw=randrw numjobs=2 size=32k norandommap io_size=1m iodepth=16",
        "verify=crc32c rw=randwrite numjobs=2 bssplit=2k/50:8k/50 io_size=2m iodepth=16",
        "verify=crc32c rw=randwrite loops=3 verify_backlog=32 iodepth=16",
        "verify=pattern verify_pattern=%o rw=randwrite norandommap io_size=2m iodepth=32",
        "verify=crc32c rw=randtrim bs=8k iodepth=16",
    ] {
        let (bad, _) = found(&[], line);
        assert!(bad.is_empty(), "{line}: {bad:?}");
    }
}

#[test]
fn flipped_bits_are_found_and_named_by_each_method() {
    for (method, line) in methods() {
        for byte in [20, 2000] {
            if method == Method::Meta && byte > 112 {
                continue;
            }
            let line = format!("{line} rw=randwrite iodepth=8");
            let (bad, hits) = found(&[(100, Wrong::Flip(byte))], &line);
            assert_eq!(bad.len(), 1, "{line}: {bad:?}");
            let (offset, finding) = &bad[0];
            let wanted = hits[0] + byte as u64;
            let is_damaged = matches!(finding, Finding::Damaged { first, expected, found, differing: 1 }
                if *first == wanted && expected ^ found == 0x04);
            assert!(*offset == hits[0] && is_damaged, "{line}: {finding:?}");
        }
    }
}

#[test]
fn lost_writes_are_found_and_named_by_each_method() {
    for (method, line) in methods() {
        // The first write of a place: nothing is there.
        let (bad, hits) = found(&[(50, Wrong::Lose)], &format!("{line} rw=randwrite iodepth=8"));
        assert_eq!(bad, [(hits[0], Finding::Constant { byte: 0 })], "{line}");
        // The second: the first one still is, which a pattern cannot tell.
        let line = format!("{line} rw=write loops=2 iodepth=8");
        let (bad, hits) = found(&[(300, Wrong::Lose)], &line);
        let wanted = (hits[0], Finding::Overwritten { found: 1, wanted: 2 });
        match method.has_header() {
            true => assert_eq!(bad, [wanted], "{line}"),
            false => assert_eq!(bad, [], "{line}"),
        }
    }
}

#[test]
fn misdirected_writes_are_found_at_both_ends_by_each_method() {
    for (_, line) in methods() {
        let line = format!("{line} rw=write iodepth=1");
        let (bad, hits) = found(&[(200, Wrong::Misdirect(40_960))], &line);
        let own = (hits[0], Finding::Constant { byte: 0 });
        assert_eq!(bad, [(40_960, Finding::Misplaced { from: hits[0] }), own], "{line}");
    }
}

#[test]
fn torn_writes_are_found_and_named_by_each_method_that_looks_beyond_headers() {
    // Seven bits let one torn block in 128 pass.
    for (method, line) in methods().filter(|&(method, _)| method != Method::Crc7) {
        let line = format!("{line} rw=randwrite iodepth=8");
        let (bad, hits) = found(&[(77, Wrong::Tear(1536))], &line);
        let first = hits[0] + 1536;
        let torn = Finding::Torn { first, wrong: 5, of: 8, holding: Holding::Zeroes };
        match method {
            Method::Meta => assert_eq!(bad, [], "{line}"),
            _ => assert_eq!(bad, [(hits[0], torn)], "{line}"),
        }
        if method == Method::Meta || method.needs_pattern() {
            // Of two writes with the same pattern, sectors behind the header are the same.
            continue;
        }
        let line = line.replace("randwrite", "write loops=2");
        let (bad, hits) = found(&[(300, Wrong::Tear(1536))], &line);
        let first = hits[0] + 1536;
        let torn = Finding::Torn { first, wrong: 5, of: 8, holding: Holding::Earlier };
        assert_eq!(bad, [(hits[0], torn)], "{line}");
    }
}

#[test]
fn each_of_several_wrongs_is_found_in_a_job_of_any_shape() {
    for line in [
        "verify=crc32c rw=randwrite bssplit=4k/50:16k/50 norandommap io_size=3m iodepth=16",
        "verify=sha256 rw=randrw random_distribution=zipf:1.1 io_size=4m iodepth=16",
        "verify=crc32c rw=randwrite numjobs=2 io_size=2m iodepth=8 rate_iops=20000",
    ] {
        // The last writes of the job: none that comes later mends the last one.
        let disk = Disk::new(&[]);
        run_on(&disk, vec![words(line)]);
        let writes = disk.counts[1].load(SeqCst);
        let (bad, hits) = found(&[(writes - 1, Wrong::Lose), (writes, Wrong::Flip(300))], line);
        let is_found = |hit: &u64| bad.iter().any(|(at, _)| (*hit..hit + 16_384).contains(at));
        assert!(hits.len() == 2 && hits.iter().all(is_found), "{line}: {hits:?} {bad:?}");
        assert!(bad.iter().any(|(_, what)| matches!(what, Finding::Damaged { .. })), "{bad:?}");
    }
}

#[test]
fn misdirected_reads_are_found_while_the_job_runs() {
    let line = "verify=crc32c rw=randrw size=64k rwmixread=50 norandommap io_size=2m do_verify=0";
    let disk = Disk::new(&[(150, Wrong::Misread(8192))]);
    let report = run_on(&disk, vec![words(line)]).remove(0);
    let verify = verify_of(&report, line);
    let own = disk.hits()[0];
    if own == 8192 {
        return;
    }
    assert_eq!(verify.bad, 1, "{:?}", verify.mismatches);
    assert_eq!(verify.mismatches[0].finding, Finding::Misplaced { from: 8192 });
}

#[test]
fn lost_trims_are_found() {
    let line = "verify=crc32c rw=randtrim bs=4k iodepth=4";
    let disk = Disk::new(&[(256 + 30, Wrong::Lose)]);
    let fill = words("verify=crc32c rw=write do_verify=0");
    let report = run_on(&disk, vec![fill, words(line)]).remove(1);
    let verify = verify_of(&report, line);
    assert_eq!((verify.checked, verify.bad), (256, 1));
    let bad = &verify.mismatches[0];
    assert_eq!(bad.offset, disk.hits()[0]);
    assert_eq!(bad.finding, Finding::Untrimmed { first: bad.offset });
}

#[test]
fn a_write_that_failed_may_have_stored_anything_between() {
    let line = "verify=crc32c rw=randwrite loops=2 iodepth=4 continue_on_error=write";
    let fails = [(300, Wrong::Fail(0)), (310, Wrong::Fail(1024)), (320, Wrong::Fail(4096))];
    let disk = Disk::new(&fails);
    let report = run_on(&disk, vec![words(line)]).remove(0);
    let verify = verify_of(&report, line);
    assert_eq!((report.group().errors, report.is_good()), (3, false));
    let doubts = verify.doubts;
    assert_eq!((verify.bad, doubts.old, doubts.torn, doubts.new), (0, 1, 1, 1));
    assert!(text::report(&report).contains("3 blocks were in flight when the run ended, or their"));
}

#[test]
fn a_fatal_mismatch_ends_the_job_at_once() {
    let wrongs: Vec<(u64, Wrong)> = (1..=256).map(|write| (write, Wrong::Flip(9))).collect();
    let run = |line: &str| run_on(&Disk::new(&wrongs), vec![words(line)]).remove(0);
    let line = "verify=crc32c verify_fatal rw=write iodepth=4";
    let report = run(line);
    let verify = verify_of(&report, line);
    assert!((1..=4).contains(&verify.checked) && verify.bad == verify.checked, "{verify:?}");
    assert_eq!(report.group().errno(), 84);
    // With a backlog, long before everything is written; the clone beside it ends, too.
    let line = "verify=crc32c verify_fatal rw=write iodepth=4 verify_backlog=16 numjobs=2";
    let report = run(line);
    let group = report.group();
    assert!(group.write.ios < 200 && group.errno() == 84, "{}", group.write.ios);
    assert!(verify_of(&report, line).bad <= 8);
    // Without it everything is checked, and so it is with fio's word for that.
    for line in ["verify=crc32c rw=write", "verify=crc32c rw=write continue_on_error=verify"] {
        assert_eq!(verify_of(&run(line), line).bad, 256);
    }
}

#[test]
fn what_goes_wrong_in_one_of_several_files_is_named_with_it() {
    let line = "verify=crc32c rw=write nrfiles=2 iodepth=4";
    let disks = [Disk::new(&[]), Disk::new(&[(40, Wrong::Flip(50))])];
    let drivers = disks.iter().map(|disk| Box::new(Faulty(disk.clone())) as Box<dyn Driver>);
    let report = run_all_on(drivers.collect(), vec![words(line)]).remove(0).expect("a run");
    let verify = verify_of(&report, line);
    assert_eq!((verify.checked, verify.bad), (512, 1));
    let bad = &verify.mismatches[0];
    assert_eq!((bad.file, bad.offset), (1, disks[1].hits()[0]));
    assert!(bad.to_string().contains("of file 1"), "{bad}");
}
