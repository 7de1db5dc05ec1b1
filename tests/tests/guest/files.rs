//! Files and commands, with errors that name them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The name of the one thing in a folder.
pub fn only_name_in(folder: &Path) -> Result<String, String> {
    let mut paths = paths_in(folder)?.into_iter();
    let name = paths.next().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    name.ok_or(format!("{} is empty", folder.display()))
}

/// What is in a folder.
pub fn paths_in(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(entries.filter_map(Result::ok).map(|entry| entry.path()).collect())
}

/// Makes a folder and those above it.
pub fn create(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))
}

/// Writes a file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}

/// Moves a file or folder.
pub fn rename(from: &Path, to: &Path) -> Result<(), String> {
    fs::rename(from, to).map_err(|e| format!("{}: {e}", from.display()))
}

/// What a command that succeeds prints.
pub fn output(command: &mut Command) -> Result<String, String> {
    Ok(String::from_utf8_lossy(&raw_output(command)?).into_owned())
}

/// The bytes that a command that succeeds prints.
pub fn raw_output(command: &mut Command) -> Result<Vec<u8>, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.trim().lines().last().unwrap_or_default();
    Err(format!("{name} failed: {last} ({})", output.status))
}
