//! What an image says of itself when it is opened: its format, its backing file.

use std::sync::Arc;

use super::driver_info::{DriverInfo, Drivers, PROBE_LEN};
use crate::options::invalid;
use crate::{Core, Error, Node, Op};

/// Guesses the format of the image in a node.
///
/// Errors: it cannot be read; no driver takes it.
pub(super) async fn guess(
    core: &Core,
    drivers: &Drivers,
    node: &Arc<Node>,
    filename: Option<&str>,
) -> Result<&'static DriverInfo, Error> {
    let first = read_first(core, node)
        .await
        .map_err(|error| error.context("Could not read image for determining its format"))?;
    drivers
        .probe(&first, filename)
        .ok_or_else(|| invalid("Could not determine image format: No compatible driver found"))
}

/// The first bytes of a node, at most [`PROBE_LEN`].
async fn read_first(core: &Core, node: &Arc<Node>) -> Result<Vec<u8>, Error> {
    let limits = node.limits();
    let block = u64::from(limits.block_size);
    let wanted = limits.length.min(PROBE_LEN as u64);
    let len = wanted.next_multiple_of(block).min(limits.length) as usize;
    if len == 0 {
        return Ok(Vec::new());
    }
    let channel = core.open(node).await?;
    let data = core.arena().alloc(len, 4096.max(block as usize))?;
    let done = channel.run(Op::read(0, data)).await;
    done.result?;
    let mut first = vec![0; len.min(PROBE_LEN)];
    done.op.data.read_at(0, &mut first);
    Ok(first)
}

/// What to say where a writable image was taken for raw because nothing else takes it.
pub(super) fn warning(filename: &str) -> String {
    format!(
        "Image format was not specified for '{filename}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on \
         block 0 will be restricted.\n         \
         Specify the 'raw' format explicitly to remove the restrictions."
    )
}
