//! Storms of controller resets under verified I/O on several cores: every request completes once,
//! no acknowledged write is lost, and nothing is written into memory that was given back: it lies
//! between guard pages, and cannot be touched from then on. `OXBLOCK_RESETS` says how many resets
//! there are.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oxblock_drivers::nvme::{Controller as Host, NvmeOptions};
use oxblock_engine::{Channel, Completion, Core, Engine, Node, Op, Options, Simulation};
use oxblock_mem::{ArenaOptions, Guarded, Loan};
use oxblock_nvme::opcode::nvm;
use oxblock_nvmet::fault::{CompletionFault, Faults, Match};
use oxblock_tests::random::Random;

use super::support::{GUARD, contents, target, told};

/// Blocks that each core has to itself.
const BLOCKS: u64 = 512;
/// Requests that each core has in flight.
const DEPTH: usize = 128;
/// Buffers of each core. Those that are not lent cannot be touched.
const SLOTS: usize = 2 * DEPTH;

fn options() -> Options {
    Options { arena: ArenaOptions::new(64 << 20), ..Options::default() }
}

/// One core's requests on blocks of its own.
struct Worker {
    core: Core,
    channel: Channel,
    random: Random,
    /// The version of each block that was written and acknowledged last.
    versions: Vec<u64>,
    /// What is in flight on each block.
    in_flight: Vec<Option<InFlight>>,
    buffers: Guarded,
    ended: u64,
    /// The bug of the canary: a buffer is given back while the device may write it.
    gives_back_early: bool,
}

struct InFlight {
    write: bool,
    /// The version that is being written, or read.
    version: u64,
    loan: Loan,
}

impl Worker {
    fn new(core: &Core, channel: Channel, plan: Plan) -> Worker {
        Worker {
            core: core.clone(),
            channel,
            random: Random::new(plan.seed ^ core.id() as u64),
            versions: vec![0; BLOCKS as usize],
            in_flight: (0..BLOCKS).map(|_| None).collect(),
            buffers: Guarded::new(core.memory(), SLOTS, 4096).expect("memory"),
            ended: 0,
            gives_back_early: plan.gives_back_early,
        }
    }

    /// Writes and reads until it is told to stop, then reads everything back.
    async fn work(mut self, stop: Arc<AtomicBool>) -> u64 {
        while !stop.load(Ordering::Relaxed) {
            self.fill();
            self.turn().await;
        }
        while self.channel.in_flight() > 0 {
            self.turn().await;
        }
        for block in 0..BLOCKS {
            while self.channel.in_flight() >= DEPTH {
                self.turn().await;
            }
            self.submit(block, false);
        }
        while self.channel.in_flight() > 0 {
            self.turn().await;
        }
        assert!(self.in_flight.iter().all(Option::is_none), "a request never ended");
        assert_eq!(self.buffers.free(), SLOTS, "every buffer came back");
        assert_eq!(self.core.stats().spurious_completions, 0);
        self.ended
    }

    fn fill(&mut self) {
        while self.channel.in_flight() < DEPTH {
            let block = self.random.within(0..BLOCKS);
            if self.in_flight[block as usize].is_none() {
                let write = self.random.one_in(2);
                self.submit(block, write);
            }
        }
    }

    fn submit(&mut self, block: u64, write: bool) {
        let version = self.versions[block as usize] + u64::from(write);
        let (loan, mut buf) = self.buffers.lend(512).expect("a buffer");
        match write {
            true => buf.write_at(0, &contents(block, version)),
            false => buf.fill(0, 512, GUARD),
        }
        let offset = (self.core.id() as u64 * BLOCKS + block) * 512;
        let op = if write { Op::write(offset, buf) } else { Op::read(offset, buf) };
        self.channel.submit(op.tag(block)).expect("a slot");
        if self.gives_back_early && !write {
            return self.buffers.give_back(loan).expect("a guard");
        }
        self.in_flight[block as usize] = Some(InFlight { write, version, loan });
    }

    async fn turn(&mut self) {
        self.channel.kick();
        self.core.yield_now().await;
        let mut ended = Vec::new();
        self.channel.poll(|completion| ended.push(completion));
        ended.into_iter().for_each(|completion| self.end(completion));
    }

    fn end(&mut self, completion: Completion) {
        self.ended += 1;
        let block = completion.op.tag;
        let InFlight { write, version, loan } =
            self.in_flight[block as usize].take().expect("ended twice");
        assert_eq!(completion.result, Ok(()), "block {block}");
        if write {
            self.versions[block as usize] = version;
        } else {
            let mut found = [0; 512];
            completion.op.data.read_at(0, &mut found);
            assert!(found == contents(block, version), "block {block} lost version {version}");
        }
        drop(completion);
        self.buffers.give_back(loan).expect("a guard");
    }
}

/// Opens the namespace on every core but the controller's, and starts a worker on each.
async fn start_workers(
    core: &Core,
    host: &Arc<Host>,
    plan: Plan,
    stop: &Arc<AtomicBool>,
) -> Vec<oxblock_engine::JoinHandle<Result<u64, oxblock_engine::Error>>> {
    let node = Node::new("nvme0n1", host.namespace(1).expect("the namespace"));
    let mut working = Vec::new();
    for at in 0..core.count() - 1 {
        let (node, stop, from) = (node.clone(), stop.clone(), core.clone());
        let work = async move |core: Core| {
            let channel = core.open(&node).await.expect("a queue");
            Worker::new(&core, channel, plan).work(stop).await
        };
        working.push(core.spawn(async move { from.call(at, work).await }));
    }
    working
}

#[derive(Clone, Copy)]
struct Plan {
    seed: u64,
    /// Queue pairs; where they are fewer than the cores that do I/O, some of these share.
    queues: u16,
    resets: u64,
    /// The longest time between two resets.
    pause_us: u64,
    /// Short where time is simulated: a busy machine keeps real cores waiting.
    io_timeout: Duration,
    gives_back_early: bool,
}

/// Resets a controller again and again while all cores but its own do I/O.
async fn storm(core: Core, plan: Plan, faults: Arc<Faults>) {
    let Plan { seed, queues, resets, pause_us, io_timeout, .. } = plan;
    let target = target(&core, queues, BLOCKS, &faults).await;
    let options = NvmeOptions { io_timeout, abort_timeout: io_timeout, ..NvmeOptions::default() };
    let host = Host::attach(&core, target.function(), options).await.expect("the driver");
    let stop = Arc::new(AtomicBool::new(false));
    let working = start_workers(&core, &host, plan, &stop).await;
    let cores = core.count() - 1;
    while usize::from(host.stats().queues + host.stats().sharing) < cores {
        core.yield_now().await;
    }
    let mut random = Random::new(seed);
    for n in 0..resets {
        core.sleep(Duration::from_micros(random.within(0..pause_us))).await;
        host.reset(&core).await.unwrap_or_else(|error| panic!("reset {n}: {error}"));
    }
    stop.store(true, Ordering::Relaxed);
    let mut ended = 0;
    for work in working {
        ended += work.await.and_then(|result| result).expect("its work");
    }
    let stats = host.stats();
    assert!(stats.resets >= resets, "{stats:?}");
    assert_eq!((stats.failed_resets, stats.bad_cid, stats.bad_sqid), (0, 0, 0), "{stats:?}");
    println!("seed {seed}: {ended} requests over {} resets, {stats:?}", stats.resets);
}

/// Rows 19 to 22, on real cores: two with queue pairs of their own, and one that shares.
#[test]
fn a_storm_of_resets_loses_nothing() {
    let plan = Plan {
        seed: 1,
        queues: 2,
        resets: told("OXBLOCK_RESETS").unwrap_or(50),
        pause_us: 2000,
        io_timeout: Duration::from_secs(30),
        gives_back_early: false,
    };
    let engine = Engine::with_cores(4, options()).expect("an engine");
    let run = engine.run(0, move |core| storm(core, plan, Faults::new()));
    run.expect("the storm");
    engine.shutdown().expect("an orderly shutdown");
}

fn simulated(seed: u64, resets: u64, gives_back_early: bool) {
    let mut sim = Simulation::new(3, seed, options()).expect("an engine");
    let faults = Faults::new();
    for nth in 1..=20 {
        for opcode in [nvm::READ, nvm::WRITE] {
            let which = Match { opcode: Some(opcode), ..Match::default() };
            faults.complete(which.nth(nth * 100), CompletionFault::Lost);
        }
    }
    let queues = 1 + (seed % 2) as u16;
    let io_timeout = Duration::from_millis(300);
    let plan = Plan { seed, queues, resets, pause_us: 40, io_timeout, gives_back_early };
    let run = sim.run(0, move |core| storm(core, plan, faults));
    run.unwrap_or_else(|error| panic!("OXBLOCK_SEED={seed}: {error}"));
    sim.shutdown().unwrap_or_else(|error| panic!("OXBLOCK_SEED={seed}: {error}"));
}

/// The same in simulated time, with completions that never come besides.
#[test]
fn simulated_storms_lose_nothing() {
    let first = told("OXBLOCK_SEED").unwrap_or(1);
    let resets = told("OXBLOCK_RESETS").unwrap_or(60);
    for seed in first..first + told("OXBLOCK_STORMS").unwrap_or(4) {
        simulated(seed, resets, false);
    }
}

/// The canary: a buffer that is given back too early must end the process that writes it.
#[test]
fn guards_catch_a_buffer_that_is_given_back_early() {
    let tests = std::env::current_exe().expect("this program");
    let canary = ["--ignored", "--exact", "resets::canary_that_gives_a_buffer_back_early"];
    let ended = Command::new(tests).args(canary).output().expect("it runs");
    assert_eq!(ended.status.signal(), Some(11), "{ended:?}");
}

#[test]
#[ignore = "ends by SIGSEGV, which guards_catch_a_buffer_that_is_given_back_early sees"]
fn canary_that_gives_a_buffer_back_early() {
    simulated(1, 1, true);
}
