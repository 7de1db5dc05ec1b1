use oxblock_nvme::event::{self, Event, EventMask};
use oxblock_nvme::{Command, Status, feature, log, regs};

use super::options;
use crate::host::Host;

fn mask(events: EventMask) -> Command {
    Command::set_features(feature::ASYNC_EVENT_CONFIGURATION, 0, events.bits())
}

fn event(dw0: u32) -> (u8, u8, u8) {
    let Event { kind, information, log_page } = Event::from_dword(dw0);
    (kind, information, log_page)
}

#[test]
fn doorbells_out_of_range_are_reported_and_ignored() {
    let mut host = Host::with_io(options().0);
    let requests = [(); 2].map(|()| host.submit(0, Command::async_event()));
    host.turns(3);
    host.queue(1).tail.write(64);
    let first = host.wait(0, requests[0]);
    let expected = (event::TYPE_ERROR, event::ERROR_INVALID_DOORBELL_VALUE, log::LID_ERROR);
    assert_eq!(event(first.dw0()), expected);
    // Said once, and masked until the log is read.
    host.queue(1).tail.write(0xffff_ffff);
    host.reg32(regs::doorbell_offset(3, false, 0)).write(1);
    host.turns(10);
    assert!(host.take(0, requests[1]).is_none());
    let errors = host.page(Command::log_page(log::LID_ERROR, 0, 64, 0, false));
    assert_eq!(errors[10..12], [0xff, 0xff]);
    let second = host.wait(0, requests[1]);
    assert_eq!(event(second.dw0()).0, event::TYPE_ERROR);
    // The queue goes on.
    host.queue(1).tail.write(0);
    assert!(host.run(1, Command::flush(1)).status().is_success());
}

#[test]
fn a_doorbell_of_no_queue_is_reported() {
    let mut host = Host::ready(options().0);
    let request = host.submit(0, Command::async_event());
    host.turns(3);
    host.reg32(regs::doorbell_offset(2, true, 0)).write(1);
    let completion = host.wait(0, request);
    let expected = (event::TYPE_ERROR, event::ERROR_INVALID_DOORBELL_REGISTER, log::LID_ERROR);
    assert_eq!(event(completion.dw0()), expected);
}

#[test]
fn changed_namespaces_are_told_to_those_who_ask() {
    let mut host = Host::ready(options().0);
    let request = host.submit(0, Command::async_event());
    host.controller.namespace_changed(2);
    host.turns(10);
    assert!(host.take(0, request).is_none());
    host.ok(mask(EventMask::NAMESPACE));
    host.controller.namespace_changed(1);
    let completion = host.wait(0, request);
    let expected =
        (event::TYPE_NOTICE, event::NOTICE_NAMESPACE_CHANGED, log::LID_CHANGED_NAMESPACES);
    assert_eq!(event(completion.dw0()), expected);
    let retained = Command::log_page(log::LID_CHANGED_NAMESPACES, 0, 4096, 0, true);
    assert_eq!(host.page(retained)[..12], [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let request = host.submit(0, Command::async_event());
    host.controller.namespace_changed(2);
    host.turns(10);
    assert!(host.take(0, request).is_none(), "masked until the log is read for good");
    let read = Command::log_page(log::LID_CHANGED_NAMESPACES, 0, 4096, 0, false);
    host.page(read);
    assert_eq!(event(host.wait(0, request).dw0()), expected);
}

#[test]
fn a_temperature_threshold_that_is_passed_is_reported() {
    let mut host = Host::ready(options().0);
    host.ok(mask(EventMask::TEMPERATURE));
    let request = host.submit(0, Command::async_event());
    host.ok(Command::set_features(feature::TEMPERATURE_THRESHOLD, 0, 300));
    let completion = host.wait(0, request);
    assert_eq!(event(completion.dw0()), (event::TYPE_SMART, 1, log::LID_SMART));
    let smart = host.page(Command::log_page(log::LID_SMART, 0, 512, 0, false));
    assert_eq!(smart[0], 2);
}

#[test]
fn requests_are_limited() {
    let mut host = Host::ready(options().0);
    let aerl = host.page(Command::identify(1, 0, 0))[259];
    for _ in 0..=aerl {
        host.submit(0, Command::async_event());
    }
    let status = host.status(0, Command::async_event());
    assert_eq!(status, Status::AER_LIMIT_EXCEEDED);
    // A reset forgets them all.
    host.disable();
    host.enable();
    host.submit(0, Command::async_event());
    host.page(Command::identify(1, 0, 0));
}
