//! The back end over the kernel's VFIO, on controllers that nobody here wrote.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use oxblock_drivers::nvme::{Controller as Host, InterruptMode, NvmeOptions};
use oxblock_engine::{Channel, Core, Engine, Node, Op, Options};
use oxblock_mem::{ArenaOptions, IoVector, Memory, Region};
use oxblock_nvme::regs;
use oxblock_pci::vfio::{Vfio, VfioFunction};
use oxblock_pci::{Bar, CapabilityId, Command, EventFd, Function, Ids, PciErrorKind, Reg32, Reg64};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::disks::{FIRST, SECOND};
use super::machine::{driver, run, until};
use super::{Machine, Start, Test};

/// The bytes that tests move about.
const LEN: usize = 1 << 20;
/// The limit of mappings of new containers.
const ENTRY_LIMIT: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";

pub fn add(tests: &mut Vec<Test>) {
    let (bound, small) = (Start::handed_over(), Start::handed_over_in_small_pages());
    let mut add = |name: &str, start, body: fn()| {
        tests.push(Test::new(&format!("vfio::{name}"), body).start(start));
    };
    add("functions_are_what_the_kernel_says", bound, is_what_the_kernel_says);
    add("two_controllers_share_an_address_space", bound, two_controllers);
    add("two_controllers_on_small_pages", small, two_controllers);
    add("a_reset_brings_registers_back", bound, reset);
    add("interrupts_come_by_eventfd", bound, interrupts);
    add("vectors_may_be_added_and_taken", bound, vectors);
    add("a_core_sleeps_until_its_controller_interrupts", bound, interrupt_mode);
    add("a_device_that_is_taken_asks_for_it", bound, removal);
    add("memory_comes_and_goes_under_io", bound, registered_memory);
    add("mappings_run_out_in_words", small, mappings_run_out);
    add("registers_are_not_inherited_by_fork", bound, registers_stay);
    add("a_register_outlives_its_function", bound, register_outlives_function);
    add("a_group_has_one_user", bound, one_user);
    add("a_device_with_the_kernel_says_so", Start::default(), with_the_kernel);
    let mut add = |name: &str, start, body: fn()| {
        let test = Test::new(&format!("vfio::iommufd::{name}"), move || by_node(body));
        tests.push(test.machine(Machine::Iommufd).start(start));
    };
    add("functions_are_what_the_kernel_says", bound, is_what_the_kernel_says);
    add("two_controllers_share_an_address_space", bound, two_controllers);
    add("two_controllers_on_small_pages", small, two_controllers);
    add("interrupts_come_by_eventfd", bound, interrupts);
    add("memory_comes_and_goes_under_io", bound, registered_memory);
    add("a_register_outlives_its_function", bound, register_outlives_function);
}

/// Runs a test where functions are opened by their own nodes: containers are out of sight.
fn by_node(body: fn()) {
    struct Hidden;
    impl Drop for Hidden {
        fn drop(&mut self) {
            let _ = fs::rename("/dev/vfio/hidden", "/dev/vfio/vfio");
        }
    }
    fs::rename("/dev/vfio/vfio", "/dev/vfio/hidden").expect("containers");
    let _hidden = Hidden;
    body();
}

fn open(vfio: &Vfio, address: &str) -> Arc<VfioFunction> {
    vfio.open(address.parse().expect("an address")).unwrap_or_else(|e| panic!("{address}: {e}"))
}

fn first() -> Arc<VfioFunction> {
    open(&Vfio::new(), FIRST.address)
}

fn engine() -> Engine {
    let options = Options { arena: ArenaOptions::new(8 << 20), ..Options::default() };
    Engine::with_cores(2, options).expect("an engine")
}

/// The driver on a function, and a channel to namespace 1, on this core.
async fn channel(core: &Core, function: Arc<dyn Function>) -> (Arc<Host>, Channel) {
    let host = Host::attach(core, function, NvmeOptions::default()).await.expect("the driver");
    let node = Node::new("nvme0n1", host.namespace(1).expect("namespace 1"));
    (host, core.open(&node).await.expect("a channel"))
}

/// Waits until an eventfd is signalled.
fn wait(event: &EventFd) -> bool {
    let mut fds = [PollFd::new(event, PollFlags::IN)];
    let ten_seconds = Timespec { tv_sec: 10, tv_nsec: 0 };
    poll(&mut fds, Some(&ten_seconds)).expect("a poll") == 1 && event.take() > 0
}

fn is_what_the_kernel_says() {
    let function = first();
    assert_eq!(function.address(), FIRST.address);
    let ids = Ids::read(function.config()).expect("ids");
    assert_eq!((ids.class, ids.vendor), (0x01_08_02, 0x1b36));
    let capabilities = oxblock_pci::capabilities(function.config()).expect("a list");
    for id in [CapabilityId::MSIX, CapabilityId::EXPRESS] {
        assert!(capabilities.iter().any(|capability| capability.id == id), "{capabilities:?}");
    }
    assert_eq!(function.config().len(), 4096);
    let odd = function.config().read16(1).expect_err("an odd offset");
    assert_eq!(odd.kind(), PciErrorKind::OutOfRange);
    oxblock_pci::enable(function.config()).expect("memory and bus mastering");
    let bar = function.bar(0).expect("BAR 0");
    assert!(bar.len() >= 0x2000);
    let version = Reg32::new(&bar, regs::VS).expect("VS").read();
    assert_eq!(version >> 16, 1, "{version:#x}");
    assert!(Reg64::new(&bar, bar.len()).is_err());
    assert_eq!((bar.read32(bar.len()), bar.read64(4)), (u32::MAX, u64::MAX));
    for index in [1, 5, 6, 255] {
        assert!(function.bar(index).is_err(), "BAR {index}");
    }
    // A function that does not decode answers as a bus without it, and does no harm.
    function.config().write16(4, Command::INTX_DISABLE).expect("the command register");
    assert_eq!(bar.read32(regs::VS), u32::MAX);
    bar.write32(regs::CC, 0);
    oxblock_pci::enable(function.config()).expect("memory and bus mastering");
    assert_eq!(bar.read32(regs::VS), version);
    let windows = function.iommu().windows();
    assert!(windows.iter().all(|w| !w.contains(&0xfee0_0000)), "{windows:x?}");
    assert!(windows.iter().any(|w| w.contains(&(1 << 32))), "{windows:x?}");
    assert_eq!(function.iommu().page_size_min(), 4096);
}

fn two_controllers() {
    let vfio = Vfio::new();
    let functions = [FIRST.address, SECOND.address].map(|address| open(&vfio, address));
    let [one, other] = functions.each_ref().map(|function| function.iommu());
    assert!(Arc::ptr_eq(&one, &other), "an address space for each");
    drop((one, other));
    let engine = engine();
    let hosts = engine.run(0, |core| async move {
        let [one, other] = functions;
        let (first, from) = channel(&core, one).await;
        let (second, to) = channel(&core, other).await;
        let bytes: Vec<u8> = (0..LEN).map(|at| ((at * 7) ^ (at >> 9)) as u8).collect();
        let mut buf = core.arena().alloc(LEN, 4096).expect("memory");
        buf.write_at(0, &bytes);
        let (buf, result) = from.write(0, buf).await;
        result.expect("a write");
        drop(buf);
        // What one controller wrote to memory, the other reads from there.
        let buf = core.arena().alloc(LEN, 4096).expect("memory");
        let (data, result) = from.read(0, buf).await;
        result.expect("a read");
        let (_, result) = to.write(512, data).await;
        result.expect("a write of what was read");
        let buf = core.arena().alloc(LEN, 4096).expect("memory");
        let (data, result) = to.read(512, buf).await;
        result.expect("a read");
        assert_eq!(data.whole().compare(&bytes), None);
        (first, second)
    });
    let hosts = hosts.expect("the test");
    for host in [&hosts.0, &hosts.1] {
        assert_eq!(host.stats().bad_cid + host.stats().bad_sqhd + host.stats().bad_admin, 0);
    }
    engine.shutdown().expect("an orderly shutdown");
}

fn reset() {
    let function = first();
    oxblock_pci::enable(function.config()).expect("memory and bus mastering");
    let memory = Memory::new();
    let arena = memory.add_arena(&ArenaOptions::new(LEN)).expect("memory");
    let attachment = memory.attach(function.iommu()).expect("an address space");
    let queues = arena.alloc(8192, 4096).expect("memory");
    let iova = queues.iova().expect("an address for devices");
    let bar = function.bar(0).expect("BAR 0");
    let register = |offset| Reg32::new(&bar, offset).expect("a register");
    let (cc, csts) = (register(regs::CC), register(regs::CSTS));
    register(regs::AQA).write(0x001f_001f);
    for (offset, iova) in [(regs::ASQ, iova), (regs::ACQ, iova + 4096)] {
        Reg64::new(&bar, offset).expect("a register").write(iova);
    }
    cc.write(0x0046_0001);
    assert!(until(|| csts.read() & 1 == 1), "CSTS {:#x}", csts.read());
    function.reset().expect("a reset");
    assert_eq!((cc.read() & 1, csts.read() & 1), (0, 0), "enabled after a reset");
    let command = function.config().read16(4).expect("the command register");
    let enabled = Command::MEMORY | Command::BUS_MASTER;
    assert_eq!(command & enabled, enabled, "{command:#x}");
    drop((attachment, queues));
    // And it works afterwards.
    let engine = engine();
    let host = engine.run(0, |core| async move {
        let (host, channel) = channel(&core, function).await;
        let buf = core.arena().alloc(4096, 4096).expect("memory");
        channel.read(0, buf).await.1.expect("a read");
        host
    });
    drop(host.expect("the test"));
    engine.shutdown().expect("an orderly shutdown");
}

/// The admin queue signals vector 0 for every completion, whoever polls.
fn interrupts() {
    let function = first();
    assert!(function.interrupts().count() > 1);
    let event = Arc::new(EventFd::new().expect("an eventfd"));
    function.interrupts().enable(0, event.clone()).expect("vector 0");
    let engine = engine();
    let driven = function.clone();
    let host = engine.run(0, |core| async move {
        let polled = NvmeOptions { interrupt_mode: InterruptMode::Poll, ..NvmeOptions::default() };
        Host::attach(&core, driven, polled).await.expect("the driver")
    });
    let host = host.expect("the test");
    assert!(wait(&event), "no interrupt came of identify");
    function.interrupts().disable(0).expect("vector 0");
    let _ = event.take();
    let again = host.clone();
    engine
        .run(0, |core| async move { drop(core.open(&node(&again)).await.expect("a channel")) })
        .expect("queues");
    assert_eq!(event.take(), 0, "a vector that was turned off");
    function.interrupts().enable(0, event.clone()).expect("vector 0");
    let again = host.clone();
    engine
        .run(0, |core| async move { drop(core.open(&node(&again)).await.expect("a channel")) })
        .expect("queues");
    assert!(wait(&event), "no interrupt came of creating queues");
    engine.shutdown().expect("an orderly shutdown");
}

fn node(host: &Arc<Host>) -> Arc<Node> {
    Node::new("nvme0n1", host.namespace(1).expect("namespace 1"))
}

/// I/O whose completions nobody polls for, on a controller whose interrupts come through the kernel;
/// and adaptive, where the mask bit of a vector is ours to move.
fn interrupt_mode() {
    let function = first();
    let modes = [InterruptMode::Interrupt, InterruptMode::Adaptive];
    for mode in modes {
        let engine = engine();
        let driven = function.clone();
        let host = engine.run(0, move |core| async move {
            let options = NvmeOptions { interrupt_mode: mode, ..NvmeOptions::default() };
            let host = Host::attach(&core, driven, options).await.expect("the driver");
            let channel = core.open(&node(&host)).await.expect("a channel");
            for block in 0..1000u64 {
                let buf = core.arena().alloc(4096, 4096).expect("memory");
                channel.read(block % 64 * 4096, buf).await.1.expect("a read");
            }
            host
        });
        let host = host.expect("the test");
        let stats = host.stats();
        if mode == InterruptMode::Interrupt {
            assert!(stats.sleeps > 0 && stats.interrupts > 0, "{stats:?}");
        }
        assert_eq!(stats.lost_interrupts, 0, "{stats:?}");
        engine.shutdown().expect("an orderly shutdown");
    }
    let event = Arc::new(EventFd::new().expect("an eventfd"));
    function.interrupts().enable(1, event).expect("vector 1");
    for masked in [true, false] {
        assert!(function.interrupts().mask(1, masked), "the table of this kernel can be mapped");
    }
}

fn vectors() {
    let function = first();
    let interrupts = function.interrupts();
    let events: Vec<Arc<EventFd>> =
        (0..4).map(|_| Arc::new(EventFd::new().expect("an eventfd"))).collect();
    interrupts.enable(2, events[2].clone()).expect("a vector with none before it");
    interrupts.enable(0, events[0].clone()).expect("one before it");
    interrupts.enable(3, events[3].clone()).expect("one after it");
    // Growing took them down for a moment: who waits is told to look.
    assert!(events[0].take() > 0 && events[2].take() > 0 && events[3].take() == 0);
    interrupts.enable(2, events[1].clone()).expect("another eventfd");
    for vector in [3, 1, 0, 2, 2] {
        interrupts.disable(vector).expect("off");
    }
    assert!(events.iter().all(|event| Arc::strong_count(event) == 1));
    let error = interrupts.enable(interrupts.count(), events[0].clone()).expect_err("no such");
    assert_eq!(error.kind(), PciErrorKind::OutOfRange);
}

/// Whoever takes a device from the kernel's side waits until its user lets go: the user is asked.
fn removal() {
    let function = first();
    let removal = function.events().removal.clone();
    let error = function.events().error.clone();
    let unbind = thread::spawn(|| {
        run(&format!("echo {0} > /sys/bus/pci/devices/{0}/driver/unbind", FIRST.address))
    });
    assert!(wait(&removal), "nobody asked");
    drop(function);
    unbind.join().expect("the kernel takes it");
    assert!(until(|| driver(FIRST.address).is_none()));
    assert_eq!(error.take(), 0);
    assert!(removal.as_fd().try_clone_to_owned().is_ok());
}

/// The caller's own memory, page-aligned, freed when it goes.
struct Own(NonNull<u8>, usize);

// SAFETY: the bytes are only reached by raw copies, from one thread at a time.
unsafe impl Send for Own {}

impl Own {
    fn new(len: usize) -> Own {
        // SAFETY: the layout is not empty.
        Own(NonNull::new(unsafe { alloc_zeroed(Own::layout(len)) }).expect("memory"), len)
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, 4096).expect("a layout")
    }

    fn register(&self, core: &Core) -> Result<Region, oxblock_mem::MemError> {
        // SAFETY: every test unregisters before the memory is dropped, and keeps no reference to
        // its bytes.
        unsafe { core.memory().register(self.0, self.1) }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and unregistered.
        unsafe { dealloc(self.0.as_ptr(), Own::layout(self.1)) };
    }
}

/// Memory is mapped and unmapped for the device in one place while it reads and writes in others.
fn registered_memory() {
    const ROUNDS: u8 = 40;
    let function = first();
    let engine = engine();
    let busy = engine.run(0, |core| async move {
        let (host, channel) = channel(&core, function).await;
        for _ in 0..8 {
            let buf = core.arena().alloc(4096, 4096).expect("memory");
            channel.submit(Op::read(LEN as u64, IoVector::from(buf))).expect("a slot");
        }
        let mut others = 0;
        for round in 0..ROUNDS {
            let own = Own::new(LEN);
            let region = own.register(&core).expect("a region");
            let mut source = region.buf(0, LEN / 2).expect("the first half");
            source.fill(0, LEN / 2, round);
            let offset = 2 * LEN as u64 + u64::from(round) * 512;
            channel.write(offset, source).await.1.expect("a write");
            let target = region.buf(LEN / 2, LEN / 2).expect("the second half");
            let (data, result) = channel.read(offset, target).await;
            result.expect("a read");
            assert!(data.whole().is_all(round), "round {round}");
            drop(data);
            core.unregister(region).await;
            drop(own);
            let mut again = Vec::new();
            channel.poll(|completion| {
                completion.result.expect("a read of another");
                again.push(completion.op.data);
            });
            others += again.len();
            for data in again {
                channel.submit(Op::read(LEN as u64, data)).expect("a slot");
            }
        }
        (host, others)
    });
    let (host, others) = busy.expect("the test");
    assert!(others > 0, "nothing else went on meanwhile");
    drop(host);
    engine.shutdown().expect("an orderly shutdown");
}

/// The kernel gives a container so many mappings, and no more.
fn mappings_run_out() {
    let limit = fs::read_to_string(ENTRY_LIMIT).expect("a limit");
    fs::write(ENTRY_LIMIT, "4").expect("a lower limit");
    let function = first();
    fs::write(ENTRY_LIMIT, limit.trim()).expect("the limit again");
    let engine = engine();
    let done = engine.run(0, |core| async move {
        let (host, _channel) = channel(&core, function).await;
        // The engine's arena has one; a region each for the rest.
        let own: Vec<Own> = (0..4).map(|_| Own::new(4096)).collect();
        let mut regions: Vec<Region> =
            own[..3].iter().map(|own| own.register(&core).expect("a region")).collect();
        let begun = Instant::now();
        let error = own[3].register(&core).expect_err("a region too many");
        assert!(begun.elapsed() >= Duration::from_millis(100), "it did not wait for room");
        assert!(error.to_string().contains("limit of mappings is reached (4 are in use, 0 left)"));
        core.unregister(regions.remove(1)).await;
        regions.push(own[3].register(&core).expect("room again"));
        for region in regions {
            core.unregister(region).await;
        }
        host
    });
    drop(done.expect("the test"));
    engine.shutdown().expect("an orderly shutdown");
}

/// A child that could ring doorbells of its parent's device would confuse both.
fn registers_stay() {
    let function = first();
    oxblock_pci::enable(function.config()).expect("memory and bus mastering");
    let _bar = function.bar(0).expect("BAR 0");
    let maps = fs::read_to_string("/proc/self/smaps").expect("smaps");
    let mut flags = None;
    let mut is_device = false;
    for line in maps.lines() {
        if line.contains("vfio-device") {
            is_device = true;
        } else if let Some(found) = line.strip_prefix("VmFlags:")
            && std::mem::take(&mut is_device)
        {
            flags = Some(found.to_owned());
        }
    }
    let flags = flags.unwrap_or_else(|| panic!("no mapped BAR in:\n{maps}"));
    assert!(flags.split_whitespace().any(|flag| flag == "dc"), "{flags}");
}

/// A queue has its doorbells and nothing else of its function: the device stays open for them.
fn register_outlives_function() {
    let function = first();
    oxblock_pci::enable(function.config()).expect("memory and bus mastering");
    let bar: Arc<dyn Bar> = function.bar(0).expect("BAR 0");
    let version = Reg32::new(&bar, regs::VS).expect("VS");
    let before = version.read();
    drop((bar, function));
    assert_eq!(version.read(), before);
    let busy = Vfio::new().open(FIRST.address.parse().expect("an address"));
    assert_eq!(busy.err().map(|error| error.errno()), Some(16));
    drop(version);
    drop(first());
}

fn one_user() {
    let held = first();
    let error = Vfio::new().open(FIRST.address.parse().expect("an address")).err();
    let error = error.expect("a second user of the group").to_string();
    assert!(error.contains("another process has the group open"), "{error}");
    drop(held);
    drop(first());
}

fn with_the_kernel() {
    let error = Vfio::new().open(FIRST.address.parse().expect("an address")).err();
    let error = error.expect("a function that the kernel drives").to_string();
    assert!(error.contains("`nvme` has it; give it to vfio-pci: sudo oxblock pci bind"), "{error}");
}
