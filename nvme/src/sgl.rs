//! Scatter Gather Lists (Base 2.0, 4.1.2): built by a host, walked by a controller.

use std::sync::atomic::Ordering;

use crate::prp::WalkError;
use crate::queue::Words;
use crate::status::Status;

/// Descriptor type: data block.
pub const TYPE_DATA: u8 = 0;
/// Descriptor type: bit bucket.
pub const TYPE_BIT_BUCKET: u8 = 1;
/// Descriptor type: segment.
pub const TYPE_SEGMENT: u8 = 2;
/// Descriptor type: last segment.
pub const TYPE_LAST_SEGMENT: u8 = 3;
/// Descriptor type: keyed data block (fabrics).
pub const TYPE_KEYED_DATA: u8 = 4;
/// Descriptor type: transport data block (fabrics).
pub const TYPE_TRANSPORT_DATA: u8 = 5;

/// Descriptor subtype: the address is an address.
pub const SUBTYPE_ADDRESS: u8 = 0;
/// Descriptor subtype: the address is an offset (in-capsule data of fabrics).
pub const SUBTYPE_OFFSET: u8 = 1;

/// Descriptors that fit a segment of one 4 KiB page.
pub const SEGMENT_ENTRIES: usize = 256;

/// An SGL descriptor as two 64-bit words: address, then length and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Descriptor(pub [u64; 2]);

impl Descriptor {
    /// Bytes of a descriptor.
    pub const BYTES: usize = 16;

    /// A descriptor of a type, with subtype 0.
    pub const fn new(kind: u8, address: u64, len: u32) -> Self {
        Self([address, len as u64 | (kind as u64) << 60])
    }
    /// A data block.
    pub const fn data(address: u64, len: u32) -> Self {
        Self::new(TYPE_DATA, address, len)
    }
    /// A last segment of `count` descriptors.
    pub const fn last_segment(address: u64, count: u32) -> Self {
        Self::new(TYPE_LAST_SEGMENT, address, count.wrapping_mul(Self::BYTES as u32))
    }
    /// Address of the data or of the segment.
    pub const fn address(&self) -> u64 {
        self.0[0]
    }
    /// Length of the data or of the segment, bytes.
    pub const fn len(&self) -> u32 {
        self.0[1] as u32
    }
    /// The length is zero.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Type.
    pub const fn kind(&self) -> u8 {
        (self.0[1] >> 60) as u8
    }
    /// Subtype.
    pub const fn subtype(&self) -> u8 {
        (self.0[1] >> 56) as u8 & 0xf
    }
}

/// Why a scatter list cannot be described by an SGL of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SglError {
    /// An address or a length is not a multiple of what the controller asks for.
    Misaligned,
    /// More pieces than the segment has room for.
    TooMany,
    /// There is nothing to describe, or a piece of 4 GiB or more.
    Invalid,
}

/// Describes pieces `(iova, len)` by one descriptor: a data block if there is one piece, else a
/// last segment of [`SEGMENT_ENTRIES`] descriptors, which are the words of `list` from word
/// `first` on, at the address `list_iova`. `align` is 1 or 4 ([`crate::identify::SglSupport`]).
pub fn build<W: Words>(
    pieces: impl Iterator<Item = (u64, u64)>,
    align: u64,
    list: &W,
    first: usize,
    list_iova: u64,
) -> Result<Descriptor, SglError> {
    let mut count = 0;
    let mut inline = Descriptor::default();
    for (iova, len) in pieces {
        if len == 0 {
            continue;
        }
        if !iova.is_multiple_of(align) || !len.is_multiple_of(align) {
            return Err(SglError::Misaligned);
        }
        let len = u32::try_from(len).map_err(|_| SglError::Invalid)?;
        let descriptor = Descriptor::data(iova, len);
        match count {
            0 => inline = descriptor,
            1 => {
                store(list, first, 0, inline);
                store(list, first, 1, descriptor);
            }
            n if n < SEGMENT_ENTRIES => store(list, first, n, descriptor),
            _ => return Err(SglError::TooMany),
        }
        count += 1;
    }
    match count {
        0 => Err(SglError::Invalid),
        1 => Ok(inline),
        n => Ok(Descriptor::last_segment(list_iova, n as u32)),
    }
}

fn store<W: Words>(list: &W, first: usize, index: usize, descriptor: Descriptor) {
    list.store64(first + index * 2, descriptor.0[0], Ordering::Relaxed);
    list.store64(first + index * 2 + 1, descriptor.0[1], Ordering::Relaxed);
}

/// A piece that an SGL walk yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes at an address.
    Data(u64, u64),
    /// Bytes of a read that the host throws away.
    BitBucket(u64),
}

/// Bounds of a walk: what a host may ask a controller to look at.
#[derive(Clone, Copy, Debug)]
pub struct WalkLimits {
    /// Descriptors in all segments together.
    pub descriptors: u32,
    /// The command reads from the controller, so that bit buckets discard data.
    pub bit_buckets: bool,
    /// An SGL may be longer than the data; what is left over is ignored.
    pub longer_than_data: bool,
}

/// Descriptors read at a time.
const CHUNK: usize = 16;

/// Walks an untrusted SGL over `len` bytes.
///
/// `read(iova, words)` fills words from a segment in host memory; `take` gets each piece. The walk
/// ends after `limits.descriptors` descriptors, so a segment that points to itself ends too.
pub fn walk<E>(
    sgl1: Descriptor,
    len: u64,
    limits: WalkLimits,
    read: impl FnMut(u64, &mut [u64]) -> Result<(), E>,
    take: impl FnMut(Piece) -> Result<(), E>,
) -> Result<(), WalkError<E>> {
    let mut walk = Walk { rest: len, budget: limits.descriptors, limits, read, take };
    let mut segment = match walk.descriptor(sgl1, true)? {
        Some(segment) => segment,
        None => return walk.finish(),
    };
    while let Some(next) = walk.segment(segment)? {
        segment = next;
    }
    walk.finish()
}

struct Walk<R, T> {
    rest: u64,
    budget: u32,
    limits: WalkLimits,
    read: R,
    take: T,
}

impl<E, R, T> Walk<R, T>
where
    R: FnMut(u64, &mut [u64]) -> Result<(), E>,
    T: FnMut(Piece) -> Result<(), E>,
{
    fn segment(&mut self, segment: Descriptor) -> Result<Option<Descriptor>, WalkError<E>> {
        let bytes = segment.len();
        if bytes == 0 || !bytes.is_multiple_of(Descriptor::BYTES as u32) {
            return Err(Status::INVALID_SGL_SEGMENT.dnr().into());
        }
        let count = bytes / Descriptor::BYTES as u32;
        self.budget = match self.budget.checked_sub(count) {
            Some(budget) => budget,
            None => return Err(Status::INVALID_SGL_COUNT.dnr().into()),
        };
        let last = segment.kind() == TYPE_LAST_SEGMENT;
        let mut words = [0; CHUNK * 2];
        let (mut at, mut left) = (segment.address(), count);
        while left > 0 {
            let n = (left as usize).min(CHUNK);
            let words = &mut words[..n * 2];
            (self.read)(at, words).map_err(WalkError::Memory)?;
            at = at.wrapping_add((n * Descriptor::BYTES) as u64);
            for pair in words.chunks_exact(2) {
                left -= 1;
                let descriptor = Descriptor([pair[0], pair[1]]);
                let may_link = left == 0 && !last;
                if let Some(next) = self.descriptor(descriptor, may_link)? {
                    return Ok(Some(next));
                }
            }
        }
        // A segment that is not the last one ends with a link.
        if last { Ok(None) } else { Err(Status::INVALID_SGL_SEGMENT.dnr().into()) }
    }

    /// Takes a descriptor; returns it if it links to a segment.
    fn descriptor(
        &mut self,
        descriptor: Descriptor,
        may_link: bool,
    ) -> Result<Option<Descriptor>, WalkError<E>> {
        if descriptor.subtype() != SUBTYPE_ADDRESS {
            return Err(Status::SGL_TYPE_INVALID.dnr().into());
        }
        let len = u64::from(descriptor.len());
        match descriptor.kind() {
            TYPE_DATA => self.data(descriptor.address(), len)?,
            TYPE_BIT_BUCKET if self.limits.bit_buckets => {
                let len = self.fit(len)?;
                if len > 0 {
                    (self.take)(Piece::BitBucket(len)).map_err(WalkError::Memory)?;
                }
            }
            // Of a command that writes, a bit bucket is no data at all.
            TYPE_BIT_BUCKET => {}
            TYPE_SEGMENT | TYPE_LAST_SEGMENT if may_link => return Ok(Some(descriptor)),
            TYPE_SEGMENT | TYPE_LAST_SEGMENT => {
                return Err(Status::INVALID_SGL_SEGMENT.dnr().into());
            }
            _ => return Err(Status::SGL_TYPE_INVALID.dnr().into()),
        }
        Ok(None)
    }

    fn data(&mut self, address: u64, len: u64) -> Result<(), WalkError<E>> {
        let len = self.fit(len)?;
        if len == 0 {
            return Ok(());
        }
        if address.checked_add(len).is_none() {
            return Err(Status::SGL_LENGTH_INVALID.dnr().into());
        }
        (self.take)(Piece::Data(address, len)).map_err(WalkError::Memory)
    }

    fn fit(&mut self, len: u64) -> Result<u64, WalkError<E>> {
        if len > self.rest && !self.limits.longer_than_data {
            return Err(Status::SGL_LENGTH_INVALID.dnr().into());
        }
        let len = len.min(self.rest);
        self.rest -= len;
        Ok(len)
    }

    fn finish(self) -> Result<(), WalkError<E>> {
        if self.rest == 0 { Ok(()) } else { Err(Status::SGL_LENGTH_INVALID.dnr().into()) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::queue::test_words::TestWords;
    use proptest::prelude::*;

    const LIST: u64 = 0x7000;
    const LIMITS: WalkLimits =
        WalkLimits { descriptors: 1024, bit_buckets: true, longer_than_data: false };

    fn walked(
        sgl1: Descriptor,
        len: u64,
        limits: WalkLimits,
        segments: &[(u64, Vec<Descriptor>)],
    ) -> Result<Vec<Piece>, WalkError<&'static str>> {
        let mut pieces = Vec::new();
        let read = |iova: u64, words: &mut [u64]| {
            for (i, word) in words.iter_mut().enumerate() {
                let at = iova + i as u64 * 8;
                *word = segments
                    .iter()
                    .find_map(|(base, list)| {
                        let index = at.checked_sub(*base)? / 8;
                        let descriptor = list.get(index as usize / 2)?;
                        Some(descriptor.0[index as usize % 2])
                    })
                    .ok_or("no such memory")?;
            }
            Ok(())
        };
        walk(sgl1, len, limits, read, |piece| {
            pieces.push(piece);
            Ok(())
        })?;
        Ok(pieces)
    }

    fn status(result: Result<Vec<Piece>, WalkError<&'static str>>) -> Status {
        match result {
            Err(WalkError::Status(status)) => status,
            other => panic!("a status was due, not {other:?}"),
        }
    }

    #[test]
    fn one_piece_stays_in_the_command() {
        let list = TestWords::new(512);
        let sgl = build([(0x1001, 77)].into_iter(), 1, &list, 0, LIST).unwrap();
        assert_eq!(sgl, Descriptor::data(0x1001, 77));
        assert_eq!(walked(sgl, 77, LIMITS, &[]).unwrap(), [Piece::Data(0x1001, 77)]);
        let err = build([(0x1001, 77)].into_iter(), 4, &list, 0, LIST);
        assert_eq!(err, Err(SglError::Misaligned));
        assert_eq!(build([].into_iter(), 1, &list, 0, LIST), Err(SglError::Invalid));
    }

    #[test]
    fn a_segment_holds_256() {
        let list = TestWords::new(1024);
        let pieces = |n| (0..n).map(|i| (i * 0x10_000, 512 + i * 4));
        let sgl = build(pieces(256), 4, &list, 512, LIST).unwrap();
        assert_eq!((sgl.kind(), sgl.len(), sgl.address()), (TYPE_LAST_SEGMENT, 4096, LIST));
        let err = build(pieces(257), 4, &list, 512, LIST);
        assert_eq!(err, Err(SglError::TooMany));
        let words = |i: usize| list.load64(512 + i, Ordering::Relaxed);
        let segment = (0..256).map(|i| Descriptor([words(i * 2), words(i * 2 + 1)])).collect();
        let total = pieces(256).map(|p| p.1).sum();
        let expected: Vec<Piece> = pieces(256).map(|p| Piece::Data(p.0, p.1)).collect();
        assert_eq!(walked(sgl, total, LIMITS, &[(LIST, segment)]).unwrap(), expected);
    }

    #[test]
    fn segments_chain_and_end_with_the_last() {
        let segments = [
            (0x1000, vec![Descriptor::data(1, 10), Descriptor::new(TYPE_SEGMENT, 0x2000, 32)]),
            (0x2000, vec![Descriptor::data(2, 20), Descriptor::last_segment(0x3000, 1)]),
            (0x3000, vec![Descriptor::data(3, 30)]),
        ];
        let first = Descriptor::new(TYPE_SEGMENT, 0x1000, 32);
        let pieces = walked(first, 60, LIMITS, &segments).unwrap();
        assert_eq!(pieces, [Piece::Data(1, 10), Piece::Data(2, 20), Piece::Data(3, 30)]);
        assert_eq!(status(walked(first, 61, LIMITS, &segments)), Status::SGL_LENGTH_INVALID.dnr());
        assert_eq!(status(walked(first, 59, LIMITS, &segments)), Status::SGL_LENGTH_INVALID.dnr());
        let longer = WalkLimits { longer_than_data: true, ..LIMITS };
        assert_eq!(walked(first, 25, longer, &segments).unwrap()[1], Piece::Data(2, 15));
    }

    #[test]
    fn a_segment_that_points_to_itself_ends() {
        let loops = vec![Descriptor::new(TYPE_SEGMENT, 0x1000, 16)];
        let first = Descriptor::new(TYPE_SEGMENT, 0x1000, 16);
        let result = walked(first, 4096, LIMITS, &[(0x1000, loops)]);
        assert_eq!(status(result), Status::INVALID_SGL_COUNT.dnr());
    }

    #[test]
    fn malformed_lists_get_their_status() {
        let one = |d| walked(Descriptor::last_segment(0x1000, 1), 16, LIMITS, &[(0x1000, vec![d])]);
        let link = Descriptor::last_segment(0x1000, 1);
        assert_eq!(status(one(link)), Status::INVALID_SGL_SEGMENT.dnr());
        let keyed = Descriptor::new(TYPE_KEYED_DATA, 0, 16);
        assert_eq!(status(one(keyed)), Status::SGL_TYPE_INVALID.dnr());
        let offset = Descriptor([0, 16 | 1 << 56]);
        assert_eq!(status(one(offset)), Status::SGL_TYPE_INVALID.dnr());
        let past = Descriptor::data(u64::MAX, 16);
        assert_eq!(status(one(past)), Status::SGL_LENGTH_INVALID.dnr());
        let odd = Descriptor::new(TYPE_LAST_SEGMENT, 0x1000, 17);
        assert_eq!(status(walked(odd, 16, LIMITS, &[])), Status::INVALID_SGL_SEGMENT.dnr());
        let empty = Descriptor::new(TYPE_SEGMENT, 0x1000, 0);
        assert_eq!(status(walked(empty, 16, LIMITS, &[])), Status::INVALID_SGL_SEGMENT.dnr());
        let unlinked = Descriptor::new(TYPE_SEGMENT, 0x1000, 16);
        let data = vec![Descriptor::data(0, 16)];
        let result = walked(unlinked, 16, LIMITS, &[(0x1000, data)]);
        assert_eq!(status(result), Status::INVALID_SGL_SEGMENT.dnr());
    }

    #[test]
    fn bit_buckets_count_only_for_reads() {
        let bucket = Descriptor::new(TYPE_BIT_BUCKET, 0, 100);
        let list = [(0x1000, vec![bucket, Descriptor::data(8, 28)])];
        let first = Descriptor::last_segment(0x1000, 2);
        let pieces = walked(first, 128, LIMITS, &list).unwrap();
        assert_eq!(pieces, [Piece::BitBucket(100), Piece::Data(8, 28)]);
        let writes = WalkLimits { bit_buckets: false, ..LIMITS };
        assert_eq!(walked(first, 28, writes, &list).unwrap(), [Piece::Data(8, 28)]);
    }

    proptest! {
        /// Whatever is in host memory, a walk reads a bounded number of descriptors and yields at
        /// most `len` bytes.
        #[test]
        fn a_walk_is_bounded(words: [u64; 2], len in 0u64..1 << 32, seed: u64) {
            let (mut read_words, mut taken, mut state) = (0u64, 0u64, seed);
            let read = |_, words: &mut [u64]| {
                read_words += words.len() as u64;
                for word in words.iter_mut() {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Few types and short lengths, so that walks get far.
                    *word = state & 0x3000_0000_0000_0fff;
                }
                Ok::<(), ()>(())
            };
            let take = |piece| {
                taken += match piece { Piece::Data(_, n) | Piece::BitBucket(n) => n };
                Ok(())
            };
            let sgl = Descriptor([words[0], words[1] & 0x30ff_0000_0000_3ff0]);
            let result = walk(sgl, len, LIMITS, read, take);
            prop_assert!(read_words <= 2 * u64::from(LIMITS.descriptors));
            prop_assert!(taken <= len);
            if result.is_ok() {
                prop_assert_eq!(taken, len);
            }
        }
    }
}
