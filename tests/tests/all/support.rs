//! What tests of the NVMe driver under faults share: a controller, and blocks with versions.

use std::sync::Arc;

use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_engine::{Core, Node};
use oxblock_nvmet::fault::{self, Faults};
use oxblock_nvmet::{Controller, ControllerOptions, NamespaceOptions};

/// What a buffer holds that is not the device's.
pub const GUARD: u8 = 0xee;

/// A number that the environment tells.
pub fn told(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A controller on the last core of the engine, with so many blocks for each core.
pub async fn target(
    core: &Core,
    queues: u16,
    blocks: u64,
    faults: &Arc<Faults>,
) -> Arc<Controller> {
    let size = blocks * 512 * core.count() as u64;
    let disk = memory::open(MemoryOptions { size, block_size: 512 }).expect("a disk");
    let namespaces = vec![NamespaceOptions::new(Node::new("below", disk), 512)];
    let options =
        ControllerOptions { namespaces, max_io_queues: queues, ..ControllerOptions::default() };
    let faults = faults.clone();
    let start = async move |core: Core| fault::start(&core, options, &faults).await;
    let server = core.count() - 1;
    core.call(server, start).await.and_then(|result| result).expect("a controller")
}

/// What a block holds; of version 0, what a disk holds that was never written.
pub fn contents(block: u64, version: u64) -> [u8; 512] {
    let word = (block << 40 | version).to_le_bytes();
    std::array::from_fn(|at| if version == 0 { 0 } else { word[at % 8] ^ (at / 8) as u8 })
}
