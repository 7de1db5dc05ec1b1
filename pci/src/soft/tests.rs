use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use oxblock_mem::{ArenaOptions, ArenaSource, IoVector, Memory, PagePolicy, Region};

use super::*;
use crate::{CapabilityId, Reg32, Reg64, bar_address, capabilities, enable};

const IDS: Ids = Ids {
    vendor: 0x1234,
    device: 0x5678,
    subsystem_vendor: 0x1234,
    subsystem: 0x0001,
    class: 0x01_08_02,
    revision: 3,
};

#[derive(Default)]
struct Scratch {
    words: Mutex<[u64; 4]>,
    resets: AtomicUsize,
}

impl Device for Scratch {
    fn bar_len(&self, bar: u8) -> u64 {
        if bar == 0 { 32 } else { 0 }
    }
    fn read(&self, bar: u8, offset: u64, size: u8) -> u64 {
        assert_eq!(bar, 0);
        let word = self.words.lock().unwrap()[(offset / 8) as usize];
        match size {
            4 => word >> (offset % 8 * 8) & 0xffff_ffff,
            _ => word,
        }
    }
    fn write(&self, _: u8, offset: u64, size: u8, value: u64) {
        let word = &mut self.words.lock().unwrap()[(offset / 8) as usize];
        let shift = offset % 8 * 8;
        let mask = if size == 4 { 0xffff_ffff << shift } else { u64::MAX };
        *word = *word & !mask | value << shift & mask;
    }
    fn reset(&self) {
        *self.words.lock().unwrap() = [0; 4];
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

fn function() -> (Arc<SoftFunction>, Arc<SoftIommu>, Arc<Scratch>) {
    let iommu = SoftIommu::new(SoftIommuOptions::default());
    let device = Arc::new(Scratch::default());
    let function = SoftFunction::new(
        "soft:0",
        Arc::clone(&device) as Arc<dyn Device>,
        IDS,
        Arc::clone(&iommu),
        SoftInterrupts::new(5),
    )
    .unwrap();
    (function, iommu, device)
}

fn region(memory: &Memory, pages: usize) -> Region {
    let arena = memory.add_arena(&ArenaOptions {
        size: pages * 4096,
        pages: PagePolicy::Unlocked,
        node: None,
        source: ArenaSource::Memfd,
    });
    arena.unwrap().region().clone()
}

#[test]
fn registers_answer_only_while_memory_decoding_is_on() {
    let (function, _, device) = function();
    let bar = function.bar(0).unwrap();
    let reg = Reg64::new(&bar, 8).unwrap();
    reg.write(7);
    assert_eq!(reg.read(), u64::MAX);
    enable(function.config()).unwrap();
    assert_eq!(reg.read(), 0);
    reg.write(0x1_0000_0007);
    assert_eq!(Reg32::new(&bar, 12).unwrap().read(), 1);
    assert!(Reg32::new(&bar, 32).is_err());
    assert_eq!(bar.read64(28), u64::MAX);
    assert!(function.bar(1).is_err() && function.bar(6).is_err());
    function.reset().unwrap();
    assert_eq!(reg.read(), 0);
    assert_eq!(device.resets.load(Ordering::Relaxed), 1);
}

#[test]
fn a_bar_has_the_address_that_it_was_given() {
    let (function, ..) = function();
    let config = function.config();
    assert_eq!(bar_address(config, 0).unwrap(), None);
    config.write32(0x10, 0xfe00_0000).unwrap();
    config.write32(0x14, 0x0000_0002).unwrap();
    let is_64_bits = config.read32(0x10).unwrap() & 6 == 4;
    let high = if is_64_bits { 2 << 32 } else { 0 };
    assert_eq!(bar_address(config, 0).unwrap(), Some(high | 0xfe00_0000));
    assert!(bar_address(config, 6).is_err());
}

#[test]
fn an_absent_function_reads_as_all_ones() {
    let (function, ..) = function();
    enable(function.config()).unwrap();
    let reg = Reg32::new(&function.bar(0).unwrap(), 0).unwrap();
    reg.write(5);
    function.set_present(false);
    reg.write(6);
    assert_eq!(reg.read(), u32::MAX);
    assert_eq!(function.config().read16(0).unwrap(), 0xffff);
    assert!(Ids::read(function.config()).is_err());
    assert!(enable(function.config()).is_err());
    assert!(function.reset().is_err());
    function.set_present(true);
    assert_eq!(reg.read(), u32::MAX, "nothing is enabled after power-on");
    enable(function.config()).unwrap();
    assert_eq!(reg.read(), 0);
    assert_eq!(function.events().removal.take(), 1);
}

#[test]
fn a_reset_can_fail() {
    let (function, _, device) = function();
    function.set_reset_works(false);
    assert_eq!(function.reset().unwrap_err().kind(), PciErrorKind::Io);
    assert_eq!(device.resets.load(Ordering::Relaxed), 0);
    function.set_reset_works(true);
    function.reset().unwrap();
    function.fail_next_resets(2);
    assert_eq!([(); 4].map(|()| function.reset().is_ok()), [false, false, true, true]);
}

#[test]
fn configuration_space_tells_identity_and_capabilities() {
    let (function, ..) = function();
    let config = function.config();
    assert_eq!(Ids::read(config).unwrap(), IDS);
    let list = capabilities(config).unwrap();
    let ids: Vec<_> = list.iter().map(|c| c.id).collect();
    let want = [CapabilityId::POWER, CapabilityId::MSIX, CapabilityId::EXPRESS];
    assert_eq!(ids, want);
    assert_eq!(config.read16(list[1].offset + 2).unwrap() & 0x7ff, 4);
    assert!(config.read32(2).is_err());
    assert!(config.read8(4096).is_err());
    assert!(config.write16(4095, 0).is_err());
}

/// A host writes all ones to a BAR and reads back its size; the identity stays as it is.
#[test]
fn only_writable_bits_of_configuration_space_change() {
    let (function, ..) = function();
    let config = function.config();
    config.write32(0x00, 0).unwrap();
    assert_eq!(config.read16(0).unwrap(), IDS.vendor);
    config.write32(0x10, u32::MAX).unwrap();
    config.write32(0x14, u32::MAX).unwrap();
    assert_eq!(config.read32(0x10).unwrap(), 0xffff_f004);
    assert_eq!(config.read32(0x14).unwrap(), 0xffff_ffff);
    config.write16(0x04, 0xffff).unwrap();
    assert_eq!(config.read16(0x04).unwrap(), 0x0406);
}

#[test]
fn a_translator_follows_the_table() {
    let (function, iommu, _) = function();
    let memory = Memory::new();
    let (one, two) = (region(&memory, 2), region(&memory, 1));
    let mut translator = iommu.translator();
    iommu.map(&one, 0x10_0000).unwrap();
    assert!(translator.buf(0x10_0000, 16).is_err(), "bus mastering is off");
    enable(function.config()).unwrap();
    let buf = translator.buf(0x10_1ff0, 16).unwrap();
    assert_eq!(buf.addr().addr(), one.addr().addr() + 0x1ff0);
    assert!(translator.buf(0x10_1ff0, 17).is_err());
    assert!(translator.buf(0x0f_ffff, 2).is_err());
    assert!(translator.buf(u64::MAX, 2).is_err());
    assert!(translator.buf(0x10_0000, 0).is_err());
    drop(buf);

    iommu.map(&two, 0x10_2000).unwrap();
    let mut vector = IoVector::new();
    translator.extend(0x10_1000, 0x2000, &mut vector).unwrap();
    assert_eq!((vector.len(), vector.segments().len()), (0x2000, 2));
    assert!(translator.extend(0x10_2000, 0x1001, &mut vector).is_err());
    drop(vector);

    translator.write(0x10_1ffc, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let mut back = [0; 8];
    translator.read(0x10_1ffc, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3, 4, 5, 6, 7, 8]);
    let mut start = [0; 4];
    translator.read(0x10_2000, &mut start).unwrap();
    assert_eq!(start, [5, 6, 7, 8]);
    assert!(iommu.faults() >= 5);
}

/// Registers in BAR 0, and memory from 4 KiB on in BAR 2.
struct WithMemory(Window);

impl Device for WithMemory {
    fn bar_len(&self, bar: u8) -> u64 {
        [32, 0, 0x4000, 0][usize::from(bar)]
    }
    fn read(&self, _: u8, _: u64, _: u8) -> u64 {
        0
    }
    fn write(&self, _: u8, _: u64, _: u8, _: u64) {}
    fn reset(&self) {}
    fn window(&self, bar: u8) -> Option<Window> {
        (bar == 2).then(|| self.0.clone())
    }
}

#[test]
fn memory_in_a_bar_is_memory_of_both() {
    let memory = region(&Memory::new(), 3);
    let device = WithMemory(Window { offset: 0x1000, len: 0x2000, memory: memory.clone() });
    let iommu = SoftIommu::new(SoftIommuOptions::default());
    let interrupts = SoftInterrupts::new(1);
    let iommu_of_function = Arc::clone(&iommu);
    let function =
        SoftFunction::new("soft:0", Arc::new(device), IDS, iommu_of_function, interrupts).unwrap();
    let bar = function.bar(2).unwrap();
    for (offset, len) in [(0, 0x1000), (0x1000, 0x3000), (0x3000, 0x1000)] {
        let kind = bar.memory(offset, len).unwrap_err().kind();
        assert_eq!(kind, PciErrorKind::NotSupported, "{len:#x} at {offset:#x}");
    }
    for (offset, len) in [(0x1000, 0), (0x1008, 8), (0x4000, 0x1000), (u64::MAX - 0xfff, 0x1000)] {
        let kind = bar.memory(offset, len).unwrap_err().kind();
        assert_eq!(kind, PciErrorKind::OutOfRange, "{len:#x} at {offset:#x}");
    }
    assert!(function.bar(0).unwrap().memory(0, 4096).is_err());
    let mut hosts = bar.memory(0x2000, 0x1000).unwrap();
    assert_eq!(hosts.iova(), None);
    hosts.write_at(8, b"hello");

    // The device reaches it where it was told to, bus mastering or not, and nothing behind it.
    let mut translator = iommu.translator();
    let own = OwnMemory { iova: 0x8000, len: 0x2000, region: memory, offset: 0x1000 };
    translator.set_own(vec![own]);
    assert!(translator.sync() && !translator.sync());
    let mut back = [0; 5];
    translator.read(0x9008, &mut back).unwrap();
    assert_eq!(&back, b"hello");
    translator.write(0x8000, &[7]).unwrap();
    bar.memory(0x1000, 0x1000).unwrap().read_at(0, &mut back[..1]);
    assert_eq!(back[0], 7);
    assert!(translator.buf(0x9fff, 2).is_err() && translator.buf(0x7fff, 1).is_err());

    // Host memory at the same addresses is out of reach; next to it is not.
    enable(function.config()).unwrap();
    let host = Memory::new();
    let (over, beside) = (region(&host, 1), region(&host, 1));
    iommu.map(&over, 0x9000).unwrap();
    iommu.map(&beside, 0xa000).unwrap();
    translator.write(0x9008, b"HELLO").unwrap();
    hosts.read_at(8, &mut back);
    assert_eq!((&back, translator.mappings()), (b"HELLO", 2));
    assert!(translator.buf(0xa000, 4096).is_ok());
    translator.set_own(Vec::new());
    assert_eq!(translator.buf(0x9000, 1).unwrap().addr(), over.addr());
}

/// A translator that keeps its copy of the table keeps the memory too: a host that has
/// unmapped a region could never unregister it while the controller sleeps.
#[test]
fn unmapped_memory_is_let_go_on_sync() {
    let (function, iommu, _) = function();
    enable(function.config()).unwrap();
    let woken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&woken);
    iommu.on_change(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    let memory = Memory::new();
    let region = region(&memory, 1);
    iommu.map(&region, 0).unwrap();
    let mut translator = iommu.translator();
    drop(translator.buf(0, 8).unwrap());
    iommu.unmap(0, 4096).unwrap();
    assert_eq!(woken.load(Ordering::Relaxed), 2);
    assert!(translator.sync());
    assert!(translator.mappings() == 0);
    assert!(!translator.sync());
    assert!(translator.buf(0, 8).is_err());
}

#[test]
fn mappings_are_checked() {
    let iommu = SoftIommu::new(SoftIommuOptions {
        windows: vec![0x1000..=0x7fff, 0x1_0000..=0x1_ffff],
        page_size_min: 4096,
        mappings_max: 2,
    });
    let memory = Memory::new();
    let region = region(&memory, 2);
    for bad in [0, 0x1800, 0x7000, 0x8000, 0x1_f000, u64::MAX - 0xfff] {
        assert_eq!(iommu.map(&region, bad).unwrap_err().errno(), libc::EINVAL, "{bad:#x}");
    }
    iommu.map(&region, 0x3000).unwrap();
    for taken in [0x2000, 0x3000, 0x4000] {
        assert_eq!(iommu.map(&region, taken).unwrap_err().errno(), libc::EEXIST);
    }
    iommu.map(&region, 0x5000).unwrap();
    let full = iommu.map(&region, 0x1_0000).unwrap_err();
    assert_eq!((full.errno(), iommu.refusals()), (libc::ENOSPC, 1));
    iommu.set_mappings_max(3);
    iommu.map(&region, 0x1_0000).unwrap();
    iommu.unmap(0x1_0000, 0x2000).unwrap();
    for (iova, len) in [(0x3000, 0x1000), (0x4000, 0x1000), (0x4000, 0x3000), (0x1000, 0x1000)] {
        assert!(iommu.unmap(iova, len).is_err(), "{iova:#x}");
    }
    iommu.unmap(0x3000, 0x4000).unwrap();
    assert_eq!(iommu.mappings(), 0);
}
