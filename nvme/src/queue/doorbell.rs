#[cfg(loom)]
use loom::sync::atomic::fence;
use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::fence;

use super::Words;

/// The host's side of one shadow doorbell (Base 2.0, 5.8 and annex B.5).
///
/// The new value goes to memory; the register is written only if it passes the EventIdx that the
/// controller left, which says up to where it looks without being rung. A full barrier stands
/// between the store of the value and the load of EventIdx: without it, host and controller could
/// each miss what the other wrote, and the command would wait for ever.
#[derive(Debug)]
pub struct ShadowDoorbell<W> {
    shadow: W,
    event_index: W,
    index: usize,
}

impl<W: Words> ShadowDoorbell<W> {
    /// Word `index` (32 bits) of both pages; None if it is past one of them.
    pub fn new(shadow: W, event_index: W, index: usize) -> Option<Self> {
        let end = index.checked_add(1)?.checked_mul(4)?;
        let fits = end <= shadow.len_bytes() && end <= event_index.len_bytes();
        fits.then_some(Self { shadow, event_index, index })
    }

    /// Publishes `new` after `old`; true if the register must be written as well. Orders all
    /// earlier stores before the value.
    #[inline]
    pub fn ring(&self, old: u16, new: u16) -> bool {
        self.shadow.store32(self.index, u32::from(new), Ordering::Release);
        fence(Ordering::SeqCst);
        let event = self.event_index.load32(self.index, Ordering::Relaxed);
        need_event(event as u16, new, old)
    }

    /// Back to zero on both pages, as after Create and before reuse of a queue ID.
    pub fn clear(&self) {
        self.shadow.store32(self.index, 0, Ordering::Relaxed);
        self.event_index.store32(self.index, 0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// The controller's side of one shadow doorbell.
#[derive(Debug)]
pub struct ShadowSource<W> {
    shadow: W,
    event_index: W,
    index: usize,
}

impl<W: Words> ShadowSource<W> {
    /// Word `index` (32 bits) of both pages; None if it is past one of them.
    pub fn new(shadow: W, event_index: W, index: usize) -> Option<Self> {
        let end = index.checked_add(1)?.checked_mul(4)?;
        let fits = end <= shadow.len_bytes() && end <= event_index.len_bytes();
        fits.then_some(Self { shadow, event_index, index })
    }

    /// The value in memory, unchecked, with acquire ordering.
    #[inline]
    pub fn value(&self) -> u32 {
        self.shadow.load32(self.index, Ordering::Acquire)
    }

    /// Asks to be rung once the value passes `seen`, then looks again: a different value must be
    /// served now, since the host may have looked at the old EventIdx.
    #[inline]
    pub fn arm(&self, seen: u16) -> u32 {
        self.event_index.store32(self.index, u32::from(seen), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.value()
    }

    /// While this is called instead of [`ShadowSource::arm`], the host goes on without ringing:
    /// EventIdx stays behind the value that it has published.
    #[inline]
    pub fn disarm(&self, behind: u16) {
        self.event_index.store32(self.index, u32::from(behind), Ordering::Relaxed);
    }
}

/// Going from `old` to `new` passes `event`: old <= event < new, as positions of a ring.
///
/// Differences are modulo 2^16. That holds for any ring size too, because a position that wraps
/// to a smaller one is then taken to run through values that no EventIdx has.
#[inline]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::test_words::TestWords;
    use super::*;
    use std::sync::Arc;

    #[test]
    fn need_event_agrees_with_stepping_around_the_ring() {
        for entries in [2u16, 3, 7, 16] {
            for old in 0..entries {
                for steps in 1..entries {
                    let new = (old + steps) % entries;
                    for event in 0..entries {
                        let passed = (0..steps).any(|s| (old + s) % entries == event);
                        assert_eq!(
                            need_event(event, new, old),
                            passed,
                            "{entries} {old} {new} {event}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_register_is_written_only_past_the_event_index() {
        let pages = [(); 2].map(|()| Arc::new(TestWords::new(8)));
        let host = ShadowDoorbell::new(pages[0].clone(), pages[1].clone(), 3).unwrap();
        let device = ShadowSource::new(pages[0].clone(), pages[1].clone(), 3).unwrap();
        assert!(ShadowDoorbell::new(pages[0].clone(), pages[1].clone(), 16).is_none());
        assert!(ShadowSource::new(pages[0].clone(), pages[1].clone(), usize::MAX).is_none());
        assert!(host.ring(0, 1), "armed at 0 from the start");
        assert!(!host.ring(1, 4));
        assert_eq!(device.value(), 4);
        assert_eq!(device.arm(4), 4);
        assert!(host.ring(4, 5));
        host.clear();
        assert_eq!(device.value(), 0);
    }
}
