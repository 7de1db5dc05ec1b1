//! What each cluster of an overlay is: a word for each, which any core reads without a lock, and
//! which one task at a time may change.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use oxblock_engine::{Error, ErrorKind};

/// Where a cluster's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Below.
    Nothing,
    /// In memory.
    Memory,
    /// Nowhere: zeroes.
    Zero,
}

/// A cluster's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub held: Held,
    /// A task is about to change what it is: writes wait for that.
    pub busy: bool,
}

/// The most clusters: each takes a byte.
const MOST: u64 = 1 << 28;

const MEMORY: u8 = 1;
const ZERO: u8 = 2;
const BUSY: u8 = 4;

impl State {
    fn of_word(word: u8) -> Self {
        let held = match word & !BUSY {
            MEMORY => Held::Memory,
            ZERO => Held::Zero,
            _ => Held::Nothing,
        };
        Self { held, busy: word & BUSY != 0 }
    }
}

/// All clusters.
pub(super) struct Clusters {
    /// The node's length.
    pub length: u64,
    /// A cluster's; the last may end sooner.
    pub size: u64,
    shift: u32,
    words: Box<[AtomicU8]>,
    /// Clusters in memory, and how many there may be.
    used: AtomicU64,
    most: u64,
}

impl Clusters {
    pub fn new(length: u64, size: u64, max_memory: Option<u64>) -> Result<Self, Error> {
        let count = length.div_ceil(size);
        let mut words = Vec::new();
        if count > MOST || words.try_reserve_exact(count as usize).is_err() {
            let text = format!("{count} clusters are too many; give a larger cluster-size");
            return Err(Error::new(ErrorKind::OutOfMemory, text));
        }
        words.extend((0..count).map(|_| AtomicU8::new(0)));
        let most = max_memory.map_or(u64::MAX, |bytes| bytes / size);
        let (words, used) = (words.into(), AtomicU64::new(0));
        Ok(Self { length, size, shift: size.trailing_zeros(), words, used, most })
    }

    /// The number of the cluster that a byte is in.
    #[inline]
    pub fn of(&self, offset: u64) -> u64 {
        offset >> self.shift
    }

    /// Where the cluster ends that a byte is in.
    #[inline]
    pub fn end_of(&self, offset: u64) -> u64 {
        (((offset >> self.shift) + 1) << self.shift).min(self.length)
    }

    /// Where these clusters begin and end.
    pub fn bytes(&self, clusters: &Range<u64>) -> Range<u64> {
        clusters.start << self.shift..(clusters.end << self.shift).min(self.length)
    }

    /// Whether the bytes from `at` to `end`, in one cluster, are all of it.
    #[inline]
    pub fn is_whole(&self, at: u64, end: u64) -> bool {
        at & (self.size - 1) == 0 && end == self.end_of(at)
    }

    /// The state of the cluster that a byte is in.
    #[inline]
    pub fn state(&self, offset: u64) -> State {
        // Who sees that it is in memory sees the bytes that were written before that was said.
        State::of_word(self.word(self.of(offset)).load(Ordering::Acquire))
    }

    /// What a cluster is.
    pub fn held(&self, cluster: u64) -> Held {
        State::of_word(self.word(cluster).load(Ordering::Acquire)).held
    }

    /// Whether no task is at a cluster.
    pub fn is_free(&self, cluster: u64) -> bool {
        self.word(cluster).load(Ordering::Acquire) & BUSY == 0
    }

    /// Makes a cluster the caller's to change, if it is nobody's and `wanted`.
    pub fn take(&self, cluster: u64, wanted: impl Fn(Held) -> bool) -> bool {
        let take = |word| {
            let State { held, busy } = State::of_word(word);
            (!busy && wanted(held)).then_some(word | BUSY)
        };
        self.word(cluster).fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }

    /// Says what a cluster is that the caller has taken.
    pub fn set(&self, cluster: u64, held: Held) {
        let word = match held {
            Held::Nothing => 0,
            Held::Memory => MEMORY,
            Held::Zero => ZERO,
        };
        self.word(cluster).store(word | BUSY, Ordering::Release);
    }

    /// Lets go of a cluster that the caller has taken.
    pub fn let_go(&self, cluster: u64) {
        self.word(cluster).fetch_and(!BUSY, Ordering::Release);
    }

    /// Counts memory for so many clusters, unless that is more than there may be.
    pub fn reserve(&self, count: u64) -> bool {
        let add = |used: u64| used.checked_add(count).filter(|&used| used <= self.most);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// Takes so many clusters off the count.
    pub fn unreserve(&self, count: u64) {
        self.used.fetch_sub(count, Ordering::Relaxed);
    }

    #[inline]
    fn word(&self, cluster: u64) -> &AtomicU8 {
        &self.words[cluster as usize]
    }
}
