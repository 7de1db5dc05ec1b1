//! Namespaces that are busy, and that come and go, under I/O.

use std::time::Duration;

use oxblock_drivers::nvme::{AdminData, NvmeOptions};
use oxblock_engine::{ErrorKind, EventKind, Events, Node, Op};
use oxblock_nvme::Command;
use oxblock_nvme::identify::CNS_CONTROLLER;
use oxblock_tests::exercise::Exercise;
use serde_json::json;

use super::super::disks::{SECOND, disk_node};
use super::super::faults::Between;
use super::{Driven, Rows, on_engine};

/// Within this the driver has noticed: an emulated machine is slow.
const PATIENCE: Duration = Duration::from_secs(20);
/// The namespace that may be formatted.
const NSID: u32 = 4;
/// Where a controller's page has its identifier.
const CNTLID: usize = 78;

pub fn add(rows: &mut Rows<'_>) {
    let outcome = "I/O is sent again until it is formatted";
    rows.add(27, "busy_namespace", outcome, "a format below a throttle group", busy);
    let outcome = "I/O to what is gone fails, and what comes is told of";
    rows.add(29, "changing_namespaces", outcome, "a namespace detached and attached", changing);
}

/// Another host would format it so: the driver does not know, and sends I/O meanwhile.
fn busy() {
    on_engine(1, |core| async move {
        let driven = Driven::new(core, &SECOND, NSID, NvmeOptions::default()).await;
        Exercise::of(64).run(&driven.core, &driven.channel).await;
        let slow = Between::throttle(&disk_node(2, NSID), json!({ "bps-total": 64 << 10 }));
        // The format has to wait until the group has forgotten this.
        driven.write(0, 512 << 10).await.result.expect("a write");
        let format = driven.core.spawn({
            let (core, host) = (driven.core.clone(), driven.host.clone());
            async move {
                let command = Command::format_nvm(NSID, 0, 0);
                let patience = Some(Duration::from_secs(60));
                host.admin_command(&core, command, AdminData::None, patience).await
            }
        });
        driven.core.sleep(Duration::from_millis(100)).await;
        for block in 0..16 {
            driven.channel.submit(Op::read(block * 4096, driven.buf(4096))).expect("a slot");
        }
        driven.channel.kick();
        let begun = driven.core.now();
        while driven.host.stats().retries < 16 {
            assert!(driven.core.now() - begun < PATIENCE.as_nanos() as u64, "nothing was busy");
            driven.core.sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(driven.channel.poll(|_| {}), 0, "a read of what is being formatted");
        drop(slow);
        while driven.channel.in_flight() > 0 {
            driven.core.yield_now().await;
            driven.channel.poll(|ended| {
                ended.result.expect("a read that was sent again");
                assert!(ended.op.data.whole().is_all(0), "it was formatted");
            });
        }
        let formatted = format.await.expect("its end").and_then(|reply| reply.success("format"));
        formatted.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(driven.host.stats().resets, 0);
        Exercise::of(64).run(&driven.core, &driven.channel).await;
        driven.host
    });
}

fn changing() {
    on_engine(1, |core| async move {
        let driven = Driven::new(core, &SECOND, NSID, NvmeOptions::default()).await;
        let page = driven.host.identify(&driven.core, CNS_CONTROLLER, 0, 0).await.expect("a page");
        let controller = [u16::from_le_bytes([page[CNTLID], page[CNTLID + 1]])];
        let mut events = driven.core.events();
        for round in 0..2 {
            // What is open on it ends with it.
            let node = Node::new("again", driven.host.namespace(NSID).expect("it is there"));
            let channel = driven.core.open(&node).await.expect("a queue");
            Exercise { round, ..Exercise::of(64) }.run(&driven.core, &channel).await;
            for block in 0..32 {
                channel.submit(Op::read(block * 4096, driven.buf(4096))).expect("a slot");
            }
            channel.kick();
            let host = &driven.host;
            host.detach_namespace(&driven.core, NSID, &controller).await.expect("detached");
            wait_for(&driven, &mut events, EventKind::NamespaceRemoved { id: NSID }).await;
            let gone = driven.channel.run(Op::read(0, driven.buf(4096))).await;
            assert_eq!(gone.result.map_err(|fault| fault.kind), Err(ErrorKind::Gone));
            while channel.in_flight() > 0 {
                driven.core.yield_now().await;
                channel.poll(|ended| {
                    let kind = ended.result.map_err(|fault| fault.kind);
                    assert_ne!(kind, Err(ErrorKind::TimedOut), "it was forgotten");
                });
            }
            let host = &driven.host;
            host.attach_namespace(&driven.core, NSID, &controller).await.expect("attached");
            wait_for(&driven, &mut events, EventKind::NamespaceAdded { id: NSID }).await;
        }
        driven.host
    });
}

async fn wait_for(driven: &Driven, events: &mut Events, wanted: EventKind) {
    let begun = driven.core.now();
    loop {
        while let Some(event) = events.try_next() {
            if event.kind == wanted {
                return;
            }
        }
        assert!(driven.core.now() - begun < PATIENCE.as_nanos() as u64, "no {wanted:?}");
        driven.core.sleep(Duration::from_millis(1)).await;
    }
}
