//! The cost of one I/O and of its parts: `cargo bench -p oxblock-bench`.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use oxblock_bench::options::{JobOptions, Rw};
use oxblock_bench::pattern::{Order, Steps};
use oxblock_bench::run::{Session, run};
use oxblock_bench::stats::Latency;
use oxblock_bench::verify::{Checker, Expected, Method, Recipe, Write};
use oxblock_drivers::cow::{self, CowOptions};
use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_drivers::null::{self, NullOptions};
use oxblock_engine::{Core, Driver, Engine, Node, Options};
use oxblock_mem::spsc;

/// One whole I/O of a job: generator, engine, leaf and accounting.
fn whole(c: &mut Criterion) {
    let mut group = c.benchmark_group("read_4k_qd32");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    group.measurement_time(Duration::from_secs(3));
    let null = null::open(NullOptions { size: 1 << 40, ..NullOptions::default() });
    let memory = memory::open(MemoryOptions { size: 256 << 20, block_size: 512 });
    for (name, driver) in [("null", null), ("memory", memory)] {
        let driver: Box<dyn Driver> = driver.expect("a driver");
        let engine = Engine::with_cores(1, Options::default()).expect("an engine");
        let node = Node::new(name, driver);
        let stop = Arc::new(AtomicBool::new(false));
        let session = Session {
            engine: &engine,
            node: &node,
            target: name,
            cores: &[0],
            serving: &[],
            stop: &stop,
        };
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|ios| {
                let options = JobOptions {
                    rw: Rw::RandRead,
                    io_depth: 32,
                    io_size: Some(ios * 4096),
                    ..JobOptions::default()
                };
                let report = run(&session, options, &mut |_| {}).expect("a run");
                Duration::from_nanos(report.group().runtime_ns)
            });
        });
        engine.shutdown().expect("an orderly end");
    }
    group.finish();
}

/// The same through an overlay: reads from below, and reads and writes of what is in memory.
fn overlay(c: &mut Criterion) {
    let mut group = c.benchmark_group("overlay_4k_qd32");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    group.measurement_time(Duration::from_secs(3));
    const SIZE: u64 = 64 << 20;
    let engine = Engine::with_cores(1, Options::default()).expect("an engine");
    let node = |name: &'static str| {
        let below = memory::open(MemoryOptions { size: SIZE, block_size: 512 });
        let below = Node::new("below", below.expect("a memory disk"));
        let open = move |core: Core| async move {
            let body = cow::open(&core, name, Some(&below), CowOptions::default());
            Node::with_body(name, body.expect("an overlay"), false)
        };
        engine.run(0, open).expect("a node")
    };
    let stop = Arc::new(AtomicBool::new(false));
    let job = |node: &Arc<Node>, rw, io_size| {
        let session = Session {
            engine: &engine,
            node,
            target: "cow",
            cores: &[0],
            serving: &[],
            stop: &stop,
        };
        let io_size = Some(io_size);
        let options = JobOptions { rw, io_depth: 32, io_size, ..JobOptions::default() };
        let report = run(&session, options, &mut |_| {}).expect("a run");
        Duration::from_nanos(report.group().runtime_ns)
    };
    let below = node("below");
    group.bench_function("read/below", |bencher| {
        bencher.iter_custom(|ios| job(&below, Rw::RandRead, ios * 4096));
    });
    let memory = node("memory");
    job(&memory, Rw::Write, SIZE);
    for (name, rw) in [("read/memory", Rw::RandRead), ("write/memory", Rw::RandWrite)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|ios| job(&memory, rw, ios * 4096));
        });
    }
    group.finish();
    engine.shutdown().expect("an orderly end");
}

/// What the harness adds to an I/O.
fn parts(c: &mut Criterion) {
    for (name, order) in
        [("random_once", Order::RandomOnce), ("random", Order::Random), ("seq", Order::Sequential)]
    {
        let mut steps = Steps::new(order, 1 << 28, 70, 1);
        c.bench_function(&format!("steps/{name}"), |b| b.iter(|| steps.next_step()));
    }
    let mut latency = Latency::new();
    let mut ns = 900;
    c.bench_function("latency/record", |b| {
        b.iter(|| {
            ns = (ns * 5 + 7) % 4096;
            latency.record(black_box(ns));
        });
    });
    for method in [Method::Crc32c, Method::Xxhash, Method::Sha256, Method::Meta] {
        let recipe = Recipe { method, seed: 1, pattern: None, header_at: 0 };
        let write = Write { file: 0, offset: 4096, stamp: 2, generation: 1 };
        let (mut block, name) = (vec![0; 4096], method.word());
        c.bench_function(&format!("verify/fill_4k/{name}"), |b| {
            b.iter(|| recipe.fill(black_box(write), &mut block));
        });
        let mut checker = Checker::new(recipe, Some(2), 512);
        c.bench_function(&format!("verify/check_4k/{name}"), |b| {
            b.iter(|| checker.check(0, 4096, Expected::Write(1), black_box(&mut block)));
        });
        assert_eq!(checker.report().bad, 0);
    }
}

/// A message through a ring between two cores, both ends on this one.
fn rings(c: &mut Criterion) {
    let (mut producer, mut consumer) = spsc::ring::<u64>(256);
    c.bench_function("spsc/push_pop", |b| {
        b.iter(|| {
            let _ = producer.push(black_box(1));
            consumer.pop()
        });
    });
}

criterion_group!(benches, whole, overlay, parts, rings);
criterion_main!(benches);
