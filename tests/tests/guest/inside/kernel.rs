//! The kernel's own driver sees the disks as they were made: what everything else stands on.

use std::fs;

use super::disks::{CONTROLLERS, FIRST};
use super::machine::{disk, give, read_at, run, write_at};
use super::{Machine, Start, Test};

pub fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new("kernel::drives_each_namespace", drives_each_namespace));
    let with_iommufd = Test::new("kernel::iommufd::makes_a_node_of_each_device", iommufd);
    tests.push(with_iommufd.machine(Machine::Iommufd).start(Start::handed_over()));
    let without = Test::new("kernel::noiommu::has_no_group_until_told", noiommu);
    tests.push(without.machine(Machine::NoIommu));
}

fn drives_each_namespace() {
    for controller in &CONTROLLERS {
        for namespace in controller.namespaces.iter().filter(|one| one.metadata_size == 0) {
            let path = disk(controller, namespace.nsid);
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            let attribute = |which| {
                let text = fs::read_to_string(format!("/sys/class/block/{name}/{which}"));
                text.expect("an attribute").trim().parse::<u64>().expect("a number")
            };
            assert_eq!(attribute("size") * 512, namespace.length, "{name}");
            assert_eq!(attribute("queue/logical_block_size"), u64::from(namespace.block_size));
            let bytes = vec![namespace.nsid as u8; 8192];
            write_at(&path, namespace.length - 8192, &bytes);
            assert_eq!(read_at(&path, namespace.length - 8192, 8192), bytes, "{name}");
        }
    }
}

fn iommufd() {
    for controller in &CONTROLLERS {
        let folder = format!("/sys/bus/pci/devices/{}/vfio-dev", controller.address);
        let name = run(&format!("ls {folder}"));
        assert!(fs::exists(format!("/dev/vfio/devices/{}", name.trim())).expect("a folder"));
    }
    assert!(fs::exists("/dev/iommu").expect("a folder"));
}

/// `oxblock` asks for that mode by the same file.
fn noiommu() {
    assert_eq!(fs::read_dir("/sys/kernel/iommu_groups").map_or(0, Iterator::count), 0);
    run("modprobe vfio-pci");
    run("echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode");
    give(FIRST.address, "vfio-pci").expect("a controller");
    assert!(
        fs::read_dir("/dev/vfio")
            .expect("a folder")
            .flatten()
            .any(|entry| { entry.file_name().to_string_lossy().starts_with("noiommu-") })
    );
}
