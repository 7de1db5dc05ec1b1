//! fio's job files: sections of `key=value` lines.
//!
//! A line is a section's heading (`[name]`), an option (`key=value`, or `key` alone for a switch),
//! a comment (from `;` or `#` on), or empty. What stands under `[global]` holds for the sections
//! that follow it, and several such sections add up. In a value `${NAME}` stands for an
//! environment variable, `$ncpus` for the number of processors and `$pagesize` for the size of a
//! page in bytes.

use std::fmt;

use crate::options::JobOptions;

/// A job file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFileError {
    /// The line at fault, counted from 1.
    pub line: usize,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for JobFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for JobFileError {}

/// Reads the jobs of a file, in order. Each begins as `defaults`, then takes the global options
/// above it, then its own. `variable` gives the environment's variables.
///
/// Errors: the first line that is wrong, and why.
pub fn parse(
    text: &str,
    defaults: &JobOptions,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<JobOptions>, JobFileError> {
    let mut global = defaults.clone();
    let mut jobs: Vec<JobOptions> = Vec::new();
    let mut place = Place::Outside;
    for (index, line) in text.lines().enumerate() {
        let fail = |message| JobFileError { line: index + 1, message };
        let line = without_comment(line);
        if line.is_empty() {
            continue;
        }
        if let Some(heading) = line.strip_prefix('[') {
            let name = heading.strip_suffix(']').filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| fail(format!("`{line}` is not a [section] heading")))?;
            place = if name == "global" { Place::Global } else { Place::Job };
            if let Place::Job = place {
                jobs.push(JobOptions { name: name.to_owned(), ..global.clone() });
            }
            continue;
        }
        let job = match place {
            Place::Outside => {
                let what = format!("`{line}` stands outside of a section; put [global] above it");
                return Err(fail(what));
            }
            Place::Global => &mut global,
            Place::Job => jobs.last_mut().unwrap_or(&mut global),
        };
        set(job, line, variable).map_err(fail)?;
    }
    match jobs.is_empty() {
        true => {
            let line = text.lines().count().max(1);
            Err(JobFileError { line, message: "no job; begin one with [its name]".to_owned() })
        }
        false => Ok(jobs),
    }
}

/// Where a line stands.
enum Place {
    Outside,
    Global,
    Job,
}

fn set(
    job: &mut JobOptions,
    line: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(), String> {
    let (name, value) = match line.split_once('=') {
        Some((name, value)) => (name.trim(), Some(expand(value.trim(), variable)?)),
        None => (line, None),
    };
    if name == "include" || name.starts_with("include ") {
        return Err("`include` is not offered; put the lines in this file".to_owned());
    }
    job.set_word(name, value.as_deref()).map_err(|error| error.to_string())
}

fn without_comment(line: &str) -> &str {
    line.split([';', '#']).next().unwrap_or("").trim()
}

/// Puts in what the variables of a value stand for. What they bring is not looked at again.
fn expand(value: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    const PAGE_SIZE: &str = "4096";
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(inner) = rest.strip_prefix('{') {
            let (name, after) = inner
                .split_once('}')
                .ok_or_else(|| format!("`{value}`: a variable's name ends with a }}"))?;
            let found = variable(name);
            out.push_str(
                &found.ok_or_else(|| format!("the environment has no variable `{name}`"))?,
            );
            rest = after;
        } else if let Some(after) = rest.strip_prefix("ncpus") {
            let count = std::thread::available_parallelism().map_or(1, usize::from);
            out.push_str(&count.to_string());
            rest = after;
        } else if let Some(after) = rest.strip_prefix("pagesize") {
            out.push_str(PAGE_SIZE);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Sorts jobs into groups that run one after the other; the jobs of one run side by side. A job
/// with `stonewall` begins the next.
pub fn schedule(jobs: Vec<JobOptions>) -> Vec<Vec<JobOptions>> {
    let mut rounds: Vec<Vec<JobOptions>> = Vec::new();
    for job in jobs {
        match rounds.last_mut() {
            Some(round) if !job.stonewall => round.push(job),
            _ => rounds.push(vec![job]),
        }
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{FIO_OPTIONS, OPTIONS, Rw};
    use crate::pattern::Prng;
    use crate::units::Size;

    fn variable(name: &str) -> Option<String> {
        (name == "SIZE").then(|| "64k".to_owned())
    }

    fn read(text: &str) -> Result<Vec<JobOptions>, JobFileError> {
        parse(text, &JobOptions::default(), &variable)
    }

    #[test]
    fn sections_inherit_from_the_globals_above_them() {
        let jobs = read(
            "; a comment\n[global]\nbs=8k\niodepth = 4   # of them\n\n[one]\nrw=randread\n\
             [global]\nbs=16k\ngroup_reporting\n[two]\niodepth=8\nstonewall\n",
        )
        .expect("a good file");
        let [one, two] = &jobs[..] else { panic!("two jobs: {jobs:?}") };
        assert_eq!((one.name.as_str(), one.rw, one.io_depth), ("one", Rw::RandRead, 4));
        assert_eq!((one.block_size, one.group_reporting), (8192, false));
        assert_eq!((two.name.as_str(), two.rw, two.io_depth), ("two", Rw::Read, 8));
        assert_eq!((two.block_size, two.group_reporting, two.stonewall), (16_384, true, true));
        let rounds = schedule(jobs);
        assert_eq!(rounds.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn variables_are_put_in() {
        let jobs = read("[a]\nsize=${SIZE}\nnumjobs=$ncpus\nbs=$pagesize\n").expect("good");
        assert_eq!((jobs[0].size, jobs[0].block_size), (Some(Size::Bytes(65_536)), 4096));
        assert!(jobs[0].num_jobs >= 1);
    }

    #[test]
    fn errors_name_their_line() {
        for (text, line, hint) in [
            ("bs=4k\n", 1, "outside of a section"),
            ("[a]\nbs=4k\niodpeth=3\n", 3, "did you mean `iodepth`"),
            ("[a]\n\ncgroup_weight=3\n", 3, "fio has this option"),
            ("[a]\nbs\n", 2, "needs a value"),
            ("[a\n", 1, "heading"),
            ("[]\n", 1, "heading"),
            ("[global]\nbs=4k\n", 2, "no job"),
            ("", 1, "no job"),
            ("[a]\nsize=${NOT_THERE}\n", 2, "NOT_THERE"),
            ("[a]\nsize=${SIZE\n", 2, "ends with"),
            ("[a]\ninclude other.fio\n", 2, "include"),
        ] {
            let error = read(text).expect_err(text);
            assert_eq!(error.line, line, "{error}");
            assert!(error.to_string().contains(hint), "{error}");
        }
    }

    /// Text of the kind that trips parsers: bits of real job files, cut, joined and garbled.
    fn garbled(random: &mut Prng) -> String {
        const BITS: [&str; 24] = [
            "[",
            "]",
            "=",
            "\n",
            ";",
            "#",
            "$",
            "${",
            "}",
            ":",
            "/",
            "%",
            "-",
            ",",
            "global",
            "4k",
            "0x",
            "18446744073709551615",
            "-1",
            "\u{fffd}\u{1f600}",
            "\0",
            "\r\n",
            "zipf:1.2",
            " ",
        ];
        let mut text = String::new();
        for _ in 0..random.below(60) {
            match random.below(4) {
                0 => text.push_str("\n[job]\n"),
                1 => text.push_str(OPTIONS[random.below(OPTIONS.len() as u64) as usize].name),
                2 => text.push_str(FIO_OPTIONS[random.below(FIO_OPTIONS.len() as u64) as usize]),
                _ => {
                    for _ in 0..=random.below(4) {
                        text.push_str(BITS[random.below(BITS.len() as u64) as usize]);
                    }
                }
            }
        }
        text
    }

    #[test]
    fn any_text_is_read_or_refused_by_line() {
        let mut random = Prng::new(3);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..3_000 {
            let text = garbled(&mut random);
            match read(&text) {
                Ok(_) => good += 1,
                Err(error) => {
                    bad += 1;
                    let lines = text.lines().count().max(1);
                    assert!((1..=lines).contains(&error.line), "{error} in {text:?}");
                    assert!(!error.message.is_empty());
                }
            }
        }
        assert!(good > 5 && bad > 500, "{good} {bad}: the text is of one kind only");
    }

    #[test]
    fn any_value_is_taken_or_refused_by_name() {
        let mut random = Prng::new(5);
        for _ in 0..3_000 {
            let spec = &OPTIONS[random.below(OPTIONS.len() as u64) as usize];
            let value = garbled(&mut random);
            let mut job = JobOptions::default();
            if let Err(error) = job.set(spec.name, &value) {
                assert_eq!(error.option, spec.name);
            }
            // A plan of whatever was taken does not panic either.
            let _ = job.plan(1 << 20, 512);
        }
    }
}
