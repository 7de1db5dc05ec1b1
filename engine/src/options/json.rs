//! JSON as QEMU takes it: strings in single quotes as well, a key twice is an error, whole
//! numbers are exact up to 64 bits.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::iter::Peekable;
use std::str::CharIndices;

use super::Scalar;

/// How deep objects, lists and dotted keys may nest.
pub(super) const MAX_DEPTH: usize = 256;

/// A value that may hold others.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Value>),
    Object(BTreeMap<String, Value>),
}

/// Reads one value and nothing after it.
///
/// # Errors
/// What is wrong, with QEMU's words where it has some, and the byte where.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader { text, chars: text.char_indices().peekable() };
    reader.skip_blanks();
    if reader.chars.peek().is_none() {
        return Err("Expecting a JSON value".into());
    }
    let value = reader.value(0)?;
    reader.skip_blanks();
    match reader.chars.peek() {
        None => Ok(value),
        Some(_) => Err("Expecting at most one JSON value".into()),
    }
}

struct Reader<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return self.fail("nested too deeply");
        }
        self.skip_blanks();
        match self.peek() {
            None => self.fail("premature EOI"),
            Some('{') => self.object(depth),
            Some('[') => self.list(depth),
            Some('"' | '\'') => Ok(Value::Scalar(Scalar::String(self.string()?))),
            Some('-' | '0'..='9') => self.number(),
            Some('a'..='z' | 'A'..='Z') => self.keyword().map(Value::Scalar),
            Some(_) => self.fail("expecting value"),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, String> {
        self.chars.next();
        let mut object = BTreeMap::new();
        self.skip_blanks();
        if self.take('}') {
            return Ok(Value::Object(object));
        }
        loop {
            self.skip_blanks();
            let key = match self.peek() {
                Some('"' | '\'') => self.string()?,
                Some('a'..='z' | 'A'..='Z') => {
                    self.keyword()?;
                    return self.fail("key is not a string in object");
                }
                Some(_) => return self.fail("expecting value"),
                None => return self.fail("premature EOI"),
            };
            self.skip_blanks();
            if !self.take(':') {
                return self.fail("missing : in object pair");
            }
            let value = self.value(depth + 1)?;
            if object.insert(key, value).is_some() {
                return self.fail("duplicate key");
            }
            self.skip_blanks();
            match self.next() {
                Some(',') => {}
                Some('}') => return Ok(Value::Object(object)),
                Some(_) => return self.fail("expected separator in dict"),
                None => return self.fail("premature EOI"),
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        self.chars.next();
        let mut list = Vec::new();
        self.skip_blanks();
        if self.take(']') {
            return Ok(Value::List(list));
        }
        loop {
            list.push(self.value(depth + 1)?);
            self.skip_blanks();
            match self.next() {
                Some(',') => {}
                Some(']') => return Ok(Value::List(list)),
                Some(_) => return self.fail("expected separator in list"),
                None => return self.fail("premature EOI"),
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = self.next();
        let mut string = String::new();
        loop {
            match self.next() {
                None => return self.fail("premature EOI"),
                end if end == quote => return Ok(string),
                Some('\\') => string.push(self.escape()?),
                Some(control) if control < ' ' => {
                    return self.fail("a control character in a string");
                }
                Some(char) => string.push(char),
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        Ok(match self.next() {
            Some(same @ ('"' | '\'' | '\\' | '/')) => same,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => return self.unicode(),
            _ => return self.fail("invalid escape sequence in string"),
        })
    }

    fn unicode(&mut self) -> Result<char, String> {
        let first = self.hex4()?;
        let code = match first {
            0xd800..=0xdbff => {
                let second =
                    if self.take('\\') && self.take('u') { self.hex4()? } else { u32::MAX };
                if !(0xdc00..=0xdfff).contains(&second) {
                    return self.fail(&format!("\\u{first:04x} is not a valid Unicode character"));
                }
                0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            code => code,
        };
        match char::from_u32(code) {
            Some(char) if char != '\0' => Ok(char),
            _ => self.fail(&format!("\\u{code:04x} is not a valid Unicode character")),
        }
    }

    fn hex4(&mut self) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..4 {
            match self.next().and_then(|char| char.to_digit(16)) {
                Some(digit) => code = code << 4 | digit,
                None => return self.fail("invalid escape sequence in string"),
            }
        }
        Ok(code)
    }

    fn number(&mut self) -> Result<Value, String> {
        let word = self.word(|char| char.is_ascii_alphanumeric() || "+-.".contains(char));
        let stray = || format!("JSON parse error, stray '{word}'");
        if !is_number(word) {
            return Err(stray());
        }
        if let Ok(whole) = word.parse::<i128>()
            && (i64::MIN.into()..=u64::MAX.into()).contains(&whole)
        {
            return Ok(Value::Scalar(Scalar::Integer(whole)));
        }
        let real: f64 = word.parse().map_err(|_| stray())?;
        if !real.is_finite() {
            return Err(stray());
        }
        // Exact below 2^53; one spelling for one number keeps what is printed stable.
        let whole = real.fract() == 0.0 && real.abs() < 9e15;
        let scalar = if whole { Scalar::Integer(real as i128) } else { Scalar::Real(real) };
        Ok(Value::Scalar(scalar))
    }

    fn keyword(&mut self) -> Result<Scalar, String> {
        let word = self.word(|char| char.is_ascii_alphanumeric());
        match word {
            "true" => Ok(Scalar::Bool(true)),
            "false" => Ok(Scalar::Bool(false)),
            "null" => Ok(Scalar::Null),
            _ => Err(format!("JSON parse error, invalid keyword '{word}'")),
        }
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> &str {
        let start = self.at();
        while self.chars.next_if(|&(_, char)| belongs(char)).is_some() {}
        let end = self.at();
        self.text.get(start..end).unwrap_or_default()
    }

    fn skip_blanks(&mut self) {
        while self.chars.next_if(|&(_, char)| matches!(char, ' ' | '\t' | '\r' | '\n')).is_some() {}
    }

    fn take(&mut self, char: char) -> bool {
        self.chars.next_if(|&(_, next)| next == char).is_some()
    }

    fn next(&mut self) -> Option<char> {
        self.chars.next().map(|(_, char)| char)
    }

    fn peek(&mut self) -> Option<char> {
        self.chars.peek().map(|&(_, char)| char)
    }

    fn at(&mut self) -> usize {
        self.chars.peek().map_or(self.text.len(), |&(at, _)| at)
    }

    fn fail<T>(&mut self, text: &str) -> Result<T, String> {
        Err(format!("JSON parse error, {text} (before byte {})", self.at()))
    }
}

/// The grammar of RFC 8259, section 6.
fn is_number(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let word = word.strip_prefix('-').unwrap_or(word);
    let (mantissa, exponent) = match word.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (word, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole.len() == 1 || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|text| digits(text.strip_prefix(['+', '-']).unwrap_or(text)))
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scalar(Scalar::String(text)) => quote(f, text),
            Self::Scalar(Scalar::Bool(value)) => value.fmt(f),
            Self::Scalar(Scalar::Null) => f.write_str("null"),
            Self::Scalar(number) => number.fmt(f),
            Self::List(list) => {
                f.write_char('[')?;
                for (at, value) in list.iter().enumerate() {
                    f.write_str(if at > 0 { ", " } else { "" })?;
                    value.fmt(f)?;
                }
                f.write_char(']')
            }
            Self::Object(object) => {
                f.write_char('{')?;
                for (at, (key, value)) in object.iter().enumerate() {
                    f.write_str(if at > 0 { ", " } else { "" })?;
                    quote(f, key)?;
                    write!(f, ": {value}")?;
                }
                f.write_char('}')
            }
        }
    }
}

fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for char in text.chars() {
        match char {
            '"' | '\\' => write!(f, "\\{char}")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            '\r' => f.write_str("\\r")?,
            control if control < ' ' => write!(f, "\\u{:04x}", u32::from(control))?,
            char => f.write_char(char)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).expect_err(text)
    }

    #[test]
    fn what_is_printed_reads_as_the_same_value() {
        let text =
            r#"{'a': [1, -2, 1.5e3, 0.25, "x\n\u0031\ud83d\ude00"], "b": {"c": null, "d": true}}"#;
        let value = parse(text).unwrap();
        let printed = value.to_string();
        assert_eq!(
            printed,
            "{\"a\": [1, -2, 1500, 0.25, \"x\\n1😀\"], \"b\": {\"c\": null, \"d\": true}}"
        );
        assert_eq!(parse(&printed), Ok(value));
    }

    #[test]
    fn whole_numbers_are_exact_to_64_bits() {
        let number = |text| match parse(text) {
            Ok(Value::Scalar(scalar)) => scalar,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(number("18446744073709551615"), Scalar::Integer(u64::MAX.into()));
        assert_eq!(number("-9223372036854775808"), Scalar::Integer(i64::MIN.into()));
        assert_eq!(number("18446744073709551616"), Scalar::Real(18446744073709551616.0));
        assert_eq!(number("-0"), Scalar::Integer(0));
        assert_eq!(number("1024.0"), Scalar::Integer(1024));
    }

    #[test]
    fn what_is_wrong_is_said_in_the_words_of_qemu() {
        for (text, words) in [
            ("", "Expecting a JSON value"),
            ("{} x", "Expecting at most one JSON value"),
            ("{", "JSON parse error, premature EOI"),
            (r#"{"a":1,}"#, "JSON parse error, expecting value"),
            (r#"{"a":1 "b":2}"#, "JSON parse error, expected separator in dict"),
            (r#"{"a":1,"a":2}"#, "JSON parse error, duplicate key"),
            (r#"{"a":01}"#, "JSON parse error, stray '01'"),
            (r#"{"a":nul}"#, "JSON parse error, invalid keyword 'nul'"),
            ("{a:1}", "JSON parse error, invalid keyword 'a'"),
            (r#"{"a":"\x"}"#, "JSON parse error, invalid escape sequence in string"),
            (r#""\ud800""#, "JSON parse error, \\ud800 is not a valid Unicode character"),
            (r#""\u0000""#, "JSON parse error, \\u0000 is not a valid Unicode character"),
            ("1e999", "JSON parse error, stray '1e999'"),
        ] {
            assert!(error(text).starts_with(words), "{text}: {}", error(text));
        }
    }

    #[test]
    fn nesting_ends_somewhere() {
        let deep = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&deep(MAX_DEPTH)).is_ok());
        assert!(error(&deep(MAX_DEPTH + 2)).contains("nested too deeply"));
        assert!(error(&"[".repeat(1 << 20)).contains("nested too deeply"));
    }
}
