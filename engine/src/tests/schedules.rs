//! Drains, changes of the graph, closing, refreshing and withdrawing against verified I/O, on
//! several cores, in orders that follow from a seed. `OXBLOCK_SCHEDULES` is how many seeds are
//! tried, `OXBLOCK_SEED` the first.
//!
//! What a guest sees of its disk must be what it wrote, whatever the disk is made of meanwhile:
//! each worker has blocks of its own, and a `Vec<u8>` of what is in them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use oxblock_mem::{ArenaOptions, PagePolicy};

use super::leaf::{Awkward, AwkwardOptions};
use super::live::{BLOCK, Layer, Plain, add_leaf, add_over, body};
use super::routes::Random;
use super::{buf, patience};
use crate::graph::{ChildRole, Graph, NewChild, NodeId};
use crate::view::ViewChange;
use crate::{
    Channel, Core, DrainedSource, Driver, Error, ErrorKind, Limits, Node, Op, Options, PollMode,
    Restrictions, Scope, Simulation,
};

/// Blocks of the disk; as many as the simulation's cores can have workers for.
const BLOCKS: u64 = 96;
/// Blocks of one worker.
const SHARE: u64 = 16;
/// Rounds of each worker, and of who changes the graph.
const ROUNDS: usize = 24;
const CHANGES: usize = 8;
/// What all who take part in a run know of it.
struct World {
    graph: Mutex<Option<Graph<Arc<Node>>>>,
    /// The node that guests have for a disk; what takes its place is theirs as well.
    disk: Arc<Node>,
    /// A node of its own, which is closed and withdrawn under its users.
    victim: Arc<Node>,
    places: Places,
    at_device: Vec<Arc<AtomicUsize>>,
    is_out_of_queues: Arc<AtomicBool>,
    grow: Box<dyn Fn(Limits) + Send + Sync>,
    /// The disk's device by another driver.
    again: Box<dyn Fn() -> Awkward + Send + Sync>,
    /// Workers that go on.
    at_work: AtomicUsize,
    withdrawn: AtomicBool,
}

/// The nodes that changes begin with.
#[derive(Clone, Copy)]
struct Places {
    file: NodeId,
    twin: NodeId,
    spare: NodeId,
    top: NodeId,
}

fn leaf_options(random: &mut Random) -> AwkwardOptions {
    let mut options = AwkwardOptions::new(BLOCKS * BLOCK, BLOCK as u32);
    options.depth = 1 + random.below(4) as usize;
    options.delay = random.below(12) as usize;
    options.open_turns = random.below(4) as usize;
    if random.below(2) == 0 {
        options.limits.max_transfer = BLOCK as u32;
    }
    options.limits.volatile_cache = random.below(2) == 0;
    options
}

fn world(random: &mut Random) -> World {
    let mut graph = Graph::new();
    let driver = Awkward::new(leaf_options(random));
    let (twin, again) = (driver.twin(), driver.twin());
    let spare = Awkward::new(leaf_options(random));
    let (victim, change) = (Awkward::new(leaf_options(random)), spare.change());
    let at_device = vec![driver.at_device(), spare.at_device(), victim.at_device()];
    let is_out_of_queues = driver.out_of_queues();
    let file = add_leaf(&mut graph, "file", driver);
    let twin = add_leaf(&mut graph, "twin", twin);
    let spare = add_leaf(&mut graph, "spare", spare);
    let top = add_over(&mut graph, "top", Plain, ChildRole::FILTERED, file);
    let victim = Node::new("victim", Box::new(victim));
    World {
        disk: body(&graph, top),
        victim: super::routes::window("over-victim", 0, &victim),
        graph: Mutex::new(Some(graph)),
        places: Places { file, twin, spare, top },
        at_device,
        is_out_of_queues,
        grow: Box::new(change),
        again: Box::new(move || again.twin()),
        at_work: AtomicUsize::new(0),
        withdrawn: AtomicBool::new(false),
    }
}

/// A guest with blocks of its own.
struct Guest {
    core: Core,
    world: Arc<World>,
    random: Random,
    first: u64,
    contents: Vec<u8>,
}

impl Guest {
    async fn work(mut self) {
        let mut channel = self.open().await;
        for round in 0..ROUNDS {
            if self.random.below(6) == 0 {
                drop(channel);
                for _ in 0..self.random.below(40) {
                    self.core.yield_now().await;
                }
                channel = self.open().await;
            }
            let result = self.one(&channel, round as u8).await;
            result.unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        for block in 0..SHARE {
            self.check(&channel, block, 1).await.expect("a read at the end");
        }
        self.world.at_work.fetch_sub(1, Ordering::SeqCst);
    }

    async fn open(&mut self) -> Channel {
        let disk = self.world.disk.clone();
        loop {
            match self.core.open(&disk).await {
                Ok(channel) => return channel,
                // For a while there are no queues.
                Err(error) => assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}"),
            }
            self.core.yield_now().await;
        }
    }

    async fn one(&mut self, channel: &Channel, value: u8) -> Result<(), Error> {
        let block = self.random.below(SHARE);
        let count = 1 + self.random.below((SHARE - block).min(4));
        let (at, len) = ((self.first + block) * BLOCK, count * BLOCK);
        let range = (block * BLOCK) as usize..((block + count) * BLOCK) as usize;
        match self.random.below(8) {
            0 => return channel.flush().await,
            1 => {
                channel.write_zeroes(at, len).await?;
                self.contents[range].fill(0);
            }
            2..5 => {
                let value = value.wrapping_mul(37) ^ self.first as u8;
                let bytes = super::pattern(len as usize, value);
                self.contents[range].copy_from_slice(&bytes);
                channel.write(at, buf(&self.core, &bytes)).await.1?;
            }
            5 => {
                // Given up half way: it ends by itself, and nobody hears of it.
                let data = buf(&self.core, &vec![0; len as usize]);
                let mut run = pin!(channel.run(Op::read(at, data)));
                let polls = self.random.below(4);
                for _ in 0..polls {
                    let poll = poll_fn(|cx| Poll::Ready(run.as_mut().poll(cx).is_ready())).await;
                    if poll {
                        break;
                    }
                    self.core.yield_now().await;
                }
            }
            _ => return self.check(channel, block, count).await,
        }
        Ok(())
    }

    async fn check(&mut self, channel: &Channel, block: u64, count: u64) -> Result<(), Error> {
        let (at, len) = ((self.first + block) * BLOCK, (count * BLOCK) as usize);
        let (data, result) = channel.read(at, buf(&self.core, &vec![0xee; len])).await;
        result?;
        let mut bytes = vec![0; len];
        data.view(0, len).copy_to(&mut bytes);
        let from = (block * BLOCK) as usize;
        assert!(bytes == self.contents[from..from + len], "blocks from {}", self.first + block);
        Ok(())
    }
}

/// A user of what goes: each of its operations ends once, well or because it went.
async fn bear_with_ends(core: Core, world: Arc<World>, mut random: Random) {
    let mut channel = None;
    let (mut sent, mut done) = (0, 0);
    for round in 0..ROUNDS {
        let known = match channel.take() {
            Some(channel) if random.below(8) > 0 => channel,
            old => {
                drop(old);
                match core.open(&world.victim).await {
                    Ok(channel) => channel,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
                        assert!(world.withdrawn.load(Ordering::SeqCst));
                        break;
                    }
                }
            }
        };
        (sent, done) = (0, 0);
        for at in 0..random.below(4) {
            let data = buf(&core, &[round as u8; BLOCK as usize]);
            if let Ok(id) = known.submit(Op::write(at * BLOCK, data)) {
                sent += 1;
                if random.below(8) == 0 {
                    known.cancel(id);
                }
            }
        }
        let whole = random.below(4) > 0;
        while done < sent && (whole || random.below(4) > 0) {
            done += known.poll(|done| {
                let kind = done.result.map_err(|fault| fault.kind);
                let is_known = |kind| {
                    matches!(kind, ErrorKind::Gone | ErrorKind::Failed | ErrorKind::Cancelled)
                };
                assert!(kind.err().is_none_or(is_known), "{kind:?}");
            });
            core.yield_now().await;
        }
        if whole {
            assert_eq!((sent, known.in_flight()), (done, 0));
            channel = Some(known);
        }
    }
    assert!(done <= sent);
    world.at_work.fetch_sub(1, Ordering::SeqCst);
}

/// Has a section now and then, and looks whether it is one.
async fn drain_now_and_then(core: Core, world: Arc<World>, mut random: Random) {
    while world.at_work.load(Ordering::SeqCst) > 0 {
        let (kind, disk) = (random.below(4), world.disk.clone());
        let scope = match kind {
            0 => Scope::Everything,
            1 => Scope::Nodes(vec![disk]),
            2 => Scope::Subtrees(vec![disk]),
            _ => Scope::Nodes(vec![world.victim.children()[0].clone(), disk]),
        };
        let is_everything = matches!(scope, Scope::Everything);
        let mut beginning = pin!(core.drain(scope));
        if random.below(8) == 0 {
            // Given up half way.
            let _ = poll_fn(|cx| Poll::Ready(beginning.as_mut().poll(cx).is_ready())).await;
            continue;
        }
        let drain = beginning.await.expect("drained");
        let count = || -> usize {
            let devices = &world.at_device[..if is_everything { 3 } else { 1 }];
            devices.iter().map(|count| count.load(Ordering::SeqCst)).sum()
        };
        for _ in 0..random.below(30) {
            // Of the disk's devices only where nobody else uses them: for guests, never.
            if is_everything || kind == 2 {
                assert_eq!(count(), 0, "something is under way in a drained section");
            }
            core.yield_now().await;
        }
        if random.below(2) == 0 {
            drain.end().await;
        } else {
            drop(drain);
        }
        core.sleep(Duration::from_nanos(random.below(20_000))).await;
    }
}

/// Makes changes of the graph that guests do not see.
async fn change_now_and_then(core: Core, world: Arc<World>, mut random: Random) {
    for change in 0..CHANGES {
        core.sleep(Duration::from_nanos(random.below(10_000))).await;
        let Some(mut graph) = world.graph.lock().expect("a graph").take() else { continue };
        if random.below(6) == 0 {
            world.is_out_of_queues.store(true, Ordering::SeqCst);
        }
        let result = one_change(&core, &world, &mut graph, &mut random, change).await;
        world.is_out_of_queues.store(false, Ordering::SeqCst);
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        }
        follow_book(&graph);
        *world.graph.lock().expect("a graph") = Some(graph);
    }
}

async fn one_change(
    core: &Core,
    world: &World,
    graph: &mut Graph<Arc<Node>>,
    random: &mut Random,
    number: usize,
) -> Result<(), Error> {
    let Places { file, twin, spare, top } = world.places;
    let name = format!("n{}x{number}", core.id());
    match random.below(11) {
        0 => {
            // The same device by another driver's queues.
            let leads_there =
                |id: &NodeId| graph.children(*id).any(|e| e.child == file || e.child == twin);
            let parent = graph.nodes().into_iter().find(leads_there).expect("a parent");
            let edge = ["file", "backing"]
                .into_iter()
                .filter_map(|name| graph.child(parent, name))
                .find(|edge| graph.edge(*edge).is_ok_and(|e| e.child == file || e.child == twin))
                .expect("an edge");
            let other = if graph.edge(edge)?.child == file { twin } else { file };
            graph.live(core).replace_child(edge, other).await
        }
        1 => {
            // A filter over what is right beneath the top.
            let edge = graph.child(top, "file").expect("an edge");
            let below = graph.edge(edge)?.child;
            let filter = add_over(graph, &name, Plain, ChildRole::FILTERED, below);
            let result = graph.live(core).replace_child(edge, filter).await;
            if result.is_err() {
                graph.release(filter)?;
            }
            result
        }
        2 => match filters(graph, top).first() {
            Some(&filter) => graph.live(core).remove_filter(filter).await,
            None => Ok(()),
        },
        3 => {
            // An overlay beneath the top: users of the top see no difference.
            let below = graph.children(top).next().map(|edge| edge.child).expect("a child");
            if graph.nodes().iter().any(|id| graph.child(*id, "backing").is_some()) {
                return Ok(());
            }
            let store = Awkward::new(leaf_options(random));
            let store = add_leaf(graph, &format!("{name}s"), store);
            let layer = Layer::new(BLOCKS);
            let overlay = add_over(graph, &name, layer, ChildRole::DATA, store);
            let result = graph.live(core).append(overlay, below).await;
            if result.is_err() {
                graph.release(overlay)?;
                graph.release(store)?;
            }
            result
        }
        4 => {
            // Users of the top itself are led elsewhere, and come back.
            let over = add_over(graph, &name, Plain, ChildRole::FILTERED, top);
            let there = graph.live(core).replace_node(top, over).await;
            core.sleep(Duration::from_nanos(random.below(5_000))).await;
            match there {
                Ok(()) => graph.live(core).remove_filter(over).await,
                Err(error) => graph.release(over).and(Err(error)),
            }
        }
        5 => match graph.child(top, "spare") {
            Some(edge) => graph.live(core).detach(edge).await,
            None => {
                let spare = NewChild { name: "spare", role: ChildRole::DATA, node: spare };
                graph.live(core).attach(top, spare).await.map(|_| ())
            }
        },
        6 => {
            // Given up half way: it was made as a whole, or not at all.
            let edge = graph.child(top, "file").expect("an edge");
            let below = graph.edge(edge)?.child;
            let filter = add_over(graph, &name, Plain, ChildRole::FILTERED, below);
            let mut live = graph.live(core);
            let mut changing = Box::pin(live.replace_child(edge, filter));
            for _ in 0..random.below(60) {
                let poll = poll_fn(|cx| Poll::Ready(changing.as_mut().poll(cx))).await;
                if poll.is_ready() {
                    break;
                }
                core.yield_now().await;
            }
            drop(changing);
            if graph.edge(edge)?.child == below {
                graph.release(filter)?;
            }
            Ok(())
        }
        7 | 8 => core.change_views(reopen(world, graph, random), || Ok(())).await,
        9 => {
            let mut changing = Box::pin(core.change_views(reopen(world, graph, random), || Ok(())));
            for _ in 0..random.below(60) {
                let poll = poll_fn(|cx| Poll::Ready(changing.as_mut().poll(cx))).await;
                if let Poll::Ready(result) = poll {
                    return result;
                }
                core.yield_now().await;
            }
            Ok(())
        }
        _ => {
            let limits = Limits::new((BLOCKS + random.below(4)) * BLOCK, BLOCK as u32);
            (world.grow)(limits);
            core.refresh(&body(graph, spare)).await
        }
    }
}

/// Another driver in the place of the one of the disk's device, and other options of its node.
fn reopen(world: &World, graph: &Graph<Arc<Node>>, random: &mut Random) -> ViewChange {
    let Places { file, twin, .. } = world.places;
    let node = body(graph, if random.below(2) == 0 { file } else { twin });
    let mut coin = || random.below(2) == 0;
    let restrictions =
        Restrictions { no_discard: coin(), no_flush: coin(), ..Restrictions::default() };
    let driver: Arc<dyn Driver> = Arc::new((world.again)());
    ViewChange {
        drivers: vec![(node.clone(), driver)],
        restrictions: vec![(node, restrictions)],
        ..ViewChange::default()
    }
}

/// Filters right beneath the top.
fn filters(graph: &Graph<Arc<Node>>, top: NodeId) -> Vec<NodeId> {
    let below = graph.children(top).filter(|edge| edge.name == "file").map(|edge| edge.child);
    let is_filter = |id: &NodeId| graph.node(*id).is_ok_and(|node| node.driver == "plain");
    below.filter(is_filter).collect()
}

/// Whether nodes stand on what the book says.
fn follow_book(graph: &Graph<Arc<Node>>) {
    for id in graph.nodes() {
        let children: Vec<_> = graph.children(id).map(|edge| body(graph, edge.child)).collect();
        let node = body(graph, id);
        let same = node.children().iter().zip(&children).all(|(one, two)| Arc::ptr_eq(one, two));
        assert!(
            same && node.children().len() == children.len(),
            "{} is not as booked",
            node.name()
        );
    }
}

/// Holds the victim's device, closes it, and withdraws it in the end.
async fn end_now_and_then(core: Core, world: Arc<World>, mut random: Random) {
    let leaf = world.victim.children()[0].clone();
    for _ in 0..random.below(6) {
        core.sleep(Duration::from_nanos(random.below(10_000))).await;
        match random.below(3) {
            0 => core.close(&leaf).await.expect("closed"),
            1 => {
                core.hold(&leaf).await.expect("held");
                core.sleep(Duration::from_nanos(random.below(2_000))).await;
                core.resume(&leaf).await.expect("resumed");
            }
            _ => core.refresh(&leaf).await.expect("refreshed"),
        }
    }
    if random.below(2) == 0 {
        world.withdrawn.store(true, Ordering::SeqCst);
        core.withdraw(&leaf, ErrorKind::Gone, "unplugged").await.expect("withdrawn");
    }
}

/// A source that reads the disk by fits, and rests when it is told.
#[derive(Default)]
struct Fits {
    state: RefCell<(usize, bool)>,
}

impl DrainedSource for Fits {
    fn drained_begin(&self) {
        let mut state = self.state.borrow_mut();
        assert!(state.0 == 0, "it was told twice");
        state.0 += 1;
    }

    fn drained_poll(&self) -> bool {
        self.state.borrow().1
    }

    fn drained_end(&self) {
        self.state.borrow_mut().0 -= 1;
    }
}

async fn have_fits(core: Core, world: Arc<World>, mut random: Random) {
    let (fits, disk) = (Rc::new(Fits::default()), world.disk.clone());
    let _guard = core.add_drained_source(&disk, fits.clone());
    while world.at_work.load(Ordering::SeqCst) > 0 {
        if fits.state.borrow().0 == 0
            && let Ok(channel) = core.open(&disk).await
            && fits.state.borrow().0 == 0
        {
            fits.state.borrow_mut().1 = true;
            for _ in 0..random.below(3) {
                let block = random.below(BLOCKS) * BLOCK;
                channel.read(block, buf(&core, &[0; BLOCK as usize])).await.1.expect("a read");
            }
            fits.state.borrow_mut().1 = false;
        }
        core.sleep(Duration::from_nanos(random.below(5_000))).await;
    }
}

fn run(seed: u64) {
    let mut random = Random::new(seed);
    let arena =
        ArenaOptions { size: 16 << 20, pages: PagePolicy::Unlocked, ..ArenaOptions::default() };
    let slots = 1 + random.below(8) as usize;
    let cores = 2 + random.below(2) as usize;
    let options = Options { slots, arena, poll_mode: PollMode::Pure, ..Options::default() };
    let mut simulation = Simulation::new(cores, seed, options).expect("a simulation");
    let world = Arc::new(world(&mut random));
    let test = {
        let world = world.clone();
        async move |core: Core| {
            let guests = BLOCKS / SHARE;
            world.at_work.store(guests as usize + cores, Ordering::SeqCst);
            let mut tasks = Vec::new();
            let mut start = |id: usize, kind: usize, first: u64, random: Random| {
                let world = world.clone();
                let task = move |core: Core| async move {
                    match kind {
                        0 => {
                            let contents = vec![0; (SHARE * BLOCK) as usize];
                            Guest { core, world, random, first, contents }.work().await;
                        }
                        1 => bear_with_ends(core, world, random).await,
                        2 => drain_now_and_then(core, world, random).await,
                        3 => change_now_and_then(core, world, random).await,
                        4 => end_now_and_then(core, world, random).await,
                        _ => have_fits(core, world, random).await,
                    }
                };
                tasks.push(core.remote(id).expect("a core").spawn(task));
            };
            // On some core there may be one guest alone, or none.
            let crowded = random.below(2) == 0;
            for guest in 0..guests {
                let id = if crowded && guest > 0 { 0 } else { random.below(cores as u64) };
                start(id as usize, 0, guest * SHARE, random.fork());
            }
            for id in 0..cores {
                for kind in [1, 2, 3] {
                    start(id, kind, 0, random.fork());
                }
            }
            for kind in [4, 5] {
                let id = random.below(cores as u64) as usize;
                start(id, kind, 0, random.fork());
            }
            let mut too_long = pin!(patience(&core));
            for task in tasks {
                let mut task = pin!(task);
                let outcome = poll_fn(|cx| {
                    if let Poll::Ready(outcome) = task.as_mut().poll(cx) {
                        return Poll::Ready(Some(outcome));
                    }
                    too_long.as_mut().poll(cx).map(|()| None)
                });
                outcome.await.expect("something waits for ever").expect("a task");
            }
            for id in 0..cores {
                let rest = core.call(id, async |core: Core| {
                    // What was given up, sections too, ends by itself and soon.
                    let is_at_rest = |core: &Core| {
                        core.stats().slots_used == 0 && core.0.io.borrow().drains.is_empty()
                    };
                    for _ in 0..10_000 {
                        if is_at_rest(&core) {
                            return;
                        }
                        core.yield_now().await;
                    }
                    panic!("core {} does not come to rest", core.id());
                });
                rest.await.expect("at rest");
            }
        }
    };
    simulation.run(0, test).expect("no deadlock");
    let graph = world.graph.lock().expect("a graph").take().expect("a graph");
    follow_book(&graph);
    simulation.shutdown().expect("a shutdown");
}

#[test]
fn drains_and_changes_against_io_in_many_orders() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let replayed = number("OXBLOCK_SEED");
    let count = number("OXBLOCK_SCHEDULES").unwrap_or(if replayed.is_some() { 1 } else { 1000 });
    let first = replayed.unwrap_or(1);
    for seed in first..first + count {
        let outcome = std::panic::catch_unwind(|| run(seed));
        if let Err(panic) = outcome {
            eprintln!("replay with OXBLOCK_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
