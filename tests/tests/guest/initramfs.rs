//! The initramfs of a guest: an archive in the format `newc` of cpio, which the kernel unpacks
//! into its first root. See Documentation/driver-api/early-userspace/buffer-format.rst of Linux.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files::output;
use crate::packages::Packages;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const DEVICE: u32 = 0o020_600;
const INIT: &[u8] = include_bytes!("init.sh");
const SUDO: &[u8] = b"#!/bin/sh\nexec \"$@\"\n";
const USERS: &[u8] = b"root::0:0::/:/bin/sh\nalice::1000:1000::/tmp:/bin/sh\n";
const GROUPS: &[u8] = b"root::0:\nalice::1000:\n";

/// Makes the archive: the programs, the libraries they need, busybox and the modules.
///
/// The programs are the binary that runs the tests and the command `oxblock`; `names` are the tests
/// to run.
///
/// Errors: a file cannot be read, or `ldd` or `strip` is not there.
pub fn make(
    packages: &Packages,
    modules: &Path,
    [tests, oxblock]: [&Path; 2],
    names: &[String],
) -> Result<Vec<u8>, String> {
    let mut archive = Archive::default();
    archive.node("dev/console", DEVICE, (5, 1));
    archive.bytes("init", PROGRAM, INIT);
    archive.bytes("bin/sudo", PROGRAM, SUDO);
    archive.file("bin/busybox", PROGRAM, &packages.busybox())?;
    archive.bytes("etc/passwd", FILE, USERS);
    archive.bytes("etc/group", FILE, GROUPS);
    archive.bytes("tests", FILE, names.join("\n").as_bytes());
    archive.bytes("hugepages.md", FILE, include_bytes!("../../../hugepages.md"));
    for (name, path) in [("bin/guest", tests), ("bin/oxblock", oxblock)] {
        archive.bytes(name, PROGRAM, &stripped(path)?);
    }
    for library in libraries(&[tests, oxblock])? {
        let name = library.to_string_lossy().trim_start_matches('/').to_owned();
        archive.file(&name, PROGRAM, &library)?;
    }
    let folder = format!("lib/modules/{}", packages.release);
    let entries = fs::read_dir(modules.join(&folder)).map_err(|e| format!("{folder}: {e}"))?;
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.file(&format!("{folder}/{name}"), FILE, &path)?;
    }
    Ok(archive.end())
}

/// A program without its symbols, which would take most of the guest's memory.
fn stripped(program: &Path) -> Result<Vec<u8>, String> {
    let copy = tempfile::NamedTempFile::new().map_err(|e| format!("a temporary file: {e}"))?;
    output(Command::new("strip").arg("-o").arg(copy.path()).arg(program))?;
    fs::read(copy.path()).map_err(|e| format!("{}: {e}", copy.path().display()))
}

/// The loader and the shared libraries of some programs, by the paths they are known by.
fn libraries(programs: &[&Path]) -> Result<BTreeSet<PathBuf>, String> {
    let text = output(Command::new("ldd").args(programs))?;
    let absolute = |line: &str| {
        let word = line.split_whitespace().find(|word| word.starts_with('/'))?;
        (!word.ends_with(':')).then(|| PathBuf::from(word))
    };
    Ok(text.lines().filter_map(absolute).collect())
}

/// An archive that is being written.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    fn file(&mut self, name: &str, mode: u32, path: &Path) -> Result<(), String> {
        let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        self.bytes(name, mode, &bytes);
        Ok(())
    }

    fn bytes(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        self.folders_of(name);
        self.entry(name, mode, (0, 0), bytes);
    }

    fn node(&mut self, name: &str, mode: u32, device: (u32, u32)) {
        self.folders_of(name);
        self.entry(name, mode, device, &[]);
    }

    fn folders_of(&mut self, name: &str) {
        for (at, _) in name.match_indices('/') {
            if self.folders.insert(name[..at].to_owned()) {
                self.entry(&name[..at], FOLDER, (0, 0), &[]);
            }
        }
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    /// A header of hexadecimal fields, the name, the bytes; each padded to four bytes.
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), bytes: &[u8]) {
        self.entries += 1;
        let (links, length, name_length) = (1, bytes.len() as u32, name.len() as u32 + 1);
        let (owner, time, check) = (0, 0, 0);
        let fields = [
            self.entries,
            mode,
            owner,
            owner,
            links,
            time,
            length,
            0,
            0,
            device.0,
            device.1,
            name_length,
            check,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
