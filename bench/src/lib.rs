//! The fio-style harness as a library.
//!
//! A job is described in fio's words ([`options`]), runs against any node of an engine ([`run`]),
//! and ends in a [`report::Report`], which prints for a person ([`text`]) or as fio 3's JSON
//! ([`json`]) or as one page of HTML ([`html`]). The command `oxblock bench` is this crate behind a command line.
//!
//! ```
//! use std::sync::{Arc, atomic::AtomicBool};
//! use oxblock_bench::{options::JobOptions, run::{Session, run}, text};
//! use oxblock_drivers::null::{self, NullOptions};
//! use oxblock_engine::{Engine, Error, Node, Options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut job = JobOptions::default();
//! for (name, value) in [("rw", "randread"), ("iodepth", "32"), ("runtime", "100ms")] {
//!     job.set(name, value)?;
//! }
//! let engine = Engine::with_cores(1, Options::default())?;
//! let node = Node::new("disk", null::open(NullOptions::default())?);
//! let session = Session {
//!     engine: &engine,
//!     node: &node,
//!     target: "a null device",
//!     cores: &[0],
//!     serving: &[],
//!     stop: &Arc::new(AtomicBool::new(false)),
//! };
//! let report = run(&session, job, &mut |now| eprintln!("{:.0} %", now.done * 100.0))?;
//! println!("{}", text::report(&report));
//! assert!(report.is_good() && report.group().read.ios > 0);
//! # Ok(engine.shutdown()?)
//! # }
//! ```
//!
//! # The path of one I/O
//! [`pattern`] names a block and a direction; the [`job`] fills a resting operation in, stamps it
//! and submits it to its channel; the engine brings it back in a later turn, where the job takes
//! one more stamp for all that came back, records them in [`stats`], and starts over. Nothing on
//! that path allocates, locks, divides or calls the system.
#![forbid(unsafe_code)]

pub mod bins;
pub mod compare;
mod generate;
pub mod html;
pub mod job;
pub mod jobfile;
pub mod json;
mod log;
pub mod machine;
pub mod options;
pub mod pattern;
pub mod peers;
pub mod report;
pub mod run;
pub mod series;
mod serving;
mod shares;
pub mod stats;
pub mod steady;
pub mod terse;
pub mod text;
pub mod units;
pub mod verify;
