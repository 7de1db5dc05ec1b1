//! The drivers of the block graph.
//!
//! | room | drivers |
//! |---|---|
//! | [`leaf`] | [`nvme`], [`mod@file`], [`memory`], [`null`] |
//! | [`format`](mod@format) | [`raw`] |
//!
//! The engine knows none of them: who embeds it opens what it needs and hands the engine
//! a [`Node`](oxblock_engine::Node), or passes [`DRIVERS`] and lets nodes be opened from their
//! options.
#![deny(unsafe_code)]

pub mod format;
pub mod leaf;

use oxblock_engine::graph::Drivers;

/// The drivers that nodes can be opened with by name.
pub const DRIVERS: Drivers = Drivers::new(&[
    &raw::RAW,
    &file::FILE,
    &file::HOST_DEVICE,
    &null::NULL_CO,
    &null::NULL_AIO,
    &memory::MEMORY,
    &nvme::NVME,
]);

pub use format::raw;

pub use leaf::{file, memory, null, nvme};
