//! Pools and thin volumes on one block device: layers, snapshots, clones.
//!
//! What it is: [`PoolWorker`] makes and opens a pool on a [`block::Bdev`]; [`Pool`] is the handle that
//! management calls go through; [`Volume`] is a volume or a snapshot as a [`block::BlockDevice`].
//!
//! What it is not: it has no threads, no clock and no sleep. It does not know NVMe, and it does not name
//! redb: `metastore` keeps its records.
//!
//! # How it works
//! A volume or a snapshot is a name on a *layer*. A layer is a sparse map from cluster to cluster of the
//! device, 128 slots to a *piece*; what it does not have is its parent's. Each cluster belongs to one
//! slot of one layer. A snapshot gives the volume a new empty layer: nothing is copied. See [`map`] for
//! slots and granules, [`format`] for what is on the device, `docs/pool-format.md` for its bytes.
//!
//! # Threading
//! Each thread that does I/O has a channel to the volume, as everywhere in `block`. Channels share the
//! pieces as atomics and touch no lock for an I/O to a cluster that is written. The [`PoolWorker`] is
//! stepped on one thread of its own, which may block; it alone touches the metadata. Channels and calls
//! reach it through a mailbox; it wakes them by their wakers.
//!
//! # Durability
//! A write that has completed is on the device below, and where it is stands in the log of first writes
//! until the next FLUSH, FUA or timer commits it. So it survives a crash of the program, and a power cut if the
//! device has no volatile cache; with one, FLUSH and FUA do. A management call is durable when its promise
//! is kept. `docs/adr/0008-first-writes-are-logged.md` says why that holds.
//!
//! # Errors
//! Calls end in [`LvolError`], I/O in [`block::IoError`]. When a write of the metadata has failed nobody
//! knows what the device holds: the pool stops, and is to be opened again.

mod error;
pub mod format;
pub mod map;
mod pool;
mod volume;

pub use error::LvolError;
pub use pool::{
    Checkup, ComparedSums, CreateOptions, Differing, Extents, ExternalDevices, ExternalInfo,
    Finding, FrozenPiece, Host, LabelChanges, MapCursor, MappedRun, MappedRuns, NewVolume, Next,
    NoExternalDevices, NodeChange, NodeLook, NodeState, Operation, OperationKind, OperationState,
    POOL_BYTES_MAX, PieceSums, Pool, PoolInfo, PoolOptions, PoolWorker, Promise, REPAIRED_LABEL,
    RESERVED_LABELS, SYSTEM_LABEL, VolumeChange, VolumeExtent, VolumeInfo,
};
pub use volume::Volume;

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
