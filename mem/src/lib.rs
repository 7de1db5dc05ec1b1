//! Memory that a device or another core may touch.
