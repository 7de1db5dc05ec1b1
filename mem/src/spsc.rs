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
    assert!(capacity > 0 && capacity <= 1 << 31, "a ring of {capacity} values");
    let slots = (0..capacity.next_power_of_two()).map(|_| UnsafeCell::new(MaybeUninit::uninit()));
    let shared = Arc::new(Shared {
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
        slots: slots.collect(),
        capacity,
    });
    let producer = Producer { shared: shared.clone(), tail: 0, head_seen: 0 };
    (producer, Consumer { shared, head: 0, tail_seen: 0 })
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
        shared.slot(self.tail).with_mut(|slot| unsafe { (*slot).write(value) });
        self.tail = self.tail.wrapping_add(1);
        shared.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Values in the ring, some of which may just be on their way out.
    pub fn len(&self) -> usize {
        self.tail.wrapping_sub(self.shared.head.load(Ordering::Relaxed))
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
        let value = shared.slot(self.head).with(|slot| unsafe { (*slot).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        shared.head.store(self.head, Ordering::Release);
        Some(value)
    }

    /// Values in the ring, to which more may just be on their way.
    pub fn len(&self) -> usize {
        self.shared.tail.load(Ordering::Relaxed).wrapping_sub(self.head)
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
        let (mut head, tail) =
            (self.head.load(Ordering::Relaxed), self.tail.load(Ordering::Relaxed));
        while head != tail {
            // SAFETY: both ends are gone; what lies between head and tail was never popped.
            self.slot(head).with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::rc::Rc;
    use std::thread;

    use super::*;

    #[test]
    fn it_is_full_at_its_capacity_and_empty_after() {
        for capacity in 1..=9 {
            let (mut tx, mut rx) = ring(capacity);
            for round in 0..3 {
                for value in 0..capacity {
                    assert_eq!(tx.push((round, value)), Ok(()));
                }
                assert_eq!(tx.push((9, 9)), Err((9, 9)));
                assert_eq!((tx.len(), rx.len(), rx.capacity()), (capacity, capacity, capacity));
                for value in 0..capacity {
                    assert_eq!(rx.pop(), Some((round, value)));
                }
                assert_eq!(rx.pop(), None);
                assert!(rx.is_empty() && tx.is_empty());
            }
        }
    }

    #[test]
    fn indexes_may_wrap() {
        let (mut tx, mut rx) = ring(3);
        let start = usize::MAX - 1;
        (tx.tail, tx.head_seen, rx.head, rx.tail_seen) = (start, start, start, start);
        tx.shared.tail.store(start, Ordering::Relaxed);
        tx.shared.head.store(start, Ordering::Relaxed);
        for round in 0..5 {
            for value in 0..3 {
                assert_eq!(tx.push(round * 3 + value), Ok(()));
            }
            assert_eq!(tx.push(99), Err(99));
            for value in 0..3 {
                assert_eq!(rx.pop(), Some(round * 3 + value));
            }
        }
    }

    #[test]
    fn what_was_never_popped_is_dropped_once() {
        let value = Rc::new(());
        let (mut tx, mut rx) = ring(4);
        for _ in 0..3 {
            tx.push(value.clone()).unwrap();
        }
        drop(rx.pop());
        drop(tx);
        assert_eq!(Rc::strong_count(&value), 3);
        assert!(rx.pop().is_some());
        drop(rx);
        assert_eq!(Rc::strong_count(&value), 1);
    }

    #[test]
    fn two_threads_keep_the_order() {
        let (mut tx, mut rx) = ring(7);
        let producer = thread::spawn(move || {
            for value in 0..100_000u64 {
                let mut value = Box::new(value);
                while let Err(back) = tx.push(value) {
                    value = back;
                    thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        while expected < 100_000 {
            match rx.pop() {
                Some(value) => {
                    assert_eq!(*value, expected);
                    expected += 1;
                }
                None => thread::yield_now(),
            }
        }
        producer.join().unwrap();
        assert!(rx.pop().is_none());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    /// More values than room, so that the ring is full, empty and wrapped on the way. Boxes make
    /// loom see a value that is read twice, or never dropped.
    fn pass(capacity: usize, values: usize) {
        loom::model(move || {
            let (mut tx, mut rx) = ring(capacity);
            let producer = thread::spawn(move || {
                for value in 0..values {
                    let mut value = loom::sync::Arc::new(value);
                    while let Err(back) = tx.push(value) {
                        value = back;
                        thread::yield_now();
                    }
                }
            });
            for expected in 0..values {
                let value = loop {
                    match rx.pop() {
                        Some(value) => break value,
                        None => thread::yield_now(),
                    }
                };
                assert_eq!(*value, expected);
            }
            producer.join().unwrap();
            assert!(rx.pop().is_none());
        });
    }

    #[test]
    fn loom_values_pass_in_order_through_one_slot() {
        pass(1, 3);
    }

    #[test]
    fn loom_values_pass_in_order_through_two_slots() {
        pass(2, 3);
    }

    #[test]
    fn loom_what_is_left_is_dropped_by_the_last_end() {
        loom::model(|| {
            let (mut tx, mut rx) = ring(2);
            let producer = thread::spawn(move || {
                let _ = tx.push(loom::sync::Arc::new(1));
                let _ = tx.push(loom::sync::Arc::new(2));
            });
            let _ = rx.pop();
            drop(rx);
            producer.join().unwrap();
        });
    }
}
