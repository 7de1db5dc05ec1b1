//! What a guest is made of: QEMU, a kernel with its modules, busybox; all of them Debian's
//! packages, fetched once into a cache and unpacked there. Nothing is installed on the host, and
//! its libraries are not used: QEMU runs with those of its own packages.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fetch::Fetch;
use crate::files::only_name_in;

/// Changes whenever what is fetched, or how it is laid out, changes.
const EDITION: &str = "packages-2";
/// Folders of modules in the cache, and the file that says why the second is not there.
pub const STOCK: &str = "modules";
pub const REBUILT: &str = "modules-rebuilt";
pub const NOT_REBUILT: &str = "not-rebuilt";

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
            let fetched = Fetch::new(&partial).run();
            let placed = fetched.and_then(|()| place(&partial, &root));
            let _ = fs::remove_dir_all(&partial);
            placed?;
        }
        let release = only_name_in(&root.join(STOCK).join("lib/modules"))?;
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

    /// The kernel's modules, laid out as in a file system's root; or those that were built anew.
    ///
    /// Errors: why there are none.
    pub fn modules(&self, rebuilt: bool) -> Result<PathBuf, String> {
        let folder = self.root.join(if rebuilt { REBUILT } else { STOCK });
        match folder.exists() {
            true => Ok(folder),
            false => {
                let why = fs::read_to_string(self.root.join(NOT_REBUILT)).unwrap_or_default();
                let root = self.root.display();
                Err(format!("modules could not be built ({why}); to try again, remove {root}"))
            }
        }
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
