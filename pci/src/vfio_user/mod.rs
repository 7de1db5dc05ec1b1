//! vfio-user: a PCI function in another process.
//!
//! Client and server speak over a UNIX socket. The client lends its memory by passing the files
//! behind it; what the server lends of its BARs, the client maps; the rest of the registers is
//! read and written by messages, and interrupts are eventfds. The protocol is that of
//! libvfio-user, version 0.1.
//!
//! | part | where |
//! |---|---|
//! | messages as bytes, without input or output | [`message`], `capabilities` |
//! | messages and descriptors over a socket | `socket` |
//! | the client, a [`Function`](crate::Function) | [`VfioUserFunction`] |
//! | the server of a [`SoftFunction`](crate::soft::SoftFunction) | [`Session`], [`serve`] |
//! | arbitrary bytes against both | `fuzz` |
//!
//! Neither side trusts the other. A message, a descriptor or an offset that is wrong costs its
//! sender an error or the connection; a client can slow down or hurt nobody but itself, and a
//! server that is gone, or silent for too long, makes the function read as all ones.

mod capabilities;
mod client;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod message;
mod server;
mod socket;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use client::{VfioUserFunction, VfioUserOptions};
pub use server::{Ended, Session, SessionOptions, Step, refuse, serve};

/// The socket that a path names: the path, or `cntrl` in it where it is a folder, as SPDK has it.
#[must_use]
pub fn socket_path(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("cntrl") } else { path.to_owned() }
}
