//! Drained sections: what waits, what is waited for, and how they end.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::leaf::{Awkward, AwkwardOptions};
use super::routes::window;
use super::{buf, options};
use crate::{
    Channel, Completion, Core, DrainedSource, ErrorKind, Full, Node, Op, Options, Scope, Simulation,
};

const LEN: u64 = 1 << 16;

fn simulation(cores: usize, slots: usize) -> Simulation {
    Simulation::new(cores, 1, Options { ..options(slots) }).expect("a simulation")
}

fn slow_leaf() -> AwkwardOptions {
    let mut options = AwkwardOptions::new(LEN, 512);
    (options.depth, options.delay) = (4, 40);
    options
}

fn write(core: &Core, at: u64) -> Op {
    Op::write(at * 512, buf(core, &[at as u8; 512])).tag(at)
}

async fn turns(core: &Core, count: usize) {
    for _ in 0..count {
        core.yield_now().await;
    }
}

async fn until(core: &Core, told: &AtomicBool) {
    while !told.load(Ordering::SeqCst) {
        core.yield_now().await;
    }
}

async fn take_all(channel: &Channel) -> Vec<Completion> {
    let mut all = Vec::new();
    while channel.in_flight() > 0 {
        channel.poll(|done| all.push(done));
        channel.core().yield_now().await;
    }
    all
}

#[test]
fn nothing_is_under_way_in_a_drained_section_and_what_came_goes_on_in_order() {
    let mut simulation = simulation(2, 8);
    let driver = Awkward::new(slow_leaf());
    let (at_device, seen) = (driver.at_device(), driver.watch());
    let leaf = Node::new("disk", Box::new(driver));
    let node = window("top", 512, &leaf);
    let test = move |core: Core| async move {
        let channel = core.open(&node).await.expect("a channel");
        let direct = core.open(&leaf).await.expect("a channel");
        for at in 0..4 {
            channel.submit(write(&core, at)).expect("a slot");
        }
        // From the other core, which has no user of the node.
        let (same, end) = (node.clone(), Arc::new(AtomicBool::new(false)));
        let told = end.clone();
        let drain = core.remote(1).expect("a core").spawn(move |core| async move {
            let drain = core.drain(Scope::Nodes(vec![same])).await.expect("drained");
            until(&core, &told).await;
            drain.end().await;
        });
        while at_device.load(Ordering::SeqCst) > 0 || !core.is_drained(&node) {
            core.yield_now().await;
        }
        seen();
        for at in 4..8 {
            channel.submit(write(&core, at)).expect("a slot");
        }
        assert_eq!(channel.poll(|done| assert!(done.result.is_ok())), 4);
        turns(&core, 50).await;
        assert_eq!((seen().len(), channel.in_flight()), (0, 4));
        // A user of the leaf itself is not concerned.
        assert!(!core.is_drained(&leaf));
        direct.flush().await.expect("a flush");
        assert_eq!(seen().len(), 1);
        end.store(true, Ordering::SeqCst);
        drain.await.expect("a drain");
        let done = take_all(&channel).await;
        assert!(done.len() == 4 && done.iter().all(|done| done.result.is_ok()));
        let offsets: Vec<u64> = seen().iter().map(|request| request.offset / 512).collect();
        assert_eq!(offsets, [5, 6, 7, 8]);
    };
    simulation.run(0, test).expect("the test ran");
    simulation.shutdown().expect("a shutdown");
}

#[test]
fn sections_nest_cross_and_end_when_they_are_dropped() {
    let mut simulation = simulation(2, 8);
    let leaf = super::node(slow_leaf());
    let node = window("top", 512, &leaf);
    let test = move |core: Core| async move {
        let channel = Rc::new(core.open(&node).await.expect("a channel"));
        let running = core.spawn({
            let channel = channel.clone();
            async move { channel.flush().await }
        });
        // Two cores drain what is above each other's, at once.
        let (top, below) = (node.clone(), leaf.clone());
        let there = core.remote(1).expect("a core").spawn(move |core| async move {
            let drain = core.drain(Scope::Subtrees(vec![top])).await.expect("drained");
            core.sleep(Duration::from_micros(20)).await;
            drop(drain);
        });
        let outer = core.drain(Scope::Nodes(vec![below])).await.expect("drained");
        let inner = core.drain(Scope::Everything).await.expect("drained");
        assert!(running.is_finished());
        there.await.expect("a drain");
        channel.submit(write(&core, 1)).expect("a slot");
        // One that is given up half way ends as well.
        let mut given_up = Box::pin(core.drain(Scope::Everything));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(given_up.as_mut().poll(&mut context).is_pending());
        drop(given_up);
        drop(inner);
        turns(&core, 100).await;
        assert!(core.is_drained(&node), "by the outer one");
        assert_eq!((channel.in_flight(), channel.has_completions()), (1, false));
        outer.end().await;
        assert!(!core.is_drained(&node));
        assert!(take_all(&channel).await[0].result.is_ok());
    };
    simulation.run(0, test).expect("the test ran");
    simulation.shutdown().expect("a shutdown");
}

#[test]
fn a_full_table_pushes_back_and_who_waits_can_be_cancelled_or_leave() {
    let mut simulation = simulation(1, 4);
    let node = super::node(slow_leaf());
    let test = move |core: Core| async move {
        let leaving = core.open(&node).await.expect("a channel");
        let drain = core.drain(Scope::Nodes(vec![node.clone()])).await.expect("drained");
        // Opened within the section, it waits like all others.
        let channel = core.open(&node).await.expect("a channel");
        let ids: Vec<_> =
            (0..3).map(|at| channel.submit(write(&core, at)).expect("a slot")).collect();
        leaving.submit(write(&core, 9)).expect("a slot");
        assert!(matches!(channel.submit(write(&core, 4)), Err(Full(_))));
        assert!(channel.cancel(ids[1]) && !channel.cancel(ids[1]));
        drop(leaving);
        let mut cancelled = Vec::new();
        channel.poll(|done| cancelled.push((done.op.tag, done.result.map_err(|f| f.kind))));
        assert_eq!(cancelled, [(1, Err(ErrorKind::Cancelled))]);
        // Invalid, which it hears of when it is its turn.
        channel.submit(write(&core, LEN)).expect("a slot");
        drain.end().await;
        let mut done: Vec<_> = take_all(&channel).await;
        done.sort_unstable_by_key(|done| done.op.tag);
        let results = done.iter().map(|done| (done.op.tag, done.result.map_err(|f| f.kind)));
        let expected = [(0, Ok(())), (2, Ok(())), (LEN, Err(ErrorKind::Invalid))];
        assert!(results.eq(expected));
        while core.stats().slots_used > 0 {
            core.yield_now().await;
        }
        let (data, _) = channel.read(9 * 512, buf(&core, &[0; 512])).await;
        assert!(data.whole().is_all(9), "what its user left behind was done");
    };
    simulation.run(0, test).expect("the test ran");
    simulation.shutdown().expect("a shutdown");
}

/// A job that copies a block again and again, and is told to rest.
struct Copier {
    is_told: Cell<bool>,
    is_copying: Cell<bool>,
}

impl DrainedSource for Copier {
    fn drained_begin(&self) {
        self.is_told.set(true);
    }

    fn drained_poll(&self) -> bool {
        self.is_copying.get()
    }

    fn drained_end(&self) {
        self.is_told.set(false);
    }
}

#[test]
fn a_source_brings_to_an_end_what_it_has_begun_before_anything_waits() {
    let mut simulation = simulation(2, 8);
    let (from, to) = (super::node(slow_leaf()), super::node(slow_leaf()));
    let test = move |core: Core| async move {
        let copier = Rc::new(Copier { is_told: Cell::new(false), is_copying: Cell::new(false) });
        let guard = core.add_drained_source(&to, copier.clone());
        let (job, there, source, target) = (copier.clone(), core.clone(), from.clone(), to.clone());
        let copies = Rc::new(Cell::new(0));
        let count = copies.clone();
        drop(core.spawn(async move {
            let source = there.open(&source).await.expect("a channel");
            let target = there.open(&target).await.expect("a channel");
            loop {
                if !job.is_told.get() {
                    job.is_copying.set(true);
                    let (data, read) = source.read(0, buf(&there, &[0; 512])).await;
                    let (_, written) = target.write(0, data).await;
                    if read.and(written).is_err() {
                        return;
                    }
                    job.is_copying.set(false);
                    count.set(count.get() + 1);
                }
                there.yield_now().await;
            }
        }));
        while !copier.is_copying.get() {
            core.yield_now().await;
        }
        let (node, end) = (to.clone(), Arc::new(AtomicBool::new(false)));
        let told = end.clone();
        let drained = core.remote(1).expect("a core").spawn(move |core| async move {
            let drain = core.drain(Scope::Nodes(vec![node])).await.expect("drained");
            until(&core, &told).await;
            drain.end().await;
        });
        while !copier.is_told.get() || copier.is_copying.get() {
            core.yield_now().await;
        }
        turns(&core, 100).await;
        let before = copies.get();
        turns(&core, 100).await;
        assert_eq!((copies.get(), copier.is_copying.get()), (before, false), "it rests");
        end.store(true, Ordering::SeqCst);
        drained.await.expect("a drain");
        assert!(!copier.is_told.get());
        while copies.get() == before {
            core.yield_now().await;
        }
        drop(guard);
        let drain = core.drain(Scope::Everything).await.expect("drained");
        assert!(!copier.is_told.get(), "nobody is told any more");
        drain.end().await;
    };
    simulation.run(0, test).expect("the test ran");
    simulation.shutdown().expect("a shutdown");
}

/// What is withdrawn or closed within a section: its operations hear of that at the end of it.
#[test]
fn a_leaf_that_goes_within_a_section_fails_what_waited_and_holds_up_nobody() {
    let mut simulation = simulation(2, 8);
    let nodes = [super::node(slow_leaf()), super::node(slow_leaf())];
    let test = move |core: Core| async move {
        for (at, node) in nodes.into_iter().enumerate() {
            let channel = core.open(&node).await.expect("a channel");
            let drain = core.drain(Scope::Nodes(vec![node.clone()])).await.expect("drained");
            channel.submit(write(&core, 1)).expect("a slot");
            if at == 0 {
                core.withdraw(&node, ErrorKind::Gone, "unplugged").await.expect("withdrawn");
            }
            core.close(&node).await.expect("closed");
            assert!(!channel.has_completions());
            drain.end().await;
            let done = take_all(&channel).await;
            assert_eq!(done[0].result.map_err(|fault| fault.kind), Err(ErrorKind::Gone));
        }
    };
    simulation.run(0, test).expect("the test ran");
    simulation.shutdown().expect("a shutdown");
}

#[test]
fn an_engine_ends_within_a_section() {
    for is_orderly in [true, false] {
        let engine = crate::Engine::with_cores(2, options(8)).expect("an engine");
        let leaf: Arc<Node> = super::node(slow_leaf());
        let run = engine.run(0, move |core| async move {
            let channel = core.open(&leaf).await.expect("a channel");
            let drain = core.drain(Scope::Everything).await.expect("drained");
            let there = core.clone();
            drop(core.spawn(async move {
                let (_, result) = channel.write(0, buf(&there, &[1; 512])).await;
                drop((result, drain));
            }));
            turns(&core, 10).await;
            assert!(is_orderly, "a failure");
        });
        assert_eq!(run.is_ok(), is_orderly);
        assert_eq!(engine.shutdown().is_ok(), is_orderly);
    }
}
