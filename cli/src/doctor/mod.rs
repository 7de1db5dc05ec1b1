//! `oxblock doctor`: what this machine has for polled block I/O, what it lacks, and what mends it.
//!
//! It changes nothing. `hugepages.md` is the long form; each finding names its section there.

mod cpu;
mod devices;
mod finding;
mod kernel;
mod memory;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use oxblock_engine::Error;
use oxblock_pci::host::Root;
use serde_json::{Map, Value, json};

use finding::{Finding, Purpose};

const AFTER_HELP: &str = "\
It changes nothing: each command that mends something is printed, not run.

States:
  ok       nothing to do
  advice   works, and would work better
  missing  stands in the way of the purpose that is named

Exit code: 0 when nothing is missing for the software controller and files, nor for what --for
names; 1 when something is.";

/// The command line.
pub fn command() -> Command {
    Command::new("doctor")
        .about("Look at what this machine has for polled block I/O, and say what mends the rest")
        .after_help(AFTER_HELP)
        .arg(
            Arg::new("for")
                .long("for")
                .value_name("PURPOSE")
                .value_parser(["nvme", "bench"])
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help(
                    "Fail also when something is missing for: nvme (devices in user space), \
                     bench (figures that can be compared)",
                ),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
}

/// Runs `oxblock doctor`.
///
/// Errors: standard output cannot be written.
pub fn run(matches: &ArgMatches) -> Result<ExitCode, Error> {
    let asked = asked(matches);
    let findings = look(&Root::new("/"), kernel::try_io_uring());
    let text = match matches.get_flag("json") {
        true => format!("{:#}\n", document(&findings, &asked)),
        false => report(&findings, &asked),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::from_io("writing to standard output", error))?;
    let good = asked.iter().all(|purpose| is_ready(&findings, *purpose));
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn asked(matches: &ArgMatches) -> Vec<Purpose> {
    let words = matches.get_many::<String>("for").into_iter().flatten();
    let mut asked = vec![Purpose::Base];
    asked.extend(words.filter_map(|word| Purpose::ALL.into_iter().find(|p| p.word() == word)));
    asked.dedup();
    asked
}

/// Everything that is looked at, in the order of the report. `uring_errno` is what making a ring
/// came to.
fn look(root: &Root, uring_errno: i32) -> Vec<Finding> {
    vec![
        kernel::uring(root, uring_errno),
        memory::hugepages(root),
        memory::memlock(root),
        memory::transparent(root),
        cpu::isolation(root),
        cpu::frequency(root),
        devices::iommu(root),
        devices::vfio(root),
        devices::nvme(root),
        kernel::lockdown(root),
        kernel::surroundings(root),
    ]
}

fn is_ready(findings: &[Finding], purpose: Purpose) -> bool {
    !findings.iter().any(|finding| finding.blocks(purpose))
}

/// For a person.
fn report(findings: &[Finding], asked: &[Purpose]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mut lines = finding.found.iter();
        let first = lines.next().map_or("", String::as_str);
        let more = match finding.missing {
            None => format!("   ({})", finding.more()),
            Some(_) => String::new(),
        };
        let _ = writeln!(text, "{:<8} {}: {first}{more}", finding.state(), finding.name);
        for line in lines {
            let _ = writeln!(text, "         {line}");
        }
        let Some(missing) = &finding.missing else { continue };
        let _ = writeln!(text, "         lacks  {missing}");
        for (number, command) in finding.mend.iter().enumerate() {
            let word = if number == 0 { "mend" } else { "" };
            let _ = writeln!(text, "         {word:<6} {command}");
        }
        let _ = writeln!(text, "         why    {}", finding.why);
        let _ = writeln!(text, "         more   {}", finding.more());
    }
    text.push('\n');
    for purpose in Purpose::ALL {
        let missing: Vec<&str> =
            findings.iter().filter(|f| f.blocks(purpose)).map(|f| f.name).collect();
        let verdict = match missing.is_empty() {
            true => "ready".to_owned(),
            false => format!("missing: {}", missing.join(", ")),
        };
        let mark = if asked.contains(&purpose) { "*" } else { " " };
        let _ = writeln!(text, "{mark} {}: {verdict}", purpose.describe());
    }
    text.push_str("* decides the exit code. Nothing was changed.\n");
    text
}

/// For scripts.
fn document(findings: &[Finding], asked: &[Purpose]) -> Value {
    let ready: Map<String, Value> = Purpose::ALL
        .iter()
        .map(|purpose| (purpose.word().to_owned(), is_ready(findings, *purpose).into()))
        .collect();
    json!({
        "oxblock version": env!("CARGO_PKG_VERSION"),
        "asked": asked.iter().map(|purpose| purpose.word()).collect::<Vec<_>>(),
        "ready": ready,
        "good": asked.iter().all(|purpose| is_ready(findings, *purpose)),
        "checks": findings.iter().map(Finding::json).collect::<Vec<_>>(),
    })
}
