//! Commands in flight on one queue pair, by command identifier.

use oxblock_engine::Token;

/// Bits of a command identifier that hold the tracker's index; the others hold its generation.
const INDEX_BITS: u32 = 10;
/// Trackers of one queue pair, at most. The last index stays unused, so that no identifier is
/// FFFFh, which error logs use for "no command" (Base 2.0, figure 206).
pub(super) const TRACKERS_MAX: usize = (1 << INDEX_BITS) - 1;
/// Whose command it is: the core's that owns the queue. Guests have other numbers.
pub(super) const OWN: u16 = 0;
/// What an idle tracker has for an identifier.
const IDLE: u16 = u16::MAX;

/// One command in flight.
#[derive(Clone, Copy)]
struct Tracker {
    token: Token,
    offset: u64,
    /// The identifier of the command in flight, or [`IDLE`].
    cid: u16,
    /// The identifier of the next one: each use has another generation.
    next_cid: u16,
    /// [`OWN`], or the guest that it was taken for.
    seat: u16,
}

/// The trackers of a queue pair. Taking and completing move one index on a stack, so that the
/// tracker used last, and its list page, are used next.
pub(super) struct Trackers {
    free: Vec<u16>,
    table: Box<[Tracker]>,
}

impl Trackers {
    /// `count` idle trackers, 1 to [`TRACKERS_MAX`].
    pub fn new(count: usize) -> Self {
        let count = count.clamp(1, TRACKERS_MAX) as u16;
        let idle =
            |index| Tracker { token: Token(0), offset: 0, cid: IDLE, next_cid: index, seat: OWN };
        Self { free: (0..count).rev().collect(), table: (0..count).map(idle).collect() }
    }

    /// The tracker that is taken next: its index.
    #[inline]
    pub fn next(&self) -> Option<usize> {
        self.free.last().map(|index| usize::from(*index))
    }

    /// Takes that tracker for a request and returns the command's identifier.
    #[inline]
    pub fn take(&mut self, token: Token, offset: u64, seat: u16) -> Option<u16> {
        let index = self.free.pop()?;
        let tracker = self.table.get_mut(usize::from(index))?;
        tracker.token = token;
        tracker.offset = offset;
        tracker.seat = seat;
        tracker.cid = tracker.next_cid;
        Some(tracker.cid)
    }

    /// Ends the command with this identifier, and returns whose it was. None for an identifier
    /// that is out of range, idle, or of another generation (row 15).
    #[inline]
    pub fn complete(&mut self, cid: u16) -> Option<(Token, u64, u16)> {
        let index = cid & ((1 << INDEX_BITS) - 1);
        let tracker = self.table.get_mut(usize::from(index))?;
        if tracker.cid != cid && !is_trusting(tracker.cid) {
            return None;
        }
        tracker.cid = IDLE;
        tracker.next_cid = tracker.next_cid.wrapping_add(1 << INDEX_BITS);
        self.free.push(index);
        Some((tracker.token, tracker.offset, tracker.seat))
    }

    /// Commands in flight.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// The identifier of a command in flight for this request, if there is one.
    pub fn find(&self, token: Token, seat: u16) -> Option<u16> {
        let mine = |t: &&Tracker| t.cid != IDLE && t.token == token && t.seat == seat;
        self.table.iter().find(mine).map(|tracker| tracker.cid)
    }

    /// Whether a command of this seat is in flight.
    pub fn any_of(&self, seat: u16) -> bool {
        self.table.iter().any(|tracker| tracker.cid != IDLE && tracker.seat == seat)
    }

    /// Trackers in all.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Any command in flight.
    pub fn any(&self) -> Option<u16> {
        let busy = self.table.iter().find(|tracker| tracker.cid != IDLE);
        busy.map(|tracker| tracker.cid)
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

    #[test]
    fn trackers_run_out_and_come_back() {
        let mut trackers = Trackers::new(3);
        let cids: Vec<u16> =
            (0..3).map(|n| trackers.take(Token(n), n * 512, OWN).unwrap()).collect();
        assert_eq!(trackers.next(), None);
        assert_eq!(trackers.take(Token(9), 0, OWN), None);
        assert_eq!(trackers.in_flight(), 3);
        assert_eq!(trackers.complete(cids[1]), Some((Token(1), 512, OWN)));
        assert_eq!(trackers.next(), Some(1));
        assert_eq!(trackers.find(Token(2), OWN), Some(cids[2]));
        assert_eq!(trackers.find(Token(1), OWN), None);
    }

    /// A controller completed a command twice; the second completion ended the command that had
    /// got the same slot in between, and its buffer went back while the device still filled it.
    #[test]
    fn a_second_completion_is_not_the_next_command() {
        let mut trackers = Trackers::new(1);
        let first = trackers.take(Token(1), 0, OWN).unwrap();
        assert!(trackers.complete(first).is_some());
        assert_eq!(trackers.complete(first), None);
        let second = trackers.take(Token(2), 0, 3).unwrap();
        assert_ne!(first, second);
        assert_eq!(trackers.complete(first), None);
        assert_eq!(trackers.complete(second), Some((Token(2), 0, 3)));
    }

    #[test]
    fn no_identifier_is_all_ones_and_none_is_believed_blindly() {
        let mut trackers = Trackers::new(usize::MAX);
        assert_eq!(trackers.table.len(), TRACKERS_MAX);
        for round in 0..200u64 {
            let cids: Vec<u16> =
                (0..TRACKERS_MAX).map(|_| trackers.take(Token(round), 0, OWN).unwrap()).collect();
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
