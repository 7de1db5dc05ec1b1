//! A server that others wrote: that of the `vfio_user` crate, of the rust-vmm project. Behind it is
//! a device that keeps what it is told, and our client is its host.

use std::fs::File;
use std::io::{Error, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use oxblock_mem::{ArenaOptions, Memory, PagePolicy};
use oxblock_pci::vfio_user::{VfioUserFunction, VfioUserOptions};
use oxblock_pci::{EventFd, Function, Ids, Reg32, Reg64};
use vfio_bindings::bindings::vfio::vfio_region_info;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

const BAR_BYTES: usize = 0x1000;
const CONFIG: u32 = 7;

/// What the device was told.
#[derive(Default)]
struct Told {
    bar: Vec<u8>,
    config: Vec<u8>,
    /// Address and length, and the first bytes as the device sees them.
    mapped: Vec<(u64, u64, [u8; 5])>,
    unmapped: Vec<(u64, u64)>,
    resets: usize,
}

struct Device(Arc<Mutex<Told>>);

impl Device {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().expect("no panic elsewhere")
    }

    fn with_region<T>(
        &self,
        region: u32,
        offset: u64,
        len: usize,
        act: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, Error> {
        let mut told = self.told();
        let bytes = if region == CONFIG { &mut told.config } else { &mut told.bar };
        let range = offset as usize..offset as usize + len;
        bytes.get_mut(range).map(act).ok_or_else(|| Error::from(ErrorKind::InvalidInput))
    }
}

impl ServerBackend for Device {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.with_region(region, offset, data.len(), |bytes| data.copy_from_slice(bytes))
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.with_region(region, offset, data.len(), |bytes| bytes.copy_from_slice(data))
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> Result<(), Error> {
        assert_eq!(flags, DmaMapFlags::READ_WRITE);
        let mut seen = [0; 5];
        file.expect("the file of the memory").read_exact_at(&mut seen, offset)?;
        self.told().mapped.push((address, size, seen));
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> Result<(), Error> {
        self.told().unmapped.push((address, size));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Error> {
        self.told().resets += 1;
        Ok(())
    }

    /// Signals at once.
    fn set_irqs(
        &mut self,
        index: u32,
        _: u32,
        _: u32,
        count: u32,
        fds: Vec<File>,
    ) -> Result<(), Error> {
        assert_eq!((index, count), (2, 1));
        fds.into_iter().try_for_each(|mut fd| fd.write_all(&1u64.to_ne_bytes()))
    }
}

/// Regions and interrupts as a PCI device has them, but for the last two kinds of interrupts.
fn server(path: &std::path::Path) -> Server {
    let region = |index: u32| {
        let size = match index {
            0 => BAR_BYTES as u64,
            CONFIG => 256,
            _ => 0,
        };
        let flags = if size > 0 { 3 } else { 0 };
        let region_info = vfio_region_info { argsz: 32, flags, index, size, ..<_>::default() };
        ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None }
    };
    let irq = |index| IrqInfo { index, flags: 1, count: if index == 2 { 4 } else { 0 } };
    let (irqs, regions) = ((0..3).map(irq).collect(), (0..9).map(region).collect());
    Server::new(path, true, irqs, regions).expect("a server")
}

#[test]
fn our_client_drives_a_server_of_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let server = server(&path);
    let mut config = vec![0; 256];
    config[..12].copy_from_slice(&[0x34, 0x12, 0x78, 0x56, 0, 0, 0, 0, 1, 2, 8, 1]);
    let told = Told { bar: vec![0; BAR_BYTES], config, ..Told::default() };
    let told = Arc::new(Mutex::new(told));
    let mut device = Device(Arc::clone(&told));
    let serving = std::thread::spawn(move || server.run(&mut device));

    let function = VfioUserFunction::connect(&path, VfioUserOptions::default());
    let function = function.expect("a function");
    let ids = Ids::read(function.config()).expect("an identity");
    assert_eq!((ids.vendor, ids.device, ids.class), (0x1234, 0x5678, 0x01_08_02));
    oxblock_pci::enable(function.config()).expect("a command register");
    let bar = function.bar(0).expect("BAR 0");
    assert!(function.bar(2).is_err());
    Reg64::new(&bar, 0x28).expect("a register").write(0x1122_3344_5566_7788);
    assert_eq!(Reg32::new(&bar, 0x2c).expect("a register").read(), 0x1122_3344);

    let options = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(8192) };
    let arena = Memory::new().add_arena(&options).expect("memory");
    let mut bytes = arena.alloc(8192, 4096).expect("all of it");
    bytes.write_at(0, b"hello");
    function.iommu().map(&arena.region(), 0x10_0000).expect("a mapping");
    function.iommu().unmap(0x10_0000, 8192).expect("an unmap");

    assert_eq!(function.interrupts().count(), 4);
    let event = Arc::new(EventFd::new().expect("an eventfd"));
    function.interrupts().enable(1, Arc::clone(&event)).expect("a vector");
    let begun = Instant::now();
    while event.take() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "no interrupt");
    }
    function.reset().expect("a reset");
    {
        let told = told.lock().expect("no panic elsewhere");
        assert_eq!(told.config[4] & 6, 6);
        assert_eq!(told.mapped, [(0x10_0000, 8192, *b"hello")]);
        assert_eq!((&told.unmapped[..], told.resets), (&[(0x10_0000, 8192)][..], 1));
    }
    drop((bar, function));
    serving.join().expect("no panic").expect("an orderly end");
}
