//! Interrupt vectors of a function in software.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{EventFd, Interrupts, PciError, PciErrorKind};

/// The vectors of a function: which eventfd each one signals.
pub struct SoftInterrupts {
    table: Mutex<Table>,
    /// Moves whenever the table does.
    generation: AtomicU64,
    /// [`MASKED`] and [`PENDING`] of each vector.
    masks: Box<[AtomicU8]>,
    count: u32,
}

/// Interrupts are held back.
const MASKED: u8 = 1;
/// One was held back.
const PENDING: u8 = 2;

type Table = Arc<[Option<Arc<EventFd>>]>;

impl SoftInterrupts {
    /// `count` vectors, none of them enabled.
    pub fn new(count: u32) -> Arc<SoftInterrupts> {
        Arc::new(SoftInterrupts {
            table: Mutex::new((0..count).map(|_| None).collect()),
            generation: AtomicU64::new(1),
            masks: (0..count).map(|_| AtomicU8::new(0)).collect(),
            count,
        })
    }

    /// How many vectors there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// What a controller's core raises interrupts with.
    #[must_use]
    pub fn signals(self: &Arc<SoftInterrupts>) -> Signals {
        Signals { shared: Arc::clone(self), table: Arc::from([]), generation: 0 }
    }

    fn mask_of(&self, vector: u32) -> Option<&AtomicU8> {
        self.masks.get(usize::try_from(vector).ok()?)
    }

    fn set(&self, vector: u32, event: Option<Arc<EventFd>>) -> Result<(), PciError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new: Vec<_> = table.to_vec();
        let slot = usize::try_from(vector).ok().and_then(|v| new.get_mut(v));
        let Some(slot) = slot else {
            return Err(PciError::new(
                PciErrorKind::OutOfRange,
                format!("interrupt vector {vector} of {}", self.count),
            ));
        };
        *slot = event;
        *table = new.into();
        // Published under the lock, so that whoever sees the number finds the table.
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

impl Interrupts for SoftInterrupts {
    fn count(&self) -> u32 {
        self.count
    }

    fn enable(&self, vector: u32, event: Arc<EventFd>) -> Result<(), PciError> {
        self.set(vector, Some(event))
    }

    fn disable(&self, vector: u32) -> Result<(), PciError> {
        self.set(vector, None)
    }

    fn mask(&self, vector: u32, masked: bool) -> bool {
        let Some(mask) = self.mask_of(vector) else { return false };
        if masked {
            // What came before has been signalled.
            let mask_once = |old| (old & MASKED == 0).then_some(MASKED);
            let _ = mask.fetch_update(Ordering::AcqRel, Ordering::Acquire, mask_once);
        } else if mask.swap(0, Ordering::AcqRel) & PENDING != 0 {
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(event) = table.get(vector as usize).and_then(Option::as_ref) {
                event.signal();
            }
        }
        true
    }
}

/// One core's copy of the vectors. Signalling takes no lock unless the table has changed.
pub struct Signals {
    shared: Arc<SoftInterrupts>,
    table: Table,
    generation: u64,
}

impl Signals {
    /// Signals a vector, if it is enabled. A system call then, unless it is masked; a load or two
    /// otherwise.
    pub fn signal(&mut self, vector: u16) {
        self.sync();
        if let Some(Some(event)) = self.table.get(usize::from(vector)) {
            // A read-modify-write even where the bit is set already: whoever unmasks either finds
            // it, and with it what was stored before, or comes first and is signalled.
            let mask = self.shared.mask_of(vector.into());
            if mask.is_none_or(|mask| mask.fetch_or(PENDING, Ordering::AcqRel) & MASKED == 0) {
                event.signal();
            }
        }
    }

    /// Takes up changes of the table, and lets go of eventfds that are no longer in it.
    #[inline]
    pub fn sync(&mut self) {
        if self.shared.generation.load(Ordering::Acquire) != self.generation {
            self.refresh();
        }
    }

    #[cold]
    fn refresh(&mut self) {
        let table = self.shared.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.generation = self.shared.generation.load(Ordering::Acquire);
        self.table = Arc::clone(&table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enabled_vectors_signal() {
        let interrupts = SoftInterrupts::new(2);
        let mut signals = interrupts.signals();
        let event = Arc::new(EventFd::new().unwrap());
        signals.signal(0);
        interrupts.enable(0, Arc::clone(&event)).unwrap();
        assert_eq!(event.take(), 0);
        signals.signal(0);
        signals.signal(1);
        signals.signal(7);
        assert_eq!(event.take(), 1);
        interrupts.disable(0).unwrap();
        signals.signal(0);
        assert_eq!(event.take(), 0);
        assert_eq!(Arc::strong_count(&event), 1);
        let kind = interrupts.enable(2, event).unwrap_err().kind();
        assert_eq!(kind, PciErrorKind::OutOfRange);
    }

    #[test]
    fn what_is_masked_comes_once_it_is_unmasked() {
        let interrupts = SoftInterrupts::new(2);
        let mut signals = interrupts.signals();
        let event = Arc::new(EventFd::new().unwrap());
        interrupts.enable(1, Arc::clone(&event)).unwrap();
        signals.signal(1);
        assert!(interrupts.mask(1, true) && interrupts.mask(1, true));
        assert_eq!(event.take(), 1);
        assert!(interrupts.mask(1, false));
        assert_eq!(event.take(), 0, "what came before the mask comes once");
        assert!(interrupts.mask(1, true));
        signals.signal(1);
        signals.signal(1);
        assert_eq!(event.take(), 0);
        assert!(interrupts.mask(1, false));
        assert_eq!(event.take(), 1);
        assert!(interrupts.mask(1, false));
        signals.signal(1);
        assert_eq!(event.take(), 1);
        assert!(!interrupts.mask(2, true));
    }
}
