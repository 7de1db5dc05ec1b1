//! Tasks of one core: futures in a fixed number of places, woken from any thread.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam::queue::ArrayQueue;

use crate::remote::CoreWaker;
use crate::{Error, ErrorKind};

/// The most tasks on one core.
pub(crate) const MAX_TASKS: usize = 4096;

type LocalTask = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks of one core.
pub(crate) struct Tasks {
    places: RefCell<Vec<Place>>,
    free: RefCell<Vec<usize>>,
    ready: Arc<ArrayQueue<usize>>,
    core_waker: CoreWaker,
}

/// Where one task at a time lives. Its waker serves all tasks that ever live here: a late
/// wake costs the next one a needless poll.
struct Place {
    task: Option<LocalTask>,
    wake: Arc<TaskWake>,
    waker: Waker,
}

struct TaskWake {
    index: usize,
    queued: AtomicBool,
    ready: Arc<ArrayQueue<usize>>,
    core: CoreWaker,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            // A place is queued at most once, so the queue, as long as there may be
            // places, has room.
            let _ = self.ready.push(self.index);
            self.core.wake();
        }
    }
}

impl Tasks {
    pub fn new(core_waker: CoreWaker) -> Self {
        Self {
            places: RefCell::default(),
            free: RefCell::default(),
            ready: Arc::new(ArrayQueue::new(MAX_TASKS)),
            core_waker,
        }
    }

    /// Whether a task is ready to run.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Adds a task; without a place for it, it is dropped and said so.
    pub fn spawn(&self, task: LocalTask) -> Result<(), Error> {
        let index = match self.free.borrow_mut().pop() {
            Some(index) => index,
            None => self.add_place()?,
        };
        let mut places = self.places.borrow_mut();
        let place = &mut places[index];
        place.task = Some(task);
        place.waker.wake_by_ref();
        Ok(())
    }

    fn add_place(&self) -> Result<usize, Error> {
        let mut places = self.places.borrow_mut();
        if places.len() == MAX_TASKS {
            let text = format!("this core runs {MAX_TASKS} tasks already; wait for some to end");
            return Err(Error::new(ErrorKind::OutOfMemory, text));
        }
        let wake = Arc::new(TaskWake {
            index: places.len(),
            queued: AtomicBool::new(false),
            ready: self.ready.clone(),
            core: self.core_waker.clone(),
        });
        let waker = Waker::from(wake.clone());
        places.push(Place { task: None, wake, waker });
        Ok(places.len() - 1)
    }

    /// Polls the tasks that are ready now, each once.
    pub fn run(&self) -> usize {
        let mut count = 0;
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop() else { break };
            count += 1;
            self.run_one(index);
        }
        count
    }

    fn run_one(&self, index: usize) {
        let (task, waker) = {
            let mut places = self.places.borrow_mut();
            let place = &mut places[index];
            place.wake.queued.store(false, Ordering::Release);
            (place.task.take(), place.waker.clone())
        };
        let Some(mut task) = task else { return };
        match task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => self.places.borrow_mut()[index].task = Some(task),
            Poll::Ready(()) => {
                drop(task);
                self.free.borrow_mut().push(index);
            }
        }
    }

    /// Drops all tasks. Their destructors may still use the core.
    pub fn clear(&self) {
        let mut dropped = Vec::new();
        for place in self.places.borrow_mut().iter_mut() {
            dropped.extend(place.task.take());
        }
        drop(dropped);
    }
}

/// Waits for a task of this core, and gives its result.
pub struct JoinHandle<T>(Rc<RefCell<JoinState<T>>>);

struct JoinState<T> {
    result: Option<Result<T, Error>>,
    waker: Option<Waker>,
}

impl<T> JoinHandle<T> {
    /// A handle, and the function that fulfils it.
    pub(crate) fn new() -> (Self, impl FnOnce(Result<T, Error>)) {
        let state = Rc::new(RefCell::new(JoinState { result: None, waker: None }));
        let theirs = state.clone();
        let fulfil = move |result| {
            let mut state = theirs.borrow_mut();
            state.result = Some(result);
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        };
        (Self(state), fulfil)
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.0.borrow().result.is_some()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.borrow_mut();
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
