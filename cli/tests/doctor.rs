//! `oxblock doctor` as a user runs it: it looks at this very machine.

use std::process::{Command, Output};

fn doctor(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oxblock"));
    command.arg("doctor").args(args).output().expect("the binary runs")
}

fn json(args: &[&str]) -> (serde_json::Value, Option<i32>) {
    let output = doctor(&[args, &["--json"]].concat());
    (serde_json::from_slice(&output.stdout).expect("JSON"), output.status.code())
}

#[test]
fn the_exit_code_follows_what_was_asked_for() {
    for (args, asked) in [
        (&[][..], &["base"][..]),
        (&["--for=bench"], &["base", "bench"]),
        (&["--for=nvme,bench"], &["base", "nvme", "bench"]),
    ] {
        let (document, code) = json(args);
        let ready = asked.iter().all(|purpose| document["ready"][purpose] == true);
        assert_eq!(document["asked"], serde_json::json!(asked));
        assert_eq!((document["good"].as_bool(), code), (Some(ready), Some(i32::from(!ready))));
    }
}

#[test]
fn each_check_says_what_was_found() {
    let (document, _) = json(&[]);
    let checks = document["checks"].as_array().expect("checks");
    assert_eq!(checks.len(), 11);
    for check in checks {
        let missing = check["missing"].is_string();
        assert!(check["found"].as_array().is_some_and(|found| !found.is_empty()), "{check}");
        assert_eq!(check["state"] == "ok", !missing, "{check}");
        assert_eq!(check["state"] == "missing", check["missing_for"] != serde_json::json!([]));
    }
    let text = String::from_utf8(doctor(&[]).stdout).expect("text");
    assert!(text.contains("Nothing was changed."), "{text}");
}

#[test]
fn an_unknown_purpose_is_refused() {
    let output = doctor(&["--for=disco"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nvme"));
}
