//! Operations that their leaf may end within the submission.

use std::sync::Arc;

use super::leaf::AwkwardOptions;
use super::{buf, node, options, pattern};
use crate::{
    Busy, Channel, Core, Driver, Error, ErrorKind, Fault, InPlace, Limits, LocalFuture, Node, Op,
    OpKind, Pass, Queue, Reactor, Request, Sleep, Token,
};

const BAD: u64 = 4096;

/// Ends requests within their submission: those at [`BAD`] with a fault. With `stutters` it does so
/// with the first alone, of which the next poll tells once more, and the poll after that of the last.
struct Prompt {
    stutters: bool,
}

impl Driver for Prompt {
    fn name(&self) -> &'static str {
        "prompt"
    }

    fn limits(&self) -> Limits {
        Limits::new(1 << 20, 512)
    }

    fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let queue = PromptQueue { stutters: self.stutters, told: Vec::with_capacity(2) };
        Box::pin(async { Ok(Box::new(queue) as Box<dyn Queue>) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

struct PromptQueue {
    stutters: bool,
    /// What the next polls tell of, one each.
    told: Vec<Token>,
}

impl Queue for PromptQueue {
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        let is_bad = request.offset == BAD;
        let result = if is_bad { Err(Fault::new(ErrorKind::Media, BAD)) } else { Ok(()) };
        if self.told.is_empty() {
            pass.done(request.token, result);
        }
        if self.stutters {
            self.told.push(request.token);
        }
        Ok(())
    }

    fn kick(&mut self, _: &mut Pass) {}

    fn poll(&mut self, pass: &mut Pass) -> usize {
        if self.told.is_empty() {
            return 0;
        }
        pass.done(self.told.remove(0), Ok(()));
        1
    }

    fn cancel(&mut self, _: Token) {}

    fn in_flight(&self) -> usize {
        0
    }

    fn sleep(&mut self) -> Sleep<'_> {
        Sleep::Woken
    }

    fn quiesce(&mut self, _: &mut Pass) -> bool {
        true
    }
}

fn open(reactor: &Reactor, node: Arc<Node>) -> Channel {
    let core = reactor.core().clone();
    reactor.block_on(async move { core.open(&node).await }).expect("a turn").expect("a channel")
}

#[test]
fn what_ends_at_once_stays_where_it_is() {
    let reactor = Reactor::new(options(1)).expect("a reactor");
    let channel = open(&reactor, Node::new("prompt", Box::new(Prompt { stutters: false })));
    let mut op = Op::read(512, buf(reactor.core(), &[7; 512])).tag(3);
    for _ in 0..10 {
        assert!(matches!(channel.submit_in_place(&mut op), InPlace::Done));
        assert_eq!((op.offset, op.tag, op.data.len()), (512, 3, 512));
    }
    op.offset = BAD;
    let fault = Fault::new(ErrorKind::Media, BAD);
    assert!(matches!(channel.submit_in_place(&mut op), InPlace::Running(_)));
    assert_eq!(channel.poll(|completion| assert_eq!(completion.result, Err(fault))), 1);
    // Nothing is left behind, and all of it was counted.
    assert_eq!((channel.in_flight(), channel.poll(|_| panic!("no completion is due"))), (0, 0));
    assert_eq!(reactor.core().stats().slots_used, 0);
    let reads = channel.stats().kind(OpKind::Read);
    assert_eq!((reads.ops, reads.bytes, reads.failed), (11, 5120, 1));
}

#[test]
fn what_takes_its_time_is_polled_for() {
    let reactor = Reactor::new(options(1)).expect("a reactor");
    let channel = open(&reactor, node(AwkwardOptions::new(1 << 16, 512)));
    let bytes = pattern(512, 1);
    let mut op = Op::write(1024, buf(reactor.core(), &bytes)).tag(5);
    assert!(matches!(channel.submit_in_place(&mut op), InPlace::Running(_)));
    assert!(op.data.is_empty(), "the buffers went with the operation");
    // The only slot is taken: what comes now is given back whole.
    let mut second = Op::read(0, buf(reactor.core(), &[0; 512])).tag(6);
    assert!(matches!(channel.submit_in_place(&mut second), InPlace::Full));
    assert_eq!((second.tag, second.data.len()), (6, 512));
    let mut back = Vec::new();
    while back.is_empty() {
        reactor.poll();
        channel.poll(|completion| back.push(completion));
    }
    assert!(back[0].result.is_ok() && back[0].op.tag == 5);
    // One that the node cannot take whole goes the long way, with the same outcome.
    second.offset = 1 << 20;
    assert!(matches!(channel.submit_in_place(&mut second), InPlace::Running(_)));
    back.clear();
    channel.poll(|completion| back.push(completion));
    let fault = back[0].result.expect_err("beyond the end");
    assert_eq!((fault.kind, back[0].op.tag), (ErrorKind::Invalid, 6));
}

/// A leaf that completes a request a second time must not end the operation that has taken the
/// slot by then, whose name the request had borrowed.
#[test]
fn a_late_word_about_what_ended_in_place_is_spurious() {
    let reactor = Reactor::new(options(1)).expect("a reactor");
    let channel = open(&reactor, Node::new("prompt", Box::new(Prompt { stutters: true })));
    let mut op = Op::read(0, buf(reactor.core(), &[0; 512]));
    assert!(matches!(channel.submit_in_place(&mut op), InPlace::Done));
    assert!(matches!(channel.submit_in_place(&mut op), InPlace::Running(_)));
    reactor.poll();
    assert_eq!(reactor.core().stats().spurious_completions, 1);
    assert!(!channel.has_completions());
    reactor.poll();
    assert_eq!(channel.poll(|completion| assert!(completion.result.is_ok())), 1);
}

/// Operations go from a list, and come back to it; one that the slots have no room for stays.
#[test]
fn a_list_of_operations_goes_and_comes_back() {
    let reactor = Reactor::new(options(2)).expect("a reactor");
    let leaf = Node::new("prompt", Box::new(Prompt { stutters: false }));
    for node in [leaf.clone(), super::routes::window("window", 512, &leaf)] {
        let channel = open(&reactor, node);
        let read = |at, tag| Op::read(at, buf(reactor.core(), &[7; 512])).tag(tag);
        // Where the window is, the bad place of the leaf is 512 bytes earlier.
        let bad = BAD - if channel.node().is_leaf() { 0 } else { 512 };
        let mut ops = vec![read(0, 1), read(bad, 2), read(1024, 3)];
        assert!(channel.submit_last(&mut ops).is_some() && channel.submit_last(&mut ops).is_some());
        assert!(channel.submit_last(&mut ops).is_none());
        assert_eq!((ops.len(), channel.in_flight()), (1, 2));
        let mut faults = Vec::new();
        assert_eq!(channel.fetch(&mut ops, |op, fault| faults.push((op.tag, fault))), 2);
        assert_eq!(faults, [(2, Fault::new(ErrorKind::Media, bad))]);
        let mut tags: Vec<u64> = ops.iter().map(|op| op.tag).collect();
        tags.sort_unstable();
        assert_eq!(tags, [1, 2, 3]);
        assert!(ops.iter().all(|op| op.data.len() == 512));
        assert_eq!((channel.in_flight(), reactor.core().stats().slots_used), (0, 0));
        let reads = channel.stats().kind(OpKind::Read);
        assert_eq!((reads.ops, reads.bytes, reads.failed), (2, 512, 1));
        assert!(channel.submit_last(&mut Vec::new()).is_none());
    }
}

/// A node over another is no longer a way than the other.
#[test]
fn what_ends_at_once_beneath_a_format_stays_where_it_is() {
    let reactor = Reactor::new(options(1)).expect("a reactor");
    let leaf = Node::new("prompt", Box::new(Prompt { stutters: false }));
    let channel = open(&reactor, super::routes::window("window", 512, &leaf));
    let mut op = Op::read(512, buf(reactor.core(), &[7; 512])).tag(3);
    for _ in 0..10 {
        assert!(matches!(channel.submit_in_place(&mut op), InPlace::Done));
    }
    assert_eq!((op.offset, op.tag, op.data.len(), channel.in_flight()), (512, 3, 512, 0));
    op.offset = BAD - 512;
    assert!(matches!(channel.submit_in_place(&mut op), InPlace::Running(_)));
    let fault = Fault::new(ErrorKind::Media, BAD - 512);
    assert_eq!(channel.poll(|completion| assert_eq!(completion.result, Err(fault))), 1);
    let reads = channel.stats().kind(OpKind::Read);
    assert_eq!((reads.ops, reads.bytes, reads.failed), (11, 5120, 1));
}
