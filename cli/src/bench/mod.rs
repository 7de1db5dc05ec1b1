//! `oxblock bench`: the harness on the command line.

mod compare;
mod jobs;
mod peers;
mod progress;
mod rounds;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use clap::{Arg, ArgAction, ArgMatches, Command};
use oxblock_bench::options::{FIO_OPTIONS, OPTIONS, OptionSpec};
use oxblock_bench::report::Report;
use oxblock_bench::units;
use oxblock_bench::{html, json, terse, text};
use oxblock_engine::Error;

use crate::target::TargetSpec;
use rounds::{News, Rounds};

const AFTER_HELP: &str = "\
Options carry fio's names and sizes (4k, 1m, 50%); `--key value` and `--key=value` are the same.
Each --name begins a job; what stands before the first holds for all, also for those of job files.
Jobs run side by side; one with --stonewall begins when all before it have ended.

Targets:
  soft          the software NVMe controller in this process, over memory
  soft:TARGET   the same over another target: soft:PATH, soft:null
  nvme://ADDRESS/NAMESPACE
                a namespace of an NVMe controller that was given to vfio-pci: nvme://01:00.0/1;
                see oxblock pci. Writing jobs overwrite it! Behind no IOMMU, if that is what
                you want: nvme://noiommu:01:00.0/1
  vfio-user:SOCKET/NAMESPACE
                the same of a controller that another process serves, such as oxblock nvmet
                A controller may be followed by `?interrupt-mode=poll`, `=adaptive` (the default)
                or `=interrupt`, and with `&` by `aggregation-threshold=` completions and
                `aggregation-time-us=` that it gathers for one interrupt
  null          accepts everything, keeps nothing
  memory        a disk in memory
  PATH          a file; made with --size when it is not there. Writing jobs overwrite it!
  JSON          a node as blockdev-add has it: {\"driver\":\"null-co\",\"size\":1073741824},
                {\"driver\":\"nvme\",\"device\":\"0000:01:00.0\",\"namespace\":1}

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
            .visible_aliases(spec.aliases)
            .value_name(spec.value)
            .help(spec.help)
            .action(ArgAction::Append);
        match spec.bare {
            Some(bare) => arg.num_args(0..=1).require_equals(true).default_missing_value(bare),
            None => arg.num_args(1),
        }
    });
    // Known, so that they are refused by name and not as misspellings.
    let fio_only = FIO_OPTIONS.iter().filter(|name| OptionSpec::find(name).is_none()).map(|name| {
        Arg::new(*name).long(*name).hide(true).num_args(0..=1).action(ArgAction::Append)
    });
    Command::new("bench")
        .about("Measure a block device, a file or the engine itself, in fio's words")
        .after_help(AFTER_HELP)
        .args_conflicts_with_subcommands(true)
        .subcommand(compare::command())
        .arg(
            Arg::new("jobfile")
                .value_name("JOBFILE")
                .action(ArgAction::Append)
                .value_parser(clap::value_parser!(PathBuf))
                .help("Job files as fio has them; `-` is standard input"),
        )
        .args(options)
        .args(fio_only)
        .arg(
            Arg::new("section")
                .long("section")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("Run only this job of the files; may be given several times"),
        )
        .arg(
            Arg::new("parse-only")
                .long("parse-only")
                .action(ArgAction::SetTrue)
                .help("Read the jobs, say what is wrong with them, and run nothing"),
        )
        .arg(
            Arg::new("output-format")
                .long("output-format")
                .value_name("FORMAT")
                .value_parser(Formats::parse)
                .default_value("normal")
                .help("normal, json in the shape of fio 3, json+ with all bins, terse (fio's version 3); or several: normal,json"),
        )
        .arg(
            Arg::new("minimal")
                .long("minimal")
                .action(ArgAction::SetTrue)
                .conflicts_with("output-format")
                .help("The same as --output-format=terse"),
        )
        .arg(
            Arg::new("terse-version")
                .long("terse-version")
                .value_name("N")
                .value_parser(["3"])
                .default_value("3")
                .help("Which of fio's terse outputs"),
        )
        .arg(
            Arg::new("eta")
                .long("eta")
                .value_name("WHEN")
                .value_parser(["always", "never", "auto"])
                .default_value("auto")
                .help("Show how far jobs are: on a terminal, never, or always"),
        )
        .arg(
            Arg::new("status-interval")
                .long("status-interval")
                .value_name("TIME")
                .value_parser(parse_time)
                .help("Write a report of the running jobs each so long, too"),
        )
        .arg(
            Arg::new("output")
                .long("output")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Write the report there instead of standard output"),
        )
        .arg(
            Arg::new("report")
                .long("report")
                .value_name("FILE.html")
                .value_parser(clap::value_parser!(PathBuf))
                .conflicts_with("table")
                .help("Write a page with plots there too; it needs nothing but a browser"),
        )
        .arg(
            Arg::new("peers")
                .long("peers")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["filename", "jobfile", "table", "report"])
                .help("Measure the harness and files side by side with fio and qemu-img"),
        )
        .arg(
            Arg::new("table")
                .long("table")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["filename", "jobfile"])
                .help("Measure what the project promises and print it beside SPDK's figures"),
        )
}

/// Runs `oxblock bench`.
///
/// Errors: options that contradict each other, a target that cannot be opened.
pub fn run(matches: &ArgMatches) -> Result<ExitCode, Error> {
    if let Some(("compare", matches)) = matches.subcommand() {
        return compare::run(matches);
    }
    progress::show(matches.get_one::<String>("eta").map_or("auto", String::as_str));
    let stop = stop_on_signal()?;
    if matches.get_flag("peers") {
        return peers::run(&jobs::given(matches)?, &stop);
    }
    if matches.get_flag("table") {
        return table::run(&jobs::given(matches)?, &stop);
    }
    let (mut jobs, is_main) = jobs::all(matches)?;
    for job in &mut jobs {
        job.status_interval = matches.get_one("status-interval").copied();
    }
    let soft = TargetSpec::soft(TargetSpec::Memory);
    let rounds = Rounds::plan(jobs.clone(), &soft)?;
    if matches.get_flag("parse-only") {
        return Ok(ExitCode::SUCCESS);
    }
    let mut output = Output::new(matches)?;
    let mut all_good = output.run(&rounds, &stop)?;
    if is_main && jobs.iter().all(|job| job.targets().is_empty()) && !stop.load(Relaxed) {
        let file = tempfile::Builder::new()
            .prefix("oxblock-bench-")
            .tempfile()
            .map_err(|error| Error::from_io("making a temporary file", error))?;
        let spec = TargetSpec::soft(TargetSpec::Temporary(file.path().to_owned()));
        all_good &= output.run(&Rounds::plan(jobs, &spec)?, &stop)?;
    }
    output.finish()?;
    Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What Ctrl-C and SIGTERM set, so that jobs end with what there is; the second one ends the
/// program.
///
/// Errors: the signals cannot be taken over.
pub fn stop_on_signal() -> Result<Arc<AtomicBool>, Error> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|error| Error::from_io("taking over the signals that end a job", error))?;
    }
    Ok(stop)
}

/// How often a status is written: not more often than jobs are looked at.
fn parse_time(word: &str) -> Result<Duration, String> {
    match units::parse_time(word)? {
        time if time >= Duration::from_millis(200) => Ok(time),
        _ => Err(format!("`{word}` is below 200ms")),
    }
}

/// What reports are written as.
#[derive(Clone, Copy, Debug, Default)]
struct Formats {
    normal: bool,
    json: bool,
    /// With the counts of all bins.
    plus: bool,
    terse: bool,
}

impl Formats {
    fn parse(words: &str) -> Result<Formats, String> {
        let mut formats = Formats::default();
        for word in words.split(',') {
            match word.trim() {
                "normal" => formats.normal = true,
                "json" => formats.json = true,
                "json+" => (formats.json, formats.plus) = (true, true),
                "terse" => formats.terse = true,
                _ => return Err(format!("`{word}` is none of normal, json, json+, terse")),
            }
        }
        Ok(formats)
    }
}

/// Where reports go: as they come, and in one document at the end.
struct Output {
    formats: Formats,
    file: Option<(PathBuf, std::fs::File)>,
    page: Option<(PathBuf, std::fs::File)>,
    reports: Vec<Report>,
    /// Reports that were written already.
    written: usize,
    noted: Vec<String>,
}

impl Output {
    fn new(matches: &ArgMatches) -> Result<Output, Error> {
        let formats = match matches.get_flag("minimal") {
            true => Formats { terse: true, ..Formats::default() },
            false => matches.get_one("output-format").copied().unwrap_or_default(),
        };
        let create = |option: &str| -> Result<Option<(PathBuf, std::fs::File)>, Error> {
            let Some(path) = matches.get_one::<PathBuf>(option) else { return Ok(None) };
            let what = || format!("creating the report file {}", path.display());
            let file = std::fs::File::create(path).map_err(|e| Error::from_io(what(), e))?;
            Ok(Some((path.clone(), file)))
        };
        let (file, page) = (create("output")?, create("report")?);
        Ok(Output { formats, file, page, reports: Vec::new(), written: 0, noted: Vec::new() })
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

    /// Runs jobs; their reports go out as they come.
    fn run(&mut self, rounds: &Rounds, stop: &Arc<AtomicBool>) -> Result<bool, Error> {
        rounds.run(stop, &mut |news| match news {
            News::Notices(notices) => {
                self.note(notices);
                Ok(())
            }
            News::Report(report) => self.add(*report),
            News::Status(reports) => self.show_status(&reports),
        })
    }

    fn add(&mut self, report: Report) -> Result<(), Error> {
        let joins = self.reports.last().is_some_and(|last| last.is_reported_with(&report));
        if !joins {
            self.write_texts()?;
        }
        self.reports.push(report);
        match self.reports.last() {
            // What comes next may have to be told together with it.
            Some(last) if last.options.group_reporting => Ok(()),
            _ => self.write_texts(),
        }
    }

    /// Writes how running jobs stand; a document has those that have ended before them.
    fn show_status(&mut self, running: &[Arc<Report>]) -> Result<(), Error> {
        if running.is_empty() {
            return Ok(());
        }
        let running: Vec<Report> = running.iter().map(|report| Report::clone(report)).collect();
        if self.formats.normal {
            self.write(&format!("{}{}\n", text::reports(&running), text::summary(&running)))?;
        }
        if self.formats.terse {
            self.write(&terse::lines(&running))?;
        }
        if self.formats.json {
            let all: Vec<Report> = self.reports.iter().chain(&running).cloned().collect();
            self.write_document(&all)?;
        }
        Ok(())
    }

    fn write_document(&mut self, reports: &[Report]) -> Result<(), Error> {
        let document = match self.formats.plus {
            true => json::document_plus(reports, SystemTime::now()),
            false => json::document(reports, SystemTime::now()),
        };
        self.write(&format!("{document:#}\n"))
    }

    /// Writes the reports that were not written yet, unless a document has to be before them.
    fn write_texts(&mut self) -> Result<(), Error> {
        if !self.formats.normal || self.formats.json || self.written == self.reports.len() {
            return Ok(());
        }
        let text = text::reports(&self.reports[self.written..]);
        self.written = self.reports.len();
        self.write(&text)
    }

    fn finish(mut self) -> Result<(), Error> {
        if self.formats.terse {
            self.write(&terse::lines(&self.reports))?;
        }
        if self.formats.json {
            let reports = std::mem::take(&mut self.reports);
            self.write_document(&reports)?;
            self.reports = reports;
        }
        if self.formats.normal {
            let text = text::reports(&self.reports[self.written..]);
            self.write(&format!("{text}{}", text::summary(&self.reports)))?;
        }
        if let Some((path, file)) = &mut self.page {
            let page = html::page(&self.reports, SystemTime::now());
            file.write_all(page.as_bytes()).map_err(|error| {
                Error::from_io(format!("writing the report to {}", path.display()), error)
            })?;
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
