//! Erasing parts of nodes, one bounded operation at a time.

use oxblock_engine::{Completion, Op, OpFlags, OpKind};
use oxblock_mem::Buf;

use crate::namespace::Part;

/// Bytes that one operation erases: what others on the core may have to wait for.
pub(crate) const PIECE: usize = 1 << 20;
/// Bytes of the memory that a pattern is written from.
pub(crate) const PATTERN: usize = 128 << 10;

/// How bytes are erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// They are discarded; what they read as is the node's affair.
    Deallocate,
    /// They become zeroes, whose space may be freed or not.
    Zeroes {
        /// It may be freed.
        may_unmap: bool,
    },
    /// They are overwritten with a word, which is inverted in every second pass or not.
    Pattern { word: u32, invert: bool },
}

/// An erasure on its way: over all parts, as many times as it has passes, then a flush of each
/// node.
pub(crate) struct Erasure {
    parts: Vec<Part>,
    how: How,
    passes: u32,
    pass: u32,
    /// The part in work, and how much of it is done.
    index: usize,
    at: u64,
    /// Nodes that are still to be flushed.
    flushes: Vec<usize>,
    done: u64,
    /// The memory of a pattern: free, and kept back for a piece that is shorter.
    memory: Option<Buf>,
    rest: Option<Buf>,
    filled: Option<u32>,
}

impl Erasure {
    /// `memory` is [`PATTERN`] bytes for a pattern, and none otherwise.
    pub(crate) fn new(parts: Vec<Part>, how: How, passes: u32, memory: Option<Buf>) -> Erasure {
        let mut flushes: Vec<usize> = parts.iter().map(|part| part.backing).collect();
        flushes.sort_unstable();
        flushes.dedup();
        let parts: Vec<Part> = parts.into_iter().filter(|part| part.len > 0).collect();
        let passes = if parts.is_empty() { 0 } else { passes };
        Erasure {
            parts,
            how,
            passes,
            pass: 0,
            index: 0,
            at: 0,
            flushes,
            done: 0,
            memory,
            rest: None,
            filled: None,
        }
    }

    /// The next operation, and the node that it is for; `None` when all is done. The one before
    /// has completed.
    pub(crate) fn next(&mut self) -> Option<(usize, Op)> {
        if self.pass >= self.passes {
            return self.flushes.pop().map(|backing| (backing, Op::flush()));
        }
        let part = *self.parts.get(self.index)?;
        let offset = part.base + self.at;
        let left = part.len - self.at;
        let piece = left.min(PIECE as u64);
        let op = match self.how {
            How::Deallocate => Op::discard(offset, piece),
            How::Zeroes { may_unmap: true } => {
                Op::write_zeroes(offset, piece).flags(OpFlags::MAY_UNMAP)
            }
            How::Zeroes { may_unmap: false } => Op::write_zeroes(offset, piece),
            How::Pattern { word, invert } => {
                let inverted = invert && self.pass % 2 == 1;
                let memory = self.pattern(if inverted { !word } else { word }, left)?;
                Op::write(offset, memory)
            }
        };
        Some((part.backing, op))
    }

    /// Memory full of a word, at most `left` bytes of it.
    fn pattern(&mut self, word: u32, left: u64) -> Option<Buf> {
        let mut memory = self.memory.take()?;
        if self.filled != Some(word) {
            let words = word.to_le_bytes().repeat(memory.len() / 4);
            memory.write_at(0, &words);
            self.filled = Some(word);
        }
        if left < memory.len() as u64 {
            self.rest = Some(memory.split_off(left as usize));
        }
        Some(memory)
    }

    /// An operation has ended well.
    pub(crate) fn completed(&mut self, completion: Completion) {
        let op = completion.op;
        if let Some(mut memory) = op.data.into_single() {
            if let Some(rest) = self.rest.take() {
                // The two were one before.
                let _ = memory.try_join(rest);
            }
            self.memory = Some(memory);
        }
        if op.kind == OpKind::Flush {
            return;
        }
        self.at += op.len;
        self.done += op.len;
        if self.parts.get(self.index).is_none_or(|part| self.at >= part.len) {
            (self.index, self.at) = (self.index + 1, 0);
        }
        if self.index >= self.parts.len() {
            (self.index, self.pass) = (0, self.pass + 1);
        }
    }

    /// Passes that are done.
    pub(crate) fn passes_done(&self) -> u32 {
        self.pass
    }

    /// How much is done, of `whole`; less than all of it while anything is left.
    pub(crate) fn progress(&self, whole: u32) -> u32 {
        let bytes: u128 = self.parts.iter().map(|part| u128::from(part.len)).sum();
        let total = (bytes * u128::from(self.passes)).max(1);
        let done = u128::from(self.done) * u128::from(whole) / total;
        (done as u32).min(whole.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oxblock_mem::{ArenaOptions, ArenaSource, Memory, PagePolicy};

    fn memory() -> Buf {
        let options = ArenaOptions {
            size: 2 << 20,
            pages: PagePolicy::Unlocked,
            node: None,
            source: ArenaSource::Memfd,
        };
        let arena = Memory::new().add_arena(&options).unwrap();
        arena.alloc(PATTERN, 4096).unwrap()
    }

    fn run(erasure: &mut Erasure, mut see: impl FnMut(usize, &Op)) {
        let mut last = 0;
        while let Some((backing, op)) = erasure.next() {
            see(backing, &op);
            erasure.completed(Completion { op, result: Ok(()) });
            let progress = erasure.progress(100);
            assert!((last..100).contains(&progress));
            last = progress;
        }
    }

    #[test]
    fn every_part_is_erased_in_pieces_and_every_node_flushed() {
        let parts = vec![
            Part { backing: 0, base: 4096, len: PIECE as u64 + 512 },
            Part { backing: 1, base: 0, len: 0 },
            Part { backing: 0, base: 1 << 30, len: 512 },
        ];
        let mut erasure = Erasure::new(parts, How::Zeroes { may_unmap: true }, 1, None);
        let (mut erased, mut flushed) = (Vec::new(), Vec::new());
        run(&mut erasure, |backing, op| match op.kind {
            OpKind::Flush => flushed.push(backing),
            _ => erased.push((op.offset, op.len)),
        });
        let piece = PIECE as u64;
        assert_eq!(erased, [(4096, piece), (4096 + piece, 512), (1 << 30, 512)]);
        assert_eq!(flushed, [1, 0]);
    }

    #[test]
    fn a_pattern_is_inverted_between_passes() {
        let len = PATTERN as u64 + 8;
        let how = How::Pattern { word: 0x1234_5678, invert: true };
        let parts = vec![Part { backing: 0, base: 0, len }];
        let mut erasure = Erasure::new(parts, how, 3, Some(memory()));
        let mut seen = Vec::new();
        run(&mut erasure, |_, op| {
            let mut word = [0; 4];
            if op.kind == OpKind::Write {
                op.data.read_at(op.len as usize - 4, &mut word);
                seen.push((op.offset, op.len, u32::from_le_bytes(word)));
            }
        });
        let pass = |word| [(0, PATTERN as u64, word), (PATTERN as u64, 8, word)];
        let expected = [pass(0x1234_5678), pass(!0x1234_5678), pass(0x1234_5678)].concat();
        assert_eq!(seen, expected);
        assert_eq!(erasure.passes_done(), 3);
    }
}
