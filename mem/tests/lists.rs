//! Scatter lists and views against a plain `Vec<u8>`.

mod common;

use common::{Pages, arena};
use oxblock_mem::{Arena, Buf, IoVector, Memory, Region, View};
use proptest::collection::vec;
use proptest::prelude::*;

/// Where the buffers of a list come from.
#[derive(Debug, Clone, Copy)]
enum Origin {
    Arena,
    Registered,
    Lent,
}

struct Source {
    _memory: Memory,
    arena: Arena,
    region: Option<Region>,
    _pages: Pages,
}

impl Source {
    fn new() -> Source {
        let (memory, arena) = arena(256 << 10);
        let pages = Pages::new(256 << 10);
        let region = Some(pages.register(&memory).unwrap());
        Source { _memory: memory, arena, region, _pages: pages }
    }

    /// Buffers of these lengths that do not overlap, with the bytes 0, 1, 2, ... through all.
    fn bufs(&self, parts: &[(usize, Origin)]) -> (Vec<Buf>, Vec<u8>) {
        let region = self.region.as_ref().unwrap();
        let lender = region.lender().unwrap();
        let mut at = 0;
        let mut bytes = Vec::new();
        let bufs = parts.iter().map(|&(len, from)| {
            let mut buf = match from {
                Origin::Arena if len == 0 => self.arena.alloc(1, 1).unwrap().split_off(1),
                Origin::Arena => self.arena.alloc(len, 1).unwrap(),
                Origin::Registered => region.buf(at, len).unwrap(),
                Origin::Lent => lender.buf(at, len).unwrap(),
            };
            at += len;
            let fill: Vec<u8> = (0..len).map(|i| (bytes.len() + i) as u8).collect();
            buf.write_at(0, &fill);
            bytes.extend_from_slice(&fill);
            buf
        });
        let bufs = bufs.collect();
        (bufs, bytes)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // A region that is still in use here was leaked by the list: the very bug to find.
        let result = self.region.take().unwrap().try_unregister();
        assert!(std::thread::panicking() || result.is_ok());
    }
}

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![Just(Origin::Arena), Just(Origin::Registered), Just(Origin::Lent)]
}

/// Lengths that are often nothing, one byte, or around the chunk of a checked copy.
fn parts() -> impl Strategy<Value = Vec<(usize, Origin)>> {
    let len = prop_oneof![Just(0usize), Just(1), 1..40usize, 500..530usize, 0..2000usize];
    vec((len, origin()), 0..8)
}

fn bytes_of(view: View<'_>) -> Vec<u8> {
    let mut bytes = vec![0; view.len()];
    view.copy_to(&mut bytes);
    bytes
}

/// `a % (len + 1)` and what is left of `b` after it: any range of `len` bytes.
fn range(len: usize, a: usize, b: usize) -> (usize, usize) {
    let at = a % (len + 1);
    (at, b % (len - at + 1))
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn views_read_and_write_what_a_vec_would(
        parts in parts(), a: usize, b: usize, c: usize, d: usize, byte: u8,
    ) {
        let source = Source::new();
        let (bufs, mut model) = source.bufs(&parts);
        let mut list = IoVector::from(bufs);
        prop_assert_eq!(list.len(), model.len());
        prop_assert_eq!(list.is_empty(), model.is_empty());

        let (at, len) = range(model.len(), a, b);
        let view = list.view(at, len);
        prop_assert_eq!(bytes_of(view), &model[at..at + len]);
        let pieces: Vec<_> = view.pieces().collect();
        prop_assert!(pieces.iter().all(|piece| piece.len() > 0));
        prop_assert_eq!(pieces.iter().map(|piece| piece.len()).sum::<usize>(), len);
        let joined: Vec<u8> = pieces.iter().flat_map(|piece| {
            let mut bytes = vec![0; piece.len()];
            piece.copy_to(&mut bytes);
            bytes
        }).collect();
        prop_assert_eq!(joined, &model[at..at + len]);

        let (sub, sub_len) = range(len, c, d);
        let slice = view.slice(sub, sub_len);
        let (start, end) = (at + sub, at + sub + sub_len);
        prop_assert_eq!(bytes_of(slice), &model[start..end]);
        slice.fill(byte);
        model[start..end].fill(byte);
        prop_assert!(slice.is_all(byte));
        prop_assert!(sub_len == 0 || !slice.is_all(!byte));

        let new: Vec<u8> = (0..len).map(|i| (i * 7) as u8 ^ byte).collect();
        view.copy_from(&new);
        model[at..at + len].copy_from_slice(&new);
        prop_assert_eq!(bytes_of(list.view(0, list.len())), &model[..]);

        list.write_at(start, &vec![!byte; sub_len]);
        model[start..end].fill(!byte);
        let mut read = vec![0; len];
        list.read_at(at, &mut read);
        prop_assert_eq!(&read, &model[at..at + len]);
        list.fill(start, sub_len, byte);
        model[start..end].fill(byte);
        prop_assert_eq!(bytes_of(list.view(0, list.len())), &model[..]);
    }

    #[test]
    fn compare_finds_the_first_difference(parts in parts(), flips in vec(any::<usize>(), 0..3)) {
        let source = Source::new();
        let (bufs, mut model) = source.bufs(&parts);
        let list = IoVector::from(bufs);
        let view = list.view(0, list.len());
        prop_assert_eq!(view.compare(&model), None);
        let len = model.len().max(1);
        let mut flipped: Vec<_> = flips.iter().map(|flip| flip % len).collect();
        flipped.sort_unstable();
        flipped.dedup();
        if !model.is_empty() {
            flipped.iter().for_each(|&at| model[at] ^= 0x40);
            prop_assert_eq!(view.compare(&model), flipped.first().copied());
        }
        // One odd byte anywhere is enough.
        view.fill(9);
        for at in flipped.into_iter().filter(|&at| at < view.len()) {
            view.slice(at, 1).fill(8);
            prop_assert!(view.len() == 1 || !view.is_all(9));
            prop_assert!(view.len() == 1 || !view.is_all(8));
            view.slice(at, 1).fill(9);
        }
        prop_assert!(view.is_all(9));
    }

    #[test]
    fn lists_copy_between_each_other(
        left in parts(), right in parts(), a: usize, b: usize, c: usize,
    ) {
        let (from, to) = (Source::new(), Source::new());
        let ((bufs, source), (others, mut target)) = (from.bufs(&left), to.bufs(&right));
        let (from_list, to_list) = (IoVector::from(bufs), IoVector::from(others));
        to_list.view(0, target.len()).fill(0xee);
        target.fill(0xee);
        let len = a % (source.len().min(target.len()) + 1);
        let (at, to_at) = (b % (source.len() - len + 1), c % (target.len() - len + 1));
        to_list.view(to_at, len).copy_from_view(from_list.view(at, len));
        target[to_at..to_at + len].copy_from_slice(&source[at..at + len]);
        prop_assert_eq!(bytes_of(to_list.view(0, target.len())), target);
        prop_assert_eq!(bytes_of(from_list.view(0, source.len())), source);
    }

    #[test]
    fn lists_split_and_join_without_moving_bytes(parts in parts(), cuts in vec(any::<usize>(), 0..6)) {
        let source = Source::new();
        let (bufs, model) = source.bufs(&parts);
        let mut pieces = vec![IoVector::from(bufs)];
        for cut in cuts {
            let at = cut % pieces.len();
            let len = pieces[at].len();
            let tail = pieces[at].split_off(cut / 7 % (len + 1));
            prop_assert_eq!(pieces[at].len(), cut / 7 % (len + 1));
            prop_assert_eq!(pieces[at].len() + tail.len(), len);
            pieces.insert(at + 1, tail);
        }
        let seen: Vec<u8> = pieces.iter().flat_map(|list| bytes_of(list.view(0, list.len()))).collect();
        prop_assert_eq!(&seen, &model);
        let mut whole = IoVector::new();
        pieces.into_iter().for_each(|piece| whole.join(piece));
        prop_assert_eq!(bytes_of(whole.view(0, whole.len())), &model[..]);
        let segments: usize = whole.segments().iter().map(|segment| segment.len()).sum();
        prop_assert_eq!(segments, model.len());
        let bufs = whole.into_bufs();
        prop_assert_eq!(bufs.iter().map(Buf::len).sum::<usize>(), model.len());
        let list: IoVector = bufs.into_iter().collect();
        prop_assert_eq!(bytes_of(list.view(0, list.len())), model);
    }

    #[test]
    fn what_was_cut_mends_to_the_buffers_that_there_were(parts in parts(), cut in any::<usize>()) {
        let source = Source::new();
        let (bufs, model) = source.bufs(&parts);
        let lens = |list: &IoVector| list.segments().iter().map(|s| s.len()).collect::<Vec<_>>();
        let mut list = IoVector::from(bufs);
        let before = lens(&list);
        let tail = list.split_off(cut % (list.len() + 1));
        if lens(&list).len() + lens(&tail).len() > before.len() {
            list.mend(tail);
        } else {
            list.join(tail);
        }
        prop_assert_eq!(lens(&list), before);
        prop_assert_eq!(bytes_of(list.view(0, list.len())), model);
    }
}

#[test]
fn one_buffer_needs_no_vec() {
    let (_memory, arena) = arena(64 << 10);
    let mut list = IoVector::from(arena.alloc(100, 1).unwrap());
    list.write_at(99, &[5]);
    let tail = list.split_off(40);
    list.mend(tail);
    assert_eq!(list.segments().len(), 1);
    let tail = list.split_off(40);
    assert_eq!(list.into_single().unwrap().len(), 40);
    let mut two = tail;
    two.push(arena.alloc(10, 1).unwrap());
    assert_eq!((two.len(), two.segments().len()), (70, 2));
    assert_eq!(two.slices_mut().map(|slice| slice.unwrap().len()).collect::<Vec<_>>(), [60, 10]);
    assert!(IoVector::from(two.into_bufs()).into_single().is_none());
    assert!(IoVector::new().into_single().is_none());
    assert!(IoVector::default().is_empty());
}

#[test]
fn a_vec_is_recycled_without_allocating() {
    let (_memory, arena) = arena(64 << 10);
    let mut bufs = Vec::with_capacity(8);
    let storage = bufs.as_ptr();
    for round in 1..8 {
        bufs.extend((0..round).map(|_| arena.alloc(10, 1).unwrap()));
        let mut list = IoVector::from(bufs);
        list.push(arena.alloc(10, 1).unwrap());
        assert_eq!(list.len(), 10 * (round + 1));
        assert_eq!(list.segments().len(), round + 1);
        bufs = list.into_bufs();
        assert_eq!((bufs.as_ptr(), bufs.len()), (storage, round + 1));
        bufs.clear();
    }
    assert_eq!(arena.available(), 64 << 10);
}

#[test]
fn pieces_know_their_address_for_devices() {
    let (memory, arena) = arena(64 << 10);
    let mut list = IoVector::from(arena.alloc(100, 64).unwrap());
    list.push(arena.alloc(100, 64).unwrap());
    assert!(list.view(0, 200).pieces().all(|piece| piece.iova().is_none()));
    let _attachment = memory.attach(common::Table::wide()).unwrap();
    let region = arena.region();
    for piece in list.view(50, 100).pieces() {
        let offset = piece.addr().addr() - region.addr().addr();
        assert_eq!(piece.iova(), Some(region.iova().unwrap() + offset as u64));
        assert_eq!(piece.len(), 50);
    }
}

#[test]
fn a_buffer_can_be_viewed_for_bouncing() {
    let (_memory, arena) = arena(64 << 10);
    let mut list = IoVector::from(arena.alloc(3, 1).unwrap());
    list.push(arena.alloc(5, 1).unwrap());
    list.write_at(0, b"scatters");
    let mut bounce = arena.alloc(8, 1).unwrap();
    bounce.view().copy_from_view(list.view(0, 8));
    assert_eq!(bounce.as_slice().unwrap(), b"scatters");
}

#[test]
#[should_panic(expected = "5 bytes at 96 of a view of 100")]
fn a_view_beyond_the_end_panics() {
    let (_memory, arena) = arena(4096);
    IoVector::from(arena.alloc(100, 1).unwrap()).view(96, 5);
}

#[test]
#[should_panic(expected = "another length")]
fn a_copy_of_another_length_panics() {
    let (_memory, arena) = arena(4096);
    IoVector::from(arena.alloc(100, 1).unwrap()).view(0, 5).copy_from(&[0; 4]);
}
