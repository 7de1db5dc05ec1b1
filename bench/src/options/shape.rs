//! What makes a job more than blocks of one size, as fast as they go: sizes, places and pace.

use std::time::Duration;

use crate::options::{ExitWhat, OptionError};
use crate::pattern::Prng;
use crate::units::{common_divisor, parse_bytes, parse_number};

/// The options of a job that ask more of its hot loop. [`Default`] asks nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Block sizes of reads, writes and trims, where they are not all `bs`.
    pub sizes: Option<[BlockSizes; 3]>,
    /// What random offsets of reads, writes and trims are multiples of, bytes.
    pub align: Option<[u32; 3]>,
    /// How random blocks spread over the range.
    pub distribution: Distribution,
    /// Random offsets in a hundred, of reads, writes and trims, where `rw` is random.
    pub random_percent: [u8; 3],
    /// A random place is followed by so many I/Os, itself included, before the next is drawn.
    pub run: u32,
    /// Those that follow are at the same place, and not one after the other.
    pub run_is_identical: bool,
    /// Bytes left out after each sequential I/O.
    pub hole: u64,
    /// At most so many I/Os are submitted together.
    pub batch: Option<u32>,
    /// Nothing is submitted before so many have completed since.
    pub batch_complete_min: u32,
    /// A full queue is drained to this depth before it is filled again.
    pub depth_low: Option<u32>,
    /// I/Os that each clone does at most.
    pub number_ios: Option<u64>,
    /// The clones wait this long before they begin.
    pub start_delay: Duration,
    /// A flush after each so many writes; 0: none.
    pub fsync: u32,
    /// A flush at the end.
    pub end_fsync: bool,
    /// Rest after each `think_blocks` I/Os.
    pub think: Duration,
    /// See `think`; `None`: 1, or where `think_io_time` is given any number.
    pub think_blocks: Option<u32>,
    /// How much of a rest is spent awake.
    pub think_spin: Duration,
    /// Rest after so long, too; 0: only after `think_blocks`.
    pub think_io_time: Duration,
    /// A rest does not wait for what is in flight.
    pub think_at_issue: bool,
    /// Bytes a second of reads, writes and trims; 0: no limit.
    pub rate: [u64; 3],
    /// I/Os a second of reads, writes and trims; 0: no limit.
    pub rate_iops: [u64; 3],
    /// I/Os under a rate come at random (a Poisson process) and not at even distances.
    pub poisson: bool,
    /// New random contents for each write.
    pub refill: bool,
    /// A few new bytes in each sector of each write.
    pub scramble: bool,
    /// Writes in a hundred that have the contents of the one before.
    pub dedupe_percent: u8,
    /// Errnos of reads, and of writes and trims, that are counted and no failure of the job.
    pub ignored_errors: [Vec<i32>; 2],
    /// Go on after I/Os that fail: of reads, and of writes and trims.
    pub continue_on_error: [bool; 2],
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            sizes: None,
            align: None,
            distribution: Distribution::Random,
            random_percent: [100; 3],
            run: 1,
            run_is_identical: false,
            hole: 0,
            batch: None,
            batch_complete_min: 1,
            depth_low: None,
            number_ios: None,
            start_delay: Duration::ZERO,
            fsync: 0,
            end_fsync: false,
            think: Duration::ZERO,
            think_blocks: None,
            think_spin: Duration::ZERO,
            think_io_time: Duration::ZERO,
            think_at_issue: false,
            rate: [0; 3],
            rate_iops: [0; 3],
            poisson: false,
            refill: false,
            scramble: false,
            dedupe_percent: 0,
            ignored_errors: [const { Vec::new() }; 2],
            continue_on_error: [false; 2],
        }
    }
}

impl Shape {
    /// Does it ask anything?
    pub fn is_plain(&self) -> bool {
        *self == Shape::default()
    }

    /// Is any direction under a rate?
    pub fn has_rate(&self) -> bool {
        self.rate.iter().chain(&self.rate_iops).any(|&rate| rate > 0)
    }

    /// Do options contradict each other?
    pub(super) fn check(&self, depth: u32) -> Result<(), OptionError> {
        let wrong = |option: &str, message: &str| {
            Err(OptionError { option: option.to_owned(), message: message.to_owned() })
        };
        if self.poisson && !self.has_rate() {
            return wrong("rate_process", "needs rate or rate_iops");
        }
        if self.depth_low.is_some_and(|low| low >= depth) {
            return wrong("iodepth_low", "must be below iodepth");
        }
        if self.batch_complete_min > depth {
            return wrong("iodepth_batch_complete_min", "is above iodepth");
        }
        Ok(())
    }
}

/// Block sizes and how often each is drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum BlockSizes {
    /// Any multiple of the first up to the second, bytes.
    Range(u32, u32),
    /// Each size with its share; the shares sum up to 100.
    Split(Vec<(u32, f64)>),
}

impl BlockSizes {
    /// The smallest, bytes.
    pub fn min(&self) -> u32 {
        match self {
            BlockSizes::Range(low, _) => *low,
            BlockSizes::Split(list) => list.iter().map(|&(size, _)| size).min().unwrap_or(1),
        }
    }

    /// The largest, bytes.
    pub fn max(&self) -> u32 {
        match self {
            BlockSizes::Range(low, high) => high / low * low,
            BlockSizes::Split(list) => list.iter().map(|&(size, _)| size).max().unwrap_or(1),
        }
    }

    /// What is drawn in the mean, bytes.
    pub fn mean(&self) -> f64 {
        match self {
            BlockSizes::Range(low, _) => f64::from(*low + self.max()) / 2.0,
            BlockSizes::Split(list) => {
                list.iter().map(|&(size, p)| f64::from(size) * p / 100.0).sum()
            }
        }
    }

    /// What all of them are multiples of, bytes.
    pub fn common(&self) -> u32 {
        match self {
            BlockSizes::Range(low, _) => *low,
            BlockSizes::Split(list) => list.iter().fold(0, |all, part| common_divisor(all, part.0)),
        }
    }

    /// Are they all multiples of `unit`?
    pub fn fit(&self, unit: u32) -> bool {
        match self {
            BlockSizes::Range(low, _) => low.is_multiple_of(unit),
            BlockSizes::Split(list) => list.iter().all(|&(size, _)| size.is_multiple_of(unit)),
        }
    }
}

/// fio's `random_distribution`.
#[derive(Clone, Debug, PartialEq)]
pub enum Distribution {
    /// All blocks alike.
    Random,
    /// The block of rank k is drawn as often as k to the power of minus theta.
    Zipf(f64),
    /// Of skew h, between 0 and 1: the share h of the I/Os goes to the share 1 - h of the blocks.
    Pareto(f64),
    /// Around the middle of the range, with a deviation of so many hundredths of it.
    Normal(f64),
    /// Pairs of I/Os in a hundred and the share of the range, in a hundred, that they go to.
    Zoned(Vec<(f64, f64)>),
    /// The same with zones in bytes; those past the end of the range have no I/Os.
    ZonedAbs(Vec<(f64, u64)>),
}

/// What is written where nothing is verified.
#[derive(Clone, Debug, PartialEq)]
pub enum Contents {
    /// Random bytes.
    Random,
    /// Zeroes.
    Zero,
    /// These bytes, over and over.
    Pattern(Vec<u8>),
    /// Random bytes, of which so many in a hundred of each 512 are zeroes.
    Compressible(u8),
}

impl Contents {
    /// Fills a block.
    pub(crate) fn fill(&self, random: &mut Prng, block: &mut [u8]) {
        match self {
            Contents::Zero => block.fill(0),
            Contents::Random => fill_random(random, block),
            Contents::Pattern(bytes) => {
                for (place, byte) in block.iter_mut().zip(bytes.iter().cycle()) {
                    *place = *byte;
                }
            }
            Contents::Compressible(percent) => {
                for chunk in block.chunks_mut(512) {
                    let random_len = chunk.len() * (100 - usize::from(*percent)) / 100;
                    let (head, tail) = chunk.split_at_mut(random_len);
                    fill_random(random, head);
                    tail.fill(0);
                }
            }
        }
    }
}

fn fill_random(random: &mut Prng, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.next_u64().to_le_bytes()[..chunk.len()]);
    }
}

/// The values of reads, writes and trims out of a list with commas. A value that is left out at
/// the end is that of the one before it; one that is empty keeps what was there.
pub(super) fn triple<T: Clone>(
    word: &str,
    before: [T; 3],
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<[T; 3], String> {
    let parts: Vec<&str> = word.split(',').map(str::trim).collect();
    if parts.len() > 3 {
        return Err(format!("`{word}` has more than three values (reads, writes, trims)"));
    }
    let mut all = before;
    let mut last: Option<T> = None;
    for (at, place) in all.iter_mut().enumerate() {
        match parts.get(at) {
            Some(&"") if parts.len() > 1 => last = None,
            Some(part) => {
                let value = read(part)?;
                last = Some(value.clone());
                *place = value;
            }
            None => {
                if let Some(value) = &last {
                    *place = value.clone();
                }
            }
        }
    }
    Ok(all)
}

/// A size that a block may have.
pub(super) fn block_size(word: &str) -> Result<u32, String> {
    match u32::try_from(parse_bytes(word)?) {
        Ok(size) if size > 0 && size <= 1 << 30 => Ok(size),
        _ => Err(format!("`{word}` is not between 1 byte and 1 GiB")),
    }
}

pub(super) fn range(word: &str) -> Result<BlockSizes, String> {
    let (low, high) = word
        .split_once(['-', ':'])
        .ok_or_else(|| format!("`{word}` is not a range such as 4k-64k"))?;
    let (low, high) = (block_size(low)?, block_size(high)?);
    if low > high {
        return Err(format!("`{word}` begins above its end"));
    }
    Ok(BlockSizes::Range(low, high))
}

pub(super) fn split(word: &str) -> Result<BlockSizes, String> {
    let mut list = Vec::new();
    let mut open = Vec::new();
    for part in word.split(':') {
        let (size, share) = part.split_once('/').unwrap_or((part, ""));
        match share.trim() {
            "" => {
                open.push(list.len());
                list.push((block_size(size)?, 0.0));
            }
            share => list.push((block_size(size)?, percent(share)?)),
        }
    }
    let sum: f64 = list.iter().map(|&(_, share)| share).sum();
    if sum > 100.0 || (open.is_empty() && sum < 100.0) {
        return Err(format!("`{word}`: the shares sum up to {sum}, not to 100"));
    }
    let left = (100.0 - sum) / open.len().max(1) as f64;
    open.into_iter().for_each(|at| list[at].1 = left);
    Ok(BlockSizes::Split(list))
}

pub(super) fn distribution(word: &str) -> Result<Distribution, String> {
    let (kind, value) = word.split_once(':').unwrap_or((word, ""));
    let number = |what: &str, low: f64, high: f64| match value.trim().parse::<f64>() {
        Ok(value) if value > low && value < high => Ok(value),
        _ => Err(format!("`{word}`: {what} is a number above {low} and below {high}")),
    };
    match kind {
        "random" => Ok(Distribution::Random),
        "zipf" => number("theta", 0.0, 100.0).map(Distribution::Zipf),
        "pareto" => number("h", 0.0, 1.0).map(Distribution::Pareto),
        "normal" | "gauss" => number("the deviation", 0.0, 100.1).map(Distribution::Normal),
        "zoned" => zones(word, value).map(Distribution::Zoned),
        "zoned_abs" => zones_abs(word, value).map(Distribution::ZonedAbs),
        _ => {
            Err(format!("`{word}` is none of random, zipf:, pareto:, normal:, zoned:, zoned_abs:"))
        }
    }
}

fn zones(word: &str, value: &str) -> Result<Vec<(f64, f64)>, String> {
    let mut zones = Vec::new();
    for part in value.split(':') {
        let (ios, share) = part
            .split_once('/')
            .ok_or_else(|| format!("`{word}`: a zone is I/Os/size in hundredths, such as 60/10"))?;
        zones.push((percent(ios)?, percent(share)?));
    }
    let sum = |of: fn(&(f64, f64)) -> f64| zones.iter().map(of).sum::<f64>();
    let (ios, size) = (sum(|zone| zone.0), sum(|zone| zone.1));
    if (ios - 100.0).abs() > 0.01 || (size - 100.0).abs() > 0.01 {
        return Err(format!("`{word}`: the I/Os sum up to {ios}, the sizes to {size}, not to 100"));
    }
    if zones.iter().any(|&(ios, share)| ios > 0.0 && share <= 0.0) {
        return Err(format!("`{word}`: a zone of no size cannot have I/Os"));
    }
    Ok(zones)
}

fn zones_abs(word: &str, value: &str) -> Result<Vec<(f64, u64)>, String> {
    let mut zones = Vec::new();
    for part in value.split(':') {
        let (ios, size) = part
            .split_once('/')
            .ok_or_else(|| format!("`{word}`: a zone is I/Os/size, such as 60/10m"))?;
        zones.push((percent(ios)?, parse_bytes(size)?));
    }
    let ios: f64 = zones.iter().map(|zone| zone.0).sum();
    if (ios - 100.0).abs() > 0.01 {
        return Err(format!("`{word}`: the I/Os sum up to {ios}, not to 100"));
    }
    if zones.first().is_some_and(|zone| zone.0 <= 0.0)
        || zones.iter().any(|&(ios, size)| ios > 0.0 && size == 0)
    {
        return Err(format!("`{word}`: the first zone must have I/Os, and those with I/Os a size"));
    }
    Ok(zones)
}

fn percent(word: &str) -> Result<f64, String> {
    match word.trim().trim_end_matches('%').parse::<f64>() {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err(format!("`{word}` is not a share between 0 and 100")),
    }
}

/// A rate that may also be nothing: 0.
pub(super) fn rates(word: &str, of: fn(&str) -> Result<u64, String>) -> Result<[u64; 3], String> {
    triple(word, [0; 3], of)
}

pub(super) fn exit_what(word: &str) -> Result<ExitWhat, String> {
    match word {
        "group" => Ok(ExitWhat::Group),
        "stonewall" => Ok(ExitWhat::Stonewall),
        "all" => Ok(ExitWhat::All),
        _ => Err(format!("`{word}` is none of group, stonewall, all")),
    }
}

pub(super) fn continued(word: &str) -> Result<[bool; 2], String> {
    match word {
        // What is bad never ends a job but with verify_fatal.
        "none" | "0" | "verify" => Ok([false, false]),
        "read" => Ok([true, false]),
        "write" => Ok([false, true]),
        "io" | "all" | "1" => Ok([true, true]),
        _ => Err(format!("`{word}` is none of none, read, write, io, verify, all")),
    }
}

pub(super) fn percentiles(word: &str) -> Result<Vec<f64>, String> {
    let list = word.split([':', ',']).map(|part| match part.trim().parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 100.0 => Ok(value),
        _ => Err(format!("`{part}` is not a percentile above 0 and up to 100")),
    });
    let mut list: Vec<f64> = list.collect::<Result<_, _>>()?;
    list.sort_by(f64::total_cmp);
    match list.len() {
        0..=20 => Ok(list),
        count => Err(format!("{count} percentiles are more than fio's 20")),
    }
}

/// fio's pattern: numbers (`0x` or decimal, bytes from the highest on) and "strings", in a row.
pub(super) fn pattern(word: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = word.trim();
    let wrong = || format!("`{word}` is not a pattern such as 0xdeadbeef, 170 or \"text\"");
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('"') {
            let (text, after) = inner.split_once('"').ok_or_else(wrong)?;
            bytes.extend_from_slice(text.as_bytes());
            rest = after;
        } else {
            let end = rest.find('"').unwrap_or(rest.len());
            let (number, after) = rest.split_at_checked(end).ok_or_else(wrong)?;
            bytes.extend(numeral(number).ok_or_else(wrong)?);
            rest = after;
        }
    }
    match bytes.len() {
        1..=512 => Ok(bytes),
        _ => Err(wrong()),
    }
}

fn numeral(word: &str) -> Option<Vec<u8>> {
    let Some(digits) = word.strip_prefix("0x") else {
        let value = parse_number(word).ok()?;
        let bytes = value.to_le_bytes();
        let len = bytes.iter().rposition(|&byte| byte != 0).map_or(1, |at| at + 1);
        return Some(bytes[..len].to_vec());
    };
    let digits: Option<Vec<u8>> = digits.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let mut digits = digits.filter(|digits| !digits.is_empty())?;
    if digits.len() % 2 == 1 {
        digits.insert(0, 0);
    }
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triples_follow_fio() {
        let of = |word| triple(word, [1, 1, 1], block_size);
        assert_eq!(of("8k"), Ok([8192; 3]));
        assert_eq!(of("8k,32k"), Ok([8192, 32_768, 32_768]));
        assert_eq!(of("8k,32k,"), Ok([8192, 32_768, 1]));
        assert_eq!(of(",8k"), Ok([1, 8192, 8192]));
        assert_eq!(of(",8k,"), Ok([1, 8192, 1]));
        assert!(of("1,2,3,4").is_err() && of("").is_err());
    }

    #[test]
    fn splits_sum_up() {
        let list = |word| match split(word) {
            Ok(BlockSizes::Split(list)) => list,
            other => panic!("{other:?}"),
        };
        assert_eq!(list("4k/10:64k/50:32k/40"), [(4096, 10.0), (65_536, 50.0), (32_768, 40.0)]);
        assert_eq!(list("4k/50:1k/:32k/"), [(4096, 50.0), (1024, 25.0), (32_768, 25.0)]);
        for bad in ["4k/50", "4k/60:8k/60", "0/100", "", "4k/x", ":"] {
            assert!(split(bad).is_err(), "{bad}");
        }
        assert_eq!(range("4k-10k").map(|sizes| sizes.max()), Ok(8192));
        assert!(range("8k-4k").is_err() && range("4k").is_err());
    }

    #[test]
    fn distributions_are_read() {
        assert_eq!(distribution("zipf:1.2"), Ok(Distribution::Zipf(1.2)));
        let zones = Distribution::Zoned(vec![(60.0, 10.0), (40.0, 90.0)]);
        assert_eq!(distribution("zoned:60/10:40/90"), Ok(zones));
        for bad in
            ["zipf", "zipf:0", "zipf:nan", "pareto:1", "zoned:60/10", "zoned:100/0:0/100", "x"]
        {
            assert!(distribution(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_are_bytes() {
        assert_eq!(pattern("0xdeadbeef"), Ok(vec![0xde, 0xad, 0xbe, 0xef]));
        assert_eq!(pattern("0xabc"), Ok(vec![0x0a, 0xbc]));
        assert_eq!(pattern("170"), Ok(vec![170]));
        assert_eq!(pattern("\"ab\"0x00\"c\""), Ok(b"ab\0c".to_vec()));
        for bad in ["", "0x", "0xzz", "\"a", "\u{e9}", "x"] {
            assert!(pattern(bad).is_err(), "{bad}");
        }
    }
}
