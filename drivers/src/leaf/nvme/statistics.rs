//! What a controller's driver counts, by name.

use oxblock_engine::{Counter, CounterKind};

use super::controller::Controller;

impl Controller {
    /// Everything that is counted of the controller and its queue pairs since it was attached,
    /// for people and programs that know nothing of the driver. Spurious completions are those
    /// that no command waited for: they are ignored.
    pub fn all_counters(&self) -> Vec<Counter> {
        let (stats, events) = (self.stats(), self.event_counts());
        use CounterKind::{State, Trouble, Usual};
        let all = [
            ("queue pairs", stats.queues.into(), State),
            ("queues on another core's pair", stats.sharing.into(), State),
            ("resets", stats.resets, Trouble),
            ("resets that failed", stats.failed_resets, Trouble),
            ("commands that timed out", stats.timeouts, Trouble),
            ("aborts", stats.aborts, Trouble),
            ("commands sent again", stats.retries, Trouble),
            ("completions that came late", stats.late_completions, Trouble),
            ("spurious completions: command identifier", stats.bad_cid, Trouble),
            ("spurious completions: submission queue", stats.bad_sqid, Trouble),
            ("spurious completions: admin queue", stats.bad_admin, Trouble),
            ("wrong submission queue heads", stats.bad_sqhd, Trouble),
            ("interrupts", stats.interrupts, Usual),
            ("sleeps until an interrupt", stats.sleeps, Usual),
            ("interrupts that were lost", stats.lost_interrupts, Trouble),
            ("asynchronous events", events.all, Usual),
            ("error events", events.errors, Trouble),
            ("health warnings", events.health, Trouble),
            ("namespace changes", events.namespaces, Usual),
            ("firmware activations", events.firmware, Usual),
            ("events whose log could not be read", events.unread, Trouble),
        ];
        let counter = |(name, value, kind): (&str, u64, CounterKind)| Counter {
            name: name.into(),
            value,
            kind,
        };
        all.into_iter().map(counter).collect()
    }
}
