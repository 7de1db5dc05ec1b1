//! A run as a person reads it: fio's normal output, line by line, and what fio does not tell.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::json::{PERCENTILES, calendar_time};
use crate::options::JobOptions;
use crate::report::{Allocations, CloneReport, Entry, Report, entries};
use crate::shares::{self, Shares};
use crate::stats::{DirectionStats, Summary};
use crate::units::{format_bytes, format_ns};

mod figures;

use figures::{binary, count, decimal};

/// Some jobs in the order in which they ran, without the [summary]. With `group_reporting` the
/// jobs of one group are told as one.
pub fn reports(reports: &[Report]) -> String {
    entries(reports).iter().map(job).collect()
}

/// One job.
pub fn report(report: &Report) -> String {
    reports(std::slice::from_ref(report))
}

/// What a job does, in words: `4 KiB random reads, 32 in flight`.
pub fn describe(options: &JobOptions) -> String {
    let order = if options.rw.is_random() { "random" } else { "sequential" };
    let what = if options.rw.is_mixed() {
        let reads = options.read_percent;
        format!("{reads} % reads and {} % writes", 100 - reads)
    } else if options.rw.trims_then_writes() {
        "trims, each followed by a write".to_owned()
    } else if options.rw.trims() {
        "trims".to_owned()
    } else if options.rw.writes() {
        "writes".to_owned()
    } else {
        "reads".to_owned()
    };
    let mut size = format_bytes(u64::from(options.block_size));
    if options.shape.sizes.is_some() {
        size = format!("up to {size}");
    }
    let only = if options.verify.only { "verifying " } else { "" };
    format!("{only}{size} {order} {what}, {} in flight", options.io_depth)
}

/// What each group of jobs did in all: fio's `Run status`.
pub fn summary(reports: &[Report]) -> String {
    let mut text = String::new();
    for group in reports.chunk_by(|one, next| one.group_id == next.group_id) {
        let _ = writeln!(text, "\nRun status group {} (all jobs):", group[0].group_id);
        let unified = group[0].options.watch.unified;
        let clones: Vec<_> = entries(group).iter().map(|e| e.clone.shown(unified)).collect();
        for place in 0..clones.first().map_or(0, Vec::len) {
            let of_way: Vec<_> = clones.iter().filter_map(|clone| clone.get(place)).collect();
            let done: Vec<_> = of_way.into_iter().filter(|(_, stats)| stats.ios > 0).collect();
            if let Some((word, _)) = done.first() {
                let stats: Vec<_> = done.iter().map(|(_, stats)| stats).collect();
                status_line(&mut text, &word.to_uppercase(), &stats);
            }
        }
    }
    text
}

fn status_line(text: &mut String, word: &str, done: &[&DirectionStats]) {
    let rates = || done.iter().map(|stats| stats.bandwidth());
    let (low, high) = (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max));
    let bytes: u64 = done.iter().map(|stats| stats.bytes).sum();
    let times = || done.iter().map(|stats| stats.runtime_ms());
    let longest = done.iter().map(|stats| stats.runtime_ns).max().unwrap_or(0).max(1);
    let all = bytes as f64 * 1e9 / longest as f64;
    let _ = writeln!(
        text,
        "{word:>7}: bw={}/s ({}/s), {}/s-{}/s ({}/s-{}/s), io={} ({}), run={}-{}msec",
        binary(all),
        decimal(all),
        binary(low),
        binary(high),
        decimal(low),
        decimal(high),
        binary(bytes as f64),
        decimal(bytes as f64),
        times().min().unwrap_or(0),
        times().max().unwrap_or(0),
    );
}

fn job(entry: &Entry<'_>) -> String {
    let Entry { report, clone } = entry;
    let options = &report.options;
    let mut text = heading(report, clone);
    let all = report.group().shown(options.watch.unified);
    for ((word, stats), (_, all)) in clone.shown(options.watch.unified).into_iter().zip(all) {
        if stats.ios > 0 {
            direction_lines(&mut text, word, &stats, all.bandwidth(), options);
        }
    }
    if clone.ios() == 0 && clone.error_message().is_none() {
        text.push_str("  nothing was done\n");
    }
    for (word, shares) in
        ["nsec", "usec", "msec"].into_iter().zip(shares::spread(&clone.mixed().latency))
    {
        text.push_str(&figures::spread_lines(word, &shares));
    }
    if clone.sync.count() > 0 {
        text.push_str("  fsync/fdatasync/sync_file_range:\n");
        text.push_str(&figures::latency_line("sync", &clone.sync));
        text.push_str(&figures::percentile_lines("sync", &clone.sync, percentiles(options)));
    }
    if clone.ios() > 0 {
        queue_lines(&mut text, options, clone);
        cost_lines(&mut text, report, clone);
    }
    verify_lines(&mut text, clone);
    device_lines(&mut text, report);
    if report.log_entries_lost > 0 {
        let lost = report.log_entries_lost;
        let _ =
            writeln!(text, "  LOGS         : {lost} entries are missing, the writer was too slow");
    }
    if report.interrupted {
        text.push_str("  ended early by Ctrl-C\n");
    }
    text
}

/// `name: (groupid=0, jobs=1): err= 0: pid=1: ...` as fio has it, then what was done to what.
fn heading(report: &Report, clone: &CloneReport) -> String {
    let options = &report.options;
    let error = clone.error_message().map(|error| format!(" ({error})")).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!(
        "{}: (groupid={}, jobs={}): err={:2}{error}: pid={}: {}\n  target       : {}; {}\n",
        options.name,
        report.group_id,
        clone.merged,
        clone.errno(),
        std::process::id(),
        calendar_time(now),
        report.target,
        describe(options),
    )
}

fn percentiles(options: &JobOptions) -> &[f64] {
    if options.percentiles.is_empty() { &PERCENTILES } else { &options.percentiles }
}

fn direction_lines(
    text: &mut String,
    word: &str,
    stats: &DirectionStats,
    all: f64,
    options: &JobOptions,
) {
    let rate = stats.bandwidth();
    let _ = writeln!(
        text,
        "  {word}: IOPS={}, BW={}/s ({}/s)({}/{}msec)",
        count(stats.iops()),
        binary(rate),
        decimal(rate),
        binary(stats.bytes as f64),
        stats.runtime_ms(),
    );
    let switches = &options.watch.latencies;
    let there = stats.shown(switches).into_iter().filter_map(|(word, latency, has_percentiles)| {
        latency.filter(|latency| latency.count() > 0).map(|l| (word, l, has_percentiles))
    });
    let there: Vec<_> = there.collect();
    for (word, latency, _) in &there {
        text.push_str(&figures::latency_line(word, latency));
    }
    for (word, latency, _) in there.iter().filter(|(_, _, has_percentiles)| *has_percentiles) {
        text.push_str(&figures::percentile_lines(word, latency, percentiles(options)));
    }
    if !switches.disable_bw && !stats.samples.iops.is_empty() {
        sample_lines(text, stats, all);
    }
}

fn sample_lines(text: &mut String, stats: &DirectionStats, all: f64) {
    let rates = Summary::of(&stats.samples.bandwidth);
    let (unit, bytes) = match rates.mean > f64::from(1 << 30) {
        true => ("MiB", f64::from(1 << 20)),
        false => ("KiB", 1024.0),
    };
    let _ = writeln!(
        text,
        "   bw ({unit:>5}/s): min={:5.0}, max={:5.0}, per={:3.2}%, avg={:5.2}, stdev={:5.2}, samples={}",
        rates.min / bytes,
        rates.max / bytes,
        if all > 0.0 { (100.0 * rates.mean / all).min(100.0) } else { 0.0 },
        rates.mean / bytes,
        rates.stddev / bytes,
        rates.count,
    );
    let iops = Summary::of(&stats.samples.iops);
    let _ = writeln!(
        text,
        "   iops        : min={:5.0}, max={:5.0}, avg={:5.2}, stdev={:5.2}, samples={}",
        iops.min, iops.max, iops.mean, iops.stddev, iops.count,
    );
}

fn queue_lines(text: &mut String, options: &JobOptions, clone: &CloneReport) {
    let share = |ns: u64| 100.0 * ns as f64 / clone.runtime_ns.max(1) as f64;
    let _ = writeln!(
        text,
        "  cpu          : usr={:.2}%, sys={:.2}%, ctx={}, majf={}, minf={}",
        share(clone.cpu.user_ns),
        share(clone.cpu.system_ns),
        clone.cpu.context_switches,
        clone.cpu.major_faults,
        clone.cpu.minor_faults,
    );
    share_line(text, "  IO depths    :", shares::levels(&clone.depths));
    share_line(text, "     submit    :", shares::batches(&clone.submitted));
    share_line(text, "     complete  :", shares::batches(&clone.completed));
    let _ = writeln!(
        text,
        "     issued rwts: total={},{},{},{} short=0,0,0,0 dropped=0,0,0,0",
        clone.read.ios,
        clone.write.ios,
        clone.trim.ios,
        clone.sync.count(),
    );
    if clone.errors > 0 {
        let (errors, first) = (clone.errors, clone.error_message().unwrap_or_default());
        let errno = clone.errno();
        let _ = writeln!(text, "     errors    : total={errors}, first_error={errno}/<{first}>");
    }
    let target = &options.watch.target;
    let _ = writeln!(
        text,
        "     latency   : target={}, window={}, percentile={:.2}%, depth={}",
        target.target_ns,
        target.window_ns / 1000,
        target.percentile,
        clone.found_depth.unwrap_or(options.io_depth),
    );
}

fn share_line(text: &mut String, word: &str, shares: Shares) {
    // As fio has it, what is there at all is not rounded to nothing.
    let shown = |share: f64| if share > 0.0 { share.max(0.1) } else { 0.0 };
    let shares: Vec<_> =
        shares.into_iter().map(|(step, share)| format!("{step}={:.1}%", shown(share))).collect();
    let _ = writeln!(text, "{word} {}", shares.join(", "));
}

/// What fio does not tell: the cost of an I/O, on the core of the job and those that serve it.
fn cost_lines(text: &mut String, report: &Report, clone: &CloneReport) {
    if let Some(found) = &report.steadiness {
        let _ = writeln!(text, "  steadystate  : {}", found.words());
    }
    let _ = writeln!(
        text,
        "  cost         : {} of CPU per I/O, heap allocations per I/O: {}",
        format_ns(clone.cpu_ns_per_io()),
        heap_words(clone.allocations),
    );
    for core in &report.serving {
        let _ = writeln!(
            text,
            "  served by    : core {}: {} of CPU per I/O, heap allocations per I/O: {}",
            core.core,
            format_ns(core.cpu_ns_per_io()),
            heap_words(core.allocations),
        );
    }
}

/// What was wrong with a device meanwhile, or had to be mended; nothing of one that was well.
fn device_lines(text: &mut String, report: &Report) {
    for device in &report.devices {
        let alarming = device.counters.iter().filter(|counter| counter.is_alarming());
        let counts: Vec<String> = alarming.map(|c| format!("{}={}", c.name, c.value)).collect();
        if !counts.is_empty() {
            let _ = writeln!(text, "  DEVICE       : {}: {}", device.node, counts.join(", "));
        }
    }
}

fn heap_words(allocations: Option<Allocations>) -> String {
    match allocations {
        None => "not counted".to_owned(),
        Some(Allocations { count: 0, .. }) => "0".to_owned(),
        Some(all) => format!("{:.6} ({} in all)", all.per_io(), all.count),
    }
}

fn verify_lines(text: &mut String, clone: &CloneReport) {
    let Some(verify) = &clone.verify else { return };
    let _ = match verify.bad {
        0 if verify.checked == 0 => writeln!(text, "  verify       : nothing was there to check"),
        0 => writeln!(text, "  verify       : {} blocks checked, all good", verify.checked),
        bad => writeln!(text, "  VERIFY       : {bad} of {} blocks are bad", verify.checked),
    };
    for words in verify.notes() {
        let _ = writeln!(text, "             {words}");
    }
    for mismatch in &verify.mismatches {
        let _ = writeln!(text, "                 {mismatch}");
    }
    let untold = verify.bad.saturating_sub(verify.mismatches.len() as u64);
    if untold > 0 {
        let _ = writeln!(text, "                 and {untold} more");
    }
}
