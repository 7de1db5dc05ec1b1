//! The NVMe leaf: a polled-mode driver for controllers behind a PCI function.
//!
//! [`Controller::attach`] resets, enables and identifies a controller from its home core, which
//! keeps the admin queue and watches over the controller. [`Controller::namespace`] gives a
//! namespace as a [`Driver`](oxblock_engine::Driver); each core that opens it gets a queue pair
//! of its own, so that the I/O path shares nothing but one read-mostly word of health. Cores that
//! the controller has no queue pair left for share that of another core, through rings.
//!
//! The driver sees [`oxblock_pci::Function`] and memory, nothing else: it cannot tell a device
//! from a controller in software. It believes nothing that the other side says: identifiers,
//! queue heads, sizes and lists are checked before use, and a wrong one is counted
//! ([`Controller::stats`]) or refused with words.
//!
//! A controller that fails, or does not answer in time, is reset with its I/O in flight: what may
//! be sent again is, the rest fails, and requests that come meanwhile wait (`recovery`). One that
//! cannot be reset, or is gone, fails all I/O.
//!
//! Queue pairs are polled while they wait briefly between completions, and sleep on the interrupt
//! of a vector of their own where they wait long ([`InterruptMode`]; `interrupts`).
//!
//! What else a controller has (memory of its own, power states, write protection) is used where it
//! pays and tamed where it hurts (`features`); devices that are known to differ from the
//! specification are treated as they need ([`Quirks`]). What could not be used is said by
//! [`Controller::notices`].
//!
//! A graph opens namespaces by the driver's name ([`NVME`]): its nodes share a controller, which is
//! attached when the first of them is opened ([`Controllers`]).
//!
//! Controllers that are plugged in while the engine runs are told of by [`HotPlug`].
//!
//! What a controller may still write is never freed: memory of a queue goes back to its arena
//! only after the queue was deleted, or the controller is disabled or gone. Where neither can be
//! had, it is leaked on purpose.

mod admin;
mod blocking;
mod cmb;
mod commands;
mod controller;
mod controllers;
mod departure;
mod doorbell;
mod ending;
mod events;
mod features;
mod firmware;
mod guest;
mod hardware;
mod health;
mod home;
mod host_memory;
mod hotplug;
mod identify;
mod info;
mod interrupts;
mod keep_alive;
mod leaf;
mod lending;
mod looks;
mod memory;
mod namespace;
mod namespaces;
mod parking;
mod passthrough;
mod place;
mod pmr;
mod power;
mod queue_pair;
mod quirks;
mod recovery;
mod retry;
mod setup;
mod station;
mod statistics;
mod status;
#[cfg(test)]
mod tests;
mod tracker;
mod write_protect;

use std::time::Duration;

pub use controller::{Controller, ControllerStats, Identity};
pub use controllers::Controllers;
pub use events::{EventCounts, EventRecord};
pub use hardware::pci_error;
pub use hotplug::HotPlug;
pub use info::NVME;
pub use interrupts::{Coalescing, InterruptMode};
pub use passthrough::{AdminData, AdminReply, NewNamespace};
pub use place::{FunctionSpec, Functions};
pub use pmr::PersistentMemory;
pub use quirks::Quirks;

/// How a controller is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeOptions {
    /// Entries of an I/O queue, 2 to 1024; the controller's MQES bounds it too. One less can be
    /// in flight. Each entry costs a 4 KiB page for its PRP list.
    pub queue_entries: u16,
    /// I/O queue pairs to ask for; 0 asks for one for each core and namespace.
    pub io_queues: u16,
    /// Use shadow doorbells where the controller has them.
    pub shadow_doorbells: bool,
    /// Use SGLs where the controller has them and they pay.
    pub sgl: bool,
    /// Whether queue pairs wait for interrupts or poll, where the controller has interrupts.
    pub interrupt_mode: InterruptMode,
    /// How many completions the controller gathers for one interrupt; as it likes if None.
    pub coalescing: Option<Coalescing>,
    /// How long an admin command may take before the controller counts as failed, and is reset.
    pub admin_timeout: Duration,
    /// Put submission queues into the controller's own memory where it offers that. The controller
    /// then fetches a command without a way across the bus, which shortens each; but writing one
    /// costs the core more, since BARs are not cached. Off by default: a core that is busy polling
    /// loses more than a lone command gains.
    pub controller_memory: bool,
    /// Memory that a controller may ask for and keep for its own use (host memory buffer), in
    /// bytes; 0 is none. It also gets no more than a quarter of what is free in the engine's
    /// arena: give the engine a larger arena where a device without memory of its own is slow.
    pub host_memory: u64,
    /// How long a power state that an idle controller enters on its own may take to leave. None,
    /// the default, allows no such state: who polls for completions would wait for the wake-up
    /// longer than for any I/O.
    pub power_latency: Option<Duration>,
    /// Within this time the controller hears from the driver (Keep Alive Timer), and is reset if it
    /// does not answer. None, the default, is no timer: on PCI Express a controller that hangs is
    /// noticed by its registers and by commands that take too long.
    pub keep_alive: Option<Duration>,
    /// Treat the device as one with these quirks too.
    pub quirks: Quirks,
    /// Treat the device as one without these quirks, whatever is known of it.
    pub without_quirks: Quirks,
    /// How long a read, write or compare may take before it is aborted. Times of I/O commands are
    /// counted in steps of 50 ms, up to 25 minutes.
    pub io_timeout: Duration,
    /// The same for commands that may have much to do: flush, write zeroes, deallocate.
    pub slow_timeout: Duration,
    /// How long an aborted command may take to end before the controller is reset.
    pub abort_timeout: Duration,
    /// How often a command is sent again that failed, was late, or was ended by a reset that
    /// nobody asked for. Compare is never sent again.
    pub retries: u8,
}

impl Default for NvmeOptions {
    fn default() -> Self {
        Self {
            queue_entries: 256,
            io_queues: 0,
            shadow_doorbells: true,
            sgl: true,
            interrupt_mode: InterruptMode::default(),
            coalescing: None,
            admin_timeout: Duration::from_secs(60),
            controller_memory: false,
            host_memory: 128 << 20,
            power_latency: None,
            keep_alive: None,
            quirks: Quirks::empty(),
            without_quirks: Quirks::empty(),
            io_timeout: Duration::from_secs(30),
            slow_timeout: Duration::from_secs(60),
            abort_timeout: Duration::from_secs(10),
            retries: 4,
        }
    }
}
