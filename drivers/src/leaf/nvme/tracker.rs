//! Commands in flight on one queue pair, by command identifier.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use oxblock_engine::Token;
use oxblock_nvme::Command;

/// Bits of a command identifier that hold the tracker's index; the others hold its generation.
const INDEX_BITS: u32 = 10;
/// What the next generation of an identifier adds to it.
const GENERATION: u16 = 1 << INDEX_BITS;
/// Trackers of one queue pair, at most. The last index stays unused, so that no identifier is
/// FFFFh, which error logs use for "no command" (Base 2.0, figure 206).
pub(super) const TRACKERS_MAX: usize = (1 << INDEX_BITS) - 1;
/// Whose command it is: the core's that owns the queue. Guests have other numbers.
pub(super) const OWN: u16 = 0;
/// What a tracker without a usual command in flight has for an identifier.
const IDLE: u16 = u16::MAX;

/// One command in flight: all that most have, in one cache line.
#[repr(align(64))]
struct Tracker {
    token: Token,
    offset: u64,
    /// The usual words of the command as it was sent. Kept word by word, as it was built: a copy in
    /// wider pieces has to wait until the words have left the store buffer.
    sent: [AtomicU64; 4],
    /// And its dword 12.
    sent_dword: AtomicU32,
    /// When it was sent first.
    stamp: Stamp,
    /// The identifier of the command in flight, or [`IDLE`].
    cid: u16,
    /// The identifier of the next one: each use has another generation.
    next_cid: u16,
    /// [`OWN`], or the guest that it was taken for.
    seat: u16,
}

const _: () = assert!(size_of::<Tracker>() == 64);

impl Tracker {
    #[inline]
    fn keep(&mut self, command: &Command) {
        for (word, at) in self.sent.iter().zip(USUAL_WORDS) {
            word.store(command.0[at], Ordering::Relaxed);
        }
        self.sent_dword.store(command.0[HALF_WORD] as u32, Ordering::Relaxed);
    }

    fn command(&self, rare: &Rare) -> Command {
        let mut command = Command([0; 8]);
        for (word, at) in self.sent.iter().zip(USUAL_WORDS) {
            command.0[at] = word.load(Ordering::Relaxed);
        }
        let [words @ .., dword_13] = rare;
        for (word, at) in words.iter().zip(RARE_WORDS) {
            command.0[at] = *word;
        }
        let dword_12 = u64::from(self.sent_dword.load(Ordering::Relaxed));
        command.0[HALF_WORD] = dword_13 << 32 | dword_12;
        command
    }
}

/// When a command was sent: its tick in bits 31:16, and below it a number that counts commands, to
/// keep their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp(u32);

impl Stamp {
    pub fn tick(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// How many commands were sent since the one with this stamp, modulo 2^16.
    pub fn since(self, earlier: Stamp) -> u16 {
        (self.0 as u16).wrapping_sub(earlier.0 as u16)
    }

    fn with_tick(self, tick: u16) -> Stamp {
        Stamp(u32::from(tick) << 16 | self.0 & 0xffff)
    }

    #[inline]
    fn next(self) -> Stamp {
        Stamp(self.0 & 0xffff_0000 | u32::from((self.0 as u16).wrapping_add(1)))
    }
}

/// Where in a command the usual words are: dwords 0 and 1, and 6 to 11. Of dwords 12 and 13 the first
/// is usual.
const USUAL_WORDS: [usize; 4] = [0, 3, 4, 5];
/// Where the words are that are zero in most commands: dwords 2 to 5, and 14 and 15.
const RARE_WORDS: [usize; 3] = [1, 2, 7];
/// The word of dwords 12 and 13.
const HALF_WORD: usize = 6;

/// The rare words of a command, and dword 13.
type Rare = [u64; 4];

#[inline]
fn rare_words(command: &Command) -> Rare {
    let [first, second, third] = RARE_WORDS.map(|at| command.0[at]);
    [first, second, third, command.0[HALF_WORD] >> 32]
}

/// What became of a command that does not go the usual way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The controller has it, under this identifier, since this tick.
    Sent { cid: u16, since: u16 },
    /// It was to end in time and did not, at this tick; the controller still has it.
    Late { cid: u16, since: u16, abort_asked: bool },
    /// It is to be sent again, at this tick.
    Waiting { due: u16 },
}

/// A command that does not go the usual way: it is late, cancelled, or sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aside {
    pub stage: Stage,
    /// How often it was sent again.
    pub retries: u8,
    /// Its user wants it no more.
    pub cancelled: bool,
    /// It took longer than it may, the last time or before.
    pub was_late: bool,
}

/// The trackers of a queue pair. Taking and completing move one index on a stack, so that the
/// tracker used last, and its list page, are used next.
pub(super) struct Trackers {
    free: Vec<u16>,
    table: Box<[Tracker]>,
    /// Of the command that was sent last.
    stamp: Stamp,
    /// The rare words of the commands: all zero, until one was sent whose are not.
    rare: Box<[Rare]>,
    has_rare: bool,
    /// Those whose command does not go the usual way.
    aside: Box<[Option<Aside>]>,
    aside_count: usize,
}

impl Trackers {
    /// `count` idle trackers, 1 to [`TRACKERS_MAX`].
    pub fn new(count: usize) -> Self {
        let count = count.clamp(1, TRACKERS_MAX) as u16;
        let idle = |index| Tracker {
            token: Token(0),
            offset: 0,
            sent: Default::default(),
            sent_dword: AtomicU32::new(0),
            stamp: Stamp::default(),
            cid: IDLE,
            next_cid: index,
            seat: OWN,
        };
        Self {
            free: (0..count).rev().collect(),
            table: (0..count).map(idle).collect(),
            stamp: Stamp::default(),
            rare: vec![Rare::default(); count.into()].into(),
            has_rare: false,
            aside: vec![None; count.into()].into(),
            aside_count: 0,
        }
    }

    /// The tracker that is taken next: its index.
    #[inline]
    pub fn next(&self) -> Option<usize> {
        self.free.last().map(|index| usize::from(*index))
    }

    /// Takes that tracker for a command and returns the command's identifier. The command is kept,
    /// in case that it must be sent again.
    #[inline]
    pub fn take(&mut self, token: Token, offset: u64, seat: u16, command: &Command) -> Option<u16> {
        let index = usize::from(self.free.pop()?);
        let tracker = self.table.get_mut(index)?;
        tracker.token = token;
        tracker.offset = offset;
        tracker.seat = seat;
        self.stamp = self.stamp.next();
        tracker.stamp = self.stamp;
        let cid = tracker.next_cid;
        tracker.cid = cid;
        tracker.keep(command);
        let rare = rare_words(command);
        if self.has_rare || rare.iter().fold(0, |all, word| all | word) != 0 {
            self.keep_rare(index, rare);
        }
        Some(cid)
    }

    #[cold]
    fn keep_rare(&mut self, index: usize, rare: Rare) {
        self.has_rare = true;
        if let Some(place) = self.rare.get_mut(index) {
            *place = rare;
        }
    }

    /// Ends the command with this identifier, and returns whose it was. None for an identifier
    /// that is out of range, idle, or of another generation (row 15), and for a command that does
    /// not go the usual way.
    #[inline]
    pub fn complete(&mut self, cid: u16) -> Option<(Token, u64, u16)> {
        let index = cid & (GENERATION - 1);
        let tracker = self.table.get_mut(usize::from(index))?;
        if tracker.cid != cid && !is_trusting(tracker.cid) {
            return None;
        }
        tracker.cid = IDLE;
        tracker.next_cid = tracker.next_cid.wrapping_add(GENERATION);
        self.free.push(index);
        Some((tracker.token, tracker.offset, tracker.seat))
    }

    /// Commands in flight, those included that wait to be sent again.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// Whether a command does not go the usual way.
    pub fn any_aside(&self) -> bool {
        self.aside_count > 0
    }

    /// The tracker of a command that the controller has, by its identifier.
    pub fn locate(&self, cid: u16) -> Option<usize> {
        let index = usize::from(cid & (GENERATION - 1));
        (self.cid(index) == Some(cid)).then_some(index)
    }

    /// The identifier of a tracker's command, if the controller has it.
    pub fn cid(&self, index: usize) -> Option<u16> {
        match self.aside.get(index)? {
            Some(Aside { stage: Stage::Sent { cid, .. } | Stage::Late { cid, .. }, .. }) => {
                Some(*cid)
            }
            Some(Aside { stage: Stage::Waiting { .. }, .. }) => None,
            None => self.table.get(index).map(|tracker| tracker.cid).filter(|cid| *cid != IDLE),
        }
    }

    /// What there is to know of a command besides the usual. None if the tracker has no command.
    pub fn aside(&self, index: usize) -> Option<Aside> {
        if let Some(aside) = self.aside.get(index)? {
            return Some(*aside);
        }
        let tracker = self.table.get(index).filter(|tracker| tracker.cid != IDLE)?;
        let stage = Stage::Sent { cid: tracker.cid, since: tracker.stamp.tick() };
        Some(Aside { stage, retries: 0, cancelled: false, was_late: false })
    }

    /// From here on the command goes this way.
    pub fn set_aside(&mut self, index: usize, aside: Aside) {
        if let (Some(tracker), Some(place)) = (self.table.get_mut(index), self.aside.get_mut(index))
        {
            tracker.cid = IDLE;
            self.aside_count += usize::from(place.replace(aside).is_none());
        }
    }

    /// The command to send again, under a new identifier.
    pub fn again(&mut self, index: usize) -> Option<Command> {
        let tracker = self.table.get_mut(index)?;
        tracker.next_cid = tracker.next_cid.wrapping_add(GENERATION);
        let cid = tracker.next_cid;
        self.command(index).map(|command| command.with_cid(cid))
    }

    /// The command to begin anew with, under a new identifier: from here on it goes the usual way.
    pub fn retake(&mut self, index: usize) -> Option<Command> {
        self.aside(index)?;
        self.aside_count -= usize::from(self.aside.get_mut(index)?.take().is_some());
        let command = self.again(index)?;
        self.table.get_mut(index)?.cid = command.cid();
        Some(command)
    }

    /// Whose command a tracker has.
    pub fn seat(&self, index: usize) -> Option<u16> {
        self.aside(index)?;
        self.table.get(index).map(|tracker| tracker.seat)
    }

    /// The command as it was sent, but for its identifier.
    pub fn command(&self, index: usize) -> Option<Command> {
        Some(self.table.get(index)?.command(self.rare.get(index)?))
    }

    /// When the command was sent first.
    pub fn first_sent(&self, index: usize) -> Option<Stamp> {
        self.table.get(index).map(|tracker| tracker.stamp)
    }

    /// When the command that was sent last was sent.
    pub fn last_sent(&self) -> Stamp {
        self.stamp
    }

    /// The time, in ticks.
    pub fn tick(&self) -> u16 {
        self.stamp.tick()
    }

    /// Another tick has passed.
    pub fn count_tick(&mut self) {
        self.stamp = self.stamp.with_tick(self.tick().wrapping_add(1));
    }

    /// Ends the command of a tracker, whichever way it goes, and returns whose it was.
    pub fn end(&mut self, index: usize) -> Option<(Token, u64, u16)> {
        self.aside(index)?;
        let tracker = self.table.get_mut(index)?;
        self.aside_count -= usize::from(self.aside.get_mut(index)?.take().is_some());
        tracker.cid = IDLE;
        tracker.next_cid = tracker.next_cid.wrapping_add(GENERATION);
        self.free.push(index as u16);
        Some((tracker.token, tracker.offset, tracker.seat))
    }

    /// The tracker of this request's command, if there is one.
    pub fn find(&self, token: Token, seat: u16) -> Option<usize> {
        self.busy().find(|index| {
            self.table.get(*index).is_some_and(|t| t.token == token && t.seat == seat)
        })
    }

    /// Whether a command of this seat is in flight.
    pub fn any_of(&self, seat: u16) -> bool {
        self.busy().any(|index| self.table.get(index).is_some_and(|t| t.seat == seat))
    }

    /// Trackers in all.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// The trackers that have a command.
    fn busy(&self) -> impl Iterator<Item = usize> {
        (0..self.table.len()).filter(|index| self.aside(*index).is_some())
    }

    /// Any tracker that has a command.
    pub fn any(&self) -> Option<usize> {
        self.busy().next()
    }
}

/// Never: identifiers are checked. Tests of the tests may say otherwise.
#[cfg(not(test))]
#[inline]
const fn is_trusting(_: u16) -> bool {
    false
}

#[cfg(test)]
std::thread_local! {
    static TRUSTING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether a tracker in flight takes a completion of another generation.
#[cfg(test)]
fn is_trusting(cid: u16) -> bool {
    cid != IDLE && TRUSTING.get()
}

/// Takes the check of generations away on this thread: what such a driver does, tests must see.
#[cfg(test)]
pub(super) fn trust_blindly(trust: bool) {
    TRUSTING.set(trust);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(trackers: &mut Trackers, token: u64, seat: u16) -> Option<u16> {
        trackers.take(Token(token), token * 512, seat, &Command::flush(1))
    }

    #[test]
    fn trackers_run_out_and_come_back() {
        let mut trackers = Trackers::new(3);
        let cids: Vec<u16> = (0..3).map(|n| take(&mut trackers, n, OWN).unwrap()).collect();
        assert_eq!(trackers.next(), None);
        assert_eq!(take(&mut trackers, 9, OWN), None);
        assert_eq!(trackers.in_flight(), 3);
        assert_eq!(trackers.complete(cids[1]), Some((Token(1), 512, OWN)));
        assert_eq!(trackers.next(), Some(1));
        assert_eq!(trackers.find(Token(2), OWN), Some(2));
        assert_eq!(trackers.find(Token(1), OWN), None);
    }

    /// A controller completed a command twice; the second completion ended the command that had
    /// got the same slot in between, and its buffer went back while the device still filled it.
    #[test]
    fn a_second_completion_is_not_the_next_command() {
        let mut trackers = Trackers::new(1);
        let first = take(&mut trackers, 1, OWN).unwrap();
        assert!(trackers.complete(first).is_some());
        assert_eq!(trackers.complete(first), None);
        let second = take(&mut trackers, 2, 3).unwrap();
        assert_ne!(first, second);
        assert_eq!(trackers.complete(first), None);
        assert_eq!(trackers.complete(second), Some((Token(2), 1024, 3)));
    }

    /// A command that is sent again has an identifier of its own each time: a late completion of
    /// the first must not end the second.
    #[test]
    fn a_command_sent_again_answers_to_its_last_identifier_alone() {
        let mut trackers = Trackers::new(2);
        let first = take(&mut trackers, 1, OWN).unwrap();
        let index = trackers.locate(first).unwrap();
        let aside = trackers.aside(index).unwrap();
        trackers.set_aside(index, Aside { stage: Stage::Waiting { due: 3 }, ..aside });
        assert_eq!((trackers.locate(first), trackers.complete(first)), (None, None));
        assert_eq!((trackers.in_flight(), trackers.cid(index)), (1, None));
        let second = trackers.again(index).unwrap().cid();
        let stage = Stage::Sent { cid: second, since: 3 };
        trackers.set_aside(index, Aside { stage, retries: 1, ..aside });
        assert_eq!((trackers.locate(first), trackers.locate(second)), (None, Some(index)));
        assert_eq!(trackers.complete(second), None, "it does not go the usual way");
        assert_eq!(trackers.end(index), Some((Token(1), 512, OWN)));
        assert_eq!((trackers.end(index), trackers.any_aside()), (None, false));
        let third = take(&mut trackers, 2, OWN).unwrap();
        assert!(third != first && third != second);
    }

    #[test]
    fn commands_are_kept_as_they_were_sent() {
        let mut trackers = Trackers::new(2);
        let usual = Command([0x1_0000_0002, 0, 0, 3 << 40, 4 << 40, 5 << 40, 6, 0]);
        let rare = Command([1, 2, 3, 4, 5, 6, 7 << 40 | 7, 8].map(|word: u64| word | 1 << 50));
        for commands in [[usual, usual], [usual, rare], [rare, usual], [usual, usual]] {
            let cids = commands.map(|command| trackers.take(Token(0), 0, OWN, &command).unwrap());
            for (cid, command) in cids.into_iter().zip(commands) {
                let index = trackers.locate(cid).unwrap();
                assert_eq!(trackers.command(index), Some(command));
                trackers.complete(cid);
            }
        }
    }

    #[test]
    fn no_identifier_is_all_ones_and_none_is_believed_blindly() {
        let mut trackers = Trackers::new(usize::MAX);
        assert_eq!(trackers.table.len(), TRACKERS_MAX);
        for round in 0..200u64 {
            let cids: Vec<u16> =
                (0..TRACKERS_MAX).map(|_| take(&mut trackers, round, OWN).unwrap()).collect();
            assert!(cids.iter().all(|cid| *cid != u16::MAX));
            let mut known = 0;
            for cid in 0..=u16::MAX {
                known += usize::from(cids.contains(&cid));
                if round > 0 {
                    break;
                }
            }
            assert!(round > 0 || known == TRACKERS_MAX);
            for cid in cids {
                assert!(trackers.complete(cid).is_some());
            }
        }
        for cid in 0..=u16::MAX {
            assert_eq!(trackers.complete(cid), None, "{cid:#x} while idle");
        }
    }
}
