//! Formats that are slow at times, over leaves that are awkward.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use oxblock_mem::IoVector;

use super::leaf::{Awkward, AwkwardOptions};
use super::{buf, options, pattern, reactor};
use crate::{
    Body, Channel, Core, Error, ErrorKind, Extent, Fault, Format, Intent, Limits, LocalFuture,
    Node, Op, OpKind, Reactor, Simulation, SlowDone, SlowRequest, SlowRequests,
};

const PATCH: u64 = 4096;
const PATCHES: u64 = 32;

/// Shows its child, each patch only once a task has read it. Every third is never known: tasks
/// carry out what is asked of it.
struct Lazy {
    known: Vec<AtomicBool>,
    tasks: usize,
    /// Tasks that are at work, and the most that ever were.
    at_work: AtomicUsize,
    most: AtomicUsize,
    ended: AtomicUsize,
}

impl Lazy {
    fn new(tasks: usize) -> Arc<Self> {
        let known = (0..PATCHES).map(|_| AtomicBool::new(false)).collect();
        let [at_work, most, ended] = [0; 3].map(AtomicUsize::new);
        Arc::new(Self { known, tasks, at_work, most, ended })
    }

    fn over(self: &Arc<Self>, name: &str, child: Arc<Node>) -> Arc<Node> {
        Node::with_body(name, Body::Over(self.clone(), vec![child]), false)
    }

    async fn work(&self, request: &mut SlowRequest) -> Result<SlowDone, Fault> {
        let now = self.at_work.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        let result = self.learn(request).await;
        self.at_work.fetch_sub(1, Ordering::Relaxed);
        result
    }

    async fn learn(&self, request: &mut SlowRequest) -> Result<SlowDone, Fault> {
        let (patch, within) = (request.offset() / PATCH, request.offset() % PATCH);
        let data = buf(request.core(), &[0; 512]);
        request.run(0, Op::read(patch * PATCH, data)).await.result?;
        if patch % 3 != 2 {
            self.known[patch as usize].store(true, Ordering::Release);
            return Ok(SlowDone::Again);
        }
        let len = request.len_bytes().min(PATCH - within);
        // In two parts, so that buffers are cut.
        let first = (len / 2).next_multiple_of(512).min(len);
        request.pass_on(0, request.offset(), 0, first).await?;
        if first < len {
            request.pass_on(0, request.offset() + first, first, len - first).await?;
        }
        Ok(SlowDone::Bytes(len))
    }
}

impl Format for Lazy {
    fn name(&self) -> &'static str {
        "lazy"
    }

    fn limits(&self, children: &[Arc<Limits>]) -> Limits {
        children[0].as_ref().clone()
    }

    fn map(&self, offset: u64, _: u64, _: Intent) -> Extent {
        if !self.known[(offset / PATCH) as usize].load(Ordering::Acquire) {
            return Extent::Slow;
        }
        Extent::Data { child: 0, offset, len: PATCH - offset % PATCH }
    }

    fn flushes(&self) -> &[usize] {
        &[0]
    }

    fn slow_tasks(&self) -> usize {
        self.tasks
    }

    fn slow(self: Arc<Self>, requests: SlowRequests) -> LocalFuture<'static, ()> {
        Box::pin(async move {
            requests.serve(async |request| self.work(request).await).await;
            self.ended.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

fn leaf_options() -> AwkwardOptions {
    let mut options = AwkwardOptions::new(PATCHES * PATCH, 512);
    options.limits.max_transfer = 3072;
    options
}

fn leaf(options: AwkwardOptions) -> Arc<Node> {
    Node::new("leaf", Box::new(Awkward::new(options)))
}

/// Lazy formats over each other, the lowest over a leaf.
fn stack(tasks: &[usize]) -> (Arc<Node>, Vec<Arc<Lazy>>) {
    let mut node = leaf(leaf_options());
    let mut formats = Vec::new();
    for (level, &tasks) in tasks.iter().enumerate() {
        formats.push(Lazy::new(tasks));
        node = formats[level].over(&format!("lazy{level}"), node);
    }
    (node, formats)
}

/// A list of the bytes in pieces.
fn list(core: &Core, bytes: &[u8], piece: usize) -> IoVector {
    let mut list = IoVector::new();
    bytes.chunks(piece).for_each(|bytes| list.push(buf(core, bytes)));
    list
}

async fn fill(core: &Core, channel: &Channel) -> Vec<u8> {
    let bytes = pattern((PATCHES * PATCH) as usize, 3);
    let (data, result) = channel.write(0, list(core, &bytes, 1000)).await;
    result.expect("a write");
    assert_eq!(data.segments().len(), bytes.len().div_ceil(1000), "the buffers are as they were");
    bytes
}

fn run<F: Future<Output = ()> + 'static>(reactor: Reactor, test: impl FnOnce(Core) -> F) {
    let core = reactor.core().clone();
    reactor.block_on(test(core)).expect("the test ran");
    reactor.shutdown().expect("a shutdown");
}

#[test]
fn the_deepest_stack_gets_on_with_a_table_of_one_slot_and_tasks_of_one_each() {
    for (slots, tasks) in [(1, [1; 5]), (1, [3; 5]), (40, [2; 5])] {
        run(reactor(slots), async move |core| {
            let (node, formats) = stack(&tasks);
            let channel = Rc::new(core.open(&node).await.expect("a channel"));
            let bytes = fill(&core, &channel).await;
            let mut readers = Vec::new();
            for reader in 0..20u64 {
                let (core, channel, bytes) = (core.clone(), channel.clone(), bytes.clone());
                readers.push(core.clone().spawn(async move {
                    for round in 0..20 {
                        let start = ((reader * 7 + round * 13) % (PATCHES * 6) * 512) as usize;
                        let expected = &bytes[start..start + 6144];
                        let data = list(&core, &vec![0; expected.len()], 700);
                        let (data, result) = channel.read(start as u64, data).await;
                        result.expect("a read");
                        let mut back = vec![0; expected.len()];
                        data.read_at(0, &mut back);
                        assert!(back == expected, "at {start}");
                        assert_eq!(data.segments().len(), 9);
                    }
                }));
            }
            for reader in readers {
                reader.await.expect("a reader");
            }
            for (format, tasks) in formats.iter().zip(tasks) {
                let most = format.most.load(Ordering::Relaxed);
                assert!((1..=tasks).contains(&most), "{most} of {tasks} at once");
            }
            assert_eq!(core.stats().slots_used, 0);
            assert_eq!(core.stats().slots, slots);
        });
    }
}

#[test]
fn a_fault_in_a_tasks_request_is_told_at_the_operations_place_and_nothing_is_lost() {
    run(reactor(4), async |core| {
        let mut bad = leaf_options();
        bad.bad_byte = Some(5 * PATCH + 1024);
        let format = Lazy::new(2);
        let channel = core.open(&format.over("lazy", leaf(bad))).await.expect("a channel");
        // What the task passes on for the operation fails, in its second part.
        let data = list(&core, &pattern(4096, 9), 4096);
        let done = channel.run(Op::write(5 * PATCH - 2048, data)).await;
        let fault = done.result.unwrap_err();
        assert_eq!((fault.kind, fault.offset), (ErrorKind::Media, 5 * PATCH + 1024));
        assert_eq!((done.op.data.len(), done.op.data.segments().len()), (4096, 1));
        // The next is not the worse for it.
        channel.write(0, list(&core, &pattern(8192, 1), 512)).await.1.expect("a write");
        assert_eq!(channel.in_flight(), 0);
        assert_eq!(channel.stats().kind(OpKind::Write).failed, 1);
    });
}

#[test]
fn cancelled_operations_leave_the_line_and_take_their_tasks_requests_with_them() {
    run(reactor(8), async |core| {
        let mut late = leaf_options();
        late.delay = 1_000_000;
        let format = Lazy::new(1);
        let channel = core.open(&format.over("lazy", leaf(late))).await.expect("a channel");
        let read = |tag: u64| {
            let data = buf(&core, &[0; 512]);
            channel.submit(Op::read(tag * PATCH, data).tag(tag)).expect("a slot")
        };
        let ids = [read(0), read(1), read(3)];
        core.yield_now().await;
        core.yield_now().await;
        assert_eq!(format.at_work.load(Ordering::Relaxed), 1);
        let mut ended = Vec::new();
        let mut take = |channel: &Channel| {
            channel.poll(|done| ended.push((done.op.tag, done.result.map_err(|f| f.kind))));
        };
        assert!(channel.cancel(ids[1]));
        take(&channel);
        assert!(!channel.cancel(ids[1]));
        // One that is in a task's hands, and one after the other.
        assert!(channel.cancel(ids[0]) && channel.cancel(ids[0]));
        while channel.in_flight() > 2 {
            core.yield_now().await;
            take(&channel);
        }
        channel.cancel(ids[2]);
        take(&channel);
        // The leaf completes what was cancelled in its own time; the reactor ends it sooner.
        assert_eq!(ended, [(1, Err(ErrorKind::Cancelled)), (3, Err(ErrorKind::Cancelled))]);
        assert_eq!(channel.in_flight(), 1);
    });
}

#[test]
fn tasks_end_with_the_last_channel_and_are_there_again_with_the_next() {
    run(reactor(4), async |core| {
        let (node, formats) = stack(&[2, 3]);
        let ended = || formats.iter().map(|f| f.ended.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let channels = [core.open(&node).await, core.open(&node).await].map(|c| c.expect("one"));
        let bytes = fill(&core, &channels[0]).await;
        let [first, second] = channels;
        drop(first);
        for _ in 0..4 {
            core.yield_now().await;
        }
        assert_eq!(ended(), [0, 0]);
        // What is in flight is carried out all the same.
        second.submit(Op::write(2 * PATCH, buf(&core, &[9; 512]))).expect("a slot");
        drop(second);
        while ended() != [2, 3] {
            core.yield_now().await;
        }
        let channel = core.open(&node).await.expect("a channel");
        let (data, result) = channel.read(2 * PATCH, buf(&core, &[0; 1024])).await;
        result.expect("a read");
        let mut back = vec![0; 1024];
        data.read_at(0, &mut back);
        assert!(back[..512] == [9; 512] && back[512..] == bytes[2 * 4096 + 512..][..512]);
    });
}

/// Says that it is slow, and has no tasks, or tasks that end.
struct Idle(usize);

impl Format for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn limits(&self, children: &[Arc<Limits>]) -> Limits {
        children[0].as_ref().clone()
    }

    fn map(&self, _: u64, _: u64, _: Intent) -> Extent {
        Extent::Slow
    }

    fn flushes(&self) -> &[usize] {
        &[0]
    }

    fn slow_tasks(&self) -> usize {
        self.0
    }

    fn slow(self: Arc<Self>, mut requests: SlowRequests) -> LocalFuture<'static, ()> {
        Box::pin(async move {
            let _dropped = requests.next().await;
        })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

#[test]
fn a_format_without_tasks_or_with_tasks_that_end_fails_its_operations() {
    for tasks in [0, 1] {
        run(reactor(4), async move |core| {
            let body = Body::Over(Arc::new(Idle(tasks)), vec![leaf(leaf_options())]);
            let channel = core.open(&Node::with_body("idle", body, false)).await.expect("one");
            let submit = |tag| {
                let data = buf(&core, &[0; 512]);
                channel.submit(Op::read(PATCH, data).tag(tag)).expect("a slot");
            };
            submit(0);
            submit(1);
            let mut faults = Vec::new();
            while faults.len() < 2 {
                core.yield_now().await;
                channel.poll(|done| faults.push(done.result.unwrap_err()));
            }
            submit(2);
            channel.poll(|done| faults.push(done.result.unwrap_err()));
            assert!(faults.iter().all(|fault| fault.offset == PATCH), "{faults:?}");
            let text: Vec<String> = faults.iter().map(Fault::to_string).collect();
            assert!(text.iter().all(|text| text.contains("task")), "{text:?}");
        });
    }
}

#[test]
fn more_tasks_than_there_are_slots_for_their_requests_leave_each_other_some() {
    // More tasks on every level than slots in reserve for all levels: those above could take all.
    let mut simulation = Simulation::new(1, 7, options(300)).expect("a simulation");
    let run = simulation.run(0, async |core: Core| {
        let (node, formats) = stack(&[200; 3]);
        let channel = core.open(&node).await.expect("a channel");
        let channel = Rc::new(channel);
        let read = |number: u64| {
            let (channel, data) = (channel.clone(), buf(&core, &[0; 512]));
            let at = 2 * PATCH + number % 8 * 512;
            core.spawn(async move { channel.read(at, data).await.1.expect("a read") })
        };
        let readers: Vec<_> = (0..300).map(read).collect();
        for reader in readers {
            reader.await.expect("a reader");
        }
        formats[2].most.load(Ordering::Relaxed)
    });
    assert_eq!(run.expect("no deadlock"), 200);
}
