//! Interrupts of the software controller: the driver sleeps on core 0, the controller works on
//! core 1, so that who is early or late is so for real. Sleeps and interrupts are counted, no time
//! is measured.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use oxblock_drivers::null::{self, NullOptions};
use oxblock_drivers::nvme::{
    Coalescing, Controller as Host, ControllerStats, InterruptMode, NvmeOptions,
};
use oxblock_engine::{Channel, Core, Engine, Node, Options, PollMode};
use oxblock_mem::ArenaOptions;
use oxblock_nvme::feature;
use oxblock_nvmet::fault::{self, Faults, Readiness};
use oxblock_nvmet::{Controller as Target, ControllerOptions, NamespaceOptions};

const LEN: usize = 4096;

/// Two reactors that sleep as soon as they may.
fn engine() -> Engine {
    let options = Options {
        arena: ArenaOptions::new(16 << 20),
        poll_mode: PollMode::Adaptive { spin_us: 0 },
        ..Options::default()
    };
    Engine::with_cores(2, options).expect("an engine")
}

/// The driver on a controller over a device of this latency, with a channel to it.
struct Rig {
    host: Arc<Host>,
    channel: Rc<Channel>,
    _target: Arc<Target>,
}

async fn rig(core: &Core, latency_ns: u64, options: NvmeOptions) -> Rig {
    faulty_rig(core, latency_ns, options, &Faults::new()).await
}

/// The same with fault switches.
async fn faulty_rig(
    core: &Core,
    latency_ns: u64,
    options: NvmeOptions,
    faults: &Arc<Faults>,
) -> Rig {
    let faults = faults.clone();
    let start = move |core: Core| async move {
        let null = NullOptions { latency_ns, ..NullOptions::default() };
        let node = Node::new("null0", null::open(null).expect("a null device"));
        let options = ControllerOptions {
            namespaces: vec![NamespaceOptions::new(node, 512)],
            vectors: 3,
            ..ControllerOptions::default()
        };
        fault::start(&core, options, &faults).await
    };
    let target = core.call(1, start).await.and_then(|result| result).expect("a controller");
    let host = Host::attach(core, target.function(), options).await.expect("the driver");
    let node = Node::new("nvme0n1", host.namespace(1).expect("namespace 1"));
    let channel = Rc::new(core.open(&node).await.expect("a queue"));
    Rig { host, channel, _target: target }
}

/// What queue pairs did while this many tasks read this often, one read after the other each, with
/// up to `pause_ns` of chance in between.
async fn read(core: &Core, rig: &Rig, tasks: u64, count: u64, pause_ns: u64) -> ControllerStats {
    let before = rig.host.stats();
    let task = |_| {
        let (core, channel) = (core.clone(), rig.channel.clone());
        core.clone().spawn(async move {
            for _ in 0..count {
                let buf = core.arena().alloc(LEN, 4096).expect("memory");
                channel.read(0, buf).await.1.expect("a read");
                if pause_ns > 0 {
                    core.sleep(Duration::from_nanos(core.random() % pause_ns)).await;
                }
            }
        })
    };
    let tasks: Vec<_> = (0..tasks).map(task).collect();
    for task in tasks {
        task.await.expect("a task");
    }
    let after = rig.host.stats();
    ControllerStats {
        sleeps: after.sleeps - before.sleeps,
        interrupts: after.interrupts - before.interrupts,
        lost_interrupts: after.lost_interrupts - before.lost_interrupts,
        ..after
    }
}

fn options(interrupt_mode: InterruptMode) -> NvmeOptions {
    NvmeOptions { interrupt_mode, ..NvmeOptions::default() }
}

/// The reactor polled as long as a command was in flight, however slow the device.
#[test]
fn a_core_sleeps_while_its_device_works() {
    const READS: u64 = 300;
    let engine = engine();
    let modes = [InterruptMode::Poll, InterruptMode::Adaptive, InterruptMode::Interrupt];
    for mode in modes {
        let (stats, slept) = engine
            .run(0, move |core| async move {
                let rig = rig(&core, 1_000_000, options(mode)).await;
                let before = core.stats().sleeps;
                let stats = read(&core, &rig, 1, READS, 0).await;
                (stats, core.stats().sleeps - before)
            })
            .expect("the test");
        match mode {
            InterruptMode::Poll => {
                assert_eq!((stats.sleeps, stats.interrupts, slept), (0, 0, 0), "{stats:?}");
            }
            _ => {
                // All but those that were polled to learn how long they are.
                assert!(stats.interrupts >= READS * 3 / 4, "{stats:?}");
                assert!(slept >= stats.interrupts, "{slept} {stats:?}");
            }
        }
    }
    engine.shutdown().expect("an orderly shutdown");
}

/// A completion that comes while its core goes to sleep wakes it: were the look before the eventfd
/// is emptied, or the vector unmasked after the look, some would wait for the next look by time.
#[test]
fn no_wake_up_is_lost() {
    let engine = engine();
    for (mode, latency_ns) in [(InterruptMode::Interrupt, 0), (InterruptMode::Interrupt, 3_000)] {
        let stats = engine
            .run(0, move |core| async move {
                let rig = rig(&core, latency_ns, options(mode)).await;
                read(&core, &rig, 3, 5_000, 2_000).await
            })
            .expect("the test");
        assert!(stats.interrupts > 500, "{stats:?}");
        // A controller whose core is taken away between a completion and its interrupt, for as
        // long as a look by time takes, seems to have lost it.
        assert!(stats.lost_interrupts <= 3, "{stats:?}");
    }
    // And from load, with the vector masked, to waits that are slept through.
    let lost = engine
        .run(0, move |core| async move {
            let rig = rig(&core, 30_000, options(InterruptMode::Adaptive)).await;
            let (mut lost, mut interrupts) = (0, 0);
            for _ in 0..100 {
                for (tasks, count) in [(32, 10), (1, 10)] {
                    let stats = read(&core, &rig, tasks, count, 0).await;
                    lost += stats.lost_interrupts;
                    interrupts += stats.interrupts;
                }
            }
            assert!(interrupts >= 100, "{interrupts}");
            lost
        })
        .expect("the test");
    assert!(lost <= 3, "{lost} of 100 rounds");
    engine.shutdown().expect("an orderly shutdown");
}

/// Under load a queue pair is polled, and its controller has nobody to interrupt.
#[test]
fn under_load_interrupts_end_and_come_back_after() {
    let engine = engine();
    let (idle, loaded, idle_again) = engine
        .run(0, |core| async move {
            let slow = rig(&core, 1_000_000, options(InterruptMode::Adaptive)).await;
            let fast = rig(&core, 0, options(InterruptMode::Adaptive)).await;
            let idle = read(&core, &slow, 1, 100, 0).await;
            // Each queue pair for itself: one is polled beside one that is not.
            let loaded = read(&core, &fast, 32, 2_000, 0).await;
            (idle, loaded, read(&core, &slow, 1, 100, 0).await)
        })
        .expect("the test");
    assert!(idle.interrupts >= 50 && idle_again.interrupts >= 50, "{idle:?} {idle_again:?}");
    assert!(loaded.interrupts < 64_000 / 20, "{loaded:?}");
    engine.shutdown().expect("an orderly shutdown");
}

#[test]
fn coalescing_reaches_the_controller() {
    let engine = engine();
    let (dword, vector) = engine
        .run(0, |core| async move {
            let coalescing = Coalescing { completions: 8, time: Duration::from_micros(250) };
            let options =
                NvmeOptions { coalescing: Some(coalescing), ..options(InterruptMode::Interrupt) };
            let rig = rig(&core, 0, options).await;
            let read = |fid, cdw11| rig.host.feature(&core, fid, 0, 0, cdw11, 0);
            let set = read(feature::INTERRUPT_COALESCING, 0).await.expect("a feature");
            let vector = read(feature::INTERRUPT_VECTOR_CONFIGURATION, 1).await.expect("a feature");
            (set.dword0, vector.dword0)
        })
        .expect("the test");
    // 300 us in units of 100, and 8 completions, 0-based; coalescing of vector 1 is not disabled.
    assert_eq!((dword, vector), (0x0307, 1));
    engine.shutdown().expect("an orderly shutdown");
}

/// Row 33: a reset of the function leaves its vectors with whoever enabled them.
#[test]
fn interrupts_come_after_a_reset_of_the_function() {
    const READS: u64 = 200;
    let engine = engine();
    let (before, after, resets) = engine
        .run(0, |core| async move {
            let faults = Faults::new();
            let rig =
                faulty_rig(&core, 1_000_000, options(InterruptMode::Interrupt), &faults).await;
            let before = read(&core, &rig, 1, READS, 0).await;
            // What cannot be disabled is reset by its function.
            faults.set_disabling(Readiness::Never);
            rig.host.reset(&core).await.expect("it comes back");
            faults.set_disabling(Readiness::AtOnce);
            let after = read(&core, &rig, 1, READS, 0).await;
            (before, after, rig.host.stats().resets)
        })
        .expect("the test");
    assert_eq!(resets, 1);
    for stats in [before, after] {
        assert!(stats.interrupts >= READS * 3 / 4 && stats.lost_interrupts <= 3, "{stats:?}");
    }
    engine.shutdown().expect("an orderly shutdown");
}
