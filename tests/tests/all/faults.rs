//! The NVMe driver against the software controller with its fault switches thrown: the two run on
//! cores of their own, so that what is torn or late is so for real.

use std::sync::Arc;
use std::time::Duration;

use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_drivers::null::{self, NullOptions};
use oxblock_drivers::nvme::{Controller as Host, NvmeOptions};
use oxblock_engine::{Channel, Core, Engine, ErrorKind, Node, Op, Options};
use oxblock_mem::ArenaOptions;
use oxblock_nvme::opcode::{admin, nvm};
use oxblock_nvme::status::Status;
use oxblock_nvmet::fault::{self, CompletionFault, Faults, Match, Readiness};
use oxblock_nvmet::{Controller as Target, ControllerOptions, NamespaceOptions};

const BLOCKS: u64 = 1024;

fn engine() -> Engine {
    let options = Options { arena: ArenaOptions::new(16 << 20), ..Options::default() };
    Engine::with_cores(2, options).expect("an engine")
}

fn memory_node() -> Arc<Node> {
    let options = MemoryOptions { size: BLOCKS * 512, block_size: 512 };
    Node::new("memory0", memory::open(options).expect("a memory disk"))
}

/// A controller over a node on core 1.
async fn target(core: &Core, node: Arc<Node>, faults: &Arc<Faults>) -> Arc<Target> {
    let faults = faults.clone();
    let options = ControllerOptions {
        namespaces: vec![NamespaceOptions::new(node, 512)],
        max_queue_entries: 16,
        ..ControllerOptions::default()
    };
    let start = move |core: Core| async move { fault::start(&core, options, &faults).await };
    core.call(1, start).await.and_then(|result| result).expect("a controller")
}

async fn attach(core: &Core, target: &Target) -> (Arc<Host>, Channel) {
    let host = Host::attach(core, target.function(), NvmeOptions::default()).await;
    let host = host.expect("the driver");
    let node = Node::new("nvme0n1", host.namespace(1).expect("namespace 1"));
    (host, core.open(&node).await.expect("a queue"))
}

/// Writes and reads every block, many at a time, each with bytes of its own.
async fn exercise(core: &Core, channel: &Channel) {
    for write in [true, false] {
        let mut next = 0;
        let mut done = 0;
        while done < BLOCKS {
            while next < BLOCKS {
                let mut buf = core.arena().alloc(512, 4096).expect("memory");
                let byte = if write { mark(next) } else { 0 };
                buf.fill(0, 512, byte);
                let op = if write { Op::write(next * 512, buf) } else { Op::read(next * 512, buf) };
                if channel.in_flight() >= 64 || channel.submit(op.tag(next)).is_err() {
                    break;
                }
                next += 1;
            }
            channel.kick();
            core.yield_now().await;
            done += channel.poll(|ended| {
                assert_eq!(ended.result, Ok(()), "block {}", ended.op.tag);
                let mut bytes = [0; 512];
                ended.op.data.read_at(0, &mut bytes);
                let expected = mark(ended.op.tag);
                assert!(bytes.iter().all(|byte| *byte == expected), "block {}", ended.op.tag);
            }) as u64;
        }
    }
}

fn mark(block: u64) -> u8 {
    (block % 251) as u8 + 1
}

/// Rows 14, 15 and 16: torn, late and doubled completions, wrong heads, and late and doubled ones
/// again; every block arrives all the same, and what was wrong is counted.
#[test]
fn awkward_completions_harm_nobody() {
    let engine = engine();
    let stats = engine.run(0, |core| async move {
        let faults = Faults::new();
        let target = target(&core, memory_node(), &faults).await;
        let (host, channel) = attach(&core, &target).await;
        for (nth, what) in [
            (3, CompletionFault::Torn(40)),
            (5, CompletionFault::Late(30)),
            (7, CompletionFault::Twice),
            (11, CompletionFault::Sqhd(0x7777)),
            (13, CompletionFault::Torn(1)),
        ] {
            for round in 0..20 {
                for opcode in [nvm::READ, nvm::WRITE] {
                    let which = Match { opcode: Some(opcode), ..Match::default() };
                    faults.complete(which.nth(nth + round * 47), what);
                }
            }
        }
        exercise(&core, &channel).await;
        (host.stats(), target)
    });
    let (stats, target) = stats.expect("the test");
    assert!(stats.bad_cid >= 30, "{stats:?}");
    assert!(stats.bad_sqhd >= 30, "{stats:?}");
    engine.shutdown().expect("an orderly shutdown");
    drop(target);
}

/// Row 25.
#[test]
fn statuses_arrive() {
    let engine = engine();
    let run = engine.run(0, |core| async move {
        let faults = Faults::new();
        let target = target(&core, memory_node(), &faults).await;
        let (_host, channel) = attach(&core, &target).await;
        let which = Match { opcode: Some(nvm::READ), ..Match::default() };
        // One after the other: a command that one rule answers, the next does not count.
        faults.answer(which.nth(1), 0, Status::new(3, 0).dnr());
        faults.answer(which.nth(1), 0, Status::UNRECOVERED_READ_ERROR.dnr());
        faults.answer(which.nth(1), 0, Status::CAPACITY_EXCEEDED.dnr());
        for kind in [ErrorKind::Io, ErrorKind::Media, ErrorKind::NoSpace] {
            let buf = core.arena().alloc(512, 4096).expect("memory");
            let fault = channel.run(Op::read(1024, buf)).await.result.expect_err("a status");
            assert_eq!((fault.kind, fault.offset), (kind, 1024));
        }
        exercise(&core, &channel).await;
        target
    });
    drop(run.expect("the test"));
    engine.shutdown().expect("an orderly shutdown");
}

/// Rows 1, 4 and 36, with the driver and the controller on different cores.
#[test]
fn a_controller_that_fails_or_goes_fails_its_io() {
    for gone in [true, false] {
        let engine = engine();
        let run = engine.run(0, move |core| async move {
            let faults = Faults::new();
            let target = target(&core, memory_node(), &faults).await;
            let (_host, channel) = attach(&core, &target).await;
            let which = Match { opcode: Some(nvm::READ), ..Match::default() };
            faults.complete(which.nth(2), CompletionFault::Lost);
            for lost in [false, true] {
                let buf = core.arena().alloc(512, 4096).expect("memory");
                let reading = channel.submit(Op::read(0, buf));
                reading.expect("room");
                channel.kick();
                if lost {
                    core.sleep(Duration::from_millis(20)).await;
                    assert_eq!(channel.poll(|_| {}), 0);
                    if gone {
                        faults.set_gone(true);
                    } else {
                        faults.set_csts(2, 0);
                    }
                }
                let mut ended = None;
                while ended.is_none() {
                    core.yield_now().await;
                    channel.poll(|completion| ended = Some(completion));
                }
                let kind = ended.expect("ended").result.map_err(|fault| fault.kind);
                let dead = if gone { ErrorKind::Gone } else { ErrorKind::Io };
                assert_eq!(kind, if lost { Err(dead) } else { Ok(()) });
            }
            (target, faults)
        });
        let (target, faults) = run.expect("the test");
        faults.clear();
        // The driver says that its controller is gone; the engine ends all the same.
        let _ = engine.shutdown();
        drop(target);
    }
}

/// Rows 2, 3, 7 and 36: what can go wrong at attach.
#[test]
fn attach_says_what_is_wrong() {
    let engine = engine();
    let run = engine.run(0, |core| async move {
        let faults = Faults::new();
        let target = target(&core, memory_node(), &faults).await;
        let refused = async |faults: &Arc<Faults>| {
            let attached = Host::attach(&core, target.function(), NvmeOptions::default()).await;
            faults.clear();
            attached.map(|host| format!("{host:?}")).expect_err("a refusal")
        };
        faults.set_gone(true);
        assert_eq!(refused(&faults).await.kind(), ErrorKind::Gone);
        faults.answer(Match::admin(admin::IDENTIFY), 0, Status::INTERNAL_ERROR);
        assert_eq!(refused(&faults).await.kind(), ErrorKind::Io);
        faults.patch_identify(1, 512, &[0x55]);
        assert!(refused(&faults).await.to_string().contains("SQES 0x55"));
        faults.set_readiness(Readiness::After(50));
        let refusal = Status::INVALID_QUEUE_SIZE.dnr();
        faults.answer(Match::admin(admin::CREATE_SQ).nth(1), 0, refusal);
        let host = Host::attach(&core, target.function(), NvmeOptions::default()).await;
        let host = host.expect("ready after a while");
        let node = Node::new("nvme0n1", host.namespace(1).expect("namespace 1"));
        let error = core.open(&node).await.map(|_| ()).expect_err("a refusal");
        assert!(error.to_string().contains("invalid queue size"), "{error}");
        let channel = core.open(&node).await.expect("a queue, the second time");
        exercise(&core, &channel).await;
        target
    });
    drop(run.expect("the test"));
    engine.shutdown().expect("an orderly shutdown");
}

/// An engine that fails with I/O in flight stops its controller before its memory is freed: the
/// target, on an engine of its own, has no queue left that it could write to.
#[test]
fn a_failed_engine_leaves_no_controller_at_work() {
    let server = Engine::with_cores(1, Options::default()).expect("an engine");
    let faults = Faults::new();
    let served = faults.clone();
    let target = server.run(0, |core| async move {
        let options = NullOptions { latency_ns: 30_000_000, ..NullOptions::default() };
        let node = Node::new("null0", null::open(options).expect("a null device"));
        let namespaces = vec![NamespaceOptions::new(node, 512)];
        let options = ControllerOptions { namespaces, ..ControllerOptions::default() };
        fault::start(&core, options, &served).await.expect("a controller")
    });
    let target = target.expect("its core");
    let function = target.function();
    let engine = engine();
    let failed: Result<(), _> = engine.run(0, |core| async move {
        let host = Host::attach(&core, function, NvmeOptions::default()).await.expect("attach");
        let node = Node::new("nvme0n1", host.namespace(1).expect("namespace 1"));
        let channel = core.open(&node).await.expect("a queue");
        for n in 0..32 {
            let buf = core.arena().alloc(4096, 4096).expect("memory");
            channel.submit(Op::read(n * 4096, buf)).expect("room");
        }
        channel.kick();
        core.yield_now().await;
        panic!("a task that fails");
    });
    assert!(failed.expect_err("the engine failed").to_string().contains("a task that fails"));
    assert!(engine.shutdown().is_err());
    let deleted = faults.seen(true, admin::DELETE_SQ) > 0;
    let csts = target.function().bar(0).expect("registers").read32(0x1c);
    assert!(deleted || csts & 1 == 0, "queues are deleted, or the controller is disabled");
    drop(target);
    server.shutdown().expect("an orderly shutdown");
}
