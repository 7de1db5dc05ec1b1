//! Rows 1, 10 to 18, 25 and 35: commands and completions.

use std::rc::Rc;

use oxblock_engine::{ErrorKind, MemoryRule, Op, OpFlags, Pass, Queue, Request, Source, Token};
use oxblock_mem::{Buf, IoVector};
use oxblock_nvme::command::{DEAC, FUA};
use oxblock_nvme::identify::Namespace;
use oxblock_nvme::opcode::nvm;
use oxblock_nvme::status::Status;
use oxblock_nvme::{Completion, queue::Words};

use super::device::{Seen, State};
use super::{Rig, kind};

/// A queue of namespace 1, to be driven by hand.
fn queue(rig: &mut Rig) -> Box<dyn Queue> {
    let (_, node) = rig.node();
    rig.run(|core| async move { node.driver().expect("a leaf").queue(&core).await })
        .expect("a queue")
}

fn read(token: u64, offset: u64, data: &IoVector) -> Request<'_> {
    Request {
        token: Token(token),
        kind: oxblock_engine::OpKind::Read,
        flags: OpFlags::empty(),
        offset,
        len: data.len() as u64,
        data: data.view(0, data.len()),
    }
}

fn done(pass: &mut Pass) -> Vec<(u64, bool)> {
    pass.drain().map(|(token, result)| (token.0, result.is_ok())).collect()
}

#[test]
fn data_arrives_where_it_should() {
    let mut rig = Rig::new(|_| {});
    let (_, channel) = rig.open();
    for (n, len) in [512, 4096, 8192, 12_288, 65_536, 1 << 20].into_iter().enumerate() {
        let mut buf = rig.buf(len);
        let bytes: Vec<u8> = (0..len).map(|i| (i / 7 + n) as u8).collect();
        buf.write_at(0, &bytes);
        let written = rig.op(&channel, Op::write(n as u64 * 512, buf));
        assert_eq!(written.result, Ok(()));
        let op = Op::read(n as u64 * 512, rig.buf(len));
        let back = rig.op(&channel, op);
        assert_eq!(back.result, Ok(()));
        let mut found = vec![0; len];
        back.op.data.read_at(0, &mut found);
        assert!(found == bytes, "{len} bytes");
        assert!(rig.device.state().disk[n * 512..n * 512 + len] == bytes[..]);
    }
}

/// Rows 8 and 10: the device looks at what it gets.
#[test]
fn transfers_stay_within_mdts_and_noiob() {
    let mut rig = Rig::new(|state| {
        state.controller.mdts = 2;
        let page = state.namespaces.get_mut(&1).unwrap();
        page.noiob = 21.into();
    });
    let (_, channel) = rig.open();
    for (offset, len) in [(0, 1 << 20), (5 * 512, 65_536), (20 * 512, 1024), (21 * 512, 21 * 512)] {
        let op = Op::read(offset, rig.buf(len));
        assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
    }
    let state = rig.device.state();
    let mut blocks = 0;
    for command in state.io() {
        assert!(command.blocks() <= 32, "MDTS is 16 KiB");
        let last = command.slba() + u64::from(command.blocks()) - 1;
        assert_eq!(command.slba() / 21, last / 21, "crosses a boundary of 21 blocks");
        blocks += command.blocks();
    }
    assert_eq!(blocks as usize, ((1 << 20) + 65_536 + 1024) / 512 + 21);
}

/// Row 11: pieces that PRPs cannot describe arrive whole, and the device sees only PRPs by the
/// rules, which its own walk checks.
#[test]
fn prps_follow_the_rules_whatever_the_pieces() {
    let mut rig = Rig::new(|_| {});
    let (_, channel) = rig.open();
    let lists: [&[(usize, usize)]; 5] = [
        &[(0, 4096), (0, 4096), (0, 512)],
        &[(512, 3584), (0, 8192), (0, 1024)],
        &[(4, 508), (4, 4)],
        &[(3, 1024)],
        &[(2048, 1024), (1024, 2048), (100, 1024)],
    ];
    for list in lists {
        check_pieces(&mut rig, &channel, list);
    }
    let state = rig.device.state();
    assert!(state.io().iter().all(|command| command.psdt() == 0), "no SGLs were offered");
}

/// Row 12.
#[test]
fn sgls_carry_what_prps_can_not() {
    for (sgls, alignment) in [(1, 1), (2, 4)] {
        let mut rig = Rig::new(|state| state.controller.sgls = sgls.into());
        let (_, channel) = rig.open();
        let expected = MemoryRule::Dma { segment_align: alignment, prp_page: None };
        assert_eq!(channel.limits().memory, expected);
        check_pieces(&mut rig, &channel, &[(2048, 1024), (1024, 2048), (100, 1024)]);
        check_pieces(&mut rig, &channel, &[(0, 65_536)]);
        check_pieces(&mut rig, &channel, &[(512, 512); 100]);
        let before = rig.device.state().io().len();
        check_pieces(&mut rig, &channel, &[(0, 4096)]);
        let io = rig.device.state().io();
        let (odd, page) = io.split_at(before);
        assert!(odd.iter().all(|command| command.psdt() == 1));
        assert!(page.iter().all(|command| command.psdt() == 0), "two PRPs are cheaper");
        assert!(odd.len() <= 8, "one command each way, as the pieces fit a segment");
    }
}

/// Row 12: the option to do without.
#[test]
fn sgls_can_be_switched_off() {
    let mut rig = Rig::new(|state| state.controller.sgls = 1.into());
    rig.options.sgl = false;
    let (_, channel) = rig.open();
    check_pieces(&mut rig, &channel, &[(2048, 1024), (1024, 2048), (100, 1024)]);
    assert!(rig.device.state().io().iter().all(|command| command.psdt() == 0));
}

/// Writes and reads through pieces at these offsets of pages, of these lengths.
fn check_pieces(rig: &mut Rig, channel: &Rc<oxblock_engine::Channel>, list: &[(usize, usize)]) {
    let pieces = |rig: &Rig| -> Vec<Buf> {
        let piece = |(skip, len): &(usize, usize)| {
            let mut whole = rig.buf(skip + len);
            whole.split_off(*skip)
        };
        list.iter().map(piece).collect()
    };
    let mut data = IoVector::from(pieces(rig));
    let bytes: Vec<u8> = (0..data.len()).map(|i| (i * 31 / 5) as u8 ^ 0x5a).collect();
    data.write_at(0, &bytes);
    assert_eq!(rig.op(channel, Op::write(1024, data)).result, Ok(()), "{list:?}");
    let back = rig.op(channel, Op::read(1024, IoVector::from(pieces(rig))));
    assert_eq!(back.result, Ok(()), "{list:?}");
    let mut found = vec![0; bytes.len()];
    back.op.data.read_at(0, &mut found);
    assert!(found == bytes, "{list:?}");
}

/// Row 13.
#[test]
fn a_full_queue_is_busy_with_one_slot_empty() {
    let mut rig = Rig::new(|state| state.cap = state.cap.with_mqes(3));
    let mut queue = queue(&mut rig);
    rig.device.state().hold = true;
    let (mut pass, data) = (Pass::new(16), IoVector::from(rig.buf(512)));
    for token in 0..3 {
        assert!(queue.submit(&read(token, token * 512, &data), &mut pass).is_ok());
    }
    assert!(queue.submit(&read(3, 0, &data), &mut pass).is_err(), "three of four slots");
    queue.kick(&mut pass);
    assert_eq!((queue.in_flight(), queue.poll(&mut pass)), (3, 0));
    assert!(queue.submit(&read(3, 0, &data), &mut pass).is_err());
    rig.device.release();
    assert_eq!(queue.poll(&mut pass), 3);
    assert_eq!(done(&mut pass), [(0, true), (1, true), (2, true)]);
    assert!(queue.submit(&read(3, 0, &data), &mut pass).is_ok());
    let doorbells = |state: &State| {
        let tail = |seen: &&Seen| matches!(seen, Seen::Doorbell(1, false, _));
        state.seen.iter().filter(tail).count()
    };
    assert_eq!(doorbells(&rig.device.state()), 1, "one doorbell for three commands");
}

/// Row 13: what found no room waits in order.
#[test]
fn a_full_queue_keeps_the_order() {
    let mut rig = Rig::new(|state| state.cap = state.cap.with_mqes(1));
    let (_, channel) = rig.open();
    rig.device.state().hold = true;
    let waiting: Vec<_> = (0..20)
        .map(|n| {
            let op = Op::read(n * 512, rig.buf(512));
            rig.start(&channel, op)
        })
        .collect();
    assert_eq!(rig.device.state().io().len(), 1);
    rig.device.release();
    rig.turns(500);
    for cell in waiting {
        assert_eq!(kind(&cell.take().expect("done")), Ok(()));
    }
    let order: Vec<u64> = rig.device.state().io().iter().map(|command| command.slba()).collect();
    assert_eq!(order, (0..20).collect::<Vec<u64>>());
}

/// Row 14: a completion whose phase tag has not come is not there, whatever else of it is.
#[test]
fn a_torn_completion_waits_for_its_phase() {
    let mut rig = Rig::new(|_| {});
    let mut queue = queue(&mut rig);
    rig.device.state().hold = true;
    let (mut pass, data) = (Pass::new(16), IoVector::from(rig.buf(512)));
    queue.submit(&read(7, 0, &data), &mut pass).unwrap();
    queue.kick(&mut pass);
    let (sqid, command) = rig.device.state().held[0];
    rig.device.state().post_torn(sqid, command.cid(), 0);
    assert_eq!((queue.poll(&mut pass), queue.in_flight()), (0, 1));
    rig.device.release();
    assert_eq!((queue.poll(&mut pass), queue.in_flight()), (1, 0));
    assert_eq!(done(&mut pass), [(7, true)]);
}

/// Row 15: out of range, idle, doubled, of an older generation; each counted, none believed.
#[test]
fn wrong_identifiers_are_counted_and_ignored() {
    let mut rig = Rig::new(|state| state.cap = state.cap.with_mqes(7));
    let (controller, node) = rig.node();
    let queue = rig.run(|core| async move { node.driver().expect("a leaf").queue(&core).await });
    let (mut queue, mut pass) = (queue.unwrap(), Pass::new(16));
    let data = IoVector::from(rig.buf(512));
    rig.device.state().hold = true;
    let mut old = None;
    for round in 0..100 {
        queue.submit(&read(round, 0, &data), &mut pass).unwrap();
        queue.kick(&mut pass);
        let (sqid, command) = rig.device.state().held[0];
        let cid = command.cid();
        assert_ne!(Some(cid), old, "each use has another generation");
        let wrong = [0x3ff, 0xffff, cid ^ 1, cid ^ 0x400, cid.wrapping_add(0x8000)];
        for lie in wrong.into_iter().chain(old).take(5) {
            rig.device.state().post(sqid, lie, Status::SUCCESS, 0);
            assert_eq!((queue.poll(&mut pass), queue.in_flight()), (0, 1), "{lie:#x}");
        }
        assert_eq!(done(&mut pass), []);
        let mut state = rig.device.state();
        state.post(sqid, cid, Status::SUCCESS, 0);
        state.post(sqid, cid, Status::SUCCESS, 0);
        state.held.clear();
        drop(state);
        assert_eq!(queue.poll(&mut pass), 1);
        assert_eq!(done(&mut pass), [(round, true)]);
        assert_eq!(controller.stats().bad_cid, (round + 1) * 6);
        old = Some(cid);
    }
}

#[test]
fn completions_for_another_queue_are_counted_and_ignored() {
    let mut rig = Rig::new(|_| {});
    let (controller, channel) = rig.open();
    rig.device.state().mangle = Some(Box::new(|entry| {
        let other = Completion::new(0, entry.sqhd(), 9, entry.cid(), Status::SUCCESS);
        vec![other, entry]
    }));
    let op = Op::read(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
    assert_eq!(controller.stats().bad_sqid, 1);
}

/// Row 16: heads that cannot be are counted and not believed; the ring goes on, and no command is
/// written over one that the device has yet to fetch (the device would answer with the wrong LBA).
#[test]
fn a_wrong_head_is_counted_and_not_believed() {
    for lie in [0x7fff, 0xffff, 8, 7] {
        let mut rig = Rig::new(|state| state.cap = state.cap.with_mqes(7));
        let (controller, channel) = rig.open();
        rig.device.state().mangle = Some(Box::new(move |entry| {
            let cid = entry.cid();
            vec![Completion::new(0, lie, entry.sqid(), cid, entry.status())]
        }));
        for n in 0..50 {
            let op = Op::read(n * 512, rig.buf(512));
            assert_eq!(kind(&rig.op(&channel, op)), Ok(()), "SQHD {lie:#x}, command {n}");
        }
        assert!(controller.stats().bad_sqhd >= 30, "{:?}", controller.stats());
        let order: Vec<u64> = rig.device.state().io().iter().map(|c| c.slba()).collect();
        assert_eq!(order, (0..50).collect::<Vec<u64>>());
    }
}

/// Row 18: the register is written only where the controller asked for it, and what a queue left
/// in the shadow pages is gone with it.
#[test]
fn shadow_doorbells_spare_registers_and_end_with_their_queue() {
    let mut rig = Rig::new(|state| state.controller.oacs = 0x100.into());
    let (controller, node) = rig.node();
    assert!(controller.identity().shadow_doorbells);
    let queue = rig.run(|core| async move { node.driver().expect("a leaf").queue(&core).await });
    let (mut queue, mut pass) = (queue.unwrap(), Pass::new(16));
    let data = IoVector::from(rig.buf(512));
    let tails = |rig: &Rig| {
        let tail = |seen: &&Seen| matches!(seen, Seen::Doorbell(1, false, _));
        rig.device.state().seen.iter().filter(tail).count()
    };
    for n in 0..20 {
        queue.submit(&read(n, 0, &data), &mut pass).unwrap();
        queue.kick(&mut pass);
        rig.device.state().poll_shadows();
        assert_eq!(queue.poll(&mut pass), 1, "command {n}");
    }
    assert_eq!(tails(&rig), 1, "EventIdx was passed once, at the start");
    let [shadow, event_index] = rig.device.state().shadow.clone().expect("pages");
    let order = std::sync::atomic::Ordering::Relaxed;
    assert_eq!(shadow.load32(2, order), 20);
    event_index.store32(2, 20, order);
    queue.submit(&read(20, 0, &data), &mut pass).unwrap();
    queue.kick(&mut pass);
    assert_eq!(tails(&rig), 2, "rung because the controller armed EventIdx");
    assert_eq!(queue.poll(&mut pass), 1);
    while !queue.quiesce(&mut pass) {
        rig.turns(1);
    }
    for index in 2..4 {
        assert_eq!((shadow.load32(index, order), event_index.load32(index, order)), (0, 0));
    }
}

/// Row 18: a controller that refuses is driven by registers.
#[test]
fn shadow_doorbells_may_be_refused() {
    let mut rig = Rig::new(|state| {
        state.controller.oacs = 0x100.into();
        let opcode = oxblock_nvme::opcode::admin::DOORBELL_BUFFER_CONFIG;
        state.refused.insert(opcode, (Status::INTERNAL_ERROR, 1));
    });
    let (controller, channel) = rig.open();
    assert!(!controller.identity().shadow_doorbells);
    let op = Op::read(0, rig.buf(512));
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
}

/// Row 25: every type with code 0 but the generic one is an error, and says which.
#[test]
fn status_type_and_code_count_together() {
    let mut rig = Rig::new(|_| {});
    let (_, channel) = rig.open();
    for sct in 1..8 {
        rig.device.state().failed = [(nvm::READ, Status::new(sct, 0).dnr())].into();
        let op = Op::read(8192, rig.buf(512));
        let fault = rig.op(&channel, op).result.unwrap_err();
        let Source::Nvme { sct: t, sc: 0, dnr: true, .. } = fault.source else {
            panic!("{fault:?}")
        };
        assert_eq!(t, sct);
    }
    rig.device.state().failed = [(nvm::READ, Status::UNRECOVERED_READ_ERROR)].into();
    let op = Op::read(8192, rig.buf(512));
    let fault = rig.op(&channel, op).result.unwrap_err();
    assert_eq!((fault.kind, fault.offset), (ErrorKind::Media, 8192));
    let op = Op::compare(0, rig.buf(512));
    rig.device.state().failed.clear();
    let fault = rig.op(&channel, op).result;
    assert_eq!(fault.unwrap_err().kind, ErrorKind::Mismatch);
}

/// Row 35: with a volatile cache every flush is a command; without, none is needed. FUA is always
/// the device's.
#[test]
fn flushes_are_sent_and_fua_is_passed_on() {
    for vwc in [0, 1] {
        let mut rig = Rig::new(|state| state.controller.vwc = vwc);
        let (_, channel) = rig.open();
        assert_eq!(rig.op(&channel, Op::flush()).result, Ok(()));
        let op = Op::write(0, rig.buf(512)).fua();
        assert_eq!(rig.op(&channel, op).result, Ok(()));
        let op = Op::write(0, rig.buf(512));
        assert_eq!(rig.op(&channel, op).result, Ok(()));
        assert_eq!(rig.op(&channel, Op::write_zeroes(0, 512).fua()).result, Ok(()));
        let io = rig.device.state().io();
        let flushes = io.iter().filter(|command| command.opcode() == nvm::FLUSH).count();
        assert_eq!(flushes, usize::from(vwc), "{io:?}");
        let fua: Vec<bool> = io
            .iter()
            .filter(|command| command.opcode() != nvm::FLUSH)
            .map(|command| command.cdw12() & FUA != 0)
            .collect();
        assert_eq!(fua, [true, false, true]);
        // A flush that fails is not a success.
        rig.device.state().failed = [(nvm::FLUSH, Status::INTERNAL_ERROR)].into();
        assert_eq!(rig.op(&channel, Op::flush()).result.is_ok(), vwc == 0);
    }
}

#[test]
fn zeroes_and_discards_use_what_the_device_has() {
    let mut rig = Rig::new(|state| {
        state.nvm.dmrl = 4;
        state.nvm.dmrsl = 100.into();
        state.nvm.wzsl = 2;
        state.namespaces.get_mut(&1).unwrap().dlfeat = Namespace::DEAC;
    });
    let (_, channel) = rig.open();
    assert_eq!(rig.op(&channel, Op::write_zeroes(0, 20_480)).result, Ok(()));
    let unmap = Op::write_zeroes(512, 512).flags(OpFlags::MAY_UNMAP);
    assert_eq!(rig.op(&channel, unmap).result, Ok(()));
    let io = rig.device.state().io();
    assert_eq!(io.iter().map(|c| c.blocks()).collect::<Vec<_>>(), [32, 8, 1]);
    assert_eq!(io[0].cdw12() & DEAC, 0);
    assert_eq!(io[2].cdw12() & DEAC, DEAC);

    rig.device.state().seen.clear();
    rig.device.state().hold = true;
    let cell = rig.start(&channel, Op::discard(5 * 512, 750 * 512));
    let held: Vec<_> = rig.device.state().held.iter().map(|(_, command)| *command).collect();
    assert_eq!(held.len(), 2, "four ranges of a hundred blocks each, then the rest");
    assert_eq!(held[0].cdw11(), 4, "deallocate");
    let mut state = rig.device.state();
    let first = state.ranges(&held[0]);
    assert_eq!(first, [(5, 100), (105, 100), (205, 100), (305, 100)]);
    assert_eq!(state.ranges(&held[1]), [(405, 100), (505, 100), (605, 100), (705, 50)]);
    drop(state);
    rig.device.release();
    rig.turns(100);
    assert_eq!(kind(&cell.take().expect("done")), Ok(()));
}

/// The ring of a dead device stays full, because nobody says that its commands were fetched. What
/// waited for room in it waited for ever; random completions (fuzz.rs) found it.
#[test]
fn what_waits_for_room_fails_with_the_device() {
    let mut rig = Rig::new(|state| state.cap = state.cap.with_mqes(1));
    let (_, channel) = rig.open();
    rig.device.state().hold = true;
    let cells: Vec<_> = (0..10)
        .map(|n| {
            let op = Op::read(n * 512, rig.buf(512));
            rig.start(&channel, op)
        })
        .collect();
    rig.device.state().gone = true;
    rig.wait_ms(150);
    for cell in cells {
        assert_eq!(kind(&cell.take().expect("failed by now")), Err(ErrorKind::Gone));
    }
}

/// Row 1.
#[test]
fn a_device_that_goes_fails_all_io_and_is_left_alone() {
    let mut rig = Rig::new(|_| {});
    let (controller, channel) = rig.open();
    rig.device.state().hold = true;
    let cells: Vec<_> = (0..5)
        .map(|n| {
            let op = Op::read(n * 512, rig.buf(512));
            rig.start(&channel, op)
        })
        .collect();
    rig.device.state().gone = true;
    rig.wait_ms(150);
    for cell in cells {
        assert_eq!(kind(&cell.take().expect("failed by now")), Err(ErrorKind::Gone));
    }
    let mmio = rig.device.state().mmio;
    for n in 0..5 {
        let op = Op::write(n * 512, rig.buf(512));
        assert_eq!(kind(&rig.op(&channel, op)), Err(ErrorKind::Gone));
    }
    rig.wait_ms(1000);
    let ended = controller.clone();
    rig.run(|core| async move { ended.shutdown(&core).await }).expect("it ended by itself");
    assert_eq!(rig.device.state().mmio, mmio, "no access after it was found gone");
}

/// Row 9: protection information that the controller inserts and strips. The commands ask for it,
/// and their first reference tag is the low half of the address.
#[test]
fn protection_is_left_to_the_controller() {
    use oxblock_nvme::command::{PRACT, PRCHK_GUARD, PRCHK_REF, PRINFO};
    for (kind_of_pi, extended, checks, tag) in [
        (1, false, PRCHK_GUARD | PRCHK_REF, 8),
        (2, true, PRCHK_GUARD | PRCHK_REF, 8),
        (3, false, PRCHK_GUARD, 0),
    ] {
        let mut rig = Rig::new(|state| {
            state.controller.oncs = 0x0d.into();
            let namespace = state.namespaces.get_mut(&1).expect("namespace 1");
            (namespace.lbaf[0].ms, namespace.dps) = (8.into(), kind_of_pi);
            namespace.flbas = u8::from(extended) << 4;
        });
        let (controller, channel) = rig.open();
        assert!(!controller.namespace(1).expect("namespace 1").limits().compare);
        for op in [
            Op::write(8 * 512, rig.buf(4096)),
            Op::read(8 * 512, rig.buf(4096)),
            Op::write_zeroes(8 * 512, 4096),
        ] {
            assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
        }
        let asked: Vec<(u32, u32)> = rig
            .device
            .state()
            .io()
            .iter()
            .map(|command| {
                assert_eq!(
                    (command.mptr(), command.blocks()),
                    (0, 8),
                    "no metadata is transferred"
                );
                (command.cdw12() & PRINFO, command.cdw14())
            })
            .collect();
        assert_eq!(asked, [(PRACT | checks, tag), (PRACT | checks, tag), (PRACT, tag)]);
        let status = oxblock_nvme::status::Status::GUARD_CHECK_ERROR;
        rig.device.state().failed.insert(oxblock_nvme::opcode::nvm::READ, status);
        let op = Op::read(0, rig.buf(512));
        assert_eq!(kind(&rig.op(&channel, op)), Err(ErrorKind::Protection));
    }
    // Without it nothing is asked for.
    let mut rig = Rig::new(|_| {});
    let (_, channel) = rig.open();
    let op = Op::write(8 * 512, rig.buf(4096));
    assert_eq!(kind(&rig.op(&channel, op)), Ok(()));
    let command = rig.device.state().io()[0];
    assert_eq!((command.cdw12() & PRINFO, command.cdw14()), (0, 0));
}
