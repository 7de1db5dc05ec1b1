//! `oxblock pci`: functions go to user space and back.

use std::fs;
use std::process::{Command, Stdio};

use super::disks::{FIRST, SECOND};
use super::machine::{disk, driver, oxblock, read_at, run, sh, until, write_at};
use super::{Start, Test};

pub fn add(tests: &mut Vec<Test>) {
    let bound = Start { driver: "vfio-pci", ..Start::default() };
    tests.push(Test::new("pci::binds_and_gives_back", binds_and_gives_back));
    tests.push(Test::new("pci::a_disk_in_use_is_not_taken", in_use));
    tests.push(Test::new("pci::a_user_without_root_may_own_a_device", owner));
    tests.push(Test::new("pci::a_killed_process_leaves_a_device_that_goes_back", killed));
    tests.push(Test::new("pci::a_device_in_user_space_is_in_use", used_by_process).start(bound));
    tests.push(Test::new("pci::monitor_prints_what_changes_hands", monitor));
    tests.push(Test::new("pci::a_process_lets_go_of_what_is_taken", taken).start(bound));
}

fn target(nsid: u32) -> String {
    format!("--target=nvme://{}/{nsid}", FIRST.address)
}

fn binds_and_gives_back() {
    let listed = oxblock(&["pci", "list"]).success();
    assert_eq!(listed.lines().count(), 3, "{listed}");
    let both = [FIRST.address, SECOND.address];
    let said = oxblock(&["pci", "bind", both[0], both[1]]).success();
    assert!(said.contains("0000:01:00.0: vfio-pci, /dev/vfio/"), "{said}");
    let listed = oxblock(&["pci", "list", "--json"]).success();
    assert_eq!(listed.matches("\"bound\": true").count(), 2, "{listed}");
    oxblock(&["pci", "bind", both[0]]).success();
    oxblock(&["pci", "unbind", both[0], both[1]]).success();
    assert!(both.iter().all(|address| driver(address).as_deref() == Some("nvme")));
    assert!(oxblock(&["pci", "list", "0000:77:00.0"]).failure().contains("no PCI function"));
}

fn in_use() {
    let disk = disk(&FIRST, 1).display().to_string();
    let open = fs::File::open(&disk).expect("a disk");
    let holder = Command::new("/bin/sleep").arg("60").stdin(open).spawn();
    let mut holder = holder.expect("a process");
    let refused = oxblock(&["pci", "bind", FIRST.address]);
    let listed = oxblock(&["pci", "list", FIRST.address]);
    holder.kill().and_then(|()| holder.wait()).expect("its end");
    assert!(refused.failure().contains("open in process"), "a disk was taken from a process");
    assert!(listed.success().contains("IN USE: "));
    run(&format!("mkswap {disk} && swapon {disk}"));
    let refused = oxblock(&["pci", "bind", FIRST.address]);
    run(&format!("swapoff {disk}"));
    assert!(refused.failure().contains("is swap; end that first"));
    assert_eq!(driver(FIRST.address).as_deref(), Some("nvme"));
}

/// Without root a user needs the group's file, and leave to lock what the device reaches.
fn owner() {
    run("mkdir -p /etc && echo 'alice:x:1000:1000::/tmp:/bin/sh' > /etc/passwd");
    oxblock(&["pci", "bind", FIRST.address, "--owner", "alice"]).success();
    let bench = format!("oxblock bench {} --rw=read --size=1m", target(1));
    let low = sh(&format!("ulimit -l 1024; su alice -c '{bench}'")).failure();
    assert!(low.contains("RLIMIT_MEMLOCK, 1024 KiB) is too low"), "{low}");
    run(&format!("ulimit -l 262144; su alice -c '{bench}'"));
    let denied = sh(&format!("su alice -c 'oxblock pci unbind {}'", FIRST.address)).failure();
    assert!(denied.contains("run as root"), "{denied}");
    oxblock(&["pci", "unbind", FIRST.address]).success();
}

/// The process that drove a device ends without a word: the kernel stops the device, and it goes
/// back, with what was written.
fn killed() {
    let path = disk(&FIRST, 2);
    write_at(&path, 1 << 20, &[0x5a; 4096]);
    oxblock(&["pci", "bind", FIRST.address]).success();
    let mut bench = Command::new("/bin/oxblock");
    bench.args(["bench", &target(2), "--rw=randwrite", "--iodepth=32", "--size=1m"]);
    bench.args(["--time_based", "--runtime=60"]);
    let mut bench = bench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a process");
    let is_at_it = || {
        let listed = oxblock(&["pci", "list", FIRST.address]).success();
        listed.contains("IN USE: ")
    };
    assert!(until(is_at_it));
    std::thread::sleep(std::time::Duration::from_millis(500));
    bench.kill().and_then(|()| bench.wait()).expect("its end");
    oxblock(&["pci", "unbind", FIRST.address]).success();
    assert!(until(|| path.exists()));
    assert_eq!(read_at(&disk(&FIRST, 2), 1 << 20, 4096), [0x5a; 4096]);
}

fn used_by_process() {
    let mut bench = Command::new("/bin/oxblock");
    bench.args(["bench", &target(1), "--rw=randread", "--time_based", "--runtime=60"]);
    let mut bench = bench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a process");
    let is_at_it = || oxblock(&["pci", "list"]).success().contains("IN USE: vfio/");
    assert!(until(is_at_it));
    let refused = oxblock(&["pci", "unbind", FIRST.address]);
    bench.kill().and_then(|()| bench.wait()).expect("its end");
    assert!(refused.failure().contains("is in use: vfio/"), "a device was taken from a process");
    assert_eq!(driver(FIRST.address).as_deref(), Some("vfio-pci"));
    oxblock(&["pci", "unbind", FIRST.address]).success();
}

/// With --force the process that drives a device is asked for it, and does not have to end first.
fn taken() {
    let mut bench = Command::new("/bin/oxblock");
    bench.args(["bench", &target(1), "--rw=randread", "--time_based", "--runtime=60"]);
    let bench = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
    let is_at_it = || oxblock(&["pci", "list"]).success().contains("IN USE: vfio/");
    assert!(until(is_at_it));
    std::thread::sleep(std::time::Duration::from_millis(500));
    oxblock(&["pci", "unbind", "--force", FIRST.address]).success();
    assert_eq!(driver(FIRST.address).as_deref(), Some("nvme"));
    let ended = bench.wait_with_output().expect("its end");
    assert!(!ended.status.success(), "its I/O failed");
    let said = [ended.stdout, ended.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(said.concat().contains("was removed, or given back"), "{said:?}");
}

/// It tells of each change until it is told to stop.
fn monitor() {
    let path = "/tmp/monitor";
    for (words, stops_by_itself) in [(&["--count", "3"][..], true), (&["--for", "1h"], false)] {
        let file = fs::File::create(path).expect("a file");
        let mut monitor = Command::new("/bin/oxblock");
        monitor.args(["pci", "monitor", "--json"]).args(words).stdout(file);
        let mut monitor = monitor.spawn().expect("a process");
        let mut ended = || monitor.try_wait().expect("a process").is_some();
        let lines = || fs::read_to_string(path).expect("lines").lines().count();
        let mut rounds = 0;
        while if stops_by_itself { !ended() } else { lines() < 3 } {
            oxblock(&["pci", "bind", FIRST.address]).success();
            oxblock(&["pci", "unbind", FIRST.address]).success();
            rounds += 1;
            assert!(rounds < 50, "it says nothing: {}", fs::read_to_string(path).expect("lines"));
        }
        if !stops_by_itself {
            assert!(!ended());
            run(&format!("kill -INT {}", monitor.id()));
        }
        assert!(monitor.wait().expect("its end").success());
        let said = fs::read_to_string(path).expect("lines");
        assert!(!stops_by_itself || said.lines().count() == 3, "{said}");
        let mut bound = 0;
        for line in said.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            assert_eq!((&line["event"], &line["class"]), (&"driver".into(), &"010802".into()));
            assert_eq!(line["address"], FIRST.address);
            assert_ne!(line["driver"], line["driver_before"], "{line}");
            bound += u32::from(line["bound"] == true && line["driver"] == "vfio-pci");
        }
        assert!(bound > 0, "{said}");
    }
}
