//! What nodes are called, against the installed qemu-img; what is opened by names that stand in
//! images, and what is guessed.

mod linked;
mod policy;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use oxblock_drivers::DRIVERS;
use oxblock_engine::graph::{Drivers, Graph, NodeId, OpenPolicy};
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Core, Error, Node, Options, Reactor};
use oxblock_mem::{ArenaOptions, PagePolicy};
use serde_json::{Value, json};

type Book = Graph<Arc<Node>>;

/// Opens a node on a small engine and looks at it.
fn opened<T: 'static>(
    drivers: Drivers,
    options: NodeOptions,
    policy: OpenPolicy,
    look: impl AsyncFnOnce(&Core, &mut Book, NodeId) -> Result<T, Error> + 'static,
) -> Result<T, Error> {
    let arena =
        ArenaOptions { size: 16 << 20, pages: PagePolicy::Unlocked, ..ArenaOptions::default() };
    let reactor = Reactor::new(Options { arena, ..Options::default() })?;
    let core = reactor.core().clone();
    reactor.block_on(async move {
        let mut graph = Graph::new();
        let id = graph.open_with(&core, &drivers, options, &policy).await?;
        look(&core, &mut graph, id).await
    })?
}

/// Names as a tree, `json:` ones as what they hold.
fn tree(graph: &Book, id: NodeId) -> Value {
    let children: Vec<Value> = graph
        .children(id)
        .map(|edge| json!({"name": edge.name, "node": tree(graph, edge.child)}))
        .collect();
    let name = graph.names(id).and_then(|names| names.filename()).expect("a name");
    json!({"filename": read(&name), "children": children})
}

fn tree_of_qemu(info: &Value) -> Value {
    let children: Vec<Value> = info["children"]
        .as_array()
        .expect("children")
        .iter()
        .map(|child| json!({"name": child["name"], "node": tree_of_qemu(&child["info"])}))
        .collect();
    json!({"filename": read(info["filename"].as_str().expect("a name")), "children": children})
}

fn read(name: &str) -> Value {
    match name.strip_prefix("json:") {
        Some(json) => serde_json::from_str(json).expect("what it prints is JSON"),
        None => name.into(),
    }
}

fn info(folder: &Path, words: &[&str]) -> Value {
    let mut command = Command::new("qemu-img");
    let output = command.current_dir(folder).args(["info", "--output=json"]).args(words).output();
    let output = output.expect("qemu-img runs");
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{words:?}: {said}"))
}

fn has_qemu_img() -> bool {
    let has = Command::new("qemu-img").arg("--version").output().is_ok();
    if !has {
        eprintln!("skipped: qemu-img is not installed (apt-get install qemu-utils)");
    }
    has
}

#[test]
fn nodes_are_called_what_qemu_img_calls_them() {
    if !has_qemu_img() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["a.img", "a,b \"c\".img", "ä.img"] {
        let file = std::fs::File::create(folder.path().join(name)).expect("a file");
        file.set_len(1 << 20).expect("its length");
    }
    let at = folder.path().display();
    let pairs = [
        "driver=null-co".to_owned(),
        "driver=null-co,size=1G".into(),
        "driver=null-co,latency-ns=5".into(),
        "driver=null-aio,read-zeroes=on".into(),
        "driver=null-co,node-name=x,discard=unmap,cache.direct=off,detect-zeroes=on".into(),
        "driver=raw,file.driver=null-co".into(),
        "driver=raw,file.driver=null-co,file.latency-ns=5".into(),
        "driver=raw,file.driver=null-co,file.size=64k,offset=512,size=0x400".into(),
        "driver=raw,file.driver=raw,file.file.driver=null-aio".into(),
        "driver=raw,file.driver=raw,file.size=512,file.file.driver=null-aio".into(),
        format!("driver=file,filename={at}/a.img"),
        format!("driver=raw,file.filename={at}/a.img"),
        format!("driver=raw,file.filename={at}/a.img,size=1M"),
        format!("driver=raw,file.driver=raw,file.file.filename={at}/a.img"),
        format!("driver=raw,file.filename={at}/a,,b \"c\".img,offset=1k"),
        format!("driver=raw,file.filename={at}/./../{}/ä.img,offset=1k", file_name(folder.path())),
        format!("driver=raw,file.filename={at}/a.img,file.locking=off,file.aio=threads"),
    ];
    for text in pairs {
        let qemu = info(folder.path(), &["--image-opts", &text]);
        let mut options = NodeOptions::from_key_values(&text, Some("file")).expect("pairs");
        options.set_default("read-only", true);
        let ours = opened(DRIVERS, options, OpenPolicy::default(), async |_, graph, id| {
            Ok(tree(graph, id))
        });
        assert_eq!(ours.expect(&text), tree_of_qemu(&qemu), "{text}");
    }
    let names = [
        "null-co://".to_owned(),
        format!("{at}/a.img"),
        format!("file:{at}/a.img"),
        r#"json:{"driver":"raw","file":{"driver":"null-co","size":1024}}"#.into(),
        "json:{'driver':'raw','size':'1k','file':{'driver':'null-co','size':1024,'read-zeroes':true}}"
            .into(),
        format!("json:{{\"driver\":\"raw\",\"file.filename\":\"{at}/a.img\"}}"),
    ];
    for text in names {
        let qemu = info(folder.path(), &["-f", "raw", &text]);
        let mut options = DRIVERS.options_of_name(&text).expect("a name");
        options.set_default("driver", "raw");
        options.set_default("read-only", true);
        let ours = opened(DRIVERS, options, OpenPolicy::default(), async |_, graph, id| {
            // The whole options open the same again.
            let names = graph.names(id)?;
            let again = DRIVERS.options_of_name(&names.json()?)?;
            assert_eq!(again.to_json()?, names.options.to_json()?);
            Ok(tree(graph, id))
        });
        assert_eq!(ours.expect(&text), tree_of_qemu(&qemu), "{text}");
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[test]
fn names_in_images_are_made_whole_as_qemu_img_makes_them() {
    if !has_qemu_img() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("sub")).expect("a folder");
    let at = folder.path().display();
    let images = [
        format!("{at}/over.qcow2"),
        format!("{at}/sub/../over.qcow2"),
        format!("file:{at}/over.qcow2"),
        format!(
            "json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{at}/over.qcow2\"}}}}"
        ),
    ];
    let backings = [
        "base.img",
        "./x:y",
        "sub/base.img",
        "../base.img",
        "/abs/base.img",
        "file:base.img",
        "nbd:unix:/s",
        "nbd://host/export",
        "a//b",
        "ä b",
        "json:{\"driver\":\"null-co\"}",
    ];
    for backing in backings {
        let words =
            ["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, "over.qcow2", "1M"];
        let created = Command::new("qemu-img").current_dir(&folder).args(words).status();
        assert!(created.expect("qemu-img runs").success(), "{backing}");
        for image in &images {
            let qemu = info(folder.path(), &[image]);
            let whole = qemu["full-backing-filename"].as_str().expect("a backing file");
            // The same file, as a node without a format: a name is seen from where the bytes lie.
            let mut options = DRIVERS.options_of_name(image).expect("a name");
            options.set("driver", "raw");
            options.set("read-only", true);
            let ours = opened(DRIVERS, options, OpenPolicy::default(), async |_, graph, id| {
                graph.names(id)?.beside(backing)
            });
            assert_eq!(ours.expect(image), whole, "{backing} in {image}");
        }
    }
}

#[test]
fn what_lies_in_no_folder_has_no_files_beside_it() {
    let options = NodeOptions::from_key_values("driver=raw,file.driver=null-co,file.size=4k", None);
    let refusal =
        opened(DRIVERS, options.expect("pairs"), OpenPolicy::default(), async |_, graph, id| {
            let names = graph.names(id)?;
            assert_eq!(names.beside("/a").ok().as_deref(), Some("/a"));
            Ok(names.beside("a").expect_err("no folder").to_string())
        });
    let words = "Cannot generate a base directory for raw nodes";
    assert_eq!(refusal.ok().as_deref(), Some(words));
}
