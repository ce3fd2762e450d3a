//! The seam between the target and its transports.
//!
//! A transport is three things: a [`Transport`] (shared, made by the control side, holds the
//! options), an [`Acceptor`] per listening address, and a [`TransportGroup`] per poll group that
//! owns the connections of that thread. The group turns bytes into commands and gives them to
//! [`Core`], which answers each call with the [`Step`] that the command's slot takes next.

use std::any::Any;
use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use dma::{IobufPool, Payload};
use fabric_wire::TransportAddress;
use nvme_spec::Cqe;

use crate::Core;

/// What every transport must say of itself; the field names and defaults are SPDK's where they
/// mean the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportLimits {
    /// Entries of an I/O queue, 2 to 65535. CAP.MQES follows from it.
    pub max_queue_depth: u16,
    /// Entries of an admin queue, at least 32.
    pub max_aq_depth: u16,
    /// I/O queues that one controller may have.
    pub max_io_qpairs_per_ctrlr: u16,
    /// Largest data transfer of one command in bytes: a power of two, at least 8 KiB. MDTS follows.
    pub max_io_size: u32,
    /// In-capsule data of an I/O queue in bytes, a multiple of 16. IOCCSZ follows.
    pub in_capsule_data_size: u32,
    /// Whether data outside of capsules is named by keyed SGL descriptors (RDMA), and not by
    /// transport SGL descriptors.
    pub keyed_sgl: bool,
    /// Keep-alive granularity in units of 100 ms (Identify KAS).
    pub kas_100ms: u16,
    /// Shortest keep-alive timeout granted, in milliseconds.
    pub min_kato_ms: u32,
    /// Small data buffers that each poll group caches; `None`: the target's default.
    pub iobuf_small_cache_size: Option<u32>,
    /// Large data buffers that each poll group caches; `None`: the target's default.
    pub iobuf_large_cache_size: Option<u32>,
}

/// Identifies a transport within one target; also its index in every poll group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransportId(pub u16);

/// A connection's index within its [`TransportGroup`], chosen by that group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u32);

/// A queue pair's index within its poll group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QpairId(pub u32);

/// A command slot's index within its queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId(pub u16);

/// What a command's slot waits for after it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It waits for a device, a buffer or an event; a later [`TransportGroup::step`] tells.
    Pending,
    /// It waits for the host's data: fetch the buffer with [`Core::take_receive`], fill it, give
    /// it back with [`Core::data_received`].
    Receive,
    /// It has a response: fetch it with [`Core::take_response`], send it, then call
    /// [`Core::response_sent`].
    Respond,
    /// It has ended without a response, as a reset ends event requests: let go of what is held for
    /// it, then call [`Core::forgotten`].
    Forget,
}

/// A finished command's response.
#[derive(Debug)]
pub struct Response {
    /// The completion; SQHD and SQID are filled in.
    pub cqe: Cqe,
    /// Data for the host, empty when there is none.
    pub payload: Payload,
    /// Bytes of `payload` that go to the host.
    pub data_len: u32,
}

/// Why a queue pair is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The host closed or reset the connection, or broke the transport's protocol.
    Peer,
    /// The host sent Disconnect; its response has been sent.
    Disconnect,
    /// The controller ended: keep-alive timeout, reset, removed host or deleted subsystem.
    ControllerEnded,
    /// The host sent something that leaves no other answer (no Connect first, no free slot).
    ProtocolError,
    /// The target shuts down.
    Shutdown,
}

/// The two ends of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address on which the listener accepts, as configured.
    pub listener: Arc<TransportAddress>,
    /// The target's own end, with wildcard addresses resolved.
    pub local: String,
    /// The host's end.
    pub remote: String,
}

/// Checks of what a connection carries that the two ends have agreed on, as an operator sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// PDU headers carry a CRC-32C.
    pub header: bool,
    /// Data carries a CRC-32C.
    pub data: bool,
}

/// An accepted connection on its way to a poll group.
pub struct NewConnection {
    /// Which transport accepted it.
    pub transport: TransportId,
    /// Its two ends.
    pub peer: Peer,
    /// The NUMA node that the connection's device is nearest to, where the transport knows.
    pub numa_node: Option<u32>,
    /// What the transport's group needs to go on (a socket).
    pub io: Box<dyn Any + Send>,
}

/// What a poll group gives a transport to work with.
pub struct GroupContext<'a> {
    /// The transport's identifier.
    pub transport: TransportId,
    /// The data buffers.
    pub iobuf: &'a Arc<IobufPool>,
}

/// One transport of a target: options, and the factory of acceptors and groups.
pub trait Transport: Send + Sync + Debug {
    /// The name in upper case as in the discovery log and in SPDK: `TCP`, `RDMA`.
    fn name(&self) -> &'static str;
    /// The limits that the target tells hosts and enforces.
    fn limits(&self) -> &TransportLimits;
    /// Listens on an address.
    ///
    /// # Errors
    /// The system's reason: in use, not there, not permitted.
    fn listen(
        &self,
        id: TransportId,
        address: &Arc<TransportAddress>,
    ) -> std::io::Result<Box<dyn Acceptor>>;
    /// Listens on with the socket of a transport that this one replaces ([`Acceptor::socket`]):
    /// the address is never free meanwhile, and who waits in the backlog is kept. To be given by
    /// transports whose acceptors have a socket.
    ///
    /// # Errors
    /// As [`Transport::listen`].
    fn listen_on(
        &self,
        id: TransportId,
        address: &Arc<TransportAddress>,
        socket: OwnedFd,
    ) -> std::io::Result<Box<dyn Acceptor>> {
        drop(socket);
        self.listen(id, address)
    }
    /// Makes the part that lives in one poll group; called on that group's thread.
    ///
    /// # Errors
    /// The system's reason: no descriptors, no memory.
    fn group(&self, context: &GroupContext<'_>) -> std::io::Result<Box<dyn TransportGroup>>;
    /// For programs that know the concrete transport.
    fn as_any(&self) -> &dyn Any;
}

/// A listening address; polled by the first poll group.
pub trait Acceptor: Send {
    /// Accepts what waits, within the transport's rate limit, and returns how many.
    fn poll(&mut self, now: Instant, accepted: &mut dyn FnMut(NewConnection)) -> usize;
    /// When it must be polled again although nothing became readable (a rate limit's next slot).
    fn next_deadline(&self) -> Option<Instant>;
    /// Readable when a connection waits.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;
    /// The address bound, with port 0 resolved.
    fn local_address(&self) -> String;
    /// Another descriptor of the listening socket, for [`Transport::listen_on`].
    fn socket(&self) -> Option<OwnedFd> {
        None
    }
}

/// The connections of one transport in one poll group. Never blocks.
pub trait TransportGroup {
    /// Takes an accepted connection. A connection that cannot be taken is closed and counted.
    fn adopt(&mut self, core: &mut Core, connection: NewConnection, now: Instant);
    /// Receives what has come and runs it; returns how much work there was (0: idle).
    fn poll(&mut self, core: &mut Core, now: Instant) -> usize;
    /// A slot that was [`Step::Pending`] goes on.
    fn step(&mut self, core: &mut Core, connection: ConnectionId, slot: SlotId, step: Step);
    /// Sends what has gathered; called once at the end of a poll.
    fn flush(&mut self, core: &mut Core, now: Instant) -> usize;
    /// Closes a connection; the group calls [`Core::closed`] for its queue pair, if it has one.
    fn close(&mut self, core: &mut Core, connection: ConnectionId, reason: CloseReason);
    /// Closes every connection, also those that have no queue pair yet.
    fn close_all(&mut self, core: &mut Core, reason: CloseReason);
    /// Closes after the response that is on its way has been sent (Disconnect, refused Connect).
    fn close_after_flush(&mut self, connection: ConnectionId, reason: CloseReason);
    /// Connections, also those that have not sent Connect yet.
    fn connection_count(&self) -> usize;
    /// When it must be polled next although nothing became readable.
    fn next_deadline(&self) -> Option<Instant>;
    /// Readable when a connection can go on.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;
}
