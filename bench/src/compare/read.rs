//! One run out of a JSON document: ours or fio's.

use serde_json::Value;

use super::interval::{Estimate, StandardError};

/// The most batches that a run's samples are put into: neighbours depend on each other, and their
/// means much less.
const BATCHES_MAX: usize = 20;
/// Fewer samples than this are no ground for an interval.
const SAMPLES_MIN: usize = 4;

/// What is compared, in the order of reports; the last ones are latencies in ns.
pub const METRICS: [&str; 10] =
    ["iops", "bw_bytes", "mean", "p50", "p90", "p95", "p99", "p99.9", "p99.99", "max"];
/// Which of [`METRICS`] are rates.
pub const RATES: usize = 2;

/// The directions of a job, as fio names them.
pub const WAYS: [&str; 3] = ["read", "write", "trim"];

/// Figures of one direction, in the order of [`METRICS`].
pub type Figures = [Option<Estimate>; METRICS.len()];

/// One document.
pub struct Run {
    /// Who wrote it.
    pub program: String,
    /// Its jobs, those of one name together.
    pub jobs: Vec<Job>,
}

/// One job of a document.
pub struct Job {
    pub name: String,
    /// Entries that were put together: their latencies cannot be.
    pub entries: usize,
    /// In the order of [`WAYS`]; `None` where nothing was done.
    pub ways: [Option<Figures>; 3],
    /// The first error that an entry ended with.
    pub errno: i64,
    /// What the intervals of its rates rest on.
    pub ground: Ground,
}

/// What an interval rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ground {
    /// There is none.
    #[default]
    None,
    /// Samples of one run, their mean and deviation as it stands in the document.
    Samples,
    /// So many means of successive samples of one run.
    Batches(usize),
    /// So many runs.
    Files(usize),
}

/// Reads a document. What fio writes before it (notes go to the same file) is passed over.
///
/// Errors: a sentence that says why this is no result.
pub fn run(text: &str) -> Result<Run, String> {
    let start = text.lines().scan(0, |at, line| {
        let here = *at;
        *at += line.len() + 1;
        Some((here, line))
    });
    let start = start.filter(|(_, line)| line.starts_with('{')).map(|(at, _)| at).next();
    let text = start.and_then(|at| text.get(at..)).ok_or("it is not JSON")?;
    // fio may add lines after the document too.
    let first = serde_json::Deserializer::from_str(text).into_iter::<Value>().next();
    let document = match first {
        Some(Ok(document)) => document,
        Some(Err(error)) => return Err(format!("it is not JSON: {error}")),
        None => return Err("it is empty".to_owned()),
    };
    let entries = document["jobs"].as_array().or(document["client_stats"].as_array());
    let entries = entries.ok_or("it has no `jobs`; make it with --output-format=json")?;
    let program = match document["oxblock version"].as_str() {
        Some(version) => format!("oxblock {version}"),
        None => document["fio version"].as_str().unwrap_or("unknown").to_owned(),
    };
    let mut run = Run { program: printable(&program), jobs: Vec::new() };
    for entry in entries {
        add(&mut run.jobs, entry);
    }
    match run.jobs.is_empty() {
        true => Err("it has no job".to_owned()),
        false => Ok(run),
    }
}

fn add(jobs: &mut Vec<Job>, entry: &Value) {
    let name = &printable(entry["jobname"].as_str().unwrap_or("unnamed"));
    let (ways, ground) = figures(entry);
    let errno = entry["error"].as_i64().unwrap_or(0);
    match jobs.iter_mut().find(|job| job.name == *name) {
        None => jobs.push(Job { name: name.to_owned(), entries: 1, ways, errno, ground }),
        Some(job) => {
            job.entries += 1;
            job.errno = if job.errno == 0 { errno } else { job.errno };
            // Samples of several entries side by side say nothing of their sum.
            job.ground = Ground::None;
            for (mine, theirs) in job.ways.iter_mut().zip(ways) {
                put_together(mine, theirs);
            }
        }
    }
}

/// Rates add up; of latencies the worst is kept, as shares of two runs have no common percentile.
fn put_together(mine: &mut Option<Figures>, theirs: Option<Figures>) {
    let Some(theirs) = theirs else { return };
    let Some(mine) = mine else {
        *mine = Some(theirs.map(without_error));
        return;
    };
    for (place, (mine, theirs)) in mine.iter_mut().zip(theirs).enumerate() {
        let value = match (*mine, theirs) {
            (Some(a), Some(b)) if place < RATES => Some(a.value + b.value),
            (Some(a), Some(b)) => Some(a.value.max(b.value)),
            (a, b) => a.or(b).map(|one| one.value),
        };
        *mine = value.map(|value| Estimate { value, error: None });
    }
}

fn without_error(figure: Option<Estimate>) -> Option<Estimate> {
    figure.map(|figure| Estimate { error: None, ..figure })
}

fn figures(entry: &Value) -> ([Option<Figures>; 3], Ground) {
    let mut ground = Ground::None;
    let ways = WAYS.map(|way| {
        let stats = &entry[way];
        if number(&stats["total_ios"])? <= 0.0 {
            return None;
        }
        let mut figures = plain(stats);
        let series = &entry["oxblock"]["series"][way];
        for (place, rate) in ["iops", "bw_bytes"].into_iter().enumerate() {
            let Some(figure) = &mut figures[place] else { continue };
            let (error, found) = match batches(&series[rate]) {
                Some((error, count)) => (Some(error), Ground::Batches(count)),
                None => match samples(stats, place) {
                    Some(error) => (Some(error), Ground::Samples),
                    None => continue,
                },
            };
            (figure.error, ground) = (error, found);
        }
        Some(figures)
    });
    (ways, ground)
}

/// The figures of one direction without any interval.
fn plain(stats: &Value) -> Figures {
    // With lat_percentiles=1 fio keeps them under `lat_ns`.
    let latency = ["clat_ns", "lat_ns"]
        .into_iter()
        .map(|name| &stats[name])
        .find(|latency| latency["percentile"].is_object())
        .unwrap_or(&stats["clat_ns"]);
    METRICS.map(|metric| {
        let value = match metric {
            "iops" | "bw_bytes" => number(&stats[metric]),
            "mean" | "max" => number(&latency[metric]),
            _ => percentile(latency, metric.trim_start_matches('p')),
        };
        value.map(|value| Estimate { value, error: None })
    })
}

fn percentile(latency: &Value, wanted: &str) -> Option<f64> {
    let wanted: f64 = wanted.parse().ok()?;
    let list = latency["percentile"].as_object()?;
    let found = list
        .iter()
        .find(|(name, _)| name.parse::<f64>().is_ok_and(|percent| (percent - wanted).abs() < 1e-6));
    number(found?.1)
}

/// The standard error of a rate from the series of one run.
fn batches(series: &Value) -> Option<(StandardError, usize)> {
    let list: Vec<f64> = series.as_array()?.iter().filter_map(number).collect();
    if list.len() < SAMPLES_MIN {
        return None;
    }
    let per_batch = list.len().div_ceil(BATCHES_MAX);
    let means: Vec<f64> = list
        .chunks_exact(per_batch)
        .map(|batch| batch.iter().sum::<f64>() / batch.len() as f64)
        .collect();
    Some((Estimate::of(&means)?.error?, means.len()))
}

/// The standard error of a rate from fio's summary of its samples. The rate itself is the job's
/// own: that of the samples leaves out the last, unfinished one.
fn samples(stats: &Value, place: usize) -> Option<StandardError> {
    let [deviation, count, unit] = match place {
        0 => [number(&stats["iops_stddev"])?, number(&stats["iops_samples"])?, 1.0],
        _ => [number(&stats["bw_dev"])?, number(&stats["bw_samples"])?, 1024.0],
    };
    (count >= SAMPLES_MIN as f64)
        .then(|| StandardError { size: deviation * unit / count.sqrt(), freedom: count - 1.0 })
}

/// Somebody else's words may not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|value| value.is_finite() && *value >= 0.0)
}
