//! Controllers that are plugged in and pulled while an engine runs, and the kernel's word of it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use oxblock_drivers::nvme::{HotPlug, NvmeOptions};
use oxblock_engine::{Core, EventKind, Events, JoinHandle, Node};
use oxblock_tests::exercise::Exercise;
use serde_json::json;

use super::disks::{FIRST, PLUGGED, SECOND};
use super::machine::{give, oxblock};
use super::plugged::Plugged;
use super::rows::{Driven, on_engine};
use super::{Start, Test};

/// Within this an event comes: an emulated machine is slow.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const NOT_READY: EventKind = EventKind::DeviceAppeared { ready: false };
const READY: EventKind = EventKind::DeviceAppeared { ready: true };

pub fn add(tests: &mut Vec<Test>) {
    let mut add = |name: &str, body: fn()| {
        let test = Test::new(&format!("hotplug::{name}"), body);
        tests.push(test.start(Start::handed_over()));
    };
    add("a_controller_comes_and_goes_under_the_io_of_another", comes_and_goes);
    add("a_storm_of_uevents_hides_nothing", storm);
}

/// The next events, up to one of this kind; with their subjects and words.
async fn up_to(
    core: &Core,
    events: &mut Events,
    wanted: EventKind,
) -> Vec<(String, EventKind, String)> {
    let (begun, mut told) = (core.now(), Vec::new());
    loop {
        while let Some(event) = events.try_next() {
            told.push((event.subject.to_string(), event.kind, event.text));
            if event.kind == wanted {
                return told;
            }
        }
        assert!(core.now() - begun < PATIENCE.as_nanos() as u64, "no {wanted:?}, but {told:?}");
        core.sleep(LOOK_EVERY).await;
    }
}

/// Does what blocks on a thread of its own, while the core goes on.
async fn aside<T: Send + 'static>(core: &Core, act: impl FnOnce() -> T + Send + 'static) -> T {
    let acting = thread::spawn(act);
    while !acting.is_finished() {
        core.sleep(LOOK_EVERY).await;
    }
    acting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Verified I/O on another core, until it is told to stop; then how often it went round.
struct Working {
    stop: Arc<AtomicBool>,
    rounds: JoinHandle<u64>,
}

impl Working {
    fn begin(core: &Core, node: Arc<Node>) -> Working {
        let stop = Arc::new(AtomicBool::new(false));
        let stops = stop.clone();
        let work = async move |core: Core| {
            let (channel, mut round) = (core.open(&node).await.expect("a queue"), 0);
            while !stops.load(Ordering::SeqCst) {
                Exercise { round, ..Exercise::of(64) }.run(&core, &channel).await;
                // One thread emulates both processors: the other core has its turns while this one
                // sleeps.
                core.sleep(Duration::from_millis(2)).await;
                round += 1;
            }
            round
        };
        let caller = core.clone();
        let rounds = core.spawn(async move { caller.call(1, work).await.expect("the other core") });
        Working { stop, rounds }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.rounds.await.expect("its work")
    }
}

fn comes_and_goes() {
    on_engine(2, |core| async move {
        let stays = Driven::new(core.clone(), &FIRST, 1, NvmeOptions::default()).await;
        let mut events = core.events();
        let hot_plug = HotPlug::begin(&core);
        assert_eq!(hot_plug.notice(), None);
        let found: Vec<String> = hot_plug.found().iter().map(|f| f.address.to_string()).collect();
        assert_eq!(found, [FIRST.address, SECOND.address]);
        let working = Working::begin(&core, stays.channel.node().clone());
        for round in 0..2 {
            let plugged = aside(&core, || Plugged::without_driver(&json!({}))).await;
            let told = up_to(&core, &mut events, NOT_READY).await;
            let [(subject, _, words)] = &told[..] else { panic!("{told:?}") };
            assert_eq!(subject, PLUGGED.address);
            // As it says.
            let command = format!("oxblock pci bind {}", PLUGGED.address);
            assert!(words.contains(&command), "{words}");
            aside(&core, || oxblock(&["pci", "bind", PLUGGED.address]).success()).await;
            let told = up_to(&core, &mut events, READY).await;
            assert_eq!(told.len(), 1, "{told:?}");
            let driven = Driven::new(core.clone(), &PLUGGED, 1, NvmeOptions::default()).await;
            Exercise { round, ..Exercise::of(64) }.run(&core, &driven.channel).await;
            plugged.begin_removal();
            let told = up_to(&core, &mut events, EventKind::DeviceUnplugged).await;
            let position = |wanted| told.iter().position(|(_, kind, _)| *kind == wanted);
            let [leaving, gone] = [EventKind::DeviceLeaving, EventKind::DeviceGone].map(position);
            assert!(leaving.is_some() && leaving < gone, "{told:?}");
            assert!(told.iter().any(|(name, ..)| name == PLUGGED.address), "{told:?}");
            aside(&core, || plugged.wait_out()).await;
        }
        let rounds = working.end().await;
        assert!(rounds > 2, "I/O on the other controller stood still: {rounds}");
        assert_eq!(stays.host.stats().resets + stays.host.stats().retries, 0);
        stays.host
    });
}

/// More messages than anybody could read: what did change is told of, once, and I/O goes on.
fn storm() {
    on_engine(2, |core| async move {
        let stays = Driven::new(core.clone(), &FIRST, 1, NvmeOptions::default()).await;
        let mut events = core.events();
        let _hot_plug = HotPlug::begin(&core);
        let working = Working::begin(&core, stays.channel.node().clone());
        let (stop, sleeps) = (Arc::new(AtomicBool::new(false)), core.stats().sleeps);
        let stops = stop.clone();
        let storm = thread::spawn(move || {
            let (path, mut count) = (format!("/sys/bus/pci/devices/{}/uevent", SECOND.address), 0);
            while !stops.load(Ordering::SeqCst) {
                fs::write(&path, "change").expect("an event of the kernel");
                count += 1;
                if count % 500 == 0 {
                    thread::sleep(Duration::from_millis(2));
                }
            }
            count
        });
        for _ in 0..2 {
            core.sleep(Duration::from_millis(500)).await;
            aside(&core, || give(SECOND.address, "nvme").expect("the kernel's driver")).await;
            let told = up_to(&core, &mut events, NOT_READY).await;
            assert_eq!(told.len(), 1, "{told:?}");
            aside(&core, || give(SECOND.address, "vfio-pci").expect("vfio-pci")).await;
            let told = up_to(&core, &mut events, READY).await;
            assert_eq!(told.len(), 1, "{told:?}");
        }
        stop.store(true, Ordering::SeqCst);
        let count: u32 = aside(&core, || storm.join().expect("a storm")).await;
        assert!(count > 1000, "no storm: {count}");
        assert!(core.stats().sleeps > sleeps, "it kept a core awake");
        assert!(working.end().await > 2, "I/O stood still");
        stays.host
    });
}
