//! Commands that take too long, controllers that fail, and what they tell of themselves.

use std::time::Duration;

use oxblock_drivers::nvme::NvmeOptions;
use oxblock_engine::{ErrorKind, EventKind, Op};
use oxblock_nvme::regs::{CSTS, Csts};
use oxblock_pci::Function;
use oxblock_tests::exercise::Exercise;
use serde_json::json;

use super::super::disks::{FIRST, PLUGGED, disk_node};
use super::super::faults::Between;
use super::super::host::execute;
use super::super::machine::until;
use super::super::plugged::Plugged;
use super::{Driven, Rows, on_engine};

/// Within this the driver has noticed: an emulated machine is slow.
const PATIENCE: Duration = Duration::from_secs(20);
/// The spare is below its threshold (SMART log, byte 0).
const SPARE_IS_LOW: u8 = 1;

pub fn add(rows: &mut Rows<'_>) {
    let outcome = "I/O in flight fails, the function is given back, and comes again";
    rows.add(1, "unplugged", outcome, "device_del and device_add", unplugged);
    let outcome = "the controller is reset and all I/O goes on";
    rows.add(4, "fatal_status", outcome, "CFS: bus mastering off", fatal_status);
    let outcome = "aborted, then the controller is reset and all I/O goes on";
    rows.add(19, "late_commands", outcome, "throttle group", late_commands);
    let outcome = "told, and asked for again";
    rows.add(28, "smart_warning", outcome, "smart_critical_warning", smart_warning);
    let outcome = "noticed, the controller is reset and I/O goes on";
    rows.add(33, "function_reset", outcome, "VFIO_DEVICE_RESET", function_reset);
}

/// A process kept a device that was asked for: its slot stayed occupied until the process ended.
fn unplugged() {
    on_engine(2, |core| async move {
        let mut events = core.events();
        for round in 0..2 {
            let plugged = Plugged::new(&json!({}));
            let driven = Driven::new(core.clone(), &PLUGGED, 1, NvmeOptions::default()).await;
            let exercise = Exercise { round, ..Exercise::of(64) };
            exercise.run(&core, &driven.channel).await;
            plugged.begin_removal();
            let begun = core.now();
            while exercise.pass(&core, &driven.channel, false).await.is_empty() {
                assert!(core.now() - begun < PATIENCE.as_nanos() as u64, "it is still there");
            }
            let fault = driven.read(0, 4096).await.result.expect_err("it is gone");
            assert_eq!(fault.kind, ErrorKind::Gone, "{fault}");
            let mut told = Vec::new();
            while told.last() != Some(&EventKind::DeviceGone) {
                told.extend(events.next().await.map(|event| event.kind));
            }
            assert_eq!(told.first(), Some(&EventKind::DeviceLeaving), "{told:?}");
            // The driver is still held, and its registers: the kernel does not wait for them.
            plugged.wait_out();
            drop(driven);
        }
    });
}

/// A controller that cannot fetch its commands fails.
fn fatal_status() {
    on_engine(1, |core| async move {
        let driven = Driven::new(core, &FIRST, 1, NvmeOptions::default()).await;
        Exercise::of(32).run(&driven.core, &driven.channel).await;
        let (config, bar) = (driven.function.config(), driven.function.bar(0).expect("BAR 0"));
        oxblock_pci::disable(config).expect("no bus master");
        for block in 0..16 {
            driven.channel.submit(Op::read(block * 4096, driven.buf(4096))).expect("a slot");
        }
        driven.channel.kick();
        // The driver does not look meanwhile.
        assert!(until(|| Csts(bar.read32(CSTS)).cfs()), "no fatal status");
        oxblock_pci::enable(config).expect("a bus master");
        while driven.channel.in_flight() > 0 {
            driven.core.yield_now().await;
            driven.channel.poll(|ended| ended.result.expect("a read"));
        }
        assert_eq!(driven.host.stats().resets, 1);
        Exercise::of(32).run(&driven.core, &driven.channel).await;
        driven.host
    });
}

/// Two I/Os a second get through; those behind them are late.
fn late_commands() {
    on_engine(1, |core| async move {
        let (io_timeout, abort_timeout) = (Duration::from_secs(1), Duration::from_secs(1));
        let options = NvmeOptions { io_timeout, abort_timeout, ..NvmeOptions::default() };
        let driven = Driven::new(core, &FIRST, 1, options).await;
        Exercise::of(32).run(&driven.core, &driven.channel).await;
        let slow = Between::throttle(&disk_node(1, 1), json!({ "iops-total": 2 }));
        for block in 0..16 {
            let op = Op::read(block * 4096, driven.buf(4096)).tag(block);
            driven.channel.submit(op).expect("a slot");
        }
        driven.channel.kick();
        let begun = driven.core.now();
        let mut ended = Vec::new();
        let mut reap = |driven: &Driven| {
            driven.channel.poll(|completion| {
                completion.result.expect("a read that was late");
                ended.push(completion.op.tag);
            });
        };
        while driven.host.stats().resets == 0 {
            assert!(driven.core.now() - begun < PATIENCE.as_nanos() as u64, "no reset");
            driven.core.sleep(Duration::from_millis(10)).await;
            reap(&driven);
        }
        drop(slow);
        while driven.channel.in_flight() > 0 {
            driven.core.yield_now().await;
            reap(&driven);
        }
        ended.sort_unstable();
        assert_eq!(ended, (0..16).collect::<Vec<u64>>(), "each once");
        let stats = driven.host.stats();
        assert!(stats.timeouts > 0 && stats.aborts > 0 && stats.retries > 0, "{stats:?}");
        Exercise::of(32).run(&driven.core, &driven.channel).await;
        driven.host
    });
}

fn smart_warning() {
    on_engine(1, |core| async move {
        let driven = Driven::new(core, &FIRST, 1, NvmeOptions::default()).await;
        for count in 1..=2 {
            for warning in [0, SPARE_IS_LOW] {
                let property = "smart_critical_warning";
                let path = "/machine/peripheral/nvme1";
                let set = json!({ "path": path, "property": property, "value": warning });
                execute("qom-set", set);
            }
            let begun = driven.core.now();
            while driven.host.stats().events < count {
                assert!(driven.core.now() - begun < PATIENCE.as_nanos() as u64, "event {count}");
                driven.core.sleep(Duration::from_millis(10)).await;
            }
        }
        Exercise::of(32).run(&driven.core, &driven.channel).await;
        driven.host
    });
}

/// Behind the driver's back: the registers say that the controller is disabled.
fn function_reset() {
    on_engine(1, |core| async move {
        let (io_timeout, abort_timeout) = (Duration::from_secs(1), Duration::from_secs(1));
        let options = NvmeOptions { io_timeout, abort_timeout, ..NvmeOptions::default() };
        let driven = Driven::new(core, &FIRST, 1, options).await;
        Exercise::of(32).run(&driven.core, &driven.channel).await;
        // Who knows of it asks for a reset of the controller.
        driven.function.reset().expect("VFIO_DEVICE_RESET");
        driven.host.reset(&driven.core).await.expect("a reset");
        Exercise { round: 1, ..Exercise::of(32) }.run(&driven.core, &driven.channel).await;
        assert_eq!(driven.host.stats().resets, 1);
        // Nobody asks: commands are late, and so is what aborts them.
        driven.function.reset().expect("VFIO_DEVICE_RESET");
        Exercise { round: 2, ..Exercise::of(32) }.run(&driven.core, &driven.channel).await;
        assert_eq!(driven.host.stats().resets, 2);
        driven.host
    });
}
