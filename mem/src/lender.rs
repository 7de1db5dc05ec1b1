use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use crate::buf::{Buf, Header, Kind};
use crate::home::Home;
use crate::{MemError, Region};

/// Shared [`Buf`]s of one region for one core, several times cheaper than [`Region::buf`]: those
/// that come back on the same thread are counted without atomics.
///
/// The thread that lends first owns it (HOME); until then it may be moved to another. It is a
/// handle of its region, and so are its buffers after it: the region can not be unregistered
/// before all are dropped. Drop it on its thread: dropped elsewhere, it holds its region for ever.
pub struct Lender {
    shared: NonNull<LenderShared>,
    /// Not Sync.
    _cells: PhantomData<Cell<()>>,
}

// SAFETY: HOME: what the owner alone may touch is checked against the thread's number.
unsafe impl Send for Lender {}

impl Lender {
    /// A shared [`Buf`], which may overlap others.
    ///
    /// # Errors
    /// `EINVAL` if the range does not lie in the region.
    ///
    /// # Panics
    /// If another thread has lent before.
    #[inline]
    pub fn buf(&self, offset: usize, len: usize) -> Result<Buf, MemError> {
        let shared = self.shared();
        if offset.checked_add(len).is_none_or(|end| end > shared.region.len()) {
            return Err(MemError::new(libc::EINVAL, "range beyond the end of the region"));
        }
        shared.home.settle_here();
        shared.here.set(shared.here.get() + 1);
        // SAFETY: in range, checked; counted above; LIVE: the header holds the region, and leads
        // LenderShared.
        unsafe {
            let ptr = NonNull::new_unchecked(shared.region.addr().add(offset));
            Ok(Buf::from_raw(ptr, len, self.shared.cast()))
        }
    }

    /// The region that it lends.
    #[inline]
    pub fn region(&self) -> &Region {
        &self.shared().region
    }

    pub(crate) fn new(region: Region) -> Lender {
        let header = Header {
            bufs: AtomicUsize::new(0),
            region: NonNull::from(&**region.shared()),
            kind: Kind::Lent,
        };
        let elsewhere = AtomicIsize::new(LENDER);
        let shared =
            LenderShared { header, home: Home::new(), here: Cell::new(0), elsewhere, region };
        Lender { shared: NonNull::from(Box::leak(Box::new(shared))), _cells: PhantomData }
    }

    #[inline]
    fn shared(&self) -> &LenderShared {
        // SAFETY: freed only after this handle has left, in `drop`.
        unsafe { self.shared.as_ref() }
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        let shared = self.shared();
        if shared.home.is_here() || shared.home.is_open() {
            // From here on buffers are counted in `elsewhere`, even on this thread.
            shared.home.leave();
            // SAFETY: what was counted here moves there, and the handle leaves.
            unsafe { count_elsewhere(self.shared, shared.here.get() - LENDER) };
        }
    }
}

impl fmt::Debug for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lender").field(self.region()).finish()
    }
}

/// What the handle counts for: more than there are buffers.
const LENDER: isize = 1 << (isize::BITS - 2);

/// Led by the header of the `Buf`s. Their number is the sum of the two counts, each of which may
/// be negative: a buffer may go from one side to the other uncounted.
#[repr(C)]
pub(crate) struct LenderShared {
    header: Header,
    home: Home,
    here: Cell<isize>,
    elsewhere: AtomicIsize,
    region: Region,
}

/// Counts one buffer more or less.
///
/// # Safety
/// `change` is 1 for a further `Buf`, made by the holder of one, or -1 for a `Buf` that is gone.
#[inline]
pub(crate) unsafe fn count(lender: NonNull<LenderShared>, change: isize) {
    // SAFETY: the buffer that is, or was until now, counted keeps it allocated.
    let shared = unsafe { lender.as_ref() };
    if shared.home.is_here() {
        shared.here.set(shared.here.get() + change);
    } else {
        // SAFETY: by the caller.
        unsafe { count_elsewhere(lender, change) };
    }
}

/// Counts atomically; frees it all when handle and buffers are gone.
///
/// # Safety
/// As `count`; the handle is counted off once.
#[cold]
unsafe fn count_elsewhere(lender: NonNull<LenderShared>, change: isize) {
    // SAFETY: not freed before our own part is counted off.
    let elsewhere = unsafe { &(*lender.as_ptr()).elsewhere };
    // AcqRel: whoever frees comes after all that others did to their buffers.
    if elsewhere.fetch_add(change, Ordering::AcqRel) + change == 0 {
        // SAFETY: leaked by `Lender::new`; the handle has left, and no buffer is left.
        drop(unsafe { Box::from_raw(lender.as_ptr()) });
    }
}
