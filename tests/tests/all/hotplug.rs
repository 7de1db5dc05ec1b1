//! Controllers and namespaces that come and go under the I/O of another controller, told of by the
//! engine's events. The controllers are software, and their bus is a folder that looks like sysfs.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_drivers::nvme::{Controller as Host, HotPlug, NvmeOptions};
use oxblock_engine::{Channel, Core, ErrorKind, EventKind, Events, Node, Op, Options, Simulation};
use oxblock_mem::ArenaOptions;
use oxblock_nvmet::{Controller as Target, ControllerOptions, NamespaceOptions};
use oxblock_pci::host::{Monitor, MonitorOptions, Root};
use oxblock_tests::exercise::Exercise;

/// The core of the software controllers.
const TARGETS: usize = 1;
/// The controller that stays, and the place of those that come and go.
const STAYS: &str = "0000:01:00.0";
const COMES: &str = "0000:02:00.0";
/// The software controller's CNTLID.
const CONTROLLER: u16 = 1;

const NOT_READY: EventKind = EventKind::DeviceAppeared { ready: false };
const READY: EventKind = EventKind::DeviceAppeared { ready: true };

/// What sysfs shows of a bus.
struct Bus(tempfile::TempDir);

impl Bus {
    fn folder(&self, address: &str) -> PathBuf {
        self.0.path().join("sys/bus/pci/devices").join(address)
    }

    fn plug(&self, address: &str, driver: Option<&str>) {
        let new = self.0.path().join("new");
        fs::create_dir_all(&new).expect("a folder");
        for (name, text) in [("vendor", "0x6f78"), ("device", "0x0001"), ("class", "0x010802")] {
            fs::write(new.join(name), text).expect("an attribute");
        }
        if let Some(driver) = driver {
            symlink(format!("../drivers/{driver}"), new.join("driver")).expect("a link");
        }
        let folder = self.folder(address);
        fs::create_dir_all(folder.parent().expect("a bus")).expect("a folder");
        fs::rename(new, folder).expect("it appears at once");
    }

    fn bind(&self, address: &str) {
        symlink("../drivers/vfio-pci", self.folder(address).join("driver")).expect("a link");
    }

    fn pull(&self, address: &str) {
        fs::remove_dir_all(self.folder(address)).expect("it was there");
    }

    fn monitor(&self) -> Monitor {
        let options = MonitorOptions { uevents: false, ..MonitorOptions::default() };
        Monitor::new(Root::new(self.0.path()), &options)
    }
}

/// A controller with two namespaces on memory of its own.
async fn target(core: &Core, serial: &str) -> Arc<Target> {
    let namespaces = (0..2).map(|number| {
        let disk = MemoryOptions { size: 1 << 20, block_size: 512 };
        let disk = memory::open(disk).expect("a memory disk");
        NamespaceOptions::new(Node::new(format!("below{number}"), disk), 512)
    });
    let options = ControllerOptions {
        namespaces: namespaces.collect(),
        serial: serial.to_owned(),
        ..ControllerOptions::default()
    };
    let start = move |core: Core| async move { Target::start(&core, options).await };
    core.call(TARGETS, start).await.and_then(|started| started).expect("a controller")
}

/// What an embedder does with one that is ready.
async fn attach(core: &Core, target: &Target, name: &str) -> (Arc<Host>, Channel) {
    let host = Host::attach(core, target.function(), NvmeOptions::default()).await;
    let host = host.expect("the driver");
    let node = Node::new(name, host.namespace(1).expect("namespace 1"));
    let channel = core.open(&node).await.expect("a queue");
    (host, channel)
}

/// The next events, up to one of this kind; with their subjects.
async fn up_to(events: &mut Events, wanted: EventKind) -> Vec<(String, EventKind)> {
    let mut told = Vec::new();
    loop {
        let event = events.next().await.expect("an engine");
        told.push((event.subject.to_string(), event.kind));
        if event.kind == wanted {
            return told;
        }
    }
}

/// A bus where a bare controller is plugged in, bound, attached and pulled, and another one comes
/// into its place.
async fn come_and_go(core: Core, bus: Bus) {
    let mut events = core.events();
    let hot_plug = HotPlug::over(&core, bus.monitor());
    assert_eq!(hot_plug.found().len(), 1, "{:?}", hot_plug.found());
    let only = |kind| vec![(COMES.to_owned(), kind)];
    let first = target(&core, "first").await;
    bus.plug(COMES, None);
    assert_eq!(up_to(&mut events, NOT_READY).await, only(NOT_READY));
    bus.bind(COMES);
    assert_eq!(up_to(&mut events, READY).await, only(READY));
    let (host, channel) = attach(&core, &first, "first").await;
    Exercise::of(32).run(&core, &channel).await;
    // It is pulled with I/O in flight, and the machine notices a moment later.
    for block in 0..32 {
        let data = core.arena().alloc(4096, 4096).expect("memory");
        channel.submit(Op::read(block * 4096, data)).expect("a slot");
    }
    channel.kick();
    first.soft_function().set_present(false);
    bus.pull(COMES);
    let told = up_to(&mut events, EventKind::DeviceUnplugged).await;
    let kinds: Vec<EventKind> = told.iter().map(|(_, kind)| *kind).collect();
    assert!(kinds.contains(&EventKind::DeviceGone), "{told:?}");
    let mut ended = 0;
    while channel.in_flight() > 0 {
        core.yield_now().await;
        ended += channel.poll(|end| {
            assert!(matches!(end.result.map_err(|f| f.kind), Ok(()) | Err(ErrorKind::Gone)));
        });
    }
    assert_eq!(ended, 32);
    drop((channel, host));
    // Another one, which is ready from the start, and has nothing of what the first one had.
    let second = target(&core, "second").await;
    bus.plug(COMES, Some("vfio-pci"));
    assert_eq!(up_to(&mut events, READY).await, only(READY));
    let (host, channel) = attach(&core, &second, "second").await;
    assert_eq!(host.identity().serial, "second");
    let data = core.arena().alloc(4096, 4096).expect("memory");
    let (data, result) = channel.read(0, data).await;
    result.expect("a read");
    assert!(data.whole().is_all(0), "it has the bytes of another");
    Exercise { round: 1, ..Exercise::of(32) }.run(&core, &channel).await;
}

#[test]
fn controllers_come_and_go_under_the_io_of_another() {
    let bus = Bus(tempfile::tempdir().expect("a folder"));
    bus.plug(STAYS, Some("vfio-pci"));
    let options = Options { arena: ArenaOptions::new(16 << 20), ..Options::default() };
    let mut sim = Simulation::new(TARGETS + 1, 3, options).expect("an engine");
    let ran = sim.run(0, |core| async move {
        let stays = target(&core, "stays").await;
        let (_host, channel) = attach(&core, &stays, "stays").await;
        let ends = Rc::new(Cell::new(false));
        let working = core.spawn({
            let (core, ends) = (core.clone(), ends.clone());
            async move {
                let mut round = 0;
                while !ends.get() {
                    Exercise { round, ..Exercise::of(64) }.run(&core, &channel).await;
                    core.sleep(Duration::from_millis(10)).await;
                    round += 1;
                }
                round
            }
        });
        come_and_go(core, bus).await;
        ends.set(true);
        working.await.expect("its work")
    });
    let rounds = ran.expect("no deadlock");
    assert!(rounds > 100, "I/O on the other controller stood still: {rounds}");
    sim.shutdown().expect("an end in order");
}

#[test]
fn namespaces_come_and_go_on_a_controller_that_stays() {
    let options = Options { arena: ArenaOptions::new(16 << 20), ..Options::default() };
    let mut sim = Simulation::new(TARGETS + 1, 3, options).expect("an engine");
    let ran = sim.run(0, |core| async move {
        let stays = target(&core, "stays").await;
        let (host, channel) = attach(&core, &stays, "stays").await;
        let mut events = core.events();
        for round in 0..3 {
            host.detach_namespace(&core, 2, &[CONTROLLER]).await.expect("detached");
            up_to(&mut events, EventKind::NamespaceRemoved { id: 2 }).await;
            assert_eq!(host.namespaces(), [1]);
            Exercise { round, ..Exercise::of(32) }.run(&core, &channel).await;
            host.attach_namespace(&core, 2, &[CONTROLLER]).await.expect("attached");
            let told = up_to(&mut events, EventKind::NamespaceAdded { id: 2 }).await;
            assert_eq!(told.last().map(|(name, _)| name.as_str()), Some(host.name()));
            let node = Node::new("second", host.namespace(2).expect("namespace 2"));
            let second = core.open(&node).await.expect("a queue");
            Exercise { round, ..Exercise::of(32) }.run(&core, &second).await;
            Exercise { round, ..Exercise::of(32) }.run(&core, &channel).await;
            drop(second);
            core.close(&node).await.expect("it closes");
        }
    });
    ran.expect("no deadlock");
    sim.shutdown().expect("an end in order");
}
