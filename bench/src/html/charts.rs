//! The plots of one job.

use std::fmt::Write;

use super::plot::{Axis, Plot, WIDTH};
use super::{escape, short_count, short_ns};
use crate::report::{CloneReport, Report};
use crate::series::Point;
use crate::stats::{Direction, Latency};
use crate::units::{format_bytes, format_count, format_ns};

/// Steps of the distribution over a factor of ten.
const STEPS_PER_DECADE: f64 = 28.0;
/// Points of the percentile curve.
const CURVE_POINTS: u32 = 200;
/// Rows of the CPU plot.
const ROWS_MAX: usize = 16;

/// How many I/Os took how long.
pub fn distribution(group: &CloneReport) -> String {
    let ways = with_ios(group);
    let low = ways.iter().map(|(_, l)| l.min()).min().unwrap_or(1).max(1);
    let high = ways.iter().map(|(_, l)| l.percentile(99.0)).max().unwrap_or(1);
    let edges = edges(low as f64, (high as f64 * 1.25).max(low as f64 + 2.0));
    let total: u64 = ways.iter().map(|(_, latency)| latency.count()).sum();
    // The histogram counts whole steps of its own: only counts from 0 on do not overlap.
    let share = |latency: &Latency, from: u64, to: u64| {
        let count = latency.count_between(0, to) - latency.count_between(0, from);
        100.0 * count as f64 / total.max(1) as f64
    };
    let shares: Vec<(Direction, Vec<f64>)> = ways
        .iter()
        .map(|(way, latency)| {
            (*way, edges.windows(2).map(|e| share(latency, e[0], e[1])).collect())
        })
        .collect();
    let top = shares.iter().flat_map(|(_, list)| list.iter().copied()).fold(0.0, f64::max);
    let last = edges.last().copied().unwrap_or(high) as f64;
    let x = Axis::log("completion latency", low as f64, last, short_ns);
    let mut plot = Plot::new(x, Axis::linear("", top, percent));
    for (way, list) in &shares {
        for (edge, share) in edges.windows(2).zip(list).filter(|(_, share)| **share > 0.0) {
            let span = format!("{} to {}", format_ns(edge[0] as f64), format_ns(edge[1] as f64));
            let words = format!("{}, {span}: {share:.3} % of I/Os", way.word());
            plot.bar(way.word(), edge[0] as f64, edge[1] as f64, *share, &words);
        }
    }
    let drawn: f64 = shares.iter().flat_map(|(_, list)| list).sum();
    let slowest = ways.iter().map(|(_, latency)| latency.max()).max().unwrap_or(0);
    let slowest = format_ns(slowest as f64);
    let note = match (100.0 - drawn).max(0.0) {
        beyond if beyond < 0.0005 => format!("The slowest took {slowest}."),
        beyond => format!("{beyond:.3} % were slower than is shown; the slowest took {slowest}."),
    };
    figure("latency", "Latency distribution", "share of I/Os", &plot, &note)
}

/// The latency that each share of the I/Os stayed within.
pub fn percentiles(group: &CloneReport) -> String {
    let ways = with_ios(group);
    let count = ways.iter().map(|(_, latency)| latency.count()).max().unwrap_or(1);
    // Beyond one I/O in `count` there is nothing to see.
    let nines = (count as f64).log10().clamp(1.0, 5.0);
    let ticks = [
        (0.0, "0"),
        (2f64.log10(), "50"),
        (1.0, "90"),
        (2.0, "99"),
        (3.0, "99.9"),
        (4.0, "99.99"),
        (5.0, "99.999"),
    ];
    let ticks = ticks.into_iter().filter(|(at, _)| *at <= nines);
    let ticks = ticks.map(|(at, label)| (at, label.to_owned())).collect();
    let at = |latency: &Latency, nines: f64| latency.percentile(100.0 * (1.0 - 10f64.powf(-nines)));
    let low = ways.iter().map(|(_, latency)| latency.min()).min().unwrap_or(1).max(1);
    let high = ways.iter().map(|(_, latency)| at(latency, nines)).max().unwrap_or(1);
    let y = Axis::log("", low as f64 * 0.9, high as f64 * 1.1, short_ns);
    let mut plot = Plot::new(Axis::labelled("percentile", nines, ticks), y);
    for (way, latency) in &ways {
        let places = (0..=CURVE_POINTS).map(|n| nines * f64::from(n) / f64::from(CURVE_POINTS));
        let points: Vec<(f64, f64)> = places.map(|x| (x, at(latency, x) as f64)).collect();
        plot.line(way.word(), &points, false);
    }
    if let Some((way, latency)) = ways.first()
        && nines >= 2.0
    {
        let p99 = at(latency, 2.0) as f64;
        plot.dot(way.word(), 2.0, p99, &format!("p99 {}", format_ns(p99)));
    }
    figure("percentiles", "Percentiles", "completion latency", &plot, "")
}

/// I/Os a second over the run.
pub fn iops(report: &Report, group: &CloneReport) -> String {
    let whole = [group.read.iops(), group.write.iops()];
    let plot = over_time(report, group, whole, Point::iops, short_count);
    let mean = format!("Mean {} IOPS.", format_count(whole[0] + whole[1]));
    figure("iops", "IOPS over time", "I/Os a second", &plot, &mean)
}

/// Bytes a second over the run.
pub fn bandwidth(report: &Report, group: &CloneReport) -> String {
    let whole = [group.read.bandwidth(), group.write.bandwidth()];
    let plot = over_time(report, group, whole, Point::bandwidth, short_count);
    let mean = format!("Mean {}/s.", format_bytes((whole[0] + whole[1]) as u64));
    figure("bandwidth", "Bandwidth over time", "bytes a second", &plot, &mean)
}

fn over_time(
    report: &Report,
    group: &CloneReport,
    whole: [f64; 2],
    rate: fn(&Point) -> [f64; 2],
    label: fn(f64) -> String,
) -> Plot {
    let points = report.series.points();
    let run = group.runtime_ns as f64 / 1e9;
    let end = points.last().map_or(run, |point| point.end.as_secs_f64());
    let top = points.iter().flat_map(rate).fold(whole[0].max(whole[1]), f64::max);
    let x = Axis::exact("seconds", end, |v| short_count((v * 1000.0).round() / 1000.0));
    let mut plot = Plot::new(x, Axis::linear("", top, label));
    for (number, way) in Direction::BOTH.into_iter().enumerate() {
        if group.direction(way).ios == 0 {
            continue;
        }
        // A step's rate holds from its start to its end; a run too short for steps has its mean.
        let line: Vec<(f64, f64)> = match points {
            [] | [_] => vec![(0.0, whole[number]), (end, whole[number])],
            [first, ..] => {
                let start = (first.start.as_secs_f64(), rate(first)[number]);
                let ends = points.iter().map(|p| (p.end.as_secs_f64(), rate(p)[number]));
                std::iter::once(start).chain(ends).collect()
            }
        };
        plot.line(way.word(), &line, true);
    }
    plot
}

/// What the threads of the job, and the cores that serve its target, took of their CPUs.
pub fn cpu(report: &Report, group: &CloneReport) -> String {
    const ROW: f64 = 26.0;
    let runtime = group.runtime_ns.max(1) as f64;
    let clones = report.clones.iter().enumerate();
    let clones = clones.map(|(n, clone)| (format!("job {n}, core {}", clone.core), clone.cpu));
    let serving = report.serving.iter().map(|one| (format!("served, core {}", one.core), one.cpu));
    let rows: Vec<_> = clones.chain(serving).collect();
    let shown = rows.len().min(ROWS_MAX);
    let height = shown as f64 * ROW + 4.0;
    let (left, full) = (112.0, WIDTH - 112.0 - 58.0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"CPU use by thread\">"
    );
    for (n, (name, used)) in rows.iter().take(shown).enumerate() {
        let y = n as f64 * ROW + 6.0;
        let share = |ns: u64| (100.0 * ns as f64 / runtime).min(100.0);
        let (user, system) = (share(used.user_ns), share(used.system_ns));
        let system = system.min(100.0 - user);
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"track\" x=\"{left}\" y=\"{y}\" width=\"{full}\" height=\"16\" rx=\"2\"/>\
             <rect class=\"mark bar user\" x=\"{left}\" y=\"{y}\" width=\"{:.1}\" height=\"16\">\
             <title>user {user:.1} %</title></rect>\
             <rect class=\"mark bar system\" x=\"{:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"16\">\
             <title>system {system:.1} %</title></rect>\
             <text x=\"{:.1}\" y=\"{:.1}\">{:.0} %</text>",
            left - 8.0,
            y + 12.5,
            escape(name),
            full * user / 100.0,
            left + full * user / 100.0,
            full * system / 100.0,
            left + full + 8.0,
            y + 12.5,
            user + system,
        );
    }
    svg.push_str("</svg>");
    let mut note = format!("{} of CPU time for each I/O.", format_ns(group.cpu_ns_per_io()));
    if rows.len() > shown {
        let _ = write!(note, " {} threads more are not shown.", rows.len() - shown);
    }
    let legend = "<span class=\"key user\">user</span> <span class=\"key system\">system</span>";
    framed("cpu", "CPU", legend, &svg, &note)
}

fn figure(id: &str, title: &str, what: &str, plot: &Plot, note: &str) -> String {
    framed(id, title, &escape(what), &plot.svg(title), note)
}

/// `legend` and `svg` are HTML already.
fn framed(id: &str, title: &str, legend: &str, svg: &str, note: &str) -> String {
    format!(
        "<figure data-plot=\"{id}\"><figcaption><b>{}</b> <span>{legend}</span></figcaption>{svg}\
         <p class=\"small\">{}</p></figure>\n",
        escape(title),
        escape(note),
    )
}

fn with_ios(group: &CloneReport) -> Vec<(Direction, &Latency)> {
    let ways = Direction::BOTH.into_iter().map(|way| (way, &group.direction(way).latency));
    ways.filter(|(_, latency)| latency.count() > 0).collect()
}

/// Edges of the steps of the distribution, in whole ns, each wide enough for the histogram's
/// three figures.
fn edges(low: f64, high: f64) -> Vec<u64> {
    let factor = 10f64.powf(1.0 / STEPS_PER_DECADE);
    let mut edges = vec![low as u64];
    let mut at = low;
    while at < high && edges.len() < 400 {
        at *= factor;
        let edge = (at.ceil() as u64).max(edges.last().copied().unwrap_or(0) + 1);
        at = edge as f64;
        edges.push(edge);
    }
    edges
}

fn percent(value: f64) -> String {
    format!("{} %", (value * 100.0).round() / 100.0)
}
