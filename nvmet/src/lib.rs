//! The software NVMe controller.
