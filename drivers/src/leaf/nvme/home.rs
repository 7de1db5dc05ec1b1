//! The home core's watch over a controller.

use std::os::fd::AsFd;
use std::sync::Arc;

use oxblock_engine::{Core, Poller, Sleep};
use oxblock_pci::EventFd;

use super::admin::Admin;
use super::hardware::{Hardware, Health};

/// How often the controller is looked at while nothing is asked of it, in ns.
const WATCH_NS: u64 = 100_000_000;

/// Turns of which one looks at the clock.
const TURNS_PER_READING: u32 = 64;

/// Reaps admin completions while somebody waits for one, and every [`WATCH_NS`] looks for
/// asynchronous events and for a controller that failed or is gone.
pub(super) struct HomePoller {
    hardware: Arc<Hardware>,
    admin: Arc<Admin>,
    /// Signalled by the interrupts of the admin queue, where there are.
    event: Option<Arc<EventFd>>,
    /// Completions were seen that are still to be reaped.
    has_news: bool,
    turns: u32,
    next_watch_ns: u64,
    told: bool,
}

impl HomePoller {
    pub fn new(hardware: Arc<Hardware>, admin: Arc<Admin>, event: Option<Arc<EventFd>>) -> Self {
        Self { hardware, admin, event, has_news: false, turns: 0, next_watch_ns: 0, told: false }
    }

    #[cold]
    fn watch(&mut self, now_ns: u64) -> usize {
        self.next_watch_ns = now_ns + WATCH_NS;
        if self.hardware.is_quiet() {
            let news = !self.told;
            self.told = true;
            if news {
                self.admin.wake_all();
            }
            return usize::from(news);
        }
        self.hardware.step();
        self.admin.reap()
    }
}

impl Poller for HomePoller {
    #[inline]
    fn poll(&mut self, core: &Core) -> usize {
        self.turns = self.turns.wrapping_add(1);
        let failing = self.hardware.health() != Health::Live && !self.told;
        // A reading of the clock costs more than the rest of an empty turn.
        if (self.turns.is_multiple_of(TURNS_PER_READING) && core.pass_now() >= self.next_watch_ns)
            || failing
        {
            return self.watch(core.pass_now());
        }
        if self.admin.outstanding() > 0 || self.has_news {
            self.has_news = false;
            return self.admin.reap();
        }
        0
    }

    /// A queue pair of this core may have its completions told by the same event: it is emptied
    /// here, before any queue looks what there is.
    fn sleep(&mut self) -> Sleep<'_> {
        if self.told {
            return Sleep::Woken;
        }
        if self.hardware.health() != Health::Live {
            return Sleep::Never;
        }
        let Some(event) = &self.event else {
            let waits = self.admin.outstanding() > 0;
            return if waits { Sleep::Never } else { Sleep::Until(self.next_watch_ns) };
        };
        let _ = event.take();
        self.has_news = self.admin.is_ready();
        match self.has_news {
            true => Sleep::Never,
            false => Sleep::FdUntil(event.as_fd(), self.next_watch_ns),
        }
    }
}
