//! Features that reach beyond a table of values: write protection of namespaces, and what becomes
//! of others that have just been set.

use oxblock_engine::Core;
use oxblock_nvme::feature::{self, WriteProtection};
use oxblock_nvme::opcode::admin;
use oxblock_nvme::{Command, Status};

use super::features;
use crate::hooks::Hooks;
use crate::service::Service;

impl<H: Hooks> Service<H> {
    /// Namespace Write Protection Config (Base 2.0, 5.27.1.28): dword 0 of the completion.
    pub(super) fn write_protection(&mut self, command: &Command) -> Result<u32, Status> {
        let nsid = command.nsid();
        let known = self.inventory.active(nsid).map(|geometry| geometry.protection);
        let now = known.ok_or(match self.inventory.is_valid(nsid) {
            true => Status::INVALID_FIELD,
            false => Status::INVALID_NAMESPACE,
        })?;
        if command.opcode() == admin::GET_FEATURES {
            return match (command.cdw10() >> 8 & 7) as u8 {
                feature::SEL_CURRENT => Ok(now.to_dword()),
                feature::SEL_DEFAULT | feature::SEL_SAVED => Ok(WriteProtection::None.to_dword()),
                feature::SEL_SUPPORTED => Ok(features::supported(command.cdw10() as u8)),
                _ => Err(Status::INVALID_FIELD),
            };
        }
        if command.cdw10() & features::SAVE != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        let wanted = WriteProtection::from_dword(command.cdw11()).ok_or(Status::INVALID_FIELD)?;
        if matches!(now, WriteProtection::UntilPowerCycle | WriteProtection::Permanent) {
            return Err(Status::FEATURE_NOT_CHANGEABLE);
        }
        self.inventory.protect(nsid, wanted);
        Ok(0)
    }

    /// Acts on what an admin command has just changed.
    pub(super) fn settle_features(&mut self, command: &Command, core: &Core) {
        let features = &self.admin.features;
        self.rules.write_cache = features.write_cache();
        self.coalescing = features.coalescing();
        let sets = command.opcode() == admin::SET_FEATURES;
        if sets && command.cdw10() as u8 == feature::KEEP_ALIVE_TIMER {
            self.keep_alive(core);
        }
        if self.admin.take_activated() && self.firmware_pause_ns > 0 {
            self.pause(core.pass_now().saturating_add(self.firmware_pause_ns));
        }
        self.watch_time();
    }
}
