//! Tests that need a kernel of their own: real VFIO, real NVMe controllers that nobody here wrote.
//!
//! This one binary has two lives. On the host it fetches QEMU and a kernel, boots a guest for all
//! tests that were asked for, and tells how each of them ended. In the guest, where it is copied
//! to, it runs them ([`inside`]).
#![deny(unsafe_code)]

mod boot;
mod control;
mod fetch;
mod files;
mod initramfs;
mod inside;
mod packages;
mod rebuild;
mod report;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};

use boot::Guest;
use inside::{Machine, Test};
use packages::Packages;
use report::Report;

/// `require`: what cannot be run fails; `skip`: nothing is fetched or booted.
const SWITCH: &str = "OXBLOCK_GUEST";

fn main() -> ExitCode {
    if env::var_os(inside::MARK).is_some() {
        return inside::main();
    }
    let arguments = Arguments::from_args();
    let tests: Vec<Test> = inside::tests();
    let wanted = |machine| -> Vec<String> {
        let its = tests.iter().filter(|test| test.machine == machine).map(|test| &test.name);
        its.filter(|name| !arguments.list && wants(&arguments, name)).cloned().collect()
    };
    let guests = prepare(Machine::ALL.map(wanted));
    let required = env::var(SWITCH).is_ok_and(|word| word == "require");
    let trials = tests.into_iter().map(|test| trial(test, &guests, required)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Does the command line ask for this test?
fn wants(arguments: &Arguments, name: &str) -> bool {
    let matches = |word: &String| match arguments.exact {
        true => name == word,
        false => name.contains(word.as_str()),
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}

/// One guest for each machine, or why there is none.
type Guests = [Result<Arc<Boot>, String>; Machine::ALL.len()];

/// Fetches what the tests with these names need, and says which will not run.
fn prepare(wanted: [Vec<String>; Machine::ALL.len()]) -> Guests {
    let mut needed: Option<Result<_, String>> = None;
    let mut wanted = wanted.into_iter();
    Machine::ALL.map(|machine| {
        let tests = wanted.next().unwrap_or_default();
        if tests.is_empty() {
            return Err("none of its tests was asked for".into());
        }
        let count = tests.len();
        let (packages, programs) = needed.get_or_insert_with(fetch).clone()?;
        let guest = packages.modules(machine.is_rebuilt()).map(|modules| {
            let guest = Guest { machine, packages, modules, programs, tests };
            Arc::new(Boot { guest, report: OnceLock::new() })
        });
        guest.inspect_err(|why| eprintln!("guest: SKIPPED {count} tests of {machine:?}: {why}"))
    })
}

type Needed = (Arc<Packages>, [PathBuf; 2]);

fn fetch() -> Result<Needed, String> {
    let fetched = match env::var(SWITCH).is_ok_and(|word| word == "skip") {
        true => Err(format!("{SWITCH}=skip")),
        false => Packages::find().and_then(|packages| Ok((Arc::new(packages), boot::programs()?))),
    };
    fetched.inspect_err(|why| eprintln!("guest: SKIPPED, no guest can be booted: {why}"))
}

/// A test as the host sees it: what its guest says of it.
fn trial(test: Test, guests: &Guests, required: bool) -> Trial {
    let guest = Machine::ALL.iter().zip(guests).find(|(machine, _)| **machine == test.machine);
    match guest {
        Some((_, Ok(boot))) => {
            let (boot, name) = (Arc::clone(boot), test.name.clone());
            Trial::test(test.name, move || boot.outcome(&name))
        }
        Some((_, Err(why))) => {
            let why = why.clone();
            Trial::test(test.name, move || Err(Failed::from(why))).with_ignored_flag(!required)
        }
        None => Trial::test(test.name, || Err(Failed::from("there is no such machine"))),
    }
}

/// One guest, booted by the first test that asks.
struct Boot {
    guest: Guest,
    report: OnceLock<Report>,
}

/// Guests are booted one after the other: a test that waits for its turn does not count the time.
static TURN: Mutex<()> = Mutex::new(());

impl Boot {
    fn outcome(&self, name: &str) -> Result<(), Failed> {
        let report = self.report.get_or_init(|| {
            let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            self.guest.run()
        });
        report.outcome(name).map(|output| print!("{output}")).map_err(Failed::from)
    }
}
