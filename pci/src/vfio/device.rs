//! An open device: its file, and what keeps it open.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_bindings::bindings::vfio::vfio_region_info;

use super::capability::{self, RegionCapabilities};
use super::ioctl;
use super::mapping::Mapping;
use crate::{Address, PciError, PciErrorKind};

/// The file of one device. Mapped BARs, configuration space and interrupts hold it; it holds its
/// group, and so its container, which close after it.
pub(super) struct Device {
    file: File,
    address: Address,
    /// Memory decoding, from the command register: the kernel answers an access to a mapped BAR
    /// without it by SIGBUS, where a bus would answer with all ones.
    decodes: AtomicBool,
    /// It was given back.
    released: AtomicBool,
    /// What of its file is mapped.
    mapped: Mutex<Vec<Arc<Mapping>>>,
    /// The group, or the iommufd.
    keeper: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
}

/// A region of a device: a BAR, or configuration space.
pub(super) struct DeviceRegion {
    /// The index that was asked for.
    pub(super) index: u32,
    /// Offset of its first byte in the device's file.
    pub(super) offset: u64,
    /// Length in bytes; 0 where there is none.
    pub(super) len: u64,
    /// `VFIO_REGION_INFO_FLAG_*`.
    pub(super) flags: u32,
    /// What may be mapped.
    pub(super) capabilities: RegionCapabilities,
}

impl Device {
    pub(super) fn new(
        fd: OwnedFd,
        address: Address,
        keeper: Arc<dyn Any + Send + Sync>,
    ) -> Arc<Device> {
        Arc::new(Device {
            file: File::from(fd),
            address,
            decodes: AtomicBool::new(false),
            released: AtomicBool::new(false),
            mapped: Mutex::default(),
            keeper: Mutex::new(Some(keeper)),
        })
    }

    /// Lets the kernel have the device back, whoever still names it: nothing of it is mapped or
    /// open afterwards, its registers read as all ones, and calls on it fail.
    pub(super) fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
        self.set_decodes(false);
        // Registers that cannot be unmapped keep the device, and the kernel waits for our end.
        for mapping in lock(&self.mapped).drain(..) {
            let _ = mapping.detach();
        }
        // The number stays ours, so that no call hits a file that was opened since.
        if let Ok(null) = File::open("/dev/null") {
            let (null, own) = (null.as_raw_fd(), self.file.as_raw_fd());
            // SAFETY: both are open files of ours; the second one's number stays that of `file`.
            let _ = unsafe { libc::dup3(null, own, libc::O_CLOEXEC) };
        }
        drop(lock(&self.keeper).take());
    }

    /// Maps registers: `len` bytes at `offset` of the device's file.
    pub(super) fn map(&self, offset: u64, len: u64) -> io::Result<Arc<Mapping>> {
        let mapping = Arc::new(Mapping::new(self.fd(), offset, len)?);
        let mut mapped = lock(&self.mapped);
        mapped.retain(|mapping| Arc::strong_count(mapping) > 1);
        mapped.push(mapping.clone());
        Ok(mapping)
    }

    pub(super) fn address(&self) -> Address {
        self.address
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn region(&self, index: u32) -> Result<DeviceRegion, PciError> {
        let info = ioctl::region_info(self.fd(), index)
            .map_err(|error| self.error(&format!("asking for region {index}"), error))?;
        let vfio_region_info { flags, cap_offset, size, offset, .. } = info.head;
        let capabilities = capability::of_region(&info.bytes(), cap_offset);
        Ok(DeviceRegion { index, offset, len: size, flags, capabilities })
    }

    /// Whether the function answers in its memory BARs.
    #[inline]
    pub(super) fn decodes(&self) -> bool {
        self.decodes.load(Ordering::Relaxed)
    }

    pub(super) fn set_decodes(&self, decodes: bool) {
        self.decodes.store(decodes, Ordering::Relaxed);
    }

    /// One access of just this size.
    pub(super) fn read<const N: usize>(&self, offset: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        match self.file.read_at(&mut bytes, offset)? {
            n if n == N => Ok(bytes),
            n => Err(io::Error::other(format!("{n} bytes came of {N}"))),
        }
    }

    /// One access of just this size.
    pub(super) fn write<const N: usize>(&self, offset: u64, bytes: [u8; N]) -> io::Result<()> {
        match self.file.write_at(&bytes, offset)? {
            n if n == N => Ok(()),
            n => Err(io::Error::other(format!("{n} bytes went of {N}"))),
        }
    }

    /// An error of a call on this device.
    pub(super) fn error(&self, what: &str, error: io::Error) -> PciError {
        if self.released.load(Ordering::Relaxed) {
            let text = format!("{}: {what}: it was given back; open it anew", self.address);
            return PciError::new(PciErrorKind::Gone, text);
        }
        if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EIO)) {
            let text =
                format!("{}: {what}: {error}; it was removed, or is not powered", self.address);
            return PciError::new(PciErrorKind::Gone, text);
        }
        PciError::io(format!("{}: {what}", self.address), error)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that was asked for a device back still had its registers mapped, and the kernel
    /// waited for the process to end.
    #[test]
    fn a_device_that_is_given_back_is_neither_open_nor_mapped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        file.write_all_at(&[7; 8192], 0).unwrap();
        let keeper: Arc<dyn Any + Send + Sync> = Arc::new(());
        let kept = Arc::downgrade(&keeper);
        let address = "0000:01:00.0".parse().unwrap();
        let device = Device::new(OwnedFd::from(file.try_clone().unwrap()), address, keeper);
        let mapping = device.map(4096, 4096).unwrap();
        assert_eq!(mapping.read32(0), 0x0707_0707);
        let read = |offset| device.read::<4>(offset);
        assert_eq!(read(0).unwrap(), [7; 4]);
        device.release();
        assert!(kept.upgrade().is_none(), "the group is let go of");
        assert_eq!(mapping.read32(0), u32::MAX);
        mapping.write32(0, 0);
        let error = device.error("reading", read(0).unwrap_err());
        assert_eq!(error.kind(), PciErrorKind::Gone);
        assert!(device.write(0, [1; 4]).is_err());
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, [7; 4], "a write after the end went nowhere");
    }
}
