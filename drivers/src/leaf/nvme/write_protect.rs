//! Namespace write protection (Base 2.0, 8.12). A protected namespace opens read-only; one that is
//! protected while it is open fails its writes as read-only too.

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_nvme::feature::{NAMESPACE_WRITE_PROTECTION, SEL_CURRENT, WriteProtection};

use super::controller::Controller;
use super::identify;

impl Controller {
    /// The write protection of a namespace.
    ///
    /// # Errors
    /// The controller has no write protection, refuses, or fails.
    pub async fn write_protection(&self, core: &Core, nsid: u32) -> Result<WriteProtection, Error> {
        self.check_capable(core, WriteProtection::None).await?;
        let id = NAMESPACE_WRITE_PROTECTION;
        let dword = self.feature(core, id, nsid, SEL_CURRENT, 0, 0).await?.dword0;
        WriteProtection::from_dword(dword).ok_or_else(|| {
            let text = format!("namespace {nsid} has the reserved write protection {}", dword & 7);
            Error::new(ErrorKind::NotSupported, text).context(self.name())
        })
    }

    /// Changes the write protection of a namespace. Nodes that are opened from now on heed it; those
    /// that are open find out by their writes.
    ///
    /// # Errors
    /// The controller does not have this protection, refuses (a permanent protection cannot be
    /// taken off), or fails.
    pub async fn set_write_protection(
        &self,
        core: &Core,
        nsid: u32,
        protection: WriteProtection,
    ) -> Result<(), Error> {
        self.check_capable(core, protection).await?;
        let (id, value) = (NAMESPACE_WRITE_PROTECTION, protection.to_dword());
        self.set_feature(core, id, nsid, value, false, Vec::new()).await?;
        self.rescan(core).await?;
        Ok(())
    }

    /// Refuses what the controller says that it cannot (NWPC).
    async fn check_capable(&self, core: &Core, wanted: WriteProtection) -> Result<(), Error> {
        let page = identify::controller(core, self.admin()).await;
        let nwpc = page.map_err(|error| error.context(self.name()))?.nwpc;
        let (bit, what) = match wanted {
            WriteProtection::None | WriteProtection::Protected => (1, "write protection"),
            WriteProtection::UntilPowerCycle => (2, "write protection until the next power cycle"),
            WriteProtection::Permanent => (4, "permanent write protection"),
        };
        if nwpc & bit != 0 {
            return Ok(());
        }
        let text = format!("{}: the controller has no {what} (NWPC {nwpc:#x})", self.name());
        Err(Error::new(ErrorKind::NotSupported, text))
    }
}
