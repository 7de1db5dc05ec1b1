//! From reset to ready and back (Base 2.0, 3.5 to 3.7).

use oxblock_mem::Cells;
use oxblock_nvme::queue::{CompletionSink, SubmissionSource};
use oxblock_nvme::regs::{self, Cc, Csts, SHST_COMPLETE, SHST_OCCURRING};
use oxblock_nvme::{Command, Completion, Status};

use crate::hooks::{Hooks, Transition};
use crate::maintenance::NAMESPACE_EVENT;
use crate::nvm::long::Kind;
use crate::queue::{CompletionQueue, Place, SubmissionQueue, Work};
use crate::registers::Control;
use crate::service::Service;
use crate::transport::pci::Notice;

/// Where a controller stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// EN is 0.
    Disabled,
    /// EN is 1, RDY not yet.
    Enabling,
    /// Commands are taken.
    Ready,
    /// No commands are taken for a while (CSTS.PP): firmware is being activated.
    Paused,
    /// No commands are taken; those in work end, then the controller is disabled.
    Resetting,
    /// No commands are taken; those in work complete, then caches are flushed.
    ShuttingDown {
        /// The caches are being flushed.
        flushing: bool,
        /// Whether they are to be flushed at all.
        abrupt: bool,
    },
    /// Shutdown is complete; only a reset leads on.
    ShutDown,
    /// Something went wrong that only a reset mends (CSTS.CFS).
    Failed,
    /// Commands in work end, then the controller is gone.
    Stopping,
    /// The controller is gone.
    Stopped,
}

impl<H: Hooks> Service<H> {
    /// Acts on CC.
    pub(crate) fn control(&mut self) {
        let control = self.shared.registers.control();
        if matches!(self.phase, Phase::Stopping | Phase::Stopped | Phase::Resetting) {
            // What CC says is looked at when this is over.
            return;
        }
        if control.edges != self.edges {
            if self.phase != Phase::Disabled {
                return self.begin_reset();
            }
            return self.start_over(control);
        }
        if self.phase == Phase::Enabling {
            // Looked at again when it is ready.
            return;
        }
        let shn = control.cc.shn();
        if shn == self.shn {
            return;
        }
        self.shn = shn;
        if shn == regs::SHN_NORMAL || shn == regs::SHN_ABRUPT {
            self.begin_shutdown(shn == regs::SHN_ABRUPT);
        }
    }

    /// Disabled, and quiet: shows it, and enables again if that is what CC says by now.
    fn start_over(&mut self, control: Control) {
        self.edges = control.edges;
        // A notification that stayed in CC over the reset is old news.
        self.shn = control.cc.shn();
        self.phase = Phase::Disabled;
        self.shared.registers.set_csts(Csts::default());
        self.shared.registers.acknowledge(control.edges);
        if control.cc.en() {
            self.begin_enable(control.cc);
        }
    }

    /// What there is to do outside of [`Phase::Ready`].
    pub(crate) fn progress(&mut self, now_ms: u64) -> usize {
        match self.phase {
            Phase::Enabling => return self.try_ready(),
            Phase::Resetting => {
                if !self.is_quiet() || !self.hooks.may(Transition::Disabled) {
                    self.let_finish();
                    return 0;
                }
                self.finish_reset(now_ms);
            }
            Phase::ShuttingDown { flushing: false, .. } => {
                self.let_finish();
                if !self.is_quiet() || !self.hooks.may(Transition::ShutDown) {
                    return 0;
                }
                self.flush_for_shutdown();
            }
            Phase::Stopping if self.is_quiet() && !self.maintenance.is_running() => {
                self.finish_stop();
            }
            _ => {
                self.let_finish();
                return 0;
            }
        }
        1
    }

    fn begin_enable(&mut self, cc: Cc) {
        self.cc = cc;
        self.phase = Phase::Enabling;
        self.shared.registers.set_csts(Csts::default());
        self.try_ready();
    }

    fn try_ready(&mut self) -> usize {
        if !self.hooks.may(Transition::Ready) {
            return 0;
        }
        match self.build_admin_queues() {
            Some(()) => {
                self.phase = Phase::Ready;
                self.shared.registers.set_csts(Csts::default().with_rdy(true));
                // A shutdown may have been asked for meanwhile.
                self.control();
            }
            None => self.fail(),
        }
        1
    }

    /// The admin queues as AQA, ASQ and ACQ say; `None` if they, or CC, cannot be served.
    fn build_admin_queues(&mut self) -> Option<()> {
        let cap = self.shared.registers.cap();
        let known = matches!(self.cc.css(), regs::CSS_NVM | regs::CSS_ALL);
        let paged = (cap.mpsmin()..=cap.mpsmax()).contains(&self.cc.mps());
        if !known || !paged || self.cc.ams() != 0 {
            return None;
        }
        self.memory.set_page_bytes(4096 << self.cc.mps());
        let aqa = self.shared.registers.aqa();
        let (sq_entries, cq_entries) = (u32::from(aqa.asqs()) + 1, u32::from(aqa.acqs()) + 1);
        let sq_place = place(self.shared.registers.asq(), sq_entries, Command::BYTES);
        let cq_place = place(self.shared.registers.acq(), cq_entries, Completion::BYTES);
        let sq_cells = self.memory.translator.cells(sq_place.iova, sq_place.bytes).ok()?;
        let cq_cells = self.memory.translator.cells(cq_place.iova, cq_place.bytes).ok()?;
        let source = SubmissionSource::new(sq_cells, sq_entries).ok()?;
        let sink = CompletionSink::new(cq_cells, cq_entries).ok()?;
        self.shared.doorbells.set_sq(0, true);
        self.shared.doorbells.set_cq(0, true);
        self.queues.add_cq(CompletionQueue::new(0, cq_place, sink, Some(0)));
        let generation = self.queues.next_generation();
        self.queues.add_sq(SubmissionQueue::new(0, 0, generation, sq_place, source));
        Some(())
    }

    /// Stops serving, and shows CSTS.CFS until the host resets. One that is being reset goes on
    /// with that.
    #[cold]
    pub(crate) fn fail(&mut self) {
        if matches!(self.phase, Phase::Disabled | Phase::Stopping | Phase::Stopped) {
            return;
        }
        if self.phase != Phase::Resetting {
            self.drop_waiting();
            self.cancel_all();
            self.phase = Phase::Failed;
        }
        let csts = self.shared.registers.csts();
        self.shared.registers.set_csts(csts.with_cfs(true));
    }

    fn begin_reset(&mut self) {
        self.phase = Phase::Resetting;
        self.drop_waiting();
        self.cancel_all();
    }

    /// Nothing of the old life touches memory any more: only now RDY goes.
    fn finish_reset(&mut self, now_ms: u64) {
        self.forget_queues();
        self.admin.reset(now_ms);
        self.stop_timers();
        self.give_back_host_memory();
        self.rules.write_cache = self.admin.features.write_cache();
        self.start_over(self.shared.registers.control());
    }

    fn begin_shutdown(&mut self, abrupt: bool) {
        self.resume();
        let csts = self.shared.registers.csts();
        match self.phase {
            Phase::Ready => {
                for owner in self.abandon_tasks(false) {
                    self.complete(owner, 0, Status::ABORT_REQUESTED);
                }
                self.phase = Phase::ShuttingDown { flushing: false, abrupt };
                self.shared.registers.set_csts(csts.with_shst(SHST_OCCURRING));
            }
            // There is nothing to shut down.
            Phase::Disabled => self.shared.registers.set_csts(csts.with_shst(SHST_COMPLETE)),
            _ => {}
        }
    }

    /// Everything has completed: what caches hold goes to the media.
    fn flush_for_shutdown(&mut self) {
        let Phase::ShuttingDown { abrupt, .. } = self.phase else { return };
        if abrupt || self.backings.is_empty() {
            return self.finish_shutdown(Status::SUCCESS);
        }
        let Some((place, job)) = self.jobs.free() else { return };
        job.begin(Kind::FlushAll);
        job.owner = None;
        job.backing = 0;
        self.jobs.keep();
        self.phase = Phase::ShuttingDown { flushing: true, abrupt };
        self.step_long(place);
    }

    /// The flush of a shutdown has ended.
    pub(crate) fn flushed_for_shutdown(&mut self, status: Status) {
        if matches!(self.phase, Phase::ShuttingDown { .. }) {
            self.finish_shutdown(status);
        }
    }

    /// A cache that could not be flushed is fatal: the host must not take it for safe.
    fn finish_shutdown(&mut self, status: Status) {
        self.phase = Phase::ShutDown;
        let csts = self.shared.registers.csts().with_shst(SHST_COMPLETE);
        let failed = !status.is_success();
        self.shared.registers.set_csts(csts.with_cfs(failed || csts.cfs()));
    }

    /// The owner has had enough of the controller.
    pub(crate) fn begin_stop(&mut self) {
        if matches!(self.phase, Phase::Stopped) {
            return;
        }
        self.phase = Phase::Stopping;
        self.abandon_tasks(true);
        self.drop_waiting();
        self.cancel_all();
    }

    fn finish_stop(&mut self) {
        self.forget_queues();
        self.phase = Phase::Stopped;
        self.shared.set_stopped();
    }

    /// Whether the engine has nothing of the host any more.
    fn is_quiet(&self) -> bool {
        let ours = usize::from(self.maintenance.is_running());
        self.in_flight() == ours && self.stalled.is_empty() && self.jobs.is_idle()
    }

    /// Lets commands that wait for a place go on, on the way to a shutdown.
    fn let_finish(&mut self) {
        if !self.stalled.is_empty() || !self.jobs.is_idle() {
            self.unstall();
        }
    }

    /// Drops commands that the engine does not have; nobody waits for them any more.
    fn drop_waiting(&mut self) {
        self.abandon_tasks(false);
        self.stalled.clear();
        let busy: Vec<u8> = self.jobs.busy().collect();
        for place in busy {
            let Some(job) = self.jobs.get(place) else { continue };
            job.abort(Status::ABORT_REQUESTED);
            if job.running.is_none() {
                self.jobs.release(place);
            }
        }
    }

    /// Asks the engine to end what it has early.
    fn cancel_all(&mut self) {
        let mut running = Vec::new();
        for sq in self.queues.sqs() {
            for (_, slot) in sq.in_work() {
                if let Work::Submitted(id) = slot.work {
                    running.push((slot.nsid, id));
                }
            }
        }
        for (nsid, id) in running {
            if let Some(channel) = self.channel(nsid) {
                channel.cancel(id);
            }
        }
    }

    fn forget_queues(&mut self) {
        for sq in self.queues.sqs() {
            self.shared.doorbells.set_sq(sq.sqid, false);
        }
        for cq in self.queues.cqs() {
            self.shared.doorbells.set_cq(cq.cqid, false);
        }
        self.queues.clear();
        self.hooks.queues_forgotten();
        self.shadow = None;
        self.deletions = 0;
    }

    /// The IOMMU's table has changed: a queue whose memory is gone, or is another now, ends the
    /// controller.
    #[cold]
    pub(crate) fn look_again_at_queues(&mut self) {
        let translator = &mut self.memory.translator;
        let mut gone = false;
        let mut is_there = |place: Place, words: &Cells| {
            let buf = translator.buf(place.iova, place.bytes);
            buf.is_ok_and(|buf| buf.addr() == words.addr())
        };
        for sq in self.queues.sqs() {
            gone |= !is_there(sq.place, sq.source.words());
        }
        for cq in self.queues.cqs() {
            gone |= !is_there(cq.place, cq.sink.words());
        }
        if let Some(shadow) = &self.shadow {
            gone |= !shadow.is_mapped(translator);
        }
        if !gone {
            if self.has_host_memory() {
                self.check_host_memory(usize::MAX);
            }
            return;
        }
        // The memory must not be held on to, or its owner could not have it back.
        let serves = matches!(self.phase, Phase::Ready | Phase::Paused);
        if serves || matches!(self.phase, Phase::ShuttingDown { .. } | Phase::ShutDown) {
            self.fail();
        }
        self.forget_queues();
    }

    /// Takes what the owner wants the host to know.
    #[cold]
    pub(crate) fn take_notices(&mut self) {
        for notice in self.shared.take_notices() {
            match notice {
                Notice::NamespaceChanged(nsid) => self.tell_changed(nsid),
                Notice::TooManyChanged => {
                    self.admin.logs.overflow_changed();
                    self.admin.raise(NAMESPACE_EVENT);
                }
                Notice::CriticalWarning(bits) => self.admin.set_critical_warning(bits),
                Notice::Raw(event) => self.admin.raise(event),
            }
        }
    }
}

/// Where a queue lies.
pub(crate) fn place(iova: u64, entries: u32, entry_bytes: usize) -> Place {
    Place { iova, bytes: entries as usize * entry_bytes }
}
