//! Memory that the caller owns, lent to devices and taken back.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use oxblock_drivers::nvme::{Controller as Host, NvmeOptions};
use oxblock_drivers::{memory, null};
use oxblock_engine::{Core, Engine, Node, Op, Options};
use oxblock_mem::{ArenaOptions, IoVector, Region};
use oxblock_nvmet::{Controller, ControllerOptions, NamespaceOptions};

const LEN: usize = 1 << 20;

/// The caller's own memory, page-aligned, freed when it goes.
struct Own(NonNull<u8>);

// SAFETY: the bytes are only reached by raw copies, from one thread at a time.
unsafe impl Send for Own {}

impl Own {
    fn layout() -> Layout {
        Layout::from_size_align(LEN, 4096).expect("a layout")
    }

    fn new() -> Own {
        // SAFETY: the layout is not empty.
        Own(NonNull::new(unsafe { alloc_zeroed(Own::layout()) }).expect("memory"))
    }

    fn register(&self, core: &Core) -> Region {
        // SAFETY: every test unregisters before the memory is dropped, and keeps no
        // reference to its bytes.
        unsafe { core.memory().register(self.0, LEN) }.expect("a region")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and unregistered.
        unsafe { dealloc(self.0.as_ptr(), Own::layout()) };
    }
}

fn engine() -> Engine {
    let options = Options { arena: ArenaOptions::new(8 << 20), ..Options::default() };
    Engine::with_cores(2, options).expect("an engine")
}

/// The NVMe driver on this core over a controller on the other.
async fn nvme_over(core: &Core, below: Arc<Node>) -> (Arc<Controller>, Arc<Node>) {
    let namespaces = vec![NamespaceOptions::new(below, 512)];
    let options = ControllerOptions { namespaces, ..ControllerOptions::default() };
    let start = move |core: Core| async move { Controller::start(&core, options).await };
    let controller = core.call(1, start).await.expect("core 1").expect("a controller");
    let host = Host::attach(core, controller.function(), NvmeOptions::default()).await;
    let driver = host.expect("the driver").namespace(1).expect("namespace 1");
    (controller, Node::new("nvme0n1", driver))
}

#[test]
fn a_device_reads_and_writes_registered_memory_without_a_copy() {
    let engine = engine();
    let held = engine.run(0, |core| async move {
        let options = memory::MemoryOptions { size: 4 << 20, block_size: 512 };
        let below = Node::new("below", memory::open(options).expect("a disk"));
        let own = Own::new();
        // Registered before the device comes: it gets what is there already.
        let region = own.register(&core);
        let (controller, node) = nvme_over(&core, below).await;
        let channel = core.open(&node).await.expect("a channel");

        let pattern: Vec<u8> = (0..LEN / 2).map(|at| ((at / 3) ^ (at >> 8)) as u8).collect();
        let mut source = region.buf(0, LEN / 2).expect("the first half");
        source.write_at(0, &pattern);
        channel.write(512, source).await.1.expect("a write");
        let target = region.buf(LEN / 2, LEN / 2).expect("the second half");
        let (data, result) = channel.read(512, target).await;
        result.expect("a read");
        assert_eq!(data.whole().compare(&pattern), None);
        drop(data);
        core.unregister(region).await;
        drop(own);
        controller
    });
    let controller = held.expect("the test");
    engine.shutdown().expect("an orderly shutdown");
    drop(controller);
}

#[test]
fn unregistering_waits_for_the_io_in_flight() {
    const LATENCY_NS: u64 = 20_000_000;
    let engine = engine();
    let held = engine.run(0, |core| async move {
        let options = null::NullOptions {
            size: 1 << 20,
            latency_ns: LATENCY_NS,
            read_zeroes: true,
            ..Default::default()
        };
        let below = Node::new("below", null::open(options).expect("a device"));
        let (controller, node) = nvme_over(&core, below).await;
        let channel = core.open(&node).await.expect("a channel");
        let own = Own::new();
        let region = own.register(&core);
        let mut buf = region.buf(4096, 8192).expect("a part");
        buf.fill(0, 8192, 0xaa);

        let begun = core.now();
        channel.submit(Op::read(0, IoVector::from(buf))).expect("a slot");
        core.sleep(Duration::from_millis(1)).await;
        let taker = core.clone();
        let waiting = core.spawn(async move {
            taker.unregister(region).await;
            taker.now()
        });
        let mut read = false;
        while !read {
            assert!(!waiting.is_finished(), "the memory was given back under a live command");
            core.yield_now().await;
            channel.poll(|completion| {
                assert!(completion.op.data.whole().is_all(0), "the read reached the memory");
                read = true;
            });
        }
        let taken_back = waiting.await.expect("the task");
        assert!(taken_back - begun >= LATENCY_NS);
        drop(own);
        controller
    });
    let controller = held.expect("the test");
    engine.shutdown().expect("an orderly shutdown");
    drop(controller);
}
