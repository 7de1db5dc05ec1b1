//! New contents for writes, where the buffers' own do not do.

use crate::options::{Contents, JobOptions};
use crate::pattern::{Prng, mix64};

/// Bytes that a stamp makes different, in each of fio's sectors.
const STAMP: usize = 8;
const SECTOR: usize = 512;

/// Fills the buffers of writes.
#[derive(Debug)]
pub(super) struct Filler {
    random: Prng,
    contents: Contents,
    how: How,
}

#[derive(Debug)]
enum How {
    /// New contents for each write.
    Refill,
    /// So many writes of 2^32 have the contents of the one before.
    Repeat { share: u64, last: u64 },
    /// A few bytes of each sector are new.
    Scramble,
}

impl Filler {
    /// What a job asks for; `None`: each buffer keeps what it has.
    pub fn new(options: &JobOptions, seed: u64) -> Option<Filler> {
        let shape = &options.shape;
        let how = match shape.dedupe_percent {
            0 if shape.refill => How::Refill,
            0 if shape.scramble => How::Scramble,
            0 => return None,
            percent => How::Repeat { share: (u64::from(percent) << 32) / 100, last: 0 },
        };
        let random = Prng::new(mix64(seed ^ 2));
        Some(Filler { random, contents: options.contents.clone(), how })
    }

    pub fn fill(&mut self, block: &mut [u8]) {
        match &mut self.how {
            How::Refill => self.contents.fill(&mut self.random, block),
            How::Repeat { share, last } => {
                if *last == 0 || self.random.next_u64() >> 32 >= *share {
                    *last = self.random.next_u64() | 1;
                }
                self.contents.fill(&mut Prng::new(*last), block);
            }
            How::Scramble => {
                for sector in block.chunks_mut(SECTOR) {
                    let stamp = self.random.next_u64().to_le_bytes();
                    let len = sector.len().min(STAMP);
                    sector[..len].copy_from_slice(&stamp[..len]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(words: &[(&str, &str)]) -> Vec<Vec<u8>> {
        let mut options = JobOptions::default();
        words.iter().for_each(|(name, value)| options.set(name, value).expect("a good word"));
        let mut filler = Filler::new(&options, 7).expect("a filler");
        let mut block = vec![0; 4096];
        let filled = |_| {
            filler.fill(&mut block);
            block.clone()
        };
        (0..1000).map(filled).collect()
    }

    #[test]
    fn as_many_blocks_repeat_as_asked() {
        for (percent, low, high) in [("30", 640, 760), ("100", 1, 1), ("90", 70, 130)] {
            let mut all = blocks(&[("dedupe_percentage", percent)]);
            all.sort_unstable();
            all.dedup();
            assert!((low..=high).contains(&all.len()), "{percent} %: {} are unique", all.len());
        }
    }

    #[test]
    fn a_scrambled_block_keeps_all_but_a_stamp_in_each_sector() {
        let all = blocks(&[("scramble_buffers", "1"), ("zero_buffers", "1")]);
        for (one, next) in all.iter().zip(&all[1..]) {
            for (one, next) in one.chunks(SECTOR).zip(next.chunks(SECTOR)) {
                assert!(one[..STAMP] != next[..STAMP] && one[STAMP..] == next[STAMP..]);
            }
        }
    }
}
