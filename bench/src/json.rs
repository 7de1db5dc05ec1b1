//! A run as JSON in the shape of fio 3's `--output-format=json`, so that what reads fio's output
//! reads ours; our own figures stand under an `oxblock` key of each job.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::bins;
use crate::options::{Latencies, Unified};
use crate::report::{CloneReport, Report, entries};
use crate::shares::{self, Shares};
use crate::stats::{DirectionStats, Latency, Samples, Summary};

/// The release of fio whose shape this is; readers look at it to choose a parser.
pub const FIO_VERSION: &str = "fio-3.33";

/// fio's default `percentile_list`.
pub const PERCENTILES: [f64; 17] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95,
    99.99,
];

/// The document for some jobs, in the order in which they ran, that ended at `ended`; fio's
/// `json`. With `group_reporting` the jobs of one group are one entry, under the first one's name.
pub fn document(reports: &[Report], ended: SystemTime) -> Value {
    with_detail(reports, ended, false)
}

/// The same with the counts of all of [fio's bins](crate::bins): fio's `json+`.
pub fn document_plus(reports: &[Report], ended: SystemTime) -> Value {
    with_detail(reports, ended, true)
}

fn with_detail(reports: &[Report], ended: SystemTime, has_bins: bool) -> Value {
    let since_epoch = ended.duration_since(UNIX_EPOCH).unwrap_or_default();
    let jobs = entries(reports).into_iter().map(|entry| job(entry.report, &entry.clone, has_bins));
    json!({
        "fio version": FIO_VERSION,
        "oxblock version": env!("CARGO_PKG_VERSION"),
        "timestamp": since_epoch.as_secs(),
        "timestamp_ms": since_epoch.as_millis() as u64,
        "time": calendar_time(since_epoch),
        "global options": {},
        "jobs": jobs.collect::<Vec<Value>>(),
    })
}

fn job(report: &Report, clone: &CloneReport, has_bins: bool) -> Value {
    let (options, watch) = (&report.options, &report.options.watch);
    let mut job = Map::new();
    let mut put = |key: &str, value: Value| job.insert(key.to_owned(), value);
    put("jobname", report.options.name.clone().into());
    put("groupid", report.group_id.into());
    put("error", clone.errno().into());
    put("eta", 0.into());
    put("elapsed", clone.runtime_ns.div_ceil(1_000_000_000).into());
    put("job options", job_options(report));
    let latency = Shown { percentiles: &options.percentiles, has_bins };
    let group = report.group().shown(watch.unified);
    for ((word, stats), (_, group)) in clone.shown(watch.unified).into_iter().zip(group) {
        put(word, direction(&stats, group.bandwidth(), &watch.latencies, &latency));
    }
    if watch.unified != Unified::Mixed {
        let lat = latency.value(Some(&clone.sync), true);
        put("sync", json!({ "total_ios": clone.sync.count(), "lat_ns": lat }));
    }
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
    put("iodepth_level", object(shares::levels(&clone.depths)));
    put("iodepth_submit", object(shares::batches(&clone.submitted)));
    put("iodepth_complete", object(shares::batches(&clone.completed)));
    let all = clone.mixed().latency;
    for (key, shares) in
        ["latency_ns", "latency_us", "latency_ms"].into_iter().zip(shares::spread(&all))
    {
        put(key, object(shares));
    }
    put("latency_depth", clone.found_depth.unwrap_or(options.io_depth).into());
    put("latency_target", watch.target.target_ns.into());
    put("latency_percentile", watch.target.percentile.into());
    put("latency_window", (watch.target.window_ns / 1000).into());
    if let Some(steadiness) = &report.steadiness {
        put("steadystate", steadiness.json());
    }
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
    let devices = report.devices.iter().map(|device| {
        let counters = device.counters.iter().map(|c| (c.name.clone(), c.value.into()));
        (device.node.clone(), Value::Object(counters.collect()))
    });
    json!({
        "target": report.target,
        "serving_cores": serving,
        "device_counters": Value::Object(devices.collect()),
        "series": report.series.json(),
        "core": clone.core,
        "jobs_merged": clone.merged,
        "ns_per_io": clone.runtime_ns as f64 / clone.ios().max(1) as f64,
        "cpu_ns_per_io": clone.cpu_ns_per_io(),
        "heap_allocations_per_io": clone.allocations_per_io(),
        "heap_allocations": clone.allocations.map(|a| a.count),
        "clock": crate::job::CLOCK,
        "latency_from": if report.options.shape.has_rate() { "due time" } else { "submission" },
        "completion_latency_from": completion_from(report, clone),
        "interrupted": report.interrupted,
        "error_message": clone.error_message(),
        "log_entries_lost": report.log_entries_lost,
        "verify": verify,
    })
}

/// From when `clat_ns` counts.
fn completion_from(report: &Report, clone: &CloneReport) -> &'static str {
    match (clone.read.apart.is_some(), report.options.shape.has_rate()) {
        (true, _) => "end of submission",
        (false, true) => "due time",
        (false, false) => "submission",
    }
}

fn direction(
    stats: &DirectionStats,
    group_bandwidth: f64,
    switches: &Latencies,
    shown: &Shown<'_>,
) -> Value {
    let bandwidth = stats.bandwidth();
    let none = Samples::default();
    let samples = if switches.disable_bw { &none } else { &stats.samples };
    let rates = Summary::of(&samples.bandwidth);
    let iops = Summary::of(&samples.iops);
    let share = if group_bandwidth > 0.0 { 100.0 * bandwidth / group_bandwidth } else { 0.0 };
    let mut value = json!({
        "io_bytes": stats.bytes,
        "io_kbytes": stats.bytes / 1024,
        "bw_bytes": bandwidth as u64,
        "bw": (bandwidth / 1024.0) as u64,
        "iops": stats.iops(),
        "runtime": stats.runtime_ms(),
        "total_ios": stats.ios,
        "short_ios": 0,
        "drop_ios": 0,
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
    });
    for (word, latency, has_percentiles) in stats.shown(switches) {
        value[format!("{word}_ns")] = shown.value(latency, has_percentiles);
    }
    value
}

/// How latencies are shown.
struct Shown<'a> {
    /// Which percentiles; none: fio's.
    percentiles: &'a [f64],
    has_bins: bool,
}

impl Shown<'_> {
    /// One latency; zeroes where it was not measured, as fio has it.
    fn value(&self, latency: Option<&Latency>, has_percentiles: bool) -> Value {
        let Some(latency) = latency.filter(|latency| latency.count() > 0) else {
            return json!({ "min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0 });
        };
        let mut value = json!({
            "min": latency.min(),
            "max": latency.max(),
            "mean": latency.mean(),
            "stddev": latency.stddev(),
            "N": latency.count(),
        });
        if !has_percentiles {
            return value;
        }
        let list = if self.percentiles.is_empty() { &PERCENTILES[..] } else { self.percentiles };
        let list = list.iter().map(|&p| (format!("{p:.6}"), Value::from(latency.percentile(p))));
        value["percentile"] = Value::Object(list.collect());
        if self.has_bins {
            let bins = bins::counts(latency).into_iter();
            let bins = bins.map(|(bin, count)| (bins::value(bin).to_string(), count.into()));
            value["bins"] = Value::Object(bins.collect());
        }
        value
    }
}

fn object(shares: Shares) -> Value {
    Value::Object(shares.into_iter().map(|(step, share)| (step, share.into())).collect())
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
