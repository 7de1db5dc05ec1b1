//! The memory driver: a disk in RAM, shared by all cores.

use std::sync::Arc;

use oxblock_engine::graph::{DriverInfo, DriverKind, Opening, default_access};
use oxblock_engine::options::OptionSpec;
use oxblock_engine::{
    Body, Busy, Core, Driver, Error, ErrorKind, Fault, Limits, LocalFuture, OpFlags, OpKind, Pass,
    Queue, Request, Sleep, Token,
};
use oxblock_mem::{MemError, SharedBytes};

/// The declaration of `memory`, which QEMU does not have.
pub const MEMORY: DriverInfo = DriverInfo {
    name: "memory",
    kind: DriverKind::Protocol,
    needs_filename: false,
    supports_backing: false,
    protocols: &[],
    parse_filename: None,
    filename: None,
    probe: None,
    claims: None,
    options: &[
        OptionSpec::size("size", "how long it is, bytes").required().strong(),
        OptionSpec::number("block-size", 1, 1 << 20, "granularity of requests, bytes")
            .default("512"),
    ],
    create_options: &[],
    children: &[],
    child_rule: default_access,
    open: |opening| Box::pin(async move { open_node(opening) }),
};

fn open_node(opening: &Opening<'_>) -> Result<Body, Error> {
    let number = |name| opening.settings.number(name);
    let size = number("size").unwrap_or(0);
    let block_size = number("block-size").and_then(|size| size.try_into().ok()).unwrap_or(512);
    open(MemoryOptions { size, block_size }).map(Body::Leaf)
}

/// What disk to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// The size of the disk in bytes, a multiple of `block_size`.
    pub size: u64,
    /// The granularity of requests in bytes.
    pub block_size: u32,
}

impl Default for MemoryOptions {
    /// 64 MiB of 512-byte blocks.
    fn default() -> Self {
        Self { size: 64 << 20, block_size: 512 }
    }
}

/// Makes a disk full of zeroes. It takes memory as it is written, and keeps it until it is
/// discarded.
///
/// # Errors
/// `Invalid` if the block size is 0 or does not divide the size, or the size is 0;
/// `OutOfMemory` if the system cannot map so much.
pub fn open(options: MemoryOptions) -> Result<Box<dyn Driver>, Error> {
    with_bytes(options, SharedBytes::new)
}

/// As [`open`], on small pages: for disks of which little is ever written.
pub(crate) fn open_sparse(options: MemoryOptions) -> Result<Box<dyn Driver>, Error> {
    with_bytes(options, SharedBytes::sparse)
}

fn with_bytes(
    options: MemoryOptions,
    map: impl FnOnce(usize) -> Result<SharedBytes, MemError>,
) -> Result<Box<dyn Driver>, Error> {
    super::check_geometry("memory", options.size, options.block_size)?;
    let size = usize::try_from(options.size)
        .map_err(|_| Error::new(ErrorKind::Invalid, "memory: larger than any address space"))?;
    let bytes = map(size).map_err(|e| Error::from(e).context("memory"))?;
    Ok(Box::new(MemoryDriver { options, bytes: Arc::new(bytes) }))
}

struct MemoryDriver {
    options: MemoryOptions,
    bytes: Arc<SharedBytes>,
}

impl Driver for MemoryDriver {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn limits(&self) -> Limits {
        Limits {
            max_write_zeroes: self.options.size,
            max_discard: self.options.size,
            fua: true,
            compare: true,
            ..Limits::new(self.options.size, self.options.block_size)
        }
    }

    fn queue<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let queue: Box<dyn Queue> = Box::new(MemoryQueue { bytes: self.bytes.clone() });
        Box::pin(async move { Ok(queue) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

struct MemoryQueue {
    bytes: Arc<SharedBytes>,
}

impl MemoryQueue {
    fn run(&self, request: &Request<'_>) -> Result<(), Fault> {
        // In range: the engine lets nothing else through, and the disk is below 2^63 bytes.
        let (at, len) = (request.offset as usize, request.len as usize);
        match request.kind {
            OpKind::Read => self.bytes.copy_to(at, request.data),
            OpKind::Write => self.bytes.copy_from(at, request.data),
            OpKind::WriteZeroes if !request.flags.contains(OpFlags::MAY_UNMAP) => {
                self.bytes.clear(at, len);
            }
            OpKind::WriteZeroes | OpKind::Discard => self.bytes.release(at, len),
            OpKind::Compare => {
                if let Some(differs) = self.bytes.compare(at, request.data) {
                    return Err(Fault::new(ErrorKind::Mismatch, request.offset + differs as u64));
                }
            }
            OpKind::Flush => {}
        }
        Ok(())
    }
}

impl Queue for MemoryQueue {
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        let result = self.run(request);
        pass.done(request.token, result);
        Ok(())
    }

    fn kick(&mut self, _: &mut Pass) {}

    fn poll(&mut self, _: &mut Pass) -> usize {
        0
    }

    fn cancel(&mut self, _: Token) {}

    fn in_flight(&self) -> usize {
        0
    }

    fn sleep(&mut self) -> Sleep<'_> {
        Sleep::Woken
    }

    fn quiesce(&mut self, _: &mut Pass) -> bool {
        true
    }
}
