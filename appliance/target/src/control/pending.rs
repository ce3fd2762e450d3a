//! What is wanted and not in place: kept with its reason, and tried again.

use std::collections::BTreeMap;
use std::time::Duration;

use api::v1::EventType;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::{Control, Inner, missing};
use crate::model::{Change, Edit, Key, Object};
use crate::pool::Attach;
use crate::runtime::{Prepared, RuntimeError};

/// Time between two attempts at what is pending.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Objects that are opened at a time. A drive that does not come up takes minutes to say so, and a
/// thread meanwhile. More of them wait for a turn, and are told as before.
const OPENING_MAX: usize = 64;

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
                self.attempt_pending(Duration::ZERO).await;
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

    /// Tries everything that is pending, until nothing moves any more. Each device and pool is opened
    /// in a task of its own; those that have not ended after `wait` go on by themselves, and what
    /// rests on them follows when they are there.
    pub(super) async fn attempt_pending(&self, wait: Duration) {
        let deadline = Instant::now() + wait;
        loop {
            while self.open_pending(deadline).await {}
            if !self.put_pending().await {
                return;
            }
        }
    }

    /// Opens what nothing is missing for. True when something has come into place.
    async fn open_pending(&self, deadline: Instant) -> bool {
        let mut keys: Vec<(u64, Key)> = {
            let inner = self.lock();
            let pending = inner.pending.iter();
            pending.map(|(key, p)| (p.attempts, key.clone())).collect()
        };
        // Those that were tried less come first: many bad drives do not take every turn.
        keys.sort_by_key(|(attempts, _)| *attempts);
        let opening: Vec<_> = keys.iter().filter_map(|(_, key)| self.open(key)).collect();
        let mut moved = false;
        for task in opening {
            // One that is not waited for any more goes on.
            moved |= matches!(timeout_at(deadline, task).await, Ok(Ok(true)));
        }
        moved
    }

    /// Begins to open a device or a pool. `None` when that is not its turn.
    fn open(&self, key: &Key) -> Option<JoinHandle<bool>> {
        let object = {
            let mut inner = self.lock();
            let object = inner.pending.get(key).and_then(|_| inner.model.get(key))?;
            let is_free = inner.opening.len() < OPENING_MAX && !inner.opening.contains(key);
            if !is_opened(&object) || !is_free || missing(&inner, &new(key, &object)).is_some() {
                return None;
            }
            inner.opening.insert(key.clone());
            object
        };
        let opening = Opening {
            control: self.clone(),
            key: key.clone(),
        };
        let preparing = self.prepare(&object, false, &Attach::Open)?;
        Some(tokio::spawn(async move {
            let prepared = preparing.await;
            let Opening { control, key } = &opening;
            let is_there = control.conclude(key, &object, None, Some(prepared));
            if is_there {
                // What rests on it may follow.
                control.retry.notify_one();
            }
            is_there
        }))
    }

    /// Puts in place what needs no opening, in the order in which things are put in place, and finds
    /// out what the rest waits for. True when something has come into place.
    async fn put_pending(&self) -> bool {
        let keys: Vec<Key> = self.lock().pending.keys().cloned().collect();
        let mut moved = false;
        for (index, key) in keys.iter().enumerate() {
            let (object, waits) = {
                let inner = self.lock();
                let object = inner.pending.get(key).and_then(|_| inner.model.get(key));
                let Some(object) = object else { continue };
                let waits = missing(&inner, &new(key, &object));
                (object, waits.or_else(|| comes_first(&inner, key)))
            };
            if waits.is_some() || !is_opened(&object) {
                moved |= self.conclude(key, &object, waits, None);
            }
            // Thousands of objects: let calls in between.
            if index % 64 == 63 {
                tokio::task::yield_now().await;
            }
        }
        moved
    }

    /// Puts an object in place that waits for nothing and, if it is one that is opened, is open. True
    /// when it is there now.
    fn conclude(
        &self,
        key: &Key,
        object: &Object,
        waits: Option<String>,
        prepared: Option<Result<Prepared, RuntimeError>>,
    ) -> bool {
        let mut inner = self.lock();
        // Meanwhile it may have changed or gone.
        if inner.model.get(key).as_ref() != Some(object) {
            return false;
        }
        let Some(pending) = inner.pending.get(key).cloned() else {
            return false;
        };
        let edit = new(key, object);
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
                if let (Key::Pool(_), Some(keeper)) = (key, &self.keeper) {
                    keeper.look();
                }
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

/// An object is being opened; dropped, it may be opened again.
struct Opening {
    control: Control,
    key: Key,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.control.lock().opening.remove(&self.key);
    }
}

/// The edit that puts an object in place.
fn new(key: &Key, object: &Object) -> Edit {
    Edit {
        key: key.clone(),
        old: None,
        new: Some(object.clone()),
    }
}

/// What a restored listener waits for, for a while after a start. A host comes back as soon as there is a
/// listener: of a namespace that it does not find then it fails all I/O and forgets it, and where it is not let
/// in yet it gives up.
fn comes_first(inner: &Inner, key: &Key) -> Option<String> {
    let Key::Listener(nqn, _) = key else {
        return None;
    };
    if inner
        .listeners_wait_until
        .is_none_or(|until| Instant::now() >= until)
    {
        return None;
    }
    let from = [
        Key::Namespace(nqn.clone(), 0),
        Key::Host(nqn.clone(), String::new()),
    ];
    let mut firsts = from
        .into_iter()
        .filter_map(|from| inner.pending.range(from..).next());
    let (key, pending) = firsts
        .find(|(key, _)| matches!(key, Key::Namespace(of, _) | Key::Host(of, _) if of == nqn))?;
    let (kind, name) = (key.kind(), key.name());
    Some(format!("{kind} {name} comes first: {}", pending.reason))
}

/// Whether it is opened before it is put in place.
fn is_opened(object: &Object) -> bool {
    matches!(object, Object::Bdev(_) | Object::Pool(_))
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
