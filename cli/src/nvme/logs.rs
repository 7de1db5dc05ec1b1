//! `smart-log`, `error-log`, `fw-log` and `sanitize-log`.

use std::fmt::Write as _;

use clap::ArgMatches;
use oxblock_nvme::identify::read_ascii;
use oxblock_nvme::log::{
    ErrorEntry, FirmwareSlots, LID_ERROR, LID_FIRMWARE_SLOT, LID_SANITIZE, LID_SMART,
    SanitizeStatus, Smart,
};
use oxblock_nvme::{NSID_ALL, sanitize as wire};
use serde_json::{Value, json};

use super::Failure;
use super::device::Session;
use super::identify::structure;
use super::report::{Report, Sheet, decimal_bytes};

/// Bytes of a data unit: a thousand times 512.
pub const DATA_UNIT_BYTES: u128 = 512_000;

fn read(session: &Session, lid: u8, nsid: u32, len: usize) -> Result<Vec<u8>, Failure> {
    Ok(session.ask(move |core, controller| async move {
        controller.log_page(&core, lid, nsid, len).await
    })?)
}

/// The SMART / Health Information log page.
pub fn smart_page(session: &Session) -> Result<Box<Smart>, Failure> {
    structure(&read(session, LID_SMART, NSID_ALL, size_of::<Smart>())?)
}

/// `oxblock nvme smart-log`
pub fn smart(session: &Session, _matches: &ArgMatches) -> Result<Report, Failure> {
    let s = smart_page(session)?;
    let mut sheet = Sheet::new(format!("SMART log of {}", session.controller().name()));
    sheet.hex("critical_warning", s.critical_warning);
    temperature(&mut sheet, "temperature", s.temperature.get());
    percent(&mut sheet, "avail_spare", s.spare);
    percent(&mut sheet, "spare_thresh", s.spare_threshold);
    percent(&mut sheet, "percent_used", s.percentage_used);
    sheet.hex("endurance_grp_critical_warning_summary", s.endurance_warning);
    units(&mut sheet, "data_units_read", s.data_units_read.get());
    units(&mut sheet, "data_units_written", s.data_units_written.get());
    sheet.number("host_read_commands", s.host_reads.get());
    sheet.number("host_write_commands", s.host_writes.get());
    sheet.number("controller_busy_time", s.busy_time.get());
    sheet.number("power_cycles", s.power_cycles.get());
    sheet.number("power_on_hours", s.power_on_hours.get());
    sheet.number("unsafe_shutdowns", s.unsafe_shutdowns.get());
    sheet.number("media_errors", s.media_errors.get());
    sheet.number("num_err_log_entries", s.error_entries.get());
    sheet.number("warning_temp_time", s.warning_temperature_time.get());
    sheet.number("critical_comp_time", s.critical_temperature_time.get());
    for (index, sensor) in (1..).zip(&s.temperature_sensor) {
        if sensor.get() != 0 {
            temperature(&mut sheet, &format!("temperature_sensor_{index}"), sensor.get());
        }
    }
    for (index, count) in (1..).zip(&s.thermal_transitions) {
        sheet.number(&format!("thm_temp{index}_trans_count"), count.get());
    }
    for (index, seconds) in (1..).zip(&s.thermal_time) {
        sheet.number(&format!("thm_temp{index}_total_time"), seconds.get());
    }
    Ok(sheet.report())
}

fn temperature(sheet: &mut Sheet, key: &str, kelvin: u16) {
    let celsius = i32::from(kelvin) - 273;
    sheet.shown(key, kelvin.into(), format!("{celsius} °C ({kelvin} K)"));
}

fn percent(sheet: &mut Sheet, key: &str, value: u8) {
    sheet.shown(key, value.into(), format!("{value}%"));
}

fn units(sheet: &mut Sheet, key: &str, units: u128) {
    let bytes = decimal_bytes(units.saturating_mul(DATA_UNIT_BYTES));
    sheet.shown(key, super::report::json_number(units), format!("{units} ({bytes})"));
}

/// `oxblock nvme error-log`
pub fn errors(session: &Session, matches: &ArgMatches) -> Result<Report, Failure> {
    const ENTRY: usize = size_of::<ErrorEntry>();
    let wanted = matches.get_one::<u64>("log-entries").copied().unwrap_or(64).clamp(1, 256);
    let has = u64::from(session.controller().error_log_entries());
    let page = read(session, LID_ERROR, NSID_ALL, wanted.min(has) as usize * ENTRY)?;
    let (mut text, mut list) = (String::new(), Vec::new());
    for bytes in page.chunks_exact(ENTRY) {
        let e: Box<ErrorEntry> = structure(bytes)?;
        if e.error_count.get() == 0 {
            continue;
        }
        let _ = writeln!(
            text,
            "error {}: queue {} command {:#x} namespace {:#x} lba {:#x}: {}",
            e.error_count.get(),
            e.sqid.get(),
            e.cid.get(),
            e.nsid.get(),
            e.lba.get(),
            e.status()
        );
        list.push(json!({
            "error_count": e.error_count.get(), "sqid": e.sqid.get(), "cmdid": e.cid.get(),
            "status_field": e.status.get() >> 1, "phase_tag": e.status.get() & 1,
            "status_words": e.status().to_string(), "parm_error_location": e.parameter.get(),
            "lba": e.lba.get(), "nsid": e.nsid.get(), "vs": e.vendor, "trtype": e.trtype,
            "cs": e.command_specific.get(), "trtype_spec_info": e.transport_specific.get(),
        }));
    }
    if list.is_empty() {
        text.push_str("no errors\n");
    }
    Ok(Report { text, json: json!({ "errors": list }) })
}

/// `oxblock nvme fw-log`
pub fn firmware(session: &Session, _matches: &ArgMatches) -> Result<Report, Failure> {
    let page = read(session, LID_FIRMWARE_SLOT, NSID_ALL, size_of::<FirmwareSlots>())?;
    let slots: Box<FirmwareSlots> = structure(&page)?;
    let mut sheet = Sheet::new(format!("Firmware slots of {}", session.controller().name()));
    let (active, next) = (slots.afi & 7, slots.afi >> 4 & 7);
    let after = if next == 0 { String::new() } else { format!(", slot {next} after a reset") };
    sheet.shown("afi", slots.afi.into(), format!("{:#x} (slot {active} active{after})", slots.afi));
    for (index, revision) in (1..).zip(&slots.frs) {
        let revision = read_ascii(revision);
        if !revision.is_empty() {
            sheet.text(&format!("frs{index}"), &revision);
        }
    }
    Ok(sheet.report())
}

/// `oxblock nvme sanitize-log`
pub fn sanitize(session: &Session, _matches: &ArgMatches) -> Result<Report, Failure> {
    Ok(sanitize_report(session.controller().name(), &*sanitize_status(session)?))
}

/// The Sanitize Status log page.
pub fn sanitize_status(session: &Session) -> Result<Box<SanitizeStatus>, Failure> {
    let page = read(session, LID_SANITIZE, NSID_ALL, size_of::<SanitizeStatus>())?;
    structure(&page)
}

/// What the log page says.
pub fn sanitize_report(device: &str, log: &SanitizeStatus) -> Report {
    let mut sheet = Sheet::new(format!("Sanitize status of {device}"));
    let (progress, status) = (log.sprog.get(), log.sstat.get());
    let percent = f64::from(progress) / 655.36;
    sheet.shown("sprog", progress.into(), format!("{progress} ({percent:.1}%)"));
    let erased = status & wire::GLOBAL_DATA_ERASED != 0;
    let passes = status >> 3 & 0x1f;
    let words = state_words(status);
    let also = if erased { ", nothing was written since" } else { "" };
    let shown = format!("{status:#x} ({words}, {passes} overwrite passes done{also})");
    let json = json!({
        "global_erased": u8::from(erased), "no_cmplted_passes": passes, "status": status & 7,
        "status_words": words,
    });
    sheet.shown("sstat", json, shown);
    sheet.hex("cdw10_info", log.scdw10.get());
    seconds(&mut sheet, "time_over_write", log.eto.get());
    seconds(&mut sheet, "time_block_erase", log.etbe.get());
    seconds(&mut sheet, "time_crypto_erase", log.etce.get());
    seconds(&mut sheet, "time_over_write_no_dealloc", log.etond.get());
    seconds(&mut sheet, "time_block_erase_no_dealloc", log.etbend.get());
    seconds(&mut sheet, "time_crypto_erase_no_dealloc", log.etcend.get());
    sheet.report()
}

/// What the state of a sanitize means.
pub fn state_words(status: u16) -> &'static str {
    match status & 7 {
        wire::STATE_NEVER => "never sanitized",
        wire::STATE_SUCCEEDED => "the last sanitize succeeded",
        wire::STATE_IN_PROGRESS => "a sanitize is in progress",
        wire::STATE_FAILED => "the last sanitize failed",
        wire::STATE_SUCCEEDED_UNDEALLOCATED => {
            "the last sanitize succeeded, without the deallocation asked for"
        }
        _ => "a state that is unknown",
    }
}

fn seconds(sheet: &mut Sheet, key: &str, seconds: u32) {
    let shown = match seconds {
        u32::MAX => "not reported".into(),
        seconds => format!("{seconds} s"),
    };
    sheet.shown(key, Value::from(seconds), shown);
}
