//! Messages as bytes (vfio-user protocol 0.1; names as in its specification). Pure: bytes in,
//! values out, and back.
//!
//! Everything is in the byte order of the host, since both ends are on one. A message is a
//! [`Header`] and a body; what a body means depends on the command.

use std::mem::size_of;

use zerocopy::byteorder::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a header.
pub const HEADER_LEN: usize = size_of::<Header>();

/// The most data of a region read or write that is agreed on without words (bytes).
pub const DATA_MAX: u32 = 1 << 20;

/// The longest body: a region write of [`DATA_MAX`].
pub const BODY_MAX: usize = size_of::<RegionAccess>() + DATA_MAX as usize;

/// The longest version data that is looked at.
const VERSION_DATA_MAX: usize = 4096;

/// Regions of a PCI device: six BARs, ROM, configuration space, VGA (`VFIO_PCI_NUM_REGIONS`).
pub const REGIONS: u32 = 9;
/// The region that is configuration space.
pub const CONFIG_REGION: u32 = 7;
/// Kinds of interrupts of a PCI device: INTx, MSI, MSI-X, error, request (`VFIO_PCI_NUM_IRQS`).
pub const IRQS: u32 = 5;
/// The kind that is MSI-X.
pub const MSIX_IRQ: u32 = 2;
/// The kind that tells of an error.
pub const ERROR_IRQ: u32 = 3;
/// The kind that asks to let go of the device.
pub const REQUEST_IRQ: u32 = 4;

/// Numbers of commands.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const DEVICE_GET_INFO: u16 = 4;
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub const DEVICE_SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DEVICE_RESET: u16 = 13;
}

/// Bits of the header's flags.
pub mod header_flags {
    /// The bits that tell a command (0) from a reply (1).
    pub const TYPE: u32 = 0xf;
    /// A reply.
    pub const REPLY: u32 = 1;
    /// A command that wants no reply.
    pub const NO_REPLY: u32 = 1 << 4;
    /// A reply that tells of an error.
    pub const ERROR: u32 = 1 << 5;
}

/// DMA_MAP: memory may be read by the device.
pub const DMA_READ: u32 = 1;
/// DMA_MAP: memory may be written by the device.
pub const DMA_WRITE: u32 = 1 << 1;
/// DMA_UNMAP: all there is, with address and size 0 (`VFIO_DMA_UNMAP_FLAG_ALL`).
pub const UNMAP_ALL: u32 = 1 << 1;
/// DEVICE_GET_INFO: the device can be reset.
pub const DEVICE_RESETS: u32 = 1;
/// DEVICE_GET_INFO: it is a PCI device.
pub const DEVICE_PCI: u32 = 1 << 1;
/// DEVICE_GET_REGION_INFO: the region can be read.
pub const REGION_READS: u32 = 1;
/// DEVICE_GET_REGION_INFO: the region can be written.
pub const REGION_WRITES: u32 = 1 << 1;
/// DEVICE_GET_REGION_INFO: some of the region can be mapped.
pub const REGION_MMAPS: u32 = 1 << 2;
/// DEVICE_GET_REGION_INFO: capabilities follow.
pub const REGION_CAPS: u32 = 1 << 3;
/// The capability that lists what can be mapped (`VFIO_REGION_INFO_CAP_SPARSE_MMAP`).
pub const CAP_SPARSE_MMAP: u16 = 1;
/// DEVICE_GET_IRQ_INFO: signalled by eventfd.
pub const IRQ_EVENTFD: u32 = 1;
/// DEVICE_GET_IRQ_INFO: vectors are enabled as a set.
pub const IRQ_NORESIZE: u32 = 1 << 3;
/// DEVICE_SET_IRQS: no data.
pub const IRQ_DATA_NONE: u32 = 1;
/// DEVICE_SET_IRQS: a byte for each vector, 1 where the action is meant.
pub const IRQ_DATA_BOOL: u32 = 1 << 1;
/// DEVICE_SET_IRQS: an eventfd for each vector, beside the message.
pub const IRQ_DATA_EVENTFD: u32 = 1 << 2;
/// DEVICE_SET_IRQS: the action is to signal.
pub const IRQ_ACTION_TRIGGER: u32 = 1 << 5;

/// What every message begins with.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// The sender's number for a command, the same in its reply.
    pub id: U16,
    /// One of [`command`].
    pub command: U16,
    /// Bytes of the whole message.
    pub size: U32,
    /// Bits of [`header_flags`].
    pub flags: U32,
    /// With [`header_flags::ERROR`]: an errno, or 0.
    pub error: U32,
}

impl Header {
    /// The header of a command.
    #[must_use]
    pub fn command(id: u16, command: u16, body_len: usize) -> Header {
        Header { id: id.into(), command: command.into(), ..Header::default() }.sized(body_len)
    }

    /// The header of the reply to this command.
    #[must_use]
    pub fn reply(&self, body_len: usize) -> Header {
        let flags = header_flags::REPLY.into();
        Header { id: self.id, command: self.command, flags, ..Header::default() }.sized(body_len)
    }

    /// The header that is the whole reply to this command, if it failed.
    #[must_use]
    pub fn error(&self, errno: i32) -> Header {
        let flags = (header_flags::REPLY | header_flags::ERROR).into();
        Header { flags, error: errno.unsigned_abs().into(), ..self.reply(0) }
    }

    /// Whether it is a reply.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.flags.get() & header_flags::TYPE == header_flags::REPLY
    }

    /// Whether it is a command.
    #[must_use]
    pub fn is_command(&self) -> bool {
        self.flags.get() & header_flags::TYPE == 0
    }

    /// Whether the sender of this command waits for a reply.
    #[must_use]
    pub fn wants_reply(&self) -> bool {
        self.flags.get() & header_flags::NO_REPLY == 0
    }

    /// Bytes that follow; `None` if the size is impossible.
    #[must_use]
    pub fn body_len(&self) -> Option<usize> {
        let len = usize::try_from(self.size.get()).ok()?.checked_sub(HEADER_LEN)?;
        (len <= BODY_MAX).then_some(len)
    }

    fn sized(self, body_len: usize) -> Header {
        let size = u32::try_from(HEADER_LEN + body_len).unwrap_or(u32::MAX);
        Header { size: size.into(), ..self }
    }
}

macro_rules! body {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

body! {
    /// VERSION, both ways; capabilities as JSON follow, with a NUL.
    Version {
        /// Must be the same on both sides.
        major: U16,
        /// The lower of the two holds.
        minor: U16,
    }
}
body! {
    /// DMA_MAP.
    DmaMap {
        /// Bytes of this.
        argsz: U32,
        /// [`DMA_READ`] and [`DMA_WRITE`].
        flags: U32,
        /// Where in the file that comes along.
        offset: U64,
        /// The address for the device.
        address: U64,
        /// Bytes.
        size: U64,
    }
}
body! {
    /// DMA_UNMAP, both ways.
    DmaUnmap {
        /// Bytes of the longest reply.
        argsz: U32,
        /// [`UNMAP_ALL`] or nothing.
        flags: U32,
        /// As it was mapped.
        address: U64,
        /// As it was mapped.
        size: U64,
    }
}
body! {
    /// DEVICE_GET_INFO, both ways.
    DeviceInfo {
        /// Bytes of the longest reply; of the whole reply.
        argsz: U32,
        /// [`DEVICE_RESETS`] and [`DEVICE_PCI`].
        flags: U32,
        /// How many regions.
        regions: U32,
        /// How many kinds of interrupts.
        irqs: U32,
    }
}
body! {
    /// DEVICE_GET_REGION_INFO, both ways.
    RegionInfo {
        /// Bytes of the longest reply; of the whole reply, capabilities included.
        argsz: U32,
        /// [`REGION_READS`] and so on.
        flags: U32,
        /// Which region.
        index: U32,
        /// Where the first capability begins, from the beginning of this; 0 if there is none.
        cap_offset: U32,
        /// Bytes of the region.
        size: U64,
        /// Where the region begins in the file that comes along.
        offset: U64,
    }
}
body! {
    /// What a capability of a region begins with.
    CapHeader {
        /// What it is.
        id: U16,
        /// 1.
        version: U16,
        /// Where the next begins, as [`RegionInfo::cap_offset`].
        next: U32,
    }
}
body! {
    /// The capability [`CAP_SPARSE_MMAP`], after its header; [`SparseArea`]s follow.
    SparseMmap {
        /// How many areas.
        areas: U32,
        /// 0.
        reserved: U32,
    }
}
body! {
    /// A part of a region that can be mapped.
    SparseArea {
        /// Where it begins in the region.
        offset: U64,
        /// Bytes.
        size: U64,
    }
}
body! {
    /// DEVICE_GET_IRQ_INFO, both ways.
    IrqInfo {
        /// Bytes of the longest reply; of the whole reply.
        argsz: U32,
        /// [`IRQ_EVENTFD`] and [`IRQ_NORESIZE`].
        flags: U32,
        /// Which kind.
        index: U32,
        /// How many vectors of it.
        count: U32,
    }
}
body! {
    /// DEVICE_SET_IRQS; a byte for each vector may follow.
    IrqSet {
        /// Bytes of this and what follows.
        argsz: U32,
        /// One `IRQ_DATA_` bit and one action.
        flags: U32,
        /// Which kind.
        index: U32,
        /// The first vector.
        start: U32,
        /// How many.
        count: U32,
    }
}
body! {
    /// REGION_READ and REGION_WRITE, both ways; data follows where there is some.
    RegionAccess {
        /// Where in the region.
        offset: U64,
        /// Which region.
        region: U32,
        /// Bytes of data.
        count: U32,
    }
}

/// A command of a client, checked as far as the message alone tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum Request<'a> {
    Version { version: Version, data: &'a [u8] },
    DmaMap(DmaMap),
    DmaUnmap(DmaUnmap),
    DeviceInfo(DeviceInfo),
    RegionInfo(RegionInfo),
    IrqInfo(IrqInfo),
    SetIrqs { set: IrqSet, data: &'a [u8] },
    RegionRead(RegionAccess),
    RegionWrite { access: RegionAccess, data: &'a [u8] },
    Reset,
}

impl<'a> Request<'a> {
    /// Reads the body of a command.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a command that we do not have; `EINVAL` for a body that is too short or
    /// too long for it, or that says of itself that it is.
    pub fn decode(command: u16, body: &'a [u8]) -> Result<Request<'a>, i32> {
        match command {
            command::VERSION => {
                let (version, data) = prefix::<Version>(body)?;
                require(data.len() <= VERSION_DATA_MAX)?;
                Ok(Request::Version { version, data })
            }
            command::DMA_MAP => {
                let map = whole::<DmaMap>(body)?;
                require(map.argsz.get() as usize >= size_of::<DmaMap>())?;
                Ok(Request::DmaMap(map))
            }
            command::DMA_UNMAP => {
                let unmap = whole::<DmaUnmap>(body)?;
                require(unmap.argsz.get() as usize >= size_of::<DmaUnmap>())?;
                Ok(Request::DmaUnmap(unmap))
            }
            command::DEVICE_GET_INFO => {
                let info = whole::<DeviceInfo>(body)?;
                require(info.argsz.get() as usize >= size_of::<DeviceInfo>())?;
                Ok(Request::DeviceInfo(info))
            }
            command::DEVICE_GET_REGION_INFO => {
                let info = whole::<RegionInfo>(body)?;
                require(info.argsz.get() as usize >= size_of::<RegionInfo>())?;
                Ok(Request::RegionInfo(info))
            }
            command::DEVICE_GET_IRQ_INFO => {
                let info = whole::<IrqInfo>(body)?;
                require(info.argsz.get() as usize >= size_of::<IrqInfo>())?;
                Ok(Request::IrqInfo(info))
            }
            command::DEVICE_SET_IRQS => {
                let (set, data) = prefix::<IrqSet>(body)?;
                require(set.argsz.get() as usize >= size_of::<IrqSet>())?;
                let bools = set.flags.get() & IRQ_DATA_BOOL != 0;
                let len = if bools { set.count.get() as usize } else { 0 };
                // Some clients send an entry for each eventfd along, as ioctl has it.
                require(data.len() == len || (!bools && data.len() <= 4 * 2048))?;
                Ok(Request::SetIrqs { set, data })
            }
            command::REGION_READ => {
                let access = whole::<RegionAccess>(body)?;
                require(access.count.get() <= DATA_MAX)?;
                Ok(Request::RegionRead(access))
            }
            command::REGION_WRITE => {
                let (access, data) = prefix::<RegionAccess>(body)?;
                require(access.count.get() as usize == data.len())?;
                Ok(Request::RegionWrite { access, data })
            }
            command::DEVICE_RESET => {
                require(body.is_empty())?;
                Ok(Request::Reset)
            }
            _ => Err(libc::EOPNOTSUPP),
        }
    }

    /// The number of the command.
    #[must_use]
    pub fn command(&self) -> u16 {
        match self {
            Request::Version { .. } => command::VERSION,
            Request::DmaMap(_) => command::DMA_MAP,
            Request::DmaUnmap(_) => command::DMA_UNMAP,
            Request::DeviceInfo(_) => command::DEVICE_GET_INFO,
            Request::RegionInfo(_) => command::DEVICE_GET_REGION_INFO,
            Request::IrqInfo(_) => command::DEVICE_GET_IRQ_INFO,
            Request::SetIrqs { .. } => command::DEVICE_SET_IRQS,
            Request::RegionRead(_) => command::REGION_READ,
            Request::RegionWrite { .. } => command::REGION_WRITE,
            Request::Reset => command::DEVICE_RESET,
        }
    }

    /// The whole message.
    #[must_use]
    pub fn encode(&self, id: u16) -> Vec<u8> {
        let mut message = Vec::new();
        self.encode_into(id, &mut message);
        message
    }

    /// Puts the whole message in the place of what `message` holds.
    pub fn encode_into(&self, id: u16, message: &mut Vec<u8>) {
        let (fixed, data): (&[u8], &[u8]) = match self {
            Request::Version { version, data } => (version.as_bytes(), data),
            Request::DmaMap(map) => (map.as_bytes(), &[]),
            Request::DmaUnmap(unmap) => (unmap.as_bytes(), &[]),
            Request::DeviceInfo(info) => (info.as_bytes(), &[]),
            Request::RegionInfo(info) => (info.as_bytes(), &[]),
            Request::IrqInfo(info) => (info.as_bytes(), &[]),
            Request::SetIrqs { set, data } => (set.as_bytes(), data),
            Request::RegionRead(access) => (access.as_bytes(), &[]),
            Request::RegionWrite { access, data } => (access.as_bytes(), data),
            Request::Reset => (&[], &[]),
        };
        let header = Header::command(id, self.command(), fixed.len() + data.len());
        message.clear();
        message.extend_from_slice(header.as_bytes());
        message.extend_from_slice(fixed);
        message.extend_from_slice(data);
    }
}

/// The body of a reply to DEVICE_GET_REGION_INFO, with the areas that can be mapped.
#[must_use]
pub fn encode_region_info(mut info: RegionInfo, areas: &[SparseArea]) -> Vec<u8> {
    if areas.is_empty() {
        return info.as_bytes().to_vec();
    }
    let cap = CapHeader { id: CAP_SPARSE_MMAP.into(), version: 1.into(), next: 0.into() };
    let sparse = SparseMmap { areas: (areas.len() as u32).into(), reserved: 0.into() };
    let len = size_of::<RegionInfo>() + size_of_val(&cap) + size_of_val(&sparse);
    info.argsz = ((len + size_of_val(areas)) as u32).into();
    info.flags = (info.flags.get() | REGION_CAPS).into();
    info.cap_offset = (size_of::<RegionInfo>() as u32).into();
    [info.as_bytes(), cap.as_bytes(), sparse.as_bytes(), areas.as_bytes()].concat()
}

/// The areas that the body of a reply to DEVICE_GET_REGION_INFO lists. A list that runs in a
/// circle, out of the body or over [`AREAS_MAX`] is no list.
///
/// # Errors
/// `EINVAL` for such a list.
pub fn decode_sparse_areas(body: &[u8]) -> Result<Vec<SparseArea>, i32> {
    let (info, _) = prefix::<RegionInfo>(body)?;
    let mut found = Vec::new();
    let mut at = info.cap_offset.get() as usize;
    if info.flags.get() & REGION_CAPS == 0 {
        return Ok(found);
    }
    let mut least = size_of::<RegionInfo>();
    while at != 0 {
        require(at >= least)?;
        let (cap, rest) = prefix::<CapHeader>(body.get(at..).unwrap_or_default())?;
        if cap.id.get() == CAP_SPARSE_MMAP {
            let (sparse, rest) = prefix::<SparseMmap>(rest)?;
            let count = sparse.areas.get() as usize;
            require(count <= AREAS_MAX && found.len() + count <= AREAS_MAX)?;
            let areas = <[SparseArea]>::ref_from_prefix_with_elems(rest, count);
            found.extend_from_slice(areas.map_err(|_| libc::EINVAL)?.0);
        }
        // Each capability begins after the one before, so the walk ends.
        least = at + size_of::<CapHeader>();
        at = cap.next.get() as usize;
    }
    Ok(found)
}

/// Most areas of a region that are looked at.
pub const AREAS_MAX: usize = 64;

fn prefix<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    body: &[u8],
) -> Result<(T, &[u8]), i32> {
    T::read_from_prefix(body).map_err(|_| libc::EINVAL)
}

fn whole<T: FromBytes + KnownLayout + Immutable + Unaligned>(body: &[u8]) -> Result<T, i32> {
    T::read_from_bytes(body).map_err(|_| libc::EINVAL)
}

fn require(holds: bool) -> Result<(), i32> {
    if holds { Ok(()) } else { Err(libc::EINVAL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_specification() {
        assert_eq!((HEADER_LEN, size_of::<Version>()), (16, 4));
        assert_eq!((size_of::<DmaMap>(), size_of::<DmaUnmap>()), (32, 24));
        assert_eq!((size_of::<DeviceInfo>(), size_of::<RegionInfo>()), (16, 32));
        assert_eq!((size_of::<IrqInfo>(), size_of::<IrqSet>()), (16, 20));
        assert_eq!((size_of::<RegionAccess>(), size_of::<SparseArea>()), (16, 16));
    }

    #[test]
    fn requests_survive_the_wire() {
        let access = RegionAccess { offset: 0x14.into(), region: 0.into(), count: 4.into() };
        let requests = [
            Request::Version { version: Version::default(), data: b"{}\0" },
            Request::DmaMap(DmaMap { argsz: 32.into(), size: 4096.into(), ..DmaMap::default() }),
            Request::DmaUnmap(DmaUnmap { argsz: 24.into(), ..DmaUnmap::default() }),
            Request::DeviceInfo(DeviceInfo { argsz: 16.into(), ..DeviceInfo::default() }),
            Request::RegionInfo(RegionInfo { argsz: 4096.into(), ..RegionInfo::default() }),
            Request::IrqInfo(IrqInfo { argsz: 16.into(), ..IrqInfo::default() }),
            Request::SetIrqs {
                set: IrqSet {
                    argsz: 22.into(),
                    flags: IRQ_DATA_BOOL.into(),
                    count: 2.into(),
                    ..IrqSet::default()
                },
                data: &[1, 0],
            },
            Request::RegionRead(access),
            Request::RegionWrite { access, data: &[1, 2, 3, 4] },
            Request::Reset,
        ];
        for request in requests {
            let bytes = request.encode(7);
            let (header, body) = prefix::<Header>(&bytes).unwrap();
            assert_eq!((header.id.get(), header.body_len()), (7, Some(body.len())));
            assert!(header.is_command() && header.wants_reply());
            assert_eq!(Request::decode(header.command.get(), body), Ok(request));
            // A byte less or more is another message.
            if let Some((_, short)) = body.split_last() {
                let other = Request::decode(header.command.get(), short);
                assert!(other.is_err() || matches!(other, Ok(Request::Version { .. })));
            }
        }
    }

    #[test]
    fn impossible_sizes_are_seen() {
        for size in [0, 15, (HEADER_LEN + BODY_MAX + 1) as u32, u32::MAX] {
            let header = Header { size: size.into(), ..Header::default() };
            assert_eq!(header.body_len(), None, "{size}");
        }
        let access = |count: u32| RegionAccess { count: count.into(), ..RegionAccess::default() };
        let decode = |command, bytes: &[u8]| Request::decode(command, bytes).unwrap_err();
        assert_eq!(decode(command::REGION_READ, access(DATA_MAX + 1).as_bytes()), libc::EINVAL);
        assert_eq!(decode(command::REGION_WRITE, access(1).as_bytes()), libc::EINVAL);
        assert_eq!(decode(99, &[]), libc::EOPNOTSUPP);
    }

    #[test]
    fn areas_survive_the_wire() {
        let areas = [SparseArea { offset: 0x1000.into(), size: 0x1000.into() }; 2];
        let body = encode_region_info(RegionInfo::default(), &areas);
        assert_eq!(decode_sparse_areas(&body).unwrap(), areas);
        let (info, _) = prefix::<RegionInfo>(&body).unwrap();
        assert_eq!(info.argsz.get() as usize, body.len());
        for cut in 33..body.len() {
            assert!(decode_sparse_areas(&body[..cut]).is_err(), "{cut}");
        }
        assert_eq!(decode_sparse_areas(&encode_region_info(info, &[])), Err(libc::EINVAL));
    }

    /// A list of capabilities that points at itself kept a client busy for ever.
    #[test]
    fn a_circle_of_capabilities_ends() {
        let areas = [SparseArea::default()];
        let mut body = encode_region_info(RegionInfo::default(), &areas);
        for next in [32u32, 8, 36, u32::MAX] {
            body[36..40].copy_from_slice(&next.to_ne_bytes());
            assert_eq!(decode_sparse_areas(&body), Err(libc::EINVAL), "{next}");
        }
        body[40..44].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(decode_sparse_areas(&body), Err(libc::EINVAL));
    }
}
