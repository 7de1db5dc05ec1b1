//! What this machine's `/sys` and `/proc` say of PCI functions and of who uses them, and giving
//! functions to vfio-pci and back; and what comes, goes and changes hands meanwhile.

mod bind;
mod function;
mod holders;
mod monitor;
mod root;
mod state;
#[cfg(test)]
mod tests;
mod uevent;

pub use bind::{BindOptions, Owner, bind, unbind};
pub use function::{Companion, HostFunction, NVME_CLASS, is_vfio};
pub use holders::Holders;
pub use monitor::{BusFunction, Change, ChangeKind, Monitor, MonitorOptions, Wait};
pub use root::Root;
