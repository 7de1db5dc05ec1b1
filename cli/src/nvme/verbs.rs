//! The commands of `oxblock nvme`, their options, and what they destroy.

use std::time::Duration;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches};

use super::device::Session;
use super::report::Report;
use super::{
    Failure, features, firmware, identify, list, logs, namespaces, sanitize, stats, write_protect,
};

/// A command.
pub struct Verb {
    pub name: &'static str,
    pub about: &'static str,
    /// Its options.
    pub args: fn() -> Vec<Arg>,
    /// What is lost when it is carried out, in words; none for what destroys nothing.
    pub destroys: Option<fn(&ArgMatches) -> String>,
    pub run: fn(&Session, &ArgMatches) -> Result<Report, Failure>,
}

const fn harmless(
    name: &'static str,
    about: &'static str,
    args: fn() -> Vec<Arg>,
    run: fn(&Session, &ArgMatches) -> Result<Report, Failure>,
) -> Verb {
    Verb { name, about, args, destroys: None, run }
}

const fn destructive(
    name: &'static str,
    about: &'static str,
    args: fn() -> Vec<Arg>,
    destroys: fn(&ArgMatches) -> String,
    run: fn(&Session, &ArgMatches) -> Result<Report, Failure>,
) -> Verb {
    Verb { name, about, args, destroys: Some(destroys), run }
}

/// All commands, in the order of the help.
pub const VERBS: &[Verb] = &[
    harmless("list", "Controllers and their namespaces", Vec::new, list::of_session),
    harmless("id-ctrl", "Identify Controller", Vec::new, identify::controller),
    harmless("id-ns", "Identify Namespace", namespace, identify::namespace),
    harmless("list-ns", "IDs of namespaces", all, namespaces::list),
    harmless("smart-log", "SMART / Health Information", Vec::new, logs::smart),
    harmless("stats", "Counts of the device and of the driver", times, stats::run),
    harmless("error-log", "Error Information", entries, logs::errors),
    harmless("fw-log", "Firmware Slot Information", Vec::new, logs::firmware),
    harmless("sanitize-log", "Sanitize Status", Vec::new, logs::sanitize),
    harmless("get-feature", "A feature's value", feature, features::get),
    harmless("set-feature", "Set a feature", new_feature, features::set),
    harmless("write-protect", "Protect a namespace from writes", protection, write_protect::run),
    harmless("fw-download", "Send a firmware image", image, firmware::download),
    harmless("fw-commit", "Put an image in a slot, activate a slot", commit, firmware::commit),
    harmless("create-ns", "Create a namespace", new_namespace, namespaces::create),
    harmless("attach-ns", "Attach a namespace to controllers", attachment, namespaces::attach),
    harmless("detach-ns", "Detach a namespace from controllers", attachment, namespaces::detach),
    destructive(
        "delete-ns",
        "Delete a namespace and its data",
        namespace,
        |matches| format!("all data of namespace {}", nsid_word(matches)),
        namespaces::delete,
    ),
    destructive(
        "format",
        "Format a namespace: its data is lost",
        format,
        |matches| format!("all data of namespace {}", nsid_word(matches)),
        namespaces::format,
    ),
    destructive(
        "sanitize",
        "Sanitize: all data of all namespaces is lost",
        sanitizing,
        |_| "all data of all namespaces".into(),
        sanitize::sanitize,
    ),
    harmless("reset", "Reset the controller", Vec::new, list::reset),
];

fn nsid_word(matches: &ArgMatches) -> String {
    match matches.get_one::<u64>("namespace-id") {
        Some(0xffff_ffff) => "all".into(),
        Some(nsid) => nsid.to_string(),
        None => "1".into(),
    }
}

/// A number, decimal or with 0x in front.
fn number() -> ValueParser {
    ValueParser::from(|word: &str| {
        let parsed = match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => word.parse(),
        };
        parsed.map_err(|error| format!("{error}; give a number such as 8 or 0x8"))
    })
}

fn option(name: &'static str, short: Option<char>, default: &'static str, help: &str) -> Arg {
    let arg = Arg::new(name).long(name).value_name("N").value_parser(number());
    let arg = arg.default_value(default).help(help.to_owned());
    match short {
        Some(short) => arg.short(short),
        None => arg,
    }
}

fn switch(name: &'static str, help: &str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help.to_owned())
}

fn namespace() -> Vec<Arg> {
    vec![option("namespace-id", Some('n'), "1", "The namespace; 0xffffffff is all of them")]
}

fn all() -> Vec<Arg> {
    vec![switch("all", "Also those that are attached to no controller").short('a')]
}

fn times() -> Vec<Arg> {
    let interval = Arg::new("interval").long("interval").short('i').value_name("SECONDS");
    let count = Arg::new("count").long("count").short('c').value_name("N").value_parser(number());
    vec![
        interval
            .value_parser(seconds())
            .help("Again each so long, with what changed; JSON is one document each time"),
        count.requires("interval").help("So often; until Ctrl-C if left out"),
    ]
}

fn seconds() -> ValueParser {
    ValueParser::from(|word: &str| match word.parse().map(Duration::try_from_secs_f64) {
        Ok(Ok(time)) if !time.is_zero() => Ok(time),
        _ => Err("give seconds above 0, such as 5 or 0.5"),
    })
}

fn entries() -> Vec<Arg> {
    vec![option("log-entries", Some('e'), "64", "Entries to show, the newest first")]
}

fn feature() -> Vec<Arg> {
    vec![
        required("feature-id", Some('f'), "The feature"),
        option("namespace-id", Some('n'), "0", "The namespace, for features that have one"),
        option("sel", Some('s'), "0", "0 current, 1 default, 2 saved, 3 capabilities"),
        option("cdw11", None, "0", "Dword 11, which some features look at"),
        option("data-len", Some('l'), "0", "Bytes of data, for features that have some"),
    ]
}

fn new_feature() -> Vec<Arg> {
    vec![
        required("feature-id", Some('f'), "The feature"),
        required("value", Some('V'), "Dword 11"),
        option("namespace-id", Some('n'), "0", "The namespace, for features that have one"),
        switch("save", "Keep it over power cycles and resets").short('s'),
        Arg::new("data").long("data").value_name("FILE").help("Data, for features that have some"),
    ]
}

fn protection() -> Vec<Arg> {
    let state = Arg::new("state").long("state").short('s').value_name("STATE");
    let words = ["off", "on", "until-power-cycle", "permanent"];
    vec![
        option("namespace-id", Some('n'), "1", "The namespace"),
        state.value_parser(words).help("Change it; else it is shown. Permanent is for ever"),
    ]
}

fn required(name: &'static str, short: Option<char>, help: &str) -> Arg {
    let arg = Arg::new(name).long(name).value_name("N").value_parser(number()).required(true);
    let arg = arg.help(help.to_owned());
    match short {
        Some(short) => arg.short(short),
        None => arg,
    }
}

fn image() -> Vec<Arg> {
    let file = Arg::new("fw").long("fw").short('f').value_name("FILE").required(true);
    vec![
        file.help("The image"),
        option("xfer", Some('x'), "4096", "Bytes to send at a time, a multiple of 4 up to 4096"),
        option("offset", Some('o'), "0", "Where the file begins in the image, bytes"),
    ]
}

fn commit() -> Vec<Arg> {
    vec![
        option("slot", Some('s'), "0", "The slot, 1 to 7; 0 lets the controller choose"),
        option(
            "action",
            Some('a'),
            "1",
            "0 put in the slot, 1 and activate at the next reset, 2 activate what the slot has at \
             the next reset, 3 activate at once",
        ),
    ]
}

fn new_namespace() -> Vec<Arg> {
    vec![
        required("nsze", Some('s'), "Namespace size, logical blocks"),
        Arg::new("ncap")
            .long("ncap")
            .short('c')
            .value_name("N")
            .value_parser(number())
            .help("Namespace capacity, logical blocks; the size if left out"),
        option("flbas", Some('f'), "0", "Index of the LBA format"),
        option("dps", Some('d'), "0", "Data protection settings"),
        option("nmic", Some('m'), "0", "1 lets several controllers attach it"),
        option("csi", Some('y'), "0", "Command set"),
    ]
}

fn attachment() -> Vec<Arg> {
    let controllers = Arg::new("controllers").long("controllers").short('c').value_name("N,...");
    let controllers = controllers.value_parser(number()).value_delimiter(',');
    vec![
        required("namespace-id", Some('n'), "The namespace"),
        controllers.help("Controller IDs; this controller if left out"),
    ]
}

fn format() -> Vec<Arg> {
    let block_size = Arg::new("block-size").long("block-size").short('b').value_name("BYTES");
    let block_size = block_size.value_parser(number()).conflicts_with("lbaf");
    let lbaf = Arg::new("lbaf").long("lbaf").short('l').value_name("N").value_parser(number());
    vec![
        option("namespace-id", Some('n'), "1", "The namespace; 0xffffffff is all of them"),
        lbaf.help("Index of the LBA format; the one in use if left out"),
        block_size.help("Bytes of a logical block, instead of --lbaf"),
        option("ses", Some('s'), "0", "Secure erase: 0 none, 1 user data, 2 cryptographic"),
    ]
}

fn sanitizing() -> Vec<Arg> {
    let action = Arg::new("sanact").long("sanact").short('a').value_name("ACTION").required(true);
    let words = ["exit-failure", "start-block-erase", "start-overwrite", "start-crypto-erase"];
    vec![
        action.value_parser(words).help("What to do"),
        option("owpass", Some('n'), "1", "Overwrite: passes, 1 to 16"),
        option("ovrpat", Some('p'), "0", "Overwrite: the pattern, 32 bits"),
        switch("oipbp", "Overwrite: invert the pattern between passes"),
        switch("no-dealloc", "Leave the blocks allocated afterwards").short('d'),
        switch("ause", "Let a failure be left without another sanitize").short('u'),
        switch("wait", "Wait until it has ended, and say how").short('w'),
    ]
}
