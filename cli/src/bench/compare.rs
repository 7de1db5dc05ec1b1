//! `oxblock bench compare`: results of ours or fio's, side by side.

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use oxblock_bench::compare::{Comparison, Side};
use oxblock_engine::{Error, ErrorKind};

/// A result is some KiB; json+ and long series some MiB.
const FILE_BYTES_MAX: u64 = 64 << 20;

const AFTER_HELP: &str = "\
Each SIDE is a file made with --output-format=json, by oxblock or by fio 3, or several of them,
joined with commas, of the same job run several times:

  oxblock bench compare fio.json ours.json
  oxblock bench compare a1.json,a2.json,a3.json b1.json,b2.json,b3.json

Ratios are to the first side. Intervals are 95 % confidence: of several files from run to run, for
every figure; of one file from the samples within the run, for IOPS and bandwidth only. The output
says which.

Exit code: 0 when the comparison was made, else 1.";

/// The command line.
pub fn command() -> Command {
    Command::new("compare")
        .about("Put results side by side, ours or fio's")
        .after_help(AFTER_HELP)
        .arg(
            Arg::new("side")
                .value_name("SIDE")
                .required(true)
                .num_args(2..=8)
                .action(ArgAction::Append)
                .help("A JSON file, or several joined with commas"),
        )
        .arg(
            Arg::new("output-format")
                .long("output-format")
                .value_name("FORMAT")
                .value_parser(["normal", "json"])
                .default_value("normal")
                .help("normal, or json"),
        )
}

/// Runs `oxblock bench compare`.
///
/// Errors: a file that cannot be read or is no result, sides without a common job.
pub fn run(matches: &ArgMatches) -> Result<ExitCode, Error> {
    let words = matches.get_many::<String>("side").into_iter().flatten();
    let sides = words.map(|word| side(word)).collect::<Result<Vec<Side>, Error>>()?;
    let comparison = Comparison::new(sides).map_err(|e| Error::new(ErrorKind::Invalid, e))?;
    let text = match matches.get_one::<String>("output-format").is_some_and(|word| word == "json") {
        true => format!("{:#}\n", comparison.json()),
        false => comparison.text(),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::from_io("writing to standard output", error))?;
    Ok(ExitCode::SUCCESS)
}

fn side(word: &str) -> Result<Side, Error> {
    // A file may have a comma in its name.
    let names: Vec<&str> = match std::path::Path::new(word).exists() {
        true => vec![word],
        false => word.split(',').filter(|name| !name.is_empty()).collect(),
    };
    let read = |name: &&str| Ok(((*name).to_owned(), text(name)?));
    let documents = names.iter().map(read).collect::<Result<Vec<_>, Error>>()?;
    Side::new(word, &documents).map_err(|error| Error::new(ErrorKind::Invalid, error))
}

fn text(name: &str) -> Result<String, Error> {
    let failed = |error| Error::from_io(format!("reading the result {name}"), error);
    let mut bytes = Vec::new();
    let file = File::open(name).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let text = format!("{name} is larger than 64 MiB: no result of a run is");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
