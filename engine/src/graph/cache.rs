//! The words for what stands between a user's writes and the medium.

use crate::Error;
use crate::options::{NodeOptions, invalid};

/// A cache mode, as the tools of QEMU have it: two options of a node, and whether its user has a
/// write cache.
///
/// | mode | `cache.direct` | `cache.no-flush` | write cache |
/// |---|---|---|---|
/// | `writeback` | off | off | on |
/// | `none` | on | off | on |
/// | `writethrough` | off | off | off |
/// | `directsync` | on | off | off |
/// | `unsafe` | off | on | on |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Writes end in the page cache; flushes make them durable.
    #[default]
    Writeback,
    /// Past the page cache; flushes make writes durable.
    None,
    /// Each write is durable when it ends.
    Writethrough,
    /// Past the page cache, and each write is durable when it ends.
    DirectSync,
    /// Flushes do nothing: what a power cut leaves is anybody's guess.
    Unsafe,
}

impl CacheMode {
    /// Reads a mode; `off` is `none`.
    ///
    /// # Errors
    /// `Invalid`: there is no such mode.
    pub fn parse(word: &str) -> Result<Self, Error> {
        Ok(match word {
            "writeback" => Self::Writeback,
            "none" | "off" => Self::None,
            "writethrough" => Self::Writethrough,
            "directsync" => Self::DirectSync,
            "unsafe" => Self::Unsafe,
            _ => {
                let text = "(writeback, none, writethrough, directsync or unsafe)";
                return Err(invalid(format!("Invalid cache option: {word} {text}")));
            }
        })
    }

    /// Gives a node's options the mode, where they do not say otherwise.
    pub fn apply(self, options: &mut NodeOptions) {
        let is_direct = matches!(self, Self::None | Self::DirectSync);
        options.set_default("cache.direct", is_direct);
        options.set_default("cache.no-flush", self == Self::Unsafe);
    }

    /// Whether the user has a write cache: see
    /// [`Channel::set_write_cache`](crate::Channel::set_write_cache).
    pub fn has_write_cache(self) -> bool {
        !matches!(self, Self::Writethrough | Self::DirectSync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_is_two_options_and_a_write_cache() {
        for (word, direct, no_flush, write_cache) in [
            ("writeback", false, false, true),
            ("none", true, false, true),
            ("off", true, false, true),
            ("writethrough", false, false, false),
            ("directsync", true, false, false),
            ("unsafe", false, true, true),
        ] {
            let mode = CacheMode::parse(word).unwrap();
            let mut options = NodeOptions::new();
            mode.apply(&mut options);
            let mut expected = NodeOptions::new();
            expected.set("cache.direct", direct);
            expected.set("cache.no-flush", no_flush);
            assert_eq!((options, mode.has_write_cache()), (expected, write_cache), "{word}");
        }
        let error = CacheMode::parse("writearound").unwrap_err().to_string();
        assert!(error.starts_with("Invalid cache option: writearound"), "{error}");
    }

    #[test]
    fn what_is_said_of_a_node_goes_before_its_mode() {
        let mut options = NodeOptions::new();
        options.set("cache.direct", false);
        CacheMode::None.apply(&mut options);
        assert_eq!(options.get("cache.direct"), Some(&false.into()));
    }
}
