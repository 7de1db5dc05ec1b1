//! Reopening nodes over real files: under I/O on two cores, and beside QEMU.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use oxblock_drivers::DRIVERS;
use oxblock_engine::graph::{Access, ChildEvent, EdgeId, Graph, Permissions, Root};
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Core, Engine, Error, ErrorKind, Node, Op, Options};
use oxblock_mem::ArenaOptions;
use oxblock_tests::exercise::Exercise;
use serde_json::Value;

const LEN: u64 = 8 << 20;
const READS: Permissions = Permissions::CONSISTENT_READ;
const WRITES: Permissions = READS.union(Permissions::WRITE);

struct User;

impl Root for User {
    fn describe(&self) -> String {
        "a user".into()
    }

    fn child_event(&self, _: &ChildEvent) {}
}

type Nodes = Graph<Arc<Node>>;

fn options(json: &str) -> NodeOptions {
    NodeOptions::from_json(json).expect("options")
}

fn access(asked: Permissions) -> Access {
    Access { asked, shared: Permissions::all() }
}

/// Opens a node with a user that does this.
async fn open(core: &Core, json: &str, asked: Permissions) -> (Nodes, Arc<Node>, EdgeId) {
    let mut graph = Graph::new();
    let id = graph.open(core, &DRIVERS, options(json)).await.expect("a node");
    let user = graph.attach_root(id, Arc::new(User), access(asked)).expect("its user");
    let node = graph.node(id).expect("the node").body.clone();
    (graph, node, user)
}

async fn reopen(core: &Core, graph: &mut Nodes, json: &str) -> Result<(), Error> {
    graph.reopen(core, vec![options(json)]).await
}

fn engine() -> Engine {
    let options = Options { arena: ArenaOptions::new(32 << 20), ..Options::default() };
    Engine::with_cores(2, options).expect("an engine")
}

fn disk(folder: &Path, name: &str, byte: u8) -> String {
    let path = folder.join(name);
    fs::write(&path, vec![byte; LEN as usize]).expect("a disk");
    path.display().to_string()
}

/// Writes and reads back over and over on a core, blocks of its own, until told to stop.
async fn busy(core: Core, node: Arc<Node>, stop: Arc<AtomicBool>, rounds: Arc<AtomicU32>) {
    let channel = core.open(&node).await.expect("a channel");
    let first = core.id() as u64 * 512;
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        Exercise { first, round, ..Exercise::of(512) }.run(&core, &channel).await;
        round += 1;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn under_verified_io_on_two_cores_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path(), "disk", 0);
    let engine = engine();
    let ran = engine.run(0, move |core| async move {
        let node = |discard: &str| {
            format!(
                r#"{{"driver":"raw","node-name":"top","discard":"{discard}",
                    "file":{{"driver":"file","node-name":"file0","filename":"{path}",
                    "discard":"{discard}"}}}}"#
            )
        };
        let (mut graph, top, _user) = open(&core, &node("unmap"), WRITES).await;
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let here = core.spawn(busy(core.clone(), top.clone(), stop.clone(), rounds.clone()));
        let there = {
            let (top, stop, rounds) = (top.clone(), stop.clone(), rounds.clone());
            core.remote(1).expect("a core").spawn(move |core| busy(core, top, stop, rounds))
        };
        for turn in 0..100 {
            let discard = ["ignore", "unmap"][turn % 2];
            reopen(&core, &mut graph, &node(discard)).await.expect("a reopen");
            assert_eq!(top.limits().max_discard > 0, discard == "unmap");
            let read_only = node(discard).replacen("{", r#"{"read-only":true,"#, 1);
            let error = reopen(&core, &mut graph, &read_only).await.expect_err("a writer is there");
            assert!(error.to_string().ends_with("cannot support read-write users"), "{error}");
        }
        // Each core has met several.
        while rounds.load(Ordering::Relaxed) < 8 {
            reopen(&core, &mut graph, &node("ignore")).await.expect("a reopen");
            core.yield_now().await;
        }
        stop.store(true, Ordering::Relaxed);
        here.await.expect("this core");
        there.await.expect("the other");
    });
    ran.expect("the core runs");
    engine.shutdown().expect("a good end");
}

/// How the descriptors of a file are open, by /proc.
fn open_for_writing(path: &str) -> usize {
    let entries = fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
    let of_file = entries.filter(|entry| {
        fs::read_link(entry.path()).is_ok_and(|to| to.display().to_string() == path)
    });
    let writable = of_file.filter(|entry| {
        let info = format!("/proc/self/fdinfo/{}", entry.file_name().display());
        let text = fs::read_to_string(info).unwrap_or_default();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
        flags.is_some_and(|flags| flags & 3 != 0)
    });
    writable.count()
}

#[test]
fn a_node_turns_read_only_and_back_and_its_file_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = disk(folder.path(), "disk", 7);
    let engine = engine();
    let ran = engine.run(0, move |core| async move {
        let node = |read_only: bool| {
            format!(
                r#"{{"driver":"raw","node-name":"top","read-only":{read_only},
                    "file":{{"driver":"file","filename":"{path}"}}}}"#
            )
        };
        let (mut graph, top, user) = open(&core, &node(false), WRITES).await;
        let channel = core.open(&top).await.expect("a channel");
        let buf = || core.arena().alloc(4096, 4096).expect("memory");
        assert_eq!(open_for_writing(&path), 1);
        for _ in 0..3 {
            graph.set_root_access(user, access(READS)).expect("it writes no more");
            reopen(&core, &mut graph, &node(true)).await.expect("read-only");
            assert_eq!(open_for_writing(&path), 0);
            let refused = channel.run(Op::write(0, buf())).await.result.expect_err("no writes");
            assert_eq!(refused.kind, ErrorKind::ReadOnly);
            channel.read(0, buf()).await.1.expect("reads go on");
            let error = graph.set_root_access(user, access(WRITES)).expect_err("no writers");
            assert!(error.to_string().contains("Block node is read-only"), "{error}");
            // The file inherits it, and is named by nobody.
            let omitted = node(false).replace(r#""read-only":false,"#, "");
            reopen(&core, &mut graph, &omitted).await.expect("writable, which is the default");
            assert_eq!(open_for_writing(&path), 1);
            graph.set_root_access(user, access(WRITES)).expect("a writer");
            channel.write(0, buf()).await.1.expect("a write");
        }
    });
    ran.expect("the core runs");
    engine.shutdown().expect("a good end");
}

#[test]
fn a_child_is_replaced_under_reads_on_two_cores() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, other) = (disk(folder.path(), "one", 1), disk(folder.path(), "other", 2));
    let engine = engine();
    let ran = engine.run(0, move |core| async move {
        let file = |name: &str, path: &str| {
            format!(r#"{{"driver":"file","node-name":"{name}","filename":"{path}"}}"#)
        };
        let mut graph = Graph::new();
        for (name, path) in [("one", &one), ("other", &other)] {
            graph.open(&core, &DRIVERS, options(&file(name, path))).await.expect("a file");
        }
        let over = |file: &str, offset: u64| {
            format!(r#"{{"driver":"raw","node-name":"top","file":"{file}","offset":{offset}}}"#)
        };
        let id = graph.open(&core, &DRIVERS, options(&over("one", 0))).await.expect("a node");
        let top = graph.node(id).expect("the node").body.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let read = |core: Core, top: Arc<Node>, stop: Arc<AtomicBool>| async move {
            let channel = core.open(&top).await.expect("a channel");
            let mut seen = [0; 3];
            while !stop.load(Ordering::Relaxed) || seen.iter().skip(1).any(|count| *count == 0) {
                let buf = core.arena().alloc(64 << 10, 4096).expect("memory");
                let (data, result) = channel.read(0, buf).await;
                result.expect("a read");
                let byte = [1u8, 2].into_iter().find(|byte| data.view(0, 64 << 10).is_all(*byte));
                seen[usize::from(byte.expect("all of it of one file"))] += 1;
            }
            seen
        };
        let here = core.spawn(read(core.clone(), top.clone(), stop.clone()));
        let there = {
            let (top, stop) = (top.clone(), stop.clone());
            core.remote(1).expect("a core").spawn(move |core| read(core, top, stop))
        };
        for turn in 0..200u64 {
            let name = ["other", "one"][turn as usize % 2];
            reopen(&core, &mut graph, &over(name, turn % 5 * 512)).await.expect("a reopen");
            assert_eq!(top.limits().length, LEN - turn % 5 * 512);
            core.sleep(std::time::Duration::from_micros(200)).await;
        }
        stop.store(true, Ordering::Relaxed);
        // Whoever has met one file only meets the other now.
        while !here.is_finished() {
            for name in ["other", "one"] {
                reopen(&core, &mut graph, &over(name, 0)).await.expect("a reopen");
                core.sleep(std::time::Duration::from_micros(200)).await;
            }
        }
        here.await.expect("this core");
        drop(there);
        let error = reopen(&core, &mut graph, &over("top", 0)).await.expect_err("a cycle");
        assert!(error.to_string().contains("would create a cycle"), "{error}");
    });
    ran.expect("the core runs");
    engine.shutdown().expect("a good end");
}

#[test]
fn of_several_nodes_all_are_reopened_or_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, other) = (disk(folder.path(), "one", 1), disk(folder.path(), "other", 2));
    let engine = engine();
    let ran = engine.run(0, move |core| async move {
        let file = |name: &str, path: &str, read_only: bool| {
            options(&format!(
                r#"{{"driver":"file","node-name":"{name}","filename":"{path}",
                    "read-only":{read_only}}}"#
            ))
        };
        let mut graph = Graph::new();
        let mut nodes = Vec::new();
        for (name, path) in [("one", &one), ("other", &other)] {
            let id = graph.open(&core, &DRIVERS, file(name, path, false)).await.expect("a file");
            nodes.push(graph.node(id).expect("the node").body.clone());
        }
        let read_only = |nodes: &[Arc<Node>]| -> Vec<bool> {
            nodes.iter().map(|node| node.limits().read_only).collect()
        };
        let both = |read_only| vec![file("one", &one, read_only), file("other", &other, read_only)];
        // What cannot be prepared: another file has its name.
        fs::rename(&other, format!("{other}.old")).expect("a rename");
        fs::write(&other, [0; 512]).expect("another file");
        let error = graph.reopen(&core, both(true)).await.expect_err("not the same file");
        assert!(error.to_string().contains("another file has its name"), "{error}");
        assert_eq!(read_only(&nodes), [false, false]);
        assert_eq!((open_for_writing(&one), open_for_writing(&other)), (1, 0));
        fs::rename(format!("{other}.old"), &other).expect("a rename");
        // What may not be.
        let wrong = vec![file("one", &one, true), file("other", &one, true)];
        graph.reopen(&core, wrong).await.expect_err("another name");
        assert_eq!(read_only(&nodes), [false, false]);
        graph.reopen(&core, both(true)).await.expect("both");
        assert_eq!(read_only(&nodes), [true, true]);
        graph.reopen(&core, both(false)).await.expect("both");
        assert_eq!(read_only(&nodes), [false, false]);
    });
    ran.expect("the core runs");
    engine.shutdown().expect("a good end");
}

/// What QEMU says to these commands, one after the other: nothing, or its words.
fn theirs(commands: &[(&str, String)]) -> Option<Vec<Option<String>>> {
    let mut daemon = Command::new("qemu-storage-daemon");
    daemon.args(["--chardev", "stdio,id=m", "--monitor", "m"]);
    daemon.stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut daemon) = daemon.spawn() else {
        eprintln!("skipped: qemu-storage-daemon is not installed");
        return None;
    };
    let mut stdin = daemon.stdin.take().expect("its input");
    let mut say = |line: String| writeln!(stdin, "{line}").expect("its input");
    say(r#"{"execute":"qmp_capabilities"}"#.into());
    for (command, arguments) in commands {
        let json: Value = serde_json::from_str(arguments).expect("JSON");
        let json = match *command {
            "blockdev-reopen" => serde_json::json!({ "options": [json] }),
            _ => json,
        };
        say(serde_json::json!({ "execute": command, "arguments": json }).to_string());
    }
    say(r#"{"execute":"quit"}"#.into());
    let output = daemon.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let answers = said.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let answers =
        answers.filter(|answer| answer["return"] != Value::Null || answer["error"] != Value::Null);
    let words = answers.map(|answer| answer["error"]["desc"].as_str().map(str::to_owned));
    Some(words.skip(1).take(commands.len()).collect())
}

#[test]
fn what_qemu_refuses_to_reopen_is_refused_in_its_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, other) = (disk(folder.path(), "one", 1), disk(folder.path(), "other", 2));
    let file =
        |more: &str| format!(r#"{{"driver":"file","node-name":"f","filename":"{one}"{more}}}"#);
    let raw = |file: &str, more: &str| {
        format!(r#"{{"driver":"raw","node-name":"r","file":"{file}"{more}}}"#)
    };
    let (add, again) = ("blockdev-add", "blockdev-reopen");
    let commands = [
        (add, file("")),
        (add, file("").replace(r#""f""#, r#""g""#)),
        (add, file(r#","locking":"off""#).replace(r#""f""#, r#""l""#)),
        (add, file(r#","force-share":true,"read-only":true"#).replace(r#""f""#, r#""s""#)),
        (add, raw("f", r#","offset":512"#)),
        (again, file(r#","read-only":true"#)),
        (again, file("")),
        (again, file(r#","discard":"unmap","cache":{"no-flush":true}"#)),
        (again, file("").replace(&one, &other)),
        (again, file(r#","locking":"off""#)),
        (again, file(r#","aio":"io_uring""#)),
        (again, file("").replace(r#""f""#, r#""l""#)),
        (again, file(r#","read-only":true"#).replace(r#""f""#, r#""s""#)),
        (again, file("").replace(r#""f""#, r#""nope""#)),
        (again, file("").replace(r#""node-name":"f","#, "")),
        (again, raw("f", r#","offset":1024"#)),
        (again, raw("f", r#","offset":9000000"#)),
        (again, raw("f", "")),
        (again, raw("g", "")),
        (again, raw("r", "")),
        (again, raw("nope", "")),
        (again, raw("f", "").replace(r#""f""#, &file("").replace(r#""node-name":"f","#, ""))),
        (again, raw("g", "").replace("raw", "copy-on-read")),
    ];
    let Some(theirs) = theirs(&commands) else { return };
    let ours = |engine: &Engine| {
        let commands = commands.clone();
        engine.run(0, move |core| async move {
            let (mut graph, mut said) = (Graph::new(), Vec::new());
            for (command, json) in commands {
                let outcome = match command {
                    "blockdev-add" => graph.open(&core, &DRIVERS, options(&json)).await.map(|_| ()),
                    _ => reopen(&core, &mut graph, &json).await,
                };
                said.push(outcome.err().map(|error| error.to_string()));
            }
            said
        })
    };
    let engine = engine();
    let ours = ours(&engine).expect("the core runs");
    engine.shutdown().expect("a good end");
    for ((command, theirs), ours) in commands.iter().zip(&theirs).zip(&ours) {
        let same = match (theirs, ours) {
            (None, None) => true,
            (Some(theirs), Some(ours)) => ours.contains(theirs.as_str()),
            _ => false,
        };
        assert!(same, "{command:?}\n  QEMU: {theirs:?}\n  oxblock: {ours:?}");
    }
    assert!(theirs.iter().flatten().count() > 8, "{theirs:?}");
}
