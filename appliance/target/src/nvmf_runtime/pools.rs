//! Pools and their volumes among the block devices.
//!
//! A [`PoolDriver`] opens pools; here their volumes come to be block devices named `POOL/NAME`, and
//! cease to be before anything is done to them that a user of the device must not see.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use api::v1::{self, PoolSpec};
use block::{Bdev, BdevOptions, BlockError, Claim, ClaimKind};
use tokio::sync::OwnedMutexGuard;

use super::devices::qos;
use super::refused;
use crate::copy::Copier;
use crate::data_plane::DataPlane;
use crate::error::{ControlError, chain};
use crate::pool::{
    Attach, Engine, Job, Labels, Pool, PoolChange, PoolDriver, VolumeChange, VolumeDevice,
    VolumePage, VolumeQuery, VolumeSettings, Work,
};
use crate::runtime::{Prepared, Preparing, RuntimeError, Settled};

/// Locks of names. Two names rarely share one, and if they do they wait a little.
const SHARDS: usize = 64;

/// The pools of a node. Clones share them.
#[derive(Clone)]
pub(super) struct Pools {
    plane: Arc<DataPlane>,
    driver: Arc<dyn PoolDriver>,
    open: Arc<Mutex<BTreeMap<String, Arc<OpenPool>>>>,
    copier: Arc<Copier>,
}

/// A pool in place: the engine, and its volumes as block devices.
#[derive(Debug)]
pub(super) struct OpenPool {
    pub(super) name: String,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) plane: Arc<DataPlane>,
    pub(super) copier: Arc<Copier>,
    /// By the name within the pool.
    nguids: Mutex<HashMap<String, [u8; 16]>>,
    shards: Vec<Arc<tokio::sync::Mutex<()>>>,
    hasher: RandomState,
    /// Holds the device below until the pool is closed.
    claim: Mutex<Option<Claim>>,
}

/// A pool that was opened ahead.
struct PreparedPool {
    claim: Claim,
    engine: Arc<dyn Engine>,
    devices: Vec<VolumeDevice>,
    /// Operations that are to go on.
    driven: Vec<lvol::Operation>,
}

impl Pools {
    pub(super) fn new(plane: Arc<DataPlane>, driver: Arc<dyn PoolDriver>) -> Pools {
        let copier = Arc::new(Copier::new(Arc::clone(plane.iobuf_pool())));
        Pools {
            plane,
            driver,
            open: Arc::default(),
            copier,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<OpenPool>>> {
        // A panic while the lock was held left a plain map behind.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<OpenPool>> {
        self.lock().get(name).cloned()
    }

    /// The NGUID of a volume by the name of its block device.
    pub(super) fn nguid(&self, bdev_name: &str) -> Option<[u8; 16]> {
        let (pool, name) = bdev_name.split_once('/')?;
        self.get(pool)?.nguids().get(name).copied()
    }

    pub(super) fn prepare(&self, spec: &PoolSpec, attach: Attach) -> Preparing {
        let (registry, driver) = (Arc::clone(self.plane.registry()), Arc::clone(&self.driver));
        let spec = spec.clone();
        Box::pin(async move {
            let PoolSpec {
                name, bdev_name, ..
            } = &spec;
            let base = registry.get(bdev_name).map_err(|_| {
                RuntimeError::Pending(format!("its block device {bdev_name} is not in place"))
            })?;
            let owner = format!("pool {name}");
            let claim = base.claim(&owner, ClaimKind::Exclusive);
            let claim = claim.map_err(|error| match &attach {
                // Whoever has it may let go: the pool itself, while it closes.
                Attach::Open => RuntimeError::Pending(chain(&error)),
                Attach::Create { .. } => refused(&error),
            })?;
            let engine = driver.open(base, &spec, attach).await?;
            let devices = engine.devices().await;
            let devices = devices.map_err(|error| refused(&error))?;
            let mut driven = Vec::new();
            if let Some(pool) = engine.library() {
                let operations = pool.operations().await;
                driven = operations.map_err(|error| refused(&error))?;
                driven.retain(|one| one.kind.is_driven() && one.state.is_under_way());
            }
            Ok(Box::new(PreparedPool {
                claim,
                engine,
                devices,
                driven,
            }) as Prepared)
        })
    }

    pub(super) fn probe(&self, bdev_name: &str) -> Work<Option<String>> {
        match self.plane.registry().get(bdev_name) {
            Ok(base) => self.driver.probe(base),
            Err(error) => failed_now(&format!("looking for a pool on {bdev_name}"), &error),
        }
    }

    /// Puts a pool in place: all of its volumes come to be block devices, or none.
    pub(super) fn put(&self, name: &str, prepared: Option<Prepared>) -> Result<(), RuntimeError> {
        let prepared = prepared.and_then(|prepared| prepared.downcast::<PreparedPool>().ok());
        let Some(prepared) = prepared else {
            let reason = "the pool has not been opened yet";
            return Err(RuntimeError::Pending(reason.to_owned()));
        };
        let PreparedPool {
            claim,
            engine,
            devices,
            driven,
        } = *prepared;
        let pool = OpenPool {
            name: name.to_owned(),
            engine,
            plane: Arc::clone(&self.plane),
            copier: Arc::clone(&self.copier),
            nguids: Mutex::default(),
            shards: (0..SHARDS).map(|_| Arc::default()).collect(),
            hasher: RandomState::new(),
            claim: Mutex::new(Some(claim)),
        };
        for (index, device) in devices.iter().enumerate() {
            if let Err(error) = pool.register(device) {
                for device in &devices[..index] {
                    pool.forget(&device.name);
                }
                return Err(refused(&error));
            }
        }
        let pool = Arc::new(pool);
        // Before anybody can see the volumes: what is imported belongs to its operation.
        pool.resume(driven);
        self.lock().insert(name.to_owned(), pool);
        Ok(())
    }

    /// Takes a pool out of place, unless something uses a volume of it.
    fn take(&self, name: &str) -> Result<Option<Arc<OpenPool>>, ControlError> {
        let Some(pool) = self.get(name) else {
            return Ok(None);
        };
        pool.unregister_all()?;
        Ok(self.lock().remove(name))
    }

    pub(super) fn close(&self, name: &str, wipe: bool) -> Work<()> {
        let taken = self.take(name);
        let what = if wipe { "deleting" } else { "closing" };
        let what = format!("{what} pool {name}");
        Box::pin(async move {
            let Some(pool) = taken? else { return Ok(()) };
            pool.close(wipe).await.map_err(|error| match error {
                error @ ControlError::Failed { .. } => error,
                error => ControlError::Failed {
                    what,
                    reason: chain(&error),
                },
            })
        })
    }

    /// As [`Pools::close`], begun at once; how it ends is logged.
    pub(super) fn remove(&self, name: &str) -> Result<Settled, RuntimeError> {
        let taken = self.take(name).map_err(|error| refused(&error))?;
        let Some(pool) = taken else {
            return Ok(crate::runtime::at_once());
        };
        let closing = tokio::spawn(async move {
            if let Err(error) = pool.close(false).await {
                tracing::error!(pool = pool.name, %error, "the pool was not closed cleanly");
            }
        });
        Ok(Box::pin(async move {
            // The task logs what there is to tell.
            let _ = closing.await;
        }))
    }

    /// Closes every pool for the end of the program: namespaces still hold the volumes.
    pub(super) async fn close_all(&self) {
        let all = std::mem::take(&mut *self.lock());
        for bdev in all.values().flat_map(|pool| pool.bdevs()) {
            bdev.mark_removed();
        }
        // All at once: each has its own device and thread.
        let mut closing = tokio::task::JoinSet::new();
        for (name, pool) in all {
            closing.spawn(async move { (name, pool.close(false).await) });
        }
        while let Some(closed) = closing.join_next().await {
            if let Ok((pool, Err(error))) = closed {
                tracing::error!(pool, %error, "drain: the pool was not closed cleanly");
            }
        }
    }
}

fn failed_now<T: Send + 'static>(what: &str, error: &dyn std::error::Error) -> Work<T> {
    let error = ControlError::Failed {
        what: what.to_owned(),
        reason: chain(error),
    };
    Box::pin(std::future::ready(Err(error)))
}

impl OpenPool {
    /// Closes the pool and lets go of its device, though others may still hold `self`.
    async fn close(&self, wipe: bool) -> Result<(), ControlError> {
        self.copier.release(&self.name).await;
        let closed = self.engine.close(wipe).await;
        *self.claim.lock().unwrap_or_else(PoisonError::into_inner) = None;
        closed
    }

    /// The device below, while the pool is open.
    pub(super) fn base(&self) -> Option<Arc<Bdev>> {
        let claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        claim.as_ref().map(|claim| Arc::clone(claim.bdev()))
    }

    /// Deletes a volume or a snapshot whose name is locked.
    pub(super) async fn delete_unlocked(&self, name: &str) -> Result<Option<u64>, ControlError> {
        let volume = self.unregister(name)?;
        let deleted = self.engine.delete_volume(name).await;
        if deleted.is_err() {
            self.put_back(volume);
        }
        deleted
    }

    pub(super) fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    fn nguids(&self) -> MutexGuard<'_, HashMap<String, [u8; 16]>> {
        // A panic while the lock was held left a plain map behind.
        self.nguids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block devices of the pool.
    fn bdevs(&self) -> Vec<Arc<Bdev>> {
        let names: Vec<String> = self.nguids().keys().cloned().collect();
        let registry = self.plane.registry();
        let bdevs = names
            .iter()
            .map(|name| registry.get(&self.full_name(name)).ok());
        bdevs.flatten().collect()
    }

    /// Makes a block device of a volume.
    fn register(&self, volume: &VolumeDevice) -> Result<(), BlockError> {
        let options = BdevOptions {
            name: self.full_name(&volume.name),
            uuid: Some(volume.uuid),
            aliases: Vec::new(),
        };
        let device = Arc::clone(&volume.device);
        let bdev = self
            .plane
            .registry()
            .create(options, device, Instant::now())?;
        bdev.set_write_protected(volume.read_only);
        self.limit(&bdev, &volume.qos);
        self.nguids().insert(volume.name.clone(), volume.nguid);
        Ok(())
    }

    /// Takes a volume from the block devices; gives back what puts it there again.
    fn unregister(&self, name: &str) -> Result<Option<VolumeDevice>, ControlError> {
        let full_name = self.full_name(name);
        let bdev = match self.plane.registry().delete(&full_name) {
            Ok(bdev) => bdev,
            Err(BlockError::NotFound { .. }) => return Ok(None),
            Err(BlockError::Claimed { owner, .. }) => {
                return Err(ControlError::InUse {
                    kind: "volume",
                    name: full_name,
                    users: vec![owner],
                });
            }
            Err(error) => {
                return Err(ControlError::Precondition {
                    subject: full_name,
                    problem: format!("{}; try again when its I/O has ended", chain(&error)),
                });
            }
        };
        let nguid = self.nguids().remove(name);
        Ok(Some(VolumeDevice {
            name: name.to_owned(),
            uuid: bdev.uuid(),
            nguid: nguid.unwrap_or(*bdev.uuid().as_bytes()),
            read_only: bdev.is_write_protected(),
            qos: bdev.qos(),
            device: Arc::clone(bdev.device()),
        }))
    }

    /// Undoes [`OpenPool::register`] of a device that nobody has seen.
    fn forget(&self, name: &str) {
        if let Err(error) = self.unregister(name) {
            tracing::error!(pool = self.name, name, %error, "a volume cannot be taken back");
        }
    }

    fn unregister_all(&self) -> Result<(), ControlError> {
        let names: Vec<String> = self.nguids().keys().cloned().collect();
        self.unregister_each(names).map(drop)
    }

    fn unregister_with_snapshots(&self, name: &str) -> Result<Vec<VolumeDevice>, ControlError> {
        let is_of = |other: &&String| {
            let rest = other.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
        };
        let names: Vec<String> = self.nguids().keys().filter(is_of).cloned().collect();
        self.unregister_each(names)
    }

    /// All of these, or none.
    fn unregister_each(&self, names: Vec<String>) -> Result<Vec<VolumeDevice>, ControlError> {
        let mut gone = Vec::with_capacity(names.len());
        for name in names {
            match self.unregister(&name) {
                Ok(volume) => gone.extend(volume),
                Err(error) => {
                    self.put_back(gone);
                    return Err(error);
                }
            }
        }
        Ok(gone)
    }

    fn put_back(&self, volumes: impl IntoIterator<Item = VolumeDevice>) {
        for volume in volumes {
            if let Err(error) = self.register(&volume) {
                let name = &volume.name;
                tracing::error!(pool = self.name, name, %error, "a volume cannot be put back");
            }
        }
    }

    /// Keeps other calls off these names; a volume and its snapshots go together.
    pub(super) async fn lock_names(&self, names: &[&str]) -> Vec<OwnedMutexGuard<()>> {
        let volume = |name: &&str| name.split('@').next().unwrap_or_default().to_owned();
        let shard = |name: &&str| self.hasher.hash_one(volume(name)) as usize % SHARDS;
        let mut shards: Vec<usize> = names.iter().map(shard).collect();
        // In one order for all, so that no two calls wait for each other.
        shards.sort_unstable();
        shards.dedup();
        let mut guards = Vec::with_capacity(shards.len());
        for shard in shards {
            guards.push(Arc::clone(&self.shards[shard]).lock_owned().await);
        }
        guards
    }

    /// Makes block devices of what the engine has just made, or takes it back.
    pub(super) async fn register_new(&self, names: &[String]) -> Result<(), ControlError> {
        for (index, name) in names.iter().enumerate() {
            let registered = match self.engine.device(name).await {
                Ok(Some(volume)) => self.register(&volume).map_err(|error| chain(&error)),
                Ok(None) => Err("the pool does not know it".to_owned()),
                Err(error) => Err(chain(&error)),
            };
            let Err(reason) = registered else { continue };
            for done in &names[..index] {
                self.forget(done);
            }
            for name in names {
                if let Err(error) = self.engine.delete_volume(name).await {
                    tracing::error!(pool = self.name, name, %error, "cannot go back");
                }
            }
            let what = format!("block device {:?}", self.full_name(name));
            return Err(ControlError::Refused { what, reason });
        }
        Ok(())
    }

    /// Tells the block device, and hosts that see it, of a volume's new size.
    async fn size_changed(&self, name: &str, size_bytes: u64) -> Result<(), ControlError> {
        let full_name = self.full_name(name);
        let Ok(bdev) = self.plane.registry().get(&full_name) else {
            return Ok(());
        };
        let block_count = size_bytes / u64::from(bdev.geometry().block_size);
        bdev.resize(block_count)
            .map_err(|error| ControlError::Failed {
                what: format!("resizing the block device {full_name}"),
                reason: chain(&error),
            })?;
        self.tell_hosts(&bdev).await;
        Ok(())
    }

    /// Refuses writes to a volume's block device, or allows them; hosts that see it are told.
    async fn protect(&self, name: &str, read_only: bool) {
        let Ok(bdev) = self.plane.registry().get(&self.full_name(name)) else {
            return;
        };
        if bdev.is_write_protected() != read_only {
            bdev.set_write_protected(read_only);
            self.tell_hosts(&bdev).await;
        }
    }

    fn limit(&self, bdev: &Bdev, qos: &block::QosLimits) {
        if let Err(error) = bdev.set_qos(qos, Instant::now()) {
            // The API has checked them: only another program can have set those.
            tracing::error!(bdev = bdev.name(), %error, "the limits do not hold");
        }
    }

    /// What a repair has changed: names that came and went, and volumes that take no writes any more.
    async fn after_repair(&self) -> Result<(), ControlError> {
        let devices = self.engine.devices().await?;
        let known: Vec<String> = self.nguids().keys().cloned().collect();
        for name in known {
            if !devices.iter().any(|device| device.name == name) {
                self.unregister(&name)?;
            }
        }
        for device in devices {
            if self.nguids().contains_key(&device.name) {
                self.protect(&device.name, device.read_only).await;
            } else if let Err(error) = self.register(&device) {
                let name = &device.name;
                tracing::error!(pool = self.name, name, %error, "a recovered volume cannot be served");
            }
        }
        Ok(())
    }

    /// Tells hosts that a namespace's attributes have changed.
    async fn tell_hosts(&self, bdev: &Arc<Bdev>) {
        for subsystem in self.plane.target().subsystems() {
            for namespace in subsystem.config().namespaces.values() {
                if Arc::ptr_eq(&namespace.bdev, bdev)
                    && let Ok(told) = subsystem.namespace_resized(namespace.nsid)
                {
                    told.await;
                }
            }
        }
    }
}

/// A pool as the control plane has it.
#[derive(Debug)]
pub(super) struct Handle(pub(super) Arc<OpenPool>);

impl Pool for Handle {
    fn reading(&self) -> Work<v1::Pool> {
        self.0.engine.reading()
    }

    fn grow(&self) -> Work<()> {
        self.0.engine.grow()
    }

    fn check(&self, repair: bool) -> Work<Vec<v1::Finding>> {
        let pool = Arc::clone(&self.0);
        Box::pin(async move {
            let findings = pool.engine.check(repair).await?;
            if repair {
                pool.after_repair().await?;
            }
            Ok(findings)
        })
    }

    fn begin(&self, job: Job) -> Work<u64> {
        Box::pin(Arc::clone(&self.0).begin(job))
    }

    fn volume(&self, name: &str) -> Work<Option<v1::Volume>> {
        self.0.engine.volume(name)
    }

    fn volumes(&self, query: VolumeQuery) -> Work<VolumePage> {
        self.0.engine.volumes(query)
    }

    fn create_volume(
        &self,
        name: &str,
        size_bytes: u64,
        thick: bool,
        settings: VolumeSettings,
    ) -> Work<()> {
        let (pool, name) = (Arc::clone(&self.0), name.to_owned());
        Box::pin(async move {
            let _names = pool.lock_names(&[&name]).await;
            let made = pool
                .engine
                .create_volume(&name, size_bytes, thick, settings);
            made.await?;
            pool.register_new(&[name]).await
        })
    }

    fn clone_volume(&self, snapshot: &str, name: &str, settings: VolumeSettings) -> Work<()> {
        let pool = Arc::clone(&self.0);
        let (snapshot, name) = (snapshot.to_owned(), name.to_owned());
        Box::pin(async move {
            let _names = pool.lock_names(&[&snapshot, &name]).await;
            pool.engine.clone_volume(&snapshot, &name, settings).await?;
            pool.register_new(&[name]).await
        })
    }

    fn clone_bdev(&self, bdev_name: &str, name: &str, settings: VolumeSettings) -> Work<()> {
        let pool = Arc::clone(&self.0);
        let (bdev_name, name) = (bdev_name.to_owned(), name.to_owned());
        Box::pin(async move {
            let _names = pool.lock_names(&[&name]).await;
            pool.engine.clone_bdev(&bdev_name, &name, settings).await?;
            pool.register_new(&[name]).await
        })
    }

    fn resize_volume(&self, name: &str, size_bytes: u64) -> Work<()> {
        let (pool, name) = (Arc::clone(&self.0), name.to_owned());
        Box::pin(async move {
            let _names = pool.lock_names(&[&name]).await;
            pool.engine.resize_volume(&name, size_bytes).await?;
            pool.size_changed(&name, size_bytes).await
        })
    }

    fn rename_volume(&self, name: &str, new_name: &str) -> Work<()> {
        let pool = Arc::clone(&self.0);
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        Box::pin(async move {
            let _names = pool.lock_names(&[&name, &new_name]).await;
            // Its snapshots are named after it.
            let volumes = pool.unregister_with_snapshots(&name)?;
            let renamed = pool.engine.rename_volume(&name, &new_name).await;
            let now = if renamed.is_ok() { &new_name } else { &name };
            pool.put_back(volumes.into_iter().map(|volume| VolumeDevice {
                name: format!("{now}{}", &volume.name[name.len()..]),
                ..volume
            }));
            renamed
        })
    }

    fn delete_volume(&self, name: &str) -> Work<Option<u64>> {
        let (pool, name) = (Arc::clone(&self.0), name.to_owned());
        Box::pin(async move {
            let _names = pool.lock_names(&[&name]).await;
            pool.delete_unlocked(&name).await
        })
    }

    fn change_volume(&self, name: &str, change: VolumeChange) -> Work<()> {
        let (pool, name) = (Arc::clone(&self.0), name.to_owned());
        Box::pin(async move {
            let _names = pool.lock_names(&[&name]).await;
            let (read_only, limits) = (change.read_only, change.qos);
            pool.engine.change_volume(&name, change).await?;
            if let Some(limits) = limits
                && let Ok(bdev) = pool.plane.registry().get(&pool.full_name(&name))
            {
                pool.limit(&bdev, &qos(Some(&limits)));
            }
            if let Some(read_only) = read_only {
                pool.protect(&name, read_only).await;
            }
            Ok(())
        })
    }

    fn change(&self, change: PoolChange) -> Work<()> {
        self.0.engine.change(change)
    }

    fn detach_from_parent(&self, name: &str, whole: bool) -> Work<u64> {
        self.0.engine.detach_from_parent(name, whole)
    }

    fn rollback_volume(&self, name: &str, snapshot: &str) -> Work<()> {
        let pool = Arc::clone(&self.0);
        let (name, snapshot) = (name.to_owned(), snapshot.to_owned());
        Box::pin(async move {
            let _names = pool.lock_names(&[&name, &snapshot]).await;
            pool.engine.rollback_volume(&name, &snapshot).await?;
            // It has the snapshot's size now.
            match pool.engine.volume(&name).await? {
                Some(volume) => pool.size_changed(&name, volume.size_bytes).await,
                None => Ok(()),
            }
        })
    }

    fn set_parent(&self, name: &str, snapshot: &str) -> Work<()> {
        let pool = Arc::clone(&self.0);
        let (name, snapshot) = (name.to_owned(), snapshot.to_owned());
        Box::pin(async move {
            let _names = pool.lock_names(&[&name, &snapshot]).await;
            pool.engine.set_parent(&name, &snapshot).await
        })
    }

    fn set_parent_bdev(&self, name: &str, bdev_name: &str) -> Work<()> {
        let pool = Arc::clone(&self.0);
        let (name, bdev_name) = (name.to_owned(), bdev_name.to_owned());
        Box::pin(async move {
            let _names = pool.lock_names(&[&name]).await;
            pool.engine.set_parent_bdev(&name, &bdev_name).await
        })
    }

    fn create_snapshots(&self, names: &[(String, String)], labels: Labels) -> Work<()> {
        let (pool, names) = (Arc::clone(&self.0), names.to_vec());
        Box::pin(async move {
            let full: Vec<String> = names
                .iter()
                .map(|(volume, snapshot)| format!("{volume}@{snapshot}"))
                .collect();
            let volumes = names.iter().map(|(volume, _)| volume.as_str());
            let all: Vec<&str> = volumes.chain(full.iter().map(String::as_str)).collect();
            let _names = pool.lock_names(&all).await;
            pool.engine.create_snapshots(&names, labels).await?;
            pool.register_new(&full).await
        })
    }

    fn diff(&self, from: &str, to: &str, offset: u64, limit: usize) -> Work<Vec<v1::Extent>> {
        self.0.engine.diff(from, to, offset, limit)
    }

    fn is_system(&self) -> Work<bool> {
        self.0.engine.is_system()
    }

    fn node_state(&self) -> Work<lvol::NodeState> {
        self.0.engine.node_state()
    }

    fn put_node_state(&self, change: lvol::NodeChange) -> Work<()> {
        self.0.engine.put_node_state(change)
    }

    fn replace_node_state(&self, state: lvol::NodeState) -> Work<()> {
        self.0.engine.replace_node_state(state)
    }

    fn operations(&self) -> Work<Vec<v1::Operation>> {
        self.0.engine.operations()
    }

    fn cancel(&self, id: u64) -> Work<()> {
        self.0.engine.cancel(id)
    }
}

#[cfg(test)]
mod tests;
