//! `oxblock bench compare` on results as they are made: ours, and fio's where there is fio.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn oxblock(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oxblock"));
    command.arg("bench").args(args).stdin(Stdio::null()).output().expect("the binary runs")
}

fn compare(args: &[&str]) -> serde_json::Value {
    let output = oxblock(&[&["compare", "--output-format=json"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A short run of ours, its result at `path`.
fn our_result(path: &Path) {
    let output = format!("--output={}", path.display());
    let job = ["--target=null", "--rw=randread", "--runtime=800ms", "--output-format=json"];
    let output = oxblock(&[&job[..], &[&output]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn our_results_are_compared_with_intervals() {
    let folder = tempfile::tempdir().expect("a folder");
    let paths = ["a.json", "b.json"].map(|name| folder.path().join(name));
    paths.iter().for_each(|path| our_result(path));
    let [a, b] = paths.map(|path| path.display().to_string());
    let document = compare(&[&a, &b]);
    let job = &document["jobs"][0];
    assert_eq!(job["name"], "randread");
    assert_eq!(job["intervals_from"], serde_json::json!(["batches", "batches"]));
    for side in [0, 1] {
        let iops = &job["read"]["iops"][side];
        assert!(iops["low"].as_f64() < iops["value"].as_f64(), "{iops}");
        assert!(job["read"]["p99"][side]["value"].as_f64().is_some(), "{job}");
    }
    // The same result on both sides: no difference, and the interval says so.
    let same = compare(&[&a, &a]);
    let iops = &same["jobs"][0]["read"]["iops"][1];
    assert_eq!(iops["ratio"], 1.0);
    assert!(iops["ratio_low"].as_f64() <= Some(1.0) && iops["ratio_high"].as_f64() >= Some(1.0));
    let both = compare(&[&format!("{a},{b}"), &a]);
    assert_eq!(both["jobs"][0]["intervals_from"][0], "files");
    let text = oxblock(&["compare", &a, &b]).stdout;
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("IOPS") && text.contains("B / A"), "{text}");
}

#[test]
fn fios_result_is_compared_with_ours() {
    let folder = tempfile::tempdir().expect("a folder");
    let [ours, fios] = ["ours.json", "fio.json"].map(|name| folder.path().join(name));
    let made = Command::new("timeout")
        .args(["60", "fio", "--name=job", "--ioengine=null", "--size=1g", "--rw=randread"])
        .args(["--runtime=1", "--time_based", "--output-format=json"])
        .arg(format!("--output={}", fios.display()))
        .current_dir(folder.path())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no fio on this machine");
        return;
    }
    our_result(&ours);
    let document = compare(&[&fios.display().to_string(), &ours.display().to_string()]);
    assert!(document["sides"][0]["program"].as_str().is_some_and(|name| name.starts_with("fio-")));
    let read = &document["jobs"][0]["read"];
    for metric in ["iops", "bw_bytes", "mean", "p50", "p99.99", "max"] {
        for side in [0, 1] {
            assert!(read[metric][side]["value"].as_f64().is_some(), "{metric}: {read}");
        }
    }
}

#[test]
fn what_cannot_be_compared_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("not.json");
    std::fs::write(&path, "nothing").expect("a file");
    let path = path.display().to_string();
    for (args, word) in [
        (&["compare", "/no/such/file", "/no/such/file"][..], "/no/such/file"),
        (&["compare", &path, &path], "not.json"),
        (&["compare", &path], "SIDE"),
        (&["compare", "/dev/zero", "/dev/zero"], "64 MiB"),
    ] {
        let output = oxblock(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(word), "{args:?}: {text}");
    }
}
