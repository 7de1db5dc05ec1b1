//! An IOMMU group: functions that the IOMMU cannot tell apart, handed over together.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::VFIO_GROUP_FLAGS_VIABLE;

use super::container::{self, Container};
use super::{advice, ioctl};
use crate::host::Root;
use crate::{Address, PciError};

/// An open group in its container. The kernel lets it be opened once at a time.
pub(super) struct Group {
    /// Closed before the container is.
    file: File,
    container: Arc<Container>,
    number: Number,
}

/// A group as the kernel names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Number {
    /// Its number.
    pub(super) number: String,
    /// It is no group of an IOMMU: VFIO made it up where there is none.
    pub(super) no_iommu: bool,
}

impl Group {
    /// Opens a group, and puts it into one of the containers, or into a new one if none takes it.
    pub(super) fn open(
        root: &Root,
        number: &Number,
        containers: &[Arc<Container>],
    ) -> Result<Group, PciError> {
        let prefix = if number.no_iommu { "noiommu-" } else { "" };
        let path = format!("/dev/vfio/{prefix}{}", number.number);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(|error| advice::open_group(&path, error))?;
        let flags = ioctl::group_flags(file.as_fd())
            .map_err(|error| PciError::io(format!("{path}: asking for its status"), error))?;
        if flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(advice::not_viable(root, &number.number));
        }
        let (number, no_iommu) = (number.clone(), number.no_iommu);
        let adopts = |container: &&Arc<Container>| {
            let is_alike = container.translation().is_no_iommu() == no_iommu;
            is_alike && container::adopt(container, &file, false).is_ok()
        };
        if let Some(container) = containers.iter().find(adopts) {
            return Ok(Group { container: container.clone(), file, number });
        }
        let container = container::open(no_iommu)?;
        container::adopt(&container, &file, true).map_err(|error| advice::adopt(&path, error))?;
        Ok(Group { file, container: Arc::new(container), number })
    }

    /// What the kernel calls it.
    pub(super) fn number(&self) -> &Number {
        &self.number
    }

    /// The address space that it lives in.
    pub(super) fn container(&self) -> &Arc<Container> {
        &self.container
    }

    /// Opens one of its functions.
    pub(super) fn device(&self, address: Address) -> Result<OwnedFd, PciError> {
        let name = CString::new(address.to_string()).unwrap_or_default();
        ioctl::device_fd(self.file.as_fd(), &name)
            .map_err(|error| advice::open_device(address, &self.number.number, error))
    }
}
