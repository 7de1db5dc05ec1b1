//! Scatter lists of all shapes, with guards around their bytes.

use oxblock_engine::Core;
use oxblock_mem::{Buf, IoVector};

use crate::random::Random;

const GUARD: u8 = 0xa5;

/// A scatter list, and the bytes next to it, which nobody may write.
pub struct Scatter {
    /// The list.
    pub data: IoVector,
    guards: IoVector,
}

impl Scatter {
    /// A list of `len` bytes in at most `pieces` pieces of odd sizes at odd addresses, cut
    /// out of longer lists and joined again.
    pub fn new(core: &Core, random: &mut Random, len: usize, pieces: usize) -> Self {
        let mut data = IoVector::new();
        let mut guards = IoVector::new();
        for part in parts(random, len, pieces) {
            let (before, after) = (random.within(0..70) as usize, random.within(0..70) as usize);
            let buf = core.arena().alloc(before + part + after, 1).expect("memory of the arena");
            let mut whole = cut(random, buf);
            whole.fill(0, whole.len(), GUARD);
            let mut middle = whole.split_off(before);
            let tail = middle.split_off(part);
            guards.join(whole);
            guards.join(tail);
            data.join(middle);
        }
        Self { data, guards }
    }

    /// One aligned buffer, as a pool gives them.
    pub fn plain(core: &Core, len: usize) -> Self {
        let buf = core.arena().alloc(len.max(1), 4096).expect("memory of the arena");
        let mut data = IoVector::from(buf);
        let mut guards = data.split_off(len);
        guards.fill(0, guards.len(), GUARD);
        Self { data, guards }
    }

    /// Any of these.
    pub fn any(core: &Core, random: &mut Random, len: usize) -> Self {
        match random.within(0..6) {
            0 | 1 => Self::plain(core, len),
            2 => Self::new(core, random, len, 1),
            3 | 4 => Self::new(core, random, len, 7),
            _ => Self::new(core, random, len, 200),
        }
    }

    /// Fills the list.
    pub fn with(mut self, bytes: &[u8]) -> Self {
        self.data.write_at(0, bytes);
        self
    }

    /// The bytes of a list that came back in `data`, after a look at the guards.
    pub fn bytes(&self, data: &IoVector) -> Vec<u8> {
        self.check_guards();
        let mut bytes = vec![0; data.len()];
        data.read_at(0, &mut bytes);
        bytes
    }

    /// Takes the list, to be given to an operation.
    pub fn take(&mut self) -> IoVector {
        std::mem::take(&mut self.data)
    }

    fn check_guards(&self) {
        let mut bytes = vec![0; self.guards.len()];
        self.guards.read_at(0, &mut bytes);
        let stray = bytes.iter().position(|&byte| byte != GUARD);
        assert_eq!(stray, None, "a byte beside the buffers was written");
    }
}

/// Odd lengths that add up to `len`.
fn parts(random: &mut Random, len: usize, pieces: usize) -> Vec<usize> {
    let mut parts = Vec::new();
    let mut left = len;
    while left > 0 {
        let fair = (2 * len / pieces).max(2) as u64;
        let last = parts.len() + 1 >= pieces;
        let part = if last { left } else { (random.within(1..fair) as usize | 1).min(left) };
        parts.push(part);
        left -= part;
    }
    parts
}

/// A list of one buffer, in up to three parts that touch.
fn cut(random: &mut Random, mut buf: Buf) -> IoVector {
    let mut parts = Vec::new();
    for _ in 0..random.within(0..3) {
        if buf.len() > 1 {
            parts.push(buf.split_off(random.within(1..buf.len() as u64) as usize));
        }
    }
    let mut list = IoVector::from(buf);
    for part in parts.into_iter().rev() {
        list.join(part.into());
    }
    list
}
