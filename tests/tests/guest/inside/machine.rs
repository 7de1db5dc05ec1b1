//! The guest as tests see it: drivers, disks, pages, programs.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use oxblock_drivers::nvme::{self, NvmeOptions};
use oxblock_engine::{Core, Engine, Error, Options};
use oxblock_mem::{ArenaOptions, PagePolicy};
use oxblock_pci::vfio::{Vfio, VfioFunction};

use super::disks::{CONTROLLERS, Controller};
use super::{Start, plugged};

const HUGEPAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
/// Within this the kernel makes disks of a controller that it was given.
const PATIENCE: Duration = Duration::from_secs(20);

/// Brings the guest into the state that a test starts from.
///
/// Errors: what could not be done.
pub fn prepare(start: &Start) -> Result<(), String> {
    write(HUGEPAGES, &start.hugepages.to_string())?;
    plugged::unplug()?;
    for controller in &CONTROLLERS {
        give(controller.address, start.driver)?;
    }
    Ok(())
}

/// Gives a controller to a driver of the kernel.
///
/// Errors: the driver does not take it.
pub fn give(address: &str, driver: &str) -> Result<(), String> {
    if driver == "vfio-pci" {
        run("modprobe vfio-pci");
        if !has_iommu() {
            write("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "1")?;
        }
    }
    let folder = format!("/sys/bus/pci/devices/{address}");
    if self::driver(address).as_deref() != Some(driver) {
        if self::driver(address).is_some() {
            write(&format!("{folder}/driver/unbind"), address)?;
        }
        let wanted = if driver == "nvme" { "\n" } else { driver };
        write(&format!("{folder}/driver_override"), wanted)?;
        write("/sys/bus/pci/drivers_probe", address)?;
    }
    let found = until(|| {
        let bound = self::driver(address).as_deref() == Some(driver);
        bound && (driver != "nvme" || has_disks(address))
    });
    if has_iommufd() {
        // As on a kernel that has no groups: a device has a node of its own.
        sh("rm -f /dev/vfio/[0-9]*");
    }
    match found {
        true => Ok(()),
        false => {
            Err(format!("{driver} does not take {address}, which {:?} has", self::driver(address)))
        }
    }
}

/// The machine has an IOMMU.
pub fn has_iommu() -> bool {
    !names("/sys/class/iommu").is_empty()
}

fn has_iommufd() -> bool {
    Path::new("/dev/iommu").exists()
}

/// What `oxblock` calls a controller that was handed over.
pub fn function(controller: &Controller) -> String {
    let prefix = if has_iommu() { "" } else { "noiommu:" };
    format!("{prefix}{}", controller.address)
}

/// The pages that the controllers can reach.
pub fn pages() -> PagePolicy {
    if has_iommu() { PagePolicy::Best } else { PagePolicy::Contiguous }
}

/// An engine of so many cores that can drive the controllers.
pub fn engine(cores: usize) -> Engine {
    let arena = ArenaOptions { pages: pages(), ..ArenaOptions::new(8 << 20) };
    let options = Options { arena, ..Options::default() };
    Engine::with_cores(cores, options).unwrap_or_else(|e| panic!("{e}"))
}

/// The driver of a PCI function.
pub fn driver(address: &str) -> Option<String> {
    let link = fs::read_link(format!("/sys/bus/pci/devices/{address}/driver")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// The kernel's block device of a namespace of a controller that the kernel drives.
pub fn disk(controller: &Controller, nsid: u32) -> PathBuf {
    let found = find_disk(controller.address, nsid);
    found.unwrap_or_else(|| panic!("no disk of namespace {nsid} of {}", controller.address))
}

/// The number in a disk's name is not the namespace's: it follows the order of discovery. Where
/// the namespace may be shared, the controller has a path to it, `nvme0c1n2`; the disk is `nvme0n2`.
fn find_disk(address: &str, nsid: u32) -> Option<PathBuf> {
    let folder = format!("/sys/bus/pci/devices/{address}/nvme");
    let folder = format!("{folder}/{}", names(&folder).first()?);
    let of_nsid = |name: &String| {
        let text = fs::read_to_string(format!("{folder}/{name}/nsid"));
        text.is_ok_and(|text| text.trim() == nsid.to_string())
    };
    let name = names(&folder).into_iter().find(of_nsid)?;
    let (instance, number) = name.strip_prefix("nvme")?.split_once('n')?;
    let instance = instance.split('c').next()?;
    let path = PathBuf::from(format!("/dev/nvme{instance}n{number}"));
    path.exists().then_some(path)
}

/// All namespaces but those with metadata, which the kernel may leave alone.
fn has_disks(address: &str) -> bool {
    let Some(controller) = CONTROLLERS.iter().find(|one| one.address == address) else {
        return true;
    };
    let mut plain = controller.namespaces.iter().filter(|one| one.metadata_size == 0);
    plain.all(|one| find_disk(address, one.nsid).is_some())
}

/// Reads bytes of a block device or file.
pub fn read_at(path: &Path, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.seek(SeekFrom::Start(offset)).expect("a seek");
    file.read_exact(&mut bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes
}

/// Writes bytes to a block device or file, and flushes them.
pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).expect("a disk");
    file.seek(SeekFrom::Start(offset)).expect("a seek");
    file.write_all(bytes).and_then(|()| file.sync_all()).expect("a write");
}

/// Attaches our driver to a controller that was handed over.
pub async fn attach(core: &Core, controller: &Controller) -> Arc<nvme::Controller> {
    attach_with(core, controller, NvmeOptions::default()).await.unwrap_or_else(|e| panic!("{e}"))
}

/// The same with options of its own, where it may fail.
pub async fn attach_with(
    core: &Core,
    controller: &Controller,
    options: NvmeOptions,
) -> Result<Arc<nvme::Controller>, Error> {
    nvme::Controller::attach(core, function_of(controller), options).await
}

/// The function of a controller that was handed over, opened.
pub fn function_of(controller: &Controller) -> Arc<VfioFunction> {
    let address = controller.address.parse().expect("an address");
    let function = match has_iommu() {
        true => Vfio::new().open(address),
        false => Vfio::new().open_without_iommu(address),
    };
    function.unwrap_or_else(|e| panic!("{e}"))
}

/// The output of `oxblock` with these words.
pub fn oxblock(words: &[&str]) -> Said {
    let output = Command::new("/bin/oxblock").args(words).output().expect("oxblock runs");
    Said::new(format!("oxblock {}", words.join(" ")), output)
}

/// The output of a command line of the shell, which must succeed.
pub fn run(line: &str) -> String {
    sh(line).success()
}

/// The output of a command line of the shell.
pub fn sh(line: &str) -> Said {
    let output = Command::new("/bin/sh").args(["-c", line]).output().expect("a shell");
    Said::new(line.to_owned(), output)
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    line: String,
    /// The exit code; none for who was killed.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    fn new(line: String, output: Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said {
            line,
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// The output of what must have succeeded.
    pub fn success(self) -> String {
        let Said { line, code, out, err } = self;
        assert_eq!(code, Some(0), "`{line}` failed:\n{out}{err}");
        out
    }

    /// The error message of what must have failed.
    pub fn failure(self) -> String {
        let Said { line, code, out, err } = self;
        assert!(code.is_some_and(|code| code != 0), "`{line}` ended with {code:?}:\n{out}{err}");
        err
    }
}

/// Waits until something is so; false if it does not come about.
pub fn until(is_so: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if begun.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn write(path: &str, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{path}: {e}"))
}
