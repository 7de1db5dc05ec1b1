//! I/O whose data says whether it arrived: each block is written with bytes of its own, many at a
//! time, and read back.

use oxblock_engine::{Channel, Core, Fault, Op};

/// What is written and read, in blocks of 4 KiB.
#[derive(Clone, Copy, Debug)]
pub struct Exercise {
    /// Where it begins.
    pub first: u64,
    /// How many.
    pub blocks: u64,
    /// So many are in flight at once.
    pub depth: usize,
    /// Makes the bytes differ from those of another round.
    pub round: u64,
}

impl Exercise {
    /// The length of a block in bytes.
    pub const BLOCK: u64 = 4096;

    /// The first so many blocks.
    #[must_use]
    pub fn of(blocks: u64) -> Exercise {
        Exercise { first: 0, blocks, depth: 64, round: 0 }
    }

    /// Writes all blocks, then reads them; nothing may fail.
    ///
    /// # Panics
    /// Something failed, or other bytes came back.
    pub async fn run(self, core: &Core, channel: &Channel) {
        for write in [true, false] {
            let failed = self.pass(core, channel, write).await;
            assert!(failed.is_empty(), "blocks that failed, written {write}: {failed:?}");
        }
    }

    /// Writes all blocks, or reads them and compares; which failed, and how.
    ///
    /// # Panics
    /// Other bytes came back than were written, or something completed twice or not at all.
    pub async fn pass(self, core: &Core, channel: &Channel, write: bool) -> Vec<(u64, Fault)> {
        let (mut next, mut done, mut failed) = (0, 0, Vec::new());
        let mut seen = vec![false; self.blocks as usize];
        while done < self.blocks {
            while next < self.blocks && channel.in_flight() < self.depth {
                let Ok(mut data) = core.arena().alloc(Self::BLOCK as usize, 4096) else { break };
                let offset = (self.first + next) * Self::BLOCK;
                data.fill(0, Self::BLOCK as usize, if write { self.byte(next) } else { 0 });
                let op = if write { Op::write(offset, data) } else { Op::read(offset, data) };
                if channel.submit(op.tag(next)).is_err() {
                    break;
                }
                next += 1;
            }
            channel.kick();
            core.yield_now().await;
            channel.poll(|ended| {
                let block = ended.op.tag;
                let twice = std::mem::replace(&mut seen[block as usize], true);
                assert!(!twice, "block {block} completed twice");
                done += 1;
                match ended.result {
                    Ok(()) => assert!(
                        ended.op.data.whole().is_all(self.byte(block)),
                        "block {block} has other bytes"
                    ),
                    Err(fault) => failed.push((block, fault)),
                }
            });
        }
        failed
    }

    fn byte(&self, block: u64) -> u8 {
        ((self.first + block) * 7 + self.round * 31) as u8 | 1
    }
}
