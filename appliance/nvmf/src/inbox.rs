//! What the control side and other poll groups tell a poll group, and how.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use fabric_wire::TransportAddress;

use crate::config::SubsystemConfig;
use crate::group_namespace::Pauses;
use crate::reservation::{HostId, Reservations, View};
use crate::subsystem::SubsystemUid;
use crate::ticket::Part;
use crate::transport::{Acceptor, CloseReason, NewConnection, QpairId};

/// A poll group's number within its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PollGroupId(pub usize);

/// Accepted connections that may wait for one poll group. At the bound a connection is closed.
const WAITING_CONNECTIONS_MAX: usize = 4096;

/// A message to a poll group. Messages other than connections are bounded by the control side:
/// each belongs to a change for which somebody waits.
pub(crate) enum Message {
    Adopt(NewConnection),
    Accept(Box<dyn Acceptor>, Arc<TransportAddress>),
    StopAccepting(Arc<TransportAddress>, Arc<Part>),
    Subsystem(SubsystemUid, Arc<SubsystemConfig>, Arc<Part>),
    /// The pauses in force now; the part is held until what they stop has ended.
    Pauses(SubsystemUid, Arc<Pauses>, Option<Arc<Part>>),
    /// A namespace's reservations have changed.
    Reservation(SubsystemUid, ReservationChange, Arc<Part>),
    /// Close a queue pair; the part is held until its I/O has ended.
    Close(QpairId, u64, CloseReason, Option<Arc<Part>>),
    /// A controller has news for its Asynchronous Event Requests.
    Event(QpairId, u64),
    /// Abort a command on a queue of this group (CID as in the Abort command).
    Abort(QpairId, u64, u16, Arc<AbortResult>),
    CloseAll(CloseReason, Arc<Part>),
}

/// A change of a namespace's reservations, as poll groups take it.
#[derive(Clone, Debug)]
pub(crate) struct ReservationChange {
    pub(crate) reservations: Arc<Reservations>,
    pub(crate) view: Arc<View>,
    /// Hosts whose commands are aborted.
    pub(crate) aborted: Arc<[HostId]>,
    /// The part is held until what has begun has ended.
    pub(crate) drains: bool,
}

/// Where the outcome of an Abort that crossed threads is put.
#[derive(Debug, Default)]
pub(crate) struct AbortResult {
    pub(crate) is_done: AtomicBool,
    pub(crate) was_aborted: AtomicBool,
}

/// Counters of a poll group; written by its thread, read by anyone.
#[derive(Debug, Default)]
pub struct GroupCounters {
    /// Admin queue pairs since start.
    pub admin_qpairs: AtomicU64,
    /// I/O queue pairs since start.
    pub io_qpairs: AtomicU64,
    /// Admin queue pairs now.
    pub current_admin_qpairs: AtomicU64,
    /// I/O queue pairs now.
    pub current_io_qpairs: AtomicU64,
    /// Connections now that have not sent Connect yet.
    pub current_unassociated_qpairs: AtomicU64,
    /// Commands whose device I/O is under way.
    pub pending_bdev_io: AtomicU64,
    /// I/O commands finished.
    pub completed_nvme_io: AtomicU64,
    /// Times that a command had to wait for a buffer.
    pub buffer_waits: AtomicU64,
    /// Connections closed because the group could not take them.
    pub refused_connections: AtomicU64,
}

/// A poll group as others see it.
#[derive(Debug)]
pub struct GroupHandle {
    /// Its number.
    pub id: PollGroupId,
    /// Its name, `nvmf_tgt_poll_group_000`.
    pub name: String,
    /// The NUMA node of its thread, where known.
    pub numa_node: Option<u32>,
    /// Bytes of its pool's large buffers.
    pub(crate) large_bufsize: u32,
    /// Its counters.
    pub counters: GroupCounters,
    inbox: Mutex<VecDeque<Message>>,
    has_mail: AtomicBool,
    /// The group has been dropped: nobody reads messages any more.
    is_gone: AtomicBool,
    connections: AtomicUsize,
    waker: Waker,
}

impl Message {
    /// Ends a message that nobody will read: whoever waits for it waits no longer.
    fn expire(self) {
        if let Self::Abort(.., result) = self {
            result.is_done.store(true, Ordering::Release);
        }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Adopt(_) => "Adopt",
            Self::Accept(..) => "Accept",
            Self::StopAccepting(..) => "StopAccepting",
            Self::Subsystem(..) => "Subsystem",
            Self::Pauses(..) => "Pauses",
            Self::Reservation(..) => "Reservation",
            Self::Close(..) => "Close",
            Self::Event(..) => "Event",
            Self::Abort(..) => "Abort",
            Self::CloseAll(..) => "CloseAll",
        })
    }
}

impl GroupHandle {
    pub(crate) fn new(
        id: PollGroupId,
        numa_node: Option<u32>,
        large_bufsize: u32,
        waker: Waker,
    ) -> Self {
        Self {
            id,
            name: format!("nvmf_tgt_poll_group_{:03}", id.0),
            numa_node,
            large_bufsize,
            counters: GroupCounters::default(),
            inbox: Mutex::default(),
            has_mail: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            waker,
        }
    }

    /// Sends a message. A group that is gone has done its part: the message is dropped.
    pub(crate) fn send(&self, message: Message) {
        {
            let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_gone.load(Ordering::Relaxed) {
                drop(inbox);
                message.expire();
                return;
            }
            inbox.push_back(message);
        }
        self.has_mail.store(true, Ordering::Release);
        self.waker.wake_by_ref();
    }

    /// Hands over a connection; `false` if too many wait already: it is closed then.
    pub(crate) fn adopt(&self, connection: NewConnection) -> bool {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= WAITING_CONNECTIONS_MAX {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            self.refuse();
            return false;
        }
        self.send(Message::Adopt(connection));
        true
    }

    /// Counts a connection that was refused.
    pub(crate) fn refuse(&self) {
        self.counters
            .refused_connections
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Connections that are up here, those in the inbox included. A few off while they come and go.
    pub(crate) fn connection_count(&self) -> usize {
        let counters = &self.counters;
        let up = [
            &counters.current_admin_qpairs,
            &counters.current_io_qpairs,
            &counters.current_unassociated_qpairs,
        ];
        let up: u64 = up.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        usize::try_from(up).unwrap_or(usize::MAX) + self.connections.load(Ordering::Relaxed)
    }

    /// What has come; one load when nothing has.
    pub(crate) fn receive(&self, messages: &mut VecDeque<Message>) {
        if !self.has_mail.load(Ordering::Acquire) {
            return;
        }
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_mail.store(false, Ordering::Relaxed);
        messages.append(&mut inbox);
        self.connections.store(0, Ordering::Relaxed);
    }

    /// The group is gone: drops what it has not read, and whatever is sent later.
    pub(crate) fn close(&self) {
        let messages = {
            let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            self.is_gone.store(true, Ordering::Relaxed);
            std::mem::take(&mut *inbox)
        };
        messages.into_iter().for_each(Message::expire);
    }

    /// Wakes the group's thread.
    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(crate) fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Acquire)
    }
}
