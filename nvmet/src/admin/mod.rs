//! Admin commands (Base 2.0, 5) that no transport needs to know of: Identify, features, logs
//! and events. Queues, aborts and shadow doorbells belong to the transport's queues and are in
//! [`queues`], [`abort`] and [`dbbuf`].

pub(crate) mod abort;
pub(crate) mod aer;
pub(crate) mod dbbuf;
pub(crate) mod features;
pub(crate) mod identify;
pub(crate) mod logs;
pub(crate) mod queues;

use oxblock_mem::IoVector;
use oxblock_nvme::event::{self, Event};
use oxblock_nvme::log::{LID_ERROR, LID_SMART};
use oxblock_nvme::opcode::admin;
use oxblock_nvme::{Command, Status};

use crate::data::DataPath;
use crate::hooks::Hooks;
use crate::namespace::Usage;
use aer::AsyncEvents;
use features::{FeatureLimits, Features, Situation};
use identify::Identity;
use logs::{Health, Logs, Wanted};

/// SMART event: the temperature is past a threshold.
const TEMPERATURE_EVENT: Event =
    Event { kind: event::TYPE_SMART, information: 1, log_page: LID_SMART };

/// What the admin commands of one controller know.
pub(crate) struct Admin {
    pub(crate) identity: Identity,
    pub(crate) features: Features,
    pub(crate) events: AsyncEvents,
    pub(crate) logs: Logs,
    limits: FeatureLimits,
    /// Largest transfer in bytes; `None` is no limit.
    transfer_max: Option<u64>,
}

/// What an admin command finds around it.
pub(crate) struct Surroundings<'a, D> {
    pub(crate) data: &'a mut D,
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
            limits,
            transfer_max: (mdts != 0).then(|| 4096 << mdts),
        }
    }

    /// A reset of the controller: features at their defaults, no events. Logs stay.
    pub(crate) fn reset(&mut self, now_ms: u64) {
        self.features = Features::new(self.limits, now_ms);
        self.events.reset();
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
            admin::IDENTIFY => self.identify(command, around.data, hooks),
            admin::GET_LOG_PAGE => self.log_page(command, around),
            admin::SET_FEATURES => self.set_features(command, around),
            admin::GET_FEATURES => self.get_features(command, around),
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
        data: &mut D,
        hooks: &mut H,
    ) -> Result<u32, Status> {
        let mut page = self.identity.page(command)?;
        hooks.identify(command, &mut page);
        let mut to = data.map(command, page.len())?;
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
            temperature_warning: self.features.temperature_warning(),
            powered_on_ms: around.situation.now_ms,
        };
        let page = self.logs.page(wanted.lid, &health);
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
        let before = self.features.temperature_warning();
        let dword = self.features.set(command, &data, around.situation)?;
        if self.features.temperature_warning() && !before {
            self.raise(TEMPERATURE_EVENT);
        }
        Ok(dword)
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
