//! What the cores of one engine share: each other's mailboxes, and the engine's end.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::events::Hub;
use crate::remote::Mailbox;
use crate::{Core, CoreWaker, Error, ErrorKind, LocalFuture};

/// Something that an orderly shutdown does on a core.
pub(crate) struct Closer {
    pub core: usize,
    pub close: Box<dyn FnOnce(Core) -> LocalFuture<'static, Result<(), Error>> + Send>,
}

pub(crate) struct EngineShared {
    pub mailboxes: Vec<Arc<Mailbox>>,
    closers: Mutex<Vec<Closer>>,
    ending: AtomicBool,
    exit: AtomicBool,
    failed: AtomicBool,
    reason: Mutex<Option<String>>,
    /// Cores that, after a failure, have no device at work any more.
    pub quiet_cores: AtomicUsize,
    pub events: Hub,
    values: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

impl EngineShared {
    pub fn new(cores: usize) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {
            mailboxes: (0..cores).map(Mailbox::new).collect::<Result<_, _>>()?,
            closers: Mutex::default(),
            ending: AtomicBool::new(false),
            exit: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            reason: Mutex::default(),
            quiet_cores: AtomicUsize::new(0),
            events: Hub::default(),
            values: Mutex::default(),
        }))
    }

    /// The engine's one value of this type.
    pub fn value<T: Default + Any + Send + Sync>(&self) -> Arc<T> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default()));
        // It is kept under its own type.
        value.clone().downcast().unwrap_or_default()
    }

    pub fn add_closer(&self, closer: Closer) {
        self.closers.lock().unwrap_or_else(PoisonError::into_inner).push(closer);
    }

    /// An orderly shutdown: from now on nothing is opened; `run` runs each closer on its
    /// core, the last registered first. The first error is kept, and the rest runs all the
    /// same, unless the engine fails.
    pub fn close_all(
        &self,
        mut run: impl FnMut(Closer) -> Result<Result<(), Error>, Error>,
    ) -> Result<(), Error> {
        self.ending.store(true, Ordering::SeqCst);
        let mut outcome = Ok(());
        while let Some(closer) = self.take_closer()
            && !self.has_failed()
        {
            outcome = outcome.and(run(closer).and_then(|result| result));
        }
        outcome
    }

    fn take_closer(&self) -> Option<Closer> {
        self.closers.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub fn refuse_if_ending(&self) -> Result<(), Error> {
        self.failure()?;
        if self.ending.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Failed, "the engine is shutting down"));
        }
        Ok(())
    }

    /// Lets the reactors' threads end.
    pub fn exit(&self) {
        self.exit.store(true, Ordering::SeqCst);
        self.wake_all();
    }

    pub fn is_exiting(&self) -> bool {
        self.exit.load(Ordering::Relaxed)
    }

    /// The engine failed: every core stops its devices and ends.
    pub fn fail(&self, reason: String) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.failed.store(true, Ordering::SeqCst);
        self.wake_all();
    }

    /// A task or a poller panicked.
    pub fn fail_by_panic(&self, core: usize, panic: &(dyn Any + Send)) {
        self.fail(format!("core {core} panicked: {}", panic_text(panic)));
    }

    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Why the engine failed, if it did.
    pub fn failure(&self) -> Result<(), Error> {
        if !self.failed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = reason.as_deref().unwrap_or("unknown reason");
        Err(Error::new(ErrorKind::Failed, format!("the engine failed: {reason}")))
    }

    fn wake_all(&self) {
        for mailbox in &self.mailboxes {
            CoreWaker(mailbox.clone()).wake();
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
