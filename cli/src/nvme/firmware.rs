//! `fw-download` and `fw-commit`.

use clap::ArgMatches;
use oxblock_nvme::Status;
use serde_json::json;

use super::Failure;
use super::device::Session;
use super::namespaces::number_up_to;
use super::report::Report;

/// The largest image that is sent, bytes.
const IMAGE_MAX: u64 = 1 << 30;

/// `oxblock nvme fw-download`
pub fn download(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let path = matches.get_one::<String>("fw").cloned().unwrap_or_default();
    let usage = |text: String| Err(Failure::Usage(text));
    let mut image = match std::fs::metadata(&path).and_then(|metadata| match metadata.len() {
        len if len > IMAGE_MAX => Err(std::io::ErrorKind::FileTooLarge.into()),
        _ => std::fs::read(&path),
    }) {
        Ok(image) if image.is_empty() => return usage(format!("{path} is empty")),
        Ok(image) => image,
        Err(error) => return usage(format!("reading {path}: {error}")),
    };
    let piece_len = number_up_to(matches, "xfer", 4096)? as usize;
    let offset = number_up_to(matches, "offset", u32::MAX.into())? as u32;
    if piece_len == 0 || !piece_len.is_multiple_of(4) || !offset.is_multiple_of(4) {
        return usage("--xfer and --offset must be multiples of 4, and --xfer not 0".into());
    }
    // The unit on the wire is a dword.
    image.resize(image.len().next_multiple_of(4), 0);
    let len = image.len();
    if u32::try_from(len).ok().and_then(|len| offset.checked_add(len)).is_none() {
        return usage("the image ends past 4 GiB".into());
    }
    session.ask(move |core, controller| async move {
        for (index, piece) in image.chunks(piece_len).enumerate() {
            let at = offset + (index * piece_len) as u32;
            controller.firmware_download(&core, piece, at).await?;
        }
        Ok(())
    })?;
    let text = format!("{len} bytes of {path} were sent; fw-commit puts them in a slot");
    Ok(Report::done(text, json!({ "bytes": len, "offset": offset })))
}

/// `oxblock nvme fw-commit`
pub fn commit(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let slot = number_up_to(matches, "slot", 7)? as u8;
    let action = number_up_to(matches, "action", 7)? as u8;
    let reply = session.ask(move |core, controller| async move {
        controller.firmware_commit(&core, slot, action).await
    })?;
    let Some(reset) = reset_needed(reply.status) else {
        reply.success("firmware commit")?;
        let text = match action {
            0 => "the image is in its slot",
            1 | 2 => "the image is active after the next reset",
            _ => "the image is active",
        };
        return Ok(Report::done(text, json!({ "slot": slot, "action": action, "needs": null })));
    };
    let text = format!("the image was taken, and is active after {reset}");
    Ok(Report::done(text, json!({ "slot": slot, "action": action, "needs": reset })))
}

/// Statuses that tell of success, but for a reset of some kind.
fn reset_needed(status: Status) -> Option<&'static str> {
    let is = |other: Status| status.code() == other.code();
    if is(Status::FIRMWARE_NEEDS_RESET) {
        Some("a conventional reset")
    } else if is(Status::FIRMWARE_NEEDS_SUBSYSTEM_RESET) {
        Some("a reset of the NVM subsystem")
    } else if is(Status::FIRMWARE_NEEDS_CONTROLLER_RESET) {
        Some("a reset of the controller")
    } else {
        None
    }
}
