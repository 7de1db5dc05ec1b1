//! Memory in one physical piece, for devices behind no IOMMU: they know it by its physical
//! address, and a list of pieces would be another for each command.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use crate::map::{self, Mapping};
use crate::{ArenaOptions, ArenaSource, MemError, PageSize};

/// The hugepages that are used, bytes.
const PAGE: usize = PageSize::Huge2M.bytes();
/// What pagemap counts in, bytes.
const SMALL: usize = PageSize::Small4K.bytes();
/// Bits of a pagemap entry (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// Maps hugepages of 2 MiB that lie in one piece: takes some, keeps a run of them, in order, and
/// gives the others back. Twice as many are taken until there is a run, or no more are free.
pub(crate) fn map(options: &ArenaOptions) -> Result<Mapping, MemError> {
    if options.source != ArenaSource::Memfd {
        let text = "arena in one physical piece: it comes from a memfd, not from a hugetlbfs";
        return Err(MemError::new(libc::EINVAL, text));
    }
    let need = options.size.div_ceil(PAGE);
    let free = free_hugepages();
    let mut count = need;
    while need > 0 && count <= free {
        count = count.saturating_mul(2).min(free);
        let some = take(count, options.node).map_err(|why| scattered(need, &why.to_string()))?;
        let frames = frames_of(some.base(), some.len(), PAGE)?;
        if let Some(run) = shortest_run(&frames, PAGE as u64, need) {
            return some.into_run(&run).map_err(|why| scattered(need, &why.to_string()));
        }
        if count == free {
            return Err(scattered(need, &format!("{free} are free, but scattered")));
        }
    }
    Err(scattered(need, &format!("{free} of the {need} needed are free")))
}

/// So many hugepages, wherever they are.
fn take(count: usize, node: Option<u32>) -> io::Result<Mapping> {
    let fd = map::memfd(map::hugetlb_flags(PageSize::Huge2M), count * PAGE)?;
    let some = Mapping::of_file(fd, count * PAGE, PageSize::Huge2M, PAGE)?;
    if let Some(node) = node {
        some.bind(node)?;
    }
    some.populate()?;
    Ok(some)
}

fn scattered(need: usize, why: &str) -> MemError {
    let text = format!(
        "no {} MiB of hugepages in one physical piece: {why}; reserve more, early: `hugepages={}` \
         on the kernel's command line",
        need * 2,
        need * 4
    );
    MemError::new(libc::ENOMEM, text)
}

/// The physical address of memory on hugepages that lies in one piece.
///
/// # Errors
/// `ENOTSUP` if it is on small pages, which the kernel may move, or is in several pieces; `EPERM`
/// if this process may not know.
pub(crate) fn physical(base: NonNull<u8>, len: usize, size: PageSize) -> Result<u64, MemError> {
    if size == PageSize::Small4K {
        let text = "memory on 4 KiB pages has no physical address that lasts; without an IOMMU a \
                    device needs hugepages";
        return Err(MemError::new(libc::ENOTSUP, text));
    }
    let page = size.bytes();
    let frames = frames_of(base, len, page)?;
    let is_run = frames.windows(2).all(|pair| pair[0] + page as u64 == pair[1]);
    match frames.first() {
        Some(first) if is_run => Ok(*first),
        _ => Err(MemError::new(
            libc::ENOTSUP,
            format!(
                "{len} bytes at {base:?} are in several physical pieces; without an IOMMU a device \
                 needs one (PagePolicy::Contiguous)"
            ),
        )),
    }
}

/// The physical address of each page of a mapping of hugepages.
fn frames_of(base: NonNull<u8>, len: usize, page: usize) -> Result<Vec<u64>, MemError> {
    let os = |error: io::Error| MemError::os(&error, "reading /proc/self/pagemap");
    let pagemap = File::open("/proc/self/pagemap").map_err(os)?;
    let mut frames = Vec::with_capacity(len / page);
    for at in (0..len).step_by(page) {
        map::touch(base, at);
        let mut entry = [0; 8];
        let index = (base.addr().get() + at) / SMALL;
        pagemap.read_exact_at(&mut entry, index as u64 * 8).map_err(os)?;
        let entry = u64::from_ne_bytes(entry);
        // Without the right to know, the frame reads as zero.
        if entry & PRESENT == 0 || entry & FRAME == 0 {
            let text = "physical addresses are for root only (CAP_SYS_ADMIN); run as root";
            return Err(MemError::new(libc::EPERM, text));
        }
        frames.push((entry & FRAME) * SMALL as u64);
    }
    Ok(frames)
}

/// The places of `need` pages that follow each other physically, in that order; of the shortest
/// run that is long enough, so that long ones last.
fn shortest_run(frames: &[u64], page: u64, need: usize) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..frames.len()).collect();
    order.sort_unstable_by_key(|&at| frames[at]);
    let runs = order.chunk_by(|&a, &b| frames[a] + page == frames[b]);
    let run = runs.filter(|run| run.len() >= need).min_by_key(|run| run.len())?;
    Some(run[..need].to_vec())
}

fn free_hugepages() -> usize {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    let number = |name: &str| -> Option<usize> {
        fs::read_to_string(format!("{path}/{name}")).ok()?.trim().parse().ok()
    };
    let reserved = number("resv_hugepages").unwrap_or(0);
    number("free_hugepages").unwrap_or(0).saturating_sub(reserved)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_run_that_is_long_enough_is_taken_in_order() {
        let mib = |at: u64| at << 20;
        let frames = [mib(20), mib(2), mib(22), mib(4), mib(40), mib(24), mib(6), mib(8)];
        let run = |need| shortest_run(&frames, mib(2), need);
        assert_eq!(run(1), Some(vec![4]));
        assert_eq!(run(2), Some(vec![0, 2]));
        assert_eq!(run(3), Some(vec![0, 2, 5]));
        assert_eq!(run(4), Some(vec![1, 3, 6, 7]));
        assert_eq!(run(5), None);
        assert_eq!(shortest_run(&[], mib(2), 1), None);
    }

    #[test]
    fn small_pages_have_no_address_that_lasts() {
        let error = physical(NonNull::dangling(), 4096, PageSize::Small4K).unwrap_err();
        assert_eq!(error.errno(), libc::ENOTSUP);
    }
}
