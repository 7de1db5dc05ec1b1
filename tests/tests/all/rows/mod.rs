//! `nvme_error_rows` on the host: each row of docs/nvme-errors.md is brought about for real, with
//! the NVMe driver on one core of a simulated engine and the software controller on another.

mod attach;
mod events;
mod features;
mod queues;
mod recovery;
mod table;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_drivers::nvme::{Controller as Host, NvmeOptions};
use oxblock_engine::{Channel, Core, Error, Fault, Node, Op, Options, Simulation};
use oxblock_mem::{ArenaOptions, Buf};
use oxblock_nvme::regs::{CAP, Cap};
use oxblock_nvmet::fault::{self, Faults, Match};
use oxblock_nvmet::{Controller as Target, ControllerOptions, NamespaceOptions};
use oxblock_tests::exercise::Exercise;
use oxblock_tests::rows::{COUNT, condition};

/// Bytes of the namespace.
const DISK: u64 = 4 << 20;
/// The core of the software controller.
const TARGET_CORE: usize = 2;

/// What the driver does, and what shows it.
type Row = (u32, &'static str, fn());

#[test]
fn nvme_error_rows() {
    let all = [attach::ROWS, queues::ROWS, recovery::ROWS, events::ROWS, features::ROWS].concat();
    let rows: BTreeMap<u32, Row> = all.iter().map(|row| (row.0, *row)).collect();
    assert_eq!(rows.len(), all.len(), "a row is there twice");
    let mut failed = Vec::new();
    for number in 1..=COUNT {
        let what = condition(number);
        let Some((_, outcome, body)) = rows.get(&number) else {
            println!("row {number}: {what}: missing");
            failed.push(number);
            continue;
        };
        let passed = catch_unwind(AssertUnwindSafe(body)).is_ok();
        let verdict = if passed { "pass" } else { "FAIL" };
        println!("row {number}: {what}: {outcome}, software controller: {verdict}");
        if !passed {
            failed.push(number);
        }
    }
    assert!(failed.is_empty(), "rows that fail or are missing: {failed:?}");
}

/// An engine of three cores in simulated time: the driver is on the first two, the controller with
/// its faults on the third.
struct Rig {
    faults: Arc<Faults>,
    options: NvmeOptions,
    target: Arc<Target>,
    sim: Simulation,
}

/// A controller that the driver drives, and a channel to its namespace from core 0.
struct Driven {
    host: Arc<Host>,
    channel: Rc<Channel>,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(|_| {})
    }

    /// With a controller of its own.
    fn with(change: impl FnOnce(&mut ControllerOptions)) -> Rig {
        let disk = MemoryOptions { size: DISK, block_size: 512 };
        let node = Node::new("memory0", memory::open(disk).expect("a memory disk"));
        let namespaces = vec![NamespaceOptions::new(node, 512)];
        let mut options = ControllerOptions { namespaces, ..ControllerOptions::default() };
        change(&mut options);
        let arena = ArenaOptions::new(16 << 20);
        let engine = Options { arena, ..Options::default() };
        let mut sim = Simulation::new(TARGET_CORE + 1, 5, engine).expect("an engine");
        let faults = Faults::new();
        let switches = faults.clone();
        let start = |core: Core| async move { fault::start(&core, options, &switches).await };
        let target = sim.run(TARGET_CORE, start).expect("no deadlock").expect("a controller");
        Rig { faults, options: NvmeOptions::default(), target, sim }
    }

    /// Runs on core 0 until done; a deadlock is a failed row.
    fn run<T: 'static, F: Future<Output = T> + 'static>(&mut self, f: impl FnOnce(Core) -> F) -> T {
        self.sim.run(0, f).expect("no deadlock")
    }

    fn attach(&mut self) -> Result<Arc<Host>, Error> {
        let (function, options) = (self.target.function(), self.options.clone());
        self.run(|core| async move { Host::attach(&core, function, options).await })
    }

    /// Why the controller is refused.
    fn refusal(&mut self) -> String {
        let attached = self.attach().map(|host| host.name().to_owned());
        attached.expect_err("a refusal").to_string()
    }

    fn open(&mut self) -> Driven {
        let host = self.attach().unwrap_or_else(|e| panic!("{e}"));
        let node = Node::new("nvme0n1", host.namespace(1).unwrap_or_else(|e| panic!("{e}")));
        let channel = self.run(|core| async move { core.open(&node).await });
        Driven { host, channel: Rc::new(channel.unwrap_or_else(|e| panic!("{e}"))) }
    }

    /// Starts an operation, and lets the controller see it.
    fn start(&mut self, driven: &Driven, op: Op) {
        driven.channel.submit(op).expect("room");
        driven.channel.kick();
        self.wait(Duration::from_micros(100));
    }

    /// Starts reads of a block each.
    fn start_reads(&mut self, driven: &Driven, count: u64) {
        for block in 0..count {
            let op = Op::read(block * 4096, self.buf(4096)).tag(block);
            self.start(driven, op);
        }
    }

    /// Waits for all that was started; what became of it, in the order of its end.
    fn ends(&mut self, driven: &Driven) -> Vec<(u64, Result<(), Fault>)> {
        let channel = driven.channel.clone();
        self.run(|core| async move {
            let mut ended = Vec::new();
            while channel.in_flight() > 0 {
                channel.poll(|end| ended.push((end.op.tag, end.result)));
                core.sleep(Duration::from_millis(1)).await;
            }
            channel.poll(|end| ended.push((end.op.tag, end.result)));
            ended
        })
    }

    /// All that was started ends well, each once.
    fn all_end_well(&mut self, driven: &Driven, count: u64) {
        let mut ended = self.ends(driven);
        ended.sort_unstable_by_key(|(tag, _)| *tag);
        let expected: Vec<_> = (0..count).map(|tag| (tag, Ok(()))).collect();
        assert_eq!(ended, expected);
    }

    /// Runs one operation to its end.
    fn op(&mut self, driven: &Driven, op: Op) -> Result<(), Fault> {
        let channel = driven.channel.clone();
        self.run(|_| async move { channel.run(op).await.result })
    }

    fn read(&mut self, driven: &Driven, offset: u64) -> Result<(), Fault> {
        let op = Op::read(offset, self.buf(512));
        self.op(driven, op)
    }

    fn write(&mut self, driven: &Driven, offset: u64) -> Result<(), Fault> {
        let op = Op::write(offset, self.buf(512));
        self.op(driven, op)
    }

    /// Writes blocks, each with bytes of its own, and reads them back.
    fn exercise(&mut self, driven: &Driven) {
        let channel = driven.channel.clone();
        self.run(|core| async move { Exercise::of(128).run(&core, &channel).await });
    }

    /// The same on cores 0 and 1 at a time.
    fn exercise_cores(&mut self, driven: &Driven) {
        let (channel, node) = (driven.channel.clone(), driven.channel.node().clone());
        self.run(|core| async move {
            let other = core.call(1, move |core: Core| async move {
                let channel = core.open(&node).await.expect("a queue or a share");
                Exercise { first: 128, ..Exercise::of(128) }.run(&core, &channel).await;
            });
            Exercise::of(128).run(&core, &channel).await;
            other.await.expect("the other core");
        });
    }

    /// Transfers of this length arrive, and the commands that it takes.
    fn transfer(&mut self, driven: &Driven, offset: u64, len: usize) -> u64 {
        let write = || self.faults.seen(false, oxblock_nvme::opcode::nvm::WRITE);
        let before = write();
        let mut data = self.buf(len);
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8 ^ (at >> 9) as u8).collect();
        data.write_at(0, &bytes);
        self.op(driven, Op::write(offset, data)).expect("a write");
        let (channel, data) = (driven.channel.clone(), self.buf(len));
        let ended = self.run(|_| async move { channel.run(Op::read(offset, data)).await });
        ended.result.expect("a read");
        assert_eq!(ended.op.data.whole().compare(&bytes), None);
        self.faults.seen(false, oxblock_nvme::opcode::nvm::WRITE) - before
    }

    fn buf(&self, len: usize) -> Buf {
        self.sim.core(0).arena().alloc(len, 4096).expect("memory")
    }

    fn wait(&mut self, time: Duration) {
        self.run(|core| async move { core.sleep(time).await });
    }

    /// The simulated time since the engine began.
    fn now(&self) -> Duration {
        Duration::from_nanos(self.sim.clock().now())
    }

    /// CAP as it is.
    fn cap(&self) -> Cap {
        oxblock_pci::enable(self.target.function().config()).expect("a function");
        Cap(self.target.function().bar(0).expect("BAR 0").read64(CAP))
    }
}

/// Pulls the controller first: one that is there would have to be stopped, by a core that takes no
/// more turns.
impl Drop for Rig {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.target.soft_function().set_present(false);
            self.wait(Duration::from_millis(200));
        }
    }
}

/// I/O commands of a kind, in whatever queue.
fn every(opcode: u8) -> Match {
    Match { opcode: Some(opcode), ..Match::default() }
}
