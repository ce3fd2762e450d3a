//! What a node keeps in its system pool: records that only the node understands, under one generation.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use block::Bdev;
use metastore::pool::{METADATA_BLOCK_BYTES, MetadataDevice, PoolStore, PoolStoreOptions, Table};

use super::check::Checking;
use super::disk::Host;
use super::metadata::Metadata;
use super::open::{Record, check_fits, next_records, read_superblock};
use super::repair::{Fix, Problem};
use super::worker::{PoolOptions, PoolWorker};
use crate::LvolError;
use crate::format::{
    FormatError, NODE_GENERATION_KEY, POOL_KEY, PoolRecord, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS,
    decode_node_generation, decode_node_record, encode_node_generation, encode_node_record,
    is_node_key, is_superblock,
};

/// The label of a system pool: it holds the state of the node that it is in.
pub const SYSTEM_LABEL: &str = "adit.system";

/// Records read at a time.
const SCAN_RECORDS: usize = 1024;
/// Bytes that a look may write beside the device: opening a database writes a few pages, bringing an old one
/// forward some more.
const OVERLAY_BYTES_MAX: usize = 64 << 20;

/// All that a node keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeState {
    /// Of the last change; 0 where nothing was ever kept.
    pub generation: u64,
    /// Keys and values, in the order of the keys.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What changes together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeChange {
    /// The generation from now on.
    pub generation: u64,
    /// Keys and their new values; `None` takes a record away. Of two with one key the later counts.
    pub changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A pool as a look at its device shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLook {
    /// The pool's name.
    pub name: String,
    /// The pool's UUID.
    pub uuid: [u8; 16],
    /// What it keeps if it is a system pool.
    pub state: Option<NodeState>,
}

impl PoolWorker {
    /// What the node keeps, as far as it is committed.
    pub(super) fn node_state(&self) -> Result<NodeState, LvolError> {
        read_state(self.usable_store()?)
    }

    pub(super) fn put_node_state(&mut self, change: NodeChange) -> Result<(), LvolError> {
        self.usable_store()?;
        let mut keys = change.changes.iter().map(|(key, _)| key);
        if let Some(key) = keys.find(|key| !is_node_key(key)) {
            return Err(LvolError::Refused {
                name: String::from_utf8_lossy(key).into_owned(),
                problem: "is no key for the state of a node".to_owned(),
            });
        }
        for (key, value) in change.changes {
            let value = value.map(|value| encode_node_record(&value));
            self.stage(Table::Node, &key, value);
        }
        let generation = encode_node_generation(change.generation);
        self.stage(Table::Node, NODE_GENERATION_KEY, Some(generation));
        Ok(())
    }

    pub(super) fn replace_node_state(&mut self, state: NodeState) -> Result<(), LvolError> {
        let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        for (key, _) in all_records(self.usable_store()?)? {
            if is_node_key(&key) {
                changes.insert(key, None);
            }
        }
        let new = state.records.into_iter();
        changes.extend(new.map(|(key, value)| (key, Some(value))));
        // What a commit that failed has left is of a state that is not any more.
        self.staged.retain(|(table, _), _| *table != Table::Node);
        self.put_node_state(NodeChange {
            generation: state.generation,
            changes: changes.into_iter().collect(),
        })
    }

    /// Looks at a device without writing to it: which pool is there, and what a node keeps in it. `None` if
    /// there is no pool.
    ///
    /// # Errors
    /// When the device cannot be read, or holds a pool that this program cannot read.
    pub fn look_for_node(
        base: &Arc<Bdev>,
        options: &PoolOptions,
        host: Box<dyn Host>,
        waker: &Waker,
    ) -> Result<Option<NodeLook>, LvolError> {
        let disk = Self::open_disk(base, options, host, waker)?;
        let (superblock, copy) = match read_superblock(&disk) {
            Ok(found) => found,
            Err(error @ LvolError::NoPool { .. }) => {
                // A device that cannot be read is not one without a pool, and a damaged pool is one.
                let mut magic = vec![0; SUPERBLOCK_BYTES];
                disk.read(SUPERBLOCK_OFFSETS[0], &mut magic)?;
                return if is_superblock(&magic) {
                    Err(error)
                } else {
                    Ok(None)
                };
            }
            Err(error) => return Err(error),
        };
        check_fits(&superblock, &base.geometry())?;
        let (name, uuid) = (superblock.name.clone(), superblock.pool_uuid);
        let overlay = Overlay::over(Metadata::new(disk, superblock, copy));
        let store = PoolStore::open(Rc::new(overlay), PoolStoreOptions::default())?;
        let record = store.get(Table::Pool, POOL_KEY)?.unwrap_or_default();
        let record = PoolRecord::decode(&record).map_err(|source| LvolError::Damaged {
            record: "pool".to_owned(),
            source,
        })?;
        let mut labels = record.label.lines();
        let is_system = labels.any(|line| {
            let key = line.split_once('=').map_or(line, |(key, _)| key);
            key == SYSTEM_LABEL
        });
        let state = if is_system {
            Some(read_state(&store)?)
        } else {
            None
        };
        Ok(Some(NodeLook { name, uuid, state }))
    }

    pub(super) fn look_at_node(&self, checking: &mut Checking, key: &[u8], value: &[u8]) {
        if self.staged.contains_key(&(Table::Node, key.to_vec())) {
            return;
        }
        let decoded = if key == NODE_GENERATION_KEY {
            decode_node_generation(value).map(drop)
        } else {
            decode_node_record(value).map(drop)
        };
        let problem = match decoded {
            Ok(()) | Err(FormatError::Version { .. }) => return,
            Err(error) => error.to_string(),
        };
        let record = format!("state of the node {:?}", String::from_utf8_lossy(key));
        let action = "deletes it: a node that starts from this pool does without it";
        let fix = Fix::Delete(Table::Node, key.to_vec());
        checking.find(Problem::new(record, problem, action, fix));
    }
}

fn all_records(store: &PoolStore) -> Result<Vec<Record>, LvolError> {
    let (mut all, mut from) = (Vec::new(), Vec::new());
    loop {
        let entries = next_records(store, Table::Node, &mut from, SCAN_RECORDS)?;
        if entries.is_empty() {
            return Ok(all);
        }
        all.extend(entries);
    }
}

fn read_state(store: &PoolStore) -> Result<NodeState, LvolError> {
    let damaged = |key: &[u8], source| LvolError::Damaged {
        record: format!("state of the node {:?}", String::from_utf8_lossy(key)),
        source,
    };
    let mut state = NodeState::default();
    for (key, value) in all_records(store)? {
        if key == NODE_GENERATION_KEY {
            let generation = decode_node_generation(&value);
            state.generation = generation.map_err(|error| damaged(&key, error))?;
        } else {
            let bytes = decode_node_record(&value).map_err(|error| damaged(&key, error))?;
            state.records.push((key, bytes));
        }
    }
    Ok(state)
}

/// The metadata of a pool to look at: what the database writes stays in memory.
#[derive(Debug)]
struct Overlay {
    below: Metadata,
    /// How long it is taken for; what lies past the end below was written here, or is zeroes.
    len: Cell<u64>,
    /// What was written, by its offset.
    blocks: RefCell<BTreeMap<u64, Box<[u8]>>>,
}

const BLOCK: usize = METADATA_BLOCK_BYTES as usize;

impl Overlay {
    fn over(below: Metadata) -> Self {
        Self {
            len: Cell::new(below.len()),
            below,
            blocks: RefCell::default(),
        }
    }
}

impl MetadataDevice for Overlay {
    fn len(&self) -> u64 {
        self.len.get()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = self.below.len().saturating_sub(offset);
        let there = out.len().min(usize::try_from(there).unwrap_or(usize::MAX));
        let (below, beyond) = out.split_at_mut(there);
        beyond.fill(0);
        if !below.is_empty() {
            self.below.read(offset, below)?;
        }
        let blocks = self.blocks.borrow();
        for (at, block) in blocks.range(offset..offset + out.len() as u64) {
            let start = (at - offset) as usize;
            out[start..start + BLOCK].copy_from_slice(block);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut blocks = self.blocks.borrow_mut();
        for (index, block) in data.chunks_exact(BLOCK).enumerate() {
            blocks.insert(offset + (index * BLOCK) as u64, block.into());
        }
        if blocks.len() * BLOCK > OVERLAY_BYTES_MAX {
            let text = "the database writes more than a look at it may";
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        self.len.set(self.len.get().max(len));
        Ok(())
    }
}
