//! What is wanted and not in place: kept with its reason, and tried again.

use std::collections::BTreeMap;
use std::time::Duration;

use api::v1::EventType;

use super::{Control, missing};
use crate::model::{Change, Edit, Key};
use crate::pool::Attach;
use crate::runtime::RuntimeError;

/// Time between two attempts at what is pending.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Why an object is not in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// What is missing.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u64,
}

impl Control {
    /// Tries what is pending, again and again. Never returns.
    pub async fn run(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
                () = self.retry.notified() => {}
            }
            if !self.lock().pending.is_empty() {
                self.attempt_pending().await;
            }
        }
    }

    /// Has [`Control::run`] try what is pending now: something of what it waits for may have come.
    pub fn try_pending(&self) {
        self.retry.notify_one();
    }

    /// What is not in place, at most `max`.
    #[must_use]
    pub fn all_pending(&self, max: usize) -> Vec<(Key, Pending)> {
        let inner = self.lock();
        inner
            .pending
            .iter()
            .take(max)
            .map(|(key, p)| (key.clone(), p.clone()))
            .collect()
    }

    /// An object that was in place is not any more: it is pending and tried again. Nothing happens
    /// when it is not wanted, or pending already.
    pub fn lost(&self, key: Key, reason: String) {
        let mut inner = self.lock();
        if inner.model.get(&key).is_none() || inner.pending.contains_key(&key) {
            return;
        }
        let revision = inner.model.revision();
        let text = format!("pending: {reason}");
        inner
            .events
            .publish(EventType::Status, revision, key.kind(), key.name(), text);
        let attempts = 0;
        inner.pending.insert(key, Pending { reason, attempts });
        self.retry.notify_one();
    }

    /// Tries everything that is pending, in the order in which things are put in place, until nothing
    /// moves any more.
    pub(super) async fn attempt_pending(&self) {
        let mut keys: Vec<Key> = self.lock().pending.keys().cloned().collect();
        loop {
            let mut later = Vec::new();
            let before = keys.len();
            for (index, key) in keys.into_iter().enumerate() {
                if !self.attempt(&key).await {
                    later.push(key);
                }
                // Thousands of objects: let calls in between.
                if index % 64 == 63 {
                    tokio::task::yield_now().await;
                }
            }
            if later.is_empty() || later.len() == before {
                return;
            }
            // Something came to be: what rests on it may follow.
            keys = later;
        }
    }

    /// One attempt. True when the object is in place, or gone.
    async fn attempt(&self, key: &Key) -> bool {
        let (object, waits) = {
            let inner = self.lock();
            if !inner.pending.contains_key(key) {
                return true;
            }
            let Some(object) = inner.model.get(key) else {
                return true;
            };
            let edit = Edit {
                key: key.clone(),
                old: None,
                new: Some(object.clone()),
            };
            (object, missing(&inner, &edit))
        };
        let preparing = match &waits {
            None => self.prepare(&object, false, &Attach::Open),
            Some(_) => None,
        };
        let prepared = match preparing {
            Some(preparing) => Some(preparing.await),
            None => None,
        };
        let mut inner = self.lock();
        // Meanwhile it may have changed or gone.
        if inner.model.get(key).as_ref() != Some(&object) {
            return false;
        }
        let Some(pending) = inner.pending.get(key).cloned() else {
            return true;
        };
        let edit = Edit {
            key: key.clone(),
            old: None,
            new: Some(object),
        };
        let is_dependent = waits.is_some();
        let result = match (waits, prepared) {
            (Some(reason), _) => Err(RuntimeError::Pending(reason)),
            (None, Some(Err(error))) => Err(error),
            (None, Some(Ok(prepared))) => self.runtime.apply(&edit, Some(prepared)),
            (None, None) => self.runtime.apply(&edit, None),
        };
        let revision = inner.model.revision();
        match result {
            // Nobody waits for it to settle.
            Ok(_) => {
                inner.pending.remove(key);
                let text = "in place".to_owned();
                inner
                    .events
                    .publish(EventType::Status, revision, key.kind(), key.name(), text);
                true
            }
            Err(RuntimeError::Pending(reason) | RuntimeError::Refused(reason)) => {
                if pending.reason != reason {
                    let (kind, name) = (key.kind(), key.name());
                    if is_dependent {
                        // What it rests on has been told of.
                        tracing::debug!(kind, name, reason, "not in place yet");
                    } else {
                        tracing::warn!(kind, name, reason, "not in place yet");
                    }
                    let text = format!("pending: {reason}");
                    inner
                        .events
                        .publish(EventType::Status, revision, kind, name, text);
                }
                let attempts = pending.attempts + 1;
                inner
                    .pending
                    .insert(key.clone(), Pending { reason, attempts });
                false
            }
        }
    }
}

/// Remembers and restores the pending entries that a change may touch.
pub(super) trait Touched {
    fn clone_touched(&self, change: &Change) -> Vec<(Key, Option<Pending>)>;
    fn put_back(&mut self, entries: Vec<(Key, Option<Pending>)>);
}

impl Touched for BTreeMap<Key, Pending> {
    fn clone_touched(&self, change: &Change) -> Vec<(Key, Option<Pending>)> {
        change
            .edits
            .iter()
            .map(|edit| (edit.key.clone(), self.get(&edit.key).cloned()))
            .collect()
    }

    fn put_back(&mut self, entries: Vec<(Key, Option<Pending>)>) {
        for (key, entry) in entries {
            match entry {
                Some(pending) => self.insert(key, pending),
                None => self.remove(&key),
            };
        }
    }
}
