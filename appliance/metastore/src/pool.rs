//! The metadata of a storage pool: a redb database on the pool's own block device.
//!
//! What it is: eight tables of bytes by bytes ([`Table`]) with transactions, on whatever implements
//! [`MetadataDevice`]: in a pool, the clusters that hold its metadata. [`PoolStore::create`] makes it,
//! [`PoolStore::open`] opens it, reading a bounded amount whatever is in it and however it was left.
//!
//! What it is not: it does not know what the records mean. It has no thread and does no I/O but within
//! its calls, which block: it belongs on a thread where nothing else waits.
//!
//! Durability: when [`PoolTransaction::commit`] returns `Ok`, the transaction survives a power cut on
//! a device that honours FLUSH. A transaction is wholly there or wholly absent. What redb writes is
//! gathered in memory until it asks for durability, then written in large pieces and flushed.
//!
//! Space: the database grows by [`MetadataDevice::grow`], about doubling each time, and gives room
//! back in [`PoolStore::compact_if_it_pays`]. No read transaction outlives a call, so that pages are
//! used again at once.
//!
//! Versions: the store holds the version of its schema and the least version that a reader must know.
//! An older one is brought forward when it is opened; a newer one is opened if it allows that.
//!
//! Threading: a store stays on the thread that opened it. It is neither `Send` nor `Sync`.
//!
//! Errors: [`PoolStoreError`]. A full device, an unreadable block or a damaged page costs the call that
//! met it. After a failed write or flush nobody knows what the device holds: the store is faulted and answers
//! nothing more until it is opened again. No panic of redb leaves this module.

mod backend;
mod error;
mod schema;
mod transaction;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use redb::{ReadableDatabase as _, ReadableTableMetadata as _, TableDefinition};

pub use self::error::PoolStoreError;
pub use self::schema::SCHEMA_VERSION;
pub use self::transaction::{PoolTransaction, TRANSACTION_BYTES_MAX};

use self::backend::{Backend, Fault};
use self::schema::{Counters, SCHEMA, Schema};
use self::transaction::Changes;

/// Offsets and lengths of everything that a [`MetadataDevice`] is asked for are multiples of this.
pub const METADATA_BLOCK_BYTES: u64 = 4096;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// A database that is smaller than this is left as it is.
const COMPACT_LEN_MIN: u64 = 8 << 20;

/// Live bytes above which compaction would take too long. It also bounds what an open reads after a
/// power cut in the middle of a compaction, the one time when redb cannot take the quick way.
const COMPACT_LIVE_MAX: u64 = 64 << 20;

/// Compaction pays when the database is longer than this many times what lives in it: normal growth
/// (doubling, pages two thirds full, old versions) stays below.
const COMPACT_RATIO: u64 = 8;

/// What the database lies on: consecutive bytes, in a pool the extents of its metadata.
///
/// All offsets and lengths are multiples of [`METADATA_BLOCK_BYTES`] and within `len`. What was never
/// written may hold anything.
pub trait MetadataDevice: fmt::Debug {
    /// Bytes that can be used now.
    fn len(&self) -> u64;

    /// Whether there are none yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// When the device cannot.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes; durable only after the next `flush`.
    ///
    /// # Errors
    /// When the device cannot. The store is then faulted.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes every write so far durable.
    ///
    /// # Errors
    /// When the device cannot. The store is then faulted.
    fn flush(&self) -> io::Result<()>;

    /// Makes room for at least `len` bytes; what is there stays. The new length must be durable when
    /// this returns. Each growth about doubles the length up to 4 GiB: who keeps a reserve keeps as
    /// much as there is now.
    ///
    /// # Errors
    /// When there is no room. The transaction that needed it fails, nothing else.
    fn grow(&self, len: u64) -> io::Result<()>;

    /// Takes back what lies beyond `len`, or a part of it. The new length must be durable before the
    /// room is used for something else.
    ///
    /// # Errors
    /// When the new length could not be made durable.
    fn shrink(&self, len: u64) -> io::Result<()> {
        let _ = len;
        Ok(())
    }
}

/// The tables of a pool. Each maps bytes to bytes, in the order of the bytes of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The pool itself: its counters.
    Pool,
    /// Volumes and snapshots: names on layers.
    Names,
    /// Layers: parents, states.
    Layers,
    /// Pieces of the layers' maps.
    Map,
    /// Free clusters.
    Free,
    /// Long work and how far it is.
    Operations,
    /// Checksums of user data that cannot change any more. Since version 2.
    Sums,
    /// The state of the node whose system pool this is. Since version 3.
    Node,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 8] = [
        Self::Pool,
        Self::Names,
        Self::Layers,
        Self::Map,
        Self::Free,
        Self::Operations,
        Self::Sums,
        Self::Node,
    ];

    /// Its name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::Names => "names",
            Self::Layers => "layers",
            Self::Map => "map",
            Self::Free => "free",
            Self::Operations => "operations",
            Self::Sums => "sums",
            Self::Node => "node",
        }
    }

    const fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How to open a [`PoolStore`].
#[derive(Clone, Copy, Debug)]
pub struct PoolStoreOptions {
    /// Memory for pages of the database, bytes.
    pub cache_bytes: usize,
}

impl Default for PoolStoreOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 16 << 20,
        }
    }
}

/// What a store is and has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStoreStats {
    /// Bytes of the device.
    pub device_bytes: u64,
    /// Bytes of it that the database spans.
    pub database_bytes: u64,
    /// Bytes of all keys and values.
    pub live_bytes: u64,
    /// Transactions committed since the store was created.
    pub commits: u64,
    /// Bytes read from the device since it was opened, opening included.
    pub bytes_read: u64,
    /// Bytes written to the device since it was opened.
    pub bytes_written: u64,
    /// Flushes since it was opened.
    pub flushes: u64,
    /// Opening had to walk the whole database: it was left in the middle of a compaction.
    pub repaired: bool,
}

/// An open database and its way to the device.
struct Open {
    database: redb::Database,
    backend: Rc<Backend>,
}

/// The store. See the module's documentation.
pub struct PoolStore {
    device: Rc<dyn MetadataDevice>,
    options: PoolStoreOptions,
    schema: Schema,
    /// None once faulted.
    open: RefCell<Option<Open>>,
    /// Why it is faulted.
    fault: RefCell<String>,
    counters: Cell<Counters>,
    /// Live bytes at the last compaction that did not help.
    in_vain_at: Cell<Option<u64>>,
}

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

impl PoolStore {
    /// Makes an empty store. What the device holds is lost.
    ///
    /// # Errors
    /// When the device fails or has no room for about 2 MiB.
    pub fn create(
        device: Rc<dyn MetadataDevice>,
        options: PoolStoreOptions,
    ) -> Result<Self, PoolStoreError> {
        Self::start(device, options, SCHEMA, true)
    }

    /// Opens a store, however it was left.
    ///
    /// # Errors
    /// When the device fails, holds no store, a damaged one, or one that is too new. Never panics on
    /// what it finds.
    pub fn open(
        device: Rc<dyn MetadataDevice>,
        options: PoolStoreOptions,
    ) -> Result<Self, PoolStoreError> {
        Self::start(device, options, SCHEMA, false)
    }

    fn start(
        device: Rc<dyn MetadataDevice>,
        options: PoolStoreOptions,
        schema: Schema,
        create: bool,
    ) -> Result<Self, PoolStoreError> {
        let open = open_database(&device, options, create)?;
        let counters = guarded(&open, |database| {
            if create {
                schema.initialize(database)
            } else {
                schema.check(database)
            }
        });
        let counters = match counters.map_err(Failure::into_error) {
            Ok(Ok(counters)) => counters,
            Ok(Err(error)) | Err(error) => {
                // What this program may not use it does not write to.
                open.backend.stop();
                drop_quietly(open);
                return Err(error);
            }
        };
        Ok(Self {
            device,
            options,
            schema,
            open: RefCell::new(Some(open)),
            fault: RefCell::default(),
            counters: Cell::new(counters),
            in_vain_at: Cell::new(None),
        })
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the device cannot read it, or the store is faulted.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, PoolStoreError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(table.definition())?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        })
    }

    /// The first `limit` keys of a range with their values, in order.
    ///
    /// # Errors
    /// When the device cannot read them, or the store is faulted.
    pub fn scan<'k>(
        &self,
        table: Table,
        range: impl RangeBounds<&'k [u8]>,
        limit: usize,
    ) -> Result<Entries, PoolStoreError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        if is_inverted(&range) {
            return Ok(Vec::new());
        }
        self.read(|database| {
            let table = database.begin_read()?.open_table(table.definition())?;
            let mut entries = Vec::new();
            for entry in table.range::<&[u8]>(range)?.take(limit) {
                let (key, value) = entry?;
                entries.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(entries)
        })
    }

    /// Records in a table. Takes the same time however many there are.
    ///
    /// # Errors
    /// When the device cannot read, or the store is faulted.
    pub fn len(&self, table: Table) -> Result<u64, PoolStoreError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(table.definition())?;
            Ok(table.len()?)
        })
    }

    /// Begins a transaction. Its changes are in memory until [`PoolTransaction::commit`]; dropped, it
    /// leaves no trace. Of two transactions with the same key the later commit wins.
    pub fn transaction(&self) -> PoolTransaction<'_> {
        PoolTransaction::new(self)
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> PoolStoreStats {
        let counters = self.counters.get();
        let mut stats = PoolStoreStats {
            device_bytes: self.device.len(),
            live_bytes: counters.live_bytes,
            commits: counters.commits,
            ..PoolStoreStats::default()
        };
        if let Some(open) = &*self.open.borrow() {
            open.backend.add_to(&mut stats);
        }
        stats
    }

    /// Whether the store has to be opened again before it does anything more.
    #[must_use]
    pub fn is_faulted(&self) -> bool {
        self.open.borrow().is_none()
    }

    /// Moves what lives to the front and gives the rest of the device back, if that gains much and
    /// takes little. True if the device has become shorter.
    ///
    /// Blocks for some 100 ms at most: it does nothing with more than 64 MiB of live bytes. A power cut
    /// in the middle loses nothing, but the next open walks the whole database once.
    ///
    /// # Errors
    /// As a commit.
    pub fn compact_if_it_pays(&self) -> Result<bool, PoolStoreError> {
        let live = self.counters.get().live_bytes;
        let before = self.device.len();
        let pays = before > COMPACT_LEN_MIN && before > live.saturating_mul(COMPACT_RATIO);
        // Tried before without success, and not much has been deleted since.
        let in_vain = self.in_vain_at.get().is_some_and(|at| live > at / 2);
        if !pays || in_vain || live > COMPACT_LIVE_MAX {
            return Ok(false);
        }
        self.compact()?;
        let database_bytes = self.stats().database_bytes;
        // Room for the next growth, so that the device does not go up and down.
        let keep = (database_bytes * 2).next_multiple_of(METADATA_BLOCK_BYTES);
        if keep < before {
            let shrunk = self.device.shrink(keep);
            shrunk.map_err(|source| PoolStoreError::Shrink { len: keep, source })?;
        }
        let shorter = self.device.len() < before;
        self.in_vain_at.set((!shorter).then_some(live));
        Ok(shorter)
    }

    /// Reads the whole database and compares every page with its sum. True if all is well, false if
    /// free pages were not in order and are now.
    ///
    /// # Errors
    /// [`PoolStoreError::Damaged`] if something that lives does not match; else as a commit. It takes
    /// as long as reading everything takes.
    pub fn check(&self) -> Result<bool, PoolStoreError> {
        self.alone(|database| Ok(database.check_integrity()?))
    }

    fn compact(&self) -> Result<(), PoolStoreError> {
        self.alone(|database| {
            database.compact()?;
            Ok(())
        })
    }

    /// Runs work that redb does with nothing else under way, and that leaves its allocator's state
    /// unstored: from here on opening is quick again.
    fn alone<T>(
        &self,
        work: impl FnOnce(&mut redb::Database) -> Result<T, redb::Error>,
    ) -> Result<T, PoolStoreError> {
        let mut slot = self.open.borrow_mut();
        let Some(Open { database, backend }) = &mut *slot else {
            return Err(self.faulted());
        };
        let work = AssertUnwindSafe(|| {
            let result = work(database)?;
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(true);
            transaction.commit()?;
            Ok(result)
        });
        let result = Failure::of(catch_unwind(work), backend);
        drop(slot);
        // None of our records was changed, so whichever way it ended it is the same to us.
        result.map_err(|failure| self.met(failure))
    }

    /// Closes the store cleanly. Dropping it does the same and keeps quiet about errors.
    ///
    /// # Errors
    /// When the device failed. Everything committed is there all the same.
    pub fn close(self) -> Result<(), PoolStoreError> {
        let Some(open) = self.open.borrow_mut().take() else {
            return Err(self.faulted());
        };
        let Open { database, backend } = open;
        let result = catch_unwind(AssertUnwindSafe(|| {
            drop(database);
            Ok(())
        }));
        Failure::of(result, &backend).map_err(Failure::into_error)?;
        match backend.take_fault() {
            Some(fault) => Err(fault.into_error()),
            None => Ok(()),
        }
    }

    /// Commits changes. Called by the transaction.
    fn commit(&self, changes: &Changes) -> Result<(), PoolStoreError> {
        let before = self.counters.get();
        let slot = self.open.borrow();
        let Some(open) = &*slot else {
            return Err(self.faulted());
        };
        let prepared = guarded(open, |database| changes.prepare(database, before));
        let result = prepared.and_then(|(transaction, counters)| {
            guarded(open, |_| Ok(transaction.commit()?))?;
            Ok(counters)
        });
        drop(slot);
        match result {
            Ok(counters) => {
                self.counters.set(counters);
                Ok(())
            }
            Err(failure) => {
                let error = self.met(failure);
                // redb works on after the point of no return: if the store was opened again and has
                // the transaction, then it is durable and only the tidying up has failed.
                if self.counters.get().commits == before.commits {
                    return Err(error);
                }
                Ok(())
            }
        }
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&redb::Database) -> Result<T, redb::Error>,
    ) -> Result<T, PoolStoreError> {
        let slot = self.open.borrow();
        let Some(open) = &*slot else {
            return Err(self.faulted());
        };
        let result = guarded(open, work);
        drop(slot);
        result.map_err(|failure| self.met(failure))
    }

    /// What a failure means for the store: faulted, or opened again. redb refuses everything after an
    /// I/O error until then, and after a panic in the middle of something it is not to be trusted.
    fn met(&self, failure: Failure) -> PoolStoreError {
        // The old one first, and without its last words: they would not be in order with what it has
        // failed to do, and two at a time would write to the same place.
        if let Some(old) = self.open.borrow_mut().take() {
            old.backend.stop();
            drop_quietly(old);
        }
        if failure.leaves_device_known() {
            let device = Rc::clone(&self.device);
            let again = Self::start(device, self.options, self.schema.clone(), false);
            if let Ok(again) = again {
                self.open.replace(again.open.take());
                self.counters.set(again.counters.get());
                return failure.into_error();
            }
        }
        let error = failure.into_error();
        self.fault.replace(crate::database::chain(&error));
        error
    }

    fn faulted(&self) -> PoolStoreError {
        PoolStoreError::Faulted {
            detail: self.fault.borrow().clone(),
        }
    }
}

impl Drop for PoolStore {
    fn drop(&mut self) {
        if let Some(open) = self.open.get_mut().take() {
            drop_quietly(open);
        }
    }
}

impl fmt::Debug for PoolStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolStore")
            .field("device", &self.device)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// A failed piece of redb work: an error or a panic.
#[derive(Debug)]
struct Failure {
    detail: String,
    fault: Option<Fault>,
}

impl Failure {
    fn of<T>(
        result: std::thread::Result<Result<T, redb::Error>>,
        backend: &Backend,
    ) -> Result<T, Self> {
        let detail = match result {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => crate::database::panic_text(&*panic),
        };
        let fault = backend.take_fault();
        Err(Self { detail, fault })
    }

    /// No write is lost, so opening the device again shows what redb committed, and flushes it.
    fn leaves_device_known(&self) -> bool {
        !self.fault.as_ref().is_some_and(Fault::is_write)
    }

    fn into_error(self) -> PoolStoreError {
        match self.fault {
            Some(fault) => fault.into_error(),
            None => PoolStoreError::Damaged {
                detail: self.detail,
            },
        }
    }
}

/// Runs redb work; a panic in it becomes a failure.
fn guarded<T>(
    open: &Open,
    work: impl FnOnce(&redb::Database) -> Result<T, redb::Error>,
) -> Result<T, Failure> {
    let result = catch_unwind(AssertUnwindSafe(|| work(&open.database)));
    Failure::of(result, &open.backend)
}

fn open_database(
    device: &Rc<dyn MetadataDevice>,
    options: PoolStoreOptions,
    create: bool,
) -> Result<Open, PoolStoreError> {
    let backend = Rc::new(Backend::new(Rc::clone(device), create));
    if !create && device.is_empty() {
        return Err(PoolStoreError::Damaged {
            detail: "there is none".to_owned(),
        });
    }
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        let mut builder = redb::Builder::new();
        builder.set_cache_size(options.cache_bytes);
        let noted = Rc::clone(&backend);
        builder.set_repair_callback(move |_| noted.note_repair());
        Ok(builder.create_with_backend(backend::Handle::new(&backend))?)
    }));
    match Failure::of(attempt, &backend) {
        Ok(database) => Ok(Open { database, backend }),
        Err(failure) => Err(failure.into_error()),
    }
}

fn drop_quietly(open: Open) {
    // A panic in here would be redb's, over a database that is not used any more.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(open)));
}

fn is_inverted(range: &(Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match *range {
        (Bound::Excluded(from), Bound::Excluded(to)) => from >= to,
        (
            Bound::Included(from) | Bound::Excluded(from),
            Bound::Included(to) | Bound::Excluded(to),
        ) => from > to,
        _ => false,
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod version_tests;
