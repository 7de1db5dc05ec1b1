use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::tables::Tables;
use super::*;
use crate::ErrorKind;

const READ: Permissions = Permissions::CONSISTENT_READ;
const WRITE: Permissions = Permissions::WRITE;
const ALL: Permissions = Permissions::all();

/// A user from outside that remembers what it was told.
struct Device(&'static str, Mutex<Vec<ChildEvent>>);

impl Device {
    fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self(name, Mutex::default()))
    }
}

impl Root for Device {
    fn describe(&self) -> String {
        format!("block device '{}'", self.0)
    }

    fn child_event(&self, event: &ChildEvent) {
        self.1.lock().unwrap().push(event.clone());
    }
}

impl NodeBody for () {
    fn check_access(&self, _: Access) -> Result<(), crate::Error> {
        Ok(())
    }

    fn set_access(&self, _: Access) {}
}

fn entry(name: &str) -> NodeEntry<()> {
    NodeEntry {
        name: name.into(),
        driver: "test",
        read_only: false,
        force_share: false,
        implicit: false,
        inactive: false,
        is_filter: false,
        has_ragged_end: false,
        child_rule: default_access,
        owned: true,
        body: (),
        children: Vec::new(),
        parents: Vec::new(),
    }
}

fn filter(name: &str) -> NodeEntry<()> {
    NodeEntry { is_filter: true, ..entry(name) }
}

fn child(name: &'static str, role: ChildRole, node: NodeId) -> NewChild {
    NewChild { name, role, node }
}

fn image(node: NodeId) -> NewChild {
    child("file", ChildRole::IMAGE, node)
}

fn filtered(node: NodeId) -> NewChild {
    child("file", ChildRole::FILTERED | ChildRole::PRIMARY, node)
}

fn access(asked: Permissions, shared: Permissions) -> Access {
    Access { asked, shared }
}

#[test]
fn two_formats_do_not_share_an_image_and_the_error_names_both() {
    let mut graph = Graph::new();
    let file = graph.add(entry("file0"), &[]).unwrap();
    graph.add(entry("fmt0"), &[image(file)]).unwrap();
    let error = graph.add(entry("fmt1"), &[image(file)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_eq!(
        error.to_string(),
        "Permission conflict on node 'file0': permissions 'write, resize' are both required by \
         node 'fmt0' (uses node 'file0' as 'file' child) and unshared by node 'fmt1' (uses node \
         'file0' as 'file' child)."
    );
    assert_eq!(graph.find("fmt1"), None);
    // Two that only read get along.
    let mut graph = Graph::new();
    let file = graph.add(entry("file0"), &[]).unwrap();
    for name in ["fmt0", "fmt1"] {
        graph.add(NodeEntry { read_only: true, ..entry(name) }, &[image(file)]).unwrap();
    }
    // Writes are then nobody's.
    let error = graph.set_read_only(graph.find("fmt0").unwrap(), false).unwrap_err();
    assert!(error.to_string().contains("required by node 'fmt0'"), "{error}");
    assert!(graph.node(graph.find("fmt0").unwrap()).unwrap().read_only);
}

#[test]
fn what_users_ask_goes_down_through_filters() {
    let mut graph = Graph::new();
    let file = graph.add(entry("file"), &[]).unwrap();
    let top = graph.add(filter("throttle"), &[filtered(file)]).unwrap();
    let disk = graph.attach_root(top, Device::new("d0"), access(READ | WRITE, READ)).unwrap();
    assert_eq!(graph.cumulative(file), access(READ | WRITE, READ));
    let error = graph.attach_root(file, Device::new("d1"), access(WRITE, ALL)).unwrap_err();
    let words = "permissions 'write' are both required by block device 'd1' (uses node 'file' as \
                 'root' child) and unshared by node 'throttle' (uses node 'file' as 'file' child).";
    assert!(error.to_string().ends_with(words), "{error}");
    graph.set_root_access(disk, access(READ, ALL)).unwrap();
    graph.attach_root(file, Device::new("d1"), access(WRITE, ALL)).unwrap();
    let error = graph.set_root_access(disk, access(READ, READ)).unwrap_err();
    assert!(error.to_string().contains("unshared by node 'throttle'"), "{error}");
    assert_eq!(graph.edge(disk).unwrap().access, access(READ, ALL));
    // A node opened to be shared is, whatever the users of its parents say.
    let mut graph = Graph::new();
    let shared = NodeEntry { force_share: true, read_only: true, ..entry("file") };
    let file = graph.add(shared, &[]).unwrap();
    let top = graph.add(filter("f"), &[filtered(file)]).unwrap();
    graph.attach_root(top, Device::new("d0"), access(READ, Permissions::empty())).unwrap();
    assert_eq!(graph.cumulative(file), access(READ, ALL));
}

#[test]
fn a_node_without_writes_has_no_writers() {
    let mut graph = Graph::new();
    let file = graph.add(NodeEntry { read_only: true, ..entry("file") }, &[]).unwrap();
    let error = graph.attach_root(file, Device::new("d0"), access(WRITE, ALL)).unwrap_err();
    assert_eq!(error.to_string(), "Block node is read-only: 'file'");
    let file = graph.add(entry("file2"), &[]).unwrap();
    graph.attach_root(file, Device::new("d0"), access(WRITE, ALL)).unwrap();
    assert!(graph.set_read_only(file, true).is_err());
    let ragged = graph.add(NodeEntry { has_ragged_end: true, ..entry("ragged") }, &[]).unwrap();
    let error = graph.attach_root(ragged, Device::new("d0"), access(WRITE, ALL)).unwrap_err();
    assert!(error.to_string().contains("cannot get 'write' permission without 'resize'"));
    let both = access(WRITE | Permissions::RESIZE, ALL);
    graph.attach_root(ragged, Device::new("d0"), both).unwrap();
}

#[test]
fn names_and_cycles_are_checked() {
    let mut graph = Graph::new();
    for (name, words) in [
        ("", "Invalid node-name: ''"),
        ("9a", "Invalid node-name: '9a'"),
        ("#x", "Invalid node-name: '#x'"),
        ("a/b", "Invalid node-name: 'a/b'"),
        ("abcdefghijklmnopqrstuvwxyz012345", "Node name too long"),
    ] {
        let error = graph.add(entry(name), &[]).unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}");
    }
    let bottom = graph.add(entry("bottom"), &[]).unwrap();
    assert_eq!(
        graph.add(entry("bottom"), &[]).unwrap_err().to_string(),
        "Duplicate nodes with node-name='bottom'"
    );
    let top = graph.add(entry("top"), &[filtered(bottom)]).unwrap();
    let error = graph.attach(bottom, child("backing", ChildRole::COW, top)).unwrap_err();
    let words = "Making 'top' a backing child of 'bottom' would create a cycle";
    assert_eq!(error.to_string(), words);
    let edge = graph.child(top, "file").unwrap();
    assert!(graph.replace_child(edge, top).is_err());
    let name = graph.make_up_name();
    graph.add(entry(&name), &[]).unwrap();
    assert_ne!(graph.make_up_name(), name);
}

#[test]
fn a_filter_goes_in_between_and_out_again() {
    let mut graph = Graph::new();
    let file = graph.add(entry("file"), &[]).unwrap();
    let format = graph.add(entry("format"), &[image(file)]).unwrap();
    let disk = graph.attach_root(format, Device::new("d0"), access(READ | WRITE, READ)).unwrap();
    let mut job = NodeEntry { owned: false, implicit: true, ..filter("job") };
    job.child_rule = |ask| Access { asked: ask.parent.asked, shared: ALL };
    let unused = graph.add(NodeEntry { owned: true, ..job }, &[filtered(format)]).unwrap();
    graph.replace_node(format, unused).unwrap();
    assert_eq!(graph.edge(disk).unwrap().child, unused);
    assert_eq!(graph.skip_implicit(unused), format);
    assert!(graph.can_replace(unused, format) && !graph.can_replace(format, unused));
    assert!(!graph.can_replace(format, file));
    let frozen = graph.child(unused, "file").unwrap();
    graph.freeze(frozen).unwrap();
    let error = graph.detach(frozen).unwrap_err();
    let words = "Cannot change frozen 'file' link of node 'job' from 'format' to '(none)'";
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Busy, words));
    graph.thaw(frozen);
    graph.replace_child(disk, format).unwrap();
    graph.release(unused).unwrap();
    assert_eq!(graph.find("job"), None);
    let error = graph.release(format).unwrap_err();
    let words = "Block device format is in use by block device 'd0' as 'root' child";
    assert_eq!(error.to_string(), words);
    graph.detach(disk).unwrap();
    graph.release(format).unwrap();
    assert!(graph.find("file").is_some(), "it is somebody's own");
}

#[test]
fn blocked_operations_say_why() {
    let mut graph = Graph::new();
    let node = graph.add(entry("disk"), &[]).unwrap();
    let reason = "block device is in use by block job: mirror";
    graph.block(node, &[OpType::Resize, OpType::Eject], reason).unwrap();
    graph.block(node, &[OpType::Resize], "other").unwrap();
    let error = graph.check_op(node, OpType::Resize).unwrap_err();
    assert_eq!(error.to_string(), format!("Node 'disk' is busy: {reason}"));
    graph.check_op(node, OpType::Stream).unwrap();
    graph.unblock(node, &[OpType::Resize, OpType::Eject], reason);
    graph.check_op(node, OpType::Eject).unwrap();
    assert!(graph.check_op(node, OpType::Resize).unwrap_err().to_string().ends_with("other"));
}

#[test]
fn parents_are_told_once_and_as_far_as_it_concerns_them() {
    let mut graph = Graph::new();
    let file = graph.add(entry("file"), &[]).unwrap();
    let read_only = |name| NodeEntry { read_only: true, ..entry(name) };
    let left = graph.add(read_only("left"), &[filtered(file)]).unwrap();
    let right = graph.add(read_only("right"), &[filtered(file)]).unwrap();
    let both = [child("a", ChildRole::FILTERED, left), child("b", ChildRole::DATA, right)];
    let top = graph.add(read_only("top"), &both).unwrap();
    let (hears, spared) = (Device::new("hears"), Device::new("spared"));
    graph.attach_root(left, hears.clone(), Access::NONE).unwrap();
    graph.attach_root(top, spared.clone(), Access::NONE).unwrap();
    let told = graph.tell_parents(file, &ChildEvent::Resized, |_, parent, _| parent != top);
    assert_eq!(told.len(), 5, "{told:?}");
    assert_eq!(*hears.1.lock().unwrap(), [ChildEvent::Resized]);
    assert!(spared.1.lock().unwrap().is_empty());
}

// --- random graphs ---

/// What is wrong with a graph, found without the code under test: each rule by itself, over
/// paths instead of in order.
pub fn oracle<B>(tables: &Tables<B>) -> Result<BTreeMap<EdgeId, Access>, String> {
    fn of_edge<B>(tables: &Tables<B>, id: EdgeId, depth: usize) -> Result<Access, String> {
        let edge = &tables.edges[&id];
        let Parent::Node(parent) = edge.parent else { return Ok(edge.access) };
        if depth > tables.nodes.len() {
            return Err("a cycle".into());
        }
        let node = &tables.nodes[&parent];
        let mut above = Access::NONE;
        for edge in &node.parents {
            above = above.and(of_edge(tables, *edge, depth + 1)?);
        }
        let writable = !node.read_only;
        let mut access = (node.child_rule)(ChildAsk { role: edge.role, parent: above, writable });
        if tables.nodes[&edge.child].force_share {
            access.shared = ALL;
        }
        Ok(access)
    }
    let mut all = BTreeMap::new();
    for &id in tables.edges.keys() {
        all.insert(id, of_edge(tables, id, 0)?);
    }
    for node in tables.nodes.values() {
        let users: Vec<Access> = node.parents.iter().map(|edge| all[edge]).collect();
        for (at, one) in users.iter().enumerate() {
            for (other_at, other) in users.iter().enumerate() {
                if at != other_at && !other.shared.contains(one.asked) {
                    return Err(format!("users of {} conflict", node.name));
                }
            }
            if node.read_only && one.asked.intersects(Permissions::ANY_WRITE) {
                return Err(format!("{} is written", node.name));
            }
        }
    }
    Ok(all)
}

fn check_links(tables: &Tables<()>) {
    for (id, node) in &tables.nodes {
        assert!(node.owned || !node.parents.is_empty(), "{} is left over", node.name);
        assert!(node.parents.iter().all(|edge| tables.edges[edge].child == *id));
        let is_parent =
            |edge: &EdgeId| matches!(tables.edges[edge].parent, Parent::Node(of) if of == *id);
        assert!(node.children.iter().all(is_parent));
    }
    let links: usize = tables.nodes.values().map(|node| node.parents.len()).sum();
    assert_eq!(links, tables.edges.len());
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // xorshift64 (Marsaglia).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) as usize % end
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())]) }
    }

    fn permissions(&mut self) -> Permissions {
        Permissions::from_bits_truncate(self.below(16) as u8)
    }

    fn role(&mut self) -> ChildRole {
        let roles = [
            ChildRole::IMAGE,
            ChildRole::DATA,
            ChildRole::FILTERED,
            ChildRole::COW,
            ChildRole::METADATA,
        ];
        roles[self.below(roles.len())]
    }
}

/// One random change. Gives it as a function, to be tried with the rules and without.
fn random_change(random: &mut Random, tables: &Tables<()>, step: usize) -> Change {
    const NAMES: [&str; 3] = ["file", "backing", "data"];
    let nodes: Vec<NodeId> = tables.nodes.keys().copied().collect();
    let edges: Vec<EdgeId> = tables.edges.keys().copied().collect();
    let mut new = entry(&format!("n{step}"));
    new.read_only = random.below(3) == 0;
    new.force_share = new.read_only && random.below(3) == 0;
    let (role, name) = (random.role(), NAMES[random.below(3)]);
    let asked = access(random.permissions(), random.permissions() | random.permissions());
    let (Some(a), Some(b)) = (random.pick(&nodes), random.pick(&nodes)) else {
        return Box::new(move |tables| tables.insert_node(new.clone()).map(|_| ()));
    };
    let edge = random.pick(&edges);
    match (random.below(9), edge) {
        (0 | 1, _) => Box::new(move |tables| {
            let id = tables.insert_node(new.clone())?;
            tables.insert_edge(super::book::new_edge(id, child(name, role, a))).map(|_| ())
        }),
        (2, _) => Box::new(move |tables| {
            tables.insert_edge(super::book::new_edge(a, child(name, role, b))).map(|_| ())
        }),
        (3 | 4, _) => Box::new(move |tables| {
            let parent = Parent::Root(Device::new("d"));
            let role = ChildRole::FILTERED;
            let edge = Edge { parent, child: a, name: "root", role, access: asked, frozen: 0 };
            tables.insert_edge(edge).map(|_| ())
        }),
        (5, Some(edge)) => Box::new(move |tables| tables.remove_edge(edge)),
        (6, Some(edge)) => Box::new(move |tables| {
            let from = tables.edge(edge)?.child;
            tables.redirect(edge, a)?;
            tables.drop_unused(from);
            Ok(())
        }),
        (7, _) => Box::new(move |tables| {
            let node = tables.nodes.get_mut(&a).expect("it was picked");
            node.owned = false;
            tables.drop_unused(a);
            Ok(())
        }),
        (_, _) => Box::new(move |tables| {
            let node = tables.nodes.get_mut(&a).expect("it was picked");
            node.read_only = !node.read_only;
            Ok(())
        }),
    }
}

type Change = Box<dyn Fn(&mut Tables<()>) -> Result<(), crate::Error>>;

#[test]
fn random_graphs_keep_the_rules_and_refuse_only_what_breaks_them() {
    let env = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = env("OXBLOCK_SEED").unwrap_or(1);
    let (mut kept, mut refused) = (0, 0);
    for seed in first..first + env("OXBLOCK_FUZZ_SEEDS").unwrap_or(60) {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut graph: Graph<()> = Graph::new();
        for step in 0..60 {
            let change = random_change(&mut random, graph.tables(), step);
            let mut without_rules = graph.tables().clone();
            let possible = change(&mut without_rules);
            let before = format!("{:?}", oracle(graph.tables()));
            match graph.change(|tables| change(tables)) {
                Ok(()) => {
                    kept += 1;
                    let found =
                        oracle(graph.tables()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                    for (id, edge) in &graph.tables().edges {
                        assert_eq!(edge.access, found[id], "seed {seed}");
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert_eq!(before, format!("{:?}", oracle(graph.tables())), "seed {seed}");
                    let broken = possible.is_err() || oracle(&without_rules).is_err();
                    assert!(broken, "seed {seed}: refused without need: {error}");
                }
            }
            check_links(graph.tables());
        }
    }
    assert!(kept > 500 && refused > 200, "{kept} kept, {refused} refused");
}
