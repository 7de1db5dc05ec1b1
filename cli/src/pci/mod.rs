//! `oxblock pci`: the PCI functions of this machine, and who drives them.

mod list;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use oxblock_engine::Error;
use oxblock_pci::Address;
use oxblock_pci::host::{self, BindOptions, HostFunction, Owner, Root};
use serde_json::{Value, json};

use oxblock_drivers::nvme::pci_error;

const AFTER_LIST: &str = "\
A function that is IN USE has a mounted file system, swap, a mapped or RAID device on it, or a
process that has it open. Without root not all of that is seen.

Exit code: 0 when the functions were listed, 1 when one that was named is not there.";

const AFTER_BIND: &str = "\
Needs root. The driver that a function had is noted in /run/oxblock/pci, so that `unbind` gives it
back, also after a process that used it was killed. What is in use is not taken, nor what is no
NVMe controller, without --force.

All functions of an IOMMU group go to user space together: the kernel lets nobody open a group of
which it drives a part. `oxblock pci list` shows who shares one.

Exit code: 0 when all functions that were named are bound, else 1.";

const AFTER_UNBIND: &str = "\
Needs root. A function that a process has open is not given back: the kernel would wait until it
lets go. --force does wait, and asks that process to.

Exit code: 0 when the kernel has all functions that were named, else 1.";

/// The command line.
pub fn command() -> Command {
    let json = || Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON");
    let addresses = |required| {
        Arg::new("address")
            .value_name("ADDRESS")
            .num_args(1..)
            .required(required)
            .help("PCI addresses, such as 0000:01:00.0 or 01:00.0")
    };
    let force = |help| Arg::new("force").long("force").action(ArgAction::SetTrue).help(help);
    Command::new("pci")
        .about("List PCI functions, and give them to user space and back")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("list")
                .about("List NVMe controllers: driver, IOMMU group, NUMA node, who uses them")
                .after_help(AFTER_LIST)
                .arg(addresses(false))
                .arg(
                    Arg::new("all")
                        .long("all")
                        .action(ArgAction::SetTrue)
                        .help("List functions of every class, NVMe controllers first"),
                )
                .arg(
                    Arg::new("class")
                        .long("class")
                        .value_name("HEX")
                        .help("List functions whose class begins so: 01, 0108, 010802"),
                )
                .arg(json()),
        )
        .subcommand(
            Command::new("bind")
                .about("Give functions to vfio-pci, so that oxblock can drive them")
                .after_help(AFTER_BIND)
                .arg(addresses(true))
                .arg(
                    Arg::new("owner")
                        .long("owner")
                        .value_name("USER")
                        .help("Let this user (a name or a number) open the function without root"),
                )
                .arg(force("Take what is in use, or may be: its data may be lost"))
                .arg(json()),
        )
        .subcommand(
            Command::new("unbind")
                .about("Give functions back to the drivers that they had")
                .after_help(AFTER_UNBIND)
                .arg(addresses(true))
                .arg(force("Take it from the process that has it open"))
                .arg(json()),
        )
}

/// Runs `oxblock pci`.
///
/// Errors: words of the command line that make no sense; what binding says.
pub fn run(matches: &ArgMatches) -> Result<ExitCode, Error> {
    let root = Root::new("/");
    match matches.subcommand() {
        Some(("list", matches)) => list::run(&root, matches),
        Some(("bind", matches)) => bind(&root, matches),
        Some(("unbind", matches)) => {
            let force = matches.get_flag("force");
            each(&root, matches, |address| host::unbind(&root, address, force))
        }
        _ => Ok(ExitCode::FAILURE),
    }
}

fn bind(root: &Root, matches: &ArgMatches) -> Result<ExitCode, Error> {
    let owner = matches.get_one::<String>("owner");
    let owner = owner.map(|user| Owner::parse(root, user)).transpose().map_err(pci_error)?;
    let options = BindOptions { force: matches.get_flag("force"), owner };
    for (there, module) in [
        ("sys/bus/pci/drivers/vfio-pci", "vfio-pci"),
        ("sys/module/vfio_iommu_type1", "vfio_iommu_type1"),
    ] {
        if !root.exists(there) {
            // Where it cannot be loaded so, what needs it says that it is missing.
            let _ = std::process::Command::new("modprobe").arg(module).output();
        }
    }
    each(root, matches, |address| host::bind(root, address, &options))
}

/// Does one thing to each function that was named; those that fail are told, and the others done.
fn each(
    root: &Root,
    matches: &ArgMatches,
    act: impl Fn(Address) -> Result<HostFunction, oxblock_pci::PciError>,
) -> Result<ExitCode, Error> {
    let mut done = Vec::new();
    let mut good = true;
    for address in addresses(matches)? {
        match act(address) {
            Ok(function) => done.push(function),
            Err(error) => {
                good = false;
                eprintln!("oxblock: {error}");
            }
        }
    }
    if matches.get_flag("json") {
        print(&format!("{:#}\n", document(&done)))?;
    } else {
        // Those that were bound later changed the groups of those before.
        let now = done.iter().filter_map(|function| HostFunction::at(root, function.address).ok());
        for function in now {
            print(&outcome(&function))?;
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One function after it was bound or given back, and what still stands in its way.
fn outcome(function: &HostFunction) -> String {
    let driver = function.driver.as_deref().unwrap_or("no driver");
    let mut text = format!("{}: {driver}", function.address);
    if let Some(path) = function.group_path().filter(|_| function.is_bound()) {
        text.push_str(&format!(", /{path}"));
    }
    text.push('\n');
    let with_kernel = function.companions.iter().filter(|other| {
        function.is_bound() && other.driver.as_deref().is_some_and(|d| !d.contains("vfio"))
    });
    for other in with_kernel {
        text.push_str(&format!(
            "  cannot be opened yet: {} of its IOMMU group is with `{}`; bind it, too\n",
            other.address,
            other.driver.as_deref().unwrap_or_default()
        ));
    }
    text
}

fn addresses(matches: &ArgMatches) -> Result<Vec<Address>, Error> {
    let words = matches.get_many::<String>("address").into_iter().flatten();
    words.map(|word| word.parse().map_err(pci_error)).collect()
}

/// Functions for scripts.
fn document(functions: &[HostFunction]) -> Value {
    functions.iter().map(entry).collect()
}

fn entry(function: &HostFunction) -> Value {
    let companions = function
        .companions
        .iter()
        .map(|other| json!({ "address": other.address.to_string(), "driver": other.driver }));
    json!({
        "address": function.address.to_string(),
        "class": format!("{:06x}", function.class),
        "vendor": format!("{:04x}", function.vendor),
        "device": format!("{:04x}", function.device),
        "driver": function.driver,
        "bound": function.is_bound(),
        "numa_node": function.numa_node,
        "iommu_group": function.group,
        "no_iommu": function.no_iommu,
        "group_companions": companions.collect::<Vec<_>>(),
        "namespaces": function.namespaces,
        "held_by": function.held_by,
    })
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::from_io("writing to standard output", error))
}
