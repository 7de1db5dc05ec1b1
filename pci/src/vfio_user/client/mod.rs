//! The client: a function that another process serves.

mod bar;
mod connection;
mod iommu;

use std::os::fd::AsFd;
#[cfg(any(test, feature = "fuzz"))]
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use oxblock_mem::DmaMapper;
use zerocopy::FromBytes;

use super::message::{
    CONFIG_REGION, DEVICE_PCI, DeviceInfo, ERROR_IRQ, IRQ_ACTION_TRIGGER, IRQ_DATA_EVENTFD,
    IrqInfo, IrqSet, MSIX_IRQ, REGIONS, REQUEST_IRQ, RegionAccess, RegionInfo, Request,
};
use crate::{
    Bar, ConfigSpace, Delays, EventFd, Events, Function, Interrupts, PciError, PciErrorKind,
};
use bar::ClientBar;
use connection::Connection;
use iommu::ClientIommu;

/// How long a server may take.
#[derive(Clone, Copy, Debug)]
pub struct VfioUserOptions {
    /// For the connection, and for the reply to what needs no waiting: registers, maps.
    pub reply_timeout: Duration,
    /// For the reply to what waits for I/O to end: a reset, an unmap.
    pub quiet_timeout: Duration,
}

impl Default for VfioUserOptions {
    fn default() -> VfioUserOptions {
        VfioUserOptions {
            reply_timeout: Duration::from_secs(5),
            quiet_timeout: Duration::from_secs(15),
        }
    }
}

/// A function served over vfio-user.
///
/// Every call ends: a server that closes the connection, breaks the protocol or does not reply in
/// time is gone for good. Registers then read as all ones and writes go nowhere, as with a device
/// that was pulled, and every call says so.
pub struct VfioUserFunction {
    connection: Arc<Connection>,
    bars: [Option<Arc<ClientBar>>; 6],
    config: ClientConfig,
    iommu: Arc<ClientIommu>,
    interrupts: ClientInterrupts,
}

impl VfioUserFunction {
    /// Connects to the server at a socket and learns what it serves. `path` may also be a folder
    /// with a socket `cntrl` in it.
    ///
    /// # Errors
    /// Nobody listens there, the server has no room for us, does not answer in time, or what it
    /// serves is no PCI function.
    pub fn connect(
        path: &Path,
        options: VfioUserOptions,
    ) -> Result<Arc<VfioUserFunction>, PciError> {
        VfioUserFunction::learn(Connection::open(&super::socket_path(path), options)?)
    }

    /// Talks to the server at the other end of a socket that does not block.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn over(
        socket: OwnedFd,
        address: &str,
        options: VfioUserOptions,
    ) -> Result<Arc<VfioUserFunction>, PciError> {
        VfioUserFunction::learn(Connection::over(socket, address.to_owned(), options)?)
    }

    /// Asks what the server serves.
    fn learn(connection: Connection) -> Result<Arc<VfioUserFunction>, PciError> {
        let connection = Arc::new(connection);
        let (regions, irqs) = connection.device_info()?;
        let mut bars = [const { None }; 6];
        for (index, bar) in (0..regions.min(REGIONS)).zip(&mut bars) {
            *bar = ClientBar::open(&connection, index)?.map(Arc::new);
        }
        let (config, _) = connection.region_info(CONFIG_REGION)?;
        let len = config.size.get().min(4096) as u16;
        // A server may throw out who asks for kinds that it does not have.
        let count = |index| if index < irqs { connection.irq_count(index) } else { Ok(0) };
        let vectors = count(MSIX_IRQ)?;
        let events = connection.events();
        for (index, event) in [(ERROR_IRQ, &events.error), (REQUEST_IRQ, &events.removal)] {
            if count(index)? > 0 {
                connection.set_irq(index, 0, Some(event))?;
            }
        }
        Ok(Arc::new(VfioUserFunction {
            bars,
            config: ClientConfig { connection: Arc::clone(&connection), len },
            iommu: Arc::new(ClientIommu::new(Arc::clone(&connection))),
            interrupts: ClientInterrupts { connection: Arc::clone(&connection), count: vectors },
            connection,
        }))
    }
}

impl Function for VfioUserFunction {
    fn address(&self) -> String {
        self.connection.address().to_owned()
    }

    fn numa_node(&self) -> Option<u32> {
        None
    }

    fn config(&self) -> &dyn ConfigSpace {
        &self.config
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Bar>, PciError> {
        match self.bars.get(usize::from(index)) {
            Some(Some(bar)) => Ok(Arc::clone(bar) as Arc<dyn Bar>),
            _ => Err(PciError::new(
                PciErrorKind::NotSupported,
                format!("{} has no BAR {index}", self.connection.address()),
            )),
        }
    }

    fn iommu(&self) -> Arc<dyn DmaMapper> {
        Arc::clone(&self.iommu) as Arc<dyn DmaMapper>
    }

    fn interrupts(&self) -> &dyn Interrupts {
        &self.interrupts
    }

    fn events(&self) -> &Events {
        self.connection.events()
    }

    fn release(&self) {
        self.connection.close();
    }

    fn delays(&self) -> Delays {
        Delays::Registers
    }

    fn reset(&self) -> Result<(), PciError> {
        self.connection.call(&Request::Reset, &[]).map(drop)
    }
}

/// What the server is asked while it is being connected.
impl Connection {
    /// How many regions and kinds of interrupts there are.
    fn device_info(&self) -> Result<(u32, u32), PciError> {
        let ask = DeviceInfo { argsz: (size_of::<DeviceInfo>() as u32).into(), ..<_>::default() };
        let reply = self.call(&Request::DeviceInfo(ask), &[])?;
        let Ok((info, _)) = DeviceInfo::read_from_prefix(&reply.body) else {
            return Err(self.rude("information on the device that is too short"));
        };
        let (flags, regions) = (info.flags.get(), info.regions.get());
        if flags & DEVICE_PCI == 0 || regions <= CONFIG_REGION {
            return Err(PciError::new(
                PciErrorKind::NotSupported,
                format!(
                    "{} serves no PCI function (flags {flags:#x}, {regions} regions)",
                    self.address()
                ),
            ));
        }
        Ok((regions, info.irqs.get()))
    }

    /// What a region is, and the whole reply.
    fn region_info(&self, index: u32) -> Result<(RegionInfo, connection::Reply), PciError> {
        let ask = RegionInfo { argsz: 4096.into(), index: index.into(), ..<_>::default() };
        let reply = self.call(&Request::RegionInfo(ask), &[])?;
        match RegionInfo::read_from_prefix(&reply.body) {
            Ok((info, _)) => Ok((info, reply)),
            Err(_) => Err(self.rude("information on a region that is too short")),
        }
    }

    fn irq_count(&self, index: u32) -> Result<u32, PciError> {
        let argsz = (size_of::<IrqInfo>() as u32).into();
        let ask = IrqInfo { argsz, index: index.into(), ..<_>::default() };
        let reply = self.call(&Request::IrqInfo(ask), &[])?;
        match IrqInfo::read_from_prefix(&reply.body) {
            // As many as an MSI-X table has room for.
            Ok((info, _)) => Ok(info.count.get().min(2048)),
            Err(_) => Err(self.rude("information on interrupts that is too short")),
        }
    }

    /// Names the eventfd of a vector, or takes it back.
    fn set_irq(&self, index: u32, vector: u32, event: Option<&EventFd>) -> Result<(), PciError> {
        let set = IrqSet {
            argsz: (size_of::<IrqSet>() as u32).into(),
            flags: (IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER).into(),
            index: index.into(),
            start: vector.into(),
            count: 1.into(),
        };
        // An eventfd that is not there takes back the one that was.
        let fds: Vec<_> = event.iter().map(|event| event.as_fd()).collect();
        self.call(&Request::SetIrqs { set, data: &[] }, &fds).map(drop)
    }

    /// Reads `N` bytes of a region.
    fn read<const N: usize>(&self, region: u32, offset: u64) -> Result<[u8; N], PciError> {
        let count = (N as u32).into();
        let access = RegionAccess { offset: offset.into(), region: region.into(), count };
        let bytes = self.look(&Request::RegionRead(access), |body| {
            let (got, data) = RegionAccess::read_from_prefix(body).ok()?;
            data.try_into().ok().filter(|_| got == access)
        })?;
        bytes.ok_or_else(|| self.rude("a read of something else than was asked for"))
    }

    /// Writes bytes to a region, and returns when the server has.
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), PciError> {
        let count = (data.len() as u32).into();
        let access = RegionAccess { offset: offset.into(), region: region.into(), count };
        self.look(&Request::RegionWrite { access, data }, |_| ())
    }
}

/// Configuration space, by messages.
struct ClientConfig {
    connection: Arc<Connection>,
    len: u16,
}

impl ClientConfig {
    fn read<const N: usize>(&self, offset: u16) -> Result<[u8; N], PciError> {
        self.check(offset, N)?;
        self.connection.read(CONFIG_REGION, offset.into())
    }

    fn write(&self, offset: u16, data: &[u8]) -> Result<(), PciError> {
        self.check(offset, data.len())?;
        self.connection.write(CONFIG_REGION, offset.into(), data)
    }

    fn check(&self, offset: u16, len: usize) -> Result<(), PciError> {
        let at = usize::from(offset);
        if at.is_multiple_of(len) && at + len <= usize::from(self.len) {
            return Ok(());
        }
        Err(PciError::new(
            PciErrorKind::OutOfRange,
            format!(
                "{len} bytes at {offset:#x} of a configuration space of {} bytes: misaligned or \
                 past its end",
                self.len
            ),
        ))
    }
}

impl ConfigSpace for ClientConfig {
    fn len(&self) -> u16 {
        self.len
    }

    fn read8(&self, offset: u16) -> Result<u8, PciError> {
        self.read(offset).map(u8::from_le_bytes)
    }

    fn read16(&self, offset: u16) -> Result<u16, PciError> {
        self.read(offset).map(u16::from_le_bytes)
    }

    fn read32(&self, offset: u16) -> Result<u32, PciError> {
        self.read(offset).map(u32::from_le_bytes)
    }

    fn write8(&self, offset: u16, value: u8) -> Result<(), PciError> {
        self.write(offset, &value.to_le_bytes())
    }

    fn write16(&self, offset: u16, value: u16) -> Result<(), PciError> {
        self.write(offset, &value.to_le_bytes())
    }

    fn write32(&self, offset: u16, value: u32) -> Result<(), PciError> {
        self.write(offset, &value.to_le_bytes())
    }
}

/// MSI-X vectors as eventfds that the server signals.
struct ClientInterrupts {
    connection: Arc<Connection>,
    count: u32,
}

impl ClientInterrupts {
    fn set(&self, vector: u32, event: Option<&EventFd>) -> Result<(), PciError> {
        if vector >= self.count {
            return Err(PciError::new(
                PciErrorKind::OutOfRange,
                format!("interrupt vector {vector} of {}", self.count),
            ));
        }
        self.connection.set_irq(MSIX_IRQ, vector, event)
    }
}

impl Interrupts for ClientInterrupts {
    fn count(&self) -> u32 {
        self.count
    }

    fn enable(&self, vector: u32, event: Arc<EventFd>) -> Result<(), PciError> {
        self.set(vector, Some(&event))
    }

    fn disable(&self, vector: u32) -> Result<(), PciError> {
        self.set(vector, None)
    }

    fn mask(&self, _vector: u32, _masked: bool) -> bool {
        // It would be a message, which blocks; and servers refuse it for MSI-X.
        false
    }
}
