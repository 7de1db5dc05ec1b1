//! Doorbell registers (PCIe Transport 1.0, 3.1.2).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use oxblock_engine::{Error, ErrorKind};
use oxblock_mem::{ArenaOptions, Cells, Memory, PagePolicy};
use oxblock_nvme::PAGE_BYTES;
use oxblock_nvme::regs::DOORBELLS;
use oxblock_pci::soft::Window;

/// All doorbells: SQ0, CQ0, SQ1, CQ1, ...
pub(crate) struct Doorbells {
    bells: Bells,
    dstrd: u8,
}

/// Where the values are.
enum Bells {
    /// In memory of the controller's own: hosts write through [`Doorbells::ring`].
    Own(Box<[Doorbell]>),
    /// In memory that a host in another process maps, and writes as it likes.
    Mapped { words: Cells, live: Box<[AtomicBool]>, window: Window },
}

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

impl Doorbells {
    /// Doorbells of the admin queues and `io_queues` pairs of I/O queues.
    pub(crate) fn new(io_queues: u16, dstrd: u8) -> Doorbells {
        let bells = (0..count(io_queues)).map(|_| Doorbell::default()).collect();
        Doorbells { bells: Bells::Own(bells), dstrd }
    }

    /// The same in memory that a host in another process can map.
    ///
    /// # Errors
    /// Memory is short.
    pub(crate) fn mapped(io_queues: u16, dstrd: u8) -> Result<Doorbells, Error> {
        let count = count(io_queues);
        let (offset, len) =
            (DOORBELLS as usize, (count * (4 << dstrd)).next_multiple_of(PAGE_BYTES));
        // The file has the layout of the BAR, so what comes before the doorbells is left out.
        let pages = PagePolicy::Unlocked;
        let options = ArenaOptions { pages, ..ArenaOptions::new(offset + len) };
        let arena = Memory::new().add_arena(&options)?;
        let mut all = arena.alloc(offset + len, PAGE_BYTES)?;
        let memory = arena.region();
        if all.addr() != memory.addr() {
            return Err(Error::new(
                ErrorKind::Failed,
                "the doorbells are not where they should be",
            ));
        }
        let words = Cells::new(all.split_off(offset))?;
        let window = Window { offset: offset as u64, len: len as u64, memory };
        let live = (0..count).map(|_| AtomicBool::new(false)).collect();
        Ok(Doorbells { bells: Bells::Mapped { words, live, window }, dstrd })
    }

    /// What a host in another process can map of them.
    pub(crate) fn window(&self) -> Option<&Window> {
        match &self.bells {
            Bells::Own(_) => None,
            Bells::Mapped { window, .. } => Some(window),
        }
    }

    /// Bytes that they take behind the other registers.
    pub(crate) fn span(&self) -> u64 {
        self.len() as u64 * (4 << self.dstrd)
    }

    /// The host writes at a byte offset into the doorbells. False if no queue is there.
    #[inline]
    pub(crate) fn ring(&self, offset: u64, value: u32) -> bool {
        let shift = 2 + u32::from(self.dstrd);
        let index = offset >> shift;
        if index << shift != offset {
            return false;
        }
        let Some((word, live)) = usize::try_from(index).ok().and_then(|at| self.at(at)) else {
            return false;
        };
        if !live.load(Ordering::Acquire) {
            return false;
        }
        // What the host wrote to memory before, queue entries above all, comes first.
        word.store(value, Ordering::Release);
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
        self.at(index).map_or(0, |(word, _)| word.load(Ordering::Acquire))
    }

    fn set(&self, index: usize, alive: bool) {
        if let Some((word, live)) = self.at(index) {
            word.store(0, Ordering::Relaxed);
            live.store(alive, Ordering::Release);
        }
    }

    /// A doorbell, and whether a queue belongs to it.
    #[inline]
    fn at(&self, index: usize) -> Option<(&AtomicU32, &AtomicBool)> {
        match &self.bells {
            Bells::Own(bells) => bells.get(index).map(|bell| (&bell.value, &bell.live)),
            Bells::Mapped { words, live, .. } => {
                let live = live.get(index)?;
                Some((words.u32(index << self.dstrd), live))
            }
        }
    }

    fn len(&self) -> usize {
        match &self.bells {
            Bells::Own(bells) => bells.len(),
            Bells::Mapped { live, .. } => live.len(),
        }
    }
}

fn count(io_queues: u16) -> usize {
    2 * (usize::from(io_queues) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_doorbells_of_live_queues_ring() {
        let mapped = |dstrd| Doorbells::mapped(2, dstrd).unwrap();
        let kinds = [Doorbells::new(2, 0), Doorbells::new(2, 3), mapped(0), mapped(3), mapped(12)];
        for bells in kinds {
            let dstrd = bells.dstrd;
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

    /// A host in another process writes the words themselves, at the offsets of the BAR.
    #[test]
    fn mapped_doorbells_ring_without_a_call() {
        let bells = Doorbells::mapped(3, 1).unwrap();
        bells.set_sq(2, true);
        let window = bells.window().unwrap();
        assert_eq!((window.offset, window.len), (0x1000, 0x1000));
        let (file, offset) = window.memory.fd().unwrap();
        let theirs = oxblock_mem::Region::import(file, offset + window.offset, window.len).unwrap();
        let words = Cells::new(theirs.buf(0, 4096).unwrap()).unwrap();
        words.u32(4 * 2).store(77, Ordering::Relaxed);
        assert_eq!(bells.tail(2), 77);
        assert!(bells.ring(4 << 3, 78));
        assert_eq!(words.u32(4 * 2).load(Ordering::Relaxed), 78);
    }
}
