//! The cow format: what is written goes to memory, everything else is read from a backing node,
//! which stays as it is. With the node, all that was written is gone.
//!
//! A cluster is taken by the first write to it, which brings the rest of it from below; from then
//! on it is in memory, and reads and writes of it go there without further ado, from any core. A
//! cluster that is zeroed or discarded whole takes no memory and reads as zeroes, whatever lies
//! below (so do discarded clusters of QEMU's overlays). Discards of parts of a cluster that is not
//! in memory change nothing.

mod clusters;
mod fill;

use std::sync::Arc;

use oxblock_engine::graph::{
    ChildRole, ChildSpec, DriverInfo, DriverKind, Opening, default_access,
};
use oxblock_engine::options::OptionSpec;
use oxblock_engine::{
    Body, Core, Error, ErrorKind, Extent, Format, Intent, Limits, LocalFuture, Node, SlowRequests,
    Waits,
};

use crate::memory::{self, MemoryOptions};
use clusters::{Clusters, Held};

/// The declaration of `cow`, which QEMU does not have: there it is `snapshot=on`, in a file.
pub const COW: DriverInfo = DriverInfo {
    name: "cow",
    kind: DriverKind::Format,
    needs_filename: false,
    supports_backing: true,
    protocols: &[],
    parse_filename: None,
    filename: None,
    probe: None,
    claims: None,
    options: &[
        OptionSpec::size("size", "how long it is, bytes; as the backing node if left out").strong(),
        OptionSpec::size("cluster-size", "what is taken from below at once, bytes").default("64k"),
        OptionSpec::size("max-memory", "the most that clusters may take, bytes; no limit if 0")
            .default("0"),
    ],
    create_options: &[],
    children: &[ChildSpec { name: "backing", role: |_| ChildRole::COW, required: false }],
    child_rule: default_access,
    open: |opening| Box::pin(async move { open_node(opening) }),
};

fn open_node(opening: &Opening<'_>) -> Result<Body, Error> {
    let number = |name| opening.settings.number(name);
    let defaults = CowOptions::default();
    let options = CowOptions {
        size: number("size"),
        cluster_size: number("cluster-size").unwrap_or(defaults.cluster_size),
        max_memory: number("max-memory").filter(|&most| most > 0),
    };
    open(opening.core, opening.name, opening.child("backing"), options)
}

/// What overlay to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CowOptions {
    /// How long it is in bytes; as the backing node if that is not said.
    pub size: Option<u64>,
    /// What is taken from below at once: a power of two, from 512 bytes to 2 MiB.
    pub cluster_size: u64,
    /// The most that clusters may take in bytes, whole clusters; then writes to further ones fail.
    pub max_memory: Option<u64>,
}

impl Default for CowOptions {
    /// As long as the backing node, in clusters of 64 KiB, without limit.
    fn default() -> Self {
        Self { size: None, cluster_size: 64 << 10, max_memory: None }
    }
}

/// The body of an overlay called `name` over `backing`, or over zeroes. It takes memory as it is
/// written: at most a cluster for each that was touched, and one byte for each that there is.
///
/// # Errors
/// `Invalid`: no cluster size, or one that is no multiple of the backing node's blocks; a size
/// that is no multiple of them, or none at all where there is nothing below. `OutOfMemory`.
pub fn open(
    core: &Core,
    name: &str,
    backing: Option<&Arc<Node>>,
    options: CowOptions,
) -> Result<Body, Error> {
    let below = backing.map(|node| node.limits());
    let block = below.as_ref().map_or(1, |limits| limits.block_size);
    let Some(length) = options.size.or(below.as_ref().map(|limits| limits.length)) else {
        return Err(invalid("an overlay over nothing needs a size: give 'size' or 'backing'"));
    };
    if !options.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&options.cluster_size) {
        return Err(invalid("Cluster size must be a power of two between 512 and 2048k"));
    }
    for (what, bytes) in [("size", length), ("cluster-size", options.cluster_size)] {
        if !bytes.is_multiple_of(block.into()) {
            return Err(invalid(&format!(
                "{what} ({bytes}) must be a multiple of the block size of the backing node ({block})"
            )));
        }
    }
    let clusters = Clusters::new(length, options.cluster_size, options.max_memory)?;
    let size = length.max(block.into());
    let data = memory::open_sparse(MemoryOptions { size, block_size: block })?;
    let cow = Cow {
        clusters: Arc::new(clusters),
        waits: Arc::new(Waits::new(core.count(), TASKS)),
        block,
        has_backing: backing.is_some(),
    };
    let mut children: Vec<Arc<Node>> = backing.into_iter().cloned().collect();
    children.push(Node::new(format!("{name} (memory)"), data));
    Ok(Body::Over(Arc::new(cow), children))
}

/// Clusters that a core takes at once.
const TASKS: usize = 8;
/// The backing node among the children, if there is one.
const BACKING: usize = 0;

struct Cow {
    clusters: Arc<Clusters>,
    /// Tasks that wait until others let go of a cluster.
    waits: Arc<Waits>,
    block: u32,
    has_backing: bool,
}

impl Format for Cow {
    fn name(&self) -> &'static str {
        "cow"
    }

    fn limits(&self, children: &[Arc<Limits>]) -> Limits {
        let blocks = children.iter().map(|child| child.block_size);
        let length = self.clusters.length;
        Limits {
            max_write_zeroes: length,
            max_discard: length,
            discard_alignment: self.clusters.size as u32,
            write_zeroes_alignment: self.clusters.size as u32,
            fua: true,
            compare: true,
            ..Limits::new(length, blocks.fold(self.block, u32::max))
        }
    }

    #[inline]
    fn map(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        let clusters = &self.clusters;
        let Some(room) = clusters.length.checked_sub(offset).filter(|&room| room > 0) else {
            return Extent::End;
        };
        let end = offset + len.min(room);
        let answer = |at| self.answer(at, clusters.end_of(at).min(end), intent);
        let first = answer(offset);
        let mut at = clusters.end_of(offset);
        while at < end && first != Answer::Slow && answer(at) == first {
            at = clusters.end_of(at);
        }
        let len = at.min(end) - offset;
        match first {
            Answer::Memory => Extent::Data { child: self.memory(), offset, len },
            Answer::Below => Extent::Below { child: BACKING, len },
            Answer::Zero => Extent::Zero { len },
            Answer::Slow => Extent::Slow,
        }
    }

    /// Nothing outlives the node.
    fn flushes(&self) -> &[usize] {
        &[]
    }

    fn slow_tasks(&self) -> usize {
        TASKS
    }

    fn slow(self: Arc<Self>, requests: SlowRequests) -> LocalFuture<'static, ()> {
        Box::pin(async move {
            let mut buffer = None;
            requests.serve(async |request| self.work(request, &mut buffer).await).await;
        })
    }

    /// A backing node comes under what is there already, or goes from under it.
    fn with_children(&self, names: &[&'static str]) -> Result<Arc<dyn Format>, Error> {
        let has_backing = match names {
            [] => false,
            ["backing"] => true,
            _ => return Err(invalid("an overlay lies over one backing node, or none")),
        };
        let (clusters, waits) = (self.clusters.clone(), self.waits.clone());
        Ok(Arc::new(Self { clusters, waits, block: self.block, has_backing }))
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// Where a part of a cluster is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Memory,
    Below,
    /// Nowhere; where it would be zeroed or forgotten, nothing is to be done.
    Zero,
    /// A task has to take the cluster first, or to change what it is.
    Slow,
}

impl Cow {
    /// The memory among the children.
    #[inline]
    fn memory(&self) -> usize {
        usize::from(self.has_backing)
    }

    /// What is true of the bytes from `at` to `end`, in one cluster.
    #[inline]
    fn answer(&self, at: u64, end: u64, intent: Intent) -> Answer {
        let state = self.clusters.state(at);
        let absent = if self.has_backing { Answer::Below } else { Answer::Zero };
        let whole = || self.clusters.is_whole(at, end);
        match (intent, state.held) {
            (Intent::Read, Held::Memory) => Answer::Memory,
            (Intent::Read, Held::Zero) => Answer::Zero,
            (Intent::Read, Held::Nothing) => absent,
            (Intent::Discard, Held::Nothing) if !whole() => Answer::Zero,
            _ if state.busy => Answer::Slow,
            (Intent::Write, Held::Memory) => Answer::Memory,
            (Intent::Zero | Intent::Discard, Held::Zero) => Answer::Zero,
            (Intent::Zero | Intent::Discard, Held::Memory) if !whole() => Answer::Memory,
            (Intent::Zero | Intent::Discard, Held::Nothing) if absent == Answer::Zero => absent,
            _ => Answer::Slow,
        }
    }
}

fn invalid(text: &str) -> Error {
    Error::new(ErrorKind::Invalid, text)
}

#[cfg(test)]
mod tests;
