//! NVMe between two processes, over vfio-user.

mod foreign_client;
mod foreign_server;
mod lives;
mod server;
mod suite;
