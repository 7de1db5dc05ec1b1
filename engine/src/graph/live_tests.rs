//! Random graphs that are built and changed at random under verified I/O on two cores.
//!
//! The rules are those of the oracle of the book's own tests. What is read, and where writes go, is
//! found by walking the book's edges over a model of each device and overlay. An operation that
//! meets a change may go the way of before or of after, and no other.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use super::tables::Parent;
use super::tests::oracle;
use super::{Access, ChildEvent, ChildRole, EdgeId, Graph, NewChild, NodeId, Permissions, Root};
use crate::tests::leaf::{Awkward, AwkwardOptions};
use crate::tests::live::{BLOCK, Layer, Plain, add_leaf, add_over, body};
use crate::tests::routes::Random;
use crate::tests::{buf, options, patience};
use crate::{Core, Error, ErrorKind, Node, Simulation};

/// Blocks of each node, the half of which is each guest's.
const BLOCKS: u64 = 8;
const GUESTS: u64 = 2;
const CHANGES: usize = 30;
const MAX_NODES: usize = 12;
const PAUSE: Duration = Duration::from_micros(1);

/// Who uses a node from outside.
struct Guest(u64);

impl Root for Guest {
    fn describe(&self) -> String {
        format!("guest {}", self.0)
    }

    fn child_event(&self, _: &ChildEvent) {}
}

/// The book at one time, as the walk needs it.
#[derive(Clone)]
struct Snapshot {
    /// The children of each node, by what it calls them.
    children: BTreeMap<NodeId, BTreeMap<&'static str, NodeId>>,
    /// The node of each guest.
    seats: Vec<NodeId>,
}

/// What is in a node itself.
enum Contents {
    Plain,
    /// What each block was written with last, and what the device says.
    Device(Vec<u8>, Arc<dyn Fn(u64) -> u8 + Send + Sync>),
    /// Which blocks were written.
    Layer(Vec<bool>),
}

#[derive(Default)]
struct Model {
    versions: Vec<Snapshot>,
    is_changing: bool,
    contents: BTreeMap<NodeId, Contents>,
    value: u8,
}

impl Model {
    /// What a block reads as.
    fn read(&self, book: &Snapshot, node: NodeId, block: u64) -> u8 {
        let child = |name| book.children[&node].get(name).copied();
        let next = match &self.contents[&node] {
            Contents::Device(bytes, _) => return bytes[block as usize],
            Contents::Layer(written) if !written[block as usize] => child("backing"),
            Contents::Layer(_) | Contents::Plain => child("file"),
        };
        next.map_or(0, |next| self.read(book, next, block))
    }

    /// The nodes that a write passes, down to the device that it comes to.
    fn way(&self, book: &Snapshot, node: NodeId) -> Vec<NodeId> {
        let mut way = vec![node];
        while let Some(&next) = book.children[&way[way.len() - 1]].get("file") {
            way.push(next);
        }
        way
    }

    /// A block was written, by way of one of these books: looks where it is.
    fn note_write(&mut self, books: &[Snapshot], guest: usize, block: u64, value: u8) {
        let came = |model: &Self, way: &[NodeId]| match &model.contents[&way[way.len() - 1]] {
            Contents::Device(_, peek) => peek(block * BLOCK) == value,
            _ => false,
        };
        let ways: Vec<_> = books.iter().map(|book| self.way(book, book.seats[guest])).collect();
        let way = ways.iter().find(|way| came(self, way));
        let way = way.unwrap_or_else(|| panic!("block {block} went nowhere")).clone();
        for node in &way {
            match self.contents.get_mut(node) {
                Some(Contents::Device(bytes, _)) => bytes[block as usize] = value,
                Some(Contents::Layer(written)) => written[block as usize] = true,
                _ => {}
            }
        }
    }
}

struct World {
    model: Mutex<Model>,
    /// Guests that have a channel: a node that is opened later is not the one that took its place.
    arrived: AtomicU64,
    may_write: [AtomicBool; GUESTS as usize],
    is_over: AtomicBool,
}

impl World {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().expect("the model")
    }

    /// The books that an operation that began at `from` may have gone by.
    async fn books_since(&self, core: &Core, from: usize) -> Vec<Snapshot> {
        while self.model().is_changing {
            core.yield_now().await;
        }
        self.model().versions[from..].to_vec()
    }
}

async fn be_guest(core: Core, world: Arc<World>, node: Arc<Node>, guest: u64, mut random: Random) {
    let channel = core.open(&node).await.expect("a channel");
    world.arrived.fetch_add(1, Ordering::SeqCst);
    while !world.is_over.load(Ordering::SeqCst) {
        let block = guest + GUESTS * random.below(BLOCKS / GUESTS);
        let from = world.model().versions.len() - 1;
        if world.may_write[guest as usize].load(Ordering::SeqCst) && random.below(2) == 0 {
            // No two writes that are there at once have the same value.
            let value = {
                let mut model = world.model();
                model.value = model.value.checked_add(1).unwrap_or(1);
                model.value
            };
            let data = buf(&core, &[value; BLOCK as usize]);
            channel.write(block * BLOCK, data).await.1.expect("a write");
            let books = world.books_since(&core, from).await;
            world.model().note_write(&books, guest as usize, block, value);
        } else {
            let data = buf(&core, &[0xee; BLOCK as usize]);
            let (data, result) = channel.read(block * BLOCK, data).await;
            result.expect("a read");
            let books = world.books_since(&core, from).await;
            let model = world.model();
            let read = |book: &Snapshot| model.read(book, book.seats[guest as usize], block);
            let expected: Vec<u8> = books.iter().map(read).collect();
            assert!(
                expected.iter().any(|value| data.whole().is_all(*value)),
                "block {block} of guest {guest} is none of {expected:?}"
            );
        }
        // What is zeroes needs no turn.
        core.yield_now().await;
    }
}

/// Who builds and changes the graph.
struct Builder {
    core: Core,
    world: Arc<World>,
    graph: Graph<Arc<Node>>,
    random: Random,
    seats: Vec<EdgeId>,
}

impl Builder {
    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.random.below(from.len() as u64) as usize])
    }

    fn snapshot(&self) -> Snapshot {
        let named = |id: &NodeId| {
            let edges = self.graph.children(*id).map(|edge| (edge.name, edge.child));
            (*id, edges.collect())
        };
        let seat = |edge: &EdgeId| self.graph.edge(*edge).expect("a seat").child;
        Snapshot {
            children: self.graph.nodes().iter().map(named).collect(),
            seats: self.seats.iter().map(seat).collect(),
        }
    }

    fn note(&mut self, id: NodeId, contents: Contents) {
        self.world.model().contents.insert(id, contents);
    }

    fn add_device(&mut self, name: &str) -> NodeId {
        let mut options = AwkwardOptions::new(BLOCKS * BLOCK, BLOCK as u32);
        options.delay = self.random.below(8) as usize;
        options.open_turns = self.random.below(3) as usize;
        let driver = Awkward::new(options);
        let peek = Arc::new(driver.peek());
        let id = add_leaf(&mut self.graph, name, driver);
        self.note(id, Contents::Device(vec![0; BLOCKS as usize], peek));
        id
    }

    fn add_layer(&mut self, name: &str) -> NodeId {
        let file = self.add_device(&format!("{name}f"));
        let layer = Layer::new(BLOCKS);
        let id = add_over(&mut self.graph, name, layer, ChildRole::DATA, file);
        self.note(id, Contents::Layer(vec![false; BLOCKS as usize]));
        id
    }

    fn random_access(&mut self) -> Access {
        let mut bits = || Permissions::from_bits_truncate(self.random.below(16) as u8);
        let shared = bits() | bits() | bits();
        Access { asked: bits() & bits() | Permissions::CONSISTENT_READ, shared }
    }

    /// One change at random. Whether it was made.
    async fn change(&mut self, step: usize) -> Result<(), Error> {
        let nodes = self.graph.nodes();
        let edges: Vec<EdgeId> = self.graph.tables().edges.keys().copied().collect();
        let name = format!("n{step}");
        let (Some(a), Some(b)) = (self.pick(&nodes), self.pick(&nodes)) else { return Ok(()) };
        let edge = self.pick(&edges);
        let (core, few) = (self.core.clone(), nodes.len() < MAX_NODES);
        match (self.random.below(12), edge) {
            (0, _) if few => drop(self.add_layer(&name)),
            (1, _) if few => {
                let roles = [ChildRole::FILTERED, ChildRole::DATA, ChildRole::IMAGE];
                let role = roles[self.random.below(3) as usize];
                // Before it is there, nobody knows it: a book without it says the same.
                let children = vec![body(&self.graph, a)];
                let format = Arc::new(Plain);
                let node = Node::with_body(&*name, crate::Body::Over(format, children), false);
                let entry = super::NodeEntry::new(node, super::default_access);
                let file = NewChild { name: "file", role: role | ChildRole::PRIMARY, node: a };
                let id = self.graph.add(entry, &[file])?;
                self.note(id, Contents::Plain);
            }
            (2, _) => self.graph.live(&core).append(a, b).await?,
            (3, _) => {
                let to = (self.random.below(3) > 0).then_some(b);
                self.graph.live(&core).set_backing(a, to).await?;
            }
            (4 | 5, Some(edge)) => self.graph.live(&core).replace_child(edge, a).await?,
            (6 | 7, _) => self.graph.live(&core).replace_node(a, b).await?,
            (8, _) => self.graph.live(&core).remove_filter(a).await?,
            (9, Some(edge)) => self.graph.live(&core).detach(edge).await?,
            (10, _) => {
                let spare = NewChild { name: "spare", role: ChildRole::DATA, node: b };
                self.graph.live(&core).attach(a, spare).await.map(|_| ())?;
            }
            _ => {
                let guest = self.random.below(GUESTS) as usize;
                let access = self.random_access();
                let writes = access.asked.contains(Permissions::WRITE);
                let may_write = &self.world.may_write[guest];
                let before = may_write.swap(false, Ordering::SeqCst);
                let result = self.graph.set_root_access(self.seats[guest], access);
                may_write.store(if result.is_ok() { writes } else { before }, Ordering::SeqCst);
                result?;
            }
        }
        Ok(())
    }

    async fn build(mut self) -> (usize, usize) {
        while self.world.arrived.load(Ordering::SeqCst) < GUESTS {
            self.core.sleep(PAUSE).await;
        }
        let (mut made, mut refused) = (0, 0);
        for step in 0..CHANGES {
            self.core.sleep(Duration::from_nanos(self.random.below(3_000))).await;
            self.world.model().is_changing = true;
            let before = (self.snapshot().children, self.snapshot().seats);
            let result = self.change(step).await;
            let after = self.snapshot();
            match result {
                Ok(()) => made += 1,
                Err(error) => {
                    refused += 1;
                    let kinds = [
                        ErrorKind::Denied,
                        ErrorKind::Invalid,
                        ErrorKind::Busy,
                        ErrorKind::NotSupported,
                        ErrorKind::NotFound,
                    ];
                    assert!(kinds.contains(&error.kind()), "{error}");
                    assert!(before == (after.children.clone(), after.seats.clone()), "{error}");
                }
            }
            self.check();
            let mut model = self.world.model();
            model.versions.push(after);
            model.is_changing = false;
        }
        self.world.is_over.store(true, Ordering::SeqCst);
        (made, refused)
    }

    /// The rules hold, and nodes stand on what the book says.
    fn check(&self) {
        let tables = self.graph.tables();
        let found = oracle(tables).unwrap_or_else(|broken| panic!("{broken}"));
        for (id, edge) in &tables.edges {
            assert_eq!(edge.access, found[id]);
            if let Parent::Node(parent) = edge.parent {
                let (parent, child) =
                    (&tables.nodes[&parent].body, &tables.nodes[&edge.child].body);
                assert!(parent.children().iter().any(|known| Arc::ptr_eq(known, child)));
                assert!(child.parents().iter().any(|known| Arc::ptr_eq(known, parent)));
            }
        }
    }
}

fn run(seed: u64) -> (usize, usize) {
    let mut random = Random::new(seed);
    let mut simulation = Simulation::new(2, seed, options(4)).expect("a simulation");
    let test = move |core: Core| async move {
        let model = Mutex::new(Model::default());
        let (may_write, is_over) = (Default::default(), AtomicBool::new(false));
        let world = Arc::new(World { model, arrived: AtomicU64::new(0), may_write, is_over });
        let (graph, seats) = (Graph::new(), Vec::new());
        let fork = random.fork();
        let mut builder =
            Builder { core: core.clone(), world: world.clone(), graph, random: fork, seats };
        let mut guests = Vec::new();
        for guest in 0..GUESTS {
            let node = builder.add_layer(&format!("disk{guest}"));
            let root = Arc::new(Guest(guest));
            let edge = builder.graph.attach_root(node, root, Access::NONE).expect("a seat");
            builder.seats.push(edge);
            guests.push((guest, body(&builder.graph, node), random.fork()));
        }
        world.model().versions.push(builder.snapshot());
        let tasks: Vec<_> = guests
            .into_iter()
            .map(|(guest, node, random)| {
                let (world, remote) = (world.clone(), core.remote(guest as usize % core.count()));
                let work = move |core: Core| be_guest(core, world, node, guest, random);
                remote.expect("a core").spawn(work)
            })
            .collect();
        let mut too_long = pin!(patience(&core));
        let mut all = pin!(async move {
            let counts = builder.build().await;
            for task in tasks {
                task.await.expect("a guest");
            }
            counts
        });
        let outcome = std::future::poll_fn(|context| match all.as_mut().poll(context) {
            Poll::Ready(counts) => Poll::Ready(Some(counts)),
            Poll::Pending => too_long.as_mut().poll(context).map(|()| None),
        });
        outcome.await.expect("something waits for ever")
    };
    let counts = simulation.run(0, test).expect("no deadlock");
    simulation.shutdown().expect("a shutdown");
    counts
}

#[test]
fn random_graphs_change_under_io_and_keep_the_rules() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let replayed = number("OXBLOCK_SEED");
    let count = number("OXBLOCK_SCHEDULES").unwrap_or(if replayed.is_some() { 1 } else { 300 });
    let first = replayed.unwrap_or(1);
    let (mut made, mut refused) = (0, 0);
    for seed in first..first + count {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(counts) => (made, refused) = (made + counts.0, refused + counts.1),
            Err(panic) => {
                eprintln!("OXBLOCK_SEED={seed} runs this again");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(
        made > 5 * count as usize && refused > count as usize,
        "{made} made, {refused} refused"
    );
}
