//! Rows 11 to 18: how commands and completions travel.

use std::rc::Rc;
use std::time::Duration;

use oxblock_engine::Op;
use oxblock_mem::{Buf, IoVector};
use oxblock_nvme::opcode::nvm;
use oxblock_nvmet::fault::CompletionFault;

use super::{Driven, Rig, Row, every};

pub const ROWS: &[Row] = &[
    (11, "all bytes arrive, whatever the pieces", prps),
    (12, "used where they are, all bytes arrive", sgls),
    (13, "what waits goes on in order", full_queue),
    (14, "read when it is whole", torn),
    (15, "counted and ignored, all I/O ends once", wrong_identifiers),
    (16, "counted, not believed", wrong_head),
    (17, "no command is fetched before it is written (proven with loom)", all_cores),
    (18, "used, and taken away with their queue", shadow_doorbells),
];

/// Lists of pieces between these places of a buffer.
const CUTS: [&[usize]; 5] =
    [&[0, 65_536], &[512, 65_536], &[4, 4100, 8196, 24_580], &[1, 1025, 3073], &[0, 512, 9216]];

fn pieces(mut whole: Buf, at: &[usize]) -> IoVector {
    let mut pieces: Vec<Buf> = at.iter().rev().map(|place| whole.split_off(*place)).collect();
    // What lies behind the last place.
    pieces.remove(0);
    let mut list = IoVector::new();
    pieces.into_iter().rev().for_each(|piece| list.push(piece));
    list
}

fn odd_pieces(rig: &mut Rig, driven: &Driven) {
    for cuts in CUTS {
        let mut data = pieces(rig.buf(64 << 10), cuts);
        let bytes: Vec<u8> = (0..data.len()).map(|at| (at % 241) as u8).collect();
        data.write_at(0, &bytes);
        rig.op(driven, Op::write(1 << 20, data)).expect("a write");
        let (channel, list) = (driven.channel.clone(), pieces(rig.buf(64 << 10), cuts));
        let ended = rig.run(|_| async move { channel.run(Op::read(1 << 20, list)).await });
        ended.result.expect("a read");
        assert_eq!(ended.op.data.whole().compare(&bytes), None, "{cuts:?}");
    }
}

fn prps() {
    let mut rig = Rig::new();
    rig.options.sgl = false;
    let driven = rig.open();
    odd_pieces(&mut rig, &driven);
}

fn sgls() {
    for sgl in [true, false] {
        let mut rig = Rig::with(|options| options.sgl = sgl);
        let driven = rig.open();
        odd_pieces(&mut rig, &driven);
    }
    // More descriptors than it takes are not sent (MSDBD).
    let mut rig = Rig::new();
    rig.faults.patch_identify(1, 544, &[1]);
    let driven = rig.open();
    odd_pieces(&mut rig, &driven);
}

fn full_queue() {
    let mut rig = Rig::with(|options| options.max_queue_entries = 2);
    let driven = rig.open();
    for tag in 0..40 {
        let op = Op::write(0, rig.buf(512)).tag(tag);
        driven.channel.submit(op).expect("a slot");
    }
    driven.channel.kick();
    let order: Vec<u64> = rig.ends(&driven).into_iter().map(|(tag, _)| tag).collect();
    assert_eq!(order, (0..40).collect::<Vec<u64>>());
}

/// The fault at a few commands of each kind.
fn sprinkle(rig: &Rig, what: CompletionFault) {
    for opcode in [nvm::READ, nvm::WRITE] {
        for nth in [1, 2, 7, 30, 31, 64, 100] {
            rig.faults.complete(every(opcode).nth(nth), what);
        }
    }
}

fn torn() {
    for what in [
        CompletionFault::Torn(1),
        CompletionFault::Torn(50),
        CompletionFault::TornFor(Duration::from_micros(300)),
    ] {
        let mut rig = Rig::new();
        let driven = rig.open();
        sprinkle(&rig, what);
        rig.exercise(&driven);
        assert_eq!(driven.host.stats().bad_cid, 0);
    }
}

fn wrong_identifiers() {
    let mut rig = Rig::new();
    let driven = rig.open();
    sprinkle(&rig, CompletionFault::Twice);
    rig.exercise(&driven);
    assert!(driven.host.stats().bad_cid >= 10, "{:?}", driven.host.stats());
    // Their commands seem not to end, and lead to a reset.
    for cid in [0, 0x7fff, 0xffff] {
        let mut rig = Rig::new();
        rig.options.io_timeout = Duration::from_secs(1);
        rig.options.abort_timeout = Duration::from_secs(1);
        let driven = rig.open();
        rig.faults.complete(every(nvm::READ).nth(3), CompletionFault::Cid(cid));
        rig.start_reads(&driven, 8);
        rig.all_end_well(&driven, 8);
        assert!(driven.host.stats().bad_cid >= 1, "{:?}", driven.host.stats());
        rig.exercise(&driven);
    }
}

fn wrong_head() {
    for sqhd in [0x7777, 0xffff, 256] {
        let mut rig = Rig::new();
        let driven = rig.open();
        sprinkle(&rig, CompletionFault::Sqhd(sqhd));
        rig.exercise(&driven);
        assert!(driven.host.stats().bad_sqhd >= 10, "{:?}", driven.host.stats());
    }
}

fn all_cores() {
    let mut rig = Rig::with(|options| options.shadow_doorbells = false);
    let driven = rig.open();
    rig.exercise_cores(&driven);
    assert_eq!(rig.target.iommu().faults(), 0);
}

fn shadow_doorbells() {
    for on in [true, false] {
        let mut rig = Rig::with(|options| options.shadow_doorbells = on);
        rig.options.queue_entries = 8;
        let driven = rig.open();
        assert_eq!(driven.host.identity().shadow_doorbells, on);
        rig.exercise(&driven);
        // The next queues of this number begin anew, and so must their doorbells.
        let Driven { host, channel } = driven;
        let node = channel.node().clone();
        drop(channel);
        let channel = rig.run(|core| async move {
            core.close(&node).await.expect("its queues are deleted");
            core.open(&node).await.expect("queues again")
        });
        let driven = Driven { host, channel: Rc::new(channel) };
        rig.exercise(&driven);
    }
}
