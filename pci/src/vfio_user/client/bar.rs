//! A BAR: mapped where the server lends it, by messages elsewhere.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use oxblock_mem::{Buf, Cells, Region};

use super::connection::Connection;
use crate::bar::{check_memory, no_memory};
use crate::vfio_user::message::{REGION_MMAPS, SparseArea, decode_sparse_areas};
use crate::{Bar, PciError, PciErrorKind};

/// The largest BAR that is worked with: 1 GiB.
const LEN_MAX: u64 = 1 << 30;

/// A BAR of the server's function.
pub(super) struct ClientBar {
    connection: Arc<Connection>,
    region: u32,
    len: u64,
    windows: Vec<Window>,
}

/// A part that is memory of both.
struct Window {
    offset: u64,
    len: u64,
    region: Region,
    words: Cells,
}

impl ClientBar {
    /// Asks for a BAR; `None` if the function does not have it.
    pub(super) fn open(
        connection: &Arc<Connection>,
        region: u32,
    ) -> Result<Option<ClientBar>, PciError> {
        let (info, reply) = connection.region_info(region)?;
        let len = info.size.get();
        if len == 0 {
            return Ok(None);
        }
        if len > LEN_MAX {
            return Err(connection.rude("a BAR larger than any"));
        }
        let mut windows = Vec::new();
        if let Some(file) = reply.fds.first().filter(|_| info.flags.get() & REGION_MMAPS != 0) {
            let areas = decode_sparse_areas(&reply.body);
            let mut areas =
                areas.map_err(|_| connection.rude("areas of a BAR that make no sense"))?;
            if areas.is_empty() {
                areas.push(SparseArea { offset: 0.into(), size: len.into() });
            }
            // What cannot be mapped is reached by messages.
            windows.extend(areas.iter().filter_map(|area| {
                Window::map(file, info.offset.get(), area.offset.get(), area.size.get(), len)
            }));
        }
        Ok(Some(ClientBar { connection: Arc::clone(connection), region, len, windows }))
    }

    /// The window that holds an access, and where in it.
    #[inline]
    fn window(&self, offset: u64, size: u64) -> Option<(&Window, usize)> {
        self.windows.iter().find_map(|window| {
            let at = offset.wrapping_sub(window.offset);
            let inside = at < window.len && window.len - at >= size && at.is_multiple_of(size);
            inside.then_some((window, at as usize))
        })
    }

    /// Whether an access has a place in the BAR.
    fn holds(&self, offset: u64, size: u64) -> bool {
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.len);
        inside && offset.is_multiple_of(size)
    }
}

impl Window {
    fn map(file: &OwnedFd, base: u64, offset: u64, len: u64, bar_len: u64) -> Option<Window> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= bar_len);
        let at = base.checked_add(offset).filter(|_| inside)?;
        let region = Region::import(file.as_fd(), at, len).ok()?;
        let words = Cells::new(region.buf(0, region.len()).ok()?).ok()?;
        Some(Window { offset, len, region, words })
    }
}

impl Bar for ClientBar {
    fn len(&self) -> u64 {
        self.len
    }

    fn read32(&self, offset: u64) -> u32 {
        if !self.holds(offset, 4) || !self.connection.is_live() {
            return u32::MAX;
        }
        match self.window(offset, 4) {
            Some((window, at)) => window.words.u32(at / 4).load(Ordering::Relaxed),
            None => self.connection.read(self.region, offset).map_or(u32::MAX, u32::from_le_bytes),
        }
    }

    fn read64(&self, offset: u64) -> u64 {
        if !self.holds(offset, 8) || !self.connection.is_live() {
            return u64::MAX;
        }
        match self.window(offset, 8) {
            Some((window, at)) => window.words.u64(at / 8).load(Ordering::Relaxed),
            None => self.connection.read(self.region, offset).map_or(u64::MAX, u64::from_le_bytes),
        }
    }

    #[inline]
    fn write32(&self, offset: u64, value: u32) {
        if let Some((window, at)) = self.window(offset, 4) {
            // The writer's fence came before; a server that is gone does not mind.
            window.words.u32(at / 4).store(value, Ordering::Relaxed);
        } else if self.holds(offset, 4) {
            let _ = self.connection.write(self.region, offset, &value.to_le_bytes());
        }
    }

    fn write64(&self, offset: u64, value: u64) {
        if let Some((window, at)) = self.window(offset, 8) {
            window.words.u64(at / 8).store(value, Ordering::Relaxed);
        } else if self.holds(offset, 8) {
            let _ = self.connection.write(self.region, offset, &value.to_le_bytes());
        }
    }

    fn memory(&self, offset: u64, len: u64) -> Result<Buf, PciError> {
        check_memory(self, offset, len)?;
        let mut windows = self.windows.iter();
        let window = windows.find(|w| offset >= w.offset && offset + len <= w.offset + w.len);
        let window = window.ok_or_else(|| no_memory(offset))?;
        let buf = window.region.buf((offset - window.offset) as usize, len as usize);
        buf.map_err(|error| PciError::new(PciErrorKind::Io, error.to_string()))
    }
}
