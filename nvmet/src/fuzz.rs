//! A fuzz harness: bytes become register writes, commands, doorbells and worse.
//!
//! The harness drives a controller over a node in memory, on one thread, and checks after every
//! step that
//! - nothing panics;
//! - a command that was fetched completes at most once, and exactly once if the controller is
//!   left alone and not reset;
//! - once RDY is 0, host memory does not change.
//!
//! The same function serves cargo-fuzz and a test with seeds. [`fuzz_controller_canary`] has a
//! bug planted in its bookkeeping and must fail, or the harness sees nothing.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use oxblock_engine::{ClockSource, Options, PollMode, Reactor, SimulatedClock};
use oxblock_mem::{ArenaOptions, ArenaSource, Buf, PagePolicy};
use oxblock_nvme::opcode::{admin, nvm};
use oxblock_nvme::regs::{self, Aqa};
use oxblock_nvme::{Command, Completion};

use crate::hooks::{Fate, Hooks, Posting};
use crate::host::Host;
use crate::ram::Ram;
use crate::{Controller, ControllerOptions, NamespaceOptions};

/// Steps that one input can ask for.
const STEPS: usize = 400;

/// Turns after which a controller that is left alone has nothing more to do.
const SETTLE: usize = 64;

/// Bytes of host memory that the harness writes and that commands mostly name.
const WINDOW: usize = 256 << 10;

/// What is said of a command that completes twice, or was never there.
const NOT_IN_WORK: &str = "a completion of a command that is not in work";

/// Entries of queues that are made well.
const ENTRIES: u32 = 16;

/// Runs a controller on arbitrary input.
///
/// # Panics
/// The controller did something that it must not.
pub fn fuzz_controller(data: &[u8]) {
    Fuzz::new(data, false).run();
}

/// The same with a bug planted: the harness must find it in inputs that get as far as a
/// compare that succeeds.
///
/// # Panics
/// The planted bug was found.
pub fn fuzz_controller_canary(data: &[u8]) {
    Fuzz::new(data, true).run();
}

/// Pseudo-random input for a test, the same for the same seed (xorshift64*).
#[must_use]
pub fn input(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

/// Commands in work, as the controller's own hooks see them come and go.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<HashMap<(u16, u16), u32>>>);

struct LedgerHooks {
    ledger: Ledger,
    canary: bool,
}

impl Ledger {
    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<(u16, u16), u32>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Hooks for LedgerHooks {
    const ACTIVE: bool = true;

    fn command(&mut self, sqid: u16, command: &Command) -> Fate {
        let forgotten = self.canary && sqid != 0 && command.opcode() == nvm::COMPARE;
        if !forgotten {
            *self.ledger.entries().entry((sqid, command.cid())).or_default() += 1;
        }
        Fate::CarryOut
    }

    fn completion(&mut self, sqid: u16, completion: &mut Completion) -> Posting {
        let mut entries = self.ledger.entries();
        let key = (sqid, completion.cid());
        let count = entries.get_mut(&key).expect(NOT_IN_WORK);
        *count -= 1;
        if *count == 0 {
            entries.remove(&key);
        }
        Posting::Once
    }

    fn queues_forgotten(&mut self) {
        self.ledger.entries().clear();
    }
}

struct Fuzz<'a> {
    host: Host,
    ram: Arc<Ram>,
    ledger: Ledger,
    window: Buf,
    input: Input<'a>,
    /// Requests for events never complete by themselves.
    alive: bool,
}

impl<'a> Fuzz<'a> {
    fn new(data: &'a [u8], canary: bool) -> Fuzz<'a> {
        let reactor = reactor();
        let ram = Ram::new(1 << 20, 512);
        let ledger = Ledger::default();
        let of = |name, block_size| NamespaceOptions {
            metadata: true,
            ..NamespaceOptions::new(ram.node(name), block_size)
        };
        let read_only = data.first().is_some_and(|byte| byte % 4 == 0);
        let namespaces = vec![of("a", 512), NamespaceOptions { read_only, ..of("b", 4096) }];
        let options = ControllerOptions {
            namespaces,
            capacity: vec![ram.node("c")],
            max_namespaces: 4,
            max_io_queues: 3,
            max_queue_entries: 32,
            mdts: 4,
            cmb_bytes: u64::from(data.get(1).is_some_and(|byte| byte % 2 == 0)) * (64 << 10),
            pmr_bytes: u64::from(data.get(2).is_some_and(|byte| byte % 2 == 0)) * (16 << 10),
            power_transitions: true,
            keep_alive: true,
            host_memory_bytes: 16 << 10,
            firmware_pause: 1,
            ..ControllerOptions::default()
        };
        let core = reactor.core().clone();
        let hooks = LedgerHooks { ledger: ledger.clone(), canary };
        let start =
            async move { Controller::start_with(&core, options, hooks, |device| device).await };
        let controller = reactor.block_on(start).expect("a task").expect("a controller");
        let host = Host::over(reactor, Arc::new(controller));
        let window = host.alloc(WINDOW);
        Fuzz { host, ram, ledger, window, input: Input(data), alive: true }
    }

    fn run(mut self) {
        // Most inputs begin where a driver would be after a while.
        if !self.input.byte().is_multiple_of(8) {
            self.host.set_admin_queues();
            self.host.reg32(regs::CC).write(Host::cc().0);
            self.host.turns(4);
            (0..3).for_each(|_| self.create_queues());
        }
        for _ in 0..STEPS {
            if self.input.is_over() || self.host.csts().is_gone() {
                break;
            }
            self.step();
            self.host.turns(1);
        }
        self.settle();
    }

    fn step(&mut self) {
        match self.input.byte() % 23 {
            0 => self.write_register(),
            1 if !self.host.csts().rdy() || self.input.byte() < 32 => self.enable(),
            2 | 3 => self.create_queues(),
            4..=6 => self.admin_command(),
            7..=11 => self.io_command(),
            12 => self.ring_anything(),
            13 => self.host.turns(self.input.byte().into()),
            14 => self.scribble(),
            15 => self.ram.hold.store(self.input.byte().is_multiple_of(2), Ordering::Relaxed),
            16 => self.remap(),
            17 => self.reap(),
            18 if self.input.byte() < 64 => self.disable(),
            20 => self.manage(),
            21 => self.place_memory(),
            22 => self.lend_memory(),
            _ => self.rarely(),
        }
    }

    /// Memory in BARs comes, goes and moves, mostly to where nothing else is.
    fn place_memory(&mut self) {
        const AT: u64 = 0x1234_0000_0000;
        let control = u64::from(self.input.byte() % 4);
        let base = if self.input.byte() < 16 { self.address() } else { AT };
        match self.input.byte() % 4 {
            0 | 1 => self.host.reg64(regs::CMBMSC).write(base & !0xfff | control),
            2 => self.host.reg32(regs::PMRCTL).write(control as u32),
            _ => {
                self.host.reg32(regs::PMRMSCU).write((base >> 32) as u32);
                self.host.reg32(regs::PMRMSCL).write(base as u32 | control as u32);
            }
        }
    }

    /// A Host Memory Buffer in the window, which other commands write over, too.
    fn lend_memory(&mut self) {
        let base = self.window.iova().unwrap_or(0);
        let piece = [base + 8192, 2 + u64::from(self.input.byte() % 4)];
        self.window.write_at(4096, &piece.map(u64::to_le_bytes).concat());
        let flags = u32::from(self.input.byte() % 4);
        let pages = 2 + u32::from(self.input.byte() % 4);
        self.push(0, Command::host_memory_buffer(flags, pages, base + 4096, 1));
    }

    fn write_register(&mut self) {
        let offset = u64::from(self.input.half()) % self.host.bar.len();
        let value = self.input.word();
        match self.input.byte() % 3 {
            0 => self.host.bar.write64(offset & !7, value),
            _ => self.host.bar.write32(offset & !3, value as u32),
        }
        let _ = self.host.bar.read64(offset & !7);
    }

    /// Good admin queues, and nearly always a good CC.
    fn enable(&mut self) {
        self.host.set_admin_queues();
        if self.input.byte() == 0 {
            self.host.reg32(regs::AQA).write(Aqa::new(1, 3).0);
        }
        let cc = match self.input.byte() {
            0 => self.input.word() as u32 | 1,
            1 => Host::cc().with_mps(1).0,
            _ => Host::cc().0,
        };
        self.host.reg32(regs::CC).write(cc);
        self.host.turns(4);
    }

    /// A pair of queues as they should be, mostly one that is not there yet.
    fn create_queues(&mut self) {
        if self.host.pairs.first().is_none_or(Option::is_none) {
            return;
        }
        let qid = 1 + u16::from(self.input.byte() % 3);
        let known = self.host.pairs.get(usize::from(qid)).is_some_and(Option::is_some);
        if known && self.input.byte() != 0 {
            return;
        }
        let pair = self.host.pair(qid, ENTRIES);
        let at = |words: &oxblock_mem::Cells| words.iova().unwrap_or(0);
        let (sq, cq) = (at(pair.sq.words()), at(pair.cq.words()));
        self.push(0, Command::create_cq(qid, ENTRIES, cq, Some(1)));
        self.push(0, Command::create_sq(qid, ENTRIES, sq, qid));
        self.host.ring(0);
        self.host.turns(3);
        let count = self.host.pairs.len().max(usize::from(qid) + 1);
        self.host.pairs.resize_with(count, || None);
        self.host.pairs[usize::from(qid)] = Some(pair);
    }

    fn admin_command(&mut self) {
        const OPCODES: [u8; 20] = [
            admin::FORMAT_NVM,
            admin::NAMESPACE_MANAGEMENT,
            admin::NAMESPACE_MANAGEMENT,
            admin::NAMESPACE_ATTACHMENT,
            admin::NAMESPACE_ATTACHMENT,
            admin::SANITIZE,
            admin::FIRMWARE_DOWNLOAD,
            admin::FIRMWARE_COMMIT,
            admin::DELETE_SQ,
            admin::CREATE_SQ,
            admin::GET_LOG_PAGE,
            admin::DELETE_CQ,
            admin::CREATE_CQ,
            admin::IDENTIFY,
            admin::ABORT,
            admin::SET_FEATURES,
            admin::GET_FEATURES,
            admin::ASYNC_EVENT,
            admin::DOORBELL_BUFFER_CONFIG,
            admin::KEEP_ALIVE,
        ];
        let command = self.command(&OPCODES);
        self.push(0, command);
    }

    /// A command of namespace management whose data is as it should be, or nearly.
    fn manage(&mut self) {
        let blocks = u64::from(self.input.byte()) << (self.input.byte() % 8);
        let mut page = [0; 128];
        page[..8].copy_from_slice(&blocks.to_le_bytes());
        page[8..16].copy_from_slice(&blocks.to_le_bytes());
        page[26] = self.input.byte() % 2;
        let nsid = u32::from(self.input.byte() % 5);
        let command = match self.input.byte() % 6 {
            0 | 1 => Command::create_namespace(0),
            2 => Command::delete_namespace(nsid),
            3 => Command::detach_namespace(nsid),
            _ => Command::attach_namespace(nsid),
        };
        if command.opcode() == admin::NAMESPACE_ATTACHMENT {
            page[..4].copy_from_slice(&[1, 0, 1, 0]);
        }
        self.window.write_at(0, &page);
        let base = self.window.iova().unwrap_or(0);
        self.push(0, command.with_prp(base, 0));
    }

    fn io_command(&mut self) {
        const OPCODES: [u8; 10] = [
            nvm::FLUSH,
            nvm::WRITE,
            nvm::READ,
            nvm::COMPARE,
            nvm::WRITE_ZEROES,
            nvm::DATASET_MANAGEMENT,
            nvm::VERIFY,
            nvm::COPY,
            nvm::READ,
            nvm::WRITE_UNCORRECTABLE,
        ];
        let qid = 1 + u16::from(self.input.byte() % 3);
        let command = self.command(&OPCODES);
        self.push(qid, command);
    }

    /// A command whose fields are sensible more often than not.
    fn command(&mut self, opcodes: &[u8]) -> Command {
        let input = &mut self.input;
        let pick = usize::from(input.byte());
        let opcode = if pick == 255 { input.byte() } else { opcodes[pick % opcodes.len()] };
        let nsid = match input.byte() % 16 {
            0 => input.word() as u32,
            1 => u32::MAX,
            2 => 0,
            3..=5 => 2,
            6 => 3,
            _ => 1,
        };
        let mut command = Command::new(opcode, nsid);
        let small = |input: &mut Input<'_>| match input.byte() {
            0..8 => input.word(),
            8..16 => u64::MAX,
            _ => u64::from(input.byte()),
        };
        let (low, high) = (small(input), small(input));
        let spread = if input.byte().is_multiple_of(16) { high << 32 } else { 0 };
        command.0[5] = low | spread;
        command.0[6] = small(input) | spread;
        command.0[7] = if input.byte().is_multiple_of(8) { input.word() } else { 0 };
        if input.byte().is_multiple_of(16) {
            command.0[0] |= u64::from(input.byte()) << 8;
        }
        command.0[2] = self.address();
        command.0[3] = self.address();
        command.0[4] = self.address();
        command
    }

    /// An address that is mapped more often than not, and page aligned as often.
    fn address(&mut self) -> u64 {
        if self.input.byte() < 16 {
            return 0x1234_0000_0000 + u64::from(self.input.half());
        }
        let base = self.window.iova().unwrap_or(0);
        let offset = u64::from(self.input.half()) * 4 % WINDOW as u64;
        match self.input.byte() % 16 {
            0 => self.input.word(),
            1 => u64::MAX - u64::from(self.input.byte()),
            2..=5 => base + offset,
            _ => base + (offset & !0xfff),
        }
    }

    /// Puts a command in a queue, if there is room, and mostly rings for it.
    fn push(&mut self, qid: u16, command: Command) {
        self.reap();
        let known = self.host.pairs.get(usize::from(qid)).is_some_and(Option::is_some);
        if !known || self.host.queue(qid).sq.is_full() {
            return;
        }
        self.host.push(qid, command);
        if !self.input.byte().is_multiple_of(4) {
            self.host.ring(qid);
        }
    }

    fn ring_anything(&mut self) {
        let (qid, is_cq) = (u16::from(self.input.byte() % 5), self.input.byte().is_multiple_of(2));
        let value = match self.input.byte() % 4 {
            0 => self.input.word() as u32,
            _ => u32::from(self.input.byte() % 40),
        };
        let offset = regs::doorbell_offset(qid, is_cq, 0);
        if offset < self.host.bar.len() {
            self.host.bar.write32(offset, value);
        }
    }

    /// Bytes into host memory: lists, ranges, and the like.
    fn scribble(&mut self) {
        let at = usize::from(self.input.half()) * 4 % (WINDOW - 4096);
        let count = usize::from(self.input.byte());
        for n in 0..count {
            let word = match self.input.byte() % 3 {
                0 => self.input.word(),
                1 => u64::from(self.input.byte()),
                _ => self.address(),
            };
            self.window.write_at(at + n * 8, &word.to_le_bytes());
        }
    }

    /// The host's memory goes from the IOMMU, and comes back.
    fn remap(&mut self) {
        if !self.input.byte().is_multiple_of(4) {
            return;
        }
        let function = Arc::clone(&self.host.function);
        if self.input.byte().is_multiple_of(2) {
            let _ = function.config().write16(4, 0x02);
            self.host.turns(2);
            let _ = function.config().write16(4, 0x06);
            return;
        }
        drop(self.host.attachment.take());
        self.host.turns(2);
        self.host.attachment = self.host.memory.attach(function.iommu()).ok();
    }

    fn rarely(&mut self) {
        match self.input.byte() {
            0 if self.alive => {
                self.alive = false;
                self.host.controller.stop();
            }
            1 | 2 => {
                let _ = self.host.function.reset();
            }
            3..=9 => self.host.controller.namespace_changed(self.input.byte().into()),
            10..=19 => self.ram.depth.store(u64::from(self.input.byte() % 4), Ordering::Relaxed),
            _ => {}
        }
    }

    /// Takes completions as they come, whatever they say.
    fn reap(&mut self) {
        for pair in self.host.pairs.iter_mut().flatten() {
            for _ in 0..ENTRIES * 2 {
                let Some(completion) = pair.cq.pop() else { break };
                let _ = pair.sq.fetched(completion.sqhd());
            }
            if let Some((_, head)) = pair.cq.pending() {
                pair.head.write(head.into());
                pair.cq.rang();
            }
        }
    }

    /// EN goes; once RDY is gone too, host memory must stay as it is.
    fn disable(&mut self) {
        self.ram.hold.store(false, Ordering::Relaxed);
        self.host.reg32(regs::CC).write(0);
        self.host.turns(SETTLE);
        let csts = self.host.csts();
        assert!(!csts.rdy() || csts.is_gone(), "RDY stays after EN has gone");
        let before = self.memory();
        self.ring_anything();
        self.host.turns(SETTLE);
        assert!(before == self.memory(), "host memory changed after RDY went");
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; WINDOW];
        self.window.read_at(0, &mut bytes);
        bytes
    }

    /// Left alone, every command completes but requests for events and what the host has no
    /// room for.
    fn settle(&mut self) {
        self.ram.hold.store(false, Ordering::Relaxed);
        self.ram.depth.store(0, Ordering::Relaxed);
        for _ in 0..SETTLE {
            self.reap();
            self.host.turns(SETTLE);
        }
        let csts = self.host.csts();
        if csts.is_gone() {
            return;
        }
        let served = csts.rdy() && !csts.cfs() && csts.shst() == 0;
        let stuck = self.ledger.entries().keys().filter(|(sqid, _)| *sqid != 0).count();
        assert!(!served || stuck == 0, "{stuck} commands never completed");
        self.disable();
    }
}

fn reactor() -> Reactor {
    let arena = ArenaOptions {
        size: 4 << 20,
        pages: PagePolicy::Unlocked,
        node: None,
        source: ArenaSource::Memfd,
    };
    let clock = ClockSource::Simulated(SimulatedClock::new());
    let options = Options { slots: 16, poll_mode: PollMode::Pure, clock, arena, seed: Some(1) };
    Reactor::new(options).expect("a reactor")
}

/// Bytes read one after the other; zeroes past the end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn told(name: &str) -> Option<u64> {
        std::env::var(name).ok()?.parse().ok()
    }

    /// More by the environment, OXBLOCK_FUZZ_SEEDS, or the one that failed: OXBLOCK_SEED.
    fn seeds() -> std::ops::Range<u64> {
        match told("OXBLOCK_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..told("OXBLOCK_FUZZ_SEEDS").unwrap_or(300),
        }
    }

    #[test]
    fn arbitrary_input_does_no_harm() {
        for seed in seeds() {
            let run = || fuzz_controller(&input(seed, 2000));
            assert!(catch_unwind(run).is_ok(), "OXBLOCK_SEED={seed} runs it again");
        }
    }

    #[test]
    fn the_canary_is_found() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let planted = |seed| {
            let run = || fuzz_controller_canary(&input(seed, 2000));
            let Err(panic) = catch_unwind(AssertUnwindSafe(run)) else { return false };
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            text.is_some_and(|text| text.contains(NOT_IN_WORK))
        };
        let found = (0..300).any(planted);
        std::panic::set_hook(hook);
        assert!(found, "the harness never got as far as a compare");
    }
}
