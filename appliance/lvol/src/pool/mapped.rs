//! What of the device is in use, and by whom: for whoever reads all of it.

use std::collections::{HashMap, HashSet};

use metastore::pool::Table;

use super::sums::FrozenPiece;
use super::worker::{PoolWorker, damaged};
use crate::LvolError;
use crate::format::{LayerId, Parent, data_of, decode_piece, parse_piece_key, piece_key};
use crate::map::{PIECE_SLOTS, SlotContent};

/// Pieces looked at in one call: what the metadata thread does for it at a time.
const PIECES_PER_CALL: usize = 16;

/// Where a walk over all maps goes on. The default is the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MapCursor {
    /// Number of a layer.
    pub layer: u64,
    /// Index of a piece of its map.
    pub piece: u64,
}

/// Consecutive bytes of the device that hold consecutive bytes of a volume or a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedRun {
    /// The volume or snapshot that has them. Of what was deleted and is still seen: one that sees it. Empty
    /// for what is about to be given back.
    pub owner: String,
    /// First byte there.
    pub offset: u64,
    /// First byte on the device.
    pub device_offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A part of all runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MappedRuns {
    /// In the order of maps, which is not that of the device.
    pub runs: Vec<MappedRun>,
    /// Clusters that they are in.
    pub clusters: u64,
    /// Pieces whose data cannot change, in the order of their runs.
    pub frozen: Vec<FrozenPiece>,
    /// Where to go on; `None` at the end.
    pub next: Option<MapCursor>,
}

impl PoolWorker {
    /// Runs of written granules from a place on, of at most `pieces` pieces. What was not committed when a
    /// piece was looked at may be missing.
    pub(super) fn mapped(&self, from: MapCursor, pieces: usize) -> Result<MappedRuns, LvolError> {
        let limit = pieces.clamp(1, PIECES_PER_CALL);
        let start = piece_key(LayerId(from.layer), from.piece);
        let entries = self
            .usable_store()?
            .scan(Table::Map, &start[..].., limit + 1)?;
        let mut list = MappedRuns::default();
        let keys = entries.iter().filter_map(|(key, _)| parse_piece_key(key));
        let wanted: HashSet<LayerId> = keys.map(|(layer, _)| layer).collect();
        let (owners, frozen) = (self.owners(&wanted), self.frozen(&wanted));
        let mut apart = 0;
        for (count, (key, value)) in entries.iter().enumerate() {
            let Some((layer, index)) = parse_piece_key(key) else {
                continue;
            };
            if count == limit {
                let (layer, piece) = (layer.0, index);
                list.next = Some(MapCursor { layer, piece });
                break;
            }
            let name = || format!("piece {index} of layer {}", layer.0);
            let clusters = self.allocator.clusters();
            let slots =
                decode_piece(value, self.shared.granularity, clusters).map_err(damaged(name));
            let slots = match slots {
                Ok(slots) => slots,
                Err(error) => {
                    // The check tells of it; it hides no other.
                    tracing::warn!(reason = crate::chain(&error), "passed over");
                    continue;
                }
            };
            let owner = owners.get(&layer).map_or("", String::as_str);
            let first = list.runs.len();
            let is_frozen = frozen.contains(&layer);
            if is_frozen {
                apart = first;
            }
            self.add_runs(&mut list, owner, index, &slots[..], apart);
            if is_frozen {
                // What follows is not to be added to its last run.
                apart = list.runs.len();
                let piece = self.frozen_piece(layer, index, value, first..apart);
                list.frozen
                    .extend(piece.filter(|piece| !piece.runs.is_empty()));
            }
        }
        Ok(list)
    }

    /// Runs from number `apart` on may become longer.
    fn add_runs(
        &self,
        list: &mut MappedRuns,
        owner: &str,
        index: u64,
        slots: &[SlotContent],
        apart: usize,
    ) {
        let granularity = self.shared.granularity;
        let (cluster_size, granule_size) = (granularity.cluster_size(), granularity.granule_size());
        for (slot, content) in slots.iter().enumerate() {
            let Some((cluster, written)) = data_of(content, granularity) else {
                continue;
            };
            list.clusters += 1;
            let start = (index * PIECE_SLOTS as u64 + slot as u64) * cluster_size;
            for run in written.runs() {
                let first = u64::from(run.start) * granule_size;
                let run = MappedRun {
                    owner: owner.to_owned(),
                    offset: start + first,
                    device_offset: cluster.get() * cluster_size + first,
                    len: u64::from(run.len()) * granule_size,
                };
                append(&mut list.runs, run, apart);
            }
        }
    }

    /// Who has each of these layers: its name, or one that lies on it.
    pub(super) fn owners(&self, wanted: &HashSet<LayerId>) -> HashMap<LayerId, String> {
        let mut owners = HashMap::new();
        for (name, entry) in &self.names {
            if wanted.contains(&entry.record.layer) {
                owners.insert(entry.record.layer, name.clone());
            }
        }
        if owners.len() == wanted.len() {
            return owners;
        }
        for (name, entry) in &self.names {
            let mut at = Some(entry.record.layer);
            while let Some(layer) = at {
                if wanted.contains(&layer) {
                    owners.entry(layer).or_insert_with(|| name.clone());
                }
                at = match self.layers.get(&layer).map(|record| &record.parent) {
                    Some(Parent::Layer(parent)) => Some(*parent),
                    _ => None,
                };
            }
        }
        owners
    }
}

fn append(runs: &mut Vec<MappedRun>, run: MappedRun, apart: usize) {
    match runs[apart..].last_mut() {
        Some(last)
            if last.owner == run.owner
                && last.offset + last.len == run.offset
                && last.device_offset + last.len == run.device_offset =>
        {
            last.len += run.len;
        }
        _ => runs.push(run),
    }
}
