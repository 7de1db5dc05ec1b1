//! What a client may ask, and what it gets.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use oxblock_mem::Region;
use zerocopy::IntoBytes;

use super::interrupts::ClientInterrupts;
use super::memory::ClientMemory;
use crate::soft::{SoftFunction, Window};
use crate::vfio_user::capabilities::{Capabilities, FDS_MAX, MAJOR, MINOR};
use crate::vfio_user::message::{
    CONFIG_REGION, DATA_MAX, DEVICE_PCI, DEVICE_RESETS, DeviceInfo, DmaUnmap, Header, IRQ_EVENTFD,
    IRQ_NORESIZE, IRQS, IrqInfo, MSIX_IRQ, REGION_MMAPS, REGION_READS, REGION_WRITES, REGIONS,
    RegionAccess, RegionInfo, Request, SparseArea, Version, encode_region_info,
};
use crate::vfio_user::socket::Message;
use crate::{Bar, ConfigSpace, Function, PciError};

/// What one client may take.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// DMA mappings at a time. All clients together must stay below the system's limit for a
    /// process (`vm.max_map_count`, 65,530).
    pub mappings_max: usize,
    /// Bytes that are mapped at a time.
    pub mapped_bytes_max: u64,
    /// How long the client may take for its first message, for the rest of a message that it
    /// began, and to take a reply.
    pub message_timeout: Duration,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions {
            mappings_max: 2048,
            mapped_bytes_max: 4 << 40,
            message_timeout: Duration::from_secs(10),
        }
    }
}

/// One client's dealings with a function, message by message. It does no input or output, and
/// never blocks but for a reset of the function.
pub struct Session {
    function: Arc<SoftFunction>,
    bars: [Option<Arc<dyn Bar>>; 6],
    /// The version has been agreed on.
    open: bool,
    memory: ClientMemory,
    interrupts: ClientInterrupts,
    waiting: Option<Waiting>,
}

/// What came of a message.
#[derive(Debug)]
pub enum Step {
    /// This is to be sent.
    Reply(Reply),
    /// Nothing is to be sent.
    Silent,
    /// [`Session::resume`] is to be called, and no other message handled, until it says
    /// otherwise.
    Wait,
}

/// A message for the client.
#[derive(Debug)]
pub struct Reply {
    /// All of it.
    pub bytes: Vec<u8>,
    /// What goes beside it.
    pub fds: Vec<OwnedFd>,
}

/// A command whose reply waits until nothing uses the client's memory any more.
struct Waiting {
    header: Header,
    body: Vec<u8>,
    regions: Vec<Region>,
}

/// What a command leads to.
enum Done {
    Body(Vec<u8>),
    BodyAndFile(Vec<u8>, OwnedFd),
    /// The body may be sent when these are in use no more.
    Released(Vec<u8>, Vec<Region>),
}

impl Session {
    /// A session that waits for the client's version.
    #[must_use]
    pub fn new(function: Arc<SoftFunction>, options: SessionOptions) -> Session {
        let bar = |index| function.bar(index).ok();
        Session {
            bars: [bar(0), bar(1), bar(2), bar(3), bar(4), bar(5)],
            open: false,
            memory: ClientMemory::new(function.iommu(), options),
            interrupts: ClientInterrupts::new(Arc::clone(&function)),
            waiting: None,
            function,
        }
    }

    /// Handles a message.
    ///
    /// # Errors
    /// The client does not speak the protocol; the session is to be dropped.
    pub fn handle(&mut self, message: Message) -> Result<Step, &'static str> {
        let Message { header, body, fds } = message;
        if !header.is_command() {
            return Err("a reply to nothing that was asked");
        }
        if self.waiting.is_some() {
            return Err("a message while another waits");
        }
        let done = match Request::decode(header.command.get(), &body) {
            Ok(Request::Version { version, data }) if !self.open => {
                let body = self.agree(version, data).ok_or("a version other than 0.x")?;
                Ok(Done::Body(body))
            }
            _ if !self.open => return Err("something else before its version"),
            Ok(request) => self.perform(&request, fds),
            Err(errno) => Err(errno),
        };
        Ok(match done {
            Ok(Done::Body(body)) => reply(&header, &body, Vec::new()),
            Ok(Done::BodyAndFile(body, file)) => reply(&header, &body, vec![file]),
            Ok(Done::Released(body, regions)) => {
                self.waiting = Some(Waiting { header, body, regions });
                self.resume()
            }
            Err(errno) if header.wants_reply() => {
                let bytes = header.error(errno).as_bytes().to_vec();
                Step::Reply(Reply { bytes, fds: Vec::new() })
            }
            Err(_) => Step::Silent,
        })
    }

    /// Looks whether a command that had to wait is done. Without one it says [`Step::Silent`].
    pub fn resume(&mut self) -> Step {
        let Some(waiting) = &mut self.waiting else { return Step::Silent };
        waiting.regions.retain(Region::in_use);
        if !waiting.regions.is_empty() {
            return Step::Wait;
        }
        let (header, body) = (waiting.header, std::mem::take(&mut waiting.body));
        self.waiting = None;
        reply(&header, &body, Vec::new())
    }

    /// Whether a command waits.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether the version has been agreed on.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether memory of the client has vanished.
    #[must_use]
    pub fn has_lost_memory(&self) -> bool {
        self.memory.is_lost()
    }

    /// Descriptors that turn readable when there is an interrupt to relay.
    pub fn interrupts(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.interrupts.fds()
    }

    /// Passes interrupts on to the client.
    pub fn relay_interrupts(&self) {
        self.interrupts.relay();
    }

    fn agree(&mut self, version: Version, data: &[u8]) -> Option<Vec<u8>> {
        Capabilities::decode(data).filter(|_| version.major.get() == MAJOR)?;
        self.open = true;
        let minor = version.minor.get().min(MINOR);
        let version = Version { major: MAJOR.into(), minor: minor.into() };
        let ours = Capabilities {
            max_msg_fds: FDS_MAX as u64,
            max_data_xfer_size: DATA_MAX.into(),
            max_dma_maps: self.memory.mappings_max() as u64,
        };
        Some([version.as_bytes(), &ours.encode()].concat())
    }

    fn perform(&mut self, request: &Request<'_>, fds: Vec<OwnedFd>) -> Result<Done, i32> {
        let takes_fds = matches!(request, Request::DmaMap(_) | Request::SetIrqs { .. });
        if !fds.is_empty() && !takes_fds {
            return Err(libc::EINVAL);
        }
        match *request {
            Request::Version { .. } => Err(libc::EINVAL),
            Request::DmaMap(map) => {
                self.memory.map(&map, fds)?;
                Ok(Done::Body(Vec::new()))
            }
            Request::DmaUnmap(unmap) => {
                let regions = self.memory.unmap(&unmap)?;
                let argsz = (size_of::<DmaUnmap>() as u32).into();
                let body = DmaUnmap { argsz, ..unmap };
                Ok(Done::Released(body.as_bytes().to_vec(), regions))
            }
            Request::DeviceInfo(_) => Ok(Done::Body(device_info().as_bytes().to_vec())),
            Request::RegionInfo(ask) => self.region_info(&ask),
            Request::IrqInfo(ask) => {
                let info = self.irq_info(ask.index.get())?;
                Ok(Done::Body(info.as_bytes().to_vec()))
            }
            Request::SetIrqs { set, data } => {
                self.interrupts.set(&set, data, fds)?;
                Ok(Done::Body(Vec::new()))
            }
            Request::RegionRead(access) => {
                let data = self.read(&access)?;
                Ok(Done::Body([access.as_bytes(), &data].concat()))
            }
            Request::RegionWrite { access, data } => {
                self.write(&access, data)?;
                Ok(Done::Body(access.as_bytes().to_vec()))
            }
            Request::Reset => {
                self.function.reset().map_err(|error| errno(&error))?;
                Ok(Done::Body(Vec::new()))
            }
        }
    }

    fn region_info(&self, ask: &RegionInfo) -> Result<Done, i32> {
        let index = ask.index.get();
        let size = self.region_len(index)?;
        let usable = if size > 0 { REGION_READS | REGION_WRITES } else { 0 };
        let window = u8::try_from(index).ok().and_then(|bar| self.function.window(bar));
        let file = window.as_ref().and_then(Window::file);
        let maps = if file.is_some() { REGION_MMAPS } else { 0 };
        let info = RegionInfo {
            argsz: (size_of::<RegionInfo>() as u32).into(),
            flags: (usable | maps).into(),
            index: ask.index,
            cap_offset: 0.into(),
            size: size.into(),
            offset: 0.into(),
        };
        let areas: Vec<_> = window.iter().filter(|_| file.is_some()).map(Window::area).collect();
        let mut body = encode_region_info(info, &areas);
        if body.len() > ask.argsz.get() as usize {
            // The client asks again, with as much room as it is told now.
            body.truncate(size_of::<RegionInfo>());
            return Ok(Done::Body(body));
        }
        Ok(match file {
            Some(file) => Done::BodyAndFile(body, file),
            None => Done::Body(body),
        })
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, i32> {
        if index >= IRQS {
            return Err(libc::EINVAL);
        }
        let msix = index == MSIX_IRQ;
        let count = if msix { self.interrupts.count() } else { 0 };
        let flags = if msix { IRQ_EVENTFD | IRQ_NORESIZE } else { 0 };
        Ok(IrqInfo {
            argsz: (size_of::<IrqInfo>() as u32).into(),
            flags: flags.into(),
            index: index.into(),
            count: count.into(),
        })
    }

    /// Bytes of a region; 0 if the function does not have it.
    fn region_len(&self, index: u32) -> Result<u64, i32> {
        match index {
            CONFIG_REGION => Ok(self.function.config().len().into()),
            _ if index < REGIONS => Ok(self.bar(index).map_or(0, |bar| bar.len())),
            _ => Err(libc::EINVAL),
        }
    }

    fn bar(&self, index: u32) -> Option<&dyn Bar> {
        self.bars.get(index as usize)?.as_deref()
    }

    /// The range of an access, if it lies in its region.
    fn check(&self, access: &RegionAccess) -> Result<(u64, u64), i32> {
        let (start, count) = (access.offset.get(), u64::from(access.count.get()));
        let len = self.region_len(access.region.get())?;
        match start.checked_add(count) {
            Some(end) if end <= len && count > 0 => Ok((start, end)),
            _ => Err(libc::EINVAL),
        }
    }

    fn read(&self, access: &RegionAccess) -> Result<Vec<u8>, i32> {
        let (start, end) = self.check(access)?;
        let mut data = Vec::with_capacity((end - start) as usize);
        let mut at = start;
        while at < end {
            let size = match access.region.get() {
                CONFIG_REGION => read_config(self.function.config(), at, end, &mut data)?,
                bar => read_bar(self.bar(bar).ok_or(libc::EINVAL)?, at, end, &mut data),
            };
            at += size;
        }
        Ok(data)
    }

    fn write(&self, access: &RegionAccess, data: &[u8]) -> Result<(), i32> {
        let (start, end) = self.check(access)?;
        let is_config = access.region.get() == CONFIG_REGION;
        // Registers of a BAR have four bytes or more; nothing is written of what does not fit.
        if !is_config && !(start | end).is_multiple_of(4) {
            return Err(libc::EINVAL);
        }
        let (mut at, mut data) = (start, data);
        while at < end {
            let size = piece(at, end, if is_config { 4 } else { 8 });
            let Some((now, later)) = data.split_at_checked(size as usize) else {
                return Err(libc::EINVAL);
            };
            match is_config {
                true => write_config(self.function.config(), at as u16, now)?,
                false => write_bar(self.bar(access.region.get()).ok_or(libc::EINVAL)?, at, now),
            }
            (at, data) = (at + size, later);
        }
        Ok(())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("open", &self.open)
            .field("waiting", &self.is_waiting())
            .finish_non_exhaustive()
    }
}

fn device_info() -> DeviceInfo {
    DeviceInfo {
        argsz: (size_of::<DeviceInfo>() as u32).into(),
        flags: (DEVICE_RESETS | DEVICE_PCI).into(),
        regions: REGIONS.into(),
        irqs: IRQS.into(),
    }
}

fn reply(header: &Header, body: &[u8], fds: Vec<OwnedFd>) -> Step {
    if !header.wants_reply() {
        return Step::Silent;
    }
    let bytes = [header.reply(body.len()).as_bytes(), body].concat();
    Step::Reply(Reply { bytes, fds })
}

/// The largest naturally aligned access at `at`, up to `most` bytes, that ends by `end`.
fn piece(at: u64, end: u64, most: u64) -> u64 {
    let mut size = most;
    while !at.is_multiple_of(size) || at + size > end {
        size /= 2;
    }
    size
}

fn read_config(
    config: &dyn ConfigSpace,
    at: u64,
    end: u64,
    data: &mut Vec<u8>,
) -> Result<u64, i32> {
    let (size, offset) = (piece(at, end, 4), at as u16);
    match size {
        4 => data.extend(config.read32(offset).map_err(|e| errno(&e))?.to_le_bytes()),
        2 => data.extend(config.read16(offset).map_err(|e| errno(&e))?.to_le_bytes()),
        _ => data.push(config.read8(offset).map_err(|e| errno(&e))?),
    }
    Ok(size)
}

fn write_config(config: &dyn ConfigSpace, offset: u16, data: &[u8]) -> Result<(), i32> {
    let written = match *data {
        [a, b, c, d] => config.write32(offset, u32::from_le_bytes([a, b, c, d])),
        [a, b] => config.write16(offset, u16::from_le_bytes([a, b])),
        [a] => config.write8(offset, a),
        _ => return Err(libc::EINVAL),
    };
    written.map_err(|error| errno(&error))
}

/// Less than a register is read as a part of the register that holds it.
fn read_bar(bar: &dyn Bar, at: u64, end: u64, data: &mut Vec<u8>) -> u64 {
    match piece(at, end, 8) {
        8 => {
            data.extend(bar.read64(at).to_le_bytes());
            8
        }
        4 => {
            data.extend(bar.read32(at).to_le_bytes());
            4
        }
        size => {
            let (word, skip) = (bar.read32(at & !3).to_le_bytes(), (at & 3) as usize);
            data.extend(word.iter().skip(skip).take(size as usize));
            size
        }
    }
}

fn write_bar(bar: &dyn Bar, at: u64, data: &[u8]) {
    match *data {
        [a, b, c, d] => bar.write32(at, u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => bar.write64(at, u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => {}
    }
}

fn errno(error: &PciError) -> i32 {
    error.errno()
}

impl Window {
    /// The file to map it from, whose offsets are those of the BAR.
    fn file(&self) -> Option<OwnedFd> {
        let (file, offset) = self.memory.fd()?;
        let whole = self.offset.checked_add(self.len)? <= self.memory.len() as u64;
        if offset != 0 || !whole {
            return None;
        }
        file.try_clone_to_owned().ok()
    }

    fn area(&self) -> SparseArea {
        SparseArea { offset: self.offset.into(), size: self.len.into() }
    }
}
