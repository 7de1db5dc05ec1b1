//! Reading data structures with admin commands.

use std::sync::Arc;

use oxblock_engine::{Core, Error, ErrorKind};
use oxblock_mem::Buf;
use oxblock_nvme::identify::{
    CNS_ACTIVE_LIST, CNS_COMMAND_SETS, CNS_CONTROLLER, CNS_CONTROLLER_CSI, CNS_DESCRIPTORS,
    CNS_NAMESPACE, CSI_NVM, Controller, ControllerNvm, DescriptorIter, IdList, NIDT_CSI, Namespace,
};
use oxblock_nvme::status::Status;
use oxblock_nvme::{Command, Completion, PAGE_BYTES, feature, regs};
use zerocopy::{FromBytes, IntoBytes};

use super::admin::Admin;
use super::hardware::Hardware;
use super::{Quirks, status};

/// Namespaces that are looked at, at most.
const NAMESPACES_MAX: usize = 4096;

/// Carries out a command that reads up to 4 KiB, and gives the memory it read into.
pub(super) async fn read(
    core: &Core,
    admin: &Arc<Admin>,
    command: Command,
) -> Result<(Completion, Buf), Error> {
    let buf = core.arena().alloc(PAGE_BYTES, PAGE_BYTES)?;
    let Some(iova) = buf.iova() else {
        let text = "the arena has no DMA address for this controller; attach it first";
        return Err(Error::new(ErrorKind::Invalid, text));
    };
    let command = command.with_prp(iova, 0);
    let done = admin.execute(core, command, Some(buf)).await?;
    match done.buf {
        Some(buf) => Ok((done.completion, buf)),
        None => Err(Error::new(ErrorKind::Failed, "an admin buffer was lost")),
    }
}

/// Reads a data structure: it, or the status that the controller gave instead.
async fn structure<T: FromBytes + IntoBytes>(
    core: &Core,
    admin: &Arc<Admin>,
    command: Command,
) -> Result<Result<Box<T>, Status>, Error> {
    let (completion, buf) = read(core, admin, command).await?;
    if !completion.is_success() {
        return Ok(Err(completion.status()));
    }
    let mut page = T::new_box_zeroed()
        .map_err(|_| Error::new(ErrorKind::OutOfMemory, "no memory for an identify page"))?;
    let bytes = page.as_mut_bytes();
    if bytes.len() > buf.len() {
        return Err(Error::new(ErrorKind::Failed, "a data structure above 4 KiB"));
    }
    buf.read_at(0, bytes);
    Ok(Ok(page))
}

/// Identify Controller, checked for what the driver needs.
pub(super) async fn controller(core: &Core, admin: &Arc<Admin>) -> Result<Box<Controller>, Error> {
    let what = "identify controller";
    let command = Command::identify(CNS_CONTROLLER, 0, 0);
    let page: Box<Controller> =
        structure(core, admin, command).await?.map_err(|s| status::error(what, s))?;
    let fits = |field: u8, log2: u8| (field & 0xf) <= log2 && log2 <= (field >> 4);
    if !fits(page.sqes, 6) || !fits(page.cqes, 4) {
        let text = format!(
            "{what}: queue entries of 64 and 16 bytes are not supported (SQES {:#x}, CQES {:#x})",
            page.sqes, page.cqes
        );
        return Err(Error::new(ErrorKind::NotSupported, text));
    }
    if page.cntrltype > 1 {
        let text = format!(
            "{what}: this is a discovery or administrative controller (CNTRLTYPE {}), it has no \
             namespaces to do I/O on",
            page.cntrltype
        );
        return Err(Error::new(ErrorKind::NotSupported, text));
    }
    Ok(page)
}

/// Size limits of the NVM command set; all unreported for a controller that has none. The second
/// value says whether it has.
pub(super) async fn controller_nvm(
    core: &Core,
    admin: &Arc<Admin>,
    hardware: &Hardware,
) -> Result<(Box<ControllerNvm>, bool), Error> {
    let is_basic = hardware.quirks().contains(Quirks::IDENTIFY_BASIC);
    let is_new = hardware.version() >= regs::version(2, 0, 0) || hardware.cap().css_io();
    if is_new && !is_basic {
        let command = Command::identify(CNS_CONTROLLER_CSI, 0, CSI_NVM);
        if let Ok(page) = structure(core, admin, command).await? {
            return Ok((page, true));
        }
    }
    Ok((ControllerNvm::boxed(), false))
}

/// With several I/O command sets: selects a combination that has the NVM command set.
pub(super) async fn select_nvm(core: &Core, admin: &Arc<Admin>) -> Result<(), Error> {
    let what = "identify I/O command sets";
    // The controller whose identifier is FFFFh is the one that is asked.
    let command = Command::identify(CNS_COMMAND_SETS, 0, 0)
        .with_cdw10_11(u32::from(CNS_COMMAND_SETS) | 0xffff << 16, 0);
    let sets: Box<[[u8; 8]; 512]> =
        structure(core, admin, command).await?.map_err(|s| status::error(what, s))?;
    let mut vectors = sets.iter().map(|vector| u64::from_le_bytes(*vector));
    let Some(index) = vectors.position(|vector| vector & (1 << CSI_NVM) != 0) else {
        let text = format!("{what}: the controller has no NVM command set");
        return Err(Error::new(ErrorKind::NotSupported, text));
    };
    if index == 0 {
        return Ok(());
    }
    let command = Command::set_features(feature::IO_COMMAND_SET_PROFILE, 0, index as u32);
    let done = admin.execute(core, command, None).await?;
    if done.completion.is_success() {
        return Ok(());
    }
    let what = "selecting the NVM command set";
    Err(status::error(what, done.completion.status()))
}

/// The IDs of the active namespaces, ascending.
pub(super) async fn namespace_ids(
    core: &Core,
    admin: &Arc<Admin>,
    page: &Controller,
    hardware: &Hardware,
) -> Result<Vec<u32>, Error> {
    let is_basic = hardware.quirks().contains(Quirks::IDENTIFY_BASIC);
    if is_basic || hardware.version() < regs::version(1, 1, 0) {
        return Ok((1..=page.nn.get().min(NAMESPACES_MAX as u32)).collect());
    }
    let mut ids = Vec::new();
    loop {
        let after = ids.last().copied().unwrap_or(0);
        let command = Command::identify(CNS_ACTIVE_LIST, after, 0);
        let list: Box<IdList> = structure(core, admin, command)
            .await?
            .map_err(|s| status::error("identify active namespaces", s))?;
        let before = ids.len();
        for id in list.iter() {
            // Ascending, or the list would never end.
            let last = ids.last().copied().unwrap_or(0);
            if id <= last || id > 0xffff_fffe || ids.len() == NAMESPACES_MAX {
                return Ok(ids);
            }
            ids.push(id);
        }
        if ids.len() - before < list.ids.len() {
            return Ok(ids);
        }
    }
}

/// The command set of a namespace; the NVM command set where the controller does not say.
pub(super) async fn command_set(
    core: &Core,
    admin: &Arc<Admin>,
    hardware: &Hardware,
    nsid: u32,
) -> Result<u8, Error> {
    let broken = Quirks::IDENTIFY_BASIC | Quirks::NO_DESCRIPTORS;
    if !hardware.cap().css_io() || hardware.quirks().intersects(broken) {
        return Ok(CSI_NVM);
    }
    let command = Command::identify(CNS_DESCRIPTORS, nsid, 0);
    let Ok(list) = structure::<[u8; PAGE_BYTES]>(core, admin, command).await? else {
        return Ok(CSI_NVM);
    };
    let csi = DescriptorIter::new(&list[..]).find(|descriptor| descriptor.nidt == NIDT_CSI);
    Ok(csi.and_then(|descriptor| descriptor.nid.first().copied()).unwrap_or(CSI_NVM))
}

/// Identify Namespace.
pub(super) async fn namespace(
    core: &Core,
    admin: &Arc<Admin>,
    nsid: u32,
) -> Result<Result<Box<Namespace>, Status>, Error> {
    structure(core, admin, Command::identify(CNS_NAMESPACE, nsid, 0)).await
}
