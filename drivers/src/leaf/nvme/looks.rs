//! Waiting for what nobody tells of.

use std::time::Duration;

use oxblock_engine::Core;

/// The first pause, and the longest.
const FIRST: Duration = Duration::from_micros(50);
const LONGEST: Duration = Duration::from_millis(10);

/// Pauses between looks at a register, or at what other cores do: short at first, then about an
/// eighth of the time waited so far.
pub(super) struct Looks(Duration);

impl Looks {
    pub fn new() -> Looks {
        Looks(FIRST)
    }

    pub async fn pause(&mut self, core: &Core) {
        core.sleep(self.0).await;
        self.0 = (self.0 + self.0 / 8).min(LONGEST);
    }
}
