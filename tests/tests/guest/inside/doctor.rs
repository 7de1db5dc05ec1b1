//! `oxblock doctor` on a machine that has what it looks for.

use super::disks::FIRST;
use super::machine::{disk, oxblock, run};
use super::{Start, Test};

pub fn add(tests: &mut Vec<Test>) {
    let bare = Start { hugepages: 0, ..Start::default() };
    tests.push(Test::new("doctor::finds_the_iommu_and_each_controller", finds_devices));
    tests.push(Test::new("doctor::sees_who_holds_a_disk", sees_holders).start(bare));
}

fn finds_devices() {
    let said = oxblock(&["doctor"]).success();
    for words in [
        "ok       IOMMU",
        "2 MiB: 48 reserved, 48 free",
        "0000:01:00.0: driver nvme, group ",
        "0000:02:00.0: driver nvme, group ",
    ] {
        assert!(said.contains(words), "no `{words}` in:\n{said}");
    }
}

fn sees_holders() {
    let disk = disk(&FIRST, 1).display().to_string();
    run(&format!("mkswap {disk} && swapon {disk}"));
    let said = oxblock(&["doctor", "--for=nvme"]);
    run(&format!("swapoff {disk}"));
    assert!(said.out.contains("IN USE: "), "{said:?}");
    assert!(said.out.contains("no page is reserved"), "{said:?}");
    said.failure();
}
