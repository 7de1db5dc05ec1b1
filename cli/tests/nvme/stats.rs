//! `stats`, and the device's counters in what `bench` reports, of a device that is not well.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_engine::{Engine, Node, Options};
use oxblock_nvme::opcode::{admin, nvm};
use oxblock_nvmet::fault::{self, CommandFault, CompletionFault, Faults, Match};
use oxblock_nvmet::{Controller, ControllerOptions, NamespaceOptions};
use oxblock_pci::vfio_user::{SessionOptions, serve};
use serde_json::{Deserializer, Value, json};
use tempfile::TempDir;

use super::{failure, json_of, nvme};

/// A controller with fault switches, for one client after the other.
struct Faulty {
    faults: Arc<Faults>,
    directory: TempDir,
    over: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
    /// It ends with these.
    _controller: Arc<Controller>,
    _engine: Engine,
}

impl Faulty {
    fn start() -> Faulty {
        let faults = Faults::new();
        let engine = Engine::with_cores(1, Options::default()).expect("an engine");
        let switches = faults.clone();
        let controller = engine.run(0, move |core| async move {
            let options = MemoryOptions { size: 4 << 20, block_size: 512 };
            let node = Node::new("disk", memory::open(options).expect("memory"));
            let namespaces = vec![NamespaceOptions::new(node, 512)];
            let options = ControllerOptions { namespaces, ..ControllerOptions::default() };
            fault::start(&core, options, &switches).await
        });
        let controller = controller.expect("a core").expect("a controller");
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("sock")).expect("a socket");
        let (function, over) =
            (controller.soft_function().clone(), Arc::new(AtomicBool::new(false)));
        let ended = over.clone();
        let server = std::thread::spawn(move || {
            for client in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let client = client.expect("a client");
                serve(client.as_fd(), function.clone(), &SessionOptions::default());
            }
        });
        let server = Some(server);
        Faulty { faults, directory, over, server, _controller: controller, _engine: engine }
    }

    fn device(&self) -> String {
        format!("vfio-user:{}", self.directory.path().join("sock").display())
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(self.directory.path().join("sock"));
        if let Some(Err(panic)) = self.server.take().map(JoinHandle::join) {
            eprintln!("the server: {panic:?}");
        }
    }
}

#[test]
fn a_controller_that_is_well_has_figures_and_no_trouble() {
    let stats = json_of(&["stats", "soft"]);
    assert_eq!(
        (&stats["serial"], &stats["health"]["temperature"]),
        (&json!("OXBLOCK0"), &json!(313))
    );
    assert_eq!(stats["health"]["media_errors"], 0);
    let driver = stats["driver"].as_object().expect("counters");
    for name in ["resets", "aborts", "commands sent again", "completions that came late"] {
        assert_eq!(driver[name], 0, "{name}");
    }
    assert_eq!(driver["spurious completions: admin queue"], 0);
    assert_eq!(stats.get("since_last"), None);
    let text = String::from_utf8(nvme(&["stats", "soft"]).stdout).expect("text");
    assert!(text.contains("  media_errors         : 0\n") && text.contains("aborts"), "{text}");
    let (code, text) = failure(&["stats", "soft", "--count=2"]);
    assert!(code == Some(2) && text.contains("--interval"), "{text}");
    assert_eq!(failure(&["stats", "soft", "--interval=0"]).0, Some(2));
}

/// Each document after the first tells what was added.
#[test]
fn statistics_of_an_interval_tell_what_was_added() {
    let output = nvme(&["stats", "soft", "--interval=0.01", "--count=3", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let documents = Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let documents: Vec<Value> = documents.collect::<Result<_, _>>().expect("JSON");
    assert_eq!(documents.len(), 3);
    assert!(documents[0].get("since_last").is_none());
    for document in &documents[1..] {
        assert!(document["since_last"]["seconds"].as_f64() > Some(0.0), "{document}");
        assert_eq!(document["since_last"]["driver"]["resets"], 0);
        assert_eq!(document["since_last"]["health"]["power_cycles"], 0);
    }
}

#[test]
fn statistics_tell_what_the_driver_did_not_believe() {
    let faulty = Faulty::start();
    faulty.faults.complete(Match::admin(admin::SET_FEATURES).nth(1), CompletionFault::Twice);
    let stats = json_of(&["stats", &faulty.device()]);
    assert_eq!(stats["driver"]["spurious completions: admin queue"], 1, "{stats}");
}

/// The device fails once in the course of a job, and says twice that a command is done: the job
/// ends well all the same, and its report tells.
#[test]
fn a_bench_tells_what_its_device_went_through() {
    let faulty = Faulty::start();
    faulty.faults.complete(Match::io(1, nvm::READ).nth(20), CompletionFault::Twice);
    faulty.faults.command(Match::io(1, nvm::READ).nth(100), CommandFault::Fail);
    let target = format!("{}/1", faulty.device());
    let words = ["--rw=randread", "--bs=4k", "--size=2m", "--iodepth=4"];
    let output = super::oxblock(
        &[
            &["bench", "--name=read", "--filename", &target, "--output-format=normal,json"],
            &words[..],
        ]
        .concat(),
    );
    let text = String::from_utf8(output.stdout).expect("text");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}{error}");
    let line = text.lines().find(|line| line.starts_with("  DEVICE       : ")).unwrap_or(&text);
    assert!(line.contains("resets=1"), "{line}");
    assert!(line.contains("spurious completions: command identifier=1"), "{line}");
    let json = &text[text.find('{').expect("JSON")..];
    let document: Value =
        Deserializer::from_str(json).into_iter().next().expect("JSON").expect("JSON");
    let devices = document["jobs"][0]["oxblock"]["device_counters"].as_object().expect("devices");
    let counters = devices.values().next().expect("a device");
    assert_eq!((&counters["resets"], &counters["aborts"]), (&json!(1), &json!(0)));
    assert!(counters["commands sent again"].as_u64() >= Some(1), "{counters}");
}

#[test]
fn a_bench_of_a_device_that_is_well_says_nothing_of_it() {
    let words = ["bench", "--name=read", "--filename=soft", "--rw=read", "--size=1m"];
    let output = super::oxblock(&[&words[..], &["--output-format=normal,json"]].concat());
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(!text.contains("DEVICE"), "{text}");
    assert!(text.contains("\"completions that came late\": 0"), "{text}");
}
