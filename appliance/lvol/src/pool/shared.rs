//! What the worker and the channels share.
//!
//! Nothing here is locked per I/O: a channel that has its chain of pieces touches atomics only. Locks
//! are taken when a piece becomes dirty, when a chain is missing, and for batches of clusters.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Waker;

use block::{Bdev, IoError};
use dma::{IobufPool, LeaseBoard};

use super::external::ExternalPart;
use super::worker::PoolWorker;
use super::write_log::WriteLog;
use crate::LvolError;
use crate::format::LayerId;
use crate::map::{Change, Cluster, Epoch, Granularity, PIECE_SLOTS, Piece};

/// Management calls that may wait for the worker.
const CALLS_MAX: usize = 4096;

/// Ticket of those who wait for free pages of the log.
pub(crate) const LOG_TICKET: u64 = u64::MAX;

/// Everything of a pool that is not the worker's alone.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) base: Arc<Bdev>,
    pub(crate) buffers: Arc<IobufPool>,
    pub(crate) granularity: Granularity,
    pub(crate) block_size: u32,
    /// Its power of two: nothing is divided for an I/O.
    pub(crate) block_shift: u32,
    pub(crate) epoch: Arc<Epoch>,
    /// Moves when the chains of any volume do. See [`VolumeShared::chains`].
    pub(crate) chains: AtomicU64,
    /// Held while chains of several volumes move, and to look at one's first number.
    pub(crate) moving: Mutex<()>,
    /// A commit has begun and not ended.
    pub(crate) committing: AtomicBool,
    /// Pieces that are dirty or were since the last commit began.
    pub(crate) dirty_count: AtomicU64,
    /// I/O fails: the pool was closed, or nobody knows what its device holds.
    pub(crate) stopped: AtomicBool,
    /// Set before the first channel is opened, if the pool has one.
    pub(super) log: OnceLock<WriteLog>,
    /// Who lends memory of the device.
    leases: Mutex<Vec<Weak<LeaseBoard>>>,
    inbox: Mutex<Inbox>,
    waker: Waker,
}

/// What waits for the worker.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub(crate) requests: Vec<Request>,
    pub(crate) calls: VecDeque<Call>,
    pub(crate) dirty: Vec<DirtyPiece>,
    /// Clusters that layers gave up.
    pub(crate) freed: Vec<Cluster>,
    /// Clusters that were handed out and never used.
    pub(crate) returned: Vec<Cluster>,
    /// Clusters that the device may still write to, for nobody waits for it.
    pub(crate) pinned: Vec<Cluster>,
    /// Pieces that the log may say of what is not: held until a commit covers it.
    pub(crate) held: Vec<Arc<Piece>>,
    /// Nobody takes anything out any more.
    closed: bool,
}

/// A management call, run by the worker.
pub(crate) struct Call(pub(crate) Box<dyn FnOnce(&mut PoolWorker) + Send>);

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Call")
    }
}

/// A piece to commit.
#[derive(Debug, Clone)]
pub(crate) struct DirtyPiece {
    pub(crate) layer: LayerId,
    pub(crate) index: u64,
    pub(crate) piece: Arc<Piece>,
}

/// What a channel asks of the worker. The answer goes into its mailbox.
#[derive(Debug)]
pub(crate) enum Request {
    /// The pieces that a part of the volume is read from.
    Resolve {
        volume: Arc<VolumeShared>,
        piece: u64,
        mailbox: Arc<Mailbox>,
    },
    /// Clusters for first writes.
    Clusters { thick: bool, mailbox: Arc<Mailbox> },
    /// The device outside the pool that a volume lies on.
    External {
        part: ExternalPart,
        mailbox: Arc<Mailbox>,
    },
    /// Everything that has completed is to be durable.
    Commit { mailbox: Arc<Mailbox>, ticket: u64 },
    /// Pages of the log are to be free. Answered as a commit with [`LOG_TICKET`].
    LogPages { mailbox: Arc<Mailbox> },
    /// The log is filling: a commit is to come before it is full. Nobody waits for it.
    CommitSoon,
}

/// An answer of the worker.
#[derive(Debug)]
pub(crate) enum Reply {
    Resolved {
        piece: u64,
        /// [`VolumeShared::chains`] when it was looked up.
        chains: u64,
        chain: Result<Arc<Chain>, IoError>,
    },
    Clusters(Result<Vec<Cluster>, IoError>),
    External {
        uuid: [u8; 16],
        device: Result<Arc<Bdev>, IoError>,
    },
    /// The volume does not lie on this device any more.
    ExternalGone {
        uuid: [u8; 16],
    },
    Committed {
        ticket: u64,
        result: Result<(), IoError>,
    },
}

/// A channel's place for answers.
#[derive(Debug)]
pub(crate) struct Mailbox {
    replies: Mutex<Vec<Reply>>,
    filled: AtomicBool,
    waker: Waker,
}

/// The pieces that a stretch of 128 clusters is read from, the volume's own first.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) layer: LayerId,
    pub(crate) index: u64,
    pub(crate) own: Arc<Piece>,
    /// Of the layers below that have anything there, the nearest first.
    pub(crate) ancestors: Vec<Arc<Piece>>,
    /// Is there any layer below?
    pub(crate) has_parent: bool,
    /// What lies below all layers, if it has anything here.
    pub(crate) external: Option<ExternalPart>,
}

impl Chain {
    /// First byte of a slot in the volume.
    pub(crate) fn start_of(&self, slot: usize, cluster_size: u64) -> u64 {
        (self.index * PIECE_SLOTS as u64 + slot as u64) * cluster_size
    }

    /// So many of a slot's first bytes are an external device's where no layer has anything.
    pub(crate) fn external_bytes(&self, slot: usize, cluster_size: u64) -> u64 {
        let start = self.start_of(slot, cluster_size);
        self.external
            .map_or(0, |part| part.covers(start, cluster_size))
    }

    /// May there be something in a slot below the first layer?
    pub(crate) fn hides(&self, slot: usize, cluster_size: u64) -> bool {
        !self.ancestors.is_empty() || self.external_bytes(slot, cluster_size) > 0
    }
}

/// A volume or a snapshot, as its channels and its device see it.
#[derive(Debug)]
pub(crate) struct VolumeShared {
    /// The layer at the top. Changes only under [`Shared::moving`].
    pub(crate) layer: AtomicU64,
    pub(crate) block_count: AtomicU64,
    /// Moves when the volume's chains do: those looked up before are to be dropped.
    pub(crate) chains: AtomicU64,
    /// I/O that is in flight may still change what is below: do not copy from there.
    pub(crate) unsettled: AtomicBool,
    /// A call has given it another layer, which its channels do not know before that is committed.
    pub(crate) moving: AtomicBool,
    /// The volume is gone, or its records are damaged.
    pub(crate) faulted: AtomicBool,
    pub(crate) is_snapshot: bool,
    /// Writes are refused.
    pub(crate) read_only: AtomicBool,
    /// Clusters of its layer and of those below, as of the last look at the pool's state.
    pub(crate) allocated: AtomicU64,
    pub(crate) thick: AtomicBool,
    /// Channels that are open.
    pub(crate) channels: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        base: Arc<Bdev>,
        buffers: Arc<IobufPool>,
        granularity: Granularity,
        waker: Waker,
    ) -> Arc<Self> {
        let block_size = base.geometry().block_size;
        Arc::new(Self {
            block_size,
            block_shift: block_size.trailing_zeros(),
            base,
            buffers,
            granularity,
            epoch: Epoch::new(),
            chains: AtomicU64::new(0),
            moving: Mutex::default(),
            committing: AtomicBool::new(false),
            dirty_count: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            log: OnceLock::new(),
            leases: Mutex::default(),
            inbox: Mutex::default(),
            waker,
        })
    }

    pub(crate) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // A panic while it was held left plain lists behind.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cold: taken by a channel once, and to look at the boards.
    pub(crate) fn leases(&self) -> MutexGuard<'_, Vec<Weak<LeaseBoard>>> {
        // A panic while it was held left a plain list behind.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake_worker(&self) {
        self.waker.wake_by_ref();
    }

    /// Asks the worker. Bounded by the I/Os of the channels: each waits for one answer at a time.
    pub(crate) fn request(&self, request: Request) {
        self.inbox().requests.push(request);
        self.wake_worker();
    }

    /// Hands the worker a call.
    pub(crate) fn call(
        &self,
        call: impl FnOnce(&mut PoolWorker) + Send + 'static,
    ) -> Result<(), LvolError> {
        {
            let mut inbox = self.inbox();
            if inbox.closed {
                return Err(LvolError::Closed);
            }
            if inbox.calls.len() >= CALLS_MAX {
                return Err(LvolError::Busy { waiting: CALLS_MAX });
            }
            inbox.calls.push_back(Call(Box::new(call)));
        }
        self.wake_worker();
        Ok(())
    }

    /// Nothing is answered any more. Returns what was waiting, to be dropped.
    pub(crate) fn close(&self) -> Inbox {
        self.stopped.store(true, Ordering::SeqCst);
        let mut inbox = self.inbox();
        let waiting = std::mem::take(&mut *inbox);
        inbox.closed = true;
        waiting
    }

    /// What a change of a slot of `chain`'s own piece means for the pool.
    pub(crate) fn note(&self, chain: &Chain, change: Change) {
        self.note_piece(chain.layer, chain.index, &chain.own, change);
    }

    /// A change that the log may have is not made. Nothing begins in the piece before a commit covers that.
    pub(crate) fn hold(&self, piece: &Arc<Piece>) {
        piece.hold();
        self.inbox().held.push(Arc::clone(piece));
        self.request(Request::CommitSoon);
    }

    pub(crate) fn note_piece(
        &self,
        layer: LayerId,
        index: u64,
        piece: &Arc<Piece>,
        change: Change,
    ) {
        if change.freed.is_none() && !change.queue {
            return;
        }
        let mut inbox = self.inbox();
        inbox.freed.extend(change.freed);
        if change.queue {
            inbox.dirty.push(DirtyPiece {
                layer,
                index,
                piece: Arc::clone(piece),
            });
            self.dirty_count.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The log of first writes, if the pool has one.
    #[inline]
    pub(crate) fn log(&self) -> Option<&WriteLog> {
        self.log.get()
    }

    /// May something that has completed be lost with power, though the device has it?
    pub(crate) fn is_uncommitted(&self) -> bool {
        self.dirty_count.load(Ordering::SeqCst) != 0
            || self.committing.load(Ordering::SeqCst)
            // A piece is counted a moment after it was changed.
            || self.log().is_some_and(WriteLog::is_uncommitted)
    }
}

impl Mailbox {
    pub(crate) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Self {
            replies: Mutex::default(),
            filled: AtomicBool::new(false),
            waker,
        })
    }

    pub(crate) fn put(&self, reply: Reply) {
        let mut replies = self.lock();
        replies.push(reply);
        self.filled.store(true, Ordering::Release);
        drop(replies);
        self.waker.wake_by_ref();
    }

    /// Moves the replies to `out`. One load while there are none.
    pub(crate) fn take(&self, out: &mut Vec<Reply>) {
        if self.filled.load(Ordering::Acquire) {
            let mut replies = self.lock();
            self.filled.store(false, Ordering::Relaxed);
            out.append(&mut replies);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Reply>> {
        // A panic while it was held left a plain list behind.
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VolumeShared {
    pub(crate) fn layer(&self) -> LayerId {
        LayerId(self.layer.load(Ordering::SeqCst))
    }

    /// Is a snapshot of it being taken, or is it being rolled back?
    pub(crate) fn is_in_transit(&self) -> bool {
        self.unsettled.load(Ordering::SeqCst) || self.moving.load(Ordering::SeqCst)
    }
}
