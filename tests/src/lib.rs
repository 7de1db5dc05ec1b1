//! Tests over everything: what several test binaries share.
#![deny(unsafe_code)]

pub mod conformance;
pub mod exercise;
pub mod late;
pub mod random;
pub mod rows;
