//! [`PoolWorker`]: the one that touches the pool's metadata.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use block::{Bdev, IoError};
use dma::IobufPool;
use metastore::pool::{PoolStore, PoolStoreError, Table};

use super::allocator::Allocator;
use super::check::{Checking, Finding};
use super::disk::{Disk, Host};
use super::external::{ExternalDevices, ExternalState, NoExternalDevices};
use super::garbage::Moved;
use super::lease::Leased;
use super::metadata::Metadata;
use super::operation::Operation;
use super::shared::{Call, LOG_TICKET, Mailbox, Reply, Request, Shared, VolumeShared};
use crate::LvolError;
use crate::format::{
    FormatError, FreeChunk, LayerId, LayerRecord, NameKind, NameRecord, PoolRecord, chunk_key,
};
use crate::map::{Cluster, Grace, Piece};

/// Clusters that a channel gets at a time, at most.
const BATCH_CLUSTERS: u64 = 64;

/// How a pool is run.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Buffers for the worker, and for channels whose thread brings none.
    pub buffers: Arc<IobufPool>,
    /// Pieces of maps kept in memory while nobody uses them; each is 1 to 15 KiB.
    pub cached_pieces: usize,
    /// First writes that no FLUSH covers are committed after this time.
    pub commit_interval: Duration,
    /// Records of maps in one transaction, bytes. A commit of more is done in several.
    pub transaction_bytes: usize,
    /// Where block devices outside the pool are found that volumes lie on.
    pub externals: Arc<dyn ExternalDevices>,
    /// Names this boot of this machine; zeroes if it is not known. A device with a volatile cache that a crash
    /// left has everything that it had acknowledged if the boot is the same still; after another, the log of
    /// first writes is not used.
    pub boot_id: [u8; 16],
    /// The device may have lost its power although the boot is the same: it was away, for instance. With a
    /// volatile cache what the log has from before is not used then.
    pub was_away: bool,
}

impl PoolOptions {
    /// The defaults.
    #[must_use]
    pub fn new(buffers: Arc<IobufPool>) -> Self {
        Self {
            buffers,
            cached_pieces: 16384,
            commit_interval: Duration::from_secs(5),
            transaction_bytes: 8 << 20,
            externals: Arc::new(NoExternalDevices),
            boot_id: [0; 16],
            was_away: false,
        }
    }
}

/// When to step the worker next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// At once.
    Now,
    /// Then, or when woken.
    At(Instant),
    /// When woken.
    Idle,
    /// Never: the pool is closed.
    End,
}

/// A volume or a snapshot.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: NameRecord,
    pub(super) shared: Arc<VolumeShared>,
}

type Tell = dyn FnOnce(&mut PoolWorker, Result<(), LvolError>);

/// What is to be told when a commit has ended.
pub(super) enum Waiter {
    Channel { mailbox: Arc<Mailbox>, ticket: u64 },
    Call(Box<Tell>),
}

pub(super) type OnCommit = dyn FnOnce(&mut PoolWorker);

/// What waits for I/O that was in flight.
pub(super) type AfterGrace = (Grace, Box<dyn FnOnce(&mut PoolWorker)>);

/// The pool's metadata and what changes it. Lives on one thread and is stepped there.
pub struct PoolWorker {
    pub(super) shared: Arc<Shared>,
    pub(super) options: PoolOptions,
    pub(super) disk: Rc<Disk>,
    pub(super) metadata: Rc<Metadata>,
    /// None once closed.
    pub(super) store: Option<PoolStore>,
    pub(super) allocator: Allocator,
    pub(super) pool: PoolRecord,
    pub(super) names: BTreeMap<String, Entry>,
    /// Names whose records cannot be read: nothing is made in their place.
    pub(super) damaged_names: BTreeSet<String>,
    /// Volumes that clusters are reserved for.
    pub(super) thick: BTreeSet<String>,
    pub(super) layers: HashMap<LayerId, LayerRecord>,
    /// Layers whose records cannot be read.
    pub(super) damaged_layers: BTreeSet<LayerId>,
    /// Layers that lie on themselves, by a few others or at once.
    pub(super) circular: BTreeMap<LayerId, LayerRecord>,
    /// Layers whose records contradict others: not collected until they are repaired.
    pub(super) suspect: HashSet<LayerId>,
    /// The record of the pool was damaged when it was opened.
    pub(super) was_pool_damaged: bool,
    /// The check that is under way.
    pub(super) checking: Option<Box<Checking>>,
    /// Clusters that records which a repair stages have: in maps with the next transaction.
    pub(super) adopted: Vec<Cluster>,
    /// Chunks of free clusters that the next transaction writes whatever it changes.
    pub(super) rewritten_chunks: BTreeSet<u64>,
    /// Records for the next transaction; `None` deletes.
    pub(super) staged: BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>,
    pub(super) pieces: HashMap<(LayerId, u64), Arc<Piece>>,
    /// For the next commit.
    pub(super) waiters: Vec<Waiter>,
    /// To be done when a commit has ended well, before anybody is told.
    pub(super) on_commit: Vec<Box<OnCommit>>,
    /// Layers that the device does not know yet: nobody writes to them.
    pub(super) new_layers: HashSet<LayerId>,
    /// Who wants to read or write them.
    pub(super) unresolved: Vec<Request>,
    /// Layers whose parent is about to change: their volumes' channels get no chains.
    pub(super) paused: HashSet<LayerId>,
    /// Pieces in which nothing begins before the next commit.
    pub(super) held: Vec<Arc<Piece>>,
    /// What the log of first writes had and could not be used, when the pool was opened.
    pub(super) log_findings: Vec<Finding>,
    /// Freed, and on the device still in a map.
    pub(super) freed: Vec<Cluster>,
    pub(super) after_grace: VecDeque<AfterGrace>,
    /// Never to be handed out while the pool is open: the device may still write to them.
    pub(super) pinned: HashSet<Cluster>,
    /// Freed, and still looked at.
    pub(super) leased: Leased,
    /// Clusters that wait in [`Self::after_grace`] to become free.
    pub(super) quarantined: u64,
    /// Channels that wait for clusters to become free.
    short: Vec<(Arc<Mailbox>, bool)>,
    commit_due: Option<Instant>,
    /// Layers without a name.
    pub(super) garbage: BTreeSet<LayerId>,
    /// A piece on its way from a layer to the one on it.
    pub(super) moved: Option<Moved>,
    /// Pieces that the next commit writes in one transaction with what is staged: a crash must not find one
    /// without the other.
    pub(super) together: BTreeSet<(LayerId, u64)>,
    /// The collector goes on after the next commit.
    pub(super) collecting_waits: bool,
    /// Long work, by its number.
    pub(super) operations: BTreeMap<u64, Operation>,
    /// The first of it goes on then.
    pub(super) operate_at: Option<Instant>,
    /// The collector goes on then.
    pub(super) collect_at: Option<Instant>,
    /// The repair goes on then.
    pub(super) check_at: Option<Instant>,
    pub(super) fault: Option<String>,
    /// Devices outside the pool that names lie on, by UUID.
    pub(super) externals: BTreeMap<[u8; 16], ExternalState>,
    /// Claims are looked after when the next commit has ended.
    pub(super) externals_wait: bool,
    /// A device that is missing is looked for then.
    pub(super) external_at: Option<Instant>,
    /// As of the last step.
    pub(super) now: Instant,
}

impl std::fmt::Debug for PoolWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolWorker")
            .field("pool", &self.metadata.superblock().name)
            .field("names", &self.names.len())
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

/// What a worker is made of.
pub(super) struct Parts {
    pub(super) base: Arc<Bdev>,
    pub(super) options: PoolOptions,
    pub(super) disk: Rc<Disk>,
    pub(super) metadata: Rc<Metadata>,
    pub(super) store: PoolStore,
    pub(super) pool: PoolRecord,
    pub(super) waker: Waker,
}

impl PoolWorker {
    pub(super) fn open_disk(
        base: &Arc<Bdev>,
        options: &PoolOptions,
        host: Box<dyn Host>,
        waker: &Waker,
    ) -> Result<Rc<Disk>, LvolError> {
        Disk::open(base, &options.buffers, host, waker.clone()).map(Rc::new)
    }

    pub(super) fn from_parts(parts: Parts) -> Self {
        let superblock = parts.metadata.superblock();
        let allocator = Allocator::new(
            superblock.clusters,
            parts.pool.used_clusters,
            superblock.metadata.iter().chain(&superblock.log).copied(),
        );
        let now = parts.disk.now();
        let shared = Shared::new(
            parts.base,
            Arc::clone(&parts.options.buffers),
            superblock.granularity,
            parts.waker,
        );
        Self {
            shared,
            options: parts.options,
            disk: parts.disk,
            metadata: parts.metadata,
            store: Some(parts.store),
            allocator,
            pool: parts.pool,
            names: BTreeMap::new(),
            damaged_names: BTreeSet::new(),
            thick: BTreeSet::new(),
            layers: HashMap::new(),
            damaged_layers: BTreeSet::new(),
            circular: BTreeMap::new(),
            suspect: HashSet::new(),
            was_pool_damaged: false,
            checking: None,
            adopted: Vec::new(),
            rewritten_chunks: BTreeSet::new(),
            staged: BTreeMap::new(),
            pieces: HashMap::new(),
            waiters: Vec::new(),
            on_commit: Vec::new(),
            new_layers: HashSet::new(),
            unresolved: Vec::new(),
            paused: HashSet::new(),
            held: Vec::new(),
            log_findings: Vec::new(),
            freed: Vec::new(),
            after_grace: VecDeque::new(),
            pinned: HashSet::new(),
            leased: Leased::default(),
            quarantined: 0,
            short: Vec::new(),
            commit_due: None,
            garbage: BTreeSet::new(),
            moved: None,
            together: BTreeSet::new(),
            collecting_waits: false,
            operations: BTreeMap::new(),
            operate_at: None,
            collect_at: None,
            check_at: None,
            fault: None,
            externals: BTreeMap::new(),
            externals_wait: false,
            external_at: None,
            now,
        }
    }

    /// Does what there is to do. Blocks while the device works on metadata.
    pub fn step(&mut self, now: Instant) -> Next {
        if self.store.is_none() {
            return Next::End;
        }
        self.now = now;
        let mut calls = self.take_in(now);
        while let Some(call) = calls.pop_front() {
            (call.0)(self);
            if self.store.is_none() {
                return Next::End;
            }
        }
        let mut worked = self.end_graces();
        self.release_leased(now);
        self.serve_short();
        for at in [
            &mut self.collect_at,
            &mut self.operate_at,
            &mut self.check_at,
        ] {
            if at.is_some_and(|at| at <= now) {
                *at = None;
            }
        }
        if self.external_at.is_some_and(|at| at <= now) {
            self.look_for_externals();
        }
        // Commits of work in the background, one after another, could overtake a first write for ever. A
        // channel that has caught up wakes the worker.
        let log = self.shared.log();
        if log.is_none_or(|log| log.overtaken.load(Ordering::SeqCst) == 0) {
            worked |= self.collect();
            worked |= self.operate();
        }
        worked |= self.check_some(now);
        let due = self.commit_due.is_some_and(|due| due <= now);
        if due || !self.waiters.is_empty() {
            self.commit_due = None;
            self.commit();
            return Next::Now;
        }
        if worked {
            return Next::Now;
        }
        self.drop_unused_pieces();
        let deadlines = [
            self.commit_due,
            self.collect_at,
            self.operate_at,
            self.check_at,
            self.external_at,
            self.leased.look_at(),
        ];
        let deadline = deadlines.into_iter().flatten().min();
        deadline.map_or(Next::Idle, Next::At)
    }

    /// Sorts what channels have put in; gives the calls. What is dirty stays for the commit.
    fn take_in(&mut self, now: Instant) -> VecDeque<Call> {
        let (requests, calls, returned, has_changes) = {
            let mut inbox = self.shared.inbox();
            let has_changes = !inbox.dirty.is_empty() || !inbox.freed.is_empty();
            (
                std::mem::take(&mut inbox.requests),
                std::mem::take(&mut inbox.calls),
                std::mem::take(&mut inbox.returned),
                has_changes,
            )
        };
        if has_changes {
            self.commit_due
                .get_or_insert(now + self.options.commit_interval);
        }
        for cluster in returned {
            self.allocator.release(cluster);
        }
        for request in requests {
            match request {
                Request::Resolve {
                    volume,
                    piece,
                    mailbox,
                } => self.resolve_when_committed(volume, piece, mailbox),
                Request::Clusters { thick, mailbox } => self.short.push((mailbox, thick)),
                Request::External { part, mailbox } => self.lend_external(&part, &mailbox),
                Request::Commit { mailbox, ticket } => {
                    self.waiters.push(Waiter::Channel { mailbox, ticket });
                }
                Request::LogPages { mailbox } => self.free_log_pages(mailbox),
                Request::CommitSoon => self.commit_due = Some(now),
            }
        }
        calls
    }

    /// A commit is to come then, or earlier.
    pub(super) fn commit_in(&mut self, time: Duration) {
        let at = self.now + time;
        self.commit_due = Some(self.commit_due.map_or(at, |due| due.min(at)));
    }

    /// Answers a channel that lacks pages of the log.
    fn free_log_pages(&mut self, mailbox: Arc<Mailbox>) {
        let ticket = LOG_TICKET;
        // Those that were being written when the last commit ended may be free by now.
        if self.shared.log().is_some_and(|log| log.free_pages()) {
            let result = Ok(());
            return mailbox.put(Reply::Committed { ticket, result });
        }
        if self.shared.log().is_some_and(|log| log.is_lost()) {
            tracing::error!("no page of the log of first writes is left; open the pool again");
            let result = Err(IoError::Internal);
            return mailbox.put(Reply::Committed { ticket, result });
        }
        self.waiters.push(Waiter::Channel { mailbox, ticket });
    }

    /// Runs what waited for I/O that has ended. True if there was any.
    fn end_graces(&mut self) -> bool {
        let mut worked = false;
        // A channel that goes away says so before its I/O counts as ended.
        while let Some((grace, _)) = self.after_grace.front() {
            if !self.shared.epoch.has_ended(*grace) {
                break;
            }
            let Some((_, action)) = self.after_grace.pop_front() else {
                break;
            };
            let pinned = std::mem::take(&mut self.shared.inbox().pinned);
            self.pinned.extend(pinned);
            action(self);
            worked = true;
        }
        if self.after_grace.is_empty() {
            self.shared.epoch.stop_awaiting();
        }
        worked
    }

    pub(super) fn after_grace(&mut self, action: impl FnOnce(&mut Self) + 'static) {
        let grace = self.shared.epoch.grace();
        self.after_grace.push_back((grace, Box::new(action)));
        // If nothing is in flight, nobody will wake the worker.
        self.shared.wake_worker();
    }

    /// Gives clusters to channels that need them, or says that there are none.
    fn serve_short(&mut self) {
        for (mailbox, thick) in std::mem::take(&mut self.short) {
            match self.batch(thick) {
                Ok(clusters) if clusters.is_empty() => {
                    if self.some_may_come_free() {
                        // Freed clusters are on their way: a commit, then a grace period.
                        self.short.push((mailbox, thick));
                        if self.waiters.is_empty() && !self.freed_waits_only_for_grace() {
                            self.waiters.push(Waiter::Call(Box::new(|_, _| {})));
                        }
                    } else {
                        mailbox.put(Reply::Clusters(Err(IoError::NoSpace)));
                    }
                }
                Ok(clusters) => mailbox.put(Reply::Clusters(Ok(clusters))),
                Err(error) => {
                    tracing::error!(%error, "clusters cannot be handed out");
                    mailbox.put(Reply::Clusters(Err(IoError::Internal)));
                }
            }
        }
    }

    fn some_may_come_free(&self) -> bool {
        self.quarantined > 0
            || !self.freed.is_empty()
            || !self.shared.inbox().freed.is_empty()
            || self.leased.is_promising(self.disk.now())
    }

    fn freed_waits_only_for_grace(&self) -> bool {
        self.freed.is_empty() && self.shared.inbox().freed.is_empty()
    }

    fn batch(&mut self, thick: bool) -> Result<Vec<Cluster>, LvolError> {
        let free = self.data_clusters_free(thick);
        // One at a time for a thick volume: what it had in hand and did not need would be missing to
        // another that it is promised to.
        let most = if thick { 1 } else { BATCH_CLUSTERS };
        let wanted = (free / 16).clamp(1, most).min(free);
        let mut clusters = Vec::with_capacity(wanted as usize);
        for _ in 0..wanted {
            let Some(cluster) = self.take_cluster()? else {
                break;
            };
            clusters.push(cluster);
        }
        Ok(clusters)
    }

    /// Clusters that a first write may take.
    pub(super) fn data_clusters_free(&self, thick: bool) -> u64 {
        let free = self.allocator.free();
        if thick {
            free
        } else {
            free.saturating_sub(self.pool.reserved_clusters)
        }
    }

    pub(super) fn take_cluster(&mut self) -> Result<Option<Cluster>, LvolError> {
        let store = self.store.as_ref().ok_or(LvolError::Closed)?;
        let mut source = |number| load_chunk(store, number);
        self.allocator.take(&mut source)
    }

    /// Stops the pool: nobody knows what its device holds.
    pub(super) fn stop(&mut self, reason: &LvolError) {
        let reason = crate::chain(reason);
        tracing::error!(
            pool = self.metadata.superblock().name,
            reason,
            "the pool stops"
        );
        self.fault.get_or_insert(reason);
        self.shared.stopped.store(true, Ordering::SeqCst);
    }

    pub(super) fn usable_store(&self) -> Result<&PoolStore, LvolError> {
        if let Some(reason) = &self.fault {
            return Err(LvolError::Faulted {
                reason: reason.clone(),
            });
        }
        self.store.as_ref().ok_or(LvolError::Closed)
    }

    pub(super) fn volume_shared(&self, record: &NameRecord) -> Arc<VolumeShared> {
        Arc::new(VolumeShared {
            layer: AtomicU64::new(record.layer.0),
            block_count: AtomicU64::new(record.size_bytes / u64::from(self.shared.block_size)),
            chains: AtomicU64::new(0),
            unsettled: AtomicBool::new(false),
            moving: AtomicBool::new(false),
            faulted: AtomicBool::new(false),
            is_snapshot: record.kind == NameKind::Snapshot,
            allocated: AtomicU64::new(0),
            read_only: AtomicBool::new(record.read_only || record.kind == NameKind::Snapshot),
            thick: AtomicBool::new(record.thick),
            channels: AtomicU64::new(0),
        })
    }
}

/// Whoever waits is told, also when a panic ends the worker.
impl Drop for PoolWorker {
    fn drop(&mut self) {
        drop(self.shared.close());
    }
}

/// A chunk of the FREE table; absent, none of it is used. `None` if it is damaged: what it accounts for is
/// neither handed out nor taken back then, and all else goes on.
pub(super) fn load_chunk(store: &PoolStore, number: u64) -> Result<Option<FreeChunk>, LvolError> {
    let Some(record) = store.get(Table::Free, &chunk_key(number))? else {
        return Ok(Some(FreeChunk::default()));
    };
    match FreeChunk::decode(&record) {
        Ok(chunk) => Ok(Some(chunk)),
        Err(error) => {
            tracing::error!(number, %error, "a record of free clusters is damaged; run pool repair");
            Ok(None)
        }
    }
}

pub(super) fn damaged(record: impl FnOnce() -> String) -> impl FnOnce(FormatError) -> LvolError {
    move |source| LvolError::Damaged {
        record: record(),
        source,
    }
}

/// Is the store of no use any more, or did only this call fail?
pub(super) fn is_fatal(error: &PoolStoreError) -> bool {
    !matches!(
        error,
        PoolStoreError::NoSpace { .. } | PoolStoreError::TooLong { .. }
    )
}
