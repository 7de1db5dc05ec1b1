//! NVMe between two processes, over vfio-user.

mod foreign;
mod lives;
mod server;
mod suite;
