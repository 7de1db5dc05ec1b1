//! Verify (NVM Command Set 1.0, 3.2.5).

use oxblock_nvme::{Command, Status};

use super::long::{Job, Kind};
use crate::namespace::Geometry;

/// Reads the blocks and throws them away, for the errors that this may bring.
pub(super) fn verify(
    command: &Command,
    namespace: &Geometry,
    job: &mut Job,
) -> Result<bool, Status> {
    let range = namespace.range(command.slba(), command.blocks().into())?;
    job.begin(Kind::Verify);
    job.push(range);
    Ok(true)
}
