//! Submission and completion queues (Base 2.0, 3.3), both ends of both, and shadow doorbells.
//!
//! | ring | producer | consumer |
//! |---|---|---|
//! | submission | host: [`SubmissionQueue`] | controller: [`SubmissionSource`] |
//! | completion | controller: [`CompletionSink`] | host: [`CompletionQueue`] |
//!
//! A submission ring is published by its tail doorbell, a completion ring by the phase tag in each
//! entry. Each end owns its index and keeps a checked copy of the other's. The rings are generic
//! over [`Words`]: memory of [`oxblock_mem::Cells`], or loom's atomics in the model checks.

mod completion;
mod doorbell;
mod submission;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(test)]
pub(crate) mod test_words;

pub use completion::{CompletionQueue, CompletionSink};
pub use doorbell::{ShadowDoorbell, ShadowSource, need_event};
pub use submission::{SubmissionQueue, SubmissionSource};

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use oxblock_mem::Cells;

/// Atomic words that a device or another core shares with us. Indexes count words of the width
/// asked for; the 32-bit and the 64-bit words are the same memory.
///
/// An index past [`Words::len_bytes`] is our bug and may panic: rings check theirs when built.
pub trait Words {
    /// Bytes.
    fn len_bytes(&self) -> usize;
    /// Reads a 64-bit word.
    fn load64(&self, index: usize, order: Ordering) -> u64;
    /// Writes a 64-bit word.
    fn store64(&self, index: usize, value: u64, order: Ordering);
    /// Reads a 32-bit word.
    fn load32(&self, index: usize, order: Ordering) -> u32;
    /// Writes a 32-bit word.
    fn store32(&self, index: usize, value: u32, order: Ordering);

    /// Writes eight 64-bit words, relaxed, from word `index` on: one submission queue entry.
    #[inline]
    fn store_entry(&self, index: usize, words: &[u64; 8]) {
        for (i, word) in words.iter().enumerate() {
            self.store64(index + i, *word, Ordering::Relaxed);
        }
    }

    /// Reads eight 64-bit words, relaxed, from word `index` on: one submission queue entry.
    #[inline]
    fn load_entry(&self, index: usize) -> [u64; 8] {
        std::array::from_fn(|i| self.load64(index + i, Ordering::Relaxed))
    }
}

impl Words for Cells {
    fn len_bytes(&self) -> usize {
        Cells::len_bytes(self)
    }
    #[inline]
    fn load64(&self, index: usize, order: Ordering) -> u64 {
        self.u64(index).load(order)
    }
    #[inline]
    fn store64(&self, index: usize, value: u64, order: Ordering) {
        self.u64(index).store(value, order);
    }
    #[inline]
    fn load32(&self, index: usize, order: Ordering) -> u32 {
        self.u32(index).load(order)
    }
    #[inline]
    fn store32(&self, index: usize, value: u32, order: Ordering) {
        self.u32(index).store(value, order);
    }
    #[inline]
    fn store_entry(&self, index: usize, words: &[u64; 8]) {
        for (cell, word) in self.u64s::<8>(index).iter().zip(words) {
            cell.store(*word, Ordering::Relaxed);
        }
    }
    #[inline]
    fn load_entry(&self, index: usize) -> [u64; 8] {
        self.u64s::<8>(index).each_ref().map(|cell| cell.load(Ordering::Relaxed))
    }
}

impl<W: Words + ?Sized> Words for Arc<W> {
    fn len_bytes(&self) -> usize {
        (**self).len_bytes()
    }
    #[inline]
    fn load64(&self, index: usize, order: Ordering) -> u64 {
        (**self).load64(index, order)
    }
    #[inline]
    fn store64(&self, index: usize, value: u64, order: Ordering) {
        (**self).store64(index, value, order);
    }
    #[inline]
    fn load32(&self, index: usize, order: Ordering) -> u32 {
        (**self).load32(index, order)
    }
    #[inline]
    fn store32(&self, index: usize, value: u32, order: Ordering) {
        (**self).store32(index, value, order);
    }
    #[inline]
    fn store_entry(&self, index: usize, words: &[u64; 8]) {
        (**self).store_entry(index, words);
    }
    #[inline]
    fn load_entry(&self, index: usize) -> [u64; 8] {
        (**self).load_entry(index)
    }
}

/// A ring cannot be built, or the other side sent an index that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The specification allows 2 to 65,536 entries.
    Entries(u32),
    /// The memory is shorter than the entries.
    Memory {
        /// Bytes that the entries take.
        needed: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// A head or tail that is past the ring, or past what was published.
    Index(u32),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entries(n) => write!(f, "a queue of {n} entries: NVMe allows 2 to 65536"),
            Self::Memory { needed, found } => {
                write!(f, "a queue needs {needed} bytes of memory and was given {found}")
            }
            Self::Index(at) => write!(f, "queue index {at} is not between head and tail"),
        }
    }
}

impl std::error::Error for RingError {}

fn check(entries: u32, entry_bytes: usize, words: &impl Words) -> Result<(), RingError> {
    if !(2..=65_536).contains(&entries) {
        return Err(RingError::Entries(entries));
    }
    let needed = entries as usize * entry_bytes;
    let found = words.len_bytes();
    if needed > found { Err(RingError::Memory { needed, found }) } else { Ok(()) }
}

/// Steps from `from` to `to` in a ring of `entries`; both are below it.
#[inline]
const fn distance(from: u32, to: u32, entries: u32) -> u32 {
    if to >= from { to - from } else { to + entries - from }
}

/// The place after `at`.
#[inline]
const fn after(at: u32, entries: u32) -> u32 {
    if at + 1 == entries { 0 } else { at + 1 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use oxblock_mem::{ArenaOptions, Memory};

    #[test]
    fn cells_are_words_of_both_widths() {
        let arena = Memory::new().add_arena(&ArenaOptions::default());
        let Ok(arena) = arena else {
            panic!("no memory for the test: {:?}", arena.err());
        };
        let cells = Cells::new(arena.alloc(4096, 4096).unwrap()).unwrap();
        let entry = [1, 2, 3, 4, 5, 6, 7, 0x0000_0009_0000_0008];
        cells.store_entry(504, &entry);
        assert_eq!(cells.load_entry(504), entry);
        assert_eq!(cells.load32(1022, Ordering::Relaxed), 8);
        assert_eq!(cells.load64(511, Ordering::Relaxed) >> 32, 9);
        cells.store32(0, 5, Ordering::Relaxed);
        cells.store64(1, 6, Ordering::Relaxed);
        assert_eq!((cells.load64(0, Ordering::Relaxed), cells.len_bytes()), (5, 4096));
    }
}
