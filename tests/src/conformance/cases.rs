//! The cases of the suite.

use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::task::{Context, Waker};

use oxblock_engine::{Completion, ErrorKind, Op, OpFlags, OpKind};
use oxblock_mem::{IoVector, Pool};

use super::disk::{Disk, assert_counted, length};
use super::scatter::Scatter;
use crate::random::{Random, seed};

/// Every kind of operation, one after the other, with lists of all shapes.
pub async fn every_kind(mut disk: Disk) {
    let seed = seed(0x0b10c);
    let mut random = seed.random(1);
    disk.check_all().await;
    for round in 0..150 {
        let most = if round % 10 == 0 { disk.blocks() / 3 } else { 33 };
        disk.any_op(&mut random, most).await;
    }
    disk.check_all().await;
    disk.settle().await;
}

/// Operations on most of the node at once, which take many requests of the device.
pub async fn large(mut disk: Disk) {
    let seed = seed(0x1a46e);
    let mut random = seed.random(13);
    let (block, blocks) = (disk.block(), disk.blocks());
    for round in 0..4u32 {
        let (first, last) = (random.within(0..blocks / 9), blocks - random.within(0..blocks / 9));
        let range = first * block..last * block;
        disk.write(&mut random, range.clone()).await;
        let from = first + 1 + random.within(0..blocks / 9);
        let to = last - 1 - random.within(0..blocks / 9);
        let inner = from * block..to * block;
        if round < 3 {
            let flags = if round < 2 { OpFlags::MAY_UNMAP } else { OpFlags::empty() };
            disk.oracle[inner.start as usize..inner.end as usize].fill(0);
            disk.run(Op::write_zeroes(inner.start, length(&inner) as u64).flags(flags)).await;
        } else {
            disk.discard(inner).await;
        }
        disk.check(&mut random, range).await;
    }
    disk.check_all().await;
    disk.settle().await;
}

/// Transfers that begin, end and lie across every boundary that the node has.
pub async fn boundaries(mut disk: Disk) {
    let seed = seed(0xed9e5);
    let mut random = seed.random(2);
    let (block, end) = (disk.block(), disk.blocks() * disk.block());
    let limits = disk.limits().clone();
    let natural = [limits.max_transfer, limits.boundary, limits.optimal_transfer, 4096, 2 << 20];
    let mut edges: Vec<u64> = Vec::new();
    for step in natural.map(u64::from).into_iter().filter(|&step| step > 0) {
        edges.extend([step, 2 * step, 3 * step, 8 * step, end / step * step]);
    }
    edges.extend([0, end]);
    for edge in edges.into_iter().filter(|&edge| edge <= end) {
        let edge = edge / block;
        for (before, after) in [(1, 0), (0, 1), (1, 1), (3, 5), (7, 1), (1, 7), (17, 13)] {
            let range = edge.saturating_sub(before) * block..(edge + after) * block;
            if range.end <= end && !range.is_empty() {
                across(&mut disk, &mut random, range).await;
            }
        }
    }
    let most = u64::from(limits.max_transfer).max(u64::from(limits.boundary)) / block;
    if most > 0 && most * 2 < disk.blocks() {
        let start = random.within(0..disk.blocks() - most * 2) * block;
        for blocks in [most - 1, most, most + 1, most * 2 - 1] {
            across(&mut disk, &mut random, start..start + blocks.max(1) * block).await;
        }
    }
    disk.check_all().await;
    disk.settle().await;
}

async fn across(disk: &mut Disk, random: &mut Random, range: Range<u64>) {
    disk.write(random, range.clone()).await;
    disk.check(random, range.clone()).await;
    disk.compare(random, range.clone()).await;
    match random.within(0..4) {
        0 => disk.zero(random, range.clone()).await,
        1 => disk.discard(range.clone()).await,
        _ => {}
    }
    let (block, end) = (disk.block(), disk.blocks() * disk.block());
    let around = range.start.saturating_sub(3 * block)..(range.end + 3 * block).min(end);
    disk.check(random, around).await;
}

/// Many operations in flight on ranges that do not overlap, completing in any order.
pub async fn many_at_once(mut disk: Disk) {
    let seed = seed(0x3a9);
    let mut random = seed.random(3);
    let mut running: Vec<Option<Running>> = (0..48).map(|_| None).collect();
    let mut left = 1200;
    while left > 0 || running.iter().any(Option::is_some) {
        for tag in 0..running.len() {
            if running[tag].is_none() && left > 0 {
                let range = disk.any_range(&mut random, 21);
                if running.iter().flatten().any(|other| overlap(&other.range, &range)) {
                    continue;
                }
                left -= 1;
                running[tag] = Some(start(&mut disk, &mut random, range, tag as u64).await);
            }
        }
        if random.one_in(3) {
            disk.channel.kick();
        }
        disk.core.yield_now().await;
        let mut done = Vec::new();
        disk.channel.poll(|completion| done.push(completion));
        for completion in done {
            let slot = &mut running[completion.op.tag as usize];
            finish(&mut disk, slot.take().expect("one completion each"), &completion);
        }
    }
    assert_eq!(disk.channel.in_flight(), 0);
    disk.check_all().await;
    disk.settle().await;
}

struct Running {
    range: Range<u64>,
    read: Option<Scatter>,
}

async fn start(disk: &mut Disk, random: &mut Random, range: Range<u64>, tag: u64) -> Running {
    let mut read = None;
    let op = match random.within(0..8) {
        0..4 => disk.write_op(random, &range),
        4 => {
            disk.oracle[range.start as usize..range.end as usize].fill(0);
            Op::write_zeroes(range.start, length(&range) as u64)
        }
        _ => {
            let mut scatter = Scatter::any(&disk.core, random, length(&range));
            let data = scatter.take();
            read = Some(scatter);
            Op::read(range.start, data)
        }
    };
    disk.submit(op.tag(tag)).await;
    Running { range, read }
}

fn finish(disk: &mut Disk, running: Running, done: &Completion) {
    let Running { range, read } = running;
    assert_eq!(done.op.offset, range.start, "the completion of another operation");
    assert_eq!(done.result, Ok(()), "{} of {range:?}", done.op.kind);
    if let Some(scatter) = read {
        disk.check_read(&scatter, done, &range);
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// More tasks than slots: each waits for its turn, and all get one.
pub async fn more_tasks_than_slots(disk: Disk) {
    let core = disk.core.clone();
    let block = disk.block();
    let mut tasks = Vec::new();
    for task in 0..9u64 {
        let (core, node) = (core.clone(), disk.node.clone());
        let contents = disk.contents;
        tasks.push(disk.core.spawn(async move {
            let mut random = Random::new(task);
            let channel = core.open(&node).await.expect("a channel");
            let bytes = random.bytes(3 * block as usize);
            let offset = task * 3 * block;
            for _ in 0..5 {
                let data = Scatter::new(&core, &mut random, bytes.len(), 70).with(&bytes).data;
                let (_, result) = channel.write(offset, data).await;
                result.expect("a write");
                let mut scatter = Scatter::new(&core, &mut random, bytes.len(), 70);
                let data = scatter.take();
                let (data, result) = channel.read(offset, data).await;
                result.expect("a read");
                if contents.are_kept() {
                    assert_eq!(scatter.bytes(&data), bytes, "task {task}");
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("a task");
    }
    disk.settle().await;
}

/// Lists of many more pieces than any device takes at once.
pub async fn many_pieces(mut disk: Disk) {
    let seed = seed(0x91ece);
    let mut random = seed.random(4);
    for _ in 0..12 {
        let range = disk.any_range(&mut random, 300);
        let bytes = random.bytes(length(&range));
        let scatter = Scatter::new(&disk.core, &mut random, bytes.len(), 900).with(&bytes);
        disk.run(Op::write(range.start, scatter.data)).await;
        disk.note(&range, &bytes);
        let scatter = Scatter::new(&disk.core, &mut random, bytes.len(), 900);
        disk.check_into(scatter, range).await;
    }
    disk.check_all().await;
    disk.settle().await;
}

/// A dropped future only detaches: the write lands, the buffers stay live until then, and
/// then go back to where they came from.
pub async fn dropped_futures(mut disk: Disk) {
    let seed = seed(0xd209);
    let mut random = seed.random(5);
    let buf_len = 3 * disk.block() as usize;
    let pool = Pool::new(disk.core.arena(), buf_len, 24).expect("a pool");
    let all = pool.available();
    let stretch = disk.blocks() / 24;
    for round in 0..10 {
        for n in 0..24 {
            let first = n * stretch + random.within(0..stretch.saturating_sub(2).max(1));
            let range = first * disk.block()..(first + 3) * disk.block();
            let mut data = IoVector::from(pool.take().expect("a buffer"));
            let op = if random.one_in(3) {
                Op::read(range.start, data)
            } else {
                let bytes = random.bytes(buf_len);
                data.write_at(0, &bytes);
                disk.note(&range, &bytes);
                Op::write(range.start, data)
            };
            poll_once(disk.channel.run(op));
            if random.one_in(4) {
                disk.core.yield_now().await;
            }
        }
        disk.settle().await;
        assert_eq!(pool.available(), all, "buffers are missing after round {round}");
    }
    disk.check_all().await;
}

/// Polls a future once and drops it.
fn poll_once<T>(future: impl Future<Output = T>) {
    let _ = pin!(future).poll(&mut Context::from_waker(Waker::noop()));
}

/// A full slot table hands the operation back as it was; it goes in once another has ended.
pub async fn full_table(mut disk: Disk) {
    let seed = seed(0xf011);
    let mut random = seed.random(6);
    let slots = disk.core.stats().slots;
    for _ in 0..20 {
        let mut ranges = Vec::new();
        let mut waiting: Option<Op> = None;
        let mut submitted = 0;
        for tag in 0..3 * slots as u64 {
            let first = tag * 5 % (disk.blocks() - 5);
            let range = first * disk.block()..(first + 2) * disk.block();
            if ranges.iter().any(|other| overlap(other, &range)) {
                continue;
            }
            let bytes = random.bytes(length(&range));
            let data = Scatter::any(&disk.core, &mut random, bytes.len()).with(&bytes).data;
            match disk.channel.submit(Op::write(range.start, data).tag(tag)) {
                Ok(_) => {
                    submitted += 1;
                    disk.note(&range, &bytes);
                    ranges.push(range);
                }
                Err(full) => {
                    assert!((1..=slots).contains(&submitted), "{submitted} went in");
                    assert_eq!((full.0.tag, full.0.offset), (tag, range.start));
                    let mut back = vec![0; full.0.data.len()];
                    full.0.data.read_at(0, &mut back);
                    assert_eq!(back, bytes, "the operation comes back with its bytes");
                    disk.note(&range, &bytes);
                    waiting = Some(full.0);
                    break;
                }
            }
        }
        assert!(waiting.is_some(), "{submitted} operations went into {slots} slots");
        let mut done = 0;
        while done < submitted {
            disk.core.yield_now().await;
            done += disk.channel.poll(|completion| assert_eq!(completion.result, Ok(())));
            if done > 0
                && let Some(op) = waiting.take()
            {
                disk.submit(op).await;
                submitted += 1;
            }
        }
    }
    disk.check_all().await;
    disk.settle().await;
}

/// A cancelled operation completes exactly once: carried out, or cancelled and then each of
/// its bytes is an old or a new one.
pub async fn cancel(mut disk: Disk) {
    let seed = seed(0xca9ce1);
    let mut random = seed.random(7);
    let stretch = disk.blocks() / 16;
    for _ in 0..20 {
        let mut writes = Vec::new();
        for tag in 0..16 {
            let count = random.within(1..stretch.min(40));
            let first = tag * stretch;
            let range = first * disk.block()..(first + count) * disk.block();
            let bytes = random.bytes(length(&range));
            let data = Scatter::any(&disk.core, &mut random, bytes.len()).with(&bytes).data;
            let op = Op::write(range.start, data).tag(tag);
            let id = disk.submit(op).await;
            writes.push((range, bytes, id));
            if random.one_in(5) {
                disk.core.yield_now().await;
            }
            if random.one_in(2) {
                disk.channel.cancel(id);
            }
        }
        let mut seen = [false; 16];
        while seen.contains(&false) {
            disk.core.yield_now().await;
            let mut ended = Vec::new();
            disk.channel.poll(|done| ended.push((done.op.tag as usize, done.result)));
            for (tag, result) in ended {
                assert!(!std::mem::replace(&mut seen[tag], true), "{tag} completed twice");
                let (range, bytes, id) = &writes[tag];
                assert!(!disk.channel.cancel(*id), "it is over");
                match result {
                    Ok(()) => disk.note(range, bytes),
                    Err(fault) => {
                        assert_eq!(fault.kind, ErrorKind::Cancelled, "{fault}");
                        take_mixed(&mut disk, range, bytes).await;
                    }
                }
            }
        }
    }
    disk.check_all().await;
    disk.settle().await;
}

/// Takes over a range whose write was cancelled.
async fn take_mixed(disk: &mut Disk, range: &Range<u64>, new: &[u8]) {
    if !disk.contents.are_kept() {
        return;
    }
    let mut scatter = Scatter::plain(&disk.core, length(range));
    let done = disk.channel.run(Op::read(range.start, scatter.take())).await;
    assert_eq!(done.result, Ok(()), "read of {range:?}");
    let now = scatter.bytes(&done.op.data);
    let old = &disk.oracle[range.start as usize..range.end as usize];
    let strange = (0..now.len()).find(|&at| now[at] != old[at] && now[at] != new[at]);
    assert_eq!(strange, None, "a byte of {range:?} is neither old nor new");
    disk.note(range, &now);
}

/// Two cores work on stripes of the same node at once; then each sees all of it.
pub async fn two_cores(mut disk: Disk) {
    const STRIPE: u64 = 7;
    let seed = seed(0x2c0e5);
    let stripes = disk.blocks() / STRIPE;
    let (node, contents) = (disk.node.clone(), disk.contents);
    let mut theirs = seed.random(8);
    let core = disk.core.clone();
    let other = core.spawn({
        let core = core.clone();
        async move {
            let work = move |core: oxblock_engine::Core| async move {
                let mut disk = Disk::open(&core, node, contents).await;
                let written = stripes_of(&mut disk, &mut theirs, 1, stripes, STRIPE).await;
                disk.settle().await;
                written
            };
            core.call(1, work).await
        }
    });
    let mut random = seed.random(9);
    stripes_of(&mut disk, &mut random, 0, stripes, STRIPE).await;
    let written = other.await.and_then(|result| result).expect("the other core");
    for (range, bytes) in written {
        disk.note(&range, &bytes);
    }
    disk.check_all().await;
    disk.settle().await;
}

async fn stripes_of(
    disk: &mut Disk,
    random: &mut Random,
    parity: u64,
    stripes: u64,
    stripe: u64,
) -> Vec<(Range<u64>, Vec<u8>)> {
    let mut written = Vec::new();
    for _ in 0..200 {
        let number = random.within(0..stripes / 2) * 2 + parity;
        let count = random.within(1..stripe + 1);
        let first = number * stripe + random.within(0..stripe - count + 1);
        let range = first * disk.block()..(first + count) * disk.block();
        if random.one_in(2) {
            disk.write(random, range.clone()).await;
            let bytes = disk.oracle[range.start as usize..range.end as usize].to_vec();
            written.push((range, bytes));
        } else {
            disk.check(random, range).await;
        }
    }
    written
}

/// What a node cannot take is refused as invalid, and nothing changes.
pub async fn invalid(mut disk: Disk) {
    let seed = seed(0xbad);
    let mut random = seed.random(10);
    let range = 0..4 * disk.block();
    disk.write(&mut random, range).await;
    let (block, length) = (u64::from(disk.limits().block_size), disk.limits().length);
    let list = |len: u64| Scatter::plain(&disk.core, len as usize).data;
    let mut ops = Vec::new();
    for offset in [length, length - block, u64::MAX - block, u64::MAX / block * block] {
        let len = 2 * block;
        ops.push(Op::read(offset, list(len)));
        ops.push(Op::write(offset, list(len)));
        ops.push(Op::compare(offset, list(len)));
        ops.push(Op::write_zeroes(offset, len));
        ops.push(Op::discard(offset, len));
    }
    if block > 1 {
        for (offset, len) in [(1, block), (block - 1, block), (0, block - 1), (block, block + 1)] {
            ops.push(Op::read(offset, list(len)));
            ops.push(Op::write(offset, list(len)));
            ops.push(Op::write_zeroes(offset, len));
            ops.push(Op::discard(offset, len));
        }
    }
    for len in [0, block, 4 * block] {
        ops.push(Op { len, ..Op::write(0, list(2 * block)) });
        ops.push(Op { len, ..Op::read(0, list(2 * block)) });
    }
    ops.push(Op::write_zeroes(0, u64::MAX / block * block));
    ops.push(Op::discard(block, u64::MAX / block * block));
    let count = ops.len();
    for op in ops {
        let (kind, offset, len, bytes) = (op.kind, op.offset, op.len, op.data.len());
        let done = disk.channel.run(op).await;
        let fault = done.result.expect_err("an invalid operation succeeds");
        assert_eq!(fault.kind, ErrorKind::Invalid, "{kind} of {len} bytes at {offset}: {fault}");
        assert_eq!(done.op.data.len(), bytes, "the buffers come back");
    }
    assert!(count > 20);
    // Nothing is nothing to complain of.
    for op in [Op::read(0, list(0)), Op::write(length, list(0)), Op::write_zeroes(block, 0)] {
        disk.run(op).await;
    }
    disk.check_all().await;
    disk.settle().await;
}

/// Flushes and durable writes among other writes, at once.
pub async fn durable(mut disk: Disk) {
    let seed = seed(0xf10a);
    let mut random = seed.random(11);
    for _ in 0..12 {
        let first = random.within(0..disk.blocks() - 17);
        let mut count = 0;
        for n in 0..4 {
            let start = (first + 4 * n) * disk.block();
            let range = start..start + 3 * disk.block();
            let op = disk.write_op(&mut random, &range);
            let op = if n % 2 == 0 { op.fua() } else { op };
            disk.submit(op).await;
            disk.submit(Op::flush()).await;
            count += 2;
        }
        let start = (first + 16) * disk.block();
        let block = disk.block();
        let zeroes = Op::write_zeroes(start, block).flags(OpFlags::MAY_UNMAP).fua();
        disk.oracle[start as usize..(start + block) as usize].fill(0);
        disk.submit(zeroes).await;
        count += 1;
        while count > 0 {
            disk.core.yield_now().await;
            count -= disk.channel.poll(|done| assert_eq!(done.result, Ok(()), "{:?}", done.op));
        }
    }
    assert_counted(&disk, OpKind::Flush, 48);
    disk.check_all().await;
    disk.settle().await;
}

/// A compare says yes to what is there, and names a differing byte or the range of it.
pub async fn compare(mut disk: Disk) {
    let seed = seed(0xc09a);
    let mut random = seed.random(12);
    for _ in 0..25 {
        let range = disk.any_range(&mut random, 40);
        disk.write(&mut random, range.clone()).await;
        disk.compare(&mut random, range).await;
    }
    disk.check_all().await;
    disk.settle().await;
}
