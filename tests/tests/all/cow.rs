//! Overlays in memory: many writers of one cluster, faults below, cancelled writes, limits.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use oxblock_drivers::DRIVERS;
use oxblock_drivers::cow::{self, CowOptions};
use oxblock_engine::graph::Graph;
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Channel, Core, Engine, ErrorKind, Node, Op, OpFlags, Options, Simulation};
use oxblock_mem::{ArenaOptions, Buf, PagePolicy};
use oxblock_tests::late::LateDisk;
use oxblock_tests::random::{Random, seed};

const BLOCK: u64 = 512;

fn options(slots: usize) -> Options {
    let arena = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(8 << 20) };
    Options { slots, arena, ..Options::default() }
}

fn overlay(core: &Core, disk: &LateDisk, options: CowOptions) -> Arc<Node> {
    let below = Node::new("below", Box::new(disk.clone()));
    let body = cow::open(core, "cow0", Some(&below), options).expect("an overlay");
    Node::with_body("cow0", body, false)
}

fn buf(core: &Core, bytes: &[u8]) -> Buf {
    let mut buf = core.arena().alloc(bytes.len(), 512).expect("memory of the arena");
    buf.write_at(0, bytes);
    buf
}

async fn read(channel: &Channel, offset: u64, len: usize) -> Vec<u8> {
    let (data, result) = channel.read(offset, buf(channel.core(), &vec![0xee; len])).await;
    result.expect("a read");
    let mut bytes = vec![0; len];
    data.read_at(0, &mut bytes);
    bytes
}

async fn write(channel: &Channel, offset: u64, bytes: &[u8]) {
    channel.write(offset, buf(channel.core(), bytes)).await.1.expect("a write");
}

// --- many owners of blocks, several of them in one cluster ---

const CLUSTER: u64 = 8 << 10;
const CLUSTERS: u64 = 32;
const LENGTH: u64 = CLUSTER * CLUSTERS - 3 * BLOCK;
/// Tasks of which each has blocks of its own: the even ones on one core, the odd on the other.
const OWNERS: u64 = 8;

/// Every other cluster is one owner's, the others' blocks are everybody's in turn.
fn owner_of(block: u64) -> u64 {
    let cluster = block * BLOCK / CLUSTER;
    if cluster.is_multiple_of(2) { cluster / 2 % OWNERS } else { block % OWNERS }
}

struct Owner {
    number: u64,
    channel: Rc<Channel>,
    random: Random,
    /// What all blocks hold, as far as they are its own.
    oracle: Vec<u8>,
}

impl Owner {
    /// Blocks in a row that are its own.
    fn any_range(&mut self) -> Range<u64> {
        let blocks = LENGTH / BLOCK;
        let mut first = self.random.within(0..blocks);
        while owner_of(first) != self.number {
            first = (first + 1) % blocks;
        }
        let most = 1 + self.random.within(0..CLUSTER / BLOCK);
        if self.random.one_in(2) {
            while first > 0 && owner_of(first - 1) == self.number {
                first -= 1;
            }
        }
        let mut end = first + 1;
        while end < blocks && end - first < most && owner_of(end) == self.number {
            end += 1;
        }
        first * BLOCK..end * BLOCK
    }

    async fn work(mut self, rounds: u64) -> Owner {
        for _ in 0..rounds {
            let range = self.any_range();
            let (offset, len) = (range.start, range.end - range.start);
            let at = range.start as usize..range.end as usize;
            match self.random.within(0..8) {
                0..4 => {
                    let bytes = self.random.bytes(len as usize);
                    write(&self.channel, offset, &bytes).await;
                    self.oracle[at].copy_from_slice(&bytes);
                }
                4 => {
                    let zeroes = Op::write_zeroes(offset, len);
                    let unmap = self.random.one_in(2);
                    let zeroes = if unmap { zeroes.flags(OpFlags::MAY_UNMAP) } else { zeroes };
                    self.channel.run(zeroes).await.result.expect("zeroes");
                    self.oracle[at].fill(0);
                }
                5 => {
                    self.channel.discard(offset, len).await.expect("a discard");
                    let now = read(&self.channel, offset, len as usize).await;
                    let is_old =
                        |(now, old): (&[u8], &[u8])| now == old || now.iter().all(|&b| b == 0);
                    let size = BLOCK as usize;
                    let mut blocks = now.chunks(size).zip(self.oracle[at.clone()].chunks(size));
                    assert!(blocks.all(is_old), "a discard at {offset} brought new bytes");
                    self.oracle[at].copy_from_slice(&now);
                }
                _ => {
                    let now = read(&self.channel, offset, len as usize).await;
                    assert!(now == self.oracle[at], "owner {} reads {range:?}", self.number);
                }
            }
        }
        self
    }
}

/// Lets a core's owners work; what they leave in their blocks.
async fn owners(core: Core, node: Arc<Node>, first: Vec<u8>, seed: u64, rounds: u64) -> Vec<u8> {
    let channel = Rc::new(core.open(&node).await.expect("a channel"));
    let mine = (0..OWNERS).filter(|owner| owner % 2 == core.id() as u64);
    let tasks: Vec<_> = mine
        .map(|number| {
            let random = Random::new(seed.wrapping_mul(OWNERS).wrapping_add(number));
            let oracle = first.clone();
            core.spawn(Owner { number, channel: channel.clone(), random, oracle }.work(rounds))
        })
        .collect();
    let mut left = first.clone();
    for task in tasks {
        let owner = task.await.expect("an owner");
        for block in (0..LENGTH / BLOCK).filter(|block| owner_of(*block) == owner.number) {
            let at = (block * BLOCK) as usize..((block + 1) * BLOCK) as usize;
            left[at.clone()].copy_from_slice(&owner.oracle[at]);
        }
    }
    left
}

async fn many_owners(core: Core, seed: u64, rounds: u64) {
    let first = Random::new(seed).bytes((LENGTH - CLUSTER / 2) as usize / 512 * 512);
    let disk = LateDisk::new(first.clone(), 20_000);
    let size = Some(LENGTH);
    let options = CowOptions { size, cluster_size: CLUSTER, ..CowOptions::default() };
    let node = overlay(&core, &disk, options);
    let mut all = first.clone();
    all.resize(LENGTH as usize, 0);
    let theirs = core.spawn({
        let (core, node, all) = (core.clone(), node.clone(), all.clone());
        async move { core.call(1, move |core| owners(core, node, all, seed, rounds)).await }
    });
    let mut oracle = owners(core.clone(), node.clone(), all, seed, rounds).await;
    let theirs = theirs.await.and_then(|result| result).expect("the other core");
    for block in (0..LENGTH / BLOCK).filter(|block| owner_of(*block) % 2 == 1) {
        let at = (block * BLOCK) as usize..((block + 1) * BLOCK) as usize;
        oracle[at.clone()].copy_from_slice(&theirs[at]);
    }
    let channel = core.open(&node).await.expect("a channel");
    for at in (0..LENGTH).step_by(CLUSTER as usize) {
        let len = CLUSTER.min(LENGTH - at) as usize;
        let expected = &oracle[at as usize..at as usize + len];
        assert!(read(&channel, at, len).await == expected, "the cluster at {at}");
    }
    assert_eq!(disk.bytes(), first, "the backing disk has changed");
    assert_eq!(disk.writes(), 0);
}

#[test]
fn writers_on_two_cores_share_clusters_in_simulated_time() {
    let count = std::env::var("OXBLOCK_SEEDS").ok().and_then(|text| text.parse().ok());
    let seed = seed(0xc0);
    let mut seeds = seed.random(1);
    for _ in 0..count.unwrap_or(40) {
        let seed = seeds.bits();
        let slots = [1, 3, 64][(seed % 3) as usize];
        let mut simulation = Simulation::new(2, seed, options(slots)).expect("a simulation");
        let run = simulation.run(0, |core| many_owners(core, seed, 60));
        run.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn writers_on_two_threads_share_clusters() {
    let seed = seed(0xc1);
    for slots in [2, 64] {
        let seed = seed.random(slots).bits();
        let engine = Engine::with_cores(2, options(slots as usize)).expect("an engine");
        engine.run(0, move |core| many_owners(core, seed, 1500)).expect("the test");
        engine.shutdown().expect("an orderly end");
    }
}

// --- one writer ---

fn simulate<F: Future<Output = ()> + 'static>(test: impl FnOnce(Core) -> F) {
    let mut simulation = Simulation::new(1, 5, options(4)).expect("a simulation");
    simulation.run(0, test).expect("no deadlock");
}

const SMALL: CowOptions = CowOptions { size: None, cluster_size: CLUSTER, max_memory: None };

#[test]
fn a_fault_below_fails_the_write_and_nothing_of_the_cluster_is_lost() {
    simulate(async |core| {
        let first = Random::new(1).bytes(4 * CLUSTER as usize);
        let disk = LateDisk::new(first.clone(), 5_000);
        // Room for one cluster: a write that fails must give it back.
        let node = overlay(&core, &disk, CowOptions { max_memory: Some(CLUSTER), ..SMALL });
        let channel = core.open(&node).await.expect("a channel");
        // In the cluster's head, then in its tail.
        for bad in [CLUSTER + 1024, 2 * CLUSTER - 512] {
            disk.break_at(bad..bad + 512);
            let op = Op::write(CLUSTER + 4096, buf(&core, &[1; 1024]));
            let done = channel.run(op).await;
            let fault = done.result.expect_err("the backing disk is bad");
            // A place of the operation is told: its beginning, as the bad one is none of its own.
            assert_eq!((fault.kind, fault.offset), (ErrorKind::Media, CLUSTER + 4096));
            assert!(done.op.data.whole().is_all(1) && done.op.data.len() == 1024);
            disk.break_at(0..0);
            let all = read(&channel, CLUSTER, CLUSTER as usize).await;
            assert!(
                all == first[CLUSTER as usize..2 * CLUSTER as usize],
                "the cluster is as before"
            );
        }
        // Whole clusters are not read.
        disk.break_at(0..4 * CLUSTER);
        write(&channel, CLUSTER, &[2; CLUSTER as usize]).await;
        assert!(read(&channel, CLUSTER, CLUSTER as usize).await.iter().all(|&byte| byte == 2));
        let fault = channel.run(Op::read(0, buf(&core, &[0; 512]))).await.result.unwrap_err();
        assert_eq!((fault.kind, fault.offset), (ErrorKind::Media, 0));
    });
}

#[test]
fn a_write_that_is_cancelled_leaves_its_cluster_below_and_lets_the_next_one_in() {
    simulate(async |core| {
        let first = Random::new(2).bytes(2 * CLUSTER as usize);
        let disk = LateDisk::new(first.clone(), 0);
        let node = overlay(&core, &disk, SMALL);
        let channel = core.open(&node).await.expect("a channel");
        disk.set_latency_ns(1 << 40);
        let submit = |tag: u64| {
            let op = Op::write(1024 * (tag + 1), buf(&core, &[tag as u8; 512])).tag(tag);
            channel.submit(op).expect("a slot")
        };
        let (one, two) = (submit(1), submit(2));
        while disk.reads() == 0 {
            core.yield_now().await;
        }
        // The second waits for the first, and is cancelled while it does.
        assert!(channel.cancel(two));
        let mut ended = Vec::new();
        while ended.is_empty() {
            core.yield_now().await;
            channel.poll(|done| ended.push((done.op.tag, done.result.map_err(|f| f.kind))));
        }
        disk.set_latency_ns(0);
        submit(3);
        core.yield_now().await;
        assert!(channel.cancel(one));
        while ended.len() < 3 {
            core.yield_now().await;
            channel.poll(|done| ended.push((done.op.tag, done.result.map_err(|f| f.kind))));
        }
        let cancelled = Err(ErrorKind::Cancelled);
        assert_eq!(ended, [(2, cancelled), (1, cancelled), (3, Ok(()))]);
        let mut expected = first;
        expected[4096..4608].fill(3);
        assert!(read(&channel, 0, 2 * CLUSTER as usize).await == expected);
        assert_eq!(channel.in_flight(), 0);
    });
}

#[test]
fn memory_has_a_limit_and_zeroes_and_discards_give_it_back() {
    simulate(async |core| {
        let first = Random::new(3).bytes(8 * CLUSTER as usize);
        let disk = LateDisk::new(first.clone(), 1_000);
        let node = overlay(&core, &disk, CowOptions { max_memory: Some(2 * CLUSTER), ..SMALL });
        let channel = core.open(&node).await.expect("a channel");
        write(&channel, 512, &[1; 512]).await;
        write(&channel, 3 * CLUSTER, &[2; 512]).await;
        let full = channel.write(5 * CLUSTER, buf(&core, &[3; 512])).await.1.unwrap_err();
        assert_eq!(full.kind(), ErrorKind::NoSpace);
        let words = "cow0: write: no space left at offset 40960: the overlay has taken all of its \
                     max-memory";
        assert!(full.to_string().starts_with(words), "{full}");
        // What is there already can be written.
        write(&channel, CLUSTER - 512, &[4; 512]).await;
        // Zeroes take nothing.
        channel.write_zeroes(5 * CLUSTER, 3 * CLUSTER).await.expect("zeroes");
        let reads = disk.reads();
        channel.discard(0, CLUSTER).await.expect("a discard");
        write(&channel, 5 * CLUSTER + 512, &[5; 512]).await;
        assert_eq!(disk.reads(), reads, "a cluster of zeroes is not read from below");
        let mut expected = first;
        expected[..CLUSTER as usize].fill(0);
        expected[3 * CLUSTER as usize..][..512].fill(2);
        expected[5 * CLUSTER as usize..].fill(0);
        expected[5 * CLUSTER as usize + 512..][..512].fill(5);
        for cluster in 0..8 {
            let at = cluster * CLUSTER;
            let expected = &expected[at as usize..][..CLUSTER as usize];
            assert!(read(&channel, at, CLUSTER as usize).await == expected, "cluster {cluster}");
        }
    });
}

#[test]
fn an_overlay_is_longer_or_shorter_than_what_lies_below_or_over_nothing() {
    simulate(async |core| {
        let below = 3 * CLUSTER + 1536;
        let first = Random::new(4).bytes(below as usize);
        for size in [6 * CLUSTER + 512, 2 * CLUSTER + 512] {
            let disk = LateDisk::new(first.clone(), 1_000);
            let node = overlay(&core, &disk, CowOptions { size: Some(size), ..SMALL });
            assert_eq!(node.limits().length, size);
            let channel = core.open(&node).await.expect("a channel");
            let mut expected = first.clone();
            expected.resize(size as usize, 0);
            assert!(read(&channel, 0, size as usize).await == expected, "{size} before");
            // Over the end below, and over that of the overlay.
            for at in [3 * CLUSTER + 1024, size - 1024, 5 * CLUSTER] {
                if at + 1024 <= size {
                    write(&channel, at, &[7; 1024]).await;
                    expected[at as usize..][..1024].fill(7);
                }
            }
            assert!(read(&channel, 0, size as usize).await == expected, "{size} after");
        }
        let options = CowOptions { size: Some(3 * CLUSTER), ..SMALL };
        let body = cow::open(&core, "cow0", None, options).expect("an overlay over nothing");
        let channel = core.open(&Node::with_body("cow0", body, false)).await.expect("a channel");
        write(&channel, CLUSTER + 512, &[8; 512]).await;
        let mut expected = vec![0; 3 * CLUSTER as usize];
        expected[CLUSTER as usize + 512..][..512].fill(8);
        assert!(read(&channel, 0, 3 * CLUSTER as usize).await == expected);
    });
}

#[test]
fn the_deepest_chain_gets_on_with_one_slot() {
    let mut simulation = Simulation::new(1, 9, options(1)).expect("a simulation");
    let run = simulation.run(0, async |core: Core| {
        let mut expected = Random::new(6).bytes(4 * CLUSTER as usize);
        let disk = LateDisk::new(expected.clone(), 3_000);
        let mut node = overlay(&core, &disk, SMALL);
        for level in 1..12u32 {
            // A cluster of each overlay, so that reads come by all of them.
            let channel = core.open(&node).await.expect("a channel");
            let at = u64::from(level) * 2560 % (4 * CLUSTER - 512);
            let at = at / 512 * 512;
            write(&channel, at, &[level as u8; 512]).await;
            expected[at as usize..][..512].fill(level as u8);
            let options = CowOptions { cluster_size: 512 << (level % 5), ..SMALL };
            let body = cow::open(&core, "cow", Some(&node), options).expect("an overlay");
            node = Node::with_body(format!("cow{level}"), body, false);
        }
        let channel = Rc::new(core.open(&node).await.expect("a channel"));
        let tasks: Vec<_> = (0..16u64)
            .map(|task| {
                let channel = channel.clone();
                let at = task * 4 * 512;
                expected[at as usize + 512..][..1024].fill(task as u8);
                core.spawn(async move { write(&channel, at + 512, &[task as u8; 1024]).await })
            })
            .collect();
        for task in tasks {
            task.await.expect("a writer");
        }
        assert!(read(&channel, 0, 4 * CLUSTER as usize).await == expected);
    });
    run.expect("no deadlock");
}

// --- under a graph that changes ---

#[test]
fn an_overlay_comes_over_a_node_in_use_and_what_it_lies_over_changes() {
    simulate(async |core| {
        let open = async |graph: &mut Graph<Arc<Node>>, json: &str| {
            let options = NodeOptions::from_json(json).expect("JSON");
            graph.open(&core, &DRIVERS, options).await.expect("a node")
        };
        let mut graph = Graph::new();
        let mut expected = Vec::new();
        let mut bases = Vec::new();
        for name in ["one", "two"] {
            let json = format!(r#"{{"driver":"memory","size":32768,"node-name":"{name}"}}"#);
            let id = open(&mut graph, &json).await;
            let channel = core.open(&graph.node(id).expect("it").body).await.expect("a channel");
            let bytes = Random::new(bases.len() as u64).bytes(4 * CLUSTER as usize);
            write(&channel, 0, &bytes).await;
            expected.push(bytes);
            bases.push((id, channel));
        }
        let user = core.open(&graph.node(bases[0].0).expect("it").body).await.expect("a channel");
        // A channel of the test's own stays at what it looks at.
        bases.iter().for_each(|(_, channel)| channel.stay_at_node());
        let json = r#"{"driver":"cow","node-name":"top","size":32768,"cluster-size":"8k"}"#;
        let top = open(&mut graph, json).await;
        graph.live(&core).append(top, bases[0].0).await.expect("a snapshot");
        assert_eq!(&**user.node().name(), "top");
        write(&user, CLUSTER + 512, &[1; 1024]).await;
        let mut shown = expected[0].clone();
        shown[CLUSTER as usize + 512..][..1024].fill(1);
        assert!(read(&user, 0, 4 * CLUSTER as usize).await == shown, "over the first");
        // What has been taken stays; the rest is that of the next one below, or of none.
        graph.live(&core).set_backing(top, Some(bases[1].0)).await.expect("another");
        let taken = CLUSTER as usize..2 * CLUSTER as usize;
        let mut other = expected[1].clone();
        other[taken.clone()].copy_from_slice(&shown[taken.clone()]);
        assert!(read(&user, 0, 4 * CLUSTER as usize).await == other, "over the second");
        write(&user, 3 * CLUSTER, &[2; 512]).await;
        other[3 * CLUSTER as usize..][..512].fill(2);
        graph.live(&core).set_backing(top, None).await.expect("none");
        other[..taken.start].fill(0);
        other[taken.end..3 * CLUSTER as usize].fill(0);
        assert!(read(&user, 0, 4 * CLUSTER as usize).await == other, "over nothing");
        for ((_, channel), expected) in bases.iter().zip(&expected) {
            assert!(read(channel, 0, 4 * CLUSTER as usize).await == *expected, "a base changed");
        }
    });
}
