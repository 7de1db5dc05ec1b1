//! The engine over a leaf that is as awkward as its limits allow.

mod changes;
mod drains;
mod in_place;
pub mod leaf;
mod lifecycle;
pub mod live;
mod requests;
mod restrictions;
pub mod routes;
mod schedules;
mod slow;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use leaf::{Awkward, AwkwardOptions};
use oxblock_mem::{ArenaOptions, Buf, PagePolicy};

use crate::{Core, Node, Options, Reactor};

/// Ends after more pauses than any test needs: who still waits then waits for ever. Simulated time
/// leaps to the next deadline where tasks only yield, so that is never far.
pub async fn patience(core: &Core) {
    for _ in 0..100_000 {
        core.sleep(Duration::from_micros(1)).await;
    }
}

pub fn options(slots: usize) -> Options {
    let arena =
        ArenaOptions { size: 8 << 20, pages: PagePolicy::Unlocked, ..ArenaOptions::default() };
    Options { slots, arena, ..Options::default() }
}

fn reactor(slots: usize) -> Reactor {
    Reactor::new(options(slots)).expect("a reactor")
}

fn node(options: AwkwardOptions) -> Arc<Node> {
    Node::new("disk", Box::new(Awkward::new(options)))
}

pub fn buf(core: &Core, bytes: &[u8]) -> Buf {
    let mut buf = core.arena().alloc(bytes.len(), 8).expect("memory");
    buf.write_at(0, bytes);
    buf
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8 ^ (i as u8).wrapping_mul(31) ^ seed).collect()
}
