//! One guest: its machine, its disks, and how long it may take.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::control::Control;
use crate::files::output;
use crate::initramfs;
use crate::inside::disks::{
    CONTROLLERS, Controller, Namespace, PLUGGED, PLUGGED_BUS, disk_node, file_node,
};
use crate::inside::{MARK, Machine};
use crate::packages::Packages;
use crate::report::Report;

/// A guest that says nothing for so long is ended. Hosts are busy, and emulation is slow.
const SILENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// One thread emulates both processors in turn: with two threads QEMU 10 aborts now and then while a
/// function's BARs move (`iotlb_to_section`), which each handing over does.
const MACHINE: &str = "-machine q35,kernel-irqchip=split -accel tcg,thread=single -cpu max -smp 2 \
    -m 1024 -nodefaults -no-user-config -display none -no-reboot -monitor none \
    -device isa-debug-exit,iobase=0x501,iosize=1";
const IOMMU: &str = "-device intel-iommu,intremap=on,caching-mode=on";
/// The clock is the emulated TSC, and a busy host is no reason to panic.
const KERNEL: &str = "console=ttyS0 panic=-1 quiet intel_iommu=on iommu=nopt tsc=reliable \
    no_timer_check nowatchdog rcupdate.rcu_cpu_stall_timeout=300 nokaslr mitigations=off \
    random.trust_cpu=on";

/// What runs in a guest: this very binary, and the command.
///
/// Errors: the command `oxblock` cannot be built.
pub fn programs() -> Result<[PathBuf; 2], String> {
    let this = env::current_exe().map_err(|e| format!("this binary's path: {e}"))?;
    Ok([this, build_oxblock()?])
}

/// What is needed to boot.
pub struct Guest {
    /// What kind of machine it is.
    pub machine: Machine,
    /// What it is made of.
    pub packages: Arc<Packages>,
    /// The modules of its kernel.
    pub modules: PathBuf,
    /// See [`programs`].
    pub programs: [PathBuf; 2],
    /// The names of the tests that were asked for.
    pub tests: Vec<String>,
}

impl Guest {
    /// Boots; and once more, for the tests that are left, if the guest does not come to its end.
    pub fn run(&self) -> Report {
        let report = self.boot(&self.tests);
        if report.complete {
            return report;
        }
        let left: Vec<String> =
            self.tests.iter().filter(|name| !report.has_ended(name)).cloned().collect();
        eprintln!("guest: booting once more for {} tests: {}", left.len(), report.failure);
        report.and_then(self.boot(&left))
    }

    fn boot(&self, tests: &[String]) -> Report {
        match self.try_boot(tests) {
            Ok(report) => report,
            Err(failure) => Report::of_nothing(failure),
        }
    }

    fn try_boot(&self, tests: &[String]) -> Result<Report, String> {
        let folder = tempfile::tempdir_in(scratch()).map_err(|e| format!("a folder: {e}"))?;
        let path = |name: &str| folder.path().join(name);
        let [this, oxblock] = &self.programs;
        let archive = initramfs::make(&self.packages, &self.modules, [this, oxblock], tests)?;
        fs::write(path("initramfs"), archive).map_err(|e| format!("initramfs: {e}"))?;
        let mut qemu = leashed(self.packages.qemu());
        qemu.args(MACHINE.split_whitespace());
        if self.machine != Machine::NoIommu {
            qemu.args(IOMMU.split_whitespace());
        }
        qemu.arg("-kernel").arg(self.packages.kernel()).arg("-initrd").arg(path("initramfs"));
        qemu.arg("-append").arg(format!("{KERNEL} {MARK}=1"));
        qemu.arg("-serial").arg("stdio");
        qemu.arg("-serial").arg(format!("file:{}", path("report").display()));
        let control = Control::new()?;
        qemu.args(control.arguments());
        for port in 1..=PLUGGED_BUS {
            let room = "pref64-reserve=64M";
            let words = format!("pcie-root-port,id=port{port},chassis={port},slot={port},{room}");
            qemu.arg("-device").arg(words);
        }
        for (index, controller) in CONTROLLERS.iter().enumerate() {
            attach(&mut qemu, folder.path(), index + 1, controller)?;
        }
        make_disks(&mut qemu, folder.path(), PLUGGED_BUS, &PLUGGED)?;
        let console = File::create(path("console")).map_err(|e| format!("console: {e}"))?;
        let messages = console.try_clone().map_err(|e| format!("console: {e}"))?;
        qemu.stdin(Stdio::null()).stdout(console).stderr(messages);
        let running = Running::start(&mut qemu)?;
        control.serve();
        let ended = running.watch(&path("report"));
        let mut report = Report::read(&read(&path("report")));
        if !report.complete {
            report.failure = format!("{ended}; its console:\n{}", tail(&read(&path("console"))));
        }
        Ok(report)
    }
}

/// QEMU as a process of ours, which ends with us.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Running, String> {
        command.spawn().map(Running).map_err(|e| format!("{:?}: {e}", command.get_program()))
    }

    /// Waits for its end, and brings it about if nothing more is said in `report`.
    fn watch(mut self, report: &Path) -> String {
        let (mut length, mut since) = (0, Instant::now());
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return describe(status),
                Ok(None) => {}
                Err(e) => return format!("QEMU: {e}"),
            }
            let now = report.metadata().map_or(0, |metadata| metadata.len());
            if now != length {
                (length, since) = (now, Instant::now());
            }
            if since.elapsed() > SILENCE {
                return format!("the guest said nothing for {} s", SILENCE.as_secs());
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command through a program that has the kernel end it when its parent dies.
fn leashed(command: Command) -> Command {
    let mut leashed = Command::new("setpriv");
    leashed.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program());
    leashed.args(command.get_args());
    leashed.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    leashed
}

/// A controller on a root port of its own, so that its group is its own: the first is on bus 1.
fn attach(
    qemu: &mut Command,
    folder: &Path,
    bus: usize,
    controller: &Controller,
) -> Result<(), String> {
    make_disks(qemu, folder, bus, controller)?;
    let serial = controller.serial;
    qemu.arg("-device").arg(format!("nvme,id=nvme{bus},bus=port{bus},serial={serial}"));
    for Namespace { nsid, block_size, metadata_size, .. } in controller.namespaces {
        let drive = disk_node(bus, *nsid);
        let sizes = format!("logical_block_size={block_size},physical_block_size={block_size}");
        qemu.arg("-device").arg(format!(
            "nvme-ns,bus=nvme{bus},drive={drive},nsid={nsid},{sizes},ms={metadata_size}"
        ));
    }
    Ok(())
}

/// The disks of a controller, each a block node over that of its file: faults are put between the
/// two.
fn make_disks(
    qemu: &mut Command,
    folder: &Path,
    bus: usize,
    controller: &Controller,
) -> Result<(), String> {
    for Namespace { nsid, length, .. } in controller.namespaces {
        let drive = disk_node(bus, *nsid);
        let path = folder.join(&drive);
        let made = File::create(&path).and_then(|file| file.set_len(*length));
        made.map_err(|e| format!("{}: {e}", path.display()))?;
        let file = json!({ "driver": "file", "node-name": file_node(&drive), "filename": path });
        let node = json!({ "driver": "raw", "node-name": drive, "file": file });
        qemu.arg("-blockdev").arg(node.to_string());
    }
    Ok(())
}

/// The command as this source makes it, whether or not it was built before.
fn build_oxblock() -> Result<PathBuf, String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--quiet", "--package=oxblock-cli", "--bin=oxblock"]);
    cargo.arg("--message-format=json-render-diagnostics").current_dir(env!("CARGO_MANIFEST_DIR"));
    if cfg!(not(debug_assertions)) {
        cargo.arg("--release");
    }
    let text = output(&mut cargo)?;
    let path = text.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(rest.split_once('"')?.0))
    });
    path.ok_or("cargo names no executable of oxblock-cli".into())
}

/// Where disks are made: below the target folder, as /tmp may be small.
fn scratch() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

fn describe(status: ExitStatus) -> String {
    match status.code() {
        Some(0) => "the guest panicked or powered off".into(),
        _ => format!("QEMU ended: {status}"),
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
