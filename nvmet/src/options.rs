//! What a controller is made of.

use std::sync::Arc;

use oxblock_engine::{Error, ErrorKind, Node};
use oxblock_pci::soft::SoftIommuOptions;

/// Most entries of an I/O queue (MQES + 1 is a 16-bit field).
const QUEUE_ENTRIES_MAX: u32 = 65_536;

/// Most pairs of I/O queues: keeps the register BAR below a megabyte.
const IO_QUEUES_MAX: u16 = 4096;

/// Largest MDTS: 2^16 pages of 4 KiB hold more than a command of 65,536 blocks can name.
const MDTS_MAX: u8 = 16;

/// What memory in a BAR is a multiple of, and the most that there can be, in bytes.
const PAGE: u64 = 4096;
const BAR_MEMORY_MAX: u64 = 1 << 30;

/// Vendor "ox", a number that no maker of hardware has, and its first device.
const VENDOR: u16 = 0x6f78;
const DEVICE: u16 = 0x0001;

/// The largest Host Memory Buffer that can be asked for, in bytes.
const HOST_MEMORY_MAX: u64 = 256 << 20;

/// A controller and its namespaces.
#[derive(Clone)]
pub struct ControllerOptions {
    /// The namespaces that there are from the beginning, attached, numbered from 1 in this order.
    pub namespaces: Vec<NamespaceOptions>,
    /// Nodes without a namespace: room for those that hosts create. The node of a namespace that a
    /// host deletes is such room from then on, too.
    pub capacity: Vec<Arc<Node>>,
    /// The largest number that a namespace can have, at most 1024, if there are not more from the
    /// beginning.
    pub max_namespaces: u32,
    /// Entries of the largest I/O queue, 2 to 65,536 (CAP.MQES + 1).
    pub max_queue_entries: u32,
    /// Pairs of I/O queues, 1 to 4096.
    pub max_io_queues: u16,
    /// I/O commands in work at a time, so that other controllers of the same core get their share
    /// of its slots; `None` takes what there is.
    pub max_in_work: Option<usize>,
    /// Largest transfer: 2^mdts pages of 4 KiB. Zero tells the host of no limit.
    pub mdts: u8,
    /// Serial number, ASCII, at most 20 characters. Identifiers of the namespaces derive from
    /// it, so it should be unique.
    pub serial: String,
    /// Model, ASCII, at most 40 characters.
    pub model: String,
    /// PCI vendor, in the configuration space and in Identify (VID). With the device of another
    /// maker it makes drivers take the controller for that one.
    pub vendor: u16,
    /// PCI device.
    pub device: u16,
    /// PCI subsystem vendor, in the configuration space and in Identify (SSVID).
    pub subsystem_vendor: u16,
    /// PCI subsystem.
    pub subsystem: u16,
    /// Whether hosts may describe the data of I/O commands by SGL.
    pub sgl: bool,
    /// Whether shadow doorbells (Doorbell Buffer Config) are offered.
    pub shadow_doorbells: bool,
    /// Whether the doorbells are memory that a host in another process can map. They are polled
    /// then, and shadow doorbells, which do the same, are not offered.
    pub mapped_doorbells: bool,
    /// Bytes of a Controller Memory Buffer, a multiple of 4 KiB up to 1 GiB; 0 is none. It lies in
    /// BAR 2, or behind the registers if there is a Persistent Memory Region.
    pub cmb_bytes: u64,
    /// Bytes of a Persistent Memory Region, a power of two from 4 KiB to 1 GiB; 0 is none. It is
    /// BAR 2, and lasts as long as the controller.
    pub pmr_bytes: u64,
    /// Whether there are five power states, two of them not operational, and autonomous
    /// transitions between them (APST); there is one state otherwise.
    pub power_transitions: bool,
    /// Whether there is a Keep Alive Timer. One that expires is fatal.
    pub keep_alive: bool,
    /// Bytes that the controller would like as Host Memory Buffer, a multiple of 8 KiB; half of it
    /// is the least that it takes. 0 is no such buffer.
    pub host_memory_bytes: u64,
    /// Command Retry Delay Times 1 to 3 (CRDT), units of 100 ms.
    pub retry_delays: [u16; 3],
    /// How long the controller pauses (CSTS.PP) when firmware is activated without a reset: units
    /// of 100 ms, of which it reports one more as the longest time (MTFA).
    pub firmware_pause: u16,
    /// CAP.DSTRD: doorbells are 4 << dstrd bytes apart, 0 to 15.
    pub dstrd: u8,
    /// Interrupt vectors, 1 to 2048.
    pub vectors: u16,
    /// Whether a volatile write cache is reported; `None` takes it from the nodes.
    pub volatile_cache: Option<bool>,
    /// The address of the function in messages.
    pub address: String,
    /// What its IOMMU is like.
    pub iommu: SoftIommuOptions,
}

/// One namespace.
#[derive(Clone)]
pub struct NamespaceOptions {
    /// Where its bytes live.
    pub node: Arc<Node>,
    /// Bytes of a logical block: a power of two, 512 to 65,536, a multiple of the node's.
    pub block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether formats with 8 bytes of metadata, with or without protection information, are listed
    /// after the others. The namespace begins without.
    pub metadata: bool,
    /// Optimal I/O boundary in logical blocks; `None` takes it from the node.
    pub noiob: Option<u16>,
}

impl NamespaceOptions {
    /// A writable namespace over a node.
    #[must_use]
    pub fn new(node: Arc<Node>, block_size: u32) -> NamespaceOptions {
        NamespaceOptions { node, block_size, read_only: false, metadata: false, noiob: None }
    }
}

impl Default for ControllerOptions {
    fn default() -> ControllerOptions {
        ControllerOptions {
            namespaces: Vec::new(),
            capacity: Vec::new(),
            max_namespaces: 16,
            max_queue_entries: 1024,
            max_io_queues: 16,
            max_in_work: None,
            mdts: 8,
            serial: "OXBLOCK0".into(),
            model: "oxblock software controller".into(),
            vendor: VENDOR,
            device: DEVICE,
            subsystem_vendor: VENDOR,
            subsystem: DEVICE,
            sgl: true,
            shadow_doorbells: true,
            mapped_doorbells: false,
            cmb_bytes: 0,
            pmr_bytes: 0,
            power_transitions: false,
            keep_alive: false,
            host_memory_bytes: 0,
            retry_delays: [0; 3],
            firmware_pause: 0,
            dstrd: 0,
            vectors: 17,
            volatile_cache: None,
            address: "soft:0".into(),
            iommu: SoftIommuOptions::default(),
        }
    }
}

impl ControllerOptions {
    /// Refuses what cannot be served.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let queues = (2..=QUEUE_ENTRIES_MAX).contains(&self.max_queue_entries);
        require(queues, "max_queue_entries must be 2 to 65,536")?;
        let pairs = (1..=IO_QUEUES_MAX).contains(&self.max_io_queues);
        require(pairs, "max_io_queues must be 1 to 4096")?;
        require(self.mdts <= MDTS_MAX, "mdts must be at most 16")?;
        require(self.dstrd <= 15, "dstrd must be at most 15")?;
        let cmb = self.cmb_bytes.is_multiple_of(PAGE) && self.cmb_bytes <= BAR_MEMORY_MAX;
        require(cmb, "cmb_bytes must be a multiple of 4096, at most 1 GiB")?;
        let pmr = self.pmr_bytes == 0 || self.pmr_bytes.is_power_of_two();
        let pmr = pmr && self.pmr_bytes.is_multiple_of(PAGE) && self.pmr_bytes <= BAR_MEMORY_MAX;
        require(pmr, "pmr_bytes must be a power of two from 4096 to 1 GiB, or 0")?;
        let both = self.cmb_bytes > 0 && self.pmr_bytes > 0;
        require(
            !(both && self.mapped_doorbells),
            "mapped doorbells leave room for cmb_bytes or pmr_bytes, not for both",
        )?;
        let host_memory = self.host_memory_bytes;
        let fits = host_memory.is_multiple_of(2 * PAGE) && host_memory <= HOST_MEMORY_MAX;
        require(fits, "host_memory_bytes must be a multiple of 8192, at most 256 MiB")?;
        require((1..=2048).contains(&self.vectors), "vectors must be 1 to 2048")?;
        require(ascii(&self.serial, 20), "serial must be ASCII, at most 20 characters")?;
        require(ascii(&self.model, 40), "model must be ASCII, at most 40 characters")?;
        require(self.namespaces.len() <= 1024, "at most 1024 namespaces fit a controller")?;
        require(self.max_namespaces <= 1024, "max_namespaces must be at most 1024")?;
        require(self.capacity.len() <= 1024, "at most 1024 nodes of capacity fit a controller")?;
        self.namespaces.iter().try_for_each(NamespaceOptions::check)
    }

    /// Whether the controller has a volatile write cache.
    pub(crate) fn has_volatile_cache(&self) -> bool {
        let of_nodes = || self.nodes().any(|node| node.limits().volatile_cache);
        self.volatile_cache.unwrap_or_else(of_nodes)
    }

    /// The nodes: those of the namespaces, in their order, then the others.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.namespaces.iter().map(|namespace| &namespace.node).chain(&self.capacity)
    }
}

impl NamespaceOptions {
    fn check(&self) -> Result<(), Error> {
        let limits = self.node.limits();
        let size = self.block_size;
        let power = size.is_power_of_two() && (512..=65_536).contains(&size);
        let fits = power && limits.block_size != 0 && size.is_multiple_of(limits.block_size);
        if fits {
            return Ok(());
        }
        let text = format!(
            "a namespace of {size} byte blocks does not fit a node of {} byte blocks; \
             take a power of two from 512 to 65,536 that is a multiple",
            limits.block_size
        );
        Err(Error::new(ErrorKind::Invalid, text).node(self.node.name()))
    }
}

fn require(holds: bool, text: &'static str) -> Result<(), Error> {
    if holds {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, text))
}

fn ascii(text: &str, most: usize) -> bool {
    text.len() <= most && text.bytes().all(|b| (0x20..0x7f).contains(&b))
}
