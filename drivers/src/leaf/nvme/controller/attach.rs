//! From a PCI function to a controller that works.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oxblock_engine::{Core, Error, ErrorKind, PollerId};
use oxblock_nvme::identify::read_ascii;
use oxblock_pci::{Delays, EventFd, Function, Ids};

use super::super::admin::Admin;
use super::super::blocking;
use super::super::departure::FunctionWatch;
use super::super::events;
use super::super::features::Features;
use super::super::hardware::{Hardware, pci_error};
use super::super::home::{HomePoller, Ward};
use super::super::interrupts::Vectors;
use super::super::namespaces::Namespaces;
use super::super::recovery::Recovery;
use super::super::retry::Patience;
use super::super::setup::{Known, Setup, set_up};
use super::super::station::Stations;
use super::super::{NvmeOptions, Quirks, memory};
use super::{Controller, HeldAttachment, Identity, QueueIds};

/// The PCI class of an NVMe I/O controller.
const CLASS_NVME: u32 = 0x01_08_02;
/// The unit of MTFA.
const MTFA_UNIT: Duration = Duration::from_millis(100);
/// How long a shutdown may take at least.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a shutdown may take at most, whatever RTD3E says.
const SHUTDOWN_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// [`Controller::attach`], without the name of the function in its errors.
pub(super) async fn attach(
    core: &Core,
    function: Arc<dyn Function>,
    options: NvmeOptions,
) -> Result<Arc<Controller>, Error> {
    let ids = Ids::read(function.config()).map_err(pci_error)?;
    if ids.class != CLASS_NVME {
        let text = format!("PCI class {:06x} is no NVMe controller ({CLASS_NVME:06x})", ids.class);
        return Err(Error::new(ErrorKind::NotSupported, text));
    }
    oxblock_pci::enable(function.config()).map_err(pci_error)?;
    let quirks = (Quirks::of_function(&ids) | options.quirks) - options.without_quirks;
    let hardware = Arc::new(Hardware::open(&*function, core.waker(), quirks)?);
    check_capabilities(&hardware)?;
    let attachment = HeldAttachment {
        hardware: hardware.clone(),
        attachment: Some(memory::attach(core, &*function, &hardware).await?),
    };
    let mut vectors = Vectors::new(&function, core.id(), options.interrupt_mode);
    let features = Features::new(&function, &options);
    let ward = Ward::default();
    let beginning = Beginning {
        function: &function,
        hardware: &hardware,
        options: &options,
        features: &features,
        event: vectors.admin_event(),
        ward: &ward,
        watched: Cell::new(false),
    };
    let Begun { admin, poller, setup } = beginning.lead(core).await?;
    let one_for_all = hardware.quirks().contains(Quirks::SINGLE_VECTOR);
    vectors.enable_io(if one_for_all { 0 } else { setup.io_queues });
    let page = &setup.page;
    let rtd3e = Duration::from_micros(page.rtd3e.get().into());
    let entries = options.queue_entries.clamp(2, 1024);
    let identity = Identity {
        serial: read_ascii(&page.sn),
        model: read_ascii(&page.mn),
        firmware: read_ascii(&page.fr),
        version: {
            let vs = hardware.version();
            ((vs >> 16) as u16, (vs >> 8) as u8, vs as u8)
        },
        vendor: page.vid.get(),
        io_queues: setup.io_queues,
        queue_entries: entries.min(hardware.entries_max()),
        shadow_doorbells: setup.shadow.is_some(),
    };
    let activation_timeout = match page.mtfa.get() {
        0 => options.admin_timeout,
        units => MTFA_UNIT * u32::from(units),
    };
    let aerl = page.aerl;
    let controller = Arc::new(Controller {
        attachment: Mutex::new(attachment),
        hardware,
        admin,
        function,
        released: AtomicBool::new(false),
        vectors,
        queues: Mutex::new(QueueIds {
            free: (1..=setup.io_queues).rev().collect(),
            used: Vec::new(),
            closing: false,
        }),
        firmware: Mutex::new(identity.firmware.clone()),
        identity,
        namespaces: Namespaces::new(setup.found, options.sgl),
        shadow: setup.shadow,
        stations: Stations::default(),
        recovery: Recovery::default(),
        patience: Patience::new(&options, page.crdt.map(|crdt| crdt.get())),
        lenders: Mutex::default(),
        orphans: AtomicUsize::new(0),
        counters: Arc::default(),
        events: Arc::default(),
        features,
        home: core.id(),
        poller,
        shutdown_timeout: rtd3e.clamp(SHUTDOWN_TIMEOUT, SHUTDOWN_TIMEOUT_MAX),
        activation_timeout,
        error_log_entries: u16::from(page.elpe) + 1,
        options,
    });
    *ward.borrow_mut() = Arc::downgrade(&controller);
    FunctionWatch::begin(core, &*controller.function, Arc::downgrade(&controller))?;
    events::begin(core, &controller, aerl);
    Ok(controller)
}

/// Refuses what the driver can not work with, before anything is changed.
fn check_capabilities(hardware: &Hardware) -> Result<(), Error> {
    let cap = hardware.cap();
    let text = if cap.mpsmin() > 0 {
        // Row 7.
        format!("its smallest memory page is {} bytes, the host's is 4096", 4096u64 << cap.mpsmin())
    } else if cap.css_admin_only() || !(cap.css_nvm() || cap.css_io()) {
        format!("it has no NVM command set (CAP.CSS {:#x})", cap.css())
    } else if hardware.quirks().contains(Quirks::WIDE_ENTRIES) {
        "its submission queue entries have 128 bytes; this driver knows those of 64".into()
    } else if hardware.entries_max() < 2 {
        // Row 5.
        "its I/O queues have one entry (CAP.MQES 0); NVMe requires two at least".into()
    } else if hardware.qid_max() == 0 {
        // Row 6.
        format!("the doorbells of I/O queues lie outside its BAR (CAP.DSTRD {})", cap.dstrd())
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::NotSupported, text))
}

/// From a controller in whatever state its last owner left it to one that is set up.
struct Beginning<'a> {
    function: &'a Arc<dyn Function>,
    hardware: &'a Arc<Hardware>,
    options: &'a NvmeOptions,
    features: &'a Features,
    event: Option<Arc<EventFd>>,
    ward: &'a Ward,
    /// A thread looks after it.
    watched: Cell<bool>,
}

/// A controller that is enabled and set up, and looked after.
struct Begun {
    admin: Arc<Admin>,
    poller: PollerId,
    setup: Setup,
}

impl Beginning<'_> {
    /// Enables the controller and sets it up; if that fails, once more after a reset of the
    /// function: whoever had it before may have been killed in the middle of anything.
    async fn lead(&self, core: &Core) -> Result<Begun, Error> {
        let hardware = self.hardware;
        let first = match self.once(core).await {
            Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::TimedOut) => error,
            outcome => return outcome,
        };
        hardware.fail();
        if blocking::reset_function(core, self.function).await.is_err() {
            return Err(first);
        }
        hardware.disable_now(core).await?;
        hardware.down();
        if hardware.restart().is_none() {
            return Err(first);
        }
        let begun = self.once(core).await?;
        if hardware.revive() {
            return Ok(begun);
        }
        self.end(core, &begun.admin, begun.poller).await;
        Err(first)
    }

    async fn once(&self, core: &Core) -> Result<Begun, Error> {
        let (hardware, options, features) = (self.hardware, self.options, self.features);
        let admin = enable(core, hardware, options.admin_timeout).await?;
        let is_watched = self.function.delays() == Delays::Registers;
        // Not before it is enabled: what its last owner left it in is no failure.
        if is_watched && !self.watched.replace(true) {
            blocking::watch(hardware)?;
        }
        let (event, ward) = (self.event.clone(), self.ward.clone());
        let poller = HomePoller::new(hardware.clone(), admin.clone(), ward, event, is_watched);
        let poller = core.add_poller(Box::new(poller));
        let known = Known { options, before: None, features };
        match set_up(core, &admin, hardware, known).await {
            Ok(setup) => Ok(Begun { admin, poller, setup }),
            Err(error) => {
                self.end(core, &admin, poller).await;
                Err(error)
            }
        }
    }

    /// Disables a controller that could not be set up.
    async fn end(&self, core: &Core, admin: &Admin, poller: PollerId) {
        self.hardware.fail();
        if self.hardware.disable(core).await.is_ok() {
            self.hardware.down();
            admin.restart();
            admin.conceal();
        }
        admin.close();
        core.remove_poller(poller);
    }
}

/// Disables the controller, and enables it with an admin queue pair of its own.
async fn enable(
    core: &Core,
    hardware: &Arc<Hardware>,
    timeout: Duration,
) -> Result<Arc<Admin>, Error> {
    hardware.disable(core).await?;
    let admin = Admin::new(core, hardware, timeout)?;
    let (aqa, asq, acq) = admin.expose()?;
    if let Err(error) = hardware.enable(core, aqa, asq, acq).await {
        if hardware.disable_now(core).await.is_ok() {
            admin.conceal();
        }
        return Err(error);
    }
    Ok(admin)
}
