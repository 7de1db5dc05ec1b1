//! Options of nodes against the installed qemu-img: the same strings open here with the same
//! meaning, or are refused by both.

use std::path::Path;
use std::process::Command;

use oxblock_drivers::DRIVERS;
use oxblock_engine::graph::Graph;
use oxblock_engine::options::NodeOptions;
use oxblock_engine::{Error, Options, Reactor};
use oxblock_mem::{ArenaOptions, PagePolicy};
use oxblock_tests::random::{self, Random};
use serde_json::Value;

/// How the options are written.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// `--image-opts`.
    Pairs,
    /// A file name, `json:` among them.
    Name,
}

/// The format and the length of what was opened, or what was said instead.
type Outcome = Result<(String, u64), String>;

fn theirs(form: Form, text: &str, folder: &Path) -> Outcome {
    let mut command = Command::new("qemu-img");
    command.current_dir(folder).args(["info", "--output=json"]);
    match form {
        Form::Pairs => command.arg("--image-opts"),
        Form::Name => command.args(["-f", "raw"]),
    };
    let output = command.arg(text).output().expect("qemu-img runs");
    match serde_json::from_slice::<Value>(&output.stdout) {
        Ok(info) if output.status.success() => {
            let format = info["format"].as_str().expect("a format").to_owned();
            Ok((format, info["virtual-size"].as_u64().expect("a size")))
        }
        _ => {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            let line = words.lines().rfind(|line| line.starts_with("qemu-img: ")).unwrap_or("");
            let line = line.trim_start_matches("qemu-img: ");
            let opening = format!("Could not open '{text}': ");
            Err(line.strip_prefix(&opening).unwrap_or(line).to_owned())
        }
    }
}

fn ours(form: Form, text: &str, folder: &Path) -> Outcome {
    open(form, text, folder).map_err(|error| error.to_string())
}

fn open(form: Form, text: &str, folder: &Path) -> Result<(String, u64), Error> {
    let mut options = match form {
        Form::Pairs => NodeOptions::from_key_values(text, Some("file"))?,
        Form::Name => DRIVERS.options_of_name(text)?,
    };
    if form == Form::Name && !text.starts_with("json:") {
        options.set("driver", "raw");
    }
    // As qemu-img info opens what it looks at.
    options.set_default("read-only", true);
    for key in ["filename", "file.filename", "file.file.filename"] {
        if let Some(path) = options.text(key).filter(|path| !path.is_empty()).map(str::to_owned) {
            options.set(key, folder.join(path).display().to_string());
        }
    }
    let arena =
        ArenaOptions { size: 2 << 20, pages: PagePolicy::Unlocked, ..ArenaOptions::default() };
    let reactor = Reactor::new(Options { arena, ..Options::default() })?;
    let core = reactor.core().clone();
    reactor.block_on(async move {
        let mut graph = Graph::new();
        let id = graph.open(&core, &DRIVERS, options).await?;
        let node = graph.node(id)?;
        // QEMU counts in sectors.
        Ok((node.driver.to_owned(), node.body.limits().length.next_multiple_of(512)))
    })?
}

/// A folder with a disk in it; `None` where there is no qemu-img, which is said.
fn folder() -> Option<tempfile::TempDir> {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("skipped: qemu-img is not installed (apt-get install qemu-utils)");
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["a.img", "a,b.img"] {
        let file = std::fs::File::create(folder.path().join(name)).expect("a file");
        file.set_len(1 << 20).expect("its length");
    }
    Some(folder)
}

#[test]
fn what_qemu_img_takes_is_taken_and_what_it_refuses_is_refused_in_its_words() {
    let Some(folder) = folder() else { return };
    let pairs = [
        "driver=null-co",
        "driver=null-co,size=1.5G",
        "driver=null-co,size=0x1000",
        "driver=null-co,size=7E",
        "driver=null-co,size=-1",
        "driver=null-co,size=1x",
        "driver=null-co,size=",
        "driver=null-co,size",
        "driver=null-co,size=99999999999999999999",
        "driver=null-co,size=0.50049k",
        "driver=null-co,sise=5",
        "driver=null-co,read-zeroes",
        "driver=null-co,noread-zeroes",
        "driver=null-co,read-zeroes=maybe",
        "driver=null-co,latency-ns=010",
        "driver=null-co,latency-ns=1k",
        "driver=null-co,latency-ns=9223372036854775808",
        "driver=raw,file.driver=null-co,file.size=4096,offset=512",
        "driver=raw,file.driver=null-co,file.size=4096,offset=512,size=1024",
        "driver=raw,file.driver=null-co,file.size=4096,offset=5120",
        "driver=raw,file.driver=null-co,file.size=4096,offset=512,size=4096",
        "driver=raw,file.driver=null-co,file.size=4096,size=100",
        "driver=raw,file.driver=null-co,file.size=4096,foo=1",
        "driver=raw,file.driver=null-co,file.foo=1",
        "driver=raw,file.driver=null-co,file=x",
        "driver=raw,file=x",
        "driver=raw",
        "driver=raw,filename=a.img",
        "driver=raw,file.filename=a.img",
        "driver=raw,file.filename=a.img,offset=3",
        "driver=raw,file.filename=a.img,offset=1M",
        "driver=raw,file.filename=a,,b.img",
        "driver=raw,file.file.filename=a.img",
        "driver=raw,file.driver=raw,file.file.filename=a.img",
        "driver=raw,file.filename=.",
        "driver=file,filename=a,,b.img",
        "driver=file,filename=nope",
        "driver=file",
        "driver=file,filename=a.img,aio=foo",
        "driver=file,filename=a.img,aio=threads",
        "driver=file,filename=a.img,aio=native",
        "driver=file,filename=a.img,locking=off",
        "driver=host_device,filename=a.img",
        "driver=qcow9",
        "size=5",
        "",
        ",",
        "driver=null-co,,",
        "driver=null-co,=5",
        "driver=null-co,driver=raw",
        "driver=null-co,node-name=foo",
        "driver=null-co,node-name=#foo",
        "driver=null-co,node-name=9a",
        "driver=null-co,node-name=abcdefghijklmnopqrstuvwxyz012345",
        "driver=raw,node-name=x,file.driver=null-co,file.node-name=x",
        "driver=null-co,cache.direct=on,cache.no-flush=off",
        "driver=null-co,cache.direct=bla",
        "driver=null-co,cache.bla=on",
        "driver=null-co,discard=foo",
        "driver=null-co,detect-zeroes=unmap",
        "driver=null-co,detect-zeroes=unmap,discard=on",
        "driver=null-co,read-only=off,force-share=on",
        "driver=raw,backing.driver=null-co,file.driver=null-co",
    ];
    let names = [
        "null-co://",
        "null-aio://",
        "null-co:",
        "null-co://foo",
        "null:",
        "a.img",
        "file:a.img",
        "foo:a.img",
        "./foo:a.img",
        "file:nope",
        r#"json:{"driver":"raw","file":{"driver":"null-co","size":1024}}"#,
        "json:{'driver':'raw','file':{'driver':'null-co','size':'1k'}}",
        r#"json:{"driver":"raw","file":{"driver":"null-co","size":1.5e3}}"#,
        r#"json:{"driver":"raw","file":{"driver":"null-co","size":true}}"#,
        r#"json:{"driver":"raw","file":{"driver":"null-co","size":null}}"#,
        r#"json:{"driver":"raw","file":{"driver":"null-co","size":[1]}}"#,
        r#"json:{"driver":"raw","file":{"driver":"null-co","read-zeroes":1}}"#,
        r#"json:{"driver":"raw","file":{"driver":"null-co"},"file.size":512}"#,
        r#"json:{"driver":"raw","file":5}"#,
        r#"json:{"driver":"raw","file":null}"#,
        r#"json:{"driver":"raw","file":{"filename":"null-co://"}}"#,
        r#"json:{"driver":"raw","file":{"driver":"null-co","filename":"x"}}"#,
        r#"json:{"driver":"raw","file":{"driver":"null-co"}} x"#,
        r#"json:{"driver":"raw","driver":"raw"}"#,
        "json:[1]",
        "json:{",
        "json:",
    ];
    let pairs = pairs.iter().map(|text| (Form::Pairs, *text));
    let names = names.iter().map(|text| (Form::Name, *text));
    let mut differ = Vec::new();
    for (form, text) in pairs.chain(names) {
        let (theirs, ours) = (theirs(form, text, folder.path()), ours(form, text, folder.path()));
        let same = match (&theirs, &ours) {
            (Ok(theirs), Ok(ours)) => theirs == ours,
            (Err(theirs), Err(ours)) => {
                let ours = ours.replace(&format!("{}/", folder.path().display()), "");
                ours.contains(theirs.trim_end_matches('.')) || OTHER_WORDS.contains(&text)
            }
            _ => false,
        };
        if !same {
            differ.push(format!("{text}\n  qemu-img: {theirs:?}\n  oxblock: {ours:?}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// Where more is said here than by QEMU, or it is said of another mistake in the same text.
const OTHER_WORDS: &[&str] = &[
    "driver=null-co,latency-ns=9223372036854775808",
    "driver=null-co,node-name=abcdefghijklmnopqrstuvwxyz012345",
    "driver=file,filename=a.img,aio=foo",
    "driver=null-co,discard=foo",
    "driver=raw,file.filename=.",
    "",
    ",",
];

/// A node in JSON or in pairs, mostly right.
fn random_node(random: &mut Random, depth: u32) -> Vec<(String, String)> {
    let mut options = Vec::new();
    let mut pick = |key: &str, values: &[&str]| {
        let at = random.within(0..values.len() as u64 * 3) as usize;
        if let Some(value) = values.get(at) {
            options.push((key.to_owned(), (*value).to_owned()));
        }
    };
    pick("read-only", &["on", "true", "yes", "1"]);
    pick("cache.direct", &["on", "off", "no", "On"]);
    pick("discard", &["unmap", "ignore", "on", "true"]);
    pick("detect-zeroes", &["on", "off", "unmap", "yes"]);
    pick("force-share", &["on", "off", ""]);
    if depth > 0 {
        pick("offset", &["0", "512", "1k", "0x200", "1.5K", "1T", "-0", "k"]);
        pick("size", &["512", "1024", "4k", "1000", "0", "2E"]);
        options.push(("driver".into(), "raw".into()));
        for (key, value) in random_node(random, depth - 1) {
            options.push((format!("file.{key}"), value));
        }
    } else {
        pick("size", &["8k", "1.5M", "64K", "7777", " 1G", "1g", "9E", "1 ", "0.25k"]);
        pick("latency-ns", &["0", "010", "0x1f", "08", "+5", "5 "]);
        pick("read-zeroes", &["on", "n", "y", "off", "0"]);
        pick("sise", &["1"]);
        let driver = ["null-co", "null-aio"][random.within(0..2) as usize];
        options.push(("driver".into(), driver.into()));
    }
    options
}

#[test]
fn random_options_open_in_both_or_in_neither() {
    let Some(folder) = folder() else { return };
    let seed = random::seed(6);
    let count = std::env::var("OXBLOCK_FUZZ_SEEDS").ok().and_then(|text| text.parse().ok());
    let mut random = seed.random(0);
    let (mut opened, mut refused) = (0, 0);
    for _ in 0..count.unwrap_or(120) {
        let depth = random.within(0..3) as u32;
        let node = random_node(&mut random, depth);
        let pairs: Vec<String> = node.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let text = pairs.join(",");
        let (theirs, ours) =
            (theirs(Form::Pairs, &text, folder.path()), ours(Form::Pairs, &text, folder.path()));
        match (&theirs, &ours) {
            (Ok(theirs), Ok(ours)) => {
                assert_eq!(theirs, ours, "{text}");
                opened += 1;
            }
            (Err(_), Err(_)) => refused += 1,
            _ => panic!("{text}: qemu-img: {theirs:?}, oxblock: {ours:?}"),
        }
    }
    assert!(opened > 5 && refused > 5, "{opened} opened, {refused} refused");
}
