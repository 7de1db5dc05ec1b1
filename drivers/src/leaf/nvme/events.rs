//! Asynchronous events: armed, read, armed again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxblock_engine::Core;
use oxblock_nvme::event::{Event, EventMask};
use oxblock_nvme::{Command, NSID_ALL, feature};

use super::admin::Admin;
use super::identify;

/// Events kept for [`EventLog::recent`].
const KEPT: usize = 64;
/// Bytes of a log page that are read to clear its event.
const LOG_BYTES: u32 = 512;

/// One asynchronous event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// When it was taken, in ns of its core's clock.
    pub at_ns: u64,
    /// What it was.
    pub event: Event,
}

/// The events of a controller, the last few of them in full.
#[derive(Default)]
pub(super) struct EventLog(Mutex<State>);

#[derive(Default)]
struct State {
    count: u64,
    recent: VecDeque<EventRecord>,
}

impl EventLog {
    /// Events so far.
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    /// The last events, oldest first.
    pub fn recent(&self) -> Vec<EventRecord> {
        self.lock().recent.iter().copied().collect()
    }

    fn add(&self, record: EventRecord) {
        let mut state = self.lock();
        state.count += 1;
        if state.recent.len() == KEPT {
            state.recent.pop_front();
        }
        state.recent.push_back(record);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Keeps one asynchronous event request armed: takes its event, reads the log page that clears
/// it, and arms it again, until the controller refuses or ends.
pub(super) async fn watch(core: Core, admin: Arc<Admin>, log: Arc<EventLog>) {
    while let Ok(done) = admin.execute_background(Command::async_event()).await {
        if !done.completion.is_success() {
            // Too many for the controller, or aborted because it is reset.
            return;
        }
        let event = Event::from_dword(done.completion.dw0());
        let at_ns = core.now();
        log.add(EventRecord { at_ns, event });
        let command = Command::log_page(event.log_page, NSID_ALL, LOG_BYTES, 0, false);
        if identify::read(&core, &admin, command).await.is_err() {
            return;
        }
    }
}
