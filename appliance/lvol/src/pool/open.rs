//! How a pool comes to be and ends: create, open, close.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use block::{Bdev, Geometry};
use metastore::pool::{PoolStore, PoolStoreOptions, Table};
use uuid::Uuid;

use super::commit::METADATA_RESERVE_BYTES_MIN;
use super::disk::{Disk, Host};
use super::metadata::Metadata;
use super::replay::scan;
use super::worker::{Entry, Parts, PoolOptions, PoolWorker};
use super::write_log::{LOG_BYTES_MAX, WriteLog};
use super::{Pool, check_name};
use crate::LvolError;
use crate::format::{
    Extent, Found, FreeChunk, LayerId, LayerRecord, NameKind, NameRecord, POOL_KEY, PROBE_BYTES,
    PROBE_TAIL_BYTES, PoolRecord, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock,
    parse_layer_key, parse_operation_key, parse_piece_key, piece_key, probe,
};
use crate::map::{GRANULES_MAX, Granularity};

/// Largest device of a pool, bytes.
pub const POOL_BYTES_MAX: u64 = 64 << 40;
/// Records read at a time.
const SCAN_RECORDS: usize = 4096;

/// How to make a pool.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// The pool's name.
    pub name: String,
    /// Bytes of a cluster: a power of two from 64 KiB to 32 MiB.
    pub cluster_size: u64,
    /// Overwrite what the device holds.
    pub force: bool,
    /// Bytes of the log of first writes: at least a cluster, at most 4 MiB and 1/64 of the pool.
    pub log_bytes: u64,
}

impl CreateOptions {
    /// Bytes of a cluster when nothing else is said.
    pub const CLUSTER_SIZE_DEFAULT: u64 = 1 << 20;

    /// Bytes of a cluster that suit a device when nothing else is said: the default, or more where the
    /// device writes in larger units (NVMe NPWG, the indirection unit of large drives). A granule, 1/256
    /// of a cluster, is such a unit then, and no first write makes the drive read. Units that are no
    /// power of two, or so large that the device would have few clusters, change nothing.
    #[must_use]
    pub fn cluster_size_for(device: &Geometry) -> u64 {
        const CLUSTERS_MIN: u64 = 4096;
        let unit = u64::from(device.write_granularity_blocks) * u64::from(device.block_size);
        let wanted = unit.saturating_mul(GRANULES_MAX);
        let suits = wanted.is_power_of_two()
            && Granularity::new(wanted).is_ok()
            && device.len_bytes() / wanted.max(1) >= CLUSTERS_MIN;
        if suits {
            wanted.max(Self::CLUSTER_SIZE_DEFAULT)
        } else {
            Self::CLUSTER_SIZE_DEFAULT
        }
    }

    /// A pool of this name with the defaults.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cluster_size: Self::CLUSTER_SIZE_DEFAULT,
            force: false,
            log_bytes: LOG_BYTES_MAX,
        }
    }
}

impl PoolWorker {
    /// Makes a pool on a device. Writes as much on a large device as on a small one.
    ///
    /// # Errors
    /// When the device holds something else, is too small or too large, or fails.
    pub fn create(
        base: &Arc<Bdev>,
        create: &CreateOptions,
        options: PoolOptions,
        host: Box<dyn Host>,
        waker: Waker,
    ) -> Result<(Pool, Self), LvolError> {
        check_name(&create.name)?;
        let granularity = Granularity::new(create.cluster_size)
            .map_err(|error| LvolError::Size(error.to_string()))?;
        let geometry = base.geometry();
        let len = geometry.len_bytes();
        if len > POOL_BYTES_MAX {
            let text = format!("a device of {len} bytes is larger than a pool's {POOL_BYTES_MAX}");
            return Err(LvolError::Size(text));
        }
        let cluster_size = granularity.cluster_size();
        let metadata_clusters = METADATA_RESERVE_BYTES_MIN.div_ceil(cluster_size);
        let log_clusters = WriteLog::clusters(create.log_bytes, len, granularity);
        // The header, the metadata, room for it to grow, the log, and something to use.
        let needed = (1 + 2 * metadata_clusters + log_clusters + 1) * cluster_size;
        if len < needed {
            return Err(LvolError::TooSmall { len, needed });
        }
        let disk = Self::open_disk(base, &options, host, &waker)?;
        let found = look(&disk, base)?;
        if !create.force && !matches!(found, Found::Nothing) {
            let what = describe(&found);
            return Err(LvolError::Foreign { what });
        }
        for offset in SUPERBLOCK_OFFSETS {
            disk.write(offset, &[0; SUPERBLOCK_BYTES])?;
        }
        disk.flush()?;
        let superblock = Superblock {
            sequence: 0,
            pool_uuid: *Uuid::new_v4().as_bytes(),
            name: create.name.clone(),
            granularity,
            block_size: geometry.block_size,
            clusters: len / cluster_size,
            clean: false,
            metadata: vec![Extent {
                start: 1,
                clusters: metadata_clusters,
            }],
            log: Some(Extent {
                start: 1 + metadata_clusters,
                clusters: log_clusters,
            }),
            boot_id: options.boot_id,
        };
        let metadata = Rc::new(Metadata::new(Rc::clone(&disk), superblock, 1));
        let store = PoolStore::create(metadata.clone(), PoolStoreOptions::default())?;
        let pool = PoolRecord {
            next_layer: 1,
            next_operation: 1,
            used_clusters: 0,
            reserved_clusters: 0,
            label: String::new(),
            log_epoch: 0,
        };
        let mut transaction = store.transaction();
        transaction.put(Table::Pool, POOL_KEY, &pool.encode())?;
        transaction.commit()?;
        // Last: with this the pool is there.
        metadata.store(|_| {})?;
        metadata.store(|_| {})?;
        let mut worker = Self::from_parts(Parts {
            base: Arc::clone(base),
            options,
            disk,
            metadata,
            store,
            pool,
            waker,
        });
        worker.refill_reserve(0)?;
        worker.start_log(&worker.metadata.superblock(), 0, 0..0);
        Ok((Pool::new(&worker.shared), worker))
    }

    /// Opens the pool on a device, however it was left. Reads the superblock, what redb needs, the log of
    /// first writes and the records of volumes and layers; no map and no list of free clusters but for what the
    /// log has changed.
    ///
    /// # Errors
    /// When the device holds no pool, one that this program cannot use, or fails.
    pub fn open(
        base: &Arc<Bdev>,
        options: PoolOptions,
        host: Box<dyn Host>,
        waker: Waker,
    ) -> Result<(Pool, Self), LvolError> {
        let disk = Self::open_disk(base, &options, host, &waker)?;
        let (superblock, copy) = read_superblock(&disk)?;
        check_fits(&superblock, &base.geometry())?;
        let metadata = Rc::new(Metadata::new(Rc::clone(&disk), superblock, copy));
        let store = PoolStore::open(metadata.clone(), PoolStoreOptions::default())?;
        let record = store.get(Table::Pool, POOL_KEY)?.unwrap_or_default();
        let (pool, was_pool_damaged) = match PoolRecord::decode(&record) {
            Ok(pool) => (pool, false),
            Err(error) => {
                tracing::error!(%error, "the record of the pool is damaged; its counters are made again");
                (count_again(&store)?, true)
            }
        };
        let committed = if was_pool_damaged { 0 } else { pool.log_epoch };
        let scan = scan(&disk, &metadata.superblock(), committed);
        let mut worker = Self::from_parts(Parts {
            base: Arc::clone(base),
            options,
            disk,
            metadata,
            store,
            pool,
            waker,
        });
        worker.was_pool_damaged = was_pool_damaged;
        worker.load_layers()?;
        worker.pass_used_ids()?;
        worker.load_names()?;
        worker.fault_what_is_damaged();
        worker.load_garbage();
        worker.load_operations()?;
        worker.load_deletions();
        worker.refresh_externals();
        worker.use_log(&scan)?;
        worker.make_log()?;
        worker.refill_reserve(0)?;
        // After the commit of what the log had: from now on pages are of this boot.
        let boot_id = worker.options.boot_id;
        worker.metadata.store(|superblock| {
            superblock.clean = false;
            superblock.boot_id = boot_id;
        })?;
        Ok((Pool::new(&worker.shared), worker))
    }

    /// The name of the pool on a device, if there is one.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn probe(
        base: &Arc<Bdev>,
        options: &PoolOptions,
        host: Box<dyn Host>,
        waker: &Waker,
    ) -> Result<Found, LvolError> {
        let disk = Self::open_disk(base, options, host, waker)?;
        look(&disk, base)
    }

    /// Commits what is left and marks the pool as closed cleanly; with `wipe` the superblocks go
    /// instead. I/O that comes later fails. The pool is closed afterwards even when this fails.
    pub(super) fn close(&mut self, wipe: bool) -> Result<(), LvolError> {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let committed = if wipe { Ok(()) } else { self.commit_now() };
        // What channels had waiting is dropped: they see that the pool has stopped.
        drop(self.shared.close());
        self.release_externals();
        let Some(store) = self.store.take() else {
            return Ok(());
        };
        let closed = store.close().map_err(LvolError::from);
        if wipe {
            for offset in SUPERBLOCK_OFFSETS {
                self.disk.write(offset, &[0; SUPERBLOCK_BYTES])?;
            }
            return self.disk.flush();
        }
        committed?;
        closed?;
        self.metadata.store(|superblock| superblock.clean = true)
    }

    fn load_layers(&mut self) -> Result<(), LvolError> {
        let mut from = Vec::new();
        loop {
            let entries =
                next_records(self.usable_store()?, Table::Layers, &mut from, SCAN_RECORDS)?;
            if entries.is_empty() {
                return Ok(());
            }
            for (key, value) in entries {
                let Some(layer) = parse_layer_key(&key) else {
                    continue;
                };
                match LayerRecord::decode(&value) {
                    Ok(record) => {
                        self.layers.insert(layer, record);
                    }
                    Err(error) => {
                        tracing::error!(layer = layer.0, %error, "the record of a layer is damaged");
                        self.damaged_layers.insert(layer);
                    }
                }
            }
        }
    }

    /// No layer that is to be made gets a number that anything has already.
    fn pass_used_ids(&mut self) -> Result<(), LvolError> {
        let layers = self.layers.keys().chain(&self.damaged_layers);
        let used = layers.map(|layer| layer.0).max().unwrap_or(0);
        let mut next = self.pool.next_layer.max(used.saturating_add(1));
        let operations = self
            .usable_store()?
            .scan(Table::Operations, .., SCAN_RECORDS)?;
        let operations = operations
            .iter()
            .filter_map(|(key, _)| parse_operation_key(key));
        let operation = operations.max().unwrap_or(0);
        self.pool.next_operation = self.pool.next_operation.max(operation.saturating_add(1));
        // Pieces of layers that are not there. One look, unless there are some.
        for table in [Table::Map, Table::Sums] {
            loop {
                let from = piece_key(LayerId(next), 0);
                let found = self.usable_store()?.scan(table, &from[..].., 1)?;
                let found = found.first().and_then(|(key, _)| parse_piece_key(key));
                let Some((layer, _)) = found.filter(|(layer, _)| layer.0 < u64::MAX) else {
                    break;
                };
                next = layer.0 + 1;
            }
        }
        self.pool.next_layer = next;
        Ok(())
    }

    fn load_names(&mut self) -> Result<(), LvolError> {
        let mut from = Vec::new();
        loop {
            let entries =
                next_records(self.usable_store()?, Table::Names, &mut from, SCAN_RECORDS)?;
            if entries.is_empty() {
                return Ok(());
            }
            for (key, value) in entries {
                let is_text = std::str::from_utf8(&key).is_ok();
                let name = String::from_utf8_lossy(&key).into_owned();
                match NameRecord::decode(&value) {
                    Ok(record) if is_text => self.load_name(name, record),
                    Ok(_) => drop(self.damaged_names.insert(name)),
                    Err(error) => {
                        tracing::error!(name, %error, "the record of a volume is damaged");
                        self.damaged_names.insert(name);
                    }
                }
            }
        }
    }

    fn load_name(&mut self, name: String, record: NameRecord) {
        let shared = self.volume_shared(&record);
        if record.thick && record.kind == NameKind::Volume {
            self.thick.insert(name.clone());
        }
        self.names.insert(name, Entry { record, shared });
    }
}

/// Counters of a pool whose record cannot be read. Numbers are passed over when the rest is there.
fn count_again(store: &PoolStore) -> Result<PoolRecord, LvolError> {
    let mut pool = PoolRecord {
        next_layer: 1,
        next_operation: 1,
        used_clusters: 0,
        reserved_clusters: 0,
        label: String::new(),
        log_epoch: 0,
    };
    let mut from = Vec::new();
    loop {
        let entries = next_records(store, Table::Free, &mut from, 64)?;
        if entries.is_empty() {
            return Ok(pool);
        }
        let chunks = entries
            .iter()
            .filter_map(|(_, value)| FreeChunk::decode(value).ok());
        pool.used_clusters += chunks
            .map(|chunk| u64::from(chunk.used_count()))
            .sum::<u64>();
    }
}

/// A key and its value.
pub(super) type Record = (Vec<u8>, Vec<u8>);

/// Records of a table from `from` on, at most `limit`; moves `from` past the last. None at the end.
pub(super) fn next_records(
    store: &PoolStore,
    table: Table,
    from: &mut Vec<u8>,
    limit: usize,
) -> Result<Vec<Record>, LvolError> {
    let entries = store.scan(table, from.as_slice().., limit)?;
    if let Some((last, _)) = entries.last() {
        *from = after(last);
    }
    Ok(entries)
}

/// The smallest key after this one.
fn after(key: &[u8]) -> Vec<u8> {
    let mut next = key.to_vec();
    next.push(0);
    next
}

/// Refuses a device that the pool was not made for.
pub(super) fn check_fits(superblock: &Superblock, geometry: &Geometry) -> Result<(), LvolError> {
    let (block_size, len) = (geometry.block_size, geometry.len_bytes());
    let pool_len = superblock.clusters * superblock.granularity.cluster_size();
    if superblock.block_size == block_size && pool_len <= len {
        return Ok(());
    }
    let text = format!(
        "the pool was made for blocks of {} bytes and at least {pool_len} bytes; this device has \
         blocks of {block_size} and {len} bytes",
        superblock.block_size
    );
    Err(LvolError::Size(text))
}

pub(super) fn read_superblock(disk: &Disk) -> Result<(Superblock, usize), LvolError> {
    let mut copies = [vec![0; SUPERBLOCK_BYTES], vec![0; SUPERBLOCK_BYTES]];
    for (copy, offset) in copies.iter_mut().zip(SUPERBLOCK_OFFSETS) {
        // One that cannot be read is as good as a damaged one.
        if let Err(error) = disk.read(offset, copy) {
            tracing::warn!(
                offset,
                error = crate::chain(&error),
                "a superblock cannot be read"
            );
            copy.fill(0);
        }
    }
    Superblock::newest([&copies[0], &copies[1]]).map_err(|error| LvolError::NoPool {
        found: error.to_string(),
    })
}

fn look(disk: &Disk, base: &Bdev) -> Result<Found, LvolError> {
    let geometry = base.geometry();
    let len = geometry.len_bytes();
    let blocks = |bytes: usize| (bytes as u64).min(len) as usize;
    let mut head = vec![0; blocks(PROBE_BYTES)];
    disk.read(0, &mut head)?;
    let mut tail = vec![0; blocks(PROBE_TAIL_BYTES)];
    disk.read(len - tail.len() as u64, &mut tail)?;
    Ok(probe(&head, &tail, geometry.block_size))
}

fn describe(found: &Found) -> String {
    match found {
        Found::Nothing => "nothing".to_owned(),
        Found::Pool(superblock) => format!("the pool {:?}", superblock.name),
        Found::Foreign { what } => (*what).to_owned(),
    }
}
