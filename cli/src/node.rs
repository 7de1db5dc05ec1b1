//! Nodes as JSON, in the shape of blockdev-add, for the drivers that we have.

use std::path::PathBuf;

use oxblock_drivers::file::{FileEngine, FileOptions};
use oxblock_drivers::memory::MemoryOptions;
use oxblock_drivers::null::NullOptions;
use oxblock_drivers::{file, memory, null};
use oxblock_engine::{Driver, Error, ErrorKind};
use serde::Deserialize;

/// One node. Names and meaning are those of QEMU's BlockdevOptions where it has the driver.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "driver", rename_all = "kebab-case", deny_unknown_fields)]
pub enum NodeSpec {
    /// A device that keeps nothing.
    #[serde(rename = "null-co", alias = "null-aio", rename_all = "kebab-case")]
    Null {
        /// Our name for it.
        node_name: Option<String>,
        /// Bytes; 1 GiB if left out, as in QEMU.
        size: Option<u64>,
        /// How long each request takes, ns.
        latency_ns: Option<u64>,
        /// Fill what is read with zeroes.
        read_zeroes: Option<bool>,
    },
    /// A disk in memory (not in QEMU).
    #[serde(rename_all = "kebab-case")]
    Memory {
        /// Our name for it.
        node_name: Option<String>,
        /// Bytes.
        size: u64,
        /// Granularity of requests, bytes.
        block_size: Option<u32>,
    },
    /// A file.
    #[serde(rename_all = "kebab-case")]
    File {
        /// Our name for it.
        node_name: Option<String>,
        /// Its path.
        filename: PathBuf,
        /// Refuse writes.
        #[serde(default)]
        read_only: bool,
        /// How it is cached.
        #[serde(default)]
        cache: CacheSpec,
        /// How its calls are made; as this host allows if left out.
        aio: Option<AioSpec>,
        /// A thread of the kernel takes the calls (not in QEMU).
        #[serde(default)]
        sqthread_poll: bool,
        /// The device is polled for the ends of reads and writes; with `cache.direct` (not in QEMU).
        #[serde(default)]
        hipri: bool,
    },
}

/// QEMU's BlockdevAioOptions, as far as we have them.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AioSpec {
    /// By threads.
    Threads,
    /// Through io_uring.
    IoUring,
}

/// QEMU's BlockdevCacheOptions, as far as we have it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSpec {
    /// O_DIRECT.
    #[serde(default)]
    pub direct: bool,
}

impl NodeSpec {
    /// Reads a node from JSON.
    ///
    /// Errors: text that is no node of ours; the message says where and what.
    pub fn parse(json: &str) -> Result<NodeSpec, Error> {
        serde_json::from_str(json).map_err(|error| {
            let text = format!(
                "the target's JSON: {error}; expected a node such as \
                 {{\"driver\":\"null-co\",\"size\":1073741824}}, \
                 {{\"driver\":\"memory\",\"size\":67108864}} or \
                 {{\"driver\":\"file\",\"filename\":\"disk.img\"}}"
            );
            Error::new(ErrorKind::Invalid, text)
        })
    }

    /// The name that it was given.
    pub fn name(&self) -> Option<&str> {
        match self {
            NodeSpec::Null { node_name, .. }
            | NodeSpec::Memory { node_name, .. }
            | NodeSpec::File { node_name, .. } => node_name.as_deref(),
        }
    }

    /// Opens it. `queue_depth` is how many requests a file has in the kernel at once.
    ///
    /// Errors: what the driver says.
    pub fn open(&self, queue_depth: u16) -> Result<Box<dyn Driver>, Error> {
        match self.clone() {
            NodeSpec::Null { size, latency_ns, read_zeroes, .. } => {
                let defaults = NullOptions::default();
                null::open(NullOptions {
                    size: size.unwrap_or(defaults.size),
                    latency_ns: latency_ns.unwrap_or(defaults.latency_ns),
                    read_zeroes: read_zeroes.unwrap_or(defaults.read_zeroes),
                    ..defaults
                })
            }
            NodeSpec::Memory { size, block_size, .. } => {
                memory::open(MemoryOptions { size, block_size: block_size.unwrap_or(512) })
            }
            NodeSpec::File { filename, read_only, cache, aio, sqthread_poll, hipri, .. } => {
                file::open(FileOptions {
                    direct: cache.direct,
                    engine: match aio {
                        None => FileEngine::Best,
                        Some(AioSpec::Threads) => FileEngine::Workers,
                        Some(AioSpec::IoUring) => FileEngine::Uring,
                    },
                    sqthread_poll,
                    hipri,
                    read_only,
                    queue_depth,
                    ..FileOptions::new(filename)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blockdev_add_words_are_taken() {
        let node = NodeSpec::parse(r#"{"driver":"null-aio","size":4096,"latency-ns":5}"#);
        let null = NodeSpec::Null {
            node_name: None,
            size: Some(4096),
            latency_ns: Some(5),
            read_zeroes: None,
        };
        assert_eq!(node.ok(), Some(null));
        let node = NodeSpec::parse(
            r#"{"driver":"file","filename":"x","read-only":true,"cache":{"direct":true},"node-name":"n","aio":"io_uring"}"#,
        )
        .expect("a good node");
        assert_eq!(node.name(), Some("n"));
        assert!(matches!(
            node,
            NodeSpec::File {
                read_only: true,
                cache: CacheSpec { direct: true },
                aio: Some(AioSpec::IoUring),
                ..
            }
        ));
    }

    #[test]
    fn what_is_not_ours_is_named() {
        for (json, hint) in [
            ("{", "EOF"),
            (r#"{"driver":"qcow3"}"#, "qcow3"),
            (r#"{"driver":"null-co","sise":1}"#, "sise"),
            (r#"{"driver":"memory"}"#, "size"),
            (r#"{"size":1}"#, "driver"),
            (r#"{"driver":"file","filename":"x","aio":"native"}"#, "io_uring"),
        ] {
            let error = NodeSpec::parse(json).expect_err(json).to_string();
            assert!(error.contains(hint) && error.contains("expected a node"), "{error}");
        }
    }
}
