//! A controller: what is known of it, its queues, its shutdown.

mod attach;

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use oxblock_engine::{Core, Driver, Error, ErrorKind, PollerId};
use oxblock_mem::Attachment;
use oxblock_nvme::identify::read_ascii;
use oxblock_nvme::regs;
use oxblock_pci::Function;

use super::admin::Admin;
use super::doorbell::ShadowPages;
use super::ending::DELETE_NS;
use super::events::{EventCounts, EventLog, EventRecord};
use super::features::Features;
use super::hardware::Hardware;
use super::health::Health;
use super::interrupts::Vectors;
use super::lending::Lender;
use super::namespace::NamespaceDriver;
use super::namespaces::{Namespaces, Scan};
use super::queue_pair::{self, QueueCounters};
use super::recovery::{self, Recovery};
use super::retry::Patience;
use super::setup::{Known, Setup};
use super::station::Stations;
use super::{NvmeOptions, Quirks};

/// An attached NVMe controller.
///
/// It works until [`Controller::shutdown`], which the engine's own shutdown calls too. Dropped
/// without, it is disabled as well as a drop can.
pub struct Controller {
    /// Ended first: nothing that the controller knows is freed before it is quiet.
    attachment: Mutex<HeldAttachment>,
    hardware: Arc<Hardware>,
    admin: Arc<Admin>,
    function: Arc<dyn Function>,
    /// The function was let go of.
    released: AtomicBool,
    vectors: Vectors,
    options: NvmeOptions,
    identity: Identity,
    namespaces: Namespaces,
    shadow: Option<ShadowPages>,
    queues: Mutex<QueueIds>,
    stations: Stations,
    recovery: Recovery,
    patience: Patience,
    /// Queue pairs that can be shared.
    lenders: Mutex<Vec<Arc<Lender>>>,
    /// Queue pairs that only others than their own core still need.
    orphans: AtomicUsize,
    counters: Arc<QueueCounters>,
    events: Arc<EventLog>,
    features: Features,
    home: usize,
    poller: PollerId,
    shutdown_timeout: Duration,
    activation_timeout: Duration,
    error_log_entries: u16,
}

/// Who a controller says it is. Text is printable ASCII, whatever the controller sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// NVMe version as in the VS register: major, minor, tertiary.
    pub version: (u16, u8, u8),
    /// PCI vendor.
    pub vendor: u16,
    /// I/O queue pairs that the controller granted.
    pub io_queues: u16,
    /// Entries of an I/O queue.
    pub queue_entries: u16,
    /// Shadow doorbells are in use.
    pub shadow_doorbells: bool,
}

/// What a controller did that it should not have, and what became of it. Spurious completions are
/// `bad_cid`, `bad_sqid` and `bad_admin`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControllerStats {
    /// Completions of I/O queues whose command identifier was out of range, idle, or of another
    /// generation. They were ignored.
    pub bad_cid: u64,
    /// SQ heads of I/O queues that could not be. They were not believed.
    pub bad_sqhd: u64,
    /// Completions of I/O queues for another submission queue. They were ignored.
    pub bad_sqid: u64,
    /// Completions of the admin queue that were not believed, for either reason.
    pub bad_admin: u64,
    /// Resets of the controller that brought it back, asked for or not.
    pub resets: u64,
    /// Resets that did not.
    pub failed_resets: u64,
    /// I/O commands that were not answered in time.
    pub timeouts: u64,
    /// Aborts of I/O commands that the controller was asked for.
    pub aborts: u64,
    /// I/O commands that were sent again.
    pub retries: u64,
    /// Completions of I/O commands that came after their time, but came.
    pub late_completions: u64,
    /// Asynchronous events.
    pub events: u64,
    /// Interrupts of I/O queue pairs that ended a wait.
    pub interrupts: u64,
    /// How often an I/O queue pair waited for an interrupt rather than poll.
    pub sleeps: u64,
    /// Interrupts that did not come: their completions were found by looking, later.
    pub lost_interrupts: u64,
    /// I/O queue pairs in use.
    pub queues: u16,
    /// Queues of cores that share another core's queue pair.
    pub sharing: u16,
}

struct QueueIds {
    /// Unused IDs, the smallest last.
    free: Vec<u16>,
    used: Vec<u16>,
    closing: bool,
}

impl Controller {
    /// Resets, enables and identifies the controller behind a function. `core` becomes its home.
    ///
    /// A controller that fails to start is reset by its function once, and tried again.
    ///
    /// # Errors
    /// In words: the function is no NVMe controller, is gone, does not start in time, or needs
    /// what the driver does not have.
    pub async fn attach(
        core: &Core,
        function: Arc<dyn Function>,
        options: NvmeOptions,
    ) -> Result<Arc<Self>, Error> {
        let name = format!("attaching the NVMe controller at {}", function.address());
        let controller =
            attach::attach(core, function, options).await.map_err(|error| error.context(name))?;
        let weak = Arc::downgrade(&controller);
        core.at_shutdown(move |core| Box::pin(shutdown_if_there(weak, core)));
        Ok(controller)
    }

    /// Where the controller is, for messages.
    pub fn name(&self) -> &str {
        self.hardware.address()
    }

    /// Who the controller says it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The IDs of the active namespaces, those that cannot be used included.
    pub fn namespaces(&self) -> Vec<u32> {
        self.namespaces.ids()
    }

    /// Looks for namespaces afresh and gives their IDs, as the driver does by itself when the
    /// controller tells that some have changed. Open nodes follow what can be followed: another
    /// length, writes that are refused or taken again. Those whose namespace is no more, or has
    /// other blocks, fail from now on and must be made anew.
    ///
    /// # Errors
    /// The controller refuses to list them, or fails.
    pub async fn rescan(&self, core: &Core) -> Result<Vec<u32>, Error> {
        self.rescan_some(core, None).await?;
        Ok(self.namespaces())
    }

    /// The same for some namespaces, or all.
    pub(super) async fn rescan_some(
        &self,
        core: &Core,
        which: Option<&[u32]>,
    ) -> Result<(), Error> {
        self.settled(core).await.map_err(|error| error.context(self.name()))?;
        let scan = Scan { core, admin: &self.admin, hardware: &self.hardware };
        let scanned = self.namespaces.rescan(&scan, which).await;
        scanned.map_err(|error| error.context(self.name()))
    }

    /// A namespace as a driver, for a [`Node`](oxblock_engine::Node).
    ///
    /// # Errors
    /// There is no such namespace, or it is formatted in a way that the driver does not support.
    pub fn namespace(self: &Arc<Self>, nsid: u32) -> Result<Box<dyn Driver>, Error> {
        let namespace = self
            .namespaces
            .open(nsid)
            .map_err(|error| error.context(format!("{} namespace {nsid}", self.name())))?;
        Ok(Box::new(NamespaceDriver { controller: self.clone(), namespace }))
    }

    /// Entries of its Error Information log, 1 to 256 (ELPE + 1).
    pub fn error_log_entries(&self) -> u16 {
        self.error_log_entries
    }

    /// Counts.
    pub fn stats(&self) -> ControllerStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ControllerStats {
            bad_cid: load(&self.counters.bad_cid),
            bad_sqhd: load(&self.counters.bad_sqhd),
            bad_sqid: load(&self.counters.bad_sqid),
            bad_admin: self.admin.rejected(),
            resets: load(&self.recovery.done),
            failed_resets: load(&self.recovery.failed),
            timeouts: load(&self.counters.timeouts),
            aborts: load(&self.counters.aborts),
            retries: load(&self.counters.retries),
            late_completions: load(&self.counters.late),
            events: self.events.counts().all,
            interrupts: load(&self.vectors.counters().taken),
            sleeps: load(&self.vectors.counters().sleeps),
            lost_interrupts: load(&self.vectors.counters().lost),
            queues: self.queue_ids().used.len() as u16,
            sharing: self.lenders().iter().map(|lender| lender.guests() as u16).sum(),
        }
    }

    /// What is known of the device, as the driver heeds it.
    pub fn quirks(&self) -> Quirks {
        self.hardware.quirks()
    }

    /// What the controller has, or should have, and the driver does not use, and why: a line each.
    pub fn notices(&self) -> Vec<String> {
        self.features.notices()
    }

    /// Bytes of memory that the controller was given for its own use (host memory buffer).
    pub fn host_memory(&self) -> u64 {
        self.features.host_memory()
    }

    /// The last asynchronous events, oldest first.
    pub fn events(&self) -> Vec<EventRecord> {
        self.events.recent()
    }

    /// How many asynchronous events there were, by what they said.
    pub fn event_counts(&self) -> EventCounts {
        self.events.counts()
    }

    /// Ends the controller in good order: deletes its queues, takes back the memory that it was
    /// given, tells it to shut down, which writes its volatile cache to the medium, waits until
    /// it has, and disables it. I/O still in flight fails. A second call does nothing.
    ///
    /// # Errors
    /// The controller is gone, or did not shut down in time.
    pub async fn shutdown(&self, core: &Core) -> Result<(), Error> {
        // A reset that is under way is let finish; what it ends in is looked at below.
        let _ = self.settled(core).await;
        if mem::replace(&mut self.queue_ids().closing, true) {
            return Ok(());
        }
        // They end by themselves, once those who shared them have.
        let begun = core.now();
        while self.orphans.load(Ordering::SeqCst) > 0 && core.now() - begun < DELETE_NS {
            core.yield_now().await;
        }
        let open = self.queue_ids().used.clone();
        let outcome = match self.hardware.health() {
            Health::Live => {
                for qid in open {
                    let _ = queue_pair::delete(core, &self.admin, qid).await;
                }
                self.features.withdraw(core, &self.admin).await;
                self.hardware.shut_down(core, regs::SHN_NORMAL, self.shutdown_timeout).await
            }
            Health::Gone => Err(Error::from(Health::Gone.fault(0))),
            _ => Ok(()),
        };
        self.end(core, outcome).await
    }

    /// Ends the controller as fast as it can be, for power that is about to fail: tells it so at
    /// once, whatever is in flight, waits until it is prepared, and disables it. I/O in flight
    /// fails; what was acknowledged and flushed is kept.
    ///
    /// # Errors
    /// As [`Controller::shutdown`].
    pub async fn shutdown_abruptly(&self, core: &Core) -> Result<(), Error> {
        if mem::replace(&mut self.queue_ids().closing, true) {
            return Ok(());
        }
        let outcome = match self.hardware.health() {
            Health::Live => {
                self.hardware.shut_down(core, regs::SHN_ABRUPT, self.shutdown_timeout).await
            }
            Health::Gone => Err(Error::from(Health::Gone.fault(0))),
            _ => Ok(()),
        };
        self.end(core, outcome).await
    }

    /// The controller was shut down, or cannot be.
    async fn end(&self, core: &Core, outcome: Result<(), Error>) -> Result<(), Error> {
        if !self.hardware.health().is_over() {
            recovery::give_up(core, self).await;
        }
        self.admin.close();
        if core.id() == self.home {
            core.remove_poller(self.poller);
        }
        outcome.map_err(|error| error.context(format!("shutting down {}", self.name())))
    }

    pub(super) fn hardware(&self) -> &Arc<Hardware> {
        &self.hardware
    }

    pub(super) fn admin(&self) -> &Arc<Admin> {
        &self.admin
    }

    pub(super) fn function(&self) -> &Arc<dyn Function> {
        &self.function
    }

    pub(super) fn vectors(&self) -> &Vectors {
        &self.vectors
    }

    /// Whether it is to gather completions for an interrupt.
    pub(super) fn coalesces(&self) -> bool {
        self.options.coalescing.is_some()
    }

    pub(super) fn features(&self) -> &Features {
        &self.features
    }

    pub(super) fn namespaces_known(&self) -> &Namespaces {
        &self.namespaces
    }

    pub(super) fn event_log(&self) -> &EventLog {
        &self.events
    }

    /// How long an activation of firmware may take.
    pub(super) fn activation_timeout(&self) -> Duration {
        self.activation_timeout
    }

    /// Gives the function back: it is not touched any more, and reaches no memory. Whether it was
    /// there to be given back.
    pub(super) fn let_go(&self) -> bool {
        let first = !self.released.swap(true, Ordering::SeqCst);
        if first {
            self.held_attachment().end();
            self.features.forget_function();
            self.function.release();
        }
        first
    }

    pub(super) fn shadow(&self) -> Option<&ShadowPages> {
        self.shadow.as_ref()
    }

    /// Its queue pairs, for resets.
    pub(super) fn stations(&self) -> &Stations {
        &self.stations
    }

    pub(super) fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    /// It is being shut down, or was.
    pub(super) fn is_closing(&self) -> bool {
        self.queue_ids().closing
    }

    /// What a reset is to bring back.
    pub(super) fn known(&self) -> Known<'_> {
        Known {
            options: &self.options,
            before: Some((self.identity.io_queues, self.shadow.as_ref())),
            features: &self.features,
        }
    }

    /// Whether it still is the controller that was attached, after a reset.
    ///
    /// # Errors
    /// It is another one.
    pub(super) fn recognize(&self, setup: &Setup) -> Result<(), Error> {
        let (serial, model) = (read_ascii(&setup.page.sn), read_ascii(&setup.page.mn));
        if (&serial, &model) != (&self.identity.serial, &self.identity.model) {
            let text = format!("another controller answers after the reset: {model} {serial}");
            return Err(Error::new(ErrorKind::Gone, text));
        }
        Ok(())
    }

    /// After a reset there may be fewer queue pairs.
    pub(super) fn limit_queues(&self, io_queues: u16) {
        self.queue_ids().free.retain(|qid| *qid <= io_queues);
    }

    pub(super) fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    pub(super) fn queue_entries(&self) -> u16 {
        self.identity.queue_entries
    }

    /// An unused queue ID; None if all are in use.
    pub(super) fn take_qid(&self) -> Result<Option<u16>, Error> {
        let mut ids = self.queue_ids();
        if ids.closing {
            return Err(Error::from(Health::ShutDown.fault(0)));
        }
        let qid = ids.free.pop();
        ids.used.extend(qid);
        Ok(qid)
    }

    /// The queue pair that the fewest share; None if there is none.
    pub(super) fn lender(&self) -> Option<Arc<Lender>> {
        self.lenders().iter().min_by_key(|lender| lender.guests()).cloned()
    }

    /// A queue pair that can be shared from now on.
    pub(super) fn add_lender(&self, lender: &Arc<Lender>) {
        self.lenders().push(lender.clone());
    }

    /// It cannot any more.
    pub(super) fn remove_lender(&self, lender: &Arc<Lender>) {
        self.lenders().retain(|known| !Arc::ptr_eq(known, lender));
    }

    /// Queue pairs whose own core is done with them, while others still share them.
    pub(super) fn orphans(&self) -> &AtomicUsize {
        &self.orphans
    }

    fn lenders(&self) -> MutexGuard<'_, Vec<Arc<Lender>>> {
        self.lenders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller has deleted the queues of this ID.
    pub(super) fn return_qid(&self, qid: u16) {
        let mut ids = self.queue_ids();
        ids.used.retain(|used| *used != qid);
        ids.free.push(qid);
        ids.free.sort_unstable_by(|a, b| b.cmp(a));
    }

    fn held_attachment(&self) -> MutexGuard<'_, HeldAttachment> {
        self.attachment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue_ids(&self) -> MutexGuard<'_, QueueIds> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.held_attachment().end();
        // Ends the tasks that wait for events.
        self.admin.close();
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller")
            .field("address", &self.hardware.address())
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

async fn shutdown_if_there(controller: Weak<Controller>, core: Core) -> Result<(), Error> {
    match controller.upgrade() {
        Some(controller) => match controller.shutdown(&core).await {
            // Its nodes and the events have told: an engine ends well without it.
            Err(error) if error.kind() == ErrorKind::Gone => Ok(()),
            outcome => outcome,
        },
        None => Ok(()),
    }
}

/// The controller's way to memory. Given up only when the controller is quiet; else kept for
/// ever, and with it all memory that it maps.
struct HeldAttachment {
    hardware: Arc<Hardware>,
    attachment: Option<Attachment>,
}

impl HeldAttachment {
    fn end(&mut self) {
        let Some(attachment) = self.attachment.take() else {
            return;
        };
        if !self.hardware.is_quiet() {
            self.hardware.quiesce_now();
        }
        if !self.hardware.is_quiet() {
            mem::forget(attachment);
        }
    }
}

impl Drop for HeldAttachment {
    fn drop(&mut self) {
        self.end();
    }
}
