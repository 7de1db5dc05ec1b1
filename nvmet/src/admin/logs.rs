//! Get Log Page (Base 2.0, 5.16).

use std::collections::VecDeque;

use oxblock_nvme::log::{self, Effects, ErrorEntry, Smart, Supported};
use oxblock_nvme::opcode::{admin, nvm};
use oxblock_nvme::{Command, NSID_ALL, Status};
use zerocopy::IntoBytes;

use super::features::{self, Features};
use crate::namespace::Usage;

/// Entries of the error log (ELPE + 1).
pub(crate) const ERRORS: usize = 64;

/// The temperature that is reported, kelvin: there is no sensor.
pub(crate) const TEMPERATURE: u16 = 313;

/// SMART, critical warning: the spare is below its threshold.
pub(crate) const SPARE_IS_LOW: u8 = 1 << 0;
/// SMART, critical warning: the temperature is past a threshold.
pub(crate) const WARNING_TEMPERATURE: u8 = 1 << 1;

/// NVMe-MI Commands Supported and Effects; none are.
const LID_MI_EFFECTS: u8 = 0x13;

/// Log pages that there are.
const LIDS: [u8; 9] = [
    log::LID_SUPPORTED,
    log::LID_ERROR,
    log::LID_SMART,
    log::LID_FIRMWARE_SLOT,
    log::LID_CHANGED_NAMESPACES,
    log::LID_EFFECTS,
    log::LID_FEATURE_EFFECTS,
    LID_MI_EFFECTS,
    log::LID_SANITIZE,
];

/// SMART, Available Spare Threshold, percent.
const SPARE_THRESHOLD: u8 = 10;

/// Feature effects: supported, and where it applies.
const FEATURE_SUPPORTED: u32 = 1;
const SCOPE_NAMESPACE: u32 = 1 << 20;
const SCOPE_CONTROLLER: u32 = 1 << 21;

/// Changed Namespace List: entries before it overflows.
const CHANGED_MAX: usize = 1024;

/// What Format NVM does.
const FORMATTING: u32 =
    log::EFFECT_CONTENT_CHANGE | log::EFFECT_NAMESPACE_CHANGE | log::EFFECT_ALONE_IN_NAMESPACE;

/// What the logs hold.
pub(crate) struct Logs {
    errors: VecDeque<ErrorEntry>,
    error_count: u64,
    changed: Vec<u32>,
    changed_overflow: bool,
}

/// What the SMART log tells that is not kept here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Health {
    pub(crate) usage: Usage,
    /// Critical Warning.
    pub(crate) warnings: u8,
    pub(crate) powered_on_ms: u64,
}

/// Get Log Page, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) lid: u8,
    /// Keep the asynchronous event (RAE).
    pub(crate) retain: bool,
    pub(crate) len: u64,
    pub(crate) offset: u64,
}

impl Wanted {
    /// # Errors
    /// The log page does not exist, or offset, namespace or command set do not fit it.
    pub(crate) fn decode(command: &Command) -> Result<Wanted, Status> {
        const OFFSET_IS_INDEX: u32 = 1 << 23;
        let lid = command.cdw10() as u8;
        if !LIDS.contains(&lid) {
            return Err(Status::INVALID_LOG_PAGE);
        }
        let dwords = u64::from(command.cdw11() & 0xffff) << 16 | u64::from(command.cdw10() >> 16);
        let offset = u64::from(command.cdw13()) << 32 | u64::from(command.cdw12());
        let csi = command.cdw14() >> 24;
        let of_namespace = command.nsid() != 0 && command.nsid() != NSID_ALL;
        if offset % 4 != 0 || command.cdw14() & OFFSET_IS_INDEX != 0 || of_namespace {
            return Err(Status::INVALID_FIELD);
        }
        if lid == log::LID_EFFECTS && csi != 0 {
            return Err(Status::COMMAND_SET_NOT_SUPPORTED);
        }
        Ok(Wanted { lid, retain: command.cdw10() & 1 << 15 != 0, len: (dwords + 1) * 4, offset })
    }
}

impl Logs {
    pub(crate) fn new() -> Logs {
        Logs {
            errors: VecDeque::with_capacity(ERRORS),
            error_count: 0,
            changed: Vec::with_capacity(CHANGED_MAX),
            changed_overflow: false,
        }
    }

    /// Records a command that failed, or with `cid` FFFFh something that belongs to none.
    #[cold]
    pub(crate) fn record(&mut self, sqid: u16, cid: u16, nsid: u32, lba: u64, status: Status) {
        self.error_count += 1;
        if self.errors.len() == ERRORS {
            self.errors.pop_back();
        }
        self.errors.push_front(ErrorEntry {
            error_count: self.error_count.into(),
            sqid: sqid.into(),
            cid: cid.into(),
            status: status.to_bits().into(),
            parameter: 0xffff.into(),
            lba: lba.into(),
            nsid: nsid.into(),
            vendor: 0,
            trtype: 0,
            reserved30: [0; 2],
            command_specific: 0.into(),
            transport_specific: 0.into(),
            reserved42: [0; 22],
        });
    }

    /// Puts a namespace on the list of those that have changed.
    pub(crate) fn namespace_changed(&mut self, nsid: u32) {
        let Err(at) = self.changed.binary_search(&nsid) else {
            return;
        };
        if self.changed.len() == CHANGED_MAX {
            self.changed_overflow = true;
            return;
        }
        self.changed.insert(at, nsid);
    }

    /// The list of those that have changed has overflowed.
    pub(crate) fn overflow_changed(&mut self) {
        self.changed_overflow = true;
    }

    /// The bytes of a log page, from its beginning.
    pub(crate) fn page(&self, lid: u8, health: &Health) -> Vec<u8> {
        match lid {
            log::LID_SUPPORTED => supported(),
            log::LID_ERROR => self.error_page(),
            log::LID_SMART => self.smart_page(health),
            log::LID_CHANGED_NAMESPACES => self.changed_page(),
            log::LID_EFFECTS => effects_page(),
            _ => vec![0; 4096],
        }
    }

    /// The host has read a log page for good.
    pub(crate) fn was_read(&mut self, lid: u8) {
        if lid == log::LID_CHANGED_NAMESPACES {
            self.changed.clear();
            self.changed_overflow = false;
        }
    }

    fn error_page(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(ERRORS * 64);
        for entry in &self.errors {
            page.extend_from_slice(entry.as_bytes());
        }
        page.resize(ERRORS * 64, 0);
        page
    }

    fn smart_page(&self, health: &Health) -> Vec<u8> {
        // Data units are thousands of 512 bytes, rounded up.
        let units = |bytes: u64| u128::from(bytes.div_ceil(512_000)).into();
        let mut smart = Smart::boxed();
        let usage = &health.usage;
        smart.critical_warning = health.warnings;
        smart.temperature = TEMPERATURE.into();
        smart.spare = if health.warnings & SPARE_IS_LOW == 0 { 100 } else { SPARE_THRESHOLD - 1 };
        smart.spare_threshold = SPARE_THRESHOLD;
        smart.data_units_read = units(usage.bytes_read);
        smart.data_units_written = units(usage.bytes_written);
        smart.host_reads = u128::from(usage.reads).into();
        smart.host_writes = u128::from(usage.writes).into();
        smart.power_cycles = 1.into();
        smart.power_on_hours = u128::from(health.powered_on_ms / 3_600_000).into();
        smart.media_errors = u128::from(usage.media_errors).into();
        smart.error_entries = u128::from(self.error_count).into();
        smart.as_bytes().to_vec()
    }

    fn changed_page(&self) -> Vec<u8> {
        let overflow = [log::CHANGED_OVERFLOW];
        let ids: &[u32] = if self.changed_overflow { &overflow } else { &self.changed };
        let mut page: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        page.resize(4096, 0);
        page
    }
}

fn supported() -> Vec<u8> {
    let mut page = Supported::boxed();
    for lid in LIDS {
        page.lids[usize::from(lid)] = 1.into();
    }
    page.as_bytes().to_vec()
}

/// Commands that there are, and those of them that change what blocks hold.
fn effects_page() -> Vec<u8> {
    const ADMIN: [u8; 11] = [
        admin::DELETE_SQ,
        admin::CREATE_SQ,
        admin::GET_LOG_PAGE,
        admin::DELETE_CQ,
        admin::CREATE_CQ,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT,
        admin::DOORBELL_BUFFER_CONFIG,
    ];
    const MANAGING: [(u8, u32); 6] = [
        (admin::FORMAT_NVM, FORMATTING),
        (admin::NAMESPACE_MANAGEMENT, log::EFFECT_INVENTORY_CHANGE | log::EFFECT_CONTENT_CHANGE),
        (admin::NAMESPACE_ATTACHMENT, log::EFFECT_INVENTORY_CHANGE),
        (admin::FIRMWARE_DOWNLOAD, 0),
        (admin::FIRMWARE_COMMIT, 0),
        (admin::SANITIZE, log::EFFECT_CONTENT_CHANGE | log::EFFECT_ALONE),
    ];
    const READING: [u8; 4] = [nvm::FLUSH, nvm::READ, nvm::COMPARE, nvm::VERIFY];
    const WRITING: [u8; 5] = [
        nvm::WRITE,
        nvm::WRITE_UNCORRECTABLE,
        nvm::WRITE_ZEROES,
        nvm::DATASET_MANAGEMENT,
        nvm::COPY,
    ];
    let mut page = Effects::boxed();
    for opcode in ADMIN {
        page.acs[usize::from(opcode)] = log::EFFECT_SUPPORTED.into();
    }
    for (opcode, effects) in MANAGING {
        page.acs[usize::from(opcode)] = (log::EFFECT_SUPPORTED | effects).into();
    }
    for opcode in READING {
        page.iocs[usize::from(opcode)] = log::EFFECT_SUPPORTED.into();
    }
    for opcode in WRITING {
        let effect = log::EFFECT_SUPPORTED | log::EFFECT_CONTENT_CHANGE;
        page.iocs[usize::from(opcode)] = effect.into();
    }
    page.as_bytes().to_vec()
}

/// The Feature Identifiers Supported and Effects log page.
pub(crate) fn feature_page(features: &Features) -> Vec<u8> {
    let mut page = vec![0; 1024];
    for fid in (0..=u8::MAX).filter(|fid| features.has(*fid)) {
        let of_namespace = features::is_of_namespace(fid);
        let scope = if of_namespace { SCOPE_NAMESPACE } else { SCOPE_CONTROLLER };
        let at = usize::from(fid) * 4;
        page[at..at + 4].copy_from_slice(&(FEATURE_SUPPORTED | scope).to_le_bytes());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_error_comes_first_and_old_ones_fall_out() {
        let mut logs = Logs::new();
        for cid in 0..70 {
            logs.record(1, cid, 1, 9, Status::LBA_OUT_OF_RANGE);
        }
        let page = logs.page(log::LID_ERROR, &Health::default());
        assert_eq!(page.len(), ERRORS * 64);
        assert_eq!(page[..8], 70u64.to_le_bytes());
        assert_eq!(page[10..12], 69u16.to_le_bytes());
        assert_eq!(page[63 * 64..63 * 64 + 8], 7u64.to_le_bytes());
        let smart = logs.page(log::LID_SMART, &Health::default());
        assert_eq!(smart[176], 70);
    }

    #[test]
    fn changed_namespaces_are_sorted_and_overflow() {
        let mut logs = Logs::new();
        for nsid in [7, 3, 7] {
            logs.namespace_changed(nsid);
        }
        let page = logs.page(log::LID_CHANGED_NAMESPACES, &Health::default());
        assert_eq!(page[..12], [3, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        (0..2000).for_each(|nsid| logs.namespace_changed(nsid));
        let page = logs.page(log::LID_CHANGED_NAMESPACES, &Health::default());
        assert_eq!(page[..8], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        logs.was_read(log::LID_CHANGED_NAMESPACES);
        let page = logs.page(log::LID_CHANGED_NAMESPACES, &Health::default());
        assert!(page.iter().all(|&b| b == 0));
    }

    #[test]
    fn requests_are_checked() {
        let log = |lid, nsid, offset| Command::log_page(lid, nsid, 512, offset, true);
        let wanted = Wanted::decode(&log(log::LID_SMART, NSID_ALL, 4)).unwrap();
        let expected = Wanted { lid: 2, retain: true, len: 512, offset: 4 };
        assert_eq!(wanted, expected);
        assert_eq!(Wanted::decode(&log(0x77, 0, 0)), Err(Status::INVALID_LOG_PAGE));
        assert_eq!(Wanted::decode(&log(2, 0, 2)), Err(Status::INVALID_FIELD));
        assert_eq!(Wanted::decode(&log(2, 1, 0)), Err(Status::INVALID_FIELD));
        let huge = log(2, 0, 0).with_cdw10_11(0xffff_0002, 0xffff);
        assert_eq!(Wanted::decode(&huge).unwrap().len, 1 << 34);
    }
}
