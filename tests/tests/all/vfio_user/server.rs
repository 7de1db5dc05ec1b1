//! A server in a process of its own: this test binary, started again.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::available_parallelism;

use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_engine::{Engine, Node, Options};
use oxblock_mem::ArenaOptions;
use oxblock_nvmet::{ControllerOptions, NamespaceOptions, VfioUserOptions, VfioUserServer};
use tempfile::TempDir;

/// Where the process is told what to do.
const ORDER: &str = "OXBLOCK_TEST_SERVER";
/// What it says when it serves.
const READY: &str = "serves at";
/// Clients that it takes.
pub const CLIENTS: usize = 3;

/// A disk in memory that is served.
#[derive(Clone, Copy)]
pub struct Disk {
    /// Logical blocks.
    pub blocks: u64,
    /// Bytes of each.
    pub block_bytes: u32,
    /// Log2 of the pages of the largest transfer.
    pub mdts: u8,
}

/// Two MiB, without finesse.
pub const PLAIN: Disk = Disk { blocks: 4096, block_bytes: 512, mdts: 5 };

/// The process; it dies with this.
pub struct Server {
    child: Child,
    directory: TempDir,
}

impl Server {
    /// Starts a process and waits until it serves.
    pub fn start(disk: Disk) -> Server {
        let directory = tempfile::tempdir().expect("a directory");
        let Disk { blocks, block_bytes, mdts } = disk;
        let path = directory.path().join("socket");
        let order = format!("{blocks} {block_bytes} {mdts} {}", path.display());
        let mut child = again("vfio_user::server::process", ORDER, &order);
        let output = child.stdout.take().expect("its output");
        let mut lines = BufReader::new(output).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.contains(READY)));
        assert!(ready, "the server did not start");
        // The rest of what it says goes nowhere, and does not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, directory }
    }

    /// Its socket.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("a process to kill");
        self.child.wait().expect("its end");
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This binary, started again for one test, with an order in its environment.
pub fn again(test: &str, variable: &str, order: &str) -> Child {
    let this = std::env::current_exe().expect("this binary");
    let mut command = Command::new(this);
    command.args([test, "--exact", "--nocapture"]).env(variable, order);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("another process")
}

/// What the process does; without an order it is no test of anything.
#[test]
fn process() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let words: Vec<&str> = order.splitn(4, ' ').collect();
    let [blocks, block_bytes, mdts, path] = words[..] else { panic!("a bad order: {order}") };
    let number = |word: &str| word.parse::<u64>().expect("a number");
    serve(number(blocks), number(block_bytes) as u32, number(mdts) as u8, Path::new(path));
    std::process::exit(0);
}

fn serve(blocks: u64, block_bytes: u32, mdts: u8, path: &Path) {
    // With more reactors than processors they yield: the other side may need this processor.
    let cores = available_parallelism().map_or(1, usize::from) + 1;
    let options = Options { arena: ArenaOptions::new(16 << 20), ..Options::default() };
    let engine = Engine::with_cores(cores, options).expect("an engine");
    let size = blocks * u64::from(block_bytes);
    let driver = memory::open(MemoryOptions { size, block_size: block_bytes });
    let node = Node::new("served", driver.expect("a memory disk"));
    let controller = ControllerOptions {
        namespaces: vec![NamespaceOptions::new(node, block_bytes)],
        max_io_queues: 4,
        mdts,
        ..ControllerOptions::default()
    };
    let options = VfioUserOptions {
        clients_max: CLIENTS,
        cores: vec![1, 0],
        ..VfioUserOptions::new(path, controller)
    };
    let server = VfioUserServer::start(&engine, options).expect("a server");
    println!("{READY} {}", server.path().display());
    // Until the one who started this closes the pipe, or is gone.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(server);
    engine.shutdown().expect("an orderly end");
}
