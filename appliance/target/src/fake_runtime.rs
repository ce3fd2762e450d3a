//! A data plane that only remembers: for tests of the control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use api::v1::{self, BdevSpec, PoolSpec};
use tokio::sync::Notify;

use crate::error::ControlError;
use crate::fake_pool::FakePool;
use crate::model::{Edit, Key};
use crate::pool::{Attach, Pool, Work};
use crate::runtime::{
    Facts, Formatting, Prepared, Preparing, Runtime, RuntimeError, Settled, at_once,
};

#[derive(Debug, Default)]
pub(crate) struct FakeRuntime(Mutex<Memory>);

#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// What is in place.
    pub(crate) there: BTreeSet<Key>,
    /// Names that are pending, with the reason.
    pub(crate) pending: BTreeMap<String, String>,
    /// Names that are not opened until they are told.
    pub(crate) slow: BTreeMap<String, Arc<Notify>>,
    /// How often a device was opened.
    pub(crate) opened: BTreeMap<String, u32>,
    /// Names that are refused.
    pub(crate) refused: BTreeSet<String>,
    /// Pools on block devices, by the name of the device: they survive export and import.
    pub(crate) on_device: BTreeMap<String, Arc<FakePool>>,
    /// Drives that are in place, by their names.
    pub(crate) drives: BTreeMap<String, v1::NvmeDrive>,
    /// Formats that were asked for.
    pub(crate) formats: Vec<v1::FormatDriveRequest>,
    /// Pools that are in place, by their names.
    pub(crate) open: BTreeMap<String, Arc<FakePool>>,
}

impl FakeRuntime {
    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap()
    }

    fn check(&self, name: &str) -> Result<(), RuntimeError> {
        let memory = self.memory();
        if memory.refused.contains(name) {
            return Err(RuntimeError::Refused("the test says so".to_owned()));
        }
        match memory.pending.get(name) {
            Some(reason) => Err(RuntimeError::Pending(reason.clone())),
            None => Ok(()),
        }
    }
}

impl Runtime for FakeRuntime {
    fn prepare(&self, spec: &BdevSpec, _is_new: bool) -> Preparing {
        let result = self.check(&spec.name).map(|()| Box::new(()) as Prepared);
        let mut memory = self.memory();
        *memory.opened.entry(spec.name.clone()).or_default() += 1;
        let slow = memory.slow.get(&spec.name).cloned();
        Box::pin(async move {
            tokio::task::yield_now().await;
            if let Some(slow) = slow {
                slow.notified().await;
            }
            result
        })
    }

    fn apply(&self, edit: &Edit, prepared: Option<Prepared>) -> Result<Settled, RuntimeError> {
        self.check(&edit.key.name())?;
        let mut memory = self.memory();
        match (&edit.old, &edit.new) {
            (None, Some(_)) => {
                assert!(prepared.is_some() || !matches!(edit.key, Key::Bdev(_) | Key::Pool(_)));
                if let (Key::Pool(name), Some(prepared)) = (&edit.key, prepared) {
                    let pool = prepared.downcast::<Arc<FakePool>>().unwrap();
                    memory.open.insert(name.clone(), *pool);
                }
                assert!(
                    memory.there.insert(edit.key.clone()),
                    "{:?} is there",
                    edit.key
                );
            }
            (Some(_), Some(_)) => assert!(memory.there.contains(&edit.key)),
            (_, None) => {
                if let Key::Pool(name) = &edit.key {
                    memory.open.remove(name);
                }
                assert!(
                    memory.there.remove(&edit.key),
                    "{:?} is not there",
                    edit.key
                );
            }
        }
        Ok(at_once())
    }

    fn prepare_pool(&self, spec: &PoolSpec, attach: Attach) -> Preparing {
        let result = self.check(&spec.name).and_then(|()| {
            let mut memory = self.memory();
            let there = memory.on_device.get(&spec.bdev_name).cloned();
            match (attach, there) {
                (Attach::Open, Some(pool)) => {
                    pool.rename(&spec.name);
                    Ok(Box::new(pool) as Prepared)
                }
                (Attach::Open, None) => Err(RuntimeError::Pending("no pool there".to_owned())),
                (Attach::Create { force: false, .. }, Some(_)) => {
                    Err(RuntimeError::Refused("it holds a pool".to_owned()))
                }
                (
                    Attach::Create {
                        cluster_size,
                        change,
                        ..
                    },
                    _,
                ) => {
                    let pool = Arc::new(FakePool::new(&spec.name, cluster_size));
                    drop(pool.change(change));
                    let device = spec.bdev_name.clone();
                    memory.on_device.insert(device, Arc::clone(&pool));
                    Ok(Box::new(pool) as Prepared)
                }
            }
        });
        Box::pin(async move {
            tokio::task::yield_now().await;
            result
        })
    }

    fn probe_pool(&self, bdev_name: &str) -> Work<Option<String>> {
        let name = self
            .memory()
            .on_device
            .get(bdev_name)
            .map(|pool| pool.name());
        Box::pin(std::future::ready(Ok(name)))
    }

    fn close_pool(&self, name: &str, wipe: bool) -> Work<()> {
        let mut memory = self.memory();
        memory.open.remove(name);
        if memory.refused.contains("close") {
            let what = "closing the pool".to_owned();
            let reason = "the test says so".to_owned();
            return Box::pin(std::future::ready(Err(ControlError::Failed {
                what,
                reason,
            })));
        }
        if wipe {
            memory.on_device.retain(|_, pool| pool.name() != name);
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn pool(&self, name: &str) -> Option<Arc<dyn Pool>> {
        let pool = self.memory().open.get(name).cloned()?;
        Some(pool)
    }

    fn set_host_deadline(&self, _: Duration) {}
    fn facts(&self) -> Facts {
        Facts::default()
    }
    fn describe_transport(&self, _: &mut v1::Transport) {}
    fn describe_bdev(&self, bdev: &mut v1::Bdev) {
        let name = bdev.spec.as_ref().map(|spec| spec.name.clone());
        bdev.nvme = self.memory().drives.get(&name.unwrap_or_default()).cloned();
    }
    fn format_drive(&self, request: &v1::FormatDriveRequest) -> Result<Formatting, RuntimeError> {
        self.check("format")?;
        self.memory().formats.push(request.clone());
        Ok(Box::pin(std::future::ready(self.check("formatting"))))
    }
    fn describe_subsystem(&self, _: &mut v1::Subsystem) {}
    fn describe_namespace(&self, _: &mut v1::Namespace) {}
    fn describe_listener(&self, _: &mut v1::Listener) {}
    fn describe_host(&self, _: &mut v1::Host) {}
    fn bdevs(&self) -> Vec<String> {
        let memory = self.memory();
        let mut names: Vec<String> = Vec::new();
        for key in &memory.there {
            if let Key::Bdev(name) = key {
                names.push(name.clone());
            }
        }
        for (pool, open) in &memory.open {
            let inner = open.inner();
            names.extend(inner.volumes.keys().map(|name| format!("{pool}/{name}")));
        }
        names
    }
    fn bdev_stats(&self, name: &str, _: bool, _: bool) -> Option<v1::BdevStats> {
        Some(v1::BdevStats {
            name: name.to_owned(),
            ..v1::BdevStats::default()
        })
    }
    fn reactors(&self) -> Vec<v1::Reactor> {
        Vec::new()
    }
    fn threads(&self) -> Vec<v1::Thread> {
        Vec::new()
    }
    fn pollers(&self) -> Vec<v1::ThreadPollers> {
        Vec::new()
    }
    fn channels(&self) -> Vec<v1::ThreadChannels> {
        Vec::new()
    }
    fn iobuf(&self) -> v1::Iobuf {
        v1::Iobuf::default()
    }
    fn controllers(&self) -> Vec<v1::Controller> {
        Vec::new()
    }
    fn qpairs(&self) -> Vec<v1::Qpair> {
        Vec::new()
    }
    fn poll_groups(&self) -> Vec<v1::PollGroup> {
        Vec::new()
    }
    fn disconnect(&self, _: &str, _: u32) -> bool {
        false
    }
    fn drain(&self, _: Duration) -> Settled {
        at_once()
    }
}
