//! Durable records: of a node, and of a storage pool. This is the only crate that names redb.
//!
//! What it is: two stores, each one redb database.
//! - [`StateStore`]: the state of a node in a file. Records `(kind, name) -> bytes`, with a generation
//!   that grows by one with every batch. [`StateStore::open`] gives everything that is in it;
//!   [`StateStore::commit`] adds a [`Batch`] and calls back when it is durable.
//! - [`pool::PoolStore`]: the metadata of a pool on the pool's own device. See [`pool`].
//!
//! What it is not: it does not know what the bytes mean.
//!
//! The rest is about `StateStore`. It is never asked while the program runs: the owner keeps the truth
//! in memory and writes through.
//!
//! Durability: a batch is one transaction, wholly in or wholly out. When the callback says `Ok`, the
//! batch survives a power cut (on a disk that honours flushes). Batches that wait while another is
//! written go into the next transaction together: sixteen callers pay for one flush, not sixteen.
//!
//! Order: batch `n` follows batch `n - 1`. When one fails, everything that was queued behind it fails
//! too ([`CommitError::OutOfOrder`]), because it may rest on what is not there. The owner then takes
//! its changes back and goes on from the generation in the error.
//!
//! Threading: one thread per store owns the database; it ends when the store is dropped, after it has
//! written what was queued. The queue is bounded; at the bound `commit` gives the batch back.
//!
//! Errors: [`OpenError`] and [`CommitError`]; each says what failed, on which file, and what to do.

mod database;
pub mod pool;
mod writer;

use std::path::Path;

pub use crate::writer::StateStore;

/// Version of the layout that this program writes.
pub const FORMAT_VERSION: u64 = 1;

/// Batches that may wait to be written.
pub const QUEUE_MAX: usize = 4096;

/// Longest kind or name, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What sort of object it is.
    pub kind: String,
    /// Its name; unique within its kind.
    pub name: String,
    /// Generation of the batch that wrote it.
    pub generation: u64,
    /// The value as it was given.
    pub value: Vec<u8>,
}

/// Everything that a store holds when it is opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// Generation of the last batch; 0 in an empty store.
    pub generation: u64,
    /// All records, in the order of kind and name.
    pub records: Vec<Record>,
}

/// Changes that become durable together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    generation: u64,
    changes: Vec<RecordChange>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RecordChange {
    Put {
        kind: String,
        name: String,
        value: Vec<u8>,
    },
    Delete {
        kind: String,
        name: String,
    },
}

impl Batch {
    /// An empty batch. `generation` must be that of the batch before it plus one.
    #[must_use]
    pub fn new(generation: u64) -> Batch {
        Batch {
            generation,
            changes: Vec::new(),
        }
    }

    /// The generation it will make.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Adds or replaces a record.
    pub fn put(&mut self, kind: &str, name: &str, value: Vec<u8>) {
        self.changes.push(RecordChange::Put {
            kind: kind.to_owned(),
            name: name.to_owned(),
            value,
        });
    }

    /// Removes a record; nothing happens when there is none.
    pub fn delete(&mut self, kind: &str, name: &str) {
        self.changes.push(RecordChange::Delete {
            kind: kind.to_owned(),
            name: name.to_owned(),
        });
    }

    /// Its changes in order: kind, name, and the value, which is `None` for a record that goes.
    pub fn changes(&self) -> impl Iterator<Item = (&str, &str, Option<&[u8]>)> {
        self.changes.iter().map(|change| match change {
            RecordChange::Put { kind, name, value } => {
                (kind.as_str(), name.as_str(), Some(value.as_slice()))
            }
            RecordChange::Delete { kind, name } => (kind.as_str(), name.as_str(), None),
        })
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be opened or made.
    #[error("cannot open the state in {path}; check that the directory exists and may be written")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error(
        "the state in {path} is in use by another process; stop that one or give another --state-dir"
    )]
    InUse {
        /// The file.
        path: String,
    },
    /// A newer program wrote it.
    #[error(
        "the state in {path} needs a program that reads format {needed}, this one reads up to {known}; \
         run the newer program, or give another --state-dir"
    )]
    Newer {
        /// The file.
        path: String,
        /// Least format that a reader must know.
        needed: u64,
        /// Format that this program knows.
        known: u64,
    },
    /// It is no state file, or it is damaged.
    #[error(
        "the state in {path} cannot be read ({detail}); put back a copy of the file, or move it away \
         to start with an empty state"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What redb said.
        detail: String,
    },
    /// The thread could not be started.
    #[error("cannot start the thread that writes {path}")]
    Thread {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why a batch is not durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The queue is full; try again when some of it has been written.
    #[error("{QUEUE_MAX} changes wait to be written already; try again later")]
    QueueFull,
    /// A kind, name or value is too long.
    #[error("{what} of {len} bytes is longer than {max} bytes")]
    TooLong {
        /// "a kind", "a name" or "a value".
        what: &'static str,
        /// Its length.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// It does not follow the last batch, because one before it failed.
    #[error(
        "change {given} does not follow {stored}, the last one stored; a change before it failed"
    )]
    OutOfOrder {
        /// Generation of the batch.
        given: u64,
        /// Generation of the store.
        stored: u64,
    },
    /// The disk refused. The batch is not stored; later ones may be.
    #[error(
        "cannot write the state to {path} ({detail}); free space or mend the disk, then try again"
    )]
    Storage {
        /// The file.
        path: String,
        /// What redb said.
        detail: String,
    },
    /// The disk refused at the very end, so that nobody knows whether the batch is stored. Nothing is
    /// written any more; the next start reads what there is.
    #[error("the outcome of a write to {path} is not known ({detail}); mend the disk and restart")]
    Unknown {
        /// The file.
        path: String,
        /// What redb said.
        detail: String,
    },
    /// The batch is of those that must outlive a power cut, and cannot be kept so now.
    #[error("it could not be kept through a power cut: {reason}")]
    NotKept {
        /// Why not.
        reason: String,
    },
    /// The store was closed.
    #[error("the state is closed")]
    Closed,
}

impl StateStore {
    /// Opens the store in `path`, or makes an empty one with access for its owner only, and reads
    /// everything in it.
    ///
    /// # Errors
    /// When the file cannot be used; the error says what to do. Never panics on a damaged file.
    pub fn open(path: &Path) -> Result<(StateStore, Contents), OpenError> {
        let database = database::Database::open(Box::new(database::OnDisk::new(path)))?;
        StateStore::start(database)
    }

    /// Makes the store in `path` with these contents, which were kept elsewhere, and opens it. The file
    /// appears with all of them or not at all; one that is there is replaced.
    ///
    /// # Errors
    /// As [`StateStore::open`].
    pub fn restore(path: &Path, contents: &Contents) -> Result<(StateStore, Contents), OpenError> {
        database::write_new(path, contents)?;
        StateStore::open(path)
    }
}

#[cfg(test)]
mod tests;
