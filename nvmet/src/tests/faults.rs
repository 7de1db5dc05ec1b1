use std::time::Duration;

use oxblock_nvme::event::{self, Event, EventMask};
use oxblock_nvme::feature::{self, QueueCounts};
use oxblock_nvme::opcode::{admin, nvm};
use oxblock_nvme::regs::{self, Cap, Csts};
use oxblock_nvme::{Command, Status};

use super::options;
use crate::fault::{
    Chances, CommandFault, CompletionFault, FaultEvent, FaultPlan, Faults, Match, Readiness,
};
use crate::host::Host;

fn host() -> (Host, std::sync::Arc<Faults>) {
    let faults = Faults::new();
    (Host::with_faults(options().0, &faults), faults)
}

#[test]
fn registers_show_what_the_switches_say() {
    let (mut host, faults) = host();
    let cap = Cap::default().with_mqes(0).with_to(0).with_dstrd(4).with_mpsmin(3);
    faults.set_cap(cap.0);
    assert_eq!(host.cap(), cap);
    faults.clear();
    assert_eq!(host.cap().mqes(), 1023);
    host.enable();
    faults.set_csts(2, 0);
    assert!(host.csts().cfs() && host.csts().rdy());
    faults.set_csts(0, 1);
    assert!(!host.csts().rdy());
    faults.set_gone(true);
    assert_eq!(host.csts(), Csts::GONE);
    host.reg32(regs::CC).write(0);
    faults.clear();
    assert!(host.csts().rdy(), "a write to a device that is gone goes nowhere");
}

#[test]
fn readiness_is_delayed_or_never_comes() {
    let (mut host, faults) = host();
    faults.set_readiness(Readiness::After(20));
    host.set_admin_queues();
    host.reg32(regs::CC).write(Host::cc().0);
    host.turns(15);
    assert!(!host.csts().rdy());
    host.until("ready", |host| host.csts().rdy());
    host.disable();
    faults.set_readiness(Readiness::Never);
    host.reg32(regs::CC).write(Host::cc().0);
    host.turns(500);
    assert!(!host.csts().rdy());
    host.reg32(regs::CC).write(0);
    host.turns(5);
    faults.clear();
    host.enable();
}

#[test]
fn the_nth_command_fails_as_told() {
    let (mut host, faults) = host();
    host.enable();
    host.create_io(1, 16);
    faults.answer(Match::io(1, nvm::FLUSH).nth(2), 0, Status::FORMAT_IN_PROGRESS);
    assert!(host.run(1, Command::flush(1)).status().is_success());
    assert_eq!(host.status(1, Command::flush(1)), Status::FORMAT_IN_PROGRESS);
    assert!(host.run(1, Command::flush(1)).status().is_success());
    assert_eq!((faults.seen(false, nvm::FLUSH), host.controller.flushes()), (3, 2));
    let number = Match::admin(admin::SET_FEATURES).selector(feature::NUMBER_OF_QUEUES);
    faults.answer(number, QueueCounts { submission: 1, completion: 1 }.to_dword(), Status::SUCCESS);
    assert_eq!(host.ok(Command::set_features(feature::NUMBER_OF_QUEUES, 0, 0x0007_0007)), 0);
    faults.answer(Match::admin(admin::CREATE_CQ), 0, Status::INTERNAL_ERROR);
    let pair = host.pair(2, 4);
    let create = Command::create_cq(2, 4, pair.cq.words().iova().unwrap(), None);
    assert_eq!(host.status(0, create), Status::INTERNAL_ERROR);
}

#[test]
fn completions_go_wrong_as_told() {
    let (mut host, faults) = host();
    host.enable();
    host.create_io(1, 16);
    let one = Match::io(1, nvm::FLUSH).nth(1);
    let next = |host: &mut Host| host.queue(1).cq.pop();
    let go = |host: &mut Host, fault, turns| {
        faults.clear();
        faults.complete(one, fault);
        let cid = host.submit(1, Command::flush(1));
        host.turns(turns);
        cid
    };
    go(&mut host, CompletionFault::Cid(0xffff), 10);
    assert_eq!(next(&mut host).map(|c| c.cid()), Some(0xffff));
    go(&mut host, CompletionFault::Sqhd(99), 10);
    assert_eq!(next(&mut host).map(|c| c.sqhd()), Some(99));
    go(&mut host, CompletionFault::Sqid(3), 10);
    assert_eq!(next(&mut host).map(|c| c.sqid()), Some(3));
    go(&mut host, CompletionFault::Status(Status::WRITE_FAULT), 10);
    assert_eq!(next(&mut host).map(|c| c.status()), Some(Status::WRITE_FAULT));
    let cid = go(&mut host, CompletionFault::Twice, 10);
    assert_eq!([next(&mut host), next(&mut host)].map(|c| c.map(|c| c.cid())), [Some(cid); 2]);
    go(&mut host, CompletionFault::Lost, 50);
    assert!(next(&mut host).is_none());
    let late = go(&mut host, CompletionFault::Late(40), 10);
    let soon = host.submit(1, Command::flush(1));
    host.turns(60);
    assert_eq!(
        [next(&mut host), next(&mut host)].map(|c| c.map(|c| c.cid())),
        [Some(soon), Some(late)]
    );
    let torn = go(&mut host, CompletionFault::Torn(40), 10);
    assert!(next(&mut host).is_none(), "no phase tag yet");
    host.turns(60);
    assert_eq!(next(&mut host).map(|c| c.cid()), Some(torn));
}

#[test]
fn identify_pages_lie_as_told() {
    let (mut host, faults) = host();
    host.enable();
    faults.patch_identify(0, 46, &[3, 0]);
    faults.patch_identify(1, 77, &[0xff]);
    faults.patch_identify(1, 4095, &[1, 2, 3]);
    assert_eq!(host.page(Command::identify(0, 1, 0))[46], 3);
    let controller = host.page(Command::identify(1, 0, 0));
    assert_eq!((controller[77], controller[4095]), (0xff, 1));
}

#[test]
fn events_are_reported_as_told() {
    let (mut host, _faults) = host();
    host.enable();
    let request = host.submit(0, Command::async_event());
    let information = event::ERROR_PERSISTENT_INTERNAL;
    let event = Event { kind: event::TYPE_ERROR, information, log_page: 1 };
    host.controller.report(event);
    assert_eq!(host.wait(0, request).dw0(), event.to_dword());
}

/// Time passes only as the test says.
#[test]
fn completions_come_late_in_time() {
    let faults = Faults::new();
    let (mut host, clock) = Host::with_faults_in_time(options().0, &faults);
    host.enable();
    host.create_io(1, 16);
    let second = Duration::from_secs(1);
    faults.complete(Match::io(1, nvm::FLUSH).nth(1), CompletionFault::After(second));
    faults.complete(Match::io(1, nvm::FLUSH).nth(1), CompletionFault::TornFor(second * 2));
    let late = host.submit(1, Command::flush(1));
    let torn = host.submit(1, Command::flush(1));
    host.turns(50);
    assert!(host.take(1, late).is_none());
    clock.advance(999_999_999);
    host.turns(2);
    assert!(host.take(1, late).is_none());
    clock.advance(1);
    host.turns(2);
    // It comes behind the one that is torn, in whose place it was written.
    assert!(host.take(1, late).is_some() && host.take(1, torn).is_none());
    clock.advance(1_000_000_000);
    host.turns(2);
    assert!(host.take(1, torn).is_some());
    assert!(faults.log().contains("TornFor(2s)"), "{}", faults.log());
}

#[test]
fn a_command_hangs_until_it_is_aborted_or_its_queue_goes() {
    let (mut host, faults) = host();
    host.enable();
    host.create_io(1, 16);
    faults.command(Match::io(1, nvm::FLUSH), CommandFault::Hang);
    let (first, second) = (host.submit(1, Command::flush(1)), host.submit(1, Command::flush(1)));
    host.turns(500);
    assert!(host.take(1, first).is_none());
    assert_eq!((faults.hanging(false, nvm::FLUSH), host.controller.flushes()), (2, 0));
    assert_eq!(host.ok(Command::abort(1, first)), 0);
    assert_eq!(host.wait(1, first).status(), Status::ABORT_REQUESTED);
    host.ok(Command::delete_sq(1));
    assert_eq!(host.wait(1, second).status(), Status::ABORTED_SQ_DELETION);
    assert_eq!(faults.hanging(false, nvm::FLUSH), 0);
    // Aborts may hang as well.
    faults.command(Match::admin(admin::ABORT), CommandFault::Hang);
    let abort = host.submit(0, Command::abort(1, 7));
    host.turns(50);
    assert!(host.take(0, abort).is_none());
    assert_eq!(faults.hanging(true, admin::ABORT), 1);
    host.disable();
    assert_eq!(faults.hanging(true, admin::ABORT), 0);
    host.enable();
}

#[test]
fn an_answer_keeps_its_retry_delay() {
    let (mut host, faults) = host();
    host.enable();
    host.create_io(1, 16);
    for status in [Status::INVALID_FIELD, Status::COMMAND_INTERRUPTED.crd(2)] {
        faults.clear();
        faults.answer(Match::io(1, nvm::FLUSH), 0, status);
        assert_eq!(host.run(1, Command::flush(1)).status(), status);
    }
}

#[test]
fn the_nth_command_is_fatal_until_a_reset() {
    let (mut host, faults) = host();
    host.enable();
    host.create_io(1, 16);
    faults.command(Match::io(1, nvm::FLUSH).nth(2), CommandFault::Fail);
    let cids: Vec<u16> = (0..4).map(|_| host.push(1, Command::flush(1))).collect();
    host.ring(1);
    host.until("fatal", |host| host.csts().cfs());
    host.turns(100);
    assert!(host.csts().rdy(), "a fatal controller may well be ready");
    assert!(cids[1..].iter().all(|&cid| host.take(1, cid).is_none()));
    host.disable();
    assert!(!host.csts().cfs());
    host.enable();
    // On demand, and while a reset goes on.
    faults.fail();
    host.until("fatal", |host| host.csts().cfs());
    faults.set_disabling(Readiness::Never);
    host.reg32(regs::CC).write(0);
    host.turns(10);
    faults.fail();
    host.turns(10);
    assert!(host.csts().cfs() && host.csts().rdy());
    faults.clear();
    host.until("disabled", |host| host.csts().0 == 0);
}

#[test]
fn a_disable_that_never_ends_is_ended_by_a_function_reset() {
    let faults = Faults::new();
    let (mut host, clock) = Host::with_faults_in_time(options().0, &faults);
    host.enable();
    faults.set_disabling(Readiness::Never);
    host.reg32(regs::CC).write(0);
    host.turns(500);
    assert!(host.csts().rdy());
    host.controller.soft_function().set_reset_works(false);
    assert!(host.function.reset().is_err());
    host.turns(50);
    assert!(host.csts().rdy());
    host.controller.soft_function().set_reset_works(true);
    host.function.reset().unwrap();
    host.until("disabled", |host| host.csts().0 == 0);
    host.enable();
    // The next time it takes a second.
    faults.set_disabling(Readiness::AfterTime(Duration::from_secs(1)));
    host.reg32(regs::CC).write(0);
    host.turns(50);
    assert!(host.csts().rdy());
    clock.advance(1_000_000_000);
    host.until("disabled", |host| !host.csts().rdy());
    faults.set_shutdown(Readiness::AfterTime(Duration::from_secs(5)));
    host.enable();
    host.reg32(regs::CC).write(Host::cc().with_shn(regs::SHN_NORMAL).0);
    host.turns(50);
    assert_eq!(host.csts().shst(), regs::SHST_OCCURRING);
    clock.advance(5_000_000_000);
    host.until("shut down", |host| host.csts().shst() == regs::SHST_COMPLETE);
}

#[test]
fn one_that_is_gone_does_nothing_and_goes_on_when_it_is_back() {
    let (mut host, faults) = host();
    host.enable();
    host.create_io(1, 16);
    faults.command(Match::io(1, nvm::FLUSH).nth(1), CommandFault::Vanish);
    let lost = host.submit(1, Command::flush(1));
    host.until("gone", |host| host.csts().is_gone());
    host.submit(1, Command::flush(1));
    host.turns(100);
    assert_eq!((faults.seen(false, nvm::FLUSH), host.controller.flushes()), (1, 0));
    faults.set_gone(false);
    assert!(host.csts().rdy());
    assert!(host.run(1, Command::flush(1)).status().is_success());
    assert!(host.take(1, lost).is_none());
}

/// A function that was put back went on with queues in memory that its host had given up.
#[test]
fn a_function_that_is_put_back_begins_anew() {
    let mut host = Host::with_io(options().0);
    let function = host.controller.soft_function();
    function.set_present(false);
    assert!(host.csts().is_gone());
    host.turns(50);
    function.set_present(true);
    assert_eq!(host.function.events().removal.take(), 1);
    oxblock_pci::enable(host.function.config()).unwrap();
    host.until("reset", |host| host.csts().0 == 0);
    assert_eq!((host.reg32(regs::CC).read(), host.reg64(regs::ASQ).read()), (0, 0));
    host.enable();
    assert_eq!(host.status(0, Command::delete_sq(1)), Status::INVALID_QID);
}

#[test]
fn no_more_aborts_hang_than_the_controller_takes() {
    let (mut host, faults) = host();
    host.enable();
    faults.command(Match::admin(admin::ABORT), CommandFault::Hang);
    let aborts: Vec<u16> = (0..4).map(|cid| host.submit(0, Command::abort(1, cid))).collect();
    assert_eq!(host.status(0, Command::abort(1, 9)), Status::ABORT_LIMIT_EXCEEDED);
    assert!(aborts.into_iter().all(|cid| host.take(0, cid).is_none()));
}

/// Random faults until the plan is over; then all goes well, and the log can tell.
#[test]
fn a_plan_makes_trouble_and_comes_to_its_end() {
    for seed in 0..50 {
        let faults = Faults::new();
        let (mut host, clock) = Host::with_faults_in_time(options().0, &faults);
        host.enable();
        host.create_io(1, 16);
        let mut plan = FaultPlan::from_seed(seed);
        plan.chances = Chances { late: 200, lost: 30, hung: 30, fatal: 10, ..plan.chances };
        plan.events.push(FaultEvent::Gone);
        faults.follow(plan);
        for _ in 0..300 {
            let cid = host.submit(1, Command::flush(1));
            let done = (0..20).any(|_| {
                host.turns(3);
                clock.advance(1_000_000);
                host.take(1, cid).is_some()
            });
            if host.csts().cfs() || !done {
                recover(&mut host, &clock);
            }
        }
        faults.clear();
        recover(&mut host, &clock);
        assert!(host.run(1, Command::flush(1)).status().is_success(), "{}", faults.log());
        let lines = faults.log().lines().count();
        assert!((2..=102).contains(&lines), "seed {seed}: {lines} lines");
    }
}

/// Disables, by a reset of the function if it must be, and enables again.
fn recover(host: &mut Host, clock: &oxblock_engine::SimulatedClock) {
    while host.csts().is_gone() {
        clock.advance(10_000_000);
        host.turns(2);
    }
    host.reg32(regs::CC).write(0);
    host.turns(20);
    if host.csts().rdy() {
        host.function.reset().unwrap();
    }
    for _ in 0..100 {
        clock.advance(1_000_000);
        host.turns(1);
    }
    if host.csts().rdy() {
        return recover(host, clock);
    }
    host.set_admin_queues();
    host.reg32(regs::CC).write(Host::cc().0);
    for _ in 0..1000 {
        clock.advance(1_000_000);
        host.turns(1);
        if host.csts().0 & 3 != 0 {
            break;
        }
    }
    // A write to one that was gone for a moment went nowhere; one that still resets itself, and
    // for ever, looks just as one that is disabled.
    let csts = host.csts();
    if !csts.rdy() {
        host.function.reset().unwrap();
    }
    if csts.is_gone() || csts.cfs() || !csts.rdy() {
        return recover(host, clock);
    }
    let pair = host.pair(1, 16);
    let at = |words: &oxblock_mem::Cells| words.iova().unwrap();
    let (sq, cq) = (at(pair.sq.words()), at(pair.cq.words()));
    let created = [Command::create_cq(1, 16, cq, None), Command::create_sq(1, 16, sq, 1)];
    for command in created {
        let cid = host.submit(0, command);
        host.turns(4);
        if host.take(0, cid).is_none_or(|done| !done.status().is_success()) {
            return recover(host, clock);
        }
    }
    host.pairs.truncate(1);
    host.pairs.push(Some(pair));
}

#[test]
fn events_of_the_function_and_of_its_health_are_reported() {
    let (mut host, _faults) = host();
    host.enable();
    let mask = (EventMask::SPARE | EventMask::RELIABILITY | EventMask::NAMESPACE).bits();
    host.ok(Command::set_features(feature::ASYNC_EVENT_CONFIGURATION, 0, mask));
    let request = host.submit(0, Command::async_event());
    host.controller.set_critical_warning(1);
    let smart = |information| Event { kind: event::TYPE_SMART, information, log_page: 2 };
    assert_eq!(host.wait(0, request).dw0(), smart(2).to_dword());
    let log = host.page(Command::log_page(2, oxblock_nvme::NSID_ALL, 512, 0, false));
    assert!(log[0] == 1 && log[3] < log[4], "spare {} of {}", log[3], log[4]);
    // Only what is new is told.
    let request = host.submit(0, Command::async_event());
    host.controller.set_critical_warning(1 | 1 << 3);
    assert_eq!(host.wait(0, request).dw0(), smart(0).to_dword());

    let request = host.submit(0, Command::async_event());
    host.controller.report_too_many_changed();
    let changed = Event { kind: event::TYPE_NOTICE, information: 0, log_page: 4 };
    assert_eq!(host.wait(0, request).dw0(), changed.to_dword());
    let log = Command::log_page(4, oxblock_nvme::NSID_ALL, 4096, 0, false);
    assert_eq!(host.page(log)[..8], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert_eq!(host.page(log)[..4], [0; 4]);
}
