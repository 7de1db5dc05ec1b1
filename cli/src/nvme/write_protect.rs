//! `write-protect`.

use clap::ArgMatches;
use oxblock_nvme::feature::WriteProtection;
use serde_json::json;

use super::Failure;
use super::device::Session;
use super::namespaces::nsid;
use super::report::Report;

/// `oxblock nvme write-protect`
pub fn run(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let nsid = nsid(matches)?;
    let wanted = match matches.get_one::<String>("state").map(String::as_str) {
        Some("off") => Some(WriteProtection::None),
        Some("on") => Some(WriteProtection::Protected),
        Some("until-power-cycle") => Some(WriteProtection::UntilPowerCycle),
        Some(_) => Some(WriteProtection::Permanent),
        None => None,
    };
    let state = session.ask(move |core, controller| async move {
        if let Some(wanted) = wanted {
            controller.set_write_protection(&core, nsid, wanted).await?;
        }
        controller.write_protection(&core, nsid).await
    })?;
    let word = match state {
        WriteProtection::None => "off",
        WriteProtection::Protected => "on",
        WriteProtection::UntilPowerCycle => "until-power-cycle",
        WriteProtection::Permanent => "permanent",
    };
    let text = format!("write protection of namespace {nsid}: {word}");
    Ok(Report::done(text, json!({ "nsid": nsid, "write_protection": word })))
}
