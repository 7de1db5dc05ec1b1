//! What the engine tells its embedder: devices and nodes that come, go and change.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Events that wait for a subscriber; the oldest gives way.
const KEPT: usize = 256;

/// Something that happened to a device or a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, in ns of the engine's clock.
    pub at_ns: u64,
    /// The name of the node, or where the device is (`0000:01:00.0`).
    pub subject: Arc<str>,
    /// What it is, for a program.
    pub kind: EventKind,
    /// What it is, for a person: one line without the subject.
    pub text: String,
}

/// What kind of event it is. `Device…` and what belongs to a device as a whole have the device
/// for a subject, `Node…` the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// A device is there that was not, or whether it can be attached has changed. Told by who
    /// watches a bus; its words say what is to be done.
    DeviceAppeared {
        /// It can be attached as it is.
        ready: bool,
    },
    /// A device is no longer on its bus. Told by who watches a bus, of devices that were never
    /// attached as well.
    DeviceUnplugged,
    /// A device is to go: what was open on it is being closed.
    DeviceLeaving,
    /// A device went, or was let go of. It can be attached again when it comes back.
    DeviceGone,
    /// A device reported an error of its own that it says has passed.
    DeviceError,
    /// A device says that it is not well; the words say what it lacks.
    HealthWarning,
    /// A device is being reset; I/O on it waits.
    ResetBegun,
    /// It was reset, and I/O goes on.
    ResetDone,
    /// It could not be reset: its I/O fails.
    ResetFailed,
    /// A device begins to run other firmware; I/O on it waits.
    FirmwareActivation,
    /// It runs it, or took too long; the words say which.
    FirmwareActivated,
    /// A device has a namespace that it did not have before.
    NamespaceAdded {
        /// Its identifier.
        id: u32,
    },
    /// A namespace of a device was deleted, detached, or can no longer be used.
    NamespaceRemoved {
        /// Its identifier.
        id: u32,
    },
    /// An open node has another length now, in bytes.
    NodeResized {
        /// What it was.
        from: u64,
        /// What it is; operations beyond it fail, up to it they succeed.
        to: u64,
    },
    /// An open node takes no writes any more.
    NodeReadOnly,
    /// An open node takes writes again.
    NodeWritable,
    /// An open node fails all its operations, for good: close it.
    NodeGone,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.text)
    }
}

/// A subscription to the events of an engine, from the moment it is made. It may be read on any
/// thread, and holds back nobody: 256 events wait for a slow reader, then the oldest are lost,
/// and counted.
pub struct Events(Arc<Line>);

struct Line {
    state: Mutex<LineState>,
    changed: Condvar,
}

#[derive(Default)]
struct LineState {
    waiting: VecDeque<Event>,
    lost: u64,
    waker: Option<Waker>,
    /// The engine is no more.
    ended: bool,
}

impl Events {
    /// The next event, if one is there.
    pub fn try_next(&mut self) -> Option<Event> {
        self.0.lock().waiting.pop_front()
    }

    /// Waits for the next event; `None` once the engine is no more.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if let Some(event) = state.waiting.pop_front() {
                return Poll::Ready(Some(event));
            }
            if state.ended {
                return Poll::Ready(None);
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// As [`next`](Self::next), for a plain thread, which must not be a core's: blocks for no
    /// longer than `time`.
    pub fn wait_for(&mut self, time: Duration) -> Option<Event> {
        let until = Instant::now() + time;
        let mut state = self.0.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if !state.waiting.is_empty() || state.ended || left.is_zero() {
                return state.waiting.pop_front();
            }
            let wait = self.0.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How many events were lost because nobody read them in time.
    pub fn lost(&self) -> u64 {
        self.0.lock().lost
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        f.debug_struct("Events")
            .field("waiting", &state.waiting.len())
            .field("lost", &state.lost)
            .finish()
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut LineState)) {
        let mut state = self.lock();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Brings the events of one engine to its subscribers. Control plane: it locks and allocates.
#[derive(Default)]
pub(crate) struct Hub(Mutex<Vec<Weak<Line>>>);

impl Hub {
    pub fn subscribe(&self) -> Events {
        let line = Arc::new(Line { state: Mutex::default(), changed: Condvar::new() });
        self.lines().push(Arc::downgrade(&line));
        Events(line)
    }

    pub fn publish(&self, event: &Event) {
        for line in self.subscribers() {
            line.change(|state| {
                if state.waiting.len() == KEPT {
                    state.waiting.pop_front();
                    state.lost += 1;
                }
                state.waiting.push_back(event.clone());
            });
        }
    }

    fn subscribers(&self) -> Vec<Arc<Line>> {
        let mut lines = self.lines();
        lines.retain(|line| line.strong_count() > 0);
        lines.iter().filter_map(Weak::upgrade).collect()
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Weak<Line>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        for line in self.subscribers() {
            line.change(|state| state.ended = true);
        }
    }
}
