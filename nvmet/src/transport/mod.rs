//! How hosts reach a controller.
//!
//! A transport brings commands, moves their data and takes completions away; what a command
//! means is decided in [`crate::admin`] and [`crate::nvm`], which know no transport. There is
//! one so far: a PCI function in software, which serves this process, and through vfio-user
//! others.

pub(crate) mod pci;
pub(crate) mod vfio_user;
