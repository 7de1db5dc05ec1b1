use std::os::unix::fs::symlink;
use std::path::Path;

use oxblock_pci::host::Root;

use super::cpu::cpu_list;
use super::finding::{Finding, Purpose};
use super::{cpu, devices, kernel, look, memory, report};

/// A root directory made of files (`path`, text) and links (`path`, target).
struct Fake(tempfile::TempDir);

impl Fake {
    fn new(files: &[(&str, &str)]) -> Fake {
        let fake = Fake(tempfile::tempdir().expect("a folder"));
        for (path, text) in files {
            fake.write(path, text.as_bytes());
        }
        fake
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        std::fs::write(path, bytes).expect("a file");
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        symlink(target, path).expect("a link");
    }

    fn root(&self) -> Root {
        Root::new(self.0.path())
    }
}

const PCI: &str = "sys/bus/pci/devices";

/// A machine with two NVMe devices: one holds the system on a mapped partition, one is free.
fn two_disks() -> Fake {
    let fake = Fake::new(&[
        ("sys/bus/pci/devices/0000:01:00.0/class", "0x010802\n"),
        ("sys/bus/pci/devices/0000:01:00.0/numa_node", "-1\n"),
        ("sys/bus/pci/devices/0000:01:00.0/nvme/nvme0/nvme0n1/size", "1\n"),
        ("sys/bus/pci/devices/0000:02:00.0/class", "0x010802\n"),
        ("sys/bus/pci/devices/0000:02:00.0/numa_node", "1\n"),
        ("sys/bus/pci/devices/0000:02:00.0/nvme/nvme1/nvme1c1n1/size", "1\n"),
        ("sys/bus/pci/devices/0000:02:00.1/class", "0x020000\n"),
        ("sys/bus/pci/devices/0000:00:01.0/class", "0x060400\n"),
        ("sys/block/nvme0n1/dev", "259:0\n"),
        ("sys/block/nvme0n1/nvme0n1p2/partition", "2\n"),
        ("sys/block/nvme0n1/nvme0n1p2/dev", "259:2\n"),
        ("sys/block/nvme0n1/nvme0n1p2/holders/dm-0/dev", "253:0\n"),
        ("sys/block/dm-0/dev", "253:0\n"),
        ("sys/block/nvme1n1/dev", "259:5\n"),
        ("proc/self/mountinfo", "20 1 253:0 / /srv\\040data rw - ext4 /dev/mapper/root rw\n"),
    ]);
    for (address, group) in [("0000:01:00.0", 1), ("0000:02:00.0", 2)] {
        fake.link(&format!("{PCI}/{address}/driver"), "../../../../bus/pci/drivers/nvme");
        let target = format!("../../../../kernel/iommu_groups/{group}");
        fake.link(&format!("{PCI}/{address}/iommu_group"), &target);
    }
    for address in ["0000:00:01.0", "0000:02:00.0", "0000:02:00.1"] {
        fake.write(&format!("sys/kernel/iommu_groups/2/devices/{address}/class"), b"");
    }
    fake
}

#[test]
fn every_anchor_stands_in_the_long_form() {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../hugepages.md"))
            .expect("hugepages.md");
    let anchors: Vec<String> = text
        .lines()
        .filter_map(|line| Some(line.strip_prefix("##")?.trim_start_matches('#').trim()))
        .map(|title| title.to_lowercase().replace(' ', "-"))
        .collect();
    for finding in look(&Fake::new(&[]).root(), 0) {
        assert!(anchors.iter().any(|a| a == finding.anchor), "no section {}", finding.anchor);
    }
}

#[test]
fn every_lack_comes_with_what_mends_it() {
    for fake in [Fake::new(&[]), two_disks()] {
        for errno in [0, libc::EPERM, libc::ENOSYS, libc::ENOMEM, libc::EIO] {
            for finding in look(&fake.root(), errno) {
                let lacks = finding.missing.is_some();
                assert!(!finding.found.is_empty() && !finding.why.is_empty(), "{finding:?}");
                assert!(!lacks || !finding.mend.is_empty(), "{finding:?}");
            }
        }
    }
}

#[test]
fn hugepages_are_told_by_size_and_node() {
    let small = "hugepages/hugepages-2048kB";
    let fake = Fake::new(&[
        ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512\n"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "500\n"),
        ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0\n"),
        ("sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "0\n"),
    ]);
    for (node, free) in [(0, 500), (1, 0)] {
        for (file, count) in [("nr_hugepages", 512 * (1 - node)), ("free_hugepages", free)] {
            let path = format!("sys/devices/system/node/node{node}/{small}/{file}");
            fake.write(&path, count.to_string().as_bytes());
        }
    }
    let finding = memory::hugepages(&fake.root());
    assert_eq!(finding.state(), "ok");
    assert_eq!(
        finding.found,
        [
            "2 MiB: 512 reserved, 500 free",
            "  node0: 2 MiB: 512 reserved, 500 free",
            "  node1: 2 MiB: 0 reserved, 0 free",
            "1 GiB: 0 reserved, 0 free",
        ]
    );
    fake.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", b"0\n");
    let finding = memory::hugepages(&fake.root());
    assert!(finding.blocks(Purpose::Bench) && !finding.blocks(Purpose::Base));
    assert!(finding.mend[0].starts_with("echo 1024 | sudo tee /sys/kernel/mm"), "{finding:?}");
}

/// VFIO counts hugepages as locked, too: with enough of them this was once called ready.
#[test]
fn memlock_binds_who_is_not_exempt() {
    let limits = "Limit Soft Hard Units\nMax locked memory         8388608  8388608  bytes\n";
    let fake = Fake::new(&[
        ("proc/self/limits", limits),
        ("proc/self/status", "CapEff:\t0000000000000000\n"),
    ]);
    let finding = memory::memlock(&fake.root());
    assert_eq!(finding.found, ["8 MiB may be locked"]);
    assert!(finding.blocks(Purpose::Nvme));
    fake.write("proc/self/status", b"CapEff:\t0000000000004000\n");
    assert_eq!(memory::memlock(&fake.root()).state(), "ok");
    fake.write("proc/self/status", b"CapEff:\tzz\n");
    fake.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", b"64");
    fake.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", b"64");
    assert!(memory::memlock(&fake.root()).blocks(Purpose::Nvme));
}

#[test]
fn io_uring_is_mended_where_it_is_forbidden() {
    let fake = Fake::new(&[("proc/sys/kernel/io_uring_disabled", "2\n")]);
    let finding = kernel::uring(&fake.root(), libc::EPERM);
    assert_eq!(finding.mend, ["sudo sysctl -w kernel.io_uring_disabled=0"]);
    assert!(finding.blocks(Purpose::Bench) && !finding.blocks(Purpose::Base));
    let fake = Fake::new(&[
        ("proc/sys/kernel/io_uring_disabled", "0\n"),
        ("proc/self/status", "Seccomp:\t2\n"),
    ]);
    let finding = kernel::uring(&fake.root(), libc::ENOSYS);
    assert!(finding.missing.is_some_and(|text| text.contains("seccomp")));
    // The ring works although the switch is said to be off: only what was tried counts.
    let fake = Fake::new(&[("proc/sys/kernel/io_uring_disabled", "1\n")]);
    assert_eq!(kernel::uring(&fake.root(), 0).state(), "ok");
}

#[test]
fn cpus_that_could_be_isolated_are_the_upper_half() {
    let mend = |online: &str| -> Option<String> {
        let fake = Fake::new(&[("sys/devices/system/cpu/online", online)]);
        cpu::isolation(&fake.root()).mend.into_iter().next()
    };
    assert!(mend("0-7").is_some_and(|line| line.contains("isolcpus=managed_irq,domain,4-7 nohz")));
    assert!(mend("0-1").is_some_and(|line| line.contains("domain,1 nohz_full=1 rcu_nocbs=1")));
    assert_eq!(mend("0"), None);
    let fake = Fake::new(&[
        ("sys/devices/system/cpu/online", "0-3"),
        ("sys/devices/system/cpu/isolated", "2-3"),
        ("sys/devices/system/cpu/nohz_full", "2-3"),
    ]);
    assert_eq!(cpu::isolation(&fake.root()).state(), "ok");
}

#[test]
fn governors_are_counted() {
    let fake = Fake::new(&[
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
        ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n"),
        ("sys/devices/system/cpu/cpufreq/x", ""),
    ]);
    let finding = cpu::frequency(&fake.root());
    assert_eq!(finding.found, ["performance on 1 CPUs", "powersave on 1 CPUs"]);
    assert!(finding.blocks(Purpose::Bench) && !finding.blocks(Purpose::Nvme));
}

/// A disk whose partition lies under a mapped device that is mounted must be seen as in use:
/// handing it over would pull the file system out from under the system.
#[test]
fn a_disk_in_use_is_never_offered() {
    let finding = devices::nvme(&two_disks().root());
    let held = "0000:01:00.0: driver nvme, group 1, nvme0n1; IN USE: nvme0n1p2 under dm-0, \
                dm-0 mounted at /srv data";
    assert_eq!(finding.found[0], held);
    assert_eq!(finding.found[1], "0000:02:00.0: driver nvme, group 2, node 1, nvme1n1; not in use");
    assert_eq!(
        finding.mend,
        [
            "sudo oxblock pci bind 0000:02:00.0 --owner \"$USER\"",
            "# and so for the others of its IOMMU group: 0000:02:00.1",
        ]
    );
    assert!(finding.blocks(Purpose::Nvme));
}

#[test]
fn swap_and_file_systems_with_numbers_of_their_own_hold_a_disk() {
    let fake = two_disks();
    fake.write("proc/swaps", b"Filename Type Size Used Priority\n/dev/nvme1n1 partition 1 0 -2\n");
    let found = &devices::nvme(&fake.root()).found[1];
    assert!(found.ends_with("IN USE: nvme1n1 is swap"), "{found}");
    fake.write("proc/swaps", b"");
    fake.write("proc/1/mountinfo", b"9 1 0:44 / /b rw shared:1 - btrfs /dev/nvme1n1 rw\n");
    let finding = devices::nvme(&fake.root());
    assert!(finding.found[1].ends_with("IN USE: nvme1n1 mounted at /b"), "{finding:?}");
    assert!(finding.mend[0].starts_with("# each is in use"), "{finding:?}");
}

#[test]
fn a_device_that_was_handed_over_is_ready() {
    let fake = Fake::new(&[
        ("sys/bus/pci/devices/0000:01:00.0/class", "0x010802"),
        ("sys/bus/pci/drivers/vfio-pci/new_id", ""),
        ("dev/vfio/vfio", ""),
        ("dev/vfio/7", ""),
        ("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535"),
        ("sys/kernel/iommu_groups/7/type", "DMA"),
    ]);
    fake.link(&format!("{PCI}/0000:01:00.0/driver"), "../../../../bus/pci/drivers/vfio-pci");
    for finding in
        [devices::nvme(&fake.root()), devices::vfio(&fake.root()), devices::iommu(&fake.root())]
    {
        assert_eq!(finding.state(), "ok", "{finding:?}");
    }
}

#[test]
fn traps_of_vfio_are_named() {
    let fake = Fake::new(&[
        ("sys/bus/pci/devices/0000:01:00.0/class", "0x010802"),
        ("sys/bus/pci/devices/0000:01:00.1/class", "0x020000"),
        ("sys/bus/pci/drivers/vfio-pci/new_id", ""),
        ("dev/vfio/vfio", ""),
        ("sys/kernel/iommu_groups/7/name", "vfio-noiommu"),
        ("sys/kernel/iommu_groups/7/devices/0000:01:00.1/x", ""),
    ]);
    let driver = |address: &str, name: &str| {
        let target = format!("../../../../bus/pci/drivers/{name}");
        fake.link(&format!("{PCI}/{address}/driver"), &target);
    };
    driver("0000:01:00.0", "vfio-pci");
    driver("0000:01:00.1", "igb");
    fake.link(&format!("{PCI}/0000:01:00.0/iommu_group"), "../../../kernel/iommu_groups/7");
    let finding = devices::nvme(&fake.root());
    assert!(finding.missing.as_ref().is_some_and(|text| text.contains("is not viable")));
    assert_eq!(finding.mend, ["sudo oxblock pci bind --force 0000:01:00.1"]);
    assert!(finding.found.iter().any(|line| line.contains("without an IOMMU")), "{finding:?}");
    // A group that VFIO made up is none of an IOMMU.
    assert!(devices::iommu(&fake.root()).blocks(Purpose::Nvme));
    let finding = devices::vfio(&fake.root());
    assert_eq!(finding.mend, ["sudo modprobe vfio_iommu_type1"]);
}

#[test]
fn lockdown_and_surroundings_are_named() {
    let fake = Fake::new(&[
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
        ("sys/class/dmi/id/sys_vendor", "QEMU\n"),
        (".dockerenv", ""),
    ]);
    assert_eq!(kernel::lockdown(&fake.root()).state(), "advice");
    let finding = kernel::surroundings(&fake.root());
    assert_eq!(finding.found, ["a virtual machine (QEMU)", "in a container (docker)"]);
}

#[test]
fn the_verdict_names_what_is_missing_for_what() {
    let text = report(&look(&Fake::new(&[]).root(), 0), &[Purpose::Base, Purpose::Nvme]);
    assert!(text.contains("\n* the software controller and files: ready\n"), "{text}");
    assert!(text.contains("* NVMe devices in user space (--for=nvme): missing: IOMMU, vfio-pci"));
    assert!(text.contains("\n  figures that can be compared (--for=bench): missing: hugepages\n"));
}

/// Every file that doctor reads, full of what a hostile or broken kernel might say: no panic, no
/// control characters, no endless output.
#[test]
fn nonsense_in_the_files_is_survived() {
    let names = two_disks();
    let deep = "9".repeat(3 << 20);
    let words: [&[u8]; 7] = [
        b"",
        b"\xff\xfe\x00\x1b[31mred\x07",
        deep.as_bytes(),
        b"18446744073709551615",
        b"0-4294967295,5-1,-,a-b,8191",
        b"[",
        b"CapEff:\nSeccomp:\nMax locked memory\n1 2 3 - \n\\0 \\9 - \\\xc3\xa9 \\777\n\\",
    ];
    for word in words {
        for path in [
            "proc/self/limits",
            "proc/self/status",
            "proc/self/mountinfo",
            "proc/1/mountinfo",
            "proc/swaps",
            "proc/cmdline",
            "proc/cpuinfo",
            "proc/sys/kernel/io_uring_disabled",
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "sys/kernel/mm/hugepages/hugepages-99999999999999999999kB/free_hugepages",
            "sys/kernel/mm/transparent_hugepage/enabled",
            "sys/kernel/security/lockdown",
            "sys/devices/system/cpu/online",
            "sys/devices/system/cpu/isolated",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
            "sys/bus/pci/devices/0000:01:00.0/numa_node",
            "sys/block/nvme0n1/dev",
            "run/systemd/container",
        ] {
            names.write(path, word);
        }
        // A stack of devices that stands on itself.
        names.write("sys/block/dm-0/holders/dm-0/dev", word);
        let findings: Vec<Finding> = look(&names.root(), -1);
        let text = report(&findings, &Purpose::ALL);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
    }
}

#[test]
fn cpu_lists() {
    assert_eq!(cpu_list("0-2,8, 4"), [0, 1, 2, 4, 8]);
    assert!(cpu_list("(null)").is_empty());
    assert!(cpu_list("3-1,0-99999999").is_empty());
}

#[test]
fn a_pipe_is_not_waited_for() {
    let fake = Fake::new(&[("proc/x", "")]);
    let path = fake.0.path().join("proc/cmdline");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo runs").success());
    assert_eq!(fake.root().text("proc/cmdline"), None);
}
