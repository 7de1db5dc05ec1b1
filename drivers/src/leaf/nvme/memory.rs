//! Memory that a controller is told about: freed only when it has forgotten it.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_mem::{Arena, Attachment, Buf, Cells};
use oxblock_pci::Function;

use super::Quirks;
use super::hardware::Hardware;

/// How long an attach waits for room in a full IOMMU (row 34), in ns.
const ROOM_NS: u64 = 1_000_000_000;
/// How often it looks.
const ROOM_INTERVAL: Duration = Duration::from_millis(1);
/// Bytes that the controller can not reach, at the end of the block; they keep it allocated.
const ANCHOR: usize = 64;

/// Shows all memory to the controller. Where the IOMMU is full, others may be about to make room.
pub(super) async fn attach(
    core: &Core,
    function: &dyn Function,
    hardware: &Hardware,
) -> Result<Attachment, Error> {
    let bits = if hardware.quirks().contains(Quirks::DMA_48_BITS) { 48 } else { 64 };
    let reachable = 0..=(u64::MAX >> (64 - bits)) - 1;
    let until_ns = core.now() + ROOM_NS;
    loop {
        let iommu = function.iommu();
        match core.memory().attach_within(iommu, std::slice::from_ref(&reachable)) {
            Err(error) if error.errno() == libc::ENOSPC && core.now() < until_ns => {
                core.sleep(ROOM_INTERVAL).await;
            }
            outcome => return Ok(outcome?),
        }
    }
}

/// One block of an arena that the controller knows, given out in pieces.
///
/// Once exposed, it is freed only after it was concealed again (its queue was deleted), or if the
/// controller is quiet by then (disabled or gone). Otherwise it is leaked: a controller that does
/// not answer may still write to it.
pub(super) struct DeviceMemory {
    hardware: Arc<Hardware>,
    /// Keeps the whole block: a buffer's block lives as long as any piece of it.
    anchor: Option<Buf>,
    rest: Option<Buf>,
    exposed: AtomicBool,
}

impl DeviceMemory {
    /// `len` zeroed bytes, aligned to 4 KiB.
    pub fn new(arena: &Arena, len: usize, hardware: &Arc<Hardware>) -> Result<Self, Error> {
        let mut rest = arena.alloc(len + ANCHOR, 4096)?;
        let anchor = rest.split_off(len);
        Ok(Self {
            hardware: hardware.clone(),
            anchor: Some(anchor),
            rest: Some(rest),
            exposed: AtomicBool::new(false),
        })
    }

    /// The next `len` bytes.
    pub fn cells(&mut self, len: usize) -> Result<Cells, Error> {
        let Some(mut piece) = self.rest.take().filter(|rest| rest.len() >= len) else {
            let text = "a queue's memory is shorter than its parts; this is a bug of the driver";
            return Err(Error::new(ErrorKind::Failed, text));
        };
        self.rest = Some(piece.split_off(len));
        Ok(Cells::new(piece)?)
    }

    /// Where the controller finds these cells.
    pub fn iova_of(&self, cells: &Cells) -> Result<u64, Error> {
        cells.iova().ok_or_else(|| {
            let text = "the arena has no DMA address for this controller; attach it first";
            Error::new(ErrorKind::Invalid, text)
        })
    }

    /// The controller is about to be told.
    pub fn expose(&self) {
        self.exposed.store(true, Ordering::Release);
    }

    /// The controller has forgotten it, or never took it.
    pub fn conceal(&self) {
        self.exposed.store(false, Ordering::Release);
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.exposed.load(Ordering::Acquire) && !self.hardware.is_quiet() {
            mem::forget(self.anchor.take());
        }
    }
}
