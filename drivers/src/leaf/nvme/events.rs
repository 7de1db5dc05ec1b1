//! Asynchronous events: armed, heard, acted on, armed again (Base 2.0, 5.2; row 28).
//!
//! One task of the home core listens, so that what events ask for is done one after another. A
//! request is armed again only when what it brought has been dealt with, and no sooner than an
//! [`Allowance`] lets it: a controller that repeats itself holds up nobody but its events.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use oxblock_engine::{Core, Error, EventKind};
use oxblock_nvme::event::{self, Event, EventMask};
use oxblock_nvme::log::{CHANGED_OVERFLOW, LID_CHANGED_NAMESPACES, LID_SMART, Smart};
use oxblock_nvme::{Command, NSID_ALL, PAGE_BYTES, feature};
use zerocopy::{FromBytes, FromZeros};

use super::admin::{Admin, Done, Kind, Ticket};
use super::controller::Controller;
use super::{firmware, identify, status};

/// Requests that are kept armed, if the controller takes so many.
const ARMED_MAX: usize = 4;
/// Events kept for [`EventLog::recent`].
const KEPT: usize = 64;
/// Bytes of a log page that are read to clear its event.
const LOG_BYTES: u32 = 512;
/// Events that may come at once, and how long each one more must wait.
const BURST: u32 = 32;
const REFILL_NS: u64 = 100_000_000;
/// How often an admin queue without room for a request is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// One asynchronous event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// When it was taken, in ns of its core's clock.
    pub at_ns: u64,
    /// What it was.
    pub event: Event,
}

impl EventRecord {
    /// What it says, and what the driver makes of it.
    pub fn words(&self) -> &'static str {
        words(self.event)
    }
}

/// How many asynchronous events there were, by what they said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// All of them.
    pub all: u64,
    /// Errors of the controller.
    pub errors: u64,
    /// Warnings of its health.
    pub health: u64,
    /// Changes of its namespaces.
    pub namespaces: u64,
    /// Activations of firmware.
    pub firmware: u64,
    /// Those whose log page could not be read.
    pub unread: u64,
}

/// The events of a controller, the last few of them in full.
#[derive(Default)]
pub(super) struct EventLog {
    state: Mutex<State>,
    unread: AtomicU64,
    /// Critical Warning as it was told last.
    warnings: AtomicU8,
}

#[derive(Default)]
struct State {
    counts: EventCounts,
    recent: VecDeque<EventRecord>,
}

impl EventLog {
    /// Events so far.
    pub fn counts(&self) -> EventCounts {
        EventCounts { unread: self.unread.load(Ordering::Relaxed), ..self.lock().counts }
    }

    /// The last events, oldest first.
    pub fn recent(&self) -> Vec<EventRecord> {
        self.lock().recent.iter().copied().collect()
    }

    fn add(&self, record: EventRecord) {
        let mut state = self.lock();
        let counts = &mut state.counts;
        counts.all += 1;
        match (record.event.kind, record.event.information) {
            (event::TYPE_ERROR, _) => counts.errors += 1,
            (event::TYPE_SMART, _) => counts.health += 1,
            (event::TYPE_NOTICE, event::NOTICE_NAMESPACE_CHANGED) => counts.namespaces += 1,
            (event::TYPE_NOTICE, event::NOTICE_FIRMWARE_ACTIVATION) => counts.firmware += 1,
            _ => {}
        }
        if state.recent.len() == KEPT {
            state.recent.pop_front();
        }
        state.recent.push_back(record);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks for the events that the driver understands; a controller that refuses sends what it likes.
pub(super) async fn configure(core: &Core, admin: &Arc<Admin>, oaes: u32) {
    let health = EventMask::SPARE
        | EventMask::TEMPERATURE
        | EventMask::RELIABILITY
        | EventMask::READ_ONLY
        | EventMask::BACKUP;
    let notices = EventMask::NAMESPACE | EventMask::FIRMWARE;
    let wanted = health | (EventMask::from_bits_truncate(oaes) & notices);
    let id = feature::ASYNC_EVENT_CONFIGURATION;
    let command = Command::set_features(id, 0, wanted.bits());
    let _ = admin.execute(core, command, None).await;
}

/// Begins to listen to a controller that was just set up; `aerl` is how many requests it takes,
/// 0-based.
pub(super) fn begin(core: &Core, controller: &Arc<Controller>, aerl: u8) {
    drop(core.spawn(listen(core.clone(), Arc::downgrade(controller), aerl)));
}

/// Listens to a controller until it is reset, ends, or refuses every request.
async fn listen(core: Core, controller: Weak<Controller>, aerl: u8) {
    let Some(admin) = controller.upgrade().map(|controller| controller.admin().clone()) else {
        return;
    };
    let wanted = (usize::from(aerl) + 1).min(ARMED_MAX);
    let mut requests = Requests { core: core.clone(), admin, armed: Vec::new(), wanted };
    let mut allowance = Allowance { left: BURST, since_ns: core.now() };
    while let Some(event) = requests.next().await {
        // Held only while it acts: whoever has the controller may drop it.
        let Some(controller) = controller.upgrade() else { return };
        controller.event_log().add(EventRecord { at_ns: core.now(), event });
        act(&core, &controller, event).await;
        drop(controller);
        allowance.take(&core).await;
    }
}

/// The requests that wait for events.
struct Requests {
    core: Core,
    admin: Arc<Admin>,
    armed: Vec<Ticket>,
    wanted: usize,
}

impl Requests {
    /// The next event; none when no more can come.
    async fn next(&mut self) -> Option<Event> {
        loop {
            self.arm().await?;
            let (index, outcome) = self.first().await;
            drop(self.armed.swap_remove(index));
            let completion = outcome.ok()?.completion;
            if completion.is_success() {
                return Some(Event::from_dword(completion.dw0()));
            }
            // More than it takes, or aborted; with none left there is nothing to hear.
            self.wanted = self.armed.len();
            if self.wanted == 0 {
                return None;
            }
        }
    }

    /// Arms what is not armed; none if the controller takes no commands any more.
    async fn arm(&mut self) -> Option<()> {
        while self.armed.len() < self.wanted {
            match self.admin.start(Command::async_event(), &mut None, Kind::Background).ok()? {
                Some(ticket) => self.armed.push(ticket),
                None if self.armed.is_empty() => self.core.sleep(RETRY).await,
                None => break,
            }
        }
        Some(())
    }

    /// The first to complete, and with what.
    async fn first(&self) -> (usize, Result<Done, Error>) {
        poll_fn(|context| {
            let poll = |(index, ticket): (usize, &Ticket)| {
                Some((index, ticket.poll(Some(context.waker()))?))
            };
            match self.armed.iter().enumerate().find_map(poll) {
                Some(done) => Poll::Ready(done),
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// How many events may still be acted on at once.
struct Allowance {
    left: u32,
    since_ns: u64,
}

impl Allowance {
    /// Takes one; waits for it where too many were taken lately.
    async fn take(&mut self, core: &Core) {
        let refilled = (core.now() - self.since_ns) / REFILL_NS;
        self.since_ns += refilled * REFILL_NS;
        self.left = self.left.saturating_add(refilled.min(BURST.into()) as u32).min(BURST);
        if self.left == 0 {
            core.sleep_until(self.since_ns + REFILL_NS).await;
            return self.since_ns += REFILL_NS;
        }
        self.left -= 1;
    }
}

/// Does what an event asks for, which includes reading the log page that clears it.
async fn act(core: &Core, controller: &Arc<Controller>, event: Event) {
    match (event.kind, event.information) {
        (event::TYPE_ERROR, event::ERROR_PERSISTENT_INTERNAL) => {
            core.publish(controller.name(), EventKind::DeviceError, words(event));
            controller.hardware().fail();
        }
        (event::TYPE_ERROR, _) => {
            read_log(core, controller, event.log_page, LOG_BYTES).await;
            core.publish(controller.name(), EventKind::DeviceError, words(event));
        }
        (event::TYPE_SMART, _) => warn(core, controller, event).await,
        (event::TYPE_NOTICE, event::NOTICE_NAMESPACE_CHANGED) => {
            let changed = changed_namespaces(core, controller).await;
            // A controller that fails in between is found out by its health.
            let _ = controller.rescan_some(core, changed.as_deref()).await;
        }
        (event::TYPE_NOTICE, event::NOTICE_FIRMWARE_ACTIVATION) => {
            firmware::wait_for_activation(core, controller).await;
            read_log(core, controller, event.log_page, LOG_BYTES).await;
        }
        _ => drop(read_log(core, controller, event.log_page, LOG_BYTES).await),
    }
}

/// Reads a log page, which clears its event; none if the controller does not give it.
async fn read_log(
    core: &Core,
    controller: &Arc<Controller>,
    lid: u8,
    len: u32,
) -> Option<oxblock_mem::Buf> {
    let command = Command::log_page(lid, NSID_ALL, len, 0, false);
    let read = identify::read(core, controller.admin(), command).await;
    let page = read.and_then(|(completion, page)| match completion.is_success() {
        true => Ok(page),
        false => Err(status::error("log page", completion.status())),
    });
    if page.is_err() {
        controller.event_log().unread.fetch_add(1, Ordering::Relaxed);
    }
    page.ok()
}

/// The namespaces that have changed; none for "any of them" (row 29).
async fn changed_namespaces(core: &Core, controller: &Arc<Controller>) -> Option<Vec<u32>> {
    let page = read_log(core, controller, LID_CHANGED_NAMESPACES, PAGE_BYTES as u32).await?;
    let mut bytes = [0; PAGE_BYTES];
    page.read_at(0, &mut bytes);
    let (ids, _) = bytes.as_chunks::<4>();
    let ids = ids.iter().map(|id| u32::from_le_bytes(*id)).take_while(|id| *id != 0);
    let mut ids: Vec<u32> = ids.collect();
    if ids.is_empty() || ids.contains(&CHANGED_OVERFLOW) {
        return None;
    }
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

/// Tells what the controller's health lacks, once for each change of it.
async fn warn(core: &Core, controller: &Arc<Controller>, event: Event) {
    let Some(page) = read_log(core, controller, LID_SMART, LOG_BYTES).await else {
        return core.publish(controller.name(), EventKind::HealthWarning, words(event));
    };
    let mut smart = Smart::new_zeroed();
    let mut bytes = [0; size_of::<Smart>()];
    page.read_at(0, &mut bytes);
    if let Ok(read) = Smart::read_from_bytes(&bytes) {
        smart = read;
    }
    let warnings = smart.critical_warning;
    controller.namespaces_known().set_read_only(core, warnings & READ_ONLY != 0).await;
    if controller.event_log().warnings.swap(warnings, Ordering::Relaxed) != warnings {
        let text = health_words(&smart);
        core.publish(controller.name(), EventKind::HealthWarning, text);
    }
}

/// Critical Warning: all media is read-only.
const READ_ONLY: u8 = 1 << 3;

/// Critical Warning in words (Base 2.0, 5.16.1.3).
fn health_words(smart: &Smart) -> String {
    let celsius = i32::from(smart.temperature.get()) - 273;
    let all = [
        (0, format!("spare capacity is at {}%, below its threshold", smart.spare)),
        (1, format!("the temperature is past a threshold, at {celsius} C")),
        (2, "it is no longer reliable: too many media or internal errors".into()),
        (3, "all media is read-only".into()),
        (4, "the backup of its volatile memory failed".into()),
        (5, "its persistent memory region is read-only or unreliable".into()),
    ];
    let set = all.into_iter().filter(|(bit, _)| smart.critical_warning & (1 << bit) != 0);
    let set: Vec<String> = set.map(|(_, text)| text).collect();
    if set.is_empty() { "its health warns of nothing any more".into() } else { set.join("; ") }
}

/// What an event says, and what is made of it.
fn words(event: Event) -> &'static str {
    match (event.kind, event.information) {
        (event::TYPE_ERROR, event::ERROR_INVALID_DOORBELL_REGISTER) => {
            "reports a write to a doorbell of no queue"
        }
        (event::TYPE_ERROR, event::ERROR_INVALID_DOORBELL_VALUE) => {
            "reports a doorbell value that is out of range"
        }
        (event::TYPE_ERROR, event::ERROR_DIAGNOSTIC_FAILURE) => "failed its own diagnosis",
        (event::TYPE_ERROR, event::ERROR_PERSISTENT_INTERNAL) => {
            "reports a persistent internal error; only a reset cures it"
        }
        (event::TYPE_ERROR, event::ERROR_TRANSIENT_INTERNAL) => {
            "reports a transient internal error"
        }
        (event::TYPE_ERROR, event::ERROR_FIRMWARE_IMAGE_LOAD) => {
            "could not load a firmware image, and runs the one before"
        }
        (event::TYPE_ERROR, _) => "reports an error of a kind that is not known",
        (event::TYPE_SMART, 0) => "warns that it is no longer reliable",
        (event::TYPE_SMART, 1) => "warns of its temperature",
        (event::TYPE_SMART, 2) => "warns that its spare capacity runs out",
        (event::TYPE_SMART, _) => "warns of its health",
        (event::TYPE_NOTICE, event::NOTICE_NAMESPACE_CHANGED) => "namespaces changed",
        (event::TYPE_NOTICE, event::NOTICE_FIRMWARE_ACTIVATION) => "begins to run other firmware",
        (event::TYPE_NOTICE, event::NOTICE_TELEMETRY) => "has telemetry; left where it is",
        (event::TYPE_NOTICE, event::NOTICE_ANA) => {
            "asymmetric namespace access changed; of no use to a single path"
        }
        (event::TYPE_IO, event::IO_SANITIZE_ENDED) => "a sanitize operation ended",
        (event::TYPE_VENDOR, _) => "an event of its vendor's; ignored",
        _ => "an event that is not known; ignored",
    }
}
