//! Calls whose results are polled for on the device (IORING_SETUP_IOPOLL), and those that cannot
//! be: such a ring takes reads and writes of direct I/O alone. Durable writes, flushes, ranges of
//! zeroes and discards go through a second ring, as without it.

use std::io;

use oxblock_engine::Sleep;
use oxblock_mem::Region;

use super::Shared;
use super::syscall::{Call, Lists};
use super::uring::{Ring, RingKind};

/// The two rings of a queue. A slot has its call on one of them.
pub(super) struct Polled {
    ring: Ring,
    /// For what cannot be polled for. Its lists are copies: each ring keeps what its own calls name.
    aside: Ring,
}

impl Polled {
    /// Two rings on the file; `memory` is registered with the one that is polled.
    pub(super) fn new(shared: &Shared, memory: Option<Region>) -> io::Result<Self> {
        let kind = RingKind { sqthread_poll: shared.sqthread_poll, polled: true };
        Ok(Self {
            ring: Ring::new(shared, kind, memory)?,
            aside: Ring::new(shared, RingKind::default(), None)?,
        })
    }

    /// The lists of memory, one for each slot.
    pub(super) fn lists(&mut self) -> &mut Lists {
        self.ring.lists()
    }

    /// As [`Ring::push`]. The lowest bit of a number says which ring has the call.
    pub(super) fn push(&mut self, slot: u16, call: Call) -> Option<u64> {
        if matches!(call, Call::Read { .. } | Call::Write { durable: false, .. }) {
            return Some(self.ring.push(slot, call)? << 1);
        }
        self.aside.lists().copy(slot, self.ring.lists().live(slot));
        Some(self.aside.push(slot, call)? << 1 | 1)
    }

    /// Asks that the slot's call end early. What the device has, it keeps to its end.
    pub(super) fn cancel(&mut self, slot: u16) {
        if self.aside.in_kernel() > 0 {
            self.aside.cancel(slot);
        }
    }

    /// Asks that all calls end early.
    pub(super) fn cancel_all(&mut self) {
        if self.aside.in_kernel() > 0 {
            self.aside.cancel_all();
        }
    }

    /// Hands all queued calls over.
    pub(super) fn enter(&mut self) -> Result<(), i32> {
        if self.ring.wants_enter() {
            self.ring.enter()?;
        }
        self.enter_aside()
    }

    /// Hands all queued calls over, and polls the device.
    pub(super) fn look(&mut self) -> Result<(), i32> {
        if self.ring.wants_look() {
            self.ring.enter()?;
        }
        self.enter_aside()
    }

    fn enter_aside(&mut self) -> Result<(), i32> {
        if self.aside.wants_enter() { self.aside.enter() } else { Ok(()) }
    }

    /// Whether the kernel has taken the call of this number.
    pub(super) fn is_taken(&mut self, number: u64) -> bool {
        let ring = if number & 1 == 0 { &mut self.ring } else { &mut self.aside };
        number >> 1 < ring.taken()
    }

    /// Takes the next result: slot and result of its call.
    pub(super) fn reap(&mut self) -> Option<(u16, i32)> {
        self.ring.reap().or_else(|| self.aside.reap())
    }

    /// How many calls are queued or in the kernel.
    pub(super) fn in_kernel(&self) -> usize {
        self.ring.in_kernel() + self.aside.in_kernel()
    }

    /// Whether the device has calls that must be polled for.
    pub(super) fn is_polling(&self) -> bool {
        self.ring.in_kernel() > 0
    }

    /// What tells a sleeping reactor of the next result: nothing, while the device is polled.
    pub(super) fn sleep(&mut self) -> Sleep<'_> {
        if self.is_polling() { Sleep::Never } else { Sleep::Fd(self.aside.fd()) }
    }
}
