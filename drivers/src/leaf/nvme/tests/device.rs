//! An NVMe device whose every move a test can script. It acts within the register access that
//! causes it, on the thread of the driver, so that tests replay exactly.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use oxblock_mem::Cells;
use oxblock_nvme::event::Event;
use oxblock_nvme::feature::{self, QueueCounts};
use oxblock_nvme::identify::{
    self, Controller as ControllerPage, ControllerNvm, IdList, Namespace, write_ascii,
};
use oxblock_nvme::opcode::{admin, nvm};
use oxblock_nvme::queue::{CompletionSink, SubmissionSource, Words};
use oxblock_nvme::regs::{self, Cap, Cc, Csts};
use oxblock_nvme::status::Status;
use oxblock_nvme::{Command, Completion, command, dsm, prp, sgl};
use oxblock_pci::Ids;
use oxblock_pci::soft::{
    Device, SoftFunction, SoftInterrupts, SoftIommu, SoftIommuOptions, Translator,
};
use zerocopy::IntoBytes;

/// How a status bit follows what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// At once.
    AtOnce,
    /// After this many reads of CSTS.
    AfterReads(u32),
    /// Never.
    Never,
    /// Never, and CSTS.CFS is set instead.
    Fatally,
}

/// Something that the device saw, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A write of CC.
    Cc(Cc),
    /// An admin command, by opcode; Set Features too.
    Admin(u8),
    /// A feature that was set, by its identifier, and dword 11.
    Feature(u8, u32),
    /// An I/O command.
    Io(Command),
    /// A write of CC.EN=0 while the controller was becoming ready (row 2) or shutting down.
    DisabledTooEarly,
    /// A doorbell register: queue, is completion queue, value.
    Doorbell(u16, bool, u32),
}

type Mangle = Box<dyn FnMut(Completion) -> Vec<Completion> + Send>;

/// The device. `bar_len` does not change, all else does.
pub struct Script {
    bar_len: u64,
    before_status: OnceLock<Box<dyn Fn() + Send + Sync>>,
    state: Mutex<State>,
}

pub struct State {
    pub cap: Cap,
    pub vs: u32,
    pub crto: u32,
    pub cc: Cc,
    pub csts: Csts,
    /// All registers read as all ones.
    pub gone: bool,
    pub ready: Follow,
    pub unready: Follow,
    pub shutdown: Follow,
    /// Resets of the function; each makes `ready` what `ready_after_reset` says.
    pub resets: u32,
    pub ready_after_reset: Option<Follow>,
    /// Whether a reset of the function takes RDY away.
    pub reset_helps: bool,
    pub controller: Box<ControllerPage>,
    pub nvm: Box<ControllerNvm>,
    pub namespaces: BTreeMap<u32, Box<Namespace>>,
    pub queues_granted: u16,
    /// Features that were set, by identifier: the command, and its data.
    pub features: BTreeMap<u8, (Command, Vec<u8>)>,
    /// Features that are refused, by identifier.
    pub refused_features: BTreeMap<u8, Status>,
    /// Admin commands that are answered with a status, by opcode and how often.
    pub refused: HashMap<u8, (Status, u32)>,
    /// I/O commands that are answered with a status, by opcode.
    pub failed: HashMap<u8, Status>,
    /// How many more of those there are; without a word, all.
    pub failures_left: Option<u32>,
    /// I/O commands are kept back until [`Script::release`].
    pub hold: bool,
    pub held: VecDeque<(u16, Command)>,
    /// Admin commands are not answered any more.
    pub deaf: bool,
    /// A reset of the function ends that.
    pub reset_gives_ears: bool,
    pub mangle: Option<Mangle>,
    pub disk: Vec<u8>,
    pub seen: Vec<Seen>,
    /// Registers that are memory, by offset: 32 bits each.
    pub registers: BTreeMap<u64, u32>,
    /// Register accesses, reads and writes.
    pub mmio: u64,
    /// Completions posted, right and wrong ones.
    pub posted: u64,
    /// Identify commands, by CNS.
    pub identified: Vec<u8>,
    /// The last Create I/O Completion Queue.
    pub created_cq: Option<Command>,
    /// The last Create I/O Submission Queue.
    pub created_sq: Option<Command>,
    /// Event requests that are armed.
    pub armed: Vec<Command>,
    /// Log pages, by their identifier; others are all zeroes.
    pub logs: BTreeMap<u8, Vec<u8>>,
    /// Log pages that were read, in order.
    pub logs_read: Vec<u8>,
    /// An event that is raised again as soon as a request is armed.
    pub nagging: Option<Event>,
    pub shadow: Option<[Arc<Cells>; 2]>,
    aqa: u32,
    asq: u64,
    acq: u64,
    countdown: u32,
    pub translator: Translator,
    sqs: BTreeMap<u16, Sq>,
    pub cqs: BTreeMap<u16, CompletionSink<Cells>>,
}

struct Sq {
    ring: SubmissionSource<Cells>,
    cqid: u16,
}

impl Script {
    /// A well-behaved device of one namespace of 4096 blocks of 512 bytes, and its function.
    pub fn new(bar_len: u64) -> (Arc<Script>, Arc<SoftFunction>) {
        Script::with_vectors(bar_len, 1)
    }

    /// The same with this many interrupt vectors, none of which it ever raises by itself.
    pub fn with_vectors(bar_len: u64, vectors: u32) -> (Arc<Script>, Arc<SoftFunction>) {
        Script::make(ids(), SoftIommuOptions::default(), bar_len, vectors)
    }

    /// The same with an identity and an IOMMU of one's own.
    pub fn with(
        ids: Ids,
        iommu: SoftIommuOptions,
        bar_len: u64,
    ) -> (Arc<Script>, Arc<SoftFunction>) {
        Script::make(ids, iommu, bar_len, 1)
    }

    /// The same with all of these.
    pub fn make(
        ids: Ids,
        iommu: SoftIommuOptions,
        bar_len: u64,
        vectors: u32,
    ) -> (Arc<Script>, Arc<SoftFunction>) {
        let iommu = SoftIommu::new(iommu);
        let state = State::new(iommu.translator());
        let script =
            Arc::new(Script { bar_len, before_status: OnceLock::new(), state: Mutex::new(state) });
        let device: Arc<dyn Device> = script.clone();
        let interrupts = SoftInterrupts::new(vectors);
        let function = SoftFunction::new("soft:7", device, ids, iommu, interrupts);
        (script, function.expect("eventfds"))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This comes before each read of CSTS.
    pub fn before_status(&self, wait: impl Fn() + Send + Sync + 'static) {
        assert!(self.before_status.set(Box::new(wait)).is_ok(), "said once");
    }

    /// Carries out the commands that were kept back, and no longer keeps any.
    pub fn release(&self) {
        let mut state = self.state();
        state.hold = false;
        while let Some((sqid, command)) = state.held.pop_front() {
            state.execute(sqid, &command);
        }
    }
}

impl Device for Script {
    fn bar_len(&self, bar: u8) -> u64 {
        if bar == 0 { self.bar_len } else { 0 }
    }

    fn read(&self, _bar: u8, offset: u64, size: u8) -> u64 {
        if offset == regs::CSTS
            && let Some(wait) = self.before_status.get()
        {
            wait();
        }
        let mut state = self.state();
        state.mmio += 1;
        if state.gone {
            return u64::MAX >> (64 - u32::from(size) * 8);
        }
        match offset {
            regs::CAP => state.cap.0,
            regs::VS => state.vs.into(),
            regs::CC => state.cc.0.into(),
            regs::CSTS => state.read_csts().0.into(),
            regs::CRTO => state.crto.into(),
            _ => {
                let word = |at| u64::from(*state.registers.get(&at).unwrap_or(&0));
                if size == 8 { word(offset) | word(offset + 4) << 32 } else { word(offset) }
            }
        }
    }

    fn write(&self, _bar: u8, offset: u64, size: u8, value: u64) {
        let mut state = self.state();
        state.mmio += 1;
        if state.gone {
            return;
        }
        match offset {
            regs::CC => state.write_cc(Cc(value as u32)),
            regs::AQA => state.aqa = value as u32,
            regs::ASQ => state.asq = value,
            regs::ACQ => state.acq = value,
            _ if offset < regs::DOORBELLS => {
                state.registers.insert(offset, value as u32);
                if size == 8 {
                    state.registers.insert(offset + 4, (value >> 32) as u32);
                }
            }
            _ => {
                if let Some((qid, is_cq)) = regs::doorbell_at(offset, state.cap.dstrd()) {
                    state.seen.push(Seen::Doorbell(qid, is_cq, value as u32));
                    state.doorbell(qid, is_cq, value as u32);
                }
            }
        }
    }

    fn reset(&self) {
        let mut state = self.state();
        state.resets += 1;
        state.stop();
        let rdy = state.csts.rdy() && !state.reset_helps;
        (state.cc, state.csts) = (Cc(0), Csts(0).with_rdy(rdy));
        state.deaf &= !state.reset_gives_ears;
        if let Some(ready) = state.ready_after_reset {
            state.ready = ready;
        }
    }
}

impl State {
    fn new(translator: Translator) -> State {
        let mut controller = ControllerPage::boxed();
        (controller.sqes, controller.cqes, controller.cntrltype) = (0x66, 0x44, 1);
        (controller.nn, controller.mdts) = (1.into(), 8);
        controller.oncs = 0x0d.into();
        write_ascii(&mut controller.sn, "SCRIPT");
        State {
            cap: Cap::default().with_mqes(255).with_cqr(true).with_to(2).with_css(1),
            vs: regs::version(2, 0, 0),
            crto: 0,
            cc: Cc(0),
            csts: Csts(0),
            gone: false,
            ready: Follow::AtOnce,
            unready: Follow::AtOnce,
            shutdown: Follow::AtOnce,
            resets: 0,
            ready_after_reset: None,
            reset_helps: true,
            controller,
            nvm: ControllerNvm::boxed(),
            namespaces: [(1, namespace(4096, 9))].into(),
            queues_granted: 8,
            features: BTreeMap::new(),
            refused_features: BTreeMap::new(),
            refused: HashMap::new(),
            failed: HashMap::new(),
            failures_left: None,
            hold: false,
            held: VecDeque::new(),
            deaf: false,
            reset_gives_ears: false,
            mangle: None,
            disk: vec![0; 4096 * 512],
            seen: Vec::new(),
            registers: BTreeMap::new(),
            mmio: 0,
            posted: 0,
            identified: Vec::new(),
            created_cq: None,
            created_sq: None,
            armed: Vec::new(),
            logs: BTreeMap::new(),
            logs_read: Vec::new(),
            nagging: None,
            shadow: None,
            aqa: 0,
            asq: 0,
            acq: 0,
            countdown: 0,
            translator,
            sqs: BTreeMap::new(),
            cqs: BTreeMap::new(),
        }
    }

    /// I/O commands seen, in order.
    pub fn io(&self) -> Vec<Command> {
        let io = |seen: &Seen| match seen {
            Seen::Io(command) => Some(*command),
            _ => None,
        };
        self.seen.iter().filter_map(io).collect()
    }

    /// How often an admin command was seen.
    pub fn admin_count(&self, opcode: u8) -> usize {
        self.seen.iter().filter(|seen| **seen == Seen::Admin(opcode)).count()
    }

    /// Completes an armed event request.
    pub fn raise(&mut self, event: Event) {
        if let Some(command) = self.armed.pop() {
            self.post(0, command.cid(), Status::SUCCESS, event.to_dword().into());
        }
    }

    /// Looks at the shadow doorbells, as a controller does that polls.
    pub fn poll_shadows(&mut self) {
        let Some([shadow, _]) = self.shadow.clone() else { return };
        let qids: Vec<u16> = self.sqs.keys().copied().filter(|qid| *qid != 0).collect();
        for qid in qids {
            for is_cq in [false, true] {
                let index = regs::doorbell_index(qid, is_cq) << self.cap.dstrd();
                let value = shadow.load32(index as usize, std::sync::atomic::Ordering::Acquire);
                self.doorbell(qid, is_cq, value);
            }
        }
    }

    fn read_csts(&mut self) -> Csts {
        let csts = self.csts;
        if self.countdown > 0 {
            self.countdown -= 1;
            if self.countdown == 0 {
                self.csts = if self.cc.shn() != 0 {
                    csts.with_shst(regs::SHST_COMPLETE)
                } else {
                    csts.with_rdy(self.cc.en())
                };
            }
        }
        csts
    }

    fn write_cc(&mut self, cc: Cc) {
        self.seen.push(Seen::Cc(cc));
        if self.cc.en() && !cc.en() {
            if !self.csts.rdy() || self.csts.shst() == regs::SHST_OCCURRING {
                self.seen.push(Seen::DisabledTooEarly);
            }
            self.stop();
            let follow = self.unready;
            self.csts = Csts(self.csts.0 & 1);
            self.follow(follow, |csts| csts.with_rdy(false));
        } else if !self.cc.en() && cc.en() {
            self.start();
            let follow = self.ready;
            self.follow(follow, |csts| csts.with_rdy(true));
        } else if cc.shn() != 0 && self.cc.shn() == 0 {
            self.csts = self.csts.with_shst(regs::SHST_OCCURRING);
            let follow = self.shutdown;
            self.follow(follow, |csts| csts.with_shst(regs::SHST_COMPLETE));
        }
        self.cc = cc;
    }

    fn follow(&mut self, follow: Follow, change: impl Fn(Csts) -> Csts) {
        self.countdown = 0;
        match follow {
            Follow::AtOnce => self.csts = change(self.csts),
            Follow::AfterReads(count) => self.countdown = count,
            Follow::Never => {}
            Follow::Fatally => self.csts = self.csts.with_cfs(true),
        }
    }

    fn start(&mut self) {
        let aqa = regs::Aqa(self.aqa);
        let (sq, cq) = (u32::from(aqa.asqs()) + 1, u32::from(aqa.acqs()) + 1);
        self.create_cq(0, self.acq, cq).expect("an admin completion queue");
        self.create_sq(0, self.asq, sq, 0).expect("an admin submission queue");
    }

    fn stop(&mut self) {
        self.sqs.clear();
        self.cqs.clear();
        self.held.clear();
        self.armed.clear();
        self.features.clear();
        self.shadow = None;
    }

    fn create_cq(&mut self, qid: u16, iova: u64, entries: u32) -> Option<()> {
        let cells = self.translator.cells(iova, entries as usize * 16).ok()?;
        self.cqs.insert(qid, CompletionSink::new(cells, entries).ok()?);
        Some(())
    }

    fn create_sq(&mut self, qid: u16, iova: u64, entries: u32, cqid: u16) -> Option<()> {
        let cells = self.translator.cells(iova, entries as usize * 64).ok()?;
        let ring = SubmissionSource::new(cells, entries).ok()?;
        self.sqs.insert(qid, Sq { ring, cqid });
        Some(())
    }

    fn doorbell(&mut self, qid: u16, is_cq: bool, value: u32) {
        if is_cq {
            if let Some(cq) = self.cqs.get_mut(&qid) {
                cq.set_head(value).expect("a head doorbell that can be");
            }
            return;
        }
        let Some(sq) = self.sqs.get_mut(&qid) else { return };
        sq.ring.set_tail(value).expect("a tail doorbell that can be");
        while let Some(command) = self.sqs.get_mut(&qid).and_then(|sq| sq.ring.fetch()) {
            if qid == 0 {
                self.seen.push(Seen::Admin(command.opcode()));
                self.admin(&command);
                continue;
            }
            self.seen.push(Seen::Io(command));
            if self.hold {
                self.held.push_back((qid, command));
            } else {
                self.execute(qid, &command);
            }
        }
    }

    /// Posts a completion with this SQHD, or several if the script mangles it.
    pub fn post(&mut self, sqid: u16, cid: u16, status: Status, result: u64) {
        self.posted += 1;
        let Some(sq) = self.sqs.get(&sqid) else { return };
        let cqid = sq.cqid;
        let entry = Completion::new(result, sq.ring.head(), sqid, cid, status);
        let entries = match &mut self.mangle {
            Some(mangle) if sqid != 0 => mangle(entry),
            _ => vec![entry],
        };
        for entry in entries {
            if let Some(cq) = self.cqs.get_mut(&cqid) {
                cq.post(entry);
            }
        }
    }

    /// Writes a completion but for its phase tag, as a device that is caught halfway.
    pub fn post_torn(&mut self, sqid: u16, cid: u16, result: u64) {
        let entry = Completion::new(result, 0, sqid, cid, Status::SUCCESS);
        let cq = &self.cqs[&sqid];
        let at = usize::from(cq.tail()) * 2;
        let order = std::sync::atomic::Ordering::Relaxed;
        let phase = cq.words().load64(at + 1, order) & oxblock_nvme::completion::PHASE;
        cq.words().store64(at, entry.0[0], order);
        cq.words().store64(at + 1, entry.0[1] | phase, order);
    }

    fn admin(&mut self, command: &Command) {
        let opcode = command.opcode();
        if self.deaf {
            return;
        }
        if opcode == admin::ASYNC_EVENT {
            if self.armed.len() > usize::from(self.controller.aerl) {
                return self.post(0, command.cid(), Status::AER_LIMIT_EXCEEDED, 0);
            }
            self.armed.push(*command);
            if let Some(event) = self.nagging {
                self.raise(event);
            }
            return;
        }
        if let Some((status, left)) = self.refused.get_mut(&opcode)
            && *left > 0
        {
            *left -= 1;
            let status = *status;
            return self.post(0, command.cid(), status, 0);
        }
        let (status, result) = self.admin_result(command);
        self.post(0, command.cid(), status, result);
    }

    fn admin_result(&mut self, command: &Command) -> (Status, u64) {
        let (qid, entries) = (command.cdw10() as u16, (command.cdw10() >> 16) + 1);
        let made = |made: Option<()>| match made {
            Some(()) => (Status::SUCCESS, 0),
            None => (Status::INVALID_FIELD, 0),
        };
        match command.opcode() {
            admin::IDENTIFY => (self.identify(command), 0),
            admin::CREATE_CQ => {
                self.created_cq = Some(*command);
                made(self.create_cq(qid, command.prp1(), entries))
            }
            admin::CREATE_SQ => {
                self.created_sq = Some(*command);
                let cqid = (command.cdw11() >> 16) as u16;
                made(self.create_sq(qid, command.prp1(), entries, cqid))
            }
            admin::DELETE_SQ => {
                self.held.retain(|(sqid, _)| *sqid != qid);
                made(self.sqs.remove(&qid).map(|_| ()))
            }
            admin::DELETE_CQ => made(self.cqs.remove(&qid).map(|_| ())),
            admin::SET_FEATURES if command.cdw10() as u8 == feature::NUMBER_OF_QUEUES => {
                let granted = self.queues_granted;
                let counts = QueueCounts { submission: granted, completion: granted };
                (Status::SUCCESS, counts.to_dword().into())
            }
            admin::SET_FEATURES => (self.set_feature(command), 0),
            admin::GET_FEATURES => {
                let set = self.features.get(&(command.cdw10() as u8));
                (Status::SUCCESS, set.map_or(0, |(command, _)| command.cdw11().into()))
            }
            admin::ABORT | admin::KEEP_ALIVE => (Status::SUCCESS, 0),
            admin::GET_LOG_PAGE => (self.log_page(command), 0),
            admin::DOORBELL_BUFFER_CONFIG => {
                let page = |iova| self.translator.cells(iova, 4096).ok().map(Arc::new);
                let [first, second] = [command.prp1(), command.prp2()].map(page);
                self.shadow = first.zip(second).map(|(a, b)| [a, b]);
                made(self.shadow.is_some().then_some(()))
            }
            _ => (Status::INVALID_OPCODE, 0),
        }
    }

    fn log_page(&mut self, command: &Command) -> Status {
        let lid = command.cdw10() as u8;
        self.logs_read.push(lid);
        let Some(page) = self.logs.get(&lid) else { return Status::SUCCESS };
        match self.translator.write(command.prp1(), page) {
            Ok(()) => Status::SUCCESS,
            Err(_) => Status::DATA_TRANSFER_ERROR,
        }
    }

    fn set_feature(&mut self, command: &Command) -> Status {
        let id = command.cdw10() as u8;
        self.seen.push(Seen::Feature(id, command.cdw11()));
        if let Some(status) = self.refused_features.get(&id) {
            return *status;
        }
        let mut data = match id {
            feature::AUTONOMOUS_POWER_STATE_TRANSITION => vec![0; 256],
            _ => Vec::new(),
        };
        if !data.is_empty() && self.translator.read(command.prp1(), &mut data).is_err() {
            return Status::DATA_TRANSFER_ERROR;
        }
        if id == feature::NAMESPACE_WRITE_PROTECTION
            && let Some(namespace) = self.namespaces.get_mut(&command.nsid())
        {
            namespace.nsattr = u8::from(command.cdw11() & 7 != 0);
        }
        self.features.insert(id, (*command, data));
        Status::SUCCESS
    }

    fn identify(&mut self, command: &Command) -> Status {
        let iova = command.prp1();
        self.identified.push(command.cdw10() as u8);
        let bytes = match command.cdw10() as u8 {
            identify::CNS_CONTROLLER => self.controller.as_bytes().to_vec(),
            identify::CNS_CONTROLLER_CSI => self.nvm.as_bytes().to_vec(),
            identify::CNS_NAMESPACE => match self.namespaces.get(&command.nsid()) {
                Some(namespace) => namespace.as_bytes().to_vec(),
                None => return Status::INVALID_NAMESPACE,
            },
            identify::CNS_ACTIVE_LIST => {
                let mut list = IdList::boxed();
                let after = self.namespaces.keys().filter(|id| **id > command.nsid());
                list.ids.iter_mut().zip(after).for_each(|(to, id)| *to = (*id).into());
                list.as_bytes().to_vec()
            }
            _ => return Status::INVALID_FIELD,
        };
        match self.translator.write(iova, &bytes) {
            Ok(()) => Status::SUCCESS,
            Err(_) => Status::DATA_TRANSFER_ERROR,
        }
    }

    /// Carries out an I/O command and posts its completion.
    pub fn execute(&mut self, sqid: u16, command: &Command) {
        let status = match self.failed.get(&command.opcode()).copied() {
            Some(status) if self.failures_left != Some(0) => {
                self.failures_left = self.failures_left.map(|left| left - 1);
                status
            }
            _ => self.io_status(command),
        };
        self.post(sqid, command.cid(), status, 0);
    }

    fn io_status(&mut self, command: &Command) -> Status {
        let block = 1usize << self.namespaces[&1].lbaf[0].lbads;
        let start = command.slba() as usize * block;
        let len = command.blocks() as usize * block;
        match command.opcode() {
            nvm::READ | nvm::WRITE => {
                if start + len > self.disk.len() {
                    return Status::LBA_OUT_OF_RANGE;
                }
                match self.transfer(command, start, len) {
                    Ok(()) => Status::SUCCESS,
                    Err(status) => status,
                }
            }
            nvm::WRITE_ZEROES => {
                self.disk[start..start + len].fill(0);
                Status::SUCCESS
            }
            nvm::FLUSH | nvm::DATASET_MANAGEMENT => Status::SUCCESS,
            nvm::COMPARE => Status::COMPARE_FAILURE,
            _ => Status::INVALID_OPCODE,
        }
    }

    fn transfer(&mut self, command: &Command, start: usize, len: usize) -> Result<(), Status> {
        let mut pieces = Vec::new();
        let translator = &mut self.translator;
        let read = |iova, words: &mut [u64]| translator.read(iova, words.as_mut_bytes());
        let walked = if command.psdt() == command::PSDT_PRP {
            let (prp1, prp2) = (command.prp1(), command.prp2());
            let take = |iova, len| {
                pieces.push((iova, len));
                Ok(())
            };
            prp::walk(prp1, prp2, len as u64, 4096, read, take)
        } else {
            let limits =
                sgl::WalkLimits { descriptors: 1024, bit_buckets: false, longer_than_data: false };
            let take = |piece| {
                if let sgl::Piece::Data(iova, len) = piece {
                    pieces.push((iova, len));
                }
                Ok(())
            };
            sgl::walk(command.sgl1(), len as u64, limits, read, take)
        };
        walked.map_err(|error| match error {
            prp::WalkError::Status(status) => status,
            prp::WalkError::Memory(_) => Status::DATA_TRANSFER_ERROR,
        })?;
        let mut at = start;
        for (iova, len) in pieces {
            let place = &mut self.disk[at..at + len as usize];
            let done = match command.opcode() {
                nvm::READ => self.translator.write(iova, place),
                _ => self.translator.read(iova, place),
            };
            done.map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            at += len as usize;
        }
        Ok(())
    }

    /// The ranges of a deallocate command.
    pub fn ranges(&mut self, command: &Command) -> Vec<(u64, u32)> {
        let count = (command.cdw10() as usize & 0xff) + 1;
        let mut words = vec![0u64; count * 2];
        self.translator.read(command.prp1(), words.as_mut_bytes()).expect("mapped ranges");
        let range = |pair: &[u64]| {
            let range = dsm::Range::from_words([pair[0], pair[1]]);
            (range.slba.get(), range.nlb.get())
        };
        words.chunks_exact(2).map(range).collect()
    }
}

fn ids() -> Ids {
    Ids { vendor: 0x1b36, class: 0x01_08_02, ..Ids::default() }
}

/// A namespace of `blocks` blocks of 2^lbads bytes.
pub fn namespace(blocks: u64, lbads: u8) -> Box<Namespace> {
    let mut page = Namespace::boxed();
    (page.nsze, page.ncap) = (blocks.into(), blocks.into());
    page.lbaf[0].lbads = lbads;
    page
}
