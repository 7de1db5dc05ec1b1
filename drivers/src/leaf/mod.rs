//! Leaves: where the bytes live.

pub mod file;
pub mod memory;
pub mod null;
pub mod nvme;

use oxblock_engine::{Error, ErrorKind};

/// Checks the size and the block size that a caller asks for.
fn check_geometry(driver: &str, size: u64, block_size: u32) -> Result<(), Error> {
    if block_size == 0 || !size.is_multiple_of(u64::from(block_size)) {
        let text = format!(
            "{driver}: a size of {size} bytes is no whole number of blocks of {block_size} bytes; \
             give a size that is a multiple of the block size"
        );
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(())
}
