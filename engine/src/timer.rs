//! Timers of one core.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::Core;

/// Deadlines and whom to wake, the earliest first.
#[derive(Default)]
pub(crate) struct Timers(RefCell<BinaryHeap<Reverse<Timer>>>);

struct Timer {
    at_ns: u64,
    waker: Waker,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.at_ns == other.at_ns
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at_ns.cmp(&other.at_ns)
    }
}

impl Timers {
    fn add(&self, at_ns: u64, waker: Waker) {
        self.0.borrow_mut().push(Reverse(Timer { at_ns, waker }));
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<u64> {
        self.0.borrow().peek().map(|Reverse(timer)| timer.at_ns)
    }

    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Wakes those whose time has come.
    pub fn fire(&self, now_ns: u64) -> usize {
        let mut count = 0;
        while self.next().is_some_and(|at_ns| at_ns <= now_ns) {
            let timer = self.0.borrow_mut().pop();
            if let Some(Reverse(timer)) = timer {
                timer.waker.wake();
                count += 1;
            }
        }
        count
    }

    pub fn clear(&self) {
        self.0.take();
    }
}

/// Waits until a moment of the core's clock.
pub struct SleepUntil {
    core: Core,
    at_ns: u64,
    armed: bool,
}

impl SleepUntil {
    pub(crate) fn new(core: Core, at_ns: u64) -> Self {
        Self { core, at_ns, armed: false }
    }
}

impl Future for SleepUntil {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.core.now() >= self.at_ns {
            return Poll::Ready(());
        }
        if !self.armed {
            self.armed = true;
            self.core.timers().add(self.at_ns, context.waker().clone());
        }
        Poll::Pending
    }
}
