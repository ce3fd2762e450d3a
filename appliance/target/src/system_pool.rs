//! The node's own state in its system pool, where there is no disk for a state directory.
//!
//! With `--system-pool` every batch of the control plane goes into the system pool first, then into the
//! file of the state directory, which is in memory on an appliance; then it is answered. At the first start
//! since the power came the state is looked for on the drives ([`boot`]); at every later one the file has it.
//!
//! A node must be repairable: while the pool is not there, changes are taken and the node says that it
//! keeps them in memory only. When the pool is there (again) what the file has replaces what the pool has.
//! There is one exception: what *another* node has kept is replaced only when somebody says so, since a node that
//! came up without its drives has nothing and would write that over everything.
//!
//! Threading: one task of the control thread; the pool and the file have threads of their own.

pub(crate) mod boot;
mod records;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::v1::EventType;
use lvol::{NodeChange, NodeState};
use metastore::{Batch, CommitError, Contents, QUEUE_MAX, StateStore};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, timeout};

use self::records::{Mirror, change_of, node_id_of};
use crate::control::Control;
use crate::error::{ControlError, chain};
use crate::model::Key;
use crate::pool::{Pool, PoolChange, Work};

/// How often the pool is looked at: one that is lost is told of, one that has come back is used.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long the pool may take for one call. A drive that hangs must not hold up who repairs the node.
const CALL_MAX: Duration = Duration::from_secs(15);
/// How long one that hung is left alone: changes wait for each try.
const CALL_PAUSE: Duration = Duration::from_secs(60);
/// Batches in one transaction.
const GROUP_MAX: usize = 256;

/// What is missing, and what to do.
const NO_POOL: &str = "no pool is the system pool; make one with pool create NAME BDEV --system, or \
     pool set NAME --system";

type Done = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

/// A batch on its way.
pub(crate) struct Commit {
    pub(crate) batch: Batch,
    /// Whoever waits for it counts on it after a power cut: refused where that cannot be.
    pub(crate) must_outlive_power: bool,
    /// The system pool when the batch is in force.
    pub(crate) system_pool: Option<String>,
    pub(crate) done: Done,
}

enum Job {
    Commit(Commit),
    /// What the pool holds goes, whoever kept it.
    Adopt(oneshot::Sender<Result<(), String>>),
}

/// Where the state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Status {
    /// No pool is the system pool.
    Nowhere,
    /// In this pool.
    Kept(String),
    /// Not in this pool, though it is the system pool.
    Lost { pool: String, why: String },
}

/// The way of batches to the system pool and the file.
pub(crate) struct Keeper {
    jobs: mpsc::Sender<Job>,
    status: Mutex<Status>,
    /// What went wrong when the state was looked for; until a pool keeps it.
    problem: Mutex<Option<String>>,
    look: Notify,
}

impl Keeper {
    /// A keeper of what the file has, and the task that does its work.
    pub(crate) fn new(
        store: Arc<StateStore>,
        contents: &Contents,
        problem: Option<String>,
    ) -> (Arc<Keeper>, KeeperTask) {
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let keeper = Arc::new(Keeper {
            jobs,
            status: Mutex::new(Status::Nowhere),
            problem: Mutex::new(problem),
            look: Notify::new(),
        });
        let task = KeeperTask {
            keeper: Arc::clone(&keeper),
            store,
            queue,
            mirror: Mirror::of(contents),
            bound: None,
            left: None,
            not_before: None,
            unmarked: BTreeSet::new(),
            unmark_not_before: None,
        };
        (keeper, task)
    }

    /// Queues a batch; its callback is called when it is in the file, and in the pool if there is one.
    pub(crate) fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        let queued = self.jobs.try_send(Job::Commit(commit));
        queued.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CommitError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => CommitError::Closed,
        })
    }

    /// Has the system pool hold this node's state, whatever it holds now.
    pub(crate) async fn adopt(&self) -> Result<(), String> {
        let (tell, told) = oneshot::channel();
        let closed = || "the node is being shut down".to_owned();
        let sent = self.jobs.send(Job::Adopt(tell)).await;
        sent.map_err(|_| closed())?;
        told.await.map_err(|_| closed())?
    }

    /// A pool has come into place.
    pub(crate) fn look(&self) {
        self.look.notify_one();
    }

    fn status(&self) -> Status {
        // A panic while it was held left plain data behind.
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.clone()
    }

    fn problem(&self) -> Option<String> {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        problem.clone()
    }

    /// The pool that keeps the state.
    pub(crate) fn pool(&self) -> Option<String> {
        match self.status() {
            Status::Kept(pool) => Some(pool),
            _ => None,
        }
    }

    /// Whether the state is not where it should be.
    pub(crate) fn is_degraded(&self) -> bool {
        match self.status() {
            Status::Nowhere => self.problem().is_some(),
            Status::Kept(_) => false,
            Status::Lost { .. } => true,
        }
    }

    /// What an operator should read.
    pub(crate) fn notice(&self) -> Option<String> {
        match (self.status(), self.problem()) {
            (Status::Kept(_), _) => None,
            (Status::Lost { pool, why }, _) => Some(lost_text(&pool, &why)),
            (Status::Nowhere, Some(problem)) => {
                Some(format!("degraded: state is kept in memory only: {problem}"))
            }
            (Status::Nowhere, None) => Some(format!("state is kept in memory only: {NO_POOL}")),
        }
    }

    /// Refuses what must outlive a power cut while there is no system pool, or it is not there.
    pub(crate) fn check_kept(&self) -> Result<(), ControlError> {
        let reason = match self.status() {
            Status::Kept(_) => return Ok(()),
            Status::Lost { pool, why } => format!("system pool {pool:?}: {why}"),
            Status::Nowhere => NO_POOL.to_owned(),
        };
        Err(ControlError::Store(CommitError::NotKept { reason }))
    }
}

fn lost_text(pool: &str, why: &str) -> String {
    format!("degraded: state is kept in memory only: system pool {pool:?}: {why}")
}

/// A pool that holds what the file has.
struct Bound {
    name: String,
    pool: Arc<dyn Pool>,
}

/// The work of a [`Keeper`].
pub(crate) struct KeeperTask {
    keeper: Arc<Keeper>,
    store: Arc<StateStore>,
    queue: mpsc::Receiver<Job>,
    /// What is in the file.
    mirror: Mirror,
    bound: Option<Bound>,
    /// It was the system pool, and is so no more when the batch is stored that says so.
    left: Option<Arc<dyn Pool>>,
    /// A pool that hung is not asked again before.
    not_before: Option<Instant>,
    /// Pools that were given up and have no mark any more.
    unmarked: BTreeSet<String>,
    /// The others are not looked at again before.
    unmark_not_before: Option<Instant>,
}

impl KeeperTask {
    /// Does it. Never returns while the control plane lives.
    pub(crate) async fn run(mut self, control: Control) {
        let mut timer = tokio::time::interval(LOOK_INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let keeper = Arc::clone(&self.keeper);
            tokio::select! {
                job = self.queue.recv() => match job {
                    Some(job) => self.work(&control, job).await,
                    None => return,
                },
                () = keeper.look.notified() => self.look(&control).await,
                _ = timer.tick() => self.look(&control).await,
            }
        }
    }

    /// One job, and the batches that wait behind it.
    async fn work(&mut self, control: &Control, first: Job) {
        let mut next = Some(first);
        let mut group: Vec<Commit> = Vec::new();
        while let Some(job) = next.take() {
            match job {
                Job::Commit(commit) => {
                    let first = group.first();
                    let is_other =
                        first.is_some_and(|other| other.system_pool != commit.system_pool);
                    if is_other {
                        let group = std::mem::take(&mut group);
                        self.commit(control, group).await;
                    }
                    group.push(commit);
                }
                Job::Adopt(tell) => {
                    let group = std::mem::take(&mut group);
                    self.commit(control, group).await;
                    // The caller may have gone.
                    let _ = tell.send(self.adopt(control).await);
                }
            }
            if group.len() < GROUP_MAX {
                next = self.queue.try_recv().ok();
            }
        }
        self.commit(control, group).await;
    }

    async fn adopt(&mut self, control: &Control) -> Result<(), String> {
        let Some(name) = control.read(|view| view.model.system_pool()) else {
            return Ok(());
        };
        if self.bound.as_ref().is_some_and(|bound| bound.name == name) {
            return Ok(());
        }
        self.bind(control, &name, true).await
    }

    /// Looks whether the pool is there.
    async fn look(&mut self, control: &Control) {
        if control.check_serving().is_err() {
            // Pools are being closed in order.
            return;
        }
        let name = control.read(|view| view.model.system_pool());
        self.follow(control, name.as_deref()).await;
        self.unmark_given_up(control).await;
        let Some(Bound { name, pool }) = &self.bound else {
            return;
        };
        let (name, reading) = (name.clone(), pool.reading());
        let why = match why_not(control, &name) {
            Some(why) => Some(why),
            None => match within(reading).await {
                Ok(reading) => Some(reading.fault).filter(|fault| !fault.is_empty()),
                Err(why) => Some(why),
            },
        };
        if let Some(why) = why {
            self.lose(control, &name, why);
        }
    }

    /// A pool that was given up while its drive was away has its mark still: with it the next start would
    /// find two system pools.
    async fn unmark_given_up(&mut self, control: &Control) {
        let given_up: BTreeSet<String> = control.read(|view| {
            let pools = view.model.pools().values();
            let given_up = pools.filter(|pool| pool.spec.system == Some(false));
            given_up.map(|pool| pool.spec.name.clone()).collect()
        });
        self.unmarked.retain(|name| given_up.contains(name));
        let now = Instant::now();
        if self.unmark_not_before.is_some_and(|at| now < at) {
            return;
        }
        for name in given_up {
            if self.unmarked.contains(&name) || why_not(control, &name).is_some() {
                continue;
            }
            let Some(pool) = control.runtime().pool(&name) else {
                continue;
            };
            match unmark_own(pool.as_ref(), &control.about.node_id).await {
                Ok(()) => drop(self.unmarked.insert(name)),
                Err(why) => {
                    tracing::warn!(pool = name, why, "a pool that was given up is as it was");
                    self.unmark_not_before = Some(Instant::now() + CALL_PAUSE);
                }
            }
        }
    }

    /// Brings the pool that is in use in line with the one that shall be.
    async fn follow(&mut self, control: &Control, name: Option<&str>) {
        if let Some(bound) = &self.bound {
            if name == Some(bound.name.as_str()) {
                return;
            }
            // Not so one that was renamed: that has been closed.
            if control.read(|view| view.model.pools().contains_key(&bound.name)) {
                self.left = self.bound.take().map(|bound| bound.pool);
            }
        }
        self.bound = None;
        let Some(name) = name else {
            self.set(control, Status::Nowhere);
            return;
        };
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        // How it ends is told by the status.
        let _ = self.bind(control, name, false).await;
    }

    /// Makes the pool hold what the file has.
    async fn bind(&mut self, control: &Control, name: &str, adopt: bool) -> Result<(), String> {
        let began = Instant::now();
        let bound = self.try_bind(control, name, adopt).await;
        let is_slow = bound.is_err() && began.elapsed() >= CALL_MAX;
        self.not_before = is_slow.then(|| Instant::now() + CALL_PAUSE);
        match bound {
            Ok(pool) => {
                let name = name.to_owned();
                tokio::spawn(identify(control.clone(), name.clone(), Arc::clone(&pool)));
                self.bound = Some(Bound {
                    name: name.clone(),
                    pool,
                });
                self.set(control, Status::Kept(name));
                Ok(())
            }
            Err(why) => {
                self.lose(control, name, why.clone());
                Err(why)
            }
        }
    }

    async fn try_bind(
        &self,
        control: &Control,
        name: &str,
        adopt: bool,
    ) -> Result<Arc<dyn Pool>, String> {
        if let Some(why) = why_not(control, name) {
            return Err(why);
        }
        let pool = control.runtime().pool(name);
        let pool = pool.ok_or("it is not open")?;
        let node_id = &control.about.node_id;
        let ours = self.mirror.state(node_id);
        let there = within(pool.node_state()).await;
        let is_same = there.as_ref().is_ok_and(|there| *there == ours);
        if !is_same {
            if !adopt {
                let there = there?;
                let of = node_id_of(&there);
                if !there.records.is_empty() && of.as_ref() != Some(node_id) {
                    return Err(format!(
                        "it holds the state of another node or another start, {} of change {}; restart \
                         the node to take that state, or replace it by this one: pool set {name} --system",
                        of.unwrap_or_else(|| "nobody's".to_owned()),
                        there.generation
                    ));
                }
            }
            within(pool.replace_node_state(ours)).await?;
        }
        // Last: a pool that is marked holds a state.
        if !within(pool.is_system()).await? {
            let change = PoolChange {
                system: Some(true),
                ..PoolChange::default()
            };
            within(pool.change(change)).await?;
        }
        Ok(pool)
    }

    fn lose(&mut self, control: &Control, pool: &str, why: String) {
        self.bound = None;
        let pool = pool.to_owned();
        self.set(control, Status::Lost { pool, why });
    }

    /// Batches that are in force under one system pool.
    async fn commit(&mut self, control: &Control, group: Vec<Commit>) {
        let Some(name) = group.first().map(|commit| commit.system_pool.clone()) else {
            return;
        };
        self.follow(control, name.as_deref()).await;
        let mut group = self.in_order(group);
        let change = change_of(group.iter().map(|commit| &commit.batch));
        if let Some(why) = self.put(control, name.as_deref(), change).await {
            let must = group
                .iter()
                .position(|commit| commit.must_outlive_power)
                .unwrap_or(group.len());
            let mut rest = group.split_off(must).into_iter();
            if let Some(refused) = rest.next() {
                (refused.done)(Err(CommitError::NotKept { reason: why }));
            }
            // They may rest on it.
            let stored = self.mirror.generation + group.len() as u64;
            rest.for_each(|commit| out_of_order(commit, stored));
        }
        self.store_all(control, group).await;
        if let Some(left) = self.left.take()
            && let Err(why) = unmark(left.as_ref()).await
        {
            tracing::warn!(why, "a pool that was given up is as it was");
        }
    }

    /// Those that follow on what is stored; the others are told.
    fn in_order(&self, group: Vec<Commit>) -> Vec<Commit> {
        let mut stored = self.mirror.generation;
        let mut follow = Vec::with_capacity(group.len());
        for commit in group {
            if commit.batch.generation() == stored + 1 {
                stored += 1;
                follow.push(commit);
            } else {
                out_of_order(commit, stored);
            }
        }
        follow
    }

    /// Puts batches into the pool. Why they are not there, if they should be.
    async fn put(
        &mut self,
        control: &Control,
        name: Option<&str>,
        change: NodeChange,
    ) -> Option<String> {
        let Some(name) = name else {
            return Some(NO_POOL.to_owned());
        };
        if change.changes.is_empty() {
            return None;
        }
        let mut is_tried_again = false;
        while let Some(bound) = &self.bound {
            let pool = Arc::clone(&bound.pool);
            match within(pool.put_node_state(change.clone())).await {
                Ok(()) => return None,
                Err(why) => self.lose(control, name, why),
            }
            // It may have been closed and opened again meanwhile: then the next turn is the last.
            let now = control.runtime().pool(name);
            if is_tried_again || now.is_none() {
                break;
            }
            is_tried_again = true;
            self.follow(control, Some(name)).await;
        }
        match self.keeper.status() {
            Status::Lost { why, .. } => Some(why),
            _ => Some("it is not there".to_owned()),
        }
    }

    /// Writes batches into the file, and tells those who wait.
    async fn store_all(&mut self, control: &Control, group: Vec<Commit>) {
        let mut waiting = Vec::with_capacity(group.len());
        for Commit { batch, done, .. } in group {
            let (tell, told) = oneshot::channel();
            let queued = self.store.commit(batch.clone(), move |result| {
                // This task may have been ended.
                let _ = tell.send(result);
            });
            waiting.push((batch, done, queued.map(|()| told)));
        }
        for (batch, done, queued) in waiting {
            let result = match queued {
                Ok(told) => told.await.unwrap_or(Err(CommitError::Closed)),
                Err(error) => Err(error),
            };
            match &result {
                Ok(()) => self.mirror.apply(&batch),
                Err(error) => {
                    // The pool may have what the file has not: it gets the file's again.
                    if let Some(bound) = self.bound.take() {
                        let why = format!("the state directory failed: {}", chain(error));
                        self.lose(control, &bound.name, why);
                        self.keeper.look();
                    }
                }
            }
            done(result);
        }
    }

    fn set(&self, control: &Control, status: Status) {
        if matches!(status, Status::Kept(_)) {
            let problem = &self.keeper.problem;
            *problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        {
            let now = &self.keeper.status;
            let mut now = now.lock().unwrap_or_else(PoisonError::into_inner);
            if *now == status {
                return;
            }
            *now = status.clone();
        }
        let node_id = control.about.node_id.clone();
        match status {
            Status::Nowhere => {}
            Status::Kept(pool) => {
                tracing::info!(pool, "the state of the node is kept in the system pool");
                let text = format!("state is kept in system pool {pool:?}");
                control.tell(EventType::Status, "node", node_id, text);
            }
            Status::Lost { pool, why } => {
                let text = lost_text(&pool, &why);
                tracing::error!(text, "the state of the node");
                control.tell(EventType::Fault, "node", node_id, text);
            }
        }
    }
}

/// Remembers which pool it is: should it be given up while its drive is away, the node knows it again.
async fn identify(control: Control, name: String, pool: Arc<dyn Pool>) {
    let is_known = control.read(|view| {
        let there = view.model.pools().get(&name);
        there.is_none_or(|there| there.spec.uuid.is_some())
    });
    if is_known {
        return;
    }
    let identified = async {
        let uuid = within(pool.reading()).await?.uuid;
        let change = control.change(|edit| edit.identify_pool(&name, &uuid));
        change.await.map_err(|error| chain(&error))
    };
    if let Err(why) = identified.await {
        tracing::warn!(pool = name, why, "which pool it is was not kept");
    }
}

/// Takes the mark off a pool, then this node's state out of it: it may go to another machine, and there may be
/// keys in it.
async fn unmark(pool: &dyn Pool) -> Result<(), String> {
    let change = PoolChange {
        system: Some(false),
        ..PoolChange::default()
    };
    within(pool.change(change)).await?;
    within(pool.replace_node_state(NodeState::default())).await
}

/// As [`unmark`], of a pool that may have become another node's meanwhile, or may have no mark.
async fn unmark_own(pool: &dyn Pool, node_id: &str) -> Result<(), String> {
    let is_marked = within(pool.is_system()).await?;
    match node_id_of(&within(pool.node_state()).await?) {
        Some(other) if other != node_id => match is_marked {
            true => Err(format!("it holds the state of node {other}")),
            false => Ok(()),
        },
        None if !is_marked => Ok(()),
        _ => unmark(pool).await,
    }
}

fn out_of_order(commit: Commit, stored: u64) {
    let given = commit.batch.generation();
    (commit.done)(Err(CommitError::OutOfOrder { given, stored }));
}

/// Why a pool cannot be used, as far as the control plane knows.
fn why_not(control: &Control, name: &str) -> Option<String> {
    let key = Key::Pool(name.to_owned());
    control.read(|view| {
        if let Some(pending) = view.pending.get(&key) {
            return Some(pending.reason.clone());
        }
        let bdev = view.model.pools().get(name)?.spec.bdev_name.clone();
        let below = view.model.key_of_bdev(&bdev)?;
        let pending = view.pending.get(&below)?;
        Some(format!(
            "{} {} is pending: {}",
            below.kind(),
            below.name(),
            pending.reason
        ))
    })
}

/// A call of a pool, for a bounded time.
async fn within<T>(work: Work<T>) -> Result<T, String> {
    match timeout(CALL_MAX, work).await {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(_) => Err(format!(
            "it has not answered within {} s",
            CALL_MAX.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests;
