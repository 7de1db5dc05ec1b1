//! A function that goes: on request, by an error, or by surprise (rows 1 and 33).

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use oxblock_engine::{Core, Error, ErrorKind, EventKind, Poller, PollerId, Sleep};
use oxblock_pci::{Events, Function};

use super::controller::Controller;
use super::hardware::pci_error;
use super::health::Health;

/// How long I/O in flight may take to end by itself when the controller is to go.
const DRAIN: Duration = Duration::from_secs(5);
/// Turns of a busy core between two looks. A look is two system calls.
const TURNS_PER_LOOK: u32 = 4096;

/// Hears what the platform tells of a function beside its interrupts, and notices when it is
/// gone. While its core sleeps it costs nothing, and a news wakes the core.
pub(super) struct FunctionWatch {
    controller: Weak<Controller>,
    events: Events,
    news: OwnedFd,
    turns: u32,
    /// The core was asked whether it may sleep since the last look.
    slept: bool,
    id: Rc<Cell<Option<PollerId>>>,
}

impl FunctionWatch {
    /// Begins to watch the function of a controller from its home core.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn begin(core: &Core, function: &dyn Function, of: Weak<Controller>) -> Result<(), Error> {
        let events = function.events().clone();
        let news = events.either().map_err(pci_error)?;
        let id = Rc::new(Cell::new(None));
        let (controller, turns, slept) = (of, 0, false);
        let watch = Self { controller, events, news, turns, slept, id: id.clone() };
        id.set(Some(core.add_poller(Box::new(watch))));
        Ok(())
    }

    #[cold]
    fn look(&mut self, core: &Core) -> usize {
        self.slept = false;
        let Some(controller) = self.controller.upgrade() else {
            return self.end(core);
        };
        let (name, health) = (controller.name(), controller.hardware().health());
        if self.events.removal.take() > 0 {
            let text = "is to be removed; what is open on it is being closed";
            core.publish(name, EventKind::DeviceLeaving, text);
        } else if health != Health::Gone {
            if self.events.error.take() > 0 && health == Health::Live {
                let text = "the platform reports a PCI Express error; only a reset cures it";
                core.publish(name, EventKind::DeviceError, text);
                controller.hardware().fail();
            }
            return 0;
        }
        let there = core.clone();
        drop(core.spawn(async move {
            // What could not be closed in order is told by the nodes that it was open on.
            let _ = controller.release(&there).await;
        }));
        self.end(core)
    }

    fn end(&mut self, core: &Core) -> usize {
        if let Some(id) = self.id.take() {
            core.remove_poller(id);
        }
        1
    }
}

impl Poller for FunctionWatch {
    #[inline]
    fn poll(&mut self, core: &Core) -> usize {
        self.turns = self.turns.wrapping_add(1);
        if self.slept || self.turns.is_multiple_of(TURNS_PER_LOOK) {
            return self.look(core);
        }
        0
    }

    fn sleep(&mut self) -> Sleep<'_> {
        self.slept = true;
        Sleep::Fd(self.news.as_fd())
    }
}

impl Controller {
    /// Ends everything on the controller and lets go of its function: its nodes fail what comes,
    /// their queues are closed on all cores after their I/O in flight (which gets five seconds),
    /// the controller is shut down, its memory mappings end, and whoever wants its function back
    /// has it. The driver does so itself when the platform asks for it, or when the controller is
    /// gone. What comes back, or is to be used again, is attached anew.
    ///
    /// # Errors
    /// The controller is gone, or did not end in order; it is let go of all the same.
    pub async fn release(self: &Arc<Self>, core: &Core) -> Result<(), Error> {
        let text = "its device was removed, or given back";
        let mut outcome = Ok(());
        for node in self.namespaces_known().nodes() {
            outcome = outcome.and(core.withdraw(&node, ErrorKind::Gone, text).await);
            for id in 0..core.count() {
                let node = node.clone();
                let close =
                    core.call(id, move |core| async move { core.close_within(&node, DRAIN).await });
                outcome = outcome.and(close.await.and_then(|result| result));
            }
        }
        outcome = outcome.and(self.shutdown(core).await);
        if self.let_go() {
            let text = "was let go of; attach it again when it is there";
            core.publish(self.name(), EventKind::DeviceGone, text);
        }
        outcome
    }
}
