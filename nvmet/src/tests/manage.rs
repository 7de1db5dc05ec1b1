use std::sync::Arc;
use std::sync::atomic::Ordering;

use oxblock_engine::{ErrorKind, Fault, OpKind};
use oxblock_mem::Buf;
use oxblock_nvme::event::{self, Event, EventMask};
use oxblock_nvme::identify::{ControllerList, Namespace};
use oxblock_nvme::{Command, NSID_ALL, Status, feature, log, sanitize as wire};
use zerocopy::IntoBytes;

use super::options;
use crate::admin::firmware::tests::image;
use crate::host::Host;
use crate::ram::Ram;
use crate::{ControllerOptions, NamespaceOptions};

/// Bytes of the node that is all capacity.
const POOL: usize = 4 << 20;

/// A controller with one namespace of 2 MiB, and room for others.
fn with_room() -> (Host, Arc<Ram>, Arc<Ram>) {
    let (ram, pool) = (Ram::new(2 << 20, 512), Ram::new(POOL as u64, 512));
    ram.bytes().fill(0x5a);
    let options = ControllerOptions {
        namespaces: vec![NamespaceOptions::new(ram.node("ram"), 512)],
        capacity: vec![pool.node("pool")],
        max_namespaces: 4,
        ..ControllerOptions::default()
    };
    (Host::with_io(options), ram, pool)
}

fn data(host: &Host, bytes: &[u8]) -> Buf {
    let mut buf = host.alloc(4096);
    buf.write_at(0, bytes);
    buf
}

/// The status of an admin command that sends a page of data.
fn send(host: &mut Host, command: Command, bytes: &[u8]) -> (Status, u32) {
    let buf = data(host, bytes);
    let completion = host.run(0, command.with_prp(buf.iova().unwrap(), 0));
    (Status { dnr: false, ..completion.status() }, completion.dw0())
}

fn create(host: &mut Host, change: impl FnOnce(&mut Namespace)) -> Result<u32, Status> {
    let mut page = Namespace::boxed();
    (page.nsze, page.ncap) = (1024.into(), 1024.into());
    change(&mut page);
    let (status, nsid) = send(host, Command::create_namespace(0), page.as_bytes());
    if status.is_success() { Ok(nsid) } else { Err(status) }
}

fn attach(host: &mut Host, nsid: u32, controllers: &[u16]) -> Status {
    let list = ControllerList::of(controllers);
    send(host, Command::attach_namespace(nsid), list.as_bytes()).0
}

fn detach(host: &mut Host, nsid: u32) -> Status {
    let list = ControllerList::of(&[1]);
    send(host, Command::detach_namespace(nsid), list.as_bytes()).0
}

fn ids(host: &mut Host, cns: u8) -> Vec<u32> {
    let page = host.page(Command::identify(cns, 0, 0));
    let words = page.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    words.take_while(|id| *id != 0).collect()
}

/// Unallocated capacity, as Identify Controller has it.
fn unallocated(host: &mut Host) -> u64 {
    let page = host.page(Command::identify(1, 0, 0));
    u64::from_le_bytes(page[296..304].try_into().unwrap())
}

fn sanitize_state(host: &mut Host) -> (u16, u16) {
    let page = host.page(Command::log_page(log::LID_SANITIZE, NSID_ALL, 512, 0, true));
    let half = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    (half(0), half(2))
}

#[test]
fn a_format_changes_the_block_size_and_erases() {
    let (mut host, ram, _) = with_room();
    let before = host.page(Command::identify(0, 1, 0));
    assert_eq!((before[25], before[26], before[130], before[134]), (1, 0, 9, 12));
    assert_eq!(before[32], 0x80);
    host.ok(Command::format_nvm(1, 1, 1));
    assert!(ram.bytes().iter().all(|&b| b == 0));
    assert!(ram.flushes.load(Ordering::Relaxed) > 0);
    let after = host.page(Command::identify(0, 1, 0));
    assert_eq!((after[26], &after[..8]), (1, &512u64.to_le_bytes()[..]));
    let buf = host.alloc(4096);
    let read = |slba| Command::read(1, slba, 1).with_prp(buf.iova().unwrap(), 0);
    assert!(host.run(1, read(511)).status().is_success());
    assert_eq!(host.status(1, read(512)), Status::LBA_OUT_OF_RANGE);
    host.ok(Command::format_nvm(NSID_ALL, 0, 0));
    assert!(ram.discards.load(Ordering::Relaxed) > 0);
    assert!(host.run(1, read(4095)).status().is_success());
}

#[test]
fn formats_are_checked() {
    let (small, large) = {
        let (options, small, large) = options();
        let mut host = Host::ready(options);
        // The node has blocks of 4096 bytes: none smaller can be had.
        assert_eq!(host.status(0, Command::format_nvm(2, 0, 0)), Status::INVALID_FORMAT);
        let page = host.page(Command::identify(0, 2, 0));
        assert_eq!((page[26], page[130], page[134]), (1, 0, 12));
        for (command, expected) in [
            (Command::format_nvm(1, 2, 0), Status::INVALID_FORMAT),
            (Command::format_nvm(1, 63, 0), Status::INVALID_FORMAT),
            (Command::format_nvm(1, 0, 2), Status::INVALID_FIELD),
            (Command::format_nvm(1, 0, 7), Status::INVALID_FIELD),
            (Command::format_nvm(3, 0, 0), Status::INVALID_NAMESPACE),
            (Command::format_nvm(0, 0, 0), Status::INVALID_NAMESPACE),
            (Command::format_nvm(1, 0, 0).with_cdw10_11(1 << 5, 0), Status::INVALID_FORMAT),
        ] {
            assert_eq!(host.status(0, command), expected);
        }
        (small, large)
    };
    assert_eq!(small.discards.load(Ordering::Relaxed), 0);
    assert_eq!(large.discards.load(Ordering::Relaxed), 0);
}

#[test]
fn a_namespace_that_is_formatted_takes_no_io_and_tells_how_far_it_is() {
    let (mut host, ram, _) = with_room();
    let buf = host.alloc(4096);
    let read = Command::read(1, 0, 1).with_prp(buf.iova().unwrap(), 0);
    ram.hold.store(true, Ordering::Relaxed);
    // In work before the format: it is waited for.
    let old = host.submit(1, read);
    host.turns(5);
    let format = host.submit(0, Command::format_nvm(1, 1, 1));
    host.turns(20);
    assert!(host.take(0, format).is_none());
    assert_eq!(ram.bytes()[0], 0x5a);
    let refused = host.run(1, read).status();
    assert_eq!(refused, Status::FORMAT_IN_PROGRESS);
    assert!(!refused.dnr);
    assert_eq!(host.status(0, Command::format_nvm(1, 0, 0)), Status::FORMAT_IN_PROGRESS);
    assert_eq!(host.status(0, Command::delete_namespace(1)), Status::FORMAT_IN_PROGRESS);
    assert_eq!(detach(&mut host, 1), Status::FORMAT_IN_PROGRESS);
    let block_erase = Command::sanitize(wire::BLOCK_ERASE, 0);
    assert_eq!(host.status(0, block_erase), Status::FORMAT_IN_PROGRESS);
    assert_eq!(host.page(Command::identify(0, 1, 0))[32], 0x80 | 100);
    ram.hold.store(false, Ordering::Relaxed);
    assert!(host.wait(1, old).status().is_success());
    assert!(host.wait(0, format).status().is_success());
    assert_eq!(host.page(Command::identify(0, 1, 0))[32], 0x80);
    assert!(host.run(1, read).status().is_success());
}

#[test]
fn a_format_that_fails_or_is_reset_leaves_the_format_as_it_was() {
    let (mut host, ram, _) = with_room();
    let fault = Fault::new(ErrorKind::Media, 0);
    *ram.fail.lock().unwrap() = Some((OpKind::WriteZeroes, fault));
    assert_eq!(host.status(0, Command::format_nvm(1, 1, 1)), Status::WRITE_FAULT);
    assert_eq!(host.page(Command::identify(0, 1, 0))[26], 0);
    ram.hold.store(true, Ordering::Relaxed);
    host.submit(0, Command::format_nvm(1, 1, 1));
    host.turns(20);
    // The operation in work holds the reset up no more than it holds host memory.
    host.disable();
    ram.hold.store(false, Ordering::Relaxed);
    host.enable();
    host.create_io(1, 8);
    assert_eq!(host.page(Command::identify(0, 1, 0))[26], 0);
    assert!(host.run(1, Command::flush(1)).status().is_success());
}

#[test]
fn what_is_write_protected_is_not_erased() {
    let (mut options, small, _) = options();
    options.namespaces[0].read_only = true;
    let mut host = Host::ready(options);
    small.bytes().fill(7);
    for command in [
        Command::format_nvm(1, 0, 1),
        Command::format_nvm(NSID_ALL, 1, 1),
        Command::delete_namespace(1),
        Command::sanitize(wire::BLOCK_ERASE, 0),
    ] {
        assert_eq!(host.status(0, command), Status::NAMESPACE_WRITE_PROTECTED);
    }
    assert!(small.bytes().iter().all(|&b| b == 7));
}

#[test]
fn namespaces_are_created_attached_used_detached_and_deleted() {
    let (mut host, _, pool) = with_room();
    assert_eq!(unallocated(&mut host), POOL as u64);
    let nsid = create(&mut host, |page| page.flbas = 1).unwrap();
    assert_eq!((nsid, unallocated(&mut host)), (2, POOL as u64 - (1024 << 12)));
    assert_eq!((ids(&mut host, 0x02), ids(&mut host, 0x10)), (vec![1], vec![1, 2]));
    let flush = Command::flush(2);
    assert_eq!(host.status(1, flush), Status::INVALID_FIELD);
    assert!(host.page(Command::identify(0x00, 2, 0)).iter().all(|&b| b == 0));
    assert_eq!(host.page(Command::identify(0x11, 2, 0))[26], 1);
    let controllers = |host: &mut Host| host.page(Command::identify(0x12, 2, 0))[0];
    assert_eq!(controllers(&mut host), 0);
    assert_eq!(attach(&mut host, 2, &[1]), Status::SUCCESS);
    assert_eq!((ids(&mut host, 0x02), controllers(&mut host)), (vec![1, 2], 1));
    assert_eq!(attach(&mut host, 2, &[1]), Status::NAMESPACE_ALREADY_ATTACHED);
    let buf = data(&host, &[0xc3; 4096]);
    let write = Command::write(2, 1023, 1, 0).with_prp(buf.iova().unwrap(), 0);
    assert!(host.run(1, write).status().is_success());
    assert_eq!(pool.bytes()[(1023 << 12) + 4095], 0xc3);
    assert_eq!(detach(&mut host, 2), Status::SUCCESS);
    assert_eq!(detach(&mut host, 2), Status::NAMESPACE_NOT_ATTACHED);
    assert_eq!(host.status(1, write), Status::INVALID_FIELD);
    host.ok(Command::delete_namespace(2));
    assert_eq!((ids(&mut host, 0x10), unallocated(&mut host)), (vec![1], POOL as u64));
    // The next one there does not see what the last one held.
    assert!(pool.bytes().iter().all(|&b| b == 0));
    assert_eq!(host.status(0, Command::delete_namespace(2)), Status::INVALID_FIELD);
    assert_eq!(host.status(0, Command::delete_namespace(5)), Status::INVALID_NAMESPACE);
    host.ok(Command::delete_namespace(NSID_ALL));
    assert!(ids(&mut host, 0x10).is_empty());
    assert_eq!(unallocated(&mut host), (POOL + (2 << 20)) as u64);
}

#[test]
fn what_cannot_be_created_or_attached_is_told_why() {
    let (mut host, ..) = with_room();
    let refused = |host: &mut Host, change: fn(&mut Namespace)| create(host, change).unwrap_err();
    let size = |page: &mut Namespace, blocks: u64| {
        (page.nsze, page.ncap) = (blocks.into(), blocks.into());
    };
    assert_eq!(refused(&mut host, |page| page.nsze = 0.into()), Status::INVALID_FIELD);
    let thin = refused(&mut host, |page| page.ncap = 1.into());
    assert_eq!(thin, Status::THIN_PROVISIONING_NOT_SUPPORTED);
    assert_eq!(refused(&mut host, |page| page.flbas = 5), Status::INVALID_FORMAT);
    assert_eq!(refused(&mut host, |page| page.dps = 1), Status::INVALID_FORMAT);
    assert_eq!(refused(&mut host, |page| page.nmic = 1), Status::INVALID_FIELD);
    for blocks in [(POOL / 512 + 1) as u64, u64::MAX] {
        let result = create(&mut host, |page| size(page, blocks));
        assert_eq!(result, Err(Status::NAMESPACE_INSUFFICIENT_CAPACITY));
    }
    for nsid in 2..=4 {
        assert_eq!(create(&mut host, |page| size(page, 8)), Ok(nsid));
    }
    let no_number = create(&mut host, |page| size(page, 8));
    assert_eq!(no_number, Err(Status::NAMESPACE_ID_UNAVAILABLE));
    let zoned = send(&mut host, Command::create_namespace(2), &[0; 4096]).0;
    assert_eq!(zoned, Status::COMMAND_SET_NOT_SUPPORTED);
    for list in [&[][..], &[2], &[1, 1], &[1, 2]] {
        assert_eq!(attach(&mut host, 2, list), Status::CONTROLLER_LIST_INVALID, "{list:?}");
    }
    let endless = send(&mut host, Command::attach_namespace(2), &[0xff; 4096]).0;
    assert_eq!(endless, Status::CONTROLLER_LIST_INVALID);
    assert_eq!(attach(&mut host, 9, &[1]), Status::INVALID_NAMESPACE);
    assert_eq!(attach(&mut host, NSID_ALL, &[1]), Status::INVALID_NAMESPACE);
    let odd = Command::delete_namespace(2).with_cdw10_11(2, 0);
    assert_eq!(host.status(0, odd), Status::INVALID_FIELD);
}

/// A deletion gave the range back while reads of it were still in work.
#[test]
fn a_deletion_waits_for_commands_in_work() {
    let (mut host, ram, _) = with_room();
    let buf = host.alloc(4096);
    ram.hold.store(true, Ordering::Relaxed);
    let read = host.submit(1, Command::read(1, 0, 8).with_prp(buf.iova().unwrap(), 0));
    host.turns(5);
    let delete = host.submit(0, Command::delete_namespace(1));
    host.turns(50);
    assert!(host.take(0, delete).is_none());
    assert_eq!(ram.bytes()[0], 0x5a);
    ram.hold.store(false, Ordering::Relaxed);
    assert!(host.wait(1, read).status().is_success());
    assert!(host.wait(0, delete).status().is_success());
    assert!(ram.bytes().iter().all(|&b| b == 0));
}

#[test]
fn changes_of_namespaces_are_events() {
    let (mut host, ..) = with_room();
    let mask = EventMask::NAMESPACE.bits();
    host.ok(Command::set_features(feature::ASYNC_EVENT_CONFIGURATION, 0, mask));
    let changed = log::LID_CHANGED_NAMESPACES;
    let notice = Event { kind: event::TYPE_NOTICE, information: 0, log_page: changed }.to_dword();
    for command in [Command::format_nvm(1, 1, 0), Command::delete_namespace(1)] {
        let request = host.submit(0, Command::async_event());
        host.ok(command);
        assert_eq!(host.wait(0, request).dw0(), notice);
        let list = host.page(Command::log_page(changed, 0, 4096, 0, false));
        assert_eq!(list[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn a_sanitize_erases_every_node_in_the_background() {
    let (mut host, ram, pool) = with_room();
    pool.bytes().fill(0x77);
    let request = host.submit(0, Command::async_event());
    assert_eq!(sanitize_state(&mut host), (0xffff, wire::STATE_NEVER));
    ram.hold.store(true, Ordering::Relaxed);
    host.ok(Command::sanitize(wire::BLOCK_ERASE, 0));
    let (progress, state) = sanitize_state(&mut host);
    assert_eq!((progress, state), (0, wire::STATE_IN_PROGRESS));
    let refused = host.run(1, Command::flush(1)).status();
    assert_eq!(refused, Status::SANITIZE_IN_PROGRESS);
    assert!(!refused.dnr);
    for command in [Command::flush(NSID_ALL), Command::dataset_management(1, 1, 4)] {
        assert_eq!(host.status(1, command), Status::SANITIZE_IN_PROGRESS);
    }
    for command in [
        Command::sanitize(wire::OVERWRITE, 0),
        Command::format_nvm(1, 0, 0),
        Command::delete_namespace(1),
        Command::firmware_commit(1, 2),
    ] {
        assert_eq!(host.status(0, command), Status::SANITIZE_IN_PROGRESS);
    }
    ram.hold.store(false, Ordering::Relaxed);
    let ended = Event {
        kind: event::TYPE_IO,
        information: event::IO_SANITIZE_ENDED,
        log_page: log::LID_SANITIZE,
    };
    assert_eq!(host.wait(0, request).dw0(), ended.to_dword());
    let erased = wire::STATE_SUCCEEDED | wire::GLOBAL_DATA_ERASED;
    assert_eq!(sanitize_state(&mut host), (0xffff, erased));
    assert!(ram.bytes().iter().chain(pool.bytes().iter()).all(|&b| b == 0));
    let buf = host.alloc(512);
    let write = Command::write(1, 0, 1, 0).with_prp(buf.iova().unwrap(), 0);
    assert!(host.run(1, write).status().is_success());
    assert_eq!(sanitize_state(&mut host).1, wire::STATE_SUCCEEDED);
}

#[test]
fn an_overwrite_leaves_its_pattern_and_goes_on_over_a_reset() {
    let (mut host, ram, pool) = with_room();
    let passes = wire::with_passes(2);
    let cdw10 = wire::OVERWRITE | wire::OIPBP | wire::NDAS | passes;
    ram.hold.store(true, Ordering::Relaxed);
    host.ok(Command::sanitize(cdw10, 0x0102_0304));
    host.disable();
    ram.hold.store(false, Ordering::Relaxed);
    host.enable();
    for _ in 0..1000 {
        if sanitize_state(&mut host).1 & 7 != wire::STATE_IN_PROGRESS {
            break;
        }
        host.turns(10);
    }
    let state = wire::STATE_SUCCEEDED | wire::GLOBAL_DATA_ERASED | 2 << 3;
    assert_eq!(sanitize_state(&mut host), (0xffff, state));
    let inverted = (!0x0102_0304u32).to_le_bytes();
    for bytes in [ram.bytes(), pool.bytes()] {
        assert!(bytes.as_chunks::<4>().0.iter().all(|word| *word == inverted));
    }
}

#[test]
fn a_sanitize_that_fails_keeps_the_data_closed_until_it_is_left() {
    let (mut host, ram, _) = with_room();
    let fail = || {
        let fault = Fault::new(ErrorKind::Media, 0);
        *ram.fail.lock().unwrap() = Some((OpKind::WriteZeroes, fault));
    };
    fail();
    host.ok(Command::sanitize(wire::BLOCK_ERASE | wire::AUSE, 0));
    host.turns(50);
    assert_eq!(sanitize_state(&mut host).1, wire::STATE_FAILED);
    assert_eq!(host.status(1, Command::flush(1)), Status::SANITIZE_FAILED);
    assert_eq!(host.status(0, Command::format_nvm(1, 0, 0)), Status::SANITIZE_FAILED);
    host.ok(Command::sanitize(wire::EXIT_FAILURE_MODE, 0));
    assert!(host.run(1, Command::flush(1)).status().is_success());
    fail();
    host.ok(Command::sanitize(wire::BLOCK_ERASE, 0));
    host.turns(50);
    let exit = Command::sanitize(wire::EXIT_FAILURE_MODE, 0);
    assert_eq!(host.status(0, exit), Status::SANITIZE_FAILED);
    host.ok(Command::sanitize(wire::BLOCK_ERASE, 0));
    host.turns(200);
    assert_eq!(sanitize_state(&mut host).1 & 7, wire::STATE_SUCCEEDED);
    assert!(host.run(1, Command::flush(1)).status().is_success());
}

#[test]
fn the_revision_follows_the_firmware_that_is_active() {
    let (mut host, ..) = with_room();
    let image = image(b"9.9     ", 6000);
    let revision = |host: &mut Host| host.page(Command::identify(1, 0, 0))[64..72].to_vec();
    let built_with = revision(&mut host);
    let mask = EventMask::FIRMWARE.bits();
    host.ok(Command::set_features(feature::ASYNC_EVENT_CONFIGURATION, 0, mask));
    for (at, piece) in image.chunks(4096).enumerate() {
        let command = Command::firmware_download(piece.len() as u32, at as u32 * 4096);
        assert_eq!(send(&mut host, command, piece).0, Status::SUCCESS);
    }
    host.ok(Command::firmware_commit(2, 1));
    assert_eq!(revision(&mut host), built_with);
    host.disable();
    host.enable();
    assert_eq!(revision(&mut host), b"9.9     ");
    host.ok(Command::set_features(feature::ASYNC_EVENT_CONFIGURATION, 0, mask));
    let request = host.submit(0, Command::async_event());
    host.ok(Command::firmware_commit(1, 3));
    assert_eq!(revision(&mut host), built_with);
    let starting = Event { kind: event::TYPE_NOTICE, information: 1, log_page: 3 };
    assert_eq!(host.wait(0, request).dw0(), starting.to_dword());
    let slots = host.page(Command::log_page(log::LID_FIRMWARE_SLOT, 0, 512, 0, false));
    assert_eq!((slots[0], &slots[16..24]), (1, &b"9.9     "[..]));
}

#[test]
fn a_controller_can_be_stopped_while_it_erases() {
    for command in [Command::format_nvm(1, 0, 1), Command::sanitize(wire::BLOCK_ERASE, 0)] {
        let (mut host, ram, _) = with_room();
        ram.hold.store(true, Ordering::Relaxed);
        host.submit(0, command);
        host.turns(20);
        host.controller.stop();
        host.turns(20);
        assert!(!host.controller.is_stopped());
        ram.hold.store(false, Ordering::Relaxed);
        host.until("stopped", |host| host.controller.is_stopped());
        assert!(ram.bytes().contains(&0x5a), "it went on to the end");
    }
}
