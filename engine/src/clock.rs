//! Time: the cycle counter tied to the monotonic clock, or a simulated clock.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use oxblock_mem::cycles;

/// How long the first calibration watches both clocks.
const CALIBRATION: Duration = Duration::from_micros(500);
/// How often the rate is measured anew.
const REANCHOR_NS: u64 = 250_000_000;

/// Where a core's time comes from.
#[derive(Clone, Debug, Default)]
pub enum ClockSource {
    /// CLOCK_MONOTONIC, read through the processor's cycle counter where that is
    /// invariant.
    #[default]
    Monotonic,
    /// Simulated time, moved by [`SimulatedClock::advance`] alone.
    Simulated(SimulatedClock),
}

/// Simulated time, shared by all cores of an engine.
#[derive(Clone, Debug, Default)]
pub struct SimulatedClock(Arc<AtomicU64>);

impl SimulatedClock {
    /// A clock at 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// The time in ns.
    pub fn now(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Moves the time forward.
    pub fn advance(&self, by_ns: u64) {
        self.0.store(self.now() + by_ns, Relaxed);
    }
}

/// A core's time: its clock, and the one reading of each turn of the reactor.
#[derive(Debug)]
pub(crate) struct Time {
    clock: Clock,
    /// The reading of this turn; None until somebody asks, so that an empty turn takes none.
    turn_ns: Cell<Option<u64>>,
}

impl Time {
    pub fn new(clock: Clock) -> Self {
        Self { clock, turn_ns: Cell::new(None) }
    }

    /// A fresh reading in ns.
    #[inline]
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// The reading of this turn in ns, taken when it is first asked for.
    #[inline]
    pub fn turn_now(&self) -> u64 {
        self.turn_ns.get().unwrap_or_else(|| {
            let now_ns = self.clock.now();
            self.turn_ns.set(Some(now_ns));
            now_ns
        })
    }

    /// The reading of this turn, if it was taken.
    #[inline]
    pub fn turn_reading(&self) -> Option<u64> {
        self.turn_ns.get()
    }

    /// A turn begins; its reading is `now_ns`, or still to be taken.
    #[inline]
    pub fn begin_turn(&self, now_ns: Option<u64>) {
        self.turn_ns.set(now_ns);
    }

    /// Whether time moves only when it is told to.
    pub fn is_simulated(&self) -> bool {
        matches!(self.clock, Clock::Simulated(_))
    }
}

/// A core's clock: ns since a moment shared by all cores of the engine.
#[derive(Debug)]
pub(crate) enum Clock {
    Cycles(CycleClock),
    System(Instant),
    Simulated(SimulatedClock),
}

impl Clock {
    /// A clock that counts from `start`.
    pub fn new(source: &ClockSource, start: Instant) -> Self {
        match source {
            ClockSource::Simulated(clock) => Self::Simulated(clock.clone()),
            ClockSource::Monotonic if cycles::available() => Self::Cycles(CycleClock::new(start)),
            ClockSource::Monotonic => Self::System(start),
        }
    }

    /// The time in ns.
    #[inline]
    pub fn now(&self) -> u64 {
        match self {
            Self::Cycles(clock) => clock.now(),
            Self::System(start) => start.elapsed().as_nanos() as u64,
            Self::Simulated(clock) => clock.now(),
        }
    }
}

/// Nanoseconds from the cycle counter: a line through the last anchor, whose slope is
/// measured again every [`REANCHOR_NS`] so that it follows CLOCK_MONOTONIC.
#[derive(Debug)]
pub(crate) struct CycleClock {
    start: Instant,
    first: (u64, u64),
    anchor_cycles: Cell<u64>,
    anchor_ns: Cell<u64>,
    /// ns per cycle, 32.32 fixed point.
    rate: Cell<u64>,
    reanchor_cycles: Cell<u64>,
}

impl CycleClock {
    fn new(start: Instant) -> Self {
        let first = both(start);
        let mut last = first;
        while last.1 - first.1 < CALIBRATION.as_nanos() as u64 {
            last = both(start);
        }
        let rate = slope(first, last);
        let clock = Self {
            start,
            first,
            anchor_cycles: Cell::new(last.0),
            anchor_ns: Cell::new(last.1),
            rate: Cell::new(rate),
            reanchor_cycles: Cell::new(0),
        };
        clock.set_reanchor();
        clock
    }

    #[inline]
    fn now(&self) -> u64 {
        let passed = cycles::now().saturating_sub(self.anchor_cycles.get());
        if passed > self.reanchor_cycles.get() {
            return self.reanchor();
        }
        self.anchor_ns.get() + scale(passed, self.rate.get())
    }

    #[cold]
    fn reanchor(&self) -> u64 {
        let (cycles, real_ns) = both(self.start);
        let passed = cycles.saturating_sub(self.anchor_cycles.get());
        let shown_ns = self.anchor_ns.get() + scale(passed, self.rate.get());
        // Time shown never goes back: a clock that ran ahead stands still instead.
        let ns = real_ns.max(shown_ns);
        self.rate.set(slope(self.first, (cycles, real_ns)));
        self.anchor_cycles.set(cycles);
        self.anchor_ns.set(ns);
        self.set_reanchor();
        ns
    }

    fn set_reanchor(&self) {
        let cycles = (u128::from(REANCHOR_NS) << 32) / u128::from(self.rate.get().max(1));
        self.reanchor_cycles.set(cycles as u64);
    }
}

/// Both clocks at one moment: the best of a few readings, since the thread may lose its
/// processor between the two.
fn both(start: Instant) -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..4 {
        let before = cycles::now();
        let ns = start.elapsed().as_nanos() as u64;
        let took = cycles::now().saturating_sub(before);
        if took < best.0 {
            best = (took, before + took / 2, ns);
        }
    }
    (best.1, best.2)
}

fn slope(first: (u64, u64), last: (u64, u64)) -> u64 {
    let cycles = (last.0.saturating_sub(first.0)).max(1);
    ((u128::from(last.1 - first.1) << 32) / u128::from(cycles)) as u64
}

#[inline]
fn scale(cycles: u64, rate: u64) -> u64 {
    ((u128::from(cycles) * u128::from(rate)) >> 32) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cycle_clock_follows_the_monotonic_clock() {
        let start = Instant::now();
        let clock = Clock::new(&ClockSource::Monotonic, start);
        let mut last = 0;
        while start.elapsed() < Duration::from_millis(600) {
            let now = clock.now();
            assert!(now >= last, "time went back from {last} to {now}");
            last = now;
        }
        let real = start.elapsed().as_nanos() as u64;
        let shown = clock.now();
        assert!(shown.abs_diff(real) < 2_000_000, "shown {shown}, real {real}");
    }
}
