//! The options that watch a job: logs, latency targets, least rates, steadiness.

use std::time::Duration;

use super::table::{OptionSpec, option, parse_range, parse_time_us, switch};
use super::{shape, watch};
use crate::units::{parse_bytes, parse_number, parse_time};

/// What is looked at while a job runs.
pub(super) static WATCH: &[OptionSpec] = &[
    option!("write_bw_log"[] bare "", "PREFIX", "Log bandwidth to PREFIX_bw.N.log [the job's name]", |job, word| {
        log_prefix(word).map(|prefix| job.watch.logs.bandwidth = Some(prefix))
    }),
    option!("write_iops_log"[] bare "", "PREFIX", "Log IOPS to PREFIX_iops.N.log [the job's name]", |job, word| {
        log_prefix(word).map(|prefix| job.watch.logs.iops = Some(prefix))
    }),
    option!("write_lat_log"[] bare "", "PREFIX", "Log latencies to PREFIX_slat, _clat and _lat.N.log [the job's name]", |job, word| {
        log_prefix(word).map(|prefix| job.watch.logs.latency = Some(prefix))
    }),
    option!("write_hist_log"[] bare "", "PREFIX", "Log histograms to PREFIX_clat_hist.N.log [the job's name]", |job, word| {
        log_prefix(word).map(|prefix| job.watch.logs.histogram = Some(prefix))
    }),
    option!("write_hdr_log"[] bare "", "PREFIX", "The same as HdrHistogram logs, PREFIX_clat.N.hlog (not fio's)", |job, word| {
        log_prefix(word).map(|prefix| job.watch.logs.hdr = Some(prefix))
    }),
    switch!(
        "per_job_logs",
        "Each clone has logs of its own; else N is left out and they are appended [1]",
        |job, on| {
            job.watch.logs.shared = !on;
        }
    ),
    option!("log_avg_msec"[], "MS", "An entry for each so many ms [for each I/O]", |job, word| {
        parse_range(word, 0, 86_400_000).map(|ms| job.watch.logs.average_ms = ms.into())
    }),
    switch!(
        "log_max_value",
        "Such an entry has the largest latency and not the mean [0]",
        |job, on| {
            job.watch.logs.max = on;
        }
    ),
    switch!("log_offset", "Entries have the I/O's offset [0]", |job, on| job.watch.logs.offset =
        on),
    switch!("log_unix_epoch", "Times of entries are Unix times, in ms [0]", |job, on| {
        job.watch.logs.unix_epoch = on;
    }),
    option!("log_hist_msec"[], "MS", "A histogram for each so many ms", |job, word| {
        parse_range(word, 0, 86_400_000).map(|ms| job.watch.logs.histogram_ms = ms.into())
    }),
    option!("log_hist_coarseness"[], "N", "Halve the number of fio's bins so many times, up to 6 [0]", |job, word| {
        parse_range(word, 0, 6).map(|n| job.watch.logs.coarseness = n)
    }),
    option!("log_entries"[], "N", "fio's word; logs grow beside the job as they must", |_, word| {
        parse_number(word).map(|_| ())
    }),
    option!("latency_target"[], "TIME", "Find the deepest queue that keeps to this latency (us)", |job, word| {
        parse_time_us(word).map(|time| job.watch.target.target_ns = nanos(time))
    }),
    option!("latency_window"[], "TIME", "Try each depth for this long (us)", |job, word| {
        parse_time_us(word).map(|time| job.watch.target.window_ns = nanos(time))
    }),
    option!("latency_percentile"[], "PERCENT", "I/Os in a hundred that must keep to it [100]", |job, word| {
        match word.trim().parse::<f64>() {
            Ok(share) if share > 0.0 && share <= 100.0 => job.watch.target.percentile = share,
            _ => return Err(format!("`{word}` is not above 0 and up to 100")),
        }
        Ok(())
    }),
    switch!(
        "latency_run",
        "Go on with that depth and adjust it, instead of ending [0]",
        |job, on| {
            job.watch.target.run = on;
        }
    ),
    option!("max_latency"[], "TIME", "End with an error when an I/O takes longer (us); or of reads,writes,trims", |job, word| {
        let read = |part: &str| parse_time_us(part).map(nanos);
        shape::triple(word, [0; 3], read).map(|limits| job.watch.max_latency_ns = limits)
    }),
    option!("rate_min"[], "SIZE", "End with an error below so many bytes a second; or of reads,writes,trims", |job, word| {
        shape::rates(word, parse_bytes).map(|rate| job.watch.rate_min = rate)
    }),
    option!("rate_iops_min"[], "N", "End with an error below so many I/Os a second; or of reads,writes,trims", |job, word| {
        shape::rates(word, parse_bytes).map(|rate| job.watch.rate_iops_min = rate)
    }),
    option!(
        "rate_cycle"["ratecycle"],
        "MS",
        "Take those rates over so many ms [1000]",
        |job, word| {
            parse_range(word, 1, 86_400_000)
                .map(|ms| job.watch.rate_cycle = Duration::from_millis(ms.into()))
        }
    ),
    option!(
        "steadystate"["ss"],
        "WHAT:LIMIT",
        "End when steady: iops, iops_slope, bw or bw_slope, such as iops:0.3%",
        |job, word| { watch::steady(word).map(|steady| job.watch.steady = Some(steady)) }
    ),
    option!(
        "steadystate_duration"["ss_dur"],
        "TIME",
        "Judge that over the last so many seconds",
        |job, word| { parse_time(word).map(|time| job.watch.steady_duration = time) }
    ),
    option!(
        "steadystate_ramp_time"["ss_ramp"],
        "TIME",
        "Do not judge the first so many seconds [0]",
        |job, word| { parse_time(word).map(|time| job.watch.steady_ramp = time) }
    ),
    switch!(
        "slat_percentiles",
        "Time submissions apart, and show their percentiles [0]",
        |job, on| {
            job.watch.latencies.slat_percentiles = on;
        }
    ),
    switch!("clat_percentiles", "Show percentiles of completion latencies [1]", |job, on| {
        job.watch.latencies.clat_percentiles = on;
    }),
    switch!("lat_percentiles", "Show percentiles of total latencies [0]", |job, on| {
        job.watch.latencies.lat_percentiles = on;
    }),
    switch!(
        "disable_slat",
        "0: time submissions apart; 1: never [timed when asked for]",
        |job, on| {
            job.watch.latencies.disable_slat = Some(on);
        }
    ),
    switch!("disable_clat", "Leave completion latencies out [0]", |job, on| {
        job.watch.latencies.disable_clat = on;
    }),
    switch!("disable_lat", "Leave total latencies out [0]", |job, on| {
        job.watch.latencies.disable_lat = on;
    }),
    switch!(
        "disable_bw_measurement",
        ["disable_bw"],
        "Leave samples of rates out [0]",
        |job, on| {
            job.watch.latencies.disable_bw = on;
        }
    ),
    switch!("gtod_reduce", "All disable_ options [0]", |job, on| {
        let latencies = &mut job.watch.latencies;
        (latencies.disable_slat, latencies.disable_clat) = (Some(on), on);
        (latencies.disable_lat, latencies.disable_bw) = (on, on);
    }),
    option!("unified_rw_reporting"[], "WORD", "Directions apart, together or both: none, mixed, both [none]", |job, word| {
        watch::unified(word).map(|unified| job.watch.unified = unified)
    }),
];

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The beginning of a log's name; empty for the job's own.
fn log_prefix(word: &str) -> Result<String, String> {
    match word.contains('\0') {
        true => Err("a file's name has no byte of value 0".to_owned()),
        false => Ok(word.to_owned()),
    }
}
