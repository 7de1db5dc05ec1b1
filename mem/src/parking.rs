//! How a thread that polls goes to sleep without missing what another thread stores.

use crate::sync::{AtomicBool, Ordering, fence};

/// A sleeper's announcement.
///
/// The sleeper calls [`announce`](Self::announce), looks once more for work, and then
/// blocks. Others store work, then call [`claim`](Self::claim), and wake the sleeper if
/// that says so. Either the sleeper's last look finds the work, or the claim finds the
/// announcement: both sides store, fence, and load what the other stored.
#[derive(Debug)]
pub struct Parking {
    announced: AtomicBool,
}

impl Default for Parking {
    fn default() -> Self {
        Self::new()
    }
}

impl Parking {
    /// Nobody sleeps.
    #[cfg(not(loom))]
    pub const fn new() -> Parking {
        Parking { announced: AtomicBool::new(false) }
    }

    /// Nobody sleeps.
    #[cfg(loom)]
    pub fn new() -> Parking {
        Parking { announced: AtomicBool::new(false) }
    }

    /// The sleeper: from now on, whoever stores work will wake it.
    pub fn announce(&self) {
        self.announced.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The sleeper: it is awake. Whether somebody claimed to wake it meanwhile.
    pub fn retract(&self) -> bool {
        !self.announced.swap(false, Ordering::Relaxed)
    }

    /// Others, after storing work: whether the sleeper must be woken, by this caller. A
    /// fence and a load while nobody sleeps.
    #[inline]
    pub fn claim(&self) -> bool {
        fence(Ordering::SeqCst);
        self.announced.load(Ordering::Relaxed) && self.announced.swap(false, Ordering::Relaxed)
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::atomic::AtomicUsize;
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::*;

    /// What the sleeper blocks on: an eventfd, in short.
    struct Event(Mutex<bool>, Condvar);

    impl Event {
        fn signal(&self) {
            *self.0.lock().unwrap() = true;
            self.1.notify_one();
        }

        fn wait(&self) {
            let mut signalled = self.0.lock().unwrap();
            while !*signalled {
                signalled = self.1.wait(signalled).unwrap();
            }
            *signalled = false;
        }
    }

    /// Two threads store work while a third goes to sleep. A wake-up that gets lost leaves
    /// the sleeper blocked for ever, which loom reports as a deadlock.
    #[test]
    fn loom_no_wake_up_is_lost() {
        loom::model(|| {
            let shared = Arc::new((
                Parking::new(),
                AtomicUsize::new(0),
                Event(Mutex::new(false), Condvar::new()),
            ));
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        let (parking, work, event) = &*shared;
                        work.fetch_add(1, Ordering::Relaxed);
                        if parking.claim() {
                            event.signal();
                        }
                    })
                })
                .collect();
            let (parking, work, event) = &*shared;
            let mut found = 0;
            while found < 2 {
                parking.announce();
                found += work.swap(0, Ordering::Relaxed);
                if found < 2 {
                    event.wait();
                    found += work.swap(0, Ordering::Relaxed);
                }
                parking.retract();
            }
            others.into_iter().for_each(|other| other.join().unwrap());
        });
    }
}
