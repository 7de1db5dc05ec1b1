//! What a controller has little of, and the rules of its data.

use std::rc::Rc;
use std::sync::Arc;

use oxblock_drivers::nvme::NvmeOptions;
use oxblock_engine::{Core, Node, Op};
use oxblock_mem::{Buf, IoVector};
use oxblock_tests::exercise::Exercise;
use serde_json::json;

use super::super::disks::{PLUGGED, SECOND};
use super::super::machine::attach_with;
use super::super::plugged::Plugged;
use super::{Driven, Rows, on_engine};

pub fn add(rows: &mut Rows<'_>) {
    rows.add(5, "mqes", "queues of so many entries carry all I/O", "mqes=", mqes);
    rows.add(8, "mdts", "transfers of that size at most", "mdts=", mdts);
    rows.add(9, "metadata", "refused, the other namespaces work", "ms=8", metadata);
    let outcome = "all bytes arrive, whatever the pieces";
    rows.add(11, "prps", outcome, "buffers in odd pieces", odd_pieces);
    rows.add(13, "full_queues", "what waits goes on in order", "mqes=1", full_queue);
    let outcome = "used, and taken away with their queue";
    rows.add(18, "shadow_doorbells", outcome, "dbcs=", shadow_doorbells);
    rows.add(36, "fewer_queues", "two cores share one", "max_ioqpairs=1", fewer_queues);
    let outcome = "inside, and used for queues";
    rows.add(37, "controller_memory", outcome, "cmb_size_mb=", controller_memory);
}

fn mqes() {
    for (mqes, entries) in [(1, 2), (4, 5), (2047, 256)] {
        let plugged = Plugged::new(&json!({ "mqes": mqes }));
        on_engine(1, move |core| async move {
            let driven = Driven::new(core, &PLUGGED, 1, NvmeOptions::default()).await;
            assert_eq!(driven.host.identity().queue_entries, entries);
            Exercise::of(200).run(&driven.core, &driven.channel).await;
            driven.host
        });
        plugged.begin_removal();
        plugged.wait_out();
    }
}

fn mdts() {
    // Zero is no limit: one list of PRPs is.
    for (mdts, longest) in [(1, 8 << 10), (3, 32 << 10), (0, 512 * 4096)] {
        let plugged = Plugged::new(&json!({ "mdts": mdts }));
        on_engine(1, move |core| async move {
            let driven = Driven::new(core, &PLUGGED, 1, NvmeOptions::default()).await;
            assert_eq!(driven.channel.limits().max_transfer, longest, "mdts={mdts}");
            check(&driven, 4096, 1 << 20, IoVector::from).await;
            driven.host
        });
        plugged.begin_removal();
        plugged.wait_out();
    }
}

fn metadata() {
    on_engine(1, |core| async move {
        let host = attach_with(&core, &SECOND, NvmeOptions::default()).await.expect("the driver");
        let error = host.namespace(3).err().expect("a namespace with metadata").to_string();
        assert!(error.contains("8 bytes of metadata"), "{error}");
        drop(host.namespace(1).expect("a namespace without"));
        host
    });
}

/// Writes bytes by one buffer, or by what is made of it, and reads them back by the same.
async fn check(driven: &Driven, offset: u64, len: usize, shape: impl Fn(Buf) -> IoVector) {
    let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8 ^ (at >> 9) as u8).collect();
    let mut data = shape(driven.buf(len));
    let bytes = &bytes[..data.len()];
    data.write_at(0, bytes);
    driven.channel.run(Op::write(offset, data)).await.result.expect("a write");
    let ended = driven.channel.run(Op::read(offset, shape(driven.buf(len)))).await;
    ended.result.expect("a read");
    assert_eq!(ended.op.data.whole().compare(bytes), None);
}

fn odd_pieces() {
    on_engine(1, |core| async move {
        let options = NvmeOptions { sgl: false, ..NvmeOptions::default() };
        let driven = Driven::new(core, &SECOND, 1, options).await;
        let len = 64 << 10;
        // Whole pages, a start inside a page, pieces that no PRP can name, and bytes that are
        // not aligned at all.
        for cuts in [vec![0, len], vec![512, len], vec![4, 4100, 8196, 24580], vec![1, 1025, 3073]]
        {
            let shape = |whole: Buf| cut(whole, &cuts);
            check(&driven, 1 << 20, len, shape).await;
        }
        driven.host
    });
}

fn full_queue() {
    let plugged = Plugged::new(&json!({ "mqes": 1 }));
    on_engine(1, |core| async move {
        let driven = Driven::new(core, &PLUGGED, 1, NvmeOptions::default()).await;
        for number in 0..40 {
            let op = Op::write(0, driven.buf(512)).tag(number);
            driven.channel.submit(op).expect("a slot");
        }
        let mut order = Vec::new();
        while driven.channel.in_flight() > 0 {
            driven.core.yield_now().await;
            driven.channel.poll(|ended| {
                ended.result.expect("a write");
                order.push(ended.op.tag);
            });
        }
        assert_eq!(order, (0..40).collect::<Vec<u64>>());
        driven.host
    });
    drop(plugged);
}

fn shadow_doorbells() {
    for on in [true, false] {
        let plugged = Plugged::new(&json!({ "dbcs": on }));
        on_engine(1, move |core| async move {
            let options = NvmeOptions { queue_entries: 8, ..NvmeOptions::default() };
            let driven = Driven::new(core, &PLUGGED, 1, options).await;
            assert_eq!(driven.host.identity().shadow_doorbells, on);
            Exercise::of(100).run(&driven.core, &driven.channel).await;
            // The next queues of this number begin anew, and so must their doorbells.
            let Driven { core, host, channel, .. } = driven;
            let node = channel.node().clone();
            drop(channel);
            core.close(&node).await.expect("its queues are deleted");
            let channel = Rc::new(core.open(&node).await.expect("queues again"));
            Exercise::of(100).run(&core, &channel).await;
            host
        });
        plugged.begin_removal();
        plugged.wait_out();
    }
}

fn fewer_queues() {
    let plugged = Plugged::new(&json!({ "max_ioqpairs": 1 }));
    on_engine(2, |core| async move {
        let Driven { core, host, channel, .. } =
            Driven::new(core, &PLUGGED, 1, NvmeOptions::default()).await;
        let node: Arc<Node> = channel.node().clone();
        let other = core.call(1, move |core: Core| async move {
            let channel = core.open(&node).await.expect("a share");
            let half = Exercise { first: 200, ..Exercise::of(200) };
            half.run(&core, &channel).await;
        });
        Exercise::of(200).run(&core, &channel).await;
        other.await.expect("the other core");
        assert_eq!((host.stats().queues, host.stats().sharing), (1, 1));
        host
    });
    drop(plugged);
}

fn controller_memory() {
    let plugged = Plugged::new(&json!({ "cmb_size_mb": 1 }));
    on_engine(1, |core| async move {
        let options = NvmeOptions { controller_memory: true, ..NvmeOptions::default() };
        let driven = Driven::new(core, &PLUGGED, 1, options).await;
        let notices = driven.host.notices();
        assert!(notices.is_empty(), "{notices:?}");
        Exercise::of(200).run(&driven.core, &driven.channel).await;
        driven.host.reset(&driven.core).await.expect("a reset");
        Exercise::of(200).run(&driven.core, &driven.channel).await;
        driven.host
    });
    drop(plugged);
}

/// The pieces of a buffer between these places, as a list.
fn cut(mut whole: Buf, at: &[usize]) -> IoVector {
    let mut pieces: Vec<Buf> = at.iter().rev().map(|place| whole.split_off(*place)).collect();
    // What lies behind the last place.
    pieces.remove(0);
    let mut list = IoVector::new();
    pieces.into_iter().rev().for_each(|piece| list.push(piece));
    list
}
