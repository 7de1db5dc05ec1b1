//! The `oxblock` command.
#![forbid(unsafe_code)]

mod bench;
mod doctor;
mod held;
mod interrupts;
mod node;
mod nvme;
mod nvmet;
mod pci;
mod soft;
mod target;
mod tuning;

use std::process::ExitCode;

use clap::Command;
use oxblock_mem::counting_alloc::CountingAllocator;

/// Counts, so that `bench` can say what an I/O costs the heap.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { usage_code() } else { ExitCode::SUCCESS };
        }
    };
    let result = match matches.subcommand() {
        Some(("bench", matches)) => bench::run(matches),
        Some(("doctor", matches)) => doctor::run(matches),
        Some(("pci", matches)) => pci::run(matches),
        Some(("nvme", matches)) => nvme::run(matches),
        Some(("nvmet", matches)) => nvmet::run(matches),
        _ => Ok(ExitCode::FAILURE),
    };
    result.unwrap_or_else(|error| {
        eprintln!("oxblock: {error}");
        ExitCode::FAILURE
    })
}

/// The exit code of a command line that makes no sense, which scripts around `nvme` tell from what
/// a device refused.
fn usage_code() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(word) if word == "nvme" => ExitCode::from(nvme::USAGE),
        _ => ExitCode::FAILURE,
    }
}

fn command() -> Command {
    Command::new("oxblock")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A polled-mode block layer in user space")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(bench::command())
        .subcommand(doctor::command())
        .subcommand(pci::command())
        .subcommand(nvme::command())
        .subcommand(nvmet::command())
}
