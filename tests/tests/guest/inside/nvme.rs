//! `oxblock nvme` on controllers that nobody here wrote.

use serde_json::{Value, json};

use super::disks::{CONTROLLERS, FIRST, SECOND};
use super::machine::{disk, give, oxblock, read_at, write_at};
use super::{Start, Test};

pub fn add(tests: &mut Vec<Test>) {
    let mut add = |name: &str, body: fn()| {
        tests.push(Test::new(&format!("nvme::{name}"), body).start(Start::handed_over()));
    };
    add("lists_each_controller_with_its_namespaces", list);
    add("identifies_controllers_and_namespaces", identify);
    add("reads_logs_and_features", logs);
    add("resets_a_controller", reset);
    tests.push(Test::new("nvme::a_formatted_namespace_is_empty", format));
    tests.push(Test::new("nvme::a_controller_of_the_kernel_is_refused", refused));
}

/// What `oxblock nvme` with these words prints as JSON.
fn nvme(words: &[&str]) -> Value {
    let said = oxblock(&[&["nvme"], words, &["--json"]].concat()).success();
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
}

fn list() {
    let listed = nvme(&["list", FIRST.address, SECOND.address]);
    let devices = listed["Devices"].as_array().expect("a list");
    for controller in &CONTROLLERS {
        for namespace in controller.namespaces {
            let is_it = |device: &&Value| {
                device["SerialNumber"] == controller.serial && device["NameSpace"] == namespace.nsid
            };
            let found = devices.iter().find(is_it).unwrap_or_else(|| panic!("{listed:#}"));
            assert_eq!(found["SectorSize"], namespace.block_size, "{found:#}");
        }
    }
}

fn identify() {
    for controller in &CONTROLLERS {
        let found = nvme(&["id-ctrl", controller.address]);
        assert_eq!(found["sn"], controller.serial, "{found:#}");
        assert_eq!(found["mn"].as_str().map(str::trim), Some("QEMU NVMe Ctrl"));
        let ids: Vec<Value> =
            controller.namespaces.iter().map(|one| json!({ "nsid": one.nsid })).collect();
        assert_eq!(nvme(&["list-ns", controller.address])["nsid_list"], json!(ids));
        for namespace in controller.namespaces.iter().filter(|one| one.metadata_size == 0) {
            let nsid = format!("--namespace-id={}", namespace.nsid);
            let found = nvme(&["id-ns", controller.address, &nsid]);
            assert_eq!(found["nsze"], namespace.length / u64::from(namespace.block_size));
        }
    }
}

fn logs() {
    let smart = nvme(&["smart-log", FIRST.address]);
    assert!(smart["temperature"].as_u64().is_some_and(|kelvin| kelvin > 200), "{smart:#}");
    assert!(nvme(&["error-log", FIRST.address])["errors"].is_array());
    assert!(nvme(&["fw-log", FIRST.address])["afi"].is_u64());
    let threshold = nvme(&["get-feature", FIRST.address, "--feature-id=4"]);
    assert!(threshold["value"].is_u64(), "{threshold:#}");
    let set = oxblock(&["nvme", "set-feature", FIRST.address, "-f", "4", "-V", "340"]);
    set.success();
}

fn reset() {
    assert_eq!(nvme(&["reset", SECOND.address])["sn"], SECOND.serial);
}

/// What the kernel wrote is gone, and blocks of another size are there, for the kernel as well.
fn format() {
    let path = disk(&SECOND, 4);
    write_at(&path, 0, &[0x5a; 8192]);
    give(SECOND.address, "vfio-pci").expect("a controller");
    let words = ["nvme", "format", SECOND.address, "--namespace-id=4"];
    assert!(oxblock(&words).failure().contains("--yes"), "it formats without being told to");
    for (block_size, wanted) in [("--block-size=4096", 4096), ("--block-size=512", 512)] {
        oxblock(&[&words[..], &[block_size, "--yes"]].concat()).success();
        let found = nvme(&["list", SECOND.address]);
        let devices = found["Devices"].as_array().into_iter().flatten();
        let mut formatted = devices.filter(|device| device["NameSpace"] == 4);
        assert_eq!(formatted.next().map(|one| &one["SectorSize"]), Some(&json!(wanted)));
    }
    give(SECOND.address, "nvme").expect("a controller");
    assert_eq!(read_at(&disk(&SECOND, 4), 0, 8192), [0; 8192]);
}

fn refused() {
    let said = oxblock(&["nvme", "id-ctrl", FIRST.address]).failure();
    assert!(said.contains("oxblock pci bind 0000:01:00.0"), "{said}");
}
