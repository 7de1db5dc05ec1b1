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
}
