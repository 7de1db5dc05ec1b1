//! The home core's watch over a controller.

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use oxblock_engine::{Core, Poller, Sleep};
use oxblock_pci::EventFd;

use super::admin::Admin;
use super::controller::Controller;
use super::hardware::Hardware;
use super::health::Health;
use super::recovery;

/// How often the controller is looked at, in ns. The time of commands in flight is counted in it.
pub(super) const WATCH_NS: u64 = 50_000_000;

/// Turns of which one looks at the clock.
const TURNS_PER_READING: u32 = 64;

/// Whom a home core looks after, once it is attached.
pub(super) type Ward = Rc<RefCell<Weak<Controller>>>;

/// Reaps admin completions while somebody waits for one, every [`WATCH_NS`] looks for
/// asynchronous events and for a controller that failed or is gone, and has one that failed reset.
pub(super) struct HomePoller {
    hardware: Arc<Hardware>,
    admin: Arc<Admin>,
    ward: Ward,
    /// Signalled by the interrupts of the admin queue, where there are.
    event: Option<Arc<EventFd>>,
    /// Completions were seen that are still to be reaped.
    has_news: bool,
    turns: u32,
    next_watch_ns: u64,
    /// Whoever waits for the admin queue has been told of the state that it is in.
    told: Option<Health>,
    recovering: Rc<Cell<bool>>,
    /// A thread looks at the registers instead.
    is_watched: bool,
}

impl HomePoller {
    pub fn new(
        hardware: Arc<Hardware>,
        admin: Arc<Admin>,
        ward: Ward,
        event: Option<Arc<EventFd>>,
        is_watched: bool,
    ) -> Self {
        Self {
            is_watched,
            hardware,
            admin,
            ward,
            event,
            has_news: false,
            turns: 0,
            next_watch_ns: 0,
            told: None,
            recovering: Rc::default(),
        }
    }

    #[cold]
    fn watch(&mut self, now_ns: u64) -> usize {
        self.next_watch_ns = now_ns + WATCH_NS;
        if !self.is_watched {
            self.hardware.watch();
        }
        self.admin.reap()
    }

    /// The controller is not well. Admin commands that it will not answer end, and a reset begins
    /// that is led by a task of its own.
    #[cold]
    fn attend(&mut self, core: &Core, health: Health) -> usize {
        let news = self.told.replace(health) != Some(health);
        if news && !health.takes_admin() {
            self.admin.wake_all();
        }
        if health == Health::Resetting && !self.recovering.get() {
            let ward = self.ward.borrow().upgrade();
            if let Some(controller) = ward.filter(|controller| !controller.is_closing()) {
                self.recovering.set(true);
                let (core, recovering) = (core.clone(), self.recovering.clone());
                drop(core.clone().spawn(async move {
                    recovery::reset(&core, &controller).await;
                    recovering.set(false);
                }));
            }
        }
        usize::from(news)
    }
}

impl Poller for HomePoller {
    #[inline]
    fn poll(&mut self, core: &Core) -> usize {
        self.turns = self.turns.wrapping_add(1);
        let health = self.hardware.health();
        let mut work = 0;
        if health != Health::Live {
            work += self.attend(core, health);
            if health.is_over() {
                return work;
            }
        } else {
            self.told = None;
        }
        // A reading of the clock costs more than the rest of an empty turn.
        if self.turns.is_multiple_of(TURNS_PER_READING) && core.pass_now() >= self.next_watch_ns {
            return work + self.watch(core.pass_now());
        }
        if self.admin.outstanding() > 0 || self.has_news {
            self.has_news = false;
            work += self.admin.reap();
        }
        work
    }

    /// A queue pair of this core may have its completions told by the same event: it is emptied
    /// here, before any queue looks what there is.
    fn sleep(&mut self) -> Sleep<'_> {
        // There is time to look at the clock in the next turn.
        self.turns = u32::MAX;
        let health = self.hardware.health();
        if health.is_over() {
            return if self.told == Some(health) { Sleep::Woken } else { Sleep::Never };
        }
        let unattended = health == Health::Resetting && !self.recovering.get();
        if unattended && self.told != Some(health) {
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
