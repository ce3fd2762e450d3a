//! Versions of the store's layout, and how an old one becomes a new one.

use redb::{ReadableDatabase as _, TableDefinition};

use super::{PoolStoreError, Table};

/// Version of the layout that this program writes.
pub const SCHEMA_VERSION: u64 = 3;

/// Versions and counters.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const VERSION: &str = "schema_version";
const MIN_READER: &str = "min_reader_version";
const COMMITS: &str = "commits";
const LIVE_BYTES: &str = "live_bytes";

/// Changes a store of one version into the next one, inside a transaction. One that makes records
/// longer or shorter also corrects `live_bytes`.
pub(super) type Migration = fn(&redb::WriteTransaction) -> Result<(), redb::Error>;

/// What a program knows of versions.
#[derive(Clone)]
pub(super) struct Schema {
    /// The version that it writes.
    pub(super) version: u64,
    /// Least version that a reader of what it writes must know. Raised only when an older reader
    /// would misread or destroy something.
    pub(super) min_reader: u64,
    /// The first leads from version 1 to 2, and so on.
    pub(super) migrations: &'static [Migration],
}

pub(super) const SCHEMA: Schema = Schema {
    version: SCHEMA_VERSION,
    min_reader: 1,
    migrations: &[ADD_SUMS, ADD_NODE],
};

/// Version 2 has a table for checksums. Who does not know it leaves it alone, and nothing in it rests on being
/// told what an older program changes: see `docs/pool-format.md`.
const ADD_SUMS: Migration = |transaction| {
    transaction.open_table(Table::Sums.definition())?;
    Ok(())
};

/// Version 3 has a table for the state of a node. A program that does not know it leaves it alone: it serves
/// the pool's volumes, and is no node that boots from it.
const ADD_NODE: Migration = |transaction| {
    transaction.open_table(Table::Node.definition())?;
    Ok(())
};

/// Numbers that change with each transaction, stored with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) commits: u64,
    /// Bytes of all keys and values.
    pub(super) live_bytes: u64,
}

impl Counters {
    pub(super) fn store(self, transaction: &redb::WriteTransaction) -> Result<(), redb::Error> {
        let mut meta = transaction.open_table(META)?;
        meta.insert(COMMITS, self.commits)?;
        meta.insert(LIVE_BYTES, self.live_bytes)?;
        Ok(())
    }
}

impl Schema {
    /// Makes the tables of a new store. The outer error is redb's, the inner one ours.
    pub(super) fn initialize(
        &self,
        database: &redb::Database,
    ) -> Result<Result<Counters, PoolStoreError>, redb::Error> {
        let counters = Counters {
            commits: 0,
            live_bytes: 0,
        };
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        for table in Table::ALL {
            transaction.open_table(table.definition())?;
        }
        self.store_version(&transaction)?;
        counters.store(&transaction)?;
        transaction.commit()?;
        Ok(Ok(counters))
    }

    /// Checks that this program may use the store, and brings an older one forward.
    pub(super) fn check(
        &self,
        database: &redb::Database,
    ) -> Result<Result<Counters, PoolStoreError>, redb::Error> {
        let read = database.begin_read()?;
        let meta = match read.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::TableDoesNotExist(_)) => {
                return Ok(Err(damaged(
                    "it is no pool's metadata, or was never finished",
                )));
            }
            Err(error) => return Err(error.into()),
        };
        let get = |key| Ok::<_, redb::Error>(meta.get(key)?.map(|value| value.value()));
        let (Some(version), Some(needed)) = (get(VERSION)?, get(MIN_READER)?) else {
            return Ok(Err(damaged("it has no version")));
        };
        if needed > self.version {
            return Ok(Err(PoolStoreError::Newer { needed }));
        }
        if version < self.version {
            drop((meta, read));
            self.migrate(database, version)?;
            return self.check(database);
        }
        let (Some(commits), Some(live_bytes)) = (get(COMMITS)?, get(LIVE_BYTES)?) else {
            return Ok(Err(damaged("its counters are missing")));
        };
        Ok(Ok(Counters {
            commits,
            live_bytes,
        }))
    }

    /// All steps in one transaction: a power cut leaves the old version or the new one.
    fn migrate(&self, database: &redb::Database, from: u64) -> Result<(), redb::Error> {
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        let done = usize::try_from(from)
            .unwrap_or(usize::MAX)
            .saturating_sub(1);
        for migration in self.migrations.iter().skip(done) {
            migration(&transaction)?;
        }
        self.store_version(&transaction)?;
        Ok(transaction.commit()?)
    }

    fn store_version(&self, transaction: &redb::WriteTransaction) -> Result<(), redb::Error> {
        let mut meta = transaction.open_table(META)?;
        meta.insert(VERSION, self.version)?;
        meta.insert(MIN_READER, self.min_reader)?;
        Ok(())
    }
}

fn damaged(detail: &str) -> PoolStoreError {
    PoolStoreError::Damaged {
        detail: detail.to_owned(),
    }
}
