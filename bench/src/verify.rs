//! Blocks that can be checked: what fio's `verify` writes here, how a reader names what is wrong,
//! and the log of what was written.
//!
//! With a method that has a header, each `verify_interval` of a block begins with one (or has it
//! at `verify_offset`) of [`HEADER_LEN`] bytes, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic, `oxv2` |
//! | 4 | 4 | length of the interval in bytes, header included |
//! | 8 | 8 | its byte offset in the file |
//! | 16 | 8 | seed of the job (`randseed`) |
//! | 24 | 8 | stamp of the run, another one each time |
//! | 32 | 4 | which write of this place by this run it is of, from 1 |
//! | 36 | 1 | number of the method |
//! | 37 | 1 | 0 |
//! | 38 | 2 | number of the file among the job's, from 0 |
//! | 40 | 64 | digest of what follows the header, then zeroes |
//! | 104 | 4 | 0 |
//! | 108 | 4 | CRC-32C (Castagnoli) of the header before this field |
//!
//! What follows is `verify_pattern`, or a pseudo-random stream of seed, stamp, file, offset and
//! number of the write: all of it can be made again, so that a mismatch is named to the byte, and a block
//! that an earlier write left there is told from the last one. A run that checks what an earlier
//! one wrote, without its log, takes the stamp that most blocks carry.
//!
//! # What is known
//! The log of a job has a word for each interval of its range: which write of it was the last that
//! completed, and which one has begun. It is a table in memory, or in a file
//! (`verify_state_save`), where it is true at any instant: a write that was in flight when the
//! process was killed may be found old or new, or torn between the target's own blocks; all
//! others must be there. A run with `verify_only` and without that file makes its table by going
//! through the job's steps again without doing them.

mod block;
mod checker;
mod finding;
mod log;
mod method;
mod pattern;
mod shared;
mod state;
#[cfg(test)]
mod tests;

pub use block::{HEADER_LEN, Recipe, Write};
pub use checker::Checker;
pub use finding::{Finding, Holding, Mismatch};
pub use log::Expected;
pub(crate) use log::{Place, WriteLog};
pub use method::Method;
pub use pattern::Pattern;
pub(crate) use shared::Verification;
pub(crate) use state::Identity;
