//! Compare (NVM Command Set 1.0, 3.2.1).

use oxblock_engine::Op;
use oxblock_nvme::{Command, Status};

use super::Rules;
use crate::data::DataPath;
use crate::namespace::Geometry;

pub(super) fn compare<D: DataPath>(
    command: &Command,
    namespace: &Geometry,
    rules: &Rules,
    data: &mut D,
) -> Result<Op, Status> {
    let range = namespace.range(command.slba(), command.blocks().into())?;
    let len = rules.transfer(range.len)?;
    Ok(Op::compare(range.offset, data.map(command, len)?))
}
