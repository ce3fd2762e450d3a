//! The redb database: tables, versions, one transaction for many batches.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};

use crate::{Batch, CommitError, Contents, FORMAT_VERSION, OpenError, Record, RecordChange};

/// Version numbers and the generation.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// (kind, name) -> (generation, value).
const RECORDS: TableDefinition<'_, (&str, &str), (u64, &[u8])> = TableDefinition::new("records");

const FORMAT: &str = "format_version";
const MIN_READER: &str = "min_reader_version";
const GENERATION: &str = "generation";

/// The state of a node is small and is read once: redb's default of 1 GiB would only cost memory.
const CACHE_BYTES: usize = 4 << 20;

/// Where the database is. A test puts a faulty disk here.
pub(crate) trait Medium: Send {
    fn name(&self) -> String;
    fn open(&self) -> Result<redb::Database, OpenError>;
}

/// A file on a filesystem.
pub(crate) struct OnDisk {
    path: PathBuf,
}

impl OnDisk {
    pub(crate) fn new(path: &Path) -> OnDisk {
        OnDisk {
            path: path.to_owned(),
        }
    }
}

impl Medium for OnDisk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn open(&self) -> Result<redb::Database, OpenError> {
        let failed = |source| OpenError::File {
            path: self.name(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
            .map_err(failed)?;
        let is_new = file.metadata().map_err(failed)?.len() == 0;
        let database = builder()
            .create_file(file)
            .map_err(|error| opened(&self.name(), error))?;
        if is_new {
            // The name of the file must survive a power cut as well as its content.
            sync_parent(&self.path).map_err(failed)?;
        }
        Ok(database)
    }
}

pub(crate) fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

pub(crate) fn opened(path: &str, error: redb::DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path },
        redb::DatabaseError::Storage(redb::StorageError::Io(source))
            if !matches!(
                source.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            ) =>
        {
            OpenError::File { path, source }
        }
        other => OpenError::Damaged {
            path,
            detail: other.to_string(),
        },
    }
}

/// An open database and where it came from.
pub(crate) struct Database {
    medium: Box<dyn Medium>,
    /// None after a failed write, until it is opened again.
    redb: Option<redb::Database>,
    generation: u64,
    /// Set when nobody knows what is stored; it never goes away.
    unknown: Option<CommitError>,
}

impl Database {
    /// Opens it and checks that this program may read it.
    pub(crate) fn open(medium: Box<dyn Medium>) -> Result<Database, OpenError> {
        let (redb, generation) = open_checked(&*medium)?;
        Ok(Database {
            medium,
            redb: Some(redb),
            generation,
            unknown: None,
        })
    }

    pub(crate) fn path(&self) -> String {
        self.medium.name()
    }

    /// Everything in it. The read transaction ends before this returns: a long one would keep every
    /// page that is written meanwhile.
    pub(crate) fn contents(&self) -> Result<Contents, OpenError> {
        let Some(redb) = &self.redb else {
            return Ok(Contents::default());
        };
        let generation = self.generation;
        let read = || -> Result<Contents, redb::Error> {
            let transaction = redb.begin_read()?;
            let table = transaction.open_table(RECORDS)?;
            let mut records = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                let ((kind, name), (generation, value)) = (key.value(), value.value());
                records.push(Record {
                    kind: kind.to_owned(),
                    name: name.to_owned(),
                    generation,
                    value: value.to_owned(),
                });
            }
            Ok(Contents {
                generation,
                records,
            })
        };
        guarded(read).map_err(|detail| OpenError::Damaged {
            path: self.path(),
            detail,
        })
    }

    /// Writes batches in one transaction. A batch that does not follow is left out and gets an error of
    /// its own; a failing disk fails them all. One result for each batch.
    pub(crate) fn write(&mut self, batches: &[Batch]) -> Vec<Result<(), CommitError>> {
        if let Some(error) = &self.unknown {
            return vec![Err(error.clone()); batches.len()];
        }
        if let Err(error) = self.reopen() {
            return vec![Err(error); batches.len()];
        }
        let mut generation = self.generation;
        let mut results = Vec::with_capacity(batches.len());
        let mut accepted = Vec::with_capacity(batches.len());
        for batch in batches {
            if batch.generation == generation + 1 {
                generation += 1;
                accepted.push(batch);
                results.push(Ok(()));
            } else {
                results.push(Err(CommitError::OutOfOrder {
                    given: batch.generation,
                    stored: generation,
                }));
            }
        }
        if accepted.is_empty() {
            return results;
        }
        match self.transact(&accepted, generation) {
            Ok(()) => {
                self.generation = generation;
                results
            }
            Err(error) => vec![Err(error); batches.len()],
        }
    }

    fn transact(&mut self, batches: &[&Batch], generation: u64) -> Result<(), CommitError> {
        let redb = self.redb.as_ref().expect("reopen made it just now");
        let prepared = guarded(|| prepare(redb, batches, generation));
        let transaction = match prepared {
            Ok(transaction) => transaction,
            Err(detail) => {
                // Nothing was committed. redb refuses work after an I/O error until opened again.
                self.redb = None;
                return Err(CommitError::Storage {
                    path: self.path(),
                    detail,
                });
            }
        };
        let Err(detail) = guarded(|| transaction.commit().map_err(redb::Error::from)) else {
            return Ok(());
        };
        // The disk failed while the commit was on its way: look which side of it we are on.
        self.redb = None;
        let path = self.path();
        match open_checked(&*self.medium) {
            Ok((redb, stored)) if stored == self.generation => {
                self.redb = Some(redb);
                Err(CommitError::Storage { path, detail })
            }
            // Visible does not mean durable after a failed flush, so it must not be called stored.
            _ => {
                let error = CommitError::Unknown { path, detail };
                self.unknown = Some(error.clone());
                Err(error)
            }
        }
    }

    fn reopen(&mut self) -> Result<(), CommitError> {
        if self.redb.is_some() {
            return Ok(());
        }
        let path = self.path();
        match open_checked(&*self.medium) {
            Ok((redb, stored)) if stored == self.generation => {
                self.redb = Some(redb);
                Ok(())
            }
            Ok((_, stored)) => {
                let detail = format!("it holds change {stored}, {} was expected", self.generation);
                let error = CommitError::Unknown { path, detail };
                self.unknown = Some(error.clone());
                Err(error)
            }
            Err(error) => Err(CommitError::Storage {
                path,
                detail: chain(&error),
            }),
        }
    }
}

/// Writes a whole store beside `path` and then puts it in its place.
pub(crate) fn write_new(path: &Path, contents: &Contents) -> Result<(), OpenError> {
    let failed = |source| OpenError::File {
        path: path.display().to_string(),
        source,
    };
    let beside = path.with_extension("restored");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let medium = OnDisk::new(&beside);
    let (redb, _) = open_checked(&medium)?;
    let fill = || -> Result<(), redb::Error> {
        let mut transaction = redb.begin_write()?;
        transaction.set_quick_repair(true);
        {
            let mut records = transaction.open_table(RECORDS)?;
            for record in &contents.records {
                let stored = (record.generation, record.value.as_slice());
                records.insert((record.kind.as_str(), record.name.as_str()), stored)?;
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert(GENERATION, contents.generation)?;
        }
        Ok(transaction.commit()?)
    };
    guarded(fill).map_err(|detail| OpenError::Damaged {
        path: medium.name(),
        detail,
    })?;
    drop(redb);
    std::fs::rename(&beside, path).map_err(failed)?;
    sync_parent(path).map_err(failed)
}

/// Makes the name of a file survive a power cut.
fn sync_parent(path: &Path) -> std::io::Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    File::open(parent)?.sync_all()
}

fn prepare(
    redb: &redb::Database,
    batches: &[&Batch],
    generation: u64,
) -> Result<redb::WriteTransaction, redb::Error> {
    let mut transaction = redb.begin_write()?;
    // Stores the allocator's state with each commit: an open after a crash reads it instead of walking
    // every tree.
    transaction.set_quick_repair(true);
    {
        let mut records = transaction.open_table(RECORDS)?;
        for batch in batches {
            for change in &batch.changes {
                match change {
                    RecordChange::Put { kind, name, value } => {
                        let stored = (batch.generation, value.as_slice());
                        records.insert((kind.as_str(), name.as_str()), stored)?;
                    }
                    RecordChange::Delete { kind, name } => {
                        records.remove((kind.as_str(), name.as_str()))?;
                    }
                }
            }
        }
        transaction
            .open_table(META)?
            .insert(GENERATION, generation)?;
    }
    Ok(transaction)
}

fn open_checked(medium: &dyn Medium) -> Result<(redb::Database, u64), OpenError> {
    // redb meets some kinds of damage with a panic: a disk that lies about flushes can make one.
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        let redb = medium.open()?;
        let damaged = |detail| OpenError::Damaged {
            path: medium.name(),
            detail,
        };
        let versions = versions(&redb).map_err(|error| damaged(error.to_string()))?;
        Ok::<_, OpenError>((redb, versions))
    }));
    let (redb, versions) = match attempt {
        Ok(opened) => opened?,
        Err(panic) => {
            return Err(OpenError::Damaged {
                path: medium.name(),
                detail: panic_text(&*panic),
            });
        }
    };
    if versions.min_reader > FORMAT_VERSION {
        return Err(OpenError::Newer {
            path: medium.name(),
            needed: versions.min_reader,
            known: FORMAT_VERSION,
        });
    }
    Ok((redb, versions.generation))
}

struct Versions {
    min_reader: u64,
    generation: u64,
}

/// Reads the versions; writes them, with the tables, into a database that has none.
fn versions(redb: &redb::Database) -> Result<Versions, redb::Error> {
    let read = redb.begin_read()?;
    match read.open_table(META) {
        Ok(meta) => {
            let get = |key| Ok::<_, redb::Error>(meta.get(key)?.map(|value| value.value()));
            let min_reader = get(MIN_READER)?.ok_or_else(|| {
                redb::Error::Corrupted("it is a redb database, but no state of a node".to_owned())
            })?;
            return Ok(Versions {
                min_reader,
                generation: get(GENERATION)?.unwrap_or(0),
            });
        }
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    drop(read);
    let mut transaction = redb.begin_write()?;
    transaction.set_quick_repair(true);
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(FORMAT, FORMAT_VERSION)?;
        // Raised only when an older reader would misread what is written.
        meta.insert(MIN_READER, 1)?;
        meta.insert(GENERATION, 0)?;
        transaction.open_table(RECORDS)?;
    }
    transaction.commit()?;
    Ok(Versions {
        min_reader: 1,
        generation: 0,
    })
}

/// Runs redb code; a panic in it becomes an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic_text(&*panic)),
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "it is damaged in a way that redb does not name".to_owned())
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
