//! The calls of the kernel's VFIO interface (linux/vfio.h), each with its types.
//!
//! Every call takes a descriptor of the right kind from its caller; one of another kind answers
//! with an error (ENOTTY), so that none of them is unsafe, except the one that gives memory away.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, vfio_device_info, vfio_group_status,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info, vfio_irq_info,
    vfio_irq_set, vfio_region_info,
};

/// `_IO(';', 100 + n)`, as all processors but a few that have no VFIO encode it.
pub(super) const fn request(n: u32) -> libc::c_ulong {
    ((b';' as u32) << 8 | (100 + n)) as libc::c_ulong
}

const GET_API_VERSION: libc::c_ulong = request(0);
const CHECK_EXTENSION: libc::c_ulong = request(1);
const SET_IOMMU: libc::c_ulong = request(2);
const GROUP_GET_STATUS: libc::c_ulong = request(3);
const GROUP_SET_CONTAINER: libc::c_ulong = request(4);
const GROUP_GET_DEVICE_FD: libc::c_ulong = request(6);
const DEVICE_GET_INFO: libc::c_ulong = request(7);
const DEVICE_GET_REGION_INFO: libc::c_ulong = request(8);
const DEVICE_GET_IRQ_INFO: libc::c_ulong = request(9);
const DEVICE_SET_IRQS: libc::c_ulong = request(10);
const DEVICE_RESET: libc::c_ulong = request(11);
const IOMMU_GET_INFO: libc::c_ulong = request(12);
const IOMMU_MAP_DMA: libc::c_ulong = request(13);
const IOMMU_UNMAP_DMA: libc::c_ulong = request(14);

/// The most that is taken of an answer with capabilities behind it, bytes.
const INFO_BYTES_MAX: usize = 64 << 10;

/// The version of the interface that a container speaks.
pub(super) fn api_version(container: BorrowedFd<'_>) -> io::Result<i32> {
    by_value(container, GET_API_VERSION, 0)
}

/// Whether a container can be given this kind of IOMMU.
pub(super) fn has_extension(container: BorrowedFd<'_>, extension: u32) -> bool {
    by_value(container, CHECK_EXTENSION, extension.into()).is_ok_and(|answer| answer > 0)
}

/// Chooses the kind of IOMMU of a container that has a group.
pub(super) fn set_iommu(container: BorrowedFd<'_>, kind: u32) -> io::Result<()> {
    by_value(container, SET_IOMMU, kind.into()).map(drop)
}

/// `VFIO_GROUP_FLAGS_*` of a group.
pub(super) fn group_flags(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut status = vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, flags: 0 };
    // SAFETY: the kernel writes within argsz bytes.
    unsafe { by_pointer(group, GROUP_GET_STATUS, &raw mut status) }?;
    Ok(status.flags)
}

/// Puts a group into a container.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut fd = container.as_raw_fd();
    // SAFETY: the kernel reads one descriptor.
    unsafe { by_pointer(group, GROUP_SET_CONTAINER, &raw mut fd) }.map(drop)
}

/// Opens a device of a group by its name.
pub(super) fn device_fd(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a string that ends with a zero.
    let fd = unsafe { by_pointer(group, GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut()) }?;
    // SAFETY: the kernel just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Flags and counts of a device.
pub(super) fn device_info(device: BorrowedFd<'_>) -> io::Result<vfio_device_info> {
    let argsz = size_of::<vfio_device_info>() as u32;
    let mut info = vfio_device_info { argsz, ..vfio_device_info::default() };
    // SAFETY: the kernel writes within argsz bytes.
    unsafe { by_pointer(device, DEVICE_GET_INFO, &raw mut info) }?;
    Ok(info)
}

/// Where a region of a device is, and what may be done with it.
pub(super) fn region_info(
    device: BorrowedFd<'_>,
    index: u32,
) -> io::Result<Info<vfio_region_info>> {
    let head = vfio_region_info { index, ..vfio_region_info::default() };
    info(device, DEVICE_GET_REGION_INFO, head)
}

/// What an IOMMU of type 1 can do.
pub(super) fn iommu_info(container: BorrowedFd<'_>) -> io::Result<Info<vfio_iommu_type1_info>> {
    info(container, IOMMU_GET_INFO, vfio_iommu_type1_info::default())
}

/// Flags and number of the vectors of one kind of interrupt.
pub(super) fn irq_info(device: BorrowedFd<'_>, index: u32) -> io::Result<vfio_irq_info> {
    let argsz = size_of::<vfio_irq_info>() as u32;
    let mut info = vfio_irq_info { argsz, index, ..vfio_irq_info::default() };
    // SAFETY: the kernel writes within argsz bytes.
    unsafe { by_pointer(device, DEVICE_GET_IRQ_INFO, &raw mut info) }?;
    Ok(info)
}

/// Makes vectors from `start` on signal these eventfds; -1 is none.
pub(super) fn set_irqs(
    device: BorrowedFd<'_>,
    index: u32,
    start: u32,
    events: &[RawFd],
) -> io::Result<()> {
    irqs(device, index, start, events, VFIO_IRQ_SET_DATA_EVENTFD)
}

/// Turns one kind of interrupt off as a whole.
pub(super) fn disable_irqs(device: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    irqs(device, index, 0, &[], VFIO_IRQ_SET_DATA_NONE)
}

/// Resets a device.
pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    by_value(device, DEVICE_RESET, 0).map(drop)
}

/// Lets the devices of a container read and write `len` bytes at `vaddr`, by the name `iova`.
///
/// # Safety
/// The range is mapped in this process and stays so until [`unmap_dma`] has succeeded, or the
/// container is closed; nothing relies on its bytes but by atomics and raw copies.
pub(super) unsafe fn map_dma(
    container: BorrowedFd<'_>,
    vaddr: *mut u8,
    iova: u64,
    len: u64,
) -> io::Result<()> {
    let mut map = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: vaddr.expose_provenance() as u64,
        iova,
        size: len,
    };
    // SAFETY: the kernel reads argsz bytes; what devices do to the range is the caller's promise.
    unsafe { by_pointer(container, IOMMU_MAP_DMA, &raw mut map) }.map(drop)
}

/// Ends a mapping, and returns how many bytes of it there were.
pub(super) fn unmap_dma(container: BorrowedFd<'_>, iova: u64, len: u64) -> io::Result<u64> {
    let mut unmap = vfio_iommu_type1_dma_unmap {
        argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
        iova,
        size: len,
        ..vfio_iommu_type1_dma_unmap::default()
    };
    // SAFETY: the kernel reads and writes within argsz bytes.
    unsafe { by_pointer(container, IOMMU_UNMAP_DMA, &raw mut unmap) }?;
    Ok(unmap.size)
}

/// An answer, and the capabilities behind it.
pub(super) struct Info<T> {
    /// The answer.
    pub(super) head: T,
    words: Vec<u64>,
    len: usize,
}

impl<T> Info<T> {
    /// The whole answer: offsets of capabilities count from its first byte.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(self.len);
        bytes
    }
}

/// Types whose first word is `argsz`, and which are plain numbers without padding.
trait Head: Copy {}
impl Head for vfio_region_info {}
impl Head for vfio_iommu_type1_info {}

/// Asks once for the head, and once more with room for what the kernel says follows it.
fn info<T: Head>(fd: BorrowedFd<'_>, request: libc::c_ulong, head: T) -> io::Result<Info<T>> {
    let mut len = size_of::<T>();
    let mut words = vec![0u64; len.div_ceil(8)];
    loop {
        // SAFETY: there is room for a T, aligned for it (8 bytes), and a Head is plain numbers.
        unsafe { words.as_mut_ptr().cast::<T>().write(head) };
        // SAFETY: argsz is the first word of a Head; there is room for it.
        unsafe { words.as_mut_ptr().cast::<u32>().write(len as u32) };
        // SAFETY: the kernel reads and writes within argsz bytes, all of them ours.
        unsafe { by_pointer(fd, request, words.as_mut_ptr()) }?;
        // SAFETY: as for the writes; the kernel leaves plain numbers.
        let (answer, wanted) =
            unsafe { (words.as_ptr().cast::<T>().read(), words.as_ptr().cast::<u32>().read()) };
        let wanted = (wanted as usize).min(INFO_BYTES_MAX);
        if wanted <= len {
            return Ok(Info { head: answer, words, len });
        }
        len = wanted;
        words = vec![0; len.div_ceil(8)];
    }
}

fn irqs(
    device: BorrowedFd<'_>,
    index: u32,
    start: u32,
    events: &[RawFd],
    data: u32,
) -> io::Result<()> {
    let head_len = size_of::<vfio_irq_set>();
    let argsz = (head_len + size_of_val(events)) as u32;
    let flags = data | VFIO_IRQ_SET_ACTION_TRIGGER;
    // The head is five words; descriptors are words, too, and follow it.
    let mut words = vec![argsz, flags, index, start, events.len() as u32];
    words.extend(events.iter().map(|event| event.cast_unsigned()));
    // SAFETY: the kernel reads argsz bytes, which is what there is.
    unsafe { by_pointer(device, DEVICE_SET_IRQS, words.as_mut_ptr()) }.map(drop)
}

fn by_value(fd: BorrowedFd<'_>, request: libc::c_ulong, value: u64) -> io::Result<i32> {
    // SAFETY: requests of this kind take a number, and touch no memory of ours.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, value) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// # Safety
/// The request reads and writes no more than what `argument` points to.
pub(super) unsafe fn by_pointer<T>(
    fd: BorrowedFd<'_>,
    request: libc::c_ulong,
    argument: *mut T,
) -> io::Result<i32> {
    // SAFETY: by the caller.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    /// Numbers as the kernel's header spells them out: 0x3b00 + 100 + n.
    #[test]
    fn requests_are_those_of_the_header() {
        assert_eq!(GET_API_VERSION, 0x3b64);
        assert_eq!(GROUP_GET_DEVICE_FD, 0x3b6a);
        assert_eq!(DEVICE_SET_IRQS, 0x3b6e);
        assert_eq!(IOMMU_UNMAP_DMA, 0x3b72);
    }

    #[test]
    fn arguments_have_the_sizes_of_the_header() {
        assert_eq!(size_of::<vfio_region_info>(), 32);
        assert_eq!(size_of::<vfio_iommu_type1_info>(), 24);
        assert_eq!(size_of::<vfio_irq_set>(), 20);
        assert_eq!(size_of::<vfio_iommu_type1_dma_map>(), 32);
        assert_eq!(size_of::<vfio_iommu_type1_dma_unmap>(), 24);
    }

    /// A descriptor of another kind must answer with an error, whatever the call.
    #[test]
    fn what_is_no_vfio_file_says_so() {
        let file = File::open("/dev/null").unwrap();
        let fd = file.as_fd();
        let is_notty = |error: io::Error| error.raw_os_error() == Some(libc::ENOTTY);
        assert!(is_notty(api_version(fd).unwrap_err()));
        assert!(!has_extension(fd, 1));
        assert!(is_notty(set_iommu(fd, 3).unwrap_err()));
        assert!(is_notty(group_flags(fd).unwrap_err()));
        assert!(is_notty(set_container(fd, fd).unwrap_err()));
        assert!(is_notty(device_fd(fd, c"0000:01:00.0").unwrap_err()));
        assert!(is_notty(device_info(fd).unwrap_err()));
        assert!(is_notty(region_info(fd, 0).err().unwrap()));
        assert!(is_notty(iommu_info(fd).err().unwrap()));
        assert!(is_notty(irq_info(fd, 2).unwrap_err()));
        assert!(is_notty(set_irqs(fd, 2, 0, &[-1, -1]).unwrap_err()));
        assert!(is_notty(disable_irqs(fd, 2).unwrap_err()));
        assert!(is_notty(reset(fd).unwrap_err()));
        assert!(is_notty(unmap_dma(fd, 0, 4096).unwrap_err()));
    }
}
