//! An event file descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::PciError;

/// An eventfd: a counter in the kernel that one side adds to and the other waits for. Never
/// blocks; wait for it with `poll` or an event loop through [`AsFd`].
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// A new eventfd with its counter at zero, closed on exec.
    ///
    /// # Errors
    /// The process or the system is out of file descriptors.
    pub fn new() -> Result<EventFd, PciError> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(PciError::io(
                "cannot make an eventfd; raise the limit of open files (ulimit -n)",
                io::Error::last_os_error(),
            ));
        }
        // SAFETY: the kernel just returned this descriptor, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(EventFd { fd })
    }

    /// Adds one to the counter and wakes whoever waits.
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // A counter at its maximum is already signalled, so a refused write loses nothing.
        // SAFETY: eight readable bytes, as an eventfd asks for.
        let _ = unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes the counter back to zero and returns what it was; zero if nothing was signalled.
    #[must_use]
    pub fn take(&self) -> u64 {
        let mut count = [0u8; 8];
        // SAFETY: eight writable bytes, as an eventfd asks for.
        let n = unsafe { libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        if n == 8 { u64::from_ne_bytes(count) } else { 0 }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<OwnedFd> for EventFd {
    /// Takes over an eventfd that came from elsewhere, a peer's socket for one. It should be
    /// non-blocking: [`signal`](EventFd::signal) and [`take`](EventFd::take) rely on it.
    fn from(fd: OwnedFd) -> EventFd {
        EventFd { fd }
    }
}

/// What the platform tells of a function beside its interrupts. Both stay silent where it has
/// no way to tell.
#[derive(Clone, Debug)]
pub struct Events {
    /// The function, or the way to it, failed (a PCI Express error was reported): reset it.
    pub error: Arc<EventFd>,
    /// The function is to go, or has gone: let go of it. Signalled again until that is done.
    pub removal: Arc<EventFd>,
}

impl Events {
    /// Two new eventfds.
    ///
    /// # Errors
    /// As [`EventFd::new`].
    pub fn new() -> Result<Events, PciError> {
        Ok(Events { error: Arc::new(EventFd::new()?), removal: Arc::new(EventFd::new()?) })
    }

    /// A descriptor that is readable while either was signalled and not taken yet.
    ///
    /// # Errors
    /// The process or the system is out of file descriptors.
    pub fn either(&self) -> Result<OwnedFd, PciError> {
        use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create};
        let both = create(CreateFlags::CLOEXEC).and_then(|both| {
            for (number, event) in [(0, &self.error), (1, &self.removal)] {
                add(&both, event, EventData::new_u64(number), EventFlags::IN)?;
            }
            Ok(both)
        });
        both.map_err(|errno| {
            let text =
                "cannot watch a function's events; raise the limit of open files (ulimit -n)";
            PciError::io(text, errno.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_add_up_until_taken() {
        let event = EventFd::new().unwrap();
        assert_eq!(event.take(), 0);
        event.signal();
        event.signal();
        assert_eq!(event.take(), 2);
        assert_eq!(event.take(), 0);
    }

    #[test]
    fn either_event_is_news() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let events = Events::new().unwrap();
        let either = events.either().unwrap();
        let has_news = || {
            let mut fds = [PollFd::new(&either, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
        };
        assert!(!has_news());
        for event in [&events.error, &events.removal] {
            event.signal();
            assert!(has_news());
            assert_eq!(event.take(), 1);
            assert!(!has_news());
        }
    }
}
