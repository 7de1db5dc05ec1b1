//! Tests over all rooms of the house, in one binary.
#![forbid(unsafe_code)]

mod conformance;
mod devices;
mod engines;
mod files;
mod random;
