//! [`LvolPool`]: an open pool of `lvol` as the data plane has it.

use std::collections::HashMap;
use std::sync::Arc;

use api::v1::{self, ObjectState};
use block::{Bdev, Registry};
use lvol::format::NameKind;
use lvol::{NewVolume, OperationKind, OperationState, PoolInfo, Promise, VolumeInfo};
use tokio::sync::watch;
use uuid::Uuid;

use super::failure::Asked;
use super::space::{SpaceLevel, Thresholds};
use super::{limits, space};
use crate::copy;
use crate::error::ControlError;
use crate::events::now_unix_ms;
use crate::nvmf_runtime::qos;
use crate::pool::{
    Engine, Job, Labels, Pool, PoolChange, VolumeChange, VolumeDevice, VolumePage, VolumeQuery,
    VolumeSettings, Work,
};

/// Names asked of the worker at a time.
const PAGE: usize = 1000;

/// An open pool. Its worker is stepped on a thread of its own until it is closed.
#[derive(Debug)]
pub(super) struct LvolPool {
    name: String,
    pool: lvol::Pool,
    block_size: u32,
    cluster_size: u64,
    /// Block devices that volumes may lie on.
    registry: Arc<Registry>,
    level: Arc<SpaceLevel>,
    /// Its other end goes when the thread has let go of the device.
    ended: watch::Receiver<()>,
}

impl LvolPool {
    /// `sizes`: of a block and of a cluster, bytes.
    pub(super) fn new(
        name: String,
        pool: lvol::Pool,
        (block_size, cluster_size): (u32, u64),
        registry: Arc<Registry>,
        level: Arc<SpaceLevel>,
        ended: watch::Receiver<()>,
    ) -> LvolPool {
        LvolPool {
            name,
            pool,
            block_size,
            cluster_size,
            registry,
            level,
            ended,
        }
    }

    fn asked(&self, doing: &'static str, name: &str) -> Asked {
        Asked {
            pool: self.name.clone(),
            name: name.to_owned(),
            doing,
        }
    }

    /// A block device of the node.
    fn bdev(&self, name: &str) -> Result<Arc<Bdev>, ControlError> {
        self.registry.get(name).map_err(|_| ControlError::NotFound {
            kind: "bdev",
            name: name.to_owned(),
        })
    }

    fn unimplemented<T: Send + 'static>(&self, doing: &'static str, name: &str) -> Work<T> {
        let error = self.asked(doing, name).unimplemented();
        Box::pin(std::future::ready(Err(error)))
    }

    /// A size that a volume cannot have.
    fn check_size(&self, name: &str, field: &str, size_bytes: u64) -> Result<(), ControlError> {
        let block_size = u64::from(self.block_size);
        if size_bytes.is_multiple_of(block_size) {
            return Ok(());
        }
        let problem = format!("{size_bytes} must be a multiple of the block size, {block_size}");
        let what = format!("volume {:?}", format!("{}/{name}", self.name));
        Err(ControlError::field(what, field, problem))
    }

    fn reader(&self) -> Reader {
        Reader {
            asked: self.asked("reading", ""),
            pool: self.pool.clone(),
            block_size: self.block_size,
            cluster_size: self.cluster_size,
            level: Arc::clone(&self.level),
        }
    }
}

/// A call on its way, and what to say when it fails.
fn work<T: Send + 'static>(asked: Asked, promise: Promise<T>) -> Work<T> {
    Box::pin(async move { promise.await.map_err(|error| asked.failed(error)) })
}

/// Likewise, of what may not be there.
fn maybe<T: Send + 'static>(asked: Asked, promise: Promise<T>) -> Work<Option<T>> {
    Box::pin(async move {
        match promise.await {
            Ok(found) => Ok(Some(found)),
            Err(lvol::LvolError::NotFound { .. }) => Ok(None),
            Err(error) => Err(asked.failed(error)),
        }
    })
}

/// Asks a pool what it has, and tells it in the words of the API.
struct Reader {
    asked: Asked,
    pool: lvol::Pool,
    block_size: u32,
    cluster_size: u64,
    level: Arc<SpaceLevel>,
}

impl Reader {
    /// The next volumes and snapshots.
    async fn page(&self, after: &str) -> Result<Vec<VolumeInfo>, ControlError> {
        let page = self.pool.volumes(after, PAGE).await;
        page.map_err(|error| self.asked.failed(error))
    }

    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.asked.pool)
    }

    fn volume(&self, info: &VolumeInfo) -> v1::Volume {
        let record = &info.record;
        let external = info.external.as_ref();
        let missing = external.and_then(|external| external.missing.as_ref());
        let mut labels = record.labels.iter();
        let repaired = labels.find(|(key, _)| key == lvol::REPAIRED_LABEL);
        let status = if self.pool.has_stopped() {
            let reason = format!(
                "its pool has stopped, and its i/o fails: see pool show {}",
                self.asked.pool
            );
            Some((ObjectState::Pending, reason))
        } else if info.faulted {
            let reason =
                "a record of it is damaged, and its i/o fails; run pool check and pool repair";
            Some((ObjectState::Pending, reason.to_owned()))
        } else if let Some(reason) = missing {
            let reason = format!(
                "what it does not have itself cannot be read: {reason}; put the device back"
            );
            Some((ObjectState::Pending, reason))
        } else {
            repaired.map(|(_, what)| (ObjectState::Ready, format!("repaired: {what}")))
        };
        let status = status.map(|(state, reason)| v1::Status {
            state: state.into(),
            reason,
        });
        // A snapshot that was deleted shows through it what it lies on.
        let snapshot = info.parent.as_ref().map(|parent| self.full(parent));
        let parent = snapshot.or_else(|| external.map(|external| external.name.clone()));
        v1::Volume {
            name: self.full(&info.name),
            uuid: Uuid::from_bytes(record.uuid).to_string(),
            nguid: format!("{:032x}", u128::from_be_bytes(record.nguid)),
            size_bytes: record.size_bytes,
            block_size: self.block_size,
            thick: record.thick,
            read_only: record.read_only,
            snapshot: record.kind == NameKind::Snapshot,
            parent: parent.unwrap_or_default(),
            exclusive_bytes: info.clusters * self.cluster_size,
            children: info.children,
            status,
            claimed_by: Vec::new(),
            labels: owners(&record.labels, limits::is_label),
            qos: limits::of_labels(&record.labels),
        }
    }

    fn pool(&self, info: &PoolInfo) -> v1::Pool {
        let bytes = |clusters: u64| clusters * info.cluster_size;
        let thresholds = Thresholds::of(&info.labels);
        v1::Pool {
            uuid: Uuid::from_bytes(info.uuid).to_string(),
            cluster_size_bytes: info.cluster_size,
            block_size: self.block_size,
            size_bytes: bytes(info.clusters),
            free_bytes: bytes(info.free_clusters),
            data_bytes: bytes(info.used_clusters),
            metadata_bytes: bytes(info.metadata_clusters),
            reserved_bytes: bytes(info.reserved_clusters),
            provisioned_bytes: info.provisioned_bytes,
            volumes: u32::try_from(info.volumes).unwrap_or(u32::MAX),
            snapshots: u32::try_from(info.snapshots).unwrap_or(u32::MAX),
            fault: info.fault.clone().unwrap_or_default(),
            labels: owners(&info.labels, space::is_label),
            space_level: self.level.now(info).into(),
            warning_percent: thresholds.warning,
            critical_percent: thresholds.critical,
            map_cache_pieces: info.cached_pieces,
            map_cache_pieces_max: info.cached_pieces_max,
            ..v1::Pool::default()
        }
    }

    async fn volumes(&self, query: VolumeQuery) -> Result<VolumePage, ControlError> {
        let mut found = VolumePage::default();
        // No name is just the prefix: that ends in an @.
        let mut after = query.prefix.clone();
        loop {
            let page = self.page(&after).await?;
            let Some(last) = page.last() else {
                return Ok(found);
            };
            after = last.name.clone();
            for info in &page {
                if !info.name.starts_with(&query.prefix) {
                    return Ok(found);
                }
                let is_snapshot = info.record.kind == NameKind::Snapshot;
                let labels = &info.record.labels;
                let has_all = query.labels.iter().all(|label| labels.contains(label));
                if is_snapshot != query.snapshots || !has_all {
                    continue;
                }
                found.total += 1;
                if info.name > query.after && found.volumes.len() < query.limit {
                    found.volumes.push(self.volume(info));
                }
            }
        }
    }

    async fn devices(&self) -> Result<Vec<VolumeDevice>, ControlError> {
        let mut devices = Vec::new();
        let mut after = String::new();
        loop {
            let page = self.page(&after).await?;
            let Some(last) = page.last() else {
                return Ok(devices);
            };
            after = last.name.clone();
            // All asked before the first is waited for: the worker answers them in one step.
            let asked: Vec<_> = page
                .into_iter()
                .map(|info| (self.pool.device(&info.name), info))
                .collect();
            for (device, info) in asked {
                let device = device.await.map_err(|error| self.asked.failed(error))?;
                devices.push(volume_device(&info, device));
            }
        }
    }
}

/// The labels that are shown as such.
fn owners(labels: &[(String, String)], is_other: fn(&str) -> bool) -> HashMap<String, String> {
    let owners = labels.iter().filter(|(key, _)| !is_other(key));
    owners.cloned().collect()
}

/// A volume to make, without size.
fn new_volume(name: &str, settings: VolumeSettings) -> NewVolume {
    let mut labels = settings.labels;
    let limits = settings.qos.iter().flat_map(limits::labels_of);
    labels.extend(limits.filter_map(|(key, value)| Some((key, value?))));
    NewVolume {
        name: name.to_owned(),
        created_unix_s: now_unix_ms() / 1000,
        labels,
        ..NewVolume::default()
    }
}

fn volume_device(info: &VolumeInfo, device: Arc<lvol::Volume>) -> VolumeDevice {
    VolumeDevice {
        name: info.name.clone(),
        uuid: Uuid::from_bytes(info.record.uuid),
        nguid: info.record.nguid,
        read_only: info.record.read_only,
        qos: qos(limits::of_labels(&info.record.labels).as_ref()),
        device,
    }
}

impl Pool for LvolPool {
    fn reading(&self) -> Work<v1::Pool> {
        let (reader, info) = (self.reader(), self.pool.info());
        Box::pin(async move {
            let info = info.await.map_err(|error| reader.asked.failed(error))?;
            Ok(reader.pool(&info))
        })
    }

    fn grow(&self) -> Work<()> {
        work(self.asked("growing", ""), self.pool.grow())
    }

    fn check(&self, repair: bool) -> Work<Vec<v1::Finding>> {
        let doing = if repair { "repairing" } else { "checking" };
        let checked = work(self.asked(doing, ""), self.pool.check_up(repair));
        let name = self.name.clone();
        Box::pin(async move {
            let findings = checked.await?.findings.into_iter();
            Ok(findings.map(|found| finding(&name, found)).collect())
        })
    }

    fn begin(&self, _: Job) -> Work<u64> {
        // Whoever has the volumes as block devices does it: `nvmf_runtime::copies`.
        self.unimplemented("copying", "")
    }

    fn volume(&self, name: &str) -> Work<Option<v1::Volume>> {
        let reader = self.reader();
        let found = maybe(self.asked("reading", name), self.pool.volume(name));
        Box::pin(async move { Ok(found.await?.map(|info| reader.volume(&info))) })
    }

    fn volumes(&self, query: VolumeQuery) -> Work<VolumePage> {
        let reader = self.reader();
        Box::pin(async move { reader.volumes(query).await })
    }

    fn create_volume(
        &self,
        name: &str,
        size_bytes: u64,
        thick: bool,
        settings: VolumeSettings,
    ) -> Work<()> {
        if let Err(error) = self.check_size(name, "volume.size_bytes", size_bytes) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let made = self.pool.create_volume(NewVolume {
            size_bytes,
            thick,
            ..new_volume(name, settings)
        });
        let made = work(self.asked("creating", name), made);
        Box::pin(async move { made.await.map(drop) })
    }

    fn clone_volume(&self, snapshot: &str, name: &str, settings: VolumeSettings) -> Work<()> {
        let made = self
            .pool
            .clone_snapshot(snapshot, new_volume(name, settings));
        let made = work(self.asked("creating", name), made);
        Box::pin(async move { made.await.map(drop) })
    }

    fn clone_bdev(&self, bdev_name: &str, name: &str, settings: VolumeSettings) -> Work<()> {
        let device = match self.bdev(bdev_name) {
            Ok(device) => device,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let made = self
            .pool
            .clone_external(&device, new_volume(name, settings));
        let made = work(self.asked("creating", name), made);
        Box::pin(async move { made.await.map(drop) })
    }

    fn resize_volume(&self, name: &str, size_bytes: u64) -> Work<()> {
        if let Err(error) = self.check_size(name, "size_bytes", size_bytes) {
            return Box::pin(std::future::ready(Err(error)));
        }
        work(
            self.asked("resizing", name),
            self.pool.resize(name, size_bytes),
        )
    }

    fn rename_volume(&self, name: &str, new_name: &str) -> Work<()> {
        work(
            self.asked("renaming", name),
            self.pool.rename(name, new_name),
        )
    }

    fn delete_volume(&self, name: &str) -> Work<Option<u64>> {
        work(self.asked("deleting", name), self.pool.delete(name))
    }

    fn change_volume(&self, name: &str, change: VolumeChange) -> Work<()> {
        let VolumeChange {
            mut labels,
            read_only,
            qos,
        } = change;
        labels.extend(qos.iter().flat_map(limits::labels_of));
        let change = lvol::VolumeChange { labels, read_only };
        let changed = self.pool.change_volume(name, change);
        let changed = work(self.asked("changing", name), changed);
        Box::pin(async move { changed.await.map(drop) })
    }

    fn change(&self, change: PoolChange) -> Work<()> {
        let changed = self.pool.set_labels(space::labels_of(&change));
        work(self.asked("changing", ""), changed)
    }

    fn detach_from_parent(&self, name: &str, whole: bool) -> Work<u64> {
        let (doing, kind) = if whole {
            ("inflating", OperationKind::Inflate)
        } else {
            ("decoupling", OperationKind::Decouple)
        };
        work(self.asked(doing, name), self.pool.detach(name, kind))
    }

    fn rollback_volume(&self, name: &str, snapshot: &str) -> Work<()> {
        work(
            self.asked("rolling back", name),
            self.pool.rollback(name, snapshot),
        )
    }

    fn set_parent(&self, name: &str, snapshot: &str) -> Work<()> {
        work(
            self.asked("changing the parent of", name),
            self.pool.set_parent(name, snapshot),
        )
    }

    fn set_parent_bdev(&self, name: &str, bdev_name: &str) -> Work<()> {
        match self.bdev(bdev_name) {
            Ok(device) => work(
                self.asked("changing the parent of", name),
                self.pool.set_external_parent(name, &device),
            ),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn create_snapshots(&self, names: &[(String, String)], labels: Labels) -> Work<()> {
        let asked = match names {
            [(volume, snapshot)] => self.asked("taking", &format!("{volume}@{snapshot}")),
            _ => self.asked("taking snapshots in", ""),
        };
        work(
            asked,
            self.pool
                .create_labelled_snapshots(names, now_unix_ms() / 1000, &labels),
        )
    }

    fn diff(&self, from: &str, to: &str, offset: u64, limit: usize) -> Work<Vec<v1::Extent>> {
        let (pool, asked) = (self.pool.clone(), self.asked("comparing", to));
        let (from, to) = (from.to_owned(), to.to_owned());
        Box::pin(async move {
            let from = (!from.is_empty()).then_some(from.as_str());
            let mut found: Vec<v1::Extent> = Vec::new();
            let mut next = Some(offset);
            // The worker looks at so much in one step; others have their turn in between.
            while let Some(offset) = next
                && found.len() < limit
            {
                let part = pool.diff(from, &to, offset, limit - found.len()).await;
                let part = part.map_err(|error| asked.failed(error))?;
                next = part.next;
                found.extend(part.extents.into_iter().map(|extent| v1::Extent {
                    offset_bytes: extent.offset,
                    length_bytes: extent.len,
                }));
            }
            Ok(found)
        })
    }

    fn is_system(&self) -> Work<bool> {
        let read = work(self.asked("reading", ""), self.pool.info());
        Box::pin(async move {
            let info = read.await?;
            let mut labels = info.labels.iter();
            Ok(labels.any(|(key, _)| key == lvol::SYSTEM_LABEL))
        })
    }

    fn node_state(&self) -> Work<lvol::NodeState> {
        let asked = self.asked("reading the node's state in", "");
        work(asked, self.pool.node_state())
    }

    fn put_node_state(&self, change: lvol::NodeChange) -> Work<()> {
        let asked = self.asked("keeping the node's state in", "");
        work(asked, self.pool.put_node_state(change))
    }

    fn replace_node_state(&self, state: lvol::NodeState) -> Work<()> {
        let asked = self.asked("keeping the node's state in", "");
        work(asked, self.pool.replace_node_state(state))
    }

    fn operations(&self) -> Work<Vec<v1::Operation>> {
        let asked = self.asked("reading", "");
        let listed = work(asked.clone(), self.pool.operations());
        Box::pin(async move {
            let operations = listed.await?.into_iter();
            Ok(operations.map(|one| operation(&asked.pool, one)).collect())
        })
    }

    fn cancel(&self, id: u64) -> Work<()> {
        let asked = self.asked("cancelling an operation of", "");
        let cancelled = self.pool.cancel(id);
        Box::pin(async move {
            match cancelled.await {
                Err(lvol::LvolError::NotFound { .. }) => Err(ControlError::NotFound {
                    kind: "operation",
                    name: format!("{}/{id}", asked.pool),
                }),
                ended => ended.map_err(|error| asked.failed(error)),
            }
        })
    }
}

/// A finding in the words of the API. One that concerns a single volume is told of that.
fn finding(pool: &str, found: lvol::Finding) -> v1::Finding {
    let object = match found.volumes.as_slice() {
        [volume] => format!("{pool}/{volume}"),
        _ => pool.to_owned(),
    };
    let concerns = match found.volumes.as_slice() {
        [] | [_] => String::new(),
        volumes => format!("; it concerns {}", volumes.join(", ")),
    };
    v1::Finding {
        object,
        problem: format!("{}: {}{concerns}", found.record, found.problem),
        action: found.action,
    }
}

/// An operation in the words of the API.
fn operation(pool: &str, one: lvol::Operation) -> v1::Operation {
    let kind = match one.kind {
        OperationKind::Decouple => v1::OperationKind::Decouple,
        OperationKind::Inflate => v1::OperationKind::Inflate,
        OperationKind::Delete => v1::OperationKind::Delete,
        OperationKind::Import => v1::OperationKind::Import,
        OperationKind::Export => v1::OperationKind::Export,
        OperationKind::Copy => v1::OperationKind::Copy,
        OperationKind::Scrub => v1::OperationKind::Scrub,
    };
    let state = match one.state {
        // It goes on until its driver has taken back what it made.
        OperationState::Running | OperationState::Cancelling => v1::OperationState::Running,
        OperationState::Done => v1::OperationState::Done,
        OperationState::Failed => v1::OperationState::Failed,
        OperationState::Cancelled => v1::OperationState::Cancelled,
    };
    let text = match one.state {
        OperationState::Cancelling => "is being cancelled".to_owned(),
        OperationState::Running => copy::describe(&one.detail),
        _ => one.text,
    };
    let object = match one.subject.as_str() {
        "" => pool.to_owned(),
        subject => format!("{pool}/{subject}"),
    };
    v1::Operation {
        name: format!("{pool}/{}", one.id),
        kind: kind.into(),
        object,
        state: state.into(),
        done: one.done,
        total: one.total,
        text,
    }
}

impl Engine for LvolPool {
    fn library(&self) -> Option<lvol::Pool> {
        Some(self.pool.clone())
    }

    fn device(&self, name: &str) -> Work<Option<VolumeDevice>> {
        let asked = || self.asked("opening", name);
        let info = maybe(asked(), self.pool.volume(name));
        let device = maybe(asked(), self.pool.device(name));
        Box::pin(async move {
            let (info, device) = (info.await?, device.await?);
            let found = info.zip(device);
            Ok(found.map(|(info, device)| volume_device(&info, device)))
        })
    }

    fn devices(&self) -> Work<Vec<VolumeDevice>> {
        let reader = self.reader();
        Box::pin(async move { reader.devices().await })
    }

    fn close(&self, wipe: bool) -> Work<()> {
        let (doing, closed) = if wipe {
            ("deleting", self.pool.destroy())
        } else {
            ("closing", self.pool.close())
        };
        let closed = work(self.asked(doing, ""), closed);
        let mut ended = self.ended.clone();
        Box::pin(async move {
            let result = closed.await;
            // Nothing is ever sent: this ends when the other end goes.
            while ended.changed().await.is_ok() {}
            result
        })
    }
}

impl Drop for LvolPool {
    fn drop(&mut self) {
        // After a close of its own this does nothing.
        drop(self.pool.close());
    }
}
