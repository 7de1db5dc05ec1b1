//! Memory that a device or another core may touch.
//!
//! One [`Memory`] holds every byte that the devices of one engine may reach: [`Arena`]s, which
//! this crate maps, and caller-owned memory that was registered. Both are [`Region`]s. A device
//! is attached through its [`DmaMapper`] and then sees every region at one and the same I/O
//! virtual address (IOVA). Commands name memory through [`Buf`]s, alone or in an [`IoVector`];
//! a [`Pool`] hands them out on the I/O path without allocating, locking or blocking.
//!
//! ```
//! use oxblock_mem::{ArenaOptions, IoVector, Memory, Pool};
//!
//! let memory = Memory::new();
//! let arena = memory.add_arena(&ArenaOptions::new(1 << 20))?;
//! if let Some(notice) = arena.notice() {
//!     eprintln!("{notice}");
//! }
//! let pool = Pool::new(&arena, 4096, 64)?;
//! let mut data = IoVector::from(pool.take().expect("64 are free"));
//! data.push(pool.take().expect("63 are free"));
//! data.write_at(4090, b"across both");
//! let pieces: Vec<usize> = data.view(4090, 11).pieces().map(|piece| piece.len()).collect();
//! assert_eq!(pieces, [6, 5]);
//! # Ok::<(), oxblock_mem::MemError>(())
//! ```
//!
//! # Invariants
//!
//! This crate is one of the two that hold unsafe code. Its `SAFETY` comments cite these:
//!
//! - **LIVE**: bytes stay mapped while anything names them. A `Buf` counts in its header, the
//!   header keeps its region allocated, and only the drop of a region's last owner unmaps it.
//!   Registered memory belongs to the caller, who may unmap it only after
//!   [`Region::try_unregister`] succeeded: no `Buf`, handle or mapping is left then.
//! - **OWNED**: two private `Buf`s never overlap. Arenas hand out disjoint ranges, pools disjoint
//!   slots, [`Buf::split_off`] disjoint halves.
//! - **SHARED**: bytes that others may write at any time (registered memory, another process's,
//!   a device's view of an arena) are never a `&[u8]`. They are copied by calls that the compiler
//!   cannot see into (module `raw`) or reached as atomics ([`Cells`]).
//! - **CELL**: bytes inside an [`IoVector`] are like a `Cell`: written through `&`, never lent as
//!   a slice while shared, and not reachable from two threads (`IoVector`, [`Segment`], [`View`]
//!   and [`Piece`] are not `Sync`).
//! - **COUNT**: a header whose count is one belongs to the holder of that `Buf` alone, because
//!   only a holder makes further `Buf`s of it. Headers of regions and lenders are the exception.
//! - **HOME**: the plain free list of a pool, and the plain count of a lender, are touched only
//!   by the thread that used them first. Every thread has a number that is never used again.

#![warn(missing_docs)]

mod arena;
mod buf;
mod bytes;
mod cells;
mod contiguous;
pub mod counting_alloc;
pub mod cycles;
mod error;
mod extents;
mod foreign;
mod guarded;
mod home;
mod iova;
mod iovector;
mod lender;
mod map;
mod mapped_words;
mod memory;
mod options;
mod pages;
mod parking;
mod pool;
mod raw;
mod region;
mod returns;
mod sigbus;
pub mod spsc;
mod sync;
pub mod thread_usage;
mod view;

pub use arena::Arena;
pub use buf::Buf;
pub use bytes::SharedBytes;
pub use cells::Cells;
pub use error::MemError;
pub use guarded::{Guarded, Loan};
pub use iovector::{IoVector, Segment};
pub use lender::Lender;
pub use mapped_words::MappedWords;
pub use memory::{Attachment, DmaMapper, Memory};
pub use options::{ArenaOptions, ArenaSource, PagePolicy, PageSize};
pub use parking::Parking;
pub use pool::Pool;
pub use region::Region;
pub use view::{Piece, Pieces, View};
