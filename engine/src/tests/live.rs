//! Changes of the graph while I/O goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::leaf::{Awkward, AwkwardOptions};
use super::{buf, options, pattern};
use crate::graph::{
    Access, ChildRole, Graph, NewChild, NodeEntry, NodeId, Permissions, Root, default_access,
};
use crate::{
    Body, Channel, Core, Error, ErrorKind, Extent, Format, Intent, Limits, LocalFuture, Node,
    Simulation,
};

pub const BLOCK: u64 = 512;
const LEN: u64 = 64 * BLOCK;

/// Shows its first child as it is, and may have others that it makes nothing of.
pub struct Plain;

impl Format for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn limits(&self, children: &[Arc<Limits>]) -> Limits {
        children[0].as_ref().clone()
    }

    fn map(&self, offset: u64, len: u64, _: Intent) -> Extent {
        Extent::Data { child: 0, offset, len }
    }

    fn flushes(&self) -> &[usize] {
        &[0]
    }

    fn with_children(&self, names: &[&'static str]) -> Result<Arc<dyn Format>, Error> {
        match names {
            ["file", ..] => Ok(Arc::new(Plain)),
            _ => Err(Error::new(ErrorKind::NotSupported, "not without its file")),
        }
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// An overlay: what was written is in its file, the rest in its backing file, if it has one.
pub struct Layer {
    written: Arc<Vec<AtomicU64>>,
    backing: Option<usize>,
}

impl Layer {
    pub fn new(blocks: u64) -> Self {
        let words = blocks.div_ceil(64);
        let written = (0..words).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        Self { written: Arc::new(written), backing: None }
    }
}

impl Format for Layer {
    fn name(&self) -> &'static str {
        "layer"
    }

    fn limits(&self, children: &[Arc<Limits>]) -> Limits {
        children[0].as_ref().clone()
    }

    fn map(&self, offset: u64, _: u64, intent: Intent) -> Extent {
        let block = offset / BLOCK;
        let (word, bit) = (&self.written[block as usize / 64], 1 << (block % 64));
        if intent != Intent::Read {
            word.fetch_or(bit, Ordering::SeqCst);
        } else if word.load(Ordering::SeqCst) & bit == 0 {
            return match self.backing {
                Some(child) => Extent::Below { child, len: BLOCK },
                None => Extent::Zero { len: BLOCK },
            };
        }
        Extent::Data { child: 0, offset, len: BLOCK }
    }

    fn flushes(&self) -> &[usize] {
        &[0]
    }

    fn with_children(&self, names: &[&'static str]) -> Result<Arc<dyn Format>, Error> {
        if names.first() != Some(&"file") {
            return Err(Error::new(ErrorKind::NotSupported, "not without its file"));
        }
        let backing = names.iter().position(|name| *name == "backing");
        Ok(Arc::new(Layer { written: self.written.clone(), backing }))
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// A graph's node without children.
pub fn add_leaf(graph: &mut Graph<Arc<Node>>, name: &str, driver: Awkward) -> NodeId {
    let node = Node::new(name, Box::new(driver));
    graph.add(NodeEntry::new(node, default_access), &[]).expect("a leaf")
}

/// A node over a `file`.
pub fn add_over(
    graph: &mut Graph<Arc<Node>>,
    name: &str,
    format: impl Format + 'static,
    role: ChildRole,
    file: NodeId,
) -> NodeId {
    let children = vec![body(graph, file)];
    let node = Node::with_body(name, Body::Over(Arc::new(format), children), false);
    let entry = NodeEntry::new(node, default_access);
    let file = NewChild { name: "file", role: role | ChildRole::PRIMARY, node: file };
    graph.add(entry, &[file]).expect("a node")
}

pub fn body(graph: &Graph<Arc<Node>>, id: NodeId) -> Arc<Node> {
    graph.node(id).expect("a node").body.clone()
}

fn disk() -> Awkward {
    Awkward::new(AwkwardOptions::new(LEN, BLOCK as u32))
}

async fn write(channel: &Channel, block: u64, value: u8) {
    let data = buf(channel.core(), &[value; BLOCK as usize]);
    channel.write(block * BLOCK, data).await.1.expect("a write");
}

async fn read(channel: &Channel, block: u64) -> u8 {
    let data = buf(channel.core(), &[0xee; BLOCK as usize]);
    let (data, result) = channel.read(block * BLOCK, data).await;
    result.expect("a read");
    let mut byte = [0];
    data.view(0, 1).copy_to(&mut byte);
    assert!(data.whole().is_all(byte[0]));
    byte[0]
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Core) -> F) {
    let mut simulation = Simulation::new(2, 1, options(8)).expect("a simulation");
    simulation.run(0, test).expect("the test ran");
    simulation.shutdown().expect("a shutdown");
}

#[test]
fn an_overlay_is_appended_beneath_the_users_of_a_node() {
    run(async |core| {
        let mut graph = Graph::new();
        let (driver, over) = (disk(), disk());
        let (opened, overs) = (driver.queues(), over.queues());
        let base = add_leaf(&mut graph, "base", driver);
        let file = add_leaf(&mut graph, "overlay-file", over);
        let overlay = add_over(&mut graph, "overlay", Layer::new(64), ChildRole::DATA, file);
        let channel = core.open(&body(&graph, base)).await.expect("a channel");
        let job = core.open(&body(&graph, base)).await.expect("a channel");
        job.stay_at_node();
        write(&channel, 3, 1).await;
        write(&channel, 4, 1).await;
        graph.live(&core).append(overlay, base).await.expect("appended");
        assert_eq!(&**channel.node().name(), "overlay");
        assert_eq!(&**job.node().name(), "base");
        write(&channel, 4, 2).await;
        assert_eq!([read(&channel, 3).await, read(&channel, 4).await], [1, 2]);
        assert_eq!([read(&job, 3).await, read(&job, 4).await], [1, 1]);
        // The other core had none of the nodes open, and opened nothing.
        assert_eq!([&opened, &overs].map(|count| count.load(Ordering::SeqCst)), [1, 1]);
        // It may be taken away again; what was written since is gone with it.
        let error = graph.live(&core).append(overlay, base).await.unwrap_err();
        assert!(error.to_string().contains("'overlay' already has a backing image"), "{error}");
        graph.live(&core).set_backing(overlay, None).await.expect("no backing");
        assert_eq!([read(&channel, 3).await, read(&channel, 4).await], [0, 2]);
    });
}

/// Who asks for something and leaves something.
struct Device(&'static str);

impl Root for Device {
    fn describe(&self) -> String {
        self.0.into()
    }

    fn child_event(&self, _: &crate::graph::ChildEvent) {}
}

#[test]
fn a_filter_goes_in_between_and_out_again_under_io_on_two_cores() {
    run(async |core| {
        let mut graph = Graph::new();
        let file = add_leaf(&mut graph, "file", disk());
        let top = add_over(&mut graph, "top", Plain, ChildRole::DATA, file);
        let access = Access { asked: Permissions::WRITE, shared: Permissions::all() };
        graph.attach_root(top, Arc::new(Device("a guest")), access).expect("a user");
        let (node, stop) = (body(&graph, top), Arc::new(AtomicBool::new(false)));
        let workers: Vec<_> = (0..2)
            .map(|id| {
                let (node, stop) = (node.clone(), stop.clone());
                core.remote(id).expect("a core").spawn(move |core| async move {
                    let channel = core.open(&node).await.expect("a channel");
                    let mut rounds = 0u64;
                    while !stop.load(Ordering::SeqCst) {
                        let block = id as u64 * 32 + rounds % 32;
                        write(&channel, block, rounds as u8).await;
                        assert_eq!(read(&channel, block).await, rounds as u8);
                        rounds += 1;
                    }
                    (channel.node().name().to_string(), rounds)
                })
            })
            .collect();
        for round in 0..20 {
            let filter = add_over(&mut graph, "filter", Plain, ChildRole::FILTERED, file);
            graph.live(&core).replace_node(file, filter).await.expect("put in");
            let names = |nodes: &[Arc<Node>]| -> Vec<_> {
                nodes.iter().map(|node| node.name().to_string()).collect()
            };
            assert_eq!(names(&node.subtree()), ["top", "filter", "file"]);
            // Over the top as well, every other time.
            let over = (round % 2 == 0)
                .then(|| add_over(&mut graph, "over", Plain, ChildRole::FILTERED, top));
            if let Some(over) = over {
                graph.live(&core).replace_node(top, over).await.expect("put over");
                core.sleep(std::time::Duration::from_micros(5)).await;
                graph.live(&core).remove_filter(over).await.expect("taken away");
            }
            graph.live(&core).remove_filter(filter).await.expect("taken out");
            assert_eq!(names(&node.subtree()), ["top", "file"]);
            assert_eq!(graph.find("filter"), None);
        }
        stop.store(true, Ordering::SeqCst);
        for worker in workers {
            let (name, rounds) = worker.await.expect("a worker");
            assert!(name == "top" && rounds > 10, "{rounds}");
        }
    });
}

#[test]
fn a_change_that_cannot_be_made_on_one_core_is_made_on_none() {
    run(async |core| {
        let mut graph = Graph::new();
        let driver = disk();
        let twin = driver.twin();
        let is_out_of_queues = twin.out_of_queues();
        let file = add_leaf(&mut graph, "file", driver);
        let other = add_leaf(&mut graph, "other", twin);
        let coarse = Awkward::new(AwkwardOptions::new(LEN, 4096));
        let coarse = add_leaf(&mut graph, "coarse", coarse);
        let top = add_over(&mut graph, "top", Plain, ChildRole::DATA, file);
        let node = body(&graph, top);
        let channel = core.open(&node).await.expect("a channel");
        let there = node.clone();
        let on_other_core = |block| {
            let node = there.clone();
            core.call(1, move |core| async move {
                let channel = core.open(&node).await.expect("a channel");
                read(&channel, block).await
            })
        };
        write(&channel, 1, 7).await;
        assert_eq!(on_other_core(1).await.expect("a read"), 7);
        is_out_of_queues.store(true, Ordering::SeqCst);
        let edge = graph.child(top, "file").expect("an edge");
        let error = graph.live(&core).replace_child(edge, other).await.unwrap_err();
        assert!(error.to_string().starts_with("other: "), "{error}");
        assert_eq!(graph.edge(edge).expect("an edge").child, file);
        assert!(Arc::ptr_eq(&node.children()[0], &body(&graph, file)));
        assert!(!core.is_drained(&node));
        let error = graph.live(&core).replace_child(edge, coarse).await.unwrap_err();
        assert!(error.to_string().contains("blocks of 512 bytes"), "{error}");
        assert_eq!([read(&channel, 1).await, on_other_core(1).await.expect("a read")], [7, 7]);
        is_out_of_queues.store(false, Ordering::SeqCst);
        graph.live(&core).replace_child(edge, other).await.expect("replaced");
        assert_eq!([read(&channel, 1).await, on_other_core(1).await.expect("a read")], [7, 7]);
        // Children that nothing is made of come and go.
        let spare = NewChild { name: "spare", role: ChildRole::DATA, node: coarse };
        let edge = graph.live(&core).attach(top, spare).await.expect("attached");
        assert_eq!(node.children().len(), 2);
        let file = graph.child(top, "file").expect("an edge");
        let error = graph.live(&core).detach(file).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        graph.live(&core).detach(edge).await.expect("detached");
        // A device has none, whatever it is asked.
        let spare = NewChild { name: "spare", role: ChildRole::DATA, node: coarse };
        let error = graph.live(&core).attach(other, spare).await.unwrap_err();
        assert!(error.to_string().contains("driver 'awkward' has no children"), "{error}");
        assert_eq!((node.children().len(), read(&channel, 1).await), (1, 7));
        assert_eq!(core.0.io.borrow().leaf_of(&body(&graph, coarse)), None, "it was closed");
    });
}

#[test]
fn limits_follow_upward_from_a_device_and_from_a_change() {
    run(async |core| {
        let mut graph = Graph::new();
        let mut events = core.events();
        let driver = disk();
        let change = driver.change();
        let file = add_leaf(&mut graph, "file", driver);
        let top = add_over(&mut graph, "top", Plain, ChildRole::DATA, file);
        let over = add_over(&mut graph, "over", Plain, ChildRole::DATA, top);
        let long = Awkward::new(AwkwardOptions::new(4 * LEN, BLOCK as u32));
        let long = add_leaf(&mut graph, "long", long);
        let channel = core.open(&body(&graph, over)).await.expect("a channel");
        let end = async |at: u64| {
            let data = buf(&core, &pattern(512, 1));
            channel.write(at - 512, data).await.1.map_err(|error| error.kind())
        };
        assert_eq!(end(2 * LEN).await, Err(ErrorKind::Invalid));
        change(Limits::new(2 * LEN, BLOCK as u32));
        core.refresh(&body(&graph, file)).await.expect("refreshed");
        assert_eq!((end(2 * LEN).await, channel.limits().length), (Ok(()), 2 * LEN));
        let edge = graph.child(top, "file").expect("an edge");
        graph.live(&core).replace_child(edge, long).await.expect("replaced");
        assert_eq!((end(4 * LEN).await, channel.limits().length), (Ok(()), 4 * LEN));
        let heard: Vec<_> = std::iter::from_fn(|| events.try_next())
            .map(|event| format!("{}: {}", event.subject, event.text))
            .collect();
        let grew = |name, from, to| format!("{name}: grew from {from} to {to} bytes");
        let expected: Vec<_> = ["file", "top", "over"].map(|n| grew(n, LEN, 2 * LEN)).into();
        assert_eq!(heard[..3], expected);
        assert_eq!(heard[3..], ["top", "over"].map(|n| grew(n, 2 * LEN, 4 * LEN)));
    });
}
