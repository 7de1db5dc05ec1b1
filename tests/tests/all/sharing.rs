//! Many NVMe controllers, many namespaces, many cores; and fewer queue pairs than cores, which
//! then share.

use std::sync::Arc;
use std::time::Duration;

use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_drivers::nvme::{Controller as Host, NvmeOptions};
use oxblock_engine::{Channel, Core, Engine, ErrorKind, Node, Op, Options, Simulation};
use oxblock_mem::ArenaOptions;
use oxblock_nvmet::fault::{self, Faults};
use oxblock_nvmet::{Controller as Target, ControllerOptions, NamespaceOptions};

/// Blocks that each core has to itself.
const BLOCKS: u64 = 128;
/// Cores of the largest engine here.
const CORES: usize = 4;

fn options() -> Options {
    Options { arena: ArenaOptions::new(48 << 20), ..Options::default() }
}

fn below() -> Arc<Node> {
    let size = BLOCKS * 512 * CORES as u64;
    Node::new("below", memory::open(MemoryOptions { size, block_size: 512 }).expect("a disk"))
}

/// A controller of `namespaces` namespaces on the last core of the engine.
async fn target(core: &Core, namespaces: usize, queues: u16, faults: &Arc<Faults>) -> Arc<Target> {
    let namespaces = (0..namespaces).map(|_| NamespaceOptions::new(below(), 512)).collect();
    let options =
        ControllerOptions { namespaces, max_io_queues: queues, ..ControllerOptions::default() };
    let faults = faults.clone();
    let start = move |core: Core| async move { fault::start(&core, options, &faults).await };
    let server = core.count() - 1;
    core.call(server, start).await.and_then(|result| result).expect("a controller")
}

async fn attach(core: &Core, target: &Target, entries: u16) -> Arc<Host> {
    let options = NvmeOptions { queue_entries: entries, ..NvmeOptions::default() };
    Host::attach(core, target.function(), options).await.expect("the driver")
}

fn node(host: &Arc<Host>, nsid: u32) -> Arc<Node> {
    Node::new(format!("nvme0n{nsid}"), host.namespace(nsid).expect("the namespace"))
}

/// One core's writes and reads of its own blocks, many at a time, each block with bytes of its own,
/// `rounds` times.
async fn exercise(core: &Core, channel: &Channel, rounds: u64) {
    let first = core.id() as u64 * BLOCKS;
    for round in 0..rounds * 2 {
        let (write, mut next, mut done) = (round % 2 == 0, 0, 0);
        let mark = |block: u64| (block * 7 + round / 2 + core.id() as u64) as u8 | 1;
        while done < BLOCKS {
            while next < BLOCKS && channel.in_flight() < 64 {
                let mut buf = core.arena().alloc(512, 4096).expect("memory");
                buf.fill(0, 512, if write { mark(next) } else { 0 });
                let offset = (first + next) * 512;
                let op = if write { Op::write(offset, buf) } else { Op::read(offset, buf) };
                if channel.submit(op.tag(next)).is_err() {
                    break;
                }
                next += 1;
            }
            channel.kick();
            core.yield_now().await;
            done += channel.poll(|ended| {
                assert_eq!(ended.result, Ok(()), "core {} block {}", core.id(), ended.op.tag);
                let mut bytes = [0; 512];
                ended.op.data.read_at(0, &mut bytes);
                assert!(bytes.iter().all(|byte| *byte == mark(ended.op.tag)), "{}", ended.op.tag);
            }) as u64;
        }
    }
}

/// Opens a node on each of the first `cores` cores and exercises all of them at once.
async fn exercise_on(core: &Core, nodes: &[Arc<Node>], cores: usize, rounds: u64) {
    let mut working = Vec::new();
    for at in 0..cores {
        for node in nodes {
            let (node, core) = (node.clone(), core.clone());
            let work = async move |core: Core| {
                let channel = core.open(&node).await.expect("a queue");
                exercise(&core, &channel, rounds).await;
            };
            working.push(core.clone().spawn(async move { core.call(at, work).await }));
        }
    }
    for work in working {
        work.await.and_then(|result| result).expect("its work");
    }
}

/// Opens a node's queue on another core, which keeps it.
async fn open_on(core: &Core, other: usize, node: &Arc<Node>) {
    let node = node.clone();
    let open = move |core: Core| async move { core.open(&node).await.map(drop) };
    core.call(other, open).await.expect("the other core").expect("a queue");
}

#[test]
fn more_cores_than_queue_pairs_share() {
    for (queues, entries) in [(1, 16), (2, 64)] {
        let engine = Engine::with_cores(CORES, options()).expect("an engine");
        let run = engine.run(0, move |core| async move {
            let target = target(&core, 1, queues, &Faults::new()).await;
            let host = attach(&core, &target, entries).await;
            let node = node(&host, 1);
            exercise_on(&core, &[node], CORES, 1).await;
            let stats = host.stats();
            assert_eq!((stats.queues, stats.sharing), (queues, CORES as u16 - queues));
            (target, host)
        });
        let held = run.expect("the run");
        engine.shutdown().expect("an orderly shutdown");
        assert_eq!((held.1.stats().queues, held.1.stats().sharing), (0, 0));
    }
}

#[test]
fn several_controllers_and_namespaces_serve_several_cores() {
    // The first controller has queue pairs for all, the second for one namespace on one core.
    let engine = Engine::with_cores(CORES, options()).expect("an engine");
    let run = engine.run(0, |core| async move {
        let targets =
            [target(&core, 2, 16, &Faults::new()).await, target(&core, 2, 1, &Faults::new()).await];
        let hosts = [attach(&core, &targets[0], 64).await, attach(&core, &targets[1], 64).await];
        let nodes: Vec<_> = hosts.iter().flat_map(|host| [node(host, 1), node(host, 2)]).collect();
        exercise_on(&core, &nodes, CORES - 1, 1).await;
        let counts = hosts.map(|host| (host.stats().queues, host.stats().sharing));
        assert_eq!(counts, [(6, 0), (1, 5)]);
        targets
    });
    let targets = run.expect("the run");
    engine.shutdown().expect("an orderly shutdown");
    drop(targets);
}

/// The first core to open the namespace had the queue pair. It closed, the queue pair went with
/// it, and the cores that shared it waited for ever.
#[test]
fn those_who_share_outlive_the_owner() {
    let engine = Engine::with_cores(3, options()).expect("an engine");
    let run = engine.run(0, |core| async move {
        let target = target(&core, 1, 1, &Faults::new()).await;
        let host = attach(&core, &target, 16).await;
        let node = node(&host, 1);
        open_on(&core, 1, &node).await;
        let channel = core.open(&node).await.expect("a queue");
        exercise(&core, &channel, 1).await;
        let theirs = node.clone();
        let closed = core.call(1, move |core| async move { core.close(&theirs).await });
        closed.await.expect("the other core").expect("its close");
        assert_eq!((host.stats().queues, host.stats().sharing), (1, 1));
        exercise(&core, &channel, 1).await;
        // Sleeping cores are woken for it.
        core.sleep(Duration::from_millis(5)).await;
        exercise(&core, &channel, 1).await;
        core.close(&node).await.expect("the close");
        while host.stats().queues > 0 {
            core.yield_now().await;
        }
        // The queue pair is free again.
        open_on(&core, 1, &node).await;
        assert_eq!((host.stats().queues, host.stats().sharing), (1, 0));
        target
    });
    let target = run.expect("the run");
    engine.shutdown().expect("an orderly shutdown");
    drop(target);
}

#[test]
fn cancelled_operations_of_guests_complete_once() {
    let engine = Engine::with_cores(3, options()).expect("an engine");
    let run = engine.run(0, |core| async move {
        let target = target(&core, 1, 1, &Faults::new()).await;
        let host = attach(&core, &target, 8).await;
        let node = node(&host, 1);
        open_on(&core, 1, &node).await;
        let channel = core.open(&node).await.expect("a queue");
        for _ in 0..50 {
            let ids: Vec<_> = (0..32)
                .map(|n| {
                    let buf = core.arena().alloc(512, 4096).expect("memory");
                    channel.submit(Op::read(n * 512, buf)).expect("a slot")
                })
                .collect();
            for id in ids {
                channel.cancel(id);
            }
            let mut ended = 0;
            while channel.in_flight() > 0 {
                core.yield_now().await;
                ended += channel.poll(|c| {
                    let kind = c.result.map_err(|fault| fault.kind);
                    assert!(matches!(kind, Ok(()) | Err(ErrorKind::Cancelled)), "{kind:?}");
                });
            }
            assert_eq!(ended, 32);
        }
        exercise(&core, &channel, 1).await;
        target
    });
    let target = run.expect("the run");
    engine.shutdown().expect("an orderly shutdown");
    drop(target);
}

#[test]
fn a_controller_that_goes_fails_what_guests_have_in_flight() {
    let engine = Engine::with_cores(3, options()).expect("an engine");
    let faults = Faults::new();
    let run = engine.run(0, move |core| async move {
        let target = target(&core, 1, 1, &faults).await;
        // Doorbells in registers: nothing gets through once those are gone.
        let options =
            NvmeOptions { queue_entries: 16, shadow_doorbells: false, ..NvmeOptions::default() };
        let host = Host::attach(&core, target.function(), options).await.expect("the driver");
        let node = node(&host, 1);
        open_on(&core, 1, &node).await;
        let channel = core.open(&node).await.expect("a queue");
        faults.set_gone(true);
        let mut kinds = Vec::new();
        // More than the queue holds: some never reach it.
        for n in 0..40 {
            let buf = core.arena().alloc(512, 4096).expect("memory");
            channel.submit(Op::read(n * 512, buf)).expect("a slot");
        }
        while channel.in_flight() > 0 {
            core.yield_now().await;
            channel.poll(|ended| kinds.push(ended.result.map_err(|fault| fault.kind)));
        }
        assert_eq!(kinds, [Err(ErrorKind::Gone); 40]);
        target
    });
    let target = run.expect("the run");
    let _ = engine.shutdown();
    drop(target);
}

/// Every order of turns that a seed leads to.
#[test]
fn sharing_works_in_any_order_of_turns() {
    for seed in 0..8 {
        let mut simulation = Simulation::new(3, seed, options()).expect("a simulation");
        let run = simulation.run(0, |core| async move {
            let target = target(&core, 1, 1, &Faults::new()).await;
            // A queue of one command, and longer ones.
            let host = attach(&core, &target, 2 + seed as u16 % 4).await;
            let node = node(&host, 1);
            exercise_on(&core, std::slice::from_ref(&node), 3, 1).await;
            assert_eq!(host.stats().sharing, 2);
            for at in [seed as usize % 3, (seed as usize + 1) % 3, (seed as usize + 2) % 3] {
                let node = node.clone();
                let close = move |core: Core| async move { core.close(&node).await };
                core.call(at, close).await.expect("the core").expect("its close");
            }
            host.shutdown(&core).await.expect("its shutdown");
            assert_eq!((host.stats().queues, host.stats().sharing), (0, 0), "seed {seed}");
            target
        });
        drop(run.expect("no deadlock"));
    }
}
