//! An open device: its file, and what keeps it open.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vfio_bindings::bindings::vfio::vfio_region_info;

use super::capability::{self, RegionCapabilities};
use super::ioctl;
use crate::{Address, PciError, PciErrorKind};

/// The file of one device. Mapped BARs, configuration space and interrupts hold it; it holds its
/// group, and so its container, which close after it.
pub(super) struct Device {
    file: File,
    address: Address,
    /// Memory decoding, from the command register: the kernel answers an access to a mapped BAR
    /// without it by SIGBUS, where a bus would answer with all ones.
    decodes: AtomicBool,
    /// The group, or the iommufd.
    _keeper: Arc<dyn Any + Send + Sync>,
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
        let decodes = AtomicBool::new(false);
        Arc::new(Device { file: File::from(fd), address, decodes, _keeper: keeper })
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
        if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EIO)) {
            let text =
                format!("{}: {what}: {error}; it was removed, or is not powered", self.address);
            return PciError::new(PciErrorKind::Gone, text);
        }
        PciError::io(format!("{}: {what}", self.address), error)
    }
}
