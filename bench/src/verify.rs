//! Blocks that can be checked: what `verify=crc32c` writes, and how a reader names what is wrong.
//!
//! A block begins with a header of [`HEADER_LEN`] bytes, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic, `oxbv` |
//! | 4 | 4 | length of the block in bytes, header included |
//! | 8 | 8 | byte offset of the block on the target |
//! | 16 | 8 | seed of the job (`randseed`) |
//! | 24 | 8 | stamp of the run, another one each time |
//! | 32 | 4 | 0 |
//! | 36 | 4 | CRC-32C (Castagnoli) of the block with this field as 0 |
//!
//! The rest is a pseudo-random stream of seed, stamp and offset: the whole block can be made
//! again from its place, so that a mismatch is named to the byte. The stamp tells a block of this
//! run from one that an earlier run left there, which is how a write that was acknowledged and
//! lost is found. A run that only verifies takes the stamp from the first block that is whole.

use std::fmt;

use crate::pattern::mix64;

/// Bytes of header at the start of each block.
pub const HEADER_LEN: usize = 40;

const MAGIC: [u8; 4] = *b"oxbv";
const CRC_AT: usize = 36;

/// What the blocks of one job are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The job's seed.
    pub seed: u64,
    /// The run's stamp.
    pub stamp: u64,
}

impl Recipe {
    /// Fills `block` (at least 512 bytes) as the one that belongs at `offset`.
    pub fn fill(&self, offset: u64, block: &mut [u8]) {
        let length = block.len() as u32;
        let (header, body) = block.split_at_mut(HEADER_LEN);
        fill_body(self, offset, body);
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&length.to_le_bytes());
        header[8..16].copy_from_slice(&offset.to_le_bytes());
        header[16..24].copy_from_slice(&self.seed.to_le_bytes());
        header[24..32].copy_from_slice(&self.stamp.to_le_bytes());
        header[32..].fill(0);
        let crc = crc32c::crc32c(block);
        block[CRC_AT..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    }
}

fn fill_body(recipe: &Recipe, offset: u64, body: &mut [u8]) {
    let start = mix64(recipe.seed ^ mix64(recipe.stamp ^ mix64(offset)));
    let mut word = start;
    let mut chunks = body.chunks_exact_mut(8);
    for chunk in &mut chunks {
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(
            &(word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes(),
        );
    }
    let rest = chunks.into_remainder();
    let last = word.to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Checks blocks against what one job must have written. Not shared: each job has its own.
#[derive(Debug)]
pub struct Checker {
    seed: u64,
    stamp: Option<u64>,
    suspects: Vec<Suspect>,
    bad: u64,
}

/// A block that failed, kept until the stamp is known.
#[derive(Debug)]
struct Suspect {
    offset: u64,
    block: Box<[u8]>,
}

/// Mismatches that are described in full; the others are counted.
const DESCRIBED: usize = 16;

impl Checker {
    /// A checker for the blocks of one job. `stamp` is `None` when an earlier run wrote them.
    pub fn new(seed: u64, stamp: Option<u64>) -> Checker {
        Checker { seed, stamp, suspects: Vec::new(), bad: 0 }
    }

    /// Is `block` what was written at `offset`? If not, it is kept for [`Checker::mismatches`].
    pub fn check(&mut self, offset: u64, block: &[u8]) -> bool {
        let header = Header::read(block);
        let whole = header.is_intact(block)
            && header.offset == offset
            && header.seed == self.seed
            && *self.stamp.get_or_insert(header.stamp) == header.stamp;
        if !whole {
            self.bad += 1;
            if self.suspects.len() < DESCRIBED {
                self.suspects.push(Suspect { offset, block: block.into() });
            }
        }
        whole
    }

    /// Blocks that failed.
    pub fn bad(&self) -> u64 {
        self.bad
    }

    /// The first failures, described.
    pub fn mismatches(&self) -> Vec<Mismatch> {
        self.suspects.iter().map(|suspect| self.describe(suspect)).collect()
    }

    fn describe(&self, suspect: &Suspect) -> Mismatch {
        let Suspect { offset, block } = suspect;
        let header = Header::read(block);
        let recipe = Recipe { seed: self.seed, stamp: self.stamp.unwrap_or(header.stamp) };
        let mut expected = vec![0; block.len()];
        recipe.fill(*offset, &mut expected);
        let differing = expected.iter().zip(block.iter()).filter(|(e, f)| e != f).count();
        let finding = if header.is_intact(block) {
            header.displacement(*offset, recipe)
        } else if header.magic == MAGIC && header.length as usize != block.len() && differing > 1 {
            Finding::OtherLength { length: header.length }
        } else if block.iter().all(|&byte| byte == block[0]) {
            Finding::Constant { byte: block[0] }
        } else if differing > block.len() / 2 {
            Finding::Foreign
        } else {
            let at = expected.iter().zip(block.iter()).position(|(e, f)| e != f).unwrap_or(0);
            Finding::Damaged {
                first: offset + at as u64,
                expected: expected[at],
                found: block[at],
                differing,
            }
        };
        Mismatch { offset: *offset, length: block.len(), finding }
    }
}

struct Header {
    magic: [u8; 4],
    length: u32,
    offset: u64,
    seed: u64,
    stamp: u64,
    crc: u32,
}

impl Header {
    /// The header as it stands there; a block too short for one reads as zeroes.
    fn read(block: &[u8]) -> Header {
        let word = |at: usize| {
            let bytes = block.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_le_bytes(bytes.unwrap_or_default())
        };
        let half = |at: usize| {
            let bytes = block.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u32::from_le_bytes(bytes.unwrap_or_default())
        };
        Header {
            magic: half(0).to_le_bytes(),
            length: half(4),
            offset: word(8),
            seed: word(16),
            stamp: word(24),
            crc: half(CRC_AT),
        }
    }

    /// Is this a block that some run wrote, unharmed?
    fn is_intact(&self, block: &[u8]) -> bool {
        if self.magic != MAGIC || self.length as usize != block.len() || block.len() < HEADER_LEN {
            return false;
        }
        let crc = crc32c::crc32c(&block[..CRC_AT]);
        let crc = crc32c::crc32c_append(crc, &[0; 4]);
        crc32c::crc32c_append(crc, &block[HEADER_LEN..]) == self.crc
    }

    /// An intact block that is not the one wanted: whose is it?
    fn displacement(&self, offset: u64, wanted: Recipe) -> Finding {
        if self.seed != wanted.seed {
            Finding::OtherSeed { seed: self.seed, wanted: wanted.seed }
        } else if self.offset != offset {
            Finding::Misplaced { from: self.offset }
        } else {
            Finding::Stale
        }
    }
}

/// One block that does not hold what was written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Byte offset of the block on the target.
    pub offset: u64,
    /// Its length in bytes.
    pub length: usize,
    /// What is wrong with it.
    pub finding: Finding,
}

/// What a bad block looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Most of it is right.
    Damaged {
        /// Byte offset on the target of the first byte that differs.
        first: u64,
        /// The byte that was written there.
        expected: u8,
        /// The byte that was read.
        found: u8,
        /// How many bytes of the block differ.
        differing: usize,
    },
    /// One byte throughout: never written, or discarded.
    Constant {
        /// That byte.
        byte: u8,
    },
    /// A whole block that was written to another offset.
    Misplaced {
        /// The offset it was written to.
        from: u64,
    },
    /// A whole block of an earlier run: this run's write was lost.
    Stale,
    /// A whole block of a job with another seed.
    OtherSeed {
        /// The seed it carries.
        seed: u64,
        /// The seed of this job.
        wanted: u64,
    },
    /// The start of a block of another length.
    OtherLength {
        /// The length in its header.
        length: u32,
    },
    /// Nothing that a verified job wrote.
    Foreign,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block at offset {} ({} bytes): ", self.offset, self.length)?;
        match &self.finding {
            Finding::Damaged { first, expected, found, differing } => write!(
                f,
                "first wrong byte at offset {first}: expected {expected:#04x}, found {found:#04x}; \
                 {differing} of {} bytes differ",
                self.length
            ),
            Finding::Constant { byte } => {
                write!(f, "every byte is {byte:#04x}: never written, or discarded")
            }
            Finding::Misplaced { from } => {
                write!(
                    f,
                    "holds the block that was written at offset {from}: a misdirected write or read"
                )
            }
            Finding::Stale => {
                write!(f, "holds the block of another run: this run's write was lost")
            }
            Finding::OtherSeed { seed, wanted } => write!(
                f,
                "was written with randseed={seed}, not {wanted}: a lost write, or give --randseed={seed}"
            ),
            Finding::OtherLength { length } => {
                write!(f, "was written with bs={length}, not {}", self.length)
            }
            Finding::Foreign => write!(f, "holds nothing that a verified job wrote"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: Recipe = Recipe { seed: 7, stamp: 99 };

    fn block(offset: u64) -> Vec<u8> {
        let mut block = vec![0xee; 4096];
        RECIPE.fill(offset, &mut block);
        block
    }

    fn finding(stamp: Option<u64>, offset: u64, block: &[u8]) -> Finding {
        let mut checker = Checker::new(7, stamp);
        assert!(!checker.check(offset, block), "a bad block passed");
        assert_eq!(checker.bad(), 1);
        checker.mismatches().remove(0).finding
    }

    #[test]
    fn whole_blocks_pass() {
        let mut checker = Checker::new(7, Some(99));
        assert!(checker.check(8192, &block(8192)));
        let mut learning = Checker::new(7, None);
        assert!(learning.check(0, &block(0)) && learning.check(4096, &block(4096)));
        let mut odd = vec![0; 515];
        RECIPE.fill(3, &mut odd);
        assert!(checker.check(3, &odd));
    }

    #[test]
    fn any_flipped_bit_is_found_and_named() {
        for at in [0, 5, 9, 17, 25, 33, 37, 40, 41, 2000, 4095] {
            let mut bad = block(8192);
            let expected = bad[at];
            bad[at] ^= 0x10;
            let found = finding(Some(99), 8192, &bad);
            let first = 8192 + at as u64;
            let wanted = Finding::Damaged { first, expected, found: expected ^ 0x10, differing: 1 };
            assert_eq!(found, wanted, "byte {at}");
        }
    }

    #[test]
    fn a_damaged_block_is_named_once_the_stamp_is_known() {
        // The stamp itself is hit and nothing had been read before: the next block tells it.
        let mut bad = block(0);
        bad[24] ^= 1;
        let mut checker = Checker::new(7, None);
        assert!(!checker.check(0, &bad));
        assert!(checker.check(4096, &block(4096)));
        let mismatch = checker.mismatches().remove(0);
        assert!(matches!(mismatch.finding, Finding::Damaged { first: 24, differing: 1, .. }));
    }

    #[test]
    fn blocks_from_elsewhere_are_told_apart() {
        assert_eq!(finding(Some(99), 0, &block(4096)), Finding::Misplaced { from: 4096 });
        assert_eq!(finding(Some(98), 0, &block(0)), Finding::Stale);
        assert_eq!(finding(Some(99), 0, &[0; 4096]), Finding::Constant { byte: 0 });
        let mut other = vec![0; 4096];
        Recipe { seed: 8, stamp: 99 }.fill(0, &mut other);
        assert_eq!(finding(Some(99), 0, &other), Finding::OtherSeed { seed: 8, wanted: 7 });
        let noise: Vec<u8> = (0..4096u32).map(|i| (i * 7) as u8).collect();
        assert_eq!(finding(Some(99), 0, &noise), Finding::Foreign);
        let short = &block(0)[..2048];
        assert_eq!(finding(Some(99), 0, short), Finding::OtherLength { length: 4096 });
    }

    #[test]
    fn mismatches_beyond_the_described_are_counted() {
        let mut checker = Checker::new(7, Some(99));
        for _ in 0..100 {
            checker.check(0, &[0; 512]);
        }
        assert_eq!((checker.bad(), checker.mismatches().len()), (100, DESCRIBED));
    }
}
