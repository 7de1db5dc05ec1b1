//! Splitting, bouncing, emulation, order and errors of single requests.

use std::cell::Cell;
use std::rc::Rc;

use oxblock_mem::IoVector;

use super::leaf::{Awkward, AwkwardOptions, Seen};
use super::{buf, node, pattern, reactor};
use crate::{Channel, Error, ErrorKind, Full, MemoryRule, Node, Op, OpFlags, OpKind};

const LEN: u64 = 1 << 20;

/// Runs a test on a channel of a node with these options, with a table of `slots`.
fn with_channel<F, T>(slots: usize, options: AwkwardOptions, test: T) -> Vec<Seen>
where
    T: FnOnce(Channel) -> F + 'static,
    F: Future<Output = ()> + 'static,
{
    let driver = Awkward::new(options);
    let watch = driver.watch();
    let node = Node::new("disk", Box::new(driver));
    let reactor = reactor(slots);
    let core = reactor.core().clone();
    reactor
        .block_on(async move {
            let channel = core.open(&node).await.expect("a channel");
            test(channel).await;
        })
        .expect("the test ran");
    watch()
}

async fn write_and_read_back(channel: &Channel, offset: u64, bytes: &[u8]) {
    let core = channel.core();
    channel.write(offset, buf(core, bytes)).await.1.expect("a write");
    let (data, result) = channel.read(offset, buf(core, &vec![0xee; bytes.len()])).await;
    result.expect("a read");
    let mut back = vec![0; bytes.len()];
    data.read_at(0, &mut back);
    assert_eq!(back, bytes);
}

#[test]
fn long_requests_are_split_at_transfer_limit_and_odd_boundary() {
    for slots in [1, 8] {
        let mut options = AwkwardOptions::new(LEN, 512);
        options.limits.max_transfer = 5000;
        options.limits.boundary = 3 * 512 * 3;
        let seen = with_channel(slots, options, |channel| async move {
            write_and_read_back(&channel, 512 * 7, &pattern(100 * 512, 1)).await;
        });
        assert!(seen.len() > 20);
    }
}

#[test]
fn too_many_pieces_are_cut_or_bounced() {
    let mut options = AwkwardOptions::new(LEN, 512);
    options.limits.max_segments = 3;
    with_channel(1, options, |channel| async move {
        let bytes = pattern(4096, 9);
        for cut in [100, 512, 1000] {
            let pieces: Vec<_> = bytes.chunks(cut).map(|part| buf(channel.core(), part)).collect();
            channel.write(1024, IoVector::from(pieces)).await.1.expect("a write");
            let pieces: Vec<_> =
                bytes.chunks(cut).map(|part| buf(channel.core(), &vec![0; part.len()])).collect();
            let (data, result) = channel.read(1024, IoVector::from(pieces)).await;
            result.expect("a read");
            assert_eq!(data.view(0, 4096).compare(&bytes), None, "cut at {cut}");
        }
    });
}

#[test]
fn memory_that_a_device_cannot_reach_is_bounced() {
    let mut options = AwkwardOptions::new(LEN, 512);
    options.limits.memory = MemoryRule::Dma { segment_align: 4, prp_page: Some(4096) };
    let seen = with_channel(1, options, |channel| async move {
        // No device is attached, so no memory has an IOVA.
        write_and_read_back(&channel, 0, &pattern(300 << 10, 3)).await;
        let same = buf(channel.core(), &pattern(300 << 10, 3));
        channel.compare(0, same).await.1.expect("equal");
    });
    assert!(seen.iter().all(|seen| seen.pieces <= 1 && seen.len <= 128 << 10));
}

#[test]
fn a_compare_is_emulated_and_names_the_byte() {
    let mut options = AwkwardOptions::new(LEN, 512);
    options.limits.compare = false;
    with_channel(2, options, |channel| async move {
        let bytes = pattern(200 << 10, 5);
        channel.write(512, buf(channel.core(), &bytes)).await.1.expect("a write");
        channel.compare(512, buf(channel.core(), &bytes)).await.1.expect("equal");
        let mut other = bytes.clone();
        other[150_000] ^= 1;
        let error = channel.compare(512, buf(channel.core(), &other)).await.1.unwrap_err();
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Mismatch, Some(150_512)));
    });
}

#[test]
fn missing_fua_and_write_zeroes_are_made_up_for() {
    let mut options = AwkwardOptions::new(LEN, 512);
    options.limits.volatile_cache = true;
    options.limits.max_write_zeroes = 0;
    let seen = with_channel(1, options, |channel| async move {
        let op = Op::write(0, buf(channel.core(), &pattern(1024, 1))).fua();
        channel.run(op).await.result.expect("a write");
        channel.write_zeroes(512, 300 << 10).await.expect("zeroes");
        let op = Op::write_zeroes(0, 512).flags(OpFlags::NO_FALLBACK);
        let fault = channel.run(op).await.result.unwrap_err();
        assert_eq!(fault.kind, ErrorKind::NotSupported);
        let (data, _) = channel.read(0, buf(channel.core(), &[7; 2048])).await;
        assert_eq!(data.view(0, 512).compare(&pattern(1024, 1)[..512]), None);
        assert!(data.view(512, 1536).is_all(0));
    });
    let kinds: Vec<_> = seen.iter().map(|seen| seen.kind).collect();
    assert_eq!(kinds[..2], [OpKind::Write, OpKind::Flush]);
    assert!(!kinds.contains(&OpKind::WriteZeroes));
}

#[test]
fn what_breaks_a_limit_is_refused_and_changes_nothing() {
    let options = AwkwardOptions::new(LEN, 512);
    let seen = with_channel(4, options, |channel| async move {
        let some = || buf(channel.core(), &[1; 512]);
        let mut wrong_len = Op::write(0, some());
        wrong_len.len = 1024;
        let ops = [
            Op::write(LEN, some()),
            Op::write(u64::MAX - 511, some()),
            Op::write(100, some()),
            Op::discard(0, LEN + 512),
            Op::discard(0, 100),
            wrong_len,
        ];
        for op in ops {
            let completion = channel.run(op).await;
            assert_eq!(completion.result.unwrap_err().kind, ErrorKind::Invalid);
        }
    });
    assert_eq!(seen, []);
}

#[test]
fn a_failed_fragment_fails_the_request_with_its_byte() {
    let mut options = AwkwardOptions::new(LEN, 512);
    options.limits.max_transfer = 512;
    options.bad_byte = Some(5000);
    with_channel(1, options, |channel| async move {
        let (_, result) = channel.read(0, buf(channel.core(), &[0; 16 << 10])).await;
        let error: Error = result.unwrap_err();
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Media, Some(5000)));
        assert!(error.to_string().starts_with("disk: read: media error at offset 5000"));
        write_and_read_back(&channel, 8192, &pattern(512, 2)).await;
    });
}

#[test]
fn a_full_table_hands_the_operation_back_and_order_is_kept() {
    let node = node(AwkwardOptions::new(LEN, 512));
    let reactor = reactor(4);
    let core = reactor.core().clone();
    let channel = reactor.block_on(async move { core.open(&node).await }).unwrap().unwrap();
    for n in 0..4 {
        let op = Op::write(n * 512, buf(reactor.core(), &[n as u8; 512])).tag(n);
        channel.submit(op).expect("room");
    }
    let Err(Full(op)) = channel.submit(Op::flush().tag(77)) else { panic!("a fifth slot of four") };
    assert_eq!(op.tag, 77);
    let mut tags = Vec::new();
    while tags.len() < 4 {
        reactor.poll();
        channel.poll(|completion| {
            completion.result.expect("a write");
            tags.push(completion.op.tag);
        });
    }
    tags.sort_unstable();
    assert_eq!(tags, [0, 1, 2, 3]);
    assert!(reactor.core().stats().spurious_completions > 0);
}

#[test]
fn futures_wait_for_a_slot_in_a_table_of_one() {
    let done = Rc::new(Cell::new(0));
    let counted = done.clone();
    with_channel(1, AwkwardOptions::new(LEN, 512), move |channel| async move {
        let channel = Rc::new(channel);
        let tasks: Vec<_> = (0..20u64)
            .map(|n| {
                let (channel, counted) = (channel.clone(), counted.clone());
                channel.core().clone().spawn(async move {
                    write_and_read_back(&channel, n * 1024, &pattern(1024, n as u8)).await;
                    counted.set(counted.get() + 1);
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a task");
        }
    });
    assert_eq!(done.get(), 20);
}

#[test]
fn a_dropped_future_detaches_and_its_write_still_lands() {
    with_channel(2, AwkwardOptions::new(LEN, 512), |channel| async move {
        let bytes = pattern(512, 4);
        let before = channel.core().arena().available();
        {
            let mut write = Box::pin(channel.write(0, buf(channel.core(), &bytes)));
            let pending = std::future::poll_fn(|context| {
                std::task::Poll::Ready(write.as_mut().poll(context).is_pending())
            });
            assert!(pending.await, "the leaf completes nothing at once");
        }
        assert_eq!(channel.core().stats().slots_used, 1, "the slot keeps the buffer");
        channel.flush().await.expect("a flush");
        while channel.core().stats().slots_used > 0 {
            channel.core().yield_now().await;
        }
        assert_eq!(channel.core().arena().available(), before, "the buffer came back");
        let (data, _) = channel.read(0, buf(channel.core(), &[0; 512])).await;
        assert_eq!(data.view(0, 512).compare(&bytes), None);
    });
}

#[test]
fn a_cancelled_request_in_line_never_reaches_the_leaf() {
    let driver = Awkward::new(AwkwardOptions::new(LEN, 512));
    let watch = driver.watch();
    let node = Node::new("disk", Box::new(driver));
    let reactor = reactor(8);
    let core = reactor.core().clone();
    let channel = reactor.block_on(async move { core.open(&node).await }).unwrap().unwrap();
    let ids: Vec<_> = (0..5u64)
        .map(|n| channel.submit(Op::discard(n * 512, 512).tag(n)).expect("room"))
        .collect();
    assert!(channel.cancel(ids[3]), "it waits behind a queue of two");
    assert!(!channel.cancel(ids[3]), "it is over");
    let mut results = Vec::new();
    while results.len() < 5 {
        reactor.poll();
        channel.poll(|completion| results.push((completion.op.tag, completion.result)));
    }
    for (tag, result) in results {
        assert_eq!(result.is_err(), tag == 3, "{tag}: {result:?}");
    }
    assert!(watch().iter().all(|seen| seen.offset != 3 * 512));
}
