//! The data of a command: from PRPs and SGLs in host memory to a scatter list, without a copy.
//!
//! Everything here was written by a host. A list is read once, in pieces, each word once; walks
//! are bounded by the length of the transfer; what the IOMMU does not know is not touched.

use std::cell::RefCell;

use oxblock_mem::{Buf, IoVector};
use oxblock_nvme::command::{PSDT_PRP, PSDT_SGL};
use oxblock_nvme::prp::{self, WalkError};
use oxblock_nvme::sgl::{self, Piece, WalkLimits};
use oxblock_nvme::{Command, Status};
use oxblock_pci::soft::Translator;

/// SGL descriptors that one command may bring.
const DESCRIPTORS_MAX: u32 = 4096;

/// Emptied vectors kept for the next scatter list of several pieces.
const SPARES: usize = 64;

/// How a transport moves the data of a command.
pub(crate) trait DataPath {
    /// Memory of `len` bytes that the data of a command goes to or comes from.
    ///
    /// # Errors
    /// What the command says about its data is wrong; the status tells how.
    fn map(&mut self, command: &Command, len: usize) -> Result<IoVector, Status>;
}

/// Data in host memory, as PCIe has it.
pub(crate) struct HostMemory {
    pub(crate) translator: Translator,
    /// Bytes of a memory page: 2^(12 + CC.MPS).
    page_bytes: u64,
    sgl: bool,
    spares: Vec<Vec<Buf>>,
}

impl HostMemory {
    pub(crate) fn new(translator: Translator, sgl: bool) -> HostMemory {
        HostMemory { translator, page_bytes: 4096, sgl, spares: Vec::with_capacity(SPARES) }
    }

    /// Sets the page size that CC.MPS says.
    pub(crate) fn set_page_bytes(&mut self, page_bytes: u64) {
        self.page_bytes = page_bytes;
    }

    /// Takes back a scatter list that is done with, to use its allocation again.
    #[inline]
    pub(crate) fn recycle(&mut self, data: IoVector) {
        if data.segments().len() > 1 && self.spares.len() < SPARES {
            let mut bufs = data.into_bufs();
            bufs.clear();
            self.spares.push(bufs);
        }
    }

    /// The data of an I/O command.
    ///
    /// # Errors
    /// As [`DataPath::map`].
    pub(crate) fn map_data(&mut self, command: &Command, len: usize) -> Result<IoVector, Status> {
        DataPath::map(self, command, len)
    }

    /// The metadata of an I/O command in a buffer of its own, which is contiguous (MPTR). A list
    /// that describes it is not offered in SGLS.
    ///
    /// # Errors
    /// It is not aligned, or the IOMMU does not know it.
    pub(crate) fn map_metadata(
        &mut self,
        command: &Command,
        len: usize,
    ) -> Result<IoVector, Status> {
        if !matches!(command.psdt(), PSDT_PRP | PSDT_SGL) || !command.mptr().is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        let buf = self.translator.buf(command.mptr(), len);
        buf.map(IoVector::from).map_err(|_| Status::DATA_TRANSFER_ERROR)
    }

    /// The data of an admin command, which PCIe describes by PRPs only (Base 2.0, 4.1).
    ///
    /// # Errors
    /// The PRPs are wrong, or there is an SGL.
    pub(crate) fn map_admin(&mut self, command: &Command, len: usize) -> Result<IoVector, Status> {
        if command.psdt() != PSDT_PRP {
            return Err(Status::INVALID_FIELD);
        }
        self.map_prp(command, len)
    }

    #[inline]
    fn map_prp(&mut self, command: &Command, len: usize) -> Result<IoVector, Status> {
        let prp1 = command.prp1();
        let in_page = self.page_bytes - (prp1 & (self.page_bytes - 1));
        if prp1.is_multiple_of(4) && len as u64 <= in_page {
            let buf = self.translator.buf(prp1, len);
            return buf.map(IoVector::from).map_err(|_| Status::DATA_TRANSFER_ERROR);
        }
        self.walk_prp(command, len)
    }

    fn walk_prp(&mut self, command: &Command, len: usize) -> Result<IoVector, Status> {
        let runs = RefCell::new(Runs::new(&mut self.translator, self.spares.pop()));
        let walked = prp::walk(
            command.prp1(),
            command.prp2(),
            len as u64,
            self.page_bytes,
            |iova, words| runs.borrow_mut().read(iova, words),
            |iova, len| runs.borrow_mut().push(iova, len),
        );
        finish(walked, runs)
    }

    fn map_sgl(&mut self, command: &Command, len: usize) -> Result<IoVector, Status> {
        let runs = RefCell::new(Runs::new(&mut self.translator, self.spares.pop()));
        let limits =
            WalkLimits { descriptors: DESCRIPTORS_MAX, bit_buckets: true, longer_than_data: true };
        let walked = sgl::walk(
            command.sgl1(),
            len as u64,
            limits,
            |iova, words| runs.borrow_mut().read(iova, words),
            |piece| match piece {
                Piece::Data(iova, len) => runs.borrow_mut().push(iova, len),
                // Not offered in SGLS.
                Piece::BitBucket(_) => Err(Status::SGL_TYPE_INVALID),
            },
        );
        finish(walked, runs)
    }
}

impl DataPath for HostMemory {
    #[inline]
    fn map(&mut self, command: &Command, len: usize) -> Result<IoVector, Status> {
        match command.psdt() {
            PSDT_PRP => self.map_prp(command, len),
            PSDT_SGL if self.sgl => self.map_sgl(command, len),
            _ => Err(Status::INVALID_FIELD),
        }
    }
}

fn finish(
    walked: Result<(), WalkError<Status>>,
    runs: RefCell<Runs<'_>>,
) -> Result<IoVector, Status> {
    match walked {
        Ok(()) => runs.into_inner().finish(),
        Err(WalkError::Status(status) | WalkError::Memory(status)) => Err(status),
    }
}

/// Pieces on their way into a scatter list, joined where one continues the other: pages of a
/// buffer that is contiguous for the host become one segment.
struct Runs<'a> {
    translator: &'a mut Translator,
    data: IoVector,
    iova: u64,
    len: u64,
}

impl<'a> Runs<'a> {
    fn new(translator: &'a mut Translator, spare: Option<Vec<Buf>>) -> Runs<'a> {
        Runs { translator, data: spare.map_or_else(IoVector::new, IoVector::from), iova: 0, len: 0 }
    }

    fn push(&mut self, iova: u64, len: u64) -> Result<(), Status> {
        if self.len != 0 && self.iova.checked_add(self.len) == Some(iova) {
            self.len += len;
            return Ok(());
        }
        self.flush()?;
        (self.iova, self.len) = (iova, len);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Status> {
        if self.len == 0 {
            return Ok(());
        }
        let len = usize::try_from(self.len).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let pushed = self.translator.extend(self.iova, len, &mut self.data);
        pushed.map_err(|_| Status::DATA_TRANSFER_ERROR)
    }

    /// Words of a list, each read once.
    fn read(&mut self, iova: u64, words: &mut [u64]) -> Result<(), Status> {
        const WORDS: usize = 64;
        let mut bytes = [0; WORDS * 8];
        for (index, chunk) in words.chunks_mut(WORDS).enumerate() {
            let at = iova.wrapping_add((index * bytes.len()) as u64);
            let bytes = &mut bytes[..chunk.len() * 8];
            let read = self.translator.read(at, bytes);
            read.map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            for (word, bytes) in chunk.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<IoVector, Status> {
        self.flush()?;
        Ok(self.data)
    }
}
