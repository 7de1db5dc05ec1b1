//! `oxblock bench` as a user runs it: the built binary, its output and its exit codes.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[path = "bench/verify.rs"]
mod verify;

/// Reactors spin: runs side by side would only wait for each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn oxblock(args: &[&str]) -> Output {
    let _alone = alone();
    Command::new(env!("CARGO_BIN_EXE_oxblock"))
        .arg("bench")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

/// Standard output of a run that must succeed.
fn good(args: &[&str]) -> String {
    let output = oxblock(args);
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Standard output and error of a run that must fail, with exit code 1.
fn bad(args: &[&str]) -> (String, String) {
    let output = oxblock(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output.stdout));
    (text(&output.stdout), text(&output.stderr))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(args: &[&str]) -> serde_json::Value {
    let args = [args, &["--output-format=json"]].concat();
    serde_json::from_str(&good(&args)).expect("JSON")
}

#[test]
fn each_target_gives_figures() {
    for target in ["null", "memory", r#"{"driver":"null-co","size":1048576}"#, "soft", "soft:null"]
    {
        let out = good(&["--target", target, "--rw=randread", "--iodepth=8", "--runtime=200ms"]);
        for word in ["IOPS=", "99.99th=", "max=", "IO depths", "heap allocations per I/O: 0\n"] {
            assert!(out.contains(word), "{target}: no `{word}` in {out}");
        }
        assert_eq!(out.contains("served by    : core 1"), target.starts_with("soft"), "{out}");
    }
}

#[test]
fn the_main_job_has_three_directions() {
    let document = json(&["--target=memory", "--size=16m", "--runtime=100ms"]);
    let jobs = document["jobs"].as_array().expect("jobs");
    let names: Vec<_> = jobs.iter().filter_map(|job| job["jobname"].as_str()).collect();
    assert_eq!(names, ["randread", "randwrite", "randrw"]);
    for job in jobs {
        assert_eq!((&job["error"], &job["latency_depth"]), (&0.into(), &32.into()));
        assert_eq!(job["oxblock"]["heap_allocations_per_io"], 0.0);
    }
    let total = |way: &str| jobs[2][way]["total_ios"].as_f64().unwrap_or(0.0);
    let share = total("read") / (total("read") + total("write"));
    assert!((share - 0.7).abs() < 0.05, "{share}");
}

#[test]
fn several_jobs_are_shown_apart_and_together() {
    let out = good(&["--target=null", "--rw=randrw", "--numjobs=2", "--runtime=200ms"]);
    assert_eq!(out.matches("(groupid=0, jobs=1): err= 0").count(), 2, "{out}");
    for word in ["Run status group 0 (all jobs):", "   READ: bw=", "  WRITE: bw="] {
        assert!(out.contains(word), "no `{word}` in {out}");
    }
    let document = json(&["--target=null", "--rw=read", "--numjobs=2", "--runtime=100ms"]);
    assert_eq!(document["jobs"].as_array().map(Vec::len), Some(2));
}

#[test]
fn an_overlay_takes_all_writes_and_the_file_beneath_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.img");
    let first: Vec<u8> = (0..16u32 << 20).map(|at| (at / 7) as u8 ^ (at >> 12) as u8).collect();
    std::fs::write(&path, &first).expect("a file");
    let mut node = format!(
        r#"{{"driver":"cow","backing":{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}}}"#,
        path.display()
    );
    for _ in 0..10 {
        node = format!(r#"{{"driver":"raw","file":{node}}}"#);
    }
    let target = format!("--target={node}");
    let out = good(&[&target, "--rw=randread", "--iodepth=16", "--io_size=16m"]);
    assert!(out.contains("heap allocations per I/O: 0\n"), "{out}");
    // Each of its tasks takes a buffer once, and an I/O nothing, however many there are.
    let job = [&target, "--rw=randrw", "--iodepth=16", "--norandommap", "--io_size=64m"];
    let document = json(&job);
    let count = document["jobs"][0]["oxblock"]["heap_allocations"].as_u64().expect("a count");
    assert!(count <= 32, "{count} allocations for 16384 I/Os");
    let out = good(&[&target, "--rw=randwrite", "--verify=crc32c", "--iodepth=16"]);
    assert!(out.contains("4096 blocks checked, all good"), "{out}");
    assert!(std::fs::read(&path).expect("the file") == first, "the file has changed");
    let little = node.replace(r#""cow","#, r#""cow","max-memory":"1M","#);
    let (out, error) = bad(&["--target", &little, "--rw=write", "--bs=64k"]);
    let words = "the overlay has taken all of its max-memory";
    assert!(out.contains(words) || error.contains(words), "{out}{error}");
}

#[test]
fn a_flipped_byte_in_a_file_is_named_by_its_offset() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.img");
    let target = format!("--target={}", path.display());
    let job = [&target, "--rw=randwrite", "--verify=crc32c", "--size=4m", "--iodepth=16"];
    let out = good(&job);
    assert!(out.contains("1024 blocks checked, all good"), "{out}");

    good(&[&job[..], &["--do_verify=0"]].concat());
    good(&[&job[..], &["--verify_only"]].concat());
    flip(&path, 3_000_001);
    let (out, _) = bad(&[&job[..], &["--verify_only"]].concat());
    assert!(out.contains("block at offset 2998272 (4096 bytes)"), "{out}");
    assert!(out.contains("first wrong byte at offset 3000001"), "{out}");
    let args = [&job[..], &["--verify_only", "--output-format=json"]].concat();
    let document: serde_json::Value = serde_json::from_str(&bad(&args).0).expect("JSON");
    let job = &document["jobs"][0];
    assert_eq!((&job["error"], &job["oxblock"]["verify"]["blocks_bad"]), (&84.into(), &1.into()));
}

/// Flips a bit behind the program's back.
fn flip(path: &Path, at: u64) {
    let mut file = std::fs::File::options().read(true).write(true).open(path).expect("the file");
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut byte)).expect("a byte");
    byte[0] ^= 0x40;
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&byte)).expect("a byte");
}

#[test]
fn the_controller_serves_a_file_and_what_it_wrote_verifies() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = format!("--target=soft:{}", folder.path().join("disk.img").display());
    let job = [&target, "--rw=randwrite", "--verify=crc32c", "--size=4m", "--iodepth=16"];
    let out = good(&job);
    assert!(out.contains("1024 blocks checked, all good"), "{out}");
    assert!(out.contains("software NVMe controller over"), "{out}");
}

#[test]
fn mistakes_are_named_with_what_to_do() {
    for (args, hint) in [
        (&["--rww=read"][..], "--rw"),
        (&["--iodeph=4"], "--iodepth"),
        (&["--rw=randraed"], "randread"),
        (&["--target=null", "--rw=read", "--bs=1000"], "block size"),
        (&["--target=nvme://ffff:ff:1f.7/1", "--rw=read"], "oxblock pci list"),
        (&["--target=/no/such/folder/x", "--rw=read"], "--size"),
        (&["--target={\"driver\":\"qcow3\"}", "--rw=read"], "null-co"),
        (&["--target=null", "--rw=read", "--output=/no/such/folder/x"], "/no/such/folder/x"),
        (&["--target=null", "--rw=read", "--time_based", "--size=1m"], "runtime"),
    ] {
        let (_, err) = bad(args);
        assert!(err.contains(hint), "{args:?}: no `{hint}` in {err}");
    }
}

#[test]
fn help_is_no_failure() {
    let out = good(&["--help"]);
    for word in ["--rw", "--verify_only", "soft:PATH", "Exit code"] {
        assert!(out.contains(word), "no `{word}` in {out}");
    }
}

#[test]
fn the_report_goes_into_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("report.json");
    let output = format!("--output={}", path.display());
    let job = ["--target=null", "--rw=read", "--runtime=100ms", "--output-format=json"];
    assert_eq!(good(&[&job[..], &[&output]].concat()), "");
    let report = std::fs::read_to_string(path).expect("the report");
    let document: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert!(document["jobs"][0]["read"]["iops"].as_f64().is_some_and(|iops| iops > 0.0));
}

#[test]
fn an_interrupt_ends_early_with_what_there_is() {
    let _alone = alone();
    let begun = Instant::now();
    let child = Command::new(env!("CARGO_BIN_EXE_oxblock"))
        .args(["bench", "--target=null", "--rw=randread", "--runtime=60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    std::thread::sleep(Duration::from_millis(500));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    let output = child.wait_with_output().expect("it ends");
    let out = text(&output.stdout);
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(out.contains("ended early") && out.contains("IOPS"), "{out}");
    // Quiet in a pipe: no progress line.
    assert!(!text(&output.stderr).contains("IOPS"));
}

fn job_file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("a write");
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("a plain path")
}

#[test]
fn a_job_file_runs_its_jobs_side_by_side_and_one_after_the_other() {
    let file = job_file(
        "[global]\nfilename=memory\nsize=1m\n[a]\nrw=write\n[b]\nrw=randwrite\nbs=8k\n\
         [c]\nstonewall\nrw=randread\niodepth=4\n",
    );
    let report = json(&[path(&file)]);
    let jobs = report["jobs"].as_array().expect("jobs");
    let facts: Vec<(&str, u64, u64, u64)> = jobs
        .iter()
        .map(|job| {
            let number = |value: &serde_json::Value| value.as_u64().unwrap_or(u64::MAX);
            (
                job["jobname"].as_str().unwrap_or(""),
                number(&job["groupid"]),
                number(&job["read"]["total_ios"]),
                number(&job["write"]["total_ios"]),
            )
        })
        .collect();
    assert_eq!(facts, [("a", 0, 0, 256), ("b", 0, 0, 128), ("c", 1, 256, 0)]);
    assert_eq!(jobs[1]["job options"]["bs"], "8k");
    // One of them alone, and none.
    let only = json(&[path(&file), "--section=c"]);
    assert_eq!(only["jobs"].as_array().map(Vec::len), Some(1));
    assert!(bad(&[path(&file), "--section=d"]).1.contains("section"));
}

#[test]
fn jobs_of_the_command_line_begin_with_their_name() {
    let report = json(&[
        "--target=null",
        "--size=64k",
        "--name=one",
        "--rw=read",
        "--name=two",
        "--rw=randwrite",
        "--bs=8k",
    ]);
    let bytes = |job: usize, way: &str| report["jobs"][job][way]["io_bytes"].as_u64();
    assert_eq!((bytes(0, "read"), bytes(0, "write")), (Some(65_536), Some(0)));
    assert_eq!((bytes(1, "read"), bytes(1, "write")), (Some(0), Some(65_536)));
    assert_eq!(report["jobs"][1]["write"]["total_ios"], 8);
}

#[test]
fn exitall_ends_the_jobs_beside() {
    let file =
        job_file("[global]\nfilename=null\n[long]\nruntime=60\n[short]\nruntime=200ms\nexitall\n");
    let begun = Instant::now();
    let out = good(&[path(&file)]);
    assert!(begun.elapsed() < Duration::from_secs(30) && !out.contains("Ctrl-C"), "{out}");
}

#[test]
fn exit_what_chooses_who_ends() {
    let ran = |words: &str, jobs: &str| {
        let text = format!("[global]\nfilename=null\n[first]\nruntime=200ms\n{words}\n{jobs}");
        let report = json(&[path(&job_file(&text))]);
        let jobs = report["jobs"].as_array().expect("jobs").clone();
        jobs.iter().map(|job| job["job_runtime"].as_u64().unwrap_or(0)).collect::<Vec<_>>()
    };
    // A group ends together; the next one goes on, unless all that run are to end.
    let groups = "[same]\nruntime=60\n[other]\nnew_group\nruntime=700ms\n";
    let times = ran("exitall", groups);
    assert!(times[1] < 650 && times[2] >= 650, "{times:?}");
    let times = ran("exitall\nexit_what=stonewall", groups);
    assert!(times[1] < 650 && times[2] < 650, "{times:?}");
    let later = "[later]\nstonewall\nruntime=100ms\n";
    assert_eq!(ran("exitall\nexit_what=stonewall", later).len(), 2);
    assert_eq!(ran("exitall\nexit_what=all", later).len(), 1);
    assert_eq!(ran("exitall_on_error\nexit_what=all", later).len(), 2);
    let text = "[a]\nfilename=null\nrate_cycle=50\nrate_iops_min=100g\nexitall_on_error\nexit_what=all\n[b]\nstonewall\n";
    let (out, _) = bad(&[path(&job_file(text))]);
    assert!(
        out.contains("a: (groupid=0, jobs=1): err= 5 (reads were") && !out.contains("b: ("),
        "{out}"
    );
}

#[test]
fn a_status_of_running_jobs_is_written_between() {
    let job =
        "[global]\nfilename=null\nruntime=1\nbs=4k\n[a]\nrate_iops=1000\nslat_percentiles=1\n[b]\n";
    let file = job_file(job);
    let out = good(&[path(&file), "--status-interval=300ms", "--output-format=json"]);
    let documents = serde_json::Deserializer::from_str(&out).into_iter::<serde_json::Value>();
    let documents: Vec<_> = documents.map(|document| document.expect("JSON")).collect();
    assert!((2..=4).contains(&documents.len()), "{} documents", documents.len());
    let count = |document: &serde_json::Value| document["jobs"].as_array().map(Vec::len);
    assert!(documents.iter().all(|document| count(document) == Some(2)));
    for job in [0, 1] {
        let read = |document: &serde_json::Value| {
            let read = &document["jobs"][job]["read"];
            assert_eq!(read["clat_ns"]["N"], read["total_ios"]);
            (read["total_ios"].as_u64(), read["io_bytes"].as_u64(), read["runtime"].as_u64())
        };
        let all: Vec<_> = documents.iter().map(read).collect();
        assert!(all.is_sorted() && all[0].0 > Some(0), "{all:?}");
        assert!(all.iter().all(|(ios, bytes, _)| bytes == &ios.map(|ios| ios * 4096)), "{all:?}");
    }
    let args = ["--target=null", "--rw=read", "--runtime=1", "--status-interval=400ms"];
    let out = good(&args);
    assert!((2..=3).contains(&out.matches("Run status group 0").count()), "{out}");
    assert!(bad(&[&args[..3], &["--status-interval=1ms"]].concat()).1.contains("200ms"));
}

#[test]
fn grouped_jobs_are_one_entry() {
    let file = job_file(
        "[global]\nfilename=null\nsize=64k\ngroup_reporting\n[a]\n[b]\nrw=write\n[c]\nnew_group\n",
    );
    let report = json(&[path(&file)]);
    assert_eq!(report["jobs"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["jobs"][0]["read"]["total_ios"], 16);
    assert_eq!(report["jobs"][0]["write"]["total_ios"], 16);
}

#[test]
fn job_files_that_are_wrong_are_refused_by_line() {
    for (text, hint) in [
        ("[a]\niodpeth=3\n", "line 2: option `iodpeth`: no such option; did you mean `iodepth`?"),
        ("[a]\ncgroup=x\n", "fio has this option"),
        ("rw=read\n", "line 1"),
        ("\u{1}garbage\u{7f}", "line 1"),
        ("[a]\nfilename=a::b\n", "empty name"),
    ] {
        let (out, error) = bad(&[path(&job_file(text))]);
        assert!(error.contains(hint) && out.is_empty(), "{error}");
    }
    assert!(bad(&["/nonexistent/job.fio"]).1.contains("job.fio"));
    assert!(bad(&["--cgroup=x"]).1.contains("fio has this option"));
    assert!(bad(&["--fill_device"]).1.contains("`fill_device`: fio has this option"));
}

#[test]
fn a_job_goes_around_its_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = format!("--directory={}", folder.path().display());
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(folder.path()).expect("the folder");
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.expect("a file").file_name().to_string_lossy().into_owned()
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort_unstable();
        names
    };
    // Files of each clone, which share its size; written all over and flushed one by one.
    let own = [&directory[..], "--nrfiles=2", "--numjobs=2", "--size=128k", "--iodepth=4"];
    let write = ["--name=w", "--rw=randwrite", "--buffer_pattern=0x5a", "--end_fsync=1"];
    let report = json(&[&write[..], &own].concat());
    for job in report["jobs"].as_array().expect("jobs") {
        assert_eq!(
            (&job["write"]["total_ios"], &job["sync"]["total_ios"]),
            (&32.into(), &2.into())
        );
        assert_eq!(job["oxblock"]["heap_allocations_per_io"], 0.0);
    }
    assert_eq!(names(), ["w.0.0", "w.0.1", "w.1.0", "w.1.1"]);
    for name in names() {
        let bytes = std::fs::read(folder.path().join(&name)).expect("its bytes");
        assert_eq!(bytes.len(), 64 << 10, "{name}");
        assert!(bytes.iter().all(|&byte| byte == 0x5a), "{name}");
    }
    // The same files by name, for both clones, removed at the end.
    let listed = [&directory[..], "--filename=w.0.0:w.0.1:w.1.0:w.1.1", "--unlink=1"];
    let read =
        ["--name=r", "--rw=read", "--size=256k", "--file_service_type=sequential", "--numjobs=2"];
    let report = json(&[&read[..], &listed].concat());
    assert_eq!(report["jobs"][1]["read"]["io_bytes"], 256 << 10);
    assert_eq!(names(), [""; 0]);
}

#[test]
fn every_example_job_runs() {
    let jobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/jobs");
    let mut count = 0;
    for entry in std::fs::read_dir(jobs).expect("the examples") {
        let file = entry.expect("an example").path();
        // Some make files where they run.
        let folder = tempfile::tempdir().expect("a folder");
        let _alone = alone();
        let output = Command::new(env!("CARGO_BIN_EXE_oxblock"))
            .args(["bench", "--output-format=json"])
            .arg(&file)
            .current_dir(folder.path())
            .output()
            .expect("the binary runs");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        for job in report["jobs"].as_array().expect("jobs") {
            let ios: u64 = ["read", "write", "trim"]
                .iter()
                .filter_map(|w| job[*w]["total_ios"].as_u64())
                .sum();
            assert!(ios > 0 && job["error"] == 0, "{}: {job}", file.display());
        }
        assert!(output.status.success(), "{}", text(&output.stderr));
        let left = std::fs::read_dir(folder.path()).expect("the folder").count();
        assert_eq!(left, 0, "{}: files are left", file.display());
        count += 1;
    }
    assert!(count >= 20, "{count} examples");
}
