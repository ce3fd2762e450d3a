//! Work requests, completions, events, attributes: plain data.

use std::fmt;
use std::sync::Arc;

use crate::traits::{CmId, Cq, Pd, Srq};

/// Most scatter/gather entries of a work request.
pub const SGE_MAX: usize = 2;

/// Bytes that a send can carry in its work request: those of a response capsule.
pub const INLINE_LEN: usize = 16;

/// Most private data of a connection manager's message in bytes.
pub const PRIVATE_DATA_MAX: usize = 196;

/// A piece of registered memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sge {
    /// Address of the first byte.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Local key of the registration.
    pub lkey: u32,
}

/// The pieces of memory of a work request.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SgeList {
    sges: [Sge; SGE_MAX],
    count: u8,
}

impl SgeList {
    /// None.
    pub const EMPTY: Self = Self {
        sges: [Sge {
            addr: 0,
            len: 0,
            lkey: 0,
        }; SGE_MAX],
        count: 0,
    };

    /// One piece.
    #[must_use]
    pub const fn one(sge: Sge) -> Self {
        Self {
            sges: [sge, Self::EMPTY.sges[0]],
            count: 1,
        }
    }

    /// Two pieces, one after the other.
    #[must_use]
    pub const fn two(first: Sge, second: Sge) -> Self {
        Self {
            sges: [first, second],
            count: 2,
        }
    }

    /// Bytes in all.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.iter().map(|sge| u64::from(sge.len)).sum()
    }
}

impl std::ops::Deref for SgeList {
    type Target = [Sge];

    fn deref(&self) -> &[Sge] {
        &self.sges[..usize::from(self.count)]
    }
}

impl fmt::Debug for SgeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// What a send work request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOp {
    /// Sends into a receive work request of the peer.
    Send,
    /// As `Send`, and the peer's key is invalidated when it has arrived.
    SendWithInv {
        /// The peer's remote key.
        rkey: u32,
    },
    /// Writes into the peer's memory.
    Write {
        /// Address there.
        remote_addr: u64,
        /// The peer's remote key.
        rkey: u32,
    },
    /// Reads from the peer's memory.
    Read {
        /// Address there.
        remote_addr: u64,
        /// The peer's remote key.
        rkey: u32,
    },
    /// Takes a key of one's own back.
    LocalInv {
        /// The key.
        rkey: u32,
    },
}

/// A send work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendWr {
    /// The poster's number: comes back with the completion.
    pub wr_id: u64,
    /// What it does.
    pub op: SendOp,
    /// Local memory; none for invalidating.
    pub sges: SgeList,
    /// Whether it completes visibly when it succeeds. Failures and flushes always do.
    pub is_signaled: bool,
    /// What is sent instead of `sges`, from the request itself: where
    /// [`crate::Qp::max_inline`] is at least [`INLINE_LEN`].
    pub inline: Option<[u8; INLINE_LEN]>,
    /// Whether it waits until the reads before it have ended.
    pub is_fenced: bool,
}

impl SendWr {
    /// A signaled request.
    #[must_use]
    pub const fn new(wr_id: u64, op: SendOp, sges: SgeList) -> Self {
        Self {
            wr_id,
            op,
            sges,
            is_signaled: true,
            inline: None,
            is_fenced: false,
        }
    }
}

/// A receive work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvWr {
    /// The poster's number.
    pub wr_id: u64,
    /// Where a message goes.
    pub sges: SgeList,
}

/// Work requests that were not taken.
#[derive(Debug, thiserror::Error)]
#[error("{posted} of the work requests were taken")]
pub struct PostError {
    /// How many were, counted from the first. They will complete.
    pub posted: usize,
    /// The system's reason.
    pub source: std::io::Error,
}

/// How a work request ended (`ibv_wc_status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WcStatus {
    /// Well.
    Success,
    /// The receiver's memory was too short, or the length was wrong.
    LocalLength,
    /// The request made no sense for the queue pair.
    LocalQpOperation,
    /// A local key or range was wrong.
    LocalProtection,
    /// The queue pair had failed before it was carried out.
    Flushed,
    /// A window could not be bound.
    MwBind,
    /// The peer answered nonsense.
    BadResponse,
    /// A remote access to local memory failed.
    LocalAccess,
    /// The peer found the request wrong: too long for its receive, for one.
    RemoteInvalidRequest,
    /// The peer's key does not allow it.
    RemoteAccess,
    /// The peer could not carry it out.
    RemoteOperation,
    /// The peer did not answer, as often as it was tried.
    RetryExceeded,
    /// The peer had no receive posted, as often as it was tried.
    RnrRetryExceeded,
    /// The device has failed.
    Fatal,
    /// Another one.
    Other(u32),
}

impl fmt::Display for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "success",
            Self::LocalLength => "local length error",
            Self::LocalQpOperation => "local queue pair operation error",
            Self::LocalProtection => "local protection error",
            Self::Flushed => "flushed",
            Self::MwBind => "memory window bind error",
            Self::BadResponse => "bad response",
            Self::LocalAccess => "local access error",
            Self::RemoteInvalidRequest => "remote invalid request",
            Self::RemoteAccess => "remote access error",
            Self::RemoteOperation => "remote operation error",
            Self::RetryExceeded => "retries exceeded: the peer does not answer",
            Self::RnrRetryExceeded => "retries exceeded: the peer has no receive posted",
            Self::Fatal => "fatal error of the device",
            Self::Other(status) => return write!(f, "status {status}"),
        })
    }
}

/// What a completed work request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WcOpcode {
    /// A send.
    Send,
    /// A write.
    Write,
    /// A read.
    Read,
    /// A receive.
    Recv,
    /// A bind.
    BindMw,
    /// A local invalidation.
    LocalInv,
    /// Another one.
    Other(u32),
}

/// The end of a work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkCompletion {
    /// The poster's number.
    pub wr_id: u64,
    /// How it ended.
    pub status: WcStatus,
    /// What it was. Means something only when it ended well.
    pub opcode: WcOpcode,
    /// Bytes received.
    pub byte_len: u32,
    /// The queue pair's number.
    pub qp_num: u32,
    /// The key that the peer's message invalidated.
    pub invalidated_rkey: Option<u32>,
    /// The vendor's code of an error.
    pub vendor_err: u32,
}

impl Default for WorkCompletion {
    fn default() -> Self {
        Self {
            wr_id: 0,
            status: WcStatus::Success,
            opcode: WcOpcode::Send,
            byte_len: 0,
            qp_num: 0,
            invalidated_rkey: None,
            vendor_err: 0,
        }
    }
}

/// What remote keys of a registration allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The device may write (always so for what data is received into).
    pub local_write: bool,
    /// Peers may read with the key.
    pub remote_read: bool,
    /// Peers may write with the key.
    pub remote_write: bool,
    /// Windows may be bound to it.
    pub mw_bind: bool,
}

impl Access {
    /// For a side that only names its memory in its own work requests.
    pub const LOCAL: Self = Self {
        local_write: true,
        remote_read: false,
        remote_write: false,
        mw_bind: false,
    };
    /// For a side whose memory the peer reads and writes.
    pub const REMOTE: Self = Self {
        local_write: true,
        remote_read: true,
        remote_write: true,
        mw_bind: false,
    };
}

/// What a device can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCaps {
    /// Queue pairs.
    pub max_qp: u32,
    /// Work requests of a queue.
    pub max_qp_wr: u32,
    /// Scatter/gather entries of a work request.
    pub max_sge: u32,
    /// Entries of a completion queue.
    pub max_cqe: u32,
    /// Bytes of a registration.
    pub max_mr_size: u64,
    /// Reads of a peer that a queue pair serves at a time.
    pub max_qp_rd_atom: u32,
    /// Reads that a queue pair has outstanding.
    pub max_qp_init_rd_atom: u32,
    /// Shared receive queues; 0: none.
    pub max_srq: u32,
    /// Work requests of a shared receive queue.
    pub max_srq_wr: u32,
    /// Whether a send may invalidate a key of the peer.
    pub has_send_with_inv: bool,
    /// Whether there are memory windows of type 2.
    pub has_mw_type_2: bool,
    /// Completion vectors.
    pub comp_vectors: u32,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name: `mlx5_0`, `rxe0`.
    pub name: String,
    /// Its node's globally unique identifier.
    pub node_guid: u64,
    /// Ports.
    pub ports: u8,
    /// What it can do.
    pub caps: DeviceCaps,
    /// The NUMA node that it is nearest to.
    pub numa_node: Option<u32>,
}

/// How to make a queue pair.
pub struct QpOptions<'a> {
    /// Its protection domain.
    pub pd: &'a Arc<dyn Pd>,
    /// Where sends complete.
    pub send_cq: &'a Arc<dyn Cq>,
    /// Where receives complete.
    pub recv_cq: &'a Arc<dyn Cq>,
    /// Where receives are taken from instead of its own queue.
    pub srq: Option<&'a Arc<dyn Srq>>,
    /// Work requests of the send queue.
    pub max_send_wr: u32,
    /// Work requests of the receive queue; not looked at with a shared one.
    pub max_recv_wr: u32,
    /// Bytes that can be sent inline; what is granted is [`crate::Qp::max_inline`].
    pub max_inline_data: u32,
}

/// How a memory window is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The poster's number: comes back if binding fails.
    pub wr_id: u64,
    /// Address of the first byte that the window shows.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the peer may write there; it may always read.
    pub is_writable: bool,
}

/// What the two sides of a connection agree on (`rdma_conn_param`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnParam {
    /// Reads of the peer that this side serves at a time.
    pub responder_resources: u8,
    /// Reads that this side has outstanding at a time.
    pub initiator_depth: u8,
    /// Retries of a message that is not acknowledged: 0 to 7.
    pub retry_count: u8,
    /// Retries of a message for which the peer has no receive: 0 to 6; 7 is for ever.
    pub rnr_retry_count: u8,
}

/// Private data of a connection manager's message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PrivateData {
    bytes: [u8; PRIVATE_DATA_MAX],
    len: u8,
}

impl PrivateData {
    /// A copy of the first [`PRIVATE_DATA_MAX`] bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut copy = Self::default();
        let len = bytes.len().min(PRIVATE_DATA_MAX);
        copy.bytes[..len].copy_from_slice(&bytes[..len]);
        copy.len = len as u8;
        copy
    }
}

impl Default for PrivateData {
    fn default() -> Self {
        Self {
            bytes: [0; PRIVATE_DATA_MAX],
            len: 0,
        }
    }
}

impl std::ops::Deref for PrivateData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", &**self)
    }
}

/// What has happened to a connection (`rdma_cm_event_type`).
#[derive(Debug)]
pub enum CmEventKind {
    /// The peer's address is resolved: the identifier has a device.
    AddrResolved,
    /// The route is resolved: it may connect.
    RouteResolved,
    /// A peer wants to connect to a listener; the identifier is new.
    ConnectRequest {
        /// The new connection.
        id: Box<dyn CmId>,
        /// What the peer allows and asks for, seen from this side.
        param: ConnParam,
    },
    /// The connection is there.
    Established {
        /// What the peer granted, seen from this side.
        param: ConnParam,
    },
    /// The peer refused it; [`CmEvent::status`] tells why, and the private data too.
    Rejected,
    /// Nobody answers, or the address or the route cannot be resolved, or connecting failed.
    Failed,
    /// The peer closed it.
    Disconnected,
    /// The device is being removed: everything on it must be dropped.
    DeviceRemoval,
    /// The queue pair's number may be used again.
    TimewaitExit,
    /// Another one.
    Other(u32),
}

/// An event of a connection manager's channel.
#[derive(Debug)]
pub struct CmEvent {
    /// The context of the identifier that it is about: for a request to connect, the listener's.
    pub context: u64,
    /// What has happened.
    pub kind: CmEventKind,
    /// 0, or the reason: a negative errno, or for `Rejected` the connection manager's code.
    pub status: i32,
    /// What the peer sent along.
    pub private_data: PrivateData,
}

/// What has happened to a device (`ibv_event_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEventKind {
    /// A queue pair has failed.
    QpFatal {
        /// Its number.
        qp_num: u32,
    },
    /// The last receive that a queue pair took from a shared queue has completed.
    QpLastWqeReached {
        /// Its number.
        qp_num: u32,
    },
    /// A completion queue has overrun or failed.
    CqError,
    /// A shared receive queue has failed.
    SrqError,
    /// A port works.
    PortActive {
        /// Its number, from 1.
        port: u8,
    },
    /// A port does not work.
    PortError {
        /// Its number, from 1.
        port: u8,
    },
    /// The device has failed.
    DeviceFatal,
    /// Another one.
    Other(u32),
}

/// An event of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// What has happened.
    pub kind: AsyncEventKind,
}
