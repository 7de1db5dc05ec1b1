//! Which pages an arena gets, and what to tell when they are not the best.

use std::fs;
use std::io;

use crate::contiguous;
use crate::map::{self, Mapping};
use crate::{ArenaOptions, ArenaSource, MemError, PagePolicy, PageSize};

/// A mapping, and one line on what it did not get.
type Mapped = Result<(Mapping, Option<String>), MemError>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lock {
    Must,
    Try,
    No,
}

/// Maps what the options ask for.
pub(crate) fn map(options: &ArenaOptions) -> Mapped {
    let small_only =
        matches!(options.pages, PagePolicy::Unlocked | PagePolicy::Exactly(PageSize::Small4K));
    if options.size == 0 {
        return Err(MemError::new(libc::EINVAL, "arena of 0 bytes: give it a size"));
    }
    if small_only && options.source != ArenaSource::Memfd {
        let text = "arena of 4 KiB pages in a hugetlbfs: ask for hugepages, or for a memfd";
        return Err(MemError::new(libc::EINVAL, text));
    }
    match options.pages {
        PagePolicy::Exactly(PageSize::Small4K) => small(options, Lock::Must),
        PagePolicy::Exactly(page_size) => huge(options, page_size),
        PagePolicy::Unlocked => small(options, Lock::No),
        PagePolicy::Best => best(options),
        PagePolicy::Contiguous => contiguous::map(options).map(|mapping| (mapping, None)),
    }
}

/// What to do so that `len` bytes more can be locked.
pub(crate) fn memlock_advice(len: usize) -> String {
    let need = (len >> 10).max(1);
    match memlock_limit() {
        None => "this process may not lock memory; give it CAP_IPC_LOCK".into(),
        Some(limit) => format!(
            "RLIMIT_MEMLOCK is {} KiB; raise it with `ulimit -l {need}`, or for good with a \
             memlock line in /etc/security/limits.conf",
            limit >> 10
        ),
    }
}

/// Hugepages if there are any, then 4 KiB pages.
fn best(options: &ArenaOptions) -> Mapped {
    let size = options.size;
    let candidates: &[PageSize] = match options.source {
        // The folder has one size, whatever we ask for.
        ArenaSource::HugetlbFs(_) => &[PageSize::Huge2M],
        _ if size.is_multiple_of(PageSize::Huge1G.bytes()) => &[PageSize::Huge1G, PageSize::Huge2M],
        _ if size >= PageSize::Huge2M.bytes() => &[PageSize::Huge2M],
        _ => &[],
    };
    let mut missed = None;
    for &page_size in candidates {
        match huge(options, page_size) {
            Ok((mapping, notice)) => return Ok((mapping, join(missed, notice))),
            Err(error) if error.errno() == libc::EINVAL => return Err(error),
            Err(error) => missed = Some(error.to_string()),
        }
    }
    let (mapping, notice) = small(options, Lock::Try)?;
    let missed = missed.map(|why| format!("memory is on 4 KiB pages, which is slower: {why}"));
    Ok((mapping, join(missed, notice)))
}

fn small(options: &ArenaOptions, lock: Lock) -> Mapped {
    let len = round_up(options.size, PageSize::Small4K)?;
    let failed = |call: &'static str| {
        move |error: io::Error| {
            MemError::os(&error, format_args!("arena of {} on 4 KiB pages: {call}", words(len)))
        }
    };
    // 2 MiB where that costs nothing: IOMMUs then use larger pages.
    let huge = PageSize::Huge2M.bytes();
    let align = if len >= huge { huge } else { PageSize::Small4K.bytes() };
    let fd = map::memfd(0, len).map_err(failed("memfd_create"))?;
    let mut mapping =
        Mapping::of_file(fd, len, PageSize::Small4K, align).map_err(failed("mmap"))?;
    let notice = bind(&mapping, options.node)?;
    mapping.prefer_huge();
    if lock == Lock::No {
        return Ok((mapping, notice));
    }
    match mapping.lock() {
        Ok(()) => Ok((mapping, notice)),
        Err(error) if lock == Lock::Must => {
            Err(failed("mlock")(error).context(format_args!("{}", memlock_advice(len))))
        }
        Err(error) => {
            let advice = memlock_advice(len);
            let line = format!(
                "memory is not locked (mlock: {error}), so no hardware device can use it: {advice}"
            );
            Ok((mapping, join(notice, Some(line))))
        }
    }
}

fn huge(options: &ArenaOptions, page_size: PageSize) -> Mapped {
    let page_size = match &options.source {
        ArenaSource::Memfd => page_size,
        ArenaSource::HugetlbFs(path) => {
            let found = map::hugetlbfs_page_size(path)?;
            if options.pages != PagePolicy::Best && found != page_size {
                let path = path.display();
                let text = format!("{path} has {found} pages, but the arena wants {page_size}");
                return Err(MemError::new(libc::EINVAL, text));
            }
            found
        }
    };
    let len = round_up(options.size, page_size)?;
    let failed = |error: io::Error| {
        let (size, advice) = (words(len), hugepage_advice(page_size, len));
        let text = format!("no {page_size} hugepages for {size} ({error}): {advice}");
        match error.raw_os_error() {
            // Not the caller's mistake: the kernel lacks this size.
            Some(libc::EINVAL) | None => MemError::new(libc::ENODEV, text),
            Some(errno) => MemError::new(errno, text),
        }
    };
    let fd = match &options.source {
        ArenaSource::HugetlbFs(path) => map::hugetlbfs_file(path, len),
        ArenaSource::Memfd => map::memfd(map::hugetlb_flags(page_size), len),
    };
    let mapping = fd
        .and_then(|fd| Mapping::of_file(fd, len, page_size, page_size.bytes()))
        .map_err(failed)?;
    let notice = bind(&mapping, options.node)?;
    mapping.populate().map_err(failed)?;
    Ok((mapping, notice))
}

/// Binds to the node asked for, before there are pages. A node that does not exist is an error;
/// a system that does not let us choose is worth a line.
fn bind(mapping: &Mapping, node: Option<u32>) -> Result<Option<String>, MemError> {
    let Some(node) = node else { return Ok(None) };
    match mapping.bind(node) {
        Ok(()) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(MemError::os(
            &error,
            format_args!("no NUMA node {node}; see /sys/devices/system/node/has_memory"),
        )),
        Err(error) => Ok(Some(format!(
            "memory is not bound to NUMA node {node} (mbind: {error}): run under `numactl \
             --membind={node}`"
        ))),
    }
}

/// Why there are no hugepages, and the command that makes them.
fn hugepage_advice(page_size: PageSize, len: usize) -> String {
    let dir = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page_size.bytes() >> 10);
    let number = |name: &str| -> Option<usize> {
        fs::read_to_string(format!("{dir}/{name}")).ok()?.trim().parse().ok()
    };
    let need = len / page_size.bytes();
    match (number("nr_hugepages"), number("free_hugepages"), number("resv_hugepages")) {
        (Some(total), Some(free), reserved) => {
            let free = free.saturating_sub(reserved.unwrap_or(0));
            let want = total + need.saturating_sub(free);
            format!(
                "{free} of the {need} needed are free; run `echo {want} | sudo tee \
                 {dir}/nr_hugepages`"
            )
        }
        _ => format!("this kernel has none of that size; see {dir}"),
    }
}

/// The limit in bytes; `None` if there is none.
fn memlock_limit() -> Option<u64> {
    let limit = map::memlock_limit();
    limit.filter(|&limit| limit != libc::RLIM_INFINITY)
}

fn round_up(size: usize, page_size: PageSize) -> Result<usize, MemError> {
    let len = size.checked_next_multiple_of(page_size.bytes());
    len.filter(|&len| len <= isize::MAX as usize / 2).ok_or_else(|| {
        MemError::new(libc::EINVAL, format!("arena of {size} bytes: larger than any address space"))
    })
}

fn join(first: Option<String>, second: Option<String>) -> Option<String> {
    match (first, second) {
        (Some(first), Some(second)) => Some(format!("{first}; {second}")),
        (first, second) => first.or(second),
    }
}

/// A size for people.
fn words(len: usize) -> String {
    match len {
        _ if len.is_multiple_of(1 << 20) => format!("{} MiB", len >> 20),
        _ => format!("{} KiB", len >> 10),
    }
}
