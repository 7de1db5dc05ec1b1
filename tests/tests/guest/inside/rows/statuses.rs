//! What the controller says went wrong.

use oxblock_drivers::nvme::NvmeOptions;
use oxblock_engine::ErrorKind;
use oxblock_tests::exercise::Exercise;
use serde_json::{Value, json};

use super::super::disks::{FIRST, disk_node};
use super::super::faults::Between;
use super::{Driven, Rows, failure, on_engine};

/// Errno on the host.
const EIO: i32 = 5;

pub fn add(rows: &mut Rows<'_>) {
    let outcome = "EIO at the offset that is lost, nothing else fails";
    rows.add(26, "media_errors", outcome, "blkdebug inject-error", media_errors);
    let outcome = "each is sent, and one that fails says so";
    rows.add(35, "flushes", outcome, "blkdebug inject-error", flushes);
}

/// An error for one kind of I/O, wherever it is or at a sector.
fn rule(kind: &str, sector: Option<u64>) -> Value {
    let mut rule = json!({ "event": "none", "iotype": kind, "errno": EIO });
    if let Some(sector) = sector {
        rule["sector"] = json!(sector);
    }
    json!([rule])
}

fn media_errors() {
    on_engine(1, |core| async move {
        let disk = disk_node(1, 1);
        let driven = Driven::new(core, &FIRST, 1, NvmeOptions::default()).await;
        Exercise::of(64).run(&driven.core, &driven.channel).await;
        let bad = 24 << 10;
        let errors = Between::errors(&disk, rule("read", Some(bad / 512)));
        assert_eq!(failure(&driven.read(bad, 512).await), (ErrorKind::Media, bad));
        assert_eq!(driven.read(bad + 512, 512).await.result, Ok(()));
        let failed = Exercise::of(64).pass(&driven.core, &driven.channel, false).await;
        let kinds: Vec<_> = failed.iter().map(|(block, fault)| (*block, fault.kind)).collect();
        assert_eq!(kinds, [(bad / Exercise::BLOCK, ErrorKind::Media)]);
        drop(errors);
        let errors = Between::errors(&disk, rule("write", None));
        assert_eq!(failure(&driven.write(4096, 512).await), (ErrorKind::Media, 4096));
        drop(errors);
        Exercise::of(64).run(&driven.core, &driven.channel).await;
        driven.host
    });
}

fn flushes() {
    on_engine(1, |core| async move {
        let disk = disk_node(1, 1);
        let driven = Driven::new(core, &FIRST, 1, NvmeOptions::default()).await;
        assert!(driven.channel.limits().volatile_cache, "QEMU's disks have a cache");
        // As often as it is tried, and no more: QEMU flushes before it takes a fault away.
        let mut once = rule("flush", None)[0].take();
        once["once"] = json!(true);
        let tries = 1 + usize::from(NvmeOptions::default().retries);
        let errors = Between::errors(&disk, json!(vec![once; tries]));
        // Without anything to flush, QEMU asks nobody.
        driven.write(0, 4096).await.result.expect("a write");
        driven.channel.flush().await.expect_err("a flush that the disk refuses");
        drop(errors);
        driven.channel.flush().await.expect("a flush again");
        driven.host
    });
}
