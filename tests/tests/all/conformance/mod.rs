//! The conformance suite over each leaf.

mod leaves;
mod nvme;

use oxblock_tests::conformance;
use oxblock_tests::conformance::{Contents, Fixture, Subject};
