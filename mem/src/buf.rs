use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::region::RegionShared;
use crate::{View, arena, lender, pool, raw, region};

/// Who gets the bytes back when the last `Buf` of a header goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A slot of a pool: the header is the first field of `pool::Slot`.
    Pool,
    /// A range of an arena: the header is the first field of `arena::Block`.
    Block,
    /// Shared bytes of a region: the header is the first field of `RegionShared`.
    Region,
    /// Shared bytes of a region: the header is the first field of `lender::LenderShared`.
    Lent,
}

/// What all the `Buf`s of one slot, block or region have in common.
#[repr(C)]
pub(crate) struct Header {
    /// Live `Buf`s. A lender counts them itself.
    pub(crate) bufs: AtomicUsize,
    /// The region that the bytes lie in; it outlives the header (LIVE).
    pub(crate) region: NonNull<RegionShared>,
    pub(crate) kind: Kind,
}

impl Header {
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.kind, Kind::Region | Kind::Lent)
    }

    /// Counts one `Buf` off; true if it was the last. Nothing is written if it is the only one
    /// (COUNT).
    #[inline]
    fn is_last(&self) -> bool {
        if self.bufs.load(Ordering::Acquire) == 1 {
            return true;
        }
        let last = self.bufs.fetch_sub(1, Ordering::Release) == 1;
        if last {
            fence(Ordering::Acquire);
        }
        last
    }

    #[inline]
    pub(crate) fn iova(&self, ptr: *const u8) -> Option<u64> {
        // SAFETY: LIVE: the region outlives its headers.
        unsafe { self.region.as_ref() }.iova_of(ptr)
    }
}

/// A piece of memory, owned and address-stable: no other private `Buf` overlaps it.
///
/// Made by [`Pool::take`](crate::Pool::take), [`Arena::alloc`](crate::Arena::alloc) (private), or
/// [`Region::buf`](crate::Region::buf) (shared: others may write it at any time, so it is
/// reached by copies only). Its drop gives the bytes back; until then they stay mapped.
#[repr(C)]
pub struct Buf {
    ptr: NonNull<u8>,
    len: usize,
    owner: NonNull<Header>,
}

// SAFETY: a Buf owns its bytes (OWNED) or copies them as foreign code (SHARED), and its header
// counts atomically (COUNT) and is freed from any thread (HOME).
unsafe impl Send for Buf {}
// SAFETY: `&Buf` only reads: slices of private bytes, copies of shared ones.
unsafe impl Sync for Buf {}

impl Buf {
    /// # Safety
    /// The bytes lie in the header's region, and the header counts this `Buf` already.
    #[inline]
    pub(crate) unsafe fn from_raw(ptr: NonNull<u8>, len: usize, owner: NonNull<Header>) -> Buf {
        Buf { ptr, len, owner }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte in this process.
    #[inline]
    pub fn addr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// The address of the first byte for devices; `None` until a device is attached.
    #[inline]
    pub fn iova(&self) -> Option<u64> {
        self.header().iova(self.ptr.as_ptr())
    }

    /// True if others may write the bytes at any time: registered memory, a device's view.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.header().is_shared()
    }

    /// The bytes, or `None` for shared memory.
    #[inline]
    pub fn as_slice(&self) -> Option<&[u8]> {
        // SAFETY: OWNED, and writes need `&mut self`.
        (!self.is_shared())
            .then(|| unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) })
    }

    /// The bytes, or `None` for shared memory.
    #[inline]
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        // SAFETY: OWNED, and `&mut self` is exclusive.
        (!self.is_shared())
            .then(|| unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) })
    }

    /// Copies `dst.len()` bytes out, from offset `at`.
    ///
    /// # Panics
    /// If the range does not lie in the buffer.
    #[inline]
    pub fn read_at(&self, at: usize, dst: &mut [u8]) {
        let src = self.range(at, dst.len());
        // SAFETY: LIVE, in range; private bytes are not written through `&self`.
        unsafe { raw::copy(src, dst.as_mut_ptr(), dst.len(), self.is_shared()) };
    }

    /// Copies `src` in, to offset `at`.
    ///
    /// # Panics
    /// If the range does not lie in the buffer.
    #[inline]
    pub fn write_at(&mut self, at: usize, src: &[u8]) {
        let dst = self.range(at, src.len());
        // SAFETY: LIVE, in range, exclusive unless shared.
        unsafe { raw::copy(src.as_ptr(), dst, src.len(), self.is_shared()) };
    }

    /// Sets `len` bytes from offset `at`.
    ///
    /// # Panics
    /// If the range does not lie in the buffer.
    #[inline]
    pub fn fill(&mut self, at: usize, len: usize, byte: u8) {
        let dst = self.range(at, len);
        // SAFETY: LIVE, in range, exclusive unless shared.
        unsafe { raw::fill(dst, byte, len, self.is_shared()) };
    }

    /// Keeps the first `at` bytes and returns the rest. Both halves are counted in one header:
    /// the bytes go home when the last of them is dropped.
    ///
    /// # Panics
    /// If `at` is beyond the end.
    pub fn split_off(&mut self, at: usize) -> Buf {
        assert!(at <= self.len, "split at {at} beyond the end of a buffer of {}", self.len);
        self.count_one_more();
        // SAFETY: at <= len stays within the allocation; counted above.
        let tail = unsafe { Buf::from_raw(self.ptr.add(at), self.len - at, self.owner) };
        self.len = at;
        tail
    }

    /// Appends `next` if it follows directly in the same block; gives it back otherwise.
    pub fn try_join(&mut self, next: Buf) -> Result<(), Buf> {
        // SAFETY: one past the end of the range is still a pointer of the allocation.
        let end = unsafe { self.ptr.add(self.len) };
        if self.owner != next.owner || end != next.ptr {
            return Err(next);
        }
        self.len += next.len;
        drop(next);
        Ok(())
    }

    /// All bytes as a view, for copies to and from scatter lists.
    pub fn view(&mut self) -> View<'_> {
        View::of_buf(self)
    }

    #[inline]
    pub(crate) fn header(&self) -> &Header {
        // SAFETY: LIVE: the header outlives its Bufs, and is never borrowed mutably.
        unsafe { self.owner.as_ref() }
    }

    /// Counts a second `Buf` of the same header.
    #[inline]
    fn count_one_more(&self) {
        let header = self.header();
        match header.kind {
            // SAFETY: the header leads a LenderShared; we hold a Buf of it.
            Kind::Lent => unsafe { lender::count(self.owner.cast(), 1) },
            Kind::Pool | Kind::Block if header.bufs.load(Ordering::Acquire) == 1 => {
                header.bufs.store(2, Ordering::Relaxed);
            }
            _ => drop(header.bufs.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// The pointer to `at`, checked so that `len` bytes follow.
    #[inline]
    fn range(&self, at: usize, len: usize) -> *mut u8 {
        let fits = at.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(fits, "{len} bytes at {at} of a buffer of {}", self.len);
        // SAFETY: at <= len, checked.
        unsafe { self.ptr.as_ptr().add(at) }
    }
}

impl Drop for Buf {
    #[inline]
    fn drop(&mut self) {
        let header = self.header();
        match header.kind {
            // SAFETY: this Buf is counted in the region's header.
            Kind::Region => unsafe { region::release(header.region) },
            // SAFETY: the header leads a LenderShared that counts this Buf.
            Kind::Lent => unsafe { lender::count(self.owner.cast(), -1) },
            // SAFETY: COUNT: the last Buf of a slot; the header leads it.
            Kind::Pool if header.is_last() => unsafe { pool::give_back(self.owner.cast()) },
            // SAFETY: COUNT: the last Buf of a block; the header leads it.
            Kind::Block if header.is_last() => unsafe { arena::free(self.owner.cast()) },
            Kind::Pool | Kind::Block => {}
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Buf");
        out.field("addr", &self.ptr).field("len", &self.len).field("iova", &self.iova());
        out.field("shared", &self.is_shared()).finish()
    }
}
