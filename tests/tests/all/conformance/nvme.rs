//! The suite over the NVMe driver and the software controller.

use std::any::Any;
use std::sync::Arc;

use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_drivers::nvme::{Controller, NvmeOptions};
use oxblock_engine::{Core, Engine, LocalFuture, Node, Options};
use oxblock_nvmet::{Controller as Target, ControllerOptions, NamespaceOptions};

use super::{Contents, Fixture, Subject, conformance};

/// A controller in software, on an engine of its own: the host's slot table may be of one slot.
struct TargetEngine {
    engine: Option<Engine>,
    target: Arc<Target>,
}

impl TargetEngine {
    fn start(options: ControllerOptions, block_size: u32, blocks: u64) -> Self {
        let memory = MemoryOptions { size: blocks * u64::from(block_size), block_size };
        let disk = Node::new("memory0", memory::open(memory).expect("a memory disk"));
        let namespaces = vec![NamespaceOptions::new(disk, block_size)];
        let options = ControllerOptions { namespaces, ..options };
        let engine = Engine::with_cores(1, Options::default()).expect("an engine");
        let target = engine.run(0, |core| async move { Target::start(&core, options).await });
        let target = target.expect("its core").expect("a controller in software");
        Self { engine: Some(engine), target }
    }
}

impl Drop for TargetEngine {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.shutdown().expect("an orderly shutdown of the target");
        }
    }
}

/// A namespace of `blocks` blocks on a controller of its own.
async fn attach(core: &Core, block_size: u32, blocks: u64, target: ControllerOptions) -> Fixture {
    let target = TargetEngine::start(target, block_size, blocks);
    let function = target.target.function();
    let controller = Controller::attach(core, function, NvmeOptions::default()).await;
    let controller = controller.expect("attach");
    let driver = controller.namespace(1).expect("a namespace");
    let hold: Vec<Box<dyn Any + Send>> = vec![Box::new(controller), Box::new(target)];
    Fixture { node: Node::new("nvme0n1", driver), hold }
}

fn with_everything() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async move { attach(&core, 512, 10_253, ControllerOptions::default()).await })
    }
    Subject { contents: Contents::Kept, open }
}

/// PRPs and plain doorbells, small queues and transfers.
fn with_little() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async move {
            let target = ControllerOptions {
                sgl: false,
                shadow_doorbells: false,
                max_queue_entries: 4,
                mdts: 2,
                dstrd: 3,
                ..ControllerOptions::default()
            };
            attach(&core, 4096, 1031, target).await
        })
    }
    Subject { contents: Contents::Kept, open }
}

/// The smallest queues that there are: one command at a time.
fn with_queues_of_two() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async move {
            let target = ControllerOptions { max_queue_entries: 2, ..ControllerOptions::default() };
            attach(&core, 512, 2053, target).await
        })
    }
    Subject { contents: Contents::Kept, open }
}

conformance!(nvme_everything, with_everything());
conformance!(nvme_little, with_little());
conformance!(nvme_queues_of_two, with_queues_of_two());
