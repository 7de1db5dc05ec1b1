//! The log of a verified job: what the last write of each place was.
//!
//! The job's range is cut into units, each with a header of its own, and the log has one word for
//! each unit, shared by all clones. A write claims the words of its units before it is submitted
//! and settles them when its completion has been reaped, so that at any instant, also that of a
//! SIGKILL where the words are those of a file, they say what a unit may hold. Two writes of one
//! place are never in flight together: the second waits.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use oxblock_mem::{MappedWords, MemError};

/// The log; see the module's documentation.
#[derive(Debug)]
pub(crate) struct WriteLog {
    words: MappedWords,
    /// Words before the first unit's.
    header: usize,
    /// Byte offset of the first unit on the target.
    start: u64,
    unit: u32,
    /// The first unit that no clone has taken to read back.
    cursor: AtomicUsize,
    /// Trimmed units read as zeroes.
    trims_to_zero: bool,
}

/// Units that a clone takes at once to read back.
const CHUNK: usize = 1024;

impl WriteLog {
    /// The log of the units that `words` have behind `header` words of another kind.
    pub fn new(words: MappedWords, header: usize, start: u64, unit: u32) -> WriteLog {
        WriteLog { words, header, start, unit, cursor: AtomicUsize::new(0), trims_to_zero: true }
    }

    /// A log in memory, of `count` units that were never written.
    pub fn in_memory(start: u64, unit: u32, count: usize) -> Result<WriteLog, MemError> {
        MappedWords::anonymous(count).map(|words| WriteLog::new(words, 0, start, unit))
    }

    /// Trimmed units may hold anything.
    pub fn trims_to_anything(self) -> WriteLog {
        WriteLog { trims_to_zero: false, ..self }
    }

    /// How many units there are.
    pub fn count(&self) -> usize {
        self.words.len() - self.header
    }

    /// The units of a piece of the target.
    #[inline]
    pub fn units(&self, offset: u64, len: u64) -> Range<usize> {
        let unit = u64::from(self.unit);
        let first = (offset.saturating_sub(self.start) / unit) as usize;
        let last = first.saturating_add((len / unit) as usize).min(self.count());
        first.min(last)..last
    }

    /// Byte offset of a unit on the target.
    #[inline]
    pub fn offset_of(&self, at: usize) -> u64 {
        self.start + at as u64 * u64::from(self.unit)
    }

    #[inline]
    pub fn place(&self, at: usize) -> Place {
        Place(self.words[self.header + at].load(SeqCst))
    }

    /// Takes units for a write or a trim, unless one of some of them is in flight.
    pub fn claim(&self, units: Range<usize>, trim: bool) -> bool {
        for at in units.clone() {
            let word = &self.words[self.header + at];
            let claim = |word| Place(word).claimed(trim).map(|place| place.0);
            if word.fetch_update(SeqCst, SeqCst, claim).is_err() {
                for at in units.start..at {
                    self.change(at, Place::unclaimed);
                }
                return false;
            }
        }
        true
    }

    /// Gives units back whose write or trim has ended.
    pub fn settle(&self, units: Range<usize>, done: bool, trim: bool) {
        units.for_each(|at| self.change(at, |place| place.settled(done, trim)));
    }

    /// What was in flight when the run ended that kept this log is in doubt.
    pub fn end_flights(&self) {
        for at in 0..self.count() {
            if self.place(at).in_flight() {
                self.change(at, |place| place.settled(false, false));
            }
        }
    }

    fn change(&self, at: usize, how: impl Fn(Place) -> Place) {
        let word = &self.words[self.header + at];
        let _ = word.fetch_update(SeqCst, SeqCst, |word| Some(how(Place(word)).0));
    }

    /// What a unit is expected to hold; `None`: nobody knows, or nobody cares.
    #[inline]
    pub fn expectation(&self, place: Place) -> Option<Expected> {
        place.expected().filter(|expected| self.trims_to_zero || !expected.may_be_trimmed())
    }

    /// The next piece of units, at most so many, that are to be read back; each clone that asks
    /// has chunks of its own. `chunk` is what is left of the last one.
    pub fn next_known(&self, chunk: &mut Range<usize>, most: usize) -> Option<Range<usize>> {
        let wanted = |at: usize| self.expectation(self.place(at)).is_some();
        loop {
            if let Some(first) = chunk.find(|&at| wanted(at)) {
                let last = (first + 1..chunk.end.min(first.saturating_add(most)))
                    .find(|&at| !wanted(at))
                    .unwrap_or(chunk.end.min(first.saturating_add(most)));
                chunk.start = last;
                return Some(first..last);
            }
            let first = self.cursor.fetch_add(CHUNK.max(most), Relaxed);
            if first >= self.count() {
                // So that asking again and again does not wrap around.
                self.cursor.store(self.count(), Relaxed);
                return None;
            }
            *chunk = first..first.saturating_add(CHUNK.max(most)).min(self.count());
        }
    }
}

/// What the log says of one unit, as one word:
///
/// | bits | |
/// |---|---|
/// | 0 to 29 | the last write or trim that is known to be done, counted from 1; 0: none is |
/// | 30 | it was a trim |
/// | 31 | 0 |
/// | 32 to 61 | the last one that was begun |
/// | 62 | one of those begun and not known to be done is a trim |
/// | 63 | the last one begun has failed, or its end was not seen |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl Place {
    const COUNT: u64 = (1 << 30) - 1;
    const DONE_TRIM: u64 = 1 << 30;
    const BEGUN_TRIM: u64 = 1 << 62;
    const FAILED: u64 = 1 << 63;

    fn new(done: u32, begun: u32, flags: u64) -> Place {
        Place(u64::from(done) | u64::from(begun) << 32 | flags)
    }

    fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    fn done(self) -> u32 {
        (self.0 & Place::COUNT) as u32
    }

    /// Was it never written or trimmed?
    pub fn is_untouched(self) -> bool {
        self.begun() == 0
    }

    /// The last write or trim that was begun.
    #[inline]
    pub fn begun(self) -> u32 {
        (self.0 >> 32 & Place::COUNT) as u32
    }

    /// Is a write or trim of it in flight?
    #[inline]
    pub fn in_flight(self) -> bool {
        self.done() != self.begun() && !self.has(Place::FAILED)
    }

    fn claimed(self, trim: bool) -> Option<Place> {
        if self.in_flight() {
            return None;
        }
        let begun = if u64::from(self.begun()) == Place::COUNT { 1 } else { self.begun() + 1 };
        let mut flags = self.0 & (Place::DONE_TRIM | Place::BEGUN_TRIM);
        if trim {
            flags |= Place::BEGUN_TRIM;
        }
        Some(Place::new(self.done(), begun, flags))
    }

    /// As it was before a claim of which nothing was submitted.
    fn unclaimed(self) -> Place {
        let before = match self.begun() {
            1 if self.done() > 0 => Place::COUNT as u32,
            begun => begun.saturating_sub(1),
        };
        let flags = if before == self.done() {
            self.0 & Place::DONE_TRIM
        } else {
            Place::FAILED | self.0 & (Place::DONE_TRIM | Place::BEGUN_TRIM)
        };
        Place::new(self.done(), before, flags)
    }

    fn settled(self, done: bool, trim: bool) -> Place {
        match (done, trim) {
            (false, _) => Place(self.0 | Place::FAILED),
            (true, false) => Place::new(self.begun(), self.begun(), 0),
            (true, true) => Place::new(self.begun(), self.begun(), Place::DONE_TRIM),
        }
    }

    fn expected(self) -> Option<Expected> {
        let (done, begun, was_trim) = (self.done(), self.begun(), self.has(Place::DONE_TRIM));
        match (done == begun, was_trim) {
            _ if self.is_untouched() => None,
            (true, true) => Some(Expected::Zeroes),
            (true, false) => Some(Expected::Write(done)),
            (false, _) => Some(Expected::OneOf {
                known: (done > 0 && !was_trim).then_some(done),
                least: done,
                most: begun,
                zeroes: was_trim || self.has(Place::BEGUN_TRIM),
                anything: done == 0,
            }),
        }
    }
}

/// What a unit is expected to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Some write of a run of which nothing else is known.
    Any,
    /// This write of the place.
    Write(u32),
    /// It was trimmed.
    Zeroes,
    /// The end of the last write was not seen: what was there before, or a later one.
    OneOf {
        /// The last write known to be done, if it was one and not a trim.
        known: Option<u32>,
        /// Writes above `least` and up to `most` have begun.
        least: u32,
        /// See `least`.
        most: u32,
        /// It may have been trimmed.
        zeroes: bool,
        /// What was there before is not known.
        anything: bool,
    },
}

impl Expected {
    fn may_be_trimmed(self) -> bool {
        matches!(self, Expected::Zeroes | Expected::OneOf { zeroes: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(count: usize) -> WriteLog {
        WriteLog::in_memory(8192, 4096, count).expect("memory")
    }

    #[test]
    fn a_write_is_expected_once_it_is_settled() {
        let log = log(10);
        assert_eq!(log.place(2).expected(), None);
        for generation in 1..4 {
            assert!(log.claim(2..5, false) && log.place(3).in_flight());
            assert_eq!(log.place(4).begun(), generation);
            log.settle(2..5, true, false);
            assert_eq!(log.place(4).expected(), Some(Expected::Write(generation)));
        }
        assert_eq!(log.place(5).expected(), None);
    }

    #[test]
    fn places_in_flight_are_not_claimed_again() {
        let log = log(10);
        assert!(log.claim(4..6, false));
        assert!(!log.claim(2..5, false));
        // What was claimed before the one in flight was found is as it was.
        assert_eq!(log.place(2), Place(0));
        log.settle(4..6, true, false);
        assert!(log.claim(2..5, false));
        log.settle(2..5, true, false);
        assert_eq!(log.place(2).expected(), Some(Expected::Write(1)));
        for word in [
            Place::new(3, 3, 0),
            Place::new(3, 3, Place::DONE_TRIM),
            Place::new(1, 4, Place::FAILED),
        ] {
            assert_eq!(word.claimed(false).map(Place::unclaimed), Some(word));
        }
    }

    #[test]
    fn what_failed_or_was_never_seen_to_end_is_in_doubt() {
        let log = log(4);
        log.claim(0..1, false);
        log.settle(0..1, true, false);
        log.claim(0..1, false);
        log.settle(0..1, false, false);
        let doubt = |known: Option<u32>, most, zeroes| {
            let least = known.unwrap_or(0);
            Some(Expected::OneOf { known, least, most, zeroes, anything: least == 0 })
        };
        assert_eq!(log.place(0).expected(), doubt(Some(1), 2, false));
        // It may be written again, and then is known again.
        assert!(log.claim(0..1, true));
        assert_eq!(log.place(0).expected(), doubt(Some(1), 3, true));
        log.settle(0..1, true, true);
        assert_eq!(log.place(0).expected(), Some(Expected::Zeroes));
        log.claim(1..2, false);
        assert!(log.place(1).in_flight());
        log.end_flights();
        assert!(!log.place(1).in_flight() && !log.place(0).in_flight());
        assert_eq!(log.place(1).expected(), doubt(None, 1, false));
    }

    #[test]
    fn reading_back_gives_each_unit_once_and_leaves_out_what_is_unknown() {
        let log = log(5000);
        for units in [3..4, 5..9, 1020..1030, 4999..5000] {
            assert!(log.claim(units.clone(), false));
            log.settle(units, true, false);
        }
        let mut chunk = 0..0;
        let mut pieces = Vec::new();
        while let Some(piece) = log.next_known(&mut chunk, 4) {
            pieces.push(piece);
        }
        let mut wanted = vec![3..4, 5..9, 1020..1024, 1024..1028, 1028..1030];
        wanted.push(4999..5000);
        assert_eq!(pieces, wanted);
        assert_eq!(log.next_known(&mut chunk, 4), None);
    }

    #[test]
    fn counts_wrap_without_becoming_never() {
        let most = Place::COUNT as u32;
        let place = Place::new(most, most, 0).claimed(false).expect("free");
        assert_eq!(place.begun(), 1);
        assert_eq!(place.settled(true, false).expected(), Some(Expected::Write(1)));
    }

    #[test]
    fn pieces_beyond_the_log_are_cut_off() {
        let log = log(10);
        assert_eq!(log.units(8192, 8192), 0..2);
        assert_eq!(log.units(8192 + 9 * 4096, 1 << 40), 9..10);
        assert_eq!(log.units(1 << 50, 4096), 10..10);
        assert_eq!(log.offset_of(3), 8192 + 3 * 4096);
    }
}
