use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buf::{Buf, Header, Kind};
use crate::extents::Extents;
use crate::{MemError, PageSize, Region};

/// Allocations share no cache line.
const GRAIN: usize = 64;

/// Memory that this crate mapped for devices, given out in pieces. A handle; clones name the
/// same arena, which lives as long as a handle, a pool or a buffer of it, or its [`Memory`].
///
/// [`Memory`]: crate::Memory
#[derive(Clone)]
pub struct Arena {
    shared: Arc<ArenaShared>,
}

struct ArenaShared {
    region: Region,
    notice: Option<String>,
    free: Mutex<Extents>,
}

impl Arena {
    /// A private, zeroed buffer, aligned to `align` in this process and for devices. For the
    /// control plane: it locks and allocates.
    ///
    /// # Errors
    /// `EINVAL` if `len` is 0, or `align` is not a power of two or beyond [`Region::align`];
    /// `ENOMEM` if no free range is long enough.
    pub fn alloc(&self, len: usize, align: usize) -> Result<Buf, MemError> {
        let mut buf = self.alloc_unzeroed(len, align)?;
        buf.fill(0, len, 0);
        Ok(buf)
    }

    /// The size of its pages.
    pub fn page_size(&self) -> PageSize {
        self.shared.region.page_size()
    }

    /// True if its pages stay in memory, as hardware devices need.
    pub fn locked(&self) -> bool {
        self.shared.region.dma()
    }

    /// One line on what it did not get, why, and the command that makes it better; `None` if it
    /// got all that was asked for.
    pub fn notice(&self) -> Option<&str> {
        self.shared.notice.as_deref()
    }

    /// The region that devices see.
    pub fn region(&self) -> Region {
        self.shared.region.clone()
    }

    /// Free bytes, in all.
    pub fn available(&self) -> usize {
        self.shared.lock().available()
    }

    pub(crate) fn new(region: Region, notice: Option<String>) -> Arena {
        let free = Mutex::new(Extents::new(region.len()));
        Arena { shared: Arc::new(ArenaShared { region, notice, free }) }
    }

    pub(crate) fn alloc_unzeroed(&self, len: usize, align: usize) -> Result<Buf, MemError> {
        let region = &self.shared.region;
        if len == 0 || !align.is_power_of_two() || align > region.align() {
            let limit = region.align();
            return Err(MemError::new(
                libc::EINVAL,
                format!(
                    "allocate {len} bytes aligned to {align}: the length must be at least 1, and \
                     the alignment a power of two up to {limit}"
                ),
            ));
        }
        let room = len.checked_next_multiple_of(GRAIN);
        let mut free = self.shared.lock();
        let taken = room.and_then(|room| free.take(room, align.max(GRAIN)).map(|at| (at, room)));
        let Some((at, room)) = taken else {
            let (size, longest) = (region.len(), free.longest());
            return Err(MemError::new(
                libc::ENOMEM,
                format!(
                    "allocate {len} bytes: the arena of {size} bytes has {longest} left in one \
                     piece; make a larger arena"
                ),
            ));
        };
        drop(free);
        let shared = NonNull::from(&**region.shared());
        let block = Box::new(Block {
            header: Header { bufs: AtomicUsize::new(1), region: shared, kind: Kind::Block },
            arena: self.clone(),
            at,
            room,
        });
        let owner = NonNull::from(Box::leak(block)).cast::<Header>();
        // SAFETY: OWNED: `free` gives each byte to one block at a time; LIVE: the block holds
        // the arena. The count of one is in the header.
        unsafe {
            let ptr = NonNull::new_unchecked(region.addr().add(at));
            Ok(Buf::from_raw(ptr, len, owner))
        }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Arena");
        out.field("region", &self.shared.region).field("locked", &self.locked()).finish()
    }
}

impl ArenaShared {
    fn lock(&self) -> MutexGuard<'_, Extents> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range that is given out, led by the header of its `Buf`s.
#[repr(C)]
pub(crate) struct Block {
    header: Header,
    arena: Arena,
    at: usize,
    room: usize,
}

/// Gives a range back to its arena.
///
/// # Safety
/// `Arena::alloc` leaked this block, and its last `Buf` is gone.
pub(crate) unsafe fn free(block: NonNull<Block>) {
    // SAFETY: by the caller.
    let block = unsafe { Box::from_raw(block.as_ptr()) };
    block.arena.shared.lock().give(block.at, block.room);
}
