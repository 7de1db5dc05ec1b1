//! The controller, driven like a host drives it.

mod admin;
mod events;
mod faults;
mod hostile;
mod io;
mod lifecycle;
mod manage;
mod memory;
mod power;
mod protection;
mod shadow;
mod threads;

use std::sync::Arc;

use crate::ram::Ram;
use crate::{ControllerOptions, NamespaceOptions};

/// Blocks of each namespace.
const BLOCKS: u64 = 256;

/// A namespace of 512 byte blocks and one of 4096, and what they lie on.
fn options() -> (ControllerOptions, Arc<Ram>, Arc<Ram>) {
    let (small, large) = (Ram::new(BLOCKS * 512, 512), Ram::new(BLOCKS * 4096, 4096));
    let namespaces = vec![
        NamespaceOptions::new(small.node("small"), 512),
        NamespaceOptions::new(large.node("large"), 4096),
    ];
    let options = ControllerOptions {
        namespaces,
        max_namespaces: 2,
        max_io_queues: 4,
        mdts: 5,
        ..ControllerOptions::default()
    };
    (options, small, large)
}
