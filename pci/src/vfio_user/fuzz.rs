//! A fuzz harness: bytes become messages, with descriptors of all kinds beside them.
//!
//! [`fuzz_server`] plays a client against a [`Session`] and checks after every message that
//! - nothing panics;
//! - a command gets one reply at most, with its number, its command, and a size that is true;
//! - the IOMMU has the mappings that the client was told of, and none when the session is over.
//!
//! [`fuzz_client`] plays a server against a [`VfioUserFunction`] and checks that every call ends
//! in time, and that a function that is gone reads as all ones.
//!
//! The same functions serve cargo-fuzz and tests with seeds.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oxblock_mem::{Arena, ArenaOptions, Memory, PagePolicy};
use zerocopy::{FromBytes, IntoBytes};

use super::client::{VfioUserFunction, VfioUserOptions};
use super::message::{
    DMA_READ, DMA_WRITE, DmaMap, DmaUnmap, Header, IrqSet, RegionAccess, RegionInfo, Request,
    Version, command, header_flags,
};
use super::server::{Reply, Session, SessionOptions, Step};
use super::socket::{self, Message};
use crate::soft::{Device, SoftFunction, SoftInterrupts, SoftIommu, SoftIommuOptions, Window};
use crate::{EventFd, Function, Ids, enable};

/// Messages that one input can ask for.
const MESSAGES: usize = 256;

/// Runs a session on arbitrary messages. Returns how often each command succeeded, by its
/// number, so that a test sees that the harness gets anywhere.
///
/// # Panics
/// The session did something that it must not.
pub fn fuzz_server(data: &[u8]) -> [usize; 16] {
    let (function, iommu) = function();
    let mut session = Session::new(Arc::clone(&function), SessionOptions::default());
    let mut input = Input(data);
    let arena = memory(16);
    let mut mapped = Vec::new();
    let mut reached = [0; 16];
    if input.byte() > 8 {
        let hello = Request::Version { version: Version::default(), data: &[] }.encode(0);
        let step = session.handle(whole(&hello, Vec::new()));
        assert!(matches!(step, Ok(Step::Reply(_))));
    }
    for _ in 0..MESSAGES {
        if input.0.is_empty() {
            break;
        }
        let message = message(&mut input, &arena);
        let (header, body, files) = (message.header, message.body.clone(), message.fds.len());
        let Ok(mut step) = session.handle(message) else { break };
        while matches!(step, Step::Wait) {
            assert!(session.is_waiting());
            step = session.resume();
        }
        session.relay_interrupts();
        let done = matches!(&step, Step::Reply(reply) if check(&header, reply));
        let Ok(request) = Request::decode(header.command.get(), &body) else {
            assert!(!done, "success of what is no command");
            continue;
        };
        if done {
            reached[usize::from(request.command())] += 1;
            note(&mut mapped, &request, files);
        }
        let reachable = mapped.iter().filter(|(.., reachable)| *reachable).count();
        assert_eq!(iommu.mappings(), reachable);
    }
    drop(session);
    assert_eq!(iommu.mappings(), 0, "mappings outlive their session");
    reached
}

/// Keeps an account of what a client has mapped: address, length, whether it can be reached.
fn note(mapped: &mut Vec<(u64, u64, bool)>, request: &Request<'_>, files: usize) {
    match request {
        Request::DmaMap(map) => {
            let (start, len) = (map.address.get(), map.size.get());
            let overlaps = |&(other, other_len, _): &(u64, u64, bool)| {
                start < other + other_len && other < start + len
            };
            assert!(!mapped.iter().any(overlaps), "{map:?} overlaps {mapped:?}");
            mapped.push((start, len, files > 0 && map.flags.get() & DMA_WRITE != 0));
        }
        Request::DmaUnmap(unmap) if unmap.flags.get() != 0 => mapped.clear(),
        Request::DmaUnmap(unmap) => {
            let is_it = |&(start, len, _): &(u64, u64, bool)| {
                (start, len) == (unmap.address.get(), unmap.size.get())
            };
            let at = mapped.iter().position(is_it).expect("an unmap of what is not mapped");
            mapped.swap_remove(at);
        }
        _ => {}
    }
}

/// A reply is one to this command, and as long as it says. Whether it tells of success.
fn check(header: &Header, reply: &Reply) -> bool {
    let (got, body) = Header::read_from_prefix(&reply.bytes).expect("a header");
    assert!(got.is_reply() && header.wants_reply());
    assert_eq!((got.id, got.command), (header.id, header.command));
    assert_eq!(got.body_len(), Some(body.len()));
    let failed = got.flags.get() & header_flags::ERROR != 0;
    assert!(!failed || (body.is_empty() && got.error.get() != 0));
    !failed
}

/// Runs a client on arbitrary replies. Returns whether it found a function.
///
/// # Panics
/// The client did something that it must not.
pub fn fuzz_client(data: &[u8]) -> bool {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut input = Input(data);
    let arena = memory(4);
    let soon = Instant::now() + Duration::from_secs(5);
    let asked = [
        (command::VERSION, 1),
        (command::DEVICE_GET_INFO, 1),
        (command::DEVICE_GET_REGION_INFO, 7),
        (command::DEVICE_GET_IRQ_INFO, 3),
        (command::REGION_READ, 2),
        (command::REGION_WRITE, 1),
        (command::DMA_MAP, 1),
        (command::DEVICE_SET_IRQS, 1),
        (command::DEVICE_RESET, 1),
        (command::REGION_READ, 2),
    ];
    let asked = asked.into_iter().flat_map(|(command, count)| std::iter::repeat_n(command, count));
    for (id, command) in (0..).zip(asked) {
        let body = reply_body(&mut input, command);
        let mut header = Header::command(id, command, 0).reply(body.len());
        input.spoil(header.as_mut_bytes());
        let fds = fds(&mut input, &arena);
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let bytes = [header.as_bytes(), &body].concat();
        socket::send(theirs.as_fd(), &bytes, &borrowed, soon).expect("room for the replies");
    }
    theirs.shutdown(std::net::Shutdown::Write).expect("an open socket");
    let begun = Instant::now();
    let options = VfioUserOptions::default();
    let function = VfioUserFunction::over(OwnedFd::from(ours), "fuzz", options);
    if let Ok(function) = &function {
        exercise(&**function, &arena);
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "a call took too long");
    function.is_ok()
}

/// Uses all that a function has.
fn exercise(function: &dyn Function, arena: &Arena) {
    let _ = enable(function.config());
    let bars: Vec<_> = (0..8).filter_map(|index| function.bar(index).ok()).collect();
    for bar in &bars {
        for offset in [0, 4, 8, 0x1000, 0x1004, bar.len().wrapping_sub(4), bar.len(), u64::MAX] {
            bar.write32(offset, 1);
            let (_, _) = (bar.read32(offset), bar.read64(offset));
            bar.write64(offset, 1);
        }
    }
    let iommu = function.iommu();
    let _ = iommu.map(&arena.region(), 0x10_0000);
    let _ = function.interrupts().enable(0, Arc::new(EventFd::new().expect("an eventfd")));
    let _ = function.reset();
    let _ = iommu.unmap(0x10_0000, arena.region().len() as u64);
    // By now the server has hung up or was hung up on.
    assert!(function.config().read16(0).is_err() && function.reset().is_err());
    for bar in &bars {
        assert_eq!((bar.read32(0), bar.read64(0x1000)), (u32::MAX, u64::MAX));
    }
}

/// Input that runs out: then everything is zero.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }

    /// A number that is likely to be good, or at a border.
    fn number(&mut self, good: u64) -> u64 {
        match self.byte() % 32 {
            0 => self.word(),
            1 => good.wrapping_add(1),
            2 => good.wrapping_sub(1),
            3 => [u64::MAX, 1 << 63, u32::MAX.into(), 0][usize::from(self.byte() % 4)],
            _ => good,
        }
    }

    /// Now and then, changes a byte.
    fn spoil(&mut self, bytes: &mut [u8]) {
        if self.byte() < 16 {
            let (at, value) = (usize::from(self.byte()), self.byte());
            if let Some(byte) = bytes.get_mut(at % bytes.len().max(1)) {
                *byte = value;
            }
        }
    }
}

/// A message of a client that is good at first sight, mostly.
fn message(input: &mut Input<'_>, arena: &Arena) -> Message {
    let page = u64::from(input.byte() % 12) * 4096;
    let pages = (u64::from(input.byte() % 3) + 1) * 4096;
    let data = input.byte();
    let data = input.take(usize::from(data % 40));
    let (address, size) = (input.number(page).into(), input.number(pages).into());
    let access = RegionAccess {
        offset: input.number(u64::from(data.len() as u32) * 4).into(),
        region: (input.number((page / 4096) % 9) as u32).into(),
        count: (input.number(data.len() as u64) as u32).into(),
    };
    let argsz = (input.number(64) as u32).into();
    let request = match input.byte() % 12 {
        0 => Request::Version { version: Version::default(), data: &data },
        1 | 2 => Request::DmaMap(DmaMap {
            argsz,
            flags: (input.number((DMA_READ | DMA_WRITE).into()) as u32).into(),
            offset: input.number(0).into(),
            address,
            size,
        }),
        3 => {
            let flags = [0, 0, 0, 1, 2][usize::from(input.byte() % 5)].into();
            Request::DmaUnmap(DmaUnmap { argsz, flags, address, size })
        }
        4 => Request::DeviceInfo(<_>::default()),
        5 => {
            Request::RegionInfo(RegionInfo { argsz, index: access.region, ..RegionInfo::default() })
        }
        6 => Request::IrqInfo(<_>::default()),
        7 => Request::SetIrqs {
            set: IrqSet {
                argsz,
                flags: (input.number([0x21, 0x22, 0x24, 0x24][page as usize / 4096 % 4]) as u32)
                    .into(),
                index: (input.number(2) as u32).into(),
                start: (input.number(0) as u32).into(),
                count: (input.number(1) as u32).into(),
            },
            data: &data,
        },
        8 => Request::RegionRead(access),
        9 => Request::RegionWrite { access, data: &data },
        10 => Request::Reset,
        _ => Request::Version { version: Version::default(), data: &[] },
    };
    let mut bytes = request.encode(input.byte().into());
    input.spoil(&mut bytes);
    whole(&bytes, fds(input, arena))
}

fn whole(bytes: &[u8], fds: Vec<OwnedFd>) -> Message {
    let (header, body) = Header::read_from_prefix(bytes).expect("a header");
    let quiet = matches!(header.command.get(), command::DMA_MAP | command::DMA_UNMAP);
    // The account needs to know what became of maps and unmaps.
    let kept = if quiet { 0 } else { header_flags::NO_REPLY };
    let header = Header { flags: (header.flags.get() & kept).into(), ..header };
    Message { header, body: body.to_vec(), fds }
}

/// The body of a server's reply, likely to be good.
fn reply_body(input: &mut Input<'_>, command: u16) -> Vec<u8> {
    let mut body = match command {
        command::VERSION => [&[0, 0, 1, 0], &b"{}\0"[..]].concat(),
        command::DEVICE_GET_INFO => [16u32, 2, 9, 5].as_bytes().to_vec(),
        command::DEVICE_GET_REGION_INFO => {
            let info = RegionInfo {
                argsz: 32.into(),
                flags: u32::from(input.byte()).into(),
                size: input.number(0x2000).into(),
                cap_offset: 32.into(),
                offset: input.number(0).into(),
                ..RegionInfo::default()
            };
            let area = [input.number(0x1000), input.number(0x1000)];
            let cap: [u32; 4] = [0x1_0001, input.byte().into(), 1, 0];
            [info.as_bytes(), cap.as_bytes(), area.as_bytes()].concat()
        }
        command::DEVICE_GET_IRQ_INFO => [16u32, 1, 2, 0].as_bytes().to_vec(),
        command::REGION_READ => {
            let access = [4u64, 7 | 2 << 32];
            [access.as_bytes(), &[0, 0]].concat()
        }
        _ => Vec::new(),
    };
    input.spoil(&mut body);
    let cut = input.byte();
    if cut < 16 {
        body.truncate(cut.into());
    }
    body
}

/// Descriptors of all kinds.
fn fds(input: &mut Input<'_>, arena: &Arena) -> Vec<OwnedFd> {
    let count = [0, 0, 0, 1, 1, 1, 2, 16][usize::from(input.byte() % 8)];
    let mut one = || -> Option<OwnedFd> {
        let region = arena.region();
        Some(match input.byte() % 6 {
            0 => OwnedFd::from(std::fs::File::open("/dev/zero").ok()?),
            1 => OwnedFd::from(std::fs::File::open("/proc/self/exe").ok()?),
            2 => EventFd::new().ok()?.as_fd().try_clone_to_owned().ok()?,
            _ => region.fd()?.0.try_clone_to_owned().ok()?,
        })
    };
    (0..count).filter_map(|_| one()).collect()
}

fn memory(pages: usize) -> Arena {
    let options = ArenaOptions { pages: PagePolicy::Unlocked, ..ArenaOptions::new(pages * 4096) };
    Memory::new().add_arena(&options).expect("some pages")
}

/// A device with registers that keep what was written, and a window.
pub(crate) struct Scratch {
    words: [AtomicU64; 512],
    window: Window,
}

impl Device for Scratch {
    fn bar_len(&self, bar: u8) -> u64 {
        if bar == 0 { 0x2000 } else { 0 }
    }

    fn read(&self, _: u8, offset: u64, size: u8) -> u64 {
        let word = self.words.get((offset / 8) as usize);
        let word = word.map_or(0, |word| word.load(Ordering::Relaxed)) >> (offset % 8 * 8);
        if size == 4 { word & 0xffff_ffff } else { word }
    }

    fn write(&self, _: u8, offset: u64, _: u8, value: u64) {
        if let Some(word) = self.words.get((offset / 8) as usize) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn reset(&self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    fn window(&self, bar: u8) -> Option<Window> {
        (bar == 0).then(|| self.window.clone())
    }
}

/// A function over such a device.
pub(crate) fn function() -> (Arc<SoftFunction>, Arc<SoftIommu>) {
    let device = Scratch {
        words: std::array::from_fn(|_| AtomicU64::new(0)),
        window: Window { offset: 0x1000, len: 0x1000, memory: memory(2).region() },
    };
    let iommu = SoftIommu::new(SoftIommuOptions::default());
    let ids = Ids { vendor: 0x1234, device: 1, class: 0x01_08_02, ..Ids::default() };
    let interrupts = SoftInterrupts::new(4);
    let function =
        SoftFunction::new("soft:0", Arc::new(device), ids, Arc::clone(&iommu), interrupts);
    let function = function.expect("eventfds");
    (function, iommu)
}

/// Pseudo-random input for a test, the same for the same seed (SplitMix64).
#[must_use]
pub fn input(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(default: u64) -> std::ops::Range<u64> {
        let number = |name| std::env::var(name).ok().and_then(|word| word.parse::<u64>().ok());
        match number("OXBLOCK_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..number("OXBLOCK_FUZZ_SEEDS").unwrap_or(default),
        }
    }

    /// Runs all seeds, and names the one that fails.
    fn run<T>(default: u64, target: fn(&[u8]) -> T, mut take: impl FnMut(T)) {
        for seed in seeds(default) {
            match std::panic::catch_unwind(|| target(&input(seed, 4096))) {
                Ok(outcome) => take(outcome),
                Err(_) => panic!("replay with OXBLOCK_SEED={seed}"),
            }
        }
    }

    #[test]
    fn no_message_hurts_the_server() {
        let mut reached = [0; 16];
        run(300, fuzz_server, |now| {
            reached.iter_mut().zip(now).for_each(|(sum, now)| *sum += now);
        });
        let commands = [2, 3, 4, 5, 7, 8, 9, 10, 13];
        let missed: Vec<_> = commands.into_iter().filter(|&at| reached[at] == 0).collect();
        assert!(missed.is_empty() || seeds(300).count() < 300, "never: {missed:?}");
    }

    #[test]
    fn no_reply_hurts_the_client() {
        let mut attached = 0;
        run(300, fuzz_client, |was_attached| attached += usize::from(was_attached));
        assert!(attached > 0 || seeds(300).count() < 300, "no client ever attached");
    }
}
