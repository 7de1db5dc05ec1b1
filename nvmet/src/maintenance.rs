//! Admin commands that take their time: Format NVM, deletion and detachment of namespaces, and
//! sanitize.
//!
//! They are carried out one after the other, in bounded steps between the I/O of others: first no
//! more I/O commands are let in, then those in work end, then everything is erased, one operation
//! at a time. A sanitize goes on whatever happens to the host; the others end with their command.

use std::collections::VecDeque;

use oxblock_engine::{Completion, Full, Op, OpId};
use oxblock_mem::Buf;
use oxblock_nvme::event::{self, Event};
use oxblock_nvme::log::{LID_CHANGED_NAMESPACES, LID_SANITIZE};
use oxblock_nvme::{NSID_ALL, Status};

use crate::erase::{Erasure, How};
use crate::hooks::Hooks;
use crate::inventory::Busy;
use crate::namespace::Part;
use crate::protection::Layout;
use crate::queue::{LONG, Tag};
use crate::service::Service;
use crate::status;

/// What stands in an operation's tag for the place of a long command.
pub(crate) const PLACE: u8 = u8::MAX;

/// The whole of a sanitize's progress.
const SANITIZE_WHOLE: u32 = 1 << 16;

/// Notice: namespaces have changed.
pub(crate) const NAMESPACE_EVENT: Event = Event {
    kind: event::TYPE_NOTICE,
    information: event::NOTICE_NAMESPACE_CHANGED,
    log_page: LID_CHANGED_NAMESPACES,
};

/// One thing to do.
pub(crate) struct Task {
    /// The command that waits for it; a sanitize has none.
    pub(crate) owner: Option<Tag>,
    /// The namespaces that it is about; all of them for a sanitize.
    pub(crate) nsids: Vec<u32>,
    pub(crate) what: What,
    /// Memory for a pattern, if it is overwritten with one.
    pub(crate) memory: Option<Buf>,
}

impl Task {
    /// One that a command waits for.
    pub(crate) fn of_command(owner: Tag, nsids: Vec<u32>, what: What) -> Task {
        Task { owner: Some(owner), nsids, what, memory: None }
    }
}

/// What becomes of the namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// They get this LBA format, after an erasure.
    Format { index: u8, how: How, layout: Layout },
    /// They are erased, and are no more.
    Delete,
    /// They are detached.
    Detach,
    /// Every node is erased.
    Sanitize { how: How, passes: u32 },
}

/// Everything to do, and how far it is.
#[derive(Default)]
pub(crate) struct Maintenance {
    waiting: VecDeque<Task>,
    current: Option<Current>,
    /// The operation that the engine has. It may outlive what it was for.
    running: Option<OpId>,
}

struct Current {
    task: Task,
    erasure: Erasure,
    /// Commands in work are waited for.
    draining: bool,
    /// An operation that the engine had no room for.
    stalled: Option<(usize, Op)>,
    status: Status,
}

impl Maintenance {
    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.current.is_none() && self.waiting.is_empty()
    }

    /// Whether the engine has an operation.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether a turn would get on with it.
    pub(crate) fn wants_turns(&self) -> bool {
        !self.is_idle() && !self.is_running()
    }

    pub(crate) fn push(&mut self, task: Task) {
        self.waiting.push_back(task);
    }

    /// The operation has ended.
    pub(crate) fn completed(&mut self, completion: Completion) {
        self.running = None;
        let Some(current) = &mut self.current else { return };
        match completion.result {
            Ok(()) => current.erasure.completed(completion),
            Err(fault) => current.status = status::of_fault(&fault, completion.op.kind),
        }
    }

    /// Forgets what commands wait for, and returns it; with `all`, a sanitize too.
    fn abandon(&mut self, all: bool) -> Vec<Task> {
        let goes = |task: &Task| all || task.owner.is_some();
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let (mut gone, stays): (Vec<Task>, Vec<Task>) = waiting.partition(goes);
        self.waiting = stays.into();
        if let Some(current) = self.current.take_if(|current| goes(&current.task)) {
            gone.push(current.task);
        }
        gone
    }
}

impl<H: Hooks> Service<H> {
    /// Takes on something to do, and keeps I/O commands away from what it is about.
    pub(crate) fn begin_task(&mut self, task: Task) {
        let busy = match task.what {
            What::Format { .. } => Busy::Formatting(100),
            _ => Busy::Leaving,
        };
        for &nsid in &task.nsids {
            self.inventory.set_busy(nsid, Some(busy));
        }
        self.maintenance.push(task);
    }

    /// Gets on with what there is to do, by one operation at most.
    #[cold]
    pub(crate) fn maintain(&mut self) -> usize {
        if self.maintenance.is_running() {
            return 0;
        }
        let Some(mut current) = self.maintenance.current.take().or_else(|| self.next_task()) else {
            return 0;
        };
        if current.draining {
            current.draining = self.is_in_work(&current.task);
            if current.draining {
                self.maintenance.current = Some(current);
                return 0;
            }
        }
        self.show_progress(&current);
        let next = current.stalled.take();
        let next = next.or_else(|| match current.status.is_success() {
            true => current.erasure.next(),
            false => None,
        });
        let Some((backing, op)) = next else {
            self.end_task(current);
            return 1;
        };
        let Some(served) = self.backings.get(backing) else {
            current.status = Status::INTERNAL_ERROR;
            self.end_task(current);
            return 1;
        };
        match served.channel.submit(op.tag(LONG | u64::from(PLACE))) {
            Ok(id) => self.maintenance.running = Some(id),
            Err(Full(op)) => current.stalled = Some((backing, op)),
        }
        self.maintenance.current = Some(current);
        1
    }

    fn next_task(&mut self) -> Option<Current> {
        let mut task = self.maintenance.waiting.pop_front()?;
        let parts = self.parts(&task);
        let (how, passes) = match task.what {
            What::Format { how, .. } => (how, 1),
            What::Delete | What::Detach => (How::Zeroes { may_unmap: true }, 1),
            What::Sanitize { how, passes } => (how, passes),
        };
        let erasure = Erasure::new(parts, how, passes, task.memory.take());
        let status = Status::SUCCESS;
        Some(Current { task, erasure, draining: true, stalled: None, status })
    }

    /// What is to be erased.
    fn parts(&self, task: &Task) -> Vec<Part> {
        match task.what {
            What::Detach => Vec::new(),
            What::Sanitize { .. } => {
                let nodes = self.inventory.nodes().iter().enumerate();
                let whole = |(backing, limits): (usize, &oxblock_engine::Limits)| Part {
                    backing,
                    base: 0,
                    len: limits.length,
                };
                nodes.map(whole).collect()
            }
            What::Format { .. } | What::Delete => {
                let of = task.nsids.iter().filter_map(|nsid| self.inventory.allocated(*nsid));
                of.map(|g| Part { backing: g.backing, base: g.base, len: g.len }).collect()
            }
        }
    }

    /// Whether I/O commands are in work that the task has to wait for.
    fn is_in_work(&mut self, task: &Task) -> bool {
        let all = matches!(task.what, What::Sanitize { .. });
        let about = |nsid: u32| all || nsid == NSID_ALL || task.nsids.contains(&nsid);
        let of_hosts = self.queues.sqs().filter(|sq| sq.sqid != 0);
        of_hosts.into_iter().any(|sq| sq.in_work().any(|(_, slot)| about(slot.nsid)))
    }

    fn show_progress(&mut self, current: &Current) {
        match current.task.what {
            What::Format { .. } => {
                let left = 100 - current.erasure.progress(100) as u8;
                for &nsid in &current.task.nsids {
                    self.inventory.set_busy(nsid, Some(Busy::Formatting(left)));
                }
            }
            What::Sanitize { .. } => {
                let progress = current.erasure.progress(SANITIZE_WHOLE);
                self.admin.sanitize.advance(progress, current.erasure.passes_done());
            }
            What::Delete | What::Detach => {}
        }
    }

    fn end_task(&mut self, current: Current) {
        let Current { task, mut status, .. } = current;
        let succeeded = status.is_success();
        for &nsid in &task.nsids {
            self.inventory.set_busy(nsid, None);
            if succeeded && let Err(failed) = self.change(nsid, task.what) {
                status = failed;
            }
        }
        if matches!(task.what, What::Sanitize { .. }) {
            let writes = self.usage().writes;
            self.admin.sanitize.end(succeeded, writes);
            if succeeded {
                let all: Vec<u32> = self.inventory.all_allocated().map(|g| g.nsid).collect();
                for nsid in all {
                    self.inventory.clear_all_bad(nsid);
                    if let Some(g) = self.inventory.allocated(nsid)
                        && let Some(metadata) = &g.metadata
                    {
                        metadata.clear(0, g.blocks);
                    }
                }
            }
            self.inventory.set_closed(self.admin.sanitize.closed());
            self.admin.raise(Event {
                kind: event::TYPE_IO,
                information: event::IO_SANITIZE_ENDED,
                log_page: LID_SANITIZE,
            });
        }
        if let Some(owner) = task.owner {
            self.complete(owner, 0, status);
        }
    }

    fn change(&mut self, nsid: u32, what: What) -> Result<(), Status> {
        match what {
            What::Format { index, layout, .. } => {
                self.inventory.clear_all_bad(nsid);
                self.inventory.reformat(nsid, index, layout)?;
            }
            What::Delete => self.inventory.delete(nsid),
            What::Detach => self.inventory.set_attached(nsid, false),
            What::Sanitize { .. } => {}
        }
        self.tell_changed(nsid);
        Ok(())
    }

    /// Tells the host that a namespace has changed, if it asked to know.
    pub(crate) fn tell_changed(&mut self, nsid: u32) {
        self.admin.logs.namespace_changed(nsid);
        self.admin.raise(NAMESPACE_EVENT);
    }

    /// What commands asked for stays undone where it is not done yet; with `all`, a sanitize ends
    /// too. Returns the commands, which complete no more by themselves.
    pub(crate) fn abandon_tasks(&mut self, all: bool) -> Vec<Tag> {
        let mut owners = Vec::new();
        for task in self.maintenance.abandon(all) {
            for &nsid in &task.nsids {
                self.inventory.set_busy(nsid, None);
            }
            owners.extend(task.owner);
        }
        owners
    }
}
