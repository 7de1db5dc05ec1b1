//! `oxblock pci monitor`.

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use oxblock_bench::units::parse_time;
use oxblock_engine::{Error, ErrorKind};
use oxblock_pci::host::{BusFunction, Change, ChangeKind, Monitor, MonitorOptions, Root, Wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::{class, class_arguments, print};
use crate::bench::stop_on_signal;

const AFTER: &str = "\
A line says that a function appeared, that another driver has it, or that it is gone. The kernel
tells of that at once; where it does not (in most containers of another user), /sys is looked at
every two seconds, and a line on standard error says so.

Ends on Ctrl-C, and as --count and --for say. Exit code: 0 then, 1 when it cannot watch.";

/// How often a signal that came at a bad moment, and the end of the time, are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The command line.
pub fn command() -> Command {
    Command::new("monitor")
        .about("Print NVMe controllers as they come, go, and change hands")
        .after_help(AFTER)
        .args(class_arguments())
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .help("End after so many lines"),
        )
        .arg(
            Arg::new("for")
                .long("for")
                .value_name("TIME")
                .value_parser(parse_time)
                .help("End after this time: 30, 500ms, 5m"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print a line of JSON for each"),
        )
}

/// Runs `oxblock pci monitor`.
///
/// Errors: a class that is no number; output that cannot be written.
pub fn run(matches: &ArgMatches) -> Result<ExitCode, Error> {
    let class = class(matches)?;
    let stop = stop_on_signal()?;
    let mut monitor = Monitor::new(Root::new("/"), &MonitorOptions::default());
    if let Some(notice) = monitor.notice() {
        eprintln!("oxblock: {notice}");
    }
    let (json, begun) = (matches.get_flag("json"), Instant::now());
    let mut left = matches.get_one::<u64>("count").copied().unwrap_or(u64::MAX);
    let time = matches.get_one::<Duration>("for").copied().unwrap_or(Duration::MAX);
    while left > 0 && begun.elapsed() < time && !stop.load(Ordering::SeqCst) {
        let mut changes = Vec::new();
        monitor.look(now_ns(begun), |change| changes.push(change));
        changes.retain(|change| format!("{:06x}", change.function.class).starts_with(&class));
        for change in changes.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            let text = if json { entry(change).to_string() } else { words(change) };
            print(&format!("{text}\n"))?;
            left -= 1;
        }
        if left > 0 {
            wait(&monitor, begun, time)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn now_ns(begun: Instant) -> u64 {
    begun.elapsed().as_nanos() as u64
}

/// Sleeps until there may be news, or the time is over.
fn wait(monitor: &Monitor, begun: Instant, time: Duration) -> Result<(), Error> {
    let most = time.saturating_sub(begun.elapsed()).min(LOOK_EVERY);
    match monitor.wait() {
        Wait::Fd(fd) => {
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            let most = Timespec { tv_sec: 0, tv_nsec: most.as_nanos() as i64 };
            match poll(&mut fds, Some(&most)) {
                Ok(_) | Err(Errno::INTR) => Ok(()),
                Err(errno) => {
                    let text = format!("waiting for the kernel's news: {errno}");
                    Err(Error::new(ErrorKind::Io, text))
                }
            }
        }
        Wait::Until(at_ns) => {
            let left = Duration::from_nanos(at_ns.saturating_sub(now_ns(begun)));
            std::thread::sleep(left.min(most));
            Ok(())
        }
    }
}

/// For a person.
fn words(Change { kind, function }: &Change) -> String {
    let BusFunction { address, class, vendor, device, driver } = function;
    let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "no driver".to_owned());
    let what = match kind {
        ChangeKind::Appeared => {
            format!("appeared, class {class:06x}, {vendor:04x}:{device:04x}, {}", name(driver))
        }
        ChangeKind::Driver { before } => format!("{}, was {}", name(driver), name(before)),
        ChangeKind::Gone => "gone".to_owned(),
    };
    format!("{address}: {what}")
}

/// For scripts.
fn entry(Change { kind, function }: &Change) -> Value {
    let (event, before) = match kind {
        ChangeKind::Appeared => ("appeared", &None),
        ChangeKind::Driver { before } => ("driver", before),
        ChangeKind::Gone => ("gone", &None),
    };
    json!({
        "event": event,
        "address": function.address.to_string(),
        "class": format!("{:06x}", function.class),
        "vendor": format!("{:04x}", function.vendor),
        "device": format!("{:04x}", function.device),
        "driver": function.driver,
        "driver_before": before,
        "bound": function.is_bound(),
    })
}

#[cfg(test)]
mod tests {
    use oxblock_pci::host::NVME_CLASS;

    use super::*;

    fn change(kind: ChangeKind, driver: Option<&str>) -> Change {
        let function = BusFunction {
            address: "03:00.0".parse().expect("an address"),
            class: NVME_CLASS,
            vendor: 0x1b36,
            device: 0x10,
            driver: driver.map(str::to_owned),
        };
        Change { kind, function }
    }

    #[test]
    fn a_line_says_what_happened() {
        let appeared = change(ChangeKind::Appeared, None);
        let text = "0000:03:00.0: appeared, class 010802, 1b36:0010, no driver";
        assert_eq!(words(&appeared), text);
        let before = Some("nvme".to_owned());
        let bound = change(ChangeKind::Driver { before }, Some("vfio-pci"));
        assert_eq!(words(&bound), "0000:03:00.0: vfio-pci, was nvme");
        assert_eq!(entry(&bound)["event"], "driver");
        assert_eq!(entry(&bound)["driver_before"], "nvme");
        assert_eq!(entry(&bound)["bound"], true);
        let gone = change(ChangeKind::Gone, Some("vfio-pci"));
        assert_eq!(words(&gone), "0000:03:00.0: gone");
        assert!(!entry(&gone).to_string().contains('\n'));
    }
}
