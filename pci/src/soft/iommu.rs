//! The IOMMU of a function in software: DMA addresses to memory.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxblock_mem::{Buf, Cells, DmaMapper, IoVector, Lender, MemError, Region};

/// What a [`SoftIommu`] is like.
#[derive(Clone, Debug)]
pub struct SoftIommuOptions {
    /// DMA addresses that may be mapped, in order.
    pub windows: Vec<RangeInclusive<u64>>,
    /// Granularity of addresses and lengths in bytes, a power of two.
    pub page_size_min: u64,
    /// How many mappings fit. The kernel's type 1 IOMMU takes 65,535 by default.
    pub mappings_max: usize,
}

impl Default for SoftIommuOptions {
    fn default() -> SoftIommuOptions {
        SoftIommuOptions {
            // The hole below 4 GiB is where x86 keeps its interrupt window.
            windows: vec![0..=0xfedf_ffff, 0xfef0_0000..=(1 << 48) - 1],
            page_size_min: 4096,
            mappings_max: 65_535,
        }
    }
}

/// The table of mappings. Drivers map through [`DmaMapper`]; each controller core translates
/// through a [`Translator`] of its own.
pub struct SoftIommu {
    options: SoftIommuOptions,
    table: Mutex<Arc<Table>>,
    /// Moves whenever the table does.
    generation: AtomicU64,
    faults: AtomicU64,
    /// How many mappings fit now.
    mappings_max: AtomicUsize,
    /// How many requests to map found no room.
    refusals: AtomicU64,
    watchers: Mutex<Vec<Watcher>>,
}

type Watcher = Box<dyn Fn() + Send + Sync>;

#[derive(Clone, Default)]
struct Table {
    /// Sorted by address; no two overlap.
    mappings: Vec<Mapping>,
    bus_master: bool,
}

#[derive(Clone)]
struct Mapping {
    iova: u64,
    len: u64,
    region: Region,
}

impl SoftIommu {
    /// An IOMMU with nothing mapped and bus mastering off.
    #[must_use]
    pub fn new(options: SoftIommuOptions) -> Arc<SoftIommu> {
        Arc::new(SoftIommu {
            mappings_max: AtomicUsize::new(options.mappings_max),
            refusals: AtomicU64::new(0),
            options,
            table: Mutex::default(),
            generation: AtomicU64::new(1),
            faults: AtomicU64::new(0),
            watchers: Mutex::default(),
        })
    }

    /// A view of the table for one core.
    #[must_use]
    pub fn translator(self: &Arc<SoftIommu>) -> Translator {
        let iommu = Arc::clone(self);
        Translator { iommu, views: Vec::new(), own: Vec::new(), generation: 0, last: 0 }
    }

    /// Lets the function reach memory, or not: while off every translation faults.
    pub fn set_bus_master(&self, on: bool) {
        let changed = {
            let mut table = self.lock();
            let changed = table.bus_master != on;
            if changed {
                Arc::make_mut(&mut table).bus_master = on;
                self.publish();
            }
            changed
        };
        if changed {
            self.notify();
        }
    }

    /// Calls `watcher` after every change of the table. A controller wakes its core here, so
    /// that its translator lets go of memory that is no longer mapped.
    pub fn on_change(&self, watcher: Box<dyn Fn() + Send + Sync>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.push(watcher);
    }

    /// How many translations found no mapping.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// How many mappings fit from now on; those that there are stay.
    pub fn set_mappings_max(&self, most: usize) {
        self.mappings_max.store(most, Ordering::Relaxed);
    }

    /// How many requests to map found no room (ENOSPC).
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// How many mappings there are.
    #[must_use]
    pub fn mappings(&self) -> usize {
        self.lock().mappings.len()
    }

    fn insert(&self, region: &Region, iova: u64) -> Result<(), MemError> {
        let len = region.len() as u64;
        let last = self.check_range(iova, len)?;
        let mut table = self.lock();
        if table.mappings.len() >= self.mappings_max.load(Ordering::Relaxed) {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            return Err(error(
                libc::ENOSPC,
                format!("all {} DMA mappings are taken; unmap some", table.mappings.len()),
            ));
        }
        let at = table.mappings.partition_point(|m| m.iova < iova);
        let before = at.checked_sub(1).and_then(|i| table.mappings.get(i));
        let overlaps = before.is_some_and(|m| iova - m.iova < m.len)
            || table.mappings.get(at).is_some_and(|m| m.iova <= last);
        if overlaps {
            return Err(error(
                libc::EEXIST,
                format!("DMA address {iova:#x} is already mapped; unmap it first"),
            ));
        }
        let region = region.clone();
        let mapping = Mapping { iova, len, region };
        Arc::make_mut(&mut table).mappings.insert(at, mapping);
        self.publish();
        Ok(())
    }

    /// Removes the mappings inside a range; none may straddle its ends, and there must be one.
    fn remove(&self, iova: u64, len: u64) -> Result<(), MemError> {
        let last = self.check_range(iova, len)?;
        let mut table = self.lock();
        let start = table.mappings.partition_point(|m| m.iova < iova);
        let end = table.mappings.partition_point(|m| m.iova <= last);
        let before = start.checked_sub(1).and_then(|i| table.mappings.get(i));
        let cut_at_start = before.is_some_and(|m| iova - m.iova < m.len);
        let inside = table.mappings.get(start..end).unwrap_or_default();
        let cut_at_end = inside.last().is_some_and(|m| m.len - 1 > last - m.iova);
        if inside.is_empty() || cut_at_start || cut_at_end {
            return Err(error(
                libc::EINVAL,
                format!(
                    "{len:#x} bytes at DMA address {iova:#x} are no whole mappings; \
                     unmap what was mapped"
                ),
            ));
        }
        Arc::make_mut(&mut table).mappings.drain(start..end);
        self.publish();
        Ok(())
    }

    /// The last address of a range that a window holds.
    fn check_range(&self, iova: u64, len: u64) -> Result<u64, MemError> {
        let aligned = (iova | len) & (self.options.page_size_min - 1) == 0;
        let last = len.checked_sub(1).and_then(|more| iova.checked_add(more));
        if let (true, Some(last)) = (aligned, last) {
            let mut windows = self.options.windows.iter();
            if windows.any(|w| w.contains(&iova) && w.contains(&last)) {
                return Ok(last);
            }
        }
        Err(error(
            libc::EINVAL,
            format!(
                "{len:#x} bytes at DMA address {iova:#x} are outside the windows of the IOMMU, \
                 or no multiple of its {} byte pages",
                self.options.page_size_min
            ),
        ))
    }

    /// Under the lock, so that whoever sees the number finds the table.
    fn publish(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn notify(&self) {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        for watcher in watchers.iter() {
            watcher();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Table>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DmaMapper for SoftIommu {
    fn windows(&self) -> Vec<RangeInclusive<u64>> {
        self.options.windows.clone()
    }

    fn page_size_min(&self) -> u64 {
        self.options.page_size_min
    }

    /// The controller is a program, and reaches pages that are swapped out, too.
    fn needs_locked(&self) -> bool {
        false
    }

    fn map(&self, region: &Region, iova: u64) -> Result<(), MemError> {
        self.insert(region, iova)?;
        self.notify();
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<(), MemError> {
        self.remove(iova, len)?;
        self.notify();
        Ok(())
    }
}

impl fmt::Debug for SoftIommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftIommu")
            .field("mappings", &self.mappings())
            .field("faults", &self.faults())
            .finish_non_exhaustive()
    }
}

/// Memory of a device's own that it reaches at addresses as if it were its host's: a Controller
/// Memory Buffer. Host memory at the same addresses is out of its reach.
#[derive(Clone, Debug)]
pub struct OwnMemory {
    /// The address of its first byte.
    pub iova: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it is a part of.
    pub region: Region,
    /// Where in that it begins, in bytes.
    pub offset: u64,
}

/// A DMA access that no mapping covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaFault {
    /// First address of the access.
    pub iova: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// One core's view of a [`SoftIommu`]. The thread that uses it first must go on to use it, and
/// drop it. A hit on the mapping used last costs a handful of
/// instructions; no lock is taken unless the table has changed.
///
/// What it hands out stays valid memory for as long as it is held, also when the host unmaps
/// it meanwhile: a host that does so gets bytes where it no longer expects them, as it would
/// from a device that still has the address in its cache.
pub struct Translator {
    iommu: Arc<SoftIommu>,
    /// The mappings as of `generation`, sorted by address; none while bus mastering is off.
    views: Vec<View>,
    /// Memory of the device's own, which bus mastering does not matter to.
    own: Vec<OwnMemory>,
    generation: u64,
    last: usize,
}

/// A mapping, and this core's source of buffers on its memory.
struct View {
    iova: u64,
    len: u64,
    /// Where in its region it begins: 0 but for memory of the device's own.
    start: u64,
    lender: Lender,
}

impl View {
    fn new(mapping: &Mapping) -> Result<View, MemError> {
        // SAFETY: this is the device's side of the memory: what is asked for here is what a
        // command or a queue of the host that mapped the region names.
        let lender = unsafe { mapping.region.device_lender() }?;
        Ok(View { iova: mapping.iova, len: mapping.len, start: 0, lender })
    }

    fn of_own(own: &OwnMemory) -> Result<View, MemError> {
        // SAFETY: as above; the memory is the device's.
        let lender = unsafe { own.region.device_lender() }?;
        Ok(View { iova: own.iova, len: own.len, start: own.offset, lender })
    }

    #[inline]
    fn buf(&self, offset: u64, len: usize) -> Result<Buf, MemError> {
        self.lender.buf((self.start + offset) as usize, len)
    }

    fn is(&self, mapping: &Mapping) -> bool {
        self.iova == mapping.iova && *self.lender.region() == mapping.region
    }
}

impl Translator {
    /// Takes up changes of the table and lets go of memory that is no longer mapped. Says
    /// whether there was a change; whoever holds on to translated memory looks again then.
    #[inline]
    pub fn sync(&mut self) -> bool {
        let changed = self.iommu.generation.load(Ordering::Acquire) != self.generation;
        if changed {
            self.refresh();
        }
        changed
    }

    /// Sets which memory of its own the device reaches, and where, from the next
    /// [`sync`](Translator::sync) on.
    pub fn set_own(&mut self, own: Vec<OwnMemory>) {
        self.own = own;
        // No generation of the table.
        self.generation = 0;
    }

    /// How many mappings this view holds on to.
    #[must_use]
    pub fn mappings(&self) -> usize {
        self.views.len()
    }

    /// The memory behind a range that lies in one mapping.
    ///
    /// # Errors
    /// No single mapping covers the range, it is empty, or bus mastering is off.
    #[inline]
    pub fn buf(&mut self, iova: u64, len: usize) -> Result<Buf, DmaFault> {
        self.sync();
        let (mapping, offset) = self.find(iova, len as u64)?;
        let buf = mapping.buf(offset, len);
        buf.map_err(|_| self.fault(iova, len as u64))
    }

    /// Appends the memory behind a range, which may run over several adjacent mappings.
    ///
    /// # Errors
    /// Some of the range is not mapped, or bus mastering is off. `into` may have grown.
    #[inline]
    pub fn extend(&mut self, iova: u64, len: usize, into: &mut IoVector) -> Result<(), DmaFault> {
        self.sync();
        if let Some((mapping, offset)) = self.hit(iova, len as u64)
            && let Ok(buf) = mapping.buf(offset, len)
        {
            into.push(buf);
            return Ok(());
        }
        self.extend_slowly(iova, len, into)
    }

    /// The memory behind a range as words that a device and its host share.
    ///
    /// # Errors
    /// As for [`buf`](Translator::buf), or the memory is not aligned to eight bytes.
    pub fn cells(&mut self, iova: u64, len: usize) -> Result<Cells, DmaFault> {
        let buf = self.buf(iova, len)?;
        Cells::new(buf).map_err(|_| self.fault(iova, len as u64))
    }

    /// Copies memory out, each byte once.
    ///
    /// # Errors
    /// Some of the range is not mapped; `into` is then undefined in part.
    pub fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), DmaFault> {
        let mut done = 0;
        while done < into.len() {
            let (buf, n) = self.piece(iova, done, into.len())?;
            buf.read_at(0, &mut into[done..done + n]);
            done += n;
        }
        Ok(())
    }

    /// Copies bytes to memory.
    ///
    /// # Errors
    /// Some of the range is not mapped; a part may have been written.
    pub fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), DmaFault> {
        let mut done = 0;
        while done < from.len() {
            let (mut buf, n) = self.piece(iova, done, from.len())?;
            buf.write_at(0, &from[done..done + n]);
            done += n;
        }
        Ok(())
    }

    #[cold]
    fn extend_slowly(
        &mut self,
        iova: u64,
        len: usize,
        into: &mut IoVector,
    ) -> Result<(), DmaFault> {
        let mut done = 0;
        while done < len {
            let (buf, n) = self.piece(iova, done, len)?;
            into.push(buf);
            done += n;
        }
        Ok(())
    }

    /// As much of a range from `done` on as one mapping holds.
    fn piece(&mut self, iova: u64, done: usize, len: usize) -> Result<(Buf, usize), DmaFault> {
        let left = (len - done) as u64;
        let Some(at) = iova.checked_add(done as u64) else {
            return Err(self.fault(iova, len as u64));
        };
        self.sync();
        let (mapping, offset) = self.find(at, 1)?;
        let n = left.min(mapping.len - offset) as usize;
        match mapping.buf(offset, n) {
            Ok(buf) => Ok((buf, n)),
            Err(_) => Err(self.fault(at, left)),
        }
    }

    /// The mapping that holds a range, and the offset into it.
    #[inline]
    fn find(&mut self, iova: u64, len: u64) -> Result<(&View, u64), DmaFault> {
        if self.hit(iova, len).is_none() {
            self.search(iova, len)?;
        }
        let fault = DmaFault { iova, len };
        self.hit(iova, len).ok_or(fault)
    }

    /// The mapping used last, if it holds the range.
    #[inline]
    fn hit(&self, iova: u64, len: u64) -> Option<(&View, u64)> {
        let mapping = self.views.get(self.last)?;
        let offset = iova.wrapping_sub(mapping.iova);
        let inside = offset < mapping.len && len <= mapping.len - offset && len > 0;
        inside.then_some((mapping, offset))
    }

    /// Makes the mapping that holds a range the last one used.
    #[cold]
    fn search(&mut self, iova: u64, len: u64) -> Result<(), DmaFault> {
        let after = self.views.partition_point(|m| m.iova <= iova);
        self.last = after.wrapping_sub(1);
        match self.hit(iova, len) {
            Some(_) => Ok(()),
            None => Err(self.fault(iova, len)),
        }
    }

    fn fault(&self, iova: u64, len: u64) -> DmaFault {
        self.iommu.faults.fetch_add(1, Ordering::Relaxed);
        DmaFault { iova, len }
    }

    #[cold]
    fn refresh(&mut self) {
        let (table, generation) = {
            let table = self.iommu.lock();
            let generation = self.iommu.generation.load(Ordering::Acquire);
            (Arc::clone(&table), generation)
        };
        let mut old = std::mem::take(&mut self.views);
        let mappings = if table.bus_master { &table.mappings[..] } else { &[] };
        let own = self.own.iter();
        let hidden = |m: &Mapping| {
            own.clone().any(|own| m.iova < own.iova + own.len && own.iova < m.iova + m.len)
        };
        for mapping in mappings.iter().filter(|mapping| !hidden(mapping)) {
            let known = old.iter().position(|view| view.is(mapping));
            // A region that is being unregistered is as good as unmapped.
            let view = known.map_or_else(|| View::new(mapping), |at| Ok(old.swap_remove(at)));
            self.views.extend(view);
        }
        self.views.extend(self.own.iter().filter_map(|own| View::of_own(own).ok()));
        self.views.sort_unstable_by_key(|view| view.iova);
        self.generation = generation;
        self.last = 0;
    }
}

fn error(errno: i32, text: String) -> MemError {
    MemError::new(errno, text)
}
