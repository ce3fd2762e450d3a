//! Checksums of what cannot change any more: made by the first scrub, compared by those that follow.
//!
//! A volume's own layer is written in place, and a checksum of that could not become durable together with the
//! write. What is *frozen* is not: the layer of a snapshot that has been taken, and a layer without a name that
//! several others lie on. Granules that are written there stay as they are; a map may still gain some, by a merge.
//!
//! A scrub asks what is mapped, reads it, and hands in what it found ([`super::Pool::compare_sums`]). What it read
//! counts only if the piece is frozen and its record is still the one that the scrub went by: then nothing of it
//! can have changed in between, for a layer that is not frozen any more never is again. A layer that is being
//! merged is not frozen: its child may already write to what is still the parent's by the records.
//!
//! Nothing tells this when a map changes. A checksum carries what the map said of its slot, so that one of
//! another place, whoever changed the map, is dropped. Records go with their layer.
//!
//! Checksums are for nothing where they are in the way: when the metadata lack room for a commit they are left
//! out of it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use metastore::pool::Table;

use super::check::Checking;
use super::repair::{Fix, Problem};
use super::worker::PoolWorker;
use crate::LvolError;
use crate::format::{
    Crc32c, FormatError, LayerId, LayerState, NameKind, SlotSum, SumsRecord, data_of, decode_piece,
    parse_piece_key, piece_key, place_sum, value_checksum,
};
use crate::map::{Cluster, Granules, PIECE_SLOTS};

/// Pieces compared in one call.
pub(super) const PIECES_PER_CALL: usize = 16;
/// Records that may wait for a commit; who has more waits for it.
const UNCOMMITTED_MAX: usize = 1024;
/// Records deleted in one step.
const DELETED_PER_STEP: usize = 1024;

/// A piece of a map whose data cannot change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenPiece {
    layer: LayerId,
    index: u64,
    /// Checksum of the record of the map.
    map_sum: u32,
    cluster_size: u64,
    /// Which of the runs that came with it are its.
    pub runs: Range<usize>,
}

/// What a scrub has read of a [`FrozenPiece`]. It is given the bytes of its runs, in order; what could not be
/// read is left out, and its cluster gets no checksum.
#[derive(Debug, Clone)]
pub struct PieceSums {
    piece: FrozenPiece,
    /// The slot that is being read, bytes of it so far.
    at: Option<(u8, u64, Crc32c)>,
    read: Vec<SlotRead>,
}

#[derive(Debug, Clone, Copy)]
struct SlotRead {
    slot: u8,
    bytes: u64,
    sum: u32,
}

impl PieceSums {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(piece: FrozenPiece) -> Self {
        Self {
            piece,
            at: None,
            read: Vec::new(),
        }
    }

    /// Bytes of the volume or snapshot from `offset` on.
    pub fn add(&mut self, offset: u64, bytes: &[u8]) {
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let cluster_size = self.piece.cluster_size;
            let slot = (offset / cluster_size % PIECE_SLOTS as u64) as u8;
            let len = (cluster_size - offset % cluster_size).min(rest.len() as u64);
            let (part, behind) = rest.split_at(len as usize);
            if self.at.as_ref().is_none_or(|(at, ..)| *at != slot) {
                self.end_slot();
            }
            let (_, read, sum) = self.at.get_or_insert_with(|| (slot, 0, Crc32c::new()));
            sum.update(part);
            *read += len;
            (offset, rest) = (offset + len, behind);
        }
    }

    fn end_slot(&mut self) {
        if let Some((slot, bytes, sum)) = self.at.take()
            // Each slot comes once.
            && self.read.len() < PIECE_SLOTS
        {
            let sum = sum.finish();
            self.read.push(SlotRead { slot, bytes, sum });
        }
    }

    /// What was read of a slot, if it was so many bytes: all that is written there.
    fn sum_of(&self, slot: usize, bytes: u64) -> Option<u32> {
        let mut read = self.read.iter();
        let read = read.find(|read| usize::from(read.slot) == slot && read.bytes == bytes);
        read.map(|read| read.sum)
    }
}

/// Data that are not what they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differing {
    /// The volume or snapshot that has them, as in [`super::MappedRun`].
    pub owner: String,
    /// First byte there of what is written in the cluster.
    pub offset: u64,
    /// Bytes that are written in the cluster. Which of them differ nobody can tell.
    pub len: u64,
    /// When they were last known to be right, seconds since 1970.
    pub recorded_unix_s: u64,
}

/// What came of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ComparedSums {
    /// What differs. Its checksum stays, and it is told again by each scrub until it is gone.
    pub differing: Vec<Differing>,
    /// Bytes that were compared, those that differ included.
    pub compared_bytes: u64,
    /// Clusters that have got a checksum.
    pub recorded: u64,
    /// Records that could not be read and were made anew.
    pub damaged: u64,
}

/// A slot that has data.
struct Place {
    slot: usize,
    sum: u32,
    cluster: Cluster,
    written: Granules,
}

/// What there will be of a piece's checksums.
#[derive(Default)]
struct Merged {
    slots: Vec<SlotSum>,
    recorded: u64,
    /// Kept from before, and not found right just now.
    is_doubtful: bool,
}

impl PoolWorker {
    /// Those of the layers whose written granules cannot change.
    pub(super) fn frozen(&self, wanted: &HashSet<LayerId>) -> HashSet<LayerId> {
        let (mut frozen, mut written) = (HashSet::new(), HashSet::new());
        for entry in self.names.values() {
            let layer = entry.record.layer;
            if !wanted.contains(&layer) {
                continue;
            }
            // I/O that was in flight when a snapshot was taken ends in its layer.
            let is_settled =
                entry.record.kind == NameKind::Snapshot && !entry.shared.is_in_transit();
            if is_settled {
                frozen.insert(layer);
            } else {
                written.insert(layer);
            }
        }
        for layer in wanted {
            // With a single child it is being merged, with none emptied.
            let record = self.layers.get(layer);
            if record.is_some_and(|record| record.state == LayerState::Garbage) {
                frozen.remove(layer);
                if record.is_some_and(|record| record.children > 1) {
                    frozen.insert(*layer);
                }
            }
        }
        frozen.retain(|layer| {
            let is_sound = self.layers.contains_key(layer) && !self.suspect.contains(layer);
            is_sound && !written.contains(layer)
        });
        frozen
    }

    /// What a walk tells of a frozen piece whose runs these are.
    pub(super) fn frozen_piece(
        &self,
        layer: LayerId,
        index: u64,
        value: &[u8],
        runs: Range<usize>,
    ) -> Option<FrozenPiece> {
        Some(FrozenPiece {
            layer,
            index,
            map_sum: value_checksum(value)?,
            cluster_size: self.shared.granularity.cluster_size(),
            runs,
        })
    }

    /// Compares what was read with the checksums that there are, and keeps those that there are not.
    pub(super) fn compare_sums(
        &mut self,
        mut read: Vec<PieceSums>,
        now_unix_s: u64,
    ) -> Result<ComparedSums, LvolError> {
        if read.len() > PIECES_PER_CALL {
            return Err(LvolError::Refused {
                name: self.metadata.superblock().name,
                problem: format!("compares at most {PIECES_PER_CALL} pieces in a call"),
            });
        }
        let wanted = read.iter().map(|sums| sums.piece.layer).collect();
        let (frozen, owners) = (self.frozen(&wanted), self.owners(&wanted));
        let mut compared = ComparedSums::default();
        for sums in &mut read {
            sums.end_slot();
            if frozen.contains(&sums.piece.layer) {
                let owner = owners.get(&sums.piece.layer).map_or("", String::as_str);
                self.compare_piece(sums, owner, now_unix_s, &mut compared)?;
            }
        }
        Ok(compared)
    }

    fn compare_piece(
        &mut self,
        sums: &PieceSums,
        owner: &str,
        now_unix_s: u64,
        compared: &mut ComparedSums,
    ) -> Result<(), LvolError> {
        let Some(places) = self.places(&sums.piece)? else {
            return Ok(());
        };
        let key = piece_key(sums.piece.layer, sums.piece.index);
        let mut is_damaged = false;
        let stored = match self.stored_sums(&key)?.transpose() {
            Ok(stored) => stored,
            // A newer program's.
            Err(FormatError::Version { .. }) => return Ok(()),
            Err(error) => {
                let (layer, piece) = (sums.piece.layer.0, sums.piece.index);
                tracing::warn!(layer, piece, %error, "checksums are made anew");
                compared.damaged += 1;
                is_damaged = true;
                None
            }
        };
        let merged = self.merge(sums, &places, stored.as_ref(), owner, compared);
        let is_same = match &stored {
            Some(stored) => stored.slots == merged.slots,
            None => merged.slots.is_empty() && !is_damaged,
        };
        if is_same {
            return Ok(());
        }
        let before = stored.filter(|_| merged.is_doubtful);
        let record = SumsRecord {
            recorded_unix_s: before.map_or(now_unix_s, |before| before.recorded_unix_s),
            slots: merged.slots,
        };
        compared.recorded += merged.recorded;
        let value = (!record.slots.is_empty()).then(|| record.encode());
        self.stage(Table::Sums, &key, value);
        self.commit_in(self.options.commit_interval);
        Ok(())
    }

    /// Slots that have data, if the record of the map is what the scrub went by.
    fn places(&self, piece: &FrozenPiece) -> Result<Option<Vec<Place>>, LvolError> {
        let key = piece_key(piece.layer, piece.index);
        let stored = self.usable_store()?.get(Table::Map, &key)?;
        let granularity = self.shared.granularity;
        let stored = stored.filter(|value| value_checksum(value) == Some(piece.map_sum));
        let slots =
            stored.map(|value| decode_piece(&value, granularity, self.allocator.clusters()));
        // Damage of a map is told by the check.
        let Some(Ok(slots)) = slots else {
            return Ok(None);
        };
        let places = slots.iter().enumerate().filter_map(|(slot, content)| {
            let (cluster, written) = data_of(content, granularity)?;
            Some(Place {
                slot,
                sum: place_sum(cluster, written),
                cluster,
                written,
            })
        });
        Ok(Some(places.collect()))
    }

    fn stored_sums(
        &self,
        key: &[u8],
    ) -> Result<Option<Result<SumsRecord, FormatError>>, LvolError> {
        let value = match self.staged.get(&(Table::Sums, key.to_vec())) {
            Some(staged) => staged.clone(),
            None => self.usable_store()?.get(Table::Sums, key)?,
        };
        Ok(value.map(|value| SumsRecord::decode(&value)))
    }

    fn merge(
        &self,
        sums: &PieceSums,
        places: &[Place],
        stored: Option<&SumsRecord>,
        owner: &str,
        compared: &mut ComparedSums,
    ) -> Merged {
        let granularity = self.shared.granularity;
        let known: HashMap<usize, &SlotSum> = stored
            .iter()
            .flat_map(|stored| &stored.slots)
            .map(|sum| (usize::from(sum.slot), sum))
            .collect();
        let mut merged = Merged::default();
        for place in places {
            let len = u64::from(place.written.count()) * granularity.granule_size();
            let read = sums.sum_of(place.slot, len);
            let known = known.get(&place.slot);
            match (known.filter(|known| known.place == place.sum), read) {
                (Some(known), read) => {
                    merged.slots.push(**known);
                    merged.is_doubtful |= read != Some(known.data);
                    compared.compared_bytes += read.map_or(0, |_| len);
                    if read.is_some_and(|read| read != known.data) {
                        let first = place.written.runs().next().map_or(0, |run| run.start);
                        let slot = sums.piece.index * PIECE_SLOTS as u64 + place.slot as u64;
                        let offset = slot * granularity.cluster_size()
                            + u64::from(first) * granularity.granule_size();
                        let recorded_unix_s = stored.map_or(0, |stored| stored.recorded_unix_s);
                        tracing::error!(
                            owner,
                            offset,
                            len,
                            cluster = place.cluster.get(),
                            "data differ from their checksum"
                        );
                        compared.differing.push(Differing {
                            owner: owner.to_owned(),
                            offset,
                            len,
                            recorded_unix_s,
                        });
                    }
                }
                (None, Some(data)) => {
                    merged.recorded += 1;
                    merged.slots.push(SlotSum {
                        slot: place.slot as u8,
                        place: place.sum,
                        data,
                    });
                }
                (None, None) => {}
            }
        }
        merged
    }

    /// Are so many checksums uncommitted that who brings more is to wait?
    pub(super) fn has_many_sums(&self) -> bool {
        let staged = self.staged.range((Table::Sums, Vec::new())..);
        staged.take(UNCOMMITTED_MAX).count() == UNCOMMITTED_MAX
    }

    /// Leaves checksums out of the next commit. False if there are none.
    pub(super) fn leave_out_sums(&mut self) -> bool {
        let before = self.staged.len();
        self.staged
            .retain(|(table, _), value| *table != Table::Sums || value.is_none());
        self.staged.len() < before
    }

    /// Deletes checksums of a layer, so many with the next commit. False if none are left.
    pub(super) fn drop_sums(&mut self, layer: LayerId) -> Result<bool, LvolError> {
        let (start, end) = (piece_key(layer, 0), piece_key(layer, u64::MAX));
        let store = self.usable_store()?;
        let entries = store.scan(Table::Sums, &start[..]..=&end[..], DELETED_PER_STEP)?;
        for (key, _) in &entries {
            self.stage(Table::Sums, key, None);
        }
        Ok(!entries.is_empty())
    }

    /// A part of the check.
    pub(super) fn look_at_sums(&self, checking: &mut Checking, key: &[u8], value: &[u8]) {
        let fix = Fix::Delete(Table::Sums, key.to_vec());
        if self.staged.contains_key(&(Table::Sums, key.to_vec())) {
            return;
        }
        let Some((layer, index)) = parse_piece_key(key) else {
            let record = format!("checksums {key:02x?}");
            let problem = "has a key that nothing has";
            return checking.find(Problem::new(record, problem, "deletes it", fix));
        };
        let record = format!("checksums of piece {index} of layer {}", layer.0);
        let is_known = self.layers.contains_key(&layer)
            || self.circular.contains_key(&layer)
            || self.damaged_layers.contains(&layer)
            // Its record is missing, and made again from its map.
            || checking.seen.counts.contains_key(&layer);
        if !is_known {
            let problem = "is a record of no layer";
            return checking.find(Problem::new(record, problem, "deletes it", fix));
        }
        match SumsRecord::decode(value) {
            Ok(_) | Err(FormatError::Version { .. }) => {}
            Err(error) => {
                let action = "deletes it: the next scrub makes it anew";
                checking.find(Problem::new(record, error.to_string(), action, fix));
            }
        }
    }
}

#[cfg(test)]
mod tests;
