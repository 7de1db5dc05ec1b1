//! Copies that wait a moment, while the processor fetches what they need.

use std::fmt;
use std::sync::Arc;

use crate::bytes::SharedBytes;
use crate::raw;
use crate::{Arena, View};

/// How much of a copy is fetched ahead: the processor's own prefetcher follows from there.
const AHEAD: usize = 16 * LINE;
const LINE: usize = 64;

/// Moves bytes between a disk in RAM and buffers of one arena, as a device would: a copy is
/// noted first and made later, at the latest when its command is told to be done. Several
/// that are noted together wait for memory together, not one after the other.
///
/// The arena stays mapped as long as this lives (LIVE), and bytes are moved as a device moves
/// them (SHARED). Whoever notes a copy keeps its buffers alone until [`run`](Copies::run).
pub struct Copies {
    bytes: Arc<SharedBytes>,
    arena: Arena,
    noted: Vec<Noted>,
}

struct Noted {
    src: *const u8,
    dst: *mut u8,
    len: usize,
}

// SAFETY: the pointers name mapped memory (LIVE) that is only moved as by a device (SHARED).
unsafe impl Send for Copies {}

impl Copies {
    /// Copies from and to `bytes`, up to `most` of them noted at once.
    pub fn new(bytes: Arc<SharedBytes>, arena: Arena, most: usize) -> Copies {
        Copies { bytes, arena, noted: Vec::with_capacity(most) }
    }

    /// Notes a copy of the bytes at `at` into `dst`. False, and nothing noted, if there are too
    /// many, or `dst` is not one piece of the arena. Panics beyond the end of the bytes.
    #[inline]
    pub fn to(&mut self, at: usize, dst: View<'_>) -> bool {
        let src = self.bytes.range(at, dst.len());
        match self.one_piece(dst) {
            Some(piece) => self.note(src, piece, dst.len(), src),
            None => false,
        }
    }

    /// Notes a copy of `src` over the bytes at `at`. False as with [`to`](Copies::to).
    #[inline]
    pub fn from(&mut self, at: usize, src: View<'_>) -> bool {
        let dst = self.bytes.range(at, src.len());
        match self.one_piece(src) {
            Some(piece) => self.note(piece, dst, src.len(), dst),
            None => false,
        }
    }

    /// Makes all copies that were noted, in their order.
    #[inline]
    pub fn run(&mut self) {
        for noted in self.noted.drain(..) {
            // SAFETY: in range of the bytes and of the arena, both of which live. SHARED.
            unsafe { raw::copy(noted.src, noted.dst, noted.len, true) };
        }
    }

    /// The address of a view that is one piece of the arena, if there is room to note it.
    #[inline]
    fn one_piece(&self, view: View<'_>) -> Option<*mut u8> {
        let piece = view.pieces().next()?;
        let (base, end) = self.arena.bounds();
        let at = piece.addr().addr();
        let inside = base <= at && at < end && piece.len() <= end - at;
        let room = self.noted.len() < self.noted.capacity();
        (piece.len() == view.len() && inside && room).then_some(piece.addr())
    }

    #[inline]
    fn note(&mut self, src: *const u8, dst: *mut u8, len: usize, far: *const u8) -> bool {
        let mut at = 0;
        while at < len.min(AHEAD) {
            raw::prefetch(far.wrapping_add(at));
            at += LINE;
        }
        self.noted.push(Noted { src, dst, len });
        true
    }
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies").field("noted", &self.noted.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ArenaOptions, IoVector, Memory, PagePolicy};

    fn rig(most: usize) -> (Copies, Arc<SharedBytes>, Arena) {
        let options = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(1 << 20) };
        let arena = Memory::new().add_arena(&options).unwrap();
        let bytes = Arc::new(SharedBytes::new(10_000).unwrap());
        (Copies::new(bytes.clone(), arena.clone(), most), bytes, arena)
    }

    #[test]
    fn copies_are_made_when_run_and_in_order() {
        let (mut copies, bytes, arena) = rig(3);
        let mut ones: IoVector = arena.alloc(5000, 1).unwrap().into();
        ones.fill(0, 5000, 1);
        let back: IoVector = arena.alloc(5000, 1).unwrap().into();
        assert!(copies.from(5000, ones.view(0, 5000)));
        assert!(copies.to(4999, back.view(0, 5000)));
        assert_eq!(bytes.compare(5000, ones.view(0, 1)), Some(0), "not made yet");
        copies.run();
        let mut read = vec![9; 5000];
        back.read_at(0, &mut read);
        assert_eq!(read[0], 0);
        assert_eq!(read[1..], [1; 4999]);
        copies.run();
    }

    #[test]
    fn what_cannot_be_noted_is_left_to_the_caller() {
        let (mut copies, _bytes, arena) = rig(1);
        let mut pieces: IoVector = arena.alloc(10, 1).unwrap().into();
        pieces.push(arena.alloc(10, 1).unwrap());
        assert!(!copies.to(0, pieces.view(0, 20)), "two pieces");
        assert!(!copies.to(0, pieces.view(0, 0)), "nothing");
        let other = Memory::new().add_arena(&ArenaOptions::new(4096)).unwrap();
        let elsewhere: IoVector = other.alloc(10, 1).unwrap().into();
        assert!(!copies.from(0, elsewhere.view(0, 10)), "another arena");
        assert!(copies.from(0, pieces.view(0, 10)));
        assert!(!copies.from(0, pieces.view(10, 10)), "no room");
        copies.run();
        assert!(copies.from(0, pieces.view(12, 8)), "room again");
        let mut beyond = || copies.to(9_995, pieces.view(0, 10));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut beyond)).is_err());
    }
}
