//! The driver against a device that does what each test says. "Row n" is a condition that an
//! NVMe driver must survive: `docs/nvme-errors.md` lists all of them, with the tests that cover
//! them.

mod attach;
mod blocking;
mod cost;
mod device;
mod ending;
mod events;
mod features;
mod fuzz;
mod hotplug;
mod interrupts;
mod io;
mod own_memory;
mod passthrough;
mod quirks;
mod recovery;

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use oxblock_engine::{Channel, Completion, Core, Error, ErrorKind, Node, Op, Options, Simulation};
use oxblock_mem::{ArenaOptions, Buf};
use oxblock_pci::Ids;
use oxblock_pci::soft::{SoftFunction, SoftIommuOptions};

use super::{Controller, NvmeOptions};
use device::{Script, State};

/// An engine in simulated time and a device, all on the thread of the test.
struct Rig {
    sim: Simulation,
    device: Arc<Script>,
    function: Arc<SoftFunction>,
    options: NvmeOptions,
}

impl Rig {
    fn new(change: impl FnOnce(&mut State)) -> Rig {
        Rig::with(1, 0x4000, change)
    }

    fn with(cores: usize, bar_len: u64, change: impl FnOnce(&mut State)) -> Rig {
        Rig::over(cores, 64, Script::new(bar_len), change)
    }

    /// With so many slots on each core.
    fn sized(cores: usize, slots: usize, change: impl FnOnce(&mut State)) -> Rig {
        Rig::over(cores, slots, Script::new(0x4000), change)
    }

    /// With a device that has the identity of another: PCI vendor and device.
    fn posing_as(vendor: u16, device: u16, change: impl FnOnce(&mut State)) -> Rig {
        let ids = Ids { vendor, device, class: 0x01_08_02, ..Ids::default() };
        Rig::over(1, 64, Script::with(ids, SoftIommuOptions::default(), 0x4000), change)
    }

    /// The same behind an IOMMU of one's own.
    fn behind(vendor: u16, device: u16, iommu: SoftIommuOptions) -> Rig {
        let ids = Ids { vendor, device, class: 0x01_08_02, ..Ids::default() };
        Rig::over(1, 64, Script::with(ids, iommu, 0x4000), |_| {})
    }

    fn over(
        cores: usize,
        slots: usize,
        (device, function): (Arc<Script>, Arc<SoftFunction>),
        change: impl FnOnce(&mut State),
    ) -> Rig {
        change(&mut device.state());
        let arena = ArenaOptions::new((12 + 4 * cores) << 20);
        let options = Options { arena, slots, ..Options::default() };
        let sim = Simulation::new(cores, 7, options).expect("an engine");
        Rig { sim, device, function, options: NvmeOptions::default() }
    }

    /// Runs on core 0 until done; a deadlock is a failed test.
    fn run<T: 'static, F: Future<Output = T> + 'static>(&mut self, f: impl FnOnce(Core) -> F) -> T {
        self.run_on(0, f)
    }

    fn run_on<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        core: usize,
        f: impl FnOnce(Core) -> F,
    ) -> T {
        self.sim.run(core, f).expect("no deadlock")
    }

    fn try_attach(&mut self) -> Result<Arc<Controller>, Error> {
        let (function, options) = (self.function.clone(), self.options.clone());
        self.run(|core| async move { Controller::attach(&core, function, options).await })
    }

    fn attach(&mut self) -> Arc<Controller> {
        self.try_attach().expect("attach")
    }

    /// The error of an attach that must fail.
    fn refusal(&mut self) -> Error {
        self.try_attach().map(|c| format!("{c:?}")).expect_err("a refusal")
    }

    fn node(&mut self) -> (Arc<Controller>, Arc<Node>) {
        let controller = self.attach();
        let driver = controller.namespace(1).expect("namespace 1");
        (controller, Node::new("nvme0n1", driver))
    }

    fn open(&mut self) -> (Arc<Controller>, Rc<Channel>) {
        let (controller, node) = self.node();
        let channel = self.run(|core| async move { core.open(&node).await }).expect("a queue");
        (controller, Rc::new(channel))
    }

    /// Runs an operation to its end.
    fn op(&mut self, channel: &Rc<Channel>, op: Op) -> Completion {
        let channel = channel.clone();
        self.run(|_| async move { channel.run(op).await })
    }

    /// Starts an operation; its completion comes to the cell.
    fn start(&mut self, channel: &Rc<Channel>, op: Op) -> Rc<Cell<Option<Completion>>> {
        let (channel, cell) = (channel.clone(), Rc::new(Cell::new(None)));
        let result = cell.clone();
        drop(self.sim.core(0).spawn(async move {
            result.set(Some(channel.run(op).await));
        }));
        self.turns(50);
        cell
    }

    fn turns(&mut self, turns: usize) {
        for _ in 0..turns {
            self.sim.step();
        }
    }

    fn buf(&self, len: usize) -> Buf {
        self.sim.core(0).arena().alloc(len, 4096).expect("memory")
    }

    fn now_ms(&self) -> u64 {
        self.sim.clock().now() / 1_000_000
    }

    fn wait_ms(&mut self, ms: u64) {
        let time = std::time::Duration::from_millis(ms);
        self.run(|core| async move { core.sleep(time).await });
    }
}

/// What an operation failed with.
fn kind(completion: &Completion) -> Result<(), ErrorKind> {
    completion.result.map_err(|fault| fault.kind)
}
