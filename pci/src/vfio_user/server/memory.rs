//! Memory of a client.
//!
//! A mapping comes with a file, or without. Without, and where the client forbids writing, the
//! mapping is known and can be unmapped, but the function does not reach it: commands that name
//! it fail with a DMA fault, as they would behind an IOMMU. Clients that emulate a machine map
//! their ROMs so.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use oxblock_mem::{DmaMapper, Region};
use rustix::fs::fstatfs;

use super::session::SessionOptions;
use crate::vfio_user::message::{DMA_READ, DMA_WRITE, DmaMap, DmaUnmap, UNMAP_ALL};

/// What the client has mapped.
pub(super) struct ClientMemory {
    iommu: Arc<dyn DmaMapper>,
    options: SessionOptions,
    /// By address; no two overlap.
    mappings: BTreeMap<u64, Mapping>,
    mapped_bytes: u64,
}

struct Mapping {
    len: u64,
    /// The memory, if the function reaches it.
    region: Option<Region>,
}

impl ClientMemory {
    pub(super) fn new(iommu: Arc<dyn DmaMapper>, options: SessionOptions) -> ClientMemory {
        ClientMemory { iommu, options, mappings: BTreeMap::new(), mapped_bytes: 0 }
    }

    pub(super) fn mappings_max(&self) -> usize {
        self.options.mappings_max
    }

    pub(super) fn is_lost(&self) -> bool {
        self.mappings.values().any(|mapping| mapping.region.as_ref().is_some_and(Region::is_lost))
    }

    /// DMA_MAP.
    pub(super) fn map(&mut self, map: &DmaMap, fds: Vec<OwnedFd>) -> Result<(), i32> {
        let (iova, len, flags) = (map.address.get(), map.size.get(), map.flags.get());
        let last = len.checked_sub(1).and_then(|more| iova.checked_add(more));
        let last = last.ok_or(libc::EINVAL)?;
        let aligned = (iova | len | map.offset.get()).is_multiple_of(4096);
        let known = flags != 0 && flags & !(DMA_READ | DMA_WRITE) == 0;
        if !aligned || !known || fds.len() > 1 {
            return Err(libc::EINVAL);
        }
        // The last that begins before the end of the new one is the only one that may overlap.
        let before = self.mappings.range(..=last).next_back();
        if before.is_some_and(|(start, mapping)| start + (mapping.len - 1) >= iova) {
            return Err(libc::EEXIST);
        }
        let bytes = self.mapped_bytes.checked_add(len);
        let bytes = bytes.filter(|bytes| *bytes <= self.options.mapped_bytes_max);
        let room = self.mappings.len() < self.options.mappings_max;
        let bytes = bytes.filter(|_| room).ok_or(libc::ENOSPC)?;
        let file = fds.first().filter(|_| flags & DMA_WRITE != 0);
        let region = file.map(|file| self.reach(file, map)).transpose()?;
        self.mappings.insert(iova, Mapping { len, region });
        self.mapped_bytes = bytes;
        Ok(())
    }

    /// DMA_UNMAP. The client gets its memory back when what is returned is in use no more.
    pub(super) fn unmap(&mut self, unmap: &DmaUnmap) -> Result<Vec<Region>, i32> {
        let (iova, len, flags) = (unmap.address.get(), unmap.size.get(), unmap.flags.get());
        match flags {
            0 if self.mappings.get(&iova).is_some_and(|mapping| mapping.len == len) => {
                Ok(self.forget(iova).into_iter().collect())
            }
            UNMAP_ALL if iova == 0 && len == 0 => Ok(self.forget_all()),
            0 => Err(libc::ENOENT),
            _ => Err(libc::EINVAL),
        }
    }

    /// Shows memory to the function.
    fn reach(&self, file: &OwnedFd, map: &DmaMap) -> Result<Region, i32> {
        let info = fstatfs(file).map_err(|errno| errno.raw_os_error())?;
        // A page of any other file may take for ever to come, and the function's core with it.
        if ![libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&(info.f_type as _)) {
            return Err(libc::EOPNOTSUPP);
        }
        let region = Region::import(file.as_fd(), map.offset.get(), map.size.get());
        let region = region.map_err(|error| error.errno())?;
        self.iommu.map(&region, map.address.get()).map_err(|error| error.errno())?;
        Ok(region)
    }

    fn forget(&mut self, iova: u64) -> Option<Region> {
        let mapping = self.mappings.remove(&iova)?;
        self.mapped_bytes -= mapping.len;
        if mapping.region.is_some() {
            // It was mapped just so, and nobody else unmaps.
            let _ = self.iommu.unmap(iova, mapping.len);
        }
        mapping.region
    }

    fn forget_all(&mut self) -> Vec<Region> {
        let all: Vec<u64> = self.mappings.keys().copied().collect();
        all.into_iter().filter_map(|iova| self.forget(iova)).collect()
    }
}

impl Drop for ClientMemory {
    fn drop(&mut self) {
        self.forget_all();
    }
}
