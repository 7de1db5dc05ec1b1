//! Tests that need a kernel of their own: real VFIO, real NVMe controllers that nobody here wrote.
//!
//! This one binary has two lives. On the host it fetches QEMU and a kernel, boots a guest for all
//! tests that were asked for, and tells how each of them ended. In the guest, where it is copied
//! to, it runs them ([`inside`]).
#![deny(unsafe_code)]

mod boot;
mod initramfs;
mod inside;
mod packages;
mod report;

use std::env;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Failed, Trial};

use boot::Guest;
use inside::Test;
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
    let wanted: Vec<String> =
        tests.iter().map(|test| test.name.clone()).filter(|name| wants(&arguments, name)).collect();
    let guest = match wanted.is_empty() || arguments.list {
        true => Err(String::new()),
        false => prepare(wanted),
    };
    let guest = guest.map(Arc::new);
    if let Err(why) = &guest
        && !why.is_empty()
    {
        eprintln!("guest: SKIPPED, {} tests did not run: {why}", tests.len());
    }
    let required = env::var(SWITCH).is_ok_and(|word| word == "require");
    let trials = tests.into_iter().map(|test| trial(test, &guest, required)).collect();
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

fn prepare(wanted: Vec<String>) -> Result<Boot, String> {
    if env::var(SWITCH).is_ok_and(|word| word == "skip") {
        return Err(format!("{SWITCH}=skip"));
    }
    let guest = Guest::new(Packages::find()?, wanted)?;
    Ok(Boot { guest, report: OnceLock::new() })
}

/// A test as the host sees it: what its guest says of it.
fn trial(test: Test, guest: &Result<Arc<Boot>, String>, required: bool) -> Trial {
    match guest {
        Ok(boot) => {
            let (boot, name) = (Arc::clone(boot), test.name.clone());
            Trial::test(test.name, move || boot.outcome(&name))
        }
        Err(why) => {
            let why = why.clone();
            Trial::test(test.name, move || Err(Failed::from(why))).with_ignored_flag(!required)
        }
    }
}

/// One guest, booted by the first test that asks.
struct Boot {
    guest: Guest,
    report: OnceLock<Report>,
}

impl Boot {
    fn outcome(&self, name: &str) -> Result<(), Failed> {
        let report = self.report.get_or_init(|| self.guest.run());
        report.outcome(name).map_err(Failed::from)
    }
}
