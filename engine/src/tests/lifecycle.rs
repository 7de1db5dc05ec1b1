//! Engines: messages, sleep, shutdown, failure, simulated time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::leaf::AwkwardOptions;
use super::{buf, node, options, reactor};
use crate::{Engine, Error, ErrorKind, Op, Simulation};

#[test]
fn cores_call_each_other_both_ways() {
    let engine = Engine::with_cores(3, options(16)).unwrap();
    let sum = engine.run(0, |core| async move {
        let mut sum = 0;
        for n in 0..3000 {
            sum += core.call(1 + n % 2, move |there| async move { there.id() * n }).await.unwrap();
        }
        sum
    });
    assert_eq!(sum.unwrap(), (0..3000).map(|n| (1 + n % 2) * n).sum::<usize>());
    engine.shutdown().unwrap();
}

#[test]
fn an_idle_core_sleeps_and_wakes_for_messages_and_timers() {
    let engine = Engine::with_cores(1, options(16)).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(engine.run(0, |_| async { 7 }).unwrap(), 7);
    }
    let begun = Instant::now();
    engine.run(0, |core| async move { core.sleep(Duration::from_millis(30)).await }).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(30));
    engine.shutdown().unwrap();
}

#[test]
fn shutdown_waits_for_io_in_flight_and_closes_in_reverse_order() {
    let mut slow = AwkwardOptions::new(1 << 20, 512);
    slow.delay = 500;
    let (first, second) = (node(slow.clone()), node(slow));
    let order = Arc::new(Mutex::new(Vec::new()));
    let engine = Engine::with_cores(2, options(16)).unwrap();
    let completed = Arc::new(AtomicUsize::new(0));
    for (core, name) in [(0, "first"), (1, "second")] {
        let (order, node) = (order.clone(), if core == 0 { first.clone() } else { second.clone() });
        let completed = completed.clone();
        engine
            .run(core, move |core| async move {
                core.at_shutdown(move |_| {
                    order.lock().unwrap().push(name);
                    Box::pin(async { Ok(()) })
                });
                let channel = core.open(&node).await.unwrap();
                core.clone().spawn(async move {
                    let write = channel.run(Op::write(0, buf(channel.core(), &[1; 4096]))).await;
                    assert!(write.result.is_ok());
                    completed.fetch_add(1, Ordering::SeqCst);
                });
                core.yield_now().await;
                core.yield_now().await;
            })
            .unwrap();
    }
    engine.shutdown().unwrap();
    assert_eq!(*order.lock().unwrap(), ["second", "first"]);
    assert_eq!(completed.load(Ordering::SeqCst), 2);
}

#[test]
fn a_panic_in_a_task_fails_its_engine_and_no_other() {
    let (one, other) =
        (Engine::with_cores(2, options(16)).unwrap(), Engine::with_cores(1, options(16)).unwrap());
    let hit = one.run(1, |_| async { panic!("the story of this panic") });
    let error: Error = hit.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().contains("the story of this panic"), "{error}");
    let after = one.run(0, |_| async {}).unwrap_err();
    assert_eq!(after.kind(), ErrorKind::Failed);
    assert!(one.shutdown().is_err());
    assert_eq!(other.run(0, |_| async { 1 }).unwrap(), 1);
    other.shutdown().unwrap();
}

#[test]
fn operations_after_a_close_fail_and_say_why() {
    let node = node(AwkwardOptions::new(1 << 20, 512));
    let reactor = reactor(4);
    let core = reactor.core().clone();
    let text = reactor
        .block_on(async move {
            let channel = core.open(&node).await.unwrap();
            core.close(&node).await.unwrap();
            channel.flush().await.unwrap_err().to_string()
        })
        .unwrap();
    assert!(text.contains("the node was closed"), "{text}");
    reactor.shutdown().unwrap();
}

/// Two tasks opened a node at once; each got a queue, and the second was dropped with the
/// device still knowing it.
#[test]
fn tasks_that_open_a_node_at_once_share_one_queue() {
    let mut slow = AwkwardOptions::new(1 << 20, 512);
    slow.open_turns = 20;
    let driver = super::leaf::Awkward::new(slow);
    let queues = driver.queues();
    let node = crate::Node::new("disk", Box::new(driver));
    let reactor = reactor(4);
    let core = reactor.core().clone();
    reactor
        .block_on(async move {
            let open = |_| {
                let (core, node) = (core.clone(), node.clone());
                core.clone().spawn(async move { core.open(&node).await.map(drop) })
            };
            for task in (0..3).map(open).collect::<Vec<_>>() {
                task.await.unwrap().unwrap();
            }
        })
        .unwrap();
    assert_eq!(queues.load(Ordering::SeqCst), 1);
    reactor.shutdown().unwrap();
}

fn trace(seed: u64) -> Vec<(u64, usize, u64)> {
    let mut simulation = Simulation::new(3, seed, options(4)).unwrap();
    let trace = Arc::new(Mutex::new(Vec::new()));
    let node = node(AwkwardOptions::new(1 << 20, 512));
    let ours = trace.clone();
    simulation
        .run(0, move |core| async move {
            let mut tasks = Vec::new();
            for n in 0..30u64 {
                let (node, trace, core) = (node.clone(), ours.clone(), core.clone());
                tasks.push(core.clone().spawn(async move {
                    let work = core.call(n as usize % 3, move |core| async move {
                        core.sleep(Duration::from_nanos(core.random() % 50_000)).await;
                        let channel = core.open(&node).await.unwrap();
                        channel.discard(core.random() % 100 * 512, 512).await.unwrap();
                        trace.lock().unwrap().push((core.now(), core.id(), n));
                    });
                    work.await.unwrap();
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
        })
        .unwrap();
    Arc::try_unwrap(trace).map(|t| t.into_inner().unwrap()).unwrap_or_default()
}

#[test]
fn a_simulation_replays_from_its_seed() {
    let first = trace(7);
    assert_eq!(first.len(), 30);
    assert_eq!(first, trace(7));
    assert_ne!(first, trace(8));
}

#[test]
fn a_simulation_reports_a_deadlock() {
    let mut simulation = Simulation::new(2, 1, options(4)).unwrap();
    let error = simulation.run(0, |_| std::future::pending::<()>()).unwrap_err();
    assert!(error.to_string().contains("deadlock"), "{error}");
}

/// A task that looks again and again, with a yield in between, kept simulated time from going on
/// but by the turn: waiting for a second took millions of them.
#[test]
fn simulated_time_leaps_past_a_task_that_only_yields() {
    let mut simulation = Simulation::new(3, 1, options(4)).unwrap();
    let looks = simulation.run(1, |core| async move {
        let sleeper = core.clone();
        let slept = core.spawn(async move { sleeper.sleep(Duration::from_secs(1)).await });
        let mut looks = 0;
        while !slept.is_finished() {
            looks += 1;
            core.yield_now().await;
        }
        looks
    });
    assert!(looks.as_ref().is_ok_and(|looks| *looks < 100), "{looks:?}");
    assert!(simulation.clock().now() >= 1_000_000_000);
}
