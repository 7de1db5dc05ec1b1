//! A user's handle on a node on one core.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use oxblock_mem::IoVector;

use crate::slot::Owner;
use crate::stats::LeafStats;
use crate::{
    Completion, Core, Error, Fault, Full, InPlace, Limits, Node, Op, OpFlags, OpId, OpKind,
};

/// A user's handle on a node on this core. Operations are submitted and polled for, or
/// awaited; both kinds go through the core's one slot table.
///
/// Dropping the channel detaches what is in flight: it goes on, and its buffers go back
/// to where they came from once the device is done with them.
pub struct Channel {
    core: Core,
    user: u16,
    /// Each write is to be durable when it ends.
    write_through: Cell<bool>,
}

impl Channel {
    pub(crate) fn new(core: Core, user: u16) -> Self {
        Self { core, user, write_through: Cell::new(false) }
    }

    /// The node, which is another once the graph has that in its place.
    pub fn node(&self) -> Arc<Node> {
        self.core.0.io.borrow().node_of(self.user)
    }

    /// Keeps to the node that it is at now, also when that is replaced by another: what it does
    /// concerns this very node, such as a job's.
    pub fn stay_at_node(&self) {
        self.core.0.io.borrow_mut().let_stay(self.user);
    }

    /// What one request of the node may ask; the engine splits what is longer.
    pub fn limits(&self) -> Arc<Limits> {
        self.node().limits()
    }

    pub(crate) fn user(&self) -> u16 {
        self.user
    }

    /// The core.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Whether this user has a write cache, as it has at first: without, each of its writes is
    /// durable when it completes (force unit access).
    pub fn set_write_cache(&self, enabled: bool) {
        self.write_through.set(!enabled);
    }

    /// What the user's own cache mode makes of an operation.
    #[inline(always)]
    fn prepare(&self, op: &mut Op) {
        if self.write_through.get() && matches!(op.kind, OpKind::Write | OpKind::WriteZeroes) {
            op.flags |= OpFlags::FUA;
        }
    }

    /// Submits an operation, to be polled for. An invalid one completes with a fault.
    ///
    /// # Errors
    /// The core's slot table is full; the operation comes back.
    #[inline(always)]
    pub fn submit(&self, mut op: Op) -> Result<OpId, Full> {
        self.prepare(&mut op);
        let mut io = self.core.0.io.borrow_mut();
        match io.admit(self.user) {
            Some(index) => Ok(io.submit(self.user, index, Owner::Poll, op)),
            None => Err(Full(op)),
        }
    }

    /// As [`submit`](Self::submit), for a user that keeps its operations in a list: submits the last
    /// one, which goes from the list to its slot without a stay in between. `None`, with the list
    /// as it was, if the core's slot table is full or the list empty.
    #[inline(always)]
    pub fn submit_last(&self, ops: &mut Vec<Op>) -> Option<OpId> {
        self.prepare(ops.last_mut()?);
        let mut io = self.core.0.io.borrow_mut();
        let index = io.admit(self.user)?;
        ops.pop().map(|op| io.submit(self.user, index, Owner::Poll, op))
    }

    /// As [`submit`](Self::submit), for a user that keeps one operation going: one that the leaf
    /// does at once, as where data is in memory, stays where it is, takes no slot, and has no
    /// completion to be polled for. It is no error if the leaf takes its time.
    #[inline(always)]
    pub fn submit_in_place(&self, op: &mut Op) -> InPlace {
        self.prepare(op);
        self.core.0.io.borrow_mut().submit_in_place(self.user, op)
    }

    /// Tells the devices of what was submitted so far. The reactor does so at the end of
    /// every turn.
    pub fn kick(&self) {
        self.core.0.io.borrow_mut().kick();
    }

    /// Hands out the completions that are there; returns how many. The function may
    /// submit again. Completions arrive in turns of the reactor, or at once where a leaf
    /// needs no time.
    #[inline(always)]
    pub fn poll(&self, mut take: impl FnMut(Completion)) -> usize {
        let count = self.core.0.io.borrow_mut().completions_waiting(self.user);
        for done in 0..count {
            let mut io = self.core.0.io.borrow_mut();
            let Some(index) = io.next_done(self.user) else {
                return done;
            };
            let completion = io.take_result(index);
            drop(io);
            take(completion);
        }
        count
    }

    /// As [`poll`](Self::poll), for a user that keeps its operations in a list: they come back to its
    /// end, with their buffers, and `failed` hears of those that did not succeed. It may not
    /// submit.
    #[inline(always)]
    pub fn fetch(&self, ops: &mut Vec<Op>, failed: impl FnMut(&Op, Fault)) -> usize {
        self.core.0.io.borrow_mut().fetch(self.user, ops, failed)
    }

    /// Are there completions that [`Channel::poll`] would hand out now?
    #[inline]
    pub fn has_completions(&self) -> bool {
        self.core.0.io.borrow_mut().completions_waiting(self.user) > 0
    }

    /// Asks that an operation end early. It still completes, with success if it was
    /// carried out, else as cancelled. Whether it was still running.
    pub fn cancel(&self, id: OpId) -> bool {
        self.core.0.io.borrow_mut().cancel(id)
    }

    /// Operations of this channel whose completion was not handed out yet.
    pub fn in_flight(&self) -> usize {
        self.core.0.io.borrow().user_in_flight(self.user)
    }

    /// What the node did on this core, for all its users.
    pub fn stats(&self) -> LeafStats {
        self.core.0.io.borrow().leaf_stats(self.user)
    }

    /// Runs an operation and gives its completion, with the buffers. With the slot table
    /// full it waits its turn. Dropping the future detaches the operation.
    pub fn run(&self, mut op: Op) -> Run<'_> {
        self.prepare(&mut op);
        Run { channel: self, state: RunState::New(Some(op)), ticket: None }
    }

    /// Reads into `data`, which comes back.
    pub async fn read(
        &self,
        offset: u64,
        data: impl Into<IoVector>,
    ) -> (IoVector, Result<(), Error>) {
        self.run_with_data(Op::read(offset, data)).await
    }

    /// Writes `data`, which comes back.
    pub async fn write(
        &self,
        offset: u64,
        data: impl Into<IoVector>,
    ) -> (IoVector, Result<(), Error>) {
        self.run_with_data(Op::write(offset, data)).await
    }

    /// Compares the node's bytes with `data`, which comes back.
    pub async fn compare(
        &self,
        offset: u64,
        data: impl Into<IoVector>,
    ) -> (IoVector, Result<(), Error>) {
        self.run_with_data(Op::compare(offset, data)).await
    }

    /// Makes every write that has completed durable.
    ///
    /// # Errors
    /// What the node says, with its name.
    pub async fn flush(&self) -> Result<(), Error> {
        self.run_with_data(Op::flush()).await.1
    }

    /// Makes the range read as zeroes.
    ///
    /// # Errors
    /// What the node says, with its name.
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.run_with_data(Op::write_zeroes(offset, len)).await.1
    }

    /// Says that the range is not needed any more.
    ///
    /// # Errors
    /// What the node says, with its name.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.run_with_data(Op::discard(offset, len)).await.1
    }

    async fn run_with_data(&self, op: Op) -> (IoVector, Result<(), Error>) {
        let kind = op.kind;
        let Completion { op, result } = self.run(op).await;
        (op.data, result.map_err(|fault| self.explain(kind, fault)))
    }

    fn explain(&self, kind: OpKind, fault: crate::Fault) -> Error {
        Error::from(fault).op(kind).node(self.node().name())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.core.0.io.borrow_mut().remove_user(self.user);
    }
}

/// An operation on its way. See [`Channel::run`].
pub struct Run<'a> {
    channel: &'a Channel,
    state: RunState,
    /// The place in the line for slots, where it had to wait.
    ticket: Option<u64>,
}

impl Run<'_> {
    /// The operation, once it has been submitted.
    pub(crate) fn id(&self) -> Option<OpId> {
        match self.state {
            RunState::Running(id) => Some(id),
            RunState::New(_) | RunState::Over => None,
        }
    }
}

enum RunState {
    New(Option<Op>),
    Running(OpId),
    Over,
}

impl Future for Run<'_> {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completion> {
        let this = &mut *self;
        let mut io = this.channel.core.0.io.borrow_mut();
        if let RunState::New(op) = &mut this.state
            && let Some(waiting) = op.take()
        {
            let user = this.channel.user;
            let Some(index) = io.admit(user) else {
                *op = Some(waiting);
                io.wait_for_slot(user, &mut this.ticket, context.waker());
                return Poll::Pending;
            };
            this.state = RunState::Running(io.submit(user, index, Owner::Future, waiting));
            // A place that it leaves behind would have others wait for nobody.
            if this.ticket.is_some() {
                io.leave_admission(this.ticket.take());
            }
        }
        let RunState::Running(id) = this.state else {
            return Poll::Pending;
        };
        match io.poll_future(id, context.waker()) {
            Some(completion) => {
                this.state = RunState::Over;
                Poll::Ready(completion)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        match self.state {
            RunState::Running(id) => self.channel.core.0.io.borrow_mut().detach(id),
            RunState::New(_) => {
                self.channel.core.0.io.borrow_mut().give_up_waiting(self.ticket.take());
            }
            RunState::Over => {}
        }
    }
}
