//! [`PoolTransaction`]: changes gathered in memory, committed together.

use std::collections::BTreeMap;

use super::schema::Counters;
use super::{KEY_BYTES_MAX, PoolStore, PoolStoreError, Table, VALUE_BYTES_MAX};

/// Bytes of keys and values that one transaction holds at most.
pub const TRANSACTION_BYTES_MAX: usize = 32 << 20;

/// Changes that become durable together.
#[derive(Debug)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct PoolTransaction<'a> {
    store: &'a PoolStore,
    changes: Changes,
    bytes: usize,
}

/// New values by table and key; `None` deletes.
#[derive(Debug, Default)]
pub(super) struct Changes(BTreeMap<Table, BTreeMap<Vec<u8>, Option<Vec<u8>>>>);

impl<'a> PoolTransaction<'a> {
    pub(super) fn new(store: &'a PoolStore) -> Self {
        Self {
            store,
            changes: Changes::default(),
            bytes: 0,
        }
    }

    /// Adds or replaces a record.
    ///
    /// # Errors
    /// [`PoolStoreError::TooLong`].
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), PoolStoreError> {
        check("a value", value.len(), VALUE_BYTES_MAX)?;
        self.change(table, key, Some(value))
    }

    /// Removes a record; nothing happens when there is none.
    ///
    /// # Errors
    /// [`PoolStoreError::TooLong`].
    pub fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), PoolStoreError> {
        self.change(table, key, None)
    }

    /// The value of a key, as it will be.
    ///
    /// # Errors
    /// As [`PoolStore::get`].
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, PoolStoreError> {
        let changed = self.changes.0.get(&table).and_then(|table| table.get(key));
        match changed {
            Some(value) => Ok(value.clone()),
            None => self.store.get(table, key),
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.0.is_empty()
    }

    /// Makes the changes durable, all or none.
    ///
    /// # Errors
    /// [`PoolStoreError::NoSpace`] and failed reads: nothing has changed, the store goes on. Anything
    /// else: the store is faulted, and only the next open tells whether the transaction is there.
    pub fn commit(self) -> Result<(), PoolStoreError> {
        if self.is_empty() {
            return Ok(());
        }
        self.store.commit(&self.changes)
    }

    fn change(
        &mut self,
        table: Table,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), PoolStoreError> {
        check("a key", key.len(), KEY_BYTES_MAX)?;
        let bytes = self.bytes + key.len() + value.map_or(0, <[u8]>::len);
        check("a transaction", bytes, TRANSACTION_BYTES_MAX)?;
        self.bytes = bytes;
        let table = self.changes.0.entry(table).or_default();
        table.insert(key.to_vec(), value.map(<[u8]>::to_vec));
        Ok(())
    }
}

impl Changes {
    /// A redb transaction with the changes in it, and what the counters will be.
    pub(super) fn prepare(
        &self,
        database: &redb::Database,
        before: Counters,
    ) -> Result<(redb::WriteTransaction, Counters), redb::Error> {
        let mut transaction = database.begin_write()?;
        // Stores the allocator's state with each commit: an open after a crash reads it instead of
        // walking every tree.
        transaction.set_quick_repair(true);
        let (mut added, mut removed) = (0, 0);
        for (table, changes) in &self.0 {
            let mut table = transaction.open_table(table.definition())?;
            for (key, value) in changes {
                let old = match value {
                    Some(value) => {
                        added += (key.len() + value.len()) as u64;
                        table.insert(key.as_slice(), value.as_slice())?
                    }
                    None => table.remove(key.as_slice())?,
                };
                if let Some(old) = old {
                    removed += (key.len() + old.value().len()) as u64;
                }
            }
        }
        let counters = Counters {
            commits: before.commits + 1,
            live_bytes: (before.live_bytes + added).saturating_sub(removed),
        };
        counters.store(&transaction)?;
        Ok((transaction, counters))
    }
}

fn check(what: &'static str, len: usize, max: usize) -> Result<(), PoolStoreError> {
    if len > max {
        return Err(PoolStoreError::TooLong { what, len, max });
    }
    Ok(())
}
