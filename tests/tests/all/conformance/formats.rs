//! The suite over formats.

use std::sync::Arc;

use oxblock_drivers::cow::{self, CowOptions};
use oxblock_drivers::{DRIVERS, file, memory, null};
use oxblock_engine::graph::Graph;
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Core, LocalFuture, Node};
use oxblock_mem::IoVector;

use super::{Contents, Fixture, Subject, conformance};

/// Writes what the suite expects there to be at first.
async fn fill(core: &Core, node: &Arc<Node>) {
    let channel = core.open(node).await.expect("a channel");
    let bytes = Contents::first(node.limits().length as usize);
    for (at, part) in bytes.chunks(1 << 20).enumerate() {
        let mut data = IoVector::from(core.arena().alloc(part.len(), 4096).expect("memory"));
        data.write_at(0, part);
        channel.write(at as u64 * (1 << 20), data).await.1.expect("a write");
    }
}

async fn memory_below(core: &Core, size: u64, block_size: u32) -> Arc<Node> {
    let driver = memory::open(memory::MemoryOptions { size, block_size }).expect("a memory disk");
    let node = Node::new("below", driver);
    fill(core, &node).await;
    node
}

fn cow_over(core: &Core, below: &Arc<Node>, cluster_size: u64) -> Arc<Node> {
    let options = CowOptions { cluster_size, ..CowOptions::default() };
    let body = cow::open(core, "cow0", Some(below), options).expect("an overlay");
    Node::with_body("cow0", body, false)
}

fn cow_over_memory() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async move {
            let below = memory_below(&core, 10_253 * 512, 512).await;
            Fixture::new(cow_over(&core, &below, 64 << 10))
        })
    }
    Subject { contents: Contents::Filled, open }
}

fn cow_of_small_clusters() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async move {
            let below = memory_below(&core, 4999 * 512, 512).await;
            Fixture::new(cow_over(&core, &below, 2048))
        })
    }
    Subject { contents: Contents::Filled, open }
}

fn cow_over_file() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async move {
            let directory = tempfile::tempdir().expect("a directory");
            let mut options = file::FileOptions::new(directory.path().join("disk"));
            options.size = Some((5 << 20) + 12_345);
            options.queue_depth = 3;
            let below = Node::new("below", file::open(options).expect("a file"));
            fill(&core, &below).await;
            let node = cow_over(&core, &below, 64 << 10);
            Fixture { node, hold: vec![Box::new(directory)] }
        })
    }
    Subject { contents: Contents::Filled, open }
}

fn cow_over_late_zeroes() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async move {
            let size = 517 * 4096;
            let options =
                null::NullOptions { size, block_size: 4096, latency_ns: 3000, read_zeroes: true };
            let below = Node::new("below", null::open(options).expect("a null device"));
            Fixture::new(cow_over(&core, &below, 16 << 10))
        })
    }
    Subject { contents: Contents::Kept, open }
}

/// An overlay over an overlay, of other clusters, over windows.
fn chain() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async move {
            let options = NodeOptions::from_json(
                r#"{"driver":"raw","offset":4096,"size":3145728,"file":{
                    "driver":"cow","size":4194304,"cluster-size":"32k","backing":{
                        "driver":"raw","file":{
                            "driver":"cow","cluster-size":"8k","backing":{
                                "driver":"memory","size":2097152}}}}}"#,
            );
            let mut graph = Graph::new();
            let opened = graph.open(&core, &DRIVERS, options.expect("JSON")).await;
            let node = graph.node(opened.expect("a node")).expect("a node").body.clone();
            Fixture::new(node)
        })
    }
    Subject { contents: Contents::Kept, open }
}

conformance!(cow_memory, cow_over_memory());
conformance!(cow_small_clusters, cow_of_small_clusters());
conformance!(cow_file, cow_over_file());
conformance!(cow_late_zeroes, cow_over_late_zeroes());
conformance!(cow_chain, chain());
