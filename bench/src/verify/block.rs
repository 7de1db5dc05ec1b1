//! How a block that can be checked is made, and what its header says.

use std::sync::Arc;

use super::method::{DIGEST_LEN, Method};
use super::pattern::Pattern;
use crate::pattern::mix64;

/// Bytes of header in a block of a method that has one.
pub const HEADER_LEN: usize = 112;

const MAGIC: [u8; 4] = *b"oxv2";
const DIGEST_AT: usize = 40;
const CRC_AT: usize = HEADER_LEN - 4;

/// What the blocks of one job are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// How they are checked.
    pub method: Method,
    /// The job's seed.
    pub seed: u64,
    /// What follows the header, or the whole block; `None`: a pseudo-random stream.
    pub pattern: Option<Arc<Pattern>>,
    /// Where in the block the header stands (fio's `verify_offset`): 0, or past its own length.
    pub header_at: usize,
}

/// One write of one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which of the job's files, from 0.
    pub file: u16,
    /// Byte offset of the block in the file.
    pub offset: u64,
    /// The run's stamp, another one each time.
    pub stamp: u64,
    /// 1 for the run's first write of the place, 2 for the next.
    pub generation: u32,
}

impl Recipe {
    /// Fills `block` (at least 512 bytes) as `write` writes it. Where the payload is not checked
    /// it is left as it is.
    pub fn fill(&self, write: Write, block: &mut [u8]) {
        match self.method {
            Method::Null => return,
            Method::Pattern => return self.fill_payload(write, 0, block),
            _ => {}
        }
        let length = block.len() as u32;
        let (header, payload) = block.split_at_mut(HEADER_LEN);
        if self.method.has_payload() {
            self.fill_payload(write, HEADER_LEN, payload);
        }
        header.fill(0);
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&length.to_le_bytes());
        header[8..16].copy_from_slice(&write.offset.to_le_bytes());
        header[16..24].copy_from_slice(&self.seed.to_le_bytes());
        header[24..32].copy_from_slice(&write.stamp.to_le_bytes());
        header[32..36].copy_from_slice(&write.generation.to_le_bytes());
        header[36] = self.method.number();
        header[38..40].copy_from_slice(&write.file.to_le_bytes());
        header[DIGEST_AT..DIGEST_AT + DIGEST_LEN].copy_from_slice(&self.method.digest(payload));
        let crc = crc32c::crc32c(&header[..CRC_AT]);
        header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        self.swap_header(block);
    }

    /// Fills what stands at byte `at` of the block.
    fn fill_payload(&self, write: Write, at: usize, payload: &mut [u8]) {
        match &self.pattern {
            Some(pattern) => pattern.fill(write.offset, at, payload),
            None => fill_stream(self.seed, write, payload),
        }
    }

    /// Moves the header to where it stands on the target, or back.
    pub(super) fn swap_header(&self, block: &mut [u8]) {
        if self.header_at == 0 || !self.method.has_header() {
            return;
        }
        let (front, back) = block.split_at_mut(self.header_at);
        if let (Some(front), Some(back)) = (front.get_mut(..HEADER_LEN), back.get_mut(..HEADER_LEN))
        {
            front.swap_with_slice(back);
        }
    }

    /// Is the payload (of a block whose header is at its front) what was written with `header`?
    pub(super) fn is_payload_good(&self, header: &Header, block: &[u8]) -> bool {
        let payload = block.get(HEADER_LEN..).unwrap_or_default();
        match (self.method, &self.pattern) {
            (Method::Meta, _) => true,
            (Method::PatternHdr, Some(pattern)) => {
                pattern.is_in(header.offset, HEADER_LEN, payload)
            }
            (method, _) => method.digest(payload) == header.digest,
        }
    }
}

/// A stream that is another one for each write.
fn fill_stream(seed: u64, write: Write, payload: &mut [u8]) {
    let which = u64::from(write.generation) | u64::from(write.file) << 32;
    let place = mix64(write.offset ^ mix64(which));
    let mut word = mix64(seed ^ mix64(write.stamp ^ place));
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        chunk.copy_from_slice(&value.to_le_bytes());
    }
    let rest = chunks.into_remainder();
    let last = word.to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// The fields of a header as they stand there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    magic: [u8; 4],
    pub length: u32,
    pub offset: u64,
    pub seed: u64,
    pub stamp: u64,
    pub generation: u32,
    pub method: u8,
    pub file: u16,
    digest: [u8; DIGEST_LEN],
    is_sound: bool,
}

impl Header {
    /// The header at the front of a block; a block too short for one reads as zeroes.
    pub fn read(block: &[u8]) -> Header {
        let bytes: [u8; HEADER_LEN] = match block.get(..HEADER_LEN).map(TryInto::try_into) {
            Some(Ok(bytes)) => bytes,
            _ => [0; HEADER_LEN],
        };
        let half = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte]));
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        let mut digest = [0; DIGEST_LEN];
        digest.copy_from_slice(&bytes[DIGEST_AT..DIGEST_AT + DIGEST_LEN]);
        Header {
            magic: [bytes[0], bytes[1], bytes[2], bytes[3]],
            length: half(4),
            offset: word(8),
            seed: word(16),
            stamp: word(24),
            generation: half(32),
            method: bytes[36],
            file: u16::from_le_bytes([bytes[38], bytes[39]]),
            digest,
            is_sound: crc32c::crc32c(&bytes[..CRC_AT]) == half(CRC_AT),
        }
    }

    /// Is this a header that some run wrote, unharmed?
    pub fn is_intact(&self) -> bool {
        self.magic == MAGIC && self.is_sound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(method: Method) -> Recipe {
        let pattern = method.needs_pattern().then(|| Pattern::parse("0x11%o").expect("a pattern"));
        Recipe { method, seed: 7, pattern: pattern.map(Arc::new), header_at: 0 }
    }

    #[test]
    fn headers_say_what_was_written() {
        let write = Write { file: 5, offset: 8192, stamp: 99, generation: 3 };
        for method in Method::all().filter(|method| method.has_header()) {
            for (len, header_at) in [(512, 0), (515, 400), (4096, 112), (65_536, 60_000)] {
                let recipe = Recipe { header_at, ..recipe(method) };
                let mut block = vec![0xee; len];
                recipe.fill(write, &mut block);
                if header_at > 0 {
                    assert!(!Header::read(&block).is_intact());
                    assert!(Header::read(&block[header_at..]).is_intact());
                }
                recipe.swap_header(&mut block);
                let header = Header::read(&block);
                assert!(header.is_intact() && recipe.is_payload_good(&header, &block));
                assert_eq!((header.length as usize, header.file, header.offset), (len, 5, 8192));
                assert_eq!((header.seed, header.stamp, header.generation), (7, 99, 3));
                assert_eq!(Method::of_number(header.method), Some(method));
            }
        }
        assert!(!Header::read(&[]).is_intact() && !Header::read(&[0; 4096]).is_intact());
    }

    #[test]
    fn every_write_has_a_stream_of_its_own() {
        let fill = |file, offset, stamp, generation| {
            let mut block = vec![0; 4096];
            recipe(Method::Crc32c).fill(Write { file, offset, stamp, generation }, &mut block);
            block
        };
        let one = fill(0, 0, 1, 1);
        for other in [fill(0, 4096, 1, 1), fill(0, 0, 2, 1), fill(0, 0, 1, 2), fill(1, 0, 1, 1)] {
            let same = one[HEADER_LEN..].iter().zip(&other[HEADER_LEN..]).filter(|(a, b)| a == b);
            assert!(same.count() < 100);
        }
    }
}
