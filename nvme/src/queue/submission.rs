use super::{RingError, Words, after, check, distance};
use crate::command::Command;

const ENTRY_WORDS: usize = Command::BYTES / 8;

/// The host's end of a submission queue.
///
/// Entries are written with relaxed stores; the doorbell that publishes them must order them
/// before itself (a register write of `oxblock_pci`, or [`super::ShadowDoorbell`]). One slot stays
/// empty, so that a full ring differs from an empty one.
#[derive(Debug)]
pub struct SubmissionQueue<W> {
    tail: u32,
    /// The tail that the controller has been told.
    rung: u32,
    /// How far the controller says it has fetched; checked.
    head: u32,
    entries: u32,
    words: W,
}

impl<W: Words> SubmissionQueue<W> {
    /// Over zeroed memory of at least `entries` x 64 bytes.
    pub fn new(words: W, entries: u32) -> Result<Self, RingError> {
        check(entries, Command::BYTES, &words)?;
        Ok(Self { tail: 0, rung: 0, head: 0, entries, words })
    }

    /// Entries of the ring; one less can be in use.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Commands that can be pushed now.
    #[inline]
    pub fn free(&self) -> u32 {
        self.entries - 1 - distance(self.head, self.tail, self.entries)
    }

    /// The ring has no room until the controller fetches.
    #[inline]
    pub fn is_full(&self) -> bool {
        after(self.tail, self.entries) == self.head
    }

    /// Writes a command at the tail. Returns false, and writes nothing, if the ring is full.
    #[inline]
    pub fn push(&mut self, command: &Command) -> bool {
        let next = after(self.tail, self.entries);
        if next == self.head {
            return false;
        }
        self.words.store_entry(self.tail as usize * ENTRY_WORDS, &command.0);
        self.tail = next;
        true
    }

    /// The doorbell is behind the tail: (value rung last, value to ring now).
    #[inline]
    pub fn pending(&self) -> Option<(u16, u16)> {
        (self.tail != self.rung).then_some((self.rung as u16, self.tail as u16))
    }

    /// The doorbell has been rung with the tail of now.
    #[inline]
    pub fn rang(&mut self) {
        self.rung = self.tail;
    }

    /// Takes an SQHD from a completion. An SQHD that is past the ring, behind what was fetched
    /// before, or past what was rung, changes nothing and is an error: believing it would let new
    /// commands overwrite those that the controller has yet to fetch.
    #[inline]
    pub fn fetched(&mut self, sqhd: u16) -> Result<(), RingError> {
        let sqhd = u32::from(sqhd);
        if sqhd == self.head {
            return Ok(());
        }
        let outstanding = distance(self.head, self.rung, self.entries);
        if sqhd >= self.entries || distance(self.head, sqhd, self.entries) > outstanding {
            return Err(RingError::Index(sqhd));
        }
        self.head = sqhd;
        Ok(())
    }

    /// Every command that was rung has completed, so that the controller must have fetched it,
    /// whatever SQHD it sent: a ring is not full for ever because of a head that was not believed.
    #[inline]
    pub fn drained(&mut self) {
        self.head = self.rung;
    }

    /// As new, for a controller that was disabled and is to have the queue again.
    pub fn reset(&mut self) {
        (self.tail, self.rung, self.head) = (0, 0, 0);
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

/// The controller's end of a submission queue.
///
/// Its memory belongs to a host that may write anything at any time: each entry is copied once,
/// and the copy is what gets parsed.
#[derive(Debug)]
pub struct SubmissionSource<W> {
    head: u32,
    tail: u32,
    entries: u32,
    words: W,
}

impl<W: Words> SubmissionSource<W> {
    /// Over host memory of at least `entries` x 64 bytes.
    pub fn new(words: W, entries: u32) -> Result<Self, RingError> {
        check(entries, Command::BYTES, &words)?;
        Ok(Self { head: 0, tail: 0, entries, words })
    }

    /// Entries of the ring.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Takes a tail doorbell value, which must have been read with acquire ordering. A value past
    /// the ring changes nothing and is an error (the event Invalid Doorbell Write Value).
    #[inline]
    pub fn set_tail(&mut self, tail: u32) -> Result<(), RingError> {
        if tail >= self.entries {
            return Err(RingError::Index(tail));
        }
        self.tail = tail;
        Ok(())
    }

    /// The tail as the host rang it last.
    #[inline]
    pub fn tail(&self) -> u16 {
        self.tail as u16
    }

    /// The SQHD of completions: the first entry that is not fetched.
    #[inline]
    pub fn head(&self) -> u16 {
        self.head as u16
    }

    /// Commands that wait to be fetched.
    #[inline]
    pub fn waiting(&self) -> u32 {
        distance(self.head, self.tail, self.entries)
    }

    /// Copies the next command out of the ring.
    #[inline]
    pub fn fetch(&mut self) -> Option<Command> {
        if self.head == self.tail {
            return None;
        }
        let words = self.words.load_entry(self.head as usize * ENTRY_WORDS);
        self.head = after(self.head, self.entries);
        Some(Command(words))
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
    use std::sync::Arc;

    fn ends(entries: u32) -> (SubmissionQueue<Arc<TestWords>>, SubmissionSource<Arc<TestWords>>) {
        let words = Arc::new(TestWords::new(entries as usize * 8));
        let host = SubmissionQueue::new(words.clone(), entries).unwrap();
        (host, SubmissionSource::new(words, entries).unwrap())
    }

    fn command(n: u64) -> Command {
        Command(std::array::from_fn(|i| n * 100 + i as u64))
    }

    #[test]
    fn sizes_are_checked() {
        let words = || TestWords::new(16);
        for entries in [0, 1, 65_537, u32::MAX] {
            let err = SubmissionQueue::new(words(), entries).err();
            assert_eq!(err, Some(RingError::Entries(entries)));
        }
        assert!(SubmissionQueue::new(words(), 2).is_ok());
        let short = RingError::Memory { needed: 192, found: 128 };
        assert_eq!(SubmissionQueue::new(words(), 3).err(), Some(short));
        assert_eq!(SubmissionSource::new(words(), 3).err(), Some(short));
    }

    #[test]
    fn one_slot_stays_empty_through_many_laps() {
        for entries in [2, 3, 5, 8] {
            let (mut host, mut source) = ends(entries);
            let (mut sent, mut seen) = (0, 0);
            for _ in 0..50 {
                while host.push(&command(sent)) {
                    sent += 1;
                }
                assert!(host.is_full());
                assert_eq!(host.free(), 0);
                let (_, tail) = host.pending().unwrap();
                host.rang();
                assert_eq!(host.pending(), None);
                source.set_tail(u32::from(tail)).unwrap();
                assert_eq!(source.waiting(), entries - 1);
                while let Some(got) = source.fetch() {
                    assert_eq!(got, command(seen));
                    seen += 1;
                }
                host.fetched(source.head()).unwrap();
                assert_eq!(host.free(), entries - 1);
            }
            assert_eq!((sent, seen), (50 * u64::from(entries - 1), sent));
        }
    }

    #[test]
    fn many_pushes_ring_once() {
        let (mut host, _) = ends(8);
        assert_eq!(host.pending(), None);
        for n in 0..5 {
            assert!(host.push(&command(n)));
        }
        assert_eq!(host.pending(), Some((0, 5)));
        host.rang();
        host.push(&command(6));
        assert_eq!(host.pending(), Some((5, 6)));
    }

    /// A controller that sent SQHD 7 with three commands rung made the ring look empty, and the
    /// next lap wrote over commands that it had not fetched.
    #[test]
    fn a_lying_sqhd_is_not_believed() {
        let (mut host, _) = ends(8);
        for n in 0..4 {
            host.push(&command(n));
        }
        for lie in [1, 8, 9, u16::MAX] {
            assert!(host.fetched(lie).is_err(), "{lie} before any doorbell");
        }
        host.rang();
        assert!(host.push(&command(4)));
        for lie in [5, 7, 8, u16::MAX] {
            assert!(host.fetched(lie).is_err(), "{lie}");
        }
        assert_eq!(host.free(), 2);
        host.fetched(3).unwrap();
        assert!(host.fetched(2).is_err(), "backwards");
        host.fetched(3).unwrap();
        host.fetched(4).unwrap();
        assert_eq!(host.free(), 6);
    }

    #[test]
    fn a_ring_that_was_reset_starts_over() {
        let (mut host, mut source) = ends(4);
        assert!(host.push(&command(1)) && host.push(&command(2)));
        host.rang();
        host.fetched(1).unwrap();
        host.push(&command(3));
        host.reset();
        assert_eq!((host.free(), host.pending()), (3, None));
        assert!(host.fetched(1).is_err(), "nothing was rung since");
        host.push(&command(9));
        assert_eq!(host.pending(), Some((0, 1)));
        source.set_tail(1).unwrap();
        assert_eq!(source.fetch(), Some(command(9)));
    }

    #[test]
    fn a_tail_past_the_ring_is_refused() {
        let (_, mut source) = ends(4);
        source.set_tail(3).unwrap();
        assert_eq!(source.set_tail(4), Err(RingError::Index(4)));
        assert_eq!(source.set_tail(u32::MAX), Err(RingError::Index(u32::MAX)));
        assert_eq!(source.waiting(), 3);
    }
}
