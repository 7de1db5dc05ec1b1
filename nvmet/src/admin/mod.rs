//! Admin commands (Base 2.0, 5) that no transport needs to know of: Identify, features, logs
//! and events. Queues, aborts and shadow doorbells belong to the transport's queues and are in
//! [`queues`], [`abort`] and [`dbbuf`].

pub(crate) mod abort;
pub(crate) mod aer;
pub(crate) mod dbbuf;
pub(crate) mod features;
pub(crate) mod firmware;
pub(crate) mod identify;
pub(crate) mod logs;
mod manage;
pub(crate) mod power;
pub(crate) mod queues;
pub(crate) mod sanitize;
mod settings;

use oxblock_mem::IoVector;
use oxblock_nvme::event::{self, Event};
use oxblock_nvme::log::{
    LID_ERROR, LID_FEATURE_EFFECTS, LID_FIRMWARE_SLOT, LID_SANITIZE, LID_SMART,
};
use oxblock_nvme::opcode::admin;
use oxblock_nvme::{Command, Status};

use crate::data::DataPath;
use crate::hooks::Hooks;
use crate::inventory::Inventory;
use crate::namespace::Usage;
use aer::AsyncEvents;
use features::{FeatureLimits, Features, Situation};
use firmware::{Committed, Firmware};
use identify::Identity;
use logs::{Health, Logs, SPARE_IS_LOW, WARNING_TEMPERATURE, Wanted};
use sanitize::Sanitize;

/// SMART events: what each bit of Critical Warning is reported as (Base 2.0, figure 147):
/// reliability, temperature, or spare.
const fn smart_event(bit: u8) -> Event {
    let information = match 1 << bit {
        SPARE_IS_LOW => 2,
        WARNING_TEMPERATURE => 1,
        _ => 0,
    };
    Event { kind: event::TYPE_SMART, information, log_page: LID_SMART }
}

/// Notice: another firmware image is being activated.
const FIRMWARE_EVENT: Event = Event {
    kind: event::TYPE_NOTICE,
    information: event::NOTICE_FIRMWARE_ACTIVATION,
    log_page: LID_FIRMWARE_SLOT,
};

/// What the admin commands of one controller know.
pub(crate) struct Admin {
    pub(crate) identity: Identity,
    pub(crate) features: Features,
    pub(crate) events: AsyncEvents,
    pub(crate) logs: Logs,
    pub(crate) sanitize: Sanitize,
    firmware: Firmware,
    /// Critical warnings that the owner set.
    warnings: u8,
    /// Firmware has just been activated without a reset.
    activated: bool,
    limits: FeatureLimits,
    /// Largest transfer in bytes; `None` is no limit.
    transfer_max: Option<u64>,
}

/// What an admin command finds around it.
pub(crate) struct Surroundings<'a, D> {
    pub(crate) data: &'a mut D,
    pub(crate) inventory: &'a Inventory,
    pub(crate) usage: Usage,
    pub(crate) situation: Situation,
}

impl Admin {
    pub(crate) fn new(identity: Identity, limits: FeatureLimits, now_ms: u64) -> Admin {
        let mdts = identity.mdts;
        Admin {
            identity,
            features: Features::new(limits, now_ms),
            events: AsyncEvents::default(),
            logs: Logs::new(),
            sanitize: Sanitize::new(),
            firmware: Firmware::new(),
            warnings: 0,
            activated: false,
            limits,
            transfer_max: (mdts != 0).then(|| 4096 << mdts),
        }
    }

    /// A reset of the controller: features at their defaults, no events, the firmware that waited
    /// for it. Logs stay.
    pub(crate) fn reset(&mut self, now_ms: u64) {
        self.features = Features::new(self.limits, now_ms);
        self.events.reset();
        self.firmware.reset();
    }

    /// Largest transfer of a command in bytes; `None` is no limit.
    pub(crate) fn transfer_max(&self) -> Option<u64> {
        self.transfer_max
    }

    /// Carries out a command that needs no queues, and returns dword 0 of its completion.
    ///
    /// # Errors
    /// What is wrong with the command; opcodes that are not supported among it.
    pub(crate) fn execute<D: DataPath, H: Hooks>(
        &mut self,
        command: &Command,
        around: Surroundings<'_, D>,
        hooks: &mut H,
    ) -> Result<u32, Status> {
        match command.opcode() {
            admin::IDENTIFY => self.identify(command, around, hooks),
            admin::GET_LOG_PAGE => self.log_page(command, around),
            admin::SET_FEATURES => self.set_features(command, around),
            admin::GET_FEATURES => self.get_features(command, around),
            admin::FIRMWARE_DOWNLOAD => self.firmware.download(command, around.data).and(Ok(0)),
            admin::FIRMWARE_COMMIT => self.commit_firmware(command),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// Something went wrong that belongs to no command: an entry in the error log, and an event.
    pub(crate) fn raise_error(&mut self, information: u8, sqid: u16, status: Status) {
        self.logs.record(sqid, 0xffff, 0, 0, status);
        let event = Event { kind: event::TYPE_ERROR, information, log_page: LID_ERROR };
        self.events.raise(event, self.features.events());
    }

    /// Something happened that the host may want to hear of.
    pub(crate) fn raise(&mut self, event: Event) {
        self.events.raise(event, self.features.events());
    }

    fn identify<D: DataPath, H: Hooks>(
        &mut self,
        command: &Command,
        around: Surroundings<'_, D>,
        hooks: &mut H,
    ) -> Result<u32, Status> {
        let revision = self.firmware.revision();
        let mut page = self.identity.page(command, around.inventory, &revision)?;
        hooks.identify(command, &mut page);
        let mut to = around.data.map(command, page.len())?;
        to.write_at(0, &page[..]);
        Ok(0)
    }

    fn log_page<D: DataPath>(
        &mut self,
        command: &Command,
        around: Surroundings<'_, D>,
    ) -> Result<u32, Status> {
        let wanted = Wanted::decode(command)?;
        if self.transfer_max.is_some_and(|most| wanted.len > most) {
            return Err(Status::INVALID_FIELD);
        }
        let health = Health {
            usage: around.usage,
            warnings: self.critical_warning(),
            powered_on_ms: around.situation.now_ms,
        };
        let page = match wanted.lid {
            LID_FIRMWARE_SLOT => self.firmware.page(),
            LID_SANITIZE => self.sanitize.page(health.usage.writes),
            LID_FEATURE_EFFECTS => logs::feature_page(&self.features),
            lid => self.logs.page(lid, &health),
        };
        let start = usize::try_from(wanted.offset).ok();
        let rest = start.and_then(|start| page.get(start..));
        let rest = rest.ok_or(Status::INVALID_FIELD)?;
        let len = usize::try_from(wanted.len).map_err(|_| Status::INVALID_FIELD)?;
        let mut to = around.data.map(command, len)?;
        // What lies past the end of the page reads as zeroes.
        let there = rest.len().min(len);
        to.write_at(0, &rest[..there]);
        to.fill(there, len - there, 0);
        if !wanted.retain {
            self.logs.was_read(wanted.lid);
            self.events.log_was_read(wanted.lid);
        }
        Ok(0)
    }

    fn commit_firmware(&mut self, command: &Command) -> Result<u32, Status> {
        if self.firmware.commit(command)? == Committed::AtOnce {
            self.activated = true;
            self.raise(FIRMWARE_EVENT);
        }
        Ok(0)
    }

    /// Whether firmware has been activated without a reset since this was last asked.
    pub(crate) fn take_activated(&mut self) -> bool {
        std::mem::take(&mut self.activated)
    }

    fn set_features<D: DataPath>(
        &mut self,
        command: &Command,
        around: Surroundings<'_, D>,
    ) -> Result<u32, Status> {
        let len = Features::data_len(command.cdw10() as u8);
        let data = match len {
            0 => IoVector::new(),
            len => around.data.map(command, len)?,
        };
        let before = self.critical_warning();
        let dword = self.features.set(command, &data, around.situation)?;
        self.warn(before);
        Ok(dword)
    }

    /// Sets the critical warnings that the owner wants.
    pub(crate) fn set_critical_warning(&mut self, bits: u8) {
        let before = self.critical_warning();
        self.warnings = bits;
        self.warn(before);
    }

    /// Critical Warning, byte 0 of the SMART log.
    fn critical_warning(&self) -> u8 {
        let temperature = self.features.temperature_warning();
        self.warnings | if temperature { WARNING_TEMPERATURE } else { 0 }
    }

    /// Tells of critical warnings that are new.
    fn warn(&mut self, before: u8) {
        let new = self.critical_warning() & !before;
        for bit in (0..8).filter(|bit| new & 1 << bit != 0) {
            self.raise(smart_event(bit));
        }
    }

    fn get_features<D: DataPath>(
        &mut self,
        command: &Command,
        around: Surroundings<'_, D>,
    ) -> Result<u32, Status> {
        let supported = command.cdw10() >> 8 & 7 == u32::from(oxblock_nvme::feature::SEL_SUPPORTED);
        let len = Features::data_len(command.cdw10() as u8);
        let mut into = match len {
            0 => IoVector::new(),
            _ if supported => IoVector::new(),
            len => around.data.map(command, len)?,
        };
        let now_ms = around.situation.now_ms;
        self.features.get(command, &mut into, now_ms)
    }
}
