use oxblock_nvme::command::{DataPointer, PSDT_SGL};
use oxblock_nvme::feature::{self, QueueCounts};
use oxblock_nvme::opcode::admin;
use oxblock_nvme::sgl::Descriptor;
use oxblock_nvme::{Command, NSID_ALL, Status, log};
use oxblock_pci::{EventFd, Ids};
use std::sync::Arc;

use super::options;
use crate::ControllerOptions;
use crate::host::Host;

fn cq(qid: u16, entries: u32, iova: u64) -> Command {
    Command::create_cq(qid, entries, iova, None)
}

#[test]
fn every_identify_page_arrives() {
    let mut host = Host::ready(options().0);
    for (cns, nsid) in
        [(0, 1), (0, NSID_ALL), (1, 0), (2, 0), (3, 2), (5, 1), (6, 0), (7, 0), (8, 2)]
    {
        host.page(Command::identify(cns, nsid, 0));
    }
    for (cns, nsid) in [(0x10, 0), (0x11, 1), (0x12, 1), (0x13, 0), (0x1a, 0), (0x1c, 0)] {
        host.page(Command::identify(cns, nsid, 0));
    }
    let controller = host.page(Command::identify(1, 0, 0));
    assert_eq!(controller[77], 5);
    let namespace = host.page(Command::identify(0, 2, 0));
    assert_eq!(namespace[..8], 256u64.to_le_bytes());
    assert_eq!((namespace[26], namespace[134]), (1, 12));
    assert_eq!(host.status(0, Command::identify(0, 3, 0)), Status::INVALID_NAMESPACE);
    assert_eq!(host.status(0, Command::identify(0x99, 0, 0)), Status::INVALID_FIELD);
}

/// What makes a driver take the controller for another maker's device.
#[test]
fn a_controller_poses_as_another_device() {
    let options = ControllerOptions {
        vendor: 0x144d,
        device: 0xa80b,
        subsystem_vendor: 0x1028,
        subsystem: 0x1234,
        ..options().0
    };
    let mut host = Host::ready(options);
    let ids = Ids::read(host.function.config()).unwrap();
    assert_eq!((ids.vendor, ids.device), (0x144d, 0xa80b));
    assert_eq!((ids.subsystem_vendor, ids.subsystem), (0x1028, 0x1234));
    let page = host.page(Command::identify(1, 0, 0));
    assert_eq!(page[..4], [0x4d, 0x14, 0x28, 0x10]);
}

#[test]
fn identify_crosses_a_page_boundary() {
    let mut host = Host::ready(options().0);
    let (first, second) = (host.alloc(4096), host.alloc(4096));
    let (a, b) = (first.iova().unwrap() + 4092, second.iova().unwrap());
    host.ok(Command::identify(1, 0, 0).with_prp(a, b));
    assert_eq!(first.as_slice().unwrap()[4092..4094], *b"xo");
    assert_eq!(&second.as_slice().unwrap()[..8], b"OXBLOCK0");
}

#[test]
fn completion_queues_are_checked() {
    let mut host = Host::ready(options().0);
    let buf = host.alloc(4096);
    let iova = buf.iova().unwrap();
    assert_eq!(host.status(0, cq(0, 8, iova)), Status::INVALID_QID);
    assert_eq!(host.status(0, cq(5, 8, iova)), Status::INVALID_QID);
    assert_eq!(host.status(0, cq(u16::MAX, 8, iova)), Status::INVALID_QID);
    assert_eq!(host.status(0, cq(1, 1, iova)), Status::INVALID_QUEUE_SIZE);
    assert_eq!(host.status(0, cq(1, 1025, iova)), Status::INVALID_QUEUE_SIZE);
    let vector = Command::create_cq(1, 8, iova, Some(17));
    assert_eq!(host.status(0, vector), Status::INVALID_INTERRUPT_VECTOR);
    assert_eq!(host.status(0, cq(1, 8, iova + 8)), Status::PRP_OFFSET_INVALID);
    let scattered = cq(1, 8, iova).with_cdw10_11(1 | 7 << 16, 0);
    assert_eq!(host.status(0, scattered), Status::INVALID_FIELD);
    assert_eq!(host.status(0, cq(1, 8, 0xdead_0000_0000)), Status::DATA_TRANSFER_ERROR);
    host.ok(cq(1, 8, iova));
    assert_eq!(host.status(0, cq(1, 8, iova)), Status::INVALID_QID);
    host.ok(Command::delete_cq(1));
    assert_eq!(host.status(0, Command::delete_cq(1)), Status::INVALID_QID);
    assert_eq!(host.status(0, Command::delete_cq(0)), Status::INVALID_QID);
}

#[test]
fn submission_queues_are_checked() {
    let mut host = Host::ready(options().0);
    let (a, b) = (host.alloc(4096), host.alloc(4096));
    let (cq_iova, iova) = (a.iova().unwrap(), b.iova().unwrap());
    let sq = Command::create_sq;
    assert_eq!(host.status(0, sq(1, 8, iova, 1)), Status::CQ_INVALID);
    assert_eq!(host.status(0, sq(1, 8, iova, 0)), Status::INVALID_QID);
    assert_eq!(host.status(0, sq(1, 8, iova, 99)), Status::INVALID_QID);
    host.ok(cq(3, 8, cq_iova));
    assert_eq!(host.status(0, sq(0, 8, iova, 3)), Status::INVALID_QID);
    assert_eq!(host.status(0, sq(5, 8, iova, 3)), Status::INVALID_QID);
    assert_eq!(host.status(0, sq(1, 1, iova, 3)), Status::INVALID_QUEUE_SIZE);
    assert_eq!(host.status(0, sq(1, 4096, iova, 3)), Status::INVALID_QUEUE_SIZE);
    host.ok(sq(1, 8, iova, 3));
    host.ok(sq(2, 8, iova, 3));
    assert_eq!(host.status(0, sq(1, 8, iova, 3)), Status::INVALID_QID);
    assert_eq!(host.status(0, Command::delete_cq(3)), Status::INVALID_QUEUE_DELETION);
    host.ok(Command::delete_sq(1));
    assert_eq!(host.status(0, Command::delete_cq(3)), Status::INVALID_QUEUE_DELETION);
    host.ok(Command::delete_sq(2));
    host.ok(Command::delete_cq(3));
    assert_eq!(host.status(0, Command::delete_sq(0)), Status::INVALID_QID);
}

/// A host that leaves the entry sizes in CC at zero can use the admin queue only.
#[test]
fn queues_need_their_entry_sizes() {
    let mut host = Host::new(options().0);
    host.set_admin_queues();
    host.reg32(oxblock_nvme::regs::CC).write(1);
    host.until("ready", |host| host.csts().rdy());
    let buf = host.alloc(4096);
    let status = host.status(0, cq(1, 8, buf.iova().unwrap()));
    assert_eq!(status, Status::INVALID_QUEUE_SIZE);
}

#[test]
fn fewer_queues_are_granted_than_asked_for() {
    let mut host = Host::ready(options().0);
    let counts = QueueCounts { submission: 2, completion: 100 }.to_dword();
    let granted = host.ok(Command::set_features(feature::NUMBER_OF_QUEUES, 0, counts));
    assert_eq!(QueueCounts::from_dword(granted), QueueCounts { submission: 2, completion: 4 });
    let buf = host.alloc(4096);
    let iova = buf.iova().unwrap();
    host.ok(cq(4, 8, iova));
    let status = host.status(0, Command::create_sq(3, 8, iova, 4));
    assert_eq!(status, Status::INVALID_QID);
    let late = host.status(0, Command::set_features(feature::NUMBER_OF_QUEUES, 0, counts));
    assert_eq!(late, Status::SEQUENCE_ERROR);
    host.disable();
    host.enable();
    let granted = host.ok(Command::get_features(feature::NUMBER_OF_QUEUES, 0, 0));
    assert_eq!(QueueCounts::from_dword(granted).submission, 4);
}

#[test]
fn features_with_data_travel() {
    let mut host = Host::ready(options().0);
    let mut buf = host.alloc(4096);
    let iova = buf.iova().unwrap();
    buf.write_at(0, &1_700_000_000_000u64.to_le_bytes());
    host.ok(Command::set_features(feature::TIMESTAMP, 0, 0).with_prp(iova, 0));
    buf.fill(0, 8, 0);
    host.ok(Command::get_features(feature::TIMESTAMP, 0, 0).with_prp(iova, 0));
    let mut stamp = [0; 8];
    buf.read_at(0, &mut stamp);
    let stamp = u64::from_le_bytes(stamp);
    assert_eq!(stamp >> 48, 2);
    let ms = stamp & ((1 << 48) - 1);
    assert!((1_700_000_000_000..1_700_000_060_000).contains(&ms));
    buf.write_at(0, &[2]);
    let behavior = Command::set_features(feature::HOST_BEHAVIOR_SUPPORT, 0, 0).with_prp(iova, 0);
    assert_eq!(host.status(0, behavior), Status::INVALID_FIELD);
    let unmapped = behavior.with_prp(0xdead_0000_0000, 0);
    assert_eq!(host.status(0, unmapped), Status::DATA_TRANSFER_ERROR);
}

#[test]
fn logs_are_read_in_parts() {
    let mut host = Host::ready(options().0);
    host.status(0, Command::identify(0, 9, 0));
    let page = host.page(Command::log_page(log::LID_ERROR, 0, 64, 0, true));
    assert_eq!(page[..8], 1u64.to_le_bytes());
    assert_eq!(page[24..28], 9u32.to_le_bytes());
    let rest = host.page(Command::log_page(log::LID_ERROR, 0, 56, 8, true));
    assert_eq!(rest[..56], page[8..64]);
    let beyond = host.page(Command::log_page(log::LID_SMART, NSID_ALL, 4096, 508, true));
    assert!(beyond[4..].iter().all(|&b| b == 0));
    let past = Command::log_page(log::LID_SMART, 0, 4, 516, true);
    assert_eq!(host.status(0, past), Status::INVALID_FIELD);
    let huge = Command::log_page(log::LID_SMART, 0, 1 << 20, 0, true);
    assert_eq!(host.status(0, huge), Status::INVALID_FIELD);
    for lid in [0x00, 0x03, 0x04, 0x05, 0x12, 0x13] {
        host.page(Command::log_page(lid, 0, 512, 0, false));
    }
    let none = Command::log_page(0x0d, 0, 512, 0, false);
    assert_eq!(host.status(0, none), Status::INVALID_LOG_PAGE);
}

#[test]
fn what_is_not_supported_says_so() {
    let mut host = Host::ready(options().0);
    for opcode in 0..=255u8 {
        let known = [
            admin::DELETE_SQ,
            admin::CREATE_SQ,
            admin::GET_LOG_PAGE,
            admin::DELETE_CQ,
            admin::CREATE_CQ,
            admin::IDENTIFY,
            admin::ABORT,
            admin::SET_FEATURES,
            admin::GET_FEATURES,
            admin::ASYNC_EVENT,
            admin::DOORBELL_BUFFER_CONFIG,
            admin::FORMAT_NVM,
            admin::NAMESPACE_MANAGEMENT,
            admin::NAMESPACE_ATTACHMENT,
            admin::FIRMWARE_DOWNLOAD,
            admin::FIRMWARE_COMMIT,
            admin::SANITIZE,
        ];
        if !known.contains(&opcode) {
            let completion = host.run(0, Command::new(opcode, 0));
            assert_eq!(completion.status(), Status::INVALID_OPCODE.dnr(), "{opcode:#x}");
        }
    }
    let fused = Command::identify(1, 0, 0).with_fuse(1);
    assert_eq!(host.status(0, fused), Status::INVALID_FIELD);
    let sgl = Command::identify(1, 0, 0).with_data(DataPointer::Sgl(Descriptor::data(0, 4096)));
    assert_eq!(sgl.psdt(), PSDT_SGL);
    assert_eq!(host.status(0, sgl), Status::INVALID_FIELD);
}

#[test]
fn aborts_find_what_waits() {
    let mut host = Host::ready(options().0);
    let event = host.submit(0, Command::async_event());
    host.turns(3);
    assert_eq!(host.ok(Command::abort(0, event)), 0);
    assert_eq!(host.wait(0, event).status(), Status::ABORT_REQUESTED);
    assert_eq!(host.ok(Command::abort(0, event)), 1);
    assert_eq!(host.ok(Command::abort(77, 1)), 1);
}

#[test]
fn a_command_identifier_in_use_is_a_conflict() {
    let mut host = Host::ready(options().0);
    let cid = host.submit(0, Command::async_event());
    host.turns(3);
    let again = Command::identify(1, 0, 0).with_cid(cid);
    host.queue(0).sq.push(&again);
    host.ring(0);
    assert_eq!(host.wait(0, cid).status(), Status::CID_CONFLICT.dnr());
}

#[test]
fn interrupts_are_raised_where_enabled() {
    let mut host = Host::ready(options().0);
    let (admin, io) = (Arc::new(EventFd::new().unwrap()), Arc::new(EventFd::new().unwrap()));
    host.function.interrupts().enable(0, admin.clone()).unwrap();
    host.function.interrupts().enable(3, io.clone()).unwrap();
    let pair = host.pair(1, 8);
    let (sq, cq) = (pair.sq.words().iova().unwrap(), pair.cq.words().iova().unwrap());
    host.ok(Command::create_cq(1, 8, cq, Some(3)));
    host.ok(Command::create_sq(1, 8, sq, 1));
    assert!(admin.take() >= 1);
    assert_eq!(io.take(), 0);
    host.pairs.push(Some(pair));
    host.run(1, Command::flush(1));
    assert_eq!(io.take(), 1);
    host.function.interrupts().disable(3).unwrap();
    host.run(1, Command::flush(1));
    assert_eq!(io.take(), 0);
}
