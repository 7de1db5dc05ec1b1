//! Arbitrary completions, registers and identify pages into the driver, for a while.
//! `OXBLOCK_FUZZ_SECONDS` makes it longer, or goes on until there were so many completions
//! (`OXBLOCK_FUZZ_COMPLETIONS`), or registers and pages (`OXBLOCK_FUZZ_READS`). `OXBLOCK_SEED`
//! replays a run: with the same counts asked for, as runs are longer then.
//!
//! What must hold, whatever the device does: nothing panics, every operation ends exactly once,
//! and none succeeds that the device never completed with success under the identifier that it
//! had. The canary takes the driver's belief checks away and must be caught.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use oxblock_engine::{Channel, Completion as Ended, Op};
use oxblock_nvme::Completion;
use oxblock_nvme::event::Event;
use oxblock_nvme::status::Status;
use zerocopy::IntoBytes;

use super::super::tracker::trust_blindly;
use super::Rig;
use super::device::{Follow, State};

/// Operations in one run, and in one of many.
const OPS: u64 = 60;
const MANY_OPS: u64 = 3000;

/// Blocks that they read.
const BLOCKS: u64 = 240;

/// Commands after which a tracker uses an identifier again, less what may be in flight.
const IDENTIFIERS: usize = 60;

/// SplitMix64.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What a run found wrong, if anything.
type Verdict = Result<(), String>;

/// One run: a device that mostly works and often lies. How many completions it posted.
fn run(seed: u64, ops: u64) -> Result<u64, String> {
    let mut random = Random(seed);
    let mut rig = Rig::new(|state| {
        state.cap = state.cap.with_mqes([1, 3, 7, 63][random.below(4) as usize]);
        state.controller.oacs = (random.below(2) as u16 * 0x100).into();
        state.controller.sgls = (random.below(4) as u32).into();
    });
    let (controller, channel) = rig.open();
    // Each operation reads its own LBA, so that a buffer tells whether it was really read.
    for (lba, block) in rig.device.state().disk.chunks_mut(512).enumerate() {
        block.fill(mark(lba as u64));
    }
    rig.device.state().hold = true;
    let mut waiting: HashMap<u64, Rc<Cell<Option<Ended>>>> = HashMap::new();
    let mut verdict = Ok(());
    let (mut next, mut executed) = (0, Vec::new());
    for _ in 0..ops * 10 {
        let lba = next % BLOCKS;
        if next < ops && !waiting.contains_key(&lba) && random.one_in(2) {
            let mut buf = rig.buf(512);
            buf.fill(0, 512, 0);
            let cell = rig.start(&channel, Op::read(lba * 512, buf));
            waiting.insert(lba, cell);
            next += 1;
        }
        for _ in 0..random.below(4) {
            lie(&mut rig.device.state(), &mut random, &mut executed);
        }
        rig.turns(10);
        waiting.retain(|lba, cell| match cell.take() {
            None => true,
            Some(ended) => {
                let found = check(*lba, &ended);
                verdict = std::mem::replace(&mut verdict, Ok(())).and(found);
                false
            }
        });
    }
    end(&mut rig, &controller, &channel);
    for (lba, cell) in waiting {
        let Some(ended) = cell.take() else {
            return Err(format!("the read of LBA {lba} never ended"));
        };
        verdict = verdict.and(check(lba, &ended));
    }
    let spurious = rig.sim.core(0).stats().spurious_completions;
    if spurious > 0 {
        return Err(format!("{spurious} completions of operations that had ended"));
    }
    let posted = rig.device.state().posted;
    verdict.map(|()| posted)
}

fn mark(lba: u64) -> u8 {
    (lba % 250) as u8 + 1
}

/// A read that succeeded has its data.
fn check(lba: u64, ended: &Ended) -> Verdict {
    let mut byte = [0];
    ended.op.data.read_at(0, &mut byte);
    if ended.result.is_ok() && byte[0] != mark(lba) {
        return Err(format!("the read of LBA {lba} succeeded without its data"));
    }
    Ok(())
}

/// One move of the device: the right thing, or something else.
fn lie(state: &mut State, random: &mut Random, executed: &mut Vec<(u16, u16, usize)>) {
    state.poll_shadows();
    let cq_full = state.cqs.get(&1).is_none_or(|cq| cq.is_full());
    match random.below(12) {
        0..=4 => {
            let Some((sqid, command)) = state.held.pop_front() else { return };
            if cq_full {
                return state.held.push_front((sqid, command));
            }
            executed.push((sqid, command.cid(), state.io().len()));
            state.execute(sqid, &command);
        }
        _ if cq_full => {}
        // Again what was completed before, with success.
        5..=7 => {
            let one = random.below(64.min(executed.len() as u64).max(1)) as usize;
            let Some(&(sqid, cid, at)) = executed.iter().rev().nth(one) else { return };
            // Commands that are sent again use identifiers up, and those come back.
            if state.io().len() - at > IDENTIFIERS {
                return;
            }
            state.post(sqid, cid, Status::SUCCESS, random.next());
        }
        8 => {
            let cid = (random.next() as u16) & 0xfc3f;
            let live = state.held.iter().any(|(_, command)| command.cid() == cid);
            if !live {
                state.post(1, cid, Status::SUCCESS, random.next());
            }
        }
        // A head that may be, or may not; an identifier that is none.
        9 => {
            let (sqhd, sqid) = (random.next() as u16, random.below(3) as u16);
            let entry = Completion::new(0, sqhd, sqid, 0x03ff, Status::SUCCESS);
            if let Some(cq) = state.cqs.get_mut(&1) {
                cq.post(entry);
                state.posted += 1;
            }
        }
        // A failure under the right identifier.
        10 => {
            let Some((sqid, command)) = state.held.pop_back() else { return };
            let status = Status::new(1 + random.below(7) as u8, random.next() as u8);
            state.post(sqid, command.cid(), status, 0);
        }
        _ => state.raise(Event::from_dword(random.next() as u32)),
    }
}

/// The device goes, fails, or ends in good order; what is in flight must end with it.
fn end(rig: &mut Rig, controller: &std::sync::Arc<super::Controller>, channel: &Rc<Channel>) {
    let seed = rig.device.state().mmio;
    match seed % 3 {
        0 => rig.device.state().gone = true,
        1 => {
            let mut state = rig.device.state();
            state.csts = state.csts.with_cfs(true);
        }
        _ => {}
    }
    if seed % 3 < 2 {
        rig.wait_ms(300);
    } else {
        let controller = controller.clone();
        let _ = rig.run(|core| async move { controller.shutdown(&core).await });
    }
    let node = channel.node().clone();
    let _ = rig.run(|core| async move { core.close(&node).await });
    rig.turns(100);
}

fn told(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// From which seed, and how long to go on.
struct Budget {
    first: u64,
    until: Instant,
    count: Option<u64>,
}

impl Budget {
    /// So many of what `count` names, if it is set; else for a while.
    fn new(count: &str) -> Budget {
        let quick = Duration::from_millis(1500);
        let time = told("OXBLOCK_FUZZ_SECONDS").map_or(quick, Duration::from_secs);
        let first = told("OXBLOCK_SEED").unwrap_or(1);
        Budget { first, until: Instant::now() + time, count: told(count) }
    }

    fn is_spent(&self, seed: u64, done: u64) -> bool {
        let enough = self.count.map_or(Instant::now() >= self.until, |count| done >= count);
        seed > self.first && enough
    }
}

#[test]
fn fuzz_completions() {
    let budget = Budget::new("OXBLOCK_FUZZ_COMPLETIONS");
    let ops = if budget.count.is_some() { MANY_OPS } else { OPS };
    let (mut seed, mut posted) = (budget.first, 0);
    while !budget.is_spent(seed, posted) {
        posted += run(seed, ops).unwrap_or_else(|text| panic!("OXBLOCK_SEED={seed}: {text}"));
        seed += 1;
    }
    println!("{posted} completions in {} runs", seed - budget.first);
}

/// The canary: a driver that believes an identifier's index alone must be caught.
#[test]
fn fuzz_catches_a_driver_that_believes_too_much() {
    trust_blindly(true);
    let caught = (1..40).any(|seed| run(seed, OPS).is_err());
    trust_blindly(false);
    assert!(caught, "the checks above see nothing");
}

/// Arbitrary registers and identify pages into attach: an error in words or a controller that
/// works, in bounded simulated time, never a panic.
#[test]
fn fuzz_attach() {
    let budget = Budget::new("OXBLOCK_FUZZ_READS");
    let (mut seed, mut reads, mut attached) = (budget.first, 0, 0);
    while !budget.is_spent(seed, reads) {
        let (well, of) = attach(seed);
        (attached, reads) = (attached + u64::from(well), reads + of);
        seed += 1;
    }
    let runs = seed - budget.first;
    println!("{reads} registers and pages in {runs} runs, {attached} of which attached");
    assert!(runs < 20 || attached > 0 && attached < runs, "{attached} of {runs} attached");
}

/// Whether the controller could be attached, and how many registers and pages were read.
fn attach(seed: u64) -> (bool, u64) {
    let mut random = Random(seed);
    let bar_len = [0x1000, 0x1008, 0x1010, 0x2000, 0x10_0000][random.below(5) as usize];
    let mut rig = Rig::with(1, bar_len, |state| arbitrary(state, &mut random));
    rig.options.admin_timeout = Duration::from_micros(200);
    let controller = rig.try_attach();
    let attached = controller.is_ok();
    if let Ok(controller) = controller {
        use_namespaces(&mut rig, &controller);
        let _ = rig.run(|core| async move { controller.shutdown(&core).await });
    }
    let state = rig.device.state();
    (attached, state.mmio + state.identified.len() as u64)
}

/// I/O to the first namespace, and a look at the others.
fn use_namespaces(rig: &mut Rig, controller: &std::sync::Arc<super::Controller>) {
    for nsid in controller.namespaces() {
        let Ok(driver) = controller.namespace(nsid) else { continue };
        let limits = driver.limits();
        assert!((512..=4096).contains(&limits.block_size));
        assert!(limits.length.is_multiple_of(limits.block_size.into()));
        assert!((limits.block_size..=2 << 20).contains(&limits.max_transfer));
        if nsid != 1 || limits.length == 0 {
            continue;
        }
        let node = oxblock_engine::Node::new("nvme", driver);
        let opened = rig.run(|core| async move { core.open(&node).await });
        let Ok(channel) = opened else { continue };
        let (channel, block) = (Rc::new(channel), limits.block_size as usize);
        for op in [
            Op::read(0, rig.buf(block)),
            Op::flush(),
            Op::discard(0, limits.length.min(1 << 40) / block as u64 * block as u64),
        ] {
            // Its outcome is the device's affair; that it has one is the driver's.
            let _ = rig.op(&channel, op);
        }
    }
}

/// Registers and pages of which most are well and some are anything.
fn arbitrary(state: &mut State, random: &mut Random) {
    let follow = |random: &mut Random| match random.below(20) {
        0 => Follow::Never,
        1 => Follow::Fatally,
        n => Follow::AfterReads(n as u32),
    };
    state.cap.0 ^= if random.one_in(2) { 1 << random.below(64) } else { 0 };
    state.cap = state.cap.with_to(random.below(2) as u8);
    state.vs = if random.one_in(4) { random.next() as u32 } else { state.vs };
    state.crto = random.below(3) as u32;
    (state.ready, state.unready) = (follow(random), follow(random));
    state.shutdown = Follow::AfterReads(random.below(9) as u32 + 1);
    state.queues_granted = random.next() as u16;
    let pages = [state.controller.as_mut_bytes(), state.nvm.as_mut_bytes()];
    for page in pages {
        scribble(page, random);
    }
    for nsid in 1..=random.below(4) as u32 {
        let mut page = super::device::namespace(4096, 9);
        scribble(page.as_mut_bytes(), random);
        state.namespaces.insert(nsid, page);
    }
    for _ in 0..random.below(3) {
        let opcode = random.below(0x10) as u8;
        let status = Status::from_bits(random.next() as u16);
        state.refused.insert(opcode, (status, random.below(4) as u32));
    }
}

/// A few arbitrary bytes, most of them where there are fields.
fn scribble(page: &mut [u8], random: &mut Random) {
    for _ in 0..random.below(6) {
        let within = if random.one_in(2) { 700 } else { page.len() as u64 };
        let at = random.below(within) as usize;
        page[at] = random.next() as u8;
    }
}
