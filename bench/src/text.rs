//! A run as a person reads it: fio's figures, fewer lines.

use std::fmt::Write;

use crate::options::JobOptions;
use crate::report::{Allocations, CloneReport, Report, ServingReport};
use crate::stats::{Direction, DirectionStats};
use crate::units::{format_bytes, format_count, format_ns};

/// The report of one job with all its clones.
pub fn report(report: &Report) -> String {
    let mut text = heading(report);
    let apart = report.clones.len() > 1 && !report.options.group_reporting;
    if apart {
        for (number, clone) in report.clones.iter().enumerate() {
            let _ = writeln!(text, "  job {number} on core {}", clone.core);
            body(&mut text, clone);
        }
        let _ = writeln!(text, "  all {} jobs", report.clones.len());
    }
    body(&mut text, &report.group());
    serving_lines(&mut text, &report.serving);
    if report.interrupted {
        text.push_str("  ended early by Ctrl-C\n");
    }
    text
}

/// What a job does, in words: `4 KiB random reads, 32 in flight`.
pub fn describe(options: &JobOptions) -> String {
    let order = if options.rw.is_random() { "random" } else { "sequential" };
    let what = if options.rw.is_mixed() {
        let reads = options.read_percent;
        format!("{reads} % reads and {} % writes", 100 - reads)
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

fn heading(report: &Report) -> String {
    let options = &report.options;
    let jobs = match report.clones.len() {
        1 => String::new(),
        n => format!(" in each of {n} jobs"),
    };
    format!("{}: {}{jobs}; {}\n", options.name, describe(options), report.target)
}

fn body(text: &mut String, clone: &CloneReport) {
    for direction in Direction::ALL {
        let stats = clone.direction(direction);
        if stats.ios > 0 {
            direction_lines(text, direction, stats);
        }
    }
    if clone.sync.count() > 0 {
        let (count, latency) = (clone.sync.count(), &clone.sync);
        let _ = writeln!(
            text,
            "    flush    {} in all   p50 {}   p99 {}   max {}",
            format_count(count as f64),
            format_ns(latency.percentile(50.0) as f64),
            format_ns(latency.percentile(99.0) as f64),
            format_ns(latency.max() as f64),
        );
    }
    if clone.errors > 0 {
        let _ = writeln!(text, "    ERRORS   {} I/Os failed, the first:", clone.errors);
    }
    if let Some(failed) = &clone.fault {
        let direction = failed.direction.word();
        let _ = writeln!(text, "    ERROR    {direction}: {}", failed.fault);
    } else if let Some(ending) = &clone.ending {
        let _ = writeln!(text, "    ENDED    {ending}");
    } else if clone.ios() == 0 {
        text.push_str("    nothing was done\n");
    }
    if clone.ios() > 0 {
        cost_line(text, clone);
    }
    verify_lines(text, clone);
}

fn direction_lines(text: &mut String, direction: Direction, stats: &DirectionStats) {
    let rate = stats.bandwidth();
    let _ = writeln!(
        text,
        "    {:<8} {:>8} IOPS   {}/s ({}B/s)   {} I/Os, {} in {}",
        direction.word(),
        format_count(stats.iops()),
        format_bytes(rate as u64),
        format_count(rate),
        format_count(stats.ios as f64),
        format_bytes(stats.bytes),
        format_ns(stats.runtime_ns as f64),
    );
    let latency = &stats.latency;
    let at = |percent| format_ns(latency.percentile(percent) as f64);
    let _ = writeln!(
        text,
        "             latency  p50 {}   p99 {}   p99.9 {}   max {}   (mean {}, min {})",
        at(50.0),
        at(99.0),
        at(99.9),
        format_ns(latency.max() as f64),
        format_ns(latency.mean()),
        format_ns(latency.min() as f64),
    );
}

fn cost_line(text: &mut String, clone: &CloneReport) {
    let share = |ns: u64| 100.0 * ns as f64 / clone.runtime_ns.max(1) as f64;
    let heap = heap_words(clone.allocations);
    let _ = writeln!(
        text,
        "    cost     {} of CPU per I/O (user {:.0} %, system {:.0} %)   heap allocations per I/O: {heap}",
        format_ns(clone.cpu_ns_per_io()),
        share(clone.cpu.user_ns),
        share(clone.cpu.system_ns),
    );
}

fn serving_lines(text: &mut String, serving: &[ServingReport]) {
    for core in serving {
        let _ = writeln!(
            text,
            "    served   by core {}: {} of CPU per I/O   heap allocations per I/O: {}",
            core.core,
            format_ns(core.cpu_ns_per_io()),
            heap_words(core.allocations),
        );
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
        0 => writeln!(text, "    verify   {} blocks checked, all good", verify.checked),
        bad => writeln!(text, "    VERIFY   {bad} of {} blocks are bad", verify.checked),
    };
    for words in verify.notes() {
        let _ = writeln!(text, "             {words}");
    }
    for mismatch in &verify.mismatches {
        let _ = writeln!(text, "             {mismatch}");
    }
    let untold = verify.bad.saturating_sub(verify.mismatches.len() as u64);
    if untold > 0 {
        let _ = writeln!(text, "             and {untold} more");
    }
}
