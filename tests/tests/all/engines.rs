//! Whole engines: several in a process, simulated time, shutdown, failure, idleness.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oxblock_drivers::{file, memory, null, nvme};
use oxblock_engine::{Channel, Core, Engine, ErrorKind, Node, Op, Options, Simulation};
use oxblock_mem::{ArenaOptions, Buf, IoVector};
use oxblock_nvmet::{Controller, ControllerOptions, NamespaceOptions};
use oxblock_tests::random::{Random, seed};

fn options() -> Options {
    Options { arena: ArenaOptions::new(8 << 20), ..Options::default() }
}

fn memory_node(size: u64) -> Arc<Node> {
    let driver = memory::open(memory::MemoryOptions { size, block_size: 512 });
    Node::new("memory0", driver.expect("a memory disk"))
}

fn null_node(latency_ns: u64) -> Arc<Node> {
    let driver = null::open(null::NullOptions { latency_ns, ..Default::default() });
    Node::new("null0", driver.expect("a null device"))
}

fn file_node(path: &Path, size: u64) -> Arc<Node> {
    let options = file::FileOptions { size: Some(size), ..file::FileOptions::new(path) };
    Node::new("file0", file::open(options).expect("a file"))
}

fn buf(core: &Core, bytes: &[u8]) -> Buf {
    let mut buf = core.arena().alloc(bytes.len(), 4096).expect("memory of the arena");
    buf.write_at(0, bytes);
    buf
}

/// Writes `rounds` blocks, each over and over, and reads them back.
async fn exercise(core: Core, node: Arc<Node>, rounds: u64) {
    let channel = core.open(&node).await.expect("a channel");
    let mut random = Random::new(rounds + core.id() as u64);
    let mine = core.id() as u64 * 64;
    for _ in 0..rounds {
        let offset = (mine + random.within(0..64)) * 512;
        let bytes = random.bytes(512);
        let (data, result) = channel.write(offset, buf(&core, &bytes)).await;
        result.expect("a write");
        let (data, result) = channel.read(offset, zeroed(data)).await;
        result.expect("a read");
        let mut read = vec![0; 512];
        data.read_at(0, &mut read);
        assert_eq!(read, bytes);
        core.yield_now().await;
    }
}

fn zeroed(mut data: IoVector) -> IoVector {
    data.fill(0, data.len(), 0);
    data
}

#[test]
fn two_engines_live_in_one_process() {
    let engines = [1, 2].map(|cores| Engine::with_cores(cores, options()).expect("an engine"));
    let nodes = [memory_node(1 << 20), memory_node(1 << 20)];
    std::thread::scope(|scope| {
        for (engine, node) in engines.iter().zip(&nodes) {
            for core in 0..engine.cores() {
                scope.spawn(move || {
                    let node = node.clone();
                    engine.run(core, move |core| exercise(core, node, 300)).expect("its work")
                });
            }
        }
    });
    let [first, second] = engines;
    first.shutdown().expect("an orderly end of the first");
    let node = nodes[1].clone();
    second.run(1, move |core| exercise(core, node, 300)).expect("the second goes on");
    second.shutdown().expect("an orderly end of the second");
}

#[test]
fn one_engine_fails_and_another_goes_on() {
    let failing = Engine::with_cores(1, options()).expect("an engine");
    let other = Engine::with_cores(1, options()).expect("an engine");
    let node = memory_node(1 << 20);
    let run = failing.run(0, |_| async { panic!("on purpose") });
    assert_eq!(run.map_err(|error| error.kind()), Err::<(), _>(ErrorKind::Failed));
    other.run(0, move |core| exercise(core, node, 100)).expect("its work");
    other.shutdown().expect("an orderly end");
    assert!(failing.shutdown().is_err());
}

#[test]
fn more_reactors_than_processors_all_get_their_turns() {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let engine = Engine::with_cores(3 * processors, options()).expect("an engine");
    let node = memory_node(1 << 20);
    std::thread::scope(|scope| {
        for core in 0..engine.cores() {
            let (engine, node) = (&engine, node.clone());
            scope.spawn(move || {
                engine.run(core, move |core| exercise(core, node, 100)).expect("its work")
            });
        }
    });
    engine.shutdown().expect("an orderly end");
}

/// What happened, when, and on which core.
type Trace = Vec<(u64, usize, &'static str, u64)>;

/// Random operations on two cores, with sleeps and with calls between the cores.
fn simulate(seed: u64, nodes: [Arc<Node>; 2]) -> Trace {
    let mut simulation = Simulation::new(2, seed, options()).expect("a simulation");
    let trace: Rc<RefCell<Trace>> = Rc::default();
    let run = simulation.run(0, |core| {
        let trace = trace.clone();
        async move {
            let theirs = {
                let (core, nodes) = (core.clone(), nodes.clone());
                core.clone().spawn(async move {
                    core.call(1, move |core| async move {
                        let trace: Rc<RefCell<Trace>> = Rc::default();
                        work(&core, &nodes, &trace).await;
                        trace.take()
                    })
                    .await
                })
            };
            work(&core, &nodes, &trace).await;
            let theirs = theirs.await.and_then(|result| result).expect("the other core");
            trace.borrow_mut().extend(theirs);
        }
    });
    run.expect("no deadlock");
    trace.take()
}

async fn work(core: &Core, nodes: &[Arc<Node>; 2], trace: &Rc<RefCell<Trace>>) {
    let note = |what, offset| trace.borrow_mut().push((core.now(), core.id(), what, offset));
    let mut channels = Vec::new();
    for node in nodes {
        channels.push(core.open(node).await.expect("a channel"));
    }
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let (core, trace) = (core.clone(), trace.clone());
        let channel = core.open(&nodes[0]).await.expect("a channel");
        tasks.push(core.clone().spawn(async move {
            for _ in 0..20 {
                let offset = core.random() % 1000 * 512;
                let (_, result) = channel.read(offset, buf(&core, &[0; 512])).await;
                result.expect("a read");
                trace.borrow_mut().push((core.now(), core.id(), "read", offset));
            }
        }));
    }
    for _ in 0..40 {
        let channel = &channels[(core.random() % 2) as usize];
        let offset = core.random() % 1000 * 512;
        if core.random().is_multiple_of(4) {
            core.sleep(Duration::from_nanos(core.random() % 100_000)).await;
            note("slept", 0);
        } else {
            let (_, result) = channel.write(offset, buf(core, &[7; 512])).await;
            result.expect("a write");
            note("write", offset);
        }
    }
    for task in tasks {
        task.await.expect("a task");
    }
}

fn simulated_nodes() -> [Arc<Node>; 2] {
    [null_node(7_000), memory_node(1 << 20)]
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let seed = seed(0x5eed).random(0).bits();
    let first = simulate(seed, simulated_nodes());
    assert!(first.len() > 200, "only {} events", first.len());
    assert!(first.iter().any(|event| event.1 == 1), "nothing happened on the second core");
    assert_eq!(first, simulate(seed, simulated_nodes()));
    assert_ne!(first, simulate(seed + 1, simulated_nodes()), "another seed, the same trace");
}

/// The same two cores, with the software controller on the second and its host on the first.
fn simulate_nvme(seed: u64) -> Trace {
    let mut simulation = Simulation::new(2, seed, options()).expect("a simulation");
    let below = memory_node(1 << 20);
    let run = simulation.run(0, |core| async move {
        let namespaces = vec![NamespaceOptions::new(below, 512)];
        let options = ControllerOptions { namespaces, ..ControllerOptions::default() };
        let start = move |core: Core| async move { Controller::start(&core, options).await };
        let controller = core.call(1, start).await.and_then(|result| result).expect("a controller");
        let function = controller.function();
        let host = nvme::Controller::attach(&core, function, nvme::NvmeOptions::default()).await;
        let host = host.expect("the driver");
        let node = Node::new("nvme0n1", host.namespace(1).expect("namespace 1"));
        let trace: Rc<RefCell<Trace>> = Rc::default();
        work(&core, &[node.clone(), node.clone()], &trace).await;
        core.close(&node).await.expect("its close");
        host.shutdown(&core).await.expect("its shutdown");
        trace.borrow_mut().push((core.now(), 0, "shut down", 0));
        (trace.take(), controller)
    });
    run.expect("no deadlock").0
}

#[test]
fn the_software_controller_lives_in_simulated_time_too() {
    let seed = seed(0x501d).random(0).bits();
    let first = simulate_nvme(seed);
    assert!(first.len() > 100, "only {} events", first.len());
    assert_eq!(first, simulate_nvme(seed));
    assert_ne!(first, simulate_nvme(seed + 1), "another seed, the same trace");
}

#[test]
fn simulated_hours_pass_in_no_time() {
    let mut simulation = Simulation::new(1, 1, options()).expect("a simulation");
    let node = null_node(3_600_000_000_000);
    let begun = std::time::Instant::now();
    let passed = simulation.run(0, |core| async move {
        let channel = core.open(&node).await.expect("a channel");
        let (_, result) = channel.read(0, buf(&core, &[0; 512])).await;
        result.expect("a read");
        core.now()
    });
    assert!(passed.expect("no deadlock") >= 3_600_000_000_000);
    assert!(begun.elapsed() < Duration::from_secs(60));
}

/// Submits writes through futures that nobody waits for.
async fn leave_in_flight(core: Core, channel: Channel, count: u64, ended: Arc<AtomicUsize>) {
    let channel = Rc::new(channel);
    for n in 0..count {
        let (core, channel, ended) = (core.clone(), channel.clone(), ended.clone());
        core.clone().spawn(async move {
            let data = buf(&core, &[n as u8 + 1; 4096]);
            if channel.run(Op::write(n * 4096, data)).await.result.is_ok() {
                ended.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while channel.in_flight() < count as usize {
        core.yield_now().await;
    }
}

#[test]
fn an_orderly_shutdown_waits_for_what_is_in_flight() {
    let engine = Engine::with_cores(2, options()).expect("an engine");
    let node = null_node(50_000_000);
    let ended = Arc::new(AtomicUsize::new(0));
    for core in 0..2 {
        let (node, ended) = (node.clone(), ended.clone());
        let run = engine.run(core, move |core| async move {
            let channel = core.open(&node).await.expect("a channel");
            leave_in_flight(core, channel, 40, ended).await;
        });
        run.expect("its work");
    }
    engine.shutdown().expect("an orderly end");
    assert_eq!(ended.load(Ordering::Relaxed), 80);
}

#[test]
fn a_shutdown_carries_out_the_writes_of_dropped_futures() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let node = file_node(&path, 64 * 4096);
    let engine = Engine::with_cores(1, options()).expect("an engine");
    let run = engine.run(0, move |core| async move {
        let channel = core.open(&node).await.expect("a channel");
        for n in 0..64u64 {
            let data = buf(&core, &[n as u8 + 1; 4096]);
            let mut write = std::pin::pin!(channel.run(Op::write(n * 4096, data)));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(write.as_mut().poll(&mut context).is_pending());
        }
    });
    run.expect("its work");
    engine.shutdown().expect("an orderly end");
    let bytes = fs::read(&path).expect("the file");
    for (n, block) in bytes.chunks(4096).enumerate() {
        assert!(block.iter().all(|&byte| byte == n as u8 + 1), "block {n} did not land");
    }
}

#[test]
fn a_panic_fails_the_engine_loudly_with_its_words() {
    let directory = tempfile::tempdir().expect("a directory");
    let nodes = [file_node(&directory.path().join("disk"), 1 << 20), null_node(20_000_000)];
    let engine = Engine::with_cores(2, options()).expect("an engine");
    for core in 0..2 {
        for node in nodes.clone() {
            let run = engine.run(core, move |core| async move {
                let channel = core.open(&node).await.expect("a channel");
                leave_in_flight(core, channel, 8, Arc::default()).await;
            });
            run.expect("its work");
        }
    }
    let run = engine.run(1, |core| async move {
        core.yield_now().await;
        panic!("the cat is on the keyboard");
    });
    let error = run.map(|()| unreachable!()).expect_err("a panic");
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().contains("the cat is on the keyboard"), "{error}");
    let later = engine.run(0, |_| async {});
    assert!(later.is_err(), "a failed engine takes no work");
    assert!(engine.check().is_err());
    let error = engine.shutdown().expect_err("a failed engine");
    assert!(error.to_string().contains("the cat is on the keyboard"), "{error}");
}

/// Leaves 30 commands at a controller over a slow device: it is on the last core, its host on
/// this. It ends when it is dropped.
async fn leave_at_controller(core: Core, ended: Arc<AtomicUsize>) -> Arc<Controller> {
    let namespaces = vec![NamespaceOptions::new(null_node(20_000_000), 512)];
    let options = ControllerOptions { namespaces, ..ControllerOptions::default() };
    let start = move |core: Core| async move { Controller::start(&core, options).await };
    let started = core.call(core.count() - 1, start).await.and_then(|result| result);
    let controller = started.expect("a controller");
    let (function, options) = (controller.function(), nvme::NvmeOptions::default());
    let host = nvme::Controller::attach(&core, function, options).await.expect("the driver");
    let node = Node::new("nvme0n1", host.namespace(1).expect("namespace 1"));
    let channel = core.open(&node).await.expect("a channel");
    leave_in_flight(core, channel, 30, ended).await;
    controller
}

#[test]
fn commands_at_a_controller_end_before_an_orderly_shutdown_does() {
    for cores in [1, 2] {
        let engine = Engine::with_cores(cores, options()).expect("an engine");
        let ended = Arc::new(AtomicUsize::new(0));
        let theirs = ended.clone();
        let run = engine.run(0, move |core| leave_at_controller(core, theirs));
        let _controller = run.expect("its work");
        engine.shutdown().expect("an orderly end");
        assert_eq!(ended.load(Ordering::Relaxed), 30, "{cores} cores");
    }
}

#[test]
fn a_panic_with_commands_at_a_controller_ends_the_engine_all_the_same() {
    for failing in [0, 1] {
        let engine = Engine::with_cores(2, options()).expect("an engine");
        let run = engine.run(0, |core| leave_at_controller(core, Arc::default()));
        let _controller = run.expect("its work");
        let begun = std::time::Instant::now();
        assert!(engine.run(failing, |_| async { panic!("on purpose") }).is_err());
        assert!(engine.shutdown().is_err());
        assert!(begun.elapsed() < Duration::from_secs(30), "core {failing}");
    }
}

/// The processor time of the calling thread in ns.
fn thread_cpu_ns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).expect("a number")
}

/// A reactor that has nothing to do sleeps, whatever is open on it.
///
/// The bound is far above what an idle reactor takes, and far below what one that polls does.
#[test]
fn an_idle_engine_sleeps() {
    let directory = tempfile::tempdir().expect("a directory");
    let nodes =
        [file_node(&directory.path().join("disk"), 1 << 20), null_node(1000), memory_node(1 << 20)];
    let engine = Engine::with_cores(2, options()).expect("an engine");
    let idle = |core| {
        let nodes = nodes.clone();
        let run = engine.run(core, move |core| async move {
            for node in &nodes {
                exercise(core.clone(), node.clone(), 0).await;
            }
            let before = thread_cpu_ns();
            core.sleep(Duration::from_secs(1)).await;
            thread_cpu_ns() - before
        });
        run.expect("its sleep")
    };
    let used = std::thread::scope(|scope| {
        let other = scope.spawn(|| idle(1));
        [idle(0), other.join().expect("the other core")]
    });
    engine.shutdown().expect("an orderly end");
    for ns in used {
        assert!(ns < 50_000_000, "an idle reactor used {ns} ns of a second");
    }
}

/// Sleep must not lose a completion that turns up while the reactor falls asleep: a file's
/// ring wakes it.
#[test]
fn a_sleeping_reactor_hears_of_completions() {
    let directory = tempfile::tempdir().expect("a directory");
    let node = file_node(&directory.path().join("disk"), 1 << 20);
    let mut options = options();
    options.poll_mode = oxblock_engine::PollMode::Adaptive { spin_us: 0 };
    let engine = Engine::with_cores(1, options).expect("an engine");
    let run = engine.run(0, move |core| async move {
        let channel = core.open(&node).await.expect("a channel");
        let begun = std::time::Instant::now();
        for n in 0..40u64 {
            let (_, result) = channel.write(n * 512, buf(&core, &[1; 512])).await;
            result.expect("a write");
            channel.flush().await.expect("a flush");
        }
        begun.elapsed()
    });
    let took = run.expect("its work");
    engine.shutdown().expect("an orderly end");
    assert!(took < Duration::from_secs(30), "40 flushes took {took:?}");
}
