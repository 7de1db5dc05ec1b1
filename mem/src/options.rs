use std::fmt;
use std::path::PathBuf;

/// The size of the pages behind a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB.
    Small4K,
    /// 2 MiB hugepages.
    Huge2M,
    /// 1 GiB hugepages.
    Huge1G,
}

impl PageSize {
    /// The size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            PageSize::Small4K => 4 << 10,
            PageSize::Huge2M => 2 << 20,
            PageSize::Huge1G => 1 << 30,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageSize::Small4K => "4 KiB",
            PageSize::Huge2M => "2 MiB",
            PageSize::Huge1G => "1 GiB",
        })
    }
}

/// Which pages an arena may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PagePolicy {
    /// The best that the system has: 1 GiB hugepages if the size is a multiple, 2 MiB hugepages
    /// if it is at least one, locked 4 KiB pages, unlocked 4 KiB pages. What was missed is told
    /// by [`Arena::notice`](crate::Arena::notice).
    #[default]
    Best,
    /// This size, locked, or an error.
    Exactly(PageSize),
    /// 4 KiB pages that may be swapped: for software and file targets only.
    Unlocked,
    /// 2 MiB hugepages in one physical piece, or an error: for devices behind no IOMMU. Needs
    /// root.
    Contiguous,
}

/// Where the pages of an arena come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ArenaSource {
    /// An anonymous file (`memfd_create`), sealed against resizing.
    #[default]
    Memfd,
    /// An unlinked file in this folder of a mounted hugetlbfs, whose page size must be allowed
    /// by the policy. With [`PagePolicy::Best`] a failure falls back to 4 KiB pages.
    HugetlbFs(PathBuf),
}

/// How to make an [`Arena`](crate::Arena).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArenaOptions {
    /// Bytes, rounded up to whole pages.
    pub size: usize,
    /// Which pages it may use.
    pub pages: PagePolicy,
    /// The NUMA node that the pages are taken from; `None` leaves it to the system.
    pub node: Option<u32>,
    /// Where the pages come from.
    pub source: ArenaSource,
}

impl ArenaOptions {
    /// An arena of `size` bytes on the best pages of any node.
    pub fn new(size: usize) -> ArenaOptions {
        ArenaOptions { size, pages: PagePolicy::Best, node: None, source: ArenaSource::Memfd }
    }
}

impl Default for ArenaOptions {
    /// 64 MiB on the best pages of any node.
    fn default() -> ArenaOptions {
        ArenaOptions::new(64 << 20)
    }
}
