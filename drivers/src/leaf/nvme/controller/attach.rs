//! From a PCI function to a controller that works.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_nvme::identify::read_ascii;
use oxblock_pci::{Function, Ids};

use super::super::admin::Admin;
use super::super::departure::FunctionWatch;
use super::super::events;
use super::super::features::Features;
use super::super::hardware::{Hardware, pci_error};
use super::super::home::{HomePoller, Ward};
use super::super::interrupts::Vectors;
use super::super::namespaces::Namespaces;
use super::super::recovery::Recovery;
use super::super::retry::Patience;
use super::super::setup::{Known, set_up};
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
    let admin = start(core, &*function, &hardware, options.admin_timeout).await?;
    let ward = Ward::default();
    let mut vectors = Vectors::new(&function, core.id(), options.interrupt_mode);
    let event = vectors.admin_event();
    let poller = HomePoller::new(hardware.clone(), admin.clone(), ward.clone(), event);
    let poller = core.add_poller(Box::new(poller));
    let features = Features::new(&function, &options);
    let known = Known { options: &options, before: None, features: &features };
    let setup = set_up(core, &admin, &hardware, known).await;
    let setup = match setup {
        Ok(setup) => setup,
        Err(error) => {
            if hardware.disable(core).await.is_ok() {
                hardware.retire();
            }
            admin.close();
            core.remove_poller(poller);
            return Err(error);
        }
    };
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

/// Disables and enables the controller; if that fails, once more after a reset of the function.
async fn start(
    core: &Core,
    function: &dyn Function,
    hardware: &Arc<Hardware>,
    timeout: Duration,
) -> Result<Arc<Admin>, Error> {
    let first = match try_start(core, hardware, timeout).await {
        Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::TimedOut) => error,
        outcome => return outcome,
    };
    if function.reset().is_err() {
        return Err(first);
    }
    // A reset takes the function's command register along.
    oxblock_pci::enable(function.config()).map_err(pci_error)?;
    try_start(core, hardware, timeout).await
}

async fn try_start(
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
