//! The handle of a controller.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_nvme::PAGE_BYTES;
use oxblock_nvme::event::Event;
use oxblock_nvme::regs::{Cap, Crto, DOORBELLS};
use oxblock_pci::soft::{Device, SoftFunction, SoftInterrupts, SoftIommu};
use oxblock_pci::{Function, Ids};

use crate::admin::Admin;
use crate::admin::features::FeatureLimits;
use crate::admin::identify::{Identity, VERSION};
use crate::bar_memory::BarMemory;
use crate::data::HostMemory;
use crate::doorbells::Doorbells;
use crate::hooks::{Hooks, NoHooks};
use crate::inventory::Inventory;
use crate::namespace::{Backing, Geometry, Usage};
use crate::nvm::long::Jobs;
use crate::options::ControllerOptions;
use crate::registers::Registers;
use crate::service::{Parts, Service};
use crate::transport::pci::{Notice, Shared};

/// Mass storage, non-volatile memory, NVM Express.
const CLASS: u32 = 0x01_08_02;

/// The largest memory page that CC.MPS may choose: 2^(12 + 4) bytes.
const MPSMAX: u8 = 4;

/// CAP.TO and CRTO.CRWMT, units of 500 ms.
const READY_TIMEOUT: u8 = 20;

/// CAP.CSS: the NVM command set, and the list of command sets.
const CSS: u8 = 0x41;

/// A controller that is served by a core of an engine.
///
/// Hosts reach it through its [`Function`]; where they run does not matter. It polls on the core
/// that started it, together with whatever else runs there, and lets that core sleep when there
/// is nothing to do. Dropping the handle stops it.
pub struct Controller {
    shared: Arc<Shared>,
    function: Arc<SoftFunction>,
    iommu: Arc<SoftIommu>,
}

impl Controller {
    /// Opens the namespaces' nodes on this core and starts to serve.
    ///
    /// # Errors
    /// The options make no sense, a node cannot be opened, or memory is short.
    pub async fn start(core: &Core, options: ControllerOptions) -> Result<Arc<Controller>, Error> {
        let controller = Controller::start_with(core, options, NoHooks, |shared| shared).await?;
        Ok(Arc::new(controller))
    }

    /// The PCI function that hosts drive.
    #[must_use]
    pub fn function(&self) -> Arc<dyn Function> {
        Arc::clone(&self.function) as Arc<dyn Function>
    }

    /// The function with the switches that only software has.
    #[must_use]
    pub fn soft_function(&self) -> &Arc<SoftFunction> {
        &self.function
    }

    /// The IOMMU that hosts map their memory in.
    #[must_use]
    pub fn iommu(&self) -> &Arc<SoftIommu> {
        &self.iommu
    }

    /// Tells the host that a namespace has changed, by the log page and an event if it asked for
    /// those.
    pub fn namespace_changed(&self, nsid: u32) {
        self.shared.notify(Notice::NamespaceChanged(nsid));
    }

    /// Sets the critical warnings of the SMART log (its byte 0) that the controller does not come
    /// to by itself, and tells the host of new ones if it asked for those.
    pub fn set_critical_warning(&self, bits: u8) {
        self.shared.notify(Notice::CriticalWarning(bits));
    }

    /// How many flushes have reached the nodes.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.shared.flushes.load(Ordering::Relaxed)
    }

    /// How often the host took back, or wrote to, memory that it had lent as Host Memory Buffer.
    #[must_use]
    pub fn broken_promises(&self) -> u64 {
        self.shared.broken_promises.load(Ordering::Relaxed)
    }

    /// Stops serving for good: commands in work end, then registers read as all ones. Returns
    /// at once; [`is_stopped`](Controller::is_stopped) tells when it has happened.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Whether the controller has stopped, and touches no memory of its host any more.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.shared.is_stopped()
    }

    /// Reports an event that did not happen.
    pub(crate) fn raise(&self, event: Event) {
        self.notify(Notice::Raw(event));
    }

    pub(crate) fn notify(&self, notice: Notice) {
        self.shared.notify(notice);
    }

    pub(crate) fn weak_shared(&self) -> Weak<Shared> {
        Arc::downgrade(&self.shared)
    }

    /// Starts with hooks, and with something around the device. The engine's shutdown stops it.
    pub(crate) async fn start_with<H: Hooks + 'static>(
        core: &Core,
        options: ControllerOptions,
        hooks: H,
        wrap: impl FnOnce(Arc<dyn Device>) -> Arc<dyn Device>,
    ) -> Result<Controller, Error> {
        let controller = Controller::build(core, options, hooks, wrap).await?;
        stop_at_shutdown(core, Arc::clone(&controller.shared));
        Ok(controller)
    }

    /// The same for an owner who stops it before the engine's shutdown comes to the nodes.
    pub(crate) async fn build<H: Hooks + 'static>(
        core: &Core,
        options: ControllerOptions,
        hooks: H,
        wrap: impl FnOnce(Arc<dyn Device>) -> Arc<dyn Device>,
    ) -> Result<Controller, Error> {
        options.check()?;
        let mut backings = Vec::new();
        for node in options.nodes() {
            let channel = core.open_to_serve(node).await?;
            backings.push(Backing { channel, usage: Usage::default() });
        }
        let first = (1u32..).zip(&options.namespaces).enumerate();
        let first = first.map(|(backing, (nsid, of))| Geometry::new(nsid, backing, of)).collect();
        let nodes = options.nodes().map(|node| (*node.limits()).clone()).collect();
        let inventory = Inventory::new(first, options.max_namespaces, nodes);
        let jobs = Jobs::new(core.arena())?;

        let doorbells = match options.mapped_doorbells {
            true => Doorbells::mapped(options.max_io_queues, options.dstrd)?,
            false => Doorbells::new(options.max_io_queues, options.dstrd),
        };
        let memory = BarMemory::new(&options, DOORBELLS + doorbells.span())?;
        let timeouts = Crto(READY_TIMEOUT.into());
        let registers =
            Registers::new(capabilities(&options), VERSION, timeouts, memory.capabilities());
        let shared = Arc::new(Shared::new(registers, doorbells, memory, core.waker()));
        let iommu = SoftIommu::new(options.iommu.clone());
        let interrupts = SoftInterrupts::new(options.vectors.into());
        let function = SoftFunction::new(
            options.address.clone(),
            wrap(Arc::clone(&shared) as Arc<dyn Device>),
            ids(&options),
            Arc::clone(&iommu),
            Arc::clone(&interrupts),
        )
        .map_err(|error| Error::new(ErrorKind::from_errno(error.errno()), error.to_string()))?;
        let watcher = Arc::clone(&shared);
        iommu.on_change(Box::new(move || watcher.wake()));

        let poller = Rc::new(Cell::new(None));
        let service = Service::new(Parts {
            shared: Arc::clone(&shared),
            memory: HostMemory::new(iommu.translator(), options.sgl),
            signals: interrupts.signals(),
            admin: admin(&options, inventory.numbers(), core.now() / 1_000_000),
            inventory,
            backings,
            jobs,
            hooks,
            io_queues: options.max_io_queues,
            max_queue_entries: options.max_queue_entries,
            max_in_work: options.max_in_work.unwrap_or(usize::MAX),
            vectors: options.vectors,
            firmware_pause_ns: u64::from(options.firmware_pause) * 100_000_000,
            poller: Rc::clone(&poller),
        });
        poller.set(Some(core.add_poller(Box::new(service))));
        Ok(Controller { shared, function, iommu })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Before the engine closes the nodes, the controller lets go of them.
fn stop_at_shutdown(core: &Core, shared: Arc<Shared>) {
    core.at_shutdown(move |core| {
        Box::pin(async move {
            shared.stop();
            while !shared.is_stopped() {
                core.yield_now().await;
            }
            Ok(())
        })
    });
}

fn capabilities(options: &ControllerOptions) -> Cap {
    Cap::default()
        .with_mqes((options.max_queue_entries - 1) as u16)
        .with_cqr(true)
        .with_to(READY_TIMEOUT)
        .with_dstrd(options.dstrd)
        .with_css(CSS)
        .with_mpsmax(MPSMAX)
        .with_pmrs(options.pmr_bytes > 0)
        .with_cmbs(options.cmb_bytes > 0)
        .with_crms(1)
}

fn ids(options: &ControllerOptions) -> Ids {
    Ids {
        vendor: options.vendor,
        device: options.device,
        subsystem_vendor: options.subsystem_vendor,
        subsystem: options.subsystem,
        class: CLASS,
        revision: 1,
    }
}

fn admin(options: &ControllerOptions, namespaces: u32, now_ms: u64) -> Admin {
    let volatile_cache = options.has_volatile_cache();
    let limits = FeatureLimits {
        io_queues: options.max_io_queues,
        vectors: options.vectors,
        namespaces,
        volatile_cache,
        power_transitions: options.power_transitions,
        keep_alive: options.keep_alive,
        host_memory: options.host_memory_bytes > 0,
    };
    let pages = (options.host_memory_bytes / PAGE_BYTES as u64) as u32;
    let identity = Identity {
        serial: options.serial.clone(),
        model: options.model.clone(),
        vendor: options.vendor,
        subsystem_vendor: options.subsystem_vendor,
        mdts: options.mdts,
        sgl: options.sgl,
        shadow_doorbells: options.shadow_doorbells && !options.mapped_doorbells,
        volatile_cache,
        power_transitions: options.power_transitions,
        keep_alive: options.keep_alive,
        host_memory: (pages, pages / 2),
        retry_delays: options.retry_delays,
        activation: options.firmware_pause.saturating_add(1),
    };
    Admin::new(identity, limits, now_ms)
}
