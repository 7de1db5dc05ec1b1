//! Rows 30 to 32 and 34 to 38: what controllers have, or have not.

use std::time::Duration;

use oxblock_drivers::nvme::Quirks;
use oxblock_engine::Op;
use oxblock_mem::{ArenaOptions, Memory};
use oxblock_nvme::cmb::{Cmbloc, Cmbsz};
use oxblock_nvme::opcode::{admin, nvm};
use oxblock_nvme::status::Status;
use oxblock_nvme::{feature, regs};
use oxblock_nvmet::fault::{Match, Readiness};

use super::{Rig, Row, every};

pub const ROWS: &[Row] = &[
    (30, "twice in its time, and across resets", keep_alive),
    (31, "notified, and awaited", shutdown),
    (32, "off, or within the latency that was allowed", power_states),
    (34, "waited for, and never a full disk", full_iommu),
    (35, "each flush is sent, one that fails says so", flushes),
    (36, "cores share what there is", fewer_queues),
    (37, "not used", memory_outside),
    (38, "left alone as it needs", quirks),
];

fn keep_alive() {
    let mut rig = Rig::with(|options| options.keep_alive = true);
    rig.options.keep_alive = Some(Duration::from_secs(2));
    let driven = rig.open();
    for round in 1..=2 {
        rig.wait(Duration::from_millis(10_100));
        let beats = rig.faults.seen(true, admin::KEEP_ALIVE);
        assert!((10 * round..12 * round).contains(&beats), "{beats} in round {round}");
        let host = driven.host.clone();
        rig.run(|core| async move { host.reset(&core).await }).expect("a reset");
    }
    rig.exercise(&driven);
    let host = driven.host.clone();
    rig.run(|core| async move { host.shutdown(&core).await }).expect("a shutdown");
    let beats = rig.faults.seen(true, admin::KEEP_ALIVE);
    rig.wait(Duration::from_secs(10));
    assert_eq!(rig.faults.seen(true, admin::KEEP_ALIVE), beats, "and no more");
}

fn shutdown() {
    for (pace, is_orderly) in
        [(Readiness::AfterTime(Duration::from_secs(5)), true), (Readiness::Never, false)]
    {
        let mut rig = Rig::new();
        let driven = rig.open();
        rig.exercise(&driven);
        rig.faults.set_shutdown(pace);
        let (begun, host) = (rig.now(), driven.host.clone());
        let done = rig.run(|core| async move { host.shutdown(&core).await });
        assert_eq!(done.is_ok(), is_orderly, "{done:?}");
        let took = (rig.now() - begun).as_secs();
        assert!((5..=11).contains(&took), "{took} s");
    }
}

/// Whether the controller may enter power states, as it was told.
fn power_states() {
    for (latency, refused) in [(None, false), (Some(1000), false), (None, true)] {
        let mut rig = Rig::with(|options| options.power_transitions = true);
        rig.options.power_latency = latency.map(Duration::from_millis);
        let id = feature::AUTONOMOUS_POWER_STATE_TRANSITION;
        if refused {
            rig.faults.answer(
                Match::admin(admin::SET_FEATURES).selector(id),
                0,
                Status::INVALID_FIELD.dnr(),
            );
        }
        let driven = rig.open();
        rig.exercise(&driven);
        if refused {
            assert!(!driven.host.notices().is_empty(), "it may be slow, and that is said");
            continue;
        }
        let host = driven.host.clone();
        let set = rig.run(|core| async move { host.feature(&core, id, 0, 0, 0, 256).await });
        assert_eq!(set.expect("a feature").dword0 & 1, u32::from(latency.is_some()));
    }
}

fn full_iommu() {
    let mut rig = Rig::new();
    let iommu = rig.target.function().iommu();
    let others = Memory::new();
    let arena = others.add_arena(&ArenaOptions::new(4096)).expect("memory");
    rig.target.iommu().set_mappings_max(1);
    iommu.map(&arena.region(), 1 << 40).expect("the only mapping");
    let refusal = rig.attach().map(|_| ()).expect_err("no room");
    assert_ne!(refusal.errno(), 28, "no full disk");
    let core = rig.sim.core(0).clone();
    drop(rig.sim.core(0).spawn(async move {
        core.sleep(Duration::from_millis(300)).await;
        iommu.unmap(1 << 40, arena.region().len() as u64).expect("it was mapped");
    }));
    let begun = rig.now();
    rig.target.iommu().set_mappings_max(3);
    let driven = rig.open();
    assert!(rig.now() - begun < Duration::from_secs(1));
    rig.exercise(&driven);
}

fn flushes() {
    let mut rig = Rig::with(|options| options.volatile_cache = Some(true));
    let driven = rig.open();
    assert!(driven.channel.limits().volatile_cache);
    let before = rig.target.flushes();
    rig.op(&driven, Op::flush()).expect("a flush");
    assert_eq!(rig.target.flushes(), before + 1);
    rig.faults.answer(every(nvm::FLUSH), 0, Status::WRITE_FAULT.dnr());
    rig.op(&driven, Op::flush()).expect_err("a flush that fails");
    rig.faults.clear();
    rig.op(&driven, Op::flush()).expect("a flush again");
}

fn fewer_queues() {
    let mut rig = Rig::with(|options| options.max_io_queues = 1);
    let driven = rig.open();
    rig.exercise_cores(&driven);
    assert_eq!(driven.host.stats().queues, 1);
    // The second queue cannot be made, which leaves the first alone, and nothing behind.
    for opcode in [admin::CREATE_CQ, admin::CREATE_SQ] {
        let mut rig = Rig::new();
        rig.faults.answer(Match::admin(opcode).nth(2), 0, Status::INTERNAL_ERROR.dnr());
        let driven = rig.open();
        let node = driven.channel.node().clone();
        let opened = rig.sim.run(1, |core| async move { core.open(&node).await.map(|_| ()) });
        let error = opened.expect("no deadlock").expect_err("no second queue").to_string();
        let which = if opcode == admin::CREATE_CQ { "completion" } else { "submission" };
        for words in ["creating I/O queue 2", &format!("create {which} queue"), "internal error"] {
            assert!(error.contains(words), "{error}");
        }
        rig.exercise(&driven);
        assert_eq!(driven.host.stats().queues, 1);
        rig.exercise_cores(&driven);
        assert_eq!(driven.host.stats().queues, 2);
    }
}

fn memory_outside() {
    for (offset, pages) in [(4, 1), (0, 5), (0xf_ffff, 0xf_ffff)] {
        let mut rig = Rig::with(|options| options.cmb_bytes = 16 << 10);
        rig.options.controller_memory = true;
        let bir = 2;
        let location = Cmbloc::default().with_bir(bir).with_ofst(offset);
        rig.faults.set_register(regs::CMBLOC, Some(location.0));
        let size = Cmbsz::default().with_abilities(1).with_sz(pages);
        rig.faults.set_register(regs::CMBSZ, Some(size.0));
        let driven = rig.open();
        let notices = driven.host.notices().join("\n");
        assert!(notices.contains("not inside BAR 2"), "{notices}");
        rig.exercise(&driven);
    }
}

/// The X5 has the PCI identity of another; its name tells that it must not be looked at for 2.3 s
/// after it was disabled.
fn quirks() {
    const SAMSUNG: u16 = 0x144d;
    let mut rig = Rig::with(|options| options.model = "Samsung Portable SSD X5".into());
    rig.faults.patch_identify(1, 0, &SAMSUNG.to_le_bytes());
    let driven = rig.open();
    assert!(driven.host.quirks().contains(Quirks::DELAY_BEFORE_READY));
    let (begun, host) = (rig.now(), driven.host.clone());
    rig.run(|core| async move { host.reset(&core).await }).expect("a reset");
    assert!(rig.now() - begun >= Duration::from_millis(2300), "{:?}", rig.now() - begun);
    rig.exercise(&driven);
}
