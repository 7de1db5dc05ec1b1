//! Giving functions to vfio-pci, and back to the kernel.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Uid, chown};

use super::function::{folder, is_vfio};
use super::state::State;
use super::{HostFunction, Root};
use crate::{Address, PciError, PciErrorKind};

/// The driver that functions are given to.
const VFIO_PCI: &str = "vfio-pci";
/// How long a driver may take to let go, or to take over.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// How a function is taken.
#[derive(Clone, Debug, Default)]
pub struct BindOptions {
    /// Take it also if somebody uses it, or that cannot be known: their data may be lost.
    pub force: bool,
    /// Who may open its group, and so the function, without root.
    pub owner: Option<Owner>,
}

/// A user, and perhaps a group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group; none leaves it as it is.
    pub gid: Option<u32>,
}

impl Owner {
    /// Reads a user's name or number, as in `/etc/passwd` under the root.
    ///
    /// # Errors
    /// There is no such user.
    pub fn parse(root: &Root, user: &str) -> Result<Owner, PciError> {
        if let Ok(uid) = user.parse() {
            return Ok(Owner { uid, gid: None });
        }
        let users = root.text("etc/passwd").unwrap_or_default();
        let found = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, uid, gid) = (fields.next()?, fields.nth(1)?, fields.next()?);
            let owner = || Some(Owner { uid: uid.parse().ok()?, gid: gid.parse().ok() });
            (name == user).then(owner)?
        });
        found.ok_or_else(|| {
            let text = format!("there is no user `{user}` in /etc/passwd; give a name or a number");
            PciError::new(PciErrorKind::NotFound, text)
        })
    }
}

/// Gives a function to vfio-pci, after noting whose it was. One that VFIO has already stays so.
/// Returns what it is then.
///
/// # Errors
/// In words that say what to do: it is in use, there is no IOMMU, vfio-pci is not loaded, the
/// kernel refuses. The function is with its old driver then, if that takes it back.
pub fn bind(
    root: &Root,
    address: Address,
    options: &BindOptions,
) -> Result<HostFunction, PciError> {
    let before = HostFunction::at(root, address)?;
    if !before.is_bound() {
        check_bindable(root, &before, options)?;
        let path = format!("{}/driver_override", folder(address));
        let driver_override = root.text(&path).filter(|text| text != "(null)" && text != VFIO_PCI);
        // A process that was killed right here left a note: the first is the one that counts.
        State { driver: before.driver.clone(), driver_override }.keep(root, address)?;
        if let Err(error) = hand_over(root, &before) {
            let _ = give_back(root, address);
            return Err(error);
        }
    }
    let after = HostFunction::at(root, address)?;
    if let Some(owner) = options.owner {
        give_group(root, &after, owner)?;
    }
    Ok(after)
}

/// Gives a function back to the driver that it was taken from, also in another process, or after
/// one that was killed halfway. One that the kernel drives stays as it is. Returns what it is then.
///
/// # Errors
/// It is in use and not forced, no driver took it, or the kernel refuses.
pub fn unbind(root: &Root, address: Address, force: bool) -> Result<HostFunction, PciError> {
    let before = HostFunction::at(root, address)?;
    if before.is_bound() {
        // The kernel waits until they let go, and so would we.
        check_unused(&before, force)?;
    } else if before.driver.is_some() {
        State::forget(root, address);
        return Ok(before);
    }
    give_back(root, address)?;
    HostFunction::at(root, address)
}

fn check_bindable(
    root: &Root,
    function: &HostFunction,
    options: &BindOptions,
) -> Result<(), PciError> {
    let address = function.address;
    if !function.is_nvme() && !options.force {
        let text = format!(
            "{address} is no NVMe controller (class {:06x}), so whether it is in use is not known; \
             --force takes it all the same",
            function.class
        );
        return Err(PciError::new(PciErrorKind::Busy, text));
    }
    check_unused(function, options.force)?;
    if !root.exists(&format!("sys/bus/pci/drivers/{VFIO_PCI}")) {
        let lockdown = root.text("sys/kernel/security/lockdown").unwrap_or_default();
        let more = match lockdown.contains("[none]") || lockdown.is_empty() {
            true => "",
            false => " (this kernel is locked down and loads signed modules only)",
        };
        let text = format!("{address}: vfio-pci is not loaded; run: sudo modprobe vfio-pci{more}");
        return Err(PciError::new(PciErrorKind::NotSupported, text));
    }
    let unsafe_mode = root.text("sys/module/vfio/parameters/enable_unsafe_noiommu_mode");
    if function.group.is_none() && unsafe_mode.is_none_or(|mode| mode != "Y") {
        let text = format!(
            "{address} is in no IOMMU group: the kernel drives no IOMMU, and without one vfio-pci \
             takes no function; turn it on in the firmware (VT-d, AMD-Vi) and on the kernel's \
             command line (intel_iommu=on)"
        );
        return Err(PciError::new(PciErrorKind::NotSupported, text));
    }
    Ok(())
}

fn check_unused(function: &HostFunction, force: bool) -> Result<(), PciError> {
    if function.held_by.is_empty() || force {
        return Ok(());
    }
    let text = format!(
        "{} is in use: {}; end that first (--force takes it all the same, and their data may be \
         lost)",
        function.address,
        function.held_by.join(", ")
    );
    Err(PciError::new(PciErrorKind::Busy, text))
}

fn hand_over(root: &Root, function: &HostFunction) -> Result<(), PciError> {
    let address = function.address;
    let folder = folder(address);
    write(root, &format!("{folder}/driver_override"), VFIO_PCI)?;
    if function.driver.is_some() {
        write(root, &format!("{folder}/driver/unbind"), &address.to_string())?;
        wait(root, &folder, |driver| driver.is_none());
    }
    write(root, "sys/bus/pci/drivers_probe", &address.to_string())?;
    match wait(root, &folder, |driver| driver.is_some_and(is_vfio)) {
        true => Ok(()),
        false => {
            let text = format!("{address}: vfio-pci did not take it; dmesg says why");
            Err(PciError::new(PciErrorKind::Io, text))
        }
    }
}

/// Clears what `bind` set, and lets the drivers that know the function take it; then the one that
/// had it, if none did.
fn give_back(root: &Root, address: Address) -> Result<(), PciError> {
    let folder = folder(address);
    let note = State::read(root, address);
    let driver_override = note.as_ref().and_then(|note| note.driver_override.as_deref());
    write(root, &format!("{folder}/driver_override"), driver_override.unwrap_or("\n"))?;
    if root.link_name(&format!("{folder}/driver")).is_some_and(|driver| is_vfio(&driver)) {
        write(root, &format!("{folder}/driver/unbind"), &address.to_string())?;
        wait(root, &folder, |driver| driver.is_none());
    }
    // Had by nobody before: by nobody again.
    if note.as_ref().is_some_and(|note| note.driver.is_none()) {
        State::forget(root, address);
        return Ok(());
    }
    write(root, "sys/bus/pci/drivers_probe", &address.to_string())?;
    let driver = note.and_then(|note| note.driver);
    if !wait(root, &folder, |driver| driver.is_some_and(|driver| !is_vfio(driver))) {
        let Some(driver) = driver else { return Err(no_taker(address, "the driver it had")) };
        let path = format!("sys/bus/pci/drivers/{driver}/bind");
        if !root.exists(&path) {
            return Err(no_taker(address, &driver));
        }
        write(root, &path, &address.to_string())?;
    }
    State::forget(root, address);
    Ok(())
}

fn no_taker(address: Address, driver: &str) -> PciError {
    let text = format!(
        "{address}: no driver took it; load {driver} (modprobe) and run oxblock pci unbind again"
    );
    PciError::new(PciErrorKind::NotFound, text)
}

/// Lets a user open the files of a function.
fn give_group(root: &Root, function: &HostFunction, owner: Owner) -> Result<(), PciError> {
    let Some(path) = function.group_path() else {
        return Ok(());
    };
    let folder = format!("{}/vfio-dev", folder(function.address));
    let nodes = root.names(&folder).into_iter().map(|node| format!("dev/vfio/devices/{node}"));
    // Nodes of devices exist on kernels with an iommufd only.
    for path in std::iter::once(path).chain(nodes.filter(|node| root.exists(node))) {
        let (uid, gid) = (Uid::from_raw(owner.uid), owner.gid.map(Gid::from_raw));
        chown(root.path(&path), Some(uid), gid).map_err(|error| {
            PciError::io(format!("giving /{path} to user {}", owner.uid), error.into())
        })?;
    }
    Ok(())
}

/// Waits until the driver of a function is as it should be; false if it is not in time.
fn wait(root: &Root, folder: &str, is_good: impl Fn(Option<&str>) -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if is_good(root.link_name(&format!("{folder}/driver")).as_deref()) {
            return true;
        }
        if begun.elapsed() > DRIVER_TIMEOUT {
            return false;
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

fn write(root: &Root, path: &str, text: &str) -> Result<(), PciError> {
    root.write(path, text).map_err(|error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "; run as root",
            io::ErrorKind::ReadOnlyFilesystem => "; /sys is read-only, as in most containers",
            _ => "",
        };
        PciError::io(format!("writing `{}` to /{path}{hint}", text.trim()), error)
    })
}
