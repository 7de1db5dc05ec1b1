//! `oxblock bench` on controllers that nobody here wrote.

use std::fs;

use serde_json::Value;

use super::disks::{CONTROLLERS, Controller, FIRST, SECOND};
use super::machine::{disk, function, give, oxblock};
use super::{Machine, Start, Test};

pub fn add(tests: &mut Vec<Test>) {
    let (huge, small) = (Start::handed_over(), Start::handed_over_in_small_pages());
    for (place, machine, start) in [
        ("hugepages", Machine::Stock, huge),
        ("small_pages", Machine::Stock, small),
        ("iommufd::hugepages", Machine::Iommufd, huge),
        ("iommufd::small_pages", Machine::Iommufd, small),
        ("noiommu", Machine::NoIommu, huge),
    ] {
        let mut add = |name: &str, body: fn()| {
            let test = Test::new(&format!("bench::{place}::{name}"), body);
            tests.push(test.machine(machine).start(start));
        };
        add("each_namespace_is_written_and_verified", each_namespace);
        add("two_controllers_and_four_namespaces_at_once", all_at_once);
        add("two_reactors_share_a_controller", two_reactors);
        add("the_kernel_verifies_what_was_written", kernel_verifies);
    }
    let metadata = Test::new("bench::a_namespace_with_metadata_is_refused", metadata);
    tests.push(metadata.start(huge));
    let unasked = Test::new("bench::noiommu::is_refused_unless_asked_for_by_name", unasked);
    tests.push(unasked.machine(Machine::NoIommu).start(huge));
}

/// The name of a target.
fn target(controller: &Controller, nsid: u32) -> String {
    format!("nvme://{}/{nsid}", function(controller))
}

/// The four namespaces that hold plain blocks all the time.
fn targets() -> Vec<String> {
    let of = |controller: &Controller| [1, 2].map(|nsid| target(controller, nsid));
    CONTROLLERS.iter().flat_map(of).collect()
}

/// The jobs of a run, which must succeed.
fn bench(words: &[&str]) -> Vec<Value> {
    let said = oxblock(&[&["bench", "--output-format=json"], words].concat()).success();
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
    let jobs = report["jobs"].as_array().unwrap_or_else(|| panic!("no jobs: {said}"));
    assert!(jobs.iter().all(|job| job["error"] == 0), "{said}");
    jobs.clone()
}

fn each_namespace() {
    for target in targets() {
        let target = format!("--target={target}");
        let size = ["--size=3m", "--iodepth=16", "--verify=crc32c"];
        let jobs = bench(&[&["--rw=randwrite", "--bs=4k", &target], &size[..]].concat());
        assert_eq!(jobs[0]["write"]["total_ios"], 768, "{target}");
        assert_eq!(jobs[0]["read"]["total_ios"], 768, "what was written to {target} is read back");
        let jobs = bench(&["--rw=read", "--bs=64k", "--size=3m", &target]);
        assert_eq!(jobs[0]["read"]["io_bytes"], 3 << 20, "{target}");
    }
}

fn all_at_once() {
    let mut file = "[global]\nrw=randwrite\nbs=4k\niodepth=8\nsize=2m\nverify=crc32c\n".to_owned();
    for (number, target) in targets().iter().enumerate() {
        file.push_str(&format!("[job{number}]\nfilename={target}\n"));
    }
    fs::write("/tmp/all.fio", file).expect("a file");
    let jobs = bench(&["/tmp/all.fio"]);
    assert_eq!(jobs.len(), 4);
    assert!(jobs.iter().all(|job| job["read"]["total_ios"] == 512), "{jobs:?}");
}

fn two_reactors() {
    let target = format!("--target={}", target(&FIRST, 1));
    let words = ["--rw=randrw", "--bs=4k", "--iodepth=8", "--size=2m", "--numjobs=2"];
    let jobs = bench(&[&words[..], &[target.as_str()]].concat());
    assert_eq!(jobs.len(), 2, "{jobs:?}");
    for job in &jobs {
        let ios = |kind: &str| job[kind]["total_ios"].as_u64().unwrap_or(0);
        assert_eq!(ios("read") + ios("write"), 512, "{job:#}");
    }
}

/// The very same check of the blocks, by another driver.
fn kernel_verifies() {
    let words = ["--rw=randwrite", "--bs=4k", "--iodepth=8", "--size=3m", "--verify=crc32c"];
    for nsid in [1, 2] {
        give(SECOND.address, "vfio-pci").expect("a controller");
        let ours = format!("--target={}", target(&SECOND, nsid));
        bench(&[&words[..], &["--do_verify=0", &ours]].concat());
        give(SECOND.address, "nvme").expect("a controller");
        let theirs = format!("--target={}", disk(&SECOND, nsid).display());
        let jobs = bench(&[&words[..], &["--verify_only", &theirs]].concat());
        assert_eq!(jobs[0]["read"]["total_ios"], 768, "{theirs}");
    }
}

/// A block has 8 bytes more there, for which a buffer has no room.
fn metadata() {
    let target = format!("--target={}", target(&SECOND, 3));
    let said = oxblock(&["bench", "--rw=read", "--size=1m", &target]).failure();
    assert!(said.contains("metadata"), "{said}");
}

fn unasked() {
    let target = format!("--target=nvme://{}/1", FIRST.address);
    let said = oxblock(&["bench", "--rw=read", "--size=1m", &target]).failure();
    assert!(said.contains("noiommu:0000:01:00.0"), "{said}");
}
