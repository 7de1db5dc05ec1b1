//! `key=value,key=value`, as on QEMU's command lines.

use std::collections::BTreeMap;

use super::Scalar;
use super::flat::check_key;

/// Reads pairs. A comma in a value is doubled. A key alone is `on`, with `no` before it `off`;
/// the first word, without a `=`, is the value of `implied`. The last of several values counts.
///
/// # Errors
/// A key that is nested too deeply, or a NUL.
pub(super) fn parse(text: &str, implied: Option<&str>) -> Result<BTreeMap<String, Scalar>, String> {
    if text.contains('\0') {
        return Err("A NUL among the options".into());
    }
    let mut pairs = BTreeMap::new();
    let mut implied = implied;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(['=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let (key, value) = if let Some(after) = after.strip_prefix('=') {
            let (value, next) = value(after);
            rest = next;
            (word, value)
        } else if let Some(key) = implied {
            let (value, next) = value(rest);
            rest = next;
            (key, value)
        } else {
            rest = after.get(1..).unwrap_or_default();
            match word.strip_prefix("no") {
                Some(key) => (key, "off".into()),
                None => (word, "on".into()),
            }
        };
        implied = None;
        check_key(key)?;
        pairs.insert(key.into(), Scalar::String(value));
    }
    Ok(pairs)
}

/// The value that `text` begins with, and what follows its comma.
fn value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(',') {
        value.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix(',') {
            Some(next) => {
                value.push(',');
                rest = next;
            }
            None => return (value, rest),
        }
    }
    value.push_str(rest);
    (value, "")
}

/// Writes pairs that [`parse`] reads. `None` if a key cannot be written, or a value is null.
pub(super) fn print(pairs: &BTreeMap<String, Scalar>) -> Option<String> {
    let mut text = String::new();
    for (key, value) in pairs {
        if key.contains(['=', ',']) || *value == Scalar::Null {
            return None;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push('=');
        text.push_str(&value.to_string().replace(',', ",,"));
    }
    Some(text)
}
