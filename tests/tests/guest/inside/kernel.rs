//! The kernel's own driver sees the disks as they were made: what everything else stands on.

use std::fs;

use super::Test;
use super::disks::CONTROLLERS;
use super::machine::{disk, read_at, write_at};

pub fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new("kernel::drives_each_namespace", drives_each_namespace));
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
