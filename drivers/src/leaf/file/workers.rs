//! Calls of the file driver on threads of its own, where io_uring is forbidden.
//!
//! Each thread has a ring of calls and a ring of results, long enough for all slots of the
//! queue: nothing is allocated or locked on the way. A thread without calls is parked; a
//! reactor that sleeps is woken through an eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::{self, JoinHandle};

use oxblock_mem::spsc;

use super::Shared;
use super::probe::{self, Cpus};
use super::syscall::{Call, Job, Lists};

/// The threads of a queue on a file, with a list of memory for each of its slots. At most one
/// call per slot is outstanding.
pub(super) struct Workers {
    lists: Lists,
    threads: Box<[Worker]>,
    bell: Arc<Bell>,
    /// Calls whose result is still to come.
    outstanding: usize,
    /// The thread whose results are looked at next.
    next: usize,
}

/// A thread, as the queue sees it.
struct Worker {
    calls: spsc::Producer<(u16, Job)>,
    results: spsc::Consumer<(u16, i32)>,
    outstanding: usize,
    /// It has calls that it was not told of.
    untold: bool,
    thread: Option<JoinHandle<()>>,
}

/// What the queue and its threads tell each other.
struct Bell {
    event: OwnedFd,
    /// The reactor is about to sleep: the next result rings.
    armed: AtomicBool,
    /// Calls that have not begun end at once.
    cancelled: AtomicBool,
    /// No call comes any more.
    over: AtomicBool,
}

impl Workers {
    /// `threads` threads with `depth` slots on the file, on any of `cpus`: not only on the
    /// processor of the reactor, which it may never leave to them.
    pub(super) fn new(shared: &Arc<Shared>, threads: usize, cpus: Cpus) -> io::Result<Self> {
        let depth = shared.queue_depth;
        let bell = Arc::new(Bell {
            event: probe::event()?,
            armed: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let mut workers = Self {
            lists: Lists::new(depth),
            threads: Box::default(),
            bell: bell.clone(),
            outstanding: 0,
            next: 0,
        };
        let mut all = Vec::with_capacity(threads);
        for _ in 0..threads.max(1) {
            let (calls, their_calls) = spsc::ring(usize::from(depth));
            let (their_results, results) = spsc::ring(usize::from(depth));
            let (bell, shared) = (bell.clone(), shared.clone());
            let thread = thread::Builder::new().name("oxblock-file".into()).spawn(move || {
                // Where it fails, the thread stays where its reactor is: slower, not wrong.
                let _ = probe::run_on(&cpus);
                serve(their_calls, their_results, &shared, &bell);
            });
            let thread = match thread {
                Ok(thread) => Some(thread),
                // Those that there are will do.
                Err(_) if !all.is_empty() => break,
                Err(error) => return Err(error),
            };
            all.push(Worker { calls, results, outstanding: 0, untold: false, thread });
        }
        workers.threads = all.into();
        Ok(workers)
    }

    /// The lists of memory, one for each slot.
    pub(super) fn lists(&mut self) -> &mut Lists {
        &mut self.lists
    }

    /// Queues a call for the slot on the thread with the fewest; the next
    /// [`enter`](Self::enter) wakes it. `false` if there is no room.
    pub(super) fn push(&mut self, slot: u16, call: Call) -> bool {
        let job = self.lists.job(slot, call);
        let Some(worker) = self.threads.iter_mut().min_by_key(|worker| worker.outstanding) else {
            return false;
        };
        if worker.calls.push((slot, job)).is_err() {
            return false;
        }
        worker.outstanding += 1;
        worker.untold = true;
        self.outstanding += 1;
        true
    }

    /// Asks that calls which have not begun never begin.
    pub(super) fn cancel_all(&mut self) {
        self.bell.cancelled.store(true, Ordering::Relaxed);
    }

    /// Wakes the threads that have something new to do.
    pub(super) fn enter(&mut self) {
        for worker in self.threads.iter_mut().filter(|worker| worker.untold) {
            worker.untold = false;
            if let Some(thread) = &worker.thread {
                thread.thread().unpark();
            }
        }
    }

    /// Takes the next result: slot and result of its call.
    pub(super) fn reap(&mut self) -> Option<(u16, i32)> {
        if self.outstanding == 0 {
            return None;
        }
        for _ in 0..self.threads.len() {
            self.next = (self.next + 1) % self.threads.len();
            let worker = &mut self.threads[self.next];
            if worker.outstanding > 0
                && let Some(result) = worker.results.pop()
            {
                worker.outstanding -= 1;
                self.outstanding -= 1;
                return Some(result);
            }
        }
        None
    }

    /// How many calls are queued or under way.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// The descriptor that turns readable with the next result; `None` if there is one.
    pub(super) fn sleep(&mut self) -> Option<BorrowedFd<'_>> {
        probe::take_event(&self.bell.event);
        self.bell.armed.store(true, Ordering::Relaxed);
        // Against the fence in `ring`: one of the two sides sees the other.
        fence(Ordering::SeqCst);
        let quiet = self.threads.iter().all(|worker| worker.results.is_empty());
        quiet.then(|| self.bell.event.as_fd())
    }
}

impl Drop for Workers {
    /// Waits for the threads, which may be reading lists and writing into memory of requests.
    fn drop(&mut self) {
        self.bell.over.store(true, Ordering::Release);
        for worker in &mut self.threads {
            if let Some(thread) = worker.thread.take() {
                thread.thread().unpark();
                let _ = thread.join();
            }
        }
    }
}

impl Bell {
    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Relaxed) {
            probe::give_event(&self.event);
        }
    }
}

/// A thread: calls in their order, until there are no more.
fn serve(
    mut calls: spsc::Consumer<(u16, Job)>,
    mut results: spsc::Producer<(u16, i32)>,
    shared: &Shared,
    bell: &Bell,
) {
    loop {
        let over = bell.over.load(Ordering::Acquire);
        let Some((slot, job)) = calls.pop() else {
            if over {
                return;
            }
            thread::park();
            continue;
        };
        let result = match bell.cancelled.load(Ordering::Relaxed) {
            true => -libc::ECANCELED,
            false => job.run(&shared.file),
        };
        // There is room: the ring is as long as the queue has slots.
        let mut left = Err((slot, result));
        while let Err(result) = left {
            left = results.push(result);
        }
        bell.ring();
    }
}
