//! Zero-copy writes and reads on one core, from an event loop of your own.
//! Run it with: cargo run --release --example one_core

use oxblock_drivers::memory::{self, MemoryOptions};
use oxblock_engine::{Error, Node, Op, OpKind, Options, Reactor};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 10_000;

fn main() -> Result<(), Error> {
    let reactor = Reactor::new(Options::default())?;
    let core = reactor.core().clone();
    let disk = memory::open(MemoryOptions { size: 64 << 20, ..MemoryOptions::default() })?;
    let node = Node::new("disk0", disk);
    let channel = reactor.block_on(async move { core.open(&node).await })??;

    // 32 buffers travel round: each writes a block, reads it back, and goes on to the next.
    for block in 0..32 {
        let mut buf = reactor.core().arena().alloc(BLOCK, BLOCK)?;
        buf.fill(0, BLOCK, block as u8);
        let op = Op::write(block * BLOCK as u64, buf).tag(block);
        channel.submit(op).expect("the slot table holds more than 32");
    }
    let mut checked = 0;
    while checked < BLOCKS {
        reactor.poll(); // one turn, beside whatever else your loop does
        channel.poll(|done| {
            done.result.expect("memory does not fail");
            let op = done.op;
            let block = op.tag;
            let next = if op.kind == OpKind::Write {
                Op::read(op.offset, op.data).tag(block)
            } else {
                let mut data = op.data; // the bytes lie where the leaf put them
                assert!(data.whole().is_all(block as u8), "block {block} came back changed");
                checked += 1;
                data.fill(0, BLOCK, (block + 32) as u8);
                Op::write((block + 32) * BLOCK as u64 % (64 << 20), data).tag(block + 32)
            };
            channel.submit(next).expect("its slot was just freed");
        });
    }
    println!("{checked} blocks written and read back on one core");
    drop(channel);
    reactor.shutdown()
}
