//! What can be wrong with bytes that were read from a pool.

use thiserror::Error;

use crate::map::GranularityError;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes end inside the record.
    #[error("{record} is cut off: it ends inside its {field}")]
    Truncated {
        /// Which record.
        record: &'static str,
        /// Where it ends.
        field: &'static str,
    },
    /// The bytes are not the ones that were written.
    #[error("{record} is damaged: its checksum is {stored:08x}, of its bytes {computed:08x}")]
    Checksum {
        /// Which record.
        record: &'static str,
        /// Checksum in the record.
        stored: u32,
        /// Checksum of what is there.
        computed: u32,
    },
    /// The record is sound, but of a version that this program does not know.
    #[error("{record} has format {version}, this program knows {known}: use a newer program")]
    Version {
        /// Which record.
        record: &'static str,
        /// Its version.
        version: u8,
        /// The version of this program.
        known: u8,
    },
    /// The record goes on after its end.
    #[error("{record} has {bytes} bytes after its end")]
    Trailing {
        /// Which record.
        record: &'static str,
        /// How many.
        bytes: usize,
    },
    /// A field has a value that it cannot have.
    #[error("{record} has {field} of {value}: {rule}")]
    Field {
        /// Which record.
        record: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// Text that is not UTF-8.
    #[error("{record} has a {field} that is not utf-8")]
    Text {
        /// Which record.
        record: &'static str,
        /// Which field.
        field: &'static str,
    },
    /// The map of a piece contradicts itself.
    #[error("map piece, slot {slot}: {rule}")]
    Slot {
        /// Index in the piece.
        slot: usize,
        /// What does not hold.
        rule: &'static str,
    },
    /// No superblock is here.
    #[error("no superblock of a pool: it does not begin with its magic")]
    Magic,
    /// The pool needs a newer program.
    #[error(
        "the pool has format {version} and needs a program that knows format {min_reader}, \
         this one knows {known}: use a newer program"
    )]
    TooNew {
        /// Format of the pool.
        version: u32,
        /// Least format that a program must know to use the pool.
        min_reader: u32,
        /// The format of this program.
        known: u32,
    },
    /// The superblock's cluster size is not one.
    #[error("superblock has a wrong cluster size")]
    Granularity(#[source] GranularityError),
    /// A metadata extent that cannot be.
    #[error("superblock, metadata extent {index} ({clusters} clusters at {start}): {rule}")]
    Extent {
        /// Which of the extents.
        index: usize,
        /// First cluster.
        start: u64,
        /// Clusters.
        clusters: u64,
        /// What does not hold.
        rule: &'static str,
    },
    /// The two copies of the superblock are of different pools.
    #[error("the two superblocks are of different pools: one of them is left from an older pool")]
    TwoPools,
}
