//! `oxblock nvme` as a script runs it, against the software controller.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

#[path = "nvme/stats.rs"]
mod stats;

fn oxblock(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oxblock"));
    // No terminal: what would ask must refuse.
    command.args(args).stdin(Stdio::null()).output().expect("the binary runs")
}

fn nvme(args: &[&str]) -> Output {
    oxblock(&[&["nvme"], args].concat())
}

/// What a command that must succeed prints as JSON.
fn json_of(args: &[&str]) -> Value {
    let output = nvme(&[args, &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Exit code and message of a command that must fail.
fn failure(args: &[&str]) -> (Option<i32>, String) {
    let output = nvme(args);
    assert!(output.stdout.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_controller_is_listed_and_identified() {
    let list = json_of(&["list", "soft"]);
    let device = &list["Devices"][0];
    assert_eq!((&device["DevicePath"], &device["NameSpace"]), (&json!("soft"), &json!(1)));
    assert_eq!(device["SectorSize"], 512);
    let controller = json_of(&["id-ctrl", "soft"]);
    assert_eq!(controller["sn"], "OXBLOCK0");
    assert_eq!(controller["sqes"], 0x66);
    assert_eq!(controller["psds"].as_array().map(Vec::len), Some(1));
    let namespace = json_of(&["id-ns", "soft", "--namespace-id=1"]);
    assert_eq!(namespace["nsze"], 64 << 11);
    assert_eq!(json_of(&["list-ns", "soft"])["nsid_list"], json!([{ "nsid": 1 }]));
    let text = String::from_utf8(nvme(&["id-ns", "soft"]).stdout).expect("text");
    assert!(text.contains("nsze     : 0x20000\n") && text.contains("(in use)"), "{text}");
}

#[test]
fn a_list_of_everything_needs_no_device() {
    let output = nvme(&["list"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("Device"));
    let both = json_of(&["list", "soft", "soft"]);
    assert_eq!(both["Devices"].as_array().map(Vec::len), Some(2));
}

#[test]
fn logs_are_read() {
    let smart = json_of(&["smart-log", "soft"]);
    assert_eq!((&smart["temperature"], &smart["avail_spare"]), (&json!(313), &json!(100)));
    let slots = json_of(&["fw-log", "soft"]);
    assert_eq!(slots["afi"].as_u64().map(|afi| afi & 7), Some(1));
    assert_eq!(json_of(&["error-log", "soft"])["errors"], json!([]));
}

#[test]
fn features_are_read_and_set() {
    let threshold = json_of(&["get-feature", "soft", "--feature-id=4"]);
    assert_eq!(
        (&threshold["value"], &threshold["name"]),
        (&json!(343), &json!("Temperature Threshold"))
    );
    let clock = json_of(&["get-feature", "soft", "-f", "0xe"]);
    assert_eq!(clock["data"].as_str().map(str::len), Some(16));
    json_of(&["set-feature", "soft", "-f", "4", "-V", "330"]);
    let (code, text) = failure(&["set-feature", "soft", "-f", "2", "-V", "5"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("invalid field in command"), "{text}");
}

#[test]
fn a_controller_comes_back_from_its_reset() {
    assert_eq!(json_of(&["reset", "soft"])["sn"], "OXBLOCK0");
}

/// A file full of bytes, and the name of the controller over it.
fn disk() -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), vec![0x5a; 4 << 20]).expect("room for 4 MiB");
    let device = format!("soft:{}", file.path().display());
    (file, device)
}

fn is_erased(file: &tempfile::NamedTempFile) -> bool {
    std::fs::read(file.path()).expect("the file").iter().all(|byte| *byte == 0)
}

#[test]
fn a_format_erases_what_lies_below() {
    let (file, device) = disk();
    assert_eq!(json_of(&["id-ns", &device])["nsze"], 8192);
    let (code, text) = failure(&["format", &device, "--yes", "--block-size=1024"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no LBA format of 1024 bytes"), "{text}");
    let crypto = failure(&["format", &device, "--yes", "--ses=2"]);
    assert_eq!(crypto.0, Some(1), "{}", crypto.1);
    assert!(!is_erased(&file));
    let done = json_of(&["format", &device, "--yes", "--block-size=4096", "--ses=1"]);
    assert_eq!(done["lbaf"], 1);
    assert!(is_erased(&file));
}

#[test]
fn a_sanitize_erases_and_says_when_it_is_done() {
    let (file, device) = disk();
    let log = json_of(&[
        "sanitize",
        &device,
        "--yes",
        "--sanact=start-overwrite",
        "--ovrpat=0",
        "--owpass=2",
        "--wait",
    ]);
    assert_eq!(log["sstat"]["status_words"], "the last sanitize succeeded");
    assert_eq!(log["sstat"]["no_cmplted_passes"], 2);
    assert!(is_erased(&file));
    let (code, text) = failure(&["sanitize", "soft", "--yes", "-a", "start-crypto-erase"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("invalid field in command"), "{text}");
    assert_eq!(json_of(&["sanitize-log", "soft"])["sstat"]["status"], 0);
}

#[test]
fn namespaces_are_created_and_deleted() {
    let created = json_of(&["create-ns", "soft", "--nsze=1024", "--flbas=1"]);
    assert_eq!(created["nsid"], 2);
    let (code, text) = failure(&["create-ns", "soft", "--nsze=0x10000000000"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("namespace insufficient capacity"), "{text}");
    let (code, text) = failure(&["attach-ns", "soft", "-n", "1"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("namespace already attached"), "{text}");
    assert_eq!(json_of(&["detach-ns", "soft", "-n", "1"])["nsid"], 1);
    assert_eq!(json_of(&["delete-ns", "soft", "--yes"])["nsid"], 1);
    assert_eq!(json_of(&["list-ns", "soft", "--all"])["nsid_list"], json!([{ "nsid": 1 }]));
}

#[test]
fn firmware_is_sent_and_refused_if_it_is_none() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), b"no firmware").expect("written");
    let path = file.path().display().to_string();
    assert_eq!(json_of(&["fw-download", "soft", "--fw", &path])["bytes"], 12);
    let (code, text) = failure(&["fw-commit", "soft", "--slot=2", "--action=1"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("invalid firmware image"), "{text}");
    json_of(&["fw-commit", "soft", "--slot=1", "--action=3"]);
}

#[test]
fn what_destroys_data_is_not_done_unasked() {
    for args in [
        &["format", "soft"][..],
        &["delete-ns", "soft", "-n", "1"],
        &["sanitize", "soft", "-a", "start-block-erase"],
    ] {
        let (code, text) = failure(args);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("--yes") && text.contains("all data of"), "{text}");
    }
}

#[test]
fn exit_codes_tell_a_wrong_line_from_a_device_that_refuses() {
    let (code, text) = failure(&["id-ns", "soft", "-n", "4096"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("invalid namespace or format (SCT 0h SC 0Bh"), "{text}");
    for wrong in [
        &["id-ns", "bogus"][..],
        &["get-feature", "soft"],
        &["get-feature", "soft", "-f", "256"],
        &["fw-download", "soft", "--fw=/no/such/file"],
        &["frobnicate", "soft"],
    ] {
        assert_eq!(failure(wrong).0, Some(2), "{wrong:?}");
    }
    let (code, text) = failure(&["id-ctrl", "ffff:ff:1f.7"]);
    assert_eq!(code, Some(1), "{text}");
}
