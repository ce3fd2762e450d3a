//! Long work that somebody asked for: it goes on after a restart, shows how far it is, and can be cancelled.
//!
//! What there is: taking a volume off its parent, by copying what it sees there; the deletion of what has no
//! name any more, which is the collector's work and only shown here; and operations that somebody outside
//! drives, see [`super::driven`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use metastore::pool::Table;

use super::garbage::{COLLECT_RETRY, CopyFrom, Merged};
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
/// Operations that are read when a pool is opened: more than there can be.
const RECORDS_MAX: usize = 65_536;
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
    /// Gives back what a deleted volume or snapshot had. The pool does it by itself; it cannot be cancelled.
    Delete = 3,
    /// Fills a volume from an image. Driven from outside.
    Import = 4,
    /// Writes a volume or a snapshot to an image. Driven from outside.
    Export = 5,
    /// Copies what a snapshot has to another device. Driven from outside.
    Copy = 6,
    /// Reads everything that is mapped. Driven from outside.
    Scrub = 7,
}

impl OperationKind {
    /// Somebody outside the pool does the work: [`super::Pool::begin`].
    #[must_use]
    pub fn is_driven(self) -> bool {
        matches!(self, Self::Import | Self::Export | Self::Copy | Self::Scrub)
    }

    /// The pool copies what a volume sees of its parent.
    fn detaches(self) -> bool {
        matches!(self, Self::Decouple | Self::Inflate)
    }

    fn from_code(code: u8) -> Option<Self> {
        [
            Self::Decouple,
            Self::Inflate,
            Self::Delete,
            Self::Import,
            Self::Export,
            Self::Copy,
            Self::Scrub,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == code)
    }
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
    /// Somebody cancelled it, and who drives it has not ended it yet.
    Cancelling = 4,
}

impl OperationState {
    /// It has not ended.
    #[must_use]
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Running | Self::Cancelling)
    }
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Operation {
    /// Its number in the pool.
    pub id: u64,
    /// What it does.
    pub kind: OperationKind,
    /// The name of the volume or snapshot; empty for the pool.
    pub subject: String,
    /// The layer that is taken off its parent, or deleted; 0 when it is driven from outside. A volume that is
    /// taken off its parent may lie on it by now: then it is a snapshot's.
    pub(super) layer: LayerId,
    /// Steps done: clusters looked at or given back; the driver's unit when it is driven from outside.
    pub done: u64,
    /// Steps in all.
    pub total: u64,
    /// How it is.
    pub state: OperationState,
    /// Why it failed, or what its driver found.
    pub text: String,
    /// What its driver needs to go on after a restart; empty once it has ended.
    pub detail: String,
    /// All that was to be copied is committed.
    pub(super) is_copied: bool,
    /// It cannot go on before a device outside the pool is there.
    pub(super) is_waiting: bool,
}

impl Operation {
    /// One that begins, without a number yet.
    pub(super) fn new(kind: OperationKind, subject: &str) -> Self {
        Self {
            id: 0,
            kind,
            subject: subject.to_owned(),
            layer: LayerId(0),
            done: 0,
            total: 0,
            state: OperationState::Running,
            text: String::new(),
            detail: String::new(),
            is_copied: false,
            is_waiting: false,
        }
    }

    fn record(&self) -> OperationRecord {
        OperationRecord {
            kind: self.kind as u8,
            subject: self.subject.clone(),
            layer: self.layer.0,
            // What was copied need not be committed yet. After a restart it is looked at again: what is there is
            // passed quickly.
            done: match self.state {
                OperationState::Running if !self.kind.is_driven() => 0,
                _ => self.done,
            },
            total: self.total,
            state: self.state as u8,
            // One has no text before it ends, and no detail afterwards.
            text: if self.is_driven_now() {
                self.detail.clone()
            } else {
                self.text.clone()
            },
        }
    }

    /// The worker copies for it.
    pub(super) fn is_detaching(&self) -> bool {
        self.kind.detaches() && self.state == OperationState::Running
    }

    /// Somebody outside is to go on with it.
    pub(super) fn is_driven_now(&self) -> bool {
        self.kind.is_driven() && self.state.is_under_way()
    }

    fn from_record(id: u64, record: OperationRecord) -> Option<Self> {
        let mut operation = Self {
            id,
            kind: OperationKind::from_code(record.kind)?,
            state: match record.state {
                0 => OperationState::Running,
                1 => OperationState::Done,
                2 => OperationState::Failed,
                3 => OperationState::Cancelled,
                4 => OperationState::Cancelling,
                _ => return None,
            },
            subject: record.subject,
            layer: LayerId(record.layer),
            done: record.done,
            total: record.total,
            text: record.text,
            detail: String::new(),
            is_copied: false,
            is_waiting: false,
        };
        if operation.is_driven_now() {
            operation.detail = std::mem::take(&mut operation.text);
        }
        Some(operation)
    }
}

/// What became of one slot.
pub(super) enum Copied {
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
        if running.any(|other| other.is_detaching() && other.layer == layer) {
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
        Ok(self.add_operation(Operation {
            total,
            layer,
            ..Operation::new(kind, name)
        }))
    }

    /// Gives an operation its number, and keeps it.
    pub(super) fn add_operation(&mut self, operation: Operation) -> u64 {
        let id = self.pool.next_operation;
        self.pool.next_operation += 1;
        self.put_operation(Operation { id, ..operation });
        self.forget_old_operations();
        id
    }

    pub(super) fn cancel(&mut self, id: u64) -> Result<(), LvolError> {
        let mut operation = self.operation(id)?.clone();
        if operation.state != OperationState::Running {
            return Ok(());
        }
        operation.state = match operation.kind {
            OperationKind::Delete => {
                return Err(LvolError::Refused {
                    name: operation.subject,
                    problem: "is deleted already; giving back its space cannot be cancelled"
                        .to_owned(),
                });
            }
            // Its driver takes back what it has made, and ends it.
            kind if kind.is_driven() => OperationState::Cancelling,
            _ => OperationState::Cancelled,
        };
        self.put_operation(operation);
        Ok(())
    }

    /// Nobody needs the layer any more.
    pub(super) fn cancel_for(&mut self, layer: LayerId) {
        let running = self.operations.values();
        let of_it: Vec<u64> = running
            .filter(|other| other.is_detaching() && other.layer == layer)
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

    pub(super) fn forget_old_operations(&mut self) {
        let ended = self.operations.values();
        let ended = ended.filter(|operation| !operation.state.is_under_way());
        let ids: Vec<u64> = ended.map(|operation| operation.id).collect();
        for id in ids.iter().take(ids.len().saturating_sub(ENDED_MAX)) {
            self.operations.remove(id);
            self.stage(Table::Operations, &operation_key(*id), None);
        }
    }

    pub(super) fn load_operations(&mut self) -> Result<(), LvolError> {
        let store = self.usable_store()?;
        let entries = store.scan(Table::Operations, .., RECORDS_MAX)?;
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
        let can_go_on = |other: &&Operation| other.is_detaching() && !other.is_waiting;
        let Some(operation) = running.find(can_go_on) else {
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
            Err(error @ LvolError::ExternalMissing { .. }) => {
                // Others have their turn meanwhile.
                operation.is_waiting = true;
                operation.text = format!("waits: {error}");
                self.operations.insert(operation.id, operation);
                true
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

    /// A device outside the pool has come.
    pub(super) fn go_on_with_waiting(&mut self) {
        for operation in self.operations.values_mut() {
            if std::mem::take(&mut operation.is_waiting) {
                operation.text.clear();
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
        let external = self.external_under(layer);
        if external.is_some_and(|part| from < self.pieces_of(&part)) {
            return Ok(Some(from));
        }
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
            let from = match below(chain, slot, granule) {
                Some(Source::Own(from)) => from,
                Some(_) => continue,
                None => match self.detach_external(chain, slot, granule)? {
                    Copied::Yes => continue,
                    Copied::Busy => return Ok(Copied::Busy),
                },
            };
            if unsettled {
                return Ok(Copied::Busy);
            }
            // As many as follow from the same cluster go together.
            let mut wanted = Granules::NONE;
            for next in granule..granularity.granules() {
                let own = chain.own.look(slot).source(next);
                if own == Source::Parent && below(chain, slot, next) == Some(Source::Own(from)) {
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
        let from = CopyFrom::Cluster(from);
        let merged = self.copy_granules(key, &chain.own, slot, from, granules)?;
        Ok(matches!(merged, Merged::Done))
    }

    /// Nothing of the parent is seen through the volume any more.
    fn take_off(&mut self, layer: LayerId, operation: &Operation) {
        self.set_layer_parent(layer, Parent::None);
        self.drop_chains_through(layer);
        self.externals_may_change();
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
        entries.any(|entry| entry.shared.is_in_transit())
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

/// Where a granule that the volume does not have is read from; `None` if no layer has it.
pub(super) fn below(chain: &Chain, slot: usize, granule: u16) -> Option<Source> {
    let mut sources = chain
        .ancestors
        .iter()
        .map(|piece| piece.look(slot).source(granule));
    sources.find(|source| *source != Source::Parent)
}
