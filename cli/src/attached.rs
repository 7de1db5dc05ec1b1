//! A namespace of an NVMe controller behind a PCI function, driven from user space.

use std::sync::Arc;

use oxblock_drivers::nvme::{Controller, NvmeOptions};
use oxblock_engine::{Engine, Error, Node};

use crate::function::{FunctionSpec, Functions};

/// Entries of an I/O queue: enough for any depth that is usual, and the most of the driver.
const QUEUE_ENTRIES: (u32, u32) = (256, 1024);

/// A controller that is attached, and one of its namespaces.
pub struct Attached {
    /// The namespace.
    pub node: Arc<Node>,
    /// Who the controller is, for people.
    pub words: String,
}

impl Attached {
    /// Attaches the driver to a function, with core 0 of the engine as its home, and queues that
    /// hold `depth` I/Os. The engine's shutdown ends it in good order.
    ///
    /// Errors: what the back end or the driver says.
    pub fn open(
        engine: &Engine,
        function: &FunctionSpec,
        nsid: u32,
        depth: u32,
    ) -> Result<Attached, Error> {
        let opened = Functions::default().open(function)?;
        let queue_entries = (depth + 1).clamp(QUEUE_ENTRIES.0, QUEUE_ENTRIES.1) as u16;
        let options = NvmeOptions { queue_entries, ..NvmeOptions::default() };
        let (driver, identity) = engine.run(0, move |core| async move {
            let controller = Controller::attach(&core, opened, options).await?;
            Ok::<_, Error>((controller.namespace(nsid)?, controller.identity().clone()))
        })??;
        let words = format!(
            "namespace {nsid} of {} ({}) at {function}",
            identity.model.trim(),
            identity.serial.trim()
        );
        Ok(Attached { node: Node::new(format!("nvme-{function}-{nsid}"), driver), words })
    }
}
