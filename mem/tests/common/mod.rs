//! What the tests of this crate share.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use oxblock_mem::{Arena, ArenaOptions, DmaMapper, MemError, Memory, Region};

/// A memory with one arena that needs no hugepages.
pub fn arena(size: usize) -> (Memory, Arena) {
    let memory = Memory::new();
    let arena = memory.add_arena(&ArenaOptions::new(size)).unwrap();
    (memory, arena)
}

/// The number of the file behind a region, as it stands in /proc/self/maps.
pub fn inode(region: &Region) -> u64 {
    let (fd, offset) = region.fd().unwrap();
    assert_eq!(offset, 0);
    // SAFETY: fstat fills the struct of integers.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        assert_eq!(libc::fstat(fd.as_raw_fd(), &mut stat), 0);
        stat.st_ino
    }
}

/// True while the file is mapped in this process.
pub fn is_mapped(inode: u64) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let of_line = |line: &str| line.split_whitespace().nth(4).and_then(|ino| ino.parse().ok());
    maps.lines().any(|line| line.contains("oxblock") && of_line(line) == Some(inode))
}

/// Pages of the caller's: anonymous memory of its own.
pub struct Pages {
    pub ptr: NonNull<u8>,
    pub len: usize,
}

impl Pages {
    pub fn new(len: usize) -> Pages {
        // SAFETY: a new anonymous mapping.
        let ptr = unsafe {
            let (protection, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0)
        };
        assert_ne!(ptr, libc::MAP_FAILED);
        Pages { ptr: NonNull::new(ptr.cast()).unwrap(), len }
    }

    /// Registers all of it; the test drops the pages after the region.
    pub fn register(&self, memory: &Memory) -> Result<Region, MemError> {
        // SAFETY: the test unregisters the region, or forgets it with the pages still mapped.
        unsafe { memory.register(self.ptr, self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// A mapper that keeps a list, and can be told to fail.
pub struct Table {
    pub windows: Vec<std::ops::RangeInclusive<u64>>,
    pub page_size: u64,
    pub locked: bool,
    pub entries: Mutex<Vec<(u64, Region)>>,
    /// Regions that were unmapped, but that a core has not let go of yet.
    pub late: Mutex<Vec<Region>>,
    /// Maps that succeed before one fails.
    pub maps_left: Mutex<usize>,
    pub lets_go_late: bool,
    pub unmap_fails: Mutex<bool>,
}

impl Table {
    pub fn new(windows: Vec<std::ops::RangeInclusive<u64>>) -> Table {
        Table {
            windows,
            page_size: 4096,
            locked: false,
            entries: Mutex::default(),
            late: Mutex::default(),
            maps_left: Mutex::new(usize::MAX),
            lets_go_late: false,
            unmap_fails: Mutex::new(false),
        }
    }

    pub fn wide() -> Arc<Table> {
        Arc::new(Table::new(vec![0..=(1 << 48) - 1]))
    }

    /// The mapped ranges in order, which must not overlap.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let entries = self.entries.lock().unwrap();
        let mut ranges: Vec<_> = entries.iter().map(|(iova, r)| (*iova, r.len() as u64)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{ranges:x?}");
        ranges
    }

    /// The region mapped at an address.
    pub fn at(&self, iova: u64) -> Option<Region> {
        let entries = self.entries.lock().unwrap();
        entries.iter().find(|(start, _)| *start == iova).map(|(_, region)| region.clone())
    }
}

impl DmaMapper for Table {
    fn windows(&self) -> Vec<std::ops::RangeInclusive<u64>> {
        self.windows.clone()
    }

    fn page_size_min(&self) -> u64 {
        self.page_size
    }

    fn needs_locked(&self) -> bool {
        self.locked
    }

    fn map(&self, region: &Region, iova: u64) -> Result<(), MemError> {
        let mut left = self.maps_left.lock().unwrap();
        if *left == 0 {
            return Err(MemError::new(libc::ENOSPC, "table full"));
        }
        *left -= 1;
        let last = iova + region.len() as u64 - 1;
        assert!(self.windows.iter().any(|w| w.contains(&iova) && w.contains(&last)));
        self.entries.lock().unwrap().push((iova, region.clone()));
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<(), MemError> {
        if *self.unmap_fails.lock().unwrap() {
            return Err(MemError::new(libc::EIO, "device stuck"));
        }
        let mut entries = self.entries.lock().unwrap();
        let at = entries.iter().position(|(start, _)| *start == iova).unwrap();
        assert_eq!(entries[at].1.len() as u64, len);
        let (_, region) = entries.remove(at);
        if self.lets_go_late {
            self.late.lock().unwrap().push(region);
        }
        Ok(())
    }
}
