//! Interrupt vectors as event file descriptors.

use std::sync::Arc;

use crate::{EventFd, PciError};

/// The interrupt vectors of a function.
pub trait Interrupts: Send + Sync {
    /// How many vectors the function has; may be zero.
    fn count(&self) -> u32;

    /// From now on an interrupt on `vector` signals `event`. Replaces what was there.
    ///
    /// # Errors
    /// There is no such vector, or the operating system refuses.
    fn enable(&self, vector: u32, event: Arc<EventFd>) -> Result<(), PciError>;

    /// Interrupts on `vector` go nowhere any more.
    ///
    /// # Errors
    /// There is no such vector, or the operating system refuses.
    fn disable(&self, vector: u32) -> Result<(), PciError>;

    /// Holds interrupts on `vector` back, or lets them through again: one that was held back
    /// comes then. For drivers that poll for a while and would not look at it: a register access
    /// or less, from any thread. False where that cannot be had; the vector is as it was.
    fn mask(&self, vector: u32, masked: bool) -> bool;
}
