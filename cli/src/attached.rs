//! Namespaces of an NVMe controller behind a PCI function, driven from user space.

use std::sync::Arc;

use oxblock_drivers::nvme::{Controller, NvmeOptions};
use oxblock_engine::{Engine, Error, Node};

use crate::function::{FunctionSpec, Functions};
use crate::tuning::NvmeTuning;

/// Entries of an I/O queue: enough for any depth that is usual, and the most of the driver.
const QUEUE_ENTRIES: (u32, u32) = (256, 1024);

/// A namespace of a controller that is attached.
pub struct Attached {
    /// The namespace.
    pub node: Arc<Node>,
    /// It and its controller, for people.
    pub words: String,
}

impl Attached {
    /// Attaches the driver to a function, with core 0 of the engine as its home, and queues that
    /// hold `depth` I/Os; the namespaces come in the order of `nsids`. The engine's shutdown ends
    /// it in good order.
    ///
    /// Errors: what the back end or the driver says.
    pub fn open(
        engine: &Engine,
        function: &FunctionSpec,
        nsids: &[u32],
        depth: u32,
        tuning: NvmeTuning,
    ) -> Result<Vec<Attached>, Error> {
        let opened = Functions::default().open(function)?;
        let queue_entries = (depth + 1).clamp(QUEUE_ENTRIES.0, QUEUE_ENTRIES.1) as u16;
        let options = tuning.apply(NvmeOptions { queue_entries, ..NvmeOptions::default() });
        let controller = engine.run(0, move |core| async move {
            Controller::attach(&core, opened, options).await
        })??;
        let identity = controller.identity();
        let (model, serial) = (identity.model.trim(), identity.serial.trim());
        let attached = nsids.iter().map(|&nsid| {
            let driver = controller.namespace(nsid)?;
            let words = format!("namespace {nsid} of {model} ({serial}) at {function}");
            Ok(Attached { node: Node::new(format!("nvme-{function}-{nsid}"), driver), words })
        });
        attached.collect()
    }
}
