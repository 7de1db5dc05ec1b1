//! `list` and `reset`: which controllers there are, and whether they come back.

use std::fmt::Write as _;

use clap::ArgMatches;
use oxblock_nvme::NSID_ALL;
use oxblock_nvme::identify::{CNS_ACTIVE_LIST, CNS_NAMESPACE, Namespace};
use oxblock_pci::host::{HostFunction, Root};
use serde_json::{Value, json};
use zerocopy::FromBytes;

use super::Failure;
use super::device::Session;
use super::report::{Report, decimal_bytes, json_number};

/// A namespace of a controller, as a row of the list.
struct Row {
    device: String,
    nsid: u32,
    serial: String,
    model: String,
    firmware: String,
    bytes: u128,
    used: u128,
    blocks: u64,
    block_bytes: u64,
    metadata_bytes: u16,
}

/// `oxblock nvme list [DEVICE...]`
pub fn list(matches: &ArgMatches) -> Result<Report, Failure> {
    let mut rows = Vec::new();
    let Some(named) = matches.get_many::<String>("device") else {
        return Ok(all());
    };
    for device in named {
        rows.extend(look(device)?);
    }
    Ok(report(&rows))
}

/// Every controller that was handed over. One that cannot be opened, since another process has it,
/// keeps nobody from seeing the others.
fn all() -> Report {
    let (mut rows, mut below) = (Vec::new(), String::new());
    let mut found = HostFunction::all(&Root::new("/"));
    found.retain(HostFunction::is_nvme);
    for function in found {
        let address = function.address.to_string();
        if !function.is_bound() {
            let driver = function.driver.as_deref().unwrap_or("no driver");
            let _ = writeln!(
                below,
                "{address} belongs to {driver}; `oxblock pci bind {address}` hands it over"
            );
            continue;
        }
        match look(&address) {
            Ok(found) => rows.extend(found),
            Err(Failure::Usage(text)) => drop(writeln!(below, "{address}: {text}")),
            Err(Failure::Device(error)) => drop(writeln!(below, "{address}: {error}")),
        }
    }
    let mut report = report(&rows);
    report.text.push_str(&below);
    report
}

fn look(device: &str) -> Result<Vec<Row>, Failure> {
    let session = Session::open(device)?;
    let rows = rows_of(&session, device);
    // What the device said to the command matters more than how it was closed.
    let closed = session.close();
    let rows = rows?;
    closed?;
    Ok(rows)
}

/// The list of a single controller.
pub fn of_session(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    let device = matches.get_one::<String>("device").map(String::as_str).unwrap_or_default();
    Ok(report(&rows_of(session, device)?))
}

/// `oxblock nvme reset`
pub fn reset(session: &Session, _matches: &ArgMatches) -> Result<Report, Failure> {
    let controller = session.reset()?;
    let identity = controller.identity();
    let text = format!(
        "{} was reset and is back: {} {}, firmware {}",
        controller.name(),
        identity.model,
        identity.serial,
        identity.firmware
    );
    let json = json!({
        "address": controller.name(),
        "mn": identity.model,
        "sn": identity.serial,
        "fr": identity.firmware,
    });
    Ok(Report::done(text, json))
}

fn rows_of(session: &Session, device: &str) -> Result<Vec<Row>, Failure> {
    let identity = session.controller().identity();
    let pages = session.ask(|core, controller| async move {
        let mut pages = Vec::new();
        for nsid in ids(&controller.identify(&core, CNS_ACTIVE_LIST, 0, 0).await?) {
            pages.push((nsid, controller.identify(&core, CNS_NAMESPACE, nsid, 0).await?));
        }
        Ok(pages)
    })?;
    let row = |(nsid, page): (u32, Vec<u8>)| {
        let page = Namespace::read_from_bytes(&page).ok()?;
        let format = page.format();
        let shift = format.map_or(0, |format| format.lbads).min(63);
        Some(Row {
            device: device.to_owned(),
            nsid,
            serial: identity.serial.clone(),
            model: identity.model.clone(),
            firmware: identity.firmware.clone(),
            bytes: u128::from(page.nsze.get()) << shift,
            used: u128::from(page.nuse.get()) << shift,
            blocks: page.nsze.get(),
            block_bytes: 1 << shift,
            metadata_bytes: format.map_or(0, |format| format.ms.get()),
        })
    };
    Ok(pages.into_iter().filter_map(row).collect())
}

/// The IDs of a namespace list, up to the first zero.
pub fn ids(list: &[u8]) -> Vec<u32> {
    let words = list.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    words.take_while(|&id| id != 0 && id != NSID_ALL).collect()
}

fn report(rows: &[Row]) -> Report {
    let mut text = format!(
        "{:<20} {:<20} {:<32} {:<9} {:<24} {:<14} {:<8}\n",
        "Device", "Serial", "Model", "Namespace", "Usage", "Format", "Firmware"
    );
    for row in rows {
        let usage = format!("{} / {}", decimal_bytes(row.used), decimal_bytes(row.bytes));
        let format = format!("{} + {} B", row.block_bytes, row.metadata_bytes);
        let _ = writeln!(
            text,
            "{:<20} {:<20} {:<32} {:<9} {usage:<24} {format:<14} {:<8}",
            row.device, row.serial, row.model, row.nsid, row.firmware
        );
    }
    let devices: Vec<Value> = rows.iter().map(device_json).collect();
    Report { text, json: json!({ "Devices": devices }) }
}

fn device_json(row: &Row) -> Value {
    json!({
        "DevicePath": row.device,
        "NameSpace": row.nsid,
        "Firmware": row.firmware,
        "ModelNumber": row.model,
        "SerialNumber": row.serial,
        "UsedBytes": json_number(row.used),
        "PhysicalSize": json_number(row.bytes),
        "MaximumLBA": row.blocks,
        "SectorSize": row.block_bytes,
    })
}
