//! What a bad block turns out to be, in words.

use std::fmt;

/// One block that does not hold what was written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Which of the job's files, from 0.
    pub file: u16,
    /// Byte offset of the block in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub length: usize,
    /// What is wrong with it.
    pub finding: Finding,
}

/// What a bad block looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Most of it is right.
    Damaged {
        /// Byte offset on the target of the first byte that differs.
        first: u64,
        /// The byte that was written there.
        expected: u8,
        /// The byte that was read.
        found: u8,
        /// How many bytes of the block differ.
        differing: usize,
    },
    /// Some of its sectors are right, others hold something else throughout.
    Torn {
        /// Byte offset on the target of the first wrong sector.
        first: u64,
        /// Sectors of 512 bytes that are wrong.
        wrong: usize,
        /// And of how many.
        of: usize,
        /// What they hold.
        holding: Holding,
    },
    /// One byte throughout: never written, or discarded.
    Constant {
        /// That byte.
        byte: u8,
    },
    /// A whole block that was written to another offset.
    Misplaced {
        /// The offset it was written to.
        from: u64,
    },
    /// A whole block that was written to another file of the job.
    OtherFile {
        /// The file that it was written to, from 0.
        file: u16,
        /// The offset that it was written to.
        from: u64,
    },
    /// A whole block of an earlier run: this run's write was lost.
    Stale,
    /// A whole block of an earlier write of this run: the last one was lost.
    Overwritten {
        /// Which write of the place it is of, from 1.
        found: u32,
        /// Which it should be of.
        wanted: u32,
    },
    /// A whole block of a later write than any that is known of.
    Newer {
        /// Which write of the place it is of, from 1.
        found: u32,
        /// The last one that is known of.
        known: u32,
    },
    /// What stood there before a trim: the trim was lost.
    Untrimmed {
        /// Byte offset on the target of the first byte that is not zero.
        first: u64,
    },
    /// A whole block of a job with another seed.
    OtherSeed {
        /// The seed it carries.
        seed: u64,
        /// The seed of this job.
        wanted: u64,
    },
    /// The start of a block of another length.
    OtherLength {
        /// The length in its header.
        length: u32,
    },
    /// A block of another `verify`.
    OtherMethod {
        /// fio's word for it; empty if its number is none that we know.
        found: &'static str,
        /// This job's.
        wanted: &'static str,
    },
    /// Nothing that a verified job wrote.
    Foreign,
}

/// What the wrong sectors of a torn block hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// What was there before, by this run's last write but one.
    Earlier,
    /// Zeroes.
    Zeroes,
    /// Something else.
    Other,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block at offset {}", self.offset)?;
        if self.file > 0 {
            write!(f, " of file {}", self.file)?;
        }
        write!(f, " ({} bytes): ", self.length)?;
        match &self.finding {
            Finding::Damaged { first, expected, found, differing } => write!(
                f,
                "first wrong byte at offset {first}: expected {expected:#04x}, found {found:#04x}; \
                 {differing} of {} bytes differ",
                self.length
            ),
            Finding::Torn { first, wrong, of, holding } => {
                let what = match holding {
                    Holding::Earlier => "the write before: a torn write",
                    Holding::Zeroes => "zeroes: a torn write",
                    Holding::Other => "something else: a torn write, or they were overwritten",
                };
                write!(
                    f,
                    "{wrong} of {of} sectors, the first at offset {first}, do not hold the last \
                     write but {what}"
                )
            }
            Finding::Constant { byte } => {
                write!(f, "every byte is {byte:#04x}: never written, or discarded")
            }
            Finding::Misplaced { from } => write!(
                f,
                "holds the block that was written at offset {from}: a misdirected write or read"
            ),
            Finding::OtherFile { file, from } => write!(
                f,
                "holds the block that was written at offset {from} of file {file}: a misdirected \
                 write or read"
            ),
            Finding::Stale => {
                write!(f, "holds the block of another run: this run's write was lost")
            }
            Finding::Overwritten { found, wanted } => write!(
                f,
                "holds write {found} of this place, not write {wanted}, the last: a lost write"
            ),
            Finding::Newer { found, known } => write!(
                f,
                "holds write {found} of this place, but only {known} are known: give the options, \
                 or the state, of the run that wrote last"
            ),
            Finding::Untrimmed { first } => write!(
                f,
                "was trimmed, but still holds what was written before, from offset {first} on: a \
                 lost trim, or a target whose trimmed blocks are not zero (--trim_verify_zero=0)"
            ),
            Finding::OtherSeed { seed, wanted } => write!(
                f,
                "was written with randseed={seed}, not {wanted}: a lost write, or give --randseed={seed}"
            ),
            Finding::OtherLength { length } => write!(
                f,
                "was written in blocks of {length} bytes, not {}: a lost write, or give the same bs \
                 and verify_interval",
                self.length
            ),
            Finding::OtherMethod { found, wanted } => {
                let found = if found.is_empty() { "a check that is unknown here" } else { found };
                write!(f, "was written with verify={found}, not {wanted}")
            }
            Finding::Foreign => write!(f, "holds nothing that a verified job wrote"),
        }
    }
}
