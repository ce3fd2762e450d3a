//! Long work that moves or reads much: images in and out, shallow copies, scrubs.
//!
//! What it is: one thread, `copy`, with a `tokio-uring` runtime for files. It drives operations that a pool
//! keeps ([`lvol::Pool::begin`]): at most [`RUNNING_MAX`] at once, the others wait in order. Volumes and
//! devices are reached as everybody reaches them, by a channel of a [`block::Bdev`].
//!
//! What it is not: it makes no volumes and decides nothing about names; see `nvmf_runtime::copies`.
//!
//! How an operation ends:
//! - done or failed: its claims are let go of, what it was to take back is taken back, then the pool is told.
//!   Told last: after a crash in between it goes on, and ends the same way.
//! - cancelled: the pool says so within [`LOOK_INTERVAL`]; then as a failure.
//! - its pool is closed: it stops where it is, and goes on when the pool is opened again.
//!
//! How far it is is told only after what it has written was flushed.

mod copying;
mod device;
mod disk_io;
mod exporting;
mod importing;
mod job;
mod scrubbing;
mod worker;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use block::{Bdev, Claim};
use dma::IobufPool;
use image_file::{Format, Identity};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

pub(crate) use self::job::{Detail, describe};

use crate::pool::Work;

/// Operations that are worked on at once.
pub const RUNNING_MAX: usize = 4;
/// Operations that wait for their turn.
pub const WAITING_MAX: usize = 64;
/// Time between two looks at whether an operation was cancelled.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What is learned of an image before anything is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inspected {
    pub(crate) format: Format,
    /// Bytes of the disk.
    pub(crate) len_bytes: u64,
    pub(crate) identity: Identity,
}

/// Takes back what an operation has made.
pub(crate) type Undo = Box<dyn FnOnce() -> Work<()> + Send>;

/// An operation that is to be driven.
pub(crate) struct Task {
    /// The pool that keeps it, and its name.
    pub(crate) pool: lvol::Pool,
    pub(crate) pool_name: String,
    pub(crate) id: u64,
    /// As the pool has it: a volume or snapshot without the pool's name.
    pub(crate) subject: String,
    pub(crate) done: u64,
    pub(crate) detail: Detail,
    /// The device of the subject; of the pool itself for a scrub. Or why there is none.
    pub(crate) device: Result<Arc<Bdev>, String>,
    /// The device that is copied to.
    pub(crate) to: Option<Arc<Bdev>>,
    /// Held until it has ended.
    pub(crate) claims: Vec<Claim>,
    pub(crate) undo: Option<Undo>,
    /// Its place; none for what was kept over a restart.
    pub(crate) place: Option<Place>,
}

/// A place among those that may be under way or wait.
pub(crate) struct Place(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

enum Message {
    Inspect {
        path: PathBuf,
        format: Option<Format>,
        reply: oneshot::Sender<Result<Inspected, String>>,
    },
    Drive(Box<Task>),
    /// Lets go of everything of a pool.
    Release {
        pool: String,
        reply: oneshot::Sender<()>,
    },
}

/// The way to the thread. It is started when it is first needed, and ends with this.
pub(crate) struct Copier {
    buffers: Arc<IobufPool>,
    messages: Mutex<Option<mpsc::UnboundedSender<Message>>>,
    places: Arc<Semaphore>,
}

impl std::fmt::Debug for Copier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copier").finish_non_exhaustive()
    }
}

impl Copier {
    /// Its buffers come from `buffers`.
    pub(crate) fn new(buffers: Arc<IobufPool>) -> Copier {
        Copier {
            buffers,
            messages: Mutex::default(),
            places: Arc::new(Semaphore::new(RUNNING_MAX + WAITING_MAX)),
        }
    }

    /// A place for one more operation.
    pub(crate) fn place(&self) -> Result<Place, String> {
        let permit = Arc::clone(&self.places).try_acquire_owned();
        permit.map(Place).map_err(|_| {
            format!(
                "{RUNNING_MAX} operations are worked on and {WAITING_MAX} wait already; cancel one or \
                 wait for it"
            )
        })
    }

    /// Looks at an image.
    pub(crate) async fn inspect(
        &self,
        path: PathBuf,
        format: Option<Format>,
    ) -> Result<Inspected, String> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Inspect {
            path,
            format,
            reply,
        };
        self.send(message)?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Drives an operation, now or when it has its turn.
    pub(crate) fn drive(&self, task: Task) -> Result<(), String> {
        self.send(Message::Drive(Box::new(task)))
    }

    /// Stops what goes on for a pool, without ending it.
    pub(crate) async fn release(&self, pool: &str) {
        let (reply, answer) = oneshot::channel();
        let is_idle = self.lock().is_none();
        let pool = pool.to_owned();
        if !is_idle && self.send(Message::Release { pool, reply }).is_ok() {
            // An error: the thread has ended, and everything with it.
            let _ = answer.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<mpsc::UnboundedSender<Message>>> {
        // A panic while the lock was held left a plain value behind.
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue needs no bound of its own: a task has a place, or was kept by a pool, which keeps 64.
    fn send(&self, message: Message) -> Result<(), String> {
        let mut messages = self.lock();
        if messages.as_ref().is_none_or(|there| there.is_closed()) {
            *messages = Some(worker::start(Arc::clone(&self.buffers))?);
        }
        let sender = messages.as_ref().ok_or_else(ended)?;
        sender.send(message).map_err(|_| ended())
    }
}

fn ended() -> String {
    "the thread that copies has ended, see the log".to_owned()
}
