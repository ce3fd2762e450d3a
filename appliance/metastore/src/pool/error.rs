//! [`PoolStoreError`].

use std::io;

use super::SCHEMA_VERSION;

/// Why a call to a [`super::PoolStore`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolStoreError {
    /// The device could not read, write or flush.
    #[error(
        "cannot {operation} the pool's metadata at byte {offset}; see what the device reports, then \
         open the pool again"
    )]
    Device {
        /// `read`, `write` or `flush`.
        operation: &'static str,
        /// Where in the metadata.
        offset: u64,
        /// What the device said.
        source: io::Error,
    },
    /// The metadata could not grow. The transaction is not stored; everything else goes on.
    #[error(
        "no room to let the pool's metadata grow to {wanted_bytes} bytes; delete volumes or snapshots, \
         or grow the pool, then try again"
    )]
    NoSpace {
        /// Bytes that it had to have.
        wanted_bytes: u64,
        /// What the device said.
        source: io::Error,
    },
    /// The metadata is smaller now, but the device could not be told.
    #[error("cannot shrink the pool's metadata to {len} bytes; it keeps its length")]
    Shrink {
        /// Bytes that would have been enough.
        len: u64,
        /// What the device said.
        source: io::Error,
    },
    /// There is no store, or it is damaged.
    #[error(
        "the pool's metadata cannot be read ({detail}); put back a copy of the device, or delete the \
         pool and create it again"
    )]
    Damaged {
        /// What is wrong.
        detail: String,
    },
    /// A newer program wrote it.
    #[error(
        "the pool's metadata needs a program that reads version {needed}, this one reads up to \
         {SCHEMA_VERSION}; run the newer program"
    )]
    Newer {
        /// Least version that a reader must know.
        needed: u64,
    },
    /// Something failed before, and nobody knows what the device holds.
    #[error("the pool's metadata is not used any more since this: {detail}; open the pool again")]
    Faulted {
        /// What failed first.
        detail: String,
    },
    /// A key, a value or a transaction is too long. Nothing has changed.
    #[error("{what} of {len} bytes is longer than {max} bytes")]
    TooLong {
        /// "a key", "a value" or "a transaction".
        what: &'static str,
        /// Its length.
        len: usize,
        /// The bound.
        max: usize,
    },
}
