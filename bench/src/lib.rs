//! The fio-style harness as a library.
#![forbid(unsafe_code)]

pub mod options;
pub mod pattern;
pub mod stats;
pub mod units;
pub mod verify;
