//! Eventfds of a client.
//!
//! The function signals an eventfd of our own, and the session's thread passes that on: a client
//! that makes its eventfd block, which it can at any time, holds up its own session and no core.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::soft::SoftFunction;
use crate::vfio_user::message::{
    IRQ_ACTION_TRIGGER, IRQ_DATA_BOOL, IRQ_DATA_EVENTFD, IRQ_DATA_NONE, IrqSet, MSIX_IRQ,
};
use crate::{EventFd, Function};

/// The vectors that the client enabled.
pub(super) struct ClientInterrupts {
    function: Arc<SoftFunction>,
    vectors: Vec<Option<Relay>>,
}

struct Relay {
    ours: Arc<EventFd>,
    theirs: EventFd,
}

impl ClientInterrupts {
    pub(super) fn new(function: Arc<SoftFunction>) -> ClientInterrupts {
        let count = function.interrupts().count() as usize;
        ClientInterrupts { function, vectors: (0..count).map(|_| None).collect() }
    }

    pub(super) fn count(&self) -> u32 {
        self.vectors.len() as u32
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.vectors.iter().flatten().map(|relay| relay.ours.as_fd())
    }

    pub(super) fn relay(&self) {
        for relay in self.vectors.iter().flatten() {
            if relay.ours.take() > 0 {
                relay.theirs.signal();
            }
        }
    }

    /// DEVICE_SET_IRQS.
    pub(super) fn set(&mut self, set: &IrqSet, data: &[u8], fds: Vec<OwnedFd>) -> Result<(), i32> {
        let (start, count) = (set.start.get() as usize, set.count.get() as usize);
        let end = start.checked_add(count).filter(|end| *end <= self.vectors.len());
        let end = end.filter(|_| set.index.get() == MSIX_IRQ).ok_or(libc::EINVAL)?;
        const EVENTS: u32 = IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER;
        const NOTHING: u32 = IRQ_DATA_NONE | IRQ_ACTION_TRIGGER;
        const BOOLS: u32 = IRQ_DATA_BOOL | IRQ_ACTION_TRIGGER;
        let flags = set.flags.get();
        if flags != EVENTS && !fds.is_empty() {
            return Err(libc::EINVAL);
        }
        match flags {
            EVENTS if fds.is_empty() => self.disable(start..end),
            EVENTS if fds.len() == count => return self.enable(start, fds),
            NOTHING if count == 0 => self.disable(0..self.vectors.len()),
            NOTHING => self.trigger(start..end, |_| true),
            BOOLS => self.trigger(start..end, |at| data.get(at).is_some_and(|byte| *byte != 0)),
            // MSI-X vectors cannot be masked this way, as IRQ_INFO says.
            _ => return Err(libc::EINVAL),
        }
        Ok(())
    }

    fn enable(&mut self, start: usize, fds: Vec<OwnedFd>) -> Result<(), i32> {
        let relays: Result<Vec<Relay>, i32> = fds.into_iter().map(Relay::new).collect();
        for (vector, relay) in (start..).zip(relays?) {
            let enabled = self.function.interrupts().enable(vector as u32, Arc::clone(&relay.ours));
            enabled.map_err(|error| error.errno())?;
            if let Some(slot) = self.vectors.get_mut(vector) {
                *slot = Some(relay);
            }
        }
        Ok(())
    }

    fn disable(&mut self, vectors: std::ops::Range<usize>) {
        for vector in vectors {
            if self.vectors.get_mut(vector).and_then(Option::take).is_some() {
                // It was enabled, so there is such a vector.
                let _ = self.function.interrupts().disable(vector as u32);
            }
        }
    }

    fn trigger(&self, vectors: std::ops::Range<usize>, wanted: impl Fn(usize) -> bool) {
        let relays = self.vectors.get(vectors).unwrap_or_default();
        for (at, relay) in relays.iter().enumerate() {
            if let Some(relay) = relay.as_ref().filter(|_| wanted(at)) {
                relay.theirs.signal();
            }
        }
    }
}

impl Drop for ClientInterrupts {
    fn drop(&mut self) {
        self.disable(0..self.vectors.len());
    }
}

impl Relay {
    /// Takes a descriptor that should be an eventfd.
    fn new(theirs: OwnedFd) -> Result<Relay, i32> {
        let link = fs::read_link(format!("/proc/self/fd/{}", theirs.as_raw_fd()));
        if link.is_ok_and(|link| link != Path::new("anon_inode:[eventfd]")) {
            return Err(libc::EINVAL);
        }
        let flags = fcntl_getfl(&theirs).map_err(|errno| errno.raw_os_error())?;
        fcntl_setfl(&theirs, flags | OFlags::NONBLOCK).map_err(|errno| errno.raw_os_error())?;
        let ours = EventFd::new().map_err(|error| error.errno())?;
        Ok(Relay { ours: Arc::new(ours), theirs: EventFd::from(theirs) })
    }
}
