//! `oxblock nvme`: look at NVMe controllers and manage them, over the user-space driver.
//!
//! Each command is a row of [`VERBS`]. It opens its device, asks it, and gives back what a person
//! reads and what a script reads; commands that destroy data are confirmed first.

mod confirm;
mod device;
mod features;
mod firmware;
mod identify;
mod list;
mod logs;
mod namespaces;
mod report;
mod sanitize;
mod stats;
mod verbs;
mod write_protect;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use oxblock_engine::{Error, ErrorKind};

use device::Session;
use report::Report;
use verbs::{VERBS, Verb};

const AFTER_HELP: &str = "\
Devices:
  0000:01:00.0      a PCI address (nvme://0000:01:00.0 too), handed over by oxblock pci bind
  vfio-user:SOCKET  one that another process serves there (oxblock nvmet)
  soft              a software controller in this process over memory, gone afterwards
  soft:PATH         the same over a file

What destroys data asks first, if there is a terminal to ask on; without one it needs --yes.

Exit code: 0 when it is done; 1 when the device refused or failed; 2 when the command line is wrong.";

/// Exit code of a command line that makes no sense.
pub const USAGE: u8 = 2;

/// Why a command was not carried out.
pub enum Failure {
    /// The command line is wrong, in words.
    Usage(String),
    /// The device refused or failed, or cannot be opened.
    Device(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Device(error)
    }
}

/// The command line.
pub fn command() -> Command {
    let command = Command::new("nvme")
        .about("Look at NVMe controllers and manage them")
        .after_help(AFTER_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true);
    VERBS.iter().fold(command, |command, verb| command.subcommand(verb_command(verb)))
}

fn verb_command(verb: &Verb) -> Command {
    let device = Arg::new("device").value_name("DEVICE").help("The controller");
    let device = match verb.name {
        "list" => device
            .num_args(0..)
            .action(ArgAction::Append)
            .help("The controllers; all that were handed over, if none is named"),
        _ => device.required(true),
    };
    let json = Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON");
    let mut command = Command::new(verb.name).about(verb.about).arg(device).arg(json);
    if verb.destroys.is_some() {
        let yes = Arg::new("yes").long("yes").short('y').action(ArgAction::SetTrue);
        command = command.arg(yes.help("Do it without asking, though data is destroyed"));
    }
    command.args((verb.args)())
}

/// Runs `oxblock nvme`.
///
/// Errors: standard output cannot be written.
pub fn run(matches: &ArgMatches) -> Result<ExitCode, Error> {
    let Some((name, matches)) = matches.subcommand() else {
        return Ok(ExitCode::from(USAGE));
    };
    let Some(verb) = VERBS.iter().find(|verb| verb.name == name) else {
        return Ok(ExitCode::from(USAGE));
    };
    match carry_out(verb, matches) {
        Ok(report) => {
            print(&report, matches.get_flag("json"))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(Failure::Usage(text)) => {
            eprintln!("oxblock nvme {name}: {text}");
            Ok(ExitCode::from(USAGE))
        }
        Err(Failure::Device(error)) => {
            eprintln!("oxblock nvme {name}: {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn carry_out(verb: &Verb, matches: &ArgMatches) -> Result<Report, Failure> {
    if verb.name == "list" {
        return list::list(matches);
    }
    let device = matches.get_one::<String>("device").map(String::as_str).unwrap_or_default();
    if let Some(destroys) = verb.destroys
        && !matches.get_flag("yes")
    {
        confirm::confirm(&destroys(matches), device)?;
    }
    let session = Session::open(device)?;
    let report = (verb.run)(&session, matches);
    // What the device said to the command matters more than how it was closed.
    let closed = session.close();
    let report = report?;
    closed?;
    Ok(report)
}

fn print(report: &Report, as_json: bool) -> Result<(), Error> {
    let mut text = match as_json {
        true => format!("{:#}", report.json),
        false => report.text.clone(),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read has read enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Error::new(ErrorKind::Io, format!("writing the report: {error}"))),
        Ok(()) => Ok(()),
    }
}
