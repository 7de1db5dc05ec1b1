//! I/O commands of the NVM command set (NVM Command Set 1.0, 3): from a command to an operation
//! of the engine, or to a long command that takes several.
//!
//! Nothing here knows how the command came or where its data lies: that is the transport's
//! [`DataPath`].

mod compare;
mod copy;
mod dsm;
mod flush;
pub(crate) mod long;
mod rw;
mod verify;
mod zeroes;

use oxblock_engine::Op;
use oxblock_nvme::command::FUSE_NONE;
use oxblock_nvme::opcode::nvm;
use oxblock_nvme::{Command, NSID_ALL, Status};

use crate::data::DataPath;
use crate::namespace::Geometry;
use long::Job;

/// Directive Type of commands that write; none is supported.
const DTYPE: u32 = 0xf << 20;

/// What all I/O commands of a controller obey.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Largest transfer in bytes (MDTS); all ones is no limit.
    pub(crate) transfer_max: u64,
    /// Writes may stay in a volatile cache. Otherwise each is FUA.
    pub(crate) write_cache: bool,
}

impl Rules {
    /// Bytes that a command moves, if it may.
    #[inline]
    pub(crate) fn transfer(&self, len: u64) -> Result<usize, Status> {
        if len > self.transfer_max {
            return Err(Status::INVALID_FIELD);
        }
        usize::try_from(len).map_err(|_| Status::INVALID_FIELD)
    }

    /// A write that obeys FUA and the state of the cache.
    #[inline]
    fn durable(&self, op: Op, command: &Command) -> Op {
        let fua = command.cdw12() & oxblock_nvme::command::FUA != 0;
        if fua || !self.write_cache { op.fua() } else { op }
    }
}

/// Whether a command takes several operations of the engine.
#[inline]
pub(crate) fn is_long(command: &Command) -> bool {
    match command.opcode() {
        nvm::DATASET_MANAGEMENT | nvm::VERIFY | nvm::COPY | nvm::WRITE_UNCORRECTABLE => true,
        nvm::FLUSH => command.nsid() == NSID_ALL,
        _ => false,
    }
}

/// The operation of a command that takes one.
///
/// # Errors
/// What is wrong with the command.
#[inline]
pub(crate) fn operation<D: DataPath>(
    command: &Command,
    namespace: &Geometry,
    rules: &Rules,
    data: &mut D,
) -> Result<Op, Status> {
    unfused(command)?;
    match command.opcode() {
        nvm::READ => rw::read(command, namespace, rules, data),
        nvm::WRITE => rw::write(command, namespace, rules, data),
        nvm::FLUSH => Ok(flush::flush()),
        nvm::WRITE_ZEROES => zeroes::write_zeroes(command, namespace, rules),
        nvm::COMPARE => compare::compare(command, namespace, rules, data),
        _ => Err(Status::INVALID_OPCODE),
    }
}

/// What a long command is to do; its ranges go to `job`. False if there is nothing to do.
///
/// # Errors
/// What is wrong with the command.
pub(crate) fn prepare<D: DataPath>(
    command: &Command,
    namespace: &Geometry,
    rules: &Rules,
    data: &mut D,
    job: &mut Job,
) -> Result<bool, Status> {
    unfused(command)?;
    match command.opcode() {
        nvm::DATASET_MANAGEMENT => dsm::deallocate(command, namespace, data, job),
        nvm::VERIFY => verify::verify(command, namespace, job),
        nvm::COPY => copy::copy(command, namespace, rules, data, job),
        _ => Err(Status::INVALID_OPCODE),
    }
}

/// Fused pairs are not offered (FUSES is zero).
#[inline]
fn unfused(command: &Command) -> Result<(), Status> {
    if command.fuse() != FUSE_NONE {
        return Err(Status::INVALID_FIELD);
    }
    Ok(())
}
