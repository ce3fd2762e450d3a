//! Other sizes: of a volume, and of the pool when its device grew.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use metastore::pool::Table;

use super::external::ExternalPart;
use super::open::POOL_BYTES_MAX;
use super::promise::Resolver;
use super::shared::VolumeShared;
use super::worker::PoolWorker;
use crate::LvolError;
use crate::format::{LayerId, NameKind, Parent, parse_piece_key, piece_key};
use crate::map::{GranuleRange, Granules, Look, PIECE_SLOTS, Source};

/// Keys read at a time.
const SCAN_KEYS: usize = 1024;

impl PoolWorker {
    pub(super) fn resize(&mut self, name: &str, size_bytes: u64, resolver: Resolver<()>) {
        let volume = match self.begin_resize(name, size_bytes) {
            Ok(volume) => volume,
            Err(error) => return resolver.resolve(Err(error)),
        };
        // I/O beyond a new end ends first; none begins any more.
        self.after_grace(move |worker| match worker.end_resize(&volume, size_bytes) {
            Ok(()) => worker.when_committed(|_, result| resolver.resolve(result)),
            Err(error) => resolver.resolve(Err(error)),
        });
    }

    fn begin_resize(
        &mut self,
        name: &str,
        size_bytes: u64,
    ) -> Result<Arc<VolumeShared>, LvolError> {
        self.check_size(name, size_bytes)?;
        let entry = self.entry(name)?;
        let record = &entry.record;
        let refused = |problem: String| LvolError::Refused {
            name: name.to_owned(),
            problem,
        };
        if record.kind == NameKind::Snapshot {
            return Err(refused("is a snapshot; it never changes".to_owned()));
        }
        let granule = self.shared.granularity.granule_size();
        if size_bytes < record.size_bytes && !size_bytes.is_multiple_of(granule) {
            return Err(refused(format!(
                "can shrink to multiples of {granule} bytes only"
            )));
        }
        if record.thick {
            let (old, new) = (
                self.clusters_of(record.size_bytes),
                self.clusters_of(size_bytes),
            );
            self.check_clusters(new.saturating_sub(old))?;
        }
        // Not more than another call that is under way left.
        let blocks = size_bytes / u64::from(self.shared.block_size);
        entry.shared.block_count.fetch_min(blocks, Ordering::SeqCst);
        Ok(Arc::clone(&entry.shared))
    }

    /// The volume may have another name by now, or none.
    fn end_resize(&mut self, volume: &Arc<VolumeShared>, size_bytes: u64) -> Result<(), LvolError> {
        let name = self.name_now(volume)?;
        let mut record = self.entry(&name)?.record.clone();
        let block_size = u64::from(self.shared.block_size);
        if let Err(error) = self.truncate(record.layer, size_bytes) {
            let blocks = record.size_bytes / block_size;
            volume.block_count.store(blocks, Ordering::SeqCst);
            // What was truncated before is waited for.
            self.when_committed(|_, _| {});
            return Err(error);
        }
        record.size_bytes = size_bytes;
        // What is beyond the old size is written to once the commit has what was truncated.
        let volume = Arc::clone(volume);
        self.on_commit.push(Box::new(move |_| {
            let blocks = size_bytes / block_size;
            volume.block_count.store(blocks, Ordering::SeqCst);
        }));
        self.put_name(&name, &record);
        if let Some(entry) = self.names.get_mut(&name) {
            entry.record = record;
        }
        self.reserve_again();
        Ok(())
    }

    /// Makes all of a layer from `from` on read as zeroes, and frees its clusters there. No I/O is there.
    fn truncate(&mut self, layer: LayerId, from: u64) -> Result<(), LvolError> {
        let granularity = self.shared.granularity;
        let (cluster, offset) = granularity.split(from);
        let first_slot = (cluster % PIECE_SLOTS as u64) as usize;
        let first_piece = cluster / PIECE_SLOTS as u64;
        let mut indices = self.pieces_from(layer, first_piece)?;
        if let Some(part) = self.external_under(layer) {
            indices.extend(first_piece..self.pieces_of(&part));
        }
        for index in indices {
            let chain = self.chain(layer, index)?;
            let start = if index == first_piece { first_slot } else { 0 };
            // No first write begins in the slot that the end is in before the commit. If that does not come,
            // the old size is what holds, and with it the slot's cluster.
            chain.own.hold();
            self.held.push(Arc::clone(&chain.own));
            for slot in start..PIECE_SLOTS {
                let first = if index == first_piece && slot == first_slot {
                    (offset / granularity.granule_size()) as u16
                } else {
                    0
                };
                let granules = Granules::from(GranuleRange::new(first, granularity.granules()));
                let is_empty = |look: Look| look == Look::Whole(Source::Parent);
                let mut ancestors = chain.ancestors.iter();
                let hides = chain.external_bytes(slot, granularity.cluster_size()) > 0
                    || ancestors.any(|piece| !is_empty(piece.look(slot)));
                if !hides && is_empty(chain.own.look(slot)) {
                    continue;
                }
                if let Ok(change) = chain.own.zero(slot, granules, hides) {
                    // With the new size, or not at all.
                    self.together.insert((layer, index));
                    self.shared.note(&chain, change);
                }
            }
        }
        Ok(())
    }

    /// Index of the piece after the last that a device outside the pool has anything in.
    pub(super) fn pieces_of(&self, part: &ExternalPart) -> u64 {
        let piece = PIECE_SLOTS as u64 * self.shared.granularity.cluster_size();
        part.len_bytes.div_ceil(piece)
    }

    /// Indices from `first` on at which the layer or one below has anything.
    pub(super) fn pieces_from(
        &self,
        layer: LayerId,
        first: u64,
    ) -> Result<BTreeSet<u64>, LvolError> {
        let mut indices = BTreeSet::new();
        let mut at = Some(layer);
        while let Some(layer) = at {
            let resident = self.pieces.keys();
            let resident = resident.filter(|(owner, index)| *owner == layer && *index >= first);
            indices.extend(resident.map(|(_, index)| *index));
            self.scan_pieces(layer, first, &mut indices)?;
            at = match self.layers.get(&layer).map(|record| &record.parent) {
                Some(Parent::Layer(parent)) => Some(*parent),
                _ => None,
            };
        }
        Ok(indices)
    }

    fn scan_pieces(
        &self,
        layer: LayerId,
        first: u64,
        indices: &mut BTreeSet<u64>,
    ) -> Result<(), LvolError> {
        let mut next = first;
        loop {
            let (start, end) = (piece_key(layer, next), piece_key(layer, u64::MAX));
            let store = self.usable_store()?;
            let entries = store.scan(Table::Map, &start[..]..=&end[..], SCAN_KEYS)?;
            let found = entries.iter().filter_map(|(key, _)| parse_piece_key(key));
            let Some(last) = found
                .map(|(_, index)| index)
                .inspect(|index| {
                    indices.insert(*index);
                })
                .last()
            else {
                return Ok(());
            };
            if entries.len() < SCAN_KEYS {
                return Ok(());
            }
            next = last + 1;
        }
    }

    /// Uses what the device has grown by. The superblock says so at once.
    pub(super) fn grow(&mut self) -> Result<(), LvolError> {
        let cluster_size = self.shared.granularity.cluster_size();
        let len = self.shared.base.geometry().len_bytes();
        if len > POOL_BYTES_MAX {
            let text = format!("a device of {len} bytes is larger than a pool's {POOL_BYTES_MAX}");
            return Err(LvolError::Size(text));
        }
        let clusters = len / cluster_size;
        if clusters > self.allocator.clusters() {
            self.usable_store()?;
            self.metadata
                .store(|superblock| superblock.clusters = clusters)?;
            self.allocator.grow(clusters);
        }
        Ok(())
    }
}
