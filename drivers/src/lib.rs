//! The drivers of the block graph.
//!
//! | room | drivers |
//! |---|---|
//! | [`leaf`] | [`nvme`], [`mod@file`], [`memory`], [`null`] |
//!
//! The engine knows none of them: who embeds it opens what it needs and hands the engine
//! a [`Node`](oxblock_engine::Node).
#![deny(unsafe_code)]

pub mod leaf;

pub use leaf::{file, memory, null, nvme};
