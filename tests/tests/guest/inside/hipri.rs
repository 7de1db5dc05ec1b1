//! `hipri` on the kernel's own disks: refused without queues to poll, and without interrupts where
//! there are some.

use std::fs;

use serde_json::Value;

use super::disks::FIRST;
use super::machine::{Said, disk, give, oxblock};
use super::{Start, Test};

const PARAMETER: &str = "/sys/module/nvme/parameters/poll_queues";

pub fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new("hipri::is_refused_without_queues_to_poll", refused));
    tests.push(Test::new("hipri::writes_and_verifies_without_interrupts", polled));
}

/// What a job on a disk of the first controller says.
fn said(nsid: u32, words: &[&str]) -> Said {
    let target = format!("--target={}", disk(&FIRST, nsid).display());
    oxblock(&[&["bench", &target, "--direct=1", "--size=3m"], words].concat())
}

/// This kernel refuses; one that falls back to interrupts has us say so.
fn refused() {
    let text = said(1, &["--hipri", "--rw=read"]).failure();
    assert!(text.contains("hipri") && text.contains("poll_queues"), "{text}");
}

fn polled() {
    fs::write(PARAMETER, "1").expect("the parameter of nvme");
    bind_anew();
    for nsid in [1, 2] {
        write_and_verify(nsid);
    }
    fs::write(PARAMETER, "0").expect("the parameter of nvme");
    bind_anew();
}

/// Queues are made when the driver takes a controller.
fn bind_anew() {
    for driver in ["vfio-pci", Start::default().driver] {
        give(FIRST.address, driver).expect("a controller");
    }
}

/// Flushes and discards go through a ring that is not polled, beside the one that is.
fn write_and_verify(nsid: u32) {
    let words = ["--rw=randwrite", "--iodepth=16", "--fsync=64", "--verify=crc32c"];
    let job = run(nsid, &[&["--hipri"], &words[..]].concat());
    assert_eq!(job["write"]["total_ios"], 768, "{job:#}");
    assert_eq!(job["read"]["total_ios"], 768, "what was written is read back");
    assert_eq!(job["sync"]["total_ios"], 12, "{job:#}");
    let job = run(nsid, &["--hipri", "--rw=trim", "--bs=64k", "--iodepth=16"]);
    assert_eq!(job["trim"]["total_ios"], 48, "{job:#}");
    // With one in flight, each end of an I/O is an interrupt of its own, or none.
    let [polled, interrupted] = [&["--hipri"][..], &[]].map(|more| {
        let before = interrupts();
        let job = run(nsid, &[&["--rw=randrw", "--iodepth=1"], more].concat());
        let ios = |way: &str| job[way]["total_ios"].as_u64().expect("a number");
        assert_eq!(ios("read") + ios("write"), 768);
        interrupts() - before
    });
    assert!(polled < 100 && interrupted >= 768, "{polled} and {interrupted} in 768 I/Os each");
}

fn run(nsid: u32, words: &[&str]) -> Value {
    let text = said(nsid, &[words, &["--output-format=json"]].concat()).success();
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    report["jobs"][0].clone()
}

/// Interrupts of all NVMe queues so far.
fn interrupts() -> u64 {
    let text = fs::read_to_string("/proc/interrupts").expect("the interrupts");
    let queues = text.lines().filter(|line| line.contains("nvme"));
    // Behind the number of the interrupt, how often it came to each processor.
    let counts = |line: &str| -> u64 {
        line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok()).sum()
    };
    queues.map(counts).sum()
}
