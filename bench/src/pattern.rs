//! Which block next, and whether to read or to write it.
//!
//! Everything here replays from its seed. Nothing divides, and nothing keeps a bit per block: the
//! random order that touches each block once is a keyed bijection of a counter.

/// xoshiro256++ (Blackman and Vigna, public domain algorithm), seeded through splitmix64.
#[derive(Clone, Debug)]
pub struct Prng {
    state: [u64; 4],
}

impl Prng {
    /// The generator of one seed; every seed is good, also 0.
    pub fn new(seed: u64) -> Prng {
        let mut feed = seed;
        let state = [0; 4].map(|_: u64| {
            feed = feed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix64(feed)
        });
        Prng { state }
    }

    /// The next 64 bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound` (0 when `bound` is 0), by multiply and shift.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

/// The finalizer of splitmix64: a bijection of 64-bit words that spreads every bit.
#[inline]
pub fn mix64(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A random order over `0..count` that yields each number exactly once a pass.
///
/// A counter over the next power of two goes through three keyed multiply-and-shift rounds, each
/// a bijection; results past the end are skipped (fewer than half). What fio's random map does,
/// without the map.
#[derive(Clone, Debug)]
pub struct Permutation {
    count: u64,
    mask: u64,
    shift: u32,
    counter: u64,
    keys: [u64; 4],
}

impl Permutation {
    /// The order of one seed. `count` is between 1 and 2^63.
    pub fn new(count: u64, seed: u64) -> Permutation {
        assert!((1..=1 << 63).contains(&count), "a permutation needs 1 to 2^63 blocks");
        let bits = u64::BITS - (count - 1).leading_zeros();
        let mask = (1 << bits) - 1;
        let mut random = Prng::new(seed);
        let mut keys = [0; 4].map(|_: u64| random.next_u64() | 1);
        keys[3] = random.next_u64();
        Permutation { count, mask, shift: bits.div_ceil(2).max(1), counter: 0, keys }
    }

    /// The next number, or `None` at the end of the pass; the call after that starts anew.
    #[inline]
    pub fn next_block(&mut self) -> Option<u64> {
        loop {
            if self.counter > self.mask {
                self.counter = 0;
                return None;
            }
            let word = self.scramble(self.counter);
            self.counter += 1;
            if word < self.count {
                return Some(word);
            }
        }
    }

    #[inline]
    fn scramble(&self, counter: u64) -> u64 {
        let [a, b, c, offset] = self.keys;
        let word = counter.wrapping_add(offset).wrapping_mul(a) & self.mask;
        let word = (word ^ (word >> self.shift)).wrapping_mul(b) & self.mask;
        let word = (word ^ (word >> self.shift)).wrapping_mul(c) & self.mask;
        word ^ (word >> self.shift)
    }
}

/// How the blocks of a job follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Upwards from the start, each direction for itself.
    Sequential,
    /// At random, each block once a pass (fio's random map).
    RandomOnce,
    /// At random, with repeats (fio's `norandommap`).
    Random,
}

/// One step of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The block's number within the job's range.
    pub block: u64,
    /// Write it (else read it).
    pub write: bool,
}

/// The steps of one job, without end: each pass over the range follows the last.
#[derive(Clone, Debug)]
pub struct Steps {
    blocks: u64,
    seed: u64,
    pass: u64,
    source: Source,
    direction: Direction,
}

#[derive(Clone, Debug)]
enum Source {
    Sequential { next: [u64; 2] },
    Once(Permutation),
    Uniform(Prng),
}

#[derive(Clone, Debug)]
enum Direction {
    Read,
    Write,
    /// Read when the next 32 random bits fall below the threshold.
    Mixed {
        random: Prng,
        threshold: u64,
    },
}

impl Steps {
    /// Steps over `blocks` blocks (at least one), of which `read_percent` in a hundred are reads.
    pub fn new(order: Order, blocks: u64, read_percent: u8, seed: u64) -> Steps {
        assert!(blocks > 0, "a job needs at least one block");
        let source = match order {
            Order::Sequential => Source::Sequential { next: [0; 2] },
            Order::RandomOnce => Source::Once(Permutation::new(blocks, seed)),
            Order::Random => Source::Uniform(Prng::new(seed)),
        };
        let direction = match read_percent {
            0 => Direction::Write,
            1..=99 => Direction::Mixed {
                random: Prng::new(mix64(!seed)),
                threshold: (u64::from(read_percent) << 32) / 100,
            },
            _ => Direction::Read,
        };
        Steps { blocks, seed, pass: 0, source, direction }
    }

    /// The next step.
    #[inline(always)]
    pub fn next_step(&mut self) -> Step {
        let write = match &mut self.direction {
            Direction::Read => false,
            Direction::Write => true,
            Direction::Mixed { random, threshold } => random.next_u64() >> 32 >= *threshold,
        };
        let block = match &mut self.source {
            Source::Sequential { next } => {
                let next = &mut next[usize::from(write)];
                let block = *next;
                *next = if block + 1 == self.blocks { 0 } else { block + 1 };
                block
            }
            Source::Once(permutation) => match permutation.next_block() {
                Some(block) => block,
                None => self.next_pass(),
            },
            Source::Uniform(random) => random.below(self.blocks),
        };
        Step { block, write }
    }

    #[cold]
    fn next_pass(&mut self) -> u64 {
        self.pass += 1;
        let mut order = Permutation::new(self.blocks, mix64(self.seed.wrapping_add(self.pass)));
        let first = order.next_block().unwrap_or(0);
        self.source = Source::Once(order);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prng_matches_the_published_vectors() {
        // splitmix64 of seed 0 begins e220a8397b1dcdaf; xoshiro256++ of state 1,2,3,4 begins
        // 41943041, 58720359 (the test vector that the reference implementation gives).
        assert_eq!(Prng::new(0).state[0], 0xe220_a839_7b1d_cdaf);
        let mut random = Prng { state: [1, 2, 3, 4] };
        assert_eq!(random.next_u64(), 41_943_041);
        assert_eq!(random.next_u64(), 58_720_359);
    }

    #[test]
    fn a_pass_touches_every_block_once() {
        for count in [1, 2, 3, 5, 7, 8, 100, 1000, 1024, 1025, 65_537] {
            let mut order = Permutation::new(count, 42 + count);
            for pass in 0..2 {
                let mut seen = vec![false; count as usize];
                while let Some(block) = order.next_block() {
                    assert!(!seen[block as usize], "{count}, pass {pass}: {block} twice");
                    seen[block as usize] = true;
                }
                assert!(seen.iter().all(|&s| s), "{count}, pass {pass}: a block left out");
            }
        }
    }

    #[test]
    fn every_pass_has_an_order_of_its_own() {
        let mut steps = Steps::new(Order::RandomOnce, 1000, 0, 7);
        let passes: Vec<Vec<u64>> =
            (0..2).map(|_| (0..1000).map(|_| steps.next_step().block).collect()).collect();
        for pass in &passes {
            let mut sorted = pass.clone();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..1000));
        }
        assert_ne!(passes[0], passes[1]);
        assert!(!passes[0].is_sorted());
    }

    #[test]
    fn random_blocks_stay_in_range_and_spread() {
        let mut steps = Steps::new(Order::Random, 1000, 100, 1);
        let mut tenths = [0u32; 10];
        for _ in 0..100_000 {
            let step = steps.next_step();
            assert!(step.block < 1000 && !step.write);
            tenths[(step.block / 100) as usize] += 1;
        }
        assert!(tenths.iter().all(|&n| (9_500..10_500).contains(&n)), "{tenths:?}");
    }

    #[test]
    fn a_random_pass_has_no_visible_run() {
        // Neighbours in time should not be neighbours in place: the mean jump of a uniform
        // random order over n blocks is n/3.
        let mut order = Permutation::new(1 << 16, 3);
        let blocks: Vec<i64> =
            std::iter::from_fn(|| order.next_block()).map(|block| block as i64).collect();
        let jumps: i64 = blocks.windows(2).map(|w| (w[0] - w[1]).abs()).sum();
        let mean = jumps / (blocks.len() as i64 - 1);
        assert!((19_000..25_000).contains(&mean), "{mean}");
    }

    #[test]
    fn sequential_directions_keep_their_own_place() {
        let mut steps = Steps::new(Order::Sequential, 4, 50, 9);
        let mut next = [0; 2];
        for _ in 0..1000 {
            let step = steps.next_step();
            let place = &mut next[usize::from(step.write)];
            assert_eq!(step.block, *place);
            *place = (*place + 1) % 4;
        }
    }

    #[test]
    fn the_mix_is_as_asked() {
        for percent in [0, 30, 70, 100] {
            let mut steps = Steps::new(Order::Random, 10, percent, 5);
            let reads = (0..100_000).filter(|_| !steps.next_step().write).count() as i64;
            assert!((reads - i64::from(percent) * 1000).abs() < 700, "{percent}: {reads}");
        }
    }

    #[test]
    fn the_same_seed_replays() {
        for order in [Order::Sequential, Order::RandomOnce, Order::Random] {
            let list = |seed| {
                let mut steps = Steps::new(order, 777, 70, seed);
                (0..2000).map(|_| steps.next_step()).collect::<Vec<_>>()
            };
            assert_eq!(list(3), list(3));
            assert_ne!(list(3), list(4));
        }
    }
}
