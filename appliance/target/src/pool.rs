//! The seams to pools: [`Pool`], what the control plane wants of one that is open; [`Engine`] and
//! [`PoolDriver`], what the data plane wants of the library that knows how to make pools.
//!
//! Names here are those within the pool: `NAME` of a volume, `NAME@SNAP` of a snapshot. Calls give a
//! future ([`Work`]) and none blocks; a future that was begun must be driven to its end, or a volume
//! may be in the pool and not among the block devices.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use api::v1::{self, EventType, PoolSpec};
use block::{Bdev, BlockDevice};
use image_file::Format;
use uuid::Uuid;

use crate::error::ControlError;
use crate::runtime::RuntimeError;

/// A call on its way.
pub type Work<T> = Pin<Box<dyn Future<Output = Result<T, ControlError>> + Send>>;

/// How a pool comes to be open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attach {
    /// Made new on the device.
    Create {
        /// Bytes of a cluster; the default when `None`.
        cluster_size: Option<u64>,
        /// Overwrite what is there.
        force: bool,
        /// What its owner says of it from the beginning.
        change: PoolChange,
    },
    /// Found on the device.
    Open,
}

/// Labels, by their keys.
pub type Labels = Vec<(String, String)>;

/// Labels to set, or to take away (`None`).
pub type LabelChanges = Vec<(String, Option<String>)>;

/// What is to change of a pool; the rest stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolChange {
    /// Labels of its owner.
    pub labels: LabelChanges,
    /// Share in use at which it warns, percent.
    pub warning_percent: Option<u32>,
    /// Share in use at which it is critical, percent.
    pub critical_percent: Option<u32>,
    /// Mark it as the system pool of a node, or take the mark off.
    pub system: Option<bool>,
}

/// What the owner of a new volume sets with it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VolumeSettings {
    /// Labels of its owner.
    pub labels: Labels,
    /// Limits of its I/O.
    pub qos: Option<v1::QosLimits>,
}

/// What is to change of a volume; the rest stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VolumeChange {
    /// Labels of its owner.
    pub labels: LabelChanges,
    /// Refuse writes, or allow them.
    pub read_only: Option<bool>,
    /// Its limits from now on; the default takes them away.
    pub qos: Option<v1::QosLimits>,
}

/// Which volumes a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeQuery {
    /// Snapshots, not volumes.
    pub snapshots: bool,
    /// Only snapshots whose name starts so: `NAME@`.
    pub prefix: String,
    /// Only those with all of these labels.
    pub labels: Labels,
    /// Only names after this one.
    pub after: String,
    /// At most so many.
    pub limit: usize,
}

/// One piece of a list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VolumePage {
    /// In the order of their names.
    pub volumes: Vec<v1::Volume>,
    /// All that the query fits but for `after` and `limit`.
    pub total: usize,
}

/// Long work that moves or reads much: `copy` does it. Files are named by absolute paths on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Makes a volume of an image.
    Import {
        /// The new volume.
        name: String,
        /// A file or a block device.
        file: PathBuf,
        /// Its first bytes tell when `None`.
        format: Option<Format>,
        /// Set space aside for all of it.
        thick: bool,
        /// Labels of its owner.
        labels: Labels,
    },
    /// Makes an image of a snapshot, or of a volume that nothing else uses.
    Export {
        /// The volume or snapshot.
        name: String,
        /// A new file, or a block device.
        file: PathBuf,
        /// The suffix tells when `None`.
        format: Option<Format>,
    },
    /// Copies what a snapshot has, and its parent has not, to the same places of a block device.
    Copy {
        /// The snapshot.
        snapshot: String,
        /// Name or UUID of the device.
        bdev_name: String,
    },
    /// Reads everything that is mapped.
    Scrub {
        /// No faster than this; 0 is no limit.
        bytes_per_sec: u64,
    },
}

/// A pool that is open. Volumes and snapshots come with `POOL/` before their names.
pub trait Pool: Send + Sync + fmt::Debug {
    /// What the pool knows of itself; specification, generation and status are the caller's.
    fn reading(&self) -> Work<v1::Pool>;
    /// Uses what the device has grown by.
    fn grow(&self) -> Work<()>;
    /// Goes through the metadata; mends it when `repair`.
    fn check(&self, repair: bool) -> Work<Vec<v1::Finding>>;
    /// Begins long work that moves or reads much. The ID of the operation.
    fn begin(&self, job: Job) -> Work<u64>;

    /// One volume or snapshot.
    fn volume(&self, name: &str) -> Work<Option<v1::Volume>>;
    /// A piece of the list.
    fn volumes(&self, query: VolumeQuery) -> Work<VolumePage>;
    /// Makes an empty volume.
    fn create_volume(
        &self,
        name: &str,
        size_bytes: u64,
        thick: bool,
        settings: VolumeSettings,
    ) -> Work<()>;
    /// Makes a volume on a snapshot.
    fn clone_volume(&self, snapshot: &str, name: &str, settings: VolumeSettings) -> Work<()>;
    /// Makes a volume on a block device of the node, which is in no pool.
    fn clone_bdev(&self, bdev_name: &str, name: &str, settings: VolumeSettings) -> Work<()>;
    /// Gives a volume another size, and tells hosts that see it.
    fn resize_volume(&self, name: &str, size_bytes: u64) -> Work<()>;
    /// Gives a volume another name. Nothing uses it.
    fn rename_volume(&self, name: &str, new_name: &str) -> Work<()>;
    /// Deletes a volume or a snapshot that nothing uses. The ID of the operation that gives its space
    /// back, when there is one.
    fn delete_volume(&self, name: &str) -> Work<Option<u64>>;
    /// Changes labels and limits of a volume, and refuses or allows writes.
    fn change_volume(&self, name: &str, change: VolumeChange) -> Work<()>;
    /// Changes labels and thresholds of the pool.
    fn change(&self, change: PoolChange) -> Work<()>;
    /// Begins to give a volume clusters of its own: for its whole size, or for what its parent shows.
    /// The ID of the operation.
    fn detach_from_parent(&self, name: &str, whole: bool) -> Work<u64>;
    /// Makes a volume show what a snapshot shows.
    fn rollback_volume(&self, name: &str, snapshot: &str) -> Work<()>;
    /// Makes a volume lie on a snapshot instead of what it lies on.
    fn set_parent(&self, name: &str, snapshot: &str) -> Work<()>;
    /// Makes a volume lie on a block device of the node, which is in no pool.
    fn set_parent_bdev(&self, name: &str, bdev_name: &str) -> Work<()>;
    /// Takes snapshots at one moment: pairs of volume and the name after the `@`. Each gets the labels.
    fn create_snapshots(&self, names: &[(String, String)], labels: Labels) -> Work<()>;
    /// Extents from `offset` on in which two snapshots may differ, at most `limit`. `from` empty: what
    /// `to` has.
    fn diff(&self, from: &str, to: &str, offset: u64, limit: usize) -> Work<Vec<v1::Extent>>;

    /// Whether it is marked as the system pool of a node.
    fn is_system(&self) -> Work<bool>;
    /// What a node keeps in the pool.
    fn node_state(&self) -> Work<lvol::NodeState>;
    /// Changes what a node keeps in the pool. Durable.
    fn put_node_state(&self, change: lvol::NodeChange) -> Work<()>;
    /// Puts this in the place of what a node keeps in the pool. Durable.
    fn replace_node_state(&self, state: lvol::NodeState) -> Work<()>;

    /// All operations that the pool remembers.
    fn operations(&self) -> Work<Vec<v1::Operation>>;
    /// Asks an operation to stop.
    fn cancel(&self, id: u64) -> Work<()>;
}

/// A volume or a snapshot as a block device.
#[derive(Debug, Clone)]
pub struct VolumeDevice {
    /// Its name within the pool.
    pub name: String,
    /// Its UUID, for ever.
    pub uuid: Uuid,
    /// Its NGUID, for ever.
    pub nguid: [u8; 16],
    /// Its owner wants no writes.
    pub read_only: bool,
    /// Limits of its I/O.
    pub qos: block::QosLimits,
    /// The device.
    pub device: Arc<dyn BlockDevice>,
}

/// A pool that is open, as the library below has it: [`Pool`] without the names of block devices.
///
/// Its calls change the pool and know nothing of who uses a volume. A device whose volume was resized
/// tells its new size at once, and takes [`BlockDevice::resize`] to that size as no change. Dropped
/// without [`Engine::close`], it closes in the background.
pub trait Engine: Pool {
    /// The pool itself, for who drives its operations; `None` where it has none.
    fn library(&self) -> Option<lvol::Pool> {
        None
    }
    /// The device of a volume or a snapshot.
    fn device(&self, name: &str) -> Work<Option<VolumeDevice>>;
    /// The devices of all volumes and snapshots.
    fn devices(&self) -> Work<Vec<VolumeDevice>>;
    /// Closes the pool cleanly, or wipes its superblocks when `wipe`. I/O that comes later fails. The
    /// pool is closed afterwards even when this fails: it has let go of its device.
    fn close(&self, wipe: bool) -> Work<()>;
}

/// Ends with an open pool; pending when what is missing may come.
pub type Opening = Pin<Box<dyn Future<Output = Result<Arc<dyn Engine>, RuntimeError>> + Send>>;

/// Makes and opens pools.
pub trait PoolDriver: Send + Sync {
    /// The name of the pool on a device.
    fn probe(&self, base: Arc<Bdev>) -> Work<Option<String>>;
    /// Opens the pool on a device, or makes it. One with the UUID in `spec` and another name gets the name.
    /// The caller holds a claim on the device until the pool is closed.
    fn open(&self, base: Arc<Bdev>, spec: &PoolSpec, attach: Attach) -> Opening;
}

/// Something that happened in a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolEvent {
    /// [`EventType::Space`], [`EventType::Fault`] or [`EventType::Operation`].
    pub event_type: EventType,
    /// "pool", "volume" or "operation".
    pub kind: &'static str,
    /// `POOL`, `POOL/NAME` or `POOL/ID`.
    pub name: String,
    /// One sentence.
    pub text: String,
}
