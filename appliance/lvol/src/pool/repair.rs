//! The repair: what is done about each thing that a check finds.
//!
//! Each is one transaction: a power cut leaves it done or not, and a repair that is begun again finds the rest.
//! I/O to what is well goes on. Where data are gone they do not come back as zeroes: their slots are *lost*,
//! reads of them fail until they are unmapped or written with zeroes, and the volume carries a label that says
//! so ([`REPAIRED_LABEL`]). Of a layer that is gone, what was seen through it is lost in the same way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use metastore::pool::Table;
use uuid::Uuid;

use super::check::Finding;
use super::worker::{Entry, PoolWorker, load_chunk};
use crate::LvolError;
use crate::format::{
    LayerId, LayerRecord, LayerState, NameKind, NameRecord, POOL_KEY, Parent, decode_piece,
    encode_piece, piece_key, salvage_piece,
};
use crate::map::{Cluster, PIECE_SLOTS, Piece, SlotContent};

/// The label that a repair gives a volume whose data it concerned.
pub const REPAIRED_LABEL: &str = "adit.repaired";
/// Longest text of that label, bytes.
const LABEL_BYTES_MAX: usize = 255;
/// Bytes copied at a time.
const COPY_BYTES: u64 = 1 << 20;

type Slots = Box<[SlotContent; PIECE_SLOTS]>;

/// What is done about a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fix {
    /// The record goes.
    Delete(Table, Vec<u8>),
    RewriteLayer(LayerId),
    RewriteName(String),
    /// The pool's own record is written again.
    PoolRecord,
    /// The layer gets a record.
    MakeLayer(LayerId, Option<LayerId>),
    /// What lay under the layer is lost.
    CutParent(LayerId),
    /// What cannot be read of the piece is lost.
    LosePiece(LayerId, u64),
    /// Each owner gets a cluster of its own.
    Share(u64),
    /// Names of one layer get layers of their own on it.
    Separate(LayerId),
    /// A layer with a name is not garbage.
    Revive(LayerId),
    /// A layer gets a name.
    Name(LayerId, String),
    /// A volume gets another UUID.
    NewUuid(String),
    Children(LayerId, u32),
    Clusters(LayerId),
    /// Which clusters are free is made from the maps.
    Free,
}

impl Fix {
    /// Is it about a number that follows from other records?
    pub(super) fn counts(&self) -> bool {
        matches!(
            self,
            Self::Children(..) | Self::Clusters(_) | Self::Free | Self::PoolRecord
        )
    }

    pub(super) fn waits_for_grace(&self) -> bool {
        matches!(self, Self::Free)
    }
}

/// A finding, and what is done about it.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub(super) finding: Finding,
    pub(super) fix: Fix,
}

impl Problem {
    pub(super) fn new(
        record: String,
        problem: impl Into<String>,
        action: impl Into<String>,
        fix: Fix,
    ) -> Self {
        Self {
            finding: Finding {
                record,
                problem: problem.into(),
                action: action.into(),
                volumes: Vec::new(),
            },
            fix,
        }
    }

    pub(super) fn about(mut self, volumes: Vec<String>) -> Self {
        self.finding.volumes = volumes;
        self
    }
}

impl PoolWorker {
    pub(super) fn is_metadata(&self, cluster: u64) -> bool {
        let superblock = self.metadata.superblock();
        let mut extents = superblock.metadata.iter().chain(&superblock.log);
        extents.any(|extent| (extent.start..extent.start + extent.clusters).contains(&cluster))
    }

    pub(super) fn free_name(&self, layer: LayerId, is_snapshot: bool) -> String {
        let mut name = format!("recovered-{}", layer.0);
        loop {
            let full = if is_snapshot {
                format!("{name}@recovered")
            } else {
                name.clone()
            };
            if !self.names.contains_key(&full) && !self.damaged_names.contains(&full) {
                return full;
            }
            name.push_str("-again");
        }
    }

    /// Does one thing, durably. Why it was left, if it was.
    pub(super) fn apply(&mut self, fix: &Fix) -> Result<Option<String>, LvolError> {
        let left = match fix {
            Fix::Delete(table, key) => {
                if *table == Table::Names {
                    self.damaged_names.remove(&*String::from_utf8_lossy(key));
                }
                self.stage(*table, key, None);
                None
            }
            Fix::RewriteLayer(layer) => {
                self.change_layer(*layer, |_| {});
                None
            }
            Fix::RewriteName(name) => {
                if let Some(record) = self.names.get(name).map(|entry| entry.record.clone()) {
                    self.put_name(name, &record);
                }
                None
            }
            Fix::PoolRecord => {
                self.was_pool_damaged = false;
                let record = self.pool.encode();
                self.stage(Table::Pool, POOL_KEY, Some(record));
                None
            }
            Fix::MakeLayer(layer, parent) => {
                self.make_layer(*layer, *parent);
                None
            }
            Fix::CutParent(layer) => {
                if let Some(record) = self.circular.remove(layer) {
                    self.layers.insert(*layer, record);
                }
                self.change_layer(*layer, |record| record.parent = Parent::Lost);
                self.mark(&self.names_over(*layer), "what lay under it is lost");
                None
            }
            Fix::LosePiece(layer, index) => self.lose_piece(*layer, *index)?,
            Fix::Share(cluster) => self.share(*cluster)?,
            Fix::Separate(layer) => self.separate(*layer),
            Fix::Revive(layer) => {
                self.garbage.remove(layer);
                self.change_layer(*layer, |record| {
                    record.state = LayerState::Live;
                    record.progress = 0;
                });
                self.mark(&self.names_over(*layer), "its layer was said to be deleted");
                None
            }
            Fix::Name(layer, name) => {
                self.name_layer(*layer, name.clone());
                None
            }
            Fix::NewUuid(name) => {
                let uuid = *Uuid::new_v4().as_bytes();
                self.change_record(name, |record| {
                    record.uuid = uuid;
                    record.nguid = uuid;
                });
                self.mark(std::slice::from_ref(name), "had the UUID of another");
                None
            }
            Fix::Children(layer, children) => {
                let said = self.layers.get(layer).map_or(0, |record| record.children);
                if said < *children {
                    let what =
                        "more layers lie on what it shows than should; one may not belong there";
                    self.mark(&self.names_over(*layer), what);
                }
                self.change_layer(*layer, |record| record.children = *children);
                None
            }
            Fix::Clusters(layer) => {
                self.count_clusters(*layer);
                None
            }
            Fix::Free => self.free_again()?,
        };
        self.commit_now()?;
        Ok(left)
    }

    fn counted(&self, layer: LayerId) -> u64 {
        let checking = self.checking.as_ref();
        checking.map_or(0, |checking| {
            checking.seen.counts.get(&layer).copied().unwrap_or(0)
        })
    }

    pub(super) fn change_record(&mut self, name: &str, change: impl FnOnce(&mut NameRecord)) {
        let Some(entry) = self.names.get_mut(name) else {
            return;
        };
        change(&mut entry.record);
        let record = entry.record.clone();
        self.put_name(name, &record);
    }

    /// Tells in a label what became of volumes, and in the log.
    fn mark(&mut self, names: &[String], what: &str) {
        for name in names {
            tracing::warn!(name, what, "the repair concerns data of a volume");
            self.change_record(name, |record| {
                let mut labels = record.labels.iter_mut();
                let Some((_, text)) = labels.find(|(key, _)| key == REPAIRED_LABEL) else {
                    record
                        .labels
                        .push((REPAIRED_LABEL.to_owned(), what.to_owned()));
                    return;
                };
                if text.contains(what) || text.ends_with("...") {
                    return;
                }
                if text.len() + what.len() + 5 > LABEL_BYTES_MAX {
                    text.push_str("...");
                } else {
                    text.push_str("; ");
                    text.push_str(what);
                }
            });
        }
    }

    fn make_layer(&mut self, layer: LayerId, parent: Option<LayerId>) {
        let lie_on_it = self.layers.values().chain(self.circular.values());
        let children = lie_on_it
            .filter(|record| record.parent == Parent::Layer(layer))
            .count();
        let record = LayerRecord {
            parent: parent.map_or(Parent::Lost, Parent::Layer),
            children: children as u32,
            clusters: self.counted(layer),
            ..LayerRecord::default()
        };
        self.damaged_layers.remove(&layer);
        self.layers.insert(layer, record);
        self.change_layer(layer, |_| {});
        let what = match parent {
            Some(_) => "the record of its layer was made again",
            None => "the record of its layer was made again; what lay under it is not known",
        };
        self.mark(&self.names_over(layer), what);
    }

    /// Slots of a layer that a volume or a snapshot shows.
    fn shown_slots(&self, layer: LayerId) -> u64 {
        let names = self.names_over(layer);
        let sizes = names.iter().filter_map(|name| self.names.get(name));
        let largest = sizes.map(|entry| entry.record.size_bytes).max();
        largest.map_or(u64::MAX, |size| self.clusters_of(size))
    }

    fn lose_piece(&mut self, layer: LayerId, index: u64) -> Result<Option<String>, LvolError> {
        let (granularity, clusters) = (self.shared.granularity, self.allocator.clusters());
        let stored = self
            .usable_store()?
            .get(Table::Map, &piece_key(layer, index))?;
        let Some(stored) =
            stored.filter(|stored| decode_piece(stored, granularity, clusters).is_err())
        else {
            // A commit has written it meanwhile.
            return Ok(None);
        };
        let (slots, lost) = match self.pieces.get(&(layer, index)) {
            Some(piece) => (snapshot(piece), Vec::new()),
            None => self.salvaged(layer, index, &stored),
        };
        let kept = slots.iter().filter_map(SlotContent::data_cluster).count() as u64;
        let counted = self.counted(layer);
        self.replace_piece(layer, index, None, &slots)?;
        self.change_layer(layer, |record| record.clusters = counted + kept);
        if let Some(first) = lost.first() {
            let what = format!(
                "{} clusters lost from byte {} on",
                lost.len(),
                first * granularity.cluster_size()
            );
            self.mark(&self.names_over(layer), &what);
        }
        Ok(None)
    }

    /// What can be kept of a damaged piece, and the slots that are lost.
    fn salvaged(&self, layer: LayerId, index: u64, stored: &[u8]) -> (Slots, Vec<u64>) {
        let clusters = self.allocator.clusters();
        let mut slots = salvage_piece(stored, self.shared.granularity, clusters);
        let shown = self.shown_slots(layer);
        let mut lost = Vec::new();
        for (number, slot) in slots.iter_mut().enumerate() {
            let place = index.saturating_mul(PIECE_SLOTS as u64) + number as u64;
            let is_taken = slot.data_cluster().is_some_and(|cluster| {
                let checking = self.checking.as_ref();
                self.is_metadata(cluster.get())
                    || checking.is_some_and(|checking| checking.seen.is_owned(cluster.get()))
            });
            if is_taken {
                *slot = SlotContent::Full(Cluster::LOST);
            }
            if slot.cluster().is_some_and(Cluster::is_lost) {
                if place < shown {
                    lost.push(place);
                } else {
                    *slot = SlotContent::Empty;
                }
            }
        }
        (slots, lost)
    }

    /// Stages a piece's record. Nobody has the piece in memory, or it is what is in memory.
    fn replace_piece(
        &mut self,
        layer: LayerId,
        index: u64,
        old: Option<&Slots>,
        new: &Slots,
    ) -> Result<(), LvolError> {
        for cluster in new.iter().filter_map(SlotContent::data_cluster) {
            let store = self.store.as_ref().ok_or(LvolError::Closed)?;
            let mut source = |number| load_chunk(store, number);
            if !self.allocator.is_used(cluster, &mut source)? {
                self.adopted.push(cluster);
            }
        }
        self.stage(
            Table::Map,
            &piece_key(layer, index),
            Some(encode_piece(new)),
        );
        if let Some(checking) = &mut self.checking {
            checking.saw(layer, index, old.map(|old| &**old), new);
        }
        self.drop_chains_through(layer);
        Ok(())
    }

    fn in_use(&self, names: &[String]) -> Option<String> {
        let mut names = names.iter();
        let used = names.find(|name| {
            let entry = self.names.get(*name);
            entry.is_some_and(|entry| entry.shared.channels.load(Ordering::SeqCst) > 0)
        })?;
        Some(format!(
            "{used:?} is in use; disconnect its hosts and repair again"
        ))
    }

    /// Gives every owner of a cluster but the first one of its own.
    fn share(&mut self, cluster: u64) -> Result<Option<String>, LvolError> {
        let owners = self
            .checking
            .as_ref()
            .and_then(|checking| checking.seen.owners.get(&cluster).cloned());
        let owners = owners.unwrap_or_default();
        let metadata = self.is_metadata(cluster);
        let kept = usize::from(!metadata);
        for (layer, _) in owners.iter().skip(kept) {
            if let Some(used) = self.in_use(&self.names_over(*layer)) {
                return Ok(Some(used));
            }
        }
        for (layer, index) in owners.iter().skip(kept) {
            self.own_copy(*layer, *index, cluster, metadata)?;
        }
        for (layer, _) in owners.iter().take(kept) {
            self.mark(
                &self.names_over(*layer),
                "shared clusters with others; some of its data may be theirs",
            );
        }
        Ok(None)
    }

    fn own_copy(
        &mut self,
        layer: LayerId,
        index: u64,
        cluster: u64,
        is_metadata: bool,
    ) -> Result<(), LvolError> {
        let (granularity, clusters) = (self.shared.granularity, self.allocator.clusters());
        // No host has it open, and what they wrote is committed: the record says what it is.
        self.commit_now()?;
        let stored = self
            .usable_store()?
            .get(Table::Map, &piece_key(layer, index))?;
        let decoded = stored.map(|stored| decode_piece(&stored, granularity, clusters));
        let Some(Ok(old)) = decoded else {
            return Ok(());
        };
        let has = |slot: &SlotContent| slot.data_cluster().is_some_and(|has| has.get() == cluster);
        let Some(slot) = old.iter().position(has) else {
            return Ok(());
        };
        let copy = if is_metadata {
            None
        } else {
            self.copy_cluster(cluster)?
        };
        let to = copy.unwrap_or(Cluster::LOST);
        let mut new = old.clone();
        new[slot] = match old[slot] {
            SlotContent::Partial { written, zero, .. } => SlotContent::Partial {
                cluster: Some(to),
                written,
                zero,
            },
            _ => SlotContent::Full(to),
        };
        self.pieces.remove(&(layer, index));
        self.replace_piece(layer, index, Some(&old), &new)?;
        let byte = (index * PIECE_SLOTS as u64 + slot as u64) * granularity.cluster_size();
        let what = if copy.is_some() {
            "shared clusters with others; some of its data may be theirs".to_owned()
        } else {
            self.change_layer(layer, |record| {
                record.clusters = record.clusters.saturating_sub(1);
            });
            format!("1 clusters lost from byte {byte} on")
        };
        self.mark(&self.names_over(layer), &what);
        Ok(())
    }

    /// A copy of a cluster; none if no cluster is free, or it cannot be read.
    fn copy_cluster(&mut self, cluster: u64) -> Result<Option<Cluster>, LvolError> {
        let Some(to) = self.take_cluster()? else {
            return Ok(None);
        };
        let size = self.shared.granularity.cluster_size();
        let mut data = vec![0; size.min(COPY_BYTES) as usize];
        for offset in (0..size).step_by(data.len()) {
            let read = self.disk.read(cluster * size + offset, &mut data);
            let copied = read.and_then(|()| self.disk.write(to.get() * size + offset, &data));
            if let Err(error) = copied {
                let reason = crate::chain(&error);
                tracing::error!(cluster, reason, "a cluster cannot be copied");
                self.allocator.release(to);
                return Ok(None);
            }
        }
        Ok(Some(to))
    }

    /// Gives volumes that have one layer new layers on it.
    fn separate(&mut self, layer: LayerId) -> Option<String> {
        let names = self
            .names
            .iter()
            .filter(|(_, entry)| entry.record.layer == layer);
        let mut all: Vec<(String, NameKind)> = names
            .map(|(name, entry)| (name.clone(), entry.record.kind))
            .collect();
        let first = all.iter().position(|(_, kind)| *kind == NameKind::Snapshot);
        if let Some(first) = first {
            all.remove(first);
        }
        let moved: Vec<String> = all.into_iter().map(|(name, _)| name).collect();
        if let Some(used) = self.in_use(&moved) {
            return Some(used);
        }
        let mut size = 0;
        for name in &moved {
            let own = self.new_layer(Parent::Layer(layer));
            let Some(entry) = self.names.get(name) else {
                continue;
            };
            size = size.max(entry.record.size_bytes);
            entry.shared.layer.store(own.0, Ordering::SeqCst);
            entry.shared.chains.fetch_add(1, Ordering::SeqCst);
            self.change_record(name, |record| record.layer = own);
        }
        self.shared.chains.fetch_add(1, Ordering::SeqCst);
        if first.is_none() {
            let name = self.free_name(layer, true);
            self.add_recovered(layer, name, size);
        }
        self.mark(
            &moved,
            "had the layer of another volume; some of its data may be that's",
        );
        self.reserve_again();
        None
    }

    fn name_layer(&mut self, layer: LayerId, name: String) {
        let mut end = 1;
        let mut at = Some(layer);
        while let Some(here) = at {
            let ends = self.checking.as_ref().map(|checking| &checking.seen.ends);
            end = end.max(ends.and_then(|ends| ends.get(&here).copied()).unwrap_or(0));
            // A circle was cut before this.
            at = self.parent_of(here).filter(|parent| *parent < here);
        }
        self.damaged_names.remove(&name);
        let size = end.saturating_mul(self.shared.granularity.cluster_size());
        self.add_recovered(layer, name, size.min(1 << 60));
    }

    fn add_recovered(&mut self, layer: LayerId, name: String, size_bytes: u64) {
        let children = self.layers.get(&layer).map_or(0, |record| record.children);
        let is_snapshot = children > 0 || name.contains('@');
        let uuid = *Uuid::new_v4().as_bytes();
        let record = NameRecord {
            kind: if is_snapshot {
                NameKind::Snapshot
            } else {
                NameKind::Volume
            },
            uuid,
            nguid: uuid,
            size_bytes,
            layer,
            thick: false,
            read_only: is_snapshot,
            created_unix_s: 0,
            labels: Vec::new(),
        };
        let shared = self.volume_shared(&record);
        self.put_name(&name, &record);
        self.names.insert(name.clone(), Entry { record, shared });
        self.mark(&[name], "its name was lost; its size is that of its data");
    }

    fn count_clusters(&mut self, layer: LayerId) {
        let counted = self.counted(layer);
        let said = self.layers.get(&layer).map_or(0, |record| record.clusters);
        self.change_layer(layer, |record| record.clusters = counted);
        if said <= counted {
            return;
        }
        let names = self.names_over(layer);
        let what = format!("{} clusters lost, nobody knows where", said - counted);
        self.mark(&names, &what);
        for name in &names {
            self.change_record(name, |record| record.read_only = true);
            if let Some(entry) = self.names.get(name) {
                entry.shared.read_only.store(true, Ordering::SeqCst);
            }
        }
    }

    fn free_again(&mut self) -> Result<Option<String>, LvolError> {
        let Some(checking) = &self.checking else {
            return Ok(None);
        };
        let numbers: Vec<u64> = checking.seen.wrong_chunks.keys().copied().collect();
        let owned = checking.seen.owned_count();
        // It was taken by what the records of free clusters said.
        let reserve = self.metadata.take_reserve();
        self.allocator.give_back(&reserve);
        let mut held = 0;
        for number in numbers {
            let words = self
                .checking
                .as_ref()
                .map(|checking| checking.seen.owned_of(number));
            let store = self.store.as_ref().ok_or(LvolError::Closed)?;
            let mut source = |number| load_chunk(store, number);
            if let Some(words) = words {
                held += self.allocator.repair_chunk(number, &words, &mut source)?;
            }
            self.rewritten_chunks.insert(number);
        }
        self.allocator.set_used(owned);
        let record = self.pool.encode();
        self.stage(Table::Pool, POOL_KEY, Some(record));
        Ok((held > 0).then(|| {
            format!("{held} clusters are held by hosts; disconnect all of them and repair again")
        }))
    }

    /// Is what lies under all of a layer lost?
    pub(super) fn has_lost_parent(&self, layer: LayerId) -> bool {
        let mut at = layer;
        while let Some(record) = self.layers.get(&at) {
            match &record.parent {
                Parent::Layer(parent) => at = *parent,
                parent => return *parent == Parent::Lost,
            }
        }
        false
    }
}

fn snapshot(piece: &Piece) -> Slots {
    Box::new(std::array::from_fn(|slot| piece.snapshot_slot(slot)))
}

/// A piece of what is lost: what a layer with a lost parent lies on.
pub(super) fn lost_piece(granularity: crate::map::Granularity) -> Arc<Piece> {
    let slots = [SlotContent::Full(Cluster::LOST); PIECE_SLOTS];
    let piece = Piece::from_contents(granularity, &slots);
    Arc::new(piece.expect("full slots contradict nothing"))
}
