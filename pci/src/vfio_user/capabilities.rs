//! What each side of a connection says of itself: JSON in VERSION.

use serde_json::{Value, json};

use super::message::DATA_MAX;

/// The protocol that we speak.
pub(super) const MAJOR: u16 = 0;
/// The newest minor version that we know.
pub(super) const MINOR: u16 = 1;

/// File descriptors that we take with one message.
pub(super) const FDS_MAX: usize = 16;

/// What the peer can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// File descriptors in one message.
    pub(super) max_msg_fds: u64,
    /// Bytes of one region read or write.
    pub(super) max_data_xfer_size: u64,
    /// DMA mappings at a time.
    pub(super) max_dma_maps: u64,
}

impl Default for Capabilities {
    /// What holds for a peer that says nothing.
    fn default() -> Capabilities {
        Capabilities { max_msg_fds: 1, max_data_xfer_size: DATA_MAX.into(), max_dma_maps: 65_535 }
    }
}

impl Capabilities {
    /// Reads version data: nothing, or a JSON object and a NUL. `None` if it is neither.
    pub(super) fn decode(data: &[u8]) -> Option<Capabilities> {
        let defaults = Capabilities::default();
        if data.is_empty() {
            return Some(defaults);
        }
        let json = data.strip_suffix(&[0]).unwrap_or(data);
        let value: Value = serde_json::from_slice(json).ok()?;
        let said = value.as_object()?.get("capabilities");
        let number = |name: &str, default| {
            said.and_then(|said| said.get(name)).and_then(Value::as_u64).unwrap_or(default)
        };
        Some(Capabilities {
            max_msg_fds: number("max_msg_fds", defaults.max_msg_fds),
            max_data_xfer_size: number("max_data_xfer_size", defaults.max_data_xfer_size),
            max_dma_maps: number("max_dma_maps", defaults.max_dma_maps),
        })
    }

    /// Version data, with its NUL.
    pub(super) fn encode(&self) -> Vec<u8> {
        let value = json!({ "capabilities": {
            "max_msg_fds": self.max_msg_fds,
            "max_data_xfer_size": self.max_data_xfer_size,
            "max_dma_maps": self.max_dma_maps,
            "pgsizes": 4096,
        }});
        let mut bytes = value.to_string().into_bytes();
        bytes.push(0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_survive_the_wire() {
        let ours = Capabilities { max_msg_fds: 16, max_data_xfer_size: 4096, max_dma_maps: 8 };
        assert_eq!(Capabilities::decode(&ours.encode()), Some(ours));
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        for data in [&b""[..], b"{}", b"{}\0", b"{\"capabilities\":{}}\0"] {
            assert_eq!(Capabilities::decode(data), Some(Capabilities::default()));
        }
        let odd = b"{\"capabilities\":{\"max_msg_fds\":-1,\"max_dma_maps\":\"x\",\"new\":[1]}}\0";
        assert_eq!(Capabilities::decode(odd), Some(Capabilities::default()));
        for bad in [&b"\0"[..], b"[]", b"{", b"\xff\0", b"{}\0{}\0"] {
            assert_eq!(Capabilities::decode(bad), None, "{bad:?}");
        }
    }
}
