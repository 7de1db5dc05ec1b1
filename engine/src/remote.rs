//! How cores reach each other: wake-ups, messages, and results that cross threads.

use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use oxblock_mem::Parking;
use rustix::event::{EventfdFlags, eventfd};

use crate::{Core, Error, ErrorKind};

/// The most messages that wait for a core.
const INBOX_LEN: usize = 1024;

/// Something to do on another core.
pub(crate) type Message = Box<dyn FnOnce(&Core) + Send>;

/// What other threads may touch of a core.
pub(crate) struct Mailbox {
    pub id: usize,
    inbox: ArrayQueue<Message>,
    parking: Parking,
    event: OwnedFd,
    /// Wake-ups that were claimed and not read yet; their owner's alone. The event is not read
    /// after each sleep, and one that is written late must not keep the core awake.
    owed: AtomicU64,
    /// The reactor is gone: nothing will read the inbox.
    closed: AtomicBool,
}

impl Mailbox {
    pub fn new(id: usize) -> Result<Arc<Self>, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::from_io("creating an eventfd for a core", e.into()))?;
        Ok(Arc::new(Self {
            id,
            inbox: ArrayQueue::new(INBOX_LEN),
            parking: Parking::new(),
            event,
            owed: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }))
    }

    #[inline]
    pub fn pop(&self) -> Option<Message> {
        // The look is cheaper than the fence of a pop in vain.
        if self.inbox.is_empty() { None } else { self.inbox.pop() }
    }

    /// Says that the core is about to sleep. Whoever publishes work from now on wakes it;
    /// what was published before, the core must look for once more.
    pub fn announce_sleep(&self) {
        self.parking.announce();
    }

    /// Takes the announcement back, and any wake-up that came of it.
    pub fn awake(&self) {
        let owed = self.owed.load(Ordering::Relaxed) + u64::from(self.parking.retract());
        if owed > 0 {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.event, &mut count);
            self.owed.store(owed.saturating_sub(u64::from_ne_bytes(count)), Ordering::Relaxed);
        }
    }

    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// From now on no message is taken; those that wait are dropped.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        while self.inbox.pop().is_some() {}
    }
}

/// Wakes a core from any thread.
#[derive(Clone)]
pub struct CoreWaker(pub(crate) Arc<Mailbox>);

impl CoreWaker {
    /// Wakes the core if it sleeps; costs a fence and a load where it does not. What it
    /// should find must be stored before.
    #[inline]
    pub fn wake(&self) {
        if self.0.parking.claim() {
            self.wake_sleeper();
        }
    }

    #[cold]
    fn wake_sleeper(&self) {
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
    }
}

/// Sends work to a core from any thread.
#[derive(Clone)]
pub struct Remote(pub(crate) Arc<Mailbox>);

impl Remote {
    /// The number of the core.
    pub fn id(&self) -> usize {
        self.0.id
    }

    /// Wakes the core.
    pub fn waker(&self) -> CoreWaker {
        CoreWaker(self.0.clone())
    }

    /// Runs a future, made by `make` on that core, there. The result comes back through
    /// the handle, which gives an error at once if 1024 messages wait already or the core
    /// is gone.
    pub fn spawn<T, F, M>(&self, make: M) -> RemoteHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
        M: FnOnce(Core) -> F + Send + 'static,
    {
        let (handle, message) = remote_task(make);
        if self.0.is_closed() {
            // The dropped message fulfils the handle with an error.
            drop(message);
        } else if self.0.inbox.push(message).is_ok() {
            self.waker().wake();
            if self.0.is_closed() {
                self.0.close();
            }
        }
        handle
    }
}

/// A message that runs a future on the core that takes it, and the handle of its result.
pub(crate) fn remote_task<T, F, M>(make: M) -> (RemoteHandle<T>, Message)
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
    M: FnOnce(Core) -> F + Send + 'static,
{
    let (handle, fulfil) = handle_of_result();
    let message: Message = Box::new(move |core: &Core| {
        let core_id = core.id();
        let mut future = Box::pin(make(core.clone()));
        let shared = core.0.shared.clone();
        core.spawn_detached(async move {
            // The reason must be known before the unwinding drops what the caller waits for.
            let result = std::future::poll_fn(|context| {
                let poll = AssertUnwindSafe(|| future.as_mut().poll(context));
                catch_unwind(poll).unwrap_or_else(|panic| {
                    shared.fail_by_panic(core_id, &*panic);
                    resume_unwind(panic)
                })
            });
            fulfil.with(result.await);
        });
    });
    (handle, message)
}

/// A message that does something on the core that takes it, at once, and the handle of its
/// result.
pub(crate) fn remote_call<T: Send + 'static>(
    run: impl FnOnce(&Core) -> T + Send + 'static,
) -> (RemoteHandle<T>, Message) {
    let (handle, fulfil) = handle_of_result();
    (handle, Box::new(move |core| fulfil.with(run(core))))
}

fn handle_of_result<T>() -> (RemoteHandle<T>, Fulfil<T>) {
    let handle = RemoteHandle(Arc::new(Shared {
        state: Mutex::new(RemoteState { result: None, waker: None }),
        changed: Condvar::new(),
    }));
    let fulfil = Fulfil(Some(handle.0.clone()));
    (handle, fulfil)
}

/// The result of work on another core: a future, or waited for by a plain thread.
pub struct RemoteHandle<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<RemoteState<T>>,
    changed: Condvar,
}

struct RemoteState<T> {
    result: Option<Result<T, Error>>,
    waker: Option<Waker>,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, RemoteState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fulfil(&self, result: Result<T, Error>) {
        let mut state = self.lock();
        state.result.get_or_insert(result);
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> RemoteHandle<T> {
    /// Blocks the calling thread, which must not be a core's, until the result is there.
    pub fn wait(self) -> Result<T, Error> {
        let mut state = self.0.lock();
        loop {
            if let Some(result) = state.result.take() {
                return result;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> RemoteHandle<T> {
    /// As [`wait`](Self::wait), for no longer than `time`: then the handle comes back, and
    /// the work goes on.
    pub fn wait_for(self, time: Duration) -> Result<Result<T, Error>, Self> {
        let until = Instant::now() + time;
        let mut state = self.0.lock();
        loop {
            if let Some(result) = state.result.take() {
                return Ok(result);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                return Err(self);
            }
            let wait = self.0.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<T> Future for RemoteHandle<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Fulfils a handle once, with an error if it is dropped before.
struct Fulfil<T>(Option<Arc<Shared<T>>>);

impl<T> Fulfil<T> {
    fn with(mut self, result: T) {
        if let Some(shared) = self.0.take() {
            shared.fulfil(Ok(result));
        }
    }
}

impl<T> Drop for Fulfil<T> {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            let text = "the core ended, or was too busy to take the work";
            shared.fulfil(Err(Error::new(ErrorKind::Failed, text)));
        }
    }
}
