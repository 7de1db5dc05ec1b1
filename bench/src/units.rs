//! fio's number words, both ways: `4k`, `10m`, `50%` in; `4 KiB`, `3.21 M`, `9.7 us` out.

use std::time::Duration;

/// A quantity of data as a job names it: bytes, or a share of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the target's length, 0 to 100.
    Percent(u8),
}

impl Size {
    /// The bytes meant on a target of `length` bytes.
    pub fn of(self, length: u64) -> u64 {
        match self {
            Size::Bytes(bytes) => bytes,
            Size::Percent(share) => (u128::from(length) * u128::from(share) / 100) as u64,
        }
    }
}

/// Reads a quantity of data the way fio does by default (`kb_base=1024`): `k`, `m`, `g`, `t`, `p`
/// are powers of 1024, `ki`, `mi` and so on powers of 1000 (fio keeps this for old scripts), an
/// ending `b` changes nothing, case does not matter, `0x` starts a hexadecimal number.
///
/// Errors: a sentence that says what is wrong with the word.
pub fn parse_bytes(word: &str) -> Result<u64, String> {
    let lower = word.trim().to_ascii_lowercase();
    let (number, unit) = split_number(&lower);
    let factor = data_unit(unit)
        .ok_or_else(|| format!("`{word}`: the unit `{unit}` is none of k, m, g, t, p"))?;
    let value = parse_integer(number)
        .ok_or_else(|| format!("`{word}` is not a size; write it like 4096, 4k, 1m or 2g"))?;
    value.checked_mul(factor).ok_or_else(|| format!("`{word}` is above 2^64 bytes"))
}

/// Reads a size that may also be a percentage, as in `size=50%`.
///
/// Errors: as [`parse_bytes`], or a percentage above 100.
pub fn parse_size(word: &str) -> Result<Size, String> {
    let Some(share) = word.trim().strip_suffix('%') else {
        return parse_bytes(word).map(Size::Bytes);
    };
    match share.trim().parse::<u8>() {
        Ok(share) if share <= 100 => Ok(Size::Percent(share)),
        _ => Err(format!("`{word}` is not a percentage between 0% and 100%")),
    }
}

/// Reads a time: seconds, unless one of `us`, `ms`, `s`, `m`, `h`, `d` follows.
///
/// Errors: a sentence that says what is wrong with the word.
pub fn parse_time(word: &str) -> Result<Duration, String> {
    let lower = word.trim().to_ascii_lowercase();
    let (number, unit) = split_number(&lower);
    let nanos: u64 = match unit {
        "us" | "usec" => 1_000,
        "ms" | "msec" => 1_000_000,
        "" | "s" | "sec" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => {
            return Err(format!("`{word}`: the unit `{unit}` is none of us, ms, s, m, h, d"));
        }
    };
    parse_integer(number)
        .and_then(|value| value.checked_mul(nanos))
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("`{word}` is not a time; write it like 10, 500ms or 2m"))
}

/// Reads a plain whole number, decimal or `0x` hexadecimal.
///
/// Errors: a sentence that says what is wrong with the word.
pub fn parse_number(word: &str) -> Result<u64, String> {
    parse_integer(&word.trim().to_ascii_lowercase())
        .ok_or_else(|| format!("`{word}` is not a whole number"))
}

/// The greatest common divisor; of 0 and a number, that number.
pub(crate) fn common_divisor(a: u32, b: u32) -> u32 {
    let (mut a, mut b) = (a, b);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn split_number(word: &str) -> (&str, &str) {
    let digits = if word.starts_with("0x") {
        return (word, "");
    } else {
        word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len())
    };
    let (number, unit) = word.split_at(digits);
    (number, unit.trim())
}

fn parse_integer(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

fn data_unit(unit: &str) -> Option<u64> {
    let prefix = unit.strip_suffix('b').unwrap_or(unit);
    let (letter, base): (&str, u64) = match prefix.strip_suffix('i') {
        Some(letter) => (letter, 1000),
        None => (prefix, 1024),
    };
    let power = match letter {
        "" if base == 1024 => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    Some(base.pow(power))
}

/// Bytes for a reader: exact in the largest binary unit that divides them, else three figures.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut whole = bytes;
    while unit + 1 < UNITS.len() && whole >= 1024 && whole.is_multiple_of(1024) {
        whole /= 1024;
        unit += 1;
    }
    if whole < 1024 {
        return format!("{whole} {}", UNITS[unit]);
    }
    let mut value = bytes as f64;
    unit = 0;
    while unit + 1 < UNITS.len() && value >= 1024.0 {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_figures(value), UNITS[unit])
}

/// A count for a reader: `950`, `12.3 k`, `3.21 M`.
pub fn format_count(count: f64) -> String {
    const UNITS: [&str; 5] = ["", " k", " M", " G", " T"];
    let mut value = count;
    let mut unit = 0;
    while unit + 1 < UNITS.len() && value >= 999.5 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 && value.fract() == 0.0 {
        return format!("{value:.0}");
    }
    format!("{}{}", three_figures(value), UNITS[unit])
}

/// A time for a reader: `640 ns`, `9.72 us`, `1.20 ms`, `3.00 s`.
pub fn format_ns(ns: f64) -> String {
    const UNITS: [&str; 4] = ["ns", "us", "ms", "s"];
    let mut value = ns;
    let mut unit = 0;
    while unit + 1 < UNITS.len() && value >= 999.5 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 && value.fract() == 0.0 {
        return format!("{value:.0} ns");
    }
    format!("{} {}", three_figures(value), UNITS[unit])
}

fn three_figures(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_fio() {
        // The examples of fio's manual for kb_base=1024.
        for word in ["4096", "4096b", "4096B", "4k", "4kb", "4kB", "4K", "4KB", "0x1000"] {
            assert_eq!(parse_bytes(word), Ok(4096), "{word}");
        }
        assert_eq!(parse_bytes("1m"), Ok(1 << 20));
        assert_eq!(parse_bytes("1mi"), Ok(1_000_000));
        assert_eq!(parse_bytes("1000ki"), Ok(1_000_000));
        assert_eq!(parse_bytes("1t"), Ok(1 << 40));
        for word in ["", "k", "4x", "-1", "4 4", "20000000000g", "1.5k", "0xzz", "4i"] {
            assert!(parse_bytes(word).is_err(), "{word}");
        }
    }

    #[test]
    fn percentages_are_shares_of_the_target() {
        assert_eq!(parse_size("50%"), Ok(Size::Percent(50)));
        assert_eq!(Size::Percent(50).of(1 << 40), 1 << 39);
        assert_eq!(Size::Percent(100).of(u64::MAX), u64::MAX);
        assert!(parse_size("101%").is_err());
        assert!(parse_size("x%").is_err());
    }

    #[test]
    fn times_follow_fio() {
        assert_eq!(parse_time("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("20us"), Ok(Duration::from_micros(20)));
        assert_eq!(parse_time("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_time("2y").is_err());
        assert!(parse_time("").is_err());
        assert!(parse_time("99999999999d").is_err());
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(format_bytes(4096), "4 KiB");
        assert_eq!(format_bytes(0), "0 B");
        assert_eq!(format_bytes(1536), "1.50 KiB");
        assert_eq!(format_bytes(13_421_772_801), "12.5 GiB");
        assert_eq!(format_count(950.0), "950");
        assert_eq!(format_count(12_340.0), "12.3 k");
        assert_eq!(format_count(3_210_000.0), "3.21 M");
        assert_eq!(format_count(999_600.0), "1.00 M");
        assert_eq!(format_ns(640.0), "640 ns");
        assert_eq!(format_ns(9_720.0), "9.72 us");
        assert_eq!(format_ns(3e9), "3.00 s");
    }
}
