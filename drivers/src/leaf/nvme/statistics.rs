//! What a controller's driver counts, by name.

use oxblock_engine::Counter;

use super::controller::Controller;

impl Controller {
    /// Everything that is counted of the controller and its queue pairs since it was attached,
    /// for people and programs that know nothing of the driver.
    pub fn all_counters(&self) -> Vec<Counter> {
        let (stats, events) = (self.stats(), self.event_counts());
        let all = [
            ("queue pairs", stats.queues.into()),
            ("queues on another core's pair", stats.sharing.into()),
            ("completions with a wrong command identifier", stats.bad_cid),
            ("completions with a wrong queue head", stats.bad_sqhd),
            ("completions for another queue", stats.bad_sqid),
            ("admin completions not believed", stats.bad_admin),
            ("resets", stats.resets),
            ("resets that failed", stats.failed_resets),
            ("commands that timed out", stats.timeouts),
            ("aborts", stats.aborts),
            ("commands sent again", stats.retries),
            ("completions that came late", stats.late_completions),
            ("interrupts", stats.interrupts),
            ("sleeps until an interrupt", stats.sleeps),
            ("interrupts that were lost", stats.lost_interrupts),
            ("asynchronous events", events.all),
            ("error events", events.errors),
            ("health warnings", events.health),
            ("namespace changes", events.namespaces),
            ("firmware activations", events.firmware),
            ("events whose log could not be read", events.unread),
        ];
        let counter = |(name, value): (&str, u64)| Counter { name: name.into(), value };
        all.into_iter().map(counter).collect()
    }
}
