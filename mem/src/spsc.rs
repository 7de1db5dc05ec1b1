//! A bounded ring between two threads: one pushes, one pops; neither waits or allocates.

use std::fmt;
use std::mem::MaybeUninit;

use crossbeam::utils::CachePadded;

use crate::sync::{Arc, AtomicUsize, Ordering, UnsafeCell};

/// A ring for up to `capacity` values.
///
/// # Panics
/// If `capacity` is 0 or beyond 2^31.
pub fn ring<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(
        capacity > 0 && capacity <= 1 << 31,
        "a ring of {capacity} values"
    );
    let slots = (0..capacity.next_power_of_two()).map(|_| UnsafeCell::new(MaybeUninit::uninit()));
    let shared = Arc::new(Shared {
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
        slots: slots.collect(),
        capacity,
    });
    let producer = Producer {
        shared: shared.clone(),
        tail: 0,
        head_seen: 0,
    };
    (
        producer,
        Consumer {
            shared,
            head: 0,
            tail_seen: 0,
        },
    )
}

/// The end that pushes.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    /// The consumer's head when last looked at: it can only have moved on.
    head_seen: usize,
}

/// The end that pops.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    /// The producer's tail when last looked at: it can only have moved on.
    tail_seen: usize,
}

/// Indexes count up for ever, wrapping; the slot is the index modulo a power of two.
struct Shared<T> {
    head: CachePadded<AtomicUsize>,
    tail: CachePadded<AtomicUsize>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    capacity: usize,
}

// SAFETY: values pass from one thread to one other; a slot is the producer's until `tail` is
// stored (Release) behind it, and the consumer's until `head` is.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above: there is one Producer and one Consumer, and their methods take `&mut self`.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Producer<T> {
    /// Appends a value.
    ///
    /// # Errors
    /// Gives it back if the ring is full.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        let shared = &*self.shared;
        if self.tail.wrapping_sub(self.head_seen) == shared.capacity {
            self.head_seen = shared.head.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head_seen) == shared.capacity {
                return Err(value);
            }
        }
        // SAFETY: the slot is empty (not full, above) and ours until the store of `tail`.
        shared
            .slot(self.tail)
            .with_mut(|slot| unsafe { (*slot).write(value) });
        self.tail = self.tail.wrapping_add(1);
        shared.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Values in the ring, some of which may just be on their way out.
    pub fn len(&self) -> usize {
        self.tail
            .wrapping_sub(self.shared.head.load(Ordering::Relaxed))
    }

    /// True if all were popped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most values it holds.
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }
}

impl<T> Consumer<T> {
    /// Takes the oldest value.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let shared = &*self.shared;
        if self.head == self.tail_seen {
            self.tail_seen = shared.tail.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                return None;
            }
        }
        // SAFETY: the slot was filled before `tail` passed it (Acquire above), and is ours until
        // the store of `head`.
        let value = shared
            .slot(self.head)
            .with(|slot| unsafe { (*slot).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        shared.head.store(self.head, Ordering::Release);
        Some(value)
    }

    /// Values in the ring, to which more may just be on their way.
    pub fn len(&self) -> usize {
        self.shared
            .tail
            .load(Ordering::Relaxed)
            .wrapping_sub(self.head)
    }

    /// True if nothing waits to be popped.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most values it holds.
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }
}

impl<T> Shared<T> {
    #[inline]
    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[index & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let (mut head, tail) = (
            self.head.load(Ordering::Relaxed),
            self.tail.load(Ordering::Relaxed),
        );
        while head != tail {
            // SAFETY: both ends are gone; what lies between head and tail was never popped.
            self.slot(head)
                .with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
