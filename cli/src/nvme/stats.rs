//! `stats`: what the device counts of itself, beside what the driver counts of the device.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use clap::ArgMatches;
use oxblock_engine::Counter;
use oxblock_nvme::log::Smart;
use serde_json::{Map, json};

use super::device::Session;
use super::report::{Report, decimal_bytes, json_number};
use super::{Failure, logs};
use crate::bench::stop_on_signal;

/// How often a wait looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// What was counted up to a moment.
struct Sample {
    at: Instant,
    health: Vec<Figure>,
    driver: Vec<Counter>,
}

/// A figure of the SMART log, by the name that `smart-log` has for it.
struct Figure {
    key: &'static str,
    value: u128,
    /// What it is in bytes or degrees, where that says more.
    words: Option<String>,
}

/// `oxblock nvme stats`
pub fn run(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let interval = matches.get_one::<Duration>("interval").copied();
    let count = match (interval, matches.get_one::<u64>("count")) {
        (None, _) => 1,
        (Some(_), None) => u64::MAX,
        (Some(_), Some(&count)) => count.max(1),
    };
    let stop = stop_on_signal()?;
    let mut last = sample(session)?;
    let mut report = report(session, &last, None);
    for _ in 1..count {
        super::print(&report, matches.get_flag("json"))?;
        let due = last.at + interval.unwrap_or_default();
        while Instant::now() < due && !stop.load(Ordering::Relaxed) {
            thread::sleep(LOOK.min(due.saturating_duration_since(Instant::now())));
        }
        let next = sample(session)?;
        report = self::report(session, &next, Some(&last));
        last = next;
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(report)
}

fn sample(session: &Session) -> Result<Sample, Failure> {
    let health = figures(&*logs::smart_page(session)?);
    Ok(Sample { at: Instant::now(), health, driver: session.controller().all_counters() })
}

fn figures(smart: &Smart) -> Vec<Figure> {
    let plain = |key, value| Figure { key, value, words: None };
    let units = |key, value: u128| {
        let bytes = decimal_bytes(value.saturating_mul(logs::DATA_UNIT_BYTES));
        Figure { key, value, words: Some(bytes) }
    };
    let kelvin = smart.temperature.get();
    let celsius = format!("{} °C", i32::from(kelvin) - 273);
    vec![
        plain("critical_warning", smart.critical_warning.into()),
        Figure { key: "temperature", value: kelvin.into(), words: Some(celsius) },
        plain("percent_used", smart.percentage_used.into()),
        units("data_units_read", smart.data_units_read.get()),
        units("data_units_written", smart.data_units_written.get()),
        plain("host_read_commands", smart.host_reads.get()),
        plain("host_write_commands", smart.host_writes.get()),
        plain("controller_busy_time", smart.busy_time.get()),
        plain("power_cycles", smart.power_cycles.get()),
        plain("power_on_hours", smart.power_on_hours.get()),
        plain("unsafe_shutdowns", smart.unsafe_shutdowns.get()),
        plain("media_errors", smart.media_errors.get()),
        plain("num_err_log_entries", smart.error_entries.get()),
    ]
}

/// What there is to say of a sample, and of what changed since the last one.
fn report(session: &Session, now: &Sample, before: Option<&Sample>) -> Report {
    let (controller, identity) = (session.controller(), session.controller().identity());
    let (name, model) = (controller.name(), &identity.model);
    let mut text = format!("Statistics of {name} ({model} {})", identity.serial);
    if let Some(before) = before {
        let _ = write!(text, ", after {:.1} s", (now.at - before.at).as_secs_f64());
    }
    text.push_str(":\nthe device, since it was made:\n");
    let (mut health, mut health_since) = (Map::new(), Map::new());
    for (place, figure) in now.health.iter().enumerate() {
        let words = figure.words.iter().map(|words| format!(" ({words})")).collect::<String>();
        let since = before.and_then(|before| before.health.get(place)).map(|old| old.value);
        let grown = since.map(|old| figure.value as i128 - old as i128);
        let _ = writeln!(text, "  {:<21}: {}{words}{}", figure.key, figure.value, sign(grown));
        health.insert(figure.key.to_owned(), json_number(figure.value));
        health_since.insert(figure.key.to_owned(), json!(grown.map(|n| n as i64)));
    }
    text.push_str("the driver, since it was attached:\n");
    let width = now.driver.iter().map(|counter| counter.name.len()).max().unwrap_or(0);
    let (mut driver, mut driver_since) = (Map::new(), Map::new());
    for (place, Counter { name, value, .. }) in now.driver.iter().enumerate() {
        let since = before.and_then(|before| before.driver.get(place)).map(|old| old.value);
        let grown = since.map(|old| i128::from(*value) - i128::from(old));
        let _ = writeln!(text, "  {name:<width$}: {value}{}", sign(grown));
        driver.insert(name.clone(), (*value).into());
        driver_since.insert(name.clone(), json!(grown.map(|n| n as i64)));
    }
    let notices = controller.notices();
    for notice in &notices {
        let _ = writeln!(text, "{notice}");
    }
    let mut json = json!({
        "address": name,
        "model": model,
        "serial": identity.serial,
        "firmware": identity.firmware,
        "health": health,
        "driver": driver,
        "notices": notices,
    });
    if let Some(before) = before {
        json["since_last"] = json!({
            "seconds": (now.at - before.at).as_secs_f64(),
            "health": health_since,
            "driver": driver_since,
        });
    }
    Report { text, json }
}

/// By how much it changed, if it did.
fn sign(grown: Option<i128>) -> String {
    match grown {
        None | Some(0) => String::new(),
        Some(grown) => format!("  {grown:+}"),
    }
}
