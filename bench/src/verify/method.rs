//! fio's `verify`: what makes a block checkable.

use crc::{CRC_7_MMC, CRC_16_ARC, CRC_32_ISO_HDLC, CRC_64_ECMA_182, Crc, Table};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};
use twox_hash::XxHash32;

/// Bytes that the longest digest has; shorter ones are followed by zeroes.
pub(super) const DIGEST_LEN: usize = 64;

/// How a block is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A header, and a CRC-7 (MMC) of the rest.
    Crc7,
    /// The same with a CRC-16 (ARC).
    Crc16,
    /// The same with a CRC-32 (ISO-HDLC).
    Crc32,
    /// The same with a CRC-32C (Castagnoli), by the processor where it can.
    Crc32c,
    /// The same with a CRC-64 (ECMA-182).
    Crc64,
    /// The same with XXH32.
    Xxhash,
    /// The same with MD5.
    Md5,
    /// The same with SHA-1.
    Sha1,
    /// The same with SHA-256.
    Sha256,
    /// The same with SHA-512.
    Sha512,
    /// The header alone: the block's place and which write it is of, not what it carries.
    Meta,
    /// No header: the block is `verify_pattern` throughout.
    Pattern,
    /// A header, and `verify_pattern` in the rest.
    PatternHdr,
    /// Nothing is made and nothing checked: what pretending costs.
    Null,
}

const WORDS: [(Method, &str); 14] = [
    (Method::Crc7, "crc7"),
    (Method::Crc16, "crc16"),
    (Method::Crc32, "crc32"),
    (Method::Crc32c, "crc32c"),
    (Method::Crc64, "crc64"),
    (Method::Xxhash, "xxhash"),
    (Method::Md5, "md5"),
    (Method::Sha1, "sha1"),
    (Method::Sha256, "sha256"),
    (Method::Sha512, "sha512"),
    (Method::Meta, "meta"),
    (Method::Pattern, "pattern"),
    (Method::PatternHdr, "pattern_hdr"),
    (Method::Null, "null"),
];

impl Method {
    /// Every method.
    pub fn all() -> impl Iterator<Item = Method> {
        WORDS.into_iter().map(|(method, _)| method)
    }

    /// Reads fio's word; `None` where nothing is to be verified.
    ///
    /// Errors: a word that is none, or one of fio's that is not offered.
    pub fn parse(word: &str) -> Result<Option<Method>, String> {
        match word {
            "0" | "none" => return Ok(None),
            // fio's way to ask for the processor's instruction, which is taken anyway.
            "crc32c-intel" => return Ok(Some(Method::Crc32c)),
            "sha3-224" | "sha3-256" | "sha3-384" | "sha3-512" => {
                return Err(format!(
                    "fio has `{word}`, oxblock bench does not offer it; use sha256"
                ));
            }
            _ => {}
        }
        let found = WORDS.into_iter().find(|&(_, known)| known == word);
        let words = || WORDS.map(|(_, word)| word).join(", ");
        let unknown = || format!("`{word}` is none of {}; 0 is for none", words());
        found.map(|(method, _)| Some(method)).ok_or_else(unknown)
    }

    /// fio's word for it.
    pub fn word(self) -> &'static str {
        WORDS.into_iter().find(|&(method, _)| method == self).map_or("", |(_, word)| word)
    }

    /// Does a block begin with a header?
    pub fn has_header(self) -> bool {
        !matches!(self, Method::Pattern | Method::Null)
    }

    /// Is what follows the header made and checked?
    pub(super) fn has_payload(self) -> bool {
        !matches!(self, Method::Meta | Method::Null)
    }

    /// Does it need `verify_pattern`?
    pub fn needs_pattern(self) -> bool {
        matches!(self, Method::Pattern | Method::PatternHdr)
    }

    /// Its number in headers and logs.
    pub(super) fn number(self) -> u8 {
        WORDS.into_iter().position(|(method, _)| method == self).unwrap_or(0) as u8 + 1
    }

    /// The method of a number that a header gives.
    pub(super) fn of_number(number: u8) -> Option<Method> {
        let at = usize::from(number).checked_sub(1)?;
        WORDS.get(at).map(|&(method, _)| method)
    }

    /// The digest of some bytes; zeroes for a method that has none.
    #[inline]
    pub(super) fn digest(self, bytes: &[u8]) -> [u8; DIGEST_LEN] {
        match self {
            Method::Crc7 => padded(&[CRC7.checksum(bytes)]),
            Method::Crc16 => padded(&CRC16.checksum(bytes).to_le_bytes()),
            Method::Crc32 => padded(&CRC32.checksum(bytes).to_le_bytes()),
            Method::Crc32c => padded(&crc32c::crc32c(bytes).to_le_bytes()),
            Method::Crc64 => padded(&CRC64.checksum(bytes).to_le_bytes()),
            Method::Xxhash => padded(&XxHash32::oneshot(0, bytes).to_le_bytes()),
            Method::Md5 => padded(&Md5::digest(bytes)),
            Method::Sha1 => padded(&Sha1::digest(bytes)),
            Method::Sha256 => padded(&Sha256::digest(bytes)),
            Method::Sha512 => padded(&Sha512::digest(bytes)),
            Method::Meta | Method::Pattern | Method::PatternHdr | Method::Null => [0; DIGEST_LEN],
        }
    }
}

static CRC7: Crc<u8, Table<16>> = Crc::<u8, Table<16>>::new(&CRC_7_MMC);
static CRC16: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_ARC);
static CRC32: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISO_HDLC);
static CRC64: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_ECMA_182);

fn padded(digest: &[u8]) -> [u8; DIGEST_LEN] {
    let mut all = [0; DIGEST_LEN];
    all[..digest.len()].copy_from_slice(digest);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_published_ones() {
        // The check values of the catalogue of CRCs, and the test vectors of the others.
        let nine = b"123456789";
        for (method, expected) in [
            (Method::Crc7, &[0x75][..]),
            (Method::Crc16, &0xbb3d_u16.to_le_bytes()),
            (Method::Crc32, &0xcbf4_3926_u32.to_le_bytes()),
            (Method::Crc32c, &0xe306_9283_u32.to_le_bytes()),
            (Method::Crc64, &0x6c40_df5f_0b49_7347_u64.to_le_bytes()),
            (Method::Xxhash, &0x937b_ad67_u32.to_le_bytes()),
            (Method::Md5, &[0x25, 0xf9, 0xe7, 0x94]),
            (Method::Sha1, &[0xf7, 0xc3, 0xbc, 0x1d]),
            (Method::Sha256, &[0x15, 0xe2, 0xb0, 0xd3]),
            (Method::Sha512, &[0xd9, 0xe6, 0x76, 0x2d]),
        ] {
            assert_eq!(method.digest(nine)[..expected.len()], *expected, "{}", method.word());
        }
    }

    #[test]
    fn words_go_both_ways() {
        for method in Method::all() {
            assert_eq!(Method::parse(method.word()), Ok(Some(method)));
            assert_eq!(Method::of_number(method.number()), Some(method));
        }
        assert_eq!(Method::parse("crc32c-intel"), Ok(Some(Method::Crc32c)));
        assert_eq!(Method::parse("0"), Ok(None));
        assert!(Method::parse("sha3-256").expect_err("refused").contains("does not offer"));
        assert!(Method::parse("md6").expect_err("unknown").contains("md5"));
        assert_eq!((Method::of_number(0), Method::of_number(15)), (None, None));
    }
}
