//! What a driver sees of a PCI function.

use std::sync::Arc;

use oxblock_mem::DmaMapper;

use crate::{Bar, ConfigSpace, Events, Interrupts, PciError};

/// What of a function holds up the thread that asks for it, for longer than a register of a device
/// would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delays {
    /// Nothing does.
    None,
    /// A reset: it takes 100 ms and more.
    Reset,
    /// Registers too: another process may take its time to answer.
    Registers,
}

/// One PCI function: configuration space, BARs, IOMMU, interrupts, reset.
///
/// A function is handed over with memory decoding and bus mastering in whatever state its
/// back end found them; a driver calls [`enable`](crate::enable) before it touches a BAR.
pub trait Function: Send + Sync {
    /// Where the function is, for messages: `0000:01:00.0`, `soft:0`.
    fn address(&self) -> String;

    /// The NUMA node whose memory is nearest, if the platform says so.
    fn numa_node(&self) -> Option<u32>;

    /// The configuration space.
    fn config(&self) -> &dyn ConfigSpace;

    /// The BAR with this index (0 to 5), mapped.
    ///
    /// # Errors
    /// The index is above 5, the BAR is not implemented or is an I/O port BAR, or the back
    /// end cannot map it.
    fn bar(&self, index: u8) -> Result<Arc<dyn Bar>, PciError>;

    /// Where memory is mapped so that this function may reach it by DMA.
    fn iommu(&self) -> Arc<dyn DmaMapper>;

    /// The interrupt vectors (MSI-X where there is a choice).
    fn interrupts(&self) -> &dyn Interrupts;

    /// What the platform tells of the function beside its interrupts.
    fn events(&self) -> &Events;

    /// What holds up whoever asks for it: to be done by a thread that can wait.
    fn delays(&self) -> Delays;

    /// Resets the function (FLR where it has one). All its registers return to their
    /// defaults; DMA mappings and enabled interrupts stay with the function's owner.
    ///
    /// # Errors
    /// The function has no reset, or it did not come back.
    fn reset(&self) -> Result<(), PciError>;

    /// Gives the function back to whom it came from: registers and configuration space, those
    /// that somebody still holds included, read as all ones from now on, and writes go nowhere.
    /// What a back end had opened for it is closed. Its DMA mappings are to be gone by then.
    /// To use it again, get it from its back end anew.
    fn release(&self);
}
