//! Features of controllers, between the NVMe driver and the software controller.

use std::sync::Arc;
use std::time::Duration;

use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_drivers::nvme::{AdminData, Controller as Host, NvmeOptions};
use oxblock_engine::{Channel, Core, Engine, ErrorKind, Node, Options};
use oxblock_mem::ArenaOptions;
use oxblock_nvme::feature::{AUTONOMOUS_POWER_STATE_TRANSITION, SEL_CURRENT};
use oxblock_nvme::log::LID_ERROR;
use oxblock_nvme::{Command, NSID_ALL};
use oxblock_nvmet::{Controller as Target, ControllerOptions, NamespaceOptions};

const LEN: usize = 64 << 10;

/// Format NVM: 512 bytes of data with 8 of metadata, and protection information of type 1.
const PROTECTED_FORMAT: u8 = 2;
const PROTECTION_TYPE_1: u32 = 1 << 5;

fn engine() -> Engine {
    let options = Options { arena: ArenaOptions::new(16 << 20), ..Options::default() };
    Engine::with_cores(2, options).expect("an engine")
}

/// A controller of core 1, over a memory disk of 1 MiB.
async fn target(core: &Core, options: ControllerOptions) -> Arc<Target> {
    let disk = MemoryOptions { size: 1 << 20, block_size: 512 };
    let node = Node::new("memory0", memory::open(disk).expect("a memory disk"));
    let namespaces = vec![NamespaceOptions::new(node, 512)];
    let options = ControllerOptions { namespaces, max_queue_entries: 64, ..options };
    let start = move |core: Core| async move { Target::start(&core, options).await };
    core.call(1, start).await.and_then(|result| result).expect("a controller")
}

async fn attach(core: &Core, target: &Target, options: NvmeOptions) -> (Arc<Host>, Channel) {
    let host = Host::attach(core, target.function(), options).await.expect("the driver");
    let node = Node::new("nvme0n1", host.namespace(1).expect("namespace 1"));
    (host, core.open(&node).await.expect("a queue"))
}

/// Writes, and reads back.
async fn exercise(core: &Core, channel: &Channel, byte: u8) {
    for at in 0..16 {
        let mut buf = core.arena().alloc(LEN, 4096).expect("memory");
        buf.fill(0, LEN, byte);
        channel.write(at * LEN as u64, buf).await.1.expect("a write");
    }
    for at in 0..16 {
        let buf = core.arena().alloc(LEN, 4096).expect("memory");
        let (list, result) = channel.read(at * LEN as u64, buf).await;
        result.expect("a read");
        let mut bytes = vec![0; LEN];
        list.read_at(0, &mut bytes);
        assert!(bytes.iter().all(|b| *b == byte));
    }
}

/// Row 37. The submission queue is in the controller's memory, before and after resets of the
/// controller and of its function.
#[test]
fn queues_work_in_controller_memory() {
    let engine = engine();
    let done = engine.run(0, |core| async move {
        let bytes = 64 << 10;
        let target =
            target(&core, ControllerOptions { cmb_bytes: bytes, ..Default::default() }).await;
        let options = NvmeOptions { controller_memory: true, ..NvmeOptions::default() };
        let (host, channel) = attach(&core, &target, options).await;
        assert!(host.notices().is_empty(), "{:?}", host.notices());
        let bar = target.function().bar(2).expect("the memory");
        let commands = || (0..64).filter(|n| bar.read64(n * 64) & 0xff != 0).count();
        assert_eq!(commands(), 0);
        exercise(&core, &channel, 0x5a).await;
        assert!(commands() >= 32, "{} of 64 entries were used", commands());
        for n in 0..3 {
            host.reset(&core).await.expect("a reset");
            exercise(&core, &channel, n).await;
        }
        drop(channel);
        host.shutdown(&core).await.expect("a shutdown");
    });
    done.expect("the test");
    engine.shutdown().expect("an orderly shutdown");
}

/// A buffer that has room for the queue of one core only: the other's is in memory of the host.
#[test]
fn controller_memory_that_is_full_is_no_obstacle() {
    let engine = engine();
    let done = engine.run(0, |core| async move {
        let target =
            target(&core, ControllerOptions { cmb_bytes: 4096, ..Default::default() }).await;
        let options = NvmeOptions { controller_memory: true, ..NvmeOptions::default() };
        let (host, channel) = attach(&core, &target, options).await;
        let node = channel.node().clone();
        exercise(&core, &channel, 1).await;
        let other = move |core: Core| async move {
            let channel = core.open(&node).await.expect("a queue");
            exercise(&core, &channel, 2).await;
        };
        core.call(1, other).await.expect("the other core");
        assert_eq!(host.stats().queues, 2);
    });
    done.expect("the test");
    engine.shutdown().expect("an orderly shutdown");
}

/// What is in the persistent memory region outlives resets and hosts, and I/O reaches it.
#[test]
fn persistent_memory_outlives_hosts_and_resets() {
    let engine = engine();
    let done = engine.run(0, |core| async move {
        let pmr_bytes = 64 << 10;
        let target = target(&core, ControllerOptions { pmr_bytes, ..Default::default() }).await;
        let (host, channel) = attach(&core, &target, NvmeOptions::default()).await;
        exercise(&core, &channel, 0x77).await;
        let region = host.persistent_memory(&core).await.expect("a region");
        assert_eq!(region.len(), pmr_bytes);
        let mut memory = region.memory(4096, 8192).expect("its memory");
        assert!(region.memory(4096, pmr_bytes).is_err() && region.memory(0, 100).is_err());
        memory.write_at(8000, b"kept");
        region.flush().expect("a flush");
        let (list, result) = channel.read(0, region.memory(0, 4096).expect("memory")).await;
        result.expect("a read into it");
        drop(list);
        host.reset(&core).await.expect("a reset");
        region.flush().expect("a flush after the reset");
        target.function().reset().expect("a reset of the function");
        host.reset(&core).await.expect("a reset");
        region.flush().expect("it was enabled again");
        drop((region, channel));
        host.shutdown(&core).await.expect("a shutdown");
        let (host, _channel) = attach(&core, &target, NvmeOptions::default()).await;
        let region = host.persistent_memory(&core).await.expect("a region");
        let mut bytes = [0; 4];
        region.memory(4096, 8192).expect("its memory").read_at(8000, &mut bytes);
        assert_eq!(&bytes, b"kept");
        region.memory(0, 4096).expect("its memory").read_at(100, &mut bytes);
        assert_eq!(bytes, [0x77; 4]);
    });
    done.expect("the test");
    engine.shutdown().expect("an orderly shutdown");
}

/// The buffer is the controller's alone for as long as it has it, over resets and until it gives
/// it back: the controller looks, and would fail.
#[test]
fn host_memory_is_left_to_the_controller() {
    let engine = engine();
    let done = engine.run(0, |core| async move {
        let host_memory_bytes = 1 << 20;
        let options = ControllerOptions { host_memory_bytes, ..Default::default() };
        let target = target(&core, options).await;
        let (host, channel) = attach(&core, &target, NvmeOptions::default()).await;
        assert_eq!((host.host_memory(), host.notices()), (host_memory_bytes, Vec::new()));
        for n in 0..5 {
            exercise(&core, &channel, n).await;
            host.reset(&core).await.expect("a reset");
            assert_eq!(host.host_memory(), host_memory_bytes);
        }
        drop(channel);
        host.shutdown(&core).await.expect("a shutdown");
        assert_eq!((host.host_memory(), target.broken_promises()), (0, 0));
        let options = NvmeOptions { host_memory: 4096, ..NvmeOptions::default() };
        let (host, channel) = attach(&core, &target, options).await;
        assert!(host.notices().len() == 1, "below what it needs: {:?}", host.notices());
        exercise(&core, &channel, 9).await;
    });
    done.expect("the test");
    engine.shutdown().expect("an orderly shutdown");
}

/// Row 30: a controller whose timer expires is fatal, so a beat that stops is seen.
#[test]
fn a_controller_with_a_timer_is_kept_alive_over_resets() {
    let engine = engine();
    let done = engine.run(0, |core| async move {
        let options = ControllerOptions { keep_alive: true, ..Default::default() };
        let target = target(&core, options).await;
        let time = Duration::from_millis(500);
        let options = NvmeOptions { keep_alive: Some(time), ..NvmeOptions::default() };
        let (host, channel) = attach(&core, &target, options).await;
        assert!(host.notices().is_empty(), "{:?}", host.notices());
        for resets in 1..3 {
            core.sleep(2 * time).await;
            host.reset(&core).await.expect("a reset");
            exercise(&core, &channel, resets as u8).await;
            assert_eq!(host.stats().resets, resets, "those that were asked for");
        }
    });
    done.expect("the test");
    engine.shutdown().expect("an orderly shutdown");
}

/// Row 32, over a reset.
#[test]
fn power_transitions_are_as_they_were_asked_for() {
    let engine = engine();
    let done = engine.run(0, |core| async move {
        let options = ControllerOptions { power_transitions: true, ..Default::default() };
        let target = target(&core, options).await;
        for (power_latency, on) in [(None, 0), (Some(Duration::from_secs(1)), 1)] {
            let options = NvmeOptions { power_latency, ..NvmeOptions::default() };
            let (host, channel) = attach(&core, &target, options).await;
            for _ in 0..2 {
                let id = AUTONOMOUS_POWER_STATE_TRANSITION;
                let set = host.feature(&core, id, 0, SEL_CURRENT, 0, 256).await.expect("a table");
                assert_eq!(set.dword0 & 1, on);
                let entries = set.data.chunks_exact(8).filter(|entry| **entry != [0; 8]).count();
                assert_eq!(entries > 0, on == 1);
                host.reset(&core).await.expect("a reset");
            }
            drop(channel);
            host.shutdown(&core).await.expect("a shutdown");
        }
    });
    done.expect("the test");
    engine.shutdown().expect("an orderly shutdown");
}

/// The controller inserts, checks and strips protection information of type 1. A block that
/// changes below comes out as a protection error that names it.
#[test]
fn protection_information_guards_the_blocks() {
    let engine = engine();
    let done = engine.run(0, |core| async move {
        let disk = MemoryOptions { size: 1 << 20, block_size: 512 };
        let below = Node::new("memory0", memory::open(disk).expect("a memory disk"));
        let namespace =
            NamespaceOptions { metadata: true, ..NamespaceOptions::new(below.clone(), 512) };
        let options = ControllerOptions { namespaces: vec![namespace], ..Default::default() };
        let target = Target::start(&core, options).await.expect("a controller");
        let (host, channel) = attach(&core, &target, NvmeOptions::default()).await;
        drop(channel);
        let mut format = Command::format_nvm(1, PROTECTED_FORMAT, 0);
        format = format.with_cdw10_11(format.cdw10() | PROTECTION_TYPE_1, 0);
        let reply = host.admin_command(&core, format, AdminData::None, None).await;
        assert!(reply.expect("an answer").status.is_success());
        host.shutdown(&core).await.expect("a shutdown");
        drop(host);

        let (host, channel) = attach(&core, &target, NvmeOptions::default()).await;
        exercise(&core, &channel, 0x5a).await;
        let bad = 77;
        let other = core.open(&below).await.expect("the disk");
        let mut buf = core.arena().alloc(512, 512).expect("memory");
        buf.fill(0, 512, 0x5b);
        other.write(bad * 512, buf).await.1.expect("a write below");
        let buf = core.arena().alloc(LEN, 4096).expect("memory");
        let error = channel.read(0, buf).await.1.expect_err("the guard does not match");
        assert_eq!(error.kind(), ErrorKind::Protection, "{error}");
        assert!(error.to_string().contains("guard"), "{error}");
        let log = Command::log_page(LID_ERROR, NSID_ALL, 64, 0, true);
        let reply = host.admin_command(&core, log, AdminData::FromController(64), None).await;
        assert_eq!(reply.expect("the error log").data[16..24], bad.to_le_bytes());
        exercise(&core, &channel, 0x5c).await;
        drop((channel, other));
        host.shutdown(&core).await.expect("a shutdown");
    });
    done.expect("the test");
    engine.shutdown().expect("an orderly shutdown");
}
