//! What every node owes its users, whatever stands behind it: one suite, run over each.
//!
//! A [`Subject`] says how to open a node and what to expect of it. Every case talks to the
//! node through a [`Disk`], which keeps a copy of what the node must hold (the oracle) and
//! compares all of it at the end, so that a stray byte anywhere is found.

pub mod cases;
mod disk;
mod scatter;

use std::any::Any;
use std::future::Future;
use std::sync::Arc;

use oxblock_engine::{Core, Engine, LocalFuture, Node, Options};
use oxblock_mem::{ArenaOptions, PagePolicy};

pub use disk::Disk;

use crate::random::Random;

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
    /// Everything, and [these bytes](Contents::first) before the first write.
    Filled,
    /// Nothing: it reads as zeroes.
    Zeroes,
    /// Nothing: a read leaves its buffers as they are.
    Nothing,
}

impl Contents {
    /// What there is in a node of this length that is [`Filled`](Self::Filled).
    pub fn first(length: usize) -> Vec<u8> {
        Random::new(0xf111).bytes(length)
    }

    /// Whether what is written can be read again.
    pub fn are_kept(self) -> bool {
        matches!(self, Self::Kept | Self::Filled)
    }
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
    run_on(PagePolicy::Best, subject, slots, case);
}

/// The same on these pages.
pub fn run_on<F>(pages: PagePolicy, subject: Subject, slots: usize, case: fn(Disk) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let arena = ArenaOptions { pages, ..ArenaOptions::new(32 << 20) };
    let options = Options { slots, arena, ..Options::default() };
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

/// The cases by name: calls `call!(words; name => case, ...)`, where a case takes a [`Subject`].
#[macro_export]
macro_rules! with_conformance_cases {
    ([$($call:tt)*] $($words:tt)*) => {
        $($call)*! { $($words)*;
            every_kind_of_operation_matches_the_oracle => |s| run(s, cases::every_kind),
            every_boundary_can_be_crossed => |s| run(s, cases::boundaries),
            operations_on_most_of_the_node_are_carried_out_in_parts => |s| run(s, cases::large),
            many_at_once_match_the_oracle => |s| run(s, cases::many_at_once),
            a_slot_table_of_one_is_enough => |s| run_with_slots(s, 1, cases::every_kind),
            more_tasks_than_slots_get_their_turn =>
                |s| run_with_slots(s, 1, cases::more_tasks_than_slots),
            scatter_lists_of_many_pieces_arrive_whole => |s| run(s, cases::many_pieces),
            a_dropped_future_lets_its_operation_land => |s| run(s, cases::dropped_futures),
            a_full_table_hands_the_operation_back => |s| run_with_slots(s, 5, cases::full_table),
            a_cancelled_operation_completes_once => |s| run(s, cases::cancel),
            two_cores_share_the_node => |s| run(s, cases::two_cores),
            invalid_operations_change_nothing => |s| run(s, cases::invalid),
            flush_and_fua_go_along_with_writes => |s| run(s, cases::durable),
            compare_tells_equal_from_different => |s| run(s, cases::compare),
        }
    };
}

/// All cases over one subject, each a test in the module `$name`.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $subject:expr) => {
        $crate::with_conformance_cases!([$crate::conformance_tests] $name, $subject);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ($module:ident, $subject:expr; $($name:ident => $case:expr),+ $(,)?) => {
        mod $module {
            use super::*;
            use $crate::conformance::{Subject, cases, run, run_with_slots};

            $(
                #[test]
                fn $name() {
                    let case: fn(Subject) = $case;
                    case($subject);
                }
            )+
        }
    };
}
