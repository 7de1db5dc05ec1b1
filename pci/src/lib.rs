//! PCI functions: registers, IOMMU, interrupts, reset.
//!
//! A driver sees a [`Function`] and nothing else: its configuration space, its [`Bar`]s
//! through checked registers ([`Reg32`], [`Reg64`]), the IOMMU that turns its DMA addresses
//! into memory, its interrupt vectors as [`EventFd`]s, and a reset. Who answers behind the
//! trait, a device that the kernel handed over, a controller in software ([`soft`]) or one in
//! another process ([`vfio_user`]), cannot be told from above.
//!
//! This crate is one of the two floors that hold unsafe code; all of it is in the back ends
//! and in [`EventFd`].

mod address;
mod bar;
mod config;
mod error;
mod event;
mod function;
pub mod host;
mod interrupts;
pub mod soft;
pub mod vfio;
pub mod vfio_user;

pub use address::Address;
pub use bar::{Bar, Reg32, Reg64};
pub use config::{
    Capability, CapabilityId, Command, ConfigSpace, Ids, bar_address, capabilities, disable, enable,
};
pub use error::{PciError, PciErrorKind};
pub use event::{EventFd, Events};
pub use function::{Delays, Function};
pub use interrupts::Interrupts;
