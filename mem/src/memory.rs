use std::fmt;
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::map;
use crate::region::RegionShared;
use crate::{Arena, ArenaOptions, MemError, PageSize, Region, iova, pages};

/// How long a registration waits for room in a full mapper: others may be about to unregister.
const ROOM_TIMEOUT: Duration = Duration::from_millis(200);
/// How often it looks for room.
const ROOM_INTERVAL: Duration = Duration::from_millis(1);
/// All addresses but the last, so that every length fits 64 bits.
const EVERYTHING: RangeInclusive<u64> = 0..=u64::MAX - 1;

/// Every byte that the devices of one engine may reach. A handle; clones name the same memory.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<MemoryShared>,
}

/// The address translation of a device: an IOMMU, or what stands for one.
///
/// All calls come from control-plane calls on a [`Memory`], one at a time; they must not call
/// that memory back.
pub trait DmaMapper: Send + Sync {
    /// The IOVA ranges that the device can use.
    fn windows(&self) -> Vec<RangeInclusive<u64>>;

    /// The smallest page it maps, in bytes: a power of two, at least 4096.
    fn page_size_min(&self) -> u64;

    /// Lets the device reach the region at `iova`. The mapper keeps a clone of the region, and
    /// so its memory, until it is unmapped.
    ///
    /// # Errors
    /// Whatever the mapper says; nothing is mapped then.
    fn map(&self, region: &Region, iova: u64) -> Result<(), MemError>;

    /// Ends what [`map`](DmaMapper::map) began, with the same address and the region's length.
    /// After `Ok` the device can not reach it any more.
    ///
    /// # Errors
    /// Whatever the mapper says; the region counts as still mapped then.
    fn unmap(&self, iova: u64, len: u64) -> Result<(), MemError>;

    /// The IOVA that a region must have, where the device knows memory by an address of its own
    /// (physical addresses, without an IOMMU); `None` where there is a choice.
    ///
    /// # Errors
    /// The region has no such address in one piece.
    fn fixed_iova(&self, region: &Region) -> Result<Option<u64>, MemError> {
        let _ = region;
        Ok(None)
    }

    /// True if the device works on physical pages, so that an arena must be locked. Controllers
    /// in software may say no.
    fn needs_locked(&self) -> bool {
        true
    }
}

/// A device that sees all regions of a [`Memory`]. Its drop unmaps them; the device must be
/// quiet by then.
#[must_use = "its drop unmaps the device"]
pub struct Attachment {
    memory: Arc<MemoryShared>,
    mapper: Arc<dyn DmaMapper>,
}

impl Memory {
    /// No memory yet, and no device.
    pub fn new() -> Memory {
        Memory { shared: Arc::new(MemoryShared { state: Mutex::default() }) }
    }

    /// Maps a new arena, zeroed, and shows it to all attached devices.
    ///
    /// # Errors
    /// `EINVAL` for bad options; `ENOMEM` and others of the system if pages that
    /// [`PagePolicy`](crate::PagePolicy) demands are not there; what a mapper says; `EPERM` if
    /// its pages are not locked and an attached device needs that; `ENOSPC` as for
    /// [`register`](Memory::register).
    pub fn add_arena(&self, options: &ArenaOptions) -> Result<Arena, MemError> {
        let (mapping, notice) = pages::map(options)?;
        let region = RegionShared::of_mapping(mapping, Arc::downgrade(&self.shared));
        let region = wait_for_room(|| self.shared.add(region.clone()))?;
        Ok(Arena::new(region, notice))
    }

    /// Shows memory of the caller's to all devices. It is not inherited by `fork` from here on.
    ///
    /// # Errors
    /// `EINVAL` if address or length is not a multiple of 4 KiB (of the page size, if it lies on
    /// hugepages); `ENOMEM` if some of it is not mapped; `EEXIST` if some of it is registered
    /// already; what a mapper says; `EBUSY` if a mapper failed and another then did not let go:
    /// the range must stay mapped for ever. `ENOSPC` if a mapper, or the address space, stays full
    /// for 200 ms: it waits so long for others to unregister.
    ///
    /// # Safety
    /// The range stays mapped until [`Region::try_unregister`] returns `Ok`, for ever if the
    /// region is never unregistered. Until then no Rust reference to its bytes is used while a
    /// command or a [`Buf`](crate::Buf) may write them (atomics and raw copies are fine).
    pub unsafe fn register(&self, ptr: NonNull<u8>, len: usize) -> Result<Region, MemError> {
        let (start, page) = (ptr.addr().get(), PageSize::Small4K.bytes());
        if len == 0 || !start.is_multiple_of(page) || !len.is_multiple_of(page) {
            let text = format!(
                "register {len} bytes at {start:#x}: address and length must be multiples of 4096"
            );
            return Err(MemError::new(libc::EINVAL, text));
        }
        if start.checked_add(len).is_none() {
            let text = format!("register {len} bytes at {start:#x}: beyond the address space");
            return Err(MemError::new(libc::EINVAL, text));
        }
        wait_for_room(|| {
            let region = RegionShared::of_caller(ptr, len, Arc::downgrade(&self.shared));
            self.shared.add(region)
        })
    }

    /// Shows all regions, and those that come later, to a device. Every region has one IOVA for
    /// all devices: the first attachment chooses it, later ones must fit it. A mapper that is
    /// attached already is shared.
    ///
    /// # Errors
    /// `EPERM` if an arena is not locked and the device needs that; `ERANGE` if a region's IOVA
    /// is outside the device's windows; `ENOSPC` if no address suits all devices; `EINVAL` if a
    /// region is not a multiple of the device's page; what the mapper says. Nothing stays mapped.
    pub fn attach(&self, mapper: Arc<dyn DmaMapper>) -> Result<Attachment, MemError> {
        self.attach_within(mapper, &[EVERYTHING])
    }

    /// As [`attach`](Memory::attach), for a device that can use less than its mapper's windows:
    /// only what also lies in one of `allowed`.
    ///
    /// # Errors
    /// As [`attach`](Memory::attach).
    pub fn attach_within(
        &self,
        mapper: Arc<dyn DmaMapper>,
        allowed: &[RangeInclusive<u64>],
    ) -> Result<Attachment, MemError> {
        self.shared.attach(&mapper, allowed)?;
        Ok(Attachment { memory: self.shared.clone(), mapper })
    }

    /// All regions: arenas and registered memory.
    pub fn regions(&self) -> Vec<Region> {
        let state = self.shared.lock();
        let open = state.regions.iter().filter(|region| !region.is_closed());
        open.map(|region| Region::new(region.clone())).collect()
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        let mut out = f.debug_struct("Memory");
        out.field("regions", &state.regions.len()).field("devices", &state.devices.len()).finish()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.memory.detach(&self.mapper);
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").finish_non_exhaustive()
    }
}

pub(crate) struct MemoryShared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    regions: Vec<Arc<RegionShared>>,
    devices: Vec<Device>,
}

struct Device {
    mapper: Arc<dyn DmaMapper>,
    /// What those who attached it can use.
    allowed: Vec<RangeInclusive<u64>>,
    /// What of it the mapper has.
    windows: Vec<RangeInclusive<u64>>,
    page_size: u64,
    /// Attachments that share the mapper.
    users: usize,
    mapped: Vec<Arc<RegionShared>>,
}

impl MemoryShared {
    /// State is consistent between any two calls to mappers, so a mapper's panic spoils nothing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, region: Arc<RegionShared>) -> Result<Region, MemError> {
        let mut state = self.lock();
        state.check_overlap(&region)?;
        map::dont_fork(region.base(), region.len())?;
        let handle = Region::new(region.clone());
        if let Err(error) = state.map_everywhere(&region) {
            drop(state);
            if handle.is_shared() && !region.is_closed() {
                map::do_fork(region.base(), region.len());
            }
            return Err(error);
        }
        state.regions.push(region);
        Ok(handle)
    }

    fn attach(
        &self,
        mapper: &Arc<dyn DmaMapper>,
        allowed: &[RangeInclusive<u64>],
    ) -> Result<(), MemError> {
        let mut state = self.lock();
        if let Some(at) = state.devices.iter().position(|device| device.is(mapper)) {
            return state.devices[at].share(allowed);
        }
        let device = Device::new(mapper.clone(), allowed);
        let regions: Vec<_> =
            state.regions.iter().filter(|region| !region.is_closed()).cloned().collect();
        for region in &regions {
            device.check(region)?;
            state.place(region, Some(&device))?;
        }
        state.devices.push(device);
        let device = state.devices.last_mut().expect("pushed above");
        for region in &regions {
            if let Err(error) = device.map(region) {
                device.users = 0;
                device.unmap_all();
                state.forget_unused();
                return Err(error);
            }
        }
        Ok(())
    }

    fn detach(&self, mapper: &Arc<dyn DmaMapper>) {
        let mut state = self.lock();
        let Some(device) = state.devices.iter_mut().find(|device| device.is(mapper)) else {
            return;
        };
        device.users -= 1;
        if device.users == 0 {
            device.unmap_all();
            state.forget_unused();
        }
    }

    /// Takes a region out, if nothing but the caller's handle names it; see `try_unregister`.
    pub(crate) fn unregister(&self, region: &Arc<RegionShared>) -> bool {
        let mut state = self.lock();
        if !region.close() {
            return false;
        }
        let mut unmapped = true;
        for device in &mut state.devices {
            unmapped &= device.unmap(region).is_ok();
        }
        if !unmapped || !region.is_quiet() {
            return false;
        }
        state.regions.retain(|other| !Arc::ptr_eq(other, region));
        true
    }
}

impl State {
    /// Drops devices without users. One that failed to unmap something stays on the list for
    /// good, and so does the memory that it may still reach.
    fn forget_unused(&mut self) {
        self.devices.retain(|device| device.users > 0 || !device.mapped.is_empty());
    }

    fn check_overlap(&self, region: &RegionShared) -> Result<(), MemError> {
        let (start, len) = (region.base().addr().get(), region.len());
        let overlaps = |other: &&Arc<RegionShared>| {
            let other_start = other.base().addr().get();
            start < other_start + other.len() && other_start < start + len
        };
        let Some(other) = self.regions.iter().find(overlaps) else {
            return Ok(());
        };
        let (at, room) = (other.base(), other.len());
        Err(MemError::new(
            libc::EEXIST,
            format!(
                "register {len} bytes at {start:#x}: overlaps {room} bytes at {at:?}, which are \
                 registered; unregister them first"
            ),
        ))
    }

    fn map_everywhere(&mut self, region: &Arc<RegionShared>) -> Result<(), MemError> {
        for device in &self.devices {
            device.check(region)?;
        }
        if self.devices.is_empty() {
            return Ok(());
        }
        self.place(region, None)?;
        for at in 0..self.devices.len() {
            if let Err(error) = self.devices[at].map(region) {
                return Err(self.unmap_again(region, at, error));
            }
        }
        Ok(())
    }

    /// Undoes the mappings of the first `devices`, after `error` of the next one.
    fn unmap_again(
        &mut self,
        region: &Arc<RegionShared>,
        devices: usize,
        error: MemError,
    ) -> MemError {
        let mut stuck = false;
        for device in &mut self.devices[..devices] {
            stuck |= device.unmap(region).is_err();
        }
        if !stuck {
            return error;
        }
        region.close_for_good();
        self.regions.push(region.clone());
        MemError::new(
            libc::EBUSY,
            format!("{error}; and another device does not let go of it: it must stay mapped"),
        )
    }

    /// Sees to it that the region has an IOVA that suits all devices and `new`.
    fn place(&self, region: &Arc<RegionShared>, new: Option<&Device>) -> Result<(), MemError> {
        let handle = Region::for_device(region.clone());
        for device in self.devices.iter().chain(new) {
            if let Some(iova) = device.mapper.fixed_iova(&handle)? {
                return self.place_at(region, iova, new);
            }
        }
        let len = region.len() as u64;
        if let (Some(iova), Some(new)) = (region.iova(), new) {
            if iova::fits(&new.windows, iova, len) && iova % new.align(region) == 0 {
                return Ok(());
            }
            if !self.devices.is_empty() {
                return Err(outside(region.len(), iova, &new.windows));
            }
        }
        let devices = || self.devices.iter().chain(new);
        let windows = devices().fold(vec![EVERYTHING], |all, d| iova::intersect(&all, &d.windows));
        let align = devices().map(|device| device.align(region)).max().unwrap_or(1);
        let taken = self.taken(region);
        let Some(iova) = iova::allocate(&windows, &taken, len, align) else {
            let windows = iova::words(&windows);
            return Err(MemError::new(
                libc::ENOSPC,
                format!(
                    "no IOVA for a region of {len} bytes: all devices together can use {windows}, \
                     of which {} ranges are taken; use smaller arenas",
                    taken.len()
                ),
            ));
        };
        region.set_iova(Some(iova));
        Ok(())
    }

    /// The same where a device leaves no choice.
    fn place_at(
        &self,
        region: &Arc<RegionShared>,
        iova: u64,
        new: Option<&Device>,
    ) -> Result<(), MemError> {
        let len = region.len() as u64;
        if !self.devices.is_empty() && region.iova().is_some_and(|old| old != iova) {
            let only = iova..=iova + (len - 1);
            return Err(outside(region.len(), region.iova().unwrap_or_default(), &[only]));
        }
        for device in self.devices.iter().chain(new) {
            if !iova::fits(&device.windows, iova, len) || !iova.is_multiple_of(device.page_size) {
                return Err(outside(region.len(), iova, &device.windows));
            }
        }
        let overlaps = |(at, room): &(u64, u64)| iova < at + room && *at < iova + len;
        if self.taken(region).iter().any(overlaps) {
            let text = format!("{len} bytes must have IOVA {iova:#x}, which is taken");
            return Err(MemError::new(libc::ERANGE, text));
        }
        region.set_iova(Some(iova));
        Ok(())
    }

    /// Addresses and lengths of the other regions.
    fn taken(&self, region: &Arc<RegionShared>) -> Vec<(u64, u64)> {
        let others = self.regions.iter().filter(|other| !Arc::ptr_eq(other, region));
        others.filter_map(|other| Some((other.iova()?, other.len() as u64))).collect()
    }
}

/// Tries to map again while there is no room: others may be about to unregister.
fn wait_for_room<T>(mut map: impl FnMut() -> Result<T, MemError>) -> Result<T, MemError> {
    let begun = Instant::now();
    loop {
        match map() {
            Err(error) if error.errno() == libc::ENOSPC && begun.elapsed() < ROOM_TIMEOUT => {
                thread::sleep(ROOM_INTERVAL);
            }
            outcome => return outcome,
        }
    }
}

/// A region has an address that a device cannot use.
fn outside(len: usize, iova: u64, windows: &[RangeInclusive<u64>]) -> MemError {
    let windows = iova::words(windows);
    let text = format!(
        "attach a device: a region of {len} bytes has IOVA {iova:#x} on other devices, but this one \
         can use only {windows}; attach it first, or keep its data in an engine of its own"
    );
    MemError::new(libc::ERANGE, text)
}

impl Device {
    fn new(mapper: Arc<dyn DmaMapper>, allowed: &[RangeInclusive<u64>]) -> Device {
        let windows = iova::intersect(&mapper.windows(), allowed);
        let page_size = mapper.page_size_min().max(1).next_power_of_two();
        let allowed = allowed.to_vec();
        Device { mapper, allowed, windows, page_size, users: 1, mapped: Vec::new() }
    }

    /// One attachment more, which may make the mapper and what is allowed narrower. After a detach
    /// that could not unmap everything the mapper is in no state to be used again.
    fn share(&mut self, allowed: &[RangeInclusive<u64>]) -> Result<(), MemError> {
        if self.users == 0 {
            let text = "attach a device: its mapper failed to unmap memory before; reset it";
            return Err(MemError::new(libc::EBUSY, text));
        }
        let allowed = iova::intersect(&self.allowed, allowed);
        let windows = iova::intersect(&self.mapper.windows(), &allowed);
        let lies_outside = |region: &&Arc<RegionShared>| {
            region.iova().is_some_and(|at| !iova::fits(&windows, at, region.len() as u64))
        };
        if let Some(region) = self.mapped.iter().find(lies_outside) {
            let error = outside(region.len(), region.iova().unwrap_or_default(), &windows);
            self.windows = iova::intersect(&self.mapper.windows(), &self.allowed);
            return Err(error);
        }
        (self.allowed, self.windows) = (allowed, windows);
        self.users += 1;
        Ok(())
    }

    fn is(&self, mapper: &Arc<dyn DmaMapper>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.mapper), Arc::as_ptr(mapper))
    }

    fn align(&self, region: &RegionShared) -> u64 {
        self.page_size.max(region.align() as u64)
    }

    fn check(&self, region: &RegionShared) -> Result<(), MemError> {
        let (base, len) = (region.base().addr().get() as u64, region.len() as u64);
        if self.mapper.needs_locked() && !region.locked() {
            return Err(MemError::new(
                libc::EPERM,
                format!(
                    "attach a device: it needs locked memory, but the arena of {len} bytes is \
                     not; {}",
                    pages::memlock_advice(region.len())
                ),
            ));
        }
        if base % self.page_size != 0 || len % self.page_size != 0 {
            return Err(MemError::new(
                libc::EINVAL,
                format!(
                    "attach a device: it maps pages of {} bytes, but the region of {len} bytes at \
                     {base:#x} is not made of them ({} pages); align it",
                    self.page_size,
                    region.page_size()
                ),
            ));
        }
        Ok(())
    }

    fn map(&mut self, region: &Arc<RegionShared>) -> Result<(), MemError> {
        let Some(iova) = region.iova() else {
            return Ok(());
        };
        self.mapper.map(&Region::for_device(region.clone()), iova).map_err(|error| {
            error.context(format_args!("map {} bytes for a device at {iova:#x}", region.len()))
        })?;
        self.mapped.push(region.clone());
        Ok(())
    }

    fn unmap(&mut self, region: &Arc<RegionShared>) -> Result<(), MemError> {
        let Some(at) = self.mapped.iter().position(|other| Arc::ptr_eq(other, region)) else {
            return Ok(());
        };
        if let Some(iova) = region.iova() {
            self.mapper.unmap(iova, region.len() as u64)?;
        }
        self.mapped.swap_remove(at);
        Ok(())
    }

    fn unmap_all(&mut self) {
        let mapper = &self.mapper;
        self.mapped.retain(|region| {
            region.iova().is_some_and(|iova| mapper.unmap(iova, region.len() as u64).is_err())
        });
    }
}
