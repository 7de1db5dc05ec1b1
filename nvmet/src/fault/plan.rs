//! Random faults that follow from a seed, for simulations.

use std::time::Duration;

use oxblock_nvme::opcode::nvm;
use oxblock_nvme::{Command, Status};

use super::{CommandFault, CompletionFault};

/// Which faults come by chance, how often, and how many. The same plan and the same order of
/// commands bring the same faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    /// Where all chance comes from.
    pub seed: u64,
    /// Of a thousand I/O commands, how many have each of the faults.
    pub chances: Chances,
    /// The longest time that a completion is late, or torn.
    pub delay_max: Duration,
    /// How long the controller is gone when it vanishes.
    pub gone_for: Duration,
    /// The mean time between events, and which there are: one of them each time.
    pub event_every: Duration,
    /// The events to choose from; none is no events.
    pub events: Vec<FaultEvent>,
    /// After so many faults and events all goes well.
    pub faults_max: u32,
}

/// Of a thousand I/O commands, how many have each of the faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chances {
    /// The completion is late.
    pub late: u16,
    /// The completion is torn for a while.
    pub torn: u16,
    /// The completion comes twice.
    pub twice: u16,
    /// The completion never comes.
    pub lost: u16,
    /// The completion has an identifier with its top bit flipped.
    pub misnamed: u16,
    /// The command never completes.
    pub hung: u16,
    /// The command fails and may be tried again, now or after a delay.
    pub refused: u16,
    /// The command fails with a media error for good.
    pub failed: u16,
    /// The controller fails at the command.
    pub fatal: u16,
    /// The controller is gone for a while.
    pub vanishing: u16,
}

/// Something that happens to a controller, and not to one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEvent {
    /// CSTS.CFS.
    Fatal,
    /// It is gone for a while.
    Gone,
    /// The next time that it is disabled takes for ever, or until the function is reset.
    DisableHangs,
    /// The next reset of the function fails.
    FunctionResetFails,
    /// The next time that it is enabled takes a while.
    ReadyLate,
    /// A persistent internal error is reported.
    PersistentError,
    /// A critical warning is reported: its spare is low.
    SmartWarning,
    /// The function reports an error of its bus.
    BusError,
    /// The function is pulled, for good.
    Removed,
}

/// A plan at work.
pub(super) struct Chance {
    plan: FaultPlan,
    random: u64,
    left: u32,
    /// When the next event is due.
    next_ns: u64,
}

/// A fault that was drawn.
pub(super) enum Drawn {
    Command(CommandFault),
    Completion(CompletionFault),
}

impl FaultPlan {
    /// Nothing, until chances are set.
    #[must_use]
    pub fn quiet(seed: u64) -> FaultPlan {
        FaultPlan {
            seed,
            chances: Chances::default(),
            delay_max: Duration::from_millis(5),
            gone_for: Duration::from_millis(50),
            event_every: Duration::from_millis(100),
            events: Vec::new(),
            faults_max: 50,
        }
    }

    /// A mix of faults that a controller comes back from, another for each seed: some seeds only
    /// make it slow, some make it lie, and some break it over and over.
    #[must_use]
    pub fn from_seed(seed: u64) -> FaultPlan {
        let mut random = start(seed ^ 0x5eed_0fa1);
        let mut some = |most: u64| -> u16 {
            let draw = next(&mut random);
            // Half of the kinds are left out.
            if draw & 1 == 0 { 0 } else { 1 + (draw >> 8) as u16 % most as u16 }
        };
        let chances = Chances {
            late: some(100),
            torn: some(20),
            twice: some(20),
            lost: some(5),
            misnamed: some(5),
            hung: some(5),
            refused: some(50),
            failed: some(10),
            fatal: some(3),
            vanishing: 0,
        };
        let all = [
            FaultEvent::Fatal,
            FaultEvent::DisableHangs,
            FaultEvent::ReadyLate,
            FaultEvent::PersistentError,
            FaultEvent::SmartWarning,
            FaultEvent::BusError,
        ];
        let events = all.into_iter().filter(|_| some(1) > 0).collect();
        let event_every = Duration::from_millis(u64::from(some(200)) + 20);
        FaultPlan { chances, events, event_every, ..FaultPlan::quiet(seed) }
    }
}

impl Chance {
    pub(super) fn new(plan: FaultPlan, now_ns: u64) -> Chance {
        let (random, left) = (start(plan.seed), plan.faults_max);
        let mut chance = Chance { plan, random, left, next_ns: u64::MAX };
        chance.schedule(now_ns);
        chance
    }

    pub(super) fn gone_for(&self) -> Duration {
        self.plan.gone_for
    }

    /// When something may happen without a command: all ones is never.
    pub(super) fn wakes_at(&self) -> u64 {
        if self.left == 0 { u64::MAX } else { self.next_ns }
    }

    /// An event, if one is due.
    pub(super) fn event(&mut self, now_ns: u64) -> Option<FaultEvent> {
        if now_ns < self.wakes_at() {
            return None;
        }
        self.schedule(now_ns);
        self.left -= 1;
        let draw = self.draw() as usize;
        self.plan.events.get(draw % self.plan.events.len().max(1)).copied()
    }

    /// The fault of an I/O command, if it has one.
    pub(super) fn command(&mut self, command: &Command) -> Option<Drawn> {
        if self.left == 0 {
            return None;
        }
        let mut draw = (self.draw() % 1000) as u16;
        let mut within = |chance: u16| {
            let hit = draw < chance;
            draw = draw.saturating_sub(chance);
            hit
        };
        let chances = self.plan.chances;
        let kinds = [
            chances.late,
            chances.torn,
            chances.twice,
            chances.lost,
            chances.misnamed,
            chances.hung,
            chances.refused,
            chances.failed,
            chances.fatal,
            chances.vanishing,
        ];
        let kind = kinds.into_iter().position(&mut within)?;
        self.left -= 1;
        Some(match kind {
            0 => Drawn::Completion(CompletionFault::After(self.delay())),
            1 => Drawn::Completion(CompletionFault::TornFor(self.delay())),
            2 => Drawn::Completion(CompletionFault::Twice),
            3 => Drawn::Completion(CompletionFault::Lost),
            4 => Drawn::Completion(CompletionFault::Cid(command.cid() ^ 0x8000)),
            5 => Drawn::Command(CommandFault::Hang),
            6 => Drawn::Command(CommandFault::Answer(0, self.transient())),
            7 => Drawn::Command(CommandFault::Answer(0, media(command))),
            8 => Drawn::Command(CommandFault::Fail),
            _ => Drawn::Command(CommandFault::Vanish),
        })
    }

    /// A status that goes away, with or without a delay to keep.
    fn transient(&mut self) -> Status {
        let kinds = [
            Status::COMMAND_INTERRUPTED,
            Status::NAMESPACE_NOT_READY,
            Status::INTERNAL_ERROR,
            Status::TRANSIENT_TRANSPORT_ERROR,
        ];
        let draw = self.draw();
        kinds[draw as usize % kinds.len()].crd((draw >> 8) as u8 % 4)
    }

    fn delay(&mut self) -> Duration {
        let most = self.plan.delay_max.as_nanos() as u64;
        Duration::from_nanos(self.draw() % most.max(1))
    }

    fn schedule(&mut self, now_ns: u64) {
        let mean = (self.plan.event_every.as_nanos() as u64).max(1);
        if !self.plan.events.is_empty() {
            self.next_ns = now_ns.saturating_add(mean / 2 + self.draw() % mean);
        }
    }

    fn draw(&mut self) -> u64 {
        next(&mut self.random)
    }
}

fn media(command: &Command) -> Status {
    match command.opcode() {
        nvm::READ | nvm::COMPARE | nvm::VERIFY => Status::UNRECOVERED_READ_ERROR.dnr(),
        _ => Status::WRITE_FAULT.dnr(),
    }
}

/// A state to draw from, never 0.
fn start(seed: u64) -> u64 {
    seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// The next number: xorshift64* (Marsaglia; Vigna).
fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(plan: &FaultPlan, commands: u64) -> Vec<String> {
        let mut chance = Chance::new(plan.clone(), 0);
        let mut drawn = Vec::new();
        for n in 0..commands {
            let command = Command::read(1, n, 1).with_cid(n as u16);
            match chance.command(&command) {
                Some(Drawn::Command(fault)) => drawn.push(format!("{fault:?}")),
                Some(Drawn::Completion(fault)) => drawn.push(format!("{fault:?}")),
                None => {}
            }
            drawn.extend(chance.event(n * 1_000_000).map(|event| format!("{event:?}")));
        }
        drawn
    }

    #[test]
    fn a_seed_brings_the_same_faults_again_and_they_end() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let plan = FaultPlan::from_seed(seed);
            let drawn = run(&plan, 5000);
            assert_eq!(drawn, run(&plan, 5000), "seed {seed}");
            assert!(drawn.len() <= plan.faults_max as usize);
            kinds.extend(drawn.iter().map(|text| text.split('(').next().unwrap_or("").to_owned()));
        }
        for kind in ["After", "TornFor", "Twice", "Lost", "Cid", "Hang", "Answer", "Fail", "Fatal"]
        {
            assert!(kinds.contains(kind), "{kind} never came: {kinds:?}");
        }
    }

    #[test]
    fn chances_are_kept() {
        let mut plan = FaultPlan::quiet(7);
        plan.faults_max = u32::MAX;
        assert!(run(&plan, 1000).is_empty());
        plan.chances = Chances { twice: 100, hung: 300, ..Chances::default() };
        let drawn = run(&plan, 10_000);
        let count = |kind: &str| drawn.iter().filter(|text| *text == kind).count();
        assert!((800..1200).contains(&count("Twice")), "{}", count("Twice"));
        assert!((2700..3300).contains(&count("Hang")), "{}", count("Hang"));
        assert_eq!(count("Twice") + count("Hang"), drawn.len());
    }
}
