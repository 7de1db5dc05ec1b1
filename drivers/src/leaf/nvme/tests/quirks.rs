//! Row 38: a device that poses as one that is known, and what the driver does for it.

use oxblock_engine::{Op, OpFlags};
use oxblock_nvme::command::QPRIO_MEDIUM;
use oxblock_nvme::identify::write_ascii;
use oxblock_nvme::opcode::{admin, nvm};
use oxblock_nvme::regs::version;
use oxblock_pci::Ids;
use oxblock_pci::soft::SoftIommuOptions;

use super::super::{Identity, InterruptMode, Quirks};
use super::device::{Follow, Script, State};
use super::{Rig, kind};

const INTEL: u16 = 0x8086;
const SAMSUNG: u16 = 0x144d;
const APPLE: u16 = 0x106b;

/// A PM1725 that is looked at while it disables itself never comes back.
#[test]
fn a_device_that_must_be_left_alone_is_left_alone() {
    let is_on = |state: &mut State| {
        state.cc = state.cc.with_en(true);
        state.csts = state.csts.with_rdy(true);
    };
    let mut rig = Rig::posing_as(SAMSUNG, 0xa821, is_on);
    rig.attach();
    assert!((2300..2400).contains(&rig.now_ms()), "{}", rig.now_ms());
    let mut rig = Rig::posing_as(SAMSUNG, 0xa804, is_on);
    rig.attach();
    assert!(rig.now_ms() < 10, "{}", rig.now_ms());
}

/// The X5 has the PCI identity of another; only its name tells, and its next reset waits.
#[test]
fn a_name_tells_what_an_identity_does_not() {
    let mut rig = Rig::posing_as(SAMSUNG, 0xa808, |state| {
        state.controller.vid = SAMSUNG.into();
        write_ascii(&mut state.controller.mn, "Samsung Portable SSD X5");
    });
    let controller = rig.attach();
    assert_eq!(controller.quirks(), Quirks::DELAY_BEFORE_READY | Quirks::NO_DEEPEST_STATE);
    let begun = rig.now_ms();
    rig.run(|core| async move { controller.shutdown(&core).await }).expect("a shutdown");
    assert!(rig.now_ms() - begun >= 2300);
}

#[test]
fn queues_are_as_long_as_the_device_bears() {
    let entries = |rig: &mut Rig| {
        let (controller, channel) = rig.open();
        for n in 0..8 {
            let op = Op::read(n * 512, rig.buf(512));
            assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
        }
        let Identity { queue_entries, .. } = controller.identity();
        queue_entries
    };
    let mut rig = Rig::posing_as(APPLE, 0x2001, |_| {});
    assert_eq!(entries(&mut rig), 2);
    let mut rig = Rig::posing_as(SAMSUNG, 0xa822, |state| state.cap = state.cap.with_mqes(0));
    assert_eq!(entries(&mut rig), 64);
    let mut rig = Rig::posing_as(SAMSUNG, 0xa822, |state| state.cap = state.cap.with_mqes(127));
    assert_eq!(entries(&mut rig), 128);
}

#[test]
fn queues_have_medium_priority_where_others_starve() {
    for (device, priority) in [(0xf1a5, QPRIO_MEDIUM), (0xf1a6, 0)] {
        let mut rig = Rig::posing_as(INTEL, device, |_| {});
        rig.open();
        assert_eq!(rig.device.state().created_sq.expect("a queue").cdw11() & 6, priority);
    }
}

/// A queue that waited for a vector of its own slept through its completions.
#[test]
fn queues_that_share_one_vector_ask_for_no_other() {
    for (device, vector) in [(0x2001, 0), (0x2003, 1)] {
        let ids = Ids { vendor: APPLE, device, class: 0x01_08_02, ..Ids::default() };
        let script = Script::make(ids, SoftIommuOptions::default(), 0x4000, 4);
        let mut rig = Rig::over(1, 64, script, |_| {});
        rig.options.interrupt_mode = InterruptMode::Interrupt;
        rig.open();
        let created = rig.device.state().created_cq.expect("a queue");
        assert_eq!(created.cdw11() & 2, 2, "interrupts are enabled");
        assert_eq!(created.cdw11() >> 16, vector);
    }
}

#[test]
fn entries_of_another_size_are_refused() {
    let mut rig = Rig::posing_as(APPLE, 0x2005, |_| {});
    let error = rig.refusal();
    assert!(error.to_string().contains("entries have 128 bytes"), "{error}");
    assert!(rig.device.state().seen.is_empty(), "nothing was written");
}

/// QEMU's first controller answered a list of namespaces with the page of the controller.
#[test]
fn identify_is_asked_no_more_than_it_can() {
    let mut rig = Rig::posing_as(INTEL, 0x5845, |state| {
        state.vs = version(2, 0, 0);
        state.controller.nn = 1.into();
    });
    let controller = rig.attach();
    assert_eq!(controller.namespaces(), [1]);
    let state = rig.device.state();
    assert!(state.identified.iter().all(|cns| *cns <= 1), "{:?}", state.identified);
    drop(state);
    // The same device taken at its word.
    rig.options.without_quirks = Quirks::IDENTIFY_BASIC;
    rig.device.state().identified.clear();
    rig.attach();
    assert!(rig.device.state().identified.contains(&2));
}

/// A device that fails write zeroes gets writes of zeroes from the engine.
#[test]
fn write_zeroes_that_does_not_work_is_not_used() {
    for (vendor, device, used) in [(SAMSUNG, 0xa80b, false), (SAMSUNG, 0xa80a, true)] {
        let mut rig = Rig::posing_as(vendor, device, |_| {});
        let (_, channel) = rig.open();
        rig.device.state().disk[..4096].fill(7);
        let done = rig.op(&channel, Op::write_zeroes(0, 4096));
        assert_eq!(kind(&done), Ok(()));
        let state = rig.device.state();
        assert_eq!(state.disk[..4096], [0; 4096]);
        assert_eq!(state.io().iter().any(|c| c.opcode() == nvm::WRITE_ZEROES), used);
    }
}

/// A P3600 has no write zeroes, but what it deallocates reads as zeroes; and it wants transfers
/// that stay within its stripe.
#[test]
fn a_stripe_is_a_boundary_and_zeroes_are_deallocated() {
    let change = |state: &mut State| {
        state.controller.mdts = 5;
        state.controller.oncs = 0x04.into();
    };
    let mut rig = Rig::posing_as(INTEL, 0x0953, change);
    let (controller, channel) = rig.open();
    let limits = controller.namespace(1).expect("namespace 1").limits();
    assert_eq!((limits.boundary, limits.max_transfer), (128 << 10, 128 << 10));
    assert!(limits.fua, "there is no volatile cache");
    let op = Op::write_zeroes(8192, 4096).flags(OpFlags::FUA);
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
    let mut state = rig.device.state();
    let [command] = state.io()[..] else { panic!("{:?}", state.io()) };
    assert_eq!(command.opcode(), nvm::DATASET_MANAGEMENT);
    assert_eq!(state.ranges(&command), [(16, 8)]);
    drop(state);
    // With a volatile cache a flush makes up for FUA.
    let mut rig = Rig::posing_as(INTEL, 0x0953, |state| {
        change(state);
        state.controller.vwc = 1;
    });
    let (_, channel) = rig.open();
    let op = Op::write_zeroes(8192, 4096).flags(OpFlags::FUA);
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
    let sent: Vec<u8> = rig.device.state().io().iter().map(|c| c.opcode()).collect();
    assert_eq!(sent, [nvm::DATASET_MANAGEMENT, nvm::FLUSH]);
}

/// A device cut addresses above 48 bits and wrote to whatever was there.
#[test]
fn addresses_fit_the_device() {
    let behind = |device, windows| {
        let options = SoftIommuOptions { windows, ..SoftIommuOptions::default() };
        Rig::behind(0x1d0f, device, options)
    };
    let high = 1u64 << 50..=u64::MAX - 1;
    let error = behind(0x8061, vec![high.clone()]).refusal();
    assert!(error.to_string().contains("no IOVA"), "{error}");
    behind(0x8062, vec![high]).attach();
    behind(0x8061, vec![(1 << 48) - (64 << 20)..=1 << 60]).attach();
}

#[test]
fn the_embedder_has_the_last_word() {
    let mut rig = Rig::posing_as(SAMSUNG, 0xa80b, |state| state.unready = Follow::AtOnce);
    rig.options.quirks = Quirks::BOGUS_IDS | Quirks::NO_APST;
    rig.options.without_quirks = Quirks::NO_WRITE_ZEROES | Quirks::NO_APST;
    let controller = rig.attach();
    assert_eq!(controller.quirks(), Quirks::BOGUS_IDS);
    assert_eq!(controller.quirks().words(), "bogus-ids");
    assert_ne!(controller.namespace(1).expect("namespace 1").limits().max_write_zeroes, 0);
    assert_eq!(rig.device.state().admin_count(admin::CREATE_SQ), 0);
}
