//! Layers without a name: their clusters go to the one child that still sees them, or are freed.
//!
//! A layer that nothing lies on is emptied. One that a single layer lies on is merged into that, piece
//! by piece: where the child has nothing, the slot moves; where it has a part, the rest is copied; where
//! it has all, the cluster is freed. One with several children stays until one is left.
//!
//! A slot moves so: it is put into the child, I/O in flight ends, it is taken from the parent. Who looked
//! at the child before it was there finds it in the parent. On the device it moves in one transaction.
//!
//! Every step is bounded and what is done is committed, so that it goes on after a restart.

use std::sync::Arc;
use std::time::Duration;

use metastore::pool::Table;

use super::shared::DirtyPiece;
use super::worker::PoolWorker;
use crate::LvolError;
use crate::format::{
    LayerId, LayerState, LogChange, LogEntry, Parent, layer_key, parse_piece_key, piece_key,
};
use crate::map::{
    Change, Cluster, Granules, Look, PIECE_SLOTS, Piece, PieceError, SlotContent, Source,
};

/// Pieces emptied in one step.
const PIECES_PER_STEP: usize = 64;

/// When a piece that could not be merged is tried again.
pub(super) const COLLECT_RETRY: Duration = Duration::from_millis(100);

/// Slots that are in a child already and still in its parent, for those who looked before.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) parent: LayerId,
    pub(super) child: LayerId,
    pub(super) index: u64,
    pub(super) piece: Arc<Piece>,
    /// Bit by slot.
    pub(super) slots: u128,
}

/// Where granules are copied from.
#[derive(Debug, Clone, Copy)]
pub(super) enum CopyFrom<'a> {
    /// The same places of a cluster.
    Cluster(Cluster),
    /// Memory, from this granule on.
    Bytes { first: u16, data: &'a [u8] },
}

/// What became of a slot that was to be merged.
pub(super) enum Merged {
    /// It is in the child.
    Moved,
    /// The child needs nothing of it any more.
    Done,
    /// Somebody is writing there: try again.
    Busy,
}

impl PoolWorker {
    /// Does a bit of the work. True if there is more that can be done now.
    pub(super) fn collect(&mut self) -> bool {
        // A merge waits for I/O, or a commit for its end: one thing at a time keeps it simple.
        if self.moved.is_some() || self.collecting_waits || self.collect_at.is_some() {
            return false;
        }
        let Some((layer, children)) = self.next_garbage() else {
            return false;
        };
        let is_staged = self.staged.keys().any(|(table, _)| *table == Table::Layers);
        if is_staged || self.is_uncommitted(layer) {
            // The records are what is walked: they have to say everything first. And what is merged is seen
            // and written to before a commit has it: until the device knows that the layer is nobody else's,
            // that would be another's, should the program die.
            self.wait_for_commit();
            return true;
        }
        let worked = if children == 0 {
            self.empty_layer(layer)
        } else {
            self.merge_layer(layer)
        };
        match worked {
            Ok(more) => more,
            Err(error) => {
                // Its space does not come back until somebody repairs it; all else goes on.
                let reason = crate::chain(&error);
                tracing::error!(layer = layer.0, %reason, "a layer cannot be deleted");
                self.garbage.remove(&layer);
                self.end_deletion(layer, Some(reason));
                false
            }
        }
    }

    fn next_garbage(&self) -> Option<(LayerId, u32)> {
        let mut found = None;
        for layer in &self.garbage {
            match self.layers.get(layer).map_or(0, |record| record.children) {
                0 => return Some((*layer, 0)),
                1 => found = found.or(Some((*layer, 1))),
                _ => {}
            }
        }
        found
    }

    pub(super) fn is_uncommitted(&self, layer: LayerId) -> bool {
        let inbox = self.shared.inbox();
        inbox.dirty.iter().any(|entry| entry.layer == layer)
    }

    /// The next pieces of a layer that have a record, from its progress on.
    fn next_pieces(&self, layer: LayerId, limit: usize) -> Result<Vec<u64>, LvolError> {
        let from = self.layers.get(&layer).map_or(0, |record| record.progress);
        let (start, end) = (piece_key(layer, from), piece_key(layer, u64::MAX));
        let store = self.usable_store()?;
        let entries = store.scan(Table::Map, &start[..]..=&end[..], limit)?;
        let keys = entries.iter().filter_map(|(key, _)| parse_piece_key(key));
        Ok(keys.map(|(_, index)| index).collect())
    }

    /// Frees clusters of a layer that nobody sees.
    fn empty_layer(&mut self, layer: LayerId) -> Result<bool, LvolError> {
        let indices = self.next_pieces(layer, PIECES_PER_STEP)?;
        let Some(last) = indices.last().copied() else {
            return self.end_layer(layer);
        };
        for index in indices {
            let Some(piece) = self.piece(layer, index)? else {
                continue;
            };
            self.together.insert((layer, index));
            self.take_all(layer, index, &piece, 0);
        }
        self.change_layer(layer, |record| record.progress = last + 1);
        self.wait_for_commit();
        Ok(false)
    }

    /// Empties a piece that no I/O uses. Clusters go free but for those in `kept` slots.
    fn take_all(&mut self, layer: LayerId, index: u64, piece: &Arc<Piece>, kept: u128) {
        for slot in 0..PIECE_SLOTS {
            // Nobody writes to a layer without a name.
            let Ok((content, change)) = piece.take(slot) else {
                continue;
            };
            let keeps = kept >> slot & 1 == 1;
            let freed = content.cluster().filter(|_| !keeps);
            self.shared
                .note_piece(layer, index, piece, Change { freed, ..change });
        }
    }

    /// The layer has no pieces: what lies on it lies on its parent now.
    fn end_layer(&mut self, layer: LayerId) -> Result<bool, LvolError> {
        if self.drop_sums(layer)? {
            self.wait_for_commit();
            return Ok(false);
        }
        // What its last pieces held is committed; see `wait_for_commit`.
        let Some(record) = self.layers.remove(&layer) else {
            return Ok(true);
        };
        self.garbage.remove(&layer);
        self.end_deletion(layer, None);
        self.stage(Table::Layers, &layer_key(layer), None);
        let child = (record.children > 0)
            .then(|| self.child_of(layer))
            .flatten();
        match (child, &record.parent) {
            (Some(child), parent) => {
                let parent = parent.clone();
                self.change_layer(child, |record| record.parent = parent);
            }
            (None, Parent::Layer(parent)) => {
                self.change_layer(*parent, |record| {
                    record.children = record.children.saturating_sub(1);
                });
            }
            (None, _) => {}
        }
        self.pieces.retain(|(owner, _), _| *owner != layer);
        self.wait_for_commit();
        Ok(false)
    }

    fn child_of(&self, layer: LayerId) -> Option<LayerId> {
        let mut layers = self.layers.iter();
        let found = layers.find(|(_, record)| record.parent == Parent::Layer(layer));
        found.map(|(child, _)| *child)
    }

    /// Merges a piece into the one layer that lies on this.
    fn merge_layer(&mut self, parent: LayerId) -> Result<bool, LvolError> {
        let Some(index) = self.next_pieces(parent, 1)?.first().copied() else {
            return self.end_layer(parent);
        };
        let Some(child) = self.child_of(parent) else {
            return self.end_layer(parent);
        };
        let Some(source) = self.piece(parent, index)? else {
            return Ok(true);
        };
        let target = self.own_piece(child, index)?;
        if Arc::strong_count(&target) == 2 {
            // Only the worker has it: chains of volumes may have been made without it.
            self.drop_chains_through(child);
        }
        if self
            .layers
            .get(&child)
            .is_some_and(|record| record.progress > index)
        {
            // The child is on its way into what lies on it: there is more for that here again.
            self.change_layer(child, |record| record.progress = index);
        }
        let has_parent = !matches!(
            self.layers.get(&parent).map(|record| &record.parent),
            None | Some(Parent::None)
        );
        // In one transaction, and with how far the parent is.
        self.together.extend([(parent, index), (child, index)]);
        let (mut slots, mut is_complete) = (0, true);
        for slot in 0..PIECE_SLOTS {
            match self.merge_slot((child, index), &source, &target, slot, has_parent)? {
                Merged::Moved => slots |= 1 << slot,
                Merged::Done => {}
                Merged::Busy => is_complete = false,
            }
        }
        if !is_complete && slots == 0 {
            // A host is writing just there, or the pool is full: not at once again.
            self.collect_at = Some(self.disk.now() + COLLECT_RETRY);
            return Ok(false);
        }
        self.moved = Some(Moved {
            parent,
            child,
            index,
            piece: Arc::clone(&source),
            slots,
        });
        self.after_grace(move |worker| worker.end_merge(is_complete));
        Ok(false)
    }

    /// Everybody who looks at the parent now has looked at the child with what moved there.
    fn end_merge(&mut self, is_complete: bool) {
        let Some(moved) = self.moved.take() else {
            return;
        };
        let keys = [moved.parent, moved.child].map(|layer| (layer, moved.index));
        self.together.extend(keys);
        if is_complete {
            self.take_all(moved.parent, moved.index, &moved.piece, moved.slots);
            let next = moved.index + 1;
            self.change_layer(moved.parent, |record| record.progress = next);
        } else {
            for slot in (0..PIECE_SLOTS).filter(|slot| moved.slots >> slot & 1 == 1) {
                if let Ok((_, change)) = moved.piece.take(slot) {
                    self.shared
                        .note_piece(moved.parent, moved.index, &moved.piece, change);
                }
            }
        }
        self.wait_for_commit();
    }

    fn merge_slot(
        &mut self,
        (child, index): (LayerId, u64),
        source: &Arc<Piece>,
        target: &Arc<Piece>,
        slot: usize,
        has_parent: bool,
    ) -> Result<Merged, LvolError> {
        let content = source.snapshot_slot(slot);
        if content == SlotContent::Empty {
            return Ok(Merged::Done);
        }
        match target.give(slot, &content) {
            Ok(change) => {
                self.shared.note_piece(child, index, target, change);
                return Ok(Merged::Moved);
            }
            Err(PieceError::Busy { .. }) => return Ok(Merged::Busy),
            Err(_) => {}
        }
        let whole = Granules::from(self.shared.granularity.whole());
        let (written, zero) = match content {
            SlotContent::Empty => (Granules::NONE, Granules::NONE),
            SlotContent::Full(_) => (whole, Granules::NONE),
            SlotContent::Zero => (Granules::NONE, whole),
            SlotContent::Partial { written, zero, .. } => (written, zero),
        };
        let missing = missing(&target.look(slot), whole);
        let hidden = missing.and(zero);
        // Without a parent what the child does not have is zeroes anyway.
        if !hidden.is_empty() && has_parent {
            match target.zero_missing(slot, hidden) {
                Ok(change) => self.shared.note_piece(child, index, target, change),
                Err(_) => return Ok(Merged::Busy),
            }
        }
        let copied = missing.and(written);
        let (Some(from), false) = (content.cluster(), copied.is_empty()) else {
            return Ok(Merged::Done);
        };
        let from = CopyFrom::Cluster(from);
        self.copy_granules((child, index), target, slot, from, copied)
    }

    /// Copies granules that only the parent has into the child's cluster.
    pub(super) fn copy_granules(
        &mut self,
        (child, index): (LayerId, u64),
        target: &Arc<Piece>,
        slot: usize,
        from: CopyFrom<'_>,
        granules: Granules,
    ) -> Result<Merged, LvolError> {
        // What the log says of the copy rests on what is committed.
        if target.is_held() || self.new_layers.contains(&child) {
            self.when_committed(|_, _| {});
            return Ok(Merged::Busy);
        }
        if !target.lock(slot, granules) {
            return Ok(Merged::Busy);
        }
        let copied = self.copy_locked(target, slot, from, granules);
        // A host may write there next, and would be told before a commit has the cluster.
        let copied = match copied {
            Ok(true) => self.log_copy((child, index), target, slot, granules),
            other => other,
        };
        let change = match copied {
            Ok(true) => target.complete_write(slot, granules),
            _ => target.unlock(slot, granules),
        };
        self.shared.note_piece(child, index, target, change);
        Ok(if copied? { Merged::Done } else { Merged::Busy })
    }

    /// Puts copied granules into the log of first writes. False if it is full.
    fn log_copy(
        &mut self,
        (layer, index): (LayerId, u64),
        target: &Piece,
        slot: usize,
        granules: Granules,
    ) -> Result<bool, LvolError> {
        let (Some(log), Some(cluster)) = (self.shared.log(), target.look(slot).cluster()) else {
            return Ok(true);
        };
        let entries = granules.runs().map(|granules| LogEntry {
            layer,
            slot: index * PIECE_SLOTS as u64 + slot as u64,
            granules,
            change: LogChange::Written(cluster),
        });
        let entries: Vec<LogEntry> = entries.collect();
        // No commit can begin meanwhile: it is this thread's.
        let epoch = log.gate.epoch();
        for entries in entries.chunks(log.entries_per_page()) {
            let Some(pages) = log.take(1) else {
                self.when_committed(|_, _| {});
                return Ok(false);
            };
            let mut page = vec![0; log.page_bytes()];
            log.encode(pages, epoch, entries, &mut page);
            let offset = log.block_of(pages.first) * u64::from(self.shared.block_size);
            self.disk.write(offset, &page)?;
        }
        log.has_applied(epoch);
        Ok(true)
    }

    /// False if something was written there meanwhile, or no cluster is free.
    fn copy_locked(
        &mut self,
        target: &Piece,
        slot: usize,
        from: CopyFrom<'_>,
        granules: Granules,
    ) -> Result<bool, LvolError> {
        let whole = Granules::from(self.shared.granularity.whole());
        let look = target.look(slot);
        if !missing(&look, whole).contains(granules) {
            return Ok(false);
        }
        let to = match look.cluster() {
            Some(cluster) => cluster,
            None => {
                if self.data_clusters_free(false) == 0 {
                    return Ok(false);
                }
                let Some(cluster) = self.take_cluster()? else {
                    return Ok(false);
                };
                match target.allocate(slot, cluster) {
                    Ok(()) => cluster,
                    Err(winner) => {
                        self.allocator.release(cluster);
                        winner
                    }
                }
            }
        };
        let is_lost = matches!(from, CopyFrom::Cluster(from) if from.is_lost());
        if is_lost || to.is_lost() {
            return Err(LvolError::Lost);
        }
        let granule = self.shared.granularity.granule_size();
        let cluster_size = self.shared.granularity.cluster_size();
        for run in granules.runs() {
            let offset = u64::from(run.start) * granule;
            let len = usize::from(run.len()) * granule as usize;
            let to = to.get() * cluster_size + offset;
            match from {
                CopyFrom::Cluster(from) => {
                    let mut data = vec![0; len];
                    self.disk
                        .read(from.get() * cluster_size + offset, &mut data)?;
                    self.disk.write(to, &data)?;
                }
                CopyFrom::Bytes { first, data } => {
                    let at = usize::from(run.start - first) * granule as usize;
                    self.disk.write(to, &data[at..at + len])?;
                }
            }
        }
        Ok(true)
    }

    /// Volumes that are read through this layer look their chains up again.
    pub(super) fn drop_chains_through(&mut self, layer: LayerId) {
        use std::sync::atomic::Ordering;
        for entry in self.names.values() {
            let mut at = Some(entry.record.layer);
            while let Some(here) = at {
                if here == layer {
                    entry.shared.chains.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                at = match self.layers.get(&here).map(|record| &record.parent) {
                    Some(Parent::Layer(parent)) => Some(*parent),
                    _ => None,
                };
            }
        }
        self.shared.chains.fetch_add(1, Ordering::SeqCst);
    }

    /// The collector goes on when what it did is committed.
    fn wait_for_commit(&mut self) {
        self.collecting_waits = true;
        self.when_committed(|worker, result| {
            worker.collecting_waits = false;
            if result.is_err() {
                worker.collect_at = Some(worker.disk.now() + COLLECT_RETRY);
            }
        });
    }

    /// A piece whose slots are in two layers in memory is committed whenever one of the two is.
    pub(super) fn add_moved(&mut self, dirty: &mut Vec<DirtyPiece>) {
        let Some(moved) = &self.moved else { return };
        let key = (moved.parent, moved.index);
        let mut keys = dirty.iter().map(|entry| (entry.layer, entry.index));
        if !keys.any(|other| other == key) {
            dirty.push(DirtyPiece {
                layer: moved.parent,
                index: moved.index,
                piece: Arc::clone(&moved.piece),
            });
        }
    }

    pub(super) fn load_garbage(&mut self) {
        let layers = self.layers.iter();
        let garbage = layers.filter(|(layer, record)| {
            record.state == LayerState::Garbage && !self.suspect.contains(layer)
        });
        self.garbage = garbage.map(|(layer, _)| *layer).collect();
    }
}

/// Granules that a slot leaves to the parent.
fn missing(look: &Look, whole: Granules) -> Granules {
    match *look {
        Look::Whole(Source::Parent) => whole,
        Look::Whole(_) => Granules::NONE,
        Look::Mixed { written, zero, .. } => whole.minus(written.or(zero)),
    }
}
