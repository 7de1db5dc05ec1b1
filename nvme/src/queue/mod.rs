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
                write!(
                    f,
                    "a queue needs {needed} bytes of memory and was given {found}"
                )
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
    if needed > found {
        Err(RingError::Memory { needed, found })
    } else {
        Ok(())
    }
}

/// Steps from `from` to `to` in a ring of `entries`; both are below it.
#[inline]
const fn distance(from: u32, to: u32, entries: u32) -> u32 {
    if to >= from {
        to - from
    } else {
        to + entries - from
    }
}

/// The place after `at`.
#[inline]
const fn after(at: u32, entries: u32) -> u32 {
    if at + 1 == entries { 0 } else { at + 1 }
}
