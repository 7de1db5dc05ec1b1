//! What a function was before it was bound, kept where it outlives this process, and ends with
//! the system as a binding does.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::{fs, io};

use super::Root;
use super::function::folder;
use crate::{Address, PciError};

/// The folder of the notes.
const FOLDER: &str = "run/oxblock/pci";
/// What stands for no driver, and for no override.
const NONE: &str = "-";

/// The driver that a function had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// The driver; none if it had none.
    pub(super) driver: Option<String>,
    /// What `driver_override` said; none if nothing.
    pub(super) driver_override: Option<String>,
}

impl State {
    /// Notes it, unless there is a note: the first is the one that counts. The note of a function
    /// that was pulled from the same place is none.
    pub(super) fn keep(&self, root: &Root, address: Address) -> Result<(), PciError> {
        if State::read(root, address).is_none() {
            State::forget(root, address);
        }
        let path = root.path(&path(address));
        let (driver, wanted) = (word(&self.driver), word(&self.driver_override));
        let text = format!("{driver} {wanted} {}\n", number_of(root, address));
        let write = || {
            fs::create_dir_all(root.path(FOLDER))?;
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
            match file {
                Ok(mut file) => file.write_all(text.as_bytes()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
            }
        };
        write().map_err(|error| {
            let text = format!("noting the driver of {address} in {}; run as root", path.display());
            PciError::io(text, error)
        })
    }

    /// The note of a function, if there is one that makes sense.
    pub(super) fn read(root: &Root, address: Address) -> Option<State> {
        let text = root.text(&path(address))?;
        let mut words = text.split_whitespace();
        let (driver, driver_override) = (words.next()?, words.next()?);
        if words.next()?.parse() != Ok(number_of(root, address)) {
            return None;
        }
        let good = |word: &str| word == NONE || is_name(word);
        let name = |word: &str| (word != NONE).then(|| word.to_owned());
        let state = State { driver: name(driver), driver_override: name(driver_override) };
        (good(driver) && good(driver_override)).then_some(state)
    }

    /// Takes the note away.
    pub(super) fn forget(root: &Root, address: Address) {
        let _ = fs::remove_file(root.path(&path(address)));
    }
}

/// sysfs's number of the function: one that comes to the same place later has another.
fn number_of(root: &Root, address: Address) -> u64 {
    root.inode(&folder(address)).unwrap_or(0)
}

fn path(address: Address) -> String {
    format!("{FOLDER}/{address}")
}

fn word(name: &Option<String>) -> &str {
    name.as_deref().filter(|name| is_name(name)).unwrap_or(NONE)
}

/// Whether it can be a driver's name, and so part of a path.
fn is_name(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    !name.is_empty() && name.len() <= 64 && name.bytes().all(is_plain)
}
