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
    /// How often.
    pub value: u64,
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
