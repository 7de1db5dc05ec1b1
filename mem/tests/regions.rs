//! Regions, their addresses for devices, and how they go away.

mod common;

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{Pages, Table, arena, inode, is_mapped};
use oxblock_mem::{ArenaOptions, DmaMapper, MemError, Memory, PagePolicy, Pool, Region};
use proptest::prelude::*;

#[test]
fn registration_is_granular_and_checked() {
    let memory = Memory::new();
    let pages = Pages::new(16384);
    let register = |offset: usize, len: usize| {
        // SAFETY: nothing is registered: every case fails.
        unsafe { memory.register(pages.ptr.add(offset), len) }.unwrap_err()
    };
    for (offset, len) in [(1, 4096), (0, 4095), (0, 0), (512, 8192), (0, 100)] {
        let error = register(offset, len);
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.to_string().contains("multiples of 4096"), "{error}");
    }
    let top = NonNull::new(std::ptr::without_provenance_mut(usize::MAX - 4095)).unwrap();
    // SAFETY: refused, as it is beyond the address space.
    let error = unsafe { memory.register(top, 8192) }.unwrap_err();
    assert_eq!(error.errno(), libc::EINVAL);
    assert!(memory.regions().is_empty());
}

#[test]
fn memory_that_is_not_mapped_is_refused() {
    let memory = Memory::new();
    let pages = Pages::new(8192);
    // The lowest pages are never mapped, whatever other threads do.
    let low = NonNull::new(std::ptr::without_provenance_mut(4096)).unwrap();
    // SAFETY: refused, as it is not mapped.
    let error = unsafe { memory.register(low, 4096) }.unwrap_err();
    assert_eq!(error.errno(), libc::ENOMEM, "{error}");
    pages.register(&memory).unwrap().try_unregister().unwrap();
}

#[test]
fn regions_do_not_overlap() {
    let memory = Memory::new();
    let pages = Pages::new(16384);
    // SAFETY: unregistered below, before the pages go.
    let middle = unsafe { memory.register(pages.ptr.add(4096), 8192) }.unwrap();
    assert_eq!(pages.register(&memory).unwrap_err().errno(), libc::EEXIST);
    // SAFETY: as above.
    let first = unsafe { memory.register(pages.ptr, 4096) }.unwrap();
    assert_eq!(memory.regions().len(), 2);
    first.try_unregister().unwrap();
    middle.try_unregister().unwrap();
    pages.register(&memory).unwrap().try_unregister().unwrap();
}

#[test]
fn registered_memory_is_copied_never_lent() {
    let memory = Memory::new();
    let pages = Pages::new(8192);
    let region = pages.register(&memory).unwrap();
    assert!(region.is_shared() && region.fd().is_none() && region.dma());
    let mut buf = region.buf(100, 200).unwrap();
    assert!(buf.is_shared() && buf.as_slice().is_none() && buf.as_mut_slice().is_none());
    buf.write_at(10, b"hello");
    let overlapping = region.buf(110, 5).unwrap();
    let mut bytes = [0; 5];
    overlapping.read_at(0, &mut bytes);
    assert_eq!(&bytes, b"hello");
    for (offset, len) in [(8192, 1), (0, 8193), (usize::MAX, 2)] {
        assert_eq!(region.buf(offset, len).unwrap_err().errno(), libc::EINVAL);
        assert_eq!(region.lender().unwrap().buf(offset, len).unwrap_err().errno(), libc::EINVAL);
    }
    drop((buf, overlapping));
    region.try_unregister().unwrap();
}

#[test]
fn an_arena_lends_its_bytes_to_devices_only() {
    let (_memory, arena) = arena(4096);
    let region = arena.region();
    assert_eq!(region.buf(0, 1).unwrap_err().errno(), libc::EINVAL);
    assert_eq!(region.lender().unwrap_err().errno(), libc::EINVAL);
    let block = arena.alloc(8, 8).unwrap();
    let offset = block.addr().addr() - region.addr().addr();
    // SAFETY: the test is the device, and `block` its command's buffer.
    let mut device = unsafe { region.device_buf(offset, 8) }.unwrap();
    device.write_at(0, b"incoming");
    drop(device);
    assert_eq!(block.as_slice().unwrap(), b"incoming");
}

#[test]
fn a_region_in_use_is_not_unregistered() {
    let memory = Memory::new();
    let pages = Pages::new(8192);
    let region = pages.register(&memory).unwrap();
    let table = Table::wide();
    let _attachment = memory.attach(table.clone()).unwrap();
    assert!(!region.in_use());

    let mut buf = region.buf(0, 100).unwrap();
    assert!(region.in_use());
    let region = region.try_unregister().unwrap_err();
    let tail = buf.split_off(50);
    drop(buf);
    let region = region.try_unregister().unwrap_err();
    // Refused for a buffer: nothing has changed, for users and devices.
    assert_eq!(table.ranges().len(), 1);
    drop(region.buf(0, 10).unwrap());
    thread::spawn(move || drop(tail)).join().unwrap();

    let handle = region.clone();
    assert!(region.in_use());
    let region = region.try_unregister().unwrap_err();
    drop(handle);

    let lender = region.lender().unwrap();
    let lent = lender.buf(0, 10).unwrap();
    let region = region.try_unregister().unwrap_err();
    drop(lender);
    let region = region.try_unregister().unwrap_err();
    drop(lent);
    assert!(!region.in_use());
    region.try_unregister().unwrap();
    assert!(table.ranges().is_empty() && memory.regions().is_empty());
}

#[test]
fn lent_buffers_are_counted_on_every_thread() {
    let memory = Memory::new();
    let pages = Pages::new(8192);
    let region = pages.register(&memory).unwrap();
    for home_last in [false, true] {
        let lender = region.lender().unwrap();
        let (mut a, b, c) =
            (lender.buf(0, 10).unwrap(), lender.buf(5, 10).unwrap(), lender.buf(9, 1).unwrap());
        drop(c);
        let (away, home) = thread::spawn(move || {
            let tail = a.split_off(4);
            drop(b);
            (a, tail)
        })
        .join()
        .unwrap();
        assert!(region.in_use());
        drop(lender);
        if home_last {
            thread::spawn(move || drop(away)).join().unwrap();
            assert!(region.in_use());
            drop(home);
        } else {
            drop(home);
            assert!(region.in_use());
            thread::spawn(move || drop(away)).join().unwrap();
        }
        assert!(!region.in_use());
    }
    let lender = region.lender().unwrap();
    drop(lender.buf(0, 1).unwrap());
    let stranger = thread::spawn(move || lender.buf(0, 1).is_ok());
    assert!(stranger.join().is_err());
    // Dropped away from home, it holds the region for ever: leaked, with the pages mapped.
    assert!(region.in_use());
    std::mem::forget((pages, region.try_unregister().unwrap_err()));
}

#[test]
fn a_mapper_that_lets_go_late_keeps_the_region_closed() {
    let memory = Memory::new();
    let pages = Pages::new(8192);
    let region = pages.register(&memory).unwrap();
    let mut table = Table::new(vec![0..=u64::from(u32::MAX)]);
    table.lets_go_late = true;
    let table = Arc::new(table);
    let _attachment = memory.attach(table.clone()).unwrap();
    let device = table.at(region.iova().unwrap()).unwrap();
    let in_flight = device.buf(0, 1).unwrap();

    let region = region.try_unregister().unwrap_err();
    drop(in_flight);
    let region = region.try_unregister().unwrap_err();
    assert!(table.ranges().is_empty());
    assert_eq!(device.buf(0, 1).unwrap_err().errno(), libc::ENODEV);
    assert_eq!(region.buf(0, 1).unwrap_err().errno(), libc::ENODEV);
    assert_eq!(region.lender().unwrap_err().errno(), libc::ENODEV);
    assert!(memory.regions().is_empty());
    let device = device.try_unregister().unwrap_err();
    drop(device);
    let other = Table::wide();
    let _other = memory.attach(other.clone()).unwrap();
    assert!(other.ranges().is_empty());

    let region = region.try_unregister().unwrap_err();
    table.late.lock().unwrap().clear();
    region.try_unregister().unwrap();
}

#[test]
fn an_unmap_that_fails_keeps_the_region() {
    let memory = Memory::new();
    let pages = Pages::new(8192);
    let region = pages.register(&memory).unwrap();
    let table = Table::wide();
    let _attachment = memory.attach(table.clone()).unwrap();
    *table.unmap_fails.lock().unwrap() = true;
    let region = region.try_unregister().unwrap_err();
    assert_eq!(table.ranges().len(), 1);
    *table.unmap_fails.lock().unwrap() = false;
    region.try_unregister().unwrap();
    assert!(table.ranges().is_empty());
}

#[test]
fn an_arena_can_be_taken_out_when_it_is_empty() {
    let (memory, arena) = arena(64 << 10);
    let table = Table::wide();
    let _attachment = memory.attach(table.clone()).unwrap();
    let (region, file) = (arena.region(), inode(&arena.region()));
    let pool = Pool::new(&arena, 64, 1).unwrap();
    drop(arena);
    let region = region.try_unregister().unwrap_err();
    drop(pool);
    region.try_unregister().unwrap();
    assert!(table.ranges().is_empty() && !is_mapped(file));
}

#[test]
fn a_device_keeps_memory_alive_until_it_is_unmapped() {
    let (memory, arena) = arena(64 << 10);
    let file = inode(&arena.region());
    let table = Table::wide();
    let attachment = memory.attach(table.clone()).unwrap();
    drop((memory, arena));
    let entries = table.ranges();
    let device = table.at(entries[0].0).unwrap();
    // SAFETY: nothing else uses the arena any more.
    let mut buf = unsafe { device.device_buf(0, 4096) }.unwrap();
    drop((attachment, device));
    assert!(table.ranges().is_empty() && is_mapped(file));
    // The device's own command is still running: its memory is still there.
    buf.fill(0, 4096, 1);
    drop(buf);
    assert!(!is_mapped(file));
}

#[test]
fn one_address_suits_all_devices() {
    let (memory, arena) = arena(64 << 10);
    assert_eq!(arena.region().iova(), None);
    let low = Arc::new(Table::new(vec![0..=0xffff, 0x10_0000_0000..=0x1f_ffff_ffff]));
    let first = memory.attach(low.clone()).unwrap();
    let iova = arena.region().iova().unwrap();
    assert_eq!(iova, 0x10_0000_0000);

    // Devices that come later get it at the same address, and later regions too.
    let high = Arc::new(Table::new(vec![0x10_0000_0000..=0x10_0fff_ffff]));
    let second = memory.attach(high.clone()).unwrap();
    let later = memory.add_arena(&ArenaOptions::new(1 << 20)).unwrap();
    assert_eq!((low.ranges(), high.ranges().len()), (high.ranges(), 2));
    assert!(low.at(later.region().iova().unwrap()).is_some_and(|r| r == later.region()));

    // No window for what is mapped already: a clear error, and nothing is half mapped.
    let other = Arc::new(Table::new(vec![0..=u64::from(u32::MAX)]));
    let error = memory.attach(other.clone()).unwrap_err();
    assert_eq!(error.errno(), libc::ERANGE);
    assert!(error.to_string().contains("0x1000000000"), "{error}");
    assert!(error.to_string().contains("0x0..=0xffffffff"), "{error}");
    assert!(other.ranges().is_empty());

    // With nobody attached the addresses may change.
    drop((first, second));
    assert!(low.ranges().is_empty() && high.ranges().is_empty());
    let _other = memory.attach(other.clone()).unwrap();
    assert_eq!(other.ranges().len(), 2);
    assert!(arena.region().iova().unwrap() < 1 << 32);
}

#[test]
fn addresses_are_used_again() {
    let memory = Memory::new();
    // Room for four pages above the lowest address that is ever used.
    let table = Arc::new(Table::new(vec![0..=0x10_3fff]));
    let _attachment = memory.attach(table.clone()).unwrap();
    let pages = Pages::new(5 * 4096);
    let page = |index: usize| {
        // SAFETY: all are unregistered below, before the pages go.
        unsafe { memory.register(pages.ptr.add(index * 4096), 4096) }
    };
    let mut regions: Vec<_> = (0..4).map(|index| page(index).unwrap()).collect();
    let error = page(4).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    assert!(error.to_string().contains("0x0..=0x103fff"), "{error}");
    let gone = regions.remove(2);
    let iova = gone.iova();
    gone.try_unregister().unwrap();
    regions.push(page(4).unwrap());
    assert_eq!(regions[3].iova(), iova);
    assert_eq!(table.ranges().len(), 4);
    regions.into_iter().for_each(|region| region.try_unregister().unwrap());
}

#[test]
fn a_failed_map_leaves_nothing_behind() {
    let (memory, _arena) = arena(4096);
    let _second = memory.add_arena(&ArenaOptions::new(4096)).unwrap();
    let broken = Table::wide();
    *broken.maps_left.lock().unwrap() = 1;
    let error = memory.attach(broken.clone()).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert!(error.to_string().contains("table full"), "{error}");
    assert!(broken.ranges().is_empty());

    // A later region that one device refuses is taken from the others again.
    let fine = Table::wide();
    *broken.maps_left.lock().unwrap() = 2;
    let _fine = memory.attach(fine.clone()).unwrap();
    let _broken = memory.attach(broken.clone()).unwrap();
    let pages = Pages::new(4096);
    assert_eq!(pages.register(&memory).unwrap_err().errno(), libc::ENOSPC);
    assert_eq!((fine.ranges().len(), broken.ranges().len(), memory.regions().len()), (2, 2, 2));
    assert!(memory.add_arena(&ArenaOptions::new(4096)).is_err());
    assert_eq!((fine.ranges().len(), memory.regions().len()), (2, 2));
}

#[test]
fn a_region_that_no_device_lets_go_of_stays() {
    let memory = Memory::new();
    let (stuck, broken) = (Table::wide(), Table::wide());
    let _stuck = memory.attach(stuck.clone()).unwrap();
    let _broken = memory.attach(broken.clone()).unwrap();
    *stuck.unmap_fails.lock().unwrap() = true;
    *broken.maps_left.lock().unwrap() = 0;
    let pages = Pages::new(4096);
    let error = pages.register(&memory).unwrap_err();
    assert_eq!(error.errno(), libc::EBUSY);
    assert!(error.to_string().contains("must stay mapped"), "{error}");
    assert_eq!(pages.register(&memory).unwrap_err().errno(), libc::EEXIST);
    assert!(memory.regions().is_empty());
    std::mem::forget(pages);
}

#[test]
fn a_mapper_that_failed_to_unmap_is_not_used_again() {
    let (memory, arena) = arena(4096);
    let table = Table::wide();
    let attachment = memory.attach(table.clone()).unwrap();
    let taken = arena.region().iova();
    *table.unmap_fails.lock().unwrap() = true;
    drop(attachment);
    assert_eq!(memory.attach(table.clone()).unwrap_err().errno(), libc::EBUSY);
    // Its address is not given to others, even when the arena itself is gone.
    let file = inode(&arena.region());
    let later = memory.add_arena(&ArenaOptions::new(4096)).unwrap();
    assert_ne!(later.region().iova(), taken);
    drop((later, arena, memory));
    assert!(is_mapped(file));
    drop(table);
}

#[test]
fn a_mapper_can_be_shared() {
    let (memory, _arena) = arena(4096);
    let table = Table::wide();
    let first = memory.attach(table.clone()).unwrap();
    let second = memory.attach(table.clone()).unwrap();
    assert_eq!(table.ranges().len(), 1);
    drop(first);
    assert_eq!(table.ranges().len(), 1);
    drop(second);
    assert!(table.ranges().is_empty());
    let _again = memory.attach(table.clone()).unwrap();
    assert_eq!(table.ranges().len(), 1);
}

#[test]
fn unlocked_memory_is_not_for_hardware() {
    let memory = Memory::new();
    let unlocked = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(4096) };
    let hardware = |locked| {
        let mut table = Table::new(vec![0..=u64::from(u32::MAX)]);
        table.locked = locked;
        Arc::new(table)
    };
    {
        let _device = memory.attach(hardware(true)).unwrap();
        let error = memory.add_arena(&unlocked).unwrap_err();
        assert_eq!(error.errno(), libc::EPERM, "{error}");
    }
    let arena = memory.add_arena(&unlocked).unwrap();
    let _software = memory.attach(hardware(false)).unwrap();
    assert!(arena.alloc(10, 1).unwrap().iova().is_some());
    let error = memory.attach(hardware(true)).unwrap_err();
    assert_eq!(error.errno(), libc::EPERM);
    assert!(error.to_string().contains("needs locked memory"), "{error}");
}

#[test]
fn large_device_pages_need_aligned_regions() {
    let memory = Memory::new();
    let pages = Pages::new(3 * 65536);
    let skip = pages.ptr.as_ptr().align_offset(65536);
    // SAFETY: both are unregistered before the pages go.
    let (odd, even) = unsafe {
        let even = pages.ptr.add(skip);
        (memory.register(even.add(65536), 4096).unwrap(), memory.register(even, 65536).unwrap())
    };
    let mut table = Table::new(vec![0..=u64::from(u32::MAX)]);
    table.page_size = 65536;
    let table = Arc::new(table);
    let error = memory.attach(table.clone()).unwrap_err();
    assert_eq!(error.errno(), libc::EINVAL, "{error}");
    odd.try_unregister().unwrap();
    let attachment = memory.attach(table.clone()).unwrap();
    assert!(even.iova().unwrap().is_multiple_of(65536));
    drop(attachment);
    even.try_unregister().unwrap();
}

#[test]
fn another_process_could_map_an_arena() {
    let (_memory, arena) = arena(8192);
    let mut buf = arena.alloc(8192, 4096).unwrap();
    buf.fill(0, 8192, 0x5a);
    let region = arena.region();
    let (fd, offset) = region.fd().unwrap();
    let file = std::fs::File::from(fd.try_clone_to_owned().unwrap());
    let mut bytes = [0; 8192];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, offset).unwrap();
    assert_eq!(bytes, [0x5a; 8192]);
    // Who has the file can not make our accesses fault.
    assert!(file.set_len(0).is_err() && file.set_len(1 << 20).is_err());
}

#[test]
fn unregister_works_without_its_memory() {
    let memory = Memory::new();
    let pages = Pages::new(4096);
    let region = pages.register(&memory).unwrap();
    let mut table = Table::new(vec![0..=u64::from(u32::MAX)]);
    table.lets_go_late = true;
    let table = Arc::new(table);
    drop(memory.attach(table.clone()).unwrap());
    drop(memory);
    let region = region.try_unregister().unwrap_err();
    table.late.lock().unwrap().clear();
    region.try_unregister().unwrap();

    let memory = Memory::new();
    let region = pages.register(&memory).unwrap();
    drop(memory);
    let buf = region.buf(0, 1).unwrap();
    let region = region.try_unregister().unwrap_err();
    drop(buf);
    region.try_unregister().unwrap();
}

#[test]
fn unregister_races_with_devices_and_never_wins() {
    let memory = Memory::new();
    let pages = Pages::new(4096);
    for _ in 0..200 {
        let region = pages.register(&memory).unwrap();
        let table = Table::wide();
        let attachment = memory.attach(table.clone()).unwrap();
        let device = table.at(region.iova().unwrap()).unwrap();
        let worker = thread::spawn(move || {
            let mut bytes = [0; 8];
            while let Ok(buf) = device.buf(0, 8) {
                buf.read_at(0, &mut bytes);
            }
        });
        let mut rest: Result<(), Region> = Err(region);
        while let Err(region) = rest {
            rest = region.try_unregister();
        }
        worker.join().unwrap();
        drop(attachment);
        assert!(memory.regions().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// Arenas and devices come and go in any order; `Table` itself checks for overlaps and
    /// windows, and all devices must agree.
    #[test]
    fn devices_agree_on_addresses(steps in proptest::collection::vec((0..4u8, any::<usize>()), 1..40)) {
        let memory = Memory::new();
        let mut devices = Vec::new();
        let mut regions: Vec<Region> = Vec::new();
        for (step, pick) in steps {
            match step {
                0 if regions.len() < 8 => {
                    let size = (pick % 6 + 1) * 4096;
                    let options = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(size) };
                    regions.extend(memory.add_arena(&options).ok().map(|arena| arena.region()));
                }
                1 if !regions.is_empty() => {
                    let at = pick % regions.len();
                    prop_assert!(regions.swap_remove(at).try_unregister().is_ok());
                }
                2 if devices.len() < 4 => {
                    let start = (pick as u64 % 4) * 0x8000;
                    let table = Arc::new(Table::new(vec![0..=0xfff, 0x10_0000 + start..=0x11_ffff]));
                    let mapper: Arc<dyn DmaMapper> = table.clone();
                    devices.extend(memory.attach(mapper).ok().map(|attachment| (table, attachment)));
                }
                3 if !devices.is_empty() => {
                    let (table, attachment) = devices.swap_remove(pick % devices.len());
                    drop(attachment);
                    prop_assert!(table.ranges().is_empty());
                }
                _ => {}
            }
            let mut expected: Vec<_> =
                regions.iter().filter_map(|r| Some((r.iova()?, r.len() as u64))).collect();
            expected.sort_unstable();
            for (table, _) in &devices {
                prop_assert_eq!(table.ranges(), expected.clone());
            }
        }
    }
}

/// The kernel's limit of mappings was told to the user although another thread was about to
/// unregister: a registration waits a moment for room.
#[test]
fn a_registration_waits_for_room_in_a_full_mapper() {
    let memory = Memory::new();
    let table = Table::wide();
    let _attachment = memory.attach(table.clone()).unwrap();
    let pages = Pages::new(4096);
    *table.maps_left.lock().unwrap() = 0;
    assert_eq!(pages.register(&memory).unwrap_err().errno(), libc::ENOSPC);
    let region = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            *table.maps_left.lock().unwrap() = 1;
        });
        pages.register(&memory).unwrap()
    });
    region.try_unregister().unwrap();
}

/// A mapper that several devices share, each of which narrows it.
struct Narrowing {
    table: Table,
    is_narrow: AtomicBool,
}

impl DmaMapper for Narrowing {
    fn windows(&self) -> Vec<std::ops::RangeInclusive<u64>> {
        match self.is_narrow.load(Ordering::Relaxed) {
            true => vec![1 << 32..=(1 << 40) - 1],
            false => self.table.windows(),
        }
    }
    fn page_size_min(&self) -> u64 {
        4096
    }
    fn needs_locked(&self) -> bool {
        false
    }
    fn map(&self, region: &Region, iova: u64) -> Result<(), MemError> {
        self.table.map(region, iova)
    }
    fn unmap(&self, iova: u64, len: u64) -> Result<(), MemError> {
        self.table.unmap(iova, len)
    }
}

/// The windows of a shared mapper were read once: memory that came later was given addresses that
/// the second device could not use.
#[test]
fn a_shared_mapper_may_become_narrower() {
    let memory = Memory::new();
    let table = Table::new(vec![0..=(1 << 48) - 1]);
    let mapper = Arc::new(Narrowing { table, is_narrow: false.into() });
    let first = memory.attach(mapper.clone()).unwrap();
    mapper.is_narrow.store(true, Ordering::Relaxed);
    let second = memory.attach(mapper.clone()).unwrap();
    let pages = Pages::new(4096);
    let region = pages.register(&memory).unwrap();
    assert_eq!(region.iova(), Some(1 << 32));
    region.try_unregister().unwrap();
    drop((first, second));
    mapper.is_narrow.store(false, Ordering::Relaxed);
    let first = memory.attach(mapper.clone()).unwrap();
    let region = pages.register(&memory).unwrap();
    mapper.is_narrow.store(true, Ordering::Relaxed);
    assert_eq!(memory.attach(mapper.clone()).unwrap_err().errno(), libc::ERANGE);
    drop(first);
    assert!(mapper.table.ranges().is_empty());
    region.try_unregister().unwrap();
}

/// A device that cuts addresses above 32 bits wrote elsewhere, since its IOMMU takes 48.
#[test]
fn a_device_may_use_less_than_its_mapper() {
    let memory = Memory::new();
    let table = Arc::new(Table::new(vec![1 << 24..=(1 << 48) - 1]));
    let wide = memory.attach(table.clone()).unwrap();
    let pages = Pages::new(3 * 4096);
    // SAFETY: all are unregistered below, before the pages go.
    let page = |at: usize| unsafe { memory.register(pages.ptr.add(at * 4096), 4096) }.unwrap();
    let low = page(0);
    assert_eq!(low.iova(), Some(1 << 24));
    let high = 1 << 32..=(1 << 40) - 1;
    let error = memory.attach_within(table.clone(), std::slice::from_ref(&high)).unwrap_err();
    assert_eq!(error.errno(), libc::ERANGE);
    let next = page(1);
    assert_eq!(next.iova(), Some((1 << 24) + 4096), "who was refused changes nothing");
    low.try_unregister().unwrap();
    next.try_unregister().unwrap();
    let narrow = memory.attach_within(table.clone(), &[high]).unwrap();
    let region = page(2);
    assert_eq!(region.iova(), Some(1 << 32));
    region.try_unregister().unwrap();
    drop((wide, narrow));
    let _only = memory.attach_within(table, &[0..=(1 << 30) - 1]).unwrap();
    let region = page(0);
    assert_eq!(region.iova(), Some(1 << 24));
    region.try_unregister().unwrap();
}

/// An arena was refused while others were about to give mappings back.
#[test]
fn an_arena_waits_for_room() {
    let memory = Memory::new();
    let table = Table::wide();
    let _attachment = memory.attach(table.clone()).unwrap();
    *table.maps_left.lock().unwrap() = 0;
    let arena = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            *table.maps_left.lock().unwrap() = 1;
        });
        memory.add_arena(&ArenaOptions::new(4096))
    });
    assert!(arena.unwrap().region().iova().is_some());
}

/// A device behind no IOMMU: it knows each region by an address that nobody chose.
struct Physical {
    table: Table,
    fixed: std::sync::Mutex<Result<u64, i32>>,
}

impl DmaMapper for Physical {
    fn windows(&self) -> Vec<std::ops::RangeInclusive<u64>> {
        self.table.windows()
    }
    fn page_size_min(&self) -> u64 {
        4096
    }
    fn fixed_iova(&self, _region: &Region) -> Result<Option<u64>, MemError> {
        let fixed = *self.fixed.lock().unwrap();
        fixed.map(Some).map_err(|errno| MemError::new(errno, "scattered"))
    }
    fn needs_locked(&self) -> bool {
        false
    }
    fn map(&self, region: &Region, iova: u64) -> Result<(), MemError> {
        self.table.map(region, iova)
    }
    fn unmap(&self, iova: u64, len: u64) -> Result<(), MemError> {
        self.table.unmap(iova, len)
    }
}

#[test]
fn a_device_may_leave_no_choice_of_address() {
    let memory = Memory::new();
    let table = Table::new(vec![0..=(1 << 48) - 1]);
    let mapper = Arc::new(Physical { table, fixed: Ok(0x7000).into() });
    let (one, other) = (Pages::new(8192), Pages::new(4096));
    let first = one.register(&memory).unwrap();
    let attachment = memory.attach(mapper.clone()).unwrap();
    assert_eq!(first.iova(), Some(0x7000));
    // Where another region is already.
    *mapper.fixed.lock().unwrap() = Ok(0x8000);
    assert_eq!(other.register(&memory).unwrap_err().errno(), libc::ERANGE);
    *mapper.fixed.lock().unwrap() = Err(libc::ENOTSUP);
    assert_eq!(other.register(&memory).unwrap_err().errno(), libc::ENOTSUP);
    *mapper.fixed.lock().unwrap() = Ok(0x9000);
    let second = other.register(&memory).unwrap();
    assert_eq!(mapper.table.ranges(), [(0x7000, 8192), (0x9000, 4096)]);
    // A device that came before, and chose, does not get along with one that cannot.
    drop(attachment);
    let chooser = memory.attach(Table::wide()).unwrap();
    let error = memory.attach(mapper.clone()).unwrap_err();
    assert_eq!(error.errno(), libc::ERANGE, "{error}");
    drop(chooser);
    second.try_unregister().unwrap();
    first.try_unregister().unwrap();
}
