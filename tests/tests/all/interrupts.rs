//! Interrupts of the software controller: the driver sleeps on core 0, the controller works on
//! core 1, so that who is early or late is so for real. Sleeps and interrupts are counted, no time
//! is measured.

use std::sync::Arc;
use std::time::Duration;

use oxblock_drivers::null::{self, NullOptions};
use oxblock_drivers::nvme::{
    Coalescing, Controller as Host, ControllerStats, InterruptMode, NvmeOptions,
};
use oxblock_engine::{Channel, Core, Engine, Node, Op, Options, PollMode};
use oxblock_mem::ArenaOptions;
use oxblock_nvme::feature;
use oxblock_nvmet::{Controller as Target, ControllerOptions, NamespaceOptions};

const LEN: usize = 4096;

/// Two reactors that sleep as soon as they may.
fn engine() -> Engine {
    let options = Options {
        arena: ArenaOptions::new(16 << 20),
        poll_mode: PollMode::Adaptive { spin_us: 0 },
        ..Options::default()
    };
    Engine::with_cores(2, options).expect("an engine")
}

/// The driver on a controller over a device of this latency, with a channel to it.
struct Rig {
    host: Arc<Host>,
    channel: Channel,
    _target: Arc<Target>,
}

async fn rig(core: &Core, latency_ns: u64, options: NvmeOptions) -> Rig {
    let start = move |core: Core| async move {
        let null = NullOptions { latency_ns, ..NullOptions::default() };
        let node = Node::new("null0", null::open(null).expect("a null device"));
        let options = ControllerOptions {
            namespaces: vec![NamespaceOptions::new(node, 512)],
            vectors: 3,
            ..ControllerOptions::default()
        };
        Target::start(&core, options).await
    };
    let target = core.call(1, start).await.and_then(|result| result).expect("a controller");
    let host = Host::attach(core, target.function(), options).await.expect("the driver");
    let node = Node::new("nvme0n1", host.namespace(1).expect("namespace 1"));
    let channel = core.open(&node).await.expect("a queue");
    Rig { host, channel, _target: target }
}

/// Reads `count` times with up to `depth` in flight; `pause` comes between them.
async fn read<F: Future<Output = ()>>(
    core: &Core,
    rig: &Rig,
    depth: usize,
    count: u64,
    mut pause: impl FnMut() -> F,
) -> ControllerStats {
    let before = rig.host.stats();
    let (mut begun, mut ended) = (0, 0);
    while ended < count {
        while begun < count && rig.channel.in_flight() < depth {
            let buf = core.arena().alloc(LEN, 4096).expect("memory");
            rig.channel.submit(Op::read(begun % 64 * LEN as u64, buf)).expect("a slot");
            begun += 1;
        }
        rig.channel.kick();
        pause().await;
        let done = |completion: oxblock_engine::Completion| completion.result.expect("a read");
        ended += rig.channel.poll(done) as u64;
    }
    let after = rig.host.stats();
    ControllerStats {
        sleeps: after.sleeps - before.sleeps,
        interrupts: after.interrupts - before.interrupts,
        lost_interrupts: after.lost_interrupts - before.lost_interrupts,
        ..after
    }
}

/// Reads one after the other, each awaited, so that its core has nothing to do meanwhile.
async fn read_singly(core: &Core, rig: &Rig, count: u64) -> ControllerStats {
    let before = rig.host.stats();
    for _ in 0..count {
        let buf = core.arena().alloc(LEN, 4096).expect("memory");
        rig.channel.read(0, buf).await.1.expect("a read");
    }
    let after = rig.host.stats();
    ControllerStats {
        sleeps: after.sleeps - before.sleeps,
        interrupts: after.interrupts - before.interrupts,
        lost_interrupts: after.lost_interrupts - before.lost_interrupts,
        ..after
    }
}

fn options(interrupt_mode: InterruptMode) -> NvmeOptions {
    NvmeOptions { interrupt_mode, ..NvmeOptions::default() }
}
