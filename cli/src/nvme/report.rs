//! What a command has to say, once for people and once for scripts.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

/// A report in both shapes.
pub struct Report {
    pub text: String,
    pub json: Value,
}

impl Report {
    /// A sentence, and what a script needs to know of it.
    pub fn done(text: impl Into<String>, json: Value) -> Report {
        Report { text: text.into(), json }
    }
}

/// Fields one under the other, with a title.
#[derive(Default)]
pub struct Sheet {
    title: String,
    rows: Vec<(String, String)>,
    json: Map<String, Value>,
    below: String,
}

impl Sheet {
    /// An empty sheet.
    pub fn new(title: impl Into<String>) -> Sheet {
        Sheet { title: title.into(), ..Sheet::default() }
    }

    /// A number.
    pub fn number(&mut self, key: &str, value: impl Into<u128>) -> &mut Sheet {
        let value = value.into();
        self.shown(key, json_number(value), value.to_string())
    }

    /// A number that people read in hexadecimal.
    pub fn hex(&mut self, key: &str, value: impl Into<u128>) -> &mut Sheet {
        let value = value.into();
        self.shown(key, json_number(value), format!("{value:#x}"))
    }

    /// Text.
    pub fn text(&mut self, key: &str, text: &str) -> &mut Sheet {
        self.shown(key, text.into(), text.to_owned())
    }

    /// A value, and how people read it.
    pub fn shown(&mut self, key: &str, value: Value, shown: String) -> &mut Sheet {
        self.rows.push((key.to_owned(), shown));
        self.json(key, value)
    }

    /// A value for scripts only.
    pub fn json(&mut self, key: &str, value: Value) -> &mut Sheet {
        self.json.insert(key.to_owned(), value);
        self
    }

    /// A line below the fields, for people only.
    pub fn line(&mut self, line: &str) -> &mut Sheet {
        let _ = writeln!(self.below, "{line}");
        self
    }

    /// The report.
    pub fn report(self) -> Report {
        let width = self.rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
        let mut text = format!("{}:\n", self.title);
        for (key, shown) in &self.rows {
            let _ = writeln!(text, "{key:width$} : {shown}");
        }
        text.push_str(&self.below);
        Report { text, json: Value::Object(self.json) }
    }
}

/// A number as JSON; one beyond 64 bits, which JSON readers lose, as text.
pub fn json_number(value: u128) -> Value {
    match u64::try_from(value) {
        Ok(value) => Value::Number(Number::from(value)),
        Err(_) => Value::String(value.to_string()),
    }
}

/// Bytes as hexadecimal digits.
pub fn hex_digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes as people count disks: 1000 to the kilobyte.
pub fn decimal_bytes(bytes: u128) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 { 0 } else { 2 };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_lines_up_and_keeps_its_numbers() {
        let mut sheet = Sheet::new("A controller");
        sheet.number("nn", 16u8).hex("oacs", 0x10au16).number("tnvmcap", u128::MAX);
        let report = sheet.report();
        assert!(report.text.contains("nn      : 16\noacs    : 0x10a\n"), "{}", report.text);
        assert_eq!(report.json["nn"], 16);
        assert_eq!(report.json["tnvmcap"], u128::MAX.to_string());
    }

    #[test]
    fn bytes_are_counted_in_thousands() {
        assert_eq!(decimal_bytes(999), "999 B");
        assert_eq!(decimal_bytes(512_110_190_592), "512.11 GB");
        assert_eq!(decimal_bytes(u128::from(u64::MAX)), "18.45 EB");
    }
}
