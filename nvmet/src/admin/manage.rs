//! Format NVM, Namespace Management, Namespace Attachment and Sanitize: what is asked is checked
//! here; what takes time is done in [`maintenance`](crate::maintenance).

use oxblock_engine::Core;
use oxblock_nvme::identify::{CSI_NVM, ControllerList, Namespace};
use oxblock_nvme::{Command, NSID_ALL, Status};
use zerocopy::FromBytes;

use super::identify::CONTROLLER_ID;
use super::queues::{AdminData, Outcome};
use super::sanitize::Asked;
use crate::data::DataPath;
use crate::erase::{How, PATTERN};
use crate::hooks::Hooks;
use crate::inventory::{Busy, named};
use crate::maintenance::{Task, What};
use crate::protection::Layout;
use crate::queue::Tag;
use crate::service::Service;

/// Format NVM, dword 10: Secure Erase Settings, and Protection Information.
const SES: u32 = 7 << 9;
const SES_USER_DATA: u32 = 1 << 9;
const PROTECTION: u32 = 7 << 5;
const PROTECTION_FIRST: u32 = 1 << 8;
/// Metadata Settings: metadata follows the data of its block.
const EXTENDED: u32 = 1 << 4;

/// Namespace Management and Attachment, dword 10: what to do.
const SELECT: u32 = 0xf;

impl<H: Hooks> Service<H> {
    /// Format NVM (Base 2.0, 5.14). Without a secure erase blocks are deallocated; with one they
    /// become zeroes. The command completes when that is done.
    pub(super) fn format(&mut self, tag: Tag, command: &Command) -> Result<Outcome, Status> {
        let dword = command.cdw10();
        let index = (dword & 0xf) as u8 | ((dword >> 12 & 3) as u8) << 4;
        let how = match dword & SES {
            0 => How::Deallocate,
            SES_USER_DATA => How::Zeroes { may_unmap: true },
            // Nothing is encrypted here.
            _ => return Err(Status::INVALID_FIELD),
        };
        let layout = Layout {
            kind: ((dword & PROTECTION) >> 5) as u8,
            first: dword & PROTECTION_FIRST != 0,
            extended: dword & EXTENDED != 0,
        };
        let nsids = self.writable(command.nsid(), true)?;
        let of = |nsid: &u32| self.inventory.active(*nsid);
        if nsids.iter().filter_map(of).any(|g| {
            let plain = !g.has_metadata(index);
            g.format(index).is_none() || layout.kind > 3 || plain && layout.kind != 0
        }) {
            return Err(Status::INVALID_FORMAT);
        }
        self.begin_task(Task::of_command(tag, nsids, What::Format { index, how, layout }));
        Ok(Outcome::Held)
    }

    /// Namespace Management (Base 2.0, 5.23).
    pub(super) fn manage(&mut self, tag: Tag, command: &Command) -> Result<Outcome, Status> {
        match command.cdw10() & SELECT {
            0 => self.create_namespace(command).map(Outcome::Done),
            1 => {
                let nsids = self.writable(command.nsid(), false)?;
                self.begin_task(Task::of_command(tag, nsids, What::Delete));
                Ok(Outcome::Held)
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// The number of the new namespace.
    fn create_namespace(&mut self, command: &Command) -> Result<u32, Status> {
        if (command.cdw11() >> 24) as u8 != CSI_NVM {
            return Err(Status::COMMAND_SET_NOT_SUPPORTED);
        }
        if command.nsid() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let page: Box<Namespace> = self.host_structure(command)?;
        let (size, capacity) = (page.nsze.get(), page.ncap.get());
        if size == 0 || capacity > size || page.nmic != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if capacity < size {
            return Err(Status::THIN_PROVISIONING_NOT_SUPPORTED);
        }
        // Metadata inline, which bit 4 asks for, makes no difference where there is none.
        if page.dps & 7 != 0 || page.flbas & 0x60 != 0 {
            return Err(Status::INVALID_FORMAT);
        }
        self.inventory.create(size, page.flbas & 0xf)
    }

    /// Namespace Attachment (Base 2.0, 5.22).
    pub(super) fn attachment(&mut self, tag: Tag, command: &Command) -> Result<Outcome, Status> {
        let (nsid, select) = (command.nsid(), command.cdw10() & SELECT);
        if select > 1 {
            return Err(Status::INVALID_FIELD);
        }
        if !self.inventory.is_valid(nsid) {
            return Err(Status::INVALID_NAMESPACE);
        }
        if self.inventory.allocated(nsid).is_none() {
            return Err(Status::INVALID_FIELD);
        }
        let list: Box<ControllerList> = self.host_structure(command)?;
        let ids = list.ids().ok_or(Status::CONTROLLER_LIST_INVALID)?;
        // There is one controller, and a list names each once.
        if !ids.eq([CONTROLLER_ID]) {
            return Err(Status::CONTROLLER_LIST_INVALID);
        }
        self.not_busy(nsid)?;
        let is_attached = self.inventory.active(nsid).is_some();
        match (select, is_attached) {
            (0, true) => Err(Status::NAMESPACE_ALREADY_ATTACHED),
            (0, false) => {
                self.inventory.set_attached(nsid, true);
                self.tell_changed(nsid);
                Ok(Outcome::Done(0))
            }
            (_, false) => Err(Status::NAMESPACE_NOT_ATTACHED),
            (_, true) => {
                self.begin_task(Task::of_command(tag, vec![nsid], What::Detach));
                Ok(Outcome::Held)
            }
        }
    }

    /// Sanitize (Base 2.0, 5.24): completes when it has begun.
    pub(super) fn sanitize(&mut self, command: &Command, core: &Core) -> Result<u32, Status> {
        let (how, passes) = match self.admin.sanitize.decode(command)? {
            Asked::Exit => {
                self.admin.sanitize.exit();
                self.inventory.set_closed(self.admin.sanitize.closed());
                return Ok(0);
            }
            Asked::Erase(how, passes) => (how, passes),
        };
        if self.inventory.has_read_only() {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        if self.inventory.is_formatting() {
            return Err(Status::FORMAT_IN_PROGRESS);
        }
        if self.shared.registers.memory_control().pmr_enabled {
            return Err(Status::SANITIZE_PROHIBITED);
        }
        let memory = match how {
            How::Pattern { .. } => Some(core.arena().alloc(PATTERN, 4096)),
            _ => None,
        };
        let memory = memory.transpose().map_err(|_| Status::INTERNAL_ERROR)?;
        self.admin.sanitize.begin(command.cdw10());
        self.inventory.set_closed(self.admin.sanitize.closed());
        let what = What::Sanitize { how, passes };
        self.begin_task(Task { owner: None, nsids: Vec::new(), what, memory });
        Ok(0)
    }

    /// The namespaces that NSID names, none of which is busy or write protected.
    fn writable(&self, nsid: u32, attached: bool) -> Result<Vec<u32>, Status> {
        if nsid != NSID_ALL && !self.inventory.is_valid(nsid) {
            return Err(Status::INVALID_NAMESPACE);
        }
        let nsids = match attached {
            true => named(nsid, self.inventory.all_active()),
            false => named(nsid, self.inventory.all_allocated()),
        };
        for &nsid in &nsids {
            let geometry = match attached {
                true => self.inventory.active(nsid),
                false => self.inventory.allocated(nsid),
            };
            geometry.ok_or(Status::INVALID_FIELD)?.writable()?;
            self.not_busy(nsid)?;
        }
        Ok(nsids)
    }

    fn not_busy(&self, nsid: u32) -> Result<(), Status> {
        match self.inventory.busy(nsid) {
            None => Ok(()),
            Some(Busy::Formatting(_)) => Err(Status::FORMAT_IN_PROGRESS),
            Some(Busy::Leaving) => Err(Status::INVALID_FIELD),
        }
    }

    /// A data structure that the host sent, in a copy of our own.
    fn host_structure<T: FromBytes>(&mut self, command: &Command) -> Result<Box<T>, Status> {
        let mut bytes = vec![0; size_of::<T>()];
        let from = AdminData(&mut self.memory).map(command, bytes.len())?;
        from.read_at(0, &mut bytes);
        T::read_from_bytes(&bytes).map(Box::new).map_err(|_| Status::INTERNAL_ERROR)
    }
}
