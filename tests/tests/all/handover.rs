//! Handing an image from one engine to QEMU's tools, to another engine, and back.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use oxblock_drivers::DRIVERS;
use oxblock_engine::graph::{Access, ChildEvent, Graph, NodeId, Permissions, Root};
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Core, Engine, ErrorKind, Node, Op, Options};
use oxblock_mem::ArenaOptions;

const LEN: u64 = 1 << 20;
const BLOCK: usize = 4096;

/// A user that stops when it is told to.
#[derive(Default)]
struct Guest(Mutex<Vec<ChildEvent>>);

impl Root for Guest {
    fn describe(&self) -> String {
        "the guest".into()
    }

    fn child_event(&self, event: &ChildEvent) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
    }

    fn gives_way(&self) -> bool {
        true
    }
}

/// A user that does not.
struct Job;

impl Root for Job {
    fn describe(&self) -> String {
        "a job".into()
    }

    fn child_event(&self, _: &ChildEvent) {}
}

/// As a guest's disk.
const WRITES: Access = Access {
    asked: Permissions::CONSISTENT_READ.union(Permissions::WRITE),
    shared: Permissions::CONSISTENT_READ.union(Permissions::WRITE_UNCHANGED),
};

fn engine() -> Engine {
    let options = Options { arena: ArenaOptions::new(8 << 20), ..Options::default() };
    Engine::with_cores(2, options).expect("an engine")
}

type Nodes = Graph<Arc<Node>>;

async fn open(core: &Core, path: &Path) -> (Nodes, NodeId) {
    let json = format!(
        r#"{{"driver":"raw","node-name":"disk","file":{{"driver":"file","filename":"{}"}}}}"#,
        path.display()
    );
    let mut graph = Graph::new();
    let options = NodeOptions::from_json(&json).expect("options");
    let id = graph.open(core, &DRIVERS, options).await.expect("a node");
    (graph, id)
}

/// Runs qemu-io on the disk: whether it went well, and what it said. `None` where there is none.
fn qemu_io(path: &Path, command: &str) -> Option<(bool, String)> {
    let run = Command::new("qemu-io").args(["-f", "raw", "-c", command]).arg(path).output();
    let Ok(output) = run else {
        eprintln!("skipped: qemu-io is not installed (apt-get install qemu-utils)");
        return None;
    };
    let words = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&words).into_owned()))
}

fn block(core: &Core, byte: u8) -> oxblock_mem::Buf {
    let mut buf = core.arena().alloc(BLOCK, BLOCK).expect("memory");
    buf.fill(0, BLOCK, byte);
    buf
}

async fn byte_at(core: &Core, node: &Arc<Node>, offset: u64) -> u8 {
    let channel = core.open(node).await.expect("a channel");
    let (data, result) = channel.read(offset, block(core, 0)).await;
    result.expect("a read");
    (0..=u8::MAX).find(|byte| data.view(0, BLOCK).is_all(*byte)).expect("a block of one byte")
}

#[test]
fn an_image_goes_from_engine_to_qemu_to_engine_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    fs::write(&path, vec![0; LEN as usize]).expect("a disk");
    if qemu_io(&path, "read 0 4k").is_none() {
        return;
    }
    let (first, second) = (engine(), engine());
    let here = path.clone();
    let ran = first.run(0, move |core| async move {
        let (path, guest) = (here, Arc::new(Guest::default()));
        let (mut graph, id) = open(&core, &path).await;
        graph.attach_root(id, guest.clone(), WRITES).expect("its user");
        let disk = graph.node(id).expect("the node").body.clone();
        let channel = core.open(&disk).await.expect("a channel");
        channel.write(0, block(&core, 1)).await.1.expect("a write");
        let (good, words) = qemu_io(&path, "write -P 2 4k 4k").expect("qemu-io");
        assert!(!good && words.contains("Failed to get \"write\" lock"), "{words}");

        graph.inactivate(&core, id).await.expect("nobody else needs it");
        graph.inactivate(&core, id).await.expect("twice is no harm");
        let refused = channel.write(0, block(&core, 9)).await.1.expect_err("handed over");
        assert_eq!(refused.kind(), ErrorKind::Denied);
        assert!(refused.to_string().contains("inactive"), "{refused}");
        let (good, words) = qemu_io(&path, "write -P 2 4k 4k").expect("qemu-io");
        assert!(good, "{words}");
        let (good, words) = qemu_io(&path, "truncate 2M").expect("qemu-io");
        assert!(good, "{words}");

        // Another engine has it now, and this one does not get it back.
        let there = path.clone();
        let taken = second.run(0, move |core| async move {
            let (mut graph, id) = open(&core, &there).await;
            let user = graph.attach_root(id, Arc::new(Job), WRITES).expect("its user");
            let disk = graph.node(id).expect("the node").body.clone();
            assert_eq!(byte_at(&core, &disk, 4096).await, 2);
            let channel = core.open(&disk).await.expect("a channel");
            channel.write(LEN, block(&core, 3)).await.1.expect("a write");
            drop(channel);
            let error = graph.inactivate(&core, id).await.expect_err("a job writes to it");
            assert!(error.to_string().contains("Operation not permitted"), "{error}");
            (graph, id, user)
        });
        let (mut theirs, their_id, user) = taken.expect("the other engine");
        let error = graph.activate(&core, id).await.expect_err("the other has it");
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains("Is another process using the image"), "{error}");
        channel.write(0, block(&core, 9)).await.1.expect_err("still handed over");
        let closed = second.run(0, move |core| async move {
            theirs.close(&core, their_id).await.expect_err("it has a user");
            theirs.detach(user).expect("the user goes");
            theirs.close(&core, their_id).await
        });
        closed.expect("the other engine").expect("a good end");
        second.shutdown().expect("a good end");

        graph.activate(&core, id).await.expect("it is free");
        assert_eq!(disk.limits().length, 2 * LEN, "what qemu-io made of it");
        for (offset, byte) in [(0, 1), (4096, 2), (LEN, 3)] {
            assert_eq!(byte_at(&core, &disk, offset).await, byte);
        }
        channel.write(0, block(&core, 4)).await.1.expect("a write");
        let (good, words) = qemu_io(&path, "write -P 2 4k 4k").expect("qemu-io");
        assert!(!good && words.contains("Failed to get \"write\" lock"), "{words}");
        let told = guest.0.lock().expect("no panic").clone();
        assert_eq!(told, [ChildEvent::Inactivated, ChildEvent::Activated]);
    });
    ran.expect("the core runs");
    first.shutdown().expect("a good end");
}

/// What was acknowledged before is in the file when the image is handed over, and nothing goes
/// there afterwards.
#[test]
fn writers_on_two_cores_meet_a_hand_over_all_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    fs::write(&path, vec![0; LEN as usize]).expect("a disk");
    let engine = engine();
    let ran = engine.run(0, move |core| async move {
        let (mut graph, id) = open(&core, &path).await;
        graph.attach_root(id, Arc::new(Guest::default()), WRITES).expect("its user");
        let disk = graph.node(id).expect("the node").body.clone();
        // Each core writes numbers that grow, and says which was the last to be acknowledged.
        let acknowledged: Arc<[AtomicU32; 2]> = Arc::default();
        let write = |core: Core, disk: Arc<Node>, last: Arc<[AtomicU32; 2]>| async move {
            let channel = core.open(&disk).await.expect("a channel");
            let (me, mut refused) = (core.id(), 0);
            for number in 1u32.. {
                let mut data = block(&core, 0);
                data.write_at(0, &number.to_le_bytes());
                let done = channel.run(Op::write(me as u64 * 4096, data)).await;
                match done.result {
                    Ok(()) => last[me].store(number, Ordering::SeqCst),
                    Err(fault) => {
                        assert_eq!(fault.kind, ErrorKind::Denied, "{fault}");
                        refused += 1;
                        core.sleep(Duration::from_micros(100)).await;
                    }
                }
                if number > 1000 && refused > 20 {
                    break;
                }
            }
        };
        let here = core.spawn(write(core.clone(), disk.clone(), acknowledged.clone()));
        let there = {
            let last = acknowledged.clone();
            core.remote(1).expect("a core").spawn(move |core| write(core, disk, last))
        };
        let numbers = || {
            let bytes = fs::read(&path).expect("the disk");
            [0, 4096].map(|at| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four")))
        };
        while !here.is_finished() {
            core.sleep(Duration::from_millis(1)).await;
            graph.inactivate(&core, id).await.expect("handed over");
            let before = numbers();
            let told = [0, 1].map(|at| acknowledged[at].load(Ordering::SeqCst));
            assert!(told[0] <= before[0] && told[1] <= before[1], "{told:?} of {before:?}");
            core.sleep(Duration::from_millis(1)).await;
            assert_eq!(numbers(), before, "nothing is written while others have it");
            graph.activate(&core, id).await.expect("taken back");
        }
        here.await.expect("this core");
        graph.inactivate(&core, id).await.expect("handed over");
        there.await.expect("the other");
    });
    ran.expect("the core runs");
    engine.shutdown().expect("a good end");
}

#[test]
fn what_others_stand_on_is_not_handed_over_and_closing_leaves_nothing_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    fs::write(&path, vec![0; LEN as usize]).expect("a disk");
    let engine = engine();
    let ran = engine.run(0, move |core| async move {
        let (mut graph, id) = open(&core, &path).await;
        let edge = graph.child(id, "file").expect("its file");
        let file = graph.edge(edge).expect("its file").child;
        let error = graph.inactivate(&core, file).await.expect_err("the disk is active");
        assert!(error.to_string().contains("Node has active parent node"), "{error}");
        let disk = graph.node(id).expect("the node").body.clone();
        let channel = core.open(&disk).await.expect("a channel");
        channel.write(0, block(&core, 5)).await.1.expect("a write");
        graph.inactivate(&core, id).await.expect("nobody writes");
        let error = graph.attach_root(id, Arc::new(Job), WRITES).expect_err("it is inactive");
        assert!(error.to_string().contains("is inactive"), "{error}");
        graph.activate(&core, id).await.expect("nobody has it");
        graph.close(&core, id).await.expect("nobody needs it");
        assert_eq!(graph.nodes().len(), 0);
        channel.write(0, block(&core, 6)).await.1.expect_err("it is closed");
        drop((channel, disk));
        let descriptors = fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
        let open = descriptors.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path));
        assert_eq!(open.count(), 0);
    });
    ran.expect("the core runs");
    engine.shutdown().expect("a good end");
}
