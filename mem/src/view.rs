use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use crate::buf::Header;
use crate::{Buf, Segment, raw};

/// A borrowed part of a scatter list, at any offset and of any length. Cheap to copy and to
/// slice; nothing is allocated.
///
/// It writes through `&` (CELL): whoever holds the list shared, as a live request does, may
/// write its bytes. It does not outlive the list, and stays on its thread.
///
/// ```compile_fail
/// fn send<T: Send>() {}
/// send::<oxblock_mem::View<'static>>();
/// ```
/// ```compile_fail
/// let view = oxblock_mem::IoVector::new().view(0, 0);
/// view.fill(0);
/// ```
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The first byte is in the first of these, or there is none.
    segments: &'a [Segment],
    skip: usize,
    len: usize,
}

/// A part of one buffer in a [`View`].
#[derive(Clone, Copy)]
pub struct Piece<'a> {
    ptr: *mut u8,
    len: usize,
    header: &'a Header,
    _cell: PhantomData<&'a Cell<u8>>,
}

/// The longest private copy that checks of shared bytes make.
const CHUNK: usize = 512;

impl<'a> View<'a> {
    /// A view of nothing.
    pub const fn empty() -> View<'a> {
        View { segments: &[], skip: 0, len: 0 }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces in order; none is empty, and together they are `len()` bytes.
    #[inline]
    pub fn pieces(&self) -> Pieces<'a> {
        Pieces { rest: *self }
    }

    /// The `len` bytes from offset `at`.
    ///
    /// # Panics
    /// If the range does not lie in the view.
    #[inline]
    pub fn slice(&self, at: usize, len: usize) -> View<'a> {
        let fits = at.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(fits, "{len} bytes at {at} of a view of {}", self.len);
        let (mut segments, mut skip) = (self.segments, self.skip + at);
        while let [first, rest @ ..] = segments
            && skip >= first.len()
            && !rest.is_empty()
        {
            skip -= first.len();
            segments = rest;
        }
        View { segments, skip, len }
    }

    /// Copies all bytes out.
    ///
    /// # Panics
    /// If `dst` has another length.
    pub fn copy_to(&self, dst: &mut [u8]) {
        assert_eq!(dst.len(), self.len, "copy out of a view of another length");
        let mut rest = dst;
        for piece in self.pieces() {
            let (now, later) = rest.split_at_mut(piece.len);
            piece.copy_to(now);
            rest = later;
        }
    }

    /// Copies bytes in, over all of it.
    ///
    /// # Panics
    /// If `src` has another length.
    pub fn copy_from(&self, src: &[u8]) {
        assert_eq!(src.len(), self.len, "copy into a view of another length");
        let mut rest = src;
        for piece in self.pieces() {
            let (now, later) = rest.split_at(piece.len);
            piece.copy_from(now);
            rest = later;
        }
    }

    /// Sets all bytes.
    pub fn fill(&self, byte: u8) {
        self.pieces().for_each(|piece| piece.fill(byte));
    }

    /// Copies the bytes of `src` in, over all of it. If the views overlap at different offsets
    /// of one list, the result is unspecified.
    ///
    /// # Panics
    /// If `src` has another length.
    pub fn copy_from_view(&self, src: View<'_>) {
        assert_eq!(src.len, self.len, "copy into a view of another length");
        let (mut from, mut to) = (src.pieces(), self.pieces());
        let (mut source, mut target) = (from.next(), to.next());
        while let (Some(a), Some(b)) = (source, target) {
            let len = a.len.min(b.len);
            b.front(len).copy_from_piece(a.front(len));
            source = a.after(len).or_else(|| from.next());
            target = b.after(len).or_else(|| to.next());
        }
    }

    /// True if every byte is `byte`.
    pub fn is_all(&self, byte: u8) -> bool {
        self.pieces().all(|piece| piece.is_all(byte))
    }

    /// The offset of the first byte that differs from `other`; `None` if all are equal.
    ///
    /// # Panics
    /// If `other` has another length.
    pub fn compare(&self, other: &[u8]) -> Option<usize> {
        assert_eq!(other.len(), self.len, "compare with a view of another length");
        let mut at = 0;
        for piece in self.pieces() {
            if let Some(difference) = piece.compare(&other[at..at + piece.len]) {
                return Some(at + difference);
            }
            at += piece.len;
        }
        None
    }

    /// The offset of the first byte that differs from `other`'s; `None` if all are equal.
    ///
    /// # Panics
    /// If `other` has another length.
    pub fn compare_view(&self, other: View<'_>) -> Option<usize> {
        assert_eq!(other.len, self.len, "compare with a view of another length");
        let mut copy = [0; CHUNK];
        let mut at = 0;
        while at < self.len {
            let len = CHUNK.min(self.len - at);
            let copy = &mut copy[..len];
            other.slice(at, len).copy_to(copy);
            if let Some(difference) = self.slice(at, len).compare(copy) {
                return Some(at + difference);
            }
            at += len;
        }
        None
    }

    #[inline]
    pub(crate) fn of_segments(segments: &'a [Segment], len: usize) -> View<'a> {
        View { segments, skip: 0, len }
    }

    #[inline]
    pub(crate) fn of_buf(buf: &'a mut Buf) -> View<'a> {
        let len = buf.len();
        // SAFETY: Segment is a transparent Buf; the exclusive borrow makes it the view's (CELL).
        let segment = unsafe { &*std::ptr::from_mut(buf).cast::<Segment>() };
        View { segments: std::slice::from_ref(segment), skip: 0, len }
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.pieces()).finish()
    }
}

/// The pieces of a [`View`].
#[derive(Clone)]
pub struct Pieces<'a> {
    rest: View<'a>,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    #[inline]
    fn next(&mut self) -> Option<Piece<'a>> {
        let rest = &mut self.rest;
        while rest.len > 0 {
            let [first, later @ ..] = rest.segments else {
                return None;
            };
            let len = rest.len.min(first.len().saturating_sub(rest.skip));
            if len > 0 {
                let header = first.buf().header();
                // SAFETY: skip < the segment's length.
                let ptr = unsafe { first.addr().add(rest.skip) };
                (rest.segments, rest.skip, rest.len) = (later, 0, rest.len - len);
                return Some(Piece { ptr, len, header, _cell: PhantomData });
            }
            (rest.skip, rest.segments) = (rest.skip.saturating_sub(first.len()), later);
        }
        None
    }
}

impl<'a> Piece<'a> {
    /// The address of the first byte in this process.
    #[inline]
    pub fn addr(&self) -> *mut u8 {
        self.ptr
    }

    /// The address of the first byte for devices; all its bytes follow.
    #[inline]
    pub fn iova(&self) -> Option<u64> {
        self.header.iova(self.ptr)
    }

    /// Length in bytes, never 0.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if others may write the bytes at any time.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.header.is_shared()
    }

    /// Copies all bytes out.
    ///
    /// # Panics
    /// If `dst` has another length.
    #[inline]
    pub fn copy_to(&self, dst: &mut [u8]) {
        assert_eq!(dst.len(), self.len, "copy out of a piece of another length");
        // SAFETY: LIVE; the list is borrowed, so no thread but ours writes it (CELL, SHARED).
        unsafe { raw::copy(self.ptr, dst.as_mut_ptr(), self.len, self.is_shared()) };
    }

    /// Copies bytes in, over all of it.
    ///
    /// # Panics
    /// If `src` has another length.
    #[inline]
    pub fn copy_from(&self, src: &[u8]) {
        assert_eq!(src.len(), self.len, "copy into a piece of another length");
        // SAFETY: LIVE; the list is borrowed by our thread, and lends no slices (CELL, SHARED).
        unsafe { raw::copy(src.as_ptr(), self.ptr, self.len, self.is_shared()) };
    }

    /// Sets all bytes.
    #[inline]
    pub fn fill(&self, byte: u8) {
        // SAFETY: as for `copy_from`.
        unsafe { raw::fill(self.ptr, byte, self.len, self.is_shared()) };
    }

    /// The lengths must be equal; the bytes may overlap.
    fn copy_from_piece(&self, src: Piece<'_>) {
        debug_assert_eq!(self.len, src.len);
        let shared = self.is_shared() || src.is_shared();
        // SAFETY: LIVE on both sides, and as for `copy_from` and `copy_to`.
        unsafe { raw::copy(src.ptr, self.ptr, self.len.min(src.len), shared) };
    }

    /// The first `len` bytes, of which there are as many.
    fn front(self, len: usize) -> Piece<'a> {
        Piece { len: len.min(self.len), ..self }
    }

    /// What follows the first `len` bytes, if anything does.
    fn after(self, len: usize) -> Option<Piece<'a>> {
        let rest = self.len.checked_sub(len).filter(|&rest| rest > 0)?;
        // SAFETY: len < self.len.
        let ptr = unsafe { self.ptr.add(len) };
        Some(Piece { ptr, len: rest, ..self })
    }

    fn is_all(&self, byte: u8) -> bool {
        self.chunks(|_, bytes| bytes[0] == byte && bytes[1..] == bytes[..bytes.len() - 1])
    }

    fn compare(&self, other: &[u8]) -> Option<usize> {
        let mut difference = None;
        self.chunks(|at, bytes| {
            let expected = &other[at..at + bytes.len()];
            if bytes != expected {
                let first = bytes.iter().zip(expected).position(|(a, b)| a != b);
                difference = first.map(|first| at + first);
            }
            difference.is_none()
        });
        difference
    }

    /// Shows all bytes in order, with their offset, while `check` says true. Shared bytes are
    /// shown as private copies, so that `check` judges bytes that stay as they are.
    fn chunks(&self, mut check: impl FnMut(usize, &[u8]) -> bool) -> bool {
        if !self.is_shared() {
            // SAFETY: LIVE; the list is borrowed by our thread, and `check` can not write it: it
            // is a closure of this module that knows no view (CELL).
            return check(0, unsafe { std::slice::from_raw_parts(self.ptr, self.len) });
        }
        let mut copy = [0; CHUNK];
        let mut at = 0;
        let mut rest = Some(*self);
        while let Some(piece) = rest {
            let chunk = piece.front(CHUNK);
            let copy = &mut copy[..chunk.len];
            chunk.copy_to(copy);
            if !check(at, copy) {
                return false;
            }
            at += chunk.len;
            rest = piece.after(chunk.len);
        }
        true
    }
}

impl fmt::Debug for Piece<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Piece");
        out.field("addr", &self.ptr).field("len", &self.len).field("iova", &self.iova()).finish()
    }
}
