//! The suite over the NVMe driver, which drives the software controller over memory, file and
//! null: on a core of its own and on a shared one, with and without what it may offer.

use std::sync::Arc;

use oxblock_drivers::nvme::{Controller as Host, NvmeOptions};
use oxblock_drivers::{file, memory, null};
use oxblock_engine::{Core, LocalFuture, Node};
use oxblock_nvmet::{Controller, ControllerOptions, NamespaceOptions};

use super::{Contents, Fixture, Subject, conformance};

/// The core that serves, where it is not the one that asks.
const APART: usize = 1;
/// The core that asks and serves.
const SHARED: usize = 0;

/// Starts a controller over `below` on one core, and attaches the driver on this one.
async fn attach(
    core: Core,
    server: usize,
    below: Fixture,
    namespace: NamespaceOptions,
    options: ControllerOptions,
    host: NvmeOptions,
) -> Fixture {
    let options = ControllerOptions { namespaces: vec![namespace], ..options };
    let start = move |core: Core| async move { Controller::start(&core, options).await };
    let started = core.call(server, start).await.and_then(|result| result);
    let controller = started.expect("a controller");
    let host = Host::attach(&core, controller.function(), host).await.expect("the driver");
    let driver = host.namespace(1).expect("namespace 1");
    let mut hold = below.hold;
    hold.push(Box::new(Arc::clone(&controller)));
    Fixture { node: Node::new("nvme0n1", driver), hold }
}

fn memory_below(size: u64) -> Fixture {
    let driver = memory::open(memory::MemoryOptions { size, block_size: 512 });
    Fixture::new(Node::new("below", driver.expect("a memory disk")))
}

fn file_below(size: u64) -> Fixture {
    let directory = tempfile::tempdir().expect("a directory");
    let options = file::FileOptions {
        size: Some(size),
        ..file::FileOptions::new(directory.path().join("disk"))
    };
    let driver = file::open(options).expect("a file");
    Fixture { node: Node::new("below", driver), hold: vec![Box::new(directory)] }
}

/// All that the controller offers, on a core of its own.
fn with_everything() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        let below = memory_below(10_253 * 512);
        let namespace = NamespaceOptions::new(below.node.clone(), 512);
        let options = ControllerOptions::default();
        Box::pin(attach(core, APART, below, namespace, options, NvmeOptions::default()))
    }
    Subject { contents: Contents::Kept, open }
}

/// PRPs and doorbell registers only, transfers of two pages, on the same core.
fn bare_and_shared() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        let below = memory_below(1031 * 4096);
        let namespace = NamespaceOptions::new(below.node.clone(), 4096);
        let options = ControllerOptions {
            mdts: 1,
            sgl: false,
            shadow_doorbells: false,
            ..ControllerOptions::default()
        };
        Box::pin(attach(core, SHARED, below, namespace, options, NvmeOptions::default()))
    }
    Subject { contents: Contents::Kept, open }
}

/// A boundary at every seventh block, queues of three commands, no limit of the transfer.
fn odd_boundary() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        let below = memory_below(4099 * 512);
        let namespace =
            NamespaceOptions { noiob: Some(7), ..NamespaceOptions::new(below.node.clone(), 512) };
        let options = ControllerOptions {
            mdts: 0,
            sgl: false,
            max_queue_entries: 4,
            dstrd: 2,
            ..ControllerOptions::default()
        };
        Box::pin(attach(core, APART, below, namespace, options, NvmeOptions::default()))
    }
    Subject { contents: Contents::Kept, open }
}

/// A file with a volatile cache behind a queue of one command; the driver takes no SGLs.
fn over_a_file() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        let below = file_below(2053 * 512);
        let namespace =
            NamespaceOptions { noiob: Some(13), ..NamespaceOptions::new(below.node.clone(), 512) };
        let options =
            ControllerOptions { max_queue_entries: 2, mdts: 3, ..ControllerOptions::default() };
        let host = NvmeOptions { sgl: false, queue_entries: 2, ..NvmeOptions::default() };
        Box::pin(attach(core, APART, below, namespace, options, host))
    }
    Subject { contents: Contents::Kept, open }
}

/// A file in blocks of 4 KiB, served by the core that asks.
fn over_a_file_shared() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        let below = file_below(1031 * 4096);
        let namespace = NamespaceOptions::new(below.node.clone(), 4096);
        let options = ControllerOptions { mdts: 5, ..ControllerOptions::default() };
        let host = NvmeOptions { shadow_doorbells: false, ..NvmeOptions::default() };
        Box::pin(attach(core, SHARED, below, namespace, options, host))
    }
    Subject { contents: Contents::Kept, open }
}

/// A device of zeroes that takes its time.
fn over_null() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        let options = null::NullOptions {
            size: 4099 * 512,
            block_size: 512,
            latency_ns: 2000,
            read_zeroes: true,
        };
        let below = Fixture::new(Node::new("below", null::open(options).expect("a null device")));
        let namespace = NamespaceOptions::new(below.node.clone(), 512);
        let options = ControllerOptions::default();
        Box::pin(attach(core, APART, below, namespace, options, NvmeOptions::default()))
    }
    Subject { contents: Contents::Zeroes, open }
}

conformance!(nvme_with_everything, with_everything());
conformance!(nvme_bare_and_shared, bare_and_shared());
conformance!(nvme_odd_boundary, odd_boundary());
conformance!(nvme_over_a_file, over_a_file());
conformance!(nvme_over_a_file_shared, over_a_file_shared());
/// The one queue pair that the controller grants is another core's, and has room for seven.
fn shared_queue() -> Subject {
    fn open(core: Core) -> LocalFuture<'static, Fixture> {
        Box::pin(async move {
            let below = memory_below(10_253 * 512);
            let namespace = NamespaceOptions::new(below.node.clone(), 512);
            let options =
                ControllerOptions { max_io_queues: 1, mdts: 5, ..ControllerOptions::default() };
            let host = NvmeOptions { queue_entries: 8, ..NvmeOptions::default() };
            let mut fixture = attach(core.clone(), APART, below, namespace, options, host).await;
            let node = fixture.node.clone();
            let owned = core.call(APART, move |core| async move { core.open(&node).await.is_ok() });
            fixture.hold.push(Box::new(owned.await.expect("the other core")));
            fixture
        })
    }
    Subject { contents: Contents::Kept, open }
}

conformance!(nvme_over_null, over_null());
conformance!(nvme_shared_queue, shared_queue());
