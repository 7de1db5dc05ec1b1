//! A host that drives a controller by hand, for tests: registers, rings and PRPs, no driver.
//! Host and controller share a thread, so that every test is a fixed sequence.

use std::sync::Arc;

use oxblock_engine::Reactor;
#[cfg(test)]
use oxblock_engine::{ClockSource, Options, PollMode, SimulatedClock};
use oxblock_mem::{Arena, ArenaOptions, ArenaSource, Attachment, Buf, Cells, Memory, PagePolicy};
#[cfg(test)]
use oxblock_nvme::Status;
use oxblock_nvme::queue::{CompletionQueue, SubmissionQueue};
use oxblock_nvme::regs::{self, Aqa, Cap, Cc, Csts};
use oxblock_nvme::{Command, Completion};
use oxblock_pci::{Bar, Function, Reg32, Reg64, enable};

use crate::Controller;
#[cfg(test)]
use crate::ControllerOptions;
#[cfg(test)]
use crate::fault::{self, Faults};

/// Turns of the reactor after which something is taken to never happen.
#[cfg(test)]
const TURNS: usize = 2000;

/// Entries of the admin queues.
pub(crate) const ADMIN_ENTRIES: u16 = 32;

/// Host memory.
const ARENA: usize = 8 << 20;

/// A host and its controller.
pub(crate) struct Host {
    pub(crate) reactor: Reactor,
    pub(crate) controller: Arc<Controller>,
    pub(crate) function: Arc<dyn Function>,
    pub(crate) bar: Arc<dyn Bar>,
    pub(crate) arena: Arena,
    pub(crate) memory: Memory,
    pub(crate) attachment: Option<Attachment>,
    pub(crate) pairs: Vec<Option<Pair>>,
    next_cid: u16,
}

/// A submission queue, its completion queue, and their doorbells.
pub(crate) struct Pair {
    pub(crate) sq: SubmissionQueue<Cells>,
    pub(crate) cq: CompletionQueue<Cells>,
    pub(crate) tail: Reg32,
    pub(crate) head: Reg32,
    /// Completions that came while another was waited for.
    #[cfg(test)]
    pub(crate) stash: Vec<Completion>,
}

/// A reactor that makes no fuss about memory.
#[cfg(test)]
pub(crate) fn reactor(slots: usize) -> Reactor {
    reactor_with(slots, ClockSource::Monotonic)
}

/// The same, on a clock.
#[cfg(test)]
fn reactor_with(slots: usize, clock: ClockSource) -> Reactor {
    let arena = ArenaOptions {
        size: 4 << 20,
        pages: PagePolicy::Unlocked,
        node: None,
        source: ArenaSource::Memfd,
    };
    let options = Options { slots, poll_mode: PollMode::Pure, clock, arena, seed: None };
    Reactor::new(options).unwrap()
}

impl Host {
    pub(crate) fn over(reactor: Reactor, controller: Arc<Controller>) -> Host {
        let function = controller.function();
        let memory = Memory::new();
        let arena = memory.add_arena(&ArenaOptions {
            size: ARENA,
            pages: PagePolicy::Unlocked,
            node: None,
            source: ArenaSource::Memfd,
        });
        let arena = arena.unwrap();
        let attachment = memory.attach(function.iommu()).unwrap();
        enable(function.config()).unwrap();
        let bar = function.bar(0).unwrap();
        Host {
            reactor,
            controller,
            function,
            bar,
            arena,
            memory,
            attachment: Some(attachment),
            pairs: vec![None],
            next_cid: 0,
        }
    }

    pub(crate) fn reg32(&self, offset: u64) -> Reg32 {
        Reg32::new(&self.bar, offset).unwrap()
    }

    pub(crate) fn reg64(&self, offset: u64) -> Reg64 {
        Reg64::new(&self.bar, offset).unwrap()
    }

    pub(crate) fn cap(&self) -> Cap {
        Cap(self.reg64(regs::CAP).read())
    }

    pub(crate) fn csts(&self) -> Csts {
        Csts(self.reg32(regs::CSTS).read())
    }

    /// Host memory that the controller can reach, zeroed.
    pub(crate) fn alloc(&self, len: usize) -> Buf {
        self.arena.alloc(len, 4096).unwrap()
    }

    pub(crate) fn cells(&self, len: usize) -> Cells {
        Cells::new(self.alloc(len)).unwrap()
    }

    pub(crate) fn turns(&self, count: usize) {
        (0..count).for_each(|_| {
            self.reactor.poll();
        });
    }

    /// CC for a controller that runs.
    pub(crate) fn cc() -> Cc {
        Cc::default().with_en(true).with_iosqes(6).with_iocqes(4)
    }

    pub(crate) fn set_admin_queues(&mut self) {
        let pair = self.pair(0, ADMIN_ENTRIES.into());
        self.reg32(regs::AQA).write(Aqa::new(ADMIN_ENTRIES, ADMIN_ENTRIES).0);
        self.reg64(regs::ASQ).write(pair.sq.words().iova().unwrap());
        self.reg64(regs::ACQ).write(pair.cq.words().iova().unwrap());
        self.pairs = vec![Some(pair)];
    }

    /// Rings in host memory, and the doorbells of a queue number.
    pub(crate) fn pair(&self, qid: u16, entries: u32) -> Pair {
        let dstrd = self.cap().dstrd();
        let bell = |is_cq| self.reg32(regs::doorbell_offset(qid, is_cq, dstrd));
        let sq = self.cells(entries as usize * Command::BYTES);
        let cq = self.cells(entries as usize * Completion::BYTES);
        Pair {
            sq: SubmissionQueue::new(sq, entries).unwrap(),
            cq: CompletionQueue::new(cq, entries).unwrap(),
            tail: bell(false),
            head: bell(true),
            #[cfg(test)]
            stash: Vec::new(),
        }
    }

    pub(crate) fn queue(&mut self, qid: u16) -> &mut Pair {
        self.pairs[usize::from(qid)].as_mut().unwrap()
    }

    /// Puts a command in a queue without ringing, and returns its identifier.
    pub(crate) fn push(&mut self, qid: u16, command: Command) -> u16 {
        self.next_cid = self.next_cid.wrapping_add(1);
        let cid = self.next_cid;
        assert!(self.queue(qid).sq.push(&command.with_cid(cid)), "queue {qid} is full");
        cid
    }

    pub(crate) fn ring(&mut self, qid: u16) {
        let pair = self.queue(qid);
        if let Some((_, tail)) = pair.sq.pending() {
            pair.tail.write(tail.into());
            pair.sq.rang();
        }
    }
}

/// What the tests need besides.
#[cfg(test)]
impl Host {
    /// A controller with these options, not enabled yet.
    pub(crate) fn new(options: ControllerOptions) -> Host {
        let reactor = reactor(256);
        let core = reactor.core().clone();
        let start = async move { Controller::start(&core, options).await };
        let controller = reactor.block_on(start).unwrap().unwrap();
        Host::over(reactor, controller)
    }

    /// The same, with fault switches.
    pub(crate) fn with_faults(options: ControllerOptions, faults: &Arc<Faults>) -> Host {
        Host::with_faults_on(reactor(256), options, faults)
    }

    /// The same, in time that only the test moves.
    pub(crate) fn with_faults_in_time(
        options: ControllerOptions,
        faults: &Arc<Faults>,
    ) -> (Host, SimulatedClock) {
        let clock = SimulatedClock::new();
        let reactor = reactor_with(256, ClockSource::Simulated(clock.clone()));
        (Host::with_faults_on(reactor, options, faults), clock)
    }

    fn with_faults_on(reactor: Reactor, options: ControllerOptions, faults: &Arc<Faults>) -> Host {
        let (core, faults) = (reactor.core().clone(), Arc::clone(faults));
        let start = async move { fault::start(&core, options, &faults).await };
        let controller = reactor.block_on(start).unwrap().unwrap();
        Host::over(reactor, controller)
    }

    /// A controller that is ready.
    pub(crate) fn ready(options: ControllerOptions) -> Host {
        let mut host = Host::new(options);
        host.enable();
        host
    }

    /// A controller that is ready, with one pair of I/O queues.
    pub(crate) fn with_io(options: ControllerOptions) -> Host {
        let mut host = Host::ready(options);
        host.create_io(1, 64);
        host
    }

    /// Turns until something holds.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&Host) -> bool) {
        for _ in 0..TURNS {
            if holds(self) {
                return;
            }
            self.reactor.poll();
        }
        panic!("never: {what}");
    }

    /// New admin queues, EN, and RDY.
    #[track_caller]
    pub(crate) fn enable(&mut self) {
        self.set_admin_queues();
        self.reg32(regs::CC).write(Host::cc().0);
        self.until("ready", |host| host.csts().rdy());
    }

    #[track_caller]
    pub(crate) fn disable(&mut self) {
        self.reg32(regs::CC).write(0);
        self.until("disabled", |host| !host.csts().rdy());
    }

    /// Creates a pair of I/O queues with interrupts off.
    #[track_caller]
    pub(crate) fn create_io(&mut self, qid: u16, entries: u32) {
        let pair = self.pair(qid, entries);
        let (sq, cq) = (pair.sq.words().iova().unwrap(), pair.cq.words().iova().unwrap());
        self.ok(Command::create_cq(qid, entries, cq, None));
        self.ok(Command::create_sq(qid, entries, sq, qid));
        let count = self.pairs.len().max(usize::from(qid) + 1);
        self.pairs.resize_with(count, || None);
        self.pairs[usize::from(qid)] = Some(pair);
    }

    pub(crate) fn submit(&mut self, qid: u16, command: Command) -> u16 {
        let cid = self.push(qid, command);
        self.ring(qid);
        cid
    }

    /// Takes what has completed, and rings for it.
    pub(crate) fn reap(&mut self, qid: u16) {
        let pair = self.queue(qid);
        while let Some(completion) = pair.cq.pop() {
            pair.sq.fetched(completion.sqhd()).unwrap();
            pair.stash.push(completion);
        }
        if let Some((_, head)) = pair.cq.pending() {
            pair.head.write(head.into());
            pair.cq.rang();
        }
    }

    /// The completion of a command, if it is there.
    pub(crate) fn take(&mut self, qid: u16, cid: u16) -> Option<Completion> {
        self.reap(qid);
        let stash = &mut self.queue(qid).stash;
        let at = stash.iter().position(|c| c.cid() == cid)?;
        Some(stash.remove(at))
    }

    #[track_caller]
    pub(crate) fn wait(&mut self, qid: u16, cid: u16) -> Completion {
        for _ in 0..TURNS {
            if let Some(completion) = self.take(qid, cid) {
                return completion;
            }
            self.reactor.poll();
        }
        panic!("command {cid} in queue {qid} never completed");
    }

    #[track_caller]
    pub(crate) fn run(&mut self, qid: u16, command: Command) -> Completion {
        let cid = self.submit(qid, command);
        self.wait(qid, cid)
    }

    /// The status of a command, without DNR.
    #[track_caller]
    pub(crate) fn status(&mut self, qid: u16, command: Command) -> Status {
        let status = self.run(qid, command).status();
        Status { dnr: false, ..status }
    }

    /// An admin command that must succeed; dword 0.
    #[track_caller]
    pub(crate) fn ok(&mut self, command: Command) -> u32 {
        let completion = self.run(0, command);
        assert!(completion.status().is_success(), "{}", completion.status());
        completion.dw0()
    }

    /// An admin command with one page of data from the controller.
    #[track_caller]
    pub(crate) fn page(&mut self, command: Command) -> Vec<u8> {
        let buf = self.alloc(4096);
        self.ok(command.with_prp(buf.iova().unwrap(), 0));
        buf.as_slice().unwrap().to_vec()
    }
}
