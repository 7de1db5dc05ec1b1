use crate::sync::{AtomicU32, AtomicUsize, Ordering};

/// The end of a chain.
pub(crate) const END: u32 = u32::MAX;
/// The head after `close`.
const CLOSED: u32 = u32::MAX - 1;

/// How the slots of a pool come home from other threads: a stack of slot numbers on which any
/// thread pushes, and of which the owner takes all at once. Because nobody pops one element, a
/// head that went and came back does no harm (no ABA). Once closed, it counts what is missing.
pub(crate) struct Returns {
    head: AtomicU32,
    /// Parts that are not home: the slots, and one for the owner. Counted off after `close`.
    owed: AtomicUsize,
}

impl Returns {
    pub(crate) fn new(slots: usize) -> Returns {
        Returns { head: AtomicU32::new(END), owed: AtomicUsize::new(slots + 1) }
    }

    /// Brings the slot home whose link is `next`. True if all slots and the owner are home now:
    /// then, and only then, nobody else knows the pool. Lock-free: it retries only when another
    /// push came first.
    pub(crate) fn push(&self, index: u32, next: &AtomicU32) -> bool {
        let mut head = self.head.load(Ordering::Relaxed);
        while head != CLOSED {
            next.store(head, Ordering::Relaxed);
            // Release: the taker sees the link, and comes after all that was done to the bytes.
            let (success, failure) = (Ordering::Release, Ordering::Relaxed);
            match self.head.compare_exchange_weak(head, index, success, failure) {
                Ok(_) => return false,
                Err(seen) => head = seen,
            }
        }
        self.settle(1)
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

    /// The owner leaves, with `home` slots and what `count` finds in the chain. True as for
    /// `push`.
    pub(crate) fn close(&self, home: usize, count: impl FnOnce(u32) -> usize) -> bool {
        let pushed = count(self.head.swap(CLOSED, Ordering::Acquire));
        self.settle(home + pushed + 1)
    }

    fn settle(&self, parts: usize) -> bool {
        // AcqRel: who is last comes after all that others did to their slots.
        self.owed.fetch_sub(parts, Ordering::AcqRel) == parts
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    struct Slots {
        returns: Returns,
        next: [AtomicU32; 2],
        bytes: [UnsafeCell<u32>; 2],
    }

    fn slots() -> Arc<Slots> {
        Arc::new(Slots {
            returns: Returns::new(2),
            next: [AtomicU32::new(END), AtomicU32::new(END)],
            bytes: [UnsafeCell::new(0), UnsafeCell::new(0)],
        })
    }

    fn give_back(slots: &Slots, index: usize) -> bool {
        // SAFETY: the model's own bytes; loom checks that nobody else is at them.
        slots.bytes[index].with_mut(|bytes| unsafe { *bytes += 1 });
        slots.returns.push(index as u32, &slots.next[index])
    }

    /// The slots of a chain, their bytes looked at as their new owner does.
    fn walk(slots: &Slots, mut at: u32) -> Vec<u32> {
        let mut found = Vec::new();
        while at != END {
            // SAFETY: as in `give_back`.
            let byte = slots.bytes[at as usize].with_mut(|bytes| unsafe { *bytes });
            assert_eq!(byte, 1);
            found.push(at);
            at = slots.next[at as usize].load(Ordering::Relaxed);
        }
        found
    }

    #[test]
    fn loom_no_slot_is_lost_or_taken_twice() {
        loom::model(|| {
            let slots = slots();
            let pushers: Vec<_> = (0..2)
                .map(|index| {
                    let slots = slots.clone();
                    thread::spawn(move || assert!(!give_back(&slots, index)))
                })
                .collect();
            let mut found = Vec::new();
            while found.len() < 2 {
                found.extend(walk(&slots, slots.returns.take_all()));
                thread::yield_now();
            }
            pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
            found.sort_unstable();
            assert_eq!(found, [0, 1]);
        });
    }

    #[test]
    fn loom_the_last_one_home_is_one() {
        loom::model(|| {
            let slots = slots();
            let pushers: Vec<_> = (0..2)
                .map(|index| {
                    let slots = slots.clone();
                    thread::spawn(move || {
                        let last = give_back(&slots, index);
                        if last {
                            // All bytes are ours now, as they are for who frees the pool.
                            slots.bytes.iter().for_each(|bytes| bytes.with_mut(|_| ()));
                        }
                        last
                    })
                })
                .collect();
            let mut last = usize::from(slots.returns.close(0, |first| walk(&slots, first).len()));
            for pusher in pushers {
                last += usize::from(pusher.join().unwrap());
            }
            assert_eq!(last, 1);
        });
    }
}
