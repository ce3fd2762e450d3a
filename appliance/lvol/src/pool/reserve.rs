//! Clusters promised to thick volumes: what each may still need is kept from all others.
//!
//! A thick volume has its clusters when it writes, like a thin one. What it does not have yet is
//! counted, by what is committed: clusters in hand count twice until then, never not at all.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::worker::PoolWorker;
use crate::LvolError;
use crate::format::{LayerId, NameRecord};

impl PoolWorker {
    /// Are there clusters for a thick volume of this size?
    pub(super) fn check_room(&self, thick: bool, size_bytes: u64) -> Result<(), LvolError> {
        if thick {
            self.check_clusters(self.clusters_of(size_bytes))?;
        }
        Ok(())
    }

    /// A snapshot of a thick volume needs all that the volume has once more.
    pub(super) fn check_room_for_snapshots<'a>(
        &self,
        volumes: impl Iterator<Item = &'a NameRecord>,
    ) -> Result<(), LvolError> {
        let thick = volumes.filter(|record| record.thick);
        let wanted = thick.map(|record| {
            self.layers
                .get(&record.layer)
                .map_or(0, |layer| layer.clusters)
        });
        self.check_clusters(wanted.sum())
    }

    pub(super) fn check_clusters(&self, wanted: u64) -> Result<(), LvolError> {
        let free = self.data_clusters_free(false);
        if wanted > free {
            return Err(LvolError::NoSpace { wanted, free });
        }
        Ok(())
    }

    /// Tells volumes how many clusters they and what they lie on have: asked for with the pool's state, which looks
    /// at all names anyway, and not at each commit.
    pub(super) fn tell_allocated(&self) {
        let mut known: HashMap<LayerId, u64> = HashMap::new();
        for entry in self.names.values() {
            let (mut at, mut path, mut clusters) = (Some(entry.record.layer), Vec::new(), 0);
            while let Some(layer) = at {
                if let Some(below) = known.get(&layer) {
                    clusters = *below;
                    break;
                }
                path.push(layer);
                at = self.parent_of(layer);
            }
            for layer in path.into_iter().rev() {
                let own = self.layers.get(&layer).map_or(0, |record| record.clusters);
                clusters += own;
                known.insert(layer, clusters);
            }
            entry.shared.allocated.store(clusters, Ordering::Relaxed);
        }
    }

    pub(super) fn clusters_of(&self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.shared.granularity.cluster_size())
    }

    pub(super) fn reserve_again(&mut self) {
        self.pool.reserved_clusters = self.promised();
    }

    /// Counts what is promised. Takes as long as the list of thick volumes is.
    pub(super) fn promised(&self) -> u64 {
        let records = self.thick.iter().filter_map(|name| self.names.get(name));
        let missing = records.map(|entry| {
            let layer = self.layers.get(&entry.record.layer);
            let has = layer.map_or(0, |layer| layer.clusters);
            self.clusters_of(entry.record.size_bytes)
                .saturating_sub(has)
        });
        missing.sum()
    }
}
