//! Functions behind no IOMMU: refused, unless somebody asks for them by name.

use super::disks::{FIRST, SECOND};
use super::machine::{driver, oxblock, run};
use super::{Machine, Test};

const UNSAFE_MODE: &str = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";

pub fn add(tests: &mut Vec<Test>) {
    let mut add = |name: &str, body: fn()| {
        tests.push(Test::new(&format!("noiommu::{name}"), body).machine(Machine::NoIommu));
    };
    add("functions_are_refused_until_asked_for", refused);
    add("blocks_are_written_and_read_back", verified);
}

fn allow(mode: u8) {
    run("modprobe vfio-pci");
    run(&format!("echo {mode} > {UNSAFE_MODE}"));
}

fn refused() {
    allow(0);
    let none = oxblock(&["pci", "bind", FIRST.address]).failure();
    assert!(none.contains("is in no IOMMU group"), "{none}");
    assert_eq!(driver(FIRST.address).as_deref(), Some("nvme"));
    allow(1);
    oxblock(&["pci", "bind", FIRST.address]).success();
    let listed = oxblock(&["pci", "list", FIRST.address]).success();
    assert!(listed.contains("(no IOMMU)"), "{listed}");
    let said = oxblock(&["nvme", "id-ctrl", FIRST.address]).failure();
    assert!(said.contains(&format!("say so: noiommu:{}", FIRST.address)), "{said}");
    let said = oxblock(&["nvme", "id-ctrl", &format!("noiommu:{}", FIRST.address)]).success();
    assert!(said.contains(FIRST.serial), "{said}");
    let doctor = oxblock(&["doctor", "--for=nvme"]);
    assert!(doctor.out.contains("no group: the kernel drives no IOMMU"), "{doctor:?}");
    doctor.failure();
    oxblock(&["pci", "unbind", FIRST.address]).success();
    assert_eq!(driver(FIRST.address).as_deref(), Some("nvme"));
}

/// Each page of what a command names must lie where the device thinks.
fn verified() {
    allow(1);
    oxblock(&["pci", "bind", FIRST.address, SECOND.address]).success();
    for (address, nsid) in [(FIRST.address, 1), (FIRST.address, 2), (SECOND.address, 1)] {
        let target = format!("--target=nvme://noiommu:{address}/{nsid}");
        for (shape, length) in [
            ("--bs=4k --iodepth=32 --rw=randwrite", "4m"),
            ("--bs=512k --iodepth=4 --rw=write", "4m"),
        ] {
            let size = format!("--size={length}");
            let mut words = vec!["bench", &target, &size, "--verify=crc32c"];
            words.extend(shape.split_whitespace());
            let said = oxblock(&words).success();
            assert!(said.contains("all good"), "{said}");
        }
    }
    oxblock(&["pci", "unbind", FIRST.address, SECOND.address]).success();
}
