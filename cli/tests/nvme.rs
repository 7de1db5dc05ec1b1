//! `oxblock nvme` as a script runs it, against the software controller.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn nvme(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oxblock"));
    // No terminal: what would ask must refuse.
    command.arg("nvme").args(args).stdin(Stdio::null()).output().expect("the binary runs")
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
