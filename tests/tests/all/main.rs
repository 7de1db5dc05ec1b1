//! Tests over all rooms of the house, in one binary.
#![deny(unsafe_code)]

mod conformance;
mod cow;
mod devices;
mod engines;
mod faults;
mod features;
mod files;
mod handover;
mod hotplug;
mod interrupts;
mod names;
mod nodes;
mod options;
mod registered;
mod reopen;
mod resets;
mod rows;
mod seeds;
mod sharing;
mod support;
mod vfio_user;
