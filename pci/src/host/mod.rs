//! What this machine's `/sys` and `/proc` say of PCI functions and of who uses them.

mod holders;
mod root;

pub use holders::Holders;
pub use root::Root;
