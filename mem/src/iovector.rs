use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, take};
use std::ptr;

use crate::{Buf, View};

/// A scatter list that owns its buffers. 32 bytes: one buffer is held inline, more in a `Vec`,
/// which the caller may recycle ([`into_bufs`](IoVector::into_bufs)).
///
/// Its bytes are written through `&` ([`View`]), as a `Cell` is (CELL): it lends no slices of
/// them while it is shared, and is not `Sync`.
///
/// ```compile_fail
/// fn share<T: Sync>() {}
/// share::<oxblock_mem::IoVector>();
/// ```
/// ```compile_fail
/// fn read(list: &oxblock_mem::IoVector) -> Option<&[u8]> {
///     list.segments()[0].as_slice()
/// }
/// ```
#[repr(C)]
pub struct IoVector {
    head: Head,
    /// Segments.
    count: u32,
    /// The capacity of the `Vec`; 0 if there is none, and up to one buffer is inline.
    capacity: u32,
}

/// The inline buffer, or the `Vec`'s. `len` is the length of all segments in either case.
#[repr(C)]
union Head {
    one: ManuallyDrop<Buf>,
    many: Many,
}

/// Laid out as the first two fields of `Buf`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Many {
    ptr: *mut Buf,
    len: usize,
}

const _: () = assert!(size_of::<IoVector>() == 32 && size_of::<Option<Buf>>() == 24);

// SAFETY: it owns its Bufs, which are Send, and the Vec that holds them.
unsafe impl Send for IoVector {}

/// A buffer of an [`IoVector`] that is shared: what a [`Buf`] tells without lending its bytes.
#[repr(transparent)]
pub struct Segment {
    buf: Buf,
    /// Not Sync (CELL).
    _cell: PhantomData<Cell<u8>>,
}

impl IoVector {
    /// An empty list.
    #[inline]
    pub const fn new() -> IoVector {
        IoVector {
            head: Head { many: Many { ptr: ptr::null_mut(), len: 0 } },
            count: 0,
            capacity: 0,
        }
    }

    /// Length of all segments in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        // SAFETY: both variants have a length here, and one of them is always set.
        unsafe { self.head.many.len }
    }

    /// True if it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its buffers in order. Some may be empty.
    #[inline]
    pub fn segments(&self) -> &[Segment] {
        // SAFETY: `bufs` gives `count` Bufs; Segment is a transparent Buf.
        unsafe { std::slice::from_raw_parts(self.bufs().cast(), self.count as usize) }
    }

    /// The bytes of each buffer in order; `None` for shared memory.
    pub fn slices_mut(&mut self) -> impl Iterator<Item = Option<&mut [u8]>> {
        // SAFETY: `bufs` gives `count` Bufs, and `&mut self` makes them ours (CELL).
        let bufs =
            unsafe { std::slice::from_raw_parts_mut(self.bufs().cast_mut(), self.count as usize) };
        bufs.iter_mut().map(Buf::as_mut_slice)
    }

    /// Appends a buffer. Allocates from the second on, unless the list came from a `Vec` with
    /// room.
    pub fn push(&mut self, buf: Buf) {
        if self.capacity == 0 && self.count == 0 {
            *self = IoVector::from(buf);
        } else {
            self.with_vec(|bufs| bufs.push(buf));
        }
    }

    /// Appends all buffers of `next`, without copying bytes.
    pub fn join(&mut self, next: IoVector) {
        if self.capacity == 0 && self.count == 0 {
            *self = next;
        } else if let Some(buf) = next.has_one() {
            // SAFETY: `next` is forgotten, so that its Buf has one owner.
            let buf = unsafe { ptr::read(buf) };
            std::mem::forget(next);
            self.push(buf);
        } else {
            self.with_vec(|bufs| bufs.append(&mut next.into_bufs()));
        }
    }

    /// Appends what [`split_off`](Self::split_off) took off inside a buffer, which is whole again.
    pub fn mend(&mut self, next: IoVector) {
        if self.has_one().is_some() && next.has_one().is_some() {
            if let (Some(mut first), Some(second)) = (take(self).into_single(), next.into_single())
            {
                let apart = first.try_join(second);
                *self = IoVector::from(first);
                apart.err().into_iter().for_each(|second| self.push(second));
            }
            return;
        }
        let mut rest = next.into_bufs();
        if rest.is_empty() {
            return;
        }
        self.with_vec(|bufs| {
            let second = rest.remove(0);
            let apart = match bufs.last_mut() {
                Some(first) => first.try_join(second),
                None => Err(second),
            };
            bufs.extend(apart.err());
            bufs.append(&mut rest);
        });
    }

    /// Keeps the first `at` bytes and returns the rest, without copying bytes.
    ///
    /// # Panics
    /// If `at` is beyond the end.
    pub fn split_off(&mut self, at: usize) -> IoVector {
        let len = self.len();
        assert!(at <= len, "split at {at} beyond the end of a list of {len}");
        if at == len {
            return IoVector::new();
        }
        if at == 0 {
            return take(self);
        }
        if self.capacity == 0 {
            let mut buf = take(self).into_single().expect("a list with bytes and no Vec has one");
            let tail = buf.split_off(at);
            *self = IoVector::from(buf);
            return IoVector::from(tail);
        }
        self.with_vec(|bufs| {
            let mut rest = at;
            let mut index = 0;
            while rest > bufs[index].len() {
                rest -= bufs[index].len();
                index += 1;
            }
            let middle = bufs[index].split_off(rest);
            let mut tail = bufs.split_off(index + 1);
            if !middle.is_empty() {
                tail.insert(0, middle);
            }
            IoVector::from(tail)
        })
    }

    /// Its buffers. The `Vec` can be emptied, filled again and turned back without allocating.
    pub fn into_bufs(self) -> Vec<Buf> {
        let mut bufs = Vec::new();
        let mut this = self;
        this.with_vec(|all| std::mem::swap(all, &mut bufs));
        bufs
    }

    /// Its buffer, if it has exactly one.
    #[inline]
    pub fn into_single(self) -> Option<Buf> {
        if self.has_one().is_some() {
            let this = ManuallyDrop::new(self);
            // SAFETY: an inline buffer, moved out of what is never dropped.
            return Some(unsafe { ptr::read(&*this.head.one) });
        }
        (self.count == 1).then(|| self.into_bufs().pop()).flatten()
    }

    /// Copies `dst.len()` bytes out, from offset `at`.
    ///
    /// # Panics
    /// If the range does not lie in the list.
    pub fn read_at(&self, at: usize, dst: &mut [u8]) {
        self.view(at, dst.len()).copy_to(dst);
    }

    /// Copies `src` in, to offset `at`.
    ///
    /// # Panics
    /// If the range does not lie in the list.
    pub fn write_at(&mut self, at: usize, src: &[u8]) {
        self.view(at, src.len()).copy_from(src);
    }

    /// Sets `len` bytes from offset `at`.
    ///
    /// # Panics
    /// If the range does not lie in the list.
    pub fn fill(&mut self, at: usize, len: usize, byte: u8) {
        self.view(at, len).fill(byte);
    }

    /// The `len` bytes from offset `at`.
    ///
    /// # Panics
    /// If the range does not lie in the list.
    #[inline]
    pub fn view(&self, at: usize, len: usize) -> View<'_> {
        View::of_segments(self.segments(), self.len()).slice(at, len)
    }

    /// A view of all bytes.
    #[inline]
    pub fn whole(&self) -> View<'_> {
        View::of_segments(self.segments(), self.len())
    }

    /// The inline buffer.
    #[inline]
    fn has_one(&self) -> Option<&Buf> {
        // SAFETY: without a Vec, a count of one says that `one` is set.
        (self.capacity == 0 && self.count == 1).then(|| unsafe { &*self.head.one })
    }

    /// The first of `count` Bufs.
    #[inline]
    fn bufs(&self) -> *const Buf {
        match self.capacity {
            0 => (&raw const self.head).cast(),
            // SAFETY: a capacity says that `many` is set.
            _ => unsafe { self.head.many.ptr },
        }
    }

    /// Lends its buffers as a `Vec` and takes them back.
    fn with_vec<R>(&mut self, change: impl FnOnce(&mut Vec<Buf>) -> R) -> R {
        let this = ManuallyDrop::new(take(self));
        let mut bufs = match (this.capacity, this.has_one()) {
            (0, None) => Vec::new(),
            // SAFETY: moved out of what is never dropped.
            (0, Some(buf)) => vec![unsafe { ptr::read(buf) }],
            // SAFETY: a capacity says that these are the parts of a Vec, which we own.
            (capacity, _) => unsafe {
                Vec::from_raw_parts(this.head.many.ptr, this.count as usize, capacity as usize)
            },
        };
        let result = change(&mut bufs);
        *self = IoVector::from(bufs);
        result
    }
}

impl Drop for IoVector {
    #[inline]
    fn drop(&mut self) {
        match (self.capacity, self.count) {
            (0, 0) => {}
            // SAFETY: without a Vec, a count of one says that `one` is set.
            (0, _) => unsafe { ManuallyDrop::drop(&mut self.head.one) },
            // SAFETY: a capacity says that these are the parts of a Vec, which we own.
            (capacity, count) => drop(unsafe {
                Vec::from_raw_parts(self.head.many.ptr, count as usize, capacity as usize)
            }),
        }
    }
}

impl Default for IoVector {
    fn default() -> IoVector {
        IoVector::new()
    }
}

impl From<Buf> for IoVector {
    #[inline]
    fn from(buf: Buf) -> IoVector {
        IoVector { head: Head { one: ManuallyDrop::new(buf) }, count: 1, capacity: 0 }
    }
}

impl From<Vec<Buf>> for IoVector {
    /// Keeps the `Vec` as it is, with its capacity.
    ///
    /// # Panics
    /// If it has room for 2^32 buffers.
    fn from(bufs: Vec<Buf>) -> IoVector {
        let capacity = u32::try_from(bufs.capacity()).expect("a list of fewer than 2^32 buffers");
        let len = bufs.iter().map(Buf::len).sum();
        let mut bufs = ManuallyDrop::new(bufs);
        let (ptr, count) = (bufs.as_mut_ptr(), bufs.len() as u32);
        IoVector { head: Head { many: Many { ptr, len } }, count, capacity }
    }
}

impl FromIterator<Buf> for IoVector {
    fn from_iter<I: IntoIterator<Item = Buf>>(bufs: I) -> IoVector {
        let mut list = IoVector::new();
        bufs.into_iter().for_each(|buf| list.push(buf));
        list
    }
}

impl fmt::Debug for IoVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.segments()).finish()
    }
}

impl Segment {
    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// True if it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// The address of the first byte in this process.
    #[inline]
    pub fn addr(&self) -> *mut u8 {
        self.buf.addr()
    }

    /// The address of the first byte for devices.
    #[inline]
    pub fn iova(&self) -> Option<u64> {
        self.buf.iova()
    }

    /// True if others may write the bytes at any time.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.buf.is_shared()
    }

    #[inline]
    pub(crate) fn buf(&self) -> &Buf {
        &self.buf
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.buf.fmt(f)
    }
}
