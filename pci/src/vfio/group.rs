//! An IOMMU group: functions that the IOMMU cannot tell apart, handed over together.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::VFIO_GROUP_FLAGS_VIABLE;

use super::container::Container;
use super::{advice, ioctl};
use crate::host::Root;
use crate::{Address, PciError};

/// An open group in its container. The kernel lets it be opened once at a time.
pub(super) struct Group {
    /// Closed before the container is.
    file: File,
    container: Arc<Container>,
    number: String,
}

impl Group {
    /// Opens a group, and puts it into one of the containers, or into a new one if none takes it.
    pub(super) fn open(
        root: &Root,
        number: &str,
        containers: &[Arc<Container>],
    ) -> Result<Group, PciError> {
        let path = format!("/dev/vfio/{number}");
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(|error| advice::open_group(&path, error))?;
        let flags = ioctl::group_flags(file.as_fd())
            .map_err(|error| PciError::io(format!("{path}: asking for its status"), error))?;
        if flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(advice::not_viable(root, number));
        }
        let adopts = |container: &&Arc<Container>| container.adopt(&file, false).is_ok();
        if let Some(container) = containers.iter().find(adopts) {
            return Ok(Group { container: container.clone(), file, number: number.into() });
        }
        let container = Container::open()?;
        container.adopt(&file, true).map_err(|error| advice::adopt(&path, error))?;
        Ok(Group { file, container: Arc::new(container), number: number.into() })
    }

    /// Its number, as the kernel counts.
    pub(super) fn number(&self) -> &str {
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
            .map_err(|error| advice::open_device(address, &self.number, error))
    }
}
