//! Doorbell registers (PCIe Transport 1.0, 3.1.2).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// One doorbell, alone on its cache lines: the host writes a submission doorbell while the
/// controller spins on it, and must not drag its completion doorbell along. Two lines, since
/// processors fetch them in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Doorbell {
    value: AtomicU32,
    /// Whether a queue belongs to it.
    live: AtomicBool,
}

/// All doorbells: SQ0, CQ0, SQ1, CQ1, ...
pub(crate) struct Doorbells {
    bells: Box<[Doorbell]>,
    dstrd: u8,
}

impl Doorbells {
    /// Doorbells of the admin queues and `io_queues` pairs of I/O queues.
    pub(crate) fn new(io_queues: u16, dstrd: u8) -> Doorbells {
        let count = 2 * (usize::from(io_queues) + 1);
        Doorbells { bells: (0..count).map(|_| Doorbell::default()).collect(), dstrd }
    }

    /// Bytes that they take behind the other registers.
    pub(crate) fn span(&self) -> u64 {
        self.bells.len() as u64 * (4 << self.dstrd)
    }

    /// The host writes at a byte offset into the doorbells. False if no queue is there.
    #[inline]
    pub(crate) fn ring(&self, offset: u64, value: u32) -> bool {
        let shift = 2 + u32::from(self.dstrd);
        let index = offset >> shift;
        if index << shift != offset {
            return false;
        }
        let bell = usize::try_from(index).ok().and_then(|i| self.bells.get(i));
        let Some(bell) = bell.filter(|bell| bell.live.load(Ordering::Acquire)) else {
            return false;
        };
        // What the host wrote to memory before, queue entries above all, comes first.
        bell.value.store(value, Ordering::Release);
        true
    }

    /// The tail that the host wrote for a submission queue.
    #[inline]
    pub(crate) fn tail(&self, sqid: u16) -> u32 {
        self.load(2 * usize::from(sqid))
    }

    /// The head that the host wrote for a completion queue.
    #[inline]
    pub(crate) fn head(&self, cqid: u16) -> u32 {
        self.load(2 * usize::from(cqid) + 1)
    }

    /// A submission queue comes to life, or goes.
    pub(crate) fn set_sq(&self, sqid: u16, live: bool) {
        self.set(2 * usize::from(sqid), live);
    }

    /// A completion queue comes to life, or goes.
    pub(crate) fn set_cq(&self, cqid: u16, live: bool) {
        self.set(2 * usize::from(cqid) + 1, live);
    }

    #[inline]
    fn load(&self, index: usize) -> u32 {
        let bell = self.bells.get(index);
        bell.map_or(0, |bell| bell.value.load(Ordering::Acquire))
    }

    fn set(&self, index: usize, live: bool) {
        if let Some(bell) = self.bells.get(index) {
            bell.value.store(0, Ordering::Relaxed);
            bell.live.store(live, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_doorbells_of_live_queues_ring() {
        for dstrd in [0, 3] {
            let bells = Doorbells::new(2, dstrd);
            let at = |index: u64| index << (2 + dstrd);
            assert_eq!(bells.span(), at(6));
            assert!(!bells.ring(at(2), 5));
            bells.set_sq(1, true);
            bells.set_cq(2, true);
            assert!(bells.ring(at(2), 5));
            assert!(bells.ring(at(5), 6));
            assert!(!bells.ring(at(3), 7));
            assert!(!bells.ring(at(2) + 1, 7));
            assert!(!bells.ring(at(6), 7));
            assert!(!bells.ring(u64::MAX, 7));
            assert_eq!((bells.tail(1), bells.head(2), bells.head(1)), (5, 6, 0));
            bells.set_sq(1, false);
            assert_eq!(bells.tail(1), 0);
            assert_eq!(bells.tail(9), 0);
        }
    }
}
