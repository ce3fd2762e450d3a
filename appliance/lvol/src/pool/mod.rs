//! Pools: the worker that owns the metadata, and the handle that calls it.

mod allocator;
mod check;
mod commit;
mod diff;
mod disk;
mod driven;
mod external;
mod garbage;
mod judge;
mod lease;
mod manage;
mod mapped;
mod metadata;
mod node;
mod open;
mod operation;
mod parent;
mod pieces;
mod promise;
mod properties;
mod repair;
mod replay;
mod reserve;
mod resize;
mod shared;
mod sums;
mod worker;
mod write_log;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::Bdev;

pub use self::check::{Checkup, Finding};
pub use self::diff::{Extents, VolumeExtent};
pub use self::disk::Host;
pub(crate) use self::external::{EXTERNAL_RETRY, ExternalPart};
pub use self::external::{ExternalDevices, ExternalInfo, NoExternalDevices};
pub use self::manage::{NewVolume, VolumeInfo};
pub use self::mapped::{MapCursor, MappedRun, MappedRuns};
pub use self::node::{NodeChange, NodeLook, NodeState, SYSTEM_LABEL};
pub use self::open::{CreateOptions, POOL_BYTES_MAX};
pub use self::operation::{Operation, OperationKind, OperationState};
pub use self::promise::Promise;
pub use self::properties::{LabelChanges, RESERVED_LABELS, VolumeChange};
pub use self::repair::REPAIRED_LABEL;
pub(crate) use self::shared::{Chain, LOG_TICKET, Mailbox, Reply, Request, Shared, VolumeShared};
pub use self::sums::{ComparedSums, Differing, FrozenPiece, PieceSums};
pub use self::worker::{Next, PoolOptions, PoolWorker};
pub(crate) use self::write_log::{LogPages, WriteLog};

use self::parent::NewParent;
use self::promise::promise;
use crate::LvolError;
use crate::format::NAME_BYTES_MAX;
use crate::volume::Volume;

/// What a pool is and has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolInfo {
    /// Its name.
    pub name: String,
    /// Its UUID, for ever.
    pub uuid: [u8; 16],
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Clusters of the device, the header included.
    pub clusters: u64,
    /// Clusters that nothing has.
    pub free_clusters: u64,
    /// Clusters of volumes and snapshots.
    pub used_clusters: u64,
    /// Clusters of the header and the metadata, with what is kept for it to grow.
    pub metadata_clusters: u64,
    /// Clusters promised to thick volumes and not used yet.
    pub reserved_clusters: u64,
    /// Sizes of all volumes together, bytes.
    pub provisioned_bytes: u64,
    /// Volumes.
    pub volumes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Layers, those included that are being deleted.
    pub layers: u64,
    /// What its owner says of it.
    pub labels: Vec<(String, String)>,
    /// Pieces of maps in memory, those in use included.
    pub cached_pieces: u64,
    /// How many of them stay that nobody uses.
    pub cached_pieces_max: u64,
    /// Why the pool has stopped, if it has.
    pub fault: Option<String>,
}

/// The handle of an open pool. Clones call the same worker. Every call returns at once; its promise is
/// kept by steps of the worker.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
        }
    }

    /// What the pool is and has.
    #[must_use]
    pub fn info(&self) -> Promise<PoolInfo> {
        self.ask(|worker| Ok(worker.info()))
    }

    /// Makes an empty volume. Durable when the promise is kept.
    #[must_use]
    pub fn create_volume(&self, new: NewVolume) -> Promise<VolumeInfo> {
        self.change(|worker| worker.create_volume(new.checked()?))
    }

    /// Makes a volume that shows what a snapshot shows, and can be written.
    #[must_use]
    pub fn clone_snapshot(&self, snapshot: &str, new: NewVolume) -> Promise<VolumeInfo> {
        let snapshot = snapshot.to_owned();
        self.change(move |worker| worker.clone_snapshot(&snapshot, new.checked()?))
    }

    /// Makes a volume that shows what a block device outside the pool shows, and can be written. The
    /// device is only read, and claimed through [`PoolOptions::externals`] while anything lies on it. Its
    /// blocks may not be larger than the pool's, and it may not lie in a pool itself. Past its end, as it
    /// is now, the volume reads as zeroes.
    #[must_use]
    pub fn clone_external(&self, device: &Arc<Bdev>, new: NewVolume) -> Promise<VolumeInfo> {
        let device = Arc::clone(device);
        self.change(move |worker| worker.clone_external(&device, new.checked()?))
    }

    /// Takes snapshots of several volumes at one moment: pairs of a volume and the name after the `@`.
    /// Each holds exactly the writes that had been acknowledged before the call, and maybe some that
    /// were in flight.
    #[must_use]
    pub fn create_snapshots(&self, names: &[(String, String)], created_unix_s: u64) -> Promise<()> {
        self.create_labelled_snapshots(names, created_unix_s, &[])
    }

    /// As [`Pool::create_snapshots`]; each snapshot has these labels from the beginning.
    #[must_use]
    pub fn create_labelled_snapshots(
        &self,
        names: &[(String, String)],
        created_unix_s: u64,
        labels: &[(String, String)],
    ) -> Promise<()> {
        let (names, labels) = (names.to_vec(), labels.to_vec());
        let (promise, resolver) = promise();
        let called = self.shared.call(move |worker| {
            worker.create_snapshots(&names, created_unix_s, &labels, resolver);
        });
        // On an error the resolver was dropped, and says so.
        drop(called);
        promise
    }

    /// Makes a volume show what one of its snapshots shows. Nothing of what was written since stays.
    #[must_use]
    pub fn rollback(&self, volume: &str, snapshot: &str) -> Promise<()> {
        let (volume, snapshot) = (volume.to_owned(), snapshot.to_owned());
        self.change(move |worker| worker.rollback(&volume, &snapshot))
    }

    /// Makes a volume lie on this snapshot instead of what it lies on. What it has itself stays; all
    /// else reads as the snapshot's. Its I/O pauses for two commits.
    #[must_use]
    pub fn set_parent(&self, volume: &str, snapshot: &str) -> Promise<()> {
        self.change_parent(volume, NewParent::Snapshot(snapshot.to_owned()))
    }

    /// As [`Pool::set_parent`], with a block device outside the pool, under the rules of
    /// [`Pool::clone_external`].
    #[must_use]
    pub fn set_external_parent(&self, volume: &str, device: &Arc<Bdev>) -> Promise<()> {
        self.change_parent(volume, NewParent::Device(Arc::clone(device)))
    }

    fn change_parent(&self, volume: &str, parent: NewParent) -> Promise<()> {
        let volume = volume.to_owned();
        let (promise, resolver) = promise();
        let called = self
            .shared
            .call(move |worker| worker.set_parent(&volume, parent, resolver));
        drop(called);
        promise
    }

    /// Gives a volume another size. What lies past a new end is gone: grown again, it reads as zeroes
    /// there.
    #[must_use]
    pub fn resize(&self, name: &str, size_bytes: u64) -> Promise<()> {
        let name = name.to_owned();
        let (promise, resolver) = promise();
        let called = self
            .shared
            .call(move |worker| worker.resize(&name, size_bytes, resolver));
        drop(called);
        promise
    }

    /// Uses what the device has grown by.
    #[must_use]
    pub fn grow(&self) -> Promise<()> {
        self.change(PoolWorker::grow)
    }

    /// Gives a volume another name. Its snapshots go with it.
    #[must_use]
    pub fn rename(&self, name: &str, new_name: &str) -> Promise<()> {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.change(move |worker| worker.rename(&name, &new_name))
    }

    /// Changes what an owner says of a volume or a snapshot.
    #[must_use]
    pub fn change_volume(&self, name: &str, change: VolumeChange) -> Promise<VolumeInfo> {
        let name = name.to_owned();
        self.change(move |worker| worker.change_volume(&name, &change))
    }

    /// Changes the pool's labels; the same rules as for a volume's.
    #[must_use]
    pub fn set_labels(&self, changes: LabelChanges) -> Promise<()> {
        self.change(move |worker| worker.set_labels(&changes))
    }

    /// What a node keeps in the pool, as far as it is durable.
    #[must_use]
    pub fn node_state(&self) -> Promise<NodeState> {
        self.ask(|worker| worker.node_state())
    }

    /// Changes what a node keeps in the pool: one transaction, durable when the promise is kept. Keys have 1
    /// to 1,024 bytes and do not begin with a zero; values have less than 1 MiB.
    #[must_use]
    pub fn put_node_state(&self, change: NodeChange) -> Promise<()> {
        self.change(move |worker| worker.put_node_state(change))
    }

    /// As [`Pool::put_node_state`]; what is there goes.
    #[must_use]
    pub fn replace_node_state(&self, state: NodeState) -> Promise<()> {
        self.change(move |worker| worker.replace_node_state(state))
    }

    /// Gives the pool another name.
    #[must_use]
    pub fn rename_pool(&self, new_name: &str) -> Promise<()> {
        let new_name = new_name.to_owned();
        self.change(move |worker| worker.rename_pool(&new_name))
    }

    /// Deletes a volume or a snapshot. Its space comes back afterwards, bit by bit: the number of the operation
    /// that shows it, if there is anything to give back and not very many are shown already.
    #[must_use]
    pub fn delete(&self, name: &str) -> Promise<Option<u64>> {
        let name = name.to_owned();
        self.change(move |worker| worker.delete(&name))
    }

    /// One volume or snapshot.
    #[must_use]
    pub fn volume(&self, name: &str) -> Promise<VolumeInfo> {
        let name = name.to_owned();
        self.ask(move |worker| worker.volume_info(&name))
    }

    /// Volumes and snapshots whose names come after `after`, in order, at most `limit`.
    #[must_use]
    pub fn volumes(&self, after: &str, limit: usize) -> Promise<Vec<VolumeInfo>> {
        let after = after.to_owned();
        self.ask(move |worker| Ok(worker.volumes(&after, limit)))
    }

    /// The block device of a volume or a snapshot.
    #[must_use]
    pub fn device(&self, name: &str) -> Promise<Arc<Volume>> {
        let name = name.to_owned();
        self.ask(move |worker| worker.device(&name))
    }

    /// Begins to take a volume off its parent. The number of the operation.
    #[must_use]
    pub fn detach(&self, name: &str, kind: OperationKind) -> Promise<u64> {
        let name = name.to_owned();
        self.change(move |worker| worker.detach(&name, kind))
    }

    /// Operations under way, and the last that ended.
    #[must_use]
    pub fn operations(&self) -> Promise<Vec<Operation>> {
        self.ask(|worker| Ok(worker.list_operations()))
    }

    /// Keeps an operation that the caller drives, of a kind that [`OperationKind::is_driven`]; the number of it.
    /// `subject` is what it works on, for people; `total` is in the caller's unit; `detail` is what the caller
    /// needs to go on after a restart, at most 256 KiB. Refused while 64 of the pool are under way.
    #[must_use]
    pub fn begin(
        &self,
        kind: OperationKind,
        subject: &str,
        total: u64,
        detail: String,
    ) -> Promise<u64> {
        let subject = subject.to_owned();
        self.change(move |worker| worker.begin(kind, &subject, total, detail))
    }

    /// Tells how far a driven operation is; the answer tells whether it was cancelled. Durable with the next
    /// commit: tell only what is durable itself.
    #[must_use]
    pub fn progress(&self, id: u64, done: u64) -> Promise<OperationState> {
        self.ask(move |worker| worker.progress(id, done, None))
    }

    /// As [`Pool::progress`], with another detail.
    #[must_use]
    pub fn progress_with(&self, id: u64, done: u64, detail: String) -> Promise<OperationState> {
        self.ask(move |worker| worker.progress(id, done, Some(detail)))
    }

    /// Ends a driven operation: done, with what was found; or failed, with the reason, or cancelled if somebody
    /// had asked for that. Nothing happens if it has ended. A text is cut at 256 KiB.
    #[must_use]
    pub fn end(&self, id: u64, result: Result<String, String>) -> Promise<()> {
        self.change(move |worker| worker.end(id, result))
    }

    /// Runs of the device that volumes and snapshots have, of at most `pieces` pieces of maps (128 clusters
    /// each) in one step of the worker. What was not committed at the time of the call may be missing.
    #[must_use]
    pub fn mapped(&self, from: MapCursor, pieces: usize) -> Promise<MappedRuns> {
        self.ask(move |worker| worker.mapped(from, pieces))
    }

    /// Compares what a scrub has read of pieces that cannot change, at most 16, with the checksums that there are,
    /// and keeps those that there are not. A piece that has changed since [`Pool::mapped`] told of it is passed over.
    /// Durable with the next commit; where many wait for one, this does too.
    #[must_use]
    pub fn compare_sums(&self, read: Vec<PieceSums>, now_unix_s: u64) -> Promise<ComparedSums> {
        let (promise, resolver) = promise();
        let called = self.shared.call(move |worker| {
            let compared = worker.compare_sums(read, now_unix_s);
            if compared.is_err() || !worker.has_many_sums() {
                return resolver.resolve(compared);
            }
            worker.when_committed(|_, result| resolver.resolve(result.and(compared)));
        });
        drop(called);
        promise
    }

    /// Ends an operation where it is. What it has done stays; nothing that a host sees changes. One that is
    /// driven from outside is ended by its driver, soon. A deletion goes on: that is refused.
    #[must_use]
    pub fn cancel(&self, id: u64) -> Promise<()> {
        self.change(move |worker| worker.cancel(id))
    }

    /// Extents of `to`, from byte `offset` on, that may not read as they do in `from`; without `from`, those that
    /// are not zeroes for sure. A call gives a part of the list and where to go on.
    #[must_use]
    pub fn diff(
        &self,
        from: Option<&str>,
        to: &str,
        offset: u64,
        limit: usize,
    ) -> Promise<Extents> {
        let (from, to) = (from.map(str::to_owned), to.to_owned());
        self.ask(move |worker| worker.diff(from.as_deref(), &to, offset, limit))
    }

    /// Compares all records of the pool with each other, in steps: I/O and other calls go on in between. Changes
    /// nothing.
    #[must_use]
    pub fn check(&self) -> Promise<Vec<Finding>> {
        let (promise, resolver) = promise();
        let told = |result: Result<Checkup, LvolError>| {
            resolver.resolve(result.map(|checkup| checkup.findings));
        };
        let called = self
            .shared
            .call(move |worker| worker.begin_check(false, Box::new(told)));
        drop(called);
        promise
    }

    /// As [`Pool::check`], and tells what it took; with `repairs` does what [`Pool::check`] tells of. I/O goes on;
    /// where a volume must not be in use the finding says so, and that is left as it is. A power cut in the middle
    /// leaves a pool that opens and can be repaired again.
    #[must_use]
    pub fn check_up(&self, repairs: bool) -> Promise<Checkup> {
        let (promise, resolver) = promise();
        let told = |result| resolver.resolve(result);
        let called = self
            .shared
            .call(move |worker| worker.begin_check(repairs, Box::new(told)));
        drop(called);
        promise
    }

    /// Commits everything that has completed.
    #[must_use]
    pub fn commit(&self) -> Promise<()> {
        self.change(|_| Ok(()))
    }

    /// Closes the pool. I/O that comes later fails. The pool is closed afterwards even if this fails.
    #[must_use]
    pub fn close(&self) -> Promise<()> {
        self.ask(|worker| worker.close(false))
    }

    /// Closes the pool and wipes its superblocks: it is no more.
    #[must_use]
    pub fn destroy(&self) -> Promise<()> {
        self.ask(|worker| worker.close(true))
    }

    /// A call that changes nothing, answered at once.
    fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut PoolWorker) -> Result<T, LvolError> + Send + 'static,
    ) -> Promise<T> {
        let (promise, resolver) = promise();
        let called = self
            .shared
            .call(move |worker| resolver.resolve(call(worker)));
        drop(called);
        promise
    }

    /// A call whose change is durable when it is answered.
    fn change<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut PoolWorker) -> Result<T, LvolError> + Send + 'static,
    ) -> Promise<T> {
        let (promise, resolver) = promise();
        let called = self.shared.call(move |worker| match call(worker) {
            Err(error) => resolver.resolve(Err(error)),
            Ok(answer) => worker.when_committed(|_, result| {
                resolver.resolve(result.map(|()| answer));
            }),
        });
        drop(called);
        promise
    }

    /// Whether the pool has stopped: closed, or nobody knows what its device holds.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::SeqCst)
    }
}

/// A name that a pool or a volume may have.
fn check_name(name: &str) -> Result<(), LvolError> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "is longer than 255 bytes"
    } else if name.contains(['/', '@']) {
        "has a / or a @ in it, which part names"
    } else if name.chars().any(char::is_control) {
        "has a control character in it"
    } else {
        return Ok(());
    };
    Err(LvolError::Name {
        name: name.to_owned(),
        problem,
    })
}
