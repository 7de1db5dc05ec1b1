//! Words of the tests: two separate arrays, one for each width.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::Words;

#[derive(Debug)]
pub(crate) struct TestWords {
    wide: Vec<AtomicU64>,
    narrow: Vec<AtomicU32>,
}

impl TestWords {
    /// Zeroed, `len` words of 64 bits.
    #[cfg(not(loom))]
    pub(crate) fn new(len: usize) -> Self {
        Self::with(len, len * 2)
    }

    pub(crate) fn with(wide: usize, narrow: usize) -> Self {
        Self {
            wide: (0..wide).map(|_| AtomicU64::new(0)).collect(),
            narrow: (0..narrow).map(|_| AtomicU32::new(0)).collect(),
        }
    }
}

impl Words for TestWords {
    fn len_bytes(&self) -> usize {
        (self.wide.len() * 8).max(self.narrow.len() * 4)
    }
    fn load64(&self, index: usize, order: Ordering) -> u64 {
        self.wide[index].load(order)
    }
    fn store64(&self, index: usize, value: u64, order: Ordering) {
        self.wide[index].store(value, order);
    }
    fn load32(&self, index: usize, order: Ordering) -> u32 {
        self.narrow[index].load(order)
    }
    fn store32(&self, index: usize, value: u32, order: Ordering) {
        self.narrow[index].store(value, order);
    }
}
