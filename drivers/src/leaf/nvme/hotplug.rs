//! Controllers that are plugged in, and pulled, while the engine runs.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use oxblock_engine::{Core, EventKind, Poller, PollerId, Sleep};
use oxblock_pci::host::{
    BusFunction, Change, ChangeKind, Monitor, MonitorOptions, NVME_CLASS, Root, Wait, is_vfio,
};

/// How often a core that is too busy to sleep looks. A look is a system call, or none.
const LOOK_NS: u64 = 5_000_000;
/// Turns of which one looks at the clock.
const TURNS_PER_READING: u32 = 64;

/// Watches this machine for NVMe controllers, for as long as it lives, and tells the engine's
/// embedder of them by [`Core::events`]: [`EventKind::DeviceAppeared`] of one that comes, and again
/// when it is given to VFIO or taken from it; [`EventKind::DeviceUnplugged`] of one that goes. The
/// subject is the function's PCI address. What is open on a controller that goes, the driver ends
/// by itself, and tells of it as well.
///
/// The embedder decides what is attached:
///
/// ```no_run
/// # use std::sync::Arc;
/// # use oxblock_drivers::nvme::{Controller, HotPlug, NvmeOptions};
/// # use oxblock_engine::{Core, Error, EventKind, Node};
/// # use oxblock_pci::vfio::Vfio;
/// /// Opens the first namespace of each controller that comes.
/// async fn attach_what_comes(core: Core) -> Result<(), Error> {
///     let vfio = Vfio::new();
///     let mut events = core.events();
///     let _hot_plug = HotPlug::begin(&core);
///     let mut controllers = Vec::new();
///     while let Some(event) = events.next().await {
///         if event.kind != (EventKind::DeviceAppeared { ready: true }) {
///             eprintln!("{event}");
///             continue;
///         }
///         let address = event.subject.parse().expect("an address");
///         let Ok(function) = vfio.open(address) else { continue };
///         let controller = Controller::attach(&core, function, NvmeOptions::default()).await?;
///         let node = Node::new(format!("{}/1", event.subject), controller.namespace(1)?);
///         let channel = core.open(&node).await?;
///         // ... submit to it; when the device goes, what is in flight ends with `Gone` ...
///         controllers.push((controller, channel));
///     }
///     Ok(())
/// }
/// ```
pub struct HotPlug {
    /// The poller ends when this does.
    _alive: Arc<()>,
    found: Vec<BusFunction>,
    notice: Option<String>,
}

impl HotPlug {
    /// Begins to watch from this core, whose thread looks at what happens.
    pub fn begin(core: &Core) -> HotPlug {
        let options = MonitorOptions { class: Some(NVME_CLASS), ..MonitorOptions::default() };
        HotPlug::over(core, Monitor::new(Root::new("/"), &options))
    }

    /// The same over a monitor of one's own. Other functions than NVMe controllers are passed over.
    pub fn over(core: &Core, monitor: Monitor) -> HotPlug {
        let alive = Arc::new(());
        let found = monitor.functions().filter(|function| is_nvme(function)).cloned().collect();
        let notice = monitor.notice().map(str::to_owned);
        let id = Rc::new(Cell::new(None));
        let (owner, turns, slept) = (Arc::downgrade(&alive), 0, false);
        let next_look_ns = 0;
        let watch = BusWatch { monitor, owner, turns, next_look_ns, slept, id: id.clone() };
        id.set(Some(core.add_poller(Box::new(watch))));
        HotPlug { _alive: alive, found, notice }
    }

    /// The controllers that were there when it began. Events tell of all that comes later.
    pub fn found(&self) -> &[BusFunction] {
        &self.found
    }

    /// What is worth telling a person once: that the kernel does not tell of functions here, and
    /// why, so that they are looked for now and then.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }
}

/// Looks at the bus when there is news. While its core sleeps it costs nothing.
struct BusWatch {
    monitor: Monitor,
    owner: Weak<()>,
    turns: u32,
    next_look_ns: u64,
    /// The core was asked whether it may sleep since the last look.
    slept: bool,
    id: Rc<Cell<Option<PollerId>>>,
}

impl BusWatch {
    #[cold]
    fn look(&mut self, core: &Core) -> usize {
        self.slept = false;
        if self.owner.strong_count() == 0 {
            if let Some(id) = self.id.take() {
                core.remove_poller(id);
            }
            return 1;
        }
        let now_ns = core.pass_now();
        self.next_look_ns = now_ns + LOOK_NS;
        self.monitor.look(now_ns, |change| tell(core, &change))
    }
}

impl Poller for BusWatch {
    #[inline]
    fn poll(&mut self, core: &Core) -> usize {
        self.turns = self.turns.wrapping_add(1);
        let reads = self.turns.is_multiple_of(TURNS_PER_READING);
        if self.slept || reads && core.pass_now() >= self.next_look_ns {
            return self.look(core);
        }
        0
    }

    fn sleep(&mut self) -> Sleep<'_> {
        self.slept = true;
        match self.monitor.wait() {
            Wait::Fd(fd) => Sleep::Fd(fd),
            Wait::Until(at_ns) => Sleep::Until(at_ns),
        }
    }
}

fn is_nvme(function: &BusFunction) -> bool {
    function.class == NVME_CLASS
}

fn tell(core: &Core, Change { kind, function }: &Change) {
    if !is_nvme(function) {
        return;
    }
    let ready = function.is_bound();
    let (kind, what) = match kind {
        ChangeKind::Gone => {
            let text = "was taken from its bus";
            return core.publish(&function.address.to_string(), EventKind::DeviceUnplugged, text);
        }
        ChangeKind::Driver { before } if before.as_deref().is_some_and(is_vfio) == ready => return,
        ChangeKind::Appeared => (EventKind::DeviceAppeared { ready }, "an NVMe controller came"),
        ChangeKind::Driver { .. } => {
            (EventKind::DeviceAppeared { ready }, "the NVMe controller changed hands")
        }
    };
    let BusFunction { address, vendor, device, driver, .. } = function;
    let text = match (ready, driver) {
        (true, _) => format!("{what} ({vendor:04x}:{device:04x}); it can be attached"),
        (false, driver) => {
            let driver = driver.as_deref().unwrap_or("no driver");
            format!(
                "{what} ({vendor:04x}:{device:04x}), and {driver} has it; before it can be \
                 attached, run: sudo oxblock pci bind {address}"
            )
        }
    };
    core.publish(&address.to_string(), kind, text);
}
