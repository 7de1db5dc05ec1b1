use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use crate::buf::{Buf, Header, Kind};
use crate::contiguous;
use crate::foreign::Foreign;
use crate::map::{self, Mapping};
use crate::memory::MemoryShared;
use crate::{Lender, MemError, PageSize};

/// In the count of `Buf`s: the region is being unregistered and makes no new ones.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// No device has given the region an address yet.
const NO_IOVA: u64 = u64::MAX;

/// A range of memory that devices can be given: an arena, or memory of the caller's that was
/// registered. A handle; clones name the same region.
pub struct Region {
    shared: Arc<RegionShared>,
    /// Made for a mapper: counted apart, so that a mapping is not taken for a user.
    device: bool,
}

impl Region {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.shared.len
    }

    /// False: a region has at least one page.
    pub fn is_empty(&self) -> bool {
        self.shared.len == 0
    }

    /// The address of the first byte in this process.
    pub fn addr(&self) -> *mut u8 {
        self.shared.base.as_ptr()
    }

    /// The address of the first byte for devices, the same for all; `None` until the first
    /// device is attached.
    pub fn iova(&self) -> Option<u64> {
        self.shared.iova()
    }

    /// The size of the pages behind it. Registered memory counts as 4 KiB pages.
    pub fn page_size(&self) -> PageSize {
        self.shared.page_size
    }

    /// What [`addr`](Region::addr) is a multiple of, and [`iova`](Region::iova) too.
    pub fn align(&self) -> usize {
        self.shared.align
    }

    /// The physical address of the first byte, for devices behind no IOMMU.
    ///
    /// # Errors
    /// `ENOTSUP` if it is not on hugepages, which stay where they are, or not in one piece;
    /// `EPERM` without root.
    pub fn physical(&self) -> Result<u64, MemError> {
        contiguous::physical(self.shared.base, self.shared.len, self.shared.page_size)
    }

    /// The file behind an arena and the offset of the region in it, for another process to map;
    /// none for memory of others, and for an arena in one physical piece.
    pub fn fd(&self) -> Option<(BorrowedFd<'_>, u64)> {
        match &self.shared.backing {
            Backing::Own(mapping) => mapping.fd().map(|fd| (fd, 0)),
            Backing::Caller | Backing::Foreign(_) => None,
        }
    }

    /// True for registered and imported memory: its owner may write it at any time.
    pub fn is_shared(&self) -> bool {
        !matches!(self.shared.backing, Backing::Own(_))
    }

    /// True once some of an [imported](Region::import) region has vanished: what was there is
    /// lost, and what is written there goes nowhere.
    pub fn is_lost(&self) -> bool {
        matches!(&self.shared.backing, Backing::Foreign(foreign) if foreign.is_lost())
    }

    /// True if a device may be given it: its pages are locked, or (registered memory) are left
    /// for the mapper to pin.
    pub fn dma(&self) -> bool {
        self.shared.locked
    }

    /// A shared [`Buf`] on registered memory. It may overlap others. No allocation.
    ///
    /// # Errors
    /// `EINVAL` if the range does not lie in the region, or the region belongs to an arena (use
    /// [`Arena::alloc`](crate::Arena::alloc)); `ENODEV` while it is being unregistered.
    #[inline]
    pub fn buf(&self, offset: usize, len: usize) -> Result<Buf, MemError> {
        self.check_registered()?;
        self.shared_buf(offset, len)
    }

    /// A cheap source of shared [`Buf`]s on registered memory for one core. Control plane.
    ///
    /// # Errors
    /// `EINVAL` if the region belongs to an arena; `ENODEV` while it is being unregistered.
    pub fn lender(&self) -> Result<Lender, MemError> {
        self.check_registered()?;
        self.shared_lender()
    }

    /// A shared [`Buf`] on any region, as a device behind an IOMMU sees it. No allocation.
    ///
    /// # Errors
    /// As [`buf`](Region::buf), but arenas are allowed.
    ///
    /// # Safety
    /// In an arena it overlaps private `Buf`s of others. The caller acts as their device: it
    /// reads and writes through this `Buf` only what a live command names.
    #[inline]
    pub unsafe fn device_buf(&self, offset: usize, len: usize) -> Result<Buf, MemError> {
        self.shared_buf(offset, len)
    }

    /// A cheap source of shared [`Buf`]s on any region, as a device behind an IOMMU sees it, for
    /// one core. Control plane.
    ///
    /// # Errors
    /// `ENODEV` while the region is being unregistered.
    ///
    /// # Safety
    /// As [`device_buf`](Region::device_buf), for all buffers that it lends.
    pub unsafe fn device_lender(&self) -> Result<Lender, MemError> {
        self.shared_lender()
    }

    fn shared_lender(&self) -> Result<Lender, MemError> {
        match self.shared.is_closed() {
            true => Err(unregistering()),
            false => Ok(Lender::new(self.clone())),
        }
    }

    fn check_registered(&self) -> Result<(), MemError> {
        match self.is_shared() {
            true => Ok(()),
            false => Err(MemError::new(
                libc::EINVAL,
                "a buffer on an arena's region would overlap its owners': use Arena::alloc or Pool",
            )),
        }
    }

    #[inline]
    fn shared_buf(&self, offset: usize, len: usize) -> Result<Buf, MemError> {
        if offset.checked_add(len).is_none_or(|end| end > self.shared.len) {
            return Err(MemError::new(libc::EINVAL, "range beyond the end of the region"));
        }
        if !self.shared.acquire() {
            return Err(MemError::new(libc::ENODEV, "the region is being unregistered"));
        }
        let owner = self.shared.header.region.cast::<Header>();
        // SAFETY: in range, checked; counted by `acquire`; the header leads RegionShared.
        Ok(unsafe { Buf::from_raw(self.shared.base.add(offset), len, owner) })
    }

    /// True while a `Buf` or another handle lives (an arena's own handles, pools and buffers
    /// included). Devices that are attached do not count.
    pub fn in_use(&self) -> bool {
        self.shared.in_use(1)
    }

    /// Takes the region out of its memory: unmaps it from all devices, then forgets it. After
    /// `Ok`, memory that was registered belongs to its owner again, and an arena's is unmapped.
    ///
    /// # Errors
    /// Gives the handle back while a `Buf`, another handle or a device's mapping lives. If only
    /// devices still hold it (a mapper that lets go late, or fails to unmap), the region stays
    /// closed: it makes no new `Buf`s, and this can be tried again.
    pub fn try_unregister(self) -> Result<(), Region> {
        if self.device {
            return Err(self);
        }
        let memory = self.shared.memory.upgrade();
        let done = match &memory {
            Some(memory) => memory.unregister(&self.shared),
            None => self.shared.close() && self.shared.is_quiet(),
        };
        if !done {
            return Err(self);
        }
        if self.is_shared() {
            map::do_fork(self.shared.base, self.shared.len);
        }
        Ok(())
    }

    pub(crate) fn new(shared: Arc<RegionShared>) -> Region {
        shared.handles.fetch_add(1, Ordering::Relaxed);
        Region { shared, device: false }
    }

    /// A handle for a mapper; its clones count as the mapper's, too.
    pub(crate) fn for_device(shared: Arc<RegionShared>) -> Region {
        shared.device_handles.fetch_add(1, Ordering::Relaxed);
        Region { shared, device: true }
    }

    pub(crate) fn shared(&self) -> &Arc<RegionShared> {
        &self.shared
    }
}

impl Clone for Region {
    fn clone(&self) -> Region {
        match self.device {
            true => Region::for_device(self.shared.clone()),
            false => Region::new(self.shared.clone()),
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let count = match self.device {
            true => &self.shared.device_handles,
            false => &self.shared.handles,
        };
        count.fetch_sub(1, Ordering::Release);
    }
}

impl PartialEq for Region {
    /// True if both name the same region.
    fn eq(&self, other: &Region) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for Region {}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Region");
        out.field("addr", &self.shared.base).field("len", &self.shared.len);
        out.field("iova", &self.iova()).field("pages", &self.shared.page_size);
        out.field("shared", &self.is_shared()).finish()
    }
}

fn unregistering() -> MemError {
    MemError::new(libc::ENODEV, "the region is being unregistered")
}

/// What the handles of one region share. Led by the header of its shared `Buf`s.
#[repr(C)]
pub(crate) struct RegionShared {
    header: Header,
    base: NonNull<u8>,
    len: usize,
    iova: AtomicU64,
    align: usize,
    page_size: PageSize,
    locked: bool,
    /// Handles that no mapper holds.
    handles: AtomicUsize,
    /// Handles that mappers hold.
    device_handles: AtomicUsize,
    memory: Weak<MemoryShared>,
    backing: Backing,
}

/// Whose memory it is.
enum Backing {
    /// An arena's: ours.
    Own(Mapping),
    /// The caller's.
    Caller,
    /// Another process's.
    Foreign(Foreign),
}

// SAFETY: the pointers name mapped memory (LIVE) and this very struct; the rest is Sync.
unsafe impl Send for RegionShared {}
// SAFETY: as above; all that changes is atomic.
unsafe impl Sync for RegionShared {}

impl RegionShared {
    /// The region of a mapping of our own.
    pub(crate) fn of_mapping(mapping: Mapping, memory: Weak<MemoryShared>) -> Arc<RegionShared> {
        let (base, len) = (mapping.base(), mapping.len());
        let (page_size, locked) = (mapping.page_size(), mapping.locked());
        RegionShared::make(base, len, page_size, locked, Backing::Own(mapping), memory)
    }

    /// The region of memory of the caller's.
    pub(crate) fn of_caller(
        base: NonNull<u8>,
        len: usize,
        memory: Weak<MemoryShared>,
    ) -> Arc<RegionShared> {
        RegionShared::make(base, len, PageSize::Small4K, true, Backing::Caller, memory)
    }

    /// The region of another process's memory. No hardware reaches it.
    pub(crate) fn of_foreign(foreign: Foreign, memory: Weak<MemoryShared>) -> Arc<RegionShared> {
        let (base, len, page_size) = (foreign.base(), foreign.len(), foreign.page_size());
        RegionShared::make(base, len, page_size, false, Backing::Foreign(foreign), memory)
    }

    fn make(
        base: NonNull<u8>,
        len: usize,
        page_size: PageSize,
        locked: bool,
        backing: Backing,
        memory: Weak<MemoryShared>,
    ) -> Arc<RegionShared> {
        let huge = PageSize::Huge2M.bytes();
        let align = match page_size {
            PageSize::Small4K if len >= huge && base.addr().get().is_multiple_of(huge) => huge,
            _ => page_size.bytes(),
        };
        Arc::new_cyclic(|this: &Weak<RegionShared>| {
            let region = NonNull::new(this.as_ptr().cast_mut()).expect("Arc memory is not null");
            RegionShared {
                header: Header { bufs: AtomicUsize::new(0), region, kind: Kind::Region },
                base,
                len,
                iova: AtomicU64::new(NO_IOVA),
                align,
                page_size,
                locked,
                handles: AtomicUsize::new(0),
                device_handles: AtomicUsize::new(0),
                memory,
                backing,
            }
        })
    }

    #[inline]
    pub(crate) fn iova(&self) -> Option<u64> {
        let iova = self.iova.load(Ordering::Relaxed);
        (iova != NO_IOVA).then_some(iova)
    }

    #[inline]
    pub(crate) fn iova_of(&self, ptr: *const u8) -> Option<u64> {
        let offset = ptr.addr().wrapping_sub(self.base.addr().get());
        self.iova().map(|iova| iova + offset as u64)
    }

    /// The caller sees to it that no device is using the old address.
    pub(crate) fn set_iova(&self, iova: Option<u64>) {
        self.iova.store(iova.unwrap_or(NO_IOVA), Ordering::Relaxed);
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn align(&self) -> usize {
        self.align
    }

    pub(crate) fn locked(&self) -> bool {
        self.locked
    }

    pub(crate) fn page_size(&self) -> PageSize {
        self.page_size
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.header.bufs.load(Ordering::Acquire) & CLOSED != 0
    }

    /// True if no device can reach it any more.
    pub(crate) fn is_quiet(&self) -> bool {
        self.device_handles.load(Ordering::Acquire) == 0 && self.bufs() == 0
    }

    /// True while a `Buf` or more than `own` handles live.
    pub(crate) fn in_use(&self, own: usize) -> bool {
        self.bufs() != 0 || self.handles.load(Ordering::Acquire) > own
    }

    /// Stops new `Buf`s, unless a `Buf` or a second handle lives: then nothing changes, and
    /// devices that work on it see no trouble.
    pub(crate) fn close(&self) -> bool {
        if self.handles.load(Ordering::Acquire) > 1 {
            return false;
        }
        let closed =
            self.header.bufs.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire);
        matches!(closed, Ok(_) | Err(CLOSED))
    }

    /// Stops new `Buf`s, whoever holds it.
    pub(crate) fn close_for_good(&self) {
        self.header.bufs.fetch_or(CLOSED, Ordering::AcqRel);
    }

    fn bufs(&self) -> usize {
        self.header.bufs.load(Ordering::Acquire) & !CLOSED
    }

    /// Counts a new shared `Buf`, unless the region is closed. Count and sign are one word, so
    /// either this sees the sign or `close` sees the count.
    #[inline]
    fn acquire(&self) -> bool {
        let before = self.header.bufs.fetch_add(1, Ordering::Acquire);
        if before & !CLOSED == 0 {
            // SAFETY: the pointer is that of the Arc we are called through. The count of the
            // first Buf keeps the region allocated; `release` of the last gives it back.
            unsafe { Arc::increment_strong_count(self.header.region.as_ptr()) };
        }
        if before & CLOSED != 0 {
            // SAFETY: counted above.
            unsafe { release(self.header.region) };
        }
        before & CLOSED == 0
    }
}

/// Uncounts a shared `Buf`.
///
/// # Safety
/// `acquire` or `Buf::split_off` counted it.
#[inline]
pub(crate) unsafe fn release(region: NonNull<RegionShared>) {
    // SAFETY: LIVE until the count that we hold is gone.
    let bufs = unsafe { &(*region.as_ptr()).header.bufs };
    if bufs.fetch_sub(1, Ordering::AcqRel) & !CLOSED == 1 {
        // SAFETY: `acquire` took this count when it went from 0 to 1.
        unsafe { Arc::decrement_strong_count(region.as_ptr()) };
    }
}
