use std::sync::atomic::Ordering;

use oxblock_nvme::command::DataPointer;
use oxblock_nvme::queue::SubmissionQueue;
use oxblock_nvme::sgl::Descriptor;
use oxblock_nvme::{Command, Status, dsm, regs};

use super::{BLOCKS, options};
use crate::host::Host;

/// Longest time that a command may take, in turns of the reactor.
const PATIENCE: usize = 50;

#[test]
fn prps_that_lie_touch_nothing() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    ram.bytes().fill(0xa5);
    let guard = host.alloc(4096);
    let mut list = host.alloc(4096);
    let here = guard.iova().unwrap();
    let lists = list.iova().unwrap();
    let read = |blocks: u32| Command::read(1, 0, blocks);
    let outside = 0x7fff_ffff_f000;
    let cases = [
        (read(1).with_prp(outside, 0), Status::DATA_TRANSFER_ERROR),
        (read(1).with_prp(u64::MAX - 3, 0), Status::DATA_TRANSFER_ERROR),
        (read(1).with_prp(u64::MAX - 4095, 0), Status::DATA_TRANSFER_ERROR),
        (read(1).with_prp(here + 1, 0), Status::PRP_OFFSET_INVALID),
        (read(16).with_prp(here, here + 4), Status::PRP_OFFSET_INVALID),
        (read(16).with_prp(here, outside), Status::DATA_TRANSFER_ERROR),
        (read(32).with_prp(here, outside), Status::DATA_TRANSFER_ERROR),
        (read(32).with_prp(here, lists + 4), Status::PRP_OFFSET_INVALID),
        (read(32).with_prp(here, u64::MAX - 7), Status::DATA_TRANSFER_ERROR),
    ];
    for (command, status) in cases {
        assert_eq!(host.status(1, command), status, "{command:?}");
    }
    for entry in [1, 8, outside, u64::MAX, here + 8] {
        (0..512).for_each(|n| list.write_at(n * 8, &entry.to_le_bytes()));
        let status = host.status(1, read(64).with_prp(outside & !0xfff, lists));
        assert!(!status.is_success());
        let status = host.status(1, read(64).with_prp(here, lists));
        assert!(!status.is_success(), "{entry:#x}");
    }
    // A range that begins in the host's memory and ends past it.
    let end = host.arena.region().iova().unwrap() + host.arena.region().len() as u64;
    let sgl = DataPointer::Sgl(Descriptor::data(end - 512, 1024));
    assert_eq!(host.status(1, read(2).with_data(sgl)), Status::DATA_TRANSFER_ERROR);
    let sgl = DataPointer::Sgl(Descriptor::data(u64::MAX - 511, 1024));
    assert_eq!(host.status(1, read(2).with_data(sgl)), Status::SGL_LENGTH_INVALID);
}

/// A segment that links to itself, and one that says it has four billion descriptors.
#[test]
fn sgls_without_end_are_cut_short() {
    let (options, ..) = options();
    let mut host = Host::with_io(options);
    let mut segment = host.alloc(4096);
    let at = segment.iova().unwrap();
    let read = |sgl| Command::read(1, 0, 8).with_data(DataPointer::Sgl(sgl));
    let empty = Descriptor::data(at, 0);
    (0..255).for_each(|n| {
        segment.write_at(n * 16, &empty.0[0].to_le_bytes());
        segment.write_at(n * 16 + 8, &empty.0[1].to_le_bytes());
    });
    let link = Descriptor::new(2, at, 4096);
    segment.write_at(4080, &link.0[0].to_le_bytes());
    segment.write_at(4088, &link.0[1].to_le_bytes());
    assert_eq!(host.status(1, read(link)), Status::INVALID_SGL_COUNT);
    let huge = Descriptor::new(3, at, 0xffff_fff0);
    assert_eq!(host.status(1, read(huge)), Status::INVALID_SGL_COUNT);
    for bad in [Descriptor::new(3, at, 0), Descriptor::new(3, at, 17)] {
        assert_eq!(host.status(1, read(bad)), Status::INVALID_SGL_SEGMENT);
    }
    for kind in [4, 5, 6, 0xf] {
        assert_eq!(host.status(1, read(Descriptor::new(kind, at, 4096))), Status::SGL_TYPE_INVALID);
    }
}

/// Another host thread changes a command while it waits in the ring: what was checked is what
/// is used, since the entry is copied once.
#[test]
fn a_command_that_changes_after_its_fetch_changes_nothing() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    ram.bytes().fill(1);
    ram.hold.store(true, Ordering::Relaxed);
    let buf = host.alloc(4096);
    let write = Command::write(1, 0, 8, 0).with_prp(buf.iova().unwrap(), 0);
    let cid = host.submit(1, write);
    host.turns(3);
    let words = host.queue(1).sq.words();
    (0..8).for_each(|n| words.u64(n).store(u64::MAX, Ordering::Relaxed));
    ram.hold.store(false, Ordering::Relaxed);
    assert!(host.wait(1, cid).status().is_success());
    assert!(ram.bytes()[..4096].iter().all(|&b| b == 0));
    assert_eq!(ram.bytes()[4096], 1);
}

/// The tail runs ahead of what the host has written: stale entries are commands like others.
#[test]
fn a_tail_that_runs_ahead_replays_old_entries_at_worst() {
    let (options, ..) = options();
    let mut host = Host::with_io(options);
    host.run(1, Command::flush(1));
    for lap in 0..200u32 {
        host.queue(1).tail.write(lap * 37 % 64);
        host.turns(5);
        let pair = host.queue(1);
        while pair.cq.pop().is_some() {}
        if let Some((_, head)) = pair.cq.pending() {
            pair.head.write(head.into());
            pair.cq.rang();
        }
    }
    host.page(Command::identify(1, 0, 0));
}

/// The head doorbell says that completions were read which were never posted.
#[test]
fn a_head_that_lies_is_ignored() {
    let mut host = Host::ready(options().0);
    host.create_io(1, 4);
    for lie in [1, 3, 4, 0xffff, u32::MAX] {
        host.queue(1).head.write(lie);
        host.turns(3);
    }
    host.queue(1).head.write(0);
    for _ in 0..20 {
        assert!(host.run(1, Command::flush(1)).status().is_success());
    }
}

/// Two queues over the same memory, and a submission queue that is its own completion queue:
/// nonsense comes out, and nothing else happens.
#[test]
fn queues_that_overlap_are_the_hosts_affair() {
    let mut host = Host::ready(options().0);
    let cells = host.cells(8192);
    let at = cells.iova().unwrap();
    host.ok(Command::create_cq(1, 16, at, None));
    host.ok(Command::create_sq(1, 16, at, 1));
    let mut sq = SubmissionQueue::new(cells, 16).unwrap();
    for _ in 0..15 {
        sq.push(&Command::flush(1));
    }
    let bell = host.reg32(regs::doorbell_offset(1, false, 0));
    for tail in [15, 3, 9, 0, 8] {
        bell.write(tail);
        host.turns(PATIENCE);
    }
    host.page(Command::identify(1, 0, 0));
    host.ok(Command::delete_sq(1));
}

/// Reads whose data are the queue that they came in.
#[test]
fn data_may_land_on_the_queues() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    ram.bytes().fill(0xff);
    let (sq, cq) = {
        let pair = host.queue(1);
        (pair.sq.words().iova().unwrap(), pair.cq.words().iova().unwrap())
    };
    for at in [sq, cq] {
        host.submit(1, Command::read(1, 0, 8).with_prp(at, 0));
        host.turns(PATIENCE);
        host.queue(1).tail.write(40);
        host.turns(PATIENCE);
    }
    host.page(Command::identify(1, 0, 0));
    host.disable();
    host.enable();
}

#[test]
fn doorbells_and_registers_take_any_access() {
    let (options, ..) = options();
    let mut host = Host::with_io(options);
    let len = host.bar.len();
    for offset in (0..len + 64).step_by(4) {
        host.bar.read32(offset);
        host.bar.read64(offset);
        // All but CC, which would rightly reset the controller.
        if offset != regs::CC && offset != regs::CC - 4 {
            host.bar.write32(offset, 0xffff_ffff);
            if offset % 8 == 0 {
                host.bar.write64(offset, u64::MAX);
            }
        }
    }
    for offset in [1, 2, 3, 5, u64::MAX, u64::MAX - 7] {
        assert_eq!(host.bar.read32(offset), u32::MAX);
        host.bar.write32(offset, 0);
        host.bar.write64(offset, 0);
    }
    host.turns(PATIENCE);
    host.queue(0).tail.write(0);
    host.queue(1).tail.write(0);
    host.queue(0).head.write(0);
    host.turns(PATIENCE);
    assert!(!host.csts().cfs());
}

/// Ranges whose sum overflows every counter.
#[test]
fn deallocations_of_everything_twice_are_refused() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    let mut buf = host.alloc(4096);
    for range in [
        dsm::Range::new(0, u32::MAX),
        dsm::Range::new(u64::MAX, u32::MAX),
        dsm::Range::new(u64::MAX - 5, 10),
        dsm::Range::new(BLOCKS, 1),
        dsm::Range::new(1 << 63, 1),
    ] {
        buf.write_at(0, zerocopy::IntoBytes::as_bytes(&range));
        let command = Command::dataset_management(1, 1, dsm::AD).with_prp(buf.iova().unwrap(), 0);
        assert_eq!(host.status(1, command), Status::LBA_OUT_OF_RANGE);
    }
    assert_eq!(ram.discards.load(Ordering::Relaxed), 0);
}

/// The host unmaps the data of a command that is in the engine. The memory stays until the
/// command has ended; afterwards nothing holds it.
#[test]
fn data_unmapped_in_flight_stays_valid() {
    let (options, ram, _) = options();
    let mut host = Host::with_io(options);
    ram.hold.store(true, Ordering::Relaxed);
    let buf = host.alloc(4096);
    host.submit(1, Command::read(1, 0, 8).with_prp(buf.iova().unwrap(), 0));
    host.turns(5);
    drop(buf);
    drop(host.attachment.take());
    host.until("fatal", |host| host.csts().cfs());
    assert_eq!(host.controller.iommu().mappings(), 0);
    ram.hold.store(false, Ordering::Relaxed);
    host.reg32(regs::CC).write(0);
    host.until("reset", |host| host.csts().0 == 0);
}

/// Without bus mastering the controller reaches no memory at all.
#[test]
fn bus_mastering_is_obeyed() {
    let mut host = Host::with_io(options().0);
    let command = host.function.config().read16(4).unwrap();
    host.function.config().write16(4, command & !4).unwrap();
    host.until("fatal", |host| host.csts().cfs());
    host.function.config().write16(4, command).unwrap();
    host.disable();
    host.enable();
}
