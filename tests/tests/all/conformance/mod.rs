//! What every node owes its users, whatever stands behind it: one suite, run over each.
//!
//! A [`Subject`] says how to open a node and what to expect of it. Every case talks to the
//! node through a [`Disk`], which keeps a copy of what the node must hold (the oracle) and
//! compares all of it at the end, so that a stray byte anywhere is found.

mod cases;
mod disk;
mod leaves;
mod nvme;
mod scatter;

use std::any::Any;
use std::future::Future;
use std::sync::Arc;

use oxblock_engine::{Core, Engine, LocalFuture, Node, Options};
use oxblock_mem::ArenaOptions;

pub use disk::Disk;

/// A kind of node, and how to open one.
pub struct Subject {
    /// What reads give.
    pub contents: Contents,
    /// Opens a fresh node on the core that calls.
    pub open: fn(Core) -> LocalFuture<'static, Fixture>,
}

/// What a node keeps of what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Everything, and zeroes before the first write.
    Kept,
    /// Nothing: it reads as zeroes.
    Zeroes,
    /// Nothing: a read leaves its buffers as they are.
    Nothing,
}

/// An open node, and what must live as long as it does.
pub struct Fixture {
    /// The node.
    pub node: Arc<Node>,
    /// Temporary files, controllers and the like; dropped after the engine's shutdown.
    pub hold: Vec<Box<dyn Any + Send>>,
}

impl Fixture {
    /// A node that needs nothing else.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, hold: Vec::new() }
    }
}

/// Runs a case over a fresh node on a fresh engine of two cores with `slots` slots each.
pub fn run_with_slots<F>(subject: Subject, slots: usize, case: fn(Disk) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let options = Options { slots, arena: ArenaOptions::new(32 << 20), ..Options::default() };
    let engine = Engine::with_cores(2, options).expect("an engine");
    let Subject { contents, open } = subject;
    let fixture = engine
        .run(0, move |core| async move {
            let fixture = open(core.clone()).await;
            let disk = Disk::open(&core, fixture.node.clone(), contents).await;
            case(disk).await;
            fixture
        })
        .expect("the case");
    engine.shutdown().expect("an orderly shutdown");
    drop(fixture.hold);
}

/// Runs a case with room for 64 operations.
pub fn run<F>(subject: Subject, case: fn(Disk) -> F)
where
    F: Future<Output = ()> + 'static,
{
    run_with_slots(subject, 64, case);
}

/// All cases over one subject, each a test.
macro_rules! conformance {
    ($name:ident, $subject:expr) => {
        mod $name {
            use super::*;
            use $crate::conformance::{cases, run, run_with_slots};

            #[test]
            fn every_kind_of_operation_matches_the_oracle() {
                run($subject, cases::every_kind);
            }

            #[test]
            fn every_boundary_can_be_crossed() {
                run($subject, cases::boundaries);
            }

            #[test]
            fn operations_on_most_of_the_node_are_carried_out_in_parts() {
                run($subject, cases::large);
            }

            #[test]
            fn many_at_once_match_the_oracle() {
                run($subject, cases::many_at_once);
            }

            #[test]
            fn a_slot_table_of_one_is_enough() {
                run_with_slots($subject, 1, cases::every_kind);
                run_with_slots($subject, 1, cases::more_tasks_than_slots);
            }

            #[test]
            fn scatter_lists_of_many_pieces_arrive_whole() {
                run($subject, cases::many_pieces);
            }

            #[test]
            fn a_dropped_future_lets_its_operation_land() {
                run($subject, cases::dropped_futures);
            }

            #[test]
            fn a_full_table_hands_the_operation_back() {
                run_with_slots($subject, 5, cases::full_table);
            }

            #[test]
            fn a_cancelled_operation_completes_once() {
                run($subject, cases::cancel);
            }

            #[test]
            fn two_cores_share_the_node() {
                run($subject, cases::two_cores);
            }

            #[test]
            fn invalid_operations_change_nothing() {
                run($subject, cases::invalid);
            }

            #[test]
            fn flush_and_fua_go_along_with_writes() {
                run($subject, cases::durable);
            }

            #[test]
            fn compare_tells_equal_from_different() {
                run($subject, cases::compare);
            }
        }
    };
}
pub(crate) use conformance;
