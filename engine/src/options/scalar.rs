//! The values of options, and how texts turn into what they mean.

use std::fmt;

/// One value, as typed by whoever wrote it. On a command line everything is a string; a schema
/// reads either.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// Not set, whatever the default; for `backing`: none at all.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number, from -2^63 to 2^64 - 1.
    Integer(i128),
    /// A number that is no [`Scalar::Integer`]; finite.
    Real(f64),
    /// A text.
    String(String),
}

impl fmt::Display for Scalar {
    /// As on a command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Bool(value) => f.write_str(if *value { "on" } else { "off" }),
            Self::Integer(value) => value.fmt(f),
            Self::Real(value) => value.fmt(f),
            Self::String(value) => f.write_str(value),
        }
    }
}

impl From<&str> for Scalar {
    fn from(value: &str) -> Self {
        Self::String(value.into())
    }
}

impl From<String> for Scalar {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}

impl From<bool> for Scalar {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Scalar {
    fn from(value: u64) -> Self {
        Self::Integer(value.into())
    }
}

/// Why a text is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberError {
    /// It is none at all.
    Malformed,
    /// It does not fit.
    Range,
}

/// Reads `on`, `yes`, `true`, `y`, or their opposites.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// Reads a number as strtoull does with base 0: blanks before it, a sign, `0x` for hexadecimal,
/// `0` for octal.
pub(super) fn parse_number(text: &str) -> Result<u64, NumberError> {
    let (negative, digits) = sign(text);
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => (16, hex),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    let value = whole(digits, radix)?;
    if negative && value > 0 { Err(NumberError::Range) } else { Ok(value) }
}

/// Reads a size in bytes: decimal with an optional fraction and one of the suffixes B, K, M, G,
/// T, P, E (powers of 1024, in either case), or hexadecimal without either. What is left of a
/// byte is rounded.
pub(super) fn parse_size(text: &str) -> Result<u64, NumberError> {
    let (negative, digits) = sign(text);
    let size = unsigned_size(digits)?;
    if negative { Err(NumberError::Range) } else { Ok(size) }
}

fn unsigned_size(text: &str) -> Result<u64, NumberError> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return whole(hex, 16);
    }
    let (number, shift) = match text.char_indices().last() {
        Some((at, suffix)) => match "BKMGTPE".find(suffix.to_ascii_uppercase()) {
            Some(step) => (&text[..at], step * 10),
            None => (text, 0),
        },
        None => return Err(NumberError::Malformed),
    };
    let (units, fraction) = number.split_once('.').unwrap_or((number, ""));
    if units.is_empty() && fraction.is_empty() {
        return Err(NumberError::Malformed);
    }
    let units = if units.is_empty() { 0 } else { whole(units, 10)? };
    let size = (u128::from(units) << shift) + fraction_of(fraction, shift)?;
    u64::try_from(size).map_err(|_| NumberError::Range)
}

/// `0.digits` of a unit of `1 << shift` bytes, rounded; of a single byte nothing may be asked.
fn fraction_of(digits: &str, shift: usize) -> Result<u128, NumberError> {
    /// Digits beyond these weigh less than a thousandth of a byte.
    const DIGITS: usize = 19;
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(NumberError::Malformed);
    }
    if shift == 0 && digits.bytes().any(|digit| digit != b'0') {
        return Err(NumberError::Malformed);
    }
    let digits = &digits[..digits.len().min(DIGITS)];
    let scale = 10u128.pow(digits.len() as u32);
    let fraction = if digits.is_empty() { 0 } else { u128::from(whole(digits, 10)?) };
    // Below 10^19 * 2^60 < 2^124.
    Ok(((fraction << shift) + scale / 2) / scale)
}

/// Splits off leading blanks and a sign: whether it is a minus, and the rest.
fn sign(text: &str) -> (bool, &str) {
    let text = text.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
    match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// Digits and nothing else.
fn whole(digits: &str, radix: u32) -> Result<u64, NumberError> {
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(NumberError::Malformed);
    }
    u64::from_str_radix(digits, radix).map_err(|_| NumberError::Range)
}

#[cfg(test)]
mod tests {
    use super::NumberError::{Malformed, Range};
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        for (text, size) in [
            ("0", 0),
            ("1024", 1024),
            ("1k", 1024),
            ("1.5K", 1536),
            ("1.k", 1024),
            (".5k", 512),
            ("0.50049k", 513),
            ("0.50048828124999k", 512),
            ("1.9999999999999999999k", 2048),
            ("0.0001k", 0),
            ("1.0", 1),
            ("7E", 7 << 60),
            ("1e", 1 << 60),
            ("5b", 5),
            ("0x10", 16),
            ("010", 10),
            (" +1", 1),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "k", ".", "1x", "1 k", "1k ", "1.5", "1e3", "0x1k", "0x", "1kb", "--1"] {
            assert_eq!(parse_size(text), Err(Malformed), "{text}");
        }
        for text in ["-1", "-0", "16E", "99999999999999999999", "0x10000000000000000"] {
            assert_eq!(parse_size(text), Err(Range), "{text}");
        }
    }

    #[test]
    fn numbers_are_read_as_strtoull_reads_them() {
        for (text, number) in [("010", 8), ("0x1F", 31), (" 5", 5), ("+5", 5), ("-0", 0), ("0", 0)]
        {
            assert_eq!(parse_number(text), Ok(number), "{text}");
        }
        for text in ["", "08", "1k", "5 ", "0x", "on"] {
            assert_eq!(parse_number(text), Err(Malformed), "{text}");
        }
        assert_eq!(parse_number("18446744073709551616"), Err(Range));
        assert_eq!(parse_number("-1"), Err(Range));
    }
}
