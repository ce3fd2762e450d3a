//! Long work that somebody asked for: it goes on after a restart, shows how far it is, and can be cancelled.
//!
//! What there is: taking a volume off its parent, by copying what it sees there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use metastore::pool::Table;

use super::garbage::{COLLECT_RETRY, Merged};
use super::shared::Chain;
use super::worker::PoolWorker;
use crate::LvolError;
use crate::format::{
    LayerId, NameKind, OperationRecord, Parent, operation_key, parse_operation_key,
    parse_piece_key, piece_key,
};
use crate::map::{Cluster, Granules, PIECE_SLOTS, Source};

/// Ended operations that are remembered.
const ENDED_MAX: usize = 64;
/// Slots looked at in one step.
const SLOTS_PER_STEP: u64 = 32;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OperationKind {
    /// Copies what a volume sees of its parent, and takes it off.
    Decouple = 1,
    /// The same, and makes the volume thick.
    Inflate = 2,
}

/// How an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OperationState {
    /// Under way, also over a restart.
    Running = 0,
    /// Done.
    Done = 1,
    /// It could not go on.
    Failed = 2,
    /// Somebody cancelled it.
    Cancelled = 3,
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Operation {
    /// Its number in the pool.
    pub id: u64,
    /// What it does.
    pub kind: OperationKind,
    /// The volume's name.
    pub subject: String,
    /// The layer that is taken off its parent. After a snapshot it is the snapshot's, and the volume lies on it.
    pub(super) layer: LayerId,
    /// Clusters looked at.
    pub done: u64,
    /// Clusters to look at.
    pub total: u64,
    /// How it is.
    pub state: OperationState,
    /// Why it failed.
    pub text: String,
    /// All that was to be copied is committed.
    pub(super) is_copied: bool,
}

impl Operation {
    fn record(&self) -> OperationRecord {
        OperationRecord {
            kind: self.kind as u8,
            subject: self.subject.clone(),
            layer: self.layer.0,
            // What was copied need not be committed yet. After a restart it is looked at again: what is there is
            // passed quickly.
            done: match self.state {
                OperationState::Running => 0,
                _ => self.done,
            },
            total: self.total,
            state: self.state as u8,
            text: self.text.clone(),
        }
    }

    fn from_record(id: u64, record: OperationRecord) -> Option<Self> {
        Some(Self {
            id,
            kind: match record.kind {
                1 => OperationKind::Decouple,
                2 => OperationKind::Inflate,
                _ => return None,
            },
            state: match record.state {
                0 => OperationState::Running,
                1 => OperationState::Done,
                2 => OperationState::Failed,
                3 => OperationState::Cancelled,
                _ => return None,
            },
            subject: record.subject,
            layer: LayerId(record.layer),
            done: record.done,
            total: record.total,
            text: record.text,
            is_copied: false,
        })
    }
}

/// What became of one slot.
enum Copied {
    /// The volume has all of it, or its parents have nothing.
    Yes,
    /// Somebody is writing there, or a snapshot is being taken: try again.
    Busy,
}

impl PoolWorker {
    /// Begins to take a volume off its parent. The operation's number.
    pub(super) fn detach(&mut self, name: &str, kind: OperationKind) -> Result<u64, LvolError> {
        let record = &self.entry(name)?.record;
        let layer = record.layer;
        let refused = |problem: &str| LvolError::Refused {
            name: name.to_owned(),
            problem: problem.to_owned(),
        };
        if record.kind != NameKind::Volume {
            return Err(refused("is a snapshot; it keeps its parent"));
        }
        if self.has_lost_parent(layer) {
            return Err(refused(
                "lies on a layer that is lost; what it showed cannot be copied",
            ));
        }
        let mut running = self.operations.values();
        if running.any(|other| other.state == OperationState::Running && other.layer == layer) {
            return Err(refused("is being taken off its parent already"));
        }
        if kind == OperationKind::Inflate && !record.thick {
            let has = self
                .layers
                .get(&record.layer)
                .map_or(0, |layer| layer.clusters);
            let wanted = self.clusters_of(record.size_bytes).saturating_sub(has);
            self.check_clusters(wanted)?;
        }
        let total = self.clusters_of(record.size_bytes);
        let id = self.pool.next_operation;
        self.pool.next_operation += 1;
        let operation = Operation {
            id,
            kind,
            subject: name.to_owned(),
            layer,
            done: 0,
            total,
            state: OperationState::Running,
            text: String::new(),
            is_copied: false,
        };
        self.put_operation(operation);
        self.forget_old_operations();
        Ok(id)
    }

    pub(super) fn cancel(&mut self, id: u64) -> Result<(), LvolError> {
        let not_found = || LvolError::NotFound {
            name: format!("operation {id}"),
        };
        let mut operation = self.operations.get(&id).cloned().ok_or_else(not_found)?;
        if operation.state == OperationState::Running {
            operation.state = OperationState::Cancelled;
            self.put_operation(operation);
        }
        Ok(())
    }

    /// Nobody needs the layer any more.
    pub(super) fn cancel_for(&mut self, layer: LayerId) {
        let running = self.operations.values();
        let running = running.filter(|other| other.state == OperationState::Running);
        let of_it: Vec<u64> = running
            .filter(|other| other.layer == layer)
            .map(|other| other.id)
            .collect();
        for id in of_it {
            // It is there: it was found by its number.
            drop(self.cancel(id));
        }
    }

    pub(super) fn put_operation(&mut self, operation: Operation) {
        let value = operation.record().encode();
        self.stage(Table::Operations, &operation_key(operation.id), Some(value));
        self.operations.insert(operation.id, operation);
    }

    fn forget_old_operations(&mut self) {
        let ended = self.operations.values();
        let ended = ended.filter(|operation| operation.state != OperationState::Running);
        let ids: Vec<u64> = ended.map(|operation| operation.id).collect();
        for id in ids.iter().take(ids.len().saturating_sub(ENDED_MAX)) {
            self.operations.remove(id);
            self.stage(Table::Operations, &operation_key(*id), None);
        }
    }

    pub(super) fn load_operations(&mut self) -> Result<(), LvolError> {
        let store = self.usable_store()?;
        let entries = store.scan(Table::Operations, .., ENDED_MAX * 4)?;
        let mut operations = BTreeMap::new();
        for (key, value) in entries {
            let Some(id) = parse_operation_key(&key) else {
                continue;
            };
            let decoded = OperationRecord::decode(&value).ok();
            match decoded.and_then(|record| Operation::from_record(id, record)) {
                Some(operation) => drop(operations.insert(id, operation)),
                None => tracing::error!(id, "the record of an operation is damaged"),
            }
        }
        self.operations = operations;
        Ok(())
    }

    /// Does a bit of the first operation. True if there is more that can be done now.
    pub(super) fn operate(&mut self) -> bool {
        if self.operate_at.is_some() {
            return false;
        }
        let mut running = self.operations.values();
        let Some(operation) = running.find(|other| other.state == OperationState::Running) else {
            return false;
        };
        let mut operation = operation.clone();
        match self.detach_some(&mut operation) {
            Ok(going) => {
                if operation.state == OperationState::Running {
                    self.operations.insert(operation.id, operation);
                } else {
                    self.put_operation(operation);
                    self.when_committed(|_, _| {});
                }
                going
            }
            Err(error) => {
                operation.state = OperationState::Failed;
                operation.text = crate::chain(&error);
                tracing::error!(
                    id = operation.id,
                    reason = operation.text,
                    "an operation failed"
                );
                self.put_operation(operation);
                self.when_committed(|_, _| {});
                true
            }
        }
    }

    fn detach_some(&mut self, operation: &mut Operation) -> Result<bool, LvolError> {
        let layer = operation.layer;
        let unsettled = self.is_unsettled(layer);
        let end = (operation.done + SLOTS_PER_STEP).min(operation.total);
        while operation.done < end {
            let index = operation.done / PIECE_SLOTS as u64;
            // A volume may be huge and have little: only what there is takes time.
            let next = self.next_piece_below(layer, index)?;
            if next != Some(index) {
                let slots = next.map_or(u64::MAX, |next| next.saturating_mul(PIECE_SLOTS as u64));
                operation.done = slots.min(operation.total);
                continue;
            }
            let chain = self.chain(layer, index)?;
            let slot = (operation.done % PIECE_SLOTS as u64) as usize;
            match self.detach_slot(&chain, slot, unsettled)? {
                Copied::Yes => operation.done += 1,
                Copied::Busy => {
                    self.operate_at = Some(self.disk.now() + COLLECT_RETRY);
                    return Ok(false);
                }
            }
        }
        if operation.done < operation.total {
            return Ok(true);
        }
        if !operation.is_copied {
            // A crash must not find the volume off its parent and without what it saw there.
            let id = operation.id;
            self.when_committed(move |worker, result| {
                if result.is_err() {
                    worker.operate_at = Some(worker.disk.now() + COLLECT_RETRY);
                } else if let Some(operation) = worker.operations.get_mut(&id) {
                    operation.is_copied = true;
                }
            });
            return Ok(true);
        }
        // A layer below that is being merged into this one has its slots in both.
        if self
            .moved
            .as_ref()
            .is_some_and(|moved| moved.child == layer)
        {
            self.operate_at = Some(self.disk.now() + COLLECT_RETRY);
            return Ok(false);
        }
        self.take_off(layer, operation);
        operation.state = OperationState::Done;
        Ok(true)
    }

    /// The first index from `from` on at which a layer below has anything.
    fn next_piece_below(&self, layer: LayerId, from: u64) -> Result<Option<u64>, LvolError> {
        let store = self.usable_store()?;
        let mut first = None;
        let mut below = self.parent_of(layer);
        while let Some(parent) = below {
            let (start, end) = (piece_key(parent, from), piece_key(parent, u64::MAX));
            let entries = store.scan(Table::Map, &start[..]..=&end[..], 1)?;
            let stored = entries.first().and_then(|(key, _)| parse_piece_key(key));
            let resident = self.pieces.keys();
            let resident = resident.filter(|(owner, index)| *owner == parent && *index >= from);
            let resident = resident.map(|(_, index)| *index).min();
            first = [first, stored.map(|(_, index)| index), resident]
                .into_iter()
                .flatten()
                .min();
            below = self.parent_of(parent);
        }
        Ok(first)
    }

    /// Copies what the volume sees of its parents in one slot.
    fn detach_slot(
        &mut self,
        chain: &Arc<Chain>,
        slot: usize,
        unsettled: bool,
    ) -> Result<Copied, LvolError> {
        let granularity = self.shared.granularity;
        for granule in 0..granularity.granules() {
            if chain.own.look(slot).source(granule) != Source::Parent {
                continue;
            }
            let Some(from) = below(chain, slot, granule) else {
                continue;
            };
            if unsettled {
                return Ok(Copied::Busy);
            }
            // As many as follow from the same cluster go together.
            let mut wanted = Granules::NONE;
            for next in granule..granularity.granules() {
                let own = chain.own.look(slot).source(next);
                if own == Source::Parent && below(chain, slot, next) == Some(from) {
                    wanted.set(next);
                } else {
                    break;
                }
            }
            if !self.copy_to_own(chain, slot, from, wanted)? {
                return Ok(Copied::Busy);
            }
        }
        Ok(Copied::Yes)
    }

    fn copy_to_own(
        &mut self,
        chain: &Arc<Chain>,
        slot: usize,
        from: Cluster,
        granules: Granules,
    ) -> Result<bool, LvolError> {
        self.check_clusters(u64::from(chain.own.look(slot).cluster().is_none()))?;
        let key = (chain.layer, chain.index);
        let merged = self.copy_granules(key, &chain.own, slot, from, granules)?;
        Ok(matches!(merged, Merged::Done))
    }

    /// Nothing of the parent is seen through the volume any more.
    fn take_off(&mut self, layer: LayerId, operation: &Operation) {
        let parent = self.layers.get(&layer).map(|record| record.parent.clone());
        self.change_layer(layer, |record| record.parent = Parent::None);
        if let Some(Parent::Layer(parent)) = parent {
            self.change_layer(parent, |record| {
                record.children = record.children.saturating_sub(1);
            });
        }
        self.drop_chains_through(layer);
        if operation.kind == OperationKind::Inflate {
            self.make_thick(layer);
        }
    }

    /// Is a snapshot being taken of what has this layer? I/O in flight may still change what is below.
    fn is_unsettled(&self, layer: LayerId) -> bool {
        let mut entries = self
            .names
            .values()
            .filter(|entry| entry.record.layer == layer);
        entries.any(|entry| entry.shared.unsettled.load(Ordering::SeqCst))
    }

    /// The volume on this layer, if it still is a volume's, gets its clusters reserved.
    fn make_thick(&mut self, layer: LayerId) {
        let mut names = self.names.iter();
        let found = names.find(|(_, entry)| entry.record.layer == layer);
        let Some((name, entry)) = found.filter(|(_, entry)| entry.record.kind == NameKind::Volume)
        else {
            return;
        };
        let (name, mut record) = (name.clone(), entry.record.clone());
        record.thick = true;
        self.put_name(&name, &record);
        if let Some(entry) = self.names.get_mut(&name) {
            entry.record = record;
            entry.shared.thick.store(true, Ordering::SeqCst);
        }
        self.thick.insert(name);
        self.reserve_again();
    }
}

/// The cluster that a granule which the volume does not have is read from.
fn below(chain: &Chain, slot: usize, granule: u16) -> Option<Cluster> {
    let mut sources = chain
        .ancestors
        .iter()
        .map(|piece| piece.look(slot).source(granule));
    match sources.find(|source| *source != Source::Parent)? {
        Source::Own(cluster) => Some(cluster),
        Source::Zero | Source::Parent => None,
    }
}
