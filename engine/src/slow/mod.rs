//! A format's tasks: what [`Format::map`](crate::Format::map) cannot answer at once is done here.
//!
//! Each core that opens a node whose format is slow at times makes a fixed number of tasks for it.
//! An operation whose `map` says [`Extent::Slow`](crate::Extent::Slow) waits in its slot, in line,
//! until a task takes it as a [`SlowRequest`]; it stays in flight for as long as the task is at it.
//! The task reads and writes the node's children by requests of its own ([`SlowRequest::run`]), or
//! hands parts of the operation itself to a child ([`SlowRequest::pass_on`]). In the end it says
//! that `map` now knows the answer, or how many bytes it has carried out.
//!
//! The tasks' own requests take slots of a reserve in levels: those to a node with slow formats
//! beneath leave some to the requests that these make in turn. So whatever users do to a table of
//! slots, the lowest tasks always get on, and those above them after these.

mod waits;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::channel::Run;
use crate::io::{SlowPart, Standing};
use crate::{Channel, Completion, Core, Error, ErrorKind, Fault, Node, Op, OpFlags, OpKind};

pub use waits::Waits;

/// What a task has done for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowDone {
    /// What [`Format::map`](crate::Format::map) lacked is there: it is asked again.
    Again,
    /// So many bytes of the request, from its beginning, are carried out; a write with
    /// [`OpFlags::FUA`] is on stable media.
    Bytes(u64),
}

/// Where a task gets its requests from.
pub struct SlowRequests {
    core: Core,
    place: u16,
    task: usize,
    children: Rc<[Channel]>,
}

impl SlowRequests {
    /// The core that the task is on.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The number of this task among those of its node on its core, from 0.
    pub fn task(&self) -> usize {
        self.task
    }

    /// The next request; `None` when there will be no more, and the task is to end.
    pub async fn next(&mut self) -> Option<SlowRequest> {
        let io = &self.core.0.io;
        let part = poll_fn(|context| io.borrow_mut().next_slow(self.place, context)).await?;
        let (core, children) = (self.core.clone(), self.children.clone());
        Some(SlowRequest { core, children, task: self.task, part, is_over: false })
    }

    /// Does `work` for each request until there are no more: all that most tasks are.
    pub async fn serve(
        mut self,
        mut work: impl AsyncFnMut(&mut SlowRequest) -> Result<SlowDone, Fault>,
    ) {
        while let Some(mut request) = self.next().await {
            let result = work(&mut request).await;
            request.end(result);
        }
    }
}

impl Drop for SlowRequests {
    fn drop(&mut self) {
        self.core.0.io.borrow_mut().remove_task(self.place);
    }
}

/// An operation, or the rest of one, that a format's task is to see to.
pub struct SlowRequest {
    core: Core,
    children: Rc<[Channel]>,
    task: usize,
    part: SlowPart,
    is_over: bool,
}

impl SlowRequest {
    /// The core that the task is on.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The number of this task among those of its node on its core, from 0.
    pub fn task(&self) -> usize {
        self.task
    }

    /// What the operation does.
    pub fn kind(&self) -> OpKind {
        self.part.kind
    }

    /// How it is to be done.
    pub fn flags(&self) -> OpFlags {
        self.part.flags
    }

    /// The first byte that is left of the operation, of the format's own node.
    pub fn offset(&self) -> u64 {
        self.part.offset
    }

    /// How many bytes the task may do: the rest of the operation, as far as it comes to this node.
    pub fn len_bytes(&self) -> u64 {
        self.part.len
    }

    /// The task's own channel on a child of the node.
    ///
    /// # Panics
    /// The node has no such child.
    pub fn child(&self, child: usize) -> &Channel {
        &self.children[child]
    }

    /// Runs an operation of the task's own on a child. If the request is cancelled meanwhile, so
    /// is this.
    ///
    /// # Panics
    /// As [`child`](Self::child).
    pub fn run(&self, child: usize, op: Op) -> Nested<'_> {
        let channel = self.child(child);
        Nested { request: self, channel, run: channel.run(op), asked: false }
    }

    /// Carries out a part of the operation on a child, as it is and over its own buffers: the
    /// `len` bytes that begin `at` bytes into the request go to `offset` of the child.
    ///
    /// # Errors
    /// What the child says; the offset is of the format's own node.
    ///
    /// # Panics
    /// As [`child`](Self::child); or the part does not lie in the request.
    pub async fn pass_on(
        &mut self,
        child: usize,
        offset: u64,
        at: u64,
        len: u64,
    ) -> Result<(), Fault> {
        assert!(at <= self.part.len && len <= self.part.len - at, "the part is not in the request");
        let SlowPart { id, kind, flags, .. } = self.part;
        let op = match kind {
            OpKind::Read | OpKind::Write | OpKind::Compare => {
                let data = self.core.0.io.borrow_mut().lend(id, at, len).unwrap_or_default();
                Op { kind, flags, offset, len: data.len() as u64, data, tag: 0 }
            }
            OpKind::WriteZeroes => Op::write_zeroes(offset, len).flags(flags),
            OpKind::Discard => Op::discard(offset, len).flags(flags),
            OpKind::Flush => Op::flush(),
        };
        let Completion { op, result } = self.run(child, op).await;
        if kind.has_data() {
            self.core.0.io.borrow_mut().take_back(id, op.data);
        }
        let here = |fault: Fault| {
            let into = fault.offset.wrapping_sub(offset);
            let into = if into < len { into } else { 0 };
            Fault { offset: self.part.offset + at + into, ..fault }
        };
        result.map_err(here)
    }

    /// Whether the operation's user asked for an early end. A task need not follow; one that does
    /// ends with [`ErrorKind::Cancelled`].
    pub fn is_cancelled(&self) -> bool {
        self.core.0.io.borrow_mut().is_cancelled(self.part.id, None)
    }

    /// As [`is_cancelled`](Self::is_cancelled); if not, the task is woken when it is.
    pub fn poll_cancelled(&self, context: &mut Context<'_>) -> bool {
        self.core.0.io.borrow_mut().is_cancelled(self.part.id, Some(context.waker()))
    }

    /// The task is done with the request. A fault's offset is of the format's own node.
    pub fn end(mut self, result: Result<SlowDone, Fault>) {
        self.is_over = true;
        self.core.0.io.borrow_mut().end_slow(self.part.id, result);
    }
}

impl Drop for SlowRequest {
    fn drop(&mut self) {
        if !self.is_over {
            let text = "a task of the format ended in the middle of its work";
            let fault = Fault::text(ErrorKind::Failed, self.part.offset, text);
            self.core.0.io.borrow_mut().end_slow(self.part.id, Err(fault));
        }
    }
}

impl fmt::Debug for SlowRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SlowRequest").field(&self.part).finish()
    }
}

/// A task's own operation on its way; see [`SlowRequest::run`].
pub struct Nested<'a> {
    request: &'a SlowRequest,
    channel: &'a Channel,
    run: Run<'a>,
    asked: bool,
}

impl Future for Nested<'_> {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completion> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.run).poll(context);
        if polled.is_pending()
            && !this.asked
            && this.request.poll_cancelled(context)
            && let Some(id) = this.run.id()
        {
            this.asked = true;
            this.channel.cancel(id);
        }
        polled
    }
}

impl Core {
    /// Makes this core's tasks for every slow format from this node down; its leaves are open.
    pub(crate) fn start_slow(&self, node: &Arc<Node>) -> Result<(), Error> {
        node.children().iter().try_for_each(|child| self.start_slow(child))?;
        let Some(format) = node.format() else { return Ok(()) };
        let tasks = format.slow_tasks();
        if tasks == 0 || self.0.io.borrow().slow_of(node).is_some() {
            return Ok(());
        }
        let channel = |child: &Arc<Node>| self.channel(child, Standing::Task(levels(child)));
        let children: Rc<[Channel]> =
            node.children().iter().map(channel).collect::<Result<_, _>>()?;
        let place = self.0.io.borrow_mut().add_slow(node, levels(node), tasks);
        for task in 0..tasks {
            self.0.io.borrow_mut().add_task(place);
            let (core, children) = (self.clone(), children.clone());
            let requests = SlowRequests { core, place, task, children };
            self.0.tasks.spawn(format.clone().slow(requests))?;
        }
        Ok(())
    }
}

/// How many slow formats lie on the longest way from a node down, itself included.
fn levels(node: &Arc<Node>) -> usize {
    let below = node.children().iter().map(levels).max().unwrap_or(0);
    below + usize::from(node.format().is_some_and(|format| format.slow_tasks() > 0))
}
