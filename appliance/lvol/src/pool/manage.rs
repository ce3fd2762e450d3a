//! Calls about volumes and snapshots. Each changes what is in memory and stages records; the next
//! commit makes that durable, together with what other calls have staged.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use metastore::pool::Table;
use uuid::Uuid;

use super::external::ExternalInfo;
use super::promise::Resolver;
use super::properties::new_labels;
use super::worker::{Entry, PoolWorker, Waiter};
use super::{PoolInfo, VolumeShared, check_name};
use crate::LvolError;
use crate::format::{
    LayerId, LayerRecord, LayerState, NAME_BYTES_MAX, NameKind, NameRecord, Parent, layer_key,
};
use crate::volume::Volume;

/// A volume to make.
#[derive(Debug, Clone, Default)]
pub struct NewVolume {
    /// Its name, without the pool's.
    pub name: String,
    /// Bytes; a multiple of the block size. 0 for a clone: as large as the snapshot.
    pub size_bytes: u64,
    /// Reserve clusters for all of it.
    pub thick: bool,
    /// For ever; made up when `None`.
    pub uuid: Option<[u8; 16]>,
    /// Seconds since 1970.
    pub created_unix_s: u64,
    /// Whatever the caller wants to find again.
    pub labels: Vec<(String, String)>,
}

/// A volume or a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeInfo {
    /// `NAME`, or `NAME@SNAP` of a snapshot.
    pub name: String,
    /// Its record.
    pub record: NameRecord,
    /// Clusters that only it has.
    pub clusters: u64,
    /// The snapshot that it lies on, if that has a name still.
    pub parent: Option<String>,
    /// The block device outside the pool that it lies on, below all layers.
    pub external: Option<ExternalInfo>,
    /// Layers that lie on it; for a little while also those that are being deleted.
    pub children: u32,
    /// Its records are damaged: I/O fails.
    pub faulted: bool,
}

/// A volume that goes on in a new layer once that is committed.
struct Move {
    volume: Arc<VolumeShared>,
    layer: LayerId,
    /// The snapshot that gets its old layer.
    frozen: Arc<VolumeShared>,
}

impl PoolWorker {
    pub(super) fn info(&self) -> PoolInfo {
        self.tell_allocated();
        let superblock = self.metadata.superblock();
        let (mut volumes, mut snapshots, mut provisioned_bytes) = (0, 0, 0_u64);
        for Entry { record, .. } in self.names.values() {
            if record.kind == NameKind::Snapshot {
                snapshots += 1;
            } else {
                volumes += 1;
                provisioned_bytes = provisioned_bytes.saturating_add(record.size_bytes);
            }
        }
        PoolInfo {
            name: superblock.name,
            uuid: superblock.pool_uuid,
            cluster_size: superblock.granularity.cluster_size(),
            clusters: self.allocator.clusters(),
            free_clusters: self.allocator.free(),
            used_clusters: self.allocator.used(),
            metadata_clusters: self.allocator.fixed_clusters(),
            reserved_clusters: self.pool.reserved_clusters,
            provisioned_bytes,
            volumes,
            snapshots,
            layers: self.layers.len() as u64,
            labels: self.labels(),
            cached_pieces: self.pieces.len() as u64,
            cached_pieces_max: self.options.cached_pieces as u64,
            fault: self.fault.clone(),
        }
    }

    pub(super) fn volume_info(&self, name: &str) -> Result<VolumeInfo, LvolError> {
        let entry = self.entry(name)?;
        Ok(self.describe(name, entry, |layer| self.name_of(layer)))
    }

    fn describe(
        &self,
        name: &str,
        entry: &Entry,
        name_of: impl FnOnce(LayerId) -> Option<String>,
    ) -> VolumeInfo {
        let layer = self.layers.get(&entry.record.layer);
        let parent = match layer.map(|layer| &layer.parent) {
            Some(Parent::Layer(parent)) => name_of(*parent),
            _ => None,
        };
        VolumeInfo {
            name: name.to_owned(),
            record: entry.record.clone(),
            clusters: layer.map_or(0, |layer| layer.clusters),
            parent,
            external: self.external_info(entry.record.layer),
            children: layer.map_or(0, |layer| layer.children),
            faulted: entry.shared.faulted.load(Ordering::SeqCst),
        }
    }

    pub(super) fn volumes(&self, after: &str, limit: usize) -> Vec<VolumeInfo> {
        // Not a search for each: there may be many of both.
        let snapshots = self.names.iter();
        let snapshots = snapshots.filter(|(_, entry)| entry.record.kind == NameKind::Snapshot);
        let by_layer: HashMap<LayerId, &String> = snapshots
            .map(|(name, entry)| (entry.record.layer, name))
            .collect();
        let range = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        let names = self.names.range::<str, _>(range).take(limit);
        let name_of = |layer| by_layer.get(&layer).map(|name| (*name).clone());
        names
            .map(|(name, entry)| self.describe(name, entry, name_of))
            .collect()
    }

    pub(super) fn device(&self, name: &str) -> Result<Arc<Volume>, LvolError> {
        let entry = self.entry(name)?;
        Ok(Arc::new(Volume::new(
            Arc::clone(&self.shared),
            Arc::clone(&entry.shared),
        )))
    }

    pub(super) fn create_volume(&mut self, new: NewVolume) -> Result<VolumeInfo, LvolError> {
        self.check_new(&new.name)?;
        self.check_size(&new.name, new.size_bytes)?;
        self.check_room(new.thick, new.size_bytes)?;
        let layer = self.new_layer(Parent::None);
        self.add_volume(new, layer)
    }

    pub(super) fn clone_snapshot(
        &mut self,
        snapshot: &str,
        mut new: NewVolume,
    ) -> Result<VolumeInfo, LvolError> {
        self.check_new(&new.name)?;
        let origin = self.entry(snapshot)?;
        if origin.shared.is_in_transit() {
            return Err(LvolError::Refused {
                name: snapshot.to_owned(),
                problem: "is still being taken; try again".to_owned(),
            });
        }
        if origin.record.kind != NameKind::Snapshot {
            return Err(LvolError::Refused {
                name: snapshot.to_owned(),
                problem: "is a volume; take a snapshot of it and clone that".to_owned(),
            });
        }
        let (parent, size) = (origin.record.layer, origin.record.size_bytes);
        if new.size_bytes == 0 {
            new.size_bytes = size;
        }
        self.check_size(&new.name, new.size_bytes)?;
        if new.size_bytes < size {
            return Err(LvolError::Refused {
                name: new.name,
                problem: format!("cannot be smaller than the snapshot's {size} bytes"),
            });
        }
        self.check_room(new.thick, new.size_bytes)?;
        let layer = self.new_layer(Parent::Layer(parent));
        let made = self.add_volume(new, layer);
        self.externals_may_change();
        made
    }

    pub(super) fn add_volume(
        &mut self,
        new: NewVolume,
        layer: LayerId,
    ) -> Result<VolumeInfo, LvolError> {
        let uuid = new.uuid.unwrap_or_else(|| *Uuid::new_v4().as_bytes());
        let record = NameRecord {
            kind: NameKind::Volume,
            uuid,
            nguid: uuid,
            size_bytes: new.size_bytes,
            layer,
            thick: new.thick,
            read_only: false,
            created_unix_s: new.created_unix_s,
            labels: new.labels,
        };
        let shared = self.volume_shared(&record);
        self.put_name(&new.name, &record);
        if record.thick {
            self.thick.insert(new.name.clone());
        }
        self.names
            .insert(new.name.clone(), Entry { record, shared });
        self.volume_info(&new.name)
    }

    pub(super) fn create_snapshots(
        &mut self,
        names: &[(String, String)],
        created_unix_s: u64,
        labels: &[(String, String)],
        resolver: Resolver<()>,
    ) {
        let checked = self.check_snapshots(names);
        let first = names.first().map_or("", |(volume, _)| volume);
        let labels = match checked.and_then(|()| new_labels(first, labels)) {
            Ok(labels) => labels,
            Err(error) => return resolver.resolve(Err(error)),
        };
        let mut moves = Vec::with_capacity(names.len());
        for (volume, snapshot) in names {
            moves.extend(self.stage_new_layer(volume, snapshot, created_unix_s, &labels));
        }
        self.reserve_again();
        self.externals_may_change();
        // Hosts go on writing to the old layers until the device knows the new ones: after a crash nobody
        // could tell what a write to a layer that is in no record belongs to.
        let resolver = Rc::new(Cell::new(Some(resolver)));
        let told = Rc::clone(&resolver);
        self.on_commit.push(Box::new(move |worker| {
            worker.move_to_new_layers(moves, resolver.take());
        }));
        self.when_committed(move |_, result| {
            // The snapshots are taken all the same, when there is room to commit them.
            if let (Err(error), Some(resolver)) = (result, told.take()) {
                resolver.resolve(Err(error));
            }
        });
    }

    /// The device knows the new layers: volumes go on in them, and their old ones are the snapshots'.
    fn move_to_new_layers(&mut self, moves: Vec<Move>, resolver: Option<Resolver<()>>) {
        // All move under one lock and become visible by one number: a write that a host sends after
        // another has ended, on whichever of the volumes, is not in the snapshot when the other is not.
        let shared = Arc::clone(&self.shared);
        let moving = shared.moving.lock();
        let mut unsettled = Vec::with_capacity(2 * moves.len());
        for Move {
            volume,
            layer,
            frozen,
        } in moves
        {
            volume.unsettled.store(true, Ordering::SeqCst);
            volume.layer.store(layer.0, Ordering::SeqCst);
            volume.chains.fetch_add(1, Ordering::SeqCst);
            volume.moving.store(false, Ordering::SeqCst);
            unsettled.extend([volume, frozen]);
        }
        self.shared.chains.fetch_add(1, Ordering::SeqCst);
        drop(moving);
        // What was in flight goes to the old layers, now the snapshots'. When it has ended they change
        // no more, and the commit after that has it all.
        self.after_grace(move |worker| {
            for unsettled in &unsettled {
                unsettled.unsettled.store(false, Ordering::SeqCst);
            }
            worker.when_committed(|_, result| {
                if let Some(resolver) = resolver {
                    resolver.resolve(result);
                }
            });
        });
    }

    fn check_snapshots(&self, names: &[(String, String)]) -> Result<(), LvolError> {
        for (index, (volume, snapshot)) in names.iter().enumerate() {
            check_name(snapshot)?;
            let entry = self.entry(volume)?;
            let refused = |problem: &str| LvolError::Refused {
                name: volume.clone(),
                problem: problem.to_owned(),
            };
            if entry.record.kind != NameKind::Volume {
                return Err(refused("is a snapshot already"));
            }
            if entry.shared.faulted.load(Ordering::SeqCst) {
                return Err(refused("is faulted"));
            }
            if entry.shared.is_in_transit() {
                return Err(refused("is in the middle of a snapshot; try again"));
            }
            if names[..index].iter().any(|(other, _)| other == volume) {
                return Err(refused("is named twice"));
            }
            self.check_unnamed(&format!("{volume}@{snapshot}"))?;
        }
        let records = names
            .iter()
            .filter_map(|(volume, _)| self.names.get(volume));
        self.check_room_for_snapshots(records.map(|entry| &entry.record))
    }

    /// By the records the volume goes on in a new layer, and its old one is the snapshot's.
    fn stage_new_layer(
        &mut self,
        volume: &str,
        snapshot: &str,
        created_unix_s: u64,
        labels: &[(String, String)],
    ) -> Option<Move> {
        let entry = self.names.get(volume)?;
        let (mut record, shared) = (entry.record.clone(), Arc::clone(&entry.shared));
        let old = record.layer;
        let uuid = *Uuid::new_v4().as_bytes();
        let taken = NameRecord {
            kind: NameKind::Snapshot,
            uuid,
            nguid: uuid,
            thick: false,
            read_only: true,
            created_unix_s,
            labels: labels.to_vec(),
            ..record.clone()
        };
        let layer = self.new_layer(Parent::Layer(old));
        record.layer = layer;
        shared.moving.store(true, Ordering::SeqCst);
        self.put_name(volume, &record);
        let entry = Entry {
            record,
            shared: Arc::clone(&shared),
        };
        self.names.insert(volume.to_owned(), entry);
        let name = format!("{volume}@{snapshot}");
        self.put_name(&name, &taken);
        let frozen = self.volume_shared(&taken);
        frozen.unsettled.store(true, Ordering::SeqCst);
        let entry = Entry {
            record: taken,
            shared: Arc::clone(&frozen),
        };
        self.names.insert(name, entry);
        Some(Move {
            volume: shared,
            layer,
            frozen,
        })
    }

    pub(super) fn rollback(&mut self, volume: &str, snapshot: &str) -> Result<(), LvolError> {
        let entry = self.entry(volume)?;
        let shared = Arc::clone(&entry.shared);
        let mut record = entry.record.clone();
        let origin = self.entry(snapshot)?.record.clone();
        let problem = if record.kind != NameKind::Volume {
            Some("is a snapshot; roll back a volume")
        } else if origin.kind != NameKind::Snapshot {
            Some("cannot be rolled back to a volume; name a snapshot")
        } else if shared.is_in_transit() {
            Some("is in the middle of a snapshot; try again")
        } else if self.entry(snapshot)?.shared.is_in_transit() {
            Some("cannot be rolled back to a snapshot that is still being taken; try again")
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(LvolError::Refused {
                name: volume.to_owned(),
                problem: problem.to_owned(),
            });
        }
        self.check_room_for_snapshots(std::iter::once(&record))?;
        let old = record.layer;
        let layer = self.new_layer(Parent::Layer(origin.layer));
        record.layer = layer;
        record.size_bytes = origin.size_bytes;
        let blocks = record.size_bytes / u64::from(self.shared.block_size);
        self.put_name(volume, &record);
        shared.moving.store(true, Ordering::SeqCst);
        let moved = Arc::clone(&shared);
        self.names
            .insert(volume.to_owned(), Entry { record, shared });
        self.abandon_layer(old);
        self.on_commit.push(Box::new(move |worker| {
            moved.layer.store(layer.0, Ordering::SeqCst);
            moved.block_count.store(blocks, Ordering::SeqCst);
            moved.chains.fetch_add(1, Ordering::SeqCst);
            worker.shared.chains.fetch_add(1, Ordering::SeqCst);
            moved.moving.store(false, Ordering::SeqCst);
            worker.collect_after_grace(old);
        }));
        self.reserve_again();
        self.externals_may_change();
        Ok(())
    }

    pub(super) fn rename(&mut self, name: &str, new_name: &str) -> Result<(), LvolError> {
        if self.entry(name)?.record.kind == NameKind::Snapshot {
            return Err(LvolError::Refused {
                name: name.to_owned(),
                problem: "is a snapshot; it is named after its volume".to_owned(),
            });
        }
        self.check_new(new_name)?;
        let prefix = format!("{name}@");
        let snapshots = self.names.range(prefix.clone()..);
        let snapshots = snapshots.take_while(|(other, _)| other.starts_with(&prefix));
        let mut pairs: Vec<(String, String)> = snapshots
            .map(|(other, _)| {
                let snapshot = &other[prefix.len()..];
                (other.clone(), format!("{new_name}@{snapshot}"))
            })
            .collect();
        pairs.push((name.to_owned(), new_name.to_owned()));
        for (_, to) in &pairs {
            self.check_unnamed(to)?;
        }
        for (from, to) in pairs {
            if let Some(entry) = self.names.remove(&from) {
                if self.thick.remove(&from) {
                    self.thick.insert(to.clone());
                }
                self.stage(Table::Names, from.as_bytes(), None);
                self.put_name(&to, &entry.record);
                self.names.insert(to, entry);
            }
        }
        self.externals_may_change();
        Ok(())
    }

    pub(super) fn delete(&mut self, name: &str) -> Result<Option<u64>, LvolError> {
        let entry = self.entry(name)?;
        let refused = |problem: &str| LvolError::Refused {
            name: name.to_owned(),
            problem: problem.to_owned(),
        };
        if entry.shared.channels.load(Ordering::SeqCst) > 0 {
            return Err(refused("is in use; disconnect its hosts first"));
        }
        if entry.shared.is_in_transit() {
            return Err(refused("is in the middle of a snapshot; try again"));
        }
        let layer = entry.record.layer;
        entry.shared.faulted.store(true, Ordering::SeqCst);
        self.names.remove(name);
        self.thick.remove(name);
        self.stage(Table::Names, name.as_bytes(), None);
        self.discard_layer(layer);
        self.reserve_again();
        self.externals_may_change();
        Ok(self.show_deletion(name, layer))
    }

    /// Tells when all that is staged now is durable.
    pub(super) fn when_committed(
        &mut self,
        tell: impl FnOnce(&mut Self, Result<(), LvolError>) + 'static,
    ) {
        self.waiters.push(Waiter::Call(Box::new(tell)));
    }

    /// Commits at once.
    pub(super) fn commit_now(&mut self) -> Result<(), LvolError> {
        let outcome = std::rc::Rc::new(std::cell::RefCell::new(Ok(())));
        let told = std::rc::Rc::clone(&outcome);
        self.when_committed(move |_, result| *told.borrow_mut() = result);
        self.commit();
        outcome.replace(Ok(()))
    }

    pub(super) fn new_layer(&mut self, parent: Parent) -> LayerId {
        let layer = LayerId(self.pool.next_layer);
        self.pool.next_layer += 1;
        if let Parent::Layer(parent) = parent {
            self.change_layer(parent, |record| record.children += 1);
        }
        let record = LayerRecord {
            parent,
            ..LayerRecord::default()
        };
        self.layers.insert(layer, record);
        self.new_layers.insert(layer);
        self.change_layer(layer, |_| {});
        layer
    }

    /// No name has this layer any more.
    fn discard_layer(&mut self, layer: LayerId) {
        self.abandon_layer(layer);
        self.collect_after_grace(layer);
    }

    /// By the records no name has this layer any more.
    fn abandon_layer(&mut self, layer: LayerId) {
        self.cancel_for(layer);
        self.change_layer(layer, |record| {
            record.state = LayerState::Garbage;
            record.progress = 0;
        });
    }

    /// What the layer has goes free, but I/O that is in flight may still use it.
    fn collect_after_grace(&mut self, layer: LayerId) {
        self.after_grace(move |worker| {
            worker.garbage.insert(layer);
        });
    }

    pub(super) fn change_layer(&mut self, layer: LayerId, change: impl FnOnce(&mut LayerRecord)) {
        let Some(record) = self.layers.get_mut(&layer) else {
            return;
        };
        change(record);
        let value = record.encode();
        self.stage(Table::Layers, &layer_key(layer), Some(value));
    }

    /// A layer lies on that from now on, by the records.
    pub(super) fn set_layer_parent(&mut self, layer: LayerId, parent: Parent) {
        let old = self.layers.get(&layer).map(|record| record.parent.clone());
        if let Parent::Layer(below) = parent {
            self.change_layer(below, |record| record.children += 1);
        }
        self.change_layer(layer, |record| record.parent = parent);
        if let Some(Parent::Layer(below)) = old {
            self.change_layer(below, |record| {
                record.children = record.children.saturating_sub(1);
            });
        }
    }

    pub(super) fn put_name(&mut self, name: &str, record: &NameRecord) {
        self.stage(Table::Names, name.as_bytes(), Some(record.encode()));
    }

    pub(super) fn stage(&mut self, table: Table, key: &[u8], value: Option<Vec<u8>>) {
        self.staged.insert((table, key.to_vec()), value);
    }

    /// The name that a volume has by now.
    pub(super) fn name_now(&self, volume: &Arc<VolumeShared>) -> Result<String, LvolError> {
        let mut names = self.names.iter();
        let found = names.find(|(_, entry)| Arc::ptr_eq(&entry.shared, volume));
        match found {
            Some((name, _)) => Ok(name.clone()),
            None => Err(LvolError::NotFound {
                name: "the volume".to_owned(),
            }),
        }
    }

    pub(super) fn entry(&self, name: &str) -> Result<&Entry, LvolError> {
        self.names.get(name).ok_or_else(|| {
            let name = name.to_owned();
            if self.damaged_names.contains(&name) {
                LvolError::NameDamaged { name }
            } else {
                LvolError::NotFound { name }
            }
        })
    }

    pub(super) fn check_new(&self, name: &str) -> Result<(), LvolError> {
        check_name(name)?;
        self.check_unnamed(name)
    }

    fn check_unnamed(&self, name: &str) -> Result<(), LvolError> {
        if name.len() > 2 * NAME_BYTES_MAX + 1 {
            return Err(LvolError::Name {
                name: name.to_owned(),
                problem: "is too long",
            });
        }
        if self.names.contains_key(name) || self.damaged_names.contains(name) {
            return Err(LvolError::Exists {
                name: name.to_owned(),
            });
        }
        Ok(())
    }

    pub(super) fn check_size(&self, name: &str, size_bytes: u64) -> Result<(), LvolError> {
        let block = u64::from(self.shared.block_size);
        if size_bytes == 0 || !size_bytes.is_multiple_of(block) || size_bytes > 1 << 60 {
            return Err(LvolError::Refused {
                name: name.to_owned(),
                problem: format!(
                    "cannot have {size_bytes} bytes: a multiple of {block} up to 1 EiB"
                ),
            });
        }
        Ok(())
    }

    /// The snapshot with this layer.
    fn name_of(&self, layer: LayerId) -> Option<String> {
        let mut names = self.names.iter();
        let found = names.find(|(_, entry)| {
            entry.record.layer == layer && entry.record.kind == NameKind::Snapshot
        });
        found.map(|(name, _)| name.clone())
    }
}
