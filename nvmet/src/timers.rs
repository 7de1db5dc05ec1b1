//! What happens by the passing of time: the Keep Alive Timer (Base 2.0, 3.9), transitions of
//! power, interrupts that were held back (8.8), and the end of a pause. A controller with none of
//! these looks at no clock.

use oxblock_engine::Core;
use oxblock_nvme::Status;

use crate::hooks::Hooks;
use crate::lifecycle::Phase;
use crate::queue::CompletionQueue;
use crate::service::Service;

/// Nothing is due.
const NEVER: u64 = u64::MAX;

/// What is due, and when; times are ns of the core's clock.
pub(crate) struct Timers {
    /// Whether any of it can be due: what a pass looks at.
    pub(crate) any: bool,
    /// When the Keep Alive Timer expires.
    keep_alive_ns: u64,
    /// When a pause is over.
    pause_ns: u64,
    /// Says whether I/O came since the last look.
    heads: u64,
}

impl Default for Timers {
    fn default() -> Timers {
        Timers { any: false, keep_alive_ns: NEVER, pause_ns: NEVER, heads: 0 }
    }
}

impl<H: Hooks> Service<H> {
    /// Starts the Keep Alive Timer anew.
    pub(crate) fn keep_alive(&mut self, core: &Core) {
        self.timers.keep_alive_ns = match self.admin.features.keep_alive_ms() {
            0 => NEVER,
            time => core.pass_now().saturating_add(u64::from(time) * 1_000_000),
        };
    }

    /// Takes no more commands for a while (CSTS.PP).
    pub(crate) fn pause(&mut self, until_ns: u64) {
        if self.phase == Phase::Ready {
            self.timers.pause_ns = until_ns;
            self.phase = Phase::Paused;
            let csts = self.shared.registers.csts();
            self.shared.registers.set_csts(csts.with_pp(true));
        }
    }

    /// Ends a pause.
    pub(crate) fn resume(&mut self) {
        self.timers.pause_ns = NEVER;
        if self.phase == Phase::Paused {
            self.phase = Phase::Ready;
            let csts = self.shared.registers.csts();
            self.shared.registers.set_csts(csts.with_pp(false));
        }
    }

    /// Looks whether passes must look at the clock from now on.
    pub(crate) fn watch_time(&mut self) {
        self.timers.any = self.timers.keep_alive_ns != NEVER
            || self.timers.pause_ns != NEVER
            || self.coalescing.is_some()
            || self.admin.features.power.is_autonomous();
    }

    /// Forgets all of it: a reset.
    pub(crate) fn stop_timers(&mut self) {
        self.timers = Timers::default();
        self.coalescing = None;
    }

    /// Does what is due.
    #[cold]
    pub(crate) fn pass_time(&mut self, now_ns: u64) {
        if self.timers.pause_ns <= now_ns {
            self.resume();
        }
        if self.timers.keep_alive_ns <= now_ns {
            self.timers.keep_alive_ns = NEVER;
            self.admin.logs.record(0, 0xffff, 0, 0, Status::KEEP_ALIVE_EXPIRED);
            self.fail();
        }
        let heads = self.queues.sqs().filter(|sq| sq.sqid != 0);
        let sum = |sum: u64, head: u16| sum.wrapping_mul(31).wrapping_add(head.into());
        let heads = heads.fold(0, |all, sq| sum(all, sq.source.head()));
        let active = std::mem::replace(&mut self.timers.heads, heads) != heads;
        self.admin.features.power.pass(now_ns / 1_000_000, active);
        self.watch_time();
    }

    /// When something is due: all ones is never.
    pub(crate) fn time_wakes_at(&mut self) -> u64 {
        let power = self.admin.features.power.wakes_at();
        let power_ns = power.map_or(NEVER, |at_ms| at_ms.saturating_mul(1_000_000));
        let coalescing = self.coalescing;
        let held_back = self.queues.cqs().filter_map(|cq| {
            let (_, time_ns) = coalescing?;
            Some(cq.since_ns?.saturating_add(time_ns))
        });
        let held_back = held_back.min().unwrap_or(NEVER);
        self.timers.keep_alive_ns.min(self.timers.pause_ns).min(power_ns).min(held_back)
    }
}

impl CompletionQueue {
    /// Whether the interrupt for what was posted is held back for more to come.
    #[cold]
    pub(crate) fn coalesces(&mut self, (threshold, time_ns): (u32, u64), now_ns: u64) -> bool {
        let since_ns = *self.since_ns.get_or_insert(now_ns);
        let due = self.posted >= threshold || now_ns >= since_ns.saturating_add(time_ns);
        if due {
            self.since_ns = None;
        }
        !due
    }
}
