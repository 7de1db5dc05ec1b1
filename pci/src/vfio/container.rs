//! A container: the address space of groups, behind an IOMMU of type 1 or behind none.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};

use oxblock_mem::{MemError, Region};
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_IOMMU_INFO_PGSIZES, VFIO_NOIOMMU_IOMMU, VFIO_TYPE1v2_IOMMU,
};

use super::space::{Abilities, AddressSpace, PAGE_SIZE, Translation};
use super::{advice, capability, ioctl};
use crate::{PciError, PciErrorKind};

/// Where containers come from.
pub(super) const PATH: &str = "/dev/vfio/vfio";
/// What every IOMMU of type 1 has, where the kernel does not say (before 5.4): 39 bits, without
/// the doorbells of interrupts of a PC.
const WINDOWS_UNTOLD: [RangeInclusive<u64>; 2] = [0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1];

/// A container and its address space.
pub(super) type Container = AddressSpace<Type1>;

/// The kernel's IOMMU of type 1; or no IOMMU, where devices reach memory by its physical address
/// and nothing is mapped.
pub(super) struct Type1 {
    file: File,
    no_iommu: bool,
}

/// A container without a group; it can do nothing yet.
pub(super) fn open(no_iommu: bool) -> Result<Container, PciError> {
    let file = OpenOptions::new().read(true).write(true).open(PATH);
    let file = file.map_err(|error| advice::open_container(PATH, error))?;
    let version = ioctl::api_version(file.as_fd())
        .map_err(|error| PciError::io(format!("{PATH}: asking for its version"), error))?;
    let type1 = Type1 { file, no_iommu };
    // A container without an IOMMU tells its kind once a group is in it.
    let is_known = no_iommu || ioctl::has_extension(type1.fd(), VFIO_TYPE1v2_IOMMU);
    if i64::from(version) != i64::from(VFIO_API_VERSION) || !is_known {
        let text = format!(
            "{PATH} offers no IOMMU of type 1 (interface version {version}); load the module: \
             modprobe vfio_iommu_type1"
        );
        return Err(PciError::new(PciErrorKind::NotSupported, text));
    }
    Ok(AddressSpace::new(type1))
}

/// Takes a group in, and looks again what the IOMMU can do: each group may narrow it.
pub(super) fn adopt(container: &Container, group: &File, is_first: bool) -> io::Result<()> {
    let type1 = container.translation();
    ioctl::set_container(group.as_fd(), type1.fd())?;
    if is_first {
        let kind = if type1.no_iommu { VFIO_NOIOMMU_IOMMU } else { VFIO_TYPE1v2_IOMMU };
        ioctl::set_iommu(type1.fd(), kind)?;
    }
    container.set_abilities(type1.abilities()?);
    Ok(())
}

impl Type1 {
    pub(super) fn is_no_iommu(&self) -> bool {
        self.no_iommu
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn abilities(&self) -> io::Result<Abilities> {
        if self.no_iommu {
            return Ok(Abilities { windows: vec![0..=u64::MAX - 1], page_size: PAGE_SIZE });
        }
        let info = ioctl::iommu_info(self.fd())?;
        let told = info.head.flags & VFIO_IOMMU_INFO_PGSIZES != 0;
        let sizes = if told { info.head.iova_pgsizes } else { PAGE_SIZE };
        let capabilities = capability::of_iommu(&info.bytes(), info.head.cap_offset);
        Ok(Abilities {
            windows: capabilities.windows.unwrap_or(WINDOWS_UNTOLD.to_vec()),
            // The lowest bit of the map.
            page_size: 1u64 << sizes.trailing_zeros().min(63),
        })
    }
}

impl Translation for Type1 {
    unsafe fn map(&self, vaddr: *mut u8, iova: u64, len: u64) -> io::Result<()> {
        if self.no_iommu {
            return Ok(());
        }
        // SAFETY: by the caller.
        unsafe { ioctl::map_dma(self.fd(), vaddr, iova, len) }
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<u64> {
        if self.no_iommu {
            return Ok(len);
        }
        ioctl::unmap_dma(self.fd(), iova, len)
    }

    fn mappings_left(&self) -> Option<u32> {
        let info = ioctl::iommu_info(self.fd()).ok().filter(|_| !self.no_iommu)?;
        capability::of_iommu(&info.bytes(), info.head.cap_offset).mappings_left
    }

    fn fixed_iova(&self, region: &Region) -> Result<Option<u64>, MemError> {
        match self.no_iommu {
            true => region.physical().map(Some),
            false => Ok(None),
        }
    }
}
