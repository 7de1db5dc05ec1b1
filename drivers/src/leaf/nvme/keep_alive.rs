//! Keep alive (Base 2.0, 3.9): a controller that hears nothing of its host for a time gives it up.
//! The other way round, a host that sends a command now and then learns that its controller hangs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use oxblock_engine::{Core, Error};
use oxblock_nvme::identify::Controller as ControllerPage;
use oxblock_nvme::{Command, feature};

use super::admin::Admin;
use super::hardware::Hardware;

/// The unit of KAS, milliseconds.
const KAS_MS: u64 = 100;

/// The beat of one controller. Each set-up begins it anew, so that it stops across a reset.
#[derive(Default)]
pub(super) struct KeepAlive {
    /// The set-up whose beat goes on.
    current: Arc<AtomicU64>,
}

impl KeepAlive {
    /// Sets the Keep Alive Timer to `time` or what the controller counts in above it, and sends a
    /// Keep Alive twice in that time. Says what it refused.
    pub async fn start(
        &self,
        core: &Core,
        admin: &Arc<Admin>,
        hardware: &Arc<Hardware>,
        page: &ControllerPage,
        time: Option<Duration>,
    ) -> Result<Option<String>, Error> {
        let mine = self.stop();
        let Some(time) = time else { return Ok(None) };
        if page.kas.get() == 0 {
            let text = "no keep alive: the controller has no such timer (KAS 0)";
            return Ok(Some(text.into()));
        }
        let kato_ms = timer_ms(time, page.kas.get());
        let command = Command::set_features(feature::KEEP_ALIVE_TIMER, 0, kato_ms);
        let done = admin.execute(core, command, None).await?;
        if !done.completion.is_success() {
            let status = done.completion.status();
            return Ok(Some(format!(
                "no keep alive: a timer of {kato_ms} ms is refused: {status}"
            )));
        }
        let beat = Beat {
            core: core.clone(),
            admin: Arc::downgrade(admin),
            hardware: hardware.clone(),
            current: self.current.clone(),
            mine,
            kato: Duration::from_millis(kato_ms.into()),
        };
        drop(core.spawn(beat.go_on()));
        Ok(None)
    }

    /// Ends the beat; returns the number of the next.
    pub fn stop(&self) -> u64 {
        self.current.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// A time as the timer has it: whole units of KAS, upwards, 32 bits.
fn timer_ms(time: Duration, kas: u16) -> u32 {
    let unit = u64::from(kas) * KAS_MS;
    let units = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).div_ceil(unit).max(1);
    // Where rounding up does not fit, the longest that does.
    let most = u64::from(u32::MAX) / unit;
    (units.min(most) * unit) as u32
}

struct Beat {
    core: Core,
    /// Not held: between two beats the controller may end.
    admin: Weak<Admin>,
    hardware: Arc<Hardware>,
    current: Arc<AtomicU64>,
    mine: u64,
    kato: Duration,
}

impl Beat {
    async fn go_on(self) {
        loop {
            self.core.sleep(self.kato / 2).await;
            let Some(admin) = self.admin.upgrade().filter(|_| self.is_current()) else { return };
            let command = Command::keep_alive();
            let sent = admin.execute_within(&self.core, command, None, self.kato).await;
            if sent.is_ok_and(|done| done.completion.is_success()) {
                continue;
            }
            // A controller that was reset meanwhile has another beat.
            if self.is_current() {
                self.hardware.fail();
            }
            return;
        }
    }

    fn is_current(&self) -> bool {
        self.current.load(Ordering::SeqCst) == self.mine && !self.hardware.is_quiet()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_counts_in_units_of_the_controller() {
        let ms = |ms, kas| timer_ms(Duration::from_millis(ms), kas);
        assert_eq!((ms(5000, 1), ms(5000, 10), ms(5001, 10)), (5000, 5000, 6000));
        assert_eq!((ms(0, 3), ms(1, u16::MAX)), (300, 6_553_500));
        assert_eq!(timer_ms(Duration::MAX, 1), 4_294_967_200);
    }
}
