//! The path of one I/O: reactors, slots, queues.
//!
//! This page is a tour. It builds a device, does I/O on it from an event loop, then from
//! tasks, then from two cores. Everything shown runs as a test.
//!
//! # Two planes
//! A [`Node`] is a named device. Opening, closing and creating things is the *control
//! plane*: async functions that may allocate and wait. Reading and writing is the *data
//! plane*: a [`Channel`] is one user's handle on a node on one core; it takes operations
//! and gives completions, and neither allocates, locks nor blocks.
//!
//! ```text
//! Op --submit--> slot of the core --fragments--> Queue of the leaf --> device
//!    <-- poll -- slot of the core <-- done ----- Queue of the leaf <--
//! ```
//!
//! An [`Op`] owns its buffers from submit to completion. They come back with the
//! [`Completion`]; if nobody waits any more, they go back to their pool once the device is
//! done with them, and not before.
//!
//! # A leaf
//! A driver has two halves: [`Driver`] for control, and a [`Queue`] for each core that
//! uses it. This one is a device of zeroes that takes no writes:
//!
//! ```
//! use oxblock_engine::*;
//!
//! struct Zeroes;
//!
//! impl Driver for Zeroes {
//!     fn name(&self) -> &'static str { "zeroes" }
//!     fn limits(&self) -> Limits {
//!         Limits { read_only: true, ..Limits::new(1 << 20, 512) }
//!     }
//!     fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
//!         Box::pin(async { Ok(Box::new(ZeroesQueue) as Box<dyn Queue>) })
//!     }
//!     fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
//!         Box::pin(async { Ok(()) })
//!     }
//! }
//!
//! struct ZeroesQueue;
//!
//! impl Queue for ZeroesQueue {
//!     fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
//!         request.data.fill(0);
//!         pass.done(request.token, Ok(())); // a device would complete it in a later poll
//!         Ok(())
//!     }
//!     fn kick(&mut self, _: &mut Pass) {}
//!     fn poll(&mut self, _: &mut Pass) -> usize { 0 }
//!     fn cancel(&mut self, _: Token) {}
//!     fn in_flight(&self) -> usize { 0 }
//!     fn sleep(&mut self) -> Sleep<'_> { Sleep::Woken }
//!     fn quiesce(&mut self, _: &mut Pass) -> bool { true }
//! }
//! # fn main() -> Result<(), Error> {
//!
//! // A reactor on this thread, driven by this thread.
//! let reactor = Reactor::new(Options::default())?;
//! let node = Node::new("zeroes0", Box::new(Zeroes));
//! let core = reactor.core().clone();
//! let channel = reactor.block_on({
//!     let node = node.clone();
//!     async move { core.open(&node).await }
//! })??;
//!
//! // One operation, submitted and polled for.
//! let buf = reactor.core().arena().alloc(4096, 4096)?;
//! channel.submit(Op::read(8192, buf).tag(7)).expect("a free slot");
//! let mut seen = 0;
//! while seen == 0 {
//!     reactor.poll();
//!     seen = channel.poll(|completion| {
//!         assert_eq!(completion.op.tag, 7);
//!         assert!(completion.result.is_ok());
//!         assert!(completion.op.data.whole().is_all(0));
//!     });
//! }
//!
//! // The same from a task; errors say what failed, and where.
//! let buf = reactor.core().arena().alloc(4096, 4096)?;
//! let error = reactor.block_on(async move { channel.write(0, buf).await.1.unwrap_err() })?;
//! assert_eq!(error.kind(), ErrorKind::ReadOnly);
//! assert_eq!(error.to_string(), "zeroes0: write: read-only at offset 0: the node takes no writes");
//! reactor.shutdown()
//! # }
//! ```
//!
//! # A format
//! A node may stand on others: its [`Format`] says where each range of it lives, and the engine
//! goes there. Nodes of both kinds are opened by name from options, see [`graph`]:
//!
//! ```
//! use oxblock_engine::*;
//! use std::sync::Arc;
//!
//! /// Leaves out the first 4 KiB of its child.
//! struct Behind;
//!
//! impl Format for Behind {
//!     fn name(&self) -> &'static str { "behind" }
//!     fn limits(&self, children: &[Arc<Limits>]) -> Limits {
//!         let file = children[0].as_ref().clone();
//!         Limits { length: file.length - 4096, ..file }
//!     }
//!     fn map(&self, offset: u64, len: u64, _: Intent) -> Extent {
//!         Extent::Data { child: 0, offset: offset + 4096, len }
//!     }
//!     fn flushes(&self) -> &[usize] { &[0] }
//!     fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
//!         Box::pin(async { Ok(()) })
//!     }
//! }
//!
//! let put_over = |file: Arc<Node>| {
//!     Node::with_body("top0", Body::Over(Arc::new(Behind), vec![file]), false)
//! };
//! ```
//!
//! # Limits
//! A leaf says in its [`Limits`] what one request may ask, and sees nothing else: the
//! engine splits what is too long or crosses a boundary, takes a bounce buffer for memory
//! that the device cannot reach, follows a write with a flush where FUA is missing, and
//! writes zeroes where the device cannot. What no splitting can mend (a range beyond the
//! end, half a block) completes with a [`Fault`].
//!
//! # Full
//! Nothing grows without bound. With all slots of a core in use, [`Channel::submit`] hands
//! the operation back as [`Full`]; a future waits its turn instead. A queue that is
//! [`Busy`] keeps later requests of its node waiting in order, in their slots.
//!
//! # Many cores
//! An [`Engine`] runs a reactor on each of its threads. Each opens its own channel to a
//! node, with its own queue. Control crosses cores as messages:
//!
//! ```
//! use oxblock_engine::*;
//!
//! # fn main() -> Result<(), Error> {
//! let engine = Engine::with_cores(2, Options::default())?;
//! let sum = engine.run(0, |core| async move {
//!     let there = core.call(1, |other| async move { other.id() }).await?;
//!     Ok::<usize, Error>(core.id() + there)
//! })??;
//! assert_eq!(sum, 1);
//! engine.shutdown()
//! # }
//! ```
//!
//! # Changes, and who hears of them
//! A device may grow, shrink, turn read-only or go while its nodes are open. Its driver has the
//! node [refreshed](Core::refresh), and every core keeps to the new limits before that returns; a
//! node whose device is no more is [withdrawn](Core::withdraw), and fails everything from then
//! on. [`Core::events`] and [`Engine::events`] tell an embedder of this, and of devices that come,
//! go, warn and are reset. A subscription holds back nobody: a reader that is too slow loses the
//! oldest events, and can tell how many.
//!
//! ```
//! # use oxblock_engine::*;
//! # use std::sync::Arc;
//! # use std::sync::atomic::{AtomicU64, Ordering};
//! # struct Growing(Arc<AtomicU64>);
//! # impl Driver for Growing {
//! #     fn name(&self) -> &'static str { "growing" }
//! #     fn limits(&self) -> Limits { Limits::new(self.0.load(Ordering::Relaxed), 512) }
//! #     fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
//! #         Box::pin(async { Err(Error::new(ErrorKind::NotSupported, "no I/O here")) })
//! #     }
//! #     fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
//! #         Box::pin(async { Ok(()) })
//! #     }
//! # }
//! # fn main() -> Result<(), Error> {
//! # let length = Arc::new(AtomicU64::new(1 << 20));
//! # let node = Node::new("disk0", Box::new(Growing(length.clone())));
//! let reactor = Reactor::new(Options::default())?;
//! let mut events = reactor.core().events();
//! length.store(2 << 20, Ordering::Relaxed); // somebody resizes the device, and its driver hears
//! let core = reactor.core().clone();
//! let same = node.clone();
//! reactor.block_on(async move { core.refresh(&same).await })??;
//! let event = events.try_next().expect("an event");
//! assert_eq!(event.kind, EventKind::NodeResized { from: 1 << 20, to: 2 << 20 });
//! assert_eq!(event.to_string(), "disk0: grew from 1048576 to 2097152 bytes");
//! assert_eq!(node.limits().length, 2 << 20);
//! # reactor.shutdown()
//! # }
//! ```
//!
//! # Sleep and time
//! A reactor with nothing to do polls on for a moment, then sleeps on an eventfd
//! ([`PollMode`]). It asks each queue and each [`Poller`] first ([`Sleep`]); a device that
//! must be polled keeps it awake while requests are in flight.
//!
//! Time and random numbers come from the [`Core`]. A [`Simulation`] runs a whole engine on
//! one thread, on a clock of its own, in an order that follows from a seed: the same seed
//! gives the same run.
//!
//! # The end
//! [`Engine::shutdown`] closes in the reverse order of opening, each node after its I/O in
//! flight. A panic in a task or a poller fails that engine and no other: its devices are
//! stopped, its memory is freed only where they stopped, and everybody who waits gets an
//! error with the reason.
#![forbid(unsafe_code)]

mod change;
mod channel;
mod clock;
mod close;
mod core;
mod drain;
mod driver;
mod engine;
mod error;
mod events;
mod format;
pub mod graph;
mod io;
mod limits;
mod node;
mod op;
pub mod options;
mod plan;
mod poller;
mod reactor;
mod remote;
mod route;
mod shared;
mod simulation;
mod slot;
mod slow;
mod stats;
mod task;
mod timer;
mod view;
mod watched;

pub use self::core::Core;
pub use channel::{Channel, Run};
pub use clock::{ClockSource, SimulatedClock};
pub use drain::{Drain, DrainedSource, Scope, SourceGuard};
pub use driver::{Busy, Driver, LocalFuture, Pass, Queue, Request, Sleep, Token};
pub use engine::Engine;
pub use error::{Error, ErrorKind, Fault, Source};
pub use events::{Event, EventKind, Events};
pub use format::{BackingFile, Body, Extent, Format, Intent};
pub use limits::{Limits, MemoryRule};
pub use node::{Node, Restrictions, View};
pub use op::{Completion, Full, InPlace, Op, OpFlags, OpId, OpKind};
pub use poller::{Poller, PollerId};
pub use reactor::{Options, PollMode, Reactor};
pub use remote::{CoreWaker, Remote, RemoteHandle};
pub use simulation::Simulation;
pub use slow::{Nested, SlowDone, SlowRequest, SlowRequests, Waits};
pub use stats::{CoreStats, Counter, CounterKind, KindStats, LeafStats};
pub use task::JoinHandle;
pub use timer::SleepUntil;

#[cfg(test)]
mod tests;
