//! BARs: mapped where the kernel allows it, read and written through the file where not.

use std::sync::Arc;

use oxblock_mem::{Buf, Region};
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};

use super::device::{Device, DeviceRegion};
use super::mapping::Mapping;
use crate::bar::{check_memory, no_memory};
use crate::{Bar, PciError, PciErrorKind};

/// What `mmap` of a device's file counts in, bytes.
const PAGE_SIZE: u64 = 4096;

/// A memory BAR. While it lives the device stays open, unless it is released.
pub(super) struct VfioBar {
    /// Sorted by their start; mostly one that is all of it.
    areas: Vec<Area>,
    len: u64,
    /// Of its first byte in the device's file.
    offset: u64,
    device: Arc<Device>,
}

/// A mapped part of a BAR.
struct Area {
    start: u64,
    registers: Arc<Mapping>,
}

impl VfioBar {
    /// Maps a region of a device. `msix_table` is where in it the MSI-X table lies, if it does.
    pub(super) fn new(
        device: &Arc<Device>,
        region: &DeviceRegion,
        msix_table: Option<(u64, u64)>,
    ) -> Result<VfioBar, PciError> {
        let access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        if region.len == 0 || region.flags & access != access {
            let (address, index) = (device.address(), region.index);
            let text = format!("{address} has no BAR {index} that can be read and written");
            return Err(PciError::new(PciErrorKind::NotSupported, text));
        }
        let mut areas = Vec::new();
        for (start, len) in parts_to_map(region, msix_table) {
            let at = region.offset.saturating_add(start);
            let registers = device.map(at, len).map_err(|error| {
                device.error(&format!("mapping {len:#x} bytes of BAR {}", region.index), error)
            })?;
            areas.push(Area { start, registers });
        }
        Ok(VfioBar { areas, len: region.len, offset: region.offset, device: device.clone() })
    }

    /// Whether a register is reached by a load or store, and not through the file.
    pub(super) fn is_mapped(&self, offset: u64) -> bool {
        self.place(offset).is_some()
    }

    fn answers(&self, offset: u64, size: u64) -> bool {
        offset.is_multiple_of(size)
            && offset.checked_add(size).is_some_and(|end| end <= self.len)
            && self.device.decodes()
    }

    /// The mapped part that an aligned register lies in, and where in it. Parts are of whole pages,
    /// so one that holds its first byte holds it all.
    #[inline]
    fn place(&self, offset: u64) -> Option<(&Mapping, u64)> {
        self.areas.iter().find_map(|area| {
            let inside = offset.wrapping_sub(area.start);
            (inside < area.registers.len()).then_some((&*area.registers, inside))
        })
    }
}

impl Bar for VfioBar {
    fn len(&self) -> u64 {
        self.len
    }

    fn read32(&self, offset: u64) -> u32 {
        if !self.answers(offset, 4) {
            return u32::MAX;
        }
        match self.place(offset) {
            Some((registers, at)) => registers.read32(at),
            None => self.device.read(self.offset + offset).map_or(u32::MAX, u32::from_le_bytes),
        }
    }

    fn read64(&self, offset: u64) -> u64 {
        if !self.answers(offset, 8) {
            return u64::MAX;
        }
        match self.place(offset) {
            Some((registers, at)) => registers.read64(at),
            None => self.device.read(self.offset + offset).map_or(u64::MAX, u64::from_le_bytes),
        }
    }

    fn write32(&self, offset: u64, value: u32) {
        if !self.answers(offset, 4) {
            return;
        }
        match self.place(offset) {
            Some((registers, at)) => registers.write32(at, value),
            // A write that does not arrive is what a bus without a device does to it.
            None => drop(self.device.write(self.offset + offset, value.to_le_bytes())),
        }
    }

    fn write64(&self, offset: u64, value: u64) {
        if !self.answers(offset, 8) {
            return;
        }
        match self.place(offset) {
            Some((registers, at)) => registers.write64(at, value),
            None => drop(self.device.write(self.offset + offset, value.to_le_bytes())),
        }
    }

    fn memory(&self, offset: u64, len: u64) -> Result<Buf, PciError> {
        check_memory(self, offset, len)?;
        let inside =
            |area: &Area| offset >= area.start && offset + len <= area.start + area.registers.len();
        if !self.areas.iter().any(inside) {
            return Err(no_memory(offset));
        }
        // A mapping of its own, which keeps the device's file open and outlives this BAR.
        let region = Region::of_device(self.device.fd(), self.offset + offset, len);
        let buf = region.and_then(|region| region.buf(0, region.len()));
        buf.map_err(|error| PciError::new(PciErrorKind::Io, error.to_string()))
    }
}

/// The parts of a region that may be mapped: offset and length, whole pages, sorted, disjoint.
fn parts_to_map(region: &DeviceRegion, msix_table: Option<(u64, u64)>) -> Vec<(u64, u64)> {
    if region.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
        return Vec::new();
    }
    let whole = region.len / PAGE_SIZE * PAGE_SIZE;
    let told = match (&region.capabilities.sparse, msix_table) {
        (Some(sparse), _) => sparse.clone(),
        // Before 4.16 the kernel refuses to map the pages of the table.
        (None, Some((start, len))) if !region.capabilities.msix_mappable => {
            let first = (start / PAGE_SIZE * PAGE_SIZE).min(whole);
            let end = start.saturating_add(len).div_ceil(PAGE_SIZE).saturating_mul(PAGE_SIZE);
            vec![(0, first), (end.min(whole), whole - end.min(whole))]
        }
        (None, _) => vec![(0, whole)],
    };
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for (start, len) in told {
        let is_whole_pages = (start | len).is_multiple_of(PAGE_SIZE);
        let fits = start.checked_add(len).is_some_and(|end| end <= whole);
        if len > 0 && is_whole_pages && fits {
            parts.push((start, len));
        }
    }
    parts.sort_unstable();
    parts.dedup_by(|next, part| next.0 < part.0 + part.1);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::capability::RegionCapabilities;

    fn region(sparse: Option<Vec<(u64, u64)>>, msix_mappable: bool) -> DeviceRegion {
        let capabilities = RegionCapabilities { sparse, msix_mappable };
        DeviceRegion { index: 0, offset: 0, len: 0x4000, flags: 7, capabilities }
    }

    #[test]
    fn only_what_the_kernel_allows_is_mapped() {
        let all = vec![(0, 0x4000)];
        assert_eq!(parts_to_map(&region(None, true), Some((0x2000, 0x20))), all);
        assert_eq!(parts_to_map(&region(None, false), None), all);
        let around = vec![(0, 0x2000), (0x3000, 0x1000)];
        assert_eq!(parts_to_map(&region(None, false), Some((0x2000, 0x20))), around);
        assert_eq!(parts_to_map(&region(None, false), Some((0x3ff0, 0x20))), vec![(0, 0x3000)]);
        assert_eq!(parts_to_map(&region(None, false), Some((u64::MAX, 9))), all);
        let sparse = Some(vec![(0x3000, 0x1000), (0, 0x1000)]);
        let told = vec![(0, 0x1000), (0x3000, 0x1000)];
        assert_eq!(parts_to_map(&region(sparse, false), None), told);
        let unmappable = DeviceRegion { flags: 3, ..region(None, true) };
        assert!(parts_to_map(&unmappable, None).is_empty());
    }

    #[test]
    fn parts_that_make_no_sense_are_left_out() {
        let sparse = vec![(0x10, 0x1000), (0x1000, 0), (0x3000, 0x2000), (u64::MAX - 4095, 4096)];
        assert!(parts_to_map(&region(Some(sparse), true), None).is_empty());
        let overlapping = vec![(0, 0x2000), (0x1000, 0x1000)];
        assert_eq!(parts_to_map(&region(Some(overlapping), true), None), vec![(0, 0x2000)]);
    }
}
