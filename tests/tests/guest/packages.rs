//! What a guest is made of: QEMU, a kernel with its modules, busybox; all of them Debian's
//! packages, fetched once into a cache and unpacked there. Nothing is installed on the host, and
//! its libraries are not used: QEMU runs with those of its own packages.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Changes whenever what is fetched, or how it is laid out, changes.
const EDITION: &str = "packages-1";
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

/// The packages, unpacked.
pub struct Packages {
    root: PathBuf,
    /// The kernel's release, which names the folder of its modules.
    pub release: String,
}

impl Packages {
    /// Those in the cache; they are fetched first if they are not there.
    ///
    /// Errors: why they cannot be had.
    pub fn find() -> Result<Packages, String> {
        let cache = cache()?;
        let root = cache.join(EDITION);
        if !root.exists() {
            let partial = cache.join(format!("{EDITION}.{}", std::process::id()));
            let fetched = Fetch { folder: partial.clone() }.run();
            let placed = fetched.and_then(|()| place(&partial, &root));
            let _ = fs::remove_dir_all(&partial);
            placed?;
        }
        let release = only_name_in(&root.join("modules/lib/modules"))?;
        Ok(Packages { root, release })
    }

    /// A command that runs QEMU, with where its firmware is.
    pub fn qemu(&self) -> Command {
        let usr = self.root.join("root/usr");
        let libraries = usr.join("lib/x86_64-linux-gnu");
        let base = self.root.join("root/lib/x86_64-linux-gnu");
        let mut command = Command::new(base.join("ld-linux-x86-64.so.2"));
        let path = format!("{}:{}", libraries.display(), base.display());
        command.arg("--library-path").arg(path).arg(usr.join("bin/qemu-system-x86_64"));
        command.env("QEMU_MODULE_DIR", libraries.join("qemu"));
        for firmware in ["share/qemu", "share/seabios"] {
            command.arg("-L").arg(usr.join(firmware));
        }
        command
    }

    /// The kernel's image.
    pub fn kernel(&self) -> PathBuf {
        self.root.join("vmlinuz")
    }

    /// The modules, laid out as in a file system's root.
    pub fn modules(&self) -> PathBuf {
        self.root.join("modules")
    }

    /// The statically linked busybox.
    pub fn busybox(&self) -> PathBuf {
        self.root.join("root/bin/busybox")
    }
}

/// `OXBLOCK_GUEST_CACHE`, or a folder among the user's caches.
fn cache() -> Result<PathBuf, String> {
    let from = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = from("OXBLOCK_GUEST_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|caches| caches.join("oxblock/guest")))
        .or_else(|| from("HOME").map(|home| home.join(".cache/oxblock/guest")))
        .ok_or("neither OXBLOCK_GUEST_CACHE nor HOME is set: there is no place for a cache")?;
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    fs::canonicalize(&folder).map_err(|e| format!("{}: {e}", folder.display()))
}

/// Another process may have been quicker: then its packages are as good.
fn place(partial: &Path, root: &Path) -> Result<(), String> {
    match fs::rename(partial.join("done"), root) {
        Err(e) if !root.exists() => Err(format!("{}: {e}", root.display())),
        _ => Ok(()),
    }
}

/// Fetches into a folder; what is of use ends in `done` there.
struct Fetch {
    folder: PathBuf,
}

impl Fetch {
    fn run(&self) -> Result<(), String> {
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
        self.run_apt("apt-get", &["--quiet=2", "download", &self.kernel_package()?])?;
        self.unpack()?;
        self.pick()
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

    fn unpack(&self) -> Result<(), String> {
        for path in paths_in(&self.folder.join("archives"))? {
            if path.extension().is_some_and(|extension| extension == "deb") {
                let mut dpkg = Command::new("dpkg");
                output(dpkg.arg("--extract").arg(path).arg(self.folder.join("root")))?;
            }
        }
        Ok(())
    }

    /// Keeps the kernel, its modules unpacked and with their dependencies known, and the programs.
    fn pick(&self) -> Result<(), String> {
        let (root, done) = (self.folder.join("root"), self.folder.join("done"));
        let release = only_name_in(&root.join("lib/modules"))?;
        let from = root.join("lib/modules").join(&release);
        let to = done.join("modules/lib/modules").join(&release);
        create(&to)?;
        let busybox = root.join("bin/busybox");
        for module in MODULES {
            let packed = from.join(format!("kernel/{module}.ko.xz"));
            let name = format!("{}.ko", module.rsplit('/').next().unwrap_or(module));
            let mut unxz = Command::new(&busybox);
            let bytes = raw_output(unxz.arg("unxz").arg("-c").arg(packed))?;
            write(&to.join(name), &bytes)?;
        }
        let mut depmod = Command::new(&busybox);
        output(depmod.arg("depmod").arg("-b").arg(done.join("modules")).arg(&release))?;
        rename(&root.join(format!("boot/vmlinuz-{release}")), &done.join("vmlinuz"))?;
        for unused in ["boot", "lib/modules", "usr/share/doc"] {
            let _ = fs::remove_dir_all(root.join(unused));
        }
        rename(&root, &done.join("root"))
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

fn only_name_in(folder: &Path) -> Result<String, String> {
    let mut paths = paths_in(folder)?.into_iter();
    let name = paths.next().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    name.ok_or(format!("{} is empty", folder.display()))
}

fn paths_in(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(entries.filter_map(Result::ok).map(|entry| entry.path()).collect())
}

fn create(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}

fn rename(from: &Path, to: &Path) -> Result<(), String> {
    fs::rename(from, to).map_err(|e| format!("{}: {e}", from.display()))
}

/// What a command that succeeds prints.
pub fn output(command: &mut Command) -> Result<String, String> {
    Ok(String::from_utf8_lossy(&raw_output(command)?).into_owned())
}

fn raw_output(command: &mut Command) -> Result<Vec<u8>, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.trim().lines().last().unwrap_or_default();
    Err(format!("{name} failed: {last} ({})", output.status))
}
