//! Flush (Base 2.0, 7.1).

use oxblock_engine::Op;

/// A flush always reaches the node, whether or not the controller reports a cache: what is
/// below may have one all the same.
pub(super) fn flush() -> Op {
    Op::flush()
}
