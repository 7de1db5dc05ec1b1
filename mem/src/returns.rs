use crate::sync::{AtomicU32, Ordering};

/// The end of a chain.
pub(crate) const END: u32 = u32::MAX;
/// The head after `close`.
const CLOSED: u32 = u32::MAX - 1;

/// A stack of slot numbers: any thread pushes, one takes all at once. Because nobody pops one
/// element, a head that went and came back does no harm (no ABA).
pub(crate) struct Returns {
    head: AtomicU32,
}

impl Returns {
    pub(crate) fn new() -> Returns {
        Returns {
            head: AtomicU32::new(END),
        }
    }

    /// Pushes the slot whose link is `next`; false if the stack is closed. Lock-free: it retries
    /// only when another push came first.
    pub(crate) fn push(&self, index: u32, next: &AtomicU32) -> bool {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == CLOSED {
                return false;
            }
            next.store(head, Ordering::Relaxed);
            // Release: the taker sees the link, and all that was done to the slot's bytes.
            let pushed =
                self.head
                    .compare_exchange_weak(head, index, Ordering::Release, Ordering::Relaxed);
            match pushed {
                Ok(_) => return true,
                Err(seen) => head = seen,
            }
        }
    }

    /// The first of the chain of pushed slots, or `END`.
    #[inline]
    pub(crate) fn take_all(&self) -> u32 {
        // A plain load first: the swap would take the line from those who push.
        if self.head.load(Ordering::Relaxed) == END {
            return END;
        }
        self.head.swap(END, Ordering::Acquire)
    }

    /// As `take_all`, and refuses pushes from here on.
    pub(crate) fn close(&self) -> u32 {
        self.head.swap(CLOSED, Ordering::AcqRel)
    }
}
