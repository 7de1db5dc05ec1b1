use std::sync::Arc;

use oxblock_nvme::event::{self, Event, EventMask};
use oxblock_nvme::feature::{self, HostMemoryPiece, PowerTransition, WriteProtection};
use oxblock_nvme::{Command, Status, regs};
use oxblock_pci::EventFd;

use super::options;
use crate::ControllerOptions;
use crate::fault::Faults;
use crate::host::Host;

fn set(fid: u8, value: u32) -> Command {
    Command::set_features(fid, 0, value)
}

#[test]
fn a_keep_alive_that_does_not_come_is_fatal() {
    let options = ControllerOptions { keep_alive: true, ..options().0 };
    let (mut host, clock) = Host::with_faults_in_time(options, &Faults::new());
    host.enable();
    assert_eq!(host.page(Command::identify(1, 0, 0))[320..322], [1, 0]);
    host.ok(set(feature::KEEP_ALIVE_TIMER, 1950));
    assert_eq!(host.ok(Command::get_features(feature::KEEP_ALIVE_TIMER, 0, 0)), 2000);
    for _ in 0..5 {
        clock.advance(1_900_000_000);
        host.turns(3);
        host.ok(Command::keep_alive());
    }
    clock.advance(1_999_000_000);
    host.turns(3);
    assert!(!host.csts().cfs());
    clock.advance(1_000_000);
    host.until("fatal", |host| host.csts().cfs());
    // A reset stops the timer.
    host.disable();
    host.enable();
    clock.advance(10_000_000_000);
    host.turns(20);
    assert!(!host.csts().cfs());
    let mut without = Host::ready(super::options().0);
    assert_eq!(without.status(0, Command::keep_alive()), Status::INVALID_OPCODE);
    let status = without.status(0, set(feature::KEEP_ALIVE_TIMER, 1000));
    assert_eq!(status, Status::INVALID_FIELD);
}

#[test]
fn an_idle_controller_changes_its_power_state_as_it_was_told() {
    let options = ControllerOptions { power_transitions: true, ..options().0 };
    let (mut host, clock) = Host::with_faults_in_time(options, &Faults::new());
    host.enable();
    host.create_io(1, 16);
    let page = host.page(Command::identify(1, 0, 0));
    assert_eq!((page[263], page[265], page[2048 + 3 * 32 + 3]), (4, 1, 2), "NPSS, APSTA, PS3");
    let mut table = host.alloc(4096);
    let to = |itps| PowerTransition { itps, itpt_ms: 100 }.to_word().to_le_bytes();
    let command = set(feature::AUTONOMOUS_POWER_STATE_TRANSITION, 1);
    let command = command.with_prp(table.iova().unwrap(), 0);
    table.write_at(0, &to(1));
    assert_eq!(host.status(0, command), Status::INVALID_FIELD, "PS1 is operational");
    table.write_at(0, &to(3));
    table.write_at(3 * 8, &to(4));
    host.ok(command);
    let state = |host: &mut Host| host.ok(Command::get_features(feature::POWER_MANAGEMENT, 0, 0));
    for expected in [0, 3, 4] {
        assert_eq!(state(&mut host), expected);
        clock.advance(101_000_000);
        host.turns(3);
    }
    assert!(host.run(1, Command::flush(1)).status().is_success());
    assert_eq!(state(&mut host), 0);
    host.ok(set(feature::POWER_MANAGEMENT, 2));
    assert_eq!(host.status(0, set(feature::POWER_MANAGEMENT, 5)), Status::INVALID_FIELD);
}

/// Interrupts of I/O queues wait for more completions, or for their time; those of the admin
/// queue do not.
#[test]
fn interrupts_are_held_back_for_more() {
    let (mut host, clock) = Host::with_faults_in_time(options().0, &Faults::new());
    host.enable();
    let event = Arc::new(EventFd::new().unwrap());
    host.function.interrupts().enable(1, Arc::clone(&event)).unwrap();
    let pair = host.pair(1, 16);
    let at = |words: &oxblock_mem::Cells| words.iova().unwrap();
    let (sq, cq) = (at(pair.sq.words()), at(pair.cq.words()));
    host.ok(Command::create_cq(1, 16, cq, Some(1)));
    host.ok(Command::create_sq(1, 16, sq, 1));
    host.pairs.push(Some(pair));
    // Three at a time, or after 500 us.
    host.ok(set(feature::INTERRUPT_COALESCING, 2 | 5 << 8));
    let flushes = |host: &mut Host, count| {
        for _ in 0..count {
            assert!(host.run(1, Command::flush(1)).status().is_success());
        }
        host.turns(5);
    };
    flushes(&mut host, 2);
    assert_eq!(event.take(), 0);
    flushes(&mut host, 1);
    assert_eq!(event.take(), 1);
    flushes(&mut host, 1);
    clock.advance(499_000);
    host.turns(3);
    assert_eq!(event.take(), 0);
    clock.advance(1_000);
    host.turns(3);
    assert_eq!(event.take(), 1);
    // Not for a vector that is excepted.
    host.ok(set(feature::INTERRUPT_VECTOR_CONFIGURATION, 1 | 1 << 16));
    flushes(&mut host, 1);
    assert_eq!(event.take(), 1);
}

#[test]
fn firmware_that_is_activated_at_once_pauses_the_controller() {
    let options = ControllerOptions { firmware_pause: 3, ..options().0 };
    let (mut host, clock) = Host::with_faults_in_time(options, &Faults::new());
    host.enable();
    assert_eq!(host.page(Command::identify(1, 0, 0))[270], 4, "MTFA");
    host.ok(set(feature::ASYNC_EVENT_CONFIGURATION, EventMask::FIRMWARE.bits()));
    let request = host.submit(0, Command::async_event());
    let commit = host.submit(0, Command::firmware_commit(1, 3));
    host.turns(5);
    let activation = event::NOTICE_FIRMWARE_ACTIVATION;
    let told = Event { kind: event::TYPE_NOTICE, information: activation, log_page: 3 };
    assert_eq!(host.take(0, request).map(|done| done.dw0()), Some(told.to_dword()));
    assert!(host.take(0, commit).is_some_and(|done| done.status().is_success()));
    assert!(host.csts().pp() && host.csts().rdy());
    let waits = host.submit(0, Command::identify(1, 0, 0));
    clock.advance(299_000_000);
    host.turns(20);
    assert!(host.take(0, waits).is_none());
    clock.advance(1_000_000);
    host.until("going on", |host| !host.csts().pp());
    host.wait(0, waits);
    // A reset ends a pause, and so does a shutdown.
    host.submit(0, Command::firmware_commit(1, 3));
    host.until("paused", |host| host.csts().pp());
    host.reg32(regs::CC).write(Host::cc().with_shn(regs::SHN_NORMAL).0);
    host.until("shut down", |host| host.csts().shst() == regs::SHST_COMPLETE);
    assert!(!host.csts().pp());
    host.disable();
    host.enable();
}

#[test]
fn a_namespace_is_write_protected_by_its_host() {
    let mut host = Host::with_io(options().0);
    assert_eq!(host.page(Command::identify(1, 0, 0))[531], 7, "NWPC");
    let protect = |nsid, state: WriteProtection| {
        Command::set_features(feature::NAMESPACE_WRITE_PROTECTION, nsid, state.to_dword())
    };
    let get = Command::get_features(feature::NAMESPACE_WRITE_PROTECTION, 1, 0);
    let zeroes = Command::write_zeroes(1, 0, 1, 0);
    host.ok(protect(1, WriteProtection::Protected));
    assert_eq!(host.ok(get), 1);
    assert_eq!(host.page(Command::identify(0, 1, 0))[99], 1);
    assert_eq!(host.status(1, zeroes), Status::NAMESPACE_WRITE_PROTECTED);
    host.ok(protect(1, WriteProtection::None));
    assert!(host.run(1, zeroes).status().is_success());
    host.ok(protect(1, WriteProtection::Permanent));
    let lift = host.status(0, protect(1, WriteProtection::None));
    assert_eq!(lift, Status::FEATURE_NOT_CHANGEABLE);
    host.disable();
    host.enable();
    assert_eq!(host.ok(get), 3, "it outlives resets");
    let none = host.status(0, protect(7, WriteProtection::Protected));
    assert_eq!(none, Status::INVALID_NAMESPACE);
}

/// Memory that the host lends is used until it is given back, and looked after.
#[test]
fn lent_memory_is_used_and_must_be_left_alone() {
    let options = ControllerOptions { host_memory_bytes: 64 << 10, ..options().0 };
    let mut host = Host::ready(options);
    let page = host.page(Command::identify(1, 0, 0));
    assert_eq!((page[272], page[276]), (16, 8), "HMPRE, HMMIN");
    let (mut lent, mut list) = (host.alloc(10 * 4096), host.alloc(4096));
    let at = lent.iova().unwrap();
    let pieces = [(at, 3), (at + 3 * 4096, 7)];
    for (n, (badd, bsize)) in pieces.into_iter().enumerate() {
        let words = HostMemoryPiece { badd, bsize }.to_words();
        list.write_at(n * 16, &words.map(u64::to_le_bytes).concat());
    }
    let list_at = list.iova().unwrap();
    let lend = |flags, pages| Command::host_memory_buffer(flags, pages, list_at, 2);
    for wrong in [lend(1, 7), lend(1, 11), lend(1, 9)] {
        assert_eq!(host.status(0, wrong), Status::INVALID_FIELD);
    }
    host.ok(lend(feature::HMB_EHM, 10));
    assert_eq!(host.status(0, lend(feature::HMB_EHM, 10)), Status::SEQUENCE_ERROR);
    let get = Command::get_features(feature::HOST_MEMORY_BUFFER, 0, 0);
    assert_eq!(host.page(get)[..4], [10, 0, 0, 0]);
    let before = lent.as_slice().unwrap().to_vec();
    assert!(before.chunks(4096).all(|page| page[..64] != [0; 64]));
    (0..30).for_each(|_| drop(host.page(Command::identify(1, 0, 0))));
    assert!(before != lent.as_slice().unwrap(), "the controller uses it");
    // Given back and returned as it was.
    host.ok(lend(0, 0));
    host.ok(lend(feature::HMB_EHM | feature::HMB_MR, 10));
    // After a reset it is the host's.
    host.disable();
    lent.write_at(0, &[0; 4096]);
    host.enable();
    assert_eq!(host.controller.broken_promises(), 0);
    // Returned as it was, it is said, and is not.
    host.submit(0, lend(feature::HMB_EHM | feature::HMB_MR, 10));
    host.until("fatal", |host| host.csts().cfs());
    host.disable();
    host.enable();
    host.ok(lend(feature::HMB_EHM, 10));
    lent.write_at(5 * 4096, &[0; 4096]);
    host.submit(0, lend(0, 0));
    host.until("fatal", |host| host.csts().cfs());
    assert_eq!(host.controller.broken_promises(), 2);
}
