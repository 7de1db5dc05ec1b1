//! Controllers that come and go, on a bus that is a folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use oxblock_engine::{EventKind, Events};
use oxblock_pci::host::{Monitor, MonitorOptions, Root};

use super::super::HotPlug;
use super::Rig;

const ADDRESS: &str = "0000:03:00.0";
const INTERVAL: Duration = Duration::from_secs(1);

struct Bus(tempfile::TempDir);

impl Bus {
    fn new() -> Bus {
        let bus = Bus(tempfile::tempdir().expect("a folder"));
        bus.plug("0000:01:00.0", "0x010802");
        bus
    }

    fn folder(&self, address: &str) -> PathBuf {
        self.0.path().join("sys/bus/pci/devices").join(address)
    }

    fn plug(&self, address: &str, class: &str) {
        let folder = self.folder(address);
        fs::create_dir_all(&folder).expect("a folder");
        for (name, text) in [("vendor", "0x1b36"), ("device", "0x0010"), ("class", class)] {
            fs::write(folder.join(name), text).expect("an attribute");
        }
    }

    fn drive(&self, address: &str, driver: &str) {
        let link = self.folder(address).join("driver");
        let _ = fs::remove_file(&link);
        symlink(format!("../drivers/{driver}"), link).expect("a link");
    }

    fn watch(&self, rig: &mut Rig) -> (HotPlug, Events) {
        let options =
            MonitorOptions { uevents: false, interval: INTERVAL, ..MonitorOptions::default() };
        let monitor = Monitor::new(Root::new(self.0.path()), &options);
        rig.run(|core| async move { (HotPlug::over(&core, monitor), core.events()) })
    }
}

/// What was told within the time in which sysfs is looked at.
fn told(rig: &mut Rig, events: &mut Events) -> Vec<(EventKind, String)> {
    rig.wait_ms(1100);
    let mut told = Vec::new();
    while let Some(event) = events.try_next() {
        assert_eq!(&*event.subject, ADDRESS);
        told.push((event.kind, event.text));
    }
    told
}

#[test]
fn a_controller_that_comes_is_told_of_with_what_to_do() {
    let (mut rig, bus) = (Rig::new(|_| {}), Bus::new());
    let (hot_plug, mut events) = bus.watch(&mut rig);
    let found: Vec<String> = hot_plug.found().iter().map(|one| one.address.to_string()).collect();
    assert_eq!(found, ["0000:01:00.0"]);
    bus.plug("0000:02:00.0", "0x020000");
    assert!(told(&mut rig, &mut events).is_empty(), "a network card");
    bus.plug(ADDRESS, "0x010802");
    let came = told(&mut rig, &mut events);
    assert_eq!(came[0].0, EventKind::DeviceAppeared { ready: false });
    assert!(came[0].1.contains("no driver has it"), "{came:?}");
    assert!(came[0].1.contains("oxblock pci bind 0000:03:00.0"), "{came:?}");
    // Still nothing that can be attached.
    bus.drive(ADDRESS, "nvme");
    assert!(told(&mut rig, &mut events).is_empty());
    bus.drive(ADDRESS, "vfio-pci");
    let bound = told(&mut rig, &mut events);
    assert_eq!(bound[0].0, EventKind::DeviceAppeared { ready: true });
    assert!(bound[0].1.contains("1b36:0010"), "{bound:?}");
    bus.drive(ADDRESS, "nvme");
    let given_back = told(&mut rig, &mut events);
    assert_eq!(given_back[0].0, EventKind::DeviceAppeared { ready: false });
    assert!(given_back[0].1.contains("nvme has it"), "{given_back:?}");
    fs::remove_dir_all(bus.folder(ADDRESS)).expect("a folder");
    let went = told(&mut rig, &mut events);
    assert_eq!(
        went.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
        [EventKind::DeviceUnplugged]
    );
    // Who does not watch any more is told nothing.
    drop(hot_plug);
    bus.plug(ADDRESS, "0x010802");
    assert!(told(&mut rig, &mut events).is_empty());
}
