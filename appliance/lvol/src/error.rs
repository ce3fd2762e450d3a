//! [`LvolError`].

use block::{BlockError, IoError};
use metastore::pool::PoolStoreError;

use crate::format::FormatError;

/// Why a call to a pool failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LvolError {
    /// The device below failed.
    #[error("cannot {operation} byte {offset} of the pool's device")]
    Device {
        /// `read`, `write` or `flush`.
        operation: &'static str,
        /// Byte on the device.
        offset: u64,
        /// What it said.
        source: IoError,
    },
    /// No channel to the device below, or no buffers.
    #[error("cannot open the pool's device")]
    Open {
        /// What the device said.
        #[source]
        source: BlockError,
    },
    /// There are no buffers for the pool's own I/O.
    #[error("no buffers for the pool's own i/o; raise iobuf small_pool_count")]
    Buffers {
        /// What the pool of buffers said.
        #[source]
        source: dma::DmaError,
    },
    /// The device holds something else.
    #[error("the device holds {what}; use force to overwrite it")]
    Foreign {
        /// What was found.
        what: String,
    },
    /// The device holds no pool.
    #[error("the device holds no pool: {found}")]
    NoPool {
        /// What was found.
        found: String,
    },
    /// The device is too small for a pool.
    #[error("a device of {len} bytes is too small for a pool; it needs {needed}")]
    TooSmall {
        /// Bytes of the device.
        len: u64,
        /// Bytes that a pool with this cluster size needs.
        needed: u64,
    },
    /// A cluster or a block size that a pool cannot have, or a device beyond 64 TiB.
    #[error("{0}")]
    Size(String),
    /// A record of the pool is damaged.
    #[error("the record {record} of the pool is damaged; run pool check")]
    Damaged {
        /// Which record.
        record: String,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// Data that a repair found lost.
    #[error("data are lost there; see the label of the volume")]
    Lost,
    /// The metadata database failed.
    #[error("the pool's metadata failed")]
    Store {
        /// What it said.
        #[from]
        source: PoolStoreError,
    },
    /// What was changed could not be made durable.
    #[error("the pool could not commit: {reason}")]
    Commit {
        /// What failed.
        reason: String,
    },
    /// A name that cannot be.
    #[error("the name {name:?} {problem}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No volume or snapshot of this name.
    #[error("there is no {name:?} in the pool")]
    NotFound {
        /// The name.
        name: String,
    },
    /// A volume or snapshot whose record is damaged.
    #[error("the record of {name:?} cannot be read; run pool check and pool repair")]
    NameDamaged {
        /// The name.
        name: String,
    },
    /// The name is taken.
    #[error("{name:?} is there already")]
    Exists {
        /// The name.
        name: String,
    },
    /// The call does not fit what the name is.
    #[error("{name:?} {problem}")]
    Refused {
        /// The name.
        name: String,
        /// Why.
        problem: String,
    },
    /// The block device that a volume lies on is not there, or not what it was. It may come.
    #[error("the block device {name:?} below the volume is missing: {reason}")]
    ExternalMissing {
        /// What it was called.
        name: String,
        /// What was found.
        reason: String,
    },
    /// The block device that a volume lies on could not be read.
    #[error("cannot read the block device {name:?} below the volume: {reason}")]
    ExternalRead {
        /// What it is called.
        name: String,
        /// What it said.
        reason: String,
    },
    /// Not enough free clusters.
    #[error("{wanted} clusters are needed and {free} are free; delete something or grow the pool")]
    NoSpace {
        /// Clusters needed.
        wanted: u64,
        /// Clusters that may be taken.
        free: u64,
    },
    /// The pool is faulted: nobody knows what its device holds.
    #[error("the pool stopped after this: {reason}; open it again")]
    Faulted {
        /// What failed first.
        reason: String,
    },
    /// The pool was closed before the call ended.
    #[error("the pool was closed")]
    Closed,
    /// More calls wait than may.
    #[error("{waiting} calls wait for the pool already; try again")]
    Busy {
        /// Calls waiting.
        waiting: usize,
    },
}
