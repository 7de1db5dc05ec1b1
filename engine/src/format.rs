//! What a node that stands on others is to the engine: it says where bytes live, and the engine
//! goes there.
//!
//! A channel on such a node asks its [`Format`] about an operation's range, then the node that
//! the answer names, and so on down to a leaf, and submits there once. Nothing is allocated on
//! the way. A range that lies in several places becomes several fragments.
//!
//! What cannot be answered at once (a table that has to be read, a place that has to be found, data
//! that has to be unpacked) is [`Extent::Slow`]: the operation waits in its slot until one of the
//! format's [tasks](Format::slow) has done it.

use std::sync::Arc;

use crate::graph::Opening;
use crate::{Core, Driver, Error, ErrorKind, Limits, LocalFuture, Node, OpKind, SlowRequests};

/// The driver of a format, or of a filter that leaves data alone.
pub trait Format: Send + Sync {
    /// The driver's name, as blockdev-add has it.
    fn name(&self) -> &'static str;

    /// What one request may ask, as of now, where the children say this of themselves. The block
    /// size is a multiple of theirs.
    fn limits(&self, children: &[Arc<Limits>]) -> Limits;

    /// Where the `len` bytes at `offset` live: an answer about the first of them, and how many
    /// more it is true of. Offset and length are multiples of the block size, `len` is not 0 and
    /// ends within the node. Called by all cores; neither allocates, locks nor blocks.
    fn map(&self, offset: u64, len: u64, intent: Intent) -> Extent;

    /// The children that a flush of this node goes to, in this order.
    fn flushes(&self) -> &[usize];

    /// The backing file that the image names, if it is one that can. The node that is opened for
    /// it becomes the last of the children.
    fn backing_file(&self) -> Option<BackingFile> {
        None
    }

    /// How many operations a core may have in this format's tasks at once; the others wait, first
    /// come first served. None for a format that never answers [`Extent::Slow`].
    fn slow_tasks(&self) -> usize {
        0
    }

    /// One of these tasks, for the core that calls: it takes requests until there are no more,
    /// most simply by [`SlowRequests::serve`]. Made when the core opens the node; once it runs it
    /// does not allocate.
    fn slow(self: Arc<Self>, requests: SlowRequests) -> LocalFuture<'static, ()> {
        drop(requests);
        Box::pin(async {})
    }

    /// The same format over children of these names, in the order in which it will count them:
    /// one was added, or taken away. What it is the same in, the two have in common. Nothing has
    /// changed yet, and perhaps nothing will; once it has, this one is asked no more.
    ///
    /// # Errors
    /// The format is none over these. One whose children are fixed has nothing to add to this.
    fn with_children(&self, names: &[&'static str]) -> Result<Arc<dyn Format>, Error> {
        let text = format!("driver '{}' works over the children that it has only", self.name());
        let _ = names;
        Err(Error::new(ErrorKind::NotSupported, text))
    }

    /// The same image with other options, to take this driver's place while nothing is on its way
    /// through the node; this one goes on until then, and also if nothing comes of it. `None`: the
    /// options that may change make no difference to it. Control plane.
    ///
    /// # Errors
    /// It cannot be opened so.
    fn reopen<'a>(
        &'a self,
        opening: &'a Opening<'a>,
    ) -> LocalFuture<'a, Result<Option<Arc<dyn Format>>, Error>> {
        let _ = opening;
        Box::pin(async { Ok(None) })
    }

    /// Closes the driver in good order, before its children.
    fn close<'a>(&'a self, core: &'a Core) -> LocalFuture<'a, Result<(), Error>>;
}

/// What an image says of its backing file. Nobody vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingFile {
    /// Its name, as it stands in the image.
    pub name: String,
    /// Its format, where the image says that too.
    pub format: Option<String>,
}

/// Where a range lives. Lengths are multiples of the block size, and not 0; more than was asked
/// about says no more than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// In a child.
    Data {
        /// Which, in the order of the node's children.
        child: usize,
        /// Where in the child the range begins.
        offset: u64,
        /// How long it goes on there.
        len: u64,
    },
    /// Nowhere: it reads as zeroes. To those who would make it zeroes, or forget it, this says
    /// that there is nothing to do.
    Zero {
        /// For how long.
        len: u64,
    },
    /// In the child that this node lies over, at the same offset: the backing file. Beyond that
    /// one's end it reads as zeroes.
    Below {
        /// Which, in the order of the node's children.
        child: usize,
        /// For how long.
        len: u64,
    },
    /// Beyond the end of what the node has: it reads as zeroes, and takes no writes.
    End,
    /// Nobody can say at once: a [task](Format::slow) of the format is to see to it, and is given
    /// the whole rest of the operation, as far as the answers above this one reach.
    Slow,
}

/// What is to be done with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Reading it.
    Read,
    /// Writing it. The answer is [`Extent::Data`], [`Extent::End`] or [`Extent::Slow`].
    Write,
    /// Making it read as zeroes; as for writing, or [`Extent::Zero`].
    Zero,
    /// Forgetting it; as for zeroes.
    Discard,
}

impl From<OpKind> for Intent {
    fn from(kind: OpKind) -> Self {
        match kind {
            OpKind::Read | OpKind::Compare | OpKind::Flush => Self::Read,
            OpKind::Write => Self::Write,
            OpKind::WriteZeroes => Self::Zero,
            OpKind::Discard => Self::Discard,
        }
    }
}

/// What does a node's work.
pub enum Body {
    /// It has requests of its own to make.
    Leaf(Box<dyn Driver>),
    /// It stands on other nodes: those, in the order that the format counts them in, which is that
    /// in which the driver declares them; then those that are the format's own, which are in no
    /// book.
    Over(Arc<dyn Format>, Vec<Arc<Node>>),
}
