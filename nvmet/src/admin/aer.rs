//! Asynchronous events (Base 2.0, 5.2).
//!
//! An event that was reported masks its type until the host reads the log page that belongs
//! to it; an event that finds no request waits, once each.

use oxblock_nvme::Status;
use oxblock_nvme::event::{self, Event, EventMask};

/// How many requests a host may have outstanding (AERL + 1).
pub(crate) const REQUESTS_MAX: usize = 4;

/// Distinct events that can wait for a request.
const PENDING_MAX: usize = 16;

/// Types are three bits on the wire.
const TYPES: usize = 8;

/// Requests held and events waiting.
#[derive(Default)]
pub(crate) struct AsyncEvents {
    /// Places of the held requests in the transport's tables, oldest first.
    held: Vec<u16>,
    pending: Vec<Event>,
    /// For each type that has been reported, the log page that clears it.
    reported: [Option<u8>; TYPES],
}

impl AsyncEvents {
    /// Holds a request until there is something to report.
    ///
    /// # Errors
    /// The host has as many outstanding as it may.
    pub(crate) fn hold(&mut self, slot: u16) -> Result<(), Status> {
        if self.held.len() >= REQUESTS_MAX {
            return Err(Status::AER_LIMIT_EXCEEDED);
        }
        self.held.push(slot);
        Ok(())
    }

    /// Forgets a held request that is answered otherwise, by an abort. False if it is not held.
    pub(crate) fn release(&mut self, slot: u16) -> bool {
        let before = self.held.len();
        self.held.retain(|&held| held != slot);
        self.held.len() < before
    }

    /// Something happened. What already waits is not queued twice; what the configuration
    /// masks is dropped.
    pub(crate) fn raise(&mut self, event: Event, enabled: EventMask) {
        let wanted = match enabling_bit(event) {
            Some(bit) => enabled.contains(bit),
            None => true,
        };
        if wanted && !self.pending.contains(&event) && self.pending.len() < PENDING_MAX {
            self.pending.push(event);
        }
    }

    /// The next request to answer, and with what.
    pub(crate) fn next(&mut self) -> Option<(u16, Event)> {
        let slot = *self.held.first()?;
        let reported = &self.reported;
        let unmasked = |e: &Event| reported[type_of(e)].is_none();
        let at = self.pending.iter().position(unmasked)?;
        let event = self.pending.remove(at);
        self.held.remove(0);
        self.reported[type_of(&event)] = Some(event.log_page);
        Some((slot, event))
    }

    /// The host has read a log page without asking to retain its event.
    pub(crate) fn log_was_read(&mut self, log_page: u8) {
        for reported in &mut self.reported {
            if *reported == Some(log_page) {
                *reported = None;
            }
        }
    }

    /// Back to the state after a reset.
    pub(crate) fn reset(&mut self) {
        *self = AsyncEvents::default();
    }
}

fn type_of(event: &Event) -> usize {
    usize::from(event.kind) % TYPES
}

/// The bit of Asynchronous Event Configuration that an event needs; error events need none.
fn enabling_bit(event: Event) -> Option<EventMask> {
    match (event.kind, event.information) {
        (event::TYPE_SMART, 0) => Some(EventMask::RELIABILITY),
        (event::TYPE_SMART, 1) => Some(EventMask::TEMPERATURE),
        (event::TYPE_SMART, 2) => Some(EventMask::SPARE),
        (event::TYPE_NOTICE, event::NOTICE_NAMESPACE_CHANGED) => Some(EventMask::NAMESPACE),
        (event::TYPE_NOTICE, event::NOTICE_FIRMWARE_ACTIVATION) => Some(EventMask::FIRMWARE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTICE: Event = Event {
        kind: event::TYPE_NOTICE,
        information: event::NOTICE_NAMESPACE_CHANGED,
        log_page: 4,
    };
    const ERROR: Event = Event {
        kind: event::TYPE_ERROR,
        information: event::ERROR_INVALID_DOORBELL_VALUE,
        log_page: 1,
    };

    #[test]
    fn a_type_is_masked_until_its_log_is_read() {
        let mut events = AsyncEvents::default();
        events.hold(1).unwrap();
        events.hold(2).unwrap();
        assert_eq!(events.next(), None);
        events.raise(NOTICE, EventMask::all());
        assert_eq!(events.next(), Some((1, NOTICE)));
        events.raise(NOTICE, EventMask::all());
        assert_eq!(events.next(), None);
        events.raise(ERROR, EventMask::empty());
        assert_eq!(events.next(), Some((2, ERROR)));
        events.hold(3).unwrap();
        events.log_was_read(1);
        assert_eq!(events.next(), None);
        events.log_was_read(4);
        assert_eq!(events.next(), Some((3, NOTICE)));
    }

    #[test]
    fn events_wait_for_requests_but_only_once_each() {
        let mut events = AsyncEvents::default();
        for _ in 0..100 {
            events.raise(ERROR, EventMask::all());
            events.raise(NOTICE, EventMask::empty());
        }
        assert_eq!(events.pending, [ERROR]);
        events.hold(9).unwrap();
        assert_eq!(events.next(), Some((9, ERROR)));
    }

    #[test]
    fn requests_are_limited_and_can_be_taken_back() {
        let mut events = AsyncEvents::default();
        for slot in 0..REQUESTS_MAX as u16 {
            events.hold(slot).unwrap();
        }
        assert_eq!(events.hold(99), Err(Status::AER_LIMIT_EXCEEDED));
        assert!(events.release(2) && !events.release(2));
        events.hold(99).unwrap();
        assert_eq!(events.held, [0, 1, 3, 99]);
    }
}
