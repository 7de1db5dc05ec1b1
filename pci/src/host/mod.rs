//! What this machine's `/sys` and `/proc` say of PCI functions and of who uses them, and giving
//! functions to vfio-pci and back.

mod bind;
mod function;
mod holders;
mod root;
mod state;
#[cfg(test)]
mod tests;

pub use bind::{BindOptions, Owner, bind, unbind};
pub use function::{Companion, HostFunction, NVME_CLASS};
pub use holders::Holders;
pub use root::Root;
