//! What takes its time at a function does not hold up its home core. On a real core, since threads
//! take no part in simulated time; nothing is measured, only what happened before what.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use oxblock_engine::{Channel, Core, Engine, Node, Op, Options};
use oxblock_mem::{ArenaOptions, DmaMapper};
use oxblock_pci::soft::SoftFunction;
use oxblock_pci::{Bar, ConfigSpace, Delays, Events, Function, Interrupts, PciError};

use super::super::{Controller, NvmeOptions};
use super::device::{Follow, Script};
use crate::null::{self, NullOptions};

/// I/Os that a core must have done while something else is held up.
const MEANWHILE: u64 = 1000;
/// When a gate opens by itself, so that what holds a core up fails a test rather than hangs it.
const TOO_LONG: Duration = Duration::from_secs(3);

/// Holds up whoever passes, once it is shut, until it is opened.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    held: AtomicU64,
}

#[derive(Default)]
struct GateState {
    shut: bool,
    forced: bool,
}

impl Gate {
    fn shut(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).shut = true;
    }

    fn open(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).shut = false;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.shut {
            self.held.fetch_add(1, Ordering::SeqCst);
        }
        let waited = self.changed.wait_timeout_while(state, TOO_LONG, |state| state.shut);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        state.forced |= waited.timed_out();
        state.shut = false;
    }

    /// Whether somebody stands before it.
    fn holds(&self) -> bool {
        self.held.load(Ordering::SeqCst) > 0
    }

    /// It was not opened in time.
    fn was_forced(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).forced
    }
}

/// A function whose resets wait at a gate, and perhaps its registers.
struct Slow {
    inner: Arc<SoftFunction>,
    gate: Arc<Gate>,
    delays: Delays,
}

impl Function for Slow {
    fn address(&self) -> String {
        self.inner.address()
    }

    fn numa_node(&self) -> Option<u32> {
        self.inner.numa_node()
    }

    fn config(&self) -> &dyn ConfigSpace {
        self.inner.config()
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Bar>, PciError> {
        self.inner.bar(index)
    }

    fn iommu(&self) -> Arc<dyn DmaMapper> {
        Function::iommu(&*self.inner)
    }

    fn interrupts(&self) -> &dyn Interrupts {
        self.inner.interrupts()
    }

    fn events(&self) -> &Events {
        self.inner.events()
    }

    fn delays(&self) -> Delays {
        self.delays
    }

    fn reset(&self) -> Result<(), PciError> {
        self.gate.pass();
        self.inner.reset()
    }

    fn release(&self) {
        self.inner.release();
    }
}

fn engine() -> Engine {
    let options = Options { arena: ArenaOptions::new(16 << 20), ..Options::default() };
    Engine::with_cores(1, options).expect("an engine")
}

/// A node that has nothing to do with the function.
async fn neighbour(core: &Core) -> Channel {
    let driver = null::open(NullOptions::default()).expect("a null device");
    core.open(&Node::new("neighbour", driver)).await.expect("a queue")
}

/// I/O on the neighbour until somebody was held up at the gate, and more of it; then opens it.
async fn meanwhile(core: &Core, neighbour: &Channel, gate: &Gate) -> u64 {
    let mut done = 0;
    while done < MEANWHILE && !gate.was_forced() {
        let buf = core.arena().alloc(4096, 4096).expect("memory");
        neighbour.run(Op::read(0, buf)).await.result.expect("a read");
        done += u64::from(gate.holds());
        core.yield_now().await;
    }
    gate.open();
    done
}

/// Row 33. A function-level reset takes 100 ms, and was waited for on the core.
#[test]
fn a_reset_of_a_function_does_not_hold_up_its_core() {
    let engine = engine();
    let (device, inner) = Script::new(0x4000);
    let mut state = device.state();
    state.cap = state.cap.with_to(1);
    drop(state);
    let gate = Arc::new(Gate::default());
    let function = Arc::new(Slow { inner, gate: gate.clone(), delays: Delays::Reset });
    let script = device.clone();
    engine
        .run(0, move |core| async move {
            let attached = Controller::attach(&core, function, NvmeOptions::default()).await;
            let controller = attached.expect("the driver");
            let neighbour = neighbour(&core).await;
            script.state().unready = Follow::Never;
            gate.shut();
            let (there, reset) = (core.clone(), controller.clone());
            let reset = core.spawn(async move { reset.reset(&there).await });
            assert_eq!(meanwhile(&core, &neighbour, &gate).await, MEANWHILE);
            reset.await.expect("a task").expect("it comes back");
            assert_eq!((controller.stats().resets, script.state().resets), (1, 1));
        })
        .expect("the test");
    engine.shutdown().expect("an orderly end");
}

/// Twenty times a second the home core asked a server for a register; one that was stopped held up
/// the core until the client's patience was at its end.
#[test]
fn a_register_that_takes_its_time_does_not_hold_up_the_home_core() {
    let engine = engine();
    let (device, inner) = Script::new(0x4000);
    let gate = Arc::new(Gate::default());
    let waiting = gate.clone();
    device.before_status(move || waiting.pass());
    let delays = Delays::Registers;
    let function = Arc::new(Slow { inner, gate: gate.clone(), delays });
    engine
        .run(0, move |core| async move {
            let attached = Controller::attach(&core, function, NvmeOptions::default()).await;
            let controller = attached.expect("the driver");
            let neighbour = neighbour(&core).await;
            gate.shut();
            assert_eq!(meanwhile(&core, &neighbour, &gate).await, MEANWHILE);
            controller.rescan(&core).await.expect("it goes on");
            assert_eq!(controller.stats().resets, 0);
        })
        .expect("the test");
    engine.shutdown().expect("an orderly end");
}
