//! Every example job on fio and on `oxblock bench`, with each I/O of both logged: whatever the
//! seeds, the same number of I/Os of the same sizes must go to the same ranges.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What the reports of both programs have in common.
#[derive(Clone, Copy, PartialEq)]
enum Facts {
    /// Counts and bytes of each direction.
    Same,
    /// The same; but what is read back to be checked is in fio's log and not in ours.
    Checked,
    /// All I/Os and bytes together; each direction up to this share.
    Mixed(f64),
    /// Counts and bytes up to this share: sizes are drawn, or one job ends another.
    Drawn(f64),
    /// Nothing: time ends them.
    Timed,
    /// fio cannot check what this job writes (it would find its own clones' blocks bad, or calls
    /// for a device), or reads another part of it back.
    Ours,
}
use Facts::{Checked, Drawn, Mixed, Ours, Same, Timed};

/// Each file of `bench/jobs`, its facts, what all offsets are multiples of, and where the range
/// ends.
const JOBS: [(&str, Facts, u64, u64); 27] = [
    ("archive", Checked, 64 << 10, 4 << 20),
    ("backup", Same, 64 << 10, 1 << 20),
    ("batches", Same, 4096, 1 << 40),
    ("block-sizes", Drawn(0.1), 4096, 16 << 20),
    ("checked", Ours, 4096, 4 << 20),
    ("checked-backlog", Ours, 4096, 8 << 20),
    ("checked-halves", Checked, 4096, 4 << 20),
    ("checked-offsets", Ours, 8192, 4 << 20),
    ("checked-trim", Ours, 64 << 10, 8 << 20),
    ("commit-log", Same, 512, 1 << 20),
    ("deadline", Same, 4096, 16 << 20),
    ("hot-blocks", Same, 4096, 1 << 30),
    ("journal", Same, 16 << 10, 1 << 20),
    ("mail-spool", Drawn(0.1), 1024, 128 << 10),
    ("mixed-clients", Timed, 4096, 8 << 20),
    ("pattern", Same, 32 << 10, 4 << 20),
    ("random-read", Same, 4096, 8 << 20),
    ("runs", Same, 4096, 16 << 20),
    ("scan-and-update", Same, 4096, 8 << 20),
    ("several-files", Mixed(0.1), 8192, 1 << 20),
    ("slices", Same, 4096, 8 << 20),
    ("steady-rate", Same, 4096, 1 << 40),
    ("stripes", Same, 64 << 10, 64 << 20),
    ("tiers", Same, 4096, 64 << 20),
    ("trim", Same, 64 << 10, 8 << 20),
    ("two-controllers", Timed, 4096, 1 << 30),
    ("write-then-read", Same, 128 << 10, 8 << 20),
];

const WAYS: [&str; 3] = ["read", "write", "trim"];

#[test]
fn the_example_jobs_are_the_same_jobs_on_both() {
    if Command::new("fio").arg("--version").output().is_err() {
        eprintln!("skipped: fio is not installed (apt-get install fio)");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/jobs");
    let mut files: Vec<String> = std::fs::read_dir(&folder)
        .expect("the examples")
        .map(|entry| entry.expect("an example").path())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    files.sort_unstable();
    assert_eq!(files, JOBS.map(|job| job.0), "an example without facts, or facts without one");
    for (name, facts, align, end) in JOBS {
        let text = std::fs::read_to_string(folder.join(format!("{name}.fio"))).expect("a job");
        let ours = Run::new(env!("CARGO_BIN_EXE_oxblock"), &["bench"], &logged(&text));
        if facts == Ours {
            check_places(name, &ours, align, end);
            continue;
        }
        let theirs = Run::new("fio", &[], &for_fio(&text));
        agree(name, facts, &theirs, &ours);
        check_log(&format!("{name}, fio"), &theirs, &WAYS, align, end);
        let in_ours = if facts == Checked { &WAYS[1..] } else { &WAYS };
        check_log(&format!("{name}, oxblock"), &ours, in_ours, align, end);
        if !matches!(facts, Timed | Checked) {
            agree_on_sizes(name, &theirs, &ours);
        }
    }
}

/// The job with a log of every I/O.
fn logged(text: &str) -> String {
    format!("[global]\nwrite_bw_log=io\nlog_offset=1\n{text}")
}

/// The same for fio: what is a target of ours is a file of that name, and its null engine where
/// nothing is kept. Regular files it does not trim.
fn for_fio(text: &str) -> String {
    let has_size = text.lines().any(|line| line.starts_with("size="));
    let null = if has_size { "ioengine=null" } else { "ioengine=null\nsize=1g" };
    let trims = text.contains("trim");
    let line = |line: &str| match line {
        "filename=null" | "filename=soft:null" => null.to_owned(),
        "filename=memory" if trims => null.to_owned(),
        other => other.to_owned(),
    };
    logged(&text.lines().map(line).collect::<Vec<_>>().join("\n"))
}

/// A job as one of the programs ran it, in a folder of its own.
struct Run {
    jobs: Vec<Value>,
    log: Vec<Io>,
}

/// One line of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Io {
    /// The file of the log, counted: clones have their own.
    clone: usize,
    way: usize,
    len: u64,
    offset: u64,
}

impl Run {
    fn new(program: &str, first: &[&str], text: &str) -> Run {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("job.fio"), text).expect("the job");
        let output = Command::new(program)
            .args(first)
            .args(["--output-format=json", "job.fio"])
            .current_dir(folder.path())
            .output()
            .expect("it runs");
        let out = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {out}{error}\n{text}");
        let json = out.find('{').unwrap_or_else(|| panic!("{program}: {out}{error}"));
        let document: Value = serde_json::from_str(&out[json..]).expect("JSON");
        let jobs = document["jobs"].as_array().expect("jobs").clone();
        Run { jobs, log: read_logs(folder.path()) }
    }

    fn total(&self, ways: &[&str], key: &str) -> u64 {
        self.jobs.iter().flat_map(|job| ways.iter().map(|way| number(&job[*way][key]))).sum()
    }

    /// I/Os of each direction and size.
    fn sizes(&self) -> BTreeMap<(usize, u64), u64> {
        let mut sizes = BTreeMap::new();
        self.log.iter().for_each(|io| *sizes.entry((io.way, io.len)).or_default() += 1);
        sizes
    }

    /// Did no clone do the same twice?
    fn is_once(&self) -> bool {
        let mut seen = HashSet::new();
        self.log.iter().all(|io| seen.insert(*io))
    }
}

fn read_logs(folder: &Path) -> Vec<Io> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    paths.sort_unstable();
    let mut log = Vec::new();
    for (clone, path) in paths.iter().enumerate() {
        let text = std::fs::read_to_string(path).expect("a log");
        log.extend(text.lines().map(|line| {
            let fields: Vec<u64> = line.split(',').map(|field| parse(field.trim(), line)).collect();
            assert_eq!(fields.len(), 6, "{}: {line}", path.display());
            Io { clone, way: fields[2] as usize, len: fields[3], offset: fields[4] }
        }));
    }
    log
}

fn parse(field: &str, line: &str) -> u64 {
    let hex = field.strip_prefix("0x").map(|digits| u64::from_str_radix(digits, 16));
    hex.unwrap_or_else(|| field.parse()).unwrap_or_else(|_| panic!("{field} in {line}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn near(what: &str, theirs: u64, ours: u64, share: f64) {
    let apart = theirs.abs_diff(ours) as f64 / theirs.max(1) as f64;
    assert!(apart <= share, "{what}: {theirs} of fio's, {ours} of ours");
}

/// The figures of the reports.
fn agree(name: &str, facts: Facts, theirs: &Run, ours: &Run) {
    assert_eq!(theirs.jobs.len(), ours.jobs.len(), "{name}: entries");
    for (theirs, ours) in theirs.jobs.iter().zip(&ours.jobs) {
        for key in ["jobname", "groupid", "error"] {
            assert_eq!(theirs[key], ours[key], "{name}: {key}");
        }
        for (way, key) in WAYS.iter().flat_map(|way| [(way, "total_ios"), (way, "io_bytes")]) {
            let (theirs, ours) = (number(&theirs[way][key]), number(&ours[way][key]));
            let share = match facts {
                Same | Checked => 0.0,
                Mixed(share) | Drawn(share) => share,
                Timed | Ours => f64::INFINITY,
            };
            near(&format!("{name}: {way} {key}"), theirs, ours, share);
        }
        // fio does not count an fdatasync, nor a flush after the last write.
        if matches!(facts, Same | Checked | Mixed(_)) && name != "journal" {
            let total = |job: &Value| number(&job["sync"]["total_ios"]);
            let (theirs, ours) = (total(theirs), total(ours));
            assert!((theirs..=theirs + 2).contains(&ours), "{name}: flushes {theirs} and {ours}");
        }
    }
    if let Mixed(_) = facts {
        for key in ["total_ios", "io_bytes"] {
            assert_eq!(
                theirs.total(&WAYS, key),
                ours.total(&WAYS, key),
                "{name}: {key} of both directions"
            );
        }
    }
}

/// Each I/O that is reported is in the log, in its range, and aligned.
fn check_log(what: &str, run: &Run, ways: &[&str], align: u64, end: u64) {
    assert_eq!(run.log.len() as u64, run.total(ways, "total_ios"), "{what}: entries of the log");
    let bytes: u64 = run.log.iter().map(|io| io.len).sum();
    assert_eq!(bytes, run.total(ways, "io_bytes"), "{what}: bytes of the log");
    check_places(what, run, align, end);
}

fn check_places(what: &str, run: &Run, align: u64, end: u64) {
    assert!(!run.log.is_empty(), "{what}: an empty log");
    for io in &run.log {
        assert!(io.offset.is_multiple_of(align) && io.offset + io.len <= end, "{what}: {io:?}");
    }
}

/// The split of sizes, and whether places repeat.
fn agree_on_sizes(name: &str, theirs: &Run, ours: &Run) {
    let (their_sizes, our_sizes) = (theirs.sizes(), ours.sizes());
    for (size, count) in &their_sizes {
        let same = our_sizes.get(size).copied().unwrap_or(0);
        // A size that is drawn seldom says little.
        if *count > 200 {
            near(&format!("{name}: I/Os of direction and size {size:?}"), *count, same, 0.2);
        }
    }
    assert!(!theirs.is_once() || ours.is_once(), "{name}: fio repeats no place, we do");
}
