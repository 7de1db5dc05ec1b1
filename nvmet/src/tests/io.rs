use std::sync::Arc;
use std::sync::atomic::Ordering;

use oxblock_engine::{ErrorKind, Fault, OpKind, Source};
use oxblock_mem::Buf;
use oxblock_nvme::command::{DEAC, DataPointer, FUA, FUSE_FIRST, FUSE_SECOND};
use oxblock_nvme::copy::SourceRange;
use oxblock_nvme::dsm;
use oxblock_nvme::opcode::nvm;
use oxblock_nvme::sgl::Descriptor;
use oxblock_nvme::{Command, NSID_ALL, Status, feature, log};
use zerocopy::IntoBytes;

use super::{BLOCKS, options};
use crate::host::{self, Host};
use crate::ram::Ram;
use crate::{Controller, ControllerOptions, NamespaceOptions};

fn iova(buf: &Buf) -> u64 {
    buf.iova().unwrap()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) ^ (i >> 8) as u8).collect()
}

#[test]
fn what_is_written_is_read() {
    let (options, small, large) = options();
    let mut host = Host::with_io(options);
    for (nsid, shift, ram) in [(1, 9, &small), (2, 12, &large)] {
        let mut buf = host.alloc(8192);
        let data = pattern(8192, nsid as u8);
        buf.write_at(0, &data);
        let blocks = 8192 >> shift;
        let prp = (iova(&buf), iova(&buf) + 4096);
        let write = Command::write(nsid, 3, blocks, 0).with_prp(prp.0, prp.1);
        assert!(host.run(1, write).status().is_success());
        assert_eq!(ram.bytes()[3 << shift..(3 << shift) + 8192], data);
        buf.fill(0, 8192, 0);
        let read = Command::read(nsid, 3, blocks).with_prp(prp.0, prp.1);
        assert!(host.run(1, read).status().is_success());
        assert_eq!(buf.as_slice().unwrap(), data);
    }
}

/// Every start inside a page and many lengths, through PRP lists that the host scattered.
#[test]
fn prps_of_all_shapes() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    let data = pattern(BLOCKS as usize * 512, 9);
    ram.bytes().copy_from_slice(&data);
    // Pages in descending order, so that no two continue each other.
    let buf = host.alloc(40 * 4096);
    let page = |n: usize| iova(&buf) + (39 - n) as u64 * 4096;
    let mut list = host.alloc(4096);
    (1..40).for_each(|n| list.write_at((n - 1) * 8, &page(n).to_le_bytes()));
    for offset in [0u64, 4, 512, 1020, 4092] {
        for blocks in [1u64, 7, 8, 9, 15, 16, 17, 63, 240] {
            let len = blocks * 512;
            let pages = (offset + len).div_ceil(4096);
            let prp2 = match pages {
                1 => 0xdead_beef,
                2 => page(1),
                _ => iova(&list),
            };
            let command = Command::read(1, 5, blocks as u32).with_prp(page(0) + offset, prp2);
            assert!(host.run(1, command).status().is_success(), "{offset} {blocks}");
            let mut got = vec![0; len as usize];
            for (i, byte) in got.iter_mut().enumerate() {
                let at = offset as usize + i;
                let place = (39 - at / 4096) * 4096 + at % 4096;
                *byte = buf.as_slice().unwrap()[place];
            }
            assert_eq!(got, data[5 * 512..5 * 512 + len as usize], "{offset} {blocks}");
        }
    }
}

#[test]
fn sgls_of_all_shapes() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    let data = pattern(BLOCKS as usize * 512, 5);
    ram.bytes().copy_from_slice(&data);
    let buf = host.alloc(16 * 4096);
    let mut segments = host.alloc(4096);
    let read = |sgl| Command::read(1, 0, 16).with_data(DataPointer::Sgl(sgl));
    assert!(host.run(1, read(Descriptor::data(iova(&buf) + 3, 8192))).status().is_success());
    assert_eq!(buf.as_slice().unwrap()[3..8195], data[..8192]);
    // Three pieces of odd lengths over two segments.
    let pieces = [(1, 1001), (3000, 2048), (9999, 5143)];
    let descriptor = |n: usize| Descriptor::data(iova(&buf) + pieces[n].0, pieces[n].1);
    let chain = [
        descriptor(0),
        Descriptor::last_segment(iova(&segments) + 64, 2),
        Descriptor::default(),
        Descriptor::default(),
        descriptor(1),
        descriptor(2),
    ];
    for (n, entry) in chain.iter().enumerate() {
        segments.write_at(n * 16, entry.0.as_bytes());
    }
    let first = Descriptor::new(2, iova(&segments), 32);
    assert!(host.run(1, read(first)).status().is_success());
    let got = buf.as_slice().unwrap();
    let mut at = 0;
    for (start, len) in pieces {
        let (start, len) = (start as usize, len as usize);
        assert_eq!(got[start..start + len], data[at..at + len]);
        at += len;
    }
    // Longer than the data is fine, shorter is not.
    assert!(host.run(1, read(Descriptor::data(iova(&buf), 9000))).status().is_success());
    let short = read(Descriptor::data(iova(&buf), 8191));
    assert_eq!(host.status(1, short), Status::SGL_LENGTH_INVALID);
    let bucket = read(Descriptor::new(1, 0, 8192));
    assert_eq!(host.status(1, bucket), Status::SGL_TYPE_INVALID);
}

#[test]
fn sgls_are_refused_where_not_offered() {
    let (options, ..) = options();
    let mut host = Host::with_io(ControllerOptions { sgl: false, ..options });
    let buf = host.alloc(4096);
    let data = DataPointer::Sgl(Descriptor::data(iova(&buf), 4096));
    assert_eq!(host.status(1, Command::read(1, 0, 8).with_data(data)), Status::INVALID_FIELD);
}

#[test]
fn ranges_and_lengths_are_checked() {
    let mut host = Host::with_io(options().0);
    let buf = host.alloc(1 << 20);
    let list: Vec<u8> = (1..256).flat_map(|n| (iova(&buf) + n * 4096).to_le_bytes()).collect();
    let mut prps = host.alloc(4096);
    prps.write_at(0, &list);
    let at = |command: Command| command.with_prp(iova(&buf), iova(&prps));
    for slba in [BLOCKS, BLOCKS - 1, u64::MAX, u64::MAX - 1, 1 << 55] {
        for opcode in [nvm::READ, nvm::WRITE, nvm::COMPARE, nvm::WRITE_ZEROES, nvm::VERIFY] {
            let command = at(Command::nvm(opcode, 1, slba, 2, 0));
            assert_eq!(host.status(1, command), Status::LBA_OUT_OF_RANGE, "{opcode:#x} {slba:#x}");
        }
    }
    // MDTS is 2^5 pages: 128 KiB.
    assert!(host.run(1, at(Command::read(2, 0, 32))).status().is_success());
    assert_eq!(host.status(1, at(Command::read(2, 0, 33))), Status::INVALID_FIELD);
    assert_eq!(host.status(1, at(Command::compare(2, 0, 33))), Status::INVALID_FIELD);
    assert!(host.run(1, Command::write_zeroes(2, 0, 256, 0)).status().is_success());
    for nsid in [0, 3, NSID_ALL] {
        let read = host.status(1, at(Command::read(nsid, 0, 1)));
        assert_eq!(read, Status::INVALID_NAMESPACE, "{nsid}");
    }
    assert_eq!(host.status(1, Command::flush(3)), Status::INVALID_NAMESPACE);
    for fuse in [FUSE_FIRST, FUSE_SECOND] {
        let fused = at(Command::compare(1, 0, 1)).with_fuse(fuse);
        assert_eq!(host.status(1, fused), Status::INVALID_FIELD);
    }
    for opcode in [nvm::RESERVATION_REGISTER, nvm::RESERVATION_REPORT, 0x7f, 0xff] {
        for nsid in [0, 1, 9] {
            let status = host.status(1, Command::new(opcode, nsid));
            assert_eq!(status, Status::INVALID_OPCODE);
        }
    }
    let directed = at(Command::write(1, 0, 1, 1 << 20));
    assert_eq!(host.status(1, directed), Status::INVALID_FIELD);
}

#[test]
fn without_mdts_a_transfer_is_as_long_as_a_command_can_say() {
    let ram = Ram::new(4 << 20, 512);
    let namespaces = vec![NamespaceOptions::new(ram.node("n"), 512)];
    let mut host =
        Host::with_io(ControllerOptions { namespaces, mdts: 0, ..ControllerOptions::default() });
    let len = 4 << 20;
    let buf = host.alloc(len);
    ram.bytes().copy_from_slice(&pattern(len, 1));
    // A list of 1023 pages takes three pages of list, each linked to the next.
    let mut lists = host.alloc(3 * 4096);
    let mut page = 1u64;
    for slot in 0..1536usize {
        let last = slot % 512 == 511;
        let entry = if last && page < 1023 {
            iova(&lists) + ((slot / 512) as u64 + 1) * 4096
        } else {
            page += 1;
            iova(&buf) + (page - 1) * 4096
        };
        lists.write_at(slot * 8, &entry.to_le_bytes());
    }
    let read = Command::read(1, 0, 8192).with_prp(iova(&buf), iova(&lists));
    assert!(host.run(1, read).status().is_success());
    assert_eq!(buf.as_slice().unwrap(), *ram.bytes());
}

#[test]
fn flushes_reach_the_nodes() {
    let (options, small, large) = options();
    let mut host = Host::with_io(options);
    let page = host.page(Command::identify(1, 0, 0));
    assert_eq!(page[525], 0b111);
    let counts = || (small.flushes.load(Ordering::Relaxed), large.flushes.load(Ordering::Relaxed));
    assert!(host.run(1, Command::flush(1)).status().is_success());
    assert_eq!(counts(), (1, 0));
    assert!(host.run(1, Command::flush(NSID_ALL)).status().is_success());
    assert_eq!(counts(), (2, 1));
    *large.fail.lock().unwrap() = Some((OpKind::Flush, Fault::new(ErrorKind::Io, 0)));
    assert_eq!(host.status(1, Command::flush(NSID_ALL)), Status::INTERNAL_ERROR);
    assert_eq!(host.controller.flushes(), 4);
}

/// With the cache off every write goes through, whether or not it says so.
#[test]
fn fua_follows_the_cache() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    let buf = host.alloc(4096);
    let write = |cdw12| Command::write(1, 0, 8, cdw12).with_prp(iova(&buf), 0);
    let fua = || ram.fua_writes.load(Ordering::Relaxed);
    host.run(1, write(0));
    assert_eq!(fua(), 0);
    host.run(1, write(FUA));
    assert_eq!(fua(), 1);
    host.run(1, Command::write_zeroes(1, 0, 8, FUA));
    assert_eq!(fua(), 2);
    host.ok(Command::set_features(feature::VOLATILE_WRITE_CACHE, 0, 0));
    host.run(1, write(0));
    assert_eq!(fua(), 3);
    host.disable();
    host.enable();
    host.create_io(1, 8);
    host.run(1, write(0));
    assert_eq!(fua(), 3);
}

#[test]
fn zeroes_compare_and_verify() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    ram.bytes().fill(7);
    assert!(host.run(1, Command::write_zeroes(1, 2, 3, DEAC)).status().is_success());
    assert_eq!(ram.bytes()[1023..1026], [7, 0, 0]);
    assert_eq!(ram.bytes()[5 * 512 - 1..5 * 512 + 1], [0, 7]);
    let mut buf = host.alloc(4096);
    let compare = Command::compare(1, 2, 3).with_prp(iova(&buf), 0);
    assert!(host.run(1, compare).status().is_success());
    buf.write_at(1535, &[1]);
    assert_eq!(host.run(1, compare).status(), Status::COMPARE_FAILURE.dnr());
    assert!(host.run(1, Command::verify(1, 0, BLOCKS as u32)).status().is_success());
    *ram.fail.lock().unwrap() = Some((OpKind::Read, Fault::new(ErrorKind::Media, 0)));
    assert_eq!(host.status(1, Command::verify(1, 0, 1)), Status::UNRECOVERED_READ_ERROR);
}

#[test]
fn deallocate_discards_each_range() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    ram.bytes().fill(7);
    let mut buf = host.alloc(4096);
    let ranges: Vec<dsm::Range> = (0..256).map(|n| dsm::Range::new(n, 1)).collect();
    buf.write_at(0, ranges.as_bytes());
    let command = Command::dataset_management(1, 256, dsm::AD).with_prp(iova(&buf), 0);
    assert!(host.run(1, command).status().is_success());
    assert_eq!(ram.discards.load(Ordering::Relaxed), 256);
    assert!(ram.bytes().iter().all(|&b| b == 0));
    let hint = Command::dataset_management(1, 1, dsm::IDW).with_prp(iova(&buf), 0);
    assert!(host.run(1, hint).status().is_success());
    assert_eq!(ram.discards.load(Ordering::Relaxed), 256);
    buf.write_at(0, dsm::Range::new(255, 2).as_bytes());
    let one = Command::dataset_management(1, 1, dsm::AD).with_prp(iova(&buf), 0);
    assert_eq!(host.status(1, one), Status::LBA_OUT_OF_RANGE);
}

/// The source of a copy overlaps its destination on both sides.
#[test]
fn copies_may_overlap() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    let before = pattern(BLOCKS as usize * 512, 3);
    ram.bytes().copy_from_slice(&before);
    let sources = [SourceRange::new(10, 20), SourceRange::new(0, 5), SourceRange::new(35, 10)];
    let mut buf = host.alloc(4096);
    buf.write_at(0, sources.as_bytes());
    let copy = Command::copy(1, 15, 3, 0).with_prp(iova(&buf), 0);
    assert!(host.run(1, copy).status().is_success());
    let mut expected = before.clone();
    let moved: Vec<u8> = [(10, 20), (0, 5), (35, 10)]
        .iter()
        .flat_map(|&(from, n): &(usize, usize)| before[from * 512..(from + n) * 512].to_vec())
        .collect();
    expected[15 * 512..15 * 512 + moved.len()].copy_from_slice(&moved);
    assert_eq!(*ram.bytes(), expected);
    buf.write_at(0, SourceRange::new(0, 1025).as_bytes());
    let status = host.status(1, Command::copy(1, 0, 1, 0).with_prp(iova(&buf), 0));
    assert_eq!(status, Status::LBA_OUT_OF_RANGE);
}

#[test]
fn a_read_only_namespace_takes_no_changes() {
    let (mut options, ram, _) = options();
    options.namespaces[0].read_only = true;
    let mut host = Host::with_io(options);
    ram.bytes().fill(7);
    let mut buf = host.alloc(4096);
    buf.write_at(0, dsm::Range::new(0, 8).as_bytes());
    let prp = |command: Command| command.with_prp(iova(&buf), 0);
    let commands = [
        prp(Command::write(1, 0, 8, 0)),
        Command::write_zeroes(1, 0, 8, 0),
        prp(Command::dataset_management(1, 1, dsm::AD)),
        prp(Command::copy(1, 0, 1, 0)),
    ];
    for command in commands {
        assert_eq!(host.status(1, command), Status::NAMESPACE_WRITE_PROTECTED);
    }
    assert!(host.run(1, prp(Command::read(1, 0, 8))).status().is_success());
    assert!(ram.bytes().iter().all(|&b| b == 7));
    assert_eq!(host.page(Command::identify(0, 1, 0))[99], 1);
}

#[test]
fn faults_become_statuses() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    let buf = host.alloc(4096);
    let read = Command::read(1, 4, 8).with_prp(iova(&buf), 0);
    let write = Command::write(1, 4, 8, 0).with_prp(iova(&buf), 0);
    let nvme = Source::Nvme { sct: 2, sc: 0x86, dnr: true, block_shift: 9, words: "" };
    let cases = [
        (read, OpKind::Read, ErrorKind::Media, Source::None, Status::UNRECOVERED_READ_ERROR.dnr()),
        (write, OpKind::Write, ErrorKind::Media, Source::None, Status::WRITE_FAULT.dnr()),
        (write, OpKind::Write, ErrorKind::NoSpace, Source::None, Status::CAPACITY_EXCEEDED.dnr()),
        (read, OpKind::Read, ErrorKind::Gone, Source::None, Status::INTERNAL_ERROR),
        (read, OpKind::Read, ErrorKind::Io, nvme, Status::ACCESS_DENIED.dnr()),
    ];
    for (command, op, kind, source, status) in cases {
        *ram.fail.lock().unwrap() = Some((op, Fault { kind, source, offset: 0 }));
        assert_eq!(host.run(1, command).status(), status);
        assert!(host.run(1, command).status().is_success());
    }
    let smart = host.page(Command::log_page(log::LID_SMART, NSID_ALL, 512, 0, true));
    assert_eq!(smart[160], 2);
    let errors = host.page(Command::log_page(log::LID_ERROR, 0, 64, 0, true));
    assert_eq!(errors[16..24], 4u64.to_le_bytes());
}

/// Queues stay full for thousands of commands, with a node that takes three at a time and an
/// engine of eight slots: everything completes once.
#[test]
fn full_queues_push_back() {
    let (options, ram, _) = options();
    let reactor = host::reactor(8);
    let core = reactor.core().clone();
    let start = async move { Controller::start(&core, options).await };
    let controller = reactor.block_on(start).unwrap().unwrap();
    let mut host = Host::over(reactor, controller);
    host.enable();
    ram.depth.store(3, Ordering::Relaxed);
    for (qid, entries) in [(1, 2), (2, 7), (3, 64)] {
        host.create_io(qid, entries);
    }
    let buf = host.alloc(4096);
    let ranges = host.alloc(4096);
    let mut done = 0;
    for n in 0..3000u64 {
        let command = match n % 5 {
            0 => Command::write(1, n % BLOCKS, 1, 0).with_prp(iova(&buf), 0),
            1 => Command::verify(1, 0, 64),
            2 => Command::dataset_management(1, 4, dsm::AD).with_prp(iova(&ranges), 0),
            _ => Command::read(1, n % BLOCKS, 1).with_prp(iova(&buf), 0),
        };
        let qid = 1 + (n % 3) as u16;
        while host.queue(qid).sq.is_full() {
            host.turns(1);
            for qid in 1..4 {
                host.reap(qid);
                done += host.queue(qid).stash.drain(..).count();
            }
        }
        host.submit(qid, command);
    }
    for _ in 0..20_000 {
        host.turns(1);
        for qid in 1..4 {
            host.reap(qid);
            for completion in host.queue(qid).stash.drain(..) {
                assert!(completion.status().is_success());
                done += 1;
            }
        }
    }
    assert_eq!(done, 3000);
}

/// A host that does not read its completions is not overrun, and loses none.
#[test]
fn completions_wait_for_room() {
    let mut host = Host::ready(options().0);
    let (sq, cq) = (host.pair(1, 64), host.pair(1, 4));
    let (sq_iova, cq_iova) = (sq.sq.words().iova().unwrap(), cq.cq.words().iova().unwrap());
    host.ok(Command::create_cq(1, 4, cq_iova, None));
    host.ok(Command::create_sq(1, 64, sq_iova, 1));
    host.pairs.push(Some(host::Pair { cq: cq.cq, ..sq }));
    let cids: Vec<u16> = (0..60).map(|_| host.push(1, Command::flush(1))).collect();
    host.ring(1);
    host.turns(100);
    let mut seen = Vec::new();
    for _ in 0..60 {
        let pair = host.queue(1);
        let Some(completion) = pair.cq.pop() else {
            host.turns(3);
            continue;
        };
        seen.push(completion.cid());
        let (_, head) = pair.cq.pending().unwrap();
        pair.head.write(head.into());
        pair.cq.rang();
        host.turns(3);
    }
    host.reap(1);
    seen.extend(host.queue(1).stash.drain(..).map(|c| c.cid()));
    seen.sort_unstable();
    assert_eq!(seen, cids);
}

/// One completion queue for several submission queues.
#[test]
fn submission_queues_share_a_completion_queue() {
    let mut host = Host::ready(options().0);
    host.create_io(1, 16);
    let other = host.pair(2, 16);
    host.ok(Command::create_sq(2, 16, other.sq.words().iova().unwrap(), 1));
    host.pairs.push(Some(other));
    let a = host.submit(1, Command::flush(1));
    let b = host.push(2, Command::flush(2));
    host.ring(2);
    host.turns(10);
    let mut got = Vec::new();
    while let Some(completion) = host.queue(1).cq.pop() {
        got.push((completion.sqid(), completion.cid()));
    }
    got.sort_unstable();
    assert_eq!(got, [(1, a), (2, b)]);
}

#[test]
fn deleting_a_queue_waits_for_its_commands() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    ram.hold.store(true, Ordering::Relaxed);
    let buf = host.alloc(4096);
    let cid = host.submit(1, Command::read(1, 0, 8).with_prp(iova(&buf), 0));
    let verify = host.submit(1, Command::verify(1, 0, 8));
    host.turns(5);
    let delete = host.submit(0, Command::delete_sq(1));
    host.turns(20);
    assert!(host.take(0, delete).is_none());
    assert_eq!(host.status(0, Command::delete_sq(1)), Status::INVALID_QID);
    assert_eq!(host.status(0, Command::delete_cq(1)), Status::INVALID_QUEUE_DELETION);
    ram.hold.store(false, Ordering::Relaxed);
    assert!(host.wait(0, delete).status().is_success());
    host.wait(1, cid);
    let status = host.wait(1, verify).status();
    assert!(status.is_success() || status == Status::ABORTED_SQ_DELETION);
    host.ok(Command::delete_cq(1));
    host.create_io(1, 16);
    assert!(host.run(1, Command::flush(1)).status().is_success());
}

#[test]
fn long_commands_wait_for_a_place_and_can_be_aborted_there() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    ram.hold.store(true, Ordering::Relaxed);
    let cids: Vec<u16> = (0..6).map(|_| host.submit(1, Command::verify(1, 0, 8))).collect();
    host.turns(5);
    assert_eq!(host.ok(Command::abort(1, cids[5])), 0);
    assert_eq!(host.wait(1, cids[5]).status(), Status::ABORT_REQUESTED);
    assert_eq!(host.ok(Command::abort(1, cids[0])), 1);
    ram.hold.store(false, Ordering::Relaxed);
    for &cid in &cids[1..5] {
        assert!(host.wait(1, cid).status().is_success());
    }
    let status = host.wait(1, cids[0]).status();
    assert_eq!(status, Status::ABORT_REQUESTED);
}

#[test]
fn several_hundred_namespaces_fit() {
    let ram = Ram::new(4096, 512);
    let node: Arc<oxblock_engine::Node> = ram.node("shared");
    let namespaces = vec![NamespaceOptions::new(node, 512); 300];
    let mut host = Host::with_io(ControllerOptions { namespaces, ..ControllerOptions::default() });
    let list = host.page(Command::identify(2, 297, 0));
    assert_eq!(list[..12], [298u32, 299, 300].map(u32::to_le_bytes).concat());
    assert!(host.run(1, Command::flush(300)).status().is_success());
    assert_eq!(host.status(1, Command::flush(301)), Status::INVALID_NAMESPACE);
}

/// A client with deep queues left no slot of the core to the clients behind it.
#[test]
fn a_controller_keeps_to_its_share_of_slots() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(ControllerOptions { max_in_work: Some(3), ..options });
    ram.hold.store(true, Ordering::Relaxed);
    let buf = host.alloc(4096);
    let read = Command::read(1, 0, 1).with_prp(iova(&buf), 0);
    let cids: Vec<u16> = (0..10).map(|_| host.submit(1, read)).collect();
    host.turns(100);
    assert_eq!(host.reactor.core().stats().slots_used, 3);
    ram.hold.store(false, Ordering::Relaxed);
    for cid in cids {
        assert!(host.wait(1, cid).status().is_success());
    }
}

/// A block that is marked cannot be read until it is written, by whatever writes.
#[test]
fn marked_blocks_cannot_be_read_until_they_are_written() {
    let mut host = Host::with_io(options().0);
    let buf = host.alloc(8192);
    let at = buf.iova().unwrap();
    let nvm = |opcode, slba, blocks| Command::nvm(opcode, 1, slba, blocks, 0).with_prp(at, 0);
    let mark = |slba, blocks| nvm(oxblock_nvme::opcode::nvm::WRITE_UNCORRECTABLE, slba, blocks);
    let read = |slba, blocks| Command::read(1, slba, blocks).with_prp(at, 0);
    let bad = Status::UNRECOVERED_READ_ERROR;
    assert_eq!(host.status(1, mark(255, 2)), Status::LBA_OUT_OF_RANGE);
    assert!(host.run(1, mark(10, 4)).status().is_success());
    assert!(host.run(1, read(6, 4)).status().is_success());
    assert_eq!(host.status(1, read(8, 8)), bad);
    // The error log names the block.
    let log = host.page(Command::log_page(1, oxblock_nvme::NSID_ALL, 64, 0, false));
    assert_eq!(log[16..24], 10u64.to_le_bytes());
    assert_eq!(host.status(1, Command::verify(1, 12, 1)), bad);
    let write = Command::write(1, 10, 2, 0).with_prp(at, 0);
    assert!(host.run(1, write).status().is_success());
    assert!(host.run(1, read(10, 2)).status().is_success());
    assert_eq!(host.status(1, read(10, 3)), bad);
    assert!(host.run(1, Command::write_zeroes(1, 12, 2, 0)).status().is_success());
    assert!(host.run(1, read(8, 8)).status().is_success());
    // It is the namespace's, and stays over resets of the controller.
    assert!(host.run(1, mark(0, 1)).status().is_success());
    host.disable();
    host.enable();
    host.create_io(1, 64);
    assert_eq!(host.status(1, read(0, 1)), bad);
    assert!(host.run(1, Command::flush(1)).status().is_success());
}
