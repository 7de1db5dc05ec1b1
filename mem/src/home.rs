//! Numbers of threads (HOME).

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// What no thread is called.
const NOBODY: u64 = 0;

/// The thread that the plain, uncounted side of a pool or a lender belongs to: the first that
/// used it.
pub(crate) struct Home {
    thread: AtomicU64,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home { thread: AtomicU64::new(NOBODY) }
    }

    /// True on the thread that it belongs to.
    #[inline]
    pub(crate) fn is_here(&self) -> bool {
        self.thread.load(Ordering::Relaxed) == thread_number()
    }

    /// True if it belongs to no thread.
    pub(crate) fn is_open(&self) -> bool {
        self.thread.load(Ordering::Relaxed) == NOBODY
    }

    /// Makes it this thread's, or sees that it is. Only the one holder of a pool or a lender
    /// calls this, so no two threads do at once.
    ///
    /// # Panics
    /// If it is another thread's.
    #[inline]
    pub(crate) fn settle_here(&self) {
        if !self.is_here() {
            assert!(self.is_open(), "it belongs to the thread that used it first, not to this one");
            self.thread.store(thread_number(), Ordering::Relaxed);
        }
    }

    /// Makes it nobody's for good. On its thread, or while it is nobody's.
    pub(crate) fn leave(&self) {
        self.thread.store(NOBODY, Ordering::Relaxed);
    }
}

/// The number of this thread, never `NOBODY` and never used again.
#[inline]
fn thread_number() -> u64 {
    thread_local!(static NUMBER: Cell<u64> = const { Cell::new(NOBODY) });
    match NUMBER.get() {
        NOBODY => {
            let number = new_number();
            NUMBER.set(number);
            number
        }
        number => number,
    }
}

#[cold]
fn new_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(NOBODY + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
