//! Rows 28 and 29: what a controller tells of itself, and namespaces that change.

use std::rc::Rc;
use std::time::Duration;

use oxblock_engine::{ErrorKind, Node, Op};
use oxblock_nvme::event::{ERROR_PERSISTENT_INTERNAL, Event, TYPE_ERROR, TYPE_SMART};
use oxblock_nvme::log::LID_ERROR;
use oxblock_nvme::opcode::admin;

use super::{Driven, Rig, Row};

pub const ROWS: &[Row] = &[
    (28, "as many as there may be wait for events, each waits again", warnings),
    (29, "I/O of one that vanishes fails, a new look finds what there is", vanishing_namespace),
];

/// The spare is below its threshold (SMART log, byte 0).
const SPARE_IS_LOW: u8 = 1;
/// The software controller's CNTLID.
const CONTROLLER: u16 = 1;

fn warnings() {
    let mut rig = Rig::new();
    let driven = rig.open();
    let armed = rig.faults.seen(true, admin::ASYNC_EVENT);
    assert!(armed > 1, "{armed}");
    for count in 1..=20 {
        rig.target.set_critical_warning(0);
        rig.target.set_critical_warning(SPARE_IS_LOW);
        rig.wait(Duration::from_millis(500));
        assert_eq!(driven.host.stats().events, count);
        assert_eq!(rig.faults.seen(true, admin::ASYNC_EVENT), armed + count);
    }
    let last = driven.host.events().pop().expect("an event").event;
    assert_eq!((last.kind, last.log_page), (TYPE_SMART, 2), "{last:?}");
    // Something inside is broken for good.
    let information = ERROR_PERSISTENT_INTERNAL;
    rig.target.report(Event { kind: TYPE_ERROR, information, log_page: LID_ERROR });
    rig.wait(Duration::from_millis(500));
    assert_eq!(driven.host.stats().resets, 1);
    rig.exercise(&driven);
}

fn vanishing_namespace() {
    let mut rig = Rig::new();
    let driven = rig.open();
    rig.exercise(&driven);
    let (host, channel) = (driven.host.clone(), driven.channel.clone());
    let kinds = rig.run(|core| async move {
        let mut kinds = Vec::new();
        for block in 0..64 {
            let data = core.arena().alloc(4096, 4096).expect("memory");
            channel.submit(Op::read(block * 4096, data)).expect("room");
            if block == 32 {
                channel.kick();
                host.detach_namespace(&core, 1, &[CONTROLLER]).await.expect("detached");
            }
        }
        channel.kick();
        while channel.in_flight() > 0 {
            core.sleep(Duration::from_micros(10)).await;
            channel.poll(|end| kinds.push(end.result.map_err(|fault| fault.kind)));
        }
        kinds
    });
    assert_eq!(kinds.len(), 64);
    let failed = kinds.iter().filter(|kind| **kind != Ok(())).count();
    assert!(failed >= 31, "{kinds:?}");
    assert!(!kinds.contains(&Err(ErrorKind::TimedOut)), "{kinds:?}");
    // It is noticed, and so is its return, even where the log of changes has no more room.
    rig.wait(Duration::from_millis(500));
    assert!(driven.host.namespaces().is_empty(), "{:?}", driven.host.namespaces());
    let host = driven.host.clone();
    let attached =
        rig.run(|core| async move { host.attach_namespace(&core, 1, &[CONTROLLER]).await });
    attached.expect("attached again");
    rig.target.report_too_many_changed();
    rig.wait(Duration::from_millis(500));
    assert_eq!(driven.host.namespaces(), [1]);
    let host = driven.host.clone();
    let node = Node::new("nvme0n1", host.namespace(1).unwrap_or_else(|e| panic!("{e}")));
    let channel = rig.run(|core| async move { core.open(&node).await }).expect("a queue");
    rig.exercise(&Driven { host, channel: Rc::new(channel) });
}
