//! The fio-style harness as a library.
#![forbid(unsafe_code)]

pub mod job;
pub mod json;
pub mod options;
pub mod pattern;
pub mod peers;
pub mod report;
pub mod run;
mod serving;
pub mod stats;
pub mod text;
pub mod units;
pub mod verify;
