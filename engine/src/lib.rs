//! The path of one I/O: reactors, slots, queues.
#![forbid(unsafe_code)]

mod channel;
mod clock;
mod close;
mod core;
mod driver;
mod engine;
mod error;
mod io;
mod limits;
mod node;
mod op;
mod plan;
mod poller;
mod reactor;
mod remote;
mod shared;
mod simulation;
mod slot;
mod stats;
mod task;
mod timer;

pub use self::core::Core;
pub use channel::{Channel, Run};
pub use clock::{ClockSource, SimulatedClock};
pub use driver::{Busy, Driver, LocalFuture, Pass, Queue, Request, Sleep, Token};
pub use engine::Engine;
pub use error::{Error, ErrorKind, Fault, Source};
pub use limits::{Limits, MemoryRule};
pub use node::Node;
pub use op::{Completion, Full, Op, OpFlags, OpId, OpKind};
pub use poller::{Poller, PollerId};
pub use reactor::{Options, PollMode, Reactor};
pub use remote::{CoreWaker, Remote, RemoteHandle};
pub use simulation::Simulation;
pub use stats::{CoreStats, KindStats, LeafStats};
pub use task::JoinHandle;
pub use timer::SleepUntil;

#[cfg(test)]
mod tests;
