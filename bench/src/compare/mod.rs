//! Results side by side: ours or fio's, with ratios and 95 % confidence intervals.
//!
//! A side is one result, or several of the same job. Of several, every figure has an interval,
//! from run to run. Of one, only the rates have: from the samples that were taken during the run,
//! which says how steady it was, and nothing of the next run.

pub mod interval;
mod read;
#[cfg(test)]
mod tests;

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::units::{format_bytes, format_count, format_ns};
use interval::Estimate;
use read::{Figures, Ground, METRICS, Run, WAYS};

/// One side of a comparison.
pub struct Side {
    name: String,
    program: String,
    jobs: Vec<SideJob>,
    notes: Vec<String>,
}

struct SideJob {
    name: String,
    ways: [Option<Figures>; 3],
    ground: Ground,
}

impl Side {
    /// Puts the documents of one side together; each is the name and the text of a file.
    ///
    /// Errors: a sentence that names the file that is no result.
    pub fn new(name: &str, documents: &[(String, String)]) -> Result<Side, String> {
        let mut runs = Vec::new();
        let mut notes = Vec::new();
        for (file, text) in documents {
            let run = read::run(text).map_err(|error| format!("{file}: {error}"))?;
            for job in &run.jobs {
                if job.errno != 0 {
                    notes.push(format!("{file}: job {} ended with error {}", job.name, job.errno));
                }
                if job.entries > 1 {
                    notes.push(format!(
                        "{file}: job {}: latencies are the worst of its {} clones; \
                         group_reporting puts them together",
                        job.name, job.entries
                    ));
                }
            }
            runs.push(run);
        }
        let first = runs.first().ok_or_else(|| format!("{name}: no file"))?;
        let (program, names) = (first.program.clone(), names(first));
        if let Some((other, (file, _))) =
            runs.iter().zip(documents).find(|(run, _)| self::names(run) != names)
        {
            return Err(format!(
                "{file} has the jobs {}, the first file of its side has {}; a side is one job \
                 file run several times",
                self::names(other).join(", "),
                names.join(", ")
            ));
        }
        let jobs = (0..names.len()).map(|number| SideJob::new(&runs, number)).collect();
        Ok(Side { name: name.to_owned(), program, jobs, notes })
    }
}

impl SideJob {
    fn new(runs: &[Run], number: usize) -> SideJob {
        let jobs: Vec<_> = runs.iter().map(|run| &run.jobs[number]).collect();
        let name = jobs[0].name.clone();
        if let [job] = jobs[..] {
            return SideJob { name, ways: job.ways, ground: job.ground };
        }
        let ways = [0, 1, 2].map(|way| {
            let runs: Vec<&Figures> =
                jobs.iter().filter_map(|job| job.ways[way].as_ref()).collect();
            (!runs.is_empty()).then(|| {
                std::array::from_fn(|place| {
                    let values = runs.iter().filter_map(|figures| figures[place]);
                    Estimate::of(&values.map(|figure| figure.value).collect::<Vec<_>>())
                })
            })
        });
        SideJob { name, ways, ground: Ground::Files(jobs.len()) }
    }
}

fn names(run: &Run) -> Vec<String> {
    run.jobs.iter().map(|job| job.name.clone()).collect()
}

/// Sides next to each other; ratios are to the first.
pub struct Comparison {
    sides: Vec<Side>,
    /// For each row the name, and the place of the job on each side.
    rows: Vec<(String, Vec<usize>)>,
    notes: Vec<String>,
}

impl Comparison {
    /// Pairs the jobs of all sides: by name or, where each side has one job, that one.
    ///
    /// Errors: a sentence; fewer than two sides, or no job that all sides have.
    pub fn new(sides: Vec<Side>) -> Result<Comparison, String> {
        let Some((first, others)) = sides.split_first().filter(|(_, others)| !others.is_empty())
        else {
            return Err("a comparison needs at least two sides".to_owned());
        };
        if others.len() > 25 {
            return Err("a comparison has room for 26 sides, A to Z".to_owned());
        }
        let mut notes: Vec<String> = sides.iter().flat_map(|side| side.notes.clone()).collect();
        if sides.iter().all(|side| side.jobs.len() == 1) {
            let name = first.jobs[0].name.clone();
            let rows = vec![(name, vec![0; sides.len()])];
            return Ok(Comparison { sides, rows, notes });
        }
        let mut rows = Vec::new();
        for (number, job) in first.jobs.iter().enumerate() {
            let place = |side: &Side| side.jobs.iter().position(|other| other.name == job.name);
            let places: Option<Vec<usize>> = others.iter().map(place).collect();
            match places {
                Some(places) => {
                    rows.push((job.name.clone(), [vec![number], places].concat()));
                }
                None => notes.push(format!("job {} is not on every side: left out", job.name)),
            }
        }
        if rows.is_empty() {
            let lists = sides.iter().map(|side| {
                let names: Vec<&str> = side.jobs.iter().map(|job| job.name.as_str()).collect();
                format!("{}: {}", side.name, names.join(", "))
            });
            let lists: Vec<String> = lists.collect();
            return Err(format!("no job is on every side ({})", lists.join("; ")));
        }
        Ok(Comparison { sides, rows, notes })
    }

    /// For a person.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (letter, side) in ('A'..='Z').zip(&self.sides) {
            let _ = writeln!(text, "{letter}  {}  ({})", side.name, side.program);
        }
        for (name, places) in &self.rows {
            let _ = writeln!(text, "\n{name}");
            let mut heading = format!("{:18}", "");
            for (number, letter) in ('A'..='Z').take(self.sides.len()).enumerate() {
                let _ = write!(heading, "{letter:<24}");
                if number > 0 {
                    let _ = write!(heading, "{:<24}", format!("{letter} / A"));
                }
            }
            let _ = writeln!(text, "{}", heading.trim_end());
            for (way, word) in WAYS.into_iter().enumerate() {
                self.way_lines(&mut text, places, way, word);
            }
        }
        text.push('\n');
        for (letter, side) in ('A'..='Z').zip(&self.sides) {
            let grounds = self.rows.iter().filter_map(|(name, _)| side.job_ground(name));
            let ground = grounds.max_by_key(|ground| ground.rank()).unwrap_or_default();
            let _ = writeln!(text, "{letter}: {}", ground.describe());
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }

    fn way_lines(&self, text: &mut String, places: &[usize], way: usize, word: &str) {
        let mut shown = false;
        for (place, metric) in METRICS.into_iter().enumerate() {
            let figures = self.figures(places, way, place);
            if figures.iter().all(Option::is_none) {
                continue;
            }
            let title = match metric {
                "iops" => "IOPS",
                "bw_bytes" => "bandwidth",
                other => other,
            };
            let mut line = format!("  {:<6}{title:<10}", if shown { "" } else { word });
            shown = true;
            for (number, figure) in figures.iter().enumerate() {
                let _ = write!(line, "{:<24}", figure.map_or("-".to_owned(), |f| cell(place, &f)));
                if number > 0 {
                    let _ = write!(line, "{:<24}", ratio_cell(*figure, figures[0]));
                }
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }

    fn figures(&self, places: &[usize], way: usize, place: usize) -> Vec<Option<Estimate>> {
        let pairs = self.sides.iter().zip(places);
        pairs.map(|(side, &job)| side.jobs[job].ways[way].and_then(|list| list[place])).collect()
    }

    /// For scripts: of each job, direction and figure one entry for each side. Times are in ns.
    pub fn json(&self) -> Value {
        let sides: Vec<Value> = self
            .sides
            .iter()
            .map(|side| json!({ "name": side.name, "program": side.program }))
            .collect();
        let jobs: Vec<Value> =
            self.rows.iter().map(|(name, places)| self.job_json(name, places)).collect();
        json!({ "sides": sides, "confidence": 0.95, "jobs": jobs, "notes": self.notes })
    }

    fn job_json(&self, name: &str, places: &[usize]) -> Value {
        let mut job = Map::new();
        job.insert("name".to_owned(), name.into());
        let pairs = self.sides.iter().zip(places);
        let grounds: Vec<&str> = pairs.map(|(side, &at)| side.jobs[at].ground.word()).collect();
        job.insert("intervals_from".to_owned(), json!(grounds));
        for (way, word) in WAYS.into_iter().enumerate() {
            let mut metrics = Map::new();
            for (place, metric) in METRICS.into_iter().enumerate() {
                let figures = self.figures(places, way, place);
                if figures.iter().any(Option::is_some) {
                    let first = figures[0];
                    let entries = figures.into_iter().map(|figure| entry_json(figure, first));
                    metrics.insert(metric.to_owned(), entries.collect());
                }
            }
            if !metrics.is_empty() {
                job.insert(word.to_owned(), metrics.into());
            }
        }
        job.into()
    }
}

impl Side {
    fn job_ground(&self, name: &str) -> Option<Ground> {
        let job = self.jobs.iter().find(|job| job.name == name).or(self.jobs.first());
        job.map(|job| job.ground)
    }
}

impl Ground {
    fn rank(self) -> u8 {
        match self {
            Ground::None => 0,
            Ground::Samples => 1,
            Ground::Batches(_) => 2,
            Ground::Files(_) => 3,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Ground::None => "none",
            Ground::Samples => "samples",
            Ground::Batches(_) => "batches",
            Ground::Files(_) => "files",
        }
    }

    fn describe(self) -> String {
        match self {
            Ground::None => "one result without enough samples: no interval".to_owned(),
            Ground::Samples => "± is 95 % confidence from the samples within one run; it says \
                                nothing of the next run"
                .to_owned(),
            Ground::Batches(count) => format!(
                "± is 95 % confidence from {count} batches of samples within one run; it says \
                 nothing of the next run"
            ),
            Ground::Files(count) => format!("± is 95 % confidence from {count} runs"),
        }
    }
}

fn entry_json(figure: Option<Estimate>, first: Option<Estimate>) -> Value {
    let Some(figure) = figure else { return Value::Null };
    let half = figure.half_width();
    let ratio = first.and_then(|first| figure.ratio_to(&first));
    let between = ratio.and_then(|(_, interval)| interval);
    json!({
        "value": figure.value,
        "low": half.map(|half| figure.value - half),
        "high": half.map(|half| figure.value + half),
        "ratio": ratio.map(|(ratio, _)| ratio),
        "ratio_low": between.map(|(low, _)| low),
        "ratio_high": between.map(|(_, high)| high),
    })
}

fn cell(place: usize, figure: &Estimate) -> String {
    let value = match METRICS[place] {
        "iops" => format_count(figure.value),
        "bw_bytes" => format!("{}/s", format_bytes(figure.value as u64)),
        _ => format_ns(figure.value),
    };
    match figure.half_width() {
        Some(half) if figure.value > 0.0 => {
            format!("{value} ± {:.1} %", 100.0 * half / figure.value)
        }
        _ => value,
    }
}

fn ratio_cell(figure: Option<Estimate>, first: Option<Estimate>) -> String {
    match figure.zip(first).and_then(|(figure, first)| figure.ratio_to(&first)) {
        None => "-".to_owned(),
        Some((ratio, None)) => format!("{ratio:.3}"),
        Some((ratio, Some((low, high)))) => format!("{ratio:.3} ({low:.3} to {high:.3})"),
    }
}
