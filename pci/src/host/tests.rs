//! Discovery and binding over a folder that looks like `/`, with a kernel of a few lines behind it.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::fs::{CWD, Mode, mkfifoat};

use super::*;
use crate::{Address, PciErrorKind};

const DEVICES: &str = "sys/bus/pci/devices";
const FREE: &str = "0000:02:00.0";
const HELD: &str = "0000:01:00.0";

/// A root folder, and threads that answer writes to its attributes as the kernel does.
struct Machine {
    folder: tempfile::TempDir,
    pipes: Vec<(PathBuf, JoinHandle<()>)>,
}

impl Machine {
    /// Two NVMe controllers, one with a mounted partition; a network card shares the group of the
    /// other.
    fn new() -> Machine {
        let machine = Machine { folder: tempfile::tempdir().unwrap(), pipes: Vec::new() };
        for (address, class, group) in
            [(HELD, "0x010802", 1), (FREE, "0x010802", 2), ("0000:02:00.1", "0x020000", 2)]
        {
            let folder = format!("{DEVICES}/{address}");
            machine.write(&format!("{folder}/class"), class);
            machine.write(&format!("{folder}/vendor"), "0x1b36");
            machine.write(&format!("{folder}/device"), "0x0010");
            machine.write(&format!("{folder}/numa_node"), "-1");
            machine.write(&format!("{folder}/driver_override"), "(null)");
            machine.link(&format!("{folder}/iommu_group"), &format!("../groups/{group}"));
            let member = format!("sys/kernel/iommu_groups/{group}/devices/{address}");
            machine.write(&format!("{member}/x"), "");
        }
        machine.write("dev/vfio/2", "");
        machine.write(&format!("{DEVICES}/{HELD}/nvme/nvme0/nvme0n1/size"), "1");
        machine.write("sys/block/nvme0n1/nvme0n1p1/partition", "1");
        machine.write("sys/block/nvme0n1/nvme0n1p1/dev", "259:1");
        machine.write("proc/self/mountinfo", "20 1 259:1 / /srv rw - ext4 /dev/x rw");
        machine.link(&format!("{DEVICES}/{HELD}/driver"), "../../drivers/nvme");
        machine.link(&format!("{DEVICES}/{FREE}/driver"), "../../drivers/nvme");
        machine
    }

    /// The same with drivers that let go of functions and take them.
    fn running() -> Machine {
        let mut machine = Machine::new();
        machine.pipe("sys/bus/pci/drivers_probe", |root, address| {
            let device = root.join(DEVICES).join(address);
            let wanted = fs::read_to_string(device.join("driver_override")).unwrap();
            let class = fs::read_to_string(device.join("class")).unwrap();
            match (wanted.trim(), class.as_str()) {
                ("vfio-pci", _) => drop(symlink("../../drivers/vfio-pci", device.join("driver"))),
                (_, "0x010802") => drop(symlink("../../drivers/nvme", device.join("driver"))),
                _ => {}
            }
        });
        for driver in ["nvme", "vfio-pci"] {
            machine.pipe(&format!("sys/bus/pci/drivers/{driver}/unbind"), |root, address| {
                let _ = fs::remove_file(root.join(DEVICES).join(address).join("driver"));
            });
        }
        machine
    }

    fn pipe(&mut self, path: &str, act: impl Fn(&Path, &str) + Send + 'static) {
        let (root, path) = (self.folder.path().to_owned(), self.folder.path().join(path));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        let pipe = path.clone();
        let answer = thread::spawn(move || {
            loop {
                let text = fs::read_to_string(&pipe).unwrap();
                for line in text.split_whitespace() {
                    if line == "end" {
                        return;
                    }
                    act(&root, line);
                }
            }
        });
        self.pipes.push((path, answer));
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        symlink(target, self.folder.path().join(path)).unwrap();
    }

    fn root(&self) -> Root {
        Root::new(self.folder.path())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for (path, answer) in self.pipes.drain(..) {
            fs::write(path, "end").unwrap();
            answer.join().unwrap();
        }
    }
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

#[test]
fn functions_are_found_with_who_shares_and_who_uses_them() {
    let machine = Machine::new();
    let all = HostFunction::all(&machine.root());
    let addresses: Vec<String> = all.iter().map(|f| f.address.to_string()).collect();
    assert_eq!(addresses, [HELD, FREE, "0000:02:00.1"]);
    assert!(all[0].is_nvme() && !all[2].is_nvme());
    assert_eq!((all[0].vendor, all[0].device, all[0].numa_node), (0x1b36, 0x10, None));
    assert_eq!(all[0].held_by, ["nvme0n1p1 mounted at /srv"]);
    assert!(all[0].companions.is_empty() && all[1].held_by.is_empty());
    let other = Companion { address: address("0000:02:00.1"), driver: None };
    assert_eq!(all[1].companions, [other]);
    assert_eq!(all[1].group_path().as_deref(), Some("dev/vfio/2"));
}

#[test]
fn a_process_that_has_the_device_open_uses_it() {
    let machine = Machine::new();
    machine.write(&format!("{DEVICES}/{FREE}/nvme/nvme1/nvme1n1/size"), "1");
    machine.write("sys/block/nvme1n1/nvme1n1p3/partition", "3");
    machine.write("proc/77/comm", "qemu\n");
    machine.write("proc/77/fd/x", "");
    machine.link("proc/77/fd/3", "/dev/nvme1n1p3");
    machine.link("proc/77/fd/4", "/dev/nvme1n1p3");
    machine.link("proc/77/fd/5", "/dev/nvme1");
    let found = HostFunction::at(&machine.root(), address(FREE)).unwrap();
    let process = "open in process 77 (qemu)";
    assert_eq!(found.held_by, [format!("nvme1n1p3 {process}"), format!("nvme1 {process}")]);
}

#[test]
fn a_function_goes_to_vfio_and_back_to_the_driver_it_had() {
    let machine = Machine::running();
    let root = machine.root();
    let uid = fs::metadata(machine.folder.path()).unwrap().uid();
    let options = BindOptions { owner: Some(Owner { uid, gid: None }), ..BindOptions::default() };
    let bound = bind(&root, address(FREE), &options).unwrap();
    assert_eq!(bound.driver.as_deref(), Some("vfio-pci"));
    assert!(root.exists(&format!("run/oxblock/pci/{FREE}")));
    // A second time changes nothing, and forgets nothing.
    bind(&root, address(FREE), &options).unwrap();
    let back = unbind(&root, address(FREE), false).unwrap();
    assert_eq!(back.driver.as_deref(), Some("nvme"));
    assert!(!root.exists(&format!("run/oxblock/pci/{FREE}")));
    assert_eq!(root.text(&format!("{DEVICES}/{FREE}/driver_override")).unwrap(), "");
    assert_eq!(unbind(&root, address(FREE), false).unwrap().driver.as_deref(), Some("nvme"));
}

/// A process killed between taking a function and giving it to vfio-pci left it with no driver,
/// and nothing in memory knew whose it was.
#[test]
fn a_function_left_halfway_is_given_back() {
    let machine = Machine::running();
    let root = machine.root();
    bind(&root, address(FREE), &BindOptions::default()).unwrap();
    fs::remove_file(root.path(&format!("{DEVICES}/{FREE}/driver"))).unwrap();
    assert_eq!(unbind(&root, address(FREE), false).unwrap().driver.as_deref(), Some("nvme"));
    // Also where the note was lost.
    bind(&root, address(FREE), &BindOptions::default()).unwrap();
    fs::remove_file(root.path(&format!("run/oxblock/pci/{FREE}"))).unwrap();
    assert_eq!(unbind(&root, address(FREE), false).unwrap().driver.as_deref(), Some("nvme"));
}

#[test]
fn a_function_that_had_no_driver_gets_none() {
    let machine = Machine::running();
    let root = machine.root();
    let card = address("0000:02:00.1");
    let error = bind(&root, card, &BindOptions::default()).unwrap_err();
    assert!(error.to_string().contains("no NVMe controller"), "{error}");
    let options = BindOptions { force: true, ..BindOptions::default() };
    assert!(bind(&root, card, &options).unwrap().is_bound());
    assert_eq!(unbind(&root, card, false).unwrap().driver, None);
}

/// What is mounted must never be pulled out from under its file system by a slip of the hand.
#[test]
fn a_function_in_use_is_not_taken() {
    let machine = Machine::running();
    let root = machine.root();
    let error = bind(&root, address(HELD), &BindOptions::default()).unwrap_err();
    assert_eq!(error.kind(), PciErrorKind::Busy);
    assert!(error.to_string().contains("nvme0n1p1 mounted at /srv"), "{error}");
    assert_eq!(root.text(&format!("{DEVICES}/{HELD}/driver_override")).unwrap(), "(null)");
    // Nor is one given back that a process drives: the kernel would wait for it.
    bind(&root, address(FREE), &BindOptions::default()).unwrap();
    machine.write("proc/9/fd/x", "");
    machine.link("proc/9/fd/3", "/dev/vfio/2");
    let error = unbind(&root, address(FREE), false).unwrap_err();
    assert!(error.to_string().contains("vfio/2 open in process 9"), "{error}");
    assert_eq!(unbind(&root, address(FREE), true).unwrap().driver.as_deref(), Some("nvme"));
}

#[test]
fn what_stands_in_the_way_is_named() {
    let machine = Machine::new();
    let root = machine.root();
    let error = |at: &str| bind(&root, address(at), &BindOptions::default()).unwrap_err();
    assert_eq!(error("0000:03:00.0").kind(), PciErrorKind::NotFound);
    assert!(error(FREE).to_string().contains("modprobe vfio-pci"));
    machine.write("sys/kernel/security/lockdown", "none [integrity] confidentiality");
    assert!(error(FREE).to_string().contains("locked down"));
    machine.write("sys/bus/pci/drivers/vfio-pci/new_id", "");
    fs::remove_file(root.path(&format!("{DEVICES}/{FREE}/iommu_group"))).unwrap();
    assert!(error(FREE).to_string().contains("intel_iommu=on"));
    assert!(!root.exists("run/oxblock"), "a refusal leaves no note");
}

#[test]
fn owners_are_users_of_the_machine() {
    let machine = Machine::new();
    machine.write("etc/passwd", "root:x:0:0::/:/bin/sh\nalice:x:1000:1001:A,,:/home:/bin/sh\nbad");
    let root = machine.root();
    assert_eq!(Owner::parse(&root, "alice").unwrap(), Owner { uid: 1000, gid: Some(1001) });
    assert_eq!(Owner::parse(&root, "42").unwrap(), Owner { uid: 42, gid: None });
    for user in ["bob", "bad", "", "-1"] {
        assert!(Owner::parse(&root, user).unwrap_err().to_string().contains("no user"), "{user}");
    }
}

/// Notes are read back as parts of paths: what could lead elsewhere is no name.
#[test]
fn notes_that_make_no_sense_are_not_followed() {
    let machine = Machine::new();
    let root = machine.root();
    let number = root.inode(&format!("{DEVICES}/{FREE}")).unwrap();
    let read = |text: &str| {
        machine.write(&format!("run/oxblock/pci/{FREE}"), text);
        state::State::read(&root, address(FREE))
    };
    assert!(read(&format!("nvme - {number}")).is_some());
    for text in ["", "nvme", "nvme -", "../../x ../y", "nvme ../y", "a/b c"] {
        assert_eq!(read(text), None, "{text}");
        let text = format!("{text} {number}");
        let is_name = text.starts_with("nvme - ");
        assert_eq!(read(&text).is_some(), is_name, "{text}");
    }
}

/// What is plugged into the place of one that was pulled while it was bound had a driver of its
/// own.
#[test]
fn the_note_of_a_function_that_was_pulled_is_none() {
    let machine = Machine::running();
    let root = machine.root();
    fs::remove_file(root.path(&format!("{DEVICES}/{FREE}/driver"))).unwrap();
    bind(&root, address(FREE), &BindOptions::default()).unwrap();
    let (place, old) = (root.path(&format!("{DEVICES}/{FREE}")), root.path("old"));
    fs::rename(&place, &old).unwrap();
    fs::create_dir(&place).unwrap();
    for name in ["class", "vendor", "device", "driver_override", "iommu_group"] {
        fs::rename(old.join(name), place.join(name)).unwrap();
    }
    fs::write(place.join("driver_override"), "(null)").unwrap();
    machine.link(&format!("{DEVICES}/{FREE}/driver"), "../../drivers/nvme");
    bind(&root, address(FREE), &BindOptions::default()).unwrap();
    assert_eq!(unbind(&root, address(FREE), false).unwrap().driver.as_deref(), Some("nvme"));
}
