//! A data plane that only remembers: for tests of the control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use api::v1::{self, BdevSpec};

use crate::model::{Edit, Key};
use crate::runtime::{Facts, Prepared, Preparing, Runtime, RuntimeError, Settled, at_once};

#[derive(Debug, Default)]
pub(crate) struct FakeRuntime(Mutex<Memory>);

#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// What is in place.
    pub(crate) there: BTreeSet<Key>,
    /// Names that are pending, with the reason.
    pub(crate) pending: BTreeMap<String, String>,
    /// Names that are refused.
    pub(crate) refused: BTreeSet<String>,
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
        Box::pin(async move {
            tokio::task::yield_now().await;
            result
        })
    }

    fn apply(&self, edit: &Edit, prepared: Option<Prepared>) -> Result<Settled, RuntimeError> {
        self.check(&edit.key.name())?;
        let mut memory = self.memory();
        match (&edit.old, &edit.new) {
            (None, Some(_)) => {
                assert!(prepared.is_some() || !matches!(edit.key, Key::Bdev(_)));
                assert!(
                    memory.there.insert(edit.key.clone()),
                    "{:?} is there",
                    edit.key
                );
            }
            (Some(_), Some(_)) => assert!(memory.there.contains(&edit.key)),
            (_, None) => assert!(
                memory.there.remove(&edit.key),
                "{:?} is not there",
                edit.key
            ),
        }
        Ok(at_once())
    }

    fn set_host_deadline(&self, _: Duration) {}
    fn facts(&self) -> Facts {
        Facts::default()
    }
    fn describe_transport(&self, _: &mut v1::Transport) {}
    fn describe_bdev(&self, _: &mut v1::Bdev) {}
    fn describe_subsystem(&self, _: &mut v1::Subsystem) {}
    fn describe_namespace(&self, _: &mut v1::Namespace) {}
    fn describe_listener(&self, _: &mut v1::Listener) {}
    fn describe_host(&self, _: &mut v1::Host) {}
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
