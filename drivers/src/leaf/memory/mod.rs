//! The memory driver: a disk in RAM, shared by all cores.

use std::sync::Arc;

use oxblock_engine::{
    Busy, Core, Driver, Error, ErrorKind, Fault, Limits, LocalFuture, OpFlags, OpKind, Pass, Queue,
    Request, Sleep, Token,
};
use oxblock_mem::{Copies, SharedBytes};

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
    super::check_geometry("memory", options.size, options.block_size)?;
    let size = usize::try_from(options.size)
        .map_err(|_| Error::new(ErrorKind::Invalid, "memory: larger than any address space"))?;
    let bytes = SharedBytes::new(size).map_err(|e| Error::from(e).context("memory"))?;
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

    fn queue<'a>(&'a self, core: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        let queue = MemoryQueue {
            bytes: self.bytes.clone(),
            copies: Copies::new(self.bytes.clone(), core.arena().clone(), NOTED_MAX),
            noted: Vec::with_capacity(NOTED_MAX),
        };
        Box::pin(async move { Ok(Box::new(queue) as Box<dyn Queue>) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// The longest transfer whose copy is put off: beyond that, there is little to gain.
const NOTED_LEN_MAX: u64 = 64 << 10;

/// The most copies that are put off at once.
const NOTED_MAX: usize = 64;

/// Short transfers are noted when they are submitted and made at the kick, so that their
/// memory is on its way meanwhile; everything else is done at once.
struct MemoryQueue {
    bytes: Arc<SharedBytes>,
    copies: Copies,
    /// The requests of the copies noted, in their order.
    noted: Vec<Token>,
}

impl MemoryQueue {
    /// Whether the request was noted for the next kick.
    #[inline]
    fn note(&mut self, request: &Request<'_>) -> bool {
        if request.len > NOTED_LEN_MAX {
            return false;
        }
        let at = request.offset as usize;
        let noted = match request.kind {
            OpKind::Read => self.copies.to(at, request.data),
            OpKind::Write => self.copies.from(at, request.data),
            _ => false,
        };
        if noted {
            self.noted.push(request.token);
        }
        noted
    }

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

    #[inline]
    fn finish(&mut self, pass: &mut Pass) -> usize {
        let count = self.noted.len();
        self.copies.run();
        for token in self.noted.drain(..) {
            pass.done(token, Ok(()));
        }
        count
    }
}

impl Queue for MemoryQueue {
    #[inline]
    fn submit(&mut self, request: &Request<'_>, pass: &mut Pass) -> Result<(), Busy> {
        if !self.note(request) {
            let result = self.run(request);
            pass.done(request.token, result);
        }
        Ok(())
    }

    fn kick(&mut self, pass: &mut Pass) {
        self.finish(pass);
    }

    fn poll(&mut self, pass: &mut Pass) -> usize {
        self.finish(pass)
    }

    fn cancel(&mut self, _: Token) {}

    fn in_flight(&self) -> usize {
        self.noted.len()
    }

    fn sleep(&mut self) -> Sleep<'_> {
        if self.noted.is_empty() { Sleep::Woken } else { Sleep::Never }
    }

    fn quiesce(&mut self, pass: &mut Pass) -> bool {
        self.finish(pass);
        true
    }
}
