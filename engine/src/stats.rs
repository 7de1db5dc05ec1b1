//! Counts of what a node did on a core, and of what its device did.

use crate::OpKind;

/// What one node did on one core since its queue was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafStats {
    kinds: [KindStats; OpKind::COUNT],
}

/// Counts of one kind of operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindStats {
    /// Operations that ended, failed ones included.
    pub ops: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Operations that failed.
    pub failed: u64,
}

impl LeafStats {
    /// The counts of one kind.
    pub fn kind(&self, kind: OpKind) -> KindStats {
        self.kinds[kind as usize]
    }

    #[inline]
    pub(crate) fn count(&mut self, kind: OpKind, bytes: u64, failed: bool) {
        let stats = &mut self.kinds[kind as usize];
        stats.ops += 1;
        if failed {
            stats.failed += 1;
        } else {
            stats.bytes += bytes;
        }
    }
}

/// Something that a driver counts beside the operations themselves, since its device was
/// attached: resets, retries, events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// What is counted, in the driver's words.
    pub name: String,
    /// How often, or for a [`State`](CounterKind::State), how many.
    pub value: u64,
    /// What a value above zero means.
    pub kind: CounterKind,
}

/// What it means that a [`Counter`] is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKind {
    /// So many there are now; it may shrink.
    State,
    /// A device that is well does this too.
    Usual,
    /// Something was wrong, or had to be mended.
    Trouble,
}

impl Counter {
    /// What was counted since `before`, by name. A [`State`](CounterKind::State) is as it is now.
    pub fn since(now: Vec<Counter>, before: &[Counter]) -> Vec<Counter> {
        let grown = |counter: Counter| match before.iter().find(|old| old.name == counter.name) {
            Some(old) if counter.kind != CounterKind::State => {
                Counter { value: counter.value.saturating_sub(old.value), ..counter }
            }
            _ => counter,
        };
        now.into_iter().map(grown).collect()
    }

    /// Tells of trouble.
    pub fn is_alarming(&self) -> bool {
        self.kind == CounterKind::Trouble && self.value > 0
    }
}

/// What a core's slot table holds, what it saw that should not be, and how often it slept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreStats {
    /// Slots of the table.
    pub slots: usize,
    /// Slots in use, completions that nobody fetched yet included.
    pub slots_used: usize,
    /// Slots that a channel opened to serve can take now; the reserve is among them.
    pub slots_to_serve: usize,
    /// Completions from a leaf that named no request in flight.
    pub spurious_completions: u64,
    /// How often its reactor found nothing to do and slept until it was woken.
    pub sleeps: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_grow_and_states_stay_as_they_are() {
        let counter = |name: &str, value, kind| Counter { name: name.to_owned(), value, kind };
        let before = [
            counter("resets", 2, CounterKind::Trouble),
            counter("queue pairs", 4, CounterKind::State),
        ];
        let now = vec![
            counter("queue pairs", 3, CounterKind::State),
            counter("resets", 5, CounterKind::Trouble),
            counter("events", 1, CounterKind::Usual),
        ];
        let since = Counter::since(now, &before);
        assert_eq!(since.iter().map(|counter| counter.value).collect::<Vec<u64>>(), [3, 3, 1]);
        let alarming: Vec<&str> =
            since.iter().filter(|c| c.is_alarming()).map(|c| c.name.as_str()).collect();
        assert_eq!(alarming, ["resets"]);
    }
}
