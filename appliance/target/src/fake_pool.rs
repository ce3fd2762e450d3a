//! A pool that only remembers: for tests of the control plane.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use api::v1::{self, OperationKind, OperationState, PoolSpec};
use block::Bdev;
use block::malloc::{Malloc, MallocOptions};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::error::ControlError;
use crate::pool::{
    Attach, Engine, Job, Labels, Opening, Pool, PoolChange, PoolDriver, VolumeChange, VolumeDevice,
    VolumePage, VolumeQuery, VolumeSettings, Work,
};
use crate::runtime::RuntimeError;

#[derive(Debug)]
pub(crate) struct FakePool {
    name: Mutex<String>,
    uuid: Uuid,
    cluster_size: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    /// By the name within the pool.
    pub(crate) volumes: BTreeMap<String, v1::Volume>,
    /// What was made or changed last of the pool itself.
    pub(crate) pool: v1::Pool,
    /// Likewise; made when somebody asks.
    devices: BTreeMap<String, VolumeDevice>,
    pub(crate) operations: Vec<v1::Operation>,
    /// It is marked as a system pool.
    pub(crate) is_system: bool,
    /// What a node keeps in it.
    pub(crate) node_state: lvol::NodeState,
    /// Why it has stopped.
    pub(crate) broken: Option<String>,
    /// Holds the answers of changes of the node's state.
    pub(crate) gate: Option<Gate>,
    /// What was asked of the pool, in order.
    pub(crate) calls: Vec<String>,
}

/// Where answers wait.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    /// Told when one waits.
    pub(crate) reached: Arc<Notify>,
    /// They wait until this is true.
    pub(crate) open: watch::Receiver<bool>,
}

fn broken(why: &str) -> ControlError {
    ControlError::Failed {
        what: "a call of the pool".to_owned(),
        reason: why.to_owned(),
    }
}

fn ready<T: Send + 'static>(result: Result<T, ControlError>) -> Work<T> {
    Box::pin(async move {
        tokio::task::yield_now().await;
        result
    })
}

impl FakePool {
    pub(crate) fn new(name: &str, cluster_size: Option<u64>) -> FakePool {
        FakePool {
            name: Mutex::new(name.to_owned()),
            uuid: Uuid::new_v4(),
            cluster_size: cluster_size.unwrap_or(1 << 20),
            inner: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> String {
        self.name.lock().unwrap().clone()
    }

    pub(crate) fn uuid(&self) -> Uuid {
        self.uuid
    }

    pub(crate) fn rename(&self, name: &str) {
        *self.name.lock().unwrap() = name.to_owned();
        for (rest, volume) in &mut self.inner().volumes {
            volume.name = format!("{name}/{rest}");
        }
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn put(&self, name: &str, volume: v1::Volume) -> Work<()> {
        let mut inner = self.inner();
        inner.calls.push(format!("make {name}"));
        let name_in_full = format!("{}/{name}", self.name());
        let volume = v1::Volume {
            name: name_in_full.clone(),
            block_size: 4096,
            ..volume
        };
        if inner.volumes.contains_key(name) {
            return ready(Err(ControlError::Exists {
                kind: "volume",
                name: name_in_full,
                differences: Vec::new(),
            }));
        }
        inner.volumes.insert(name.to_owned(), volume);
        ready(Ok(()))
    }

    fn operation(&self, kind: OperationKind, object: &str) -> u64 {
        let mut inner = self.inner();
        let id = inner.operations.len() as u64 + 1;
        inner.operations.push(v1::Operation {
            name: format!("{}/{id}", self.name()),
            kind: kind.into(),
            object: object.to_owned(),
            state: OperationState::Running.into(),
            total: 10,
            ..v1::Operation::default()
        });
        id
    }
}

impl Pool for FakePool {
    fn reading(&self) -> Work<v1::Pool> {
        let inner = self.inner();
        ready(Ok(v1::Pool {
            fault: inner.broken.clone().unwrap_or_default(),
            cluster_size_bytes: self.cluster_size,
            uuid: self.uuid.to_string(),
            ..inner.pool.clone()
        }))
    }

    fn grow(&self) -> Work<()> {
        self.inner().calls.push("grow".to_owned());
        ready(Ok(()))
    }

    fn check(&self, repair: bool) -> Work<Vec<v1::Finding>> {
        self.inner().calls.push(format!("check {repair}"));
        ready(Ok(Vec::new()))
    }

    fn begin(&self, job: Job) -> Work<u64> {
        let (kind, object) = match &job {
            Job::Import { name, .. } => (OperationKind::Import, name),
            Job::Export { name, .. } => (OperationKind::Export, name),
            Job::Copy { snapshot, .. } => (OperationKind::Copy, snapshot),
            Job::Scrub { .. } => (OperationKind::Scrub, &self.name()),
        };
        let id = self.operation(kind, object);
        self.inner().calls.push(format!("{job:?}"));
        ready(Ok(id))
    }

    fn volume(&self, name: &str) -> Work<Option<v1::Volume>> {
        ready(Ok(self.inner().volumes.get(name).cloned()))
    }

    fn volumes(&self, query: VolumeQuery) -> Work<VolumePage> {
        let inner = self.inner();
        let fits = |(name, volume): &(&String, &v1::Volume)| {
            let mut labels = query.labels.iter();
            let has_all = labels.all(|(key, value)| volume.labels.get(key) == Some(value));
            volume.snapshot == query.snapshots && name.starts_with(&query.prefix) && has_all
        };
        let all: Vec<_> = inner.volumes.iter().filter(fits).collect();
        let page = all.iter().filter(|(name, _)| **name > query.after);
        ready(Ok(VolumePage {
            volumes: page
                .take(query.limit)
                .map(|(_, volume)| (*volume).clone())
                .collect(),
            total: all.len(),
        }))
    }

    fn create_volume(
        &self,
        name: &str,
        size_bytes: u64,
        thick: bool,
        settings: VolumeSettings,
    ) -> Work<()> {
        self.put(
            name,
            v1::Volume {
                size_bytes,
                thick,
                labels: settings.labels.into_iter().collect(),
                qos: settings.qos,
                ..v1::Volume::default()
            },
        )
    }

    fn clone_volume(&self, snapshot: &str, name: &str, settings: VolumeSettings) -> Work<()> {
        let size_bytes = self.inner().volumes[snapshot].size_bytes;
        self.put(
            name,
            v1::Volume {
                size_bytes,
                parent: format!("{}/{snapshot}", self.name()),
                labels: settings.labels.into_iter().collect(),
                ..v1::Volume::default()
            },
        )
    }

    fn clone_bdev(&self, bdev_name: &str, name: &str, settings: VolumeSettings) -> Work<()> {
        self.put(
            name,
            v1::Volume {
                size_bytes: 8192,
                parent: bdev_name.to_owned(),
                labels: settings.labels.into_iter().collect(),
                ..v1::Volume::default()
            },
        )
    }

    fn resize_volume(&self, name: &str, size_bytes: u64) -> Work<()> {
        let mut inner = self.inner();
        inner.volumes.get_mut(name).unwrap().size_bytes = size_bytes;
        if let Some(volume) = inner.devices.get(name) {
            volume.device.resize(size_bytes / 4096).unwrap();
        }
        ready(Ok(()))
    }

    fn rename_volume(&self, name: &str, new_name: &str) -> Work<()> {
        let mut inner = self.inner();
        let is_of =
            |other: &&String| other.as_str() == name || other.starts_with(&format!("{name}@"));
        let names: Vec<String> = inner.volumes.keys().filter(is_of).cloned().collect();
        assert!(names.iter().any(|other| other == name));
        for old in names {
            let new = format!("{new_name}{}", &old[name.len()..]);
            let mut volume = inner.volumes.remove(&old).unwrap();
            volume.name = format!("{}/{new}", self.name());
            inner.volumes.insert(new.clone(), volume);
            if let Some(device) = inner.devices.remove(&old) {
                inner.devices.insert(new, device);
            }
        }
        ready(Ok(()))
    }

    fn delete_volume(&self, name: &str) -> Work<Option<u64>> {
        if self.inner().calls.contains(&"refuse".to_owned()) {
            return ready(Err(ControlError::Failed {
                what: "deleting".to_owned(),
                reason: "the test says so".to_owned(),
            }));
        }
        assert!(self.inner().volumes.remove(name).is_some());
        ready(Ok(Some(self.operation(OperationKind::Delete, name))))
    }

    fn change_volume(&self, name: &str, change: VolumeChange) -> Work<()> {
        let VolumeChange {
            labels,
            read_only,
            qos,
        } = change;
        let mut inner = self.inner();
        let volume = inner.volumes.get_mut(name).unwrap();
        for (key, value) in labels {
            match value {
                Some(value) => drop(volume.labels.insert(key, value)),
                None => drop(volume.labels.remove(&key)),
            }
        }
        volume.read_only = read_only.unwrap_or(volume.read_only);
        if let Some(qos) = qos {
            volume.qos = (qos != v1::QosLimits::default()).then_some(qos);
        }
        ready(Ok(()))
    }

    fn change(&self, change: PoolChange) -> Work<()> {
        let mut inner = self.inner();
        let pool = &mut inner.pool;
        for (key, value) in change.labels {
            match value {
                Some(value) => drop(pool.labels.insert(key, value)),
                None => drop(pool.labels.remove(&key)),
            }
        }
        pool.warning_percent = change.warning_percent.unwrap_or(pool.warning_percent);
        pool.critical_percent = change.critical_percent.unwrap_or(pool.critical_percent);
        inner.is_system = change.system.unwrap_or(inner.is_system);
        drop(inner);
        ready(Ok(()))
    }

    fn detach_from_parent(&self, name: &str, whole: bool) -> Work<u64> {
        let kind = if whole {
            OperationKind::Inflate
        } else {
            OperationKind::Decouple
        };
        ready(Ok(self.operation(kind, name)))
    }

    fn rollback_volume(&self, name: &str, snapshot: &str) -> Work<()> {
        self.inner()
            .calls
            .push(format!("rollback {name} {snapshot}"));
        ready(Ok(()))
    }

    fn set_parent(&self, name: &str, snapshot: &str) -> Work<()> {
        let parent = format!("{}/{snapshot}", self.name());
        self.inner().volumes.get_mut(name).unwrap().parent = parent;
        ready(Ok(()))
    }

    fn set_parent_bdev(&self, name: &str, bdev_name: &str) -> Work<()> {
        self.inner().volumes.get_mut(name).unwrap().parent = bdev_name.to_owned();
        ready(Ok(()))
    }

    fn create_snapshots(&self, names: &[(String, String)], labels: Labels) -> Work<()> {
        for (volume, snapshot) in names {
            let size_bytes = self.inner().volumes[volume].size_bytes;
            drop(self.put(
                &format!("{volume}@{snapshot}"),
                v1::Volume {
                    size_bytes,
                    snapshot: true,
                    read_only: true,
                    labels: labels.iter().cloned().collect(),
                    ..v1::Volume::default()
                },
            ));
        }
        ready(Ok(()))
    }

    fn diff(&self, _: &str, _: &str, offset: u64, limit: usize) -> Work<Vec<v1::Extent>> {
        let all = (0..5).map(|index| v1::Extent {
            offset_bytes: index << 20,
            length_bytes: 4096,
        });
        let from = all.filter(|extent| extent.offset_bytes >= offset);
        ready(Ok(from.take(limit).collect()))
    }

    fn is_system(&self) -> Work<bool> {
        ready(Ok(self.inner().is_system))
    }

    fn node_state(&self) -> Work<lvol::NodeState> {
        let inner = self.inner();
        ready(match &inner.broken {
            Some(why) => Err(broken(why)),
            None => Ok(inner.node_state.clone()),
        })
    }

    fn put_node_state(&self, change: lvol::NodeChange) -> Work<()> {
        let mut inner = self.inner();
        if let Some(why) = &inner.broken {
            return ready(Err(broken(why)));
        }
        let records = std::mem::take(&mut inner.node_state.records);
        let mut records: BTreeMap<_, _> = records.into_iter().collect();
        for (key, value) in change.changes {
            match value {
                Some(value) => drop(records.insert(key, value)),
                None => drop(records.remove(&key)),
            }
        }
        inner.node_state = lvol::NodeState {
            generation: change.generation,
            records: records.into_iter().collect(),
        };
        let Some(Gate { reached, mut open }) = inner.gate.clone() else {
            return ready(Ok(()));
        };
        Box::pin(async move {
            reached.notify_one();
            // Who held it may have gone.
            let _ = open.wait_for(|open| *open).await;
            Ok(())
        })
    }

    fn replace_node_state(&self, state: lvol::NodeState) -> Work<()> {
        let mut inner = self.inner();
        if let Some(why) = &inner.broken {
            return ready(Err(broken(why)));
        }
        inner.calls.push("replace the node's state".to_owned());
        inner.node_state = state;
        ready(Ok(()))
    }

    fn operations(&self) -> Work<Vec<v1::Operation>> {
        ready(Ok(self.inner().operations.clone()))
    }

    fn cancel(&self, id: u64) -> Work<()> {
        let index = usize::try_from(id).unwrap() - 1;
        self.inner().operations[index].state = OperationState::Cancelled.into();
        ready(Ok(()))
    }
}

impl Engine for FakePool {
    fn device(&self, name: &str) -> Work<Option<VolumeDevice>> {
        let mut inner = self.inner();
        let Some(volume) = inner.volumes.get(name) else {
            return ready(Ok(None));
        };
        let block_count = volume.size_bytes / 4096;
        let qos = crate::nvmf_runtime::qos(volume.qos.as_ref());
        let make = || VolumeDevice {
            name: name.to_owned(),
            uuid: Uuid::new_v4(),
            nguid: *Uuid::new_v4().as_bytes(),
            read_only: false,
            qos,
            device: Malloc::new(MallocOptions::new(4096, block_count)).unwrap(),
        };
        let device = inner
            .devices
            .entry(name.to_owned())
            .or_insert_with(make)
            .clone();
        let name = name.to_owned();
        ready(Ok(Some(VolumeDevice {
            name,
            qos,
            ..device
        })))
    }

    fn devices(&self) -> Work<Vec<VolumeDevice>> {
        let names: Vec<_> = self.inner().volumes.keys().cloned().collect();
        let all: Vec<_> = names.iter().map(|name| self.device(name)).collect();
        Box::pin(async move {
            let mut devices = Vec::new();
            for device in all {
                devices.extend(device.await?);
            }
            Ok(devices)
        })
    }

    fn close(&self, wipe: bool) -> Work<()> {
        self.inner().calls.push(format!("close {wipe}"));
        ready(Ok(()))
    }
}

/// Opens the pools it is given, by the name of their device.
#[derive(Debug, Default)]
pub(crate) struct FakeDriver {
    pub(crate) on_device: Mutex<BTreeMap<String, Arc<FakePool>>>,
}

impl PoolDriver for FakeDriver {
    fn probe(&self, base: Arc<Bdev>) -> Work<Option<String>> {
        let on_device = self.on_device.lock().unwrap();
        ready(Ok(on_device.get(base.name()).map(|pool| pool.name())))
    }

    fn open(&self, base: Arc<Bdev>, spec: &PoolSpec, attach: Attach) -> Opening {
        let name = &spec.name;
        let mut on_device = self.on_device.lock().unwrap();
        if let Attach::Create { cluster_size, .. } = attach {
            let pool = Arc::new(FakePool::new(name, cluster_size));
            on_device.insert(base.name().to_owned(), pool);
        }
        let pool = on_device.get(base.name()).cloned();
        Box::pin(async move {
            match pool {
                Some(pool) => Ok(pool as Arc<dyn Engine>),
                None => Err(RuntimeError::Refused("no pool".to_owned())),
            }
        })
    }
}
