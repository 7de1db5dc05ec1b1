//! A run as JSON in the shape of fio 3's `--output-format=json`, so that what reads fio's output
//! reads ours; our own figures stand under an `oxblock` key of each job.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::options::JobOptions;
use crate::report::{CloneReport, Report};
use crate::stats::{Depths, Direction, DirectionStats, Latency, Summary};

/// The release of fio whose shape this is; readers look at it to choose a parser.
pub const FIO_VERSION: &str = "fio-3.33";

/// fio's default `percentile_list`.
pub const PERCENTILES: [f64; 17] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95,
    99.99,
];

/// The document for some jobs, in the order in which they ran, that ended at `ended`. With
/// `group_reporting` the jobs of one group are one entry, under the first one's name.
pub fn document(reports: &[Report], ended: SystemTime) -> Value {
    let since_epoch = ended.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut jobs = Vec::new();
    let mut reports = reports.iter().peekable();
    while let Some(report) = reports.next() {
        if !report.options.group_reporting {
            jobs.extend(report.clones.iter().map(|clone| job(report, clone)));
            continue;
        }
        let mut group = report.group();
        while let Some(more) = reports.next_if(|next| is_merged(report, next)) {
            group.merge(&more.group());
        }
        jobs.push(job(report, &group));
    }
    json!({
        "fio version": FIO_VERSION,
        "oxblock version": env!("CARGO_PKG_VERSION"),
        "timestamp": since_epoch.as_secs(),
        "timestamp_ms": since_epoch.as_millis() as u64,
        "time": calendar_time(since_epoch),
        "global options": {},
        "jobs": jobs,
    })
}

fn is_merged(first: &Report, next: &Report) -> bool {
    next.options.group_reporting && next.group_id == first.group_id
}

fn job(report: &Report, clone: &CloneReport) -> Value {
    let mut job = Map::new();
    let mut put = |key: &str, value: Value| job.insert(key.to_owned(), value);
    put("jobname", report.options.name.clone().into());
    put("groupid", report.group_id.into());
    put("error", clone.errno().into());
    put("eta", 0.into());
    put("elapsed", clone.runtime_ns.div_ceil(1_000_000_000).into());
    put("job options", job_options(report));
    for way in Direction::ALL {
        let group_rate = report.group().direction(way).bandwidth();
        put(way.word(), direction(clone.direction(way), group_rate, &report.options));
    }
    let lat = with_percentiles(&clone.sync, &report.options.percentiles);
    put("sync", json!({ "total_ios": clone.sync.count(), "lat_ns": lat }));
    let errors = clone.errors + clone.verify.as_ref().map_or(0, |verify| verify.bad);
    if errors > 0 {
        put("total_err", errors.into());
        put("first_error", clone.errno().into());
    }
    put("job_runtime", (clone.runtime_ns / 1_000_000).into());
    let share = |ns: u64| 100.0 * ns as f64 / clone.runtime_ns.max(1) as f64;
    put("usr_cpu", share(clone.cpu.user_ns).into());
    put("sys_cpu", share(clone.cpu.system_ns).into());
    put("ctx", clone.cpu.context_switches.into());
    put("majf", clone.cpu.major_faults.into());
    put("minf", clone.cpu.minor_faults.into());
    put("iodepth_level", levels(&clone.depths));
    put("iodepth_submit", batches(&clone.submitted));
    put("iodepth_complete", batches(&clone.completed));
    let mut all = clone.read.latency.clone();
    all.merge(&clone.write.latency);
    all.merge(&clone.trim.latency);
    put("latency_ns", spread(&all, 1, &NS_STEPS, None));
    put("latency_us", spread(&all, 1_000, &US_STEPS, None));
    put("latency_ms", spread(&all, 1_000_000, &MS_STEPS, Some(2000)));
    put("latency_depth", report.options.io_depth.into());
    put("latency_target", 0.into());
    put("latency_percentile", 100.0.into());
    put("latency_window", 0.into());
    put("oxblock", own_figures(report, clone));
    Value::Object(job)
}

fn job_options(report: &Report) -> Value {
    let mut options = Map::new();
    options.insert("name".to_owned(), report.options.name.clone().into());
    for (name, value) in &report.options.given {
        options.insert((*name).to_owned(), value.clone().into());
    }
    Value::Object(options)
}

fn own_figures(report: &Report, clone: &CloneReport) -> Value {
    let verify = clone.verify.as_ref().map(|verify| {
        let mismatches: Vec<Value> = verify
            .mismatches
            .iter()
            .map(|bad| json!({ "offset": bad.offset, "what": bad.to_string() }))
            .collect();
        let doubts = verify.doubts;
        json!({
            "blocks_checked": verify.checked,
            "blocks_bad": verify.bad,
            "blocks_raced": verify.raced,
            "blocks_in_doubt": { "old": doubts.old, "new": doubts.new, "torn": doubts.torn,
                                 "unknown": doubts.unknown },
            "mismatches": mismatches,
        })
    });
    let serving: Vec<Value> = report
        .serving
        .iter()
        .map(|core| {
            json!({
                "core": core.core,
                "cpu_ns_per_io": core.cpu_ns_per_io(),
                "heap_allocations_per_io": core.allocations.map(|a| a.per_io()),
            })
        })
        .collect();
    json!({
        "target": report.target,
        "serving_cores": serving,
        "series": report.series.json(),
        "core": clone.core,
        "jobs_merged": clone.merged,
        "ns_per_io": clone.runtime_ns as f64 / clone.ios().max(1) as f64,
        "cpu_ns_per_io": clone.cpu_ns_per_io(),
        "heap_allocations_per_io": clone.allocations_per_io(),
        "heap_allocations": clone.allocations.map(|a| a.count),
        "clock": crate::job::CLOCK,
        "latency_from": if report.options.shape.has_rate() { "due time" } else { "submission" },
        "interrupted": report.interrupted,
        "error_message": error_message(clone),
        "log_entries_lost": report.log_entries_lost,
        "verify": verify,
    })
}

fn error_message(clone: &CloneReport) -> Option<String> {
    let fault = clone.fault.map(|f| format!("{}: {}", f.direction.word(), f.fault));
    fault.or(clone.ending.map(|ending| ending.to_string()))
}

fn direction(stats: &DirectionStats, group_bandwidth: f64, options: &JobOptions) -> Value {
    let bandwidth = stats.bandwidth();
    let rates = Summary::of(&stats.samples.bandwidth);
    let iops = Summary::of(&stats.samples.iops);
    let share = if group_bandwidth > 0.0 { 100.0 * bandwidth / group_bandwidth } else { 0.0 };
    json!({
        "io_bytes": stats.bytes,
        "io_kbytes": stats.bytes / 1024,
        "bw_bytes": bandwidth as u64,
        "bw": (bandwidth / 1024.0) as u64,
        "iops": stats.iops(),
        "runtime": stats.runtime_ns / 1_000_000,
        "total_ios": stats.ios,
        "short_ios": 0,
        "drop_ios": 0,
        "slat_ns": latency(None),
        "clat_ns": with_percentiles(&stats.latency, &options.percentiles),
        "lat_ns": latency(Some(&stats.latency)),
        "bw_min": (rates.min / 1024.0) as u64,
        "bw_max": (rates.max / 1024.0) as u64,
        "bw_agg": share,
        "bw_mean": rates.mean / 1024.0,
        "bw_dev": rates.stddev / 1024.0,
        "bw_samples": rates.count,
        "iops_min": iops.min as u64,
        "iops_max": iops.max as u64,
        "iops_mean": iops.mean,
        "iops_stddev": iops.stddev,
        "iops_samples": iops.count,
    })
}

/// Submission is not timed apart (see [`crate::job`]): `slat_ns` is `None`'s zeroes, as fio's is
/// for engines that cannot tell, and `lat_ns` equals `clat_ns`.
fn latency(latency: Option<&Latency>) -> Value {
    match latency.filter(|latency| latency.count() > 0) {
        None => json!({ "min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0 }),
        Some(latency) => json!({
            "min": latency.min(),
            "max": latency.max(),
            "mean": latency.mean(),
            "stddev": latency.stddev(),
            "N": latency.count(),
        }),
    }
}

fn with_percentiles(stats: &Latency, list: &[f64]) -> Value {
    let mut value = latency(Some(stats));
    if stats.count() > 0 {
        let list = if list.is_empty() { &PERCENTILES[..] } else { list };
        let list = list.iter().map(|&p| (format!("{p:.6}"), Value::from(stats.percentile(p))));
        value["percentile"] = Value::Object(list.collect());
    }
    value
}

fn levels(depths: &Depths) -> Value {
    let total = depths.total().max(1) as f64;
    let share = |low, high| 100.0 * depths.count_between(low, high) as f64 / total;
    json!({
        "1": share(0, 1), "2": share(2, 3), "4": share(4, 7), "8": share(8, 15),
        "16": share(16, 31), "32": share(32, 63), ">=64": share(64, usize::MAX),
    })
}

/// fio counts a batch under the next step that it does not exceed: 5 to 8 under `8`.
fn batches(depths: &Depths) -> Value {
    let total = depths.total().max(1) as f64;
    let share = |low, high| 100.0 * depths.count_between(low, high) as f64 / total;
    json!({
        "0": 0.0, "4": share(0, 3), "8": share(4, 7), "16": share(8, 15),
        "32": share(16, 31), "64": share(32, 63), ">=64": share(64, usize::MAX),
    })
}

const NS_STEPS: [u64; 10] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000];
const US_STEPS: [u64; 10] = NS_STEPS;
const MS_STEPS: [u64; 11] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000, 2000];

/// The share of I/Os below each step and not below the one before, in a unit of `unit` ns.
fn spread(all: &Latency, unit: u64, steps: &[u64], last: Option<u64>) -> Value {
    let total = all.count().max(1) as f64;
    let mut low = if unit == 1 { 0 } else { unit };
    let mut shares = Map::new();
    for &step in steps {
        let share = 100.0 * all.count_between(low, step * unit) as f64 / total;
        shares.insert(step.to_string(), share.into());
        low = step * unit;
    }
    if let Some(step) = last {
        let share = 100.0 * all.count_between(step * unit, u64::MAX) as f64 / total;
        shares.insert(format!(">={step}"), share.into());
    }
    Value::Object(shares)
}

/// UTC in the form of `ctime`, which fio uses: `Sun Nov 22 11:21:21 2026`.
pub(crate) fn calendar_time(since_epoch: Duration) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let seconds = since_epoch.as_secs();
    let days = seconds / 86_400;
    // Civil date from a day count: years begin in March, so that the leap day comes last.
    let shifted = days + 719_468;
    let era_day = shifted % 146_097;
    let year_of_era = (era_day - era_day / 1460 + era_day / 36_524 - era_day / 146_096) / 365;
    let day_of_year = era_day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 2 } else { month - 10 };
    let year = shifted / 146_097 * 400 + year_of_era + u64::from(month < 2);
    format!(
        "{} {} {day:2} {:02}:{:02}:{:02} {year}",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    )
}
