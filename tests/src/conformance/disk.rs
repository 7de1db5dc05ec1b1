//! A node under test, with a copy of what it must hold.

use std::ops::Range;
use std::sync::Arc;

use oxblock_engine::{
    Channel, Completion, Core, ErrorKind, Full, Limits, Node, Op, OpFlags, OpId, OpKind,
};

use super::Contents;
use super::scatter::Scatter;
use crate::random::Random;

/// A node, a channel to it, and the oracle.
pub struct Disk {
    /// The core that the case runs on.
    pub core: Core,
    /// The node.
    pub node: Arc<Node>,
    /// The channel.
    pub channel: Channel,
    /// What reads give.
    pub contents: Contents,
    /// What the node must hold.
    pub oracle: Vec<u8>,
}

impl Disk {
    /// Opens the node, which is fresh.
    pub async fn open(core: &Core, node: Arc<Node>, contents: Contents) -> Self {
        let channel = core.open(&node).await.expect("a channel");
        let length = node.limits().length as usize;
        let oracle = match contents {
            Contents::Filled => Contents::first(length),
            Contents::Kept | Contents::Zeroes | Contents::Nothing => vec![0; length],
        };
        Self { core: core.clone(), node, channel, contents, oracle }
    }

    /// The node's limits.
    pub fn limits(&self) -> Arc<Limits> {
        self.node.limits()
    }

    /// The granularity that cases work at: the block size, or 512 bytes at the finest, so
    /// that cases on nodes without blocks stay quick. Odd sizes still occur there.
    pub fn block(&self) -> u64 {
        let block = u64::from(self.limits().block_size);
        if block == 1 { 509 } else { block }
    }

    /// How many blocks the node has.
    pub fn blocks(&self) -> u64 {
        self.limits().length / self.block()
    }

    /// A range of up to `most` blocks, anywhere.
    pub fn any_range(&self, random: &mut Random, most: u64) -> Range<u64> {
        let count = random.within(1..most.min(self.blocks()) + 1);
        let first = random.within(0..self.blocks() - count + 1);
        first * self.block()..(first + count) * self.block()
    }

    /// Writes random bytes.
    pub async fn write(&mut self, random: &mut Random, range: Range<u64>) {
        let op = self.write_op(random, &range);
        self.run(op).await;
    }

    /// A write of random bytes, noted in the oracle as done.
    pub fn write_op(&mut self, random: &mut Random, range: &Range<u64>) -> Op {
        let bytes = random.bytes(length(range));
        let data = Scatter::any(&self.core, random, bytes.len()).with(&bytes).take();
        self.note(range, &bytes);
        Op::write(range.start, data)
    }

    /// Notes in the oracle that the range now holds these bytes.
    pub fn note(&mut self, range: &Range<u64>, bytes: &[u8]) {
        if self.contents.are_kept() {
            self.oracle[range.start as usize..range.end as usize].copy_from_slice(bytes);
        }
    }

    /// Reads into a list of any shape and compares with the oracle.
    pub async fn check(&self, random: &mut Random, range: Range<u64>) {
        let scatter = Scatter::any(&self.core, random, length(&range));
        self.check_into(scatter, range).await;
    }

    /// Reads into this list and compares with the oracle.
    pub async fn check_into(&self, mut scatter: Scatter, range: Range<u64>) {
        let op = Op::read(range.start, scatter.take());
        let done = self.channel.run(op).await;
        assert_eq!(done.result, Ok(()), "read of {range:?}");
        self.check_read(&scatter, &done, &range);
    }

    /// Compares what a read brought with the oracle.
    pub fn check_read(&self, scatter: &Scatter, done: &Completion, range: &Range<u64>) {
        assert_eq!(done.op.data.len(), length(range), "the buffers come back whole");
        let bytes = scatter.bytes(&done.op.data);
        if self.contents != Contents::Nothing {
            let expected = &self.oracle[range.start as usize..range.end as usize];
            assert_same(&bytes, expected, range.start);
        }
    }

    /// Zeroes a range in one of the ways there are.
    pub async fn zero(&mut self, random: &mut Random, range: Range<u64>) {
        let op = Op::write_zeroes(range.start, length(&range) as u64);
        let op = if random.one_in(2) { op.flags(OpFlags::MAY_UNMAP) } else { op };
        let op = if random.one_in(3) { op.fua() } else { op };
        self.oracle[range.start as usize..range.end as usize].fill(0);
        self.run(op).await;
    }

    /// Discards a range, and takes over what it reads as afterwards: in each block zeroes or
    /// the old bytes.
    pub async fn discard(&mut self, range: Range<u64>) {
        self.run(Op::discard(range.start, length(&range) as u64)).await;
        if self.contents.are_kept() {
            let scatter = Scatter::plain(&self.core, length(&range));
            let bytes = self.read_plain(scatter, range.start).await;
            let block = self.block() as usize;
            for (at, now) in bytes.chunks(block).enumerate() {
                let start = range.start as usize + at * block;
                let before = &self.oracle[start..start + now.len()];
                let zeroes = now.iter().all(|&byte| byte == 0);
                assert!(zeroes || now == before, "a discarded block at {start} has new bytes");
            }
            self.note(&range, &bytes);
        }
    }

    async fn read_plain(&self, mut scatter: Scatter, offset: u64) -> Vec<u8> {
        let done = self.channel.run(Op::read(offset, scatter.take())).await;
        assert_eq!(done.result, Ok(()), "read at {offset}");
        scatter.bytes(&done.op.data)
    }

    /// Compares a range with the oracle, and with bytes that differ somewhere.
    pub async fn compare(&self, random: &mut Random, range: Range<u64>) {
        let mut bytes = self.oracle[range.start as usize..range.end as usize].to_vec();
        let scatter = Scatter::any(&self.core, random, bytes.len()).with(&bytes);
        let done = self.channel.run(Op::compare(range.start, scatter.data)).await;
        assert_eq!(done.result, Ok(()), "compare of {range:?} with what it holds");

        let at = random.within(0..bytes.len() as u64);
        bytes[at as usize] ^= 1 << random.within(0..8);
        let scatter = Scatter::any(&self.core, random, bytes.len()).with(&bytes);
        let done = self.channel.run(Op::compare(range.start, scatter.data)).await;
        if self.contents != Contents::Nothing {
            let fault = done.result.expect_err("other bytes compare as equal");
            assert_eq!(fault.kind, ErrorKind::Mismatch, "compare of {range:?}: {fault}");
            let found = range.start..range.start + at + 1;
            assert!(found.contains(&fault.offset), "{} is not in {found:?}", fault.offset);
        }
    }

    /// Runs an operation that must succeed.
    pub async fn run(&self, op: Op) {
        let (kind, offset, len) = (op.kind, op.offset, op.len);
        let done = self.channel.run(op).await;
        assert_eq!(done.result, Ok(()), "{kind} of {len} bytes at {offset}");
    }

    /// Submits an operation to be polled for. With a node that is served by this very core,
    /// the table may be full of what serves it.
    pub async fn submit(&self, mut op: Op) -> OpId {
        loop {
            match self.channel.submit(op) {
                Ok(id) => return id,
                Err(Full(back)) => op = back,
            }
            self.core.yield_now().await;
        }
    }

    /// One operation of any kind on a range of up to `most` blocks.
    pub async fn any_op(&mut self, random: &mut Random, most: u64) {
        let range = self.any_range(random, most);
        match random.within(0..16) {
            0..5 => self.write(random, range).await,
            5 => {
                let op = self.write_op(random, &range).fua();
                self.run(op).await;
            }
            6..11 => self.check(random, range).await,
            11 | 12 => self.zero(random, range).await,
            13 => self.discard(range).await,
            14 => self.compare(random, range).await,
            _ => self.run(Op::flush()).await,
        }
    }

    /// Reads the whole node and compares it with the oracle.
    pub async fn check_all(&self) {
        let step = 61 * self.block();
        let length = self.blocks() * self.block();
        for start in (0..length).step_by(step as usize) {
            let range = start..(start + step).min(length);
            let scatter = Scatter::plain(&self.core, self::length(&range));
            self.check_into(scatter, range).await;
        }
    }

    /// Waits until this core has no operation in flight.
    pub async fn settle(&self) {
        while self.core.stats().slots_used > 0 {
            self.core.yield_now().await;
        }
        assert_eq!(self.core.stats().spurious_completions, 0, "completions of nothing");
    }
}

/// The statistics of a kind must tell of at least so many operations.
pub fn assert_counted(disk: &Disk, kind: OpKind, ops: u64) {
    let counted = disk.channel.stats().kind(kind).ops;
    assert!(counted >= ops, "{counted} of {ops} operations of kind {kind} were counted");
}

/// The length of a range of bytes.
pub fn length(range: &Range<u64>) -> usize {
    (range.end - range.start) as usize
}

fn assert_same(read: &[u8], expected: &[u8], offset: u64) {
    if let Some(at) = read.iter().zip(expected).position(|(a, b)| a != b) {
        let wrong = read.iter().zip(expected).filter(|(a, b)| a != b).count();
        let (read, expected) = (read[at], expected[at]);
        let offset = offset + at as u64;
        panic!("{wrong} bytes differ from offset {offset} on: {read:02x}, not {expected:02x}");
    }
}
