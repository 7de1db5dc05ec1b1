//! `oxblock nvmet`: the software NVMe controller for hosts in other processes.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use oxblock_bench::units::parse_bytes;
use oxblock_engine::{Engine, Error, ErrorKind, Node, Options};
use oxblock_nvmet::{
    ClientEvent, ControllerOptions, NamespaceOptions, VfioUserOptions, VfioUserServer,
};

use crate::bench::stop_on_signal;
use crate::target::{Leaf, Processors, TargetSpec, Wants};

/// How often the signals are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Bytes of a logical block, where nothing else is asked for.
const BLOCK_BYTES: u32 = 512;

/// I/Os in flight on one core, shared by as many clients as there may be: 256 each of 16.
const SLOTS: usize = 4096;

/// I/Os in flight on one target.
const DEPTH: u32 = 1023;

const AFTER_HELP: &str = "\
Any vfio-user client can be the host: oxblock (--target=vfio-user:SOCKET), those of rust-vmm; not
tried yet: SPDK, QEMU from 10.1 on
(-device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"SOCKET\"}}', with
the guest's memory in a memfd: -object memory-backend-memfd,share=on). Each client has a controller
of its own, fresh, which goes with it; the namespaces are common to all.

Targets are those of oxblock bench: null, memory, a path, a node as JSON, nvme://ADDRESS/NAMESPACE.
Each --target is a namespace, numbered from 1.

Serves until SIGINT or SIGTERM. Exit code: 0 then, 1 when it cannot serve.";

/// The command line.
pub fn command() -> Command {
    let value = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new("nvmet")
        .about("Serve the software NVMe controller to other processes")
        .after_help(AFTER_HELP)
        .arg(
            value("vfio-user", "SOCKET", "Serve there; a folder gets a socket `cntrl`, as in SPDK")
                .required(true)
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            value("target", "TARGET", "What a namespace lies on; may be given several times")
                .required(true)
                .action(ArgAction::Append),
        )
        .arg(
            value("size", "BYTES", "Length of memory, and of files that are to be made (1g)")
                .value_parser(parse_bytes),
        )
        .arg(
            value("block-size", "BYTES", "Bytes of a logical block: a power of two from 512")
                .value_parser(value_parser!(u32)),
        )
        .arg(switch("read-only", "Refuse writes"))
        .arg(switch("direct", "Open files past the page cache"))
        .arg(value("serial", "TEXT", "Serial number of the controllers"))
        .arg(value("model", "TEXT", "Model of the controllers"))
        .arg(
            value("queues", "NUMBER", "I/O queue pairs of each controller")
                .default_value("16")
                .value_parser(value_parser!(u16).range(1..=2047)),
        )
        .arg(
            value("clients", "NUMBER", "Clients at a time; others are refused")
                .default_value("16")
                .value_parser(value_parser!(u16).range(1..=1024)),
        )
        .arg(
            value("cpus", "LIST", "Processors that serve, as in 2,3; the last one if not given")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .value_parser(value_parser!(usize)),
        )
        .arg(switch("quiet", "Say nothing of clients that come and go"))
}

/// Runs `oxblock nvmet`.
///
/// Errors: a target that cannot be opened, a socket that cannot be made, an engine that failed.
pub fn run(matches: &ArgMatches) -> Result<ExitCode, Error> {
    let stop = stop_on_signal()?;
    let cpus: Vec<usize> = match matches.get_many("cpus") {
        Some(cpus) => cpus.copied().collect(),
        None => vec![Processors::of(true).serving],
    };
    let engine = Engine::new(&cpus, Options { slots: SLOTS, ..Options::default() })?;
    let served = serve(&engine, matches, cpus.len(), &stop);
    let closed = engine.shutdown();
    served.and(closed).map(|()| ExitCode::SUCCESS)
}

fn serve(
    engine: &Engine,
    matches: &ArgMatches,
    cores: usize,
    stop: &Arc<AtomicBool>,
) -> Result<(), Error> {
    let namespaces = namespaces(engine, matches)?;
    let quiet = matches.get_flag("quiet");
    let path = matches.get_one::<PathBuf>("vfio-user").cloned().unwrap_or_default();
    let options = VfioUserOptions {
        cores: (0..cores).collect(),
        clients_max: matches.get_one("clients").map_or(16, |clients: &u16| (*clients).into()),
        report: Arc::new(move |event: &ClientEvent| {
            if !quiet || matches!(event, ClientEvent::Failed(..)) {
                eprintln!("{event}");
            }
        }),
        ..VfioUserOptions::new(path, controller(matches, namespaces))
    };
    let server = VfioUserServer::start(engine, options)?;
    println!("serving at {}", server.path().display());
    let _ = std::io::stdout().flush();
    while !stop.load(Ordering::Relaxed) {
        engine.check()?;
        thread::sleep(LOOK_INTERVAL);
    }
    server.stop();
    Ok(())
}

/// What each client gets.
fn controller(matches: &ArgMatches, namespaces: Vec<NamespaceOptions>) -> ControllerOptions {
    let defaults = ControllerOptions::default();
    let text = |name| matches.get_one::<String>(name).cloned();
    let queues = matches.get_one("queues").copied().unwrap_or(defaults.max_io_queues);
    ControllerOptions {
        namespaces,
        max_io_queues: queues,
        vectors: queues + 1,
        serial: text("serial").unwrap_or(defaults.serial),
        model: text("model").unwrap_or(defaults.model),
        ..ControllerOptions::default()
    }
}

/// Opens the targets, and says what they are.
fn namespaces(engine: &Engine, matches: &ArgMatches) -> Result<Vec<NamespaceOptions>, Error> {
    let asked = matches.get_one::<u32>("block-size").copied();
    let mut namespaces = Vec::new();
    for word in matches.get_many::<String>("target").into_iter().flatten() {
        let (node, words) = open(engine, word, matches)?;
        let limits = node.limits();
        let block_size = asked.unwrap_or(limits.block_size.max(BLOCK_BYTES));
        let read_only = limits.read_only || matches.get_flag("read-only");
        println!("namespace {}: {words}, {block_size} byte blocks", namespaces.len() + 1);
        namespaces.push(NamespaceOptions { read_only, ..NamespaceOptions::new(node, block_size) });
    }
    Ok(namespaces)
}

fn open(engine: &Engine, word: &str, matches: &ArgMatches) -> Result<(Arc<Node>, String), Error> {
    let (read_only, direct) = (matches.get_flag("read-only"), matches.get_flag("direct"));
    let wants = Wants::to_serve(matches.get_one("size").copied(), read_only, direct, DEPTH);
    match TargetSpec::parse(word)? {
        TargetSpec::Path(path) if read_only && !path.exists() => {
            let text = format!("{}: there is no such file to serve", path.display());
            Err(Error::new(ErrorKind::NotFound, text))
        }
        spec => Leaf::open(engine, &spec, &wants).map(|leaf| (leaf.node, leaf.words)),
    }
}
