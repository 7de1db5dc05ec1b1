//! Operations on nodes that stand on others.

use std::sync::Arc;

use super::leaf::{Awkward, AwkwardOptions};
use super::{buf, pattern, reactor};
use crate::{
    Body, Channel, Core, Error, ErrorKind, Extent, Format, Intent, Limits, LocalFuture, Node, Op,
    OpKind,
};

const PATCH: u64 = 4096;
const PATCHES: u64 = 64;

/// Where a patch lives.
#[derive(Clone, Copy)]
enum Patch {
    /// In a child, as its patch of this number.
    In(usize, u64),
    Zero,
    /// In the child it lies over, the last.
    Below,
}

/// A format of patches that lie about in its children.
struct Patchwork(Vec<Patch>, usize);

impl Format for Patchwork {
    fn name(&self) -> &'static str {
        "patchwork"
    }

    fn limits(&self, children: &[Arc<Limits>]) -> Limits {
        let file = children[0].as_ref().clone();
        Limits { length: self.0.len() as u64 * PATCH, ..file }
    }

    fn map(&self, offset: u64, _: u64, intent: Intent) -> Extent {
        let (patch, within) = (offset / PATCH, offset % PATCH);
        let len = PATCH - within;
        match self.0[patch as usize] {
            Patch::In(child, patch) => Extent::Data { child, offset: patch * PATCH + within, len },
            _ if intent != Intent::Read => Extent::End,
            Patch::Zero => Extent::Zero { len },
            Patch::Below => Extent::Below { child: self.1, len },
        }
    }

    fn flushes(&self) -> &[usize] {
        &[0, 1]
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// A window of a child, to be put over others.
struct Window(u64);

impl Format for Window {
    fn name(&self) -> &'static str {
        "window"
    }

    fn limits(&self, children: &[Arc<Limits>]) -> Limits {
        let file = children[0].as_ref().clone();
        Limits { length: file.length - self.0, ..file }
    }

    fn map(&self, offset: u64, _: u64, _: Intent) -> Extent {
        Extent::Data { child: 0, offset: offset + self.0, len: u64::MAX }
    }

    fn flushes(&self) -> &[usize] {
        &[0]
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// A node that leaves out the first bytes of another.
pub fn window(name: &str, from: u64, below: &Arc<Node>) -> Arc<Node> {
    over(name, Window(from), vec![below.clone()])
}

fn over(name: &str, format: impl Format + 'static, children: Vec<Arc<Node>>) -> Arc<Node> {
    Node::with_body(name, Body::Over(Arc::new(format), children), false)
}

fn leaf_options() -> AwkwardOptions {
    let mut options = AwkwardOptions::new(PATCHES * PATCH, 512);
    options.limits.max_transfer = 3000;
    options
}

fn leaf(name: &str, options: AwkwardOptions) -> Arc<Node> {
    Node::new(name, Box::new(Awkward::new(options)))
}

/// Random numbers from a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds are brought apart.
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Others, which follow from these.
    pub fn fork(&mut self) -> Self {
        Self::new(self.below(1 << 32))
    }

    pub fn below(&mut self, end: u64) -> u64 {
        // xorshift64 (Marsaglia).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % end
    }
}

/// A patchwork over two leaves and a short backing leaf, and what it reads as.
async fn quilt(core: &Core, random: &mut Random) -> (Arc<Node>, Vec<Patch>, Vec<u8>) {
    let mut short = leaf_options();
    short.limits.length = PATCHES / 2 * PATCH + 512;
    let leaves = [leaf("a", leaf_options()), leaf("b", leaf_options()), leaf("backing", short)];
    let mut contents = Vec::new();
    for (seed, node) in leaves.iter().enumerate() {
        let bytes = pattern(node.limits().length as usize, seed as u8 + 1);
        let channel = core.open(node).await.expect("a channel");
        channel.write(0, buf(core, &bytes)).await.1.expect("a write");
        contents.push(bytes);
    }
    let patches: Vec<Patch> = (0..PATCHES)
        .map(|patch| match random.below(4) {
            0 => Patch::Zero,
            1 => Patch::Below,
            // Neighbours are apart: each patch lies elsewhere, and in its own place.
            child => Patch::In(child as usize - 2, (patch * 5) % PATCHES),
        })
        .collect();
    let mut expected = Vec::new();
    for (at, patch) in patches.iter().enumerate() {
        let (child, from) = match *patch {
            Patch::In(child, there) => (child, there * PATCH),
            Patch::Below => (2, at as u64 * PATCH),
            Patch::Zero => (2, u64::MAX),
        };
        let bytes = contents[child].iter().skip(from.min(1 << 40) as usize);
        let start = expected.len();
        expected.extend(bytes.take(PATCH as usize));
        expected.resize(start + PATCH as usize, 0);
    }
    (over("quilt", Patchwork(patches.clone(), 2), leaves.to_vec()), patches, expected)
}

async fn run(channel: &Channel, ops: Vec<Op>) -> Vec<Op> {
    let core = channel.core();
    let (mut waiting, mut done) = (ops.into_iter(), Vec::new());
    let (count, mut next) = (waiting.len(), waiting.next());
    while done.len() < count {
        while let Some(op) = next.take() {
            match channel.submit(op) {
                Ok(_) => next = waiting.next(),
                Err(full) => {
                    next = Some(full.0);
                    break;
                }
            }
        }
        channel.poll(|completion| {
            completion.result.expect("success");
            done.push(completion.op);
        });
        core.yield_now().await;
    }
    done
}

#[test]
fn ranges_that_lie_in_many_places_read_as_one() {
    for (seed, slots) in [(1, 1), (2, 3), (3, 64)] {
        let reactor = reactor(slots);
        let core = reactor.core().clone();
        let test = async move {
            let mut random = Random(0x9e37_79b9 * seed);
            let (node, patches, mut expected) = quilt(&core, &mut random).await;
            let channel = core.open(&node).await.expect("a channel");
            for round in 0..8 {
                let mut ops = Vec::new();
                for _ in 0..32 {
                    let start = random.below(PATCHES * 8) * 512;
                    let most = (PATCHES * PATCH - start) / 512;
                    let len = (1 + random.below(most.min(80))) * 512;
                    ops.push(Op::read(start, buf(&core, &vec![0xee; len as usize])).tag(start));
                }
                for op in run(&channel, ops).await {
                    let mut back = vec![0; op.len as usize];
                    op.data.read_at(0, &mut back);
                    let start = op.tag as usize;
                    assert!(back == expected[start..start + back.len()], "seed {seed} at {start}");
                }
                // Another byte in all that takes writes.
                let writable =
                    (0..PATCHES).filter(|at| matches!(patches[*at as usize], Patch::In(..)));
                let mut ops = Vec::new();
                for at in writable {
                    let bytes = pattern(PATCH as usize, 100 + round + at as u8);
                    let start = (at * PATCH) as usize;
                    expected[start..start + bytes.len()].copy_from_slice(&bytes);
                    ops.push(Op::write(at * PATCH, buf(&core, &bytes)));
                }
                run(&channel, ops).await;
            }
            assert_eq!(channel.stats().kind(OpKind::Read).ops, 8 * 32);
            assert_eq!(channel.in_flight(), 0);
        };
        reactor.block_on(test).expect("the test ran");
        reactor.shutdown().expect("a shutdown");
    }
}

#[test]
fn faults_and_differences_are_told_at_the_places_of_the_node_asked() {
    let reactor = reactor(4);
    let core = reactor.core().clone();
    let test = async move {
        let mut bad = leaf_options();
        bad.bad_byte = Some(5 * PATCH + 512);
        let patches = vec![Patch::In(0, 4), Patch::In(0, 5), Patch::Zero, Patch::In(1, 9)];
        // Compares of this one are made by the engine, which knows the very byte.
        let mut other = leaf_options();
        other.limits.compare = false;
        let leaves = vec![leaf("a", bad), leaf("b", other)];
        let node = over("top", Window(512), vec![over("quilt", Patchwork(patches, 0), leaves)]);
        let channel = core.open(&node).await.expect("a channel");
        let zeroes = |len| buf(&core, &vec![0; len]);
        let fault = channel.run(Op::read(PATCH, zeroes(512))).await.result.unwrap_err();
        assert_eq!((fault.kind, fault.offset), (ErrorKind::Media, PATCH));
        let fault = channel.run(Op::write(PATCH * 2 - 512, zeroes(512))).await.result.unwrap_err();
        assert_eq!((fault.kind, fault.offset), (ErrorKind::NoSpace, PATCH * 2 - 512));
        // One byte in the zeroes differs, then one in the leaf behind them.
        for at in [700u64, PATCH + 1000] {
            let mut bytes = vec![0; PATCH as usize * 2];
            bytes[at as usize] = 1;
            let start = PATCH * 2 - 512;
            let fault =
                channel.run(Op::compare(start, buf(&core, &bytes))).await.result.unwrap_err();
            assert_eq!((fault.kind, fault.offset), (ErrorKind::Mismatch, start + at));
        }
        let error = channel.read(PATCH * 4 - 512, zeroes(512)).await.1.unwrap_err();
        assert!(error.to_string().starts_with("top: read: invalid request"), "{error}");
    };
    reactor.block_on(test).expect("the test ran");
    reactor.shutdown().expect("a shutdown");
}

#[test]
fn a_flush_goes_to_every_leaf_that_is_written_and_a_discard_passes_over_those_without() {
    let reactor = reactor(1);
    let core = reactor.core().clone();
    let test = async move {
        let mut without = leaf_options();
        without.limits.max_discard = 0;
        let drivers = [Awkward::new(leaf_options()), Awkward::new(without)];
        let seen = [drivers[0].watch(), drivers[1].watch()];
        let [a, b] = drivers.map(|driver| Node::new("leaf", Box::new(driver)));
        let patches = vec![Patch::In(1, 0), Patch::In(0, 0), Patch::In(1, 1)];
        let node = over("quilt", Patchwork(patches, 0), vec![a, b]);
        let channel = core.open(&node).await.expect("a channel");
        channel.flush().await.expect("a flush");
        channel.discard(0, 3 * PATCH).await.expect("a discard");
        let kinds = |at: usize| seen[at]().iter().map(|seen| seen.kind).collect::<Vec<_>>();
        assert_eq!(kinds(0), [OpKind::Flush, OpKind::Discard]);
        assert_eq!(kinds(1), [OpKind::Flush]);
        channel.write_zeroes(PATCH - 512, 1024).await.expect("zeroes");
        assert_eq!(kinds(0), [OpKind::WriteZeroes]);
        assert_eq!(kinds(1), [OpKind::WriteZeroes]);
    };
    reactor.block_on(test).expect("the test ran");
    reactor.shutdown().expect("a shutdown");
}

#[test]
fn a_leaf_that_was_closed_fails_what_lies_on_it_and_no_other_gets_its_place() {
    let reactor = reactor(4);
    let core = reactor.core().clone();
    let test = async move {
        let below = leaf("below", leaf_options());
        let node = over("top", Window(512), vec![below.clone()]);
        let channel = core.open(&node).await.expect("a channel");
        core.close(&below).await.expect("closed");
        let other = core.open(&leaf("other", leaf_options())).await.expect("a channel");
        let fault = channel.run(Op::write(0, buf(&core, &[7; 512]))).await.result.unwrap_err();
        assert_eq!(fault.kind, ErrorKind::Gone);
        let (data, result) = other.read(512, buf(&core, &[1; 512])).await;
        result.expect("a read");
        assert!(data.whole().is_all(0));
        // Opened anew, it is there again.
        let channel = core.open(&node).await.expect("a channel");
        channel.write(0, buf(&core, &[7; 512])).await.1.expect("a write");
        let (data, _) =
            core.open(&below).await.expect("a channel").read(512, buf(&core, &[0; 512])).await;
        assert!(data.whole().is_all(7));
    };
    reactor.block_on(test).expect("the test ran");
    reactor.shutdown().expect("a shutdown");
}
