//! The commit: what completed before it began is durable when it ends.
//!
//! 1. Begin a new epoch of the log of first writes: what is in pages of earlier ones is in the maps now.
//!    Mark the dirty pieces clean and encode them: what is encoded had completed.
//! 2. One transaction (or a few, when there is much): pieces, the chunks of free clusters that differ
//!    by them, and the records that calls have staged. Its pages are written and the device is FLUSHed,
//!    which covers the data too; then the transaction is made visible, and the device FLUSHed again.
//! 3. Tell those who waited.
//! 4. Clusters that no map has any more become free after a grace period.
//!
//! FREE always says what the maps say, because it is made from how a piece's record changes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use block::IoError;
use metastore::pool::{PoolStoreError, Table};

use super::shared::{DirtyPiece, Reply};
use super::worker::{PoolWorker, Waiter, is_fatal, load_chunk};
use super::write_log::WriteLog;
use crate::LvolError;
use crate::format::{
    LayerId, POOL_KEY, chunk_key, decode_piece, encode_piece, layer_key, piece_key,
};
use crate::map::{Cluster, PIECE_SLOTS, SlotContent};

/// Clusters kept for the metadata before any has been used, bytes.
pub(super) const METADATA_RESERVE_BYTES_MIN: u64 = 2 << 20;
/// No more than this is kept for the metadata, bytes: it grows by steps of 4 GiB at most.
const METADATA_RESERVE_BYTES_MAX: u64 = 4 << 30;

/// When a commit that failed and that I/O waits for is tried again.
const COMMIT_RETRY: Duration = Duration::from_millis(100);

type Slots = Box<[SlotContent; PIECE_SLOTS]>;

impl PoolWorker {
    /// Commits, and tells all who wait for it.
    pub(super) fn commit(&mut self) {
        let waiters = std::mem::take(&mut self.waiters);
        self.shared.committing.store(true, Ordering::SeqCst);
        let result = self.commit_with_room();
        self.shared.committing.store(false, Ordering::SeqCst);
        match &result {
            Ok(()) => self.after_commit(),
            Err(error) => self.after_failed_commit(error),
        }
        for waiter in waiters {
            match waiter {
                Waiter::Channel { mailbox, ticket } => {
                    let result = result.as_ref().map(|_| ()).map_err(io_error);
                    mailbox.put(Reply::Committed { ticket, result });
                }
                Waiter::Call(tell) => tell(self, result.as_ref().map(|_| ()).map_err(repeated)),
            }
        }
    }

    /// Commits; as often as the metadata lack room that the pool has.
    fn commit_with_room(&mut self) -> Result<(), LvolError> {
        loop {
            let result = self.commit_all();
            let wanted = match &result {
                Err(LvolError::Store {
                    source: PoolStoreError::NoSpace { wanted_bytes, .. },
                }) => *wanted_bytes,
                _ => return result,
            };
            // A large transaction may grow the database more than once, and past what was kept for it.
            let before = self.metadata.reserved();
            self.refill_reserve(wanted)?;
            if self.metadata.reserved() == before && !self.leave_out_sums() {
                return result;
            }
        }
    }

    fn commit_all(&mut self) -> Result<(), LvolError> {
        self.usable_store()?;
        // Before the new epoch: pages of the log that are about them are of earlier ones.
        let freed = {
            let mut inbox = self.shared.inbox();
            self.held.append(&mut inbox.held);
            std::mem::take(&mut inbox.freed)
        };
        let begun = self.shared.log().map(WriteLog::begin_commit);
        let mut dirty = std::mem::take(&mut self.shared.inbox().dirty);
        let count = dirty.len() as u64;
        // After `committing` was set: who asks whether all is durable sees one or the other.
        self.shared.dirty_count.fetch_sub(count, Ordering::SeqCst);
        self.freed
            .extend(freed.into_iter().filter(|cluster| !cluster.is_lost()));
        self.sort_dirty(&mut dirty);
        for entry in &dirty {
            entry.piece.mark_clean();
        }
        let result = self.commit_pieces(&dirty, begun);
        if result.is_err() {
            self.queue_again(dirty);
            return result;
        }
        self.quarantine_freed();
        self.refill_reserve(0)
    }

    /// `begun` is the epoch that begins, and the page of the log before which all are covered.
    fn commit_pieces(
        &mut self,
        dirty: &[DirtyPiece],
        begun: Option<(u64, u64)>,
    ) -> Result<(), LvolError> {
        // Pages of the log that came to nothing are to be free too.
        let is_covered = self.shared.log().is_none_or(WriteLog::is_covered);
        if dirty.is_empty() && self.staged.is_empty() && is_covered {
            return self.disk.flush();
        }
        let mut rest = dirty;
        loop {
            let taken = self.transact(rest, begun.map(|(epoch, _)| epoch))?;
            rest = &rest[taken..];
            if rest.is_empty() {
                break;
            }
        }
        self.together.clear();
        if let (Some(log), Some((epoch, head))) = (self.shared.log(), begun) {
            log.end_commit(epoch, head);
        }
        Ok(())
    }

    /// What waited for the device to know it.
    fn after_commit(&mut self) {
        for piece in self.held.drain(..) {
            piece.let_go();
        }
        self.new_layers.clear();
        for action in std::mem::take(&mut self.on_commit) {
            action(self);
        }
        self.answer_unresolved();
    }

    /// What the piece's record is to say: a slot that is in two layers in memory is the child's.
    fn encode(&self, entry: &DirtyPiece) -> Slots {
        let moved = self.moved.as_ref();
        let moved = moved.filter(|moved| (moved.parent, moved.index) == (entry.layer, entry.index));
        let gone = moved.map_or(0, |moved| moved.slots);
        Box::new(std::array::from_fn(|slot| {
            if gone >> slot & 1 == 1 {
                SlotContent::Empty
            } else {
                entry.piece.snapshot_slot(slot)
            }
        }))
    }

    /// One transaction: what is staged, and pieces from the front of the list, as many as fit. Those that belong
    /// together are in the first one. Returns how many it took.
    fn transact(&mut self, dirty: &[DirtyPiece], epoch: Option<u64>) -> Result<usize, LvolError> {
        self.metadata.flush_before_commit();
        let store = self.store.as_ref().ok_or(LvolError::Closed)?;
        let mut transaction = store.transaction();
        let mut moves = Moves::default();
        let mut followed = Vec::new();
        let (mut taken, mut bytes) = (0, 0);
        for entry in dirty {
            if bytes > self.options.transaction_bytes && !self.belongs_together(entry) {
                break;
            }
            let key = piece_key(entry.layer, entry.index);
            let slots = self.encode(entry);
            let stored = store.get(Table::Map, &key)?;
            let stored = stored.map(|record| {
                decode_piece(&record, self.shared.granularity, self.allocator.clusters())
            });
            let old = match stored.transpose() {
                Ok(old) => old,
                Err(error) => {
                    // It was damaged after it was read. What is in memory is right; what only the record
                    // had stays in use until a repair.
                    let (layer, index) = (entry.layer.0, entry.index);
                    tracing::error!(layer, index, %error, "a piece of a map was damaged; it is replaced");
                    let mut source = |number| load_chunk(store, number);
                    let mut known = slots.clone();
                    for slot in &mut known[..] {
                        if let Some(cluster) = slot.data_cluster()
                            && !self.allocator.is_used(cluster, &mut source)?
                        {
                            *slot = SlotContent::Empty;
                        }
                    }
                    Some(known)
                }
            };
            moves.add(entry.layer, old.as_deref(), &slots);
            if let Some(checking) = &self.checking
                && checking.follows()
            {
                followed.push((entry.layer, entry.index, old.clone(), slots.clone()));
            }
            if slots.iter().all(|slot| *slot == SlotContent::Empty) {
                transaction.delete(Table::Map, &key)?;
            } else {
                let record = encode_piece(&slots);
                bytes += record.len();
                transaction.put(Table::Map, &key, &record)?;
            }
            taken += 1;
        }
        moves.added.extend(&self.adopted);
        moves.cancel_out();
        let mut source = |number| load_chunk(store, number);
        for (number, chunk) in self
            .allocator
            .update(&moves.added, &moves.removed, &mut source)?
        {
            transaction.put(Table::Free, &chunk_key(number), &chunk.encode())?;
        }
        for number in &self.rewritten_chunks {
            if let Some(chunk) = self.allocator.chunk_record(*number) {
                transaction.put(Table::Free, &chunk_key(*number), &chunk.encode())?;
            }
        }
        for (layer, delta) in moves.counts.iter().filter(|(_, delta)| **delta != 0) {
            if let Some(record) = self.layers.get_mut(layer) {
                record.clusters = record.clusters.saturating_add_signed(*delta);
                let key = (Table::Layers, layer_key(*layer).to_vec());
                self.staged.insert(key, Some(record.encode()));
            }
        }
        self.pool.reserved_clusters = self.promised();
        self.pool.used_clusters = self.allocator.used();
        // With the last piece.
        let epoch_before = self.pool.log_epoch;
        self.pool.log_epoch = epoch
            .filter(|_| taken == dirty.len())
            .unwrap_or(epoch_before);
        self.staged
            .insert((Table::Pool, POOL_KEY.to_vec()), Some(self.pool.encode()));
        for ((table, key), value) in &self.staged {
            match value {
                Some(value) => transaction.put(*table, key, value)?,
                None => transaction.delete(*table, key)?,
            }
        }
        if let Err(error) = transaction.commit() {
            self.take_back(&moves);
            self.pool.log_epoch = epoch_before;
            return Err(error.into());
        }
        self.staged.clear();
        self.adopted.clear();
        self.rewritten_chunks.clear();
        if let Some(checking) = &mut self.checking {
            for (layer, index, old, new) in &followed {
                checking.saw(*layer, *index, old.as_deref(), new);
            }
        }
        Ok(taken)
    }

    /// The transaction is not there: what it would have changed is as before.
    fn take_back(&mut self, moves: &Moves) {
        let Some(store) = self.store.as_ref() else {
            return;
        };
        let mut source = |number| load_chunk(store, number);
        let updated = self
            .allocator
            .update(&moves.removed, &moves.added, &mut source);
        // Its chunks were loaded a moment ago.
        debug_assert!(updated.is_ok(), "{updated:?}");
        for (layer, delta) in &moves.counts {
            if let Some(record) = self.layers.get_mut(layer) {
                record.clusters = record.clusters.saturating_add_signed(-delta);
                let key = (Table::Layers, layer_key(*layer).to_vec());
                self.staged.insert(key, Some(record.encode()));
            }
        }
    }

    fn belongs_together(&self, entry: &DirtyPiece) -> bool {
        self.together.contains(&(entry.layer, entry.index))
    }

    /// Puts what is to be in one transaction at the front.
    pub(super) fn sort_dirty(&mut self, dirty: &mut Vec<DirtyPiece>) {
        self.add_moved(dirty);
        dirty.sort_by_key(|entry| !self.belongs_together(entry));
    }

    /// Their removal is durable: they are free once I/O that may still look at them has ended.
    fn quarantine_freed(&mut self) {
        let clusters = std::mem::take(&mut self.freed);
        if clusters.is_empty() {
            return;
        }
        self.quarantined += clusters.len() as u64;
        self.after_grace(move |worker| {
            worker.quarantined -= clusters.len() as u64;
            worker.release(clusters);
        });
    }

    /// Keeps as much for the metadata as its next growth can need, and as it takes for a length of `len` bytes.
    pub(super) fn refill_reserve(&mut self, len: u64) -> Result<(), LvolError> {
        let cluster_size = self.shared.granularity.cluster_size();
        let has = self.metadata.clusters() * cluster_size;
        let bytes = has
            .clamp(METADATA_RESERVE_BYTES_MIN, METADATA_RESERVE_BYTES_MAX)
            .max(len.saturating_sub(has));
        let wanted = bytes.div_ceil(cluster_size);
        let have = self.metadata.reserved();
        if have >= wanted {
            return Ok(());
        }
        // Not what is promised to thick volumes.
        let missing = (wanted - have).min(self.data_clusters_free(false));
        let store = self.store.as_ref().ok_or(LvolError::Closed)?;
        let mut source = |number| load_chunk(store, number);
        let extents = self.allocator.take_extents(missing, &mut source)?;
        self.metadata.add_reserve(extents);
        Ok(())
    }

    /// The pieces are dirty as before.
    fn queue_again(&mut self, dirty: Vec<DirtyPiece>) {
        let mut inbox = self.shared.inbox();
        for entry in dirty {
            // Somebody may have marked and queued it meanwhile.
            if entry.piece.mark_dirty() {
                inbox.dirty.push(entry);
                self.shared.dirty_count.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn after_failed_commit(&mut self, error: &LvolError) {
        let fatal = match error {
            LvolError::Store { source } => is_fatal(source),
            LvolError::Closed | LvolError::Faulted { .. } => false,
            _ => true,
        };
        if fatal {
            self.stop(error);
        } else {
            tracing::warn!(
                error = crate::chain(error),
                "a commit failed; it will be tried again"
            );
            // I/O waits for one that ends well.
            let waits = self.unresolved.len() + self.on_commit.len() + self.held.len();
            if waits > 0 {
                self.commit_in(COMMIT_RETRY);
            }
        }
    }
}

fn clusters(slots: &[SlotContent; PIECE_SLOTS]) -> impl Iterator<Item = Cluster> {
    slots.iter().filter_map(SlotContent::data_cluster)
}

/// How clusters move by a transaction.
#[derive(Debug, Default)]
struct Moves {
    added: Vec<Cluster>,
    removed: Vec<Cluster>,
    counts: BTreeMap<LayerId, i64>,
}

impl Moves {
    fn add(
        &mut self,
        layer: LayerId,
        old: Option<&[SlotContent; PIECE_SLOTS]>,
        new: &[SlotContent; PIECE_SLOTS],
    ) {
        let (added, removed) = (self.added.len(), self.removed.len());
        self.added.extend(clusters(new));
        self.removed.extend(old.into_iter().flat_map(clusters));
        let count = (self.added.len() - added) as i64 - (self.removed.len() - removed) as i64;
        *self.counts.entry(layer).or_default() += count;
    }

    /// Takes out of both what is in both: clusters that stay where they are or move between layers.
    fn cancel_out(&mut self) {
        self.added.sort_unstable();
        self.removed.sort_unstable();
        let stays: Vec<Cluster> = self
            .added
            .iter()
            .filter(|cluster| self.removed.binary_search(cluster).is_ok())
            .copied()
            .collect();
        let moves = |cluster: &Cluster| stays.binary_search(cluster).is_err();
        self.added.retain(moves);
        self.removed.retain(moves);
    }
}

fn io_error(error: &LvolError) -> IoError {
    match error {
        LvolError::Store {
            source: PoolStoreError::NoSpace { .. },
        } => IoError::NoSpace,
        LvolError::Device { source, .. } => *source,
        _ => IoError::Internal,
    }
}

/// The same failure, for one more who waited.
fn repeated(error: &LvolError) -> LvolError {
    LvolError::Commit {
        reason: crate::chain(error),
    }
}
