//! Seeded random numbers. The seed of a failing test is in its output; set `OXBLOCK_SEED` to
//! run with it again.

use std::ops::Range;

/// SplitMix64: small, fast, and the same on every machine.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Random numbers that follow from `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from a range that is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.bits() % (range.end - range.start)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.within(0..n) == 0
    }

    /// Random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.bits().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// The seed of this run: `OXBLOCK_SEED`, or `default`. Prints it when the test panics.
pub fn seed(default: u64) -> Seed {
    let told = std::env::var("OXBLOCK_SEED").ok().and_then(|text| text.parse().ok());
    Seed(told.unwrap_or(default))
}

/// A seed that a failing test reports.
pub struct Seed(u64);

impl Seed {
    /// A generator that follows from the seed and from `stream`.
    pub fn random(&self, stream: u64) -> Random {
        Random::new(self.0 ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with OXBLOCK_SEED={}", self.0);
        }
    }
}
