//! Rows 1 to 9 and 36: from a function to a namespace.

use oxblock_engine::{ErrorKind, Op};
use oxblock_mem::{ArenaOptions, Memory};
use oxblock_nvme::opcode::admin;
use oxblock_nvme::regs::{Cap, Cc};
use oxblock_nvme::status::Status;
use oxblock_pci::Function;
use oxblock_pci::soft::SoftIommuOptions;

use super::device::{Follow, Seen, State, namespace};
use super::{Rig, kind};

#[test]
fn attach_identifies_and_sets_up() {
    let mut rig = Rig::new(|_| {});
    let controller = rig.attach();
    assert_eq!(controller.identity().serial, "SCRIPT");
    assert_eq!(controller.identity().io_queues, 1);
    assert_eq!(controller.identity().queue_entries, 256);
    assert_eq!(controller.namespaces(), [1]);
    let limits = controller.namespace(1).unwrap().limits();
    assert_eq!((limits.length, limits.block_size), (4096 * 512, 512));
    assert_eq!(limits.max_transfer, 1 << 20);
    rig.turns(50);
    let state = rig.device.state();
    assert_eq!(state.cc, Cc::default().with_en(true).with_iosqes(6).with_iocqes(4));
    assert_eq!(state.armed.len(), 1, "AERL 0 is one event request");
    drop(state);
    let error = controller.namespace(2).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("[1]"), "{error}");
}

/// Row 1.
#[test]
fn gone_before_attach_is_said_so() {
    let mut rig = Rig::new(|state| state.gone = true);
    let error = rig.refusal();
    assert_eq!(error.kind(), ErrorKind::Gone);
    assert!(error.to_string().contains("soft:7") && error.to_string().contains("all ones"));
    assert!(rig.device.state().mmio < 10);
}

/// Row 1: the device goes while the driver waits for it.
#[test]
fn gone_while_enabling_ends_the_wait() {
    let mut rig = Rig::new(|state| state.ready = Follow::Never);
    let device = rig.device.clone();
    drop(rig.sim.core(0).spawn({
        let core = rig.sim.core(0).clone();
        async move {
            core.sleep(std::time::Duration::from_millis(10)).await;
            device.state().gone = true;
        }
    }));
    assert_eq!(rig.refusal().kind(), ErrorKind::Gone);
    assert!(rig.now_ms() < 20, "{}", rig.now_ms());
}

/// Row 2: a controller disabled while it was becoming ready hung until the next power cycle.
#[test]
fn a_controller_that_is_becoming_ready_is_let_finish() {
    let mut rig = Rig::new(|state| {
        state.cc = Cc::default().with_en(true);
        state.csts = Default::default();
        state.ready = Follow::AtOnce;
    });
    let device = rig.device.clone();
    drop(rig.sim.core(0).spawn({
        let core = rig.sim.core(0).clone();
        async move {
            core.sleep(std::time::Duration::from_millis(300)).await;
            let mut state = device.state();
            state.csts = state.csts.with_rdy(true);
        }
    }));
    rig.attach();
    assert!(rig.now_ms() >= 300);
    let state = rig.device.state();
    assert!(!state.seen.contains(&Seen::DisabledTooEarly), "{:?}", state.seen);
    assert!(matches!(state.seen[0], Seen::Cc(cc) if !cc.en()));
}

/// Row 2, when it never becomes ready: disabled all the same, after its time.
#[test]
fn a_controller_that_never_becomes_ready_is_disabled_in_the_end() {
    let mut rig = Rig::new(|state| state.cc = Cc::default().with_en(true));
    rig.attach();
    assert!((1000..1100).contains(&rig.now_ms()), "{}", rig.now_ms());
}

/// Row 3: TO = 0 once meant "for ever" to a driver, and "at once" to another. The time counts
/// twice, because the function is reset and tried again.
#[test]
fn the_ready_timeout_is_the_longer_one_and_never_zero() {
    let cases = [
        (Cap::default().with_to(0), 0, 500),
        (Cap::default().with_to(1), 0, 500),
        (Cap::default().with_to(6), 0, 3000),
        (Cap::default().with_to(6), 100, 3000),
        (Cap::default().with_to(6).with_crms(1), 10, 5000),
        (Cap::default().with_to(40).with_crms(3), 10, 20_000),
    ];
    for (cap, crto, expected_ms) in cases {
        let mut rig = Rig::new(|state| {
            state.cap = cap.with_mqes(63).with_css(1);
            state.crto = crto;
            state.ready = Follow::Never;
        });
        let error = rig.refusal();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().contains("enabling"), "{error}");
        let took = rig.now_ms();
        assert!((2 * expected_ms..2 * expected_ms + 50).contains(&took), "{took} {expected_ms}");
        assert_eq!(rig.device.state().resets, 1);
    }
}

/// Row 3, on the way down: RDY that stays set.
#[test]
fn a_controller_that_does_not_disable_is_given_up() {
    let mut rig = Rig::new(|state| {
        state.cc = Cc::default().with_en(true);
        state.csts = state.csts.with_rdy(true);
        state.unready = Follow::Never;
    });
    rig.device.state().ready_after_reset = Some(Follow::Never);
    let error = rig.refusal();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(rig.now_ms() < 5000);
}

/// Row 4.
#[test]
fn a_fatal_status_while_enabling_leads_to_a_reset() {
    let mut rig = Rig::new(|state| {
        state.ready = Follow::Fatally;
        state.ready_after_reset = Some(Follow::AfterReads(3));
    });
    rig.attach();
    assert_eq!(rig.device.state().resets, 1);
    assert!(rig.now_ms() < 100, "CFS ends the wait at once, {}", rig.now_ms());

    let mut rig = Rig::new(|state| state.ready = Follow::Fatally);
    let error = rig.refusal();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("CSTS.CFS"), "{error}");
    assert!(rig.now_ms() < 100);
}

/// Row 22 before there is anything to recover: a controller whose last owner was killed becomes
/// ready, and answers nothing until its function is reset.
#[test]
fn a_controller_that_cannot_be_set_up_gets_another_chance() {
    let deaf = |helps| {
        move |state: &mut State| {
            (state.cc, state.deaf) = (Cc::default().with_en(true), true);
            state.csts = state.csts.with_rdy(true);
            state.reset_gives_ears = helps;
        }
    };
    let mut rig = Rig::new(deaf(true));
    let (controller, channel) = rig.open();
    assert_eq!(rig.device.state().resets, 1);
    let op = Op::read(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
    // The first try counts no reset of a controller that worked, and a later one works.
    assert_eq!(controller.stats().resets, 0);
    rig.run(|core| async move { controller.reset(&core).await }).expect("it comes back");
    let op = Op::read(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()));

    let mut rig = Rig::new(deaf(false));
    let free = rig.sim.core(0).arena().available();
    let error = rig.refusal();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("06h got no answer"), "{error}");
    let state = rig.device.state();
    assert_eq!((state.resets, state.cc.en()), (1, false));
    drop(state);
    rig.turns(50);
    assert_eq!(rig.sim.core(0).arena().available(), free, "its memory came back");
}

/// Row 5.
#[test]
fn mqes_bounds_the_queues() {
    for (mqes, entries) in [(1, 2), (2, 3), (30, 31), (255, 256), (1023, 256), (65_535, 256)] {
        let mut rig = Rig::new(|state| state.cap = state.cap.with_mqes(mqes));
        let (controller, channel) = rig.open();
        assert_eq!(controller.identity().queue_entries, entries);
        for n in 0..5 {
            let op = Op::read(n * 512, rig.buf(512));
            assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
        }
    }
    let mut rig = Rig::new(|state| state.cap = state.cap.with_mqes(0));
    let error = rig.refusal();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(error.to_string().contains("MQES 0"), "{error}");
}

/// Row 6.
#[test]
fn doorbells_lie_inside_the_bar() {
    for dstrd in [0, 1, 3, 6] {
        let mut rig = Rig::new(|state| state.cap = state.cap.with_dstrd(dstrd));
        let (_, channel) = rig.open();
        let op = Op::read(0, rig.buf(4096));
        assert_eq!(kind(&rig.op(&channel, op)), Ok(()), "DSTRD {dstrd}");
    }
    let mut rig = Rig::new(|state| state.cap = state.cap.with_dstrd(15));
    let error = rig.refusal();
    assert!(error.to_string().contains("outside its BAR (CAP.DSTRD 15)"), "{error}");
    // Room for the doorbells of queues 0 and 1, and no more than the tail of queue 2.
    let mut rig = Rig::with(1, 0x1000 + 5 * 4, |_| {});
    rig.options.io_queues = 4;
    assert_eq!(rig.attach().identity().io_queues, 1);
    let mut rig = Rig::with(1, 0x1000, |_| {});
    assert_eq!(rig.refusal().kind(), ErrorKind::NotSupported);
}

/// Row 7.
#[test]
fn pages_that_the_host_does_not_have_are_refused() {
    let mut rig = Rig::new(|state| state.cap = state.cap.with_mpsmin(4).with_mpsmax(4));
    let error = rig.refusal();
    assert!(error.to_string().contains("65536 bytes, the host's is 4096"), "{error}");
    assert!(rig.device.state().seen.is_empty(), "nothing was written");
}

/// Row 34: no room in the IOMMU was reported as no room on the disk.
#[test]
fn a_full_iommu_is_waited_for_and_is_no_full_disk() {
    let full = SoftIommuOptions { mappings_max: 0, ..SoftIommuOptions::default() };
    let mut rig = Rig::behind(0x1b36, 0, full);
    let error = rig.refusal();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().contains("all 0 DMA mappings are taken"), "{error}");
    assert!((1000..1100).contains(&rig.now_ms()), "{}", rig.now_ms());
    assert!(rig.device.state().seen.is_empty(), "nothing was written");
}

/// Row 34: whoever has the mappings gives one back meanwhile.
#[test]
fn room_in_a_full_iommu_is_found() {
    let one = SoftIommuOptions { mappings_max: 1, ..SoftIommuOptions::default() };
    let mut rig = Rig::behind(0x1b36, 0, one);
    let others = Memory::new();
    let arena = others.add_arena(&ArenaOptions::new(4096)).expect("memory");
    let iommu = rig.function.iommu();
    iommu.map(&arena.region(), 1 << 40).expect("the only mapping");
    let core = rig.sim.core(0).clone();
    drop(rig.sim.core(0).spawn(async move {
        core.sleep(std::time::Duration::from_millis(300)).await;
        iommu.unmap(1 << 40, arena.region().len() as u64).expect("it was mapped");
    }));
    rig.attach();
    assert!((300..310).contains(&rig.now_ms()), "{}", rig.now_ms());
}

#[test]
fn controllers_without_namespaces_to_use_are_refused() {
    for css in [0, 0x80] {
        let mut rig = Rig::new(|state| state.cap = Cap::default().with_mqes(63).with_css(css));
        assert!(rig.refusal().to_string().contains("no NVM command set"));
    }
    let mut rig = Rig::new(|state| state.controller.cntrltype = 3);
    assert!(rig.refusal().to_string().contains("administrative controller"));
    assert!(!rig.device.state().cc.en(), "and is left disabled");
    let mut rig = Rig::new(|state| state.controller.sqes = 0x77);
    assert!(rig.refusal().to_string().contains("SQES 0x77"));
}

/// Row 9: one namespace that cannot be used does not take the others along.
#[test]
fn formats_that_are_not_supported_are_refused_by_namespace() {
    let mut rig = Rig::new(|state| {
        state.namespaces.insert(2, namespace(100, 8));
        state.namespaces.insert(3, namespace(100, 13));
        state.namespaces.insert(5, namespace(100, 12));
    });
    let controller = rig.attach();
    assert_eq!(controller.namespaces(), [1, 2, 3, 5]);
    for nsid in [2, 3] {
        let error = controller.namespace(nsid).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        assert!(error.to_string().contains(&format!("namespace {nsid}: blocks of")), "{error}");
    }
    assert_eq!(controller.namespace(5).unwrap().limits().block_size, 4096);
}

/// Row 36.
#[test]
fn fewer_queues_than_asked_for_are_used() {
    let mut rig = Rig::with(3, 0x4000, |state| state.queues_granted = 2);
    let (controller, node) = rig.node();
    assert_eq!(controller.identity().io_queues, 2);
    let mut channels = Vec::new();
    for core in 0..3 {
        let node = node.clone();
        channels.push(rig.run_on(core, |core| async move { core.open(&node).await }));
    }
    // The third core shares.
    assert_eq!((controller.stats().queues, controller.stats().sharing), (2, 1));
    for (core, channel) in channels.into_iter().enumerate() {
        let (channel, buf) = (channel.unwrap(), rig.buf(4096));
        let run = async move |_| channel.run(Op::read(0, buf)).await.result;
        assert_eq!(rig.run_on(core, run), Ok(()));
    }
    // A controller that will not say how many there are has one.
    let refused = (Status::INTERNAL_ERROR, 1);
    let mut rig = Rig::new(|state| {
        state.refused.insert(admin::SET_FEATURES, refused);
    });
    assert_eq!(rig.attach().identity().io_queues, 1);
}

/// Row 36: what was created before the failure is deleted, and the identifier used again.
#[test]
fn a_queue_that_fails_midway_leaves_nothing_behind() {
    for opcode in [admin::CREATE_CQ, admin::CREATE_SQ] {
        let mut rig = Rig::new(|state| {
            state.refused.insert(opcode, (Status::INVALID_QUEUE_SIZE, 1));
        });
        let (controller, node) = rig.node();
        let free = rig.sim.core(0).arena().available();
        let opening = node.clone();
        let error = rig.run(|core| async move { core.open(&opening).await.map(|_| ()) });
        let error = error.unwrap_err();
        assert!(error.to_string().contains("invalid queue size"), "{error}");
        assert_eq!(controller.stats().queues, 0);
        assert_eq!(rig.sim.core(0).arena().available(), free, "its memory came back");
        let deleted = rig.device.state().admin_count(admin::DELETE_CQ);
        assert_eq!(deleted, usize::from(opcode == admin::CREATE_SQ));
        let channel = rig.run(|core| async move { core.open(&node).await }).unwrap();
        let buf = rig.buf(512);
        let result = rig.run(|_| async move { channel.run(Op::read(0, buf)).await.result });
        assert_eq!(result, Ok(()));
    }
}

#[test]
fn events_are_taken_and_armed_again() {
    use oxblock_nvme::event::{Event, NOTICE_NAMESPACE_CHANGED, TYPE_NOTICE};
    let mut rig = Rig::new(|state| state.controller.aerl = 1);
    let controller = rig.attach();
    rig.turns(50);
    assert_eq!(rig.device.state().armed.len(), 2);
    let event = Event { kind: TYPE_NOTICE, information: NOTICE_NAMESPACE_CHANGED, log_page: 4 };
    for n in 1..=5 {
        rig.device.state().raise(event);
        rig.wait_ms(300);
        assert_eq!(controller.stats().events, n);
        let state = rig.device.state();
        assert_eq!(state.armed.len(), 2);
        assert_eq!(state.admin_count(admin::GET_LOG_PAGE), n as usize, "which clears the event");
    }
    assert_eq!(controller.events()[0].event, event);
}
