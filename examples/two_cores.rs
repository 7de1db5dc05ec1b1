//! One node, two cores: each core has its own queue, nothing is locked, and only control
//! crosses from one to the other.
//! Run it with: cargo run --release --example two_cores

use std::sync::Arc;

use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_engine::{Core, Engine, Error, Node, Options};
use oxblock_mem::IoVector;

const BLOCK: u64 = 4096;
const BLOCKS_EACH: u64 = 20_000;

fn main() -> Result<(), Error> {
    let engine = Engine::with_cores(2, Options::default())?;
    let size = 2 * BLOCKS_EACH * BLOCK;
    let node = Node::new("disk0", memory::open(MemoryOptions { size, ..Default::default() })?);

    // Each core fills its half, and asks the other core to check what it wrote.
    let halves = [0, 1].map(|half| {
        let node = node.clone();
        let remote = engine.remote(half).expect("one of two cores");
        remote.spawn(move |core| async move {
            let mark = 1 + half as u8;
            fill(&core, &node, half as u64, mark).await?;
            core.call(1 - half, move |other| async move {
                check(&other, &node, half as u64, mark).await
            })
            .await?
        })
    });
    for (half, handle) in halves.into_iter().enumerate() {
        let blocks = handle.wait()??;
        println!("core {half} wrote {blocks} blocks, core {} found them", 1 - half);
    }
    engine.shutdown()
}

async fn fill(core: &Core, node: &Arc<Node>, half: u64, mark: u8) -> Result<(), Error> {
    let channel = core.open(node).await?;
    let mut data = IoVector::from(core.arena().alloc(BLOCK as usize, 4096)?);
    for block in half * BLOCKS_EACH..(half + 1) * BLOCKS_EACH {
        data.fill(0, BLOCK as usize, mark);
        let (back, result) = channel.write(block * BLOCK, data).await;
        result?;
        data = back;
    }
    channel.flush().await
}

async fn check(core: &Core, node: &Arc<Node>, half: u64, mark: u8) -> Result<u64, Error> {
    let channel = core.open(node).await?;
    let mut data = IoVector::from(core.arena().alloc(BLOCK as usize, 4096)?);
    for block in half * BLOCKS_EACH..(half + 1) * BLOCKS_EACH {
        let (back, result) = channel.read(block * BLOCK, data).await;
        result?;
        assert!(back.whole().is_all(mark), "block {block} is not as the other core wrote it");
        data = back;
    }
    Ok(BLOCKS_EACH)
}
