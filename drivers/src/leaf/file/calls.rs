//! The two ways of the file driver to the kernel: an io_uring, or threads where it is forbidden.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use oxblock_engine::Sleep;
use oxblock_mem::Region;

use super::Shared;
use super::syscall::{Call, Lists};
use super::uring::Ring;
use super::workers::Workers;

/// A queue's way to the kernel.
pub(super) enum Calls {
    Ring(Box<Ring>),
    Workers(Workers),
}

impl Calls {
    /// `memory` is where most requests' memory comes from, if it is worth registering.
    pub(super) fn new(shared: &Arc<Shared>, memory: Option<Region>) -> io::Result<Self> {
        Ok(match &shared.workers {
            Some((threads, cpus)) => {
                Calls::Workers(Workers::new(shared, usize::from(*threads), *cpus)?)
            }
            None => Calls::Ring(Box::new(Ring::new(shared, memory)?)),
        })
    }

    /// The lists of memory, one for each slot.
    pub(super) fn lists(&mut self) -> &mut Lists {
        match self {
            Calls::Ring(ring) => ring.lists(),
            Calls::Workers(workers) => workers.lists(),
        }
    }

    /// Queues a call for the slot; the next [`enter`](Self::enter) hands it on. `None` if there
    /// is no room, otherwise the call's number.
    #[inline]
    pub(super) fn push(&mut self, slot: u16, call: Call) -> Option<u64> {
        match self {
            Calls::Ring(ring) => ring.push(slot, call),
            Calls::Workers(workers) => workers.push(slot, call).then_some(0),
        }
    }

    /// Asks that the slot's call end early. A thread's call cannot.
    pub(super) fn cancel(&mut self, slot: u16) {
        if let Calls::Ring(ring) = self {
            ring.cancel(slot);
        }
    }

    /// Asks that all calls end early, for good.
    pub(super) fn cancel_all(&mut self) {
        match self {
            Calls::Ring(ring) => ring.cancel_all(),
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
            Calls::Workers(workers) => {
                workers.enter();
                Ok(())
            }
        }
    }

    /// How many calls were taken: those with a lower number than this.
    pub(super) fn taken(&mut self) -> u64 {
        match self {
            Calls::Ring(ring) => ring.taken(),
            Calls::Workers(_) => u64::MAX,
        }
    }

    /// Takes the next result: slot and result of its call.
    #[inline]
    pub(super) fn reap(&mut self) -> Option<(u16, i32)> {
        match self {
            Calls::Ring(ring) => ring.reap(),
            Calls::Workers(workers) => workers.reap(),
        }
    }

    /// How many calls are queued or under way.
    #[inline]
    pub(super) fn in_kernel(&self) -> usize {
        match self {
            Calls::Ring(ring) => ring.in_kernel(),
            Calls::Workers(workers) => workers.outstanding(),
        }
    }

    /// Hands on all queued calls and sleeps until there is a result, `event` turns readable or the
    /// time is up; `false` where that would be no better than to watch descriptors.
    pub(super) fn wait(&mut self, event: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
        match self {
            Calls::Ring(ring) => ring.wait(event, timeout),
            Calls::Workers(_) => false,
        }
    }

    /// What tells a sleeping reactor of the next result.
    pub(super) fn sleep(&mut self) -> Sleep<'_> {
        match self {
            Calls::Ring(ring) => Sleep::Fd(ring.fd()),
            Calls::Workers(workers) => workers.sleep().map_or(Sleep::Never, Sleep::Fd),
        }
    }
}
