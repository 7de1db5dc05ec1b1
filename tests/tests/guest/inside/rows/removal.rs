//! Controllers that are taken out while they are in use, and come back.

use oxblock_drivers::nvme::NvmeOptions;
use oxblock_engine::{ErrorKind, EventKind};
use oxblock_tests::exercise::Exercise;
use serde_json::json;

use super::super::disks::PLUGGED;
use super::super::plugged::Plugged;
use super::{Driven, Rows, on_engine};

/// Within this, in ns, the driver has let go: an emulated machine is slow.
const PATIENCE_NS: u64 = 20_000_000_000;

pub fn add(rows: &mut Rows<'_>) {
    let outcome = "I/O fails, the device goes and can come back";
    rows.add(22, "removal", outcome, "device_del and device_add", removal);
}

/// A process kept a device that was asked for: the slot stayed occupied until the process ended.
fn removal() {
    on_engine(2, |core| async move {
        let mut events = core.events();
        for round in 0..2 {
            let plugged = Plugged::new(&json!({}));
            let driven = Driven::new(core.clone(), &PLUGGED, 1, NvmeOptions::default()).await;
            Exercise { round, ..Exercise::of(64) }.run(&core, &driven.channel).await;
            plugged.begin_removal();
            let begun = core.now();
            while driven.read(0, 4096).await.result.is_ok() {
                assert!(core.now() - begun < PATIENCE_NS, "nobody lets go");
                core.yield_now().await;
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
