//! Commands that do not go the usual way: those that fail, are late, are cancelled, or are sent
//! again.

use std::time::Duration;

use oxblock_engine::{ErrorKind, Fault, Pass, Token};
use oxblock_nvme::opcode::nvm;
use oxblock_nvme::{Command, Completion, Status};

use super::NvmeOptions;
use super::home::WATCH_NS;
use super::queue_pair::{Gate, QueuePair, count};
use super::status;
use super::tracker::{Aside, Stage};

/// The longest time that is counted in ticks; they are 16 bits, and wrap.
const TICKS_MAX: u64 = 30_000;
/// Ticks in 100 ms, the unit of CRDT.
const TICKS_PER_CRDT: u64 = 100_000_000 / WATCH_NS;
/// The first delay for what is busy, in ticks, doubled each time up to this often.
const BUSY_TICKS: u16 = 2;
const BUSY_DOUBLED: u8 = 5;

/// How long commands may take, and how often they are sent. Times are in ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    io: u16,
    slow: u16,
    abort: u16,
    retries: u8,
    /// Command Retry Delay Times 1 to 3.
    crdt: [u16; 3],
}

impl Patience {
    /// As the options and the controller's CRDT1 to CRDT3 say.
    pub fn new(options: &NvmeOptions, crdt: [u16; 3]) -> Patience {
        let delay = |units: u16| (u64::from(units) * TICKS_PER_CRDT).min(TICKS_MAX) as u16;
        Patience {
            io: ticks(options.io_timeout),
            slow: ticks(options.slow_timeout),
            abort: ticks(options.abort_timeout),
            retries: options.retries,
            crdt: crdt.map(delay),
        }
    }

    /// How long the controller may take over a command.
    fn of(&self, command: Option<Command>) -> u16 {
        match command.map(|command| command.opcode()) {
            Some(nvm::FLUSH | nvm::WRITE_ZEROES | nvm::DATASET_MANAGEMENT) => self.slow,
            _ => self.io,
        }
    }
}

/// Ticks that are no less than a time: the one that is under way does not count.
fn ticks(time: Duration) -> u16 {
    let ticks = time.as_nanos().div_ceil(WATCH_NS.into()) + 1;
    ticks.min(TICKS_MAX.into()) as u16
}

/// Whether a command is sent again.
pub(super) enum Verdict {
    /// It is, and counts so many retries by now.
    Again { retries: u8 },
    /// It was sent as often as it may be.
    Enough,
    /// It may not be sent twice.
    Never,
}

impl QueuePair {
    /// Takes a completion that is no plain success of a usual command; false if it names no command
    /// of ours (row 15).
    #[cold]
    pub fn complete_aside(&mut self, entry: Completion, pass: &mut Pass) -> bool {
        let index = self.trackers.locate(entry.cid());
        let found = index.and_then(|index| Some((index, self.trackers.aside(index)?)));
        let Some((index, aside)) = found else {
            count(&self.counters.bad_cid);
            return false;
        };
        if matches!(aside.stage, Stage::Late { .. }) {
            count(&self.counters.late);
        }
        let status = entry.status();
        if status.is_success() {
            self.finish(index, Ok(()), pass);
            return true;
        }
        match self.after_failure(index, aside, status) {
            Some(again) => {
                self.trackers.set_aside(index, again);
                if again.stage == (Stage::Waiting { due: self.trackers.tick() })
                    && self.send_again(index)
                {
                    self.ring();
                }
            }
            None => {
                let mut fault = status::fault(status, 0, self.commands.block_shift());
                if aside.was_late && fault.kind == ErrorKind::Cancelled && !aside.cancelled {
                    fault.kind = ErrorKind::TimedOut;
                }
                self.finish(index, Err(fault), pass);
            }
        }
        true
    }

    /// What becomes of a command that failed, if it is sent again (rows 23, 24 and 27).
    fn after_failure(&self, index: usize, aside: Aside, status: Status) -> Option<Aside> {
        if aside.cancelled || status.dnr || self.gate == Gate::Closed {
            return None;
        }
        let kind = status::kind(status);
        let first = self.trackers.first_sent(index)?.tick();
        let busy = kind == ErrorKind::Busy;
        if !busy && !status::may_pass(status) {
            return None;
        }
        let limit = self.patience.of(self.trackers.command(index));
        if busy && self.trackers.tick().wrapping_sub(first) >= limit {
            return None;
        }
        let Verdict::Again { retries } = self.verdict(index, aside, !busy) else { return None };
        let delay = match (status.crd, busy) {
            (0, true) => BUSY_TICKS << aside.retries.min(BUSY_DOUBLED),
            (0, false) => 0,
            // The tick that is under way does not count.
            (crd, _) => self.patience.crdt.get(usize::from(crd) - 1).map_or(0, |delay| delay + 1),
        };
        let retries = if busy { retries.saturating_add(1) } else { retries };
        let stage = Stage::Waiting { due: self.trackers.tick().wrapping_add(delay) };
        Some(Aside { stage, retries, ..aside })
    }

    /// Whether a command may be sent again, and whether that counts.
    pub fn verdict(&self, index: usize, aside: Aside, counts: bool) -> Verdict {
        let command = self.trackers.command(index);
        if !command.is_some_and(|command| is_repeatable(&command)) {
            Verdict::Never
        } else if !counts {
            Verdict::Again { retries: aside.retries }
        } else if aside.retries < self.patience.retries {
            Verdict::Again { retries: aside.retries + 1 }
        } else {
            Verdict::Enough
        }
    }

    /// At each tick: sends what is due, and looks for what is late (row 19). The home core has seen
    /// the controller well just before.
    pub fn look_after(&mut self, pass: &mut Pass) -> usize {
        if self.trackers.in_flight() == 0 {
            return 0;
        }
        if self.trackers.any_aside() {
            self.send_due();
            self.ring();
        }
        let mut count = 0;
        for index in 0..self.trackers.len() {
            let Some(aside) = self.trackers.aside(index) else { continue };
            if aside.cancelled && matches!(aside.stage, Stage::Waiting { .. }) {
                let text = "cancelled while it waited to be sent again";
                self.finish(index, Err(Fault::text(ErrorKind::Cancelled, 0, text)), pass);
                count += 1;
                continue;
            }
            self.look_at(index, aside);
        }
        count
    }

    fn look_at(&mut self, index: usize, aside: Aside) {
        match aside.stage {
            Stage::Sent { cid, since } => {
                let limit = self.patience.of(self.trackers.command(index));
                if self.trackers.tick().wrapping_sub(since) < limit {
                    return;
                }
                count(&self.counters.timeouts);
                let abort_asked = self.abort(cid);
                let stage = Stage::Late { cid, since: self.trackers.tick(), abort_asked };
                self.trackers.set_aside(index, Aside { stage, was_late: true, ..aside });
            }
            Stage::Late { since, .. }
                if self.trackers.tick().wrapping_sub(since) >= self.patience.abort =>
            {
                // It was aborted in vain: the controller is reset.
                self.hardware.fail();
            }
            Stage::Late { cid, since, abort_asked: false } => {
                let abort_asked = self.abort(cid);
                let stage = Stage::Late { cid, since, abort_asked };
                self.trackers.set_aside(index, Aside { stage, ..aside });
            }
            Stage::Late { .. } | Stage::Waiting { .. } => {}
        }
    }

    /// Sends all that is due, in the order in which it was first sent.
    pub fn send_due(&mut self) {
        if !self.trackers.any_aside() {
            return;
        }
        let mut due = std::mem::take(&mut self.due);
        due.clear();
        // There is room for all of them.
        due.extend((0..self.trackers.len()).filter_map(|index| self.sent_ago(index)));
        due.sort_unstable_by_key(|(ago, _)| std::cmp::Reverse(*ago));
        for (_, index) in &due {
            if !self.send_again(*index) {
                break;
            }
        }
        self.due = due;
    }

    /// How many commands ago the command of a tracker was first sent, if it is due to be sent
    /// again; and the tracker.
    fn sent_ago(&self, index: usize) -> Option<(u16, usize)> {
        let trackers = &self.trackers;
        let aside = trackers.aside(index).filter(|aside| !aside.cancelled)?;
        let Stage::Waiting { due } = aside.stage else { return None };
        let is_due = trackers.tick().wrapping_sub(due) < u16::MAX / 2;
        let ago = trackers.last_sent().since(trackers.first_sent(index)?);
        is_due.then_some((ago, index))
    }

    /// Sends a command again that waits; false if there is no room, or no controller.
    fn send_again(&mut self, index: usize) -> bool {
        if self.gate == Gate::Held || self.sq.is_full() {
            return false;
        }
        let Some(aside) = self.trackers.aside(index) else { return false };
        let Some(command) = self.trackers.again(index) else { return false };
        let stage = Stage::Sent { cid: command.cid(), since: self.trackers.tick() };
        self.trackers.set_aside(index, Aside { stage, ..aside });
        self.sq.push(&command);
        count(&self.counters.retries);
        true
    }

    /// Ends a request early: by an abort, or where the controller does not have it, at the next
    /// tick. Best effort: where there is no room for an abort, the command takes its time.
    pub fn cancel_of(&mut self, token: Token, seat: u16) {
        let Some(index) = self.trackers.find(token, seat) else { return };
        let Some(aside) = self.trackers.aside(index) else { return };
        self.trackers.set_aside(index, Aside { cancelled: true, ..aside });
        if let Some(cid) = self.trackers.cid(index) {
            self.abort(cid);
        }
    }

    /// Asks the controller to abort a command. Whether it was asked.
    fn abort(&self, cid: u16) -> bool {
        let asked = self.controller.admin().start_abort(self.qid, cid);
        if asked {
            count(&self.counters.aborts);
        }
        asked
    }
}

/// Whether a command that was carried out already may be carried out once more: not compare, whose
/// outcome a later write changes, nor append, nor a fused one (row 24).
fn is_repeatable(command: &Command) -> bool {
    let opcode = command.opcode();
    let known = [nvm::READ, nvm::WRITE, nvm::FLUSH, nvm::WRITE_ZEROES, nvm::DATASET_MANAGEMENT];
    command.fuse() == 0 && known.contains(&opcode)
}
