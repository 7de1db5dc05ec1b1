//! NVMe on the wire: what a host and a controller both have to agree on, and nothing else.
//!
//! Shapes and numbers follow the NVM Express Base Specification 2.0, the NVM Command Set
//! Specification 1.0 and the PCIe Transport Specification 1.0. Fields keep the names of the
//! specification. The driver and the software controller meet here, so that neither needs to
//! know the other, and so that both ends of a ring can be model-checked together.
//!
//! | module | contents |
//! |---|---|
//! | [`regs`] | controller registers and doorbell offsets |
//! | [`cmb`], [`pmr`] | registers of memory that a controller has |
//! | [`command`], [`completion`], [`status`] | queue entries |
//! | [`opcode`], [`feature`], [`event`], [`firmware`], [`sanitize`] | numbers |
//! | [`identify`], [`log`], [`dsm`], [`copy`] | data structures |
//! | [`prp`], [`sgl`] | data pointers: build (host) and walk (controller) |
//! | [`queue`] | submission and completion rings, both ends; shadow doorbells |
//!
//! Nothing here trusts the other side: a walk is bounded, an index is checked, a wrong value is
//! an error or a count.

#![forbid(unsafe_code)]

pub mod cmb;
pub mod command;
pub mod completion;
pub mod copy;
pub mod dsm;
pub mod event;
pub mod feature;
pub mod firmware;
pub mod identify;
pub mod log;
pub mod opcode;
pub mod pmr;
pub mod prp;
pub mod queue;
pub mod regs;
pub mod sanitize;
pub mod sgl;
pub mod status;

pub use command::Command;
pub use completion::Completion;
pub use status::Status;

/// The namespace ID that means every namespace (Base 2.0, 3.2.1).
pub const NSID_ALL: u32 = 0xffff_ffff;

/// Bytes of an identify data structure, and of the memory page this project gives a controller.
pub const PAGE_BYTES: usize = 4096;
