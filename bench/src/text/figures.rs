//! Figures as fio prints them: four digits and a unit, latencies in one unit a line.

use crate::stats::Latency;

/// At most four digits, and a unit: `9880`, `12.3k`, `132k`, `4807k`.
pub fn count(value: f64) -> String {
    scaled(value, 1000.0, &["", "k", "M", "G", "T"])
}

/// Bytes in powers of 1024: `4096B`, `38.6MiB`, `1024KiB`.
pub fn binary(bytes: f64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// Bytes in powers of 1000: `40.5MB`.
pub fn decimal(bytes: f64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"])
}

fn scaled(mut value: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value.round() >= 10_000.0 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let places = match value {
        _ if unit == 0 => 0,
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.places$}{}", units[unit])
}

/// The unit of a latency line, and how many ns it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unit {
    /// fio's word.
    pub word: &'static str,
    /// ns in it.
    pub ns: u64,
}

const UNITS: [Unit; 3] = [
    Unit { word: "nsec", ns: 1 },
    Unit { word: "usec", ns: 1_000 },
    Unit { word: "msec", ns: 1_000_000 },
];

/// The unit in which latencies from `min` to `max` ns still have digits enough; fio's choice.
pub fn unit(min: u64, max: u64) -> Unit {
    let fits = |unit: &Unit| min > 2_000 * (unit.ns / 1_000) && max > 99_999 * (unit.ns / 1_000);
    UNITS[1..].iter().take_while(|unit| fits(unit)).last().copied().unwrap_or(UNITS[0])
}

/// `    clat (usec): min=24, max=86345, avg=373.30, stdev=2812.88`, with `word` to the right.
pub fn latency_line(word: &str, latency: &Latency) -> String {
    let unit = match latency.stddev() > 1_000.0 {
        true => unit(latency.min(), latency.max()),
        false => UNITS[0],
    };
    let whole = |ns: u64| scaled_whole(ns / unit.ns);
    let part = |ns: f64| ns / unit.ns as f64;
    format!(
        "{word:>8} ({}): min={}, max={}, avg={:5.2}, stdev={:5.2}\n",
        unit.word,
        whole(latency.min()),
        whole(latency.max()),
        part(latency.mean()),
        part(latency.stddev()),
    )
}

/// At most six digits: `86230k`.
fn scaled_whole(value: u64) -> String {
    match value {
        0..=999_999 => value.to_string(),
        1_000_000..=999_999_999 => format!("{}k", value / 1000),
        _ => format!("{}M", value / 1_000_000),
    }
}

/// The table of percentiles, four to a line.
pub fn percentile_lines(word: &str, latency: &Latency, list: &[f64]) -> String {
    let values: Vec<u64> = list.iter().map(|&percent| latency.percentile(percent)).collect();
    let (min, max) = (values.first().copied(), values.last().copied());
    let unit = unit(min.unwrap_or(0), max.unwrap_or(0));
    let values: Vec<u64> = values.iter().map(|ns| ns / unit.ns).collect();
    let digits = values.iter().map(|value| value.to_string().len()).max().unwrap_or(0).max(5);
    let places = if list.iter().all(|percent| percent.fract() == 0.0) { 0 } else { 2 };
    let width = if places == 0 { 3 } else { 5 };
    let cells: Vec<String> = list
        .iter()
        .zip(&values)
        .map(|(percent, value)| format!("{percent:>width$.places$}th=[{value:>digits$}]"))
        .collect();
    let mut text = format!("    {word} percentiles ({}):\n", unit.word);
    for (number, row) in cells.chunks(4).enumerate() {
        let comma = if (number + 1) * 4 < cells.len() { "," } else { "" };
        text += &format!("     | {}{comma}\n", row.join(", "));
    }
    text
}

/// `  lat (usec)   : 50=0.91%, 100=4.96%`, five to a line, without those of no I/O.
pub fn spread_lines(word: &str, shares: &[(String, f64)]) -> String {
    let there: Vec<String> = shares
        .iter()
        .filter(|(_, share)| *share > 0.0)
        .map(|(step, share)| format!("{step}={:.2}%", share.max(0.01)))
        .collect();
    there.chunks(5).map(|row| format!("  lat ({word})   : {}\n", row.join(", "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_as_fio_prints_them() {
        // Pairs out of fio 3.33's own reports.
        for (value, text) in [(9_880.0, "9880"), (4_807_000.0, "4807k"), (12_345.0, "12.3k")] {
            assert_eq!(count(value), text);
        }
        for (bytes, text) in [
            (4096.0, "4096B"),
            (20_480.0, "20.0KiB"),
            (16_777_216.0, "16.0MiB"),
            (1_048_576.0, "1024KiB"),
            (10_000.0, "9.77KiB"),
        ] {
            assert_eq!(binary(bytes), text);
        }
        assert_eq!((decimal(20_500.0), decimal(8_188_000.0)), ("20.5kB".into(), "8188kB".into()));
    }

    #[test]
    fn the_unit_of_a_line_is_fios() {
        for (min, max, word) in [
            (50, 2_484, "nsec"),
            (1_553, 86_230_000, "nsec"),
            (24_000, 86_345_000, "usec"),
            (3_000_000, 200_000_000, "msec"),
        ] {
            assert_eq!(unit(min, max).word, word, "{min} {max}");
        }
    }

    #[test]
    fn percentiles_stand_four_to_a_line() {
        let mut latency = Latency::new();
        (1..=1000).for_each(|ns| latency.record(ns));
        assert_eq!(
            percentile_lines("clat", &latency, &[1.0, 5.0, 10.0, 50.0, 99.95]),
            "    clat percentiles (nsec):\n     |  1.00th=[   10],  5.00th=[   50], \
             10.00th=[  100], 50.00th=[  500],\n     | 99.95th=[ 1000]\n"
        );
        let whole = percentile_lines("lat", &latency, &[50.0, 99.0]);
        assert_eq!(whole, "    lat percentiles (nsec):\n     |  50th=[  500],  99th=[  990]\n");
    }
}
