//! The map in memory: which cluster, zeroes or parent each granule of a volume is read from.

mod epoch;
mod fence;
mod gate;
mod granule;
mod piece;
mod slot;

pub use epoch::{Epoch, EpochChannel, Grace};
pub use gate::{Gate, GateSide};
pub(crate) use granule::GRANULES_MAX;
pub use granule::{
    ClusterSpan, Granularity, GranularityError, GranuleRange, GranuleRuns, Granules, PartialGranule,
};
pub use piece::{Change, PIECE_SLOTS, Piece, PieceError};
pub use slot::{Busy, Cluster, Look, LookRuns, SlotContent, Source};

/// Atomics of the machine, or of the model checker.
mod atomic {
    #[cfg(loom)]
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering, fence};
    #[cfg(not(loom))]
    pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};
}
