//! The jobs that a command line asks for, its own and those of job files.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ArgMatches;
use oxblock_bench::jobfile;
use oxblock_bench::options::{FIO_OPTIONS, JobOptions, OPTIONS, OptionSpec, Rw};
use oxblock_engine::{Error, ErrorKind};

/// How long a job runs that says neither how long nor how much.
const DEFAULT_RUNTIME: Duration = Duration::from_secs(3);

/// All jobs, and whether they are the main job, which runs where nothing else is asked for.
///
/// Errors: options or files that cannot be read.
pub fn all(matches: &ArgMatches) -> Result<(Vec<JobOptions>, bool), Error> {
    let CommandLine { global, own } = command_line(matches)?;
    let files: Vec<&PathBuf> = matches.get_many("jobfile").into_iter().flatten().collect();
    let mut jobs = own;
    for path in &files {
        let mut read = read_file(path, &global)?;
        if let (Some(first), false) = (read.first_mut(), jobs.is_empty()) {
            first.stonewall = true;
        }
        jobs.extend(read);
    }
    let sections: Vec<&String> = matches.get_many("section").into_iter().flatten().collect();
    if !sections.is_empty() {
        jobs.retain(|job| sections.iter().any(|name| **name == job.name));
        if jobs.is_empty() {
            let what = format!("option `section`: no job is called {sections:?}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
    }
    match jobs.len() {
        0 if global.is_given("rw") => Ok((vec![single_job(global)], false)),
        0 => Ok((main_jobs(&global), true)),
        1 if files.is_empty() && !jobs[0].is_given("rw") => Ok((main_jobs(&jobs[0]), true)),
        _ => Ok((jobs.into_iter().map(bounded).collect(), false)),
    }
}

/// The options of the command line as those of one job.
///
/// Errors: options that cannot be read.
pub fn given(matches: &ArgMatches) -> Result<JobOptions, Error> {
    let CommandLine { global, mut own } = command_line(matches)?;
    Ok(own.pop().unwrap_or(global))
}

/// What a command line says of jobs.
struct CommandLine {
    /// What holds for all of them.
    global: JobOptions,
    /// One for each `--name`.
    own: Vec<JobOptions>,
}

/// Reads the options in the order in which they were given: later ones overrule earlier ones.
fn command_line(matches: &ArgMatches) -> Result<CommandLine, Error> {
    let mut words = Vec::new();
    let ours = OPTIONS.iter().map(|spec| spec.name);
    let foreign = FIO_OPTIONS.iter().copied().filter(|name| OptionSpec::find(name).is_none());
    for name in ours.chain(foreign) {
        let values = matches.get_many::<String>(name).into_iter().flatten();
        let places = matches.indices_of(name).into_iter().flatten();
        let before = words.len();
        words.extend(places.zip(values).map(|(place, value)| (place, name, value.as_str())));
        if words.len() == before && matches.contains_id(name) {
            // One of fio's alone, without a value.
            words.push((0, name, ""));
        }
    }
    words.sort_unstable();
    let mut line = CommandLine { global: JobOptions::default(), own: Vec::new() };
    for (_, name, value) in words {
        if name == "name" {
            line.own.push(line.global.clone());
        }
        let job = line.own.last_mut().unwrap_or(&mut line.global);
        job.set(name, value).map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
    }
    Ok(line)
}

fn read_file(path: &Path, global: &JobOptions) -> Result<Vec<JobOptions>, Error> {
    let mut bytes = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().lock().read_to_end(&mut bytes),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    let what = || format!("reading the job file {}", path.display());
    read.map_err(|error| Error::from_io(what(), error))?;
    // What is not UTF-8 is no option of ours either, and is refused with its line.
    let text = String::from_utf8_lossy(&bytes);
    jobfile::parse(&text, global, &|name| std::env::var(name).ok())
        .map_err(|error| Error::new(ErrorKind::Invalid, format!("{}, {error}", path.display())))
}

fn single_job(mut options: JobOptions) -> JobOptions {
    if !options.is_given("name") {
        options.name = options.rw.word().to_owned();
    }
    bounded(options)
}

/// A job that says neither how long nor how much ends by time.
fn bounded(mut options: JobOptions) -> JobOptions {
    let bounded = options.runtime.is_some() || options.size.is_some() || options.io_size.is_some();
    if !bounded && !options.verify.is_on() {
        options.runtime = Some(DEFAULT_RUNTIME);
    }
    options
}

/// The main job: what was given, in three directions, one after the other.
fn main_jobs(given: &JobOptions) -> Vec<JobOptions> {
    [Rw::RandRead, Rw::RandWrite, Rw::RandRw]
        .into_iter()
        .map(|rw| {
            let mut options = JobOptions { rw, stonewall: true, ..given.clone() };
            options.given.insert(0, ("rw", rw.word().to_owned()));
            if !given.is_given("iodepth") {
                options.io_depth = 32;
                options.given.push(("iodepth", "32".to_owned()));
            }
            if rw.is_mixed() && !given.is_given("rwmixread") && !given.is_given("rwmixwrite") {
                options.read_percent = 70;
                options.given.push(("rwmixread", "70".to_owned()));
            }
            single_job(options)
        })
        .collect()
}
