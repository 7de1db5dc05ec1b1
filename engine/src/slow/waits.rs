use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::task::Poll;

use atomic_waker::AtomicWaker;

use super::SlowRequest;

/// Tasks of a format that wait for others of it, on any core: for those at work on the same
/// cluster, say, which its number stands for. Neither allocates nor locks.
///
/// ```
/// # use oxblock_engine::{SlowRequest, Waits};
/// # use std::sync::atomic::{AtomicBool, Ordering};
/// # struct Cluster { busy: AtomicBool }
/// # async fn example(waits: &Waits, request: &SlowRequest, number: u64, cluster: &Cluster) {
/// // One task waits until the cluster is free, or the request is cancelled:
/// waits.wait(request, number, || !cluster.busy.load(Ordering::SeqCst)).await;
/// // Another lets go of it:
/// cluster.busy.store(false, Ordering::SeqCst);
/// waits.wake(number);
/// # }
/// ```
#[derive(Debug)]
pub struct Waits {
    /// One for each task of each core.
    seats: Box<[Seat]>,
    tasks: usize,
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Seat {
    /// What its task waits for, or [`NOTHING`].
    key: AtomicU64,
    waker: AtomicWaker,
}

const NOTHING: u64 = u64::MAX;

impl Waits {
    /// For the tasks of one node, so many of them on each of so many cores.
    pub fn new(cores: usize, tasks: usize) -> Self {
        let seat = || Seat { key: AtomicU64::new(NOTHING), waker: AtomicWaker::new() };
        let seats = std::iter::repeat_with(seat).take(cores * tasks).collect();
        Self { seats, tasks, waiting: AtomicUsize::new(0) }
    }

    /// Waits until `is_free`, or the request is cancelled. Looks again whenever somebody
    /// [wakes](Self::wake) those who wait for `key`, which is any number but the largest.
    pub async fn wait(&self, request: &SlowRequest, key: u64, is_free: impl Fn() -> bool) {
        let seat = &self.seats[request.core().id() * self.tasks + request.task()];
        let _seated = Seated::new(self, seat, key);
        poll_fn(|context| {
            seat.waker.register(context.waker());
            // Whoever frees it looks at the seats afterwards: one of both sees the other.
            fence(Ordering::SeqCst);
            if is_free() || request.poll_cancelled(context) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// Wakes those who wait for `key`. What they look at must be stored before.
    pub fn wake(&self, key: u64) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        for seat in self.seats.iter().filter(|seat| seat.key.load(Ordering::Relaxed) == key) {
            seat.waker.wake();
        }
    }
}

/// A task in its seat, until this is dropped.
struct Seated<'a> {
    waits: &'a Waits,
    seat: &'a Seat,
}

impl<'a> Seated<'a> {
    fn new(waits: &'a Waits, seat: &'a Seat, key: u64) -> Self {
        seat.key.store(key, Ordering::Relaxed);
        waits.waiting.fetch_add(1, Ordering::Relaxed);
        Self { waits, seat }
    }
}

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        self.seat.key.store(NOTHING, Ordering::Relaxed);
        self.waits.waiting.fetch_sub(1, Ordering::Relaxed);
        self.seat.waker.take();
    }
}
