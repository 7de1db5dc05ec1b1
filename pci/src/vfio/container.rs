//! A container: the address space that the devices of one engine share, behind an IOMMU of
//! type 1.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use oxblock_mem::{DmaMapper, MemError, Region};
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_IOMMU_INFO_PGSIZES, VFIO_TYPE1v2_IOMMU,
};

use super::capability::{self, IommuCapabilities};
use super::{advice, ioctl};
use crate::{PciError, PciErrorKind};

/// Where containers come from.
pub(super) const PATH: &str = "/dev/vfio/vfio";
/// What every IOMMU of type 1 has, where the kernel does not say (before 5.4): 39 bits, without
/// the doorbells of interrupts of a PC.
const WINDOWS_UNTOLD: [RangeInclusive<u64>; 2] = [0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1];
/// The page that every IOMMU of type 1 has, bytes.
const PAGE_SIZE: u64 = 4096;

/// An address space for devices, and the memory in it.
///
/// Groups hold it, and devices hold their groups: it closes last, and with it ends every mapping
/// that is left. Only then is memory let go (fields drop in their order).
pub(super) struct Container {
    file: File,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    windows: Vec<RangeInclusive<u64>>,
    page_size: u64,
    /// What devices may reach, by its first IOVA.
    mapped: BTreeMap<u64, Region>,
}

impl Container {
    /// A container without a group; it can do nothing yet.
    pub(super) fn open() -> Result<Container, PciError> {
        let file = OpenOptions::new().read(true).write(true).open(PATH);
        let file = file.map_err(|error| advice::open_container(PATH, error))?;
        let version = ioctl::api_version(file.as_fd())
            .map_err(|error| PciError::io(format!("{PATH}: asking for its version"), error))?;
        if i64::from(version) != i64::from(VFIO_API_VERSION)
            || !ioctl::has_extension(file.as_fd(), VFIO_TYPE1v2_IOMMU)
        {
            let text = format!(
                "{PATH} offers no IOMMU of type 1 (interface version {version}); load the module: \
                 modprobe vfio_iommu_type1"
            );
            return Err(PciError::new(PciErrorKind::NotSupported, text));
        }
        Ok(Container { file, state: Mutex::default() })
    }

    /// Takes a group in, and looks again what the IOMMU can do: each group may narrow it.
    pub(super) fn adopt(&self, group: &File, is_first: bool) -> io::Result<()> {
        ioctl::set_container(group.as_fd(), self.file.as_fd())?;
        if is_first {
            ioctl::set_iommu(self.file.as_fd(), VFIO_TYPE1v2_IOMMU)?;
        }
        let info = ioctl::iommu_info(self.file.as_fd())?;
        let told = info.head.flags & VFIO_IOMMU_INFO_PGSIZES != 0;
        let sizes = if told { info.head.iova_pgsizes } else { PAGE_SIZE };
        let mut state = self.lock();
        // The lowest bit of the map; below the processor's page nothing can be pinned.
        state.page_size = (1u64 << sizes.trailing_zeros().min(63)).max(PAGE_SIZE);
        state.windows = self.capabilities(&info).windows.unwrap_or(WINDOWS_UNTOLD.to_vec());
        Ok(())
    }

    /// Mappings that are left, if the kernel says (from 5.10 on).
    fn mappings_left(&self) -> Option<u32> {
        let info = ioctl::iommu_info(self.file.as_fd()).ok()?;
        self.capabilities(&info).mappings_left
    }

    fn capabilities(
        &self,
        info: &ioctl::Info<vfio_bindings::bindings::vfio::vfio_iommu_type1_info>,
    ) -> IommuCapabilities {
        capability::of_iommu(&info.bytes(), info.head.cap_offset)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DmaMapper for Container {
    fn windows(&self) -> Vec<RangeInclusive<u64>> {
        self.lock().windows.clone()
    }

    fn page_size_min(&self) -> u64 {
        self.lock().page_size
    }

    fn map(&self, region: &Region, iova: u64) -> Result<(), MemError> {
        let len = region.len() as u64;
        let mut state = self.lock();
        // SAFETY: LIVE (mem): the region is mapped while a clone of it is kept, and one is, from
        // here until `unmap` has succeeded or the container is closed. Whoever made the region
        // promised that its bytes bear a device's writes.
        let mapped = unsafe { ioctl::map_dma(self.file.as_fd(), region.addr(), iova, len) };
        if let Err(error) = mapped {
            let count = state.mapped.len();
            drop(state);
            return Err(advice::map_dma(&error, region.len(), iova, count, self.mappings_left()));
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
        let done = ioctl::unmap_dma(self.file.as_fd(), iova, len).map_err(|error| {
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
