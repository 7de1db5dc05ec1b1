//! `oxblock bench`: the harness on the command line.

mod progress;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use clap::{Arg, ArgAction, ArgMatches, Command};
use oxblock_bench::options::{JobOptions, OPTIONS, Rw, Verify};
use oxblock_bench::report::Report;
use oxblock_bench::run::{lay_out, run as run_job};
use oxblock_bench::{json, text};
use oxblock_engine::{Error, ErrorKind};

use crate::target::{Target, TargetSpec, Wants};
use progress::watched;

/// How long a job runs that says neither how long nor how much.
const DEFAULT_RUNTIME: Duration = Duration::from_secs(3);

const AFTER_HELP: &str = "\
Options carry fio's names and sizes (4k, 1m, 50%); `--key value` and `--key=value` are the same.

Targets:
  soft          the software NVMe controller in this process, over memory
  soft:TARGET   the same over another target: soft:PATH, soft:null
  null          accepts everything, keeps nothing
  memory        a disk in memory
  PATH          a file; made with --size when it is not there. Writing jobs overwrite it!
  JSON          a node as blockdev-add has it: {\"driver\":\"null-co\",\"size\":1073741824}

Without --rw the main job runs: 4 KiB random reads, random writes and 70/30, 32 in flight; on
`soft`, and then on `soft` over a temporary file. A `--rw` job is fio's: one I/O in flight unless
--iodepth says more; it ends when --size (or the target) is through, or --runtime is over, or
starts over until then with --time_based, which is meant where no size is given.

Exit code: 0 when every I/O succeeded and every check passed, else 1.";

/// The command line.
pub fn command() -> Command {
    let options = OPTIONS.iter().map(|spec| {
        let arg = Arg::new(spec.name)
            .long(spec.name)
            .aliases(spec.aliases)
            .value_name(spec.value)
            .help(spec.help)
            .action(ArgAction::Append);
        if spec.switch {
            arg.num_args(0..=1).require_equals(true).default_missing_value("1")
        } else {
            arg.num_args(1)
        }
    });
    Command::new("bench")
        .about("Measure a block device, a file or the engine itself, in fio's words")
        .after_help(AFTER_HELP)
        .arg(
            Arg::new("target")
                .long("target")
                .alias("filename")
                .value_name("TARGET")
                .default_value("soft")
                .help("What to measure; see below"),
        )
        .args(options)
        .arg(
            Arg::new("output-format")
                .long("output-format")
                .value_name("FORMAT")
                .value_parser(["normal", "json"])
                .default_value("normal")
                .help("normal, or json in the shape of fio 3"),
        )
        .arg(
            Arg::new("output")
                .long("output")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Write the report there instead of standard output"),
        )
        .arg(
            Arg::new("table")
                .long("table")
                .action(ArgAction::SetTrue)
                .conflicts_with("target")
                .help("Measure what the project promises and print it beside SPDK's figures"),
        )
}

/// Runs `oxblock bench`.
///
/// Errors: options that contradict each other, a target that cannot be opened.
pub fn run(matches: &ArgMatches) -> Result<ExitCode, Error> {
    let stop = stop_on_signal()?;
    let given = job_options(matches)?;
    if matches.get_flag("table") {
        return table::run(&given, &stop);
    }
    let mut output = Output::new(matches)?;
    let word = matches.get_one::<String>("target").map_or("soft", String::as_str);
    let jobs = if given.is_given("rw") { vec![single_job(given)] } else { main_jobs(&given) };
    let good = run_jobs(&TargetSpec::parse(word)?, &jobs, &stop, &mut output)?;
    let mut all_good = good;
    let is_default =
        matches.value_source("target") == Some(clap::parser::ValueSource::DefaultValue);
    if jobs.len() > 1 && is_default && !stop.load(Relaxed) {
        let file = tempfile::Builder::new()
            .prefix("oxblock-bench-")
            .tempfile()
            .map_err(|error| Error::from_io("making a temporary file", error))?;
        let spec = TargetSpec::Soft(Box::new(TargetSpec::Temporary(file.path().to_owned())));
        all_good &= run_jobs(&spec, &jobs, &stop, &mut output)?;
    }
    output.finish()?;
    Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The options in the order in which they were given: later ones overrule earlier ones.
fn job_options(matches: &ArgMatches) -> Result<JobOptions, Error> {
    let mut words = Vec::new();
    for spec in OPTIONS {
        let values = matches.get_many::<String>(spec.name).into_iter().flatten();
        let places = matches.indices_of(spec.name).into_iter().flatten();
        words.extend(places.zip(values).map(|(place, value)| (place, spec.name, value)));
    }
    words.sort_unstable();
    let mut options = JobOptions::default();
    for (_, name, value) in words {
        let set = options.set(name, value);
        set.map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
    }
    Ok(options)
}

fn single_job(mut options: JobOptions) -> JobOptions {
    if !options.is_given("name") {
        options.name = options.rw.word().to_owned();
    }
    let bounded = options.runtime.is_some() || options.size.is_some() || options.io_size.is_some();
    if !bounded && options.verify == Verify::Off {
        options.runtime = Some(DEFAULT_RUNTIME);
    }
    options
}

/// The main job: what was given, in three directions.
fn main_jobs(given: &JobOptions) -> Vec<JobOptions> {
    [Rw::RandRead, Rw::RandWrite, Rw::RandRw]
        .into_iter()
        .map(|rw| {
            let mut options = JobOptions { rw, ..given.clone() };
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

/// Runs jobs one after the other on one target. Did everything go well?
fn run_jobs(
    spec: &TargetSpec,
    jobs: &[JobOptions],
    stop: &Arc<AtomicBool>,
    output: &mut Output,
) -> Result<bool, Error> {
    let Some(first) = jobs.first() else { return Ok(true) };
    let target = Target::open(spec, &Wants::of(jobs, first))?;
    output.note(target.notices());
    let mut good = true;
    let result = lay_out_new(&target, stop).and_then(|()| {
        for options in jobs.iter().take_while(|_| !stop.load(Relaxed)) {
            let session = target.session(stop);
            let report = watched(&options.name, |watch| run_job(&session, options.clone(), watch))?;
            good &= report.is_good();
            output.add(report)?;
        }
        Ok(())
    });
    let closed = target.close();
    result.and(closed).map(|()| good)
}

/// Writes a target that is new and will be read.
fn lay_out_new(target: &Target, stop: &Arc<AtomicBool>) -> Result<(), Error> {
    match target.to_lay_out() {
        None => Ok(()),
        Some(length) => {
            watched("laying out", |watch| lay_out(&target.session(stop), length, watch))
        }
    }
}

/// Ctrl-C and SIGTERM end the jobs with what there is; the second one ends the program.
fn stop_on_signal() -> Result<Arc<AtomicBool>, Error> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|error| Error::from_io("taking over the signals that end a job", error))?;
    }
    Ok(stop)
}

/// Where reports go: as they come, or in one document at the end.
struct Output {
    json: bool,
    file: Option<(PathBuf, std::fs::File)>,
    reports: Vec<Report>,
    noted: Vec<String>,
}

impl Output {
    fn new(matches: &ArgMatches) -> Result<Output, Error> {
        let json = matches.get_one::<String>("output-format").is_some_and(|word| word == "json");
        let file = match matches.get_one::<PathBuf>("output") {
            None => None,
            Some(path) => {
                let what = || format!("creating the report file {}", path.display());
                let file = std::fs::File::create(path).map_err(|e| Error::from_io(what(), e))?;
                Some((path.clone(), file))
            }
        };
        Ok(Output { json, file, reports: Vec::new(), noted: Vec::new() })
    }

    /// Says on standard error what was not said yet.
    fn note(&mut self, notices: &[String]) {
        for notice in notices {
            if !self.noted.contains(notice) {
                eprintln!("note: {notice}");
                self.noted.push(notice.clone());
            }
        }
    }

    fn add(&mut self, report: Report) -> Result<(), Error> {
        if self.json {
            self.reports.push(report);
            return Ok(());
        }
        self.write(&format!("{}\n", text::report(&report)))
    }

    fn finish(mut self) -> Result<(), Error> {
        if self.json {
            let document = json::document(&self.reports, SystemTime::now());
            self.write(&format!("{document:#}\n"))?;
        }
        Ok(())
    }

    fn write(&mut self, text: &str) -> Result<(), Error> {
        let (what, result) = match &mut self.file {
            Some((path, file)) => (path.display().to_string(), file.write_all(text.as_bytes())),
            None => {
                let mut out = std::io::stdout().lock();
                let result = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                ("standard output".to_owned(), result)
            }
        };
        result.map_err(|error| Error::from_io(format!("writing the report to {what}"), error))
    }
}
