//! The software NVMe controller as a target: served by one core, driven from another.

use std::sync::Arc;

use oxblock_drivers::nvme::{Controller as Host, NvmeOptions};
use oxblock_engine::{Engine, Error, Node};
use oxblock_nvmet::{Controller, ControllerOptions, NamespaceOptions};

use crate::tuning::NvmeTuning;

/// The smallest logical block of a namespace, bytes.
const SMALLEST_BLOCK: u32 = 512;
/// Entries of a queue pair that every controller of ours has, and the most that the driver takes.
const QUEUE_ENTRIES: (u32, u32) = (256, 1024);

/// Where the two ends run, and how they are sized.
#[derive(Clone, Copy, Debug)]
pub struct SoftOptions {
    /// The core that keeps the driver's admin queue.
    pub home: usize,
    /// The core that serves the controller.
    pub server: usize,
    /// Cores that do I/O.
    pub jobs: usize,
    /// I/Os in flight on each.
    pub depth: u32,
    /// How the driver is to work.
    pub tuning: NvmeTuning,
}

/// A controller in software, and the driver's view of it.
pub struct Soft {
    /// Its namespace.
    pub node: Arc<Node>,
    /// Dropping the handle ends the controller.
    _controller: Arc<Controller>,
}

impl Soft {
    /// Starts a controller over `below` and attaches the driver to it. The engine's shutdown ends
    /// both in good order.
    ///
    /// Errors: what the controller or the driver says.
    pub fn start(engine: &Engine, below: Arc<Node>, options: SoftOptions) -> Result<Soft, Error> {
        let SoftOptions { home, server, jobs, depth, tuning } = options;
        let queues = jobs.clamp(16, 2047) as u16;
        let controller = engine.run(server, move |core| async move {
            let block_size = below.limits().block_size.max(SMALLEST_BLOCK);
            let read_only = below.limits().read_only;
            let namespace =
                NamespaceOptions { read_only, ..NamespaceOptions::new(below, block_size) };
            let options = ControllerOptions {
                namespaces: vec![namespace],
                max_io_queues: queues,
                vectors: queues + 1,
                ..ControllerOptions::default()
            };
            Controller::start(&core, options).await
        })??;
        let function = controller.function();
        let entries = (depth + 1).clamp(QUEUE_ENTRIES.0, QUEUE_ENTRIES.1) as u16;
        let driver = engine.run(home, move |core| async move {
            let options = NvmeOptions { queue_entries: entries, ..NvmeOptions::default() };
            Host::attach(&core, function, tuning.apply(options)).await?.namespace(1)
        })??;
        Ok(Soft { node: Node::new("soft", driver), _controller: controller })
    }
}
