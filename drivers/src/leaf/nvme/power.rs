//! Autonomous power state transitions (Base 2.0, 8.15.2): which states an idle controller may enter
//! on its own.

use std::sync::Arc;
use std::time::Duration;

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_nvme::feature::{AUTONOMOUS_POWER_STATE_TRANSITION, PowerTransition};
use oxblock_nvme::identify::{Controller as ControllerPage, PowerState};
use oxblock_nvme::{Command, PAGE_BYTES};

use super::Quirks;
use super::admin::Admin;

/// Power states of a controller, at most.
const STATES: usize = 32;
/// A state is entered after so many times what it takes to enter and leave it: at most one part in
/// fifty of the time goes into transitions.
const IDLE_FACTOR: u64 = 50;

/// Allows transitions to states that the controller leaves within `latency`, or none. Says what it
/// refused.
pub(super) async fn configure(
    core: &Core,
    admin: &Arc<Admin>,
    page: &ControllerPage,
    quirks: Quirks,
    latency: Option<Duration>,
) -> Result<Option<String>, Error> {
    if page.apsta & 1 == 0 {
        return Ok(None);
    }
    let latency = latency.filter(|_| !quirks.contains(Quirks::NO_APST));
    let table = latency.map(|latency| table(page, quirks, latency));
    let allowed = table.is_some_and(|table| table.iter().any(|word| *word != 0));
    let mut buf = core.arena().alloc(PAGE_BYTES, PAGE_BYTES)?;
    for (at, word) in table.unwrap_or_default().into_iter().enumerate() {
        buf.write_at(at * 8, &word.to_le_bytes());
    }
    let Some(iova) = buf.iova() else {
        let text = "the arena has no DMA address for this controller; attach it first";
        return Err(Error::new(ErrorKind::Invalid, text));
    };
    let id = AUTONOMOUS_POWER_STATE_TRANSITION;
    let command = Command::set_features(id, 0, allowed.into()).with_prp(iova, 0);
    let done = admin.execute(core, command, Some(buf)).await?;
    let status = done.completion.status();
    let refused = !done.completion.is_success();
    let what = if allowed { "on" } else { "off" };
    Ok(refused.then(|| {
        format!("autonomous power state transitions could not be turned {what}: {status}")
    }))
}

/// From each state to the next deeper one that may be entered.
fn table(page: &ControllerPage, quirks: Quirks, latency: Duration) -> [u64; STATES] {
    let mut table = [0; STATES];
    let deepest = usize::from(page.npss);
    let is_barred = |state| state == deepest && quirks.contains(Quirks::NO_DEEPEST_STATE);
    let mut target = 0;
    // More states than there can be are none to be trusted.
    let states = page.psd.get(..=deepest).unwrap_or_default();
    for (state, (entry, known)) in table.iter_mut().zip(states).enumerate().rev() {
        *entry = target;
        if known.is_operational() || is_barred(state) || exit_latency(known) > latency {
            continue;
        }
        target = PowerTransition { itps: state as u8, itpt_ms: idle_ms(known) }.to_word();
    }
    table
}

fn exit_latency(state: &PowerState) -> Duration {
    Duration::from_micros(state.exlat.get().into())
}

fn idle_ms(state: &PowerState) -> u32 {
    let both_us = u64::from(state.enlat.get()) + u64::from(state.exlat.get());
    (both_us * IDLE_FACTOR).div_ceil(1000).clamp(1, 0xff_ffff) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two operational states, then two that are not, of 5 ms and 50 ms to leave.
    fn page() -> Box<ControllerPage> {
        let mut page = ControllerPage::boxed();
        (page.apsta, page.npss) = (1, 3);
        for (state, (enlat, exlat)) in [(2, (1000, 5000)), (3, (10_000, 50_000))] {
            page.psd[state].flags = 2;
            (page.psd[state].enlat, page.psd[state].exlat) = (enlat.into(), exlat.into());
        }
        page
    }

    fn entries(page: &ControllerPage, quirks: Quirks, latency_ms: u64) -> Vec<Option<(u8, u32)>> {
        let table = table(page, quirks, Duration::from_millis(latency_ms));
        let entry = |word: &u64| PowerTransition::from_word(*word).map(|t| (t.itps, t.itpt_ms));
        table[..5].iter().map(entry).collect()
    }

    /// Row 32.
    #[test]
    fn each_state_leads_to_the_next_deeper_one_within_the_limit() {
        let (light, deep) = (Some((2, 300)), Some((3, 3000)));
        let none = Quirks::empty();
        assert_eq!(entries(&page(), none, 100), [light, light, deep, None, None]);
        assert_eq!(entries(&page(), none, 50), [light, light, deep, None, None]);
        assert_eq!(entries(&page(), none, 10), [light, light, None, None, None]);
        assert_eq!(entries(&page(), none, 4), [None; 5]);
        let barred = Quirks::NO_DEEPEST_STATE;
        assert_eq!(entries(&page(), barred, 100), [light, light, None, None, None]);
    }

    /// The number of states and their latencies are the device's: 255 states ended a driver at the
    /// 33rd, and a latency of 71 minutes wrapped to a transition at once.
    #[test]
    fn numbers_that_cannot_be_harm_nothing() {
        let mut page = page();
        page.psd[3].enlat = u32::MAX.into();
        let longest = entries(&page, Quirks::empty(), 100)[2];
        assert_eq!(longest, Some((3, 0xff_ffff)));
        page.psd[2].enlat = 0.into();
        page.psd[2].exlat = 0.into();
        assert_eq!(entries(&page, Quirks::empty(), 0)[0], Some((2, 1)), "0 would be no transition");
        for npss in [32, 255] {
            page.npss = npss;
            assert_eq!(entries(&page, Quirks::empty(), 100), [None; 5]);
        }
    }
}
