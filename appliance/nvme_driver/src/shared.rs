//! What the owner of a controller and its channels share: atomics, and locks off the hot path.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use nvme_spec::Qid;
use nvme_spec::registers::Cap;

use crate::device::Device;
use crate::memory::Layout;
use crate::options::ControllerOptions;
use crate::orphans::Left;
use crate::reset_request::ResetRequest;
use crate::ring::Ring;

/// Where a controller is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ControllerState {
    /// Being brought up for the first time.
    Starting = 0,
    /// Taking I/O.
    Running = 1,
    /// Being reset; I/O waits.
    Resetting = 2,
    /// Being shut down.
    ShuttingDown = 3,
    /// Shut down and disabled.
    Stopped = 4,
    /// Given up: it did not come back. I/O fails.
    Failed = 5,
    /// Gone. I/O fails.
    Removed = 6,
}

impl ControllerState {
    const ALL: [Self; 7] = [
        Self::Starting,
        Self::Running,
        Self::Resetting,
        Self::ShuttingDown,
        Self::Stopped,
        Self::Failed,
        Self::Removed,
    ];

    /// The name shown to people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Resetting => "resetting",
            Self::ShuttingDown => "shutting down",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Removed => "removed",
        }
    }

    /// Whether it will take no I/O any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed | Self::Removed)
    }
}

/// Why a controller is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ResetReason {
    /// Somebody asked for it.
    Asked = 1,
    /// An I/O command ended neither in time nor by Abort.
    IoTimeout = 2,
    /// An admin command did not end in time.
    AdminTimeout = 3,
    /// CSTS.CFS.
    Fatal = 4,
    /// Bringing it up failed.
    SetUp = 5,
}

impl ResetReason {
    /// The name shown to people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked for",
            Self::IoTimeout => "an i/o command timed out",
            Self::AdminTimeout => "an admin command timed out",
            Self::Fatal => "fatal status (CSTS.CFS)",
            Self::SetUp => "set-up failed",
        }
    }

    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Asked),
            2 => Some(Self::IoTimeout),
            3 => Some(Self::AdminTimeout),
            4 => Some(Self::Fatal),
            5 => Some(Self::SetUp),
            _ => None,
        }
    }
}

/// Counters of what went wrong. Nothing here is counted per I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControllerStats {
    /// Commands past their deadline.
    pub timeouts: u64,
    /// Abort commands sent.
    pub aborts: u64,
    /// Controller resets begun.
    pub resets: u64,
    /// I/Os sent again.
    pub retries: u64,
    /// Completions that named no outstanding command.
    pub spurious: u64,
    /// I/Os that went through a bounce buffer.
    pub bounced: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) timeouts: AtomicU64,
    pub(crate) aborts: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) spurious: AtomicU64,
    pub(crate) bounced: AtomicU64,
}

/// What all parts of a controller see.
pub(crate) struct Shared {
    pub(crate) device: Device,
    pub(crate) options: ControllerOptions,
    pub(crate) layout: Layout,
    pub(crate) cap: Cap,
    pub(crate) queues: Vec<QueueShared>,
    /// The controller reads shadow doorbells (of the generation that is live).
    pub(crate) shadow: AtomicBool,
    state: AtomicU8,
    /// How often the controller was enabled.
    generation: AtomicU32,
    /// Generations up to this one: the device has let go of all memory.
    pub(crate) released: AtomicU32,
    reset_request: ResetRequest,
    /// Some queue asks for something.
    attention: AtomicBool,
    owner: Mutex<Option<Waker>>,
    pub(crate) counters: Counters,
}

impl Shared {
    pub(crate) fn new(
        device: Device,
        options: ControllerOptions,
        layout: Layout,
        cap: Cap,
    ) -> Arc<Self> {
        let queues = (1..=layout.io_queues()).map(|qid| QueueShared::new(Qid(qid)));
        Arc::new(Self {
            queues: queues.collect(),
            device,
            options,
            layout,
            cap,
            shadow: AtomicBool::new(false),
            state: AtomicU8::new(ControllerState::Starting as u8),
            generation: AtomicU32::new(0),
            released: AtomicU32::new(0),
            reset_request: ResetRequest::default(),
            attention: AtomicBool::new(false),
            owner: Mutex::new(None),
            counters: Counters::default(),
        })
    }

    pub(crate) fn state(&self) -> ControllerState {
        ControllerState::ALL[usize::from(self.state.load(SeqCst)) % ControllerState::ALL.len()]
    }

    /// Changes the state and wakes every channel.
    pub(crate) fn set_state(&self, state: ControllerState) {
        self.state.store(state as u8, SeqCst);
        self.wake_channels();
    }

    pub(crate) fn wake_channels(&self) {
        for queue in &self.queues {
            if let Some(waker) = &*lock(&queue.waker) {
                waker.wake_by_ref();
            }
        }
    }

    /// The generation that the controller is in; only its owner begins the next.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(SeqCst)
    }

    pub(crate) fn begin_generation(&self) {
        self.generation.fetch_add(1, SeqCst);
    }

    /// Asks for the end of `generation`.
    pub(crate) fn request_reset(&self, reason: ResetReason, generation: u32) {
        self.reset_request.ask(reason, generation);
        self.call_owner();
    }

    /// Why the generation that the controller is in is to end.
    pub(crate) fn take_reset_request(&self) -> Option<ResetReason> {
        self.reset_request.take(self.generation())
    }

    /// Makes the owner look at the queues.
    pub(crate) fn call_owner(&self) {
        self.attention.store(true, SeqCst);
        if let Some(waker) = &*lock(&self.owner) {
            waker.wake_by_ref();
        }
    }

    pub(crate) fn take_attention(&self) -> bool {
        self.attention.load(SeqCst) && self.attention.swap(false, SeqCst)
    }

    pub(crate) fn set_owner(&self, waker: Waker) {
        *lock(&self.owner) = Some(waker);
    }

    pub(crate) fn stats(&self) -> ControllerStats {
        let counters = &self.counters;
        ControllerStats {
            timeouts: counters.timeouts.load(SeqCst),
            aborts: counters.aborts.load(SeqCst),
            resets: counters.resets.load(SeqCst),
            retries: counters.retries.load(SeqCst),
            spurious: counters.spurious.load(SeqCst),
            bounced: counters.bounced.load(SeqCst),
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("device", &self.device)
            .field("state", &self.state())
            .field("released", &self.released)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

/// One queue pair, between its channel and the owner.
///
/// `live` is the generation that the queue works in, 0 while it does not. The owner sets it to 0
/// before a reset; the channel then stops touching the queue and stores the generation it was in to
/// `parked`. Only then does the owner make the queue anew and publish the next generation. A ring
/// that lies in `ring` is in nobody's hands: by taking it the owner has the queue for itself.
pub(crate) struct QueueShared {
    pub(crate) qid: Qid,
    pub(crate) live: AtomicU32,
    pub(crate) parked: AtomicU32,
    /// The drive grants fewer queues than it did: this one will not work.
    pub(crate) withheld: AtomicBool,
    /// A channel has the queue.
    pub(crate) opened: AtomicBool,
    /// Identifier plus one of a command that the channel wants aborted.
    pub(crate) abort: AtomicU32,
    pub(crate) waker: Mutex<Option<Waker>>,
    /// Where an idle queue stands.
    pub(crate) ring: Mutex<Option<Ring>>,
    /// The channel went away with commands in flight: what it left.
    pub(crate) orphan: Mutex<Option<Left>>,
}

impl std::fmt::Debug for QueueShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueShared")
            .field("qid", &self.qid)
            .field("live", &self.live)
            .field("parked", &self.parked)
            .field("opened", &self.opened)
            .field("idle", &lock(&self.ring).is_some())
            .field("orphan", &self.has_orphan())
            .finish_non_exhaustive()
    }
}

impl QueueShared {
    fn new(qid: Qid) -> Self {
        Self {
            qid,
            live: AtomicU32::new(0),
            parked: AtomicU32::new(0),
            withheld: AtomicBool::new(false),
            opened: AtomicBool::new(false),
            abort: AtomicU32::new(0),
            waker: Mutex::new(None),
            ring: Mutex::new(None),
            orphan: Mutex::new(None),
        }
    }

    /// The device has let go of what the last channel left.
    pub(crate) fn release_orphan(&self, device: &Device) {
        let left = lock(&self.orphan).take();
        if let Some(left) = left {
            left.release(&*device.mapper);
        }
    }

    pub(crate) fn has_orphan(&self) -> bool {
        lock(&self.orphan).is_some()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
