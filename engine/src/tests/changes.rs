//! Nodes that change while they are open, and what the embedder hears of it.

use std::sync::Arc;

use super::leaf::{Awkward, AwkwardOptions};
use super::{buf, node, options, reactor};
use crate::{Channel, Core, Engine, ErrorKind, EventKind, Limits, Node, Op};

const LEN: u64 = 1 << 20;

/// A node, and what changes its limits.
fn changing(options: AwkwardOptions) -> (Arc<Node>, impl Fn(Limits)) {
    let driver = Awkward::new(options);
    let change = driver.change();
    (Node::new("disk", Box::new(driver)), change)
}

async fn write(channel: &Channel, offset: u64) -> Result<(), ErrorKind> {
    let data = buf(channel.core(), &[7; 512]);
    channel.write(offset, data).await.1.map_err(|error| error.kind())
}

#[test]
fn growth_is_usable_at_once_and_what_shrank_is_refused_on_every_core() {
    let engine = Engine::with_cores(2, options(8)).expect("an engine");
    let mut events = engine.events();
    let (node, change) = changing(AwkwardOptions::new(LEN, 512));
    engine
        .run(0, move |core| async move {
            let on_both = async |offset: u64| {
                let mut results = Vec::new();
                for id in 0..2 {
                    let node = node.clone();
                    let there = core.call(id, move |core| async move {
                        // Stays open: what changes is the queue that is there.
                        let channel = core.open(&node).await.expect("a channel");
                        write(&channel, offset).await
                    });
                    results.push(there.await.expect("a result"));
                }
                results
            };
            assert_eq!(on_both(LEN).await, [Err(ErrorKind::Invalid); 2]);
            change(Limits::new(2 * LEN, 512));
            core.refresh(&node).await.expect("refreshed");
            assert_eq!(on_both(LEN).await, [Ok(()); 2]);
            change(Limits::new(LEN / 2, 512));
            core.refresh(&node).await.expect("refreshed");
            assert_eq!(on_both(LEN / 2).await, [Err(ErrorKind::Invalid); 2]);
            assert_eq!(on_both(LEN / 2 - 512).await, [Ok(()); 2]);
            assert_eq!(node.limits().length, LEN / 2);
            change(Limits { read_only: true, ..Limits::new(LEN / 2, 512) });
            core.refresh(&node).await.expect("refreshed");
            assert_eq!(on_both(0).await, [Err(ErrorKind::ReadOnly); 2]);
            // Nothing changed: nothing is told.
            core.refresh(&node).await.expect("refreshed");
        })
        .expect("a run");
    engine.shutdown().expect("a shutdown");
    let seen: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    let kinds: Vec<_> = seen.iter().map(|event| event.kind).collect();
    let resized = |from, to| EventKind::NodeResized { from, to };
    assert_eq!(kinds, [resized(LEN, 2 * LEN), resized(2 * LEN, LEN / 2), EventKind::NodeReadOnly]);
    assert_eq!(seen[0].to_string(), "disk: grew from 1048576 to 2097152 bytes");
}

/// Operations that wait in line were checked when they were submitted: against an end that the
/// device no longer has.
#[test]
fn what_waits_is_checked_again_and_every_operation_ends_once() {
    let mut awkward = AwkwardOptions::new(LEN, 512);
    (awkward.depth, awkward.delay, awkward.limits.max_transfer) = (1, 3, 512);
    let reactor = reactor(16);
    let (node, change) = changing(awkward.clone());
    let core = reactor.core().clone();
    reactor
        .block_on(async move {
            let channel = core.open(&node).await.expect("a channel");
            // The first is at the device with one of its four pieces; the others wait.
            for at in 0..8 {
                let data = buf(&core, &[at as u8; 2048]);
                channel.submit(Op::write(at * LEN / 8, data).tag(at)).expect("a slot");
            }
            change(Limits { max_transfer: 512, ..Limits::new(LEN / 2, 512) });
            core.refresh(&node).await.expect("refreshed");
            let mut results = [None; 8];
            while results.contains(&None) {
                channel.poll(|done| {
                    let result = done.result.map_err(|fault| fault.kind);
                    let before = results[done.op.tag as usize].replace(result);
                    assert_eq!(before, None, "it ended twice");
                });
                core.yield_now().await;
            }
            let expected: [_; 8] = std::array::from_fn(|at| match at {
                0..4 => Some(Ok(())),
                _ => Some(Err(ErrorKind::Invalid)),
            });
            assert_eq!(results, expected);
        })
        .expect("the test ran");
    reactor.shutdown().expect("a shutdown");
}

#[test]
fn a_node_that_is_withdrawn_fails_what_waits_and_what_comes() {
    let mut awkward = AwkwardOptions::new(LEN, 512);
    (awkward.depth, awkward.delay) = (1, 3);
    let reactor = reactor(16);
    let node = node(awkward);
    let core = reactor.core().clone();
    let mut events = core.events();
    reactor
        .block_on(async move {
            let channel = core.open(&node).await.expect("a channel");
            for tag in 0..4 {
                channel.submit(Op::read(0, buf(&core, &[0; 512])).tag(tag)).expect("a slot");
            }
            let gone = "the namespace was deleted";
            core.withdraw(&node, ErrorKind::Gone, gone).await.expect("withdrawn");
            core.withdraw(&node, ErrorKind::Failed, "again").await.expect("nothing");
            let mut results = Vec::new();
            while results.len() < 4 {
                channel.poll(|done| results.push((done.op.tag, done.result.map_err(|f| f.kind))));
                core.yield_now().await;
            }
            results.sort_unstable_by_key(|result| result.0);
            let gone = Err(ErrorKind::Gone);
            // The device had the first already.
            assert_eq!(results, [(0, Ok(())), (1, gone), (2, gone), (3, gone)]);
            let error = channel.flush().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Gone);
            assert!(error.to_string().contains("the namespace was deleted"), "{error}");
            let error = core.open(&node).await.map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Gone, "nor is it opened again");
        })
        .expect("the test ran");
    reactor.shutdown().expect("a shutdown");
    let event = events.try_next().expect("an event");
    assert_eq!((event.kind, &*event.subject), (EventKind::NodeGone, "disk"));
    assert_eq!(events.try_next(), None);
}

#[test]
fn a_node_that_is_held_keeps_its_operations_in_order() {
    let reactor = reactor(16);
    let driver = Awkward::new(AwkwardOptions::new(LEN, 512));
    let seen = driver.watch();
    let node = Node::new("disk", Box::new(driver));
    let core = reactor.core().clone();
    reactor
        .block_on(async move {
            let channel = core.open(&node).await.expect("a channel");
            core.hold(&node).await.expect("held");
            for tag in 0..4 {
                let op = Op::write(tag * 512, buf(&core, &[1; 512])).tag(tag);
                channel.submit(op).expect("a slot");
            }
            for _ in 0..100 {
                core.yield_now().await;
            }
            assert_eq!((seen().len(), channel.in_flight()), (0, 4));
            core.resume(&node).await.expect("resumed");
            let mut done = 0;
            while done < 4 {
                done += channel.poll(|done| assert!(done.result.is_ok()));
                core.yield_now().await;
            }
            let offsets: Vec<u64> = seen().iter().map(|request| request.offset).collect();
            assert_eq!(offsets, [0, 512, 1024, 1536]);
            // Held again, it can still be withdrawn and closed.
            core.hold(&node).await.expect("held");
            channel.submit(Op::read(0, buf(&core, &[0; 512]))).expect("a slot");
            core.withdraw(&node, ErrorKind::Gone, "removed").await.expect("withdrawn");
            core.close(&node).await.expect("closed");
            let mut kinds = Vec::new();
            channel.poll(|done| kinds.push(done.result.map_err(|fault| fault.kind)));
            assert_eq!(kinds, [Err(ErrorKind::Gone)]);
        })
        .expect("the test ran");
    reactor.shutdown().expect("a shutdown");
}

/// A channel whose node was closed wrote into the node that was opened next: that one had got
/// its place in the core's table.
#[test]
fn a_channel_never_reaches_another_node() {
    let reactor = reactor(8);
    let core = reactor.core().clone();
    reactor
        .block_on(async move {
            let [first, second] = [(); 2].map(|()| node(AwkwardOptions::new(LEN, 512)));
            let stale = core.open(&first).await.expect("a channel");
            core.close(&first).await.expect("closed");
            let other = core.open(&second).await.expect("a channel");
            assert_eq!(write(&stale, 0).await, Err(ErrorKind::Gone));
            let (data, result) = other.read(0, buf(&core, &[1; 512])).await;
            result.expect("a read");
            assert!(data.whole().is_all(0));
        })
        .expect("the test ran");
    reactor.shutdown().expect("a shutdown");
}

#[test]
fn slow_readers_lose_the_oldest_events_and_know_how_many() {
    let reactor = reactor(1);
    let core: &Core = reactor.core();
    let (mut slow, mut quick) = (core.events(), core.events());
    for id in 0..300 {
        core.publish("soft:0", EventKind::NamespaceAdded { id }, "");
        assert!(quick.try_next().is_some());
    }
    assert_eq!((slow.lost(), quick.lost()), (44, 0));
    let event = slow.try_next().expect("an event");
    assert_eq!(event.kind, EventKind::NamespaceAdded { id: 44 });
    assert_eq!(std::iter::from_fn(|| slow.try_next()).count(), 255);
    let mut late = core.events();
    assert_eq!(late.try_next(), None, "only what happens from now on");
}

#[test]
fn readers_wait_on_cores_and_on_threads_until_the_engine_is_no_more() {
    let engine = Engine::with_cores(1, options(8)).expect("an engine");
    let mut events = engine.events();
    let reader = std::thread::spawn(move || {
        let first = events.wait_for(std::time::Duration::from_secs(60));
        (first, events.wait_for(std::time::Duration::from_secs(60)))
    });
    let heard = engine.run(0, |core| async move {
        let mut events = core.events();
        let teller = core.clone();
        drop(core.spawn(async move {
            teller.publish("soft:0", EventKind::ResetBegun, "is being reset");
        }));
        events.next().await
    });
    assert_eq!(heard.expect("a run").map(|event| event.kind), Some(EventKind::ResetBegun));
    engine.shutdown().expect("a shutdown");
    let (first, last) = reader.join().expect("a reader");
    assert_eq!(first.map(|event| event.kind), Some(EventKind::ResetBegun));
    assert_eq!(last, None);
}
