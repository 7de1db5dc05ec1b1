//! The NVMe driver in simulated time, over a controller whose every fault follows from a seed:
//! delays, lies, failures, resets and removals. Whatever comes, each request ends once, what was
//! acknowledged is read back, and nothing is written into memory that was given back.
//!
//! `OXBLOCK_SEED` runs a seed that failed again; `OXBLOCK_SEEDS` says how many there are.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use oxblock_drivers::nvme::{Controller as Host, NvmeOptions};
use oxblock_engine::{Channel, Completion, Core, ErrorKind, Node, Op, OpKind, Options, Simulation};
use oxblock_mem::{ArenaOptions, Buf};
use oxblock_nvmet::fault::{Chances, FaultEvent, FaultPlan, Faults};
use oxblock_tests::random::Random;

use super::support::{GUARD, contents, target, told};

/// Blocks that each core has to itself.
const BLOCKS: u64 = 64;
/// Requests of each core.
const REQUESTS: u64 = 200;
/// Requests that each core has in flight.
const DEPTH: usize = 16;
/// Buffers that were given back and are watched.
const WATCHED: usize = 64;
/// In simulated time, in ns: whoever is not done by then hangs.
const PATIENCE_NS: u64 = 1_000_000_000_000;

/// What may become of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// The controller is slow and lies, and loses nothing: no request fails.
    Awkward,
    /// It also fails, and comes back: requests may fail in the end.
    Broken,
    /// It also goes, for a while or for good.
    Leaving,
}

impl Mood {
    fn of(seed: u64) -> Mood {
        [Mood::Awkward, Mood::Broken, Mood::Broken, Mood::Leaving][(seed % 4) as usize]
    }

    fn plan(self, seed: u64) -> FaultPlan {
        let mut plan = FaultPlan::from_seed(seed);
        match self {
            Mood::Awkward => {
                let Chances { late, torn, twice, misnamed: _, .. } = plan.chances;
                plan.chances = Chances { late: late + 50, torn, twice, ..Chances::default() };
                plan.events = vec![FaultEvent::SmartWarning, FaultEvent::ReadyLate];
            }
            Mood::Broken => {}
            Mood::Leaving => {
                let goes = [FaultEvent::Gone, FaultEvent::FunctionResetFails, FaultEvent::Removed];
                plan.events.push(goes[(seed / 4 % 3) as usize]);
                plan.events.push(FaultEvent::DisableHangs);
            }
        }
        plan
    }
}

/// One core's requests on blocks of its own.
struct Worker {
    core: Core,
    channel: Channel,
    random: Random,
    mood: Mood,
    /// What each block may hold: the version that was acknowledged last, and those of writes that
    /// failed after it.
    versions: Vec<Vec<u64>>,
    last_version: u64,
    /// What is in flight on each block: the version that is being written, or none for a read.
    in_flight: Vec<Option<Option<u64>>>,
    watched: VecDeque<Buf>,
    submitted: u64,
    ended: u64,
    failed: u64,
}

impl Worker {
    fn new(core: &Core, channel: Channel, seed: u64) -> Worker {
        Worker {
            core: core.clone(),
            channel,
            random: Random::new(seed ^ (core.id() as u64) << 32),
            mood: Mood::of(seed),
            versions: vec![vec![0]; BLOCKS as usize],
            last_version: 0,
            in_flight: vec![None; BLOCKS as usize],
            watched: VecDeque::new(),
            submitted: 0,
            ended: 0,
            failed: 0,
        }
    }

    /// How many requests ended, and how many of them failed.
    async fn work(mut self) -> (u64, u64) {
        for _ in 0..REQUESTS {
            while self.channel.in_flight() >= DEPTH {
                self.turn().await;
            }
            self.submit_something();
            if self.random.one_in(8) {
                let us = self.random.within(0..20_000);
                self.core.sleep(Duration::from_micros(us)).await;
            }
        }
        self.finish().await;
        for block in 0..BLOCKS {
            while self.channel.in_flight() >= DEPTH {
                self.turn().await;
            }
            self.submit(block, None);
        }
        self.finish().await;
        self.watched.iter().for_each(check_guard);
        assert_eq!(self.core.stats().spurious_completions, 0);
        (self.ended, self.failed)
    }

    async fn finish(&mut self) {
        while self.channel.in_flight() > 0 {
            self.turn().await;
        }
        assert!(self.in_flight.iter().all(Option::is_none), "a request never ended");
        assert_eq!(self.ended, self.submitted, "each once");
    }

    fn submit_something(&mut self) {
        if self.random.one_in(20) {
            let flush = Op::flush().tag(BLOCKS);
            self.channel.submit(flush).expect("a slot");
            self.submitted += 1;
            return;
        }
        let block = self.random.within(0..BLOCKS);
        if self.in_flight[block as usize].is_some() {
            return;
        }
        let write = self.random.one_in(2).then(|| {
            self.last_version += 1;
            self.last_version
        });
        self.submit(block, write);
    }

    fn submit(&mut self, block: u64, write: Option<u64>) {
        let mut buf = self.core.arena().alloc(512, 4096).expect("memory");
        match write {
            Some(version) => buf.write_at(0, &contents(block, version)),
            None => buf.fill(0, 512, GUARD),
        }
        let offset = (self.core.id() as u64 * BLOCKS + block) * 512;
        let op = if write.is_some() { Op::write(offset, buf) } else { Op::read(offset, buf) };
        self.channel.submit(op.tag(block)).expect("a slot");
        self.submitted += 1;
        self.in_flight[block as usize] = Some(write);
    }

    async fn turn(&mut self) {
        assert!(self.core.now() < PATIENCE_NS, "requests hang: {:?}", self.in_flight);
        self.channel.kick();
        self.core.yield_now().await;
        let mut ended = Vec::new();
        self.channel.poll(|completion| ended.push(completion));
        ended.into_iter().for_each(|completion| self.end(completion));
    }

    fn end(&mut self, completion: Completion) {
        self.ended += 1;
        if let Err(fault) = completion.result {
            self.failed += 1;
            let may_be = match self.mood {
                Mood::Awkward => false,
                Mood::Broken => fault.kind != ErrorKind::Gone,
                Mood::Leaving => true,
            };
            assert!(may_be, "{:?} failed: {fault}", self.mood);
        }
        if completion.op.kind == OpKind::Flush {
            return;
        }
        let block = completion.op.tag;
        let write = self.in_flight[block as usize].take().expect("it ended twice");
        let versions = &mut self.versions[block as usize];
        match (write, completion.result) {
            (Some(version), Ok(())) => *versions = vec![version],
            // It may have been written, all the same.
            (Some(version), Err(_)) => versions.push(version),
            (None, Ok(())) => {
                let mut found = [0; 512];
                completion.op.data.read_at(0, &mut found);
                let which = versions.iter().find(|version| found == contents(block, **version));
                let which = *which.unwrap_or_else(|| {
                    panic!("block {block} holds none of the versions {versions:?}")
                });
                *versions = vec![which];
            }
            (None, Err(_)) => {}
        }
        self.watch(completion);
    }

    /// Keeps a buffer that is no longer the device's for a while, and sees that it stays as it is.
    fn watch(&mut self, completion: Completion) {
        let Some(mut buf) = completion.op.data.into_single() else { return };
        buf.fill(0, 512, GUARD);
        self.watched.push_back(buf);
        if self.watched.len() > WATCHED {
            self.watched.pop_front().iter().for_each(check_guard);
        }
    }
}

fn check_guard(buf: &Buf) {
    let mut found = [0; 512];
    buf.read_at(0, &mut found);
    assert!(found == [GUARD; 512], "written after it was given back");
}

/// All cores but the controller's do I/O, and one asks for resets now and then.
async fn life(core: Core, seed: u64, faults: Arc<Faults>) -> (u64, u64) {
    let mood = Mood::of(seed);
    let target = target(&core, 1 + (seed % 3) as u16, BLOCKS, &faults).await;
    let timeout = Duration::from_millis(400);
    let options =
        NvmeOptions { io_timeout: timeout, abort_timeout: timeout, ..NvmeOptions::default() };
    let host = Host::attach(&core, target.function(), options).await.expect("the driver");
    let node = Node::new("nvme0n1", host.namespace(1).expect("the namespace"));
    let mut working = Vec::new();
    for at in 0..core.count() - 1 {
        let (node, from) = (node.clone(), core.clone());
        let work = async move |core: Core| {
            let channel = core.open(&node).await.expect("a queue");
            Worker::new(&core, channel, seed).work().await
        };
        working.push(core.spawn(async move { from.call(at, work).await }));
    }
    while usize::from(host.stats().queues + host.stats().sharing) < core.count() - 1 {
        core.yield_now().await;
    }
    faults.follow(mood.plan(seed));
    let mut random = Random::new(seed);
    for _ in 0..random.within(0..4) {
        core.sleep(Duration::from_micros(random.within(0..200_000))).await;
        let reset = host.reset(&core).await;
        assert!(reset.is_ok() || mood != Mood::Awkward, "{reset:?}");
    }
    let (mut ended, mut failed) = (0, 0);
    for work in working {
        let (of, bad) = work.await.and_then(|result| result).expect("its work");
        (ended, failed) = (ended + of, failed + bad);
    }
    let closed = core.close(&node).await.and(host.shutdown(&core).await);
    assert!(closed.is_ok() || mood != Mood::Awkward, "{closed:?}");
    target.soft_function().set_present(false);
    (ended, failed)
}

/// Says what led to a failure.
struct Replay {
    seed: u64,
    faults: Arc<Faults>,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, log) = (self.seed, self.faults.log());
            eprintln!("OXBLOCK_SEED={seed} runs this again. What came:\n{log}");
        }
    }
}

/// Requests that ended, and those that failed.
fn run(seed: u64) -> (u64, u64) {
    let faults = Faults::new();
    let replay = Replay { seed, faults: faults.clone() };
    let options = Options { arena: ArenaOptions::new(12 << 20), slots: 64, ..Options::default() };
    let cores = 2 + (seed / 16 % 3) as usize;
    let mut sim = Simulation::new(cores, seed, options).expect("an engine");
    let counts = sim.run(0, move |core| life(core, seed, faults));
    let counts = counts.unwrap_or_else(|error| panic!("{error}"));
    sim.shutdown().unwrap_or_else(|error| panic!("the end: {error}"));
    drop(replay);
    counts
}

/// Rows 1 to 4, 14 to 16, 19 to 28 and 33, in whatever order they come.
#[test]
fn seeds_of_faults_lose_nothing() {
    let again = told("OXBLOCK_SEED");
    let first = again.unwrap_or(0);
    let count = told("OXBLOCK_SEEDS").unwrap_or(if again.is_some() { 1 } else { 1000 });
    let next = AtomicU64::new(first);
    let work = || {
        let (mut ended, mut failed) = (0, 0);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return (ended, failed);
            }
            let (of, bad) = run(seed);
            (ended, failed) = (ended + of, failed + bad);
        }
    };
    let (ended, failed) = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let ours = work();
        let theirs = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (ours.0 + theirs.0, ours.1 + theirs.1)
    });
    println!("{ended} requests ended, {failed} of them failed");
    if again.is_none() {
        // Else the seeds bring about next to nothing, or leave next to nothing to see.
        assert!(failed > 0 && failed < ended / 2, "{failed} of {ended} failed");
    }
}
