//! Verified runs of the binary, among them some that are killed.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{alone, bad, flip, good, text};

/// A folder with a disk and the state of a run over it.
struct Bench {
    folder: tempfile::TempDir,
    /// Before the disk's path: `soft:` or nothing.
    through: &'static str,
    job: Vec<String>,
}

impl Bench {
    fn new(through: &'static str, job: &str) -> Bench {
        let folder = tempfile::tempdir().expect("a folder");
        let job = job.split_whitespace().map(|word| format!("--{word}")).collect();
        Bench { folder, through, job }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let disk = format!("--target={}{}", self.through, self.path("disk").display());
        let state = format!("--verify_state={}", self.path("state").display());
        let more = more.iter().map(|&word| word.to_owned());
        [disk, "--size=8m".to_owned(), state]
            .into_iter()
            .chain(self.job.clone())
            .chain(more)
            .collect()
    }

    fn good(&self, more: &[&str]) -> String {
        good(&self.args(more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What a run prints that must fail, and what it complains of.
    fn bad(&self, more: &[&str]) -> (String, String) {
        bad(&self.args(more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn start(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_oxblock"))
            .arg("bench")
            .args(self.args(&["--verify_state_save", "--time_based", "--runtime=60"]))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs")
    }

    /// Waits until a run has written some units, and then so much longer.
    fn let_run(&self, child: &mut Child, longer: Duration) {
        let begun = Instant::now();
        while self.words().iter().filter(|&&word| is_done(word)).count() < 8 {
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing was written");
            assert!(child.try_wait().expect("a child").is_none(), "it ended");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(longer);
    }

    /// The state's words, one for each unit.
    fn words(&self) -> Vec<u64> {
        let bytes = std::fs::read(self.path("state")).unwrap_or_default();
        let words = bytes.get(4096..).unwrap_or_default().chunks_exact(8);
        words.map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes"))).collect()
    }

    /// Checks from the state. Blocks checked, and in doubt.
    fn check(&self) -> (u64, u64) {
        let out = self.good(&[
            "--verify_only",
            "--verify_state_load",
            "--group_reporting",
            "--output-format=json",
        ]);
        let document: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        let verify = &document["jobs"][0]["oxblock"]["verify"];
        assert_eq!(verify["blocks_bad"], 0, "{verify}");
        let doubts = verify["blocks_in_doubt"].as_object().expect("counts").values();
        let doubts = doubts.filter_map(serde_json::Value::as_u64).sum();
        (verify["blocks_checked"].as_u64().expect("a count"), doubts)
    }

    /// What a check says that must fail.
    fn complaint(&self) -> String {
        self.bad(&["--verify_only", "--verify_state_load"]).0
    }
}

/// Was a unit written, and is nothing of it in flight?
fn is_done(word: u64) -> bool {
    let done = word & ((1 << 30) - 1);
    done > 0 && word >> 32 == done
}

#[test]
fn a_run_killed_at_any_moment_is_checked_from_its_state() {
    // What has completed is found, nothing else is called lost, and what was damaged since is.
    for (round, (through, job, in_flight)) in [
        ("", "rw=randwrite bs=4k verify=crc32c iodepth=32", 32),
        ("", "rw=randrw bssplit=512/30:2k/30:8k/40 verify=xxhash iodepth=16 norandommap", 16 * 16),
        ("soft:", "rw=randwrite bs=2k random_distribution=zipf:1.1 verify=crc32c iodepth=64", 64),
        ("", "rw=write bs=16k verify_interval=4k numjobs=2 verify=sha256 iodepth=8", 2 * 8 * 4),
        ("", "rw=randwrite bs=4k verify=crc32c iodepth=32 verify_backlog=64 fsync=50", 32),
        ("", "rw=randwrite bs=1k rate_iops=3000 verify=meta iodepth=4", 4),
    ]
    .into_iter()
    .enumerate()
    {
        let bench = Bench::new(through, job);
        let mut child = bench.start();
        bench.let_run(&mut child, Duration::from_millis([0, 7, 31, 90, 170, 260][round]));
        child.kill().expect("a kill");
        child.wait().expect("its end");
        let words = bench.words();
        let done = words.iter().filter(|&&word| is_done(word)).count() as u64;
        let doubted = words.iter().filter(|&&word| word != 0 && !is_done(word)).count() as u64;
        assert!(done > 0 && doubted <= in_flight, "{job}: {done} and {doubted} in flight");
        assert_eq!(bench.check(), (done + doubted, doubted), "{job}");

        let unit = 8 << 20 >> words.len().ilog2();
        let at = words.iter().rposition(|&word| is_done(word)).expect("one that is done") * unit;
        flip(&bench.path("disk"), at as u64 + 30);
        let out = bench.complaint();
        assert!(out.contains(&format!("block at offset {at} ({unit} bytes)")), "{job}: {out}");
        assert!(out.contains(&format!("first wrong byte at offset {}", at + 30)), "{job}: {out}");
        overwrite(&bench.path("disk"), at as u64, &vec![0; unit]);
        assert!(bench.complaint().contains("never written, or discarded"), "{job}");
    }
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = std::fs::File::options().write(true).open(path).expect("the disk");
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes)).expect("a write");
}

#[test]
fn a_write_lost_after_a_kill_is_told_from_one_in_flight() {
    let bench = Bench::new("", "rw=randwrite bs=4k verify=crc32c iodepth=8 norandommap");
    let mut child = bench.start();
    bench.let_run(&mut child, Duration::from_millis(20));
    // What a unit held while the run went on, which wrote it again since.
    let before = bench.words();
    let old = std::fs::read(bench.path("disk")).expect("the disk");
    let begun = Instant::now();
    let lost = loop {
        let now = bench.words();
        let writes = |word: u64| word & 0xff;
        let again = (0..now.len())
            .find(|&at| is_done(before[at]) && writes(now[at]) > writes(before[at]) + 3);
        if let Some(at) = again {
            break at;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing was written again");
        std::thread::sleep(Duration::from_millis(2));
    };
    child.kill().expect("a kill");
    child.wait().expect("its end");
    bench.check();
    let at = lost * 4096;
    overwrite(&bench.path("disk"), at as u64, &old[at..at + 4096]);
    let out = bench.complaint();
    let named = format!("block at offset {at} (4096 bytes): holds write ");
    assert!(out.contains(&named) && out.contains("a lost write"), "{out}");
}

#[test]
fn an_interrupted_run_is_checked_from_its_state_without_any_doubt() {
    let bench = Bench::new("", "rw=randwrite bs=4k verify=crc32c iodepth=32");
    let _alone = alone();
    let mut child = bench.start();
    bench.let_run(&mut child, Duration::from_millis(50));
    // Meanwhile nobody else may have the disk, nor, beside another disk, the state.
    let mut args = bench.args(&["--verify_only", "--verify_state_load"]);
    let second = |args: &[String]| {
        let second = Command::new(env!("CARGO_BIN_EXE_oxblock")).arg("bench").args(args).output();
        let second = second.expect("the binary runs");
        assert_eq!(second.status.code(), Some(1));
        text(&second.stderr).to_owned()
    };
    let said = second(&args);
    assert!(said.contains("Is another process using the image"), "{said}");
    std::fs::copy(bench.path("disk"), bench.path("other")).expect("a copy");
    args[0] = format!("--target={}", bench.path("other").display());
    let said = second(&args);
    assert!(said.contains("another process uses it"), "{said}");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    let mut out = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut out).expect("text");
    assert!(child.wait().expect("its end").success(), "{out}");
    drop(_alone);
    let (checked, doubts) = bench.check();
    assert!(checked >= 8 && doubts == 0, "{checked} {doubts}");
}

#[test]
fn scripts_see_what_fio_would_tell_them() {
    let bench = Bench::new("", "rw=randwrite bs=4k verify=crc32c iodepth=8");
    bench.good(&["--do_verify=0"]);
    flip(&bench.path("disk"), 5000);
    flip(&bench.path("disk"), 50_000);
    let (out, _) =
        bench.bad(&["--verify_only", "--output-format=json", "--continue_on_error=verify"]);
    let document: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let job = &document["jobs"][0];
    assert_eq!((&job["error"], &job["total_err"]), (&84.into(), &2.into()), "{job}");
    assert_eq!(job["first_error"], 84);
    assert_eq!(job["oxblock"]["verify"]["blocks_checked"], 2048);
    let (out, _) = bench.bad(&["--verify_only", "--verify_fatal", "--iodepth=1"]);
    assert!(out.contains("1 of 2 blocks are bad"), "{out}");
    for (word, hint) in [
        ("--verify=sha3-256", "use sha256"),
        ("--verify=md6", "none of"),
        ("--verify_async=2", "numjobs"),
        ("--verify_dump=1", "fio has this option"),
        ("--verify_pattern=0xzz", "0xff%o"),
        ("--verify_state_load", "would write"),
    ] {
        let (_, error) = bench.bad(&[word]);
        assert!(error.contains(hint), "{word}: {error}");
    }
}

#[test]
fn clones_with_files_of_their_own_are_checked_from_a_state_for_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = format!("--directory={}", folder.path().display());
    let state = format!("--verify_state={}", folder.path().join("state").display());
    let job = [&directory, &state, "--name=x", "--rw=randwrite", "--size=1m", "--nrfiles=2"];
    let job = [&job[..], &["--numjobs=2", "--verify=crc32c", "--iodepth=8"]].concat();
    good(&[&job[..], &["--do_verify=0", "--verify_state_save"]].concat());
    let check = [&job[..], &["--verify_only", "--verify_state_load"]].concat();
    good(&check);
    flip(&folder.path().join("x.1.0"), 300_000);
    let out = bad(&check).0;
    assert!(out.contains("block at offset 299008 of file 2"), "{out}");
    std::fs::remove_file(folder.path().join("state.3")).expect("the last file's state");
    assert!(bad(&check).1.contains("state.3"));
}
