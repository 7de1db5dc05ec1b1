//! Fetches packages by the host's own apt, with a configuration that leaves the host's alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files::{create, only_name_in, output, paths_in, raw_output, rename, write};
use crate::packages::{NOT_REBUILT, STOCK};
use crate::rebuild;

/// The release whose packages are used, and where its newer QEMU and kernel are.
const RELEASE: &str = "bookworm";
const BACKPORTS: &str = "bookworm-backports";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The modules a guest may load, in the kernel's own tree.
const MODULES: [&str; 9] = [
    "virt/lib/irqbypass",
    "drivers/vfio/vfio",
    "drivers/vfio/vfio_iommu_type1",
    "drivers/vfio/pci/vfio-pci-core",
    "drivers/vfio/pci/vfio-pci",
    "drivers/nvme/common/nvme-auth",
    "drivers/nvme/common/nvme-keyring",
    "drivers/nvme/host/nvme-core",
    "drivers/nvme/host/nvme",
];

/// Fetches into a folder; what is of use ends in `done` there.
pub struct Fetch {
    folder: PathBuf,
}

impl Fetch {
    /// Into this folder, which is not there yet.
    pub fn new(folder: &Path) -> Fetch {
        Fetch { folder: folder.to_owned() }
    }

    /// Fetches all.
    ///
    /// Errors: what cannot be had, and why.
    pub fn run(&self) -> Result<(), String> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err("the packages are for x86-64, which this host is not".into());
        }
        eprintln!("guest: fetching QEMU and a kernel into {}", self.folder.display());
        self.configure_apt(&mirror()?)?;
        self.run_apt("apt-get", &["--quiet=2", "update"])?;
        let install = ["--quiet=2", "--download-only", "--no-install-recommends", "--yes"];
        let wanted =
            ["--target-release", BACKPORTS, "install", "qemu-system-x86", "busybox-static"];
        self.run_apt("apt-get", &[&install[..], &wanted].concat())?;
        self.download(&[&self.kernel_package()?])?;
        self.unpack(&self.folder.join("root"))?;
        let release = only_name_in(&self.folder.join("root/lib/modules"))?;
        self.pick(&release)?;
        rebuild::run(self, &release).or_else(|why| {
            eprintln!("guest: building modules: {why}");
            write(&self.done().join(NOT_REBUILT), why.as_bytes())
        })
    }

    /// Where everything is fetched to.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the result is put together.
    pub fn done(&self) -> PathBuf {
        self.folder.join("done")
    }

    /// Downloads packages, not what they depend on, into the archives.
    pub fn download(&self, packages: &[&str]) -> Result<(), String> {
        self.run_apt("apt-get", &[&["--quiet=2", "download"], packages].concat()).map(drop)
    }

    /// An apt of our own: its lists and archives are here, and nothing is installed as far as it
    /// knows, so that it fetches all that the packages depend on.
    fn configure_apt(&self, mirror: &str) -> Result<(), String> {
        for folder in ["lists/partial", "archives/partial", "sources", "root", "done"] {
            create(&self.folder.join(folder))?;
        }
        let here = self.folder.display();
        let configuration = format!(
            "Dir::State \"{here}\";\nDir::State::status \"{here}/status\";\n\
             Dir::Cache \"{here}\";\nDir::Etc::sourcelist \"{here}/none\";\n\
             Dir::Etc::sourceparts \"{here}/sources\";\nDir::Etc::preferences \"{here}/none\";\n\
             Dir::Etc::preferencesparts \"{here}/none\";\nDebug::NoLocking \"1\";\n\
             APT::Sandbox::User \"\";\nAcquire::Languages \"none\";\nAcquire::Retries \"2\";\n\
             Acquire::http::Timeout \"20\";\nAPT::Architecture \"amd64\";\n"
        );
        let sources = format!(
            "Types: deb\nURIs: {mirror}\nSuites: {RELEASE} {BACKPORTS}\nComponents: main\n\
             Signed-By: {KEYRING}\n"
        );
        write(&self.folder.join("apt.conf"), configuration.as_bytes())?;
        write(&self.folder.join("sources/debian.sources"), sources.as_bytes())?;
        write(&self.folder.join("status"), b"")
    }

    fn run_apt(&self, program: &str, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join("apt.conf")).env("LC_ALL", "C").args(words);
        output(command.current_dir(self.folder.join("archives")))
    }

    /// The package that the kernel's meta package stands for.
    fn kernel_package(&self) -> Result<String, String> {
        let words = ["--target-release", BACKPORTS, "depends", "--important", "linux-image-amd64"];
        let text = self.run_apt("apt-cache", &words)?;
        let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let name = names.find(|name| name.starts_with("linux-image-"));
        name.map(str::to_owned).ok_or(format!("linux-image-amd64 depends on no kernel:\n{text}"))
    }

    /// Unpacks the archives, and removes them.
    pub fn unpack(&self, to: &Path) -> Result<(), String> {
        for path in paths_in(&self.folder.join("archives"))? {
            if path.extension().is_some_and(|extension| extension == "deb") {
                output(Command::new("dpkg").arg("--extract").arg(&path).arg(to))?;
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }

    /// Lists a folder of modules for `modprobe`.
    pub fn depmod(&self, modules: &Path, release: &str) -> Result<(), String> {
        let busybox = self.done().join("root/bin/busybox");
        output(Command::new(busybox).arg("depmod").arg("-b").arg(modules).arg(release)).map(drop)
    }

    /// Keeps the programs, the kernel, and the modules unpacked.
    fn pick(&self, release: &str) -> Result<(), String> {
        let (root, done) = (self.folder.join("root"), self.done());
        let from = root.join("lib/modules").join(release);
        let to = done.join(STOCK).join("lib/modules").join(release);
        create(&to)?;
        for module in MODULES {
            let packed = from.join(format!("kernel/{module}.ko.xz"));
            let name = format!("{}.ko", module.rsplit('/').next().unwrap_or(module));
            let mut unxz = Command::new(root.join("bin/busybox"));
            let bytes = raw_output(unxz.arg("unxz").arg("-c").arg(packed))?;
            write(&to.join(name), &bytes)?;
        }
        rename(&root.join(format!("boot/vmlinuz-{release}")), &done.join("vmlinuz"))?;
        for unused in ["boot", "lib/modules", "usr/share/doc"] {
            let _ = fs::remove_dir_all(root.join(unused));
        }
        rename(&root, &done.join("root"))?;
        self.depmod(&done.join(STOCK), release)
    }
}

/// The mirror that the host itself uses: it has the other releases, too.
fn mirror() -> Result<String, String> {
    let os = fs::read_to_string("/etc/os-release").map_err(|e| format!("/etc/os-release: {e}"))?;
    let value = |key| os.lines().find_map(|line| line.strip_prefix(key));
    let (Some("debian"), Some(codename)) = (value("ID="), value("VERSION_CODENAME=")) else {
        return Err("the packages are Debian's, and this host is another system".into());
    };
    let mut apt = Command::new("apt-get");
    let format = "$(RELEASE) $(COMPONENT) $(REPO_URI)";
    let text = output(apt.args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let wanted = format!("{codename} main ");
    let found = text.lines().find_map(|line| line.strip_prefix(&wanted));
    found.map(str::to_owned).ok_or(format!("this host's apt knows no mirror of {codename}"))
}
