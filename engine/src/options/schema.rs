//! What a driver takes, and what it was given.

use std::collections::BTreeMap;
use std::fmt;

use super::scalar::{NumberError, parse_bool, parse_number, parse_size};
use super::{NodeOptions, Scalar, invalid};
use crate::Error;

/// One option, as its driver declares it.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Its key, dotted where it is nested.
    pub name: &'static str,
    /// What values it has.
    pub kind: OptionKind,
    /// Its value where it is left out, as a text; also what it goes back to when it is left out
    /// of a reopen.
    pub default: Option<&'static str>,
    /// Whether it must be given.
    pub required: bool,
    /// Whether it changes the bytes that the node shows, and so belongs to its name.
    pub strong: bool,
    /// Whether a reopen may change it.
    pub mutable: bool,
    /// What it is, in one line.
    pub help: &'static str,
}

/// What values an option has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// On or off.
    Bool,
    /// Bytes, with or without a suffix.
    Size,
    /// A whole number in this range, ends included.
    Number {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
}

impl OptionSpec {
    const fn new(name: &'static str, kind: OptionKind, help: &'static str) -> Self {
        Self { name, kind, default: None, required: false, strong: false, mutable: false, help }
    }

    /// An option that is on or off.
    pub const fn bool(name: &'static str, help: &'static str) -> Self {
        Self::new(name, OptionKind::Bool, help)
    }

    /// An option in bytes.
    pub const fn size(name: &'static str, help: &'static str) -> Self {
        Self::new(name, OptionKind::Size, help)
    }

    /// An option that is a number from `min` to `max`.
    pub const fn number(name: &'static str, min: u64, max: u64, help: &'static str) -> Self {
        Self::new(name, OptionKind::Number { min, max }, help)
    }

    /// An option that is one of a few words.
    pub const fn choice(
        name: &'static str,
        words: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self::new(name, OptionKind::Choice(words), help)
    }

    /// An option that is a text.
    pub const fn text(name: &'static str, help: &'static str) -> Self {
        Self::new(name, OptionKind::Text, help)
    }

    /// With a default.
    #[must_use]
    pub const fn default(mut self, value: &'static str) -> Self {
        self.default = Some(value);
        self
    }

    /// That must be given.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// That changes the bytes.
    #[must_use]
    pub const fn strong(mut self) -> Self {
        self.strong = true;
        self
    }

    /// That a reopen may change.
    #[must_use]
    pub const fn mutable(mut self) -> Self {
        self.mutable = true;
        self
    }

    /// Reads a value.
    fn read(&self, value: &Scalar) -> Result<Setting, Error> {
        let text = value.to_string();
        let name = self.name;
        match self.kind {
            OptionKind::Bool => parse_bool(&text).map(Setting::Bool).ok_or_else(|| {
                invalid(format!("Parameter '{name}' expects 'on' or 'off', not '{text}'"))
            }),
            OptionKind::Size => parse_size(&text).map(Setting::Number).map_err(|error| {
                invalid(match error {
                    NumberError::Range => {
                        format!("Value '{text}' is out of range for parameter '{name}'")
                    }
                    NumberError::Malformed => format!(
                        "Parameter '{name}' expects a non-negative number below 2^64, such as \
                         512, 64k or 1.5G, not '{text}'"
                    ),
                })
            }),
            OptionKind::Number { min, max } => {
                let number = parse_number(&text).and_then(|number| {
                    let fits = (min..=max).contains(&number);
                    if fits { Ok(number) } else { Err(NumberError::Range) }
                });
                number.map(Setting::Number).map_err(|error| {
                    invalid(match error {
                        NumberError::Range => format!(
                            "Value '{text}' is out of range for parameter '{name}': from {min} \
                             to {max}"
                        ),
                        NumberError::Malformed => {
                            format!("Parameter '{name}' expects a number, not '{text}'")
                        }
                    })
                })
            }
            OptionKind::Choice(words) => {
                let word = words.iter().find(|&&word| word == text);
                word.map(|word| Setting::Choice(word)).ok_or_else(|| {
                    let words = words.join("', '");
                    invalid(format!("Parameter '{name}' does not accept value '{text}': '{words}'"))
                })
            }
            OptionKind::Text => match value {
                Scalar::String(text) => Ok(Setting::Text(text.clone())),
                _ => Err(invalid(format!("Parameter '{name}' expects a string, not {text}"))),
            },
        }
    }
}

/// A value of the kind that the option is declared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Of [`OptionKind::Bool`].
    Bool(bool),
    /// Of [`OptionKind::Size`] and [`OptionKind::Number`].
    Number(u64),
    /// Of [`OptionKind::Choice`].
    Choice(&'static str),
    /// Of [`OptionKind::Text`].
    Text(String),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => f.write_str(if *value { "on" } else { "off" }),
            Self::Number(value) => value.fmt(f),
            Self::Choice(value) => f.write_str(value),
            Self::Text(value) => f.write_str(value),
        }
    }
}

/// The options of one node, typed, defaults included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<&'static str, Setting>);

impl Settings {
    /// Takes the options that `specs` declare out of `options`; others stay.
    ///
    /// # Errors
    /// `Invalid`: a value that the option does not have, or none where it must be given.
    pub fn take(specs: &[OptionSpec], options: &mut NodeOptions) -> Result<Self, Error> {
        let mut settings = BTreeMap::new();
        for spec in specs {
            let given = options.take(spec.name).filter(|value| *value != Scalar::Null);
            let value = given.or_else(|| spec.default.map(Scalar::from));
            match value {
                Some(value) => _ = settings.insert(spec.name, spec.read(&value)?),
                None if spec.required => {
                    let text = format!("Parameter '{}' is missing", spec.name);
                    return Err(invalid(text));
                }
                None => {}
            }
        }
        Ok(Self(settings))
    }

    /// The value of an option, if it has one.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.0.get(name)
    }

    /// A [`Setting::Bool`]; `None` if it is not set, or another kind.
    pub fn bool(&self, name: &str) -> Option<bool> {
        match self.0.get(name) {
            Some(&Setting::Bool(value)) => Some(value),
            _ => None,
        }
    }

    /// A [`Setting::Number`].
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name) {
            Some(&Setting::Number(value)) => Some(value),
            _ => None,
        }
    }

    /// A [`Setting::Choice`].
    pub fn choice(&self, name: &str) -> Option<&'static str> {
        match self.0.get(name) {
            Some(&Setting::Choice(value)) => Some(value),
            _ => None,
        }
    }

    /// A [`Setting::Text`].
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(Setting::Text(value)) => Some(value),
            _ => None,
        }
    }
}
