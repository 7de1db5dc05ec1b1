//! The chain of capabilities behind an answer of the kernel: of a region, of an IOMMU.

use std::ops::RangeInclusive;

use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
};

/// Id, version and the offset of the next, before the capability's own fields.
const HEADER_LEN: usize = 8;
/// The most capabilities, and the most entries of one, that are believed.
const MOST: usize = 1024;

/// What a chain says of a region.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RegionCapabilities {
    /// The only parts that may be mapped: offset and length in bytes.
    pub(super) sparse: Option<Vec<(u64, u64)>>,
    /// The pages of the MSI-X table may be mapped, too.
    pub(super) msix_mappable: bool,
}

/// What a chain says of an IOMMU.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct IommuCapabilities {
    /// The IOVAs that can be mapped.
    pub(super) windows: Option<Vec<RangeInclusive<u64>>>,
    /// Mappings that are left.
    pub(super) mappings_left: Option<u32>,
}

/// Reads the chain of a region. `first` is the offset of its head in `bytes`; 0 is no chain.
pub(super) fn of_region(bytes: &[u8], first: u32) -> RegionCapabilities {
    let mut found = RegionCapabilities::default();
    for (id, body) in chain(bytes, first) {
        match u32::from(id) {
            VFIO_REGION_INFO_CAP_SPARSE_MMAP => found.sparse = Some(pairs(body).collect()),
            VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => found.msix_mappable = true,
            _ => {}
        }
    }
    found
}

/// Reads the chain of an IOMMU.
pub(super) fn of_iommu(bytes: &[u8], first: u32) -> IommuCapabilities {
    let mut found = IommuCapabilities::default();
    for (id, body) in chain(bytes, first) {
        match u32::from(id) {
            VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                let windows = pairs(body).filter(|(first, last)| first <= last);
                found.windows = Some(windows.map(|(first, last)| first..=last).collect());
            }
            VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => found.mappings_left = u32_at(body, 0),
            _ => {}
        }
    }
    found
}

/// The capabilities, each with the bytes that follow its header.
fn chain(bytes: &[u8], first: u32) -> impl Iterator<Item = (u16, &[u8])> {
    let mut at = first as usize;
    let step = move || {
        let header = bytes.get(at..)?;
        let body = header.get(HEADER_LEN..).filter(|_| at != 0)?;
        let id = u16::from_ne_bytes(header.get(..2)?.try_into().ok()?);
        at = u32_at(header, 4)? as usize;
        Some((id, body))
    };
    std::iter::from_fn(step).take(MOST)
}

/// Pairs of 64-bit numbers: their count, a reserved word, then they.
fn pairs(body: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let count = u32_at(body, 0).unwrap_or(0) as usize;
    let entries = body.get(8..).unwrap_or_default().chunks_exact(16);
    entries.take(count.min(MOST)).filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capability(id: u32, next: u32, words: &[u32]) -> Vec<u8> {
        let mut bytes = (id as u16).to_ne_bytes().to_vec();
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    fn answer(head: usize, capabilities: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; head];
        bytes.extend(capabilities.concat());
        bytes
    }

    #[test]
    fn windows_and_what_is_left_are_found() {
        let range = capability(
            VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
            24 + 48,
            &[2, 0, 0, 0, 0xfedf_ffff, 0, 0xfef0_0000, 0, u32::MAX, 0xffff],
        );
        let left = capability(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 0, &[65_535]);
        let found = of_iommu(&answer(24, &[range, left]), 24);
        let windows = vec![0..=0xfedf_ffff, 0xfef0_0000..=0xffff_ffff_ffff];
        assert_eq!(found.windows, Some(windows));
        assert_eq!(found.mappings_left, Some(65_535));
    }

    #[test]
    fn parts_that_may_be_mapped_are_found() {
        let sparse = capability(VFIO_REGION_INFO_CAP_SPARSE_MMAP, 0, &[1, 0, 0x2000, 0, 0x1000, 0]);
        let mappable = capability(VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 40, &[]);
        let found = of_region(&answer(32, &[mappable, sparse]), 32);
        assert_eq!(found.sparse, Some(vec![(0x2000, 0x1000)]));
        assert!(found.msix_mappable);
        assert_eq!(of_region(&[0; 32], 0), RegionCapabilities::default());
    }

    #[test]
    fn chains_that_are_cut_or_run_in_a_circle_end() {
        let circle = capability(VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 32, &[]);
        assert!(of_region(&answer(32, &[circle]), 32).msix_mappable);
        let lying = capability(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 9999, &[u32::MAX, 0, 1]);
        for cut in 0..lying.len() {
            of_iommu(&lying[..cut], 0);
            of_iommu(&answer(8, &[lying[..cut].to_vec()]), 8);
        }
        assert_eq!(of_iommu(&[1, 2, 3], u32::MAX), IommuCapabilities::default());
    }
}
