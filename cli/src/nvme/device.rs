//! Opening the controller that a command is for.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use oxblock_drivers::file::FileOptions;
use oxblock_drivers::memory::MemoryOptions;
use oxblock_drivers::nvme::{Controller as Host, FunctionSpec, Functions, NvmeOptions, pci_error};
use oxblock_drivers::{file, memory};
use oxblock_engine::{Core, Engine, Error, Node, Options};
use oxblock_nvmet::{Controller, ControllerOptions, NamespaceOptions};
use oxblock_pci::Function;

use super::Failure;
use crate::held::{access, hold_alone};

/// The one core: what is asked here does not need two.
const CORE: usize = 0;
/// Bytes of a software controller's namespace in memory, and of what it has for others.
const SOFT_BYTES: u64 = 64 << 20;

/// A controller that is attached, and the engine that it lives in.
pub struct Session {
    engine: Engine,
    function: Arc<dyn Function>,
    controller: Arc<Host>,
    /// Dropping the handle ends it.
    _soft: Option<Arc<Controller>>,
}

impl Session {
    /// Attaches the controller that `device` names.
    ///
    /// Errors: a name that means nothing; what the back end or the driver says.
    pub fn open(device: &str) -> Result<Session, Failure> {
        let below = match device.split_once(':') {
            None if device == "soft" => Some(None),
            Some(("soft", path)) if !path.is_empty() => Some(Some(Path::new(path))),
            _ => None,
        };
        let (engine, (function, soft)) = match below {
            Some(below) => {
                let engine = Engine::with_cores(1, Options::default())?;
                let function = soft(&engine, below)?;
                (engine, function)
            }
            None => {
                let spec = spec(device)?;
                let engine = Engine::with_cores(1, spec.engine_options(Options::default()))?;
                (engine, (Functions::default().open(&spec)?, None))
            }
        };
        let ours = Arc::clone(&function);
        let controller = engine.run(CORE, move |core| async move {
            Host::attach(&core, ours, NvmeOptions::default()).await
        })??;
        Ok(Session { engine, function, controller, _soft: soft })
    }

    /// Runs something on the controller's core.
    ///
    /// Errors: as `work` says, or the engine failed.
    pub fn ask<T, F>(
        &self,
        work: impl FnOnce(Core, Arc<Host>) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + 'static,
    {
        let controller = Arc::clone(&self.controller);
        self.engine.run(CORE, move |core| work(core, controller))?
    }

    /// The controller.
    pub fn controller(&self) -> &Arc<Host> {
        &self.controller
    }

    /// Shuts the controller down and ends.
    ///
    /// Errors: the controller did not shut down.
    pub fn close(self) -> Result<(), Error> {
        self.engine.shutdown()
    }

    /// Shuts the controller down, resets its function, and attaches it afresh.
    ///
    /// Errors: it did not come back.
    pub fn reset(&self) -> Result<Arc<Host>, Error> {
        let function = Arc::clone(&self.function);
        self.ask(|core, controller| async move {
            controller.shutdown(&core).await?;
            function.reset().map_err(pci_error)?;
            Host::attach(&core, function, NvmeOptions::default()).await
        })
    }
}

/// The function that a word names.
fn spec(device: &str) -> Result<FunctionSpec, Failure> {
    let word = device.strip_prefix("nvme://").unwrap_or(device);
    FunctionSpec::parse(word).map_err(|error| {
        let text = format!(
            "`{device}` names no device ({error}); give a PCI address, vfio-user:SOCKET, soft \
                 or soft:PATH"
        );
        Failure::Usage(text)
    })
}

type Soft = (Arc<dyn Function>, Option<Arc<Controller>>);

/// A software controller with one namespace, in memory or over a file, and room in memory for
/// those that are created.
fn soft(engine: &Engine, path: Option<&Path>) -> Result<Soft, Error> {
    let memory = || memory::open(MemoryOptions { size: SOFT_BYTES, block_size: 512 });
    let driver = match path {
        None => memory()?,
        Some(path) => file::open(FileOptions::new(path))?,
    };
    let node = hold_alone(Node::new("soft", driver), access(true, false))?;
    let room = Node::new("room", memory()?);
    let controller = engine.run(CORE, move |core| async move {
        let block_size = node.limits().block_size.max(512);
        let options = ControllerOptions {
            namespaces: vec![NamespaceOptions::new(node, block_size)],
            capacity: vec![room],
            ..ControllerOptions::default()
        };
        Controller::start(&core, options).await
    })??;
    Ok((controller.function(), Some(controller)))
}
