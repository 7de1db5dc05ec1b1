//! An address space for devices, and the memory in it: one ledger over what the kernel offers to
//! keep it.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use oxblock_mem::{DmaMapper, MemError, Region};

use super::advice;

/// The page that every processor and IOMMU has, bytes.
pub(super) const PAGE_SIZE: u64 = 4096;

/// The kernel's side of an address space: a container of type 1, an iommufd, or none at all.
pub(super) trait Translation: Send + Sync {
    /// Lets devices read and write `len` bytes at `vaddr` by the name `iova`.
    ///
    /// # Safety
    /// The range is mapped in this process, and stays so until [`unmap`](Translation::unmap) has
    /// succeeded or this is dropped; nothing relies on its bytes but by atomics and raw copies.
    unsafe fn map(&self, vaddr: *mut u8, iova: u64, len: u64) -> io::Result<()>;

    /// Ends a mapping, and says how many bytes of it there were.
    fn unmap(&self, iova: u64, len: u64) -> io::Result<u64>;

    /// Mappings that are left, if there is a limit and the kernel tells it.
    fn mappings_left(&self) -> Option<u32>;

    /// The address that memory has for devices whether anybody likes it or not; none where there
    /// is a choice.
    fn fixed_iova(&self, region: &Region) -> Result<Option<u64>, MemError>;
}

/// What an address space can do.
#[derive(Clone, Debug, Default)]
pub(super) struct Abilities {
    /// The IOVAs that it can map.
    pub(super) windows: Vec<RangeInclusive<u64>>,
    /// The smallest page, bytes.
    pub(super) page_size: u64,
}

/// An address space.
///
/// Groups or devices hold it: it closes last, and with it ends every mapping that is left. Only
/// then is memory let go (fields drop in their order).
pub(super) struct AddressSpace<T> {
    translation: T,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    abilities: Abilities,
    /// What devices may reach, by its first IOVA.
    mapped: BTreeMap<u64, Region>,
}

impl<T> AddressSpace<T> {
    /// An address space that can do nothing until its abilities are known.
    pub(super) fn new(translation: T) -> AddressSpace<T> {
        AddressSpace { translation, state: Mutex::default() }
    }

    pub(super) fn translation(&self) -> &T {
        &self.translation
    }

    /// Notes what it can do, now that another device is in it.
    pub(super) fn set_abilities(&self, abilities: Abilities) {
        self.lock().abilities = abilities;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Translation> DmaMapper for AddressSpace<T> {
    fn windows(&self) -> Vec<RangeInclusive<u64>> {
        self.lock().abilities.windows.clone()
    }

    fn page_size_min(&self) -> u64 {
        self.lock().abilities.page_size.max(PAGE_SIZE)
    }

    fn fixed_iova(&self, region: &Region) -> Result<Option<u64>, MemError> {
        self.translation.fixed_iova(region)
    }

    fn map(&self, region: &Region, iova: u64) -> Result<(), MemError> {
        let len = region.len() as u64;
        let mut state = self.lock();
        // SAFETY: LIVE (mem): the region is mapped while a clone of it is kept, and one is, from
        // here until `unmap` has succeeded or the translation is dropped. Whoever made the region
        // promised that its bytes bear a device's writes.
        let mapped = unsafe { self.translation.map(region.addr(), iova, len) };
        if let Err(error) = mapped {
            let count = state.mapped.len();
            drop(state);
            let left = self.translation.mappings_left();
            return Err(advice::map_dma(&error, region.len(), iova, count, left));
        }
        state.mapped.insert(iova, region.clone());
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<(), MemError> {
        let mut state = self.lock();
        let known = state.mapped.get(&iova).is_some_and(|region| region.len() as u64 == len);
        if !known {
            let text =
                format!("unmap {len:#x} bytes at IOVA {iova:#x}: not mapped; unmap what was");
            return Err(MemError::new(libc::EINVAL, text));
        }
        let done = self.translation.unmap(iova, len).map_err(|error| {
            MemError::os(&error, format_args!("unmap {len:#x} bytes at IOVA {iova:#x}"))
        })?;
        if done != len {
            let text = format!("unmap {len:#x} bytes at IOVA {iova:#x}: only {done:#x} were");
            return Err(MemError::new(libc::EIO, text));
        }
        state.mapped.remove(&iova);
        Ok(())
    }
}
