//! The software NVMe controller.
//!
//! A [`Controller`] serves namespaces over nodes of the engine, as NVMe Base Specification 2.0,
//! NVM Command Set 1.0 and PCIe Transport 1.0 say. Hosts drive it through a
//! [`Function`](oxblock_pci::Function) and cannot tell it from a device.
//!
//! | part | where |
//! |---|---|
//! | one pass of the controller's core | `service` |
//! | enable, reset, shutdown | `lifecycle` |
//! | registers and doorbells, as host threads reach them | `registers`, `doorbells`, `transport::pci` |
//! | Controller Memory Buffer, Persistent Memory Region | `bar_memory` |
//! | hosts in other processes | `transport::vfio_user` |
//! | rings and slots | `queue` |
//! | PRPs and SGLs to scatter lists | `data` |
//! | admin commands | `admin` |
//! | namespaces that come, go and change: format, sanitize | `inventory`, `maintenance`, `erase` |
//! | I/O commands | `nvm`, `namespace`, `bad_blocks` |
//! | metadata and protection information | `protection` |
//! | Host Memory Buffer | `host_buffer` |
//! | keep alive, power, coalescing: what time brings | `timers` |
//! | fault switches for tests | [`fault`] |
//!
//! It believes nothing that a host writes: entries are copied out once before they are looked
//! at, every length and index is checked, lists are walked within bounds, and memory is
//! reached through the function's IOMMU only. Commands in work are bounded by slots, which are
//! allocated with their queue; a command that finds the engine full waits, in order, and its
//! queue is fetched from no further.

#![forbid(unsafe_code)]

mod admin;
mod bad_blocks;
mod bar_memory;
mod controller;
mod data;
mod doorbells;
mod erase;
pub mod fault;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod hooks;
#[cfg(any(test, feature = "fuzz"))]
mod host;
mod host_buffer;
mod inventory;
mod lifecycle;
mod maintenance;
mod namespace;
mod nvm;
mod options;
mod protection;
mod queue;
#[cfg(any(test, feature = "fuzz"))]
mod ram;
mod registers;
mod service;
mod status;
#[cfg(test)]
mod tests;
mod timers;
mod transport;

pub use controller::Controller;
pub use options::{ControllerOptions, NamespaceOptions};
pub use transport::vfio_user::{ClientEvent, VfioUserOptions, VfioUserServer};
