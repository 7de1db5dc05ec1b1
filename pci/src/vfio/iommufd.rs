//! An iommufd: the address space of devices on kernels that open each by a node of its own
//! (`Documentation/userspace-api/iommufd.rst`, 6.6 and later).

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_CMD_IOAS_MAP,
    IOMMUFD_CMD_IOAS_UNMAP, iommu_ioas_alloc, iommu_ioas_iova_ranges, iommu_ioas_map,
    iommu_ioas_unmap, iommu_iova_range, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
};
use oxblock_mem::{MemError, Region};
use vfio_bindings::bindings::vfio::{vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd};

use super::advice;
use super::ioctl::{by_pointer, request};
use super::space::{Abilities, AddressSpace, Translation};
use crate::{Address, PciError};

/// Where iommufds come from.
pub(super) const PATH: &str = "/dev/iommu";
const BIND_IOMMUFD: libc::c_ulong = request(18);
const ATTACH_IOMMUFD_PT: libc::c_ulong = request(19);
/// The most ranges that are believed.
const RANGES_MAX: u32 = 1024;

/// An address space of an iommufd.
pub(super) type Ioas = AddressSpace<Iommufd>;

/// An iommufd with one address space.
pub(super) struct Iommufd {
    file: File,
    ioas: u32,
}

/// An address space without a device.
pub(super) fn open() -> Result<Ioas, PciError> {
    let file = OpenOptions::new().read(true).write(true).open(PATH);
    let file = file.map_err(|error| advice::open_iommufd(PATH, error))?;
    let size = size_of::<iommu_ioas_alloc>() as u32;
    let mut alloc = iommu_ioas_alloc { size, ..Default::default() };
    // SAFETY: the kernel reads and writes `size` bytes.
    unsafe { by_pointer(file.as_fd(), command(IOMMUFD_CMD_IOAS_ALLOC), &raw mut alloc) }
        .map_err(|error| PciError::io(format!("{PATH}: making an address space"), error))?;
    Ok(AddressSpace::new(Iommufd { file, ioas: alloc.out_ioas_id }))
}

/// Opens a device by its own node (`vfio0`), and puts it into the address space.
pub(super) fn open_device(space: &Ioas, node: &str, address: Address) -> Result<OwnedFd, PciError> {
    let path = format!("/dev/vfio/devices/{node}");
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.map_err(|error| advice::open_group(&path, error))?;
    let iommufd = space.translation();
    iommufd.bind(file.as_fd()).map_err(|error| advice::bind_iommufd(&path, address, error))?;
    let attached = iommufd.attach(file.as_fd()).and_then(|()| iommufd.abilities());
    let abilities = attached.map_err(|error| advice::adopt(&path, error))?;
    space.set_abilities(abilities);
    Ok(file.into())
}

impl Iommufd {
    fn bind(&self, device: BorrowedFd<'_>) -> io::Result<()> {
        // Without the token: kernels that do not know it refuse a longer argument.
        let argsz = std::mem::offset_of!(vfio_device_bind_iommufd, token_uuid_ptr) as u32;
        let iommufd = self.file.as_raw_fd();
        let mut bind = vfio_device_bind_iommufd { argsz, iommufd, ..Default::default() };
        // SAFETY: the kernel reads and writes within argsz bytes.
        unsafe { by_pointer(device, BIND_IOMMUFD, &raw mut bind) }.map(drop)
    }

    fn attach(&self, device: BorrowedFd<'_>) -> io::Result<()> {
        let argsz = std::mem::offset_of!(vfio_device_attach_iommufd_pt, pasid) as u32;
        let pt_id = self.ioas;
        let mut attach = vfio_device_attach_iommufd_pt { argsz, pt_id, ..Default::default() };
        // SAFETY: the kernel reads and writes within argsz bytes.
        unsafe { by_pointer(device, ATTACH_IOMMUFD_PT, &raw mut attach) }.map(drop)
    }

    /// Asks for the ranges: once to learn how many there are, once more for all.
    fn abilities(&self) -> io::Result<Abilities> {
        let mut ranges: Vec<iommu_iova_range> = Vec::new();
        loop {
            let mut ask = iommu_ioas_iova_ranges {
                size: size_of::<iommu_ioas_iova_ranges>() as u32,
                ioas_id: self.ioas,
                num_iovas: ranges.len() as u32,
                allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
                ..Default::default()
            };
            let request = command(IOMMUFD_CMD_IOAS_IOVA_RANGES);
            // SAFETY: the kernel reads and writes `size` bytes, and `num_iovas` ranges, all ours.
            let answer = unsafe { by_pointer(self.file.as_fd(), request, &raw mut ask) };
            let count = ask.num_iovas.min(RANGES_MAX) as usize;
            match answer {
                Err(error) if error.raw_os_error() != Some(libc::EMSGSIZE) => return Err(error),
                _ if count > ranges.len() => ranges.resize(count, iommu_iova_range::default()),
                Err(error) => return Err(error),
                Ok(_) => {
                    ranges.truncate(count);
                    return Ok(Abilities {
                        windows: ranges.iter().filter_map(window).collect(),
                        page_size: ask.out_iova_alignment.next_power_of_two(),
                    });
                }
            }
        }
    }
}

impl Translation for Iommufd {
    unsafe fn map(&self, vaddr: *mut u8, iova: u64, len: u64) -> io::Result<()> {
        let mut map = iommu_ioas_map {
            size: size_of::<iommu_ioas_map>() as u32,
            flags: iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
                | iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE
                | iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
            ioas_id: self.ioas,
            user_va: vaddr.expose_provenance() as u64,
            length: len,
            iova,
            ..Default::default()
        };
        // SAFETY: the kernel reads `size` bytes; what devices do to the range is the caller's
        // promise.
        unsafe { by_pointer(self.file.as_fd(), command(IOMMUFD_CMD_IOAS_MAP), &raw mut map) }
            .map(drop)
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<u64> {
        let size = size_of::<iommu_ioas_unmap>() as u32;
        let ioas_id = self.ioas;
        let mut unmap = iommu_ioas_unmap { size, ioas_id, iova, length: len };
        let request = command(IOMMUFD_CMD_IOAS_UNMAP);
        // SAFETY: the kernel reads and writes `size` bytes.
        unsafe { by_pointer(self.file.as_fd(), request, &raw mut unmap) }?;
        Ok(unmap.length)
    }

    /// There is no limit but that of locked memory.
    fn mappings_left(&self) -> Option<u32> {
        None
    }

    fn fixed_iova(&self, _region: &Region) -> Result<Option<u64>, MemError> {
        Ok(None)
    }
}

/// `_IO(';', n)`, as for the calls of VFIO.
const fn command(n: u32) -> libc::c_ulong {
    ((b';' as u32) << 8 | n) as libc::c_ulong
}

fn window(range: &iommu_iova_range) -> Option<RangeInclusive<u64>> {
    (range.start <= range.last).then_some(range.start..=range.last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers as the kernel's header spells them out.
    #[test]
    fn requests_are_those_of_the_header() {
        assert_eq!(command(IOMMUFD_CMD_IOAS_ALLOC), 0x3b81);
        assert_eq!(command(IOMMUFD_CMD_IOAS_UNMAP), 0x3b86);
        assert_eq!((BIND_IOMMUFD, ATTACH_IOMMUFD_PT), (0x3b76, 0x3b77));
    }

    #[test]
    fn arguments_have_the_sizes_of_the_header() {
        assert_eq!(std::mem::offset_of!(vfio_device_bind_iommufd, token_uuid_ptr), 16);
        assert_eq!(std::mem::offset_of!(vfio_device_attach_iommufd_pt, pasid), 12);
        assert_eq!(size_of::<iommu_ioas_alloc>(), 12);
        assert_eq!(size_of::<iommu_ioas_iova_ranges>(), 32);
        assert_eq!(size_of::<iommu_ioas_map>(), 40);
        assert_eq!(size_of::<iommu_ioas_unmap>(), 24);
    }

    #[test]
    fn what_is_no_iommufd_says_so() {
        let iommufd = Iommufd { file: File::open("/dev/null").unwrap(), ioas: 1 };
        let is_notty = |error: io::Error| error.raw_os_error() == Some(libc::ENOTTY);
        assert!(is_notty(iommufd.abilities().unwrap_err()));
        assert!(is_notty(iommufd.unmap(0, 4096).unwrap_err()));
        assert!(is_notty(iommufd.bind(iommufd.file.as_fd()).unwrap_err()));
        assert!(is_notty(iommufd.attach(iommufd.file.as_fd()).unwrap_err()));
        assert_eq!(iommufd.mappings_left(), None);
    }
}
