//! The control plane: it takes calls, changes the model, tells the data plane and the store.
//!
//! A change goes this way, the first three steps without a pause in between, so that the model, the
//! data plane and the store see changes in one order:
//!
//! 1. the model is changed; a call that breaks a rule ends here;
//! 2. the data plane makes it so; what it refuses is taken back, what is not there yet is *pending*;
//! 3. the batch is queued for the store;
//! 4. the call waits until the batch is durable and the data plane has settled; then it is answered.
//!
//! A batch that cannot be stored takes its change back, with all later ones: they may rest on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::v1::{EventType, NodeState};
use metastore::{CommitError, Contents, StateStore};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::error::ControlError;
use crate::events::Events;
use crate::model::{self, AgentState, Change, Edit, Key, Model, Object, Transaction, batch};
use crate::pool::Attach;
use crate::runtime::{Prepared, Preparing, Runtime, RuntimeError, Settled};
use crate::system_pool::{Commit, Keeper, KeeperTask};

mod pending;

pub use pending::Pending;
use pending::Touched as _;

/// How long a call waits for the data plane to settle. The change is durable by then; a peer that
/// does not let go must not hold the caller.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// How long a start waits for devices to open, and its listeners for the namespaces of their subsystem: a
/// drive that does not come up must not keep the others from being served.
const START_MAX: Duration = Duration::from_secs(20);

/// A change that takes longer to store is logged: callers wait for the state directory's disk.
const STORE_SLOW: Duration = Duration::from_secs(2);

/// The desired state and what of it is not in place, at one moment.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What shall be.
    pub model: &'a Model,
    /// What is not yet.
    pub pending: &'a BTreeMap<Key, Pending>,
}

#[derive(Debug)]
struct Inner {
    model: Model,
    /// Objects of the model that the data plane does not have.
    pending: BTreeMap<Key, Pending>,
    /// Those of them that are being opened.
    opening: BTreeSet<Key>,
    /// Changes on their way to the store, oldest first.
    uncommitted: VecDeque<Change>,
    events: Events,
    state: NodeState,
    /// Until then restored listeners wait for what hosts look for behind them.
    listeners_wait_until: Option<Instant>,
}

/// The control plane. Clones share it.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Mutex<Inner>>,
    runtime: Arc<dyn Runtime>,
    store: Arc<StateStore>,
    /// The way to the store by the system pool, on a node that has one or may have one.
    keeper: Option<Arc<Keeper>>,
    /// What the agent has kept; only where there is a keeper.
    agent_state: Arc<Mutex<AgentState>>,
    /// Revision up to which everything is durable.
    durable: Arc<watch::Sender<u64>>,
    retry: Arc<Notify>,
    /// Fixed facts for `GetNode`.
    pub(crate) about: Arc<About>,
}

/// Fixed facts about the process.
#[derive(Debug, Clone)]
pub struct About {
    /// Identity of the node.
    pub node_id: String,
    /// Where the state is.
    pub state_dir: PathBuf,
    /// When the process started.
    pub start_time_unix_ms: u64,
    /// The same, on the clock that never jumps.
    pub started: std::time::Instant,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

/// What was opened before its edit is made, by the key of its object.
type Ahead = BTreeMap<Key, Result<Prepared, RuntimeError>>;

/// A change that has been made and is being stored.
struct Flight {
    revision: u64,
    stored: oneshot::Receiver<Result<(), CommitError>>,
    settled: Vec<Settled>,
}

impl Control {
    /// A control plane over a model that was restored from `store`.
    #[must_use]
    pub fn new(
        model: Model,
        store: StateStore,
        runtime: Arc<dyn Runtime>,
        about: About,
    ) -> Control {
        let revision = model.revision();
        let pending = model
            .keys()
            .into_iter()
            .map(|key| {
                (
                    key,
                    Pending {
                        reason: "not tried yet".to_owned(),
                        attempts: 0,
                    },
                )
            })
            .collect();
        let inner = Inner {
            model,
            pending,
            opening: BTreeSet::new(),
            uncommitted: VecDeque::new(),
            events: Events::new(revision),
            state: NodeState::Starting,
            listeners_wait_until: None,
        };
        Control {
            inner: Arc::new(Mutex::new(inner)),
            runtime,
            store: Arc::new(store),
            keeper: None,
            agent_state: Arc::default(),
            durable: Arc::new(watch::Sender::new(revision)),
            retry: Arc::new(Notify::new()),
            about: Arc::new(about),
        }
    }

    /// Keeps the state in the system pool too. `contents` is what the store holds, `problem` what went wrong when
    /// the state was looked for on the drives. The task does the work.
    #[must_use]
    pub(crate) fn with_system_pool(
        mut self,
        contents: &Contents,
        problem: Option<String>,
    ) -> (Control, KeeperTask) {
        let (keeper, task) = Keeper::new(Arc::clone(&self.store), contents, problem);
        self.keeper = Some(keeper);
        self.agent_state = Arc::new(Mutex::new(model::agent_state(contents)));
        (self, task)
    }

    /// The way of the state to the system pool; `None` where the state directory is all there is.
    pub(crate) fn keeper(&self) -> Option<&Arc<Keeper>> {
        self.keeper.as_ref()
    }

    /// What the agent has kept.
    pub(crate) fn agent_state(&self) -> AgentState {
        self.lock_agent_state().clone()
    }

    /// Keeps what the agent gives, in place of what it gave before.
    ///
    /// # Errors
    /// As [`Control::change`]; what was kept before is kept still.
    pub(crate) async fn keep_agent_state(&self, state: AgentState) -> Result<(), ControlError> {
        let mut before = None;
        let result = self
            .change(|edit| {
                let mut kept = self.lock_agent_state();
                if *kept != state {
                    edit.put_agent_state(state.clone());
                    before = Some(std::mem::replace(&mut *kept, state));
                }
                Ok(())
            })
            .await;
        if let (Err(_), Some(before)) = (&result, before) {
            *self.lock_agent_state() = before;
        }
        result
    }

    fn lock_agent_state(&self) -> MutexGuard<'_, AgentState> {
        // A panic while it was held left plain data behind.
        let state = self.agent_state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// The data plane.
    #[must_use]
    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    /// Puts restored objects in place, then serves. What cannot be put in place is pending, and what
    /// takes longer than [`START_MAX`] comes later.
    pub async fn start(&self) {
        self.start_within(START_MAX).await;
    }

    async fn start_within(&self, wait: Duration) {
        self.lock().listeners_wait_until = Some(Instant::now() + wait);
        self.attempt_pending(wait).await;
        self.lock().state = NodeState::Serving;
    }

    /// Reads the state. Short: changes wait meanwhile.
    pub fn read<T>(&self, read: impl FnOnce(View<'_>) -> T) -> T {
        let inner = self.lock();
        read(View {
            model: &inner.model,
            pending: &inner.pending,
        })
    }

    /// What the node does.
    #[must_use]
    pub fn state(&self) -> NodeState {
        let is_kept = !self
            .keeper
            .as_ref()
            .is_some_and(|keeper| keeper.is_degraded());
        let inner = self.lock();
        match inner.state {
            NodeState::Serving if !inner.pending.is_empty() || !is_kept => NodeState::Degraded,
            state => state,
        }
    }

    /// Refuses changes from now on and finishes what runs.
    pub async fn drain(&self, deadline: Duration) {
        {
            let mut inner = self.lock();
            if inner.state == NodeState::Drained {
                return;
            }
            inner.state = NodeState::Draining;
        }
        self.runtime.drain(deadline).await;
        self.lock().state = NodeState::Drained;
    }

    /// Refuses while the node drains; for changes of what is not in the model.
    ///
    /// # Errors
    /// [`ControlError::Draining`].
    pub fn check_serving(&self) -> Result<(), ControlError> {
        refuse_unless_serving(&self.lock())
    }

    /// Reads the model together with the event stream, so that nothing falls between.
    pub(crate) fn events<T>(&self, read: impl FnOnce(&Events, &Model) -> T) -> T {
        let inner = self.lock();
        read(&inner.events, &inner.model)
    }

    /// Tells watchers of something that is no change of the desired state.
    pub fn tell(&self, event_type: EventType, kind: &str, name: String, text: String) {
        let mut inner = self.lock();
        let revision = inner.model.revision();
        inner.events.publish(event_type, revision, kind, name, text);
    }

    /// Makes a change and returns when it is durable and in force. `edit` gives the object to answer
    /// with; an edit that changes nothing is answered when what it found is durable.
    ///
    /// # Errors
    /// A broken rule, a refusal of the data plane, a store that fails; nothing has changed then.
    pub async fn change<T: Send>(
        &self,
        edit: impl FnOnce(&mut Transaction<'_>) -> Result<T, ControlError> + Send,
    ) -> Result<T, ControlError> {
        self.change_prepared(Ahead::new(), edit).await
    }

    /// Runs an edit and takes it back: says what it would do.
    ///
    /// # Errors
    /// A broken rule.
    pub fn trial<T>(
        &self,
        edit: impl FnOnce(&mut Transaction<'_>) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let mut inner = self.lock();
        let mut transaction = inner.model.begin();
        edit(&mut transaction)
    }

    /// As [`Control::change`], for edits that make block devices or attach pools: those are opened
    /// first, without holding anything up. `edit` runs twice, the first time on trial.
    ///
    /// # Errors
    /// As [`Control::change`].
    pub async fn change_with_bdevs<T: Send>(
        &self,
        edit: impl Fn(&mut Transaction<'_>) -> Result<T, ControlError> + Send,
    ) -> Result<T, ControlError> {
        self.change_with(Attach::Open, edit).await
    }

    /// As [`Control::change_with_bdevs`], and says how a pool comes to be open. One that is to be made
    /// must be made now: it cannot be pending.
    ///
    /// # Errors
    /// As [`Control::change`].
    pub async fn change_with<T: Send>(
        &self,
        attach: Attach,
        edit: impl Fn(&mut Transaction<'_>) -> Result<T, ControlError> + Send,
    ) -> Result<T, ControlError> {
        let new: Vec<Edit> = {
            let mut inner = self.lock();
            refuse_unless_serving(&inner)?;
            let mut trial = inner.model.begin();
            edit(&mut trial)?;
            let is_new = |edit: &&Edit| edit.old.is_none() && edit.new.is_some();
            trial.edits().iter().filter(is_new).cloned().collect()
        };
        let mut prepared = Ahead::new();
        for Edit { key, new, .. } in new {
            let Some(preparing) = new.and_then(|new| self.prepare(&new, true, &attach)) else {
                continue;
            };
            let result = preparing.await;
            let is_made = matches!((&key, &attach), (Key::Pool(_), Attach::Create { .. }));
            match result {
                Err(RuntimeError::Pending(reason)) if is_made => return Err(refused(&key, reason)),
                Err(RuntimeError::Refused(reason)) => return Err(refused(&key, reason)),
                result => prepared.insert(key, result),
            };
        }
        self.change_prepared(prepared, edit).await
    }

    /// Opens what an object needs; `None` when it needs nothing.
    fn prepare(&self, object: &Object, is_new: bool, attach: &Attach) -> Option<Preparing> {
        match object {
            Object::Bdev(bdev) => Some(self.runtime.prepare(&bdev.spec, is_new)),
            Object::Pool(pool) => Some(self.runtime.prepare_pool(&pool.spec, attach.clone())),
            _ => None,
        }
    }

    async fn change_prepared<T: Send>(
        &self,
        prepared: Ahead,
        edit: impl FnOnce(&mut Transaction<'_>) -> Result<T, ControlError> + Send,
    ) -> Result<T, ControlError> {
        let (answer, flight) = self.launch(prepared, edit)?;
        match flight {
            Ok(flight) => self.land(flight).await?,
            // The state was so already; but is what was found durable yet?
            Err(revision) => self.wait_durable(revision).await?,
        }
        Ok(answer)
    }

    /// Steps 1 to 3, without a pause.
    fn launch<T>(
        &self,
        mut prepared: Ahead,
        edit: impl FnOnce(&mut Transaction<'_>) -> Result<T, ControlError>,
    ) -> Result<(T, Result<Flight, u64>), ControlError> {
        let mut inner = self.lock();
        refuse_unless_serving(&inner)?;
        let mut transaction = inner.model.begin();
        let answer = edit(&mut transaction)?;
        let Some(change) = transaction.finish() else {
            let revision = inner.model.revision();
            return Ok((answer, Err(revision)));
        };
        let settled = match self.realise(&mut inner, &change, &mut prepared) {
            Ok(settled) => settled,
            Err(error) => {
                inner.model.revert(&change);
                return Err(error);
            }
        };
        let (done, stored) = oneshot::channel();
        let done = move |result| {
            // The caller may have gone; the change stands all the same.
            let _ = done.send(result);
        };
        let queued = match &self.keeper {
            None => self.store.commit(batch(&change), done),
            Some(keeper) => keeper.commit(Commit {
                batch: batch(&change),
                must_outlive_power: !change.reservations.is_empty(),
                system_pool: inner.model.system_pool(),
                done: Box::new(done),
            }),
        };
        if let Err(error) = queued {
            self.undo(&mut inner, &change);
            return Err(error.into());
        }
        let revision = change.revision;
        inner.uncommitted.push_back(change);
        Ok((
            answer,
            Ok(Flight {
                revision,
                stored,
                settled,
            }),
        ))
    }

    /// Step 4. The wait for the store goes on by itself when the caller gives up.
    async fn land(&self, flight: Flight) -> Result<(), ControlError> {
        let control = self.clone();
        let Flight {
            revision,
            stored,
            settled,
        } = flight;
        let landing = tokio::spawn(async move {
            let queued = std::time::Instant::now();
            let result = stored.await.unwrap_or(Err(CommitError::Closed));
            if queued.elapsed() >= STORE_SLOW {
                let took_ms = queued.elapsed().as_millis() as u64;
                tracing::warn!(
                    revision,
                    took_ms,
                    "storing a change was slow: look at the disk"
                );
            }
            control.committed(revision, &result);
            result
        });
        landing.await.unwrap_or(Err(CommitError::Closed))?;
        let all = async {
            for settled in settled {
                settled.await;
            }
        };
        if tokio::time::timeout(SETTLE_MAX, all).await.is_err() {
            tracing::warn!(
                revision,
                "a change is not in force everywhere yet: a thread is busy"
            );
        }
        Ok(())
    }

    /// The store has answered for a revision.
    fn committed(&self, revision: u64, result: &Result<(), CommitError>) {
        let mut inner = self.lock();
        match result {
            Ok(()) => {
                while inner
                    .uncommitted
                    .front()
                    .is_some_and(|c| c.revision <= revision)
                {
                    let Some(change) = inner.uncommitted.pop_front() else {
                        break;
                    };
                    announce(&mut inner.events, &change);
                }
                self.durable.send_if_modified(|durable| {
                    let is_newer = revision > *durable;
                    *durable = revision.max(*durable);
                    is_newer
                });
            }
            Err(error) => {
                // Later changes rest on this one, and the store refuses them: newest first.
                while inner
                    .uncommitted
                    .back()
                    .is_some_and(|c| c.revision >= revision)
                {
                    let Some(change) = inner.uncommitted.pop_back() else {
                        break;
                    };
                    tracing::error!(revision = change.revision, %error, "a change was taken back");
                    self.undo(&mut inner, &change);
                }
                // Whoever waits for the revision looks again.
                self.durable.send_modify(|_| {});
            }
        }
    }

    async fn wait_durable(&self, revision: u64) -> Result<(), ControlError> {
        let mut durable = self.durable.subscribe();
        loop {
            if *durable.borrow_and_update() >= revision {
                return Ok(());
            }
            if self.lock().model.revision() < revision {
                // What it found was taken back.
                return Err(ControlError::Store(CommitError::OutOfOrder {
                    given: revision,
                    stored: *durable.borrow(),
                }));
            }
            if durable.changed().await.is_err() {
                return Err(ControlError::Store(CommitError::Closed));
            }
        }
    }

    /// Step 2: tells the data plane of every edit. On a refusal it takes back what it did.
    fn realise(
        &self,
        inner: &mut Inner,
        change: &Change,
        prepared: &mut Ahead,
    ) -> Result<Vec<Settled>, ControlError> {
        let mut settled = Vec::with_capacity(change.edits.len());
        let pending_before = inner.pending.clone_touched(change);
        for (index, edit) in change.edits.iter().enumerate() {
            let mine = prepared.remove(&edit.key);
            match self.realise_one(inner, edit, mine) {
                Ok(Some(done)) => settled.push(done),
                Ok(None) => {}
                Err(reason) => {
                    for done in change.edits[..index].iter().rev() {
                        self.unrealise(inner, done);
                    }
                    inner.pending.put_back(pending_before);
                    return Err(refused(&edit.key, reason));
                }
            }
        }
        Ok(settled)
    }

    /// One edit. `Ok(None)` when it is pending, or was and is gone.
    fn realise_one(
        &self,
        inner: &mut Inner,
        edit: &Edit,
        prepared: Option<Result<Prepared, RuntimeError>>,
    ) -> Result<Option<Settled>, String> {
        let was_pending = inner.pending.remove(&edit.key);
        let Some(new) = &edit.new else {
            if was_pending.is_some() {
                if let Key::Bdev(name) = &edit.key {
                    self.runtime.forget_bdev(name);
                }
                return Ok(None);
            }
            let applied = self.runtime.apply(edit, None);
            return applied.map(Some).map_err(|error| error.to_string());
        };
        // What is not there yet has no old form in the data plane.
        let edit = match &was_pending {
            Some(_) => &Edit {
                key: edit.key.clone(),
                old: None,
                new: Some(new.clone()),
            },
            None => edit,
        };
        let waits_for = missing(inner, edit);
        let result = match (waits_for, prepared) {
            (Some(reason), _) => Err(RuntimeError::Pending(reason)),
            (None, Some(Err(error))) => Err(error),
            (None, Some(Ok(prepared))) => self.runtime.apply(edit, Some(prepared)),
            // What was not opened ahead is opened by the next attempt.
            (None, None)
                if edit.old.is_none() && matches!(edit.key, Key::Bdev(_) | Key::Pool(_)) =>
            {
                self.retry.notify_one();
                Err(RuntimeError::Pending("it is being opened".to_owned()))
            }
            (None, None) => self.runtime.apply(edit, None),
        };
        match result {
            Ok(settled) => {
                if was_pending.is_some() {
                    // What rests on it may follow.
                    self.retry.notify_one();
                }
                Ok(Some(settled))
            }
            Err(RuntimeError::Pending(reason)) => {
                let attempts = was_pending.map_or(1, |pending| pending.attempts + 1);
                inner
                    .pending
                    .insert(edit.key.clone(), Pending { reason, attempts });
                Ok(None)
            }
            Err(RuntimeError::Refused(reason)) => Err(reason),
        }
    }

    /// Takes one edit back in the data plane. What cannot be put back is pending.
    fn unrealise(&self, inner: &mut Inner, edit: &Edit) {
        let inverse = edit.inverse();
        if let Err(reason) = self.realise_one(inner, &inverse, None) {
            tracing::error!(
                kind = edit.key.kind(),
                name = edit.key.name(),
                reason,
                "cannot go back"
            );
            if inverse.new.is_some() {
                inner.pending.insert(
                    inverse.key,
                    Pending {
                        reason,
                        attempts: 1,
                    },
                );
            }
        }
    }

    /// Takes a whole change back, in the data plane and in the model.
    fn undo(&self, inner: &mut Inner, change: &Change) {
        for edit in change.edits.iter().rev() {
            self.unrealise(inner, edit);
        }
        inner.model.revert(change);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while it was held left plain data behind: better to serve on.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse_unless_serving(inner: &Inner) -> Result<(), ControlError> {
    match inner.state {
        NodeState::Draining | NodeState::Drained => Err(ControlError::Draining),
        _ => Ok(()),
    }
}

fn refused(key: &Key, reason: String) -> ControlError {
    let what = format!("{} {:?}", key.kind(), key.name());
    ControlError::Refused { what, reason }
}

/// What an edit needs and is itself pending.
fn missing(inner: &Inner, edit: &Edit) -> Option<String> {
    let is_pending = |key: &Key| {
        inner.pending.get(key).map(|pending| {
            format!(
                "{} {} is pending: {}",
                key.kind(),
                key.name(),
                pending.reason
            )
        })
    };
    let bdev_is_pending = |name: &str| is_pending(&inner.model.key_of_bdev(name)?);
    match (&edit.key, edit.new.as_ref()?) {
        (_, Object::Bdev(bdev)) => bdev_is_pending(crate::model::base_of(&bdev.spec)?),
        (_, Object::Pool(pool)) => bdev_is_pending(&pool.spec.bdev_name),
        (Key::Namespace(nqn, _), Object::Namespace(namespace)) => {
            is_pending(&Key::Subsystem(nqn.clone()))
                .or_else(|| bdev_is_pending(&namespace.spec.bdev_name))
        }
        (Key::Listener(nqn, _), Object::Listener(listener)) => {
            let trtype = listener
                .spec
                .address
                .as_ref()
                .map(|address| address.trtype.clone());
            is_pending(&Key::Subsystem(nqn.clone()))
                .or_else(|| is_pending(&Key::Transport(trtype.unwrap_or_default())))
        }
        (Key::Host(nqn, _), _) => is_pending(&Key::Subsystem(nqn.clone())),
        _ => None,
    }
}

fn announce(events: &mut Events, change: &Change) {
    for edit in &change.edits {
        let event_type = match (&edit.old, &edit.new) {
            (None, _) => EventType::Created,
            (Some(_), Some(_)) => EventType::Updated,
            (Some(_), None) => EventType::Deleted,
        };
        events.publish(
            event_type,
            change.revision,
            edit.key.kind(),
            edit.key.name(),
            String::new(),
        );
    }
}

#[cfg(test)]
mod tests;
