//! fio's `verify_pattern`: bytes that fill a block over and over, with the block's offset in them
//! where `%o` stands.

use crate::units::parse_number;

/// The most bytes that one may have, as in fio.
const LEN_MAX: usize = 512;

/// A pattern as it is laid over a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    bytes: Vec<u8>,
    /// Where the offset of the block stands, 8 bytes little-endian each.
    offsets: Vec<usize>,
}

impl Pattern {
    /// Reads a row of numbers (hexadecimal after `0x`, its bytes from the highest on; decimal, as
    /// few bytes as hold it from the lowest on), `"strings"` and `%o`.
    ///
    /// Errors: a sentence that says what a pattern looks like.
    pub fn parse(word: &str) -> Result<Pattern, String> {
        let mut pattern = Pattern { bytes: Vec::new(), offsets: Vec::new() };
        let mut rest = word.trim();
        while !rest.is_empty() {
            let after = pattern.take(rest);
            rest = after.ok_or_else(|| {
                format!("`{word}` is not a pattern such as 0xdeadbeef, 170, \"text\" or 0xff%o")
            })?;
        }
        match pattern.bytes.len() {
            1..=LEN_MAX => Ok(pattern),
            count => Err(format!("`{word}` has {count} bytes, a pattern has 1 to {LEN_MAX}")),
        }
    }

    /// Takes one part off the front. What is left of the word.
    fn take<'a>(&mut self, word: &'a str) -> Option<&'a str> {
        if let Some(rest) = word.strip_prefix("%o") {
            self.offsets.push(self.bytes.len());
            self.bytes.extend([0; 8]);
            return Some(rest);
        }
        if let Some(inner) = word.strip_prefix('"') {
            let (text, rest) = inner.split_once('"')?;
            self.bytes.extend_from_slice(text.as_bytes());
            return Some(rest);
        }
        let lead = if word.starts_with("0x") || word.starts_with("0X") { 2 } else { 1 };
        let body = word.get(lead..)?;
        let end = body.find(['%', '"', '-']).map_or(word.len(), |at| lead + at);
        let (number, rest) = word.split_at_checked(end)?;
        match lead {
            2 => self.bytes.extend(hexadecimal(&number[2..])?),
            _ => self.bytes.extend(decimal(number)?),
        }
        Some(rest)
    }

    /// Fills `block`, which belongs at `offset` and of which the part from `skip` on is given.
    pub(super) fn fill(&self, offset: u64, skip: usize, block: &mut [u8]) {
        let bytes = self.bytes.iter().cycle().skip(skip % self.bytes.len());
        block.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        let first = skip / self.bytes.len() * self.bytes.len();
        for round in (first..skip + block.len()).step_by(self.bytes.len()) {
            for at in &self.offsets {
                for (place, byte) in (round + at..).zip(offset.to_le_bytes()) {
                    if let Some(place) = place.checked_sub(skip).and_then(|at| block.get_mut(at)) {
                        *place = byte;
                    }
                }
            }
        }
    }

    /// Is `block` what [`Pattern::fill`] makes?
    pub(super) fn is_in(&self, offset: u64, skip: usize, block: &[u8]) -> bool {
        let word = offset.to_le_bytes();
        let mut at = skip % self.bytes.len();
        block.iter().all(|&found| {
            let own = self.offsets.iter().rev().find(|&&start| start <= at && at < start + 8);
            let expected = own.map_or(self.bytes[at], |start| word[at - start]);
            at = if at + 1 == self.bytes.len() { 0 } else { at + 1 };
            found == expected
        })
    }

    /// The offset that stands in a block filled from its start on, if one stands there.
    pub(super) fn offset_in(&self, block: &[u8]) -> Option<u64> {
        let at = *self.offsets.first()?;
        let bytes = block.get(at..at + 8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// A number that tells patterns apart.
    pub(super) fn fingerprint(&self) -> u32 {
        let places = self
            .offsets
            .iter()
            .fold(0, |crc, at| crc32c::crc32c_append(crc, &(*at as u64).to_le_bytes()));
        crc32c::crc32c_append(places, &self.bytes)
    }
}

fn hexadecimal(word: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        word.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let mut digits = digits.filter(|digits| !digits.is_empty())?;
    if digits.len() % 2 == 1 {
        digits.insert(0, 0);
    }
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// The bytes of a decimal number; one below zero has the four of its two's complement, as in fio.
fn decimal(word: &str) -> Option<Vec<u8>> {
    if word.starts_with('-') {
        return word.parse::<i32>().ok().map(|value| value.to_le_bytes().to_vec());
    }
    let bytes = parse_number(word).ok()?.to_le_bytes();
    let len = bytes.iter().rposition(|&byte| byte != 0).map_or(1, |at| at + 1);
    Some(bytes[..len].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(word: &str, offset: u64, len: usize) -> Vec<u8> {
        let mut block = vec![0xee; len];
        Pattern::parse(word).expect("a pattern").fill(offset, 0, &mut block);
        block
    }

    #[test]
    fn patterns_are_read_as_fio_reads_them() {
        assert_eq!(filled("0xdeadbeef", 0, 6), [0xde, 0xad, 0xbe, 0xef, 0xde, 0xad]);
        assert_eq!(filled("0xabc", 0, 2), [0x0a, 0xbc]);
        assert_eq!(filled("170", 0, 2), [0xaa, 0xaa]);
        assert_eq!(filled("256", 0, 3), [0, 1, 0]);
        assert_eq!(filled("\"abc\"", 0, 4), *b"abca");
        let mixed = filled("0xff%o\"abcd\"-12", 0x0102, 17);
        assert_eq!(mixed[..9], [0xff, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(mixed[9..], [b'a', b'b', b'c', b'd', 0xf4, 0xff, 0xff, 0xff]);
        for bad in ["", "0x", "abc", "\"abc", "%p", "0xfg", "%o%", "-", "99999999999999999999999"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        assert!(Pattern::parse(&format!("\"{}\"", "x".repeat(513))).is_err());
    }

    #[test]
    fn a_part_of_a_block_is_filled_as_the_whole_is() {
        for word in ["%o", "0xaa%o\"xyz\"", "0x12", "\"abcdefg\"%o%o"] {
            let whole = filled(word, 0x1122_3344_5566, 700);
            let pattern = Pattern::parse(word).expect("a pattern");
            for skip in [0, 1, 7, 8, 112, 699] {
                let mut part = vec![0xee; 700 - skip];
                pattern.fill(0x1122_3344_5566, skip, &mut part);
                assert_eq!(part, whole[skip..], "{word} from {skip}");
                assert!(pattern.is_in(0x1122_3344_5566, skip, &part));
                part[0] ^= 1;
                assert!(!pattern.is_in(0x1122_3344_5566, skip, &part));
            }
            let offset = pattern.offset_in(&whole);
            assert_eq!(offset, word.contains("%o").then_some(0x1122_3344_5566), "{word}");
        }
    }
}
