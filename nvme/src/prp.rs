//! Physical Region Pages (Base 2.0, 4.1.1): built by a host, walked by a controller.
//!
//! Pages are [`PAGE`] bytes, since this project always sets CC.MPS to 4 KiB; a walk takes the page
//! size as a parameter, since it believes no host.

use std::sync::atomic::Ordering;

use crate::queue::Words;
use crate::status::Status;

/// Bytes of a memory page as the driver sets it in CC.MPS.
pub const PAGE: u64 = 4096;
/// Entries of a list that fills one page.
pub const LIST_ENTRIES: usize = 512;
/// The longest transfer that PRP1 and a list of one page describe from any start.
pub const TRANSFER_MAX: u64 = LIST_ENTRIES as u64 * PAGE;

/// Why a scatter list cannot be described by PRPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrpError {
    /// The first piece does not start at a multiple of four.
    Misaligned,
    /// A later piece does not start at a page, or an earlier one does not end at one.
    Gap,
    /// More pages than the list has room for.
    TooLong,
    /// There is nothing to describe, or an address past 2^64.
    Invalid,
}

/// Describes pieces `(iova, len)` by PRP1 and PRP2; a third page and later go to the list, which
/// is [`LIST_ENTRIES`] words of `list` from word `first` on, at the address `list_iova`.
///
/// Pieces that continue each other in IOVA space count as one. PRP2 is 0 where it is not used.
#[inline]
pub fn build<W: Words>(
    pieces: impl Iterator<Item = (u64, u64)>,
    list: &W,
    first: usize,
    list_iova: u64,
) -> Result<(u64, u64), PrpError> {
    let mut build = Build { list, first, prp1: 0, prp2: 0, pages: 0, end: 0 };
    for (iova, len) in pieces {
        build.piece(iova, len)?;
    }
    match build.pages {
        0 => Err(PrpError::Invalid),
        1 | 2 => Ok((build.prp1, build.prp2)),
        _ => Ok((build.prp1, list_iova)),
    }
}

struct Build<'a, W> {
    list: &'a W,
    first: usize,
    prp1: u64,
    prp2: u64,
    pages: usize,
    end: u64,
}

impl<W: Words> Build<'_, W> {
    #[inline]
    fn piece(&mut self, iova: u64, len: u64) -> Result<(), PrpError> {
        if len == 0 {
            return Ok(());
        }
        // Short of the last page of the address space nothing here overflows.
        let end = iova.checked_add(len).filter(|end| *end <= u64::MAX - PAGE + 1);
        let end = end.ok_or(PrpError::Invalid)?;
        let mut page = if self.pages == 0 {
            if !iova.is_multiple_of(4) {
                return Err(PrpError::Misaligned);
            }
            self.prp1 = iova;
            self.pages = 1;
            iova - iova % PAGE + PAGE
        } else if self.end == iova {
            iova.next_multiple_of(PAGE)
        } else if self.end.is_multiple_of(PAGE) && iova.is_multiple_of(PAGE) {
            iova
        } else {
            return Err(PrpError::Gap);
        };
        self.end = end;
        // `page` is the next page that no entry names yet.
        while page < end {
            self.page(page)?;
            page += PAGE;
        }
        Ok(())
    }

    #[inline]
    fn page(&mut self, page: u64) -> Result<(), PrpError> {
        match self.pages {
            1 => self.prp2 = page,
            2 => {
                self.entry(0, self.prp2);
                self.entry(1, page);
            }
            n if n <= LIST_ENTRIES => self.entry(n - 1, page),
            _ => return Err(PrpError::TooLong),
        }
        self.pages += 1;
        Ok(())
    }

    #[inline]
    fn entry(&self, index: usize, page: u64) {
        self.list.store64(self.first + index, page, Ordering::Relaxed);
    }
}

/// Why a walk over a host's PRPs or SGL ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError<E> {
    /// The data pointer is wrong: complete the command with this status.
    Status(Status),
    /// Reading a list, or taking a piece, failed.
    Memory(E),
}

impl<E> From<Status> for WalkError<E> {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// List entries read at a time.
const CHUNK: usize = 64;

/// Walks untrusted PRPs over `len` bytes, piece by piece, at most one piece a page.
///
/// `read(iova, words)` fills words from a list in host memory; `take(iova, len)` gets each piece.
/// The walk is bounded by `len`: every page of list that is read pays for at least one piece, but
/// for the first, and addresses are checked for alignment only (the IOMMU decides the rest).
#[inline]
pub fn walk<E>(
    prp1: u64,
    prp2: u64,
    len: u64,
    page_bytes: u64,
    mut read: impl FnMut(u64, &mut [u64]) -> Result<(), E>,
    mut take: impl FnMut(u64, u64) -> Result<(), E>,
) -> Result<(), WalkError<E>> {
    if len == 0 {
        return Ok(());
    }
    if !prp1.is_multiple_of(4) {
        return Err(Status::PRP_OFFSET_INVALID.dnr().into());
    }
    let first = (page_bytes - prp1 % page_bytes).min(len);
    take(prp1, first).map_err(WalkError::Memory)?;
    let rest = len - first;
    if rest == 0 {
        return Ok(());
    }
    if rest <= page_bytes {
        if !prp2.is_multiple_of(page_bytes) {
            return Err(Status::PRP_OFFSET_INVALID.dnr().into());
        }
        return take(prp2, rest).map_err(WalkError::Memory);
    }
    walk_list(prp2, rest, page_bytes, &mut read, &mut take)
}

fn walk_list<E>(
    mut list: u64,
    mut rest: u64,
    page_bytes: u64,
    read: &mut impl FnMut(u64, &mut [u64]) -> Result<(), E>,
    take: &mut impl FnMut(u64, u64) -> Result<(), E>,
) -> Result<(), WalkError<E>> {
    let invalid = WalkError::Status(Status::PRP_OFFSET_INVALID.dnr());
    if !list.is_multiple_of(8) {
        return Err(invalid);
    }
    let mut chunk = [0; CHUNK];
    while rest > 0 {
        // The last slot of a list's page links to the next list, if more than one page is left.
        let slots = (page_bytes - list % page_bytes) / 8;
        let wanted = rest.div_ceil(page_bytes);
        let linked = wanted > slots;
        let count = wanted.min(slots).min(CHUNK as u64) as usize;
        let words = &mut chunk[..count];
        read(list, words).map_err(WalkError::Memory)?;
        let (pages, link) = match (linked && count as u64 == slots, words.split_last()) {
            (true, Some((link, pages))) => (pages, Some(*link)),
            _ => (&*words, None),
        };
        for page in pages {
            if !page.is_multiple_of(page_bytes) {
                return Err(invalid);
            }
            let len = rest.min(page_bytes);
            take(*page, len).map_err(WalkError::Memory)?;
            rest -= len;
        }
        match link {
            Some(link) if !link.is_multiple_of(page_bytes) => return Err(invalid),
            Some(link) => list = link,
            None => list = list.wrapping_add(count as u64 * 8),
        }
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::queue::test_words::TestWords;
    use proptest::prelude::*;

    const LIST: u64 = 0xdead_0000;

    fn built(pieces: &[(u64, u64)]) -> Result<(u64, u64, TestWords), PrpError> {
        let list = TestWords::new(LIST_ENTRIES * 2);
        let (a, b) = build(pieces.iter().copied(), &list, LIST_ENTRIES, LIST)?;
        Ok((a, b, list))
    }

    fn walked(prp1: u64, prp2: u64, len: u64, list: &TestWords) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        let read = |iova: u64, words: &mut [u64]| {
            for (i, word) in words.iter_mut().enumerate() {
                let at = LIST_ENTRIES + ((iova - LIST) / 8) as usize + i;
                *word = list.load64(at, Ordering::Relaxed);
            }
            Ok::<(), ()>(())
        };
        let take = |iova, len| {
            match out.last_mut() {
                Some((start, size)) if *start + *size == iova => *size += len,
                _ => out.push((iova, len)),
            }
            Ok(())
        };
        walk(prp1, prp2, len, PAGE, read, take).expect("a list the host built");
        out
    }

    #[test]
    fn one_and_two_pages_need_no_list() {
        let (a, b, list) = built(&[(0x1000, 4096)]).unwrap();
        assert_eq!((a, b), (0x1000, 0));
        assert_eq!(list.load64(LIST_ENTRIES, Ordering::Relaxed), 0);
        let (a, b, _) = built(&[(0x1e00, 512), (0x8000, 4096)]).unwrap();
        assert_eq!((a, b), (0x1e00, 0x8000));
        let (a, b, _) = built(&[(0x1004, 4096)]).unwrap();
        assert_eq!((a, b), (0x1004, 0x2000));
    }

    #[test]
    fn later_pages_go_to_the_list() {
        let (a, b, list) = built(&[(0x1800, 2048), (0x8000, 8192), (0x4000, 100)]).unwrap();
        assert_eq!((a, b), (0x1800, LIST));
        let entries: Vec<u64> =
            (0..4).map(|i| list.load64(LIST_ENTRIES + i, Ordering::Relaxed)).collect();
        assert_eq!(entries, [0x8000, 0x9000, 0x4000, 0]);
    }

    #[test]
    fn rules_are_enforced() {
        assert_eq!(built(&[(0x1002, 512)]).err(), Some(PrpError::Misaligned));
        assert_eq!(built(&[(0x1000, 512), (0x2000, 512)]).err(), Some(PrpError::Gap));
        assert_eq!(built(&[(0x1000, 4096), (0x2200, 512)]).err(), Some(PrpError::Gap));
        assert_eq!(built(&[]).err(), Some(PrpError::Invalid));
        assert_eq!(built(&[(0x1000, 0)]).err(), Some(PrpError::Invalid));
        assert_eq!(built(&[(u64::MAX - 3, 8)]).err(), Some(PrpError::Invalid));
        assert!(built(&[(0x1000, 512), (0x1200, 512)]).is_ok());
    }

    /// A list of one page describes 2 MiB from any offset: a page more would be written into the
    /// neighbour's list.
    #[test]
    fn the_list_ends_at_its_page() {
        assert!(built(&[(0x1ffc, TRANSFER_MAX)]).is_ok());
        assert!(built(&[(0x1000, TRANSFER_MAX + PAGE)]).is_ok());
        assert_eq!(built(&[(0x1ffc, TRANSFER_MAX + PAGE)]).err(), Some(PrpError::TooLong));
    }

    #[test]
    fn the_top_page_of_the_address_space_is_refused() {
        for (iova, len) in [(u64::MAX, 1), (u64::MAX - 3, 3), (u64::MAX - 8191, 8188)] {
            assert_eq!(built(&[(0x1000, 4096), (iova, len)]).err(), Some(PrpError::Invalid));
            assert_eq!(built(&[(iova & !3, len & !3)]).err(), Some(PrpError::Invalid));
        }
        assert!(built(&[(u64::MAX - 12_287, 8192)]).is_ok());
    }

    proptest! {
        #[test]
        fn a_walk_finds_what_was_built(
            offset in 0u64..1024, runs in prop::collection::vec((1u64..40, 0u64..1000), 1..8), tail in 1u64..4097
        ) {
            let mut pieces = Vec::new();
            let last = runs.len() - 1;
            for (i, (pages, place)) in runs.iter().enumerate() {
                let base = (place + i as u64 * 2000) * PAGE;
                let skip = if i == 0 { offset * 4 % PAGE } else { 0 };
                let len = pages * PAGE - skip;
                let len = if i == last { len.min(tail) } else { len };
                pieces.push((base + skip, len));
            }
            let total = pieces.iter().map(|p| p.1).sum();
            let (a, b, list) = built(&pieces).unwrap();
            prop_assert_eq!(walked(a, b, total, &list), pieces);
        }

        /// Whatever the host writes, a walk yields pieces of at most `len` bytes and stops.
        #[test]
        fn a_walk_is_bounded(
            prp1: u64, prp2: u64, len in 0u64..(64 << 20), seed: u64, page_shift in 12u32..17
        ) {
            let page = 1 << page_shift;
            let (mut reads, mut taken, mut word) = (0u64, 0u64, seed);
            let read = |_, words: &mut [u64]| {
                reads += 1;
                for slot in words.iter_mut() {
                    word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Page aligned, or the walk ends at the first entry.
                    *slot = word / page * page;
                }
                Ok::<(), ()>(())
            };
            let take = |_, len: u64| { taken += len; Ok(()) };
            let result = walk(prp1 & !3, prp2 & !7, len, page, read, take);
            if result.is_ok() {
                prop_assert_eq!(taken, len);
            }
            prop_assert!(taken <= len);
            prop_assert!(reads <= 3 + len / page / 32);
        }
    }

    #[test]
    fn lists_chain_through_the_last_slot_of_a_page() {
        let len = PAGE * 1200;
        let mut taken = Vec::new();
        let read = |iova: u64, words: &mut [u64]| {
            for (i, word) in words.iter_mut().enumerate() {
                let at = iova + i as u64 * 8;
                // Lists at 1, 2 and 3 GiB; data pages are numbered by their slot.
                *word = if at % PAGE == PAGE - 8 {
                    (at >> 30).wrapping_add(1) << 30
                } else {
                    ((at >> 30) << 20) + at % PAGE / 8 * PAGE
                };
            }
            Ok::<(), ()>(())
        };
        let start = (1 << 30) + PAGE - 16;
        walk(0x5000, start, len, PAGE, read, |iova, len| {
            taken.push((iova, len));
            Ok(())
        })
        .unwrap();
        assert_eq!(taken.len(), 1200);
        assert_eq!(taken[1], ((1 << 20) + 510 * PAGE, PAGE));
        assert_eq!(taken[2], (2 << 20, PAGE));
        assert_eq!(taken[2 + 511], (3 << 20, PAGE));
    }

    #[test]
    fn bad_offsets_are_named() {
        let check = |prp1, prp2, len| {
            let read = |_, words: &mut [u64]| {
                words.fill(0x1234);
                Ok::<(), ()>(())
            };
            walk(prp1, prp2, len, PAGE, read, |_, _| Ok(()))
        };
        let offset = Err(WalkError::Status(Status::PRP_OFFSET_INVALID.dnr()));
        assert_eq!(check(0x1001, 0, 8), offset);
        assert_eq!(check(0x1000, 0x2008, 8192), offset);
        assert_eq!(check(0x1000, 0x2004, 16384), offset);
        assert_eq!(check(0x1000, 0x2008, 16384), offset);
        assert_eq!(check(0x1000, 7, 4096), Ok(()));
    }
}
