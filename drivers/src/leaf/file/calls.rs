//! The ways of the file driver to the kernel: an io_uring, one that polls the device beside one
//! for what cannot be polled for, or threads where io_uring is forbidden.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use oxblock_engine::Sleep;
use oxblock_mem::Region;

use super::Shared;
use super::polled::Polled;
use super::syscall::{Call, Lists};
use super::uring::{Ring, RingKind};
use super::workers::Workers;

/// A queue's way to the kernel.
pub(super) enum Calls {
    Ring(Box<Ring>),
    Polled(Box<Polled>),
    Workers(Workers),
}

impl Calls {
    /// `memory` is where most requests' memory comes from, if it is worth registering.
    pub(super) fn new(shared: &Arc<Shared>, memory: Option<Region>) -> io::Result<Self> {
        Ok(match &shared.workers {
            Some((threads, cpus)) => {
                Calls::Workers(Workers::new(shared, usize::from(*threads), *cpus)?)
            }
            None if shared.hipri => Calls::Polled(Box::new(Polled::new(shared, memory)?)),
            None => {
                let kind = RingKind { sqthread_poll: shared.sqthread_poll, polled: false };
                Calls::Ring(Box::new(Ring::new(shared, kind, memory)?))
            }
        })
    }

    /// The lists of memory, one for each slot.
    pub(super) fn lists(&mut self) -> &mut Lists {
        match self {
            Calls::Ring(ring) => ring.lists(),
            Calls::Polled(polled) => polled.lists(),
            Calls::Workers(workers) => workers.lists(),
        }
    }

    /// Queues a call for the slot; the next [`enter`](Self::enter) hands it on. `None` if there
    /// is no room, otherwise the call's number.
    #[inline]
    pub(super) fn push(&mut self, slot: u16, call: Call) -> Option<u64> {
        match self {
            Calls::Ring(ring) => ring.push(slot, call),
            Calls::Polled(polled) => polled.push(slot, call),
            Calls::Workers(workers) => workers.push(slot, call).then_some(0),
        }
    }

    /// Asks that the slot's call end early. A thread's call cannot, nor one that is polled for.
    pub(super) fn cancel(&mut self, slot: u16) {
        match self {
            Calls::Ring(ring) => ring.cancel(slot),
            Calls::Polled(polled) => polled.cancel(slot),
            Calls::Workers(_) => {}
        }
    }

    /// Asks that all calls end early, for good.
    pub(super) fn cancel_all(&mut self) {
        match self {
            Calls::Ring(ring) => ring.cancel_all(),
            Calls::Polled(polled) => polled.cancel_all(),
            Calls::Workers(workers) => workers.cancel_all(),
        }
    }

    /// Hands on all queued calls: one system call, if there is anything to say.
    #[inline]
    pub(super) fn enter(&mut self) -> Result<(), i32> {
        match self {
            Calls::Ring(ring) => match ring.wants_enter() {
                true => ring.enter(),
                false => Ok(()),
            },
            Calls::Polled(polled) => polled.enter(),
            Calls::Workers(workers) => {
                workers.enter();
                Ok(())
            }
        }
    }

    /// As [`enter`](Self::enter), before results are taken: lets the kernel post what it has put
    /// off, and look at a device that is polled.
    #[inline]
    pub(super) fn look(&mut self) -> Result<(), i32> {
        match self {
            Calls::Polled(polled) => polled.look(),
            _ => self.enter(),
        }
    }

    /// Whether the kernel has taken the call of this number.
    pub(super) fn is_taken(&mut self, number: u64) -> bool {
        match self {
            Calls::Ring(ring) => number < ring.taken(),
            Calls::Polled(polled) => polled.is_taken(number),
            Calls::Workers(_) => true,
        }
    }

    /// Takes the next result: slot and result of its call.
    #[inline]
    pub(super) fn reap(&mut self) -> Option<(u16, i32)> {
        match self {
            Calls::Ring(ring) => ring.reap(),
            Calls::Polled(polled) => polled.reap(),
            Calls::Workers(workers) => workers.reap(),
        }
    }

    /// How many calls are queued or under way.
    #[inline]
    pub(super) fn in_kernel(&self) -> usize {
        match self {
            Calls::Ring(ring) => ring.in_kernel(),
            Calls::Polled(polled) => polled.in_kernel(),
            Calls::Workers(workers) => workers.outstanding(),
        }
    }

    /// Whether calls are under way whose results turn up only if they are looked for.
    pub(super) fn must_be_polled(&self) -> bool {
        matches!(self, Calls::Polled(polled) if polled.is_polling())
    }

    /// Hands on all queued calls and sleeps until there is a result, `event` turns readable or the
    /// time is up; `false` where that would be no better than to watch descriptors.
    pub(super) fn wait(&mut self, event: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
        match self {
            Calls::Ring(ring) => ring.wait(event, timeout),
            Calls::Polled(_) | Calls::Workers(_) => false,
        }
    }

    /// What tells a sleeping reactor of the next result.
    pub(super) fn sleep(&mut self) -> Sleep<'_> {
        match self {
            Calls::Ring(ring) => Sleep::Fd(ring.fd()),
            Calls::Polled(polled) => polled.sleep(),
            Calls::Workers(workers) => workers.sleep().map_or(Sleep::Never, Sleep::Fd),
        }
    }
}
