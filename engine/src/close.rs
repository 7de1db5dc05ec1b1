//! Closing a node's queue on a core: no command may outlive the memory that it names.

use std::sync::Arc;
use std::time::Duration;

use crate::io::Halt;
use crate::slot::{State, Step};
use crate::{Core, Driver, Error, ErrorKind, Fault, Limits, LocalFuture, Node, Queue};

/// How long requests in flight may take to end by themselves.
pub(crate) const DRAIN: Duration = Duration::from_secs(30);
/// How long a device may take to stop.
const QUIESCE_NS: u64 = 15_000_000_000;

/// Ends what is in flight and drops the queue. See [`Core::close_within`].
pub(crate) async fn close_leaf(
    core: &Core,
    node: &Arc<Node>,
    drain: Duration,
) -> Result<(), Error> {
    // Looked up each time: another task may close it meanwhile, and its place be somebody else's.
    let leaf = || core.0.io.borrow().leaf_of(node);
    if let Some(leaf) = leaf() {
        core.0.io.borrow_mut().refuse(leaf);
    }
    let (begun, drain_ns) = (core.now(), drain.as_nanos() as u64);
    while let Some(leaf) = leaf()
        && core.0.io.borrow().leaf_busy(leaf)
        && core.now() - begun < drain_ns
    {
        core.yield_now().await;
    }
    let begun = core.now();
    while let Some(leaf) = leaf() {
        if core.0.io.borrow_mut().stop(leaf) {
            break;
        }
        if core.now() - begun > QUIESCE_NS {
            core.0.io.borrow_mut().abandon(leaf);
            let text = "the device did not stop; the memory of its requests is never used again";
            return Err(Error::new(ErrorKind::TimedOut, text).node(node.name()));
        }
        core.yield_now().await;
    }
    Ok(())
}

impl Core {
    /// Closes a node that nobody stands on any more: its queues on all cores, then its driver.
    pub(crate) async fn close_everywhere(&self, node: &Arc<Node>) -> Result<(), Error> {
        let mut outcome = Ok(());
        if node.is_leaf() {
            for id in 0..self.count() {
                let node = node.clone();
                let closed = self.call(id, move |core| async move { core.close(&node).await });
                outcome = outcome.and(closed.await.and_then(|closed| closed));
            }
        }
        let closed = match (node.driver(), node.format()) {
            (Ok(driver), _) => {
                let closed = driver.close(self).await;
                // Whoever still has the node does not keep its file open.
                node.set_driver(Arc::new(Closed(driver.name(), driver.limits())));
                closed
            }
            (Err(_), Some(format)) => format.close(self).await,
            (Err(_), None) => Ok(()),
        };
        outcome.and(closed.map_err(|error| error.node(node.name())))
    }
}

/// What is left of a driver: its name, and the limits that it had.
struct Closed(&'static str, Limits);

impl Driver for Closed {
    fn name(&self) -> &'static str {
        self.0
    }

    fn limits(&self) -> Limits {
        self.1.clone()
    }

    fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        Box::pin(async { Err(Error::new(ErrorKind::Gone, "the node was closed")) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

impl crate::io::Io {
    /// Removes a leaf whose device has stopped; false if it has not yet.
    fn stop(&mut self, leaf: u16) -> bool {
        let stopped = self.quiesce(leaf);
        if stopped {
            self.remove_leaf(leaf);
        }
        stopped
    }

    /// From now on a leaf's operations are refused.
    fn refuse(&mut self, leaf: u16) {
        if let Some(leaf) = self.leaf_mut(leaf) {
            let closing = Halt::Refused((ErrorKind::Failed, "the node is being closed"));
            match leaf.halt {
                Some(Halt::Refused(_)) => {}
                Some(Halt::Held) | None => leaf.halt = Some(closing),
            }
        }
    }

    /// Whether a leaf has operations that have not ended.
    fn leaf_busy(&self, leaf: u16) -> bool {
        self.slots().iter().any(|slot| slot.state == State::Running && slot.leaf == leaf)
    }

    /// Drops a leaf whose device is quiet. What had not ended, failed.
    fn remove_leaf(&mut self, leaf: u16) {
        self.drain();
        self.take_leaf(leaf);
        self.fail_running(Some(leaf), "the node was closed");
    }

    /// Gives up on a leaf whose device may still write: its memory is never freed.
    fn abandon(&mut self, leaf: u16) {
        for slot in self.slots_mut().iter_mut() {
            if slot.leaf == leaf && slot.state == State::Running && slot.outstanding > 0 {
                std::mem::forget((slot.take_op(), slot.rare.bounce.take()));
            }
        }
        std::mem::forget(self.take_leaf(leaf));
    }

    /// Ends every operation that still runs, of one leaf or of all. Their devices are
    /// quiet.
    fn fail_running(&mut self, leaf: Option<u16>, text: &'static str) {
        for index in 0..self.slots().len() as u32 {
            let slot = &mut self.slots_mut()[index];
            // What a format's task is at goes on, and hears of this where it goes next.
            let is_elsewhere = |leaf| leaf != slot.leaf || slot.step == Step::Slow;
            if slot.state != State::Running || leaf.is_some_and(is_elsewhere) {
                continue;
            }
            slot.outstanding = 0;
            slot.waiting = false;
            slot.fail(Fault::text(ErrorKind::Failed, slot.op.offset, text));
            self.finish(index);
        }
    }

    /// Stops all devices at once, since the engine ends: called again and again until `true`.
    pub fn quiesce_all(&mut self) -> bool {
        self.set_failed("the engine ended");
        let mut quiet = true;
        for leaf in 0..self.leaf_count() {
            quiet &= self.quiesce(leaf);
        }
        self.drain();
        quiet
    }

    /// At the end: drops the leaves that are quiet, and gives up on the others.
    pub fn end_all(&mut self) {
        for leaf in 0..self.leaf_count() {
            if self.quiesce(leaf) {
                self.remove_leaf(leaf);
            } else {
                self.abandon(leaf);
            }
        }
        self.fail_running(None, "the engine ended");
    }
}
