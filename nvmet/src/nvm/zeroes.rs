//! Write Zeroes (NVM Command Set 1.0, 3.2.8).

use oxblock_engine::{Op, OpFlags};
use oxblock_nvme::command::DEAC;
use oxblock_nvme::{Command, Status};

use super::Rules;
use crate::namespace::Geometry;

pub(super) fn write_zeroes(
    command: &Command,
    namespace: &Geometry,
    rules: &Rules,
) -> Result<Op, Status> {
    namespace.writable()?;
    let range = namespace.range(command.slba(), command.blocks().into())?;
    let mut op = Op::write_zeroes(range.offset, range.len);
    if command.cdw12() & DEAC != 0 {
        op = op.flags(OpFlags::MAY_UNMAP);
    }
    Ok(rules.durable(op, command))
}
