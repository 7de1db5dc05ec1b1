//! The block graph: nodes, their children, and who may do what to them.
//!
//! [`Graph`] is the book of it, on the control plane. Every change is one transaction: it is made
//! on a copy, the rules of all nodes are asked, and only when they all hold the copy becomes the
//! graph; an error says who stands against whom, and nothing has changed.
//!
//! A graph is opened from [`NodeOptions`](crate::options::NodeOptions) with the drivers that the
//! embedder has ([`Graph::open`]). What it may open by names that stand in images is the caller's
//! [`OpenPolicy`]. What nodes are called by whoever would open the same is [`Graph::names`].
//! How I/O finds its way through it is told in
//! [`format`](crate::Format).
//!
//! A graph of [`Node`](crate::Node)s is changed while I/O goes on through [`Graph::live`]: where
//! channels lead follows the book, on all cores, in one drained section.

mod access;
mod activation;
mod blockers;
mod book;
mod cache;
mod check;
mod closing;
mod driver_info;
mod image;
mod live;
#[cfg(test)]
mod live_tests;
mod names;
mod open;
mod path;
mod permission;
mod policy;
mod recipe;
mod reopen;
mod role;
mod settings;
mod tables;
#[cfg(test)]
mod tests;

pub use access::NodeBody;
pub use blockers::OpType;
pub use book::{Graph, NewChild, Told};
pub use cache::CacheMode;
pub use driver_info::{
    ChildSpec, Constructor, DriverInfo, DriverKind, Drivers, FilenameParser, FilenamePrinter,
    Opening, PROBE_LEN, Probe,
};
pub use live::Live;
pub use names::NodeNames;
use names::Origin;
pub use path::{combine, full_backing_name, has_protocol};
pub use permission::{Access, Permissions};
pub use policy::{ImageNames, OpenPolicy};
pub use role::{ChildAsk, ChildRole, ChildRule, default_access};
pub use settings::{DetectZeroes, NodeSettings};
pub use tables::{ChildEvent, Edge, EdgeId, NodeEntry, NodeId, Parent, Root};
