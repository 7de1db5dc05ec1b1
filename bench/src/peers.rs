//! What others reach at the same thing, to be printed beside our own figures.
//!
//! The peers' figures were measured with SPDK's own tools (`bdevperf` for the null and malloc
//! devices; `perf` of its driver against its own user-space controller), 4 KiB random reads from
//! one pinned core, on a 2-core AMD EPYC virtual machine of the kind that our own figures in
//! `bench/README.md` come from. They are given, not measured anew by each run: building SPDK
//! takes long. On another machine only the ratio of our own rows to each other says something.

use crate::report::CloneReport;
use crate::units::{format_count, format_ns};

/// One row of the comparison.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// What is measured.
    pub what: &'static str,
    /// The target's word on the command line.
    pub target: &'static str,
    /// I/Os in flight.
    pub io_depth: u32,
    /// Who the peer is.
    pub peer: &'static str,
    /// The peer's time per I/O, ns.
    pub peer_ns: f64,
    /// The time per I/O that we want to stay below, ns.
    pub goal_ns: f64,
}

const fn row(
    what: &'static str,
    target: &'static str,
    io_depth: u32,
    peer: &'static str,
    peer_ns: f64,
    goal_ns: f64,
) -> Peer {
    Peer { what, target, io_depth, peer, peer_ns, goal_ns }
}

/// 4 KiB random reads from one pinned core.
pub const PEERS: [Peer; 5] = [
    row("null leaf", "null", 32, "SPDK bdevperf, null device", 87.0, 35.0),
    row("memory leaf", "memory", 32, "SPDK bdevperf, malloc device", 746.0, 400.0),
    row("NVMe driver, software controller", "soft:null", 1, SPDK_PAIR, 1000.0 / 1.3, 1000.0 / 3.0),
    row("NVMe driver, software controller", "soft:null", 32, SPDK_PAIR, 1000.0 / 3.8, 1000.0 / 9.0),
    row(
        "NVMe driver, software controller",
        "soft:null",
        128,
        SPDK_PAIR,
        1000.0 / 6.5,
        1000.0 / 12.0,
    ),
];

const SPDK_PAIR: &str = "SPDK driver, SPDK controller";

/// The heading of the comparison.
pub fn heading() -> String {
    format!(
        "{:<34} {:>4} {:>9} {:>8} {:>8} {:>8} {:>8} {:>7} {:>8}  peer",
        "4 KiB random read, one core",
        "QD",
        "per I/O",
        "CPU/IO",
        "IOPS",
        "peer",
        "goal",
        "faster",
        "heap/IO"
    )
}

/// One line of the comparison. CPU per I/O well below the time per I/O says that the machine was
/// not ours alone.
pub fn line(peer: &Peer, ours: &CloneReport) -> String {
    let ns = ours.runtime_ns as f64 / ours.ios().max(1) as f64;
    let heap =
        ours.allocations_per_io().map_or_else(|| "?".to_owned(), |rate| format!("{rate:.3}"));
    format!(
        "{:<34} {:>4} {:>9} {:>8} {:>8} {:>8} {:>8} {:>6.1}x {:>8}  {}",
        peer.what,
        peer.io_depth,
        format_ns(ns),
        format_ns(ours.cpu_ns_per_io()),
        format_count(1e9 / ns),
        format_ns(peer.peer_ns),
        format_ns(peer.goal_ns),
        peer.peer_ns / ns,
        heap,
        peer.peer,
    )
}
