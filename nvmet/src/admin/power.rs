//! Power states, and their transitions when nothing happens (Base 2.0, 5.27.1.2, 5.27.1.9 and
//! 8.15.2).

use oxblock_mem::IoVector;
use oxblock_nvme::Status;
use oxblock_nvme::feature::PowerTransition;
use oxblock_nvme::identify::PowerState;

/// Bytes of the table of transitions.
pub(crate) const TABLE_BYTES: usize = 256;

/// Power states that there are with transitions; without there is the first alone. In each:
/// hundredths of a watt, latencies of entry and exit in microseconds, whether it is operational.
const STATES: [(u16, u32, u32, bool); 5] = [
    (2500, 0, 0, true),
    (1800, 0, 0, true),
    (1000, 100, 100, true),
    (50, 2_000, 4_000, false),
    (5, 20_000, 40_000, false),
];

/// Power State Descriptor, flags: not operational.
const NON_OPERATIONAL: u8 = 1 << 1;

/// The state, and how it changes.
pub(crate) struct Power {
    /// How many states there are.
    states: u8,
    state: u8,
    /// The last state that was operational.
    operational: u8,
    workload: u32,
    autonomous: bool,
    table: [u64; TABLE_BYTES / 8],
    /// When the last I/O was seen, or the state changed without one, on the controller's clock.
    active_ms: u64,
}

impl Power {
    pub(crate) fn new(has_transitions: bool, now_ms: u64) -> Power {
        Power {
            states: if has_transitions { STATES.len() as u8 } else { 1 },
            state: 0,
            operational: 0,
            workload: 0,
            autonomous: false,
            table: [0; TABLE_BYTES / 8],
            active_ms: now_ms,
        }
    }

    /// Power Management: the state in bits 4:0, the workload hint in bits 7:5.
    pub(crate) fn to_dword(&self) -> u32 {
        u32::from(self.state) | self.workload
    }

    pub(crate) fn set_state(&mut self, dword: u32) -> Result<(), Status> {
        let state = (dword & 0x1f) as u8;
        if state >= self.states {
            return Err(Status::INVALID_FIELD);
        }
        self.workload = dword & 0xe0;
        self.enter(state);
        Ok(())
    }

    /// Autonomous Power State Transition: whether it is enabled.
    pub(crate) fn is_autonomous(&self) -> bool {
        self.autonomous
    }

    /// Autonomous Power State Transition: dword 11 and the table. Transitions must lead to states
    /// that are not operational.
    pub(crate) fn set_autonomous(
        &mut self,
        dword: u32,
        data: &IoVector,
        now_ms: u64,
    ) -> Result<(), Status> {
        let mut table = [0; TABLE_BYTES];
        data.read_at(0, &mut table);
        let mut words = [0; TABLE_BYTES / 8];
        for (word, bytes) in words.iter_mut().zip(table.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let of_states = words.iter().take(self.states.into());
        let mut to = of_states.filter_map(|word| PowerTransition::from_word(*word));
        if to.any(|to| to.itps >= self.states || is_operational(to.itps)) {
            return Err(Status::INVALID_FIELD);
        }
        (self.autonomous, self.table, self.active_ms) = (dword & 1 != 0, words, now_ms);
        Ok(())
    }

    pub(crate) fn write_table(&self, into: &mut IoVector) {
        for (n, word) in self.table.iter().enumerate() {
            into.write_at(n * 8, &word.to_le_bytes());
        }
    }

    /// Time has passed, with I/O in it or without.
    pub(crate) fn pass(&mut self, now_ms: u64, active: bool) {
        if active {
            self.active_ms = now_ms;
            self.state = self.operational;
        } else if self.wakes_at().is_some_and(|at_ms| at_ms <= now_ms)
            && let Some(to) = self.transition()
        {
            // Idle time counts for each state anew.
            self.active_ms = now_ms;
            self.enter(to.itps);
        }
    }

    /// When the state changes if nothing happens, in ms.
    pub(crate) fn wakes_at(&self) -> Option<u64> {
        self.transition().map(|to| self.active_ms + u64::from(to.itpt_ms))
    }

    fn transition(&self) -> Option<PowerTransition> {
        let word = self.table.get(usize::from(self.state)).filter(|_| self.autonomous)?;
        PowerTransition::from_word(*word)
    }

    fn enter(&mut self, state: u8) {
        self.state = state;
        if is_operational(state) {
            self.operational = state;
        }
    }
}

/// The Power State Descriptors of Identify Controller.
pub(crate) fn descriptors(has_transitions: bool) -> impl Iterator<Item = PowerState> {
    let count = if has_transitions { STATES.len() } else { 1 };
    STATES.into_iter().take(count).zip(0..).map(|((power, entry, exit, operational), rank)| {
        let mut descriptor = PowerState::zeroed();
        descriptor.mp = power.into();
        descriptor.flags = if operational { 0 } else { NON_OPERATIONAL };
        (descriptor.enlat, descriptor.exlat) = (entry.into(), exit.into());
        let ranks =
            [&mut descriptor.rrt, &mut descriptor.rrl, &mut descriptor.rwt, &mut descriptor.rwl];
        ranks.into_iter().for_each(|to| *to = rank);
        descriptor
    })
}

fn is_operational(state: u8) -> bool {
    STATES.get(usize::from(state)).is_some_and(|(.., operational)| *operational)
}
