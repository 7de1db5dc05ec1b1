//! The same jobs on fio and on `oxblock bench`: bytes, counts, mixes and sizes must agree.
//! Without fio installed nothing is compared, which is said by name.

#[path = "fio/examples.rs"]
mod examples;
#[path = "fio/terse.rs"]
mod terse;
#[path = "fio/tools.rs"]
mod tools;
#[path = "fio/verify.rs"]
mod verify;

use std::process::Command;

use serde_json::Value;

/// Jobs, with the relative difference that chance may make.
const JOBS: &[(&str, f64)] = &[
    ("rw=read bs=4k size=1m", 0.0),
    ("rw=write bs=128k size=4m iodepth=4", 0.0),
    ("rw=randread bs=4k size=4m iodepth=16", 0.0),
    ("rw=randwrite bs=8k size=1m loops=3", 0.0),
    ("rw=randrw rwmixread=70 bs=4k size=8m iodepth=8", 0.1),
    ("rw=randrw rwmixwrite=20 bs=4k,8k size=16m", 0.1),
    ("rw=randread bs=4k size=16m io_size=1m", 0.0),
    ("rw=randread bs=4k size=16m number_ios=100", 0.0),
    ("rw=randread bssplit=4k/50:64k/50 size=64m norandommap", 0.1),
    ("rw=read bsrange=4k-16k size=16m", 0.1),
    ("rw=randread bs=4k size=4m random_distribution=zipf:1.1", 0.0),
    ("rw=write bs=4k size=1m numjobs=2 group_reporting", 0.0),
    ("rw=write bs=4k size=256k offset_increment=256k numjobs=2 group_reporting", 0.0),
    ("rw=read bs=64k size=1m offset=512k", 0.0),
    ("rw=randtrim bs=64k size=4m", 0.0),
    ("rw=trimwrite bs=64k size=4m", 0.0),
    ("rw=write bs=4k size=256k fsync=8", 0.0),
    ("rw=randread bs=4k number_ios=200 size=4m rate_iops=1000", 0.0),
];

fn report(program: &str, first: &[&str], job: &str) -> Value {
    let mut words: Vec<String> = first.iter().map(|word| (*word).to_owned()).collect();
    words.push("--name=job".to_owned());
    words.extend(job.split(' ').map(|word| match word.contains('=') {
        true => format!("--{word}"),
        false => format!("--{word}=1"),
    }));
    words.push("--output-format=json".to_owned());
    let output = Command::new(program).args(&words).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let start = text.find('{').unwrap_or_else(|| {
        panic!("{program} {words:?}: {text}{}", String::from_utf8_lossy(&output.stderr))
    });
    serde_json::from_str(&text[start..]).expect("JSON")
}

fn agree(what: &str, job: &str, theirs: &Value, ours: &Value, tolerance: f64) {
    let (theirs, ours) = (theirs.as_f64().unwrap_or(-1.0), ours.as_f64().unwrap_or(-2.0));
    let apart = (theirs - ours).abs() / theirs.max(1.0);
    assert!(apart <= tolerance, "{job}: {what} of fio is {theirs}, ours {ours}");
}

#[test]
fn fio_and_we_agree_on_what_was_done() {
    if Command::new("fio").arg("--version").output().is_err() {
        eprintln!("skipped: fio is not installed (apt-get install fio)");
        return;
    }
    for &(job, tolerance) in JOBS {
        let theirs = report("fio", &["--ioengine=null", "--filesize=1g", "--thread"], job);
        let ours = report(env!("CARGO_BIN_EXE_oxblock"), &["bench", "--target=null"], job);
        let (theirs, ours) = (&theirs["jobs"], &ours["jobs"]);
        assert_eq!(theirs.as_array().map(Vec::len), ours.as_array().map(Vec::len), "{job}");
        for way in ["read", "write", "trim"] {
            for key in ["io_bytes", "total_ios"] {
                let (theirs, ours) = (&theirs[0][way][key], &ours[0][way][key]);
                agree(&format!("{way} {key}"), job, theirs, ours, tolerance);
            }
            let keys = |job: &Value| -> Vec<String> {
                job[0][way]["clat_ns"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|e| e.0.clone())
                    .collect()
            };
            for key in keys(theirs) {
                assert!(keys(ours).contains(&key), "{job}: {way} clat_ns has no {key}");
            }
        }
    }
}
