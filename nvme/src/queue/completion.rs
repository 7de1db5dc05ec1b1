use std::sync::atomic::Ordering;

use super::{RingError, Words, after, check, distance};
use crate::completion::{Completion, PHASE};

const ENTRY_WORDS: usize = Completion::BYTES / 8;

/// The host's end of a completion queue.
///
/// The word that holds the phase tag is loaded first and with acquire ordering, and nothing else
/// of the entry is looked at until its phase is the one of this lap.
#[derive(Debug)]
pub struct CompletionQueue<W> {
    head: u32,
    /// The phase bit that an entry of this lap carries: 0 or [`PHASE`].
    phase: u64,
    /// The head that the controller has been told.
    rung: u32,
    entries: u32,
    words: W,
}

impl<W: Words> CompletionQueue<W> {
    /// Over memory of at least `entries` x 16 bytes, which must be zero.
    pub fn new(words: W, entries: u32) -> Result<Self, RingError> {
        check(entries, Completion::BYTES, &words)?;
        Ok(Self { head: 0, phase: PHASE, rung: 0, entries, words })
    }

    /// Entries of the ring.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Takes the next completion, if its phase tag says that it is there.
    #[inline]
    pub fn pop(&mut self) -> Option<Completion> {
        let at = self.head as usize * ENTRY_WORDS;
        let high = self.words.load64(at + 1, Ordering::Acquire);
        if high & PHASE != self.phase {
            return None;
        }
        let low = self.words.load64(at, Ordering::Relaxed);
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase ^= PHASE;
        }
        Some(Completion([low, high]))
    }

    /// A completion waits; it stays where it is.
    #[inline]
    pub fn is_ready(&self) -> bool {
        let at = self.head as usize * ENTRY_WORDS;
        self.words.load64(at + 1, Ordering::Relaxed) & PHASE == self.phase
    }

    /// The doorbell is behind the head: (value rung last, value to ring now).
    #[inline]
    pub fn pending(&self) -> Option<(u16, u16)> {
        (self.head != self.rung).then_some((self.rung as u16, self.head as u16))
    }

    /// The doorbell has been rung with the head of now.
    #[inline]
    pub fn rang(&mut self) {
        self.rung = self.head;
    }

    /// Entries taken that the controller has not been told about: it cannot reuse them.
    #[inline]
    pub fn unrung(&self) -> u32 {
        distance(self.rung, self.head, self.entries)
    }

    /// As new, for a controller that was disabled and is to have the queue again: no entry of
    /// before is taken for one of the first lap.
    pub fn reset(&mut self) {
        (self.head, self.rung, self.phase) = (0, 0, PHASE);
        for word in 0..self.entries as usize * ENTRY_WORDS {
            self.words.store64(word, 0, Ordering::Relaxed);
        }
    }

    /// The memory of the ring.
    pub fn words(&self) -> &W {
        &self.words
    }

    /// Gives back the memory of the ring.
    pub fn into_words(self) -> W {
        self.words
    }
}

/// The controller's end of a completion queue.
#[derive(Debug)]
pub struct CompletionSink<W> {
    tail: u32,
    phase: u64,
    /// How far the host says it has read; checked.
    head: u32,
    entries: u32,
    words: W,
}

impl<W: Words> CompletionSink<W> {
    /// Over host memory of at least `entries` x 16 bytes.
    pub fn new(words: W, entries: u32) -> Result<Self, RingError> {
        check(entries, Completion::BYTES, &words)?;
        Ok(Self { tail: 0, phase: PHASE, head: 0, entries, words })
    }

    /// Entries of the ring; one less can be in use.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Completions that can be posted now.
    #[inline]
    pub fn free(&self) -> u32 {
        self.entries - 1 - self.unread()
    }

    /// Completions that the host has yet to acknowledge.
    #[inline]
    pub fn unread(&self) -> u32 {
        distance(self.head, self.tail, self.entries)
    }

    /// The ring has no room until the host reads.
    #[inline]
    pub fn is_full(&self) -> bool {
        after(self.tail, self.entries) == self.head
    }

    /// Posts a completion: the result first, then the word with the phase tag, with release
    /// ordering. Returns false, and writes nothing, if the ring is full.
    #[inline]
    pub fn post(&mut self, completion: Completion) -> bool {
        let next = after(self.tail, self.entries);
        if next == self.head {
            return false;
        }
        let at = self.tail as usize * ENTRY_WORDS;
        let high = completion.0[1] & !PHASE | self.phase;
        self.words.store64(at, completion.0[0], Ordering::Relaxed);
        self.words.store64(at + 1, high, Ordering::Release);
        if next == 0 {
            self.phase ^= PHASE;
        }
        self.tail = next;
        true
    }

    /// Takes a head doorbell value. A value past the ring, or past what was posted, changes nothing
    /// and is an error (the event Invalid Doorbell Write Value).
    #[inline]
    pub fn set_head(&mut self, head: u32) -> Result<(), RingError> {
        if head >= self.entries || distance(self.head, head, self.entries) > self.unread() {
            return Err(RingError::Index(head));
        }
        self.head = head;
        Ok(())
    }

    /// The tail: where the next completion goes.
    #[inline]
    pub fn tail(&self) -> u16 {
        self.tail as u16
    }

    /// The head as the host rang it last.
    #[inline]
    pub fn head(&self) -> u16 {
        self.head as u16
    }

    /// The memory of the ring.
    pub fn words(&self) -> &W {
        &self.words
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::test_words::TestWords;
    use super::*;
    use crate::status::Status;
    use std::sync::Arc;

    fn ends(entries: u32) -> (CompletionQueue<Arc<TestWords>>, CompletionSink<Arc<TestWords>>) {
        let words = Arc::new(TestWords::new(entries as usize * 2));
        let host = CompletionQueue::new(words.clone(), entries).unwrap();
        (host, CompletionSink::new(words, entries).unwrap())
    }

    fn entry(n: u64) -> Completion {
        Completion::new(n, n as u16, 3, n as u16, Status::SUCCESS)
    }

    #[test]
    fn phase_flips_each_lap() {
        for entries in [2, 3, 7, 8] {
            let (mut host, mut sink) = ends(entries);
            let (mut sent, mut seen) = (0, 0);
            for _ in 0..50 {
                while sink.post(entry(sent)) {
                    sent += 1;
                }
                assert!(sink.is_full());
                assert!(host.is_ready());
                while let Some(got) = host.pop() {
                    assert_eq!((got.dw0(), got.cid()), (seen, seen as u16));
                    seen += 1;
                }
                assert!(!host.is_ready());
                assert_eq!(host.unrung(), entries - 1);
                let (_, head) = host.pending().unwrap();
                host.rang();
                sink.set_head(u32::from(head)).unwrap();
                assert_eq!(sink.free(), entries - 1);
            }
            assert_eq!(u64::from(seen), sent);
        }
    }

    /// A driver that looked at the CID before the phase took the entry of the lap before for a new
    /// one as soon as the controller had written its first half.
    #[test]
    fn an_entry_without_its_phase_is_not_seen() {
        let (mut host, mut sink) = ends(2);
        let words = sink.words().clone();
        words.store64(0, 77, Ordering::Relaxed);
        assert_eq!(host.pop(), None);
        let high = entry(9).0[1];
        words.store64(1, high, Ordering::Relaxed);
        assert_eq!(host.pop(), None);
        words.store64(1, high | PHASE, Ordering::Relaxed);
        assert_eq!(host.pop().map(|c| (c.dw0(), c.cid())), Some((77, 9)));
        assert_eq!(host.pop(), None);
        assert!(sink.post(entry(1)));
    }

    /// The entries of the first lap carry the phase that the new first lap waits for: a queue that
    /// was reset without clearing them took completions of the controller's former life for new.
    #[test]
    fn a_ring_that_was_reset_holds_nothing_of_before() {
        let (mut host, mut sink) = ends(4);
        for n in 0..3 {
            sink.post(entry(n));
        }
        assert_eq!(host.pop().map(|c| c.dw0()), Some(0));
        host.reset();
        assert_eq!((host.pop(), host.unrung()), (None, 0));
        let mut sink = CompletionSink::new(sink.words().clone(), 4).unwrap();
        sink.post(entry(7));
        assert_eq!(host.pop().map(|c| c.dw0()), Some(7));
        assert_eq!(host.pop(), None);
    }

    #[test]
    fn a_head_past_what_was_posted_is_refused() {
        let (_, mut sink) = ends(8);
        sink.post(entry(0));
        sink.post(entry(1));
        for head in [3, 7, 8, u32::MAX] {
            assert_eq!(sink.set_head(head), Err(RingError::Index(head)));
        }
        sink.set_head(2).unwrap();
        assert_eq!(sink.set_head(1), Err(RingError::Index(1)));
        assert_eq!((sink.head(), sink.tail()), (2, 2));
    }
}
