//! `sanitize`.

use std::time::Duration;

use clap::ArgMatches;
use oxblock_engine::{Error, ErrorKind};
use oxblock_nvme::sanitize as wire;
use serde_json::json;

use super::Failure;
use super::device::Session;
use super::logs::{sanitize_report, sanitize_status, state_words};
use super::namespaces::number_up_to;
use super::report::Report;

/// How often a sanitize that is waited for is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// `oxblock nvme sanitize`
pub fn sanitize(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let cdw10 = dword10(matches)?;
    let pattern = number_up_to(matches, "ovrpat", u32::MAX.into())? as u32;
    session.ask(move |core, controller| async move {
        controller.sanitize(&core, cdw10, pattern).await
    })?;
    if wire::action(cdw10) == wire::EXIT_FAILURE_MODE {
        return Ok(Report::done("the failure mode was left", json!({ "sanact": 1 })));
    }
    if matches.get_flag("wait") {
        return wait(session);
    }
    let text = "the sanitize has begun; sanitize-log tells how far it is";
    Ok(Report::done(text, json!({ "sanact": wire::action(cdw10) })))
}

fn dword10(matches: &ArgMatches) -> Result<u32, Failure> {
    let action = match matches.get_one::<String>("sanact").map(String::as_str) {
        Some("exit-failure") => wire::EXIT_FAILURE_MODE,
        Some("start-block-erase") => wire::BLOCK_ERASE,
        Some("start-overwrite") => wire::OVERWRITE,
        _ => wire::CRYPTO_ERASE,
    };
    let passes = number_up_to(matches, "owpass", 16)? as u32;
    if passes == 0 {
        return Err(Failure::Usage("--owpass=0: an overwrite has 1 to 16 passes".into()));
    }
    let passes = if action == wire::OVERWRITE { wire::with_passes(passes) } else { 0 };
    let switch = |name: &str, bit: u32| if matches.get_flag(name) { bit } else { 0 };
    Ok(action
        | passes
        | switch("ause", wire::AUSE)
        | switch("oipbp", wire::OIPBP)
        | switch("no-dealloc", wire::NDAS))
}

fn wait(session: &Session) -> Result<Report, Failure> {
    loop {
        let log = sanitize_status(session)?;
        match log.sstat.get() & 7 {
            wire::STATE_IN_PROGRESS => std::thread::sleep(LOOK_INTERVAL),
            wire::STATE_FAILED => {
                let text = state_words(log.sstat.get());
                return Err(Failure::Device(Error::new(ErrorKind::Io, text)));
            }
            _ => return Ok(sanitize_report(session.controller().name(), &log)),
        }
    }
}
