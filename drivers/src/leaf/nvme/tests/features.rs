//! Rows 30, 31 and 32, host memory and write protection, as the driver asks a device for them.

use std::time::Duration;

use oxblock_engine::{ErrorKind, Op};
use oxblock_nvme::feature::{self, HMB_EHM, HMB_MR, HostMemoryPiece, WriteProtection};
use oxblock_nvme::opcode::admin;
use oxblock_nvme::regs::SHN_ABRUPT;
use oxblock_nvme::status::Status;
use zerocopy::IntoBytes;

use super::super::Quirks;
use super::device::{Follow, Seen, State};
use super::{Rig, kind};

/// The piece of memory that the device was given last.
fn host_memory(state: &mut State) -> Option<HostMemoryPiece> {
    let (command, _) = *state.features.get(&feature::HOST_MEMORY_BUFFER).as_ref()?;
    if command.cdw11() & HMB_EHM == 0 {
        return None;
    }
    let list = u64::from(command.cdw14()) << 32 | u64::from(command.cdw13());
    let (pages, entries) = (command.cdw12(), command.cdw15());
    assert_eq!(entries, 1);
    let mut words = [0u64; 2];
    state.translator.read(list, words.as_mut_bytes()).expect("a list");
    let piece = HostMemoryPiece::from_words(words);
    assert_eq!(piece.bsize, pages);
    assert_eq!(piece.badd % 4096, 0);
    // All of it is there to be written.
    let last = piece.badd + u64::from(pages) * 4096 - 8;
    state.translator.write(piece.badd, &[7; 8]).expect("its beginning");
    state.translator.write(last, &[7; 8]).expect("its end");
    Some(piece)
}

/// HMPRE, within the limit and a quarter of the arena's 16 MiB, but no less than HMMIN.
#[test]
fn host_memory_is_as_much_as_is_wanted_and_can_be_spared() {
    for (hmpre, hmmin, limit, pages) in [
        (64, 16, 128 << 20, 64),
        (64, 16, 100 << 10, 25),
        (1 << 30, 1, 128 << 20, 1000),
        (u32::MAX, 0, u64::MAX, 1000),
    ] {
        let mut rig = Rig::new(|state| {
            (state.controller.hmpre, state.controller.hmmin) = (hmpre.into(), hmmin.into());
        });
        rig.options.host_memory = limit;
        let controller = rig.attach();
        let given = host_memory(&mut rig.device.state()).expect("a buffer").bsize;
        // The arena has a few pages less, for the admin queue.
        assert!(given == pages || (pages == 1000 && (1000..=1024).contains(&given)), "{given}");
        assert_eq!(controller.host_memory(), u64::from(given) * 4096);
        assert!(controller.notices().is_empty(), "{:?}", controller.notices());
    }
}

#[test]
fn host_memory_that_cannot_be_had_is_a_notice() {
    let needs = |hmpre: u32, hmmin: u32, limit, refused: bool| {
        let mut rig = Rig::new(|state| {
            (state.controller.hmpre, state.controller.hmmin) = (hmpre.into(), hmmin.into());
            if refused {
                state.refused_features.insert(feature::HOST_MEMORY_BUFFER, Status::INVALID_FIELD);
            }
        });
        rig.options.host_memory = limit;
        let free = rig.sim.core(0).arena().available();
        let controller = rig.attach();
        assert_eq!(host_memory(&mut rig.device.state()), None);
        assert_eq!(controller.host_memory(), 0);
        let kept = free - rig.sim.core(0).arena().available();
        assert!(kept < 64 << 10, "{kept} bytes are gone");
        controller.notices()
    };
    let [notice] = &needs(2048, 2048, 128 << 20, false)[..] else { panic!("one notice") };
    assert!(notice.contains("needs 8192; the limit is 131072 KiB"), "{notice}");
    let [notice] = &needs(64, 32, 64 << 10, false)[..] else { panic!("one notice") };
    assert!(notice.contains("needs 128; the limit is 64 KiB"), "{notice}");
    let [notice] = &needs(64, 32, 1 << 20, true)[..] else { panic!("one notice") };
    assert!(notice.contains("refuses what it asks for"), "{notice}");
    assert!(needs(64, 32, 0, false).is_empty(), "it was not wanted");
    assert!(needs(0, 0, 1 << 20, false).is_empty(), "it was not asked for");
}

/// The buffer went back to the arena while the controller shut down, and its last words into
/// somebody's data.
#[test]
fn host_memory_is_taken_back_before_the_shutdown() {
    let mut rig = Rig::new(|state| state.controller.hmpre = 64.into());
    let free = rig.sim.core(0).arena().available();
    let controller = rig.attach();
    let ending = controller.clone();
    rig.run(|core| async move { ending.shutdown(&core).await }).expect("a shutdown");
    let state = rig.device.state();
    let at = |wanted: &dyn Fn(&Seen) -> bool| state.seen.iter().rposition(wanted).expect("seen");
    let back = at(&|seen| *seen == Seen::Feature(feature::HOST_MEMORY_BUFFER, 0));
    let notified = at(&|seen| matches!(seen, Seen::Cc(cc) if cc.shn() != 0));
    assert!(back < notified);
    assert_eq!(controller.host_memory(), 0);
    drop(state);
    assert!(free - rig.sim.core(0).arena().available() < 64 << 10, "the memory is back");
}

/// A controller that does not give it back keeps it until it is disabled; one that cannot be
/// disabled keeps it for good.
#[test]
fn host_memory_is_not_freed_under_a_controller_that_has_it() {
    let refuse = |rig: &Rig| {
        let id = feature::HOST_MEMORY_BUFFER;
        rig.device.state().refused_features.insert(id, Status::INTERNAL_ERROR);
    };
    let mut rig = Rig::new(|state| state.controller.hmpre = 256.into());
    let free = rig.sim.core(0).arena().available();
    let kept = |rig: &Rig| free - rig.sim.core(0).arena().available() >= 1 << 20;
    let controller = rig.attach();
    refuse(&rig);
    let ending = controller.clone();
    rig.run(|core| async move { ending.shutdown(&core).await }).expect("a shutdown");
    assert!(kept(&rig), "until somebody is sure");
    drop(controller);
    assert!(!kept(&rig), "the controller was disabled");

    let mut rig = Rig::new(|state| {
        state.controller.hmpre = 256.into();
        state.unready = Follow::Never;
    });
    let controller = rig.attach();
    drop(controller);
    assert!(kept(&rig), "it may still use it");
}

/// A reset forgets all features. The buffer comes back as it was left: a controller without it has
/// lost its tables, and one that is told of another would take old ones for its own.
#[test]
fn what_a_reset_forgets_is_set_up_again() {
    let mut rig = Rig::new(|state| {
        let page = &mut state.controller;
        (page.hmpre, page.apsta, page.kas) = (64.into(), 1, 1.into());
    });
    rig.options.keep_alive = Some(Duration::from_secs(2));
    let controller = rig.attach();
    let flags = |rig: &Rig| rig.device.state().features[&feature::HOST_MEMORY_BUFFER].0.cdw11();
    let first = host_memory(&mut rig.device.state()).expect("a buffer");
    assert_eq!(flags(&rig), HMB_EHM);
    for _ in 0..3 {
        let reset = controller.clone();
        rig.run(|core| async move { reset.reset(&core).await }).expect("a reset");
        assert_eq!(host_memory(&mut rig.device.state()), Some(first));
        assert_eq!(flags(&rig), HMB_EHM | HMB_MR);
        let state = rig.device.state();
        assert!(state.features.contains_key(&feature::AUTONOMOUS_POWER_STATE_TRANSITION));
        assert!(state.features.contains_key(&feature::KEEP_ALIVE_TIMER));
    }
    rig.device.state().seen.clear();
    rig.wait_ms(10_100);
    assert_eq!(rig.device.state().admin_count(admin::KEEP_ALIVE), 10, "of one beat, not of four");
}

/// Row 30: a controller that does not answer is reset, and kept alive afterwards.
#[test]
fn a_keep_alive_that_fails_is_a_reset() {
    let mut rig = Rig::new(|state| {
        state.controller.kas = 1.into();
        state.refused.insert(admin::KEEP_ALIVE, (Status::INTERNAL_ERROR, 1));
    });
    rig.options.keep_alive = Some(Duration::from_secs(2));
    let (controller, channel) = rig.open();
    rig.wait_ms(1500);
    assert_eq!(controller.stats().resets, 1);
    rig.wait_ms(5000);
    assert_eq!(controller.stats().resets, 1);
    assert!(rig.device.state().admin_count(admin::KEEP_ALIVE) >= 5);
    let op = Op::read(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
}

/// Row 32: off where nobody asked for it, on within the latency that was asked for.
#[test]
fn power_states_are_entered_only_within_the_latency() {
    let set = |quirks, latency_ms: Option<u64>| {
        let mut rig = Rig::new(|state| {
            let page = &mut state.controller;
            (page.apsta, page.npss) = (1, 1);
            (page.psd[1].flags, page.psd[1].exlat) = (2, 8000.into());
        });
        rig.options.quirks = quirks;
        rig.options.power_latency = latency_ms.map(Duration::from_millis);
        let _controller = rig.attach();
        let state = rig.device.state();
        let (command, data) = &state.features[&feature::AUTONOMOUS_POWER_STATE_TRANSITION];
        let words: Vec<u64> =
            data.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect();
        (command.cdw11(), words[0])
    };
    let entry = feature::PowerTransition { itps: 1, itpt_ms: 400 }.to_word();
    let none = Quirks::empty();
    assert_eq!(set(none, None), (0, 0));
    assert_eq!(set(none, Some(8)), (1, entry));
    assert_eq!(set(none, Some(7)), (0, 0));
    assert_eq!(set(Quirks::NO_APST, Some(8)), (0, 0));
    assert_eq!(set(Quirks::NO_DEEPEST_STATE, Some(8)), (0, 0));
    let mut rig = Rig::new(|_| {});
    rig.attach();
    assert!(!rig.device.state().features.contains_key(&0x0c), "a controller without is not asked");
}

/// Row 30.
#[test]
fn a_controller_is_kept_alive_twice_in_its_time() {
    let mut rig = Rig::new(|state| state.controller.kas = 10.into());
    rig.options.keep_alive = Some(Duration::from_millis(4500));
    let controller = rig.attach();
    let set = rig.device.state().features[&feature::KEEP_ALIVE_TIMER].0.cdw11();
    assert_eq!(set, 5000, "in units of KAS");
    rig.wait_ms(10_100);
    assert_eq!(rig.device.state().admin_count(admin::KEEP_ALIVE), 4);
    let ending = controller.clone();
    rig.run(|core| async move { ending.shutdown(&core).await }).expect("a shutdown");
    rig.wait_ms(10_000);
    assert_eq!(rig.device.state().admin_count(admin::KEEP_ALIVE), 4, "and no more");
}

#[test]
fn without_a_timer_there_is_no_keep_alive() {
    for (kas, refused, word) in [(0, false, "KAS 0"), (1, true, "a timer of 1000 ms is refused")] {
        let mut rig = Rig::new(|state| {
            state.controller.kas = kas.into();
            if refused {
                state.refused_features.insert(feature::KEEP_ALIVE_TIMER, Status::INVALID_FIELD);
            }
        });
        rig.options.keep_alive = Some(Duration::from_secs(1));
        let controller = rig.attach();
        let notices = controller.notices();
        assert!(notices.len() == 1 && notices[0].contains(word), "{notices:?}");
        rig.wait_ms(5000);
        assert_eq!(rig.device.state().admin_count(admin::KEEP_ALIVE), 0);
    }
}

#[test]
fn a_write_protected_namespace_is_read_only() {
    let mut rig = Rig::new(|state| state.controller.nwpc = 1);
    let controller = rig.attach();
    let asked = controller.clone();
    let protect = WriteProtection::Protected;
    let (before, after) = rig.run(|core| async move {
        let before = asked.write_protection(&core, 1).await.expect("a state");
        asked.set_write_protection(&core, 1, protect).await.expect("protected");
        (before, asked.write_protection(&core, 1).await.expect("a state"))
    });
    assert_eq!((before, after), (WriteProtection::None, protect));
    let driver = controller.namespace(1).expect("namespace 1");
    let node = oxblock_engine::Node::new("nvme0n1", driver);
    let channel = rig.run(|core| async move { core.open(&node).await }).expect("a queue");
    let channel = std::rc::Rc::new(channel);
    let op = Op::write(0, rig.buf(512));
    let done = rig.op(&channel, op);
    assert_eq!(kind(&done), Err(ErrorKind::ReadOnly));
    assert_eq!(done.result.unwrap_err().kind.errno(), libc::EROFS);
    let op = Op::read(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
    assert!(rig.device.state().io().iter().all(|command| command.opcode() == 2), "reads alone");
    let permanent = WriteProtection::Permanent;
    let error = rig.run(|core| async move {
        controller.set_write_protection(&core, 1, permanent).await.unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(error.to_string().contains("no permanent write protection (NWPC 0x1)"), "{error}");
}

/// Row 31: power is failing, so nothing comes before SHN=10b.
#[test]
fn an_abrupt_shutdown_comes_at_once() {
    let mut rig = Rig::new(|state| {
        state.controller.hmpre = 64.into();
        state.shutdown = Follow::AfterReads(5);
    });
    let (controller, channel) = rig.open();
    rig.device.state().hold = true;
    let op = Op::write(0, rig.buf(512));
    let cell = rig.start(&channel, op);
    rig.device.state().seen.clear();
    rig.run(|core| async move { controller.shutdown_abruptly(&core).await }).expect("a shutdown");
    let state = rig.device.state();
    let [Seen::Cc(shut), Seen::Cc(off)] = state.seen[..] else { panic!("{:?}", state.seen) };
    assert_eq!((shut.shn(), shut.en(), off.en()), (SHN_ABRUPT, true, false));
    drop(state);
    rig.turns(50);
    assert_eq!(kind(&cell.take().expect("failed")), Err(ErrorKind::Failed));
}
