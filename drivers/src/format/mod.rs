//! Formats: nodes that say where the bytes of an image live.

pub mod cow;
pub mod raw;
