//! Who holds a block device: mounted file systems, swap, devices stacked on it, and processes
//! that have it open.

use std::path::{Path, PathBuf};

use super::Root;

/// How many devices may be stacked before looking stops.
const STACK_MAX: u32 = 8;
/// The most holders that are named of one device.
const NAMED_MAX: usize = 64;

/// What is mounted and swapped on, read once.
pub struct Holders<'a> {
    root: &'a Root,
    mounts: Vec<Mount>,
    swaps: Vec<String>,
    /// Files below `/dev` that a process has open, and which process; read when first asked for.
    open: Option<Vec<(PathBuf, String)>>,
}

/// One line of mountinfo, as far as it matters.
struct Mount {
    /// `major:minor`.
    device: String,
    source: String,
    place: String,
}

impl<'a> Holders<'a> {
    /// Reads what is mounted under `root`.
    pub fn new(root: &'a Root) -> Holders<'a> {
        // Of the first process where it may be read: another namespace may hold the disk.
        let texts = ["proc/1/mountinfo", "proc/self/mountinfo"].map(|path| root.text(path));
        let lines = texts.iter().flatten().flat_map(|text| text.lines());
        let mounts = lines.filter_map(parse_mount).collect();
        let swaps = root.text("proc/swaps").unwrap_or_default();
        let swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        Holders { root, mounts, swaps: swaps.map(unescape).collect(), open: None }
    }

    /// Who holds the block device `name`, its partitions, or what is stacked on them.
    pub fn of(&mut self, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        self.collect(&format!("sys/block/{name}"), name, STACK_MAX, &mut found);
        let folder = format!("sys/block/{name}");
        let mut names = self.root.names(&folder);
        names.retain(|part| self.root.exists(&format!("{folder}/{part}/partition")));
        names.push(name.to_owned());
        for name in names {
            self.openers(&format!("/dev/{name}")).into_iter().for_each(|o| add(&mut found, o));
        }
        found
    }

    /// Who has a file below `/dev` open. Without root, only processes of this user are seen.
    pub fn openers(&mut self, path: &str) -> Vec<String> {
        let open = self.open.get_or_insert_with(|| open_files(self.root));
        let users = open.iter().filter(|(file, _)| file.as_path() == Path::new(path));
        let name = path.trim_start_matches("/dev/");
        let mut found = Vec::new();
        users.for_each(|(_, process)| add(&mut found, format!("{name} open in {process}")));
        found
    }

    fn collect(&self, folder: &str, name: &str, depth: u32, found: &mut Vec<String>) {
        self.users_of(folder, name, found);
        self.stacked(folder, name, depth, found);
        for part in self.root.names(folder) {
            let inner = format!("{folder}/{part}");
            if part.starts_with(name) && self.root.exists(&format!("{inner}/partition")) {
                self.users_of(&inner, &part, found);
                self.stacked(&inner, &part, depth, found);
            }
        }
    }

    /// Device mapper, MD and the like on top of it.
    fn stacked(&self, folder: &str, name: &str, depth: u32, found: &mut Vec<String>) {
        for holder in self.root.names(&format!("{folder}/holders")) {
            add(found, format!("{name} under {holder}"));
            if depth > 0 && found.len() < NAMED_MAX {
                self.collect(&format!("sys/block/{holder}"), &holder, depth - 1, found);
            }
        }
    }

    fn users_of(&self, folder: &str, name: &str, found: &mut Vec<String>) {
        let device = self.root.text(&format!("{folder}/dev"));
        let path = format!("/dev/{name}");
        for mount in &self.mounts {
            // btrfs and others mount under a number of their own, and name the device.
            if Some(&mount.device) == device.as_ref() || mount.source == path {
                add(found, format!("{name} mounted at {}", mount.place));
            }
        }
        if self.swaps.contains(&path) {
            add(found, format!("{name} is swap"));
        }
    }
}

/// What processes have open below `/dev`, but for terminals and the like that come in hordes.
fn open_files(root: &Root) -> Vec<(PathBuf, String)> {
    let mut open = Vec::new();
    for pid in root.names("proc") {
        if !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let folder = format!("proc/{pid}/fd");
        let files = root.names(&folder).into_iter();
        let files = files.filter_map(|fd| root.link(&format!("{folder}/{fd}")));
        let devices = files.filter(|file| ["/dev/nvme", "/dev/vfio/"].iter().any(|p| has(file, p)));
        let mut devices: Vec<PathBuf> = devices.collect();
        devices.sort_unstable();
        devices.dedup();
        if !devices.is_empty() {
            let name = root.text(&format!("proc/{pid}/comm")).unwrap_or_default();
            open.extend(devices.into_iter().map(|d| (d, format!("process {pid} ({name})"))));
        }
    }
    open
}

fn has(path: &Path, prefix: &str) -> bool {
    path.to_str().is_some_and(|path| path.starts_with(prefix))
}

fn add(found: &mut Vec<String>, line: String) {
    if found.len() < NAMED_MAX && !found.contains(&line) {
        found.push(line);
    }
}

/// proc(5): ID, parent, major:minor, root, mount point, options, optional fields, `-`, type,
/// source, options.
fn parse_mount(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut fields = front.split(' ').skip(2);
    let device = fields.next()?.to_owned();
    let place = unescape(fields.nth(1)?);
    let source = unescape(back.split(' ').nth(1)?);
    Some(Mount { device, source, place })
}

/// Undoes the kernel's octal escapes of space (`\040`), tab, line end and backslash.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => {
                let c = char::from(code);
                out.push(if c.is_control() { '?' } else { c });
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}
