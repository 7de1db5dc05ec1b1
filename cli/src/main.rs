//! The `oxblock` command.
#![forbid(unsafe_code)]

mod attached;
mod bench;
mod doctor;
mod function;
mod node;
mod pci;
mod soft;
mod target;

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
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let result = match matches.subcommand() {
        Some(("bench", matches)) => bench::run(matches),
        Some(("doctor", matches)) => doctor::run(matches),
        Some(("pci", matches)) => pci::run(matches),
        _ => Ok(ExitCode::FAILURE),
    };
    result.unwrap_or_else(|error| {
        eprintln!("oxblock: {error}");
        ExitCode::FAILURE
    })
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
}
