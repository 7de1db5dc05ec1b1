//! Read and Write (NVM Command Set 1.0, 3.2.4 and 3.2.6).

use oxblock_engine::Op;
use oxblock_nvme::{Command, Status};

use super::{DTYPE, Rules};
use crate::data::DataPath;
use crate::namespace::Geometry;

#[inline]
pub(super) fn read<D: DataPath>(
    command: &Command,
    namespace: &Geometry,
    rules: &Rules,
    data: &mut D,
) -> Result<Op, Status> {
    let range = namespace.range(command.slba(), command.blocks().into())?;
    let len = rules.transfer(range.len)?;
    Ok(Op::read(range.offset, data.map(command, len)?))
}

#[inline]
pub(super) fn write<D: DataPath>(
    command: &Command,
    namespace: &Geometry,
    rules: &Rules,
    data: &mut D,
) -> Result<Op, Status> {
    namespace.writable()?;
    let range = namespace.range(command.slba(), command.blocks().into())?;
    let len = rules.transfer(range.len)?;
    if command.cdw12() & DTYPE != 0 {
        return Err(Status::INVALID_FIELD);
    }
    let op = Op::write(range.offset, data.map(command, len)?);
    Ok(rules.durable(op, command))
}
