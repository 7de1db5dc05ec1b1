//! Memory that the server may reach: it gets the files behind it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxblock_mem::{DmaMapper, MemError, Region};

use super::connection::Connection;
use crate::PciError;
use crate::soft::SoftIommuOptions;
use crate::vfio_user::message::{DMA_READ, DMA_WRITE, DmaMap, DmaUnmap, Request};

/// The server's table, as the client keeps it.
pub(super) struct ClientIommu {
    connection: Arc<Connection>,
    /// What the server has, by address.
    regions: Mutex<BTreeMap<u64, Region>>,
}

impl ClientIommu {
    pub(super) fn new(connection: Arc<Connection>) -> ClientIommu {
        ClientIommu { connection, regions: Mutex::default() }
    }

    fn regions(&self) -> MutexGuard<'_, BTreeMap<u64, Region>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DmaMapper for ClientIommu {
    /// The protocol has no windows: those of our own server, which are those of any x86.
    fn windows(&self) -> Vec<RangeInclusive<u64>> {
        SoftIommuOptions::default().windows
    }

    fn page_size_min(&self) -> u64 {
        4096
    }

    /// The server is a program, and reaches pages that are swapped out, too.
    fn needs_locked(&self) -> bool {
        false
    }

    fn map(&self, region: &Region, iova: u64) -> Result<(), MemError> {
        let Some((file, offset)) = region.fd() else {
            return Err(MemError::new(
                libc::ENOTSUP,
                format!(
                    "{} is another process, and reaches only memory with a file behind it: use \
                     buffers of the engine's arena instead of memory of your own",
                    self.connection.address()
                ),
            ));
        };
        let map = DmaMap {
            argsz: (size_of::<DmaMap>() as u32).into(),
            flags: (DMA_READ | DMA_WRITE).into(),
            offset: offset.into(),
            address: iova.into(),
            size: (region.len() as u64).into(),
        };
        self.connection.call(&Request::DmaMap(map), &[file]).map_err(mem_error)?;
        self.regions().insert(iova, region.clone());
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<(), MemError> {
        let unmap = DmaUnmap {
            argsz: (size_of::<DmaUnmap>() as u32).into(),
            flags: 0.into(),
            address: iova.into(),
            size: len.into(),
        };
        match self.connection.call(&Request::DmaUnmap(unmap), &[]) {
            // Whoever closed the connection has let go of everything.
            Err(error) if !self.connection.is_closed() => return Err(mem_error(error)),
            _ => {}
        }
        self.regions().remove(&iova);
        Ok(())
    }
}

fn mem_error(error: PciError) -> MemError {
    MemError::new(error.errno(), error.to_string())
}
