//! The conformance suite over each kind of node.

mod formats;
mod leaves;
mod nvme;

use oxblock_tests::conformance;
use oxblock_tests::conformance::{Contents, Fixture, Subject};
