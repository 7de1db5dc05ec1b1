//! `get-feature` and `set-feature`.

use clap::ArgMatches;
use oxblock_nvme::feature;
use serde_json::json;

use super::Failure;
use super::device::Session;
use super::namespaces::{nsid, number_up_to};
use super::report::{Report, hex_digits};

/// `oxblock nvme get-feature`
pub fn get(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let fid = number_up_to(matches, "feature-id", 0xff)? as u8;
    let select = number_up_to(matches, "sel", 7)? as u8;
    let cdw11 = number_up_to(matches, "cdw11", u32::MAX.into())? as u32;
    let asked = number_up_to(matches, "data-len", 4096)? as usize;
    let len = if asked == 0 && select != feature::SEL_SUPPORTED { data_len(fid) } else { asked };
    let nsid = nsid(matches)?;
    let reply = session.ask(move |core, controller| async move {
        controller.feature(&core, fid, nsid, select, cdw11, len).await
    })?;
    let which = match select {
        feature::SEL_DEFAULT => "default value",
        feature::SEL_SAVED => "saved value",
        feature::SEL_SUPPORTED => "capabilities",
        _ => "current value",
    };
    let value = reply.dword0;
    let mut text = format!("feature {fid:#04x} ({}), {which}: {value:#010x}", name(fid));
    if !reply.data.is_empty() {
        text.push_str(&format!("\ndata: {}", hex_digits(&reply.data)));
    }
    let json = json!({
        "feature": fid, "name": name(fid), "select": select, "value": value,
        "data": hex_digits(&reply.data),
    });
    Ok(Report::done(text, json))
}

/// `oxblock nvme set-feature`
pub fn set(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let fid = number_up_to(matches, "feature-id", 0xff)? as u8;
    let value = number_up_to(matches, "value", u32::MAX.into())? as u32;
    let save = matches.get_flag("save");
    let nsid = nsid(matches)?;
    let data = match matches.get_one::<String>("data") {
        None => Vec::new(),
        Some(path) => std::fs::read(path)
            .map_err(|error| Failure::Usage(format!("reading {path}: {error}")))?,
    };
    let dword0 = session.ask(move |core, controller| async move {
        controller.set_feature(&core, fid, nsid, value, save, data).await
    })?;
    let text = format!("feature {fid:#04x} ({}) is {value:#010x}", name(fid));
    Ok(Report::done(text, json!({ "feature": fid, "value": value, "result": dword0 })))
}

/// Bytes of the data of those features that have some.
fn data_len(fid: u8) -> usize {
    match fid {
        feature::TIMESTAMP => 8,
        feature::LBA_RANGE_TYPE => 4096,
        feature::AUTONOMOUS_POWER_STATE_TRANSITION => 256,
        feature::HOST_BEHAVIOR_SUPPORT => 512,
        feature::HOST_IDENTIFIER => 8,
        _ => 0,
    }
}

fn name(fid: u8) -> &'static str {
    match fid {
        feature::ARBITRATION => "Arbitration",
        feature::POWER_MANAGEMENT => "Power Management",
        feature::LBA_RANGE_TYPE => "LBA Range Type",
        feature::TEMPERATURE_THRESHOLD => "Temperature Threshold",
        feature::ERROR_RECOVERY => "Error Recovery",
        feature::VOLATILE_WRITE_CACHE => "Volatile Write Cache",
        feature::NUMBER_OF_QUEUES => "Number of Queues",
        feature::INTERRUPT_COALESCING => "Interrupt Coalescing",
        feature::INTERRUPT_VECTOR_CONFIGURATION => "Interrupt Vector Configuration",
        feature::WRITE_ATOMICITY_NORMAL => "Write Atomicity Normal",
        feature::ASYNC_EVENT_CONFIGURATION => "Asynchronous Event Configuration",
        feature::AUTONOMOUS_POWER_STATE_TRANSITION => "Autonomous Power State Transition",
        feature::HOST_MEMORY_BUFFER => "Host Memory Buffer",
        feature::TIMESTAMP => "Timestamp",
        feature::KEEP_ALIVE_TIMER => "Keep Alive Timer",
        feature::HOST_BEHAVIOR_SUPPORT => "Host Behavior Support",
        feature::IO_COMMAND_SET_PROFILE => "I/O Command Set Profile",
        feature::SOFTWARE_PROGRESS_MARKER => "Software Progress Marker",
        feature::HOST_IDENTIFIER => "Host Identifier",
        feature::RESERVATION_NOTIFICATION_MASK => "Reservation Notification Mask",
        feature::RESERVATION_PERSISTENCE => "Reservation Persistence",
        feature::NAMESPACE_WRITE_PROTECTION => "Namespace Write Protection Config",
        _ => "unknown",
    }
}
