//! What nodes do not let through, and what a user without a write cache asks for.

use std::sync::Arc;

use super::leaf::{Awkward, AwkwardOptions, Seen};
use super::live::Plain;
use super::{buf, reactor};
use crate::{Body, Node, Op, OpFlags, OpKind, Restrictions};

const LEN: u64 = 64 << 10;
const NONE: OpFlags = OpFlags::empty();

/// What reaches a leaf, restricted so, beneath a node that is restricted so, of each of these
/// operations. Without a node above, the leaf is asked itself.
fn reaches(
    leaf: Restrictions,
    above: Option<Restrictions>,
    write_cache: bool,
) -> Vec<(OpKind, OpFlags)> {
    let mut options = AwkwardOptions::new(LEN, 512);
    (options.limits.fua, options.limits.volatile_cache) = (true, true);
    let driver = Awkward::new(options);
    let seen = driver.watch();
    let mut node = Node::restricted("leaf", Body::Leaf(Box::new(driver)), leaf);
    if let Some(above) = above {
        node = Node::restricted("top", Body::Over(Arc::new(Plain), vec![node]), above);
    }
    let reactor = reactor(8);
    let core = reactor.core().clone();
    let done = reactor.block_on(async move {
        let channel = core.open(&node).await.expect("a channel");
        channel.set_write_cache(write_cache);
        for op in [
            Op::read(0, buf(&core, &[0; 512])),
            Op::write(0, buf(&core, &[1; 512])),
            Op::write(512, buf(&core, &[2; 512])).fua(),
            Op::write_zeroes(1024, 512).flags(OpFlags::MAY_UNMAP),
            Op::discard(2048, 512),
            Op::flush(),
        ] {
            assert_eq!(channel.run(op).await.result, Ok(()));
        }
    });
    done.expect("the reactor");
    seen().into_iter().map(|Seen { kind, flags, .. }| (kind, flags)).collect()
}

#[test]
fn discards_and_flushes_do_nothing_where_the_options_say_so() {
    use OpKind::{Discard, Flush, Read, Write, WriteZeroes};
    let free = Restrictions::default();
    let all = vec![
        (Read, NONE),
        (Write, NONE),
        (Write, OpFlags::FUA),
        (WriteZeroes, OpFlags::MAY_UNMAP),
        (Discard, NONE),
        (Flush, NONE),
    ];
    let no_discard = Restrictions { no_discard: true, ..free };
    let kept =
        [(Read, NONE), (Write, NONE), (Write, OpFlags::FUA), (WriteZeroes, NONE), (Flush, NONE)];
    let no_flush = Restrictions { no_flush: true, ..free };
    let unsafely = [
        (Read, NONE),
        (Write, NONE),
        (Write, NONE),
        (WriteZeroes, OpFlags::MAY_UNMAP),
        (Discard, NONE),
    ];
    for above in [None, Some(free)] {
        assert_eq!(reaches(free, above, true), all, "{above:?}");
        assert_eq!(reaches(no_discard, above, true), kept, "{above:?}");
        assert_eq!(reaches(no_flush, above, true), unsafely, "{above:?}");
    }
    assert_eq!(reaches(free, Some(no_discard), true), kept);
    assert_eq!(reaches(free, Some(no_flush), true), unsafely);
}

#[test]
fn without_a_write_cache_each_write_is_durable() {
    use OpKind::{Discard, Flush, Read, Write, WriteZeroes};
    let free = Restrictions::default();
    let durable = [
        (Read, NONE),
        (Write, OpFlags::FUA),
        (Write, OpFlags::FUA),
        (WriteZeroes, OpFlags::MAY_UNMAP | OpFlags::FUA),
        (Discard, NONE),
        (Flush, NONE),
    ];
    for above in [None, Some(free)] {
        assert_eq!(reaches(free, above, false), durable, "{above:?}");
    }
}
