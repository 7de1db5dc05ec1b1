//! Client and server of this crate against each other, and against peers that misbehave.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use oxblock_mem::{Arena, ArenaOptions, Cells, Memory, PagePolicy, Region};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use zerocopy::{FromBytes, IntoBytes};

use super::client::{VfioUserFunction, VfioUserOptions};
use super::fuzz::function;
use super::message::*;
use super::server::{Ended, SessionOptions, serve};
use super::socket;
use crate::soft::{SoftFunction, SoftIommu};
use crate::{
    CapabilityId, EventFd, Function, Ids, PciErrorKind, Reg32, Reg64, capabilities, enable,
};

/// A function, served by a thread.
struct Served {
    function: Arc<SoftFunction>,
    iommu: Arc<SoftIommu>,
    thread: JoinHandle<Ended>,
}

/// Serves a function at one end of a socket; the other end comes back.
fn served() -> (UnixStream, Served) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (function, iommu) = function();
    let serving = Arc::clone(&function);
    let options = SessionOptions {
        message_timeout: Duration::from_millis(300),
        mappings_max: 3,
        ..SessionOptions::default()
    };
    let thread = thread::spawn(move || serve(ours.as_fd(), serving, &options));
    (theirs, Served { function, iommu, thread })
}

impl Served {
    /// How the session ended; nothing of the client may be left.
    fn ended(self) -> Ended {
        let ended = self.thread.join().unwrap();
        assert_eq!(self.iommu.mappings(), 0);
        ended
    }
}

fn attach(socket: UnixStream, timeout: Duration) -> Arc<VfioUserFunction> {
    socket.set_nonblocking(true).unwrap();
    let options = VfioUserOptions { reply_timeout: timeout, quiet_timeout: timeout };
    VfioUserFunction::over(OwnedFd::from(socket), "test", options).unwrap()
}

const PATIENCE: Duration = Duration::from_secs(10);

fn arena(pages: usize) -> Arena {
    let options = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(pages * 4096) };
    Memory::new().add_arena(&options).unwrap()
}

#[test]
fn a_function_looks_the_same_from_afar() {
    let (socket, served) = served();
    let far = attach(socket, PATIENCE);
    let near = Arc::clone(&served.function);
    assert_eq!(Ids::read(far.config()).unwrap(), Ids::read(near.config()).unwrap());
    let ids: Vec<_> = capabilities(far.config()).unwrap().iter().map(|c| c.id).collect();
    assert_eq!(ids, [CapabilityId::POWER, CapabilityId::MSIX, CapabilityId::EXPRESS]);
    assert_eq!(far.config().len(), 4096);
    far.config().write8(0x3c, 0xff).unwrap();
    assert!(far.config().read32(2).is_err() && far.config().read32(4096).is_err());

    let bar = far.bar(0).unwrap();
    let reg = Reg64::new(&bar, 8).unwrap();
    assert_eq!(reg.read(), u64::MAX, "memory decoding is off");
    enable(far.config()).unwrap();
    reg.write(0x1122_3344_5566_7788);
    assert_eq!(Reg64::new(&near.bar(0).unwrap(), 8).unwrap().read(), 0x1122_3344_5566_7788);
    assert_eq!(Reg32::new(&bar, 12).unwrap().read(), 0x1122_3344);
    assert_eq!((bar.len(), bar.read32(0x2000), bar.read64(0x1ffc)), (0x2000, u32::MAX, u64::MAX));
    assert!(far.bar(1).is_err() && far.bar(4).is_ok() && far.bar(9).is_err());

    far.reset().unwrap();
    assert_eq!(reg.read(), 0);
    drop(far);
    drop((bar, reg));
    assert!(matches!(served.ended(), Ended::Closed));
}

/// What is stored in a window arrives without a message: the server sees it in its memory.
#[test]
fn a_window_is_memory_of_both() {
    let (socket, served) = served();
    let far = attach(socket, PATIENCE);
    let window = served.function.window(0).unwrap();
    // SAFETY: the window's memory is the device's, which this test plays.
    let words = Cells::new(unsafe { window.memory.device_buf(0x1000, 0x1000) }.unwrap()).unwrap();
    let bar = far.bar(0).unwrap();
    Reg32::new(&bar, 0x1ffc).unwrap().write(7);
    assert_eq!(words.u32(0xffc / 4).load(Ordering::Relaxed), 7);
    words.u64(0).store(9, Ordering::Relaxed);
    assert_eq!(Reg64::new(&bar, 0x1000).unwrap().read(), 9);
    // An access across the border is none.
    assert_eq!(bar.read64(0x0ffc), u64::MAX);
}

#[test]
fn the_function_reaches_memory_of_the_client() {
    let (socket, served) = served();
    let far = attach(socket, PATIENCE);
    enable(far.config()).unwrap();
    let arena = arena(4);
    let mut ours = arena.alloc(16384, 4096).unwrap();
    let mapper = far.iommu();
    assert!(!mapper.needs_locked() && mapper.page_size_min() == 4096);
    mapper.map(&arena.region(), 0x10_0000).unwrap();
    let taken = mapper.map(&arena.region(), 0x10_3000).unwrap_err();
    assert_eq!(taken.errno(), libc::EEXIST, "{taken}");

    let mut translator = served.iommu.translator();
    ours.write_at(4096, b"hello");
    let mut bytes = [0; 5];
    translator.read(0x10_1000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    translator.write(0x10_3ffb, b"world").unwrap();
    assert!(ours.as_slice().unwrap().ends_with(b"world"));

    // The reply to an unmap comes when the function has let go, and not before.
    let buf = translator.buf(0x10_0000, 4096).unwrap();
    let unmap = thread::spawn(move || mapper.unmap(0x10_0000, 16384));
    while served.iommu.mappings() > 0 {
        thread::yield_now();
    }
    thread::sleep(Duration::from_millis(20));
    assert!(!unmap.is_finished());
    drop(buf);
    translator.sync();
    unmap.join().unwrap().unwrap();
    assert!(translator.read(0x10_0000, &mut bytes).is_err());
}

#[test]
fn interrupts_cross_over() {
    let (socket, served) = served();
    let far = attach(socket, PATIENCE);
    let interrupts = far.interrupts();
    assert_eq!(interrupts.count(), 4);
    let event = Arc::new(EventFd::new().unwrap());
    interrupts.enable(3, Arc::clone(&event)).unwrap();
    assert!(interrupts.enable(4, Arc::clone(&event)).is_err());
    let mut signals = served.function.soft_interrupts().signals();
    signals.signal(3);
    let begun = Instant::now();
    while event.take() == 0 {
        assert!(begun.elapsed() < PATIENCE, "no interrupt");
        thread::yield_now();
    }
    interrupts.disable(3).unwrap();
    signals.signal(3);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(event.take(), 0);
}

#[test]
fn a_server_that_is_gone_reads_as_all_ones() {
    let (socket, served) = served();
    let far = attach(socket.try_clone().unwrap(), PATIENCE);
    enable(far.config()).unwrap();
    let (arena, bar) = (arena(1), far.bar(0).unwrap());
    far.iommu().map(&arena.region(), 0).unwrap();
    let window = Reg32::new(&bar, 0x1000).unwrap();
    window.write(1);
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(far.events().removal.take(), 0);
    assert_eq!(Reg32::new(&bar, 0).unwrap().read(), u32::MAX);
    assert_eq!(far.events().removal.take(), 1);
    window.write(2);
    assert_eq!((window.read(), bar.read64(8)), (u32::MAX, u64::MAX));
    let error = far.config().read16(0).unwrap_err();
    assert_eq!(error.kind(), PciErrorKind::Gone);
    assert!(error.to_string().contains("closed the connection"), "{error}");
    assert!(far.reset().is_err() && far.iommu().map(&arena.region(), 4096).is_err());
    // Whoever closed the connection holds nothing any more.
    far.iommu().unmap(0, 4096).unwrap();
    assert!(matches!(served.ended(), Ended::Closed));
}

#[test]
fn a_silent_server_is_given_up() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let begun = Instant::now();
    ours.set_nonblocking(true).unwrap();
    let time = Duration::from_millis(50);
    let options = VfioUserOptions { reply_timeout: time, quiet_timeout: time };
    let error = VfioUserFunction::over(OwnedFd::from(ours), "test", options).err().unwrap();
    assert!(error.to_string().contains("did not reply within 50ms"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    // It sees that we have left.
    assert!(theirs.read_to_end(&mut Vec::new()).is_ok());
}

/// A client that sends bytes as it likes.
struct Raw(UnixStream);

impl Raw {
    fn hello(socket: UnixStream) -> Raw {
        let mut raw = Raw(socket);
        let version = Version { major: 0.into(), minor: 9.into() };
        let (header, body) = raw.ask(&Request::Version { version, data: b"{}\0" }, &[]);
        assert_eq!((header.error.get(), &body[..4]), (0, &[0, 0, 1, 0][..]));
        raw
    }

    fn ask(&mut self, request: &Request<'_>, fds: &[&dyn AsFd]) -> (Header, Vec<u8>) {
        self.send(&request.encode(5), fds);
        self.reply()
    }

    fn send(&mut self, bytes: &[u8], fds: &[&dyn AsFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        socket::send(self.0.as_fd(), bytes, &fds, Instant::now() + PATIENCE).unwrap();
    }

    fn reply(&mut self) -> (Header, Vec<u8>) {
        let mut head = [0; HEADER_LEN];
        self.0.read_exact(&mut head).unwrap();
        let header = Header::read_from_bytes(&head).unwrap();
        let mut body = vec![0; header.body_len().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        (header, body)
    }

    fn errno(&mut self, request: &Request<'_>, fds: &[&dyn AsFd]) -> i32 {
        let (header, body) = self.ask(request, fds);
        assert!(header.error.get() == 0 || body.is_empty());
        header.error.get() as i32
    }
}

fn dma(flags: u32, offset: u64, address: u64, size: u64) -> Request<'static> {
    let (offset, address, size) = (offset.into(), address.into(), size.into());
    Request::DmaMap(DmaMap { argsz: 32.into(), flags: flags.into(), offset, address, size })
}

fn unmap(flags: u32, address: u64, size: u64) -> Request<'static> {
    let (address, size) = (address.into(), size.into());
    Request::DmaUnmap(DmaUnmap { argsz: 24.into(), flags: flags.into(), address, size })
}

#[test]
fn memory_is_taken_with_care() {
    let (socket, served) = served();
    let mut client = Raw::hello(socket);
    let region = arena(4).region();
    let file = region.fd().unwrap().0;
    // A page of such a file may take for ever to come.
    let disk = std::fs::File::open("/proc/version").unwrap();
    let event = EventFd::new().unwrap();
    let bad: [(Request<'_>, &[&dyn AsFd], i32); 14] = [
        (dma(3, 0, 0, 0), &[&file], libc::EINVAL),
        (dma(3, 0, 512, 4096), &[&file], libc::EINVAL),
        (dma(3, 1, 0, 4096), &[&file], libc::EINVAL),
        (dma(3, 0, 0, 4095), &[&file], libc::EINVAL),
        (dma(3, 0, u64::MAX - 4095, 8192), &[&file], libc::EINVAL),
        (dma(3, u64::MAX - 4095, 0, 8192), &[&file], libc::EINVAL),
        (dma(3, 0, 0, 20480), &[&file], libc::EINVAL),
        (dma(3, 0, 1 << 60, 4096), &[&file], libc::EINVAL),
        (dma(0, 0, 0, 4096), &[&file], libc::EINVAL),
        (dma(4, 0, 0, 4096), &[&file], libc::EINVAL),
        (dma(3, 0, 0, 4096), &[&file, &file], libc::EINVAL),
        (dma(3, 0, 0, 4096), &[&disk], libc::EOPNOTSUPP),
        (dma(3, 0, 0, 4096), &[&event], libc::EOPNOTSUPP),
        (dma(3, 0, 0, 8 << 40), &[], libc::ENOSPC),
    ];
    for (request, fds, errno) in bad {
        assert_eq!(client.errno(&request, fds), errno, "{request:?}");
    }
    assert_eq!(served.iommu.mappings(), 0);
    assert_eq!(client.errno(&dma(3, 4096, 0x2000, 8192), &[&file]), 0);
    for (address, size) in [(0x1000, 8192), (0x2000, 4096), (0x3000, 4096), (0, 0x10000)] {
        assert_eq!(client.errno(&dma(3, 0, address, size), &[]), libc::EEXIST);
    }
    // Known, but out of reach: without a file, and read-only.
    assert_eq!(client.errno(&dma(3, 0, 0x4000, 4096), &[]), 0);
    assert_eq!(client.errno(&dma(1, 0, 0x5000, 4096), &[&file]), 0);
    assert_eq!(served.iommu.mappings(), 1);
    assert_eq!(client.errno(&dma(3, 0, 0x8000, 4096), &[]), libc::ENOSPC);
    for (address, size) in [(0x2000, 4096), (0x2000, 12288), (0x3000, 4096), (0, 0)] {
        assert_eq!(client.errno(&unmap(0, address, size), &[]), libc::ENOENT);
    }
    assert_eq!(client.errno(&unmap(1, 0x2000, 8192), &[]), libc::EINVAL);
    let (header, body) = client.ask(&unmap(0, 0x2000, 8192), &[]);
    assert_eq!((header.error.get(), body.len()), (0, 24));
    assert_eq!(client.errno(&unmap(UNMAP_ALL, 0, 0), &[]), 0);
    assert_eq!(client.errno(&dma(3, 0, 0, 16384), &[&file]), 0);
    drop(client);
    assert!(matches!(served.ended(), Ended::Closed));
}

#[test]
fn registers_are_read_and_written_in_bounds() {
    let (socket, served) = served();
    let mut client = Raw::hello(socket);
    enable(served.function.config()).unwrap();
    let access = |region: u32, offset: u64, count: u32| RegionAccess {
        offset: offset.into(),
        region: region.into(),
        count: count.into(),
    };
    let bad = [(9, 0, 4), (0, 0, 0), (0, 0x2000, 4), (0, 0x1ffd, 4), (7, 4095, 2), (1, 0, 4)];
    for (region, offset, count) in bad.into_iter().chain([(0, u64::MAX, 4), (8, 0, 1)]) {
        let access = access(region, offset, count);
        assert_eq!(client.errno(&Request::RegionRead(access), &[]), libc::EINVAL, "{access:?}");
        let data = vec![0; count as usize];
        assert_eq!(client.errno(&Request::RegionWrite { access, data: &data }, &[]), libc::EINVAL);
    }
    let data = [1, 2, 3, 4, 5, 6, 7, 8];
    let write = Request::RegionWrite { access: access(0, 8, 8), data: &data };
    assert_eq!(client.errno(&write, &[]), 0);
    let odd = Request::RegionWrite { access: access(0, 8, 2), data: &data[..2] };
    assert_eq!(client.errno(&odd, &[]), libc::EINVAL);
    for (offset, count) in [(8, 8), (9, 7), (10, 3), (12, 4), (15, 1)] {
        let (_, body) = client.ask(&Request::RegionRead(access(0, offset, count)), &[]);
        let at = offset as usize - 8;
        assert_eq!(body[16..], data[at..at + count as usize]);
    }
    let (_, whole) = client.ask(&Request::RegionRead(access(7, 1, 4095)), &[]);
    assert_eq!(whole[16..18], [0x12, 0x01]);
    let event = EventFd::new().unwrap();
    assert_eq!(client.errno(&Request::Reset, &[&event]), libc::EINVAL);
    assert_eq!(client.errno(&Request::Version { version: <_>::default(), data: &[] }, &[]), 22);
}

#[test]
fn interrupts_take_eventfds_alone() {
    let (socket, _served) = served();
    let mut client = Raw::hello(socket);
    let event = EventFd::new().unwrap();
    let file = arena(1).region();
    let file = file.fd().unwrap().0;
    let set = |flags: u32, index: u32, start: u32, count: u32| Request::SetIrqs {
        set: IrqSet {
            argsz: 20.into(),
            flags: flags.into(),
            index: index.into(),
            start: start.into(),
            count: count.into(),
        },
        data: &[],
    };
    let bad: [(Request<'_>, &[&dyn AsFd]); 8] = [
        (set(0x24, 2, 0, 1), &[&file]),
        (set(0x24, 2, 0, 2), &[&event]),
        (set(0x24, 2, 4, 1), &[&event]),
        (set(0x24, 2, u32::MAX, 2), &[]),
        (set(0x24, 0, 0, 1), &[&event]),
        (set(0x21, 2, 0, 1), &[&event]),
        (set(0x0c, 2, 0, 1), &[&event]),
        (set(0x25, 2, 0, 1), &[]),
    ];
    for (request, fds) in bad {
        assert_eq!(client.errno(&request, fds), libc::EINVAL, "{request:?}");
    }
    assert_eq!(client.errno(&set(0x24, 2, 1, 2), &[&event, &event]), 0);
    assert_eq!(client.errno(&set(0x21, 2, 0, 4), &[]), 0);
    assert_eq!(event.take(), 2);
    assert_eq!(client.errno(&set(0x21, 2, 0, 0), &[]), 0);
    assert_eq!(client.errno(&set(0x21, 2, 0, 4), &[]), 0);
    assert_eq!(event.take(), 0);
}

/// Each of these costs the client its connection, and the server nothing.
#[test]
fn rude_clients_are_thrown_out() {
    let hello = Request::Version { version: Version::default(), data: b"{}\0" }.encode(0);
    let major = Version { major: 1.into(), minor: 0.into() };
    let reply = Header::command(0, 9, 0).reply(0).as_bytes().to_vec();
    let huge = Header { size: u32::MAX.into(), ..Header::default() }.as_bytes().to_vec();
    let tiny = Header { size: 3.into(), ..Header::default() }.as_bytes().to_vec();
    let cases: [(&str, Vec<Vec<u8>>); 8] = [
        ("no version", vec![Request::Reset.encode(0)]),
        ("another version", vec![Request::Version { version: major, data: &[] }.encode(0)]),
        ("no JSON", vec![Request::Version { version: <_>::default(), data: b"[" }.encode(0)]),
        (
            "a long version",
            vec![Request::Version { version: <_>::default(), data: &[b' '; 5000] }.encode(0)],
        ),
        ("a reply", vec![hello.clone(), reply]),
        ("much", vec![hello.clone(), huge]),
        ("too little", vec![hello, tiny]),
        ("noise", vec![(0..=255).collect()]),
    ];
    for (name, messages) in cases {
        let (mut socket, served) = served();
        for message in messages {
            let _ = socket.write_all(&message);
        }
        let begun = Instant::now();
        let _ = socket.read_to_end(&mut Vec::new());
        assert!(matches!(served.ended(), Ended::Rude(_)), "{name}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{name}");
    }
}

#[test]
fn slow_clients_are_not_waited_for() {
    let (socket, served_silent) = served();
    assert!(matches!(served_silent.ended(), Ended::Slow(_)));
    drop(socket);
    let (socket, served_half) = served();
    let mut client = Raw::hello(socket);
    client.send(&Request::Reset.encode(1)[..9], &[]);
    assert!(matches!(served_half.ended(), Ended::Slow(_)));
}

/// A client that cut its memory short while the function used it.
#[test]
fn memory_that_vanishes_ends_the_session_alone() {
    let (socket, served) = served();
    let mut client = Raw::hello(socket);
    enable(served.function.config()).unwrap();
    let file = memfd_create("unsealed", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 8192).unwrap();
    assert_eq!(client.errno(&dma(3, 0, 0, 8192), &[&file]), 0);
    ftruncate(&file, 0).unwrap();
    let mut translator = served.iommu.translator();
    translator.write(4096, &[1; 4096]).unwrap();
    drop(translator);
    assert!(matches!(served.ended(), Ended::MemoryLost));
}

/// Registered memory has no file: the error says what to do.
#[test]
fn memory_without_a_file_is_refused_clearly() {
    let (socket, _served) = served();
    let far = attach(socket, PATIENCE);
    let region = arena(1).region();
    let theirs = Region::import(region.fd().unwrap().0, 0, 4096).unwrap();
    let error = far.iommu().map(&theirs, 0).unwrap_err();
    assert!(error.errno() == libc::ENOTSUP && error.to_string().contains("arena"), "{error}");
}
