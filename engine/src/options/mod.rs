//! The one way in: what is opened, and how, as blockdev-add has it.
//!
//! However it was written, as JSON, as `key=value` pairs or as a file name, it becomes
//! [`NodeOptions`]: a flat map from dotted keys to scalars. A driver declares what it takes as
//! [`OptionSpec`]s, and gets typed [`Settings`].
//!
//! ```
//! use oxblock_engine::options::*;
//!
//! # fn main() -> Result<(), oxblock_engine::Error> {
//! let json = NodeOptions::from_json(r#"{"driver": "raw", "file": {"driver": "null-co"}}"#)?;
//! let pairs = NodeOptions::from_key_values("driver=raw,file.driver=null-co", None)?;
//! assert_eq!(json, pairs);
//! assert_eq!(json.to_json()?, r#"{"driver": "raw", "file": {"driver": "null-co"}}"#);
//!
//! const OPTIONS: &[OptionSpec] = &[OptionSpec::size("offset", "where it begins").default("0")];
//! let mut options = NodeOptions::from_key_values("offset=1.5k", None)?;
//! let settings = Settings::take(OPTIONS, &mut options)?;
//! assert_eq!(settings.number("offset"), Some(1536));
//! # Ok(())
//! # }
//! ```
//!
//! # Differences from QEMU
//! A key given both nested and dotted (`"file": {"size": 1}, "file.size": 2`), and an empty
//! object or list, are refused where QEMU takes one of them, or none, without a word.

mod flat;
mod hint;
mod json;
mod key_value;
mod scalar;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::{Error, ErrorKind};
use json::Value;

pub use scalar::Scalar;
pub use schema::{OptionKind, OptionSpec, Setting, Settings};

pub(crate) use hint::closest;

/// Options of a node and of its children, flat: `driver`, `file.driver`, `children.0.driver`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeOptions(BTreeMap<String, Scalar>);

/// What stands for a child among its parent's options.
#[derive(Clone, Debug, PartialEq)]
pub enum ChildOptions {
    /// Nothing.
    Absent,
    /// `null`: there shall be none, whatever the image says.
    None,
    /// The name of a node that is there already.
    Reference(String),
    /// A node of its own, to be opened with these.
    Inline(NodeOptions),
}

impl NodeOptions {
    /// No options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads an object in the shape of blockdev-add. Strings may stand in single quotes, and
    /// dotted keys for nested ones.
    ///
    /// # Errors
    /// `Invalid`: no JSON, or no object; what, and where.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let value = json::parse(text)
            .map_err(|error| invalid(format!("Could not parse the JSON options: {error}")))?;
        let Value::Object(object) = value else {
            return Err(invalid("Invalid JSON object given"));
        };
        let mut flat = BTreeMap::new();
        for (key, value) in object {
            flat::flatten(&key, value, &mut flat).map_err(invalid)?;
        }
        Ok(Self(flat))
    }

    /// Reads `key=value,key=value`. A comma in a value is doubled; a key alone is `on`, and
    /// `nokey` is `key=off`; a first word without `=` is the value of `implied`.
    ///
    /// # Errors
    /// `Invalid`: a key with hundreds of dots, or a NUL.
    pub fn from_key_values(text: &str, implied: Option<&str>) -> Result<Self, Error> {
        key_value::parse(text, implied).map(Self).map_err(invalid)
    }

    /// As nested JSON on one line, keys in alphabetical order.
    ///
    /// # Errors
    /// `Invalid`: a key that is a value and has others beneath it.
    pub fn to_json(&self) -> Result<String, Error> {
        flat::crumple(&self.0).map(|value| value.to_string()).map_err(invalid)
    }

    /// As `key=value` pairs; `None` where they cannot say it: `null`, or a comma in a key.
    pub fn to_key_values(&self) -> Option<String> {
        key_value::print(&self.0)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Scalar> {
        self.0.get(key)
    }

    /// The value of a key, if it is a string.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Scalar::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Sets a key.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Scalar>) {
        self.0.insert(key.into(), value.into());
    }

    /// Sets a key that is not set.
    pub fn set_default(&mut self, key: &str, value: impl Into<Scalar>) {
        self.0.entry(key.into()).or_insert_with(|| value.into());
    }

    /// Takes a key out.
    pub fn take(&mut self, key: &str) -> Option<Scalar> {
        self.0.remove(key)
    }

    /// Adds what `other` sets and this does not.
    pub fn join(&mut self, other: NodeOptions) {
        for (key, value) in other.0 {
            self.0.entry(key).or_insert(value);
        }
    }

    /// Puts a child's options beneath its name.
    pub fn set_child(&mut self, name: &str, child: NodeOptions) {
        self.0.extend(child.0.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
    }

    /// Takes what is said of a child.
    ///
    /// # Errors
    /// `Invalid`: both a reference and options of its own; something else than either.
    pub fn take_child(&mut self, name: &str) -> Result<ChildOptions, Error> {
        let prefix = format!("{name}.");
        let mut below = self.0.split_off(&prefix);
        // '/' follows '.': what begins with it is the first that is no longer beneath.
        let mut beyond = below.split_off(&format!("{name}/"));
        self.0.append(&mut beyond);
        let inner: BTreeMap<_, _> =
            below.into_iter().map(|(key, value)| (key[prefix.len()..].to_owned(), value)).collect();
        match self.0.remove(name) {
            None if inner.is_empty() => Ok(ChildOptions::Absent),
            None => Ok(ChildOptions::Inline(Self(inner))),
            Some(_) if !inner.is_empty() => Err(invalid(
                "Cannot reference an existing block device with additional options or a new \
                 filename",
            )),
            Some(Scalar::Null) => Ok(ChildOptions::None),
            Some(Scalar::String(reference)) => Ok(ChildOptions::Reference(reference)),
            Some(_) => Err(invalid(format!("A block device must be specified for \"{name}\""))),
        }
    }

    /// The keys that are set, in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub(crate) fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, text)
}
