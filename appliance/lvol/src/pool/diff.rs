//! What a snapshot has, and where two differ.

use std::ops::Range;

use super::worker::PoolWorker;
use crate::LvolError;
use crate::format::LayerId;
use crate::map::{Cluster, Look, PIECE_SLOTS, Source};
use crate::pool::shared::Chain;

/// Pieces looked at in one call: what the metadata thread does for it at a time.
const PIECES_PER_CALL: usize = 64;

/// Consecutive bytes of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeExtent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A part of a list of extents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extents {
    /// In rising order; none touches the next.
    pub extents: Vec<VolumeExtent>,
    /// Where to go on; `None` at the end.
    pub next: Option<u64>,
}

impl PoolWorker {
    /// Extents of `to`, from `offset` on, that may not read as they do in `from`. Without `from`: that are not
    /// zeroes for sure. Whole granules; at most `limit`, and at most so many as a call may take time for.
    pub(super) fn diff(
        &mut self,
        from: Option<&str>,
        to: &str,
        offset: u64,
        limit: usize,
    ) -> Result<Extents, LvolError> {
        let record = &self.entry(to)?.record;
        let (to, size) = (record.layer, record.size_bytes);
        let from = from.map(|name| self.entry(name).map(|entry| entry.record.layer));
        let from = from.transpose()?;
        let granularity = self.shared.granularity;
        let (first_cluster, _) = granularity.split(offset);
        let first = first_cluster / PIECE_SLOTS as u64;
        let mut indices = self.pieces_from(to, first)?;
        if let Some(from) = from {
            indices.extend(self.pieces_from(from, first)?);
        }
        // Two that lie on the same part of a device differ only where a layer has something.
        let mut parts = [Some(to), from].map(|layer| self.external_under(layer?));
        if parts[0] == parts[1] {
            parts = [None, None];
        }
        // No more than a call looks at.
        let last = first + PIECES_PER_CALL as u64 + 1;
        for part in parts.into_iter().flatten() {
            indices.extend(first..last.min(self.pieces_of(&part)));
        }
        let mut list = Extents::default();
        for (count, index) in indices.into_iter().enumerate() {
            let start = index * PIECE_SLOTS as u64 * granularity.cluster_size();
            if start >= size {
                break;
            }
            if count == PIECES_PER_CALL {
                list.next = Some(start);
                break;
            }
            self.diff_piece(from, to, index, offset..size, &mut list.extents)?;
            if list.extents.len() > limit {
                list.next = Some(list.extents[limit].offset);
                list.extents.truncate(limit);
                break;
            }
        }
        Ok(list)
    }

    fn diff_piece(
        &mut self,
        from: Option<LayerId>,
        to: LayerId,
        index: u64,
        range: Range<u64>,
        extents: &mut Vec<VolumeExtent>,
    ) -> Result<(), LvolError> {
        let granularity = self.shared.granularity;
        let (cluster_size, granule_size) = (granularity.cluster_size(), granularity.granule_size());
        let from = from.map(|from| self.chain(from, index)).transpose()?;
        let to = self.chain(to, index)?;
        for slot in 0..PIECE_SLOTS {
            let start = (index * PIECE_SLOTS as u64 + slot as u64) * cluster_size;
            let new = looks(&to, slot);
            let old = from.as_ref().map(|from| (from, looks(from, slot)));
            for granule in 0..granularity.granules() {
                let at = start + u64::from(granule) * granule_size;
                let bytes = at..at + granule_size;
                let old = old.as_ref().map_or(Seen::Zeroes, |(chain, old)| {
                    seen(chain, old, granule, &bytes)
                });
                if seen(&to, &new, granule, &bytes) == old {
                    continue;
                }
                let (at, end) = (at.max(range.start), (at + granule_size).min(range.end));
                if at < end {
                    append(extents, at, end);
                }
            }
        }
        Ok(())
    }
}

fn append(extents: &mut Vec<VolumeExtent>, at: u64, end: u64) {
    match extents.last_mut() {
        Some(last) if last.offset + last.len == at => last.len += end - at,
        _ => extents.push(VolumeExtent {
            offset: at,
            len: end - at,
        }),
    }
}

fn looks(chain: &Chain, slot: usize) -> Vec<Look> {
    let pieces = std::iter::once(&chain.own).chain(&chain.ancestors);
    pieces.map(|piece| piece.look(slot)).collect()
}

/// What a granule is read from.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Zeroes,
    Cluster(Cluster),
    /// So many bytes of a device outside the pool, and zeroes.
    External([u8; 16], u64),
}

fn seen(chain: &Chain, looks: &[Look], granule: u16, bytes: &Range<u64>) -> Seen {
    let mut sources = looks.iter().map(|look| look.source(granule));
    match sources.find(|source| *source != Source::Parent) {
        Some(Source::Own(cluster)) => Seen::Cluster(cluster),
        Some(_) => Seen::Zeroes,
        None => match chain.external {
            Some(part) if part.len_bytes > bytes.start => {
                let len = part.covers(bytes.start, bytes.end - bytes.start);
                Seen::External(part.uuid, len)
            }
            _ => Seen::Zeroes,
        },
    }
}
