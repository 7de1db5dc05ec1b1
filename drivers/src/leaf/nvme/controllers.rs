//! The controllers that nodes of one engine are on. Each is attached once, by the first node that
//! names it, and stays as long as a node is on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_pci::Function;

use super::{Controller, FunctionSpec, Functions, NvmeOptions};

/// The controllers of an engine, by the names that nodes have for them in `device`: one that
/// [`FunctionSpec`] reads, or one under which the embedder [lends](Self::lend) a function.
#[derive(Default)]
pub struct Controllers {
    functions: Functions,
    lent: Mutex<BTreeMap<String, Arc<dyn Function>>>,
    known: Mutex<BTreeMap<String, Known>>,
}

enum Known {
    Attaching,
    Attached(Weak<Controller>, NvmeOptions),
}

impl Controllers {
    /// Those of this core's engine.
    pub fn of(core: &Core) -> Arc<Self> {
        core.engine_wide()
    }

    /// Gives a function a name for the nodes of this engine, such as a software controller of this
    /// process.
    pub fn lend(&self, name: &str, function: Arc<dyn Function>) {
        self.lent().insert(name.into(), function);
    }

    /// The controller of this name, if a node is on it.
    pub fn find(&self, device: &str) -> Option<Arc<Controller>> {
        match self.known().get(&self.key(device).ok()?)? {
            Known::Attached(controller, _) => controller.upgrade(),
            Known::Attaching => None,
        }
    }

    /// The controller of this name, attached with this core as its home if it is not yet.
    ///
    /// Errors: a name that means nothing; what the back end or the controller says; it is
    /// attached with other options.
    pub(super) async fn attach(
        &self,
        core: &Core,
        device: &str,
        options: NvmeOptions,
    ) -> Result<Arc<Controller>, Error> {
        let key = self.key(device)?;
        let attaching = loop {
            match self.begin(&key, &options)? {
                Some(Begun::Attached(controller)) => return Ok(controller),
                Some(Begun::Attaching(attaching)) => break attaching,
                None => core.yield_now().await,
            }
        };
        let lent = self.lent().get(&key).cloned();
        let function = match lent {
            Some(function) => function,
            None => self.functions.open(&FunctionSpec::parse(device)?)?,
        };
        let controller = Controller::attach(core, function, options.clone()).await?;
        let known = Known::Attached(Arc::downgrade(&controller), options);
        self.known().insert(attaching.key.into(), known);
        Ok(controller)
    }

    /// `None` while another task is at it.
    fn begin<'a>(
        &'a self,
        key: &'a str,
        options: &NvmeOptions,
    ) -> Result<Option<Begun<'a>>, Error> {
        let mut known = self.known();
        match known.get(key) {
            Some(Known::Attaching) => return Ok(None),
            Some(Known::Attached(controller, with)) => {
                let is_usable = |controller: &Arc<Controller>| {
                    !controller.is_closing() && !controller.hardware().health().is_over()
                };
                if let Some(controller) = controller.upgrade().filter(is_usable) {
                    if with == options {
                        return Ok(Some(Begun::Attached(controller)));
                    }
                    let text = format!(
                        "the NVMe controller at {key} is attached with other options; all nodes on \
                         it must have the same, but for their namespace"
                    );
                    return Err(Error::new(ErrorKind::Busy, text));
                }
            }
            None => {}
        }
        known.insert(key.into(), Known::Attaching);
        Ok(Some(Begun::Attaching(Attaching { controllers: self, key })))
    }

    /// One name for all spellings of a device.
    fn key(&self, device: &str) -> Result<String, Error> {
        if self.lent().contains_key(device) {
            return Ok(device.into());
        }
        FunctionSpec::parse(device).map(|spec| spec.to_string())
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lent(&self) -> MutexGuard<'_, BTreeMap<String, Arc<dyn Function>>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Begun<'a> {
    Attached(Arc<Controller>),
    Attaching(Attaching<'a>),
}

/// While it lives, others wait for what comes of it.
struct Attaching<'a> {
    controllers: &'a Controllers,
    key: &'a str,
}

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        let mut known = self.controllers.known();
        if matches!(known.get(self.key), Some(Known::Attaching)) {
            known.remove(self.key);
        }
    }
}

impl std::fmt::Debug for Controllers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controllers").field("known", &self.known().keys()).finish_non_exhaustive()
    }
}
