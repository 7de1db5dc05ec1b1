//! Submission queue entry (Base 2.0, 4.1; NVM Command Set 1.0, 3): 64 bytes.

use crate::opcode::{admin, nvm};
use crate::sgl::Descriptor;

/// Data pointer of a command: dwords 6 to 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPointer {
    /// No data.
    None,
    /// PSDT 00b: PRP entries 1 and 2.
    Prp(u64, u64),
    /// PSDT 01b: one SGL descriptor; the metadata pointer is an address.
    Sgl(Descriptor),
}

/// FUSE 00b: a normal command.
pub const FUSE_NONE: u8 = 0;
/// FUSE 01b: the first command of a fused pair.
pub const FUSE_FIRST: u8 = 1;
/// FUSE 10b: the second command of a fused pair.
pub const FUSE_SECOND: u8 = 2;
/// PSDT 00b: PRPs.
pub const PSDT_PRP: u8 = 0;
/// PSDT 01b: SGLs, the metadata pointer is the address of a contiguous buffer.
pub const PSDT_SGL: u8 = 1;
/// PSDT 10b: SGLs, the metadata pointer is the address of an SGL segment.
pub const PSDT_SGL_METADATA: u8 = 2;

/// Dword 12 of read, write, compare, write zeroes: Limited Retry.
pub const LR: u32 = 1 << 31;
/// Dword 12 of read, write, compare, write zeroes: Force Unit Access.
pub const FUA: u32 = 1 << 30;
/// Dword 12 of write zeroes: Deallocate.
pub const DEAC: u32 = 1 << 25;
/// Dword 12: protection information fields.
pub const PRINFO: u32 = 0xf << 26;
/// Dword 12, PRINFO: Protection Information Action, the controller inserts and strips it.
pub const PRACT: u32 = 1 << 29;
/// Dword 12, PRINFO: check the guard.
pub const PRCHK_GUARD: u32 = 1 << 28;
/// Dword 12, PRINFO: check the application tag.
pub const PRCHK_APP: u32 = 1 << 27;
/// Dword 12, PRINFO: check the reference tag, which begins as dword 14.
pub const PRCHK_REF: u32 = 1 << 26;
/// Dword 12: Storage Tag Check.
pub const STC: u32 = 1 << 24;

/// Dword 11 of Create I/O Submission Queue: medium priority, where arbitration has any.
pub const QPRIO_MEDIUM: u32 = 2 << 1;

/// A submission queue entry as eight 64-bit words: word n holds dwords 2n+1 and 2n.
///
/// Words, because a ring moves words: a command is built in registers and stored once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Command(pub [u64; 8]);

impl Command {
    /// Bytes of an entry.
    pub const BYTES: usize = 64;

    /// An opcode for a namespace; everything else is zero.
    #[inline]
    pub const fn new(opcode: u8, nsid: u32) -> Self {
        Self([opcode as u64 | (nsid as u64) << 32, 0, 0, 0, 0, 0, 0, 0])
    }
    /// From 64 bytes.
    pub fn from_bytes(bytes: &[u8; 64]) -> Self {
        let mut words = [0; 8];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
        }
        Self(words)
    }
    /// As 64 bytes.
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        for (word, chunk) in self.0.iter().zip(bytes.chunks_exact_mut(8)) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Opcode.
    pub const fn opcode(&self) -> u8 {
        self.0[0] as u8
    }
    /// Fused operation, 2 bits.
    pub const fn fuse(&self) -> u8 {
        (self.0[0] >> 8) as u8 & 3
    }
    /// PRP or SGL for Data Transfer, 2 bits.
    pub const fn psdt(&self) -> u8 {
        (self.0[0] >> 14) as u8 & 3
    }
    /// Command Identifier.
    pub const fn cid(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }
    /// Namespace Identifier.
    pub const fn nsid(&self) -> u32 {
        (self.0[0] >> 32) as u32
    }
    /// Command dword 2.
    pub const fn cdw2(&self) -> u32 {
        self.0[1] as u32
    }
    /// Command dword 3.
    pub const fn cdw3(&self) -> u32 {
        (self.0[1] >> 32) as u32
    }
    /// Metadata Pointer.
    pub const fn mptr(&self) -> u64 {
        self.0[2]
    }
    /// PRP Entry 1.
    pub const fn prp1(&self) -> u64 {
        self.0[3]
    }
    /// PRP Entry 2.
    pub const fn prp2(&self) -> u64 {
        self.0[4]
    }
    /// SGL Entry 1.
    pub const fn sgl1(&self) -> Descriptor {
        Descriptor([self.0[3], self.0[4]])
    }
    /// Command dword 10.
    pub const fn cdw10(&self) -> u32 {
        self.0[5] as u32
    }
    /// Command dword 11.
    pub const fn cdw11(&self) -> u32 {
        (self.0[5] >> 32) as u32
    }
    /// Command dword 12.
    pub const fn cdw12(&self) -> u32 {
        self.0[6] as u32
    }
    /// Command dword 13.
    pub const fn cdw13(&self) -> u32 {
        (self.0[6] >> 32) as u32
    }
    /// Command dword 14.
    pub const fn cdw14(&self) -> u32 {
        self.0[7] as u32
    }
    /// Command dword 15.
    pub const fn cdw15(&self) -> u32 {
        (self.0[7] >> 32) as u32
    }
    /// Starting LBA of an NVM command: dwords 11:10.
    pub const fn slba(&self) -> u64 {
        self.0[5]
    }
    /// Number of logical blocks of an NVM command, 1-based here, 0-based on the wire.
    pub const fn blocks(&self) -> u32 {
        (self.0[6] & 0xffff) as u32 + 1
    }

    /// With a command identifier.
    #[inline]
    pub const fn with_cid(mut self, cid: u16) -> Self {
        self.0[0] = self.0[0] & !(0xffff << 16) | (cid as u64) << 16;
        self
    }
    /// With a fused operation.
    pub const fn with_fuse(mut self, fuse: u8) -> Self {
        self.0[0] = self.0[0] & !(3 << 8) | (fuse as u64 & 3) << 8;
        self
    }
    /// With a data pointer and the PSDT that names its kind.
    #[inline]
    pub const fn with_data(mut self, data: DataPointer) -> Self {
        let (psdt, low, high) = match data {
            DataPointer::None => (PSDT_PRP, 0, 0),
            DataPointer::Prp(prp1, prp2) => (PSDT_PRP, prp1, prp2),
            DataPointer::Sgl(descriptor) => (PSDT_SGL, descriptor.0[0], descriptor.0[1]),
        };
        self.0[0] = self.0[0] & !(3 << 14) | (psdt as u64) << 14;
        self.0[3] = low;
        self.0[4] = high;
        self
    }
    /// With PRP entries 1 and 2.
    #[inline]
    pub const fn with_prp(self, prp1: u64, prp2: u64) -> Self {
        self.with_data(DataPointer::Prp(prp1, prp2))
    }
    /// With a metadata pointer.
    pub const fn with_mptr(mut self, mptr: u64) -> Self {
        self.0[2] = mptr;
        self
    }
    /// With dwords 10 and 11.
    pub const fn with_cdw10_11(mut self, cdw10: u32, cdw11: u32) -> Self {
        self.0[5] = cdw10 as u64 | (cdw11 as u64) << 32;
        self
    }
    /// With dwords 12 and 13.
    pub const fn with_cdw12_13(mut self, cdw12: u32, cdw13: u32) -> Self {
        self.0[6] = cdw12 as u64 | (cdw13 as u64) << 32;
        self
    }
    /// With dwords 14 and 15.
    pub const fn with_cdw14_15(mut self, cdw14: u32, cdw15: u32) -> Self {
        self.0[7] = cdw14 as u64 | (cdw15 as u64) << 32;
        self
    }
    /// With the initial reference tag of an NVM command (dword 14), 32 bits; dword 15 is zero. A
    /// whole word, since two halves would hold up the copy into the ring.
    #[inline]
    pub const fn with_reference_tag(mut self, tag: u64) -> Self {
        self.0[7] = tag & 0xffff_ffff;
        self
    }
    /// With a starting LBA.
    #[inline]
    pub const fn with_slba(mut self, slba: u64) -> Self {
        self.0[5] = slba;
        self
    }
}

/// Constructors of I/O commands. `blocks` is 1-based, 1 to 65,536; more is cut to 16 bits.
impl Command {
    /// Read, write, compare, verify, write zeroes: `cdw12` holds flags ([`FUA`], [`DEAC`], [`LR`]).
    #[inline]
    pub const fn nvm(opcode: u8, nsid: u32, slba: u64, blocks: u32, cdw12: u32) -> Self {
        let nlb = blocks.wrapping_sub(1) & 0xffff;
        let mut command = Self::new(opcode, nsid);
        command.0[5] = slba;
        command.0[6] = (nlb | cdw12 & !0xffff) as u64;
        command
    }
    /// Read.
    pub const fn read(nsid: u32, slba: u64, blocks: u32) -> Self {
        Self::nvm(nvm::READ, nsid, slba, blocks, 0)
    }
    /// Write; `cdw12` may hold [`FUA`].
    pub const fn write(nsid: u32, slba: u64, blocks: u32, cdw12: u32) -> Self {
        Self::nvm(nvm::WRITE, nsid, slba, blocks, cdw12)
    }
    /// Compare.
    pub const fn compare(nsid: u32, slba: u64, blocks: u32) -> Self {
        Self::nvm(nvm::COMPARE, nsid, slba, blocks, 0)
    }
    /// Verify.
    pub const fn verify(nsid: u32, slba: u64, blocks: u32) -> Self {
        Self::nvm(nvm::VERIFY, nsid, slba, blocks, 0)
    }
    /// Write Zeroes; `cdw12` may hold [`DEAC`] and [`FUA`].
    pub const fn write_zeroes(nsid: u32, slba: u64, blocks: u32, cdw12: u32) -> Self {
        Self::nvm(nvm::WRITE_ZEROES, nsid, slba, blocks, cdw12)
    }
    /// Flush.
    pub const fn flush(nsid: u32) -> Self {
        Self::new(nvm::FLUSH, nsid)
    }
    /// Dataset Management: `ranges` is 1-based, 1 to 256; `attributes` as in [`crate::dsm`].
    pub const fn dataset_management(nsid: u32, ranges: u32, attributes: u32) -> Self {
        Self::new(nvm::DATASET_MANAGEMENT, nsid)
            .with_cdw10_11(ranges.wrapping_sub(1) & 0xff, attributes)
    }
    /// Copy: `ranges` is 1-based, 1 to 256, of descriptor format `format`.
    pub const fn copy(nsid: u32, sdlba: u64, ranges: u32, format: u8) -> Self {
        Self::new(nvm::COPY, nsid)
            .with_slba(sdlba)
            .with_cdw12_13(ranges.wrapping_sub(1) & 0xff | (format as u32 & 0xf) << 8, 0)
    }
}

/// Constructors of admin commands.
impl Command {
    /// Identify: a CNS, with the command set identifier that some need.
    pub const fn identify(cns: u8, nsid: u32, csi: u8) -> Self {
        Self::new(admin::IDENTIFY, nsid).with_cdw10_11(cns as u32, (csi as u32) << 24)
    }
    /// Create I/O Completion Queue, physically contiguous; `entries` is 1-based.
    pub const fn create_cq(qid: u16, entries: u32, iova: u64, vector: Option<u16>) -> Self {
        let (ien, iv) = match vector {
            Some(vector) => (2, (vector as u32) << 16),
            None => (0, 0),
        };
        Self::new(admin::CREATE_CQ, 0)
            .with_prp(iova, 0)
            .with_cdw10_11(queue_word(qid, entries), iv | ien | 1)
    }
    /// Create I/O Submission Queue, physically contiguous; `entries` is 1-based.
    pub const fn create_sq(qid: u16, entries: u32, iova: u64, cqid: u16) -> Self {
        Self::new(admin::CREATE_SQ, 0)
            .with_prp(iova, 0)
            .with_cdw10_11(queue_word(qid, entries), (cqid as u32) << 16 | 1)
    }
    /// Delete I/O Completion Queue.
    pub const fn delete_cq(qid: u16) -> Self {
        Self::new(admin::DELETE_CQ, 0).with_cdw10_11(qid as u32, 0)
    }
    /// Delete I/O Submission Queue.
    pub const fn delete_sq(qid: u16) -> Self {
        Self::new(admin::DELETE_SQ, 0).with_cdw10_11(qid as u32, 0)
    }
    /// Set Features: a feature and the value of dword 11.
    pub const fn set_features(feature: u8, nsid: u32, cdw11: u32) -> Self {
        Self::new(admin::SET_FEATURES, nsid).with_cdw10_11(feature as u32, cdw11)
    }
    /// Get Features: a feature and which of its values.
    pub const fn get_features(feature: u8, nsid: u32, sel: u8) -> Self {
        Self::new(admin::GET_FEATURES, nsid)
            .with_cdw10_11(feature as u32 | (sel as u32 & 7) << 8, 0)
    }
    /// Get Log Page: `bytes` a multiple of 4, `retain` keeps the asynchronous event (RAE).
    pub const fn log_page(lid: u8, nsid: u32, bytes: u32, offset: u64, retain: bool) -> Self {
        let numd = (bytes / 4).wrapping_sub(1);
        Self::new(admin::GET_LOG_PAGE, nsid)
            .with_cdw10_11(lid as u32 | (retain as u32) << 15 | numd << 16, numd >> 16)
            .with_cdw12_13(offset as u32, (offset >> 32) as u32)
    }
    /// Abort a command of a submission queue.
    pub const fn abort(sqid: u16, cid: u16) -> Self {
        Self::new(admin::ABORT, 0).with_cdw10_11(sqid as u32 | (cid as u32) << 16, 0)
    }
    /// Asynchronous Event Request.
    pub const fn async_event() -> Self {
        Self::new(admin::ASYNC_EVENT, 0)
    }
    /// Doorbell Buffer Config: addresses of the shadow doorbell and EventIdx pages.
    pub const fn doorbell_buffer_config(shadow: u64, event_index: u64) -> Self {
        Self::new(admin::DOORBELL_BUFFER_CONFIG, 0).with_prp(shadow, event_index)
    }
    /// Set Features, Host Memory Buffer: `flags` as [`crate::feature::HMB_EHM`] and its
    /// neighbour, the size in memory pages, and the descriptor list: address and entries.
    pub const fn host_memory_buffer(flags: u32, pages: u32, list: u64, entries: u32) -> Self {
        Self::set_features(crate::feature::HOST_MEMORY_BUFFER, 0, flags)
            .with_cdw12_13(pages, list as u32)
            .with_cdw14_15((list >> 32) as u32, entries)
    }
    /// Keep Alive.
    pub const fn keep_alive() -> Self {
        Self::new(admin::KEEP_ALIVE, 0)
    }
    /// Format NVM: index of the LBA format (6 bits) and Secure Erase Settings; no metadata, no
    /// protection information.
    pub const fn format_nvm(nsid: u32, lba_format: u8, ses: u8) -> Self {
        let low = lba_format as u32 & 0xf;
        let high = (lba_format as u32 >> 4 & 3) << 12;
        Self::new(admin::FORMAT_NVM, nsid).with_cdw10_11(low | high | (ses as u32 & 7) << 9, 0)
    }
    /// Namespace Management, create: its data is an Identify Namespace structure.
    pub const fn create_namespace(csi: u8) -> Self {
        Self::new(admin::NAMESPACE_MANAGEMENT, 0).with_cdw10_11(0, (csi as u32) << 24)
    }
    /// Namespace Management, delete; [`NSID_ALL`](crate::NSID_ALL) deletes all.
    pub const fn delete_namespace(nsid: u32) -> Self {
        Self::new(admin::NAMESPACE_MANAGEMENT, nsid).with_cdw10_11(1, 0)
    }
    /// Namespace Attachment, attach: its data is a controller list.
    pub const fn attach_namespace(nsid: u32) -> Self {
        Self::new(admin::NAMESPACE_ATTACHMENT, nsid).with_cdw10_11(0, 0)
    }
    /// Namespace Attachment, detach: its data is a controller list.
    pub const fn detach_namespace(nsid: u32) -> Self {
        Self::new(admin::NAMESPACE_ATTACHMENT, nsid).with_cdw10_11(1, 0)
    }
    /// Firmware Image Download: `bytes` and `offset` are multiples of 4.
    pub const fn firmware_download(bytes: u32, offset: u32) -> Self {
        Self::new(admin::FIRMWARE_DOWNLOAD, 0)
            .with_cdw10_11((bytes / 4).wrapping_sub(1), offset / 4)
    }
    /// Firmware Commit: a slot (3 bits) and a commit action ([`crate::firmware`]).
    pub const fn firmware_commit(slot: u8, action: u8) -> Self {
        let cdw10 = slot as u32 & 7 | (action as u32 & 7) << 3;
        Self::new(admin::FIRMWARE_COMMIT, 0).with_cdw10_11(cdw10, 0)
    }
    /// Sanitize: dword 10 ([`crate::sanitize`]) and the overwrite pattern.
    pub const fn sanitize(cdw10: u32, pattern: u32) -> Self {
        Self::new(admin::SANITIZE, 0).with_cdw10_11(cdw10, pattern)
    }
}

const fn queue_word(qid: u16, entries: u32) -> u32 {
    qid as u32 | (entries.wrapping_sub(1) & 0xffff) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dword(bytes: &[u8; 64], n: usize) -> u32 {
        u32::from_le_bytes([bytes[n * 4], bytes[n * 4 + 1], bytes[n * 4 + 2], bytes[n * 4 + 3]])
    }

    #[test]
    fn fields_sit_where_the_specification_puts_them() {
        let command = Command::nvm(nvm::WRITE, 7, 0x1122_3344_5566_7788, 8, FUA)
            .with_cid(0xabcd)
            .with_fuse(FUSE_SECOND)
            .with_mptr(0x99)
            .with_prp(0x1000, 0x2000)
            .with_cdw14_15(14, 15);
        let bytes = command.to_bytes();
        assert_eq!(bytes[0], 1);
        assert_eq!(bytes[1], 0b10);
        assert_eq!(bytes[2..4], [0xcd, 0xab]);
        assert_eq!(dword(&bytes, 1), 7);
        assert_eq!(dword(&bytes, 4), 0x99);
        assert_eq!(dword(&bytes, 6), 0x1000);
        assert_eq!(dword(&bytes, 8), 0x2000);
        assert_eq!(dword(&bytes, 10), 0x5566_7788);
        assert_eq!(dword(&bytes, 11), 0x1122_3344);
        assert_eq!(dword(&bytes, 12), FUA | 7);
        assert_eq!((dword(&bytes, 14), dword(&bytes, 15)), (14, 15));
        assert_eq!(Command::from_bytes(&bytes), command);
        assert_eq!(command.blocks(), 8);
        assert_eq!(command.fuse(), 2);
        assert_eq!((command.cid(), command.nsid()), (0xabcd, 7));
    }

    #[test]
    fn psdt_is_the_top_of_the_flags() {
        let command = Command::read(1, 0, 1).with_data(DataPointer::Sgl(Descriptor::data(5, 6)));
        assert_eq!(command.to_bytes()[1], 0b0100_0000);
        assert_eq!(command.psdt(), PSDT_SGL);
        assert_eq!(command.sgl1(), Descriptor::data(5, 6));
        assert_eq!(command.with_prp(1, 2).psdt(), PSDT_PRP);
    }

    #[test]
    fn block_counts_reach_their_ends() {
        assert_eq!(Command::read(1, 0, 65_536).cdw12(), 0xffff);
        assert_eq!(Command::read(1, 0, 65_536).blocks(), 65_536);
        assert_eq!(Command::dataset_management(1, 256, 4).cdw10(), 255);
        assert_eq!(Command::dataset_management(1, 256, 4).cdw11(), 4);
    }

    #[test]
    fn admin_commands_match_the_figures() {
        let cq = Command::create_cq(3, 1024, 0x4000, Some(5));
        assert_eq!((cq.cdw10(), cq.cdw11()), (1023 << 16 | 3, 5 << 16 | 3));
        let cq = Command::create_cq(3, 2, 0x4000, None);
        assert_eq!((cq.cdw10(), cq.cdw11()), (1 << 16 | 3, 1));
        let sq = Command::create_sq(3, 65_536, 0x4000, 3);
        assert_eq!((sq.cdw10(), sq.cdw11()), (0xffff_0003, 3 << 16 | 1));
        let log = Command::log_page(2, NSID, 512, 0x1_0000_0004, true);
        assert_eq!((log.cdw10(), log.cdw11()), (127 << 16 | 1 << 15 | 2, 0));
        assert_eq!((log.cdw12(), log.cdw13()), (4, 1));
        assert_eq!(Command::abort(2, 9).cdw10(), 9 << 16 | 2);
        assert_eq!(Command::identify(6, 0, 1).cdw11(), 1 << 24);
        assert_eq!(Command::format_nvm(1, 0x23, 1).cdw10(), 2 << 12 | 1 << 9 | 3);
        let piece = Command::firmware_download(4096, 8192);
        assert_eq!((piece.cdw10(), piece.cdw11()), (1023, 2048));
        assert_eq!(Command::firmware_commit(2, 3).cdw10(), 3 << 3 | 2);
    }

    const NSID: u32 = crate::NSID_ALL;
}
