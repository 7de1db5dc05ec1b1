//! The log of a verified job as a file (fio's `verify_state`): a page that says whose it is, then
//! its words as [`super::log`] has them, in the byte order of the machine.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use oxblock_engine::{Error, ErrorKind};
use oxblock_mem::MappedWords;

use super::block::Recipe;
use super::log::WriteLog;
use super::method::Method;

const MAGIC: u64 = u64::from_le_bytes(*b"oxbvlog1");
/// Words of the page that says whose the log is.
const HEADER: usize = 512;
/// Words of it that are in use, the last one a CRC-32C of the others.
const FIELDS: usize = 9;

/// Whose log it is: the blocks of a run can be made again from this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// What blocks are made from.
    pub recipe: Recipe,
    /// The run's stamp.
    pub stamp: u64,
    /// Byte offset of the first unit.
    pub start: u64,
    /// Bytes of each unit.
    pub unit: u32,
    /// How many there are.
    pub count: usize,
}

impl Identity {
    fn fields(&self) -> [u64; FIELDS] {
        let recipe = &self.recipe;
        let pattern = recipe.pattern.as_ref().map_or(0, |pattern| pattern.fingerprint());
        let mut fields = [
            MAGIC,
            u64::from(self.unit),
            self.start,
            self.count as u64,
            recipe.seed,
            self.stamp,
            u64::from(recipe.method.number()) | (recipe.header_at as u64) << 32,
            u64::from(pattern),
            0,
        ];
        fields[FIELDS - 1] = checksum(&fields);
        fields
    }
}

fn checksum(fields: &[u64; FIELDS]) -> u64 {
    let words = fields[..FIELDS - 1].iter();
    u64::from(words.fold(0, |crc, word| crc32c::crc32c_append(crc, &word.to_le_bytes())))
}

/// Begins the log of a run in a file.
///
/// Errors: a file that cannot be made or mapped, or that another run uses.
pub(crate) fn create(path: &Path, identity: &Identity) -> Result<WriteLog, Error> {
    let count = identity.count.saturating_add(HEADER);
    let words = MappedWords::create(path, count).map_err(said_by)?;
    for (word, field) in words.iter().zip(identity.fields()).rev() {
        word.store(field, Relaxed);
    }
    Ok(WriteLog::new(words, HEADER, identity.start, identity.unit))
}

/// Opens the log that an earlier run left, for a job that has `wanted` as its own: all but the
/// stamp, and the seed where the job does not insist on one. The stamp and the seed of that run.
///
/// Errors: a file that cannot be opened, is no log, or is another job's: what differs is named.
pub(crate) fn load(
    path: &Path,
    wanted: &Identity,
    insists_on_seed: bool,
) -> Result<(WriteLog, Identity), Error> {
    let words = MappedWords::open_copy(path).map_err(|error| {
        let what =
            "the state that a run with verify_state_save left (or name it with verify_state)";
        said_by(error).context(what)
    })?;
    let mut found = [0; FIELDS];
    found.iter_mut().zip(words.iter()).for_each(|(field, word)| *field = word.load(Relaxed));
    let refused = |what: String| {
        Error::new(ErrorKind::Invalid, format!("the verify state in {}: {what}", path.display()))
    };
    let is_sound = found[0] == MAGIC && found[FIELDS - 1] == checksum(&found);
    if !is_sound || found[3] != words.len().saturating_sub(HEADER) as u64 {
        return Err(refused("is none that a run with verify_state_save has left".to_owned()));
    }
    let own = wanted.fields();
    let method = Method::of_number(found[6] as u8).map_or("?", Method::word);
    let seed = found[4];
    for (at, option, value) in [
        (6, "verify (or verify_offset)", method.to_owned()),
        (7, "verify_pattern", "another one".to_owned()),
        (1, "verify_interval (or bs)", format!("{}", found[1])),
        (2, "offset", format!("{}", found[2])),
        (3, "size", format!("{} intervals", found[3])),
        (4, "randseed", seed.to_string()),
    ] {
        if own[at] != found[at] && (at != 4 || insists_on_seed) {
            let text = format!("the run had {value} as {option}; give the options that it had");
            return Err(refused(text));
        }
    }
    let recipe = Recipe { seed, ..wanted.recipe.clone() };
    let identity = Identity { recipe, stamp: found[5], ..wanted.clone() };
    let log = WriteLog::new(words, HEADER, identity.start, identity.unit);
    log.end_flights();
    Ok((log, identity))
}

fn said_by(error: oxblock_mem::MemError) -> Error {
    Error::from(error).context("verify_state")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::log::Expected;

    fn identity() -> Identity {
        let recipe = Recipe { method: Method::Sha256, seed: 7, pattern: None, header_at: 0 };
        Identity { recipe, stamp: 99, start: 4096, unit: 512, count: 1000 }
    }

    #[test]
    fn a_log_is_found_again_with_what_was_done_and_what_was_in_flight() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        let log = create(&path, &identity()).expect("a log");
        for units in [0..10, 5..6] {
            assert!(log.claim(units.clone(), false));
            log.settle(units, true, false);
        }
        assert!(log.claim(9..11, false));
        assert!(load(&path, &identity(), true).is_err(), "it is in use");
        drop(log);
        let wanted = Identity { stamp: 0, ..identity() };
        let (log, found) = load(&path, &wanted, true).expect("a log");
        assert_eq!((found, log.count()), (identity(), 1000));
        let expected = |at| log.expectation(log.place(at));
        assert_eq!(
            (expected(0), expected(5)),
            (Some(Expected::Write(1)), Some(Expected::Write(2)))
        );
        assert!(matches!(expected(9), Some(Expected::OneOf { known: Some(1), most: 2, .. })));
        assert!(matches!(expected(10), Some(Expected::OneOf { anything: true, .. })));
        assert_eq!(expected(11), None);
    }

    #[test]
    fn what_is_another_jobs_is_refused_with_what_differs() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        drop(create(&path, &identity()).expect("a log"));
        let refused = |wanted: Identity| {
            load(&path, &wanted, true).map(|_| ()).expect_err("another job's").to_string()
        };
        let recipe = |method| Recipe { method, ..identity().recipe };
        for (wanted, hint) in [
            (Identity { recipe: recipe(Method::Md5), ..identity() }, "sha256 as verify"),
            (Identity { unit: 4096, ..identity() }, "512 as verify_interval"),
            (Identity { start: 0, ..identity() }, "4096 as offset"),
            (Identity { count: 9, ..identity() }, "1000 intervals as size"),
        ] {
            let error = refused(wanted);
            assert!(error.contains(hint) && error.contains("state"), "{error}");
        }
        let other = Identity { recipe: Recipe { seed: 8, ..identity().recipe }, ..identity() };
        assert!(refused(other.clone()).contains("7 as randseed"));
        let (_, found) = load(&path, &other, false).expect("its own seed");
        assert_eq!(found.recipe.seed, 7);
    }

    #[test]
    fn garbage_is_no_log() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        for bytes in [&b"12345678"[..], &[0; 5000], b"oxbvlog1 and nothing else to speak of, no"] {
            std::fs::write(&path, bytes).expect("a file");
            let error = load(&path, &identity(), true).map(|_| ()).expect_err("no log");
            assert!(error.to_string().contains("verify_state_save"), "{error}");
        }
        drop(create(&path, &identity()).expect("a log"));
        let mut bytes = std::fs::read(&path).expect("its bytes");
        bytes.truncate(4096 + 999 * 8);
        std::fs::write(&path, bytes).expect("a file");
        assert!(load(&path, &identity(), true).is_err(), "a unit is missing");
    }
}
