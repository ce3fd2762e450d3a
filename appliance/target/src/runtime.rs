//! The seam to the data plane.
//!
//! The control plane decides what shall be; a [`Runtime`] makes it so and tells what is. The real one
//! drives the NVMe-oF target and its block devices; tests have one that only remembers.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::v1::{self, BdevSpec, PoolSpec};

use crate::model::Edit;
use crate::pool::{Attach, Pool, Work};

/// Why an edit is not in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// Something is missing that may come: a file, an address, a device below. It is kept and retried.
    #[error("{0}")]
    Pending(String),
    /// It cannot be, as things are; the caller is told why and what to do, and nothing is kept.
    #[error("{0}")]
    Refused(String),
}

/// Ends when an edit is in force on every thread and what it took away is idle.
pub type Settled = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A device that was opened ahead of its registration; only the runtime knows what it is.
pub type Prepared = Box<dyn Any + Send>;

/// Ends with a device that is open, or with the reason why not.
pub type Preparing = Pin<Box<dyn Future<Output = Result<Prepared, RuntimeError>> + Send>>;

/// Ends when a format has ended, or with why not.
pub type Formatting = Pin<Box<dyn Future<Output = Result<(), RuntimeError>> + Send>>;

/// A [`Settled`] for edits that are in force at once.
#[must_use]
pub fn at_once() -> Settled {
    Box::pin(std::future::ready(()))
}

/// What runs in this process apart from what was asked for.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Memory for I/O.
    pub memory: v1::Memory,
    /// One sentence for each fallback that was taken.
    pub notices: Vec<String>,
    /// Bound on connected queue pairs.
    pub connections_max: u32,
    /// Controllers that are connected.
    pub controllers: u32,
    /// Queue pairs that are connected.
    pub qpairs: u32,
}

/// The data plane, as the control plane sees it.
///
/// Calls come from the control thread only. None may block longer than a short lock: what takes time
/// (opening a file, allocating a disk) is in the future of [`Runtime::prepare`]; waiting for other
/// threads is in the [`Settled`] of an edit. Reading never pauses I/O.
pub trait Runtime: Send + Sync + 'static {
    /// Opens what a new or grown block device needs. Nothing can be seen of it until
    /// [`Runtime::apply`] gets the result; dropped, it closes again.
    ///
    /// Only a device that is new (`is_new`) may make or grow its file. One that was acknowledged
    /// before and comes back, after a restart say, is pending while its file is gone: an empty one in
    /// its place would hide the loss.
    fn prepare(&self, spec: &BdevSpec, is_new: bool) -> Preparing;

    /// Makes one edit so. Edits come in the order of the model's changes, so what an edit needs has
    /// been given before, or is pending. `prepared` is that of the device in the edit, when it is new.
    ///
    /// # Errors
    /// Pending or refused; nothing has changed then.
    fn apply(&self, edit: &Edit, prepared: Option<Prepared>) -> Result<Settled, RuntimeError>;

    /// A block device that is pending is not wanted any more. Lets go of what is left of it: a drive
    /// that was pulled out leaves devices behind that wait for it.
    fn forget_bdev(&self, _name: &str) {}

    /// Resets the controller of a drive. False when there is none of this name in place.
    fn reset_bdev(&self, _name: &str) -> bool {
        false
    }

    /// Formats a namespace of a drive; what it holds is lost. Who uses it was asked before, but for
    /// I/O that has not ended. It goes on when the future is dropped.
    ///
    /// # Errors
    /// Refused: it is in use, or the drive is not in place; nothing has changed then.
    fn format_drive(&self, request: &v1::FormatDriveRequest) -> Result<Formatting, RuntimeError> {
        Err(RuntimeError::Refused(format!(
            "{} is no drive that is in place",
            request.name
        )))
    }

    /// As [`Runtime::prepare`], for a pool: makes it, or finds it on its device, and holds the device.
    fn prepare_pool(&self, spec: &PoolSpec, attach: Attach) -> Preparing;

    /// The name of the pool that is on a block device; `None` when there is none.
    fn probe_pool(&self, bdev_name: &str) -> Work<Option<String>>;

    /// Takes a pool out of place and closes it cleanly, or wipes it; nothing happens when it is not
    /// in place. [`Runtime::apply`] of its removal closes it too, but cannot tell how that ended.
    fn close_pool(&self, name: &str, wipe: bool) -> Work<()>;

    /// A pool that is in place.
    fn pool(&self, name: &str) -> Option<Arc<dyn Pool>>;

    /// Takes a host's right away within a deadline: [`Runtime::apply`] of its removal gives its
    /// controllers this long. The default is the runtime's own.
    fn set_host_deadline(&self, deadline: Duration);

    /// Facts about the process.
    fn facts(&self) -> Facts;

    /// Fills in what is known of a transport besides its specification.
    fn describe_transport(&self, transport: &mut v1::Transport);
    /// Fills in what is known of a block device besides its specification.
    fn describe_bdev(&self, bdev: &mut v1::Bdev);
    /// Fills in what is known of a subsystem besides its specification and its parts.
    fn describe_subsystem(&self, subsystem: &mut v1::Subsystem);
    /// Fills in what is known of a namespace besides its specification.
    fn describe_namespace(&self, namespace: &mut v1::Namespace);
    /// Fills in what is known of a listener besides its specification.
    fn describe_listener(&self, listener: &mut v1::Listener);
    /// Fills in what is known of a host besides its specification.
    fn describe_host(&self, host: &mut v1::Host);

    /// Names of the block devices that are in place: volumes and namespaces of drives too.
    fn bdevs(&self) -> Vec<String>;

    /// Counters of a block device; `None` while it is not in place.
    fn bdev_stats(&self, name: &str, per_thread: bool, histograms: bool) -> Option<v1::BdevStats>;

    /// Reactors.
    fn reactors(&self) -> Vec<v1::Reactor>;
    /// Threads.
    fn threads(&self) -> Vec<v1::Thread>;
    /// Pollers by thread.
    fn pollers(&self) -> Vec<v1::ThreadPollers>;
    /// Channels by thread.
    fn channels(&self) -> Vec<v1::ThreadChannels>;
    /// Buffer pools.
    fn iobuf(&self) -> v1::Iobuf;

    /// Controllers, ordered by NQN and ID.
    fn controllers(&self) -> Vec<v1::Controller>;
    /// Queue pairs, ordered by NQN, controller ID and queue ID.
    fn qpairs(&self) -> Vec<v1::Qpair>;
    /// Poll groups.
    fn poll_groups(&self) -> Vec<v1::PollGroup>;
    /// Ends a controller. False when there is none.
    fn disconnect(&self, nqn: &str, cntlid: u32) -> bool;

    /// Stops accepting, lets I/O finish within the deadline and flushes devices.
    fn drain(&self, deadline: Duration) -> Settled;
}
