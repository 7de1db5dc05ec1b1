//! Admin commands for whoever manages a controller: any command with its data, and by name those
//! that management needs. Control plane; they may be asked from any core.

use std::time::Duration;

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_nvme::identify::{ControllerList, Namespace};
use oxblock_nvme::opcode::admin;
use oxblock_nvme::{Command, PAGE_BYTES, Status};
use zerocopy::IntoBytes;

use super::controller::Controller;
use super::status;

/// What erases may take before the controller counts as failed.
const ERASE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Most bytes of a log page or a feature that are read.
const READ_MAX: usize = 1 << 20;
/// Commands that the driver gives itself, since its queues hang on them.
const OF_THE_DRIVER: [u8; 6] = [
    admin::DELETE_SQ,
    admin::CREATE_SQ,
    admin::DELETE_CQ,
    admin::CREATE_CQ,
    admin::ASYNC_EVENT,
    admin::DOORBELL_BUFFER_CONFIG,
];

/// The data of an admin command, at most 4096 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminData {
    /// None.
    None,
    /// This many bytes come from the controller.
    FromController(usize),
    /// These go to it.
    ToController(Vec<u8>),
}

/// What a controller said to an admin command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminReply {
    /// Success or not.
    pub status: Status,
    /// Dword 0 of the completion.
    pub dword0: u32,
    /// What came from the controller; empty if the command has no such data, or failed.
    pub data: Vec<u8>,
}

impl AdminReply {
    /// The reply, if it is no refusal.
    ///
    /// # Errors
    /// `what` was refused, with the status in words.
    pub fn success(self, what: &str) -> Result<AdminReply, Error> {
        if self.status.is_success() {
            return Ok(self);
        }
        Err(status::error(what, self.status))
    }
}

/// A new namespace. Sizes are logical blocks of its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewNamespace {
    /// Namespace Size.
    pub nsze: u64,
    /// Namespace Capacity; less than the size where it is thinly provisioned.
    pub ncap: u64,
    /// Index of the LBA format, and in bit 4 whether metadata is inline.
    pub flbas: u8,
    /// End-to-end Data Protection Type Settings.
    pub dps: u8,
    /// Bit 0: several controllers may attach it.
    pub nmic: u8,
    /// Command Set Identifier.
    pub csi: u8,
}

impl Controller {
    /// Carries out an admin command, whatever its status. `timeout` is how long it may take before
    /// the controller counts as failed; `None` is the time of
    /// [`NvmeOptions`](super::NvmeOptions).
    ///
    /// # Errors
    /// The controller failed, is gone, or did not answer in time; or the command belongs to the
    /// driver (queues, asynchronous events, shadow doorbells), or has more data than 4096 bytes.
    pub async fn admin_command(
        &self,
        core: &Core,
        command: Command,
        data: AdminData,
        timeout: Option<Duration>,
    ) -> Result<AdminReply, Error> {
        let named = |error: Error| error.context(self.name());
        if OF_THE_DRIVER.contains(&command.opcode()) {
            let text = format!(
                "admin command {:02x}h is the driver's own: its queues hang on it",
                command.opcode()
            );
            return Err(named(Error::new(ErrorKind::Denied, text)));
        }
        self.settled(core).await.map_err(named)?;
        let (buf, iova, len) = data.into_buf(core).map_err(named)?;
        let command = if len == 0 { command } else { command.with_prp(iova, 0) };
        let timeout = timeout.unwrap_or(self.admin().timeout());
        let done = self.admin().execute_within(core, command, buf, timeout).await.map_err(named)?;
        let status = done.completion.status();
        let mut data = Vec::new();
        if let Some(buf) = done.buf
            && status.is_success()
        {
            data.resize(len, 0);
            buf.read_at(0, &mut data);
        }
        Ok(AdminReply { status, dword0: done.completion.dw0(), data })
    }

    /// An identify page: 4096 bytes.
    ///
    /// # Errors
    /// The controller refuses or fails.
    pub async fn identify(
        &self,
        core: &Core,
        cns: u8,
        nsid: u32,
        csi: u8,
    ) -> Result<Vec<u8>, Error> {
        let command = Command::identify(cns, nsid, csi);
        let what = format!("identify (CNS {cns:02x}h)");
        Ok(self.read(core, command, PAGE_BYTES, &what).await?.data)
    }

    /// The first `len` bytes of a log page, read in pieces that every controller takes. The event
    /// that belongs to it is kept.
    ///
    /// # Errors
    /// The controller refuses or fails; `len` is no multiple of 4, or beyond 1 MiB.
    pub async fn log_page(
        &self,
        core: &Core,
        lid: u8,
        nsid: u32,
        len: usize,
    ) -> Result<Vec<u8>, Error> {
        let what = format!("log page {lid:02x}h");
        if !len.is_multiple_of(4) || len > READ_MAX {
            let text = format!("{what}: a length of {len} bytes; take a multiple of 4 up to 1 MiB");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let mut page = Vec::with_capacity(len);
        while page.len() < len {
            let piece = (len - page.len()).min(PAGE_BYTES);
            let command = Command::log_page(lid, nsid, piece as u32, page.len() as u64, true);
            page.extend(self.read(core, command, piece, &what).await?.data);
        }
        Ok(page)
    }

    /// A feature: dword 0 of the completion, and `len` bytes of data where it has some. `select`
    /// says which of its values, `cdw11` what some features want to know.
    ///
    /// # Errors
    /// The controller refuses or fails.
    pub async fn feature(
        &self,
        core: &Core,
        fid: u8,
        nsid: u32,
        select: u8,
        cdw11: u32,
        len: usize,
    ) -> Result<AdminReply, Error> {
        let command = Command::get_features(fid, nsid, select);
        let command = command.with_cdw10_11(command.cdw10(), cdw11);
        self.read(core, command, len, &format!("feature {fid:02x}h")).await
    }

    /// Sets a feature to the value of dword 11, with `data` where it has some; `save` keeps it over
    /// resets. Dword 0 of the completion.
    ///
    /// # Errors
    /// The controller refuses or fails.
    pub async fn set_feature(
        &self,
        core: &Core,
        fid: u8,
        nsid: u32,
        value: u32,
        save: bool,
        data: Vec<u8>,
    ) -> Result<u32, Error> {
        let command = Command::set_features(fid, nsid, value);
        let command = command.with_cdw10_11(command.cdw10() | u32::from(save) << 31, value);
        self.write(core, command, data, None, &format!("set feature {fid:02x}h")).await
    }

    /// Format NVM: an LBA format and the Secure Erase Settings (0 none, 1 user data, 2
    /// cryptographic). All data is gone. I/O of nodes over the namespace waits meanwhile; they go on
    /// where its blocks stay the same, else they fail and must be made anew.
    ///
    /// # Errors
    /// The controller refuses or fails.
    pub async fn format(
        &self,
        core: &Core,
        nsid: u32,
        lba_format: u8,
        ses: u8,
    ) -> Result<(), Error> {
        let command = Command::format_nvm(nsid, lba_format, ses);
        let nodes = self.namespaces_known().nodes();
        for node in &nodes {
            core.hold(node).await?;
        }
        let outcome = self.write(core, command, Vec::new(), Some(ERASE_TIMEOUT), "format").await;
        // Blocks of another size must be known before the first I/O goes on.
        let outcome = match outcome {
            Ok(_) => self.rescan_some(core, None).await,
            Err(error) => Err(error),
        };
        for node in &nodes {
            core.resume(node).await?;
        }
        outcome
    }

    /// Creates a namespace, which is attached to no controller yet; its ID.
    ///
    /// # Errors
    /// The controller refuses or fails.
    pub async fn create_namespace(&self, core: &Core, new: NewNamespace) -> Result<u32, Error> {
        let mut page = Namespace::boxed();
        page.nsze = new.nsze.into();
        page.ncap = new.ncap.into();
        (page.flbas, page.dps, page.nmic) = (new.flbas, new.dps, new.nmic);
        let data = page.as_bytes().to_vec();
        let command = Command::create_namespace(new.csi);
        self.write(core, command, data, Some(ERASE_TIMEOUT), "create namespace").await
    }

    /// Deletes a namespace, with all its data.
    ///
    /// # Errors
    /// The controller refuses or fails.
    pub async fn delete_namespace(&self, core: &Core, nsid: u32) -> Result<(), Error> {
        let command = Command::delete_namespace(nsid);
        let what = "delete namespace";
        self.write(core, command, Vec::new(), Some(ERASE_TIMEOUT), what).await.map(drop)
    }

    /// Attaches a namespace to controllers.
    ///
    /// # Errors
    /// The controller refuses or fails.
    pub async fn attach_namespace(
        &self,
        core: &Core,
        nsid: u32,
        controllers: &[u16],
    ) -> Result<(), Error> {
        let data = ControllerList::of(controllers).as_bytes().to_vec();
        let command = Command::attach_namespace(nsid);
        self.write(core, command, data, None, "attach namespace").await.map(drop)
    }

    /// Detaches a namespace from controllers.
    ///
    /// # Errors
    /// The controller refuses or fails.
    pub async fn detach_namespace(
        &self,
        core: &Core,
        nsid: u32,
        controllers: &[u16],
    ) -> Result<(), Error> {
        let data = ControllerList::of(controllers).as_bytes().to_vec();
        let command = Command::detach_namespace(nsid);
        self.write(core, command, data, None, "detach namespace").await.map(drop)
    }

    /// Starts a sanitize, or leaves the failure mode: dword 10 as in [`oxblock_nvme::sanitize`],
    /// and the pattern of an overwrite. It goes on in the background; its log page tells how far.
    ///
    /// # Errors
    /// The controller refuses or fails.
    pub async fn sanitize(&self, core: &Core, cdw10: u32, pattern: u32) -> Result<(), Error> {
        let command = Command::sanitize(cdw10, pattern);
        self.write(core, command, Vec::new(), None, "sanitize").await.map(drop)
    }

    /// Sends a piece of a firmware image, which begins `offset` bytes into it.
    ///
    /// # Errors
    /// The controller refuses or fails; the piece is empty, beyond 4096 bytes, or no multiple of 4.
    pub async fn firmware_download(
        &self,
        core: &Core,
        piece: &[u8],
        offset: u32,
    ) -> Result<(), Error> {
        let what = "firmware download";
        if piece.is_empty() || !piece.len().is_multiple_of(4) || !offset.is_multiple_of(4) {
            let text = format!("{what}: {} bytes at {offset}; take multiples of 4", piece.len());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let command = Command::firmware_download(piece.len() as u32, offset);
        self.write(core, command, piece.to_vec(), None, what).await.map(drop)
    }

    /// Commits a firmware image: a slot (0 lets the controller choose) and an action as in
    /// [`oxblock_nvme::firmware`]. The reply may say, as its status, that a reset is needed.
    ///
    /// # Errors
    /// The controller fails. What it refuses is in the reply.
    pub async fn firmware_commit(
        &self,
        core: &Core,
        slot: u8,
        action: u8,
    ) -> Result<AdminReply, Error> {
        self.admin_command(core, Command::firmware_commit(slot, action), AdminData::None, None)
            .await
    }

    async fn read(
        &self,
        core: &Core,
        command: Command,
        len: usize,
        what: &str,
    ) -> Result<AdminReply, Error> {
        let data = AdminData::FromController(len);
        let reply = self.admin_command(core, command, data, None).await?;
        reply.success(what).map_err(|error| error.context(self.name()))
    }

    async fn write(
        &self,
        core: &Core,
        command: Command,
        data: Vec<u8>,
        timeout: Option<Duration>,
        what: &str,
    ) -> Result<u32, Error> {
        let data = if data.is_empty() { AdminData::None } else { AdminData::ToController(data) };
        let reply = self.admin_command(core, command, data, timeout).await?;
        let reply = reply.success(what).map_err(|error| error.context(self.name()))?;
        Ok(reply.dword0)
    }
}

impl AdminData {
    /// A page of the arena that holds the data, its IOVA, and how much of it is for the caller or
    /// from it.
    fn into_buf(self, core: &Core) -> Result<(Option<oxblock_mem::Buf>, u64, usize), Error> {
        let len = match &self {
            AdminData::None => 0,
            AdminData::FromController(len) => *len,
            AdminData::ToController(bytes) => bytes.len(),
        };
        if len == 0 {
            return Ok((None, 0, 0));
        }
        if len > PAGE_BYTES {
            let text = format!("{len} bytes of data; an admin command here takes 4096 at most");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let mut buf = core.arena().alloc(PAGE_BYTES, PAGE_BYTES)?;
        let Some(iova) = buf.iova() else {
            let text = "the arena has no DMA address for this controller; attach it first";
            return Err(Error::new(ErrorKind::Invalid, text));
        };
        if let AdminData::ToController(bytes) = &self {
            buf.write_at(0, bytes);
        }
        Ok((Some(buf), iova, len))
    }
}
