//! Pieces in memory: loaded on first touch, kept while somebody uses them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::IoError;
use metastore::pool::Table;

use super::repair::lost_piece;
use super::shared::{Chain, Mailbox, Reply, Request, VolumeShared};
use super::worker::{PoolWorker, damaged};
use crate::LvolError;
use crate::format::{LayerId, Parent, decode_piece, piece_key};
use crate::map::{PIECE_SLOTS, Piece};

impl PoolWorker {
    /// Answers a channel that has no chain for a piece; not before the device knows the volume's layer, for
    /// nobody could tell what a write to it in the log belongs to, and not while its parent changes.
    pub(super) fn resolve_when_committed(
        &mut self,
        volume: Arc<VolumeShared>,
        piece: u64,
        mailbox: Arc<Mailbox>,
    ) {
        let is_new = self.new_layers.contains(&volume.layer());
        if !is_new && !self.paused.contains(&volume.layer()) {
            return self.resolve(&volume, piece, &mailbox);
        }
        self.unresolved.push(Request::Resolve {
            volume,
            piece,
            mailbox,
        });
        if is_new {
            self.when_committed(|_, _| {});
        }
    }

    /// Answers a channel that has no chain for a piece.
    pub(super) fn resolve(&mut self, volume: &VolumeShared, piece: u64, mailbox: &Mailbox) {
        let chains = volume.chains.load(Ordering::SeqCst);
        let chain = if volume.faulted.load(Ordering::SeqCst) {
            Err(IoError::Internal)
        } else {
            self.chain(volume.layer(), piece).map_err(|error| {
                let reason = crate::chain(&error);
                tracing::error!(
                    layer = volume.layer().0,
                    piece,
                    reason,
                    "a map cannot be read"
                );
                match error {
                    LvolError::Damaged { .. } => IoError::MediaRead,
                    _ => IoError::Internal,
                }
            })
        };
        mailbox.put(Reply::Resolved {
            piece,
            chains,
            chain,
        });
    }

    /// The pieces with this index of a layer and of those below it.
    pub(super) fn chain(&mut self, layer: LayerId, index: u64) -> Result<Arc<Chain>, LvolError> {
        let own = self.own_piece(layer, index)?;
        let mut ancestors = Vec::new();
        let mut has_parent = false;
        let mut lowest = layer;
        while let Some(parent) = self.parent_of(lowest) {
            has_parent = true;
            ancestors.extend(self.piece(parent, index)?);
            lowest = parent;
        }
        let start = index * PIECE_SLOTS as u64 * self.shared.granularity.cluster_size();
        let external = self.external_under(lowest);
        if self.has_lost_parent(layer) {
            has_parent = true;
            ancestors.push(lost_piece(self.shared.granularity));
        }
        Ok(Arc::new(Chain {
            layer,
            index,
            own,
            ancestors,
            has_parent,
            external: external.filter(|part| part.len_bytes > start),
        }))
    }

    pub(super) fn parent_of(&self, layer: LayerId) -> Option<LayerId> {
        match self.layers.get(&layer)?.parent {
            Parent::Layer(parent) => Some(parent),
            _ => None,
        }
    }

    /// A piece to be written to: made empty if there is none.
    pub(super) fn own_piece(
        &mut self,
        layer: LayerId,
        index: u64,
    ) -> Result<Arc<Piece>, LvolError> {
        if let Some(piece) = self.piece(layer, index)? {
            return Ok(piece);
        }
        let piece = Arc::new(Piece::new(self.shared.granularity));
        self.pieces.insert((layer, index), Arc::clone(&piece));
        Ok(piece)
    }

    /// A piece, if the layer has anything there.
    pub(super) fn piece(
        &mut self,
        layer: LayerId,
        index: u64,
    ) -> Result<Option<Arc<Piece>>, LvolError> {
        if let Some(piece) = self.pieces.get(&(layer, index)) {
            return Ok(Some(Arc::clone(piece)));
        }
        let store = self.usable_store()?;
        let Some(record) = store.get(Table::Map, &piece_key(layer, index))? else {
            return Ok(None);
        };
        let name = || format!("piece {index} of layer {}", layer.0);
        let slots = decode_piece(&record, self.shared.granularity, self.allocator.clusters())
            .map_err(damaged(name))?;
        let piece = Piece::from_contents(self.shared.granularity, &slots[..])
            .expect("decoding has checked what a piece checks");
        let piece = Arc::new(piece);
        self.pieces.insert((layer, index), Arc::clone(&piece));
        Ok(Some(piece))
    }

    /// Forgets pieces that nobody uses and that are committed, when there are many.
    pub(super) fn drop_unused_pieces(&mut self) {
        if self.pieces.len() > self.options.cached_pieces {
            // A chain holds its pieces: one with a single holder is in no chain. Dirty ones are held
            // by the list of what to commit too.
            self.pieces
                .retain(|_, piece| Arc::strong_count(piece) > 1 || piece.is_dirty());
        }
    }
}
