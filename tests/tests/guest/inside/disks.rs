//! The disks of a guest: what the host attaches, and what tests find.

/// An NVMe controller of QEMU.
pub struct Controller {
    /// Where it is on the PCI bus.
    pub address: &'static str,
    /// Its serial number.
    pub serial: &'static str,
    /// Its namespaces.
    pub namespaces: &'static [Namespace],
}

/// One namespace of it; sizes in bytes.
pub struct Namespace {
    /// Its number.
    pub nsid: u32,
    /// The size of a block, without its metadata.
    pub block_size: u32,
    /// The size of a block's metadata.
    pub metadata_size: u32,
    /// The size of its file. Odd numbers of blocks, so that the last one is not like the others.
    pub length: u64,
}

const fn namespace(nsid: u32, block_size: u32, length: u64) -> Namespace {
    Namespace { nsid, block_size, metadata_size: 0, length }
}

/// At the address that hugepages.md has in its examples.
pub const FIRST: Controller = Controller {
    address: "0000:01:00.0",
    serial: "oxblock0",
    namespaces: &[namespace(1, 512, 64 << 20), namespace(2, 4096, 32 << 20)],
};

/// Smaller disks, one that has metadata, and one to format.
pub const SECOND: Controller = Controller {
    address: "0000:02:00.0",
    serial: "oxblock1",
    namespaces: &[
        namespace(1, 512, 10_253 * 512),
        namespace(2, 4096, 1031 * 4096),
        Namespace { nsid: 3, block_size: 4096, metadata_size: 8, length: 4 << 20 },
        namespace(4, 512, 4 << 20),
    ],
};

/// The controller that a test plugs in, when it does.
pub const PLUGGED: Controller = Controller {
    address: "0000:03:00.0",
    serial: "oxblock2",
    namespaces: &[namespace(1, 512, 16 << 20)],
};

/// Its bus, the last.
pub const PLUGGED_BUS: usize = 3;

/// Those that are there all the time, in the order of their buses.
pub const CONTROLLERS: [Controller; 2] = [FIRST, SECOND];

/// What QEMU calls the disk of a namespace of the controller on a bus.
pub fn disk_node(bus: usize, nsid: u32) -> String {
    format!("disk{bus}n{nsid}")
}

/// What QEMU calls the file below a disk.
pub fn file_node(disk: &str) -> String {
    format!("{disk}-file")
}
