//! The interface: what a provider of verbs makes.

use std::any::Any;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use dma::Region;

use crate::error::VerbsError;
use crate::types::{
    Access, AsyncEvent, Bind, CmEvent, ConnParam, DeviceInfo, PostError, QpOptions, RecvWr, SendWr,
    WorkCompletion,
};

/// Where verbs come from: the libraries of the system, or a double.
pub trait Provider: Send + Sync + Debug {
    /// The devices that connections can be made on.
    ///
    /// # Errors
    /// The system's reason.
    fn devices(&self) -> Result<Vec<Arc<dyn Device>>, VerbsError>;
    /// Opens a channel of the connection manager.
    ///
    /// # Errors
    /// The system's reason: no permission, no module.
    fn cm_channel(&self) -> Result<Box<dyn CmChannel>, VerbsError>;
}

/// A channel of the connection manager: where identifiers are made and report.
pub trait CmChannel: Send + Debug {
    /// Readable when an event waits.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
    /// The next event, if there is one. Never blocks.
    ///
    /// # Errors
    /// The system's reason; the channel is of no more use.
    fn poll(&mut self) -> Result<Option<CmEvent>, VerbsError>;
    /// Listens on an address. Requests to connect carry `context`.
    ///
    /// # Errors
    /// The system's reason: in use, no RDMA device has the address.
    fn listen(
        &mut self,
        context: u64,
        address: SocketAddr,
        backlog: u32,
    ) -> Result<Box<dyn CmId>, VerbsError>;
    /// Begins to look for the way to a peer; `AddrResolved` or `Failed` follows.
    ///
    /// # Errors
    /// The system's reason.
    fn resolve(
        &mut self,
        context: u64,
        source: Option<SocketAddr>,
        peer: SocketAddr,
        timeout_ms: u32,
    ) -> Result<Box<dyn CmId>, VerbsError>;
    /// Takes an identifier over: its events come here from now on, with `context`.
    ///
    /// # Errors
    /// The system's reason; the identifier then reports where it did.
    fn adopt(&mut self, context: u64, id: &mut dyn CmId) -> Result<(), VerbsError>;
    /// For providers.
    fn as_any(&self) -> &dyn Any;
}

/// One connection, or one listening address.
pub trait CmId: Send + Debug {
    /// The device that the connection is on, once that is known.
    fn device(&self) -> Option<Arc<dyn Device>>;
    /// This end, with port 0 resolved.
    fn local_addr(&self) -> Option<SocketAddr>;
    /// The other end.
    fn remote_addr(&self) -> Option<SocketAddr>;
    /// Sets the type of service; before it is resolved or connected.
    ///
    /// # Errors
    /// The system's reason.
    fn set_tos(&mut self, tos: u8) -> Result<(), VerbsError>;
    /// Sets the time until a message is sent again: 4.096 µs times 2 to the power of `exponent`,
    /// which is at most 31.
    ///
    /// # Errors
    /// The system's reason.
    fn set_ack_timeout(&mut self, exponent: u8) -> Result<(), VerbsError>;
    /// Begins to look for the route; `RouteResolved` or `Failed` follows.
    ///
    /// # Errors
    /// The system's reason.
    fn resolve_route(&mut self, timeout_ms: u32) -> Result<(), VerbsError>;
    /// Makes the connection's queue pair. Receives may be posted to it at once.
    ///
    /// # Errors
    /// The system's reason, or the device's limit that was passed.
    fn create_qp(&mut self, options: &QpOptions<'_>) -> Result<Box<dyn Qp>, VerbsError>;
    /// Connects; `Established`, `Rejected` or `Failed` follows.
    ///
    /// # Errors
    /// The system's reason.
    fn connect(&mut self, param: &ConnParam, private_data: &[u8]) -> Result<(), VerbsError>;
    /// Accepts; `Established` or `Failed` follows.
    ///
    /// # Errors
    /// The system's reason: the peer is gone.
    fn accept(&mut self, param: &ConnParam, private_data: &[u8]) -> Result<(), VerbsError>;
    /// Refuses.
    ///
    /// # Errors
    /// The system's reason.
    fn reject(&mut self, private_data: &[u8]) -> Result<(), VerbsError>;
    /// Ends the connection: its queue pair fails, and what was posted is flushed.
    ///
    /// # Errors
    /// The system's reason; the queue pair may have to be failed with [`Qp::set_error`].
    fn disconnect(&mut self) -> Result<(), VerbsError>;
    /// For providers.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// A device.
pub trait Device: Send + Sync + Debug {
    /// What it is.
    fn info(&self) -> &DeviceInfo;
    /// Makes a protection domain.
    ///
    /// # Errors
    /// The system's reason.
    fn alloc_pd(&self) -> Result<Arc<dyn Pd>, VerbsError>;
    /// Makes a completion channel.
    ///
    /// # Errors
    /// The system's reason.
    fn create_comp_channel(&self) -> Result<Arc<dyn CompChannel>, VerbsError>;
    /// Makes a completion queue of at least `cqe` entries. The kernel spreads interrupts by
    /// `vector`, which is taken modulo the device's vectors.
    ///
    /// # Errors
    /// The system's reason, or the device's limit.
    fn create_cq(
        &self,
        cqe: u32,
        channel: Option<&Arc<dyn CompChannel>>,
        vector: u32,
    ) -> Result<Arc<dyn Cq>, VerbsError>;
    /// Most bytes of data of a packet through a port, as it is now: 256 to 4096.
    ///
    /// # Errors
    /// The system's reason: no such port, or the device is gone.
    fn active_mtu(&self, port: u8) -> Result<u32, VerbsError>;
    /// Whether it was removed, as far as the system tells without being told: some drivers send no
    /// event to who has no connection there. The removal may wait until all objects on the device
    /// are dropped. Reads a file: not for each poll.
    fn is_removed(&self) -> bool;
    /// The next event of the device, if there is one. Never blocks. Each event is given once,
    /// whoever asks.
    fn poll_async_event(&self) -> Option<AsyncEvent>;
    /// Readable when an event of the device waits.
    fn async_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// A protection domain: what is made in one works together.
pub trait Pd: Send + Sync + Debug {
    /// Registers all of a region. It stays alive for as long as the registration does.
    ///
    /// # Errors
    /// The system's reason: too much memory is locked, or the device has no room.
    fn reg_mr(&self, region: &Arc<Region>, access: Access) -> Result<Box<dyn Mr>, VerbsError>;
    /// Makes a shared receive queue of `max_wr` work requests.
    ///
    /// # Errors
    /// The system's reason, or the device's limit.
    fn create_srq(&self, max_wr: u32) -> Result<Arc<dyn Srq>, VerbsError>;
    /// Makes a memory window of type 2, which shows nothing.
    ///
    /// # Errors
    /// The device has none, or the system's reason.
    fn alloc_mw(&self) -> Result<Box<dyn Mw>, VerbsError>;
    /// For providers.
    fn as_any(&self) -> &dyn Any;
}

/// A registration of memory.
pub trait Mr: Send + Sync + Debug {
    /// For one's own work requests.
    fn lkey(&self) -> u32;
    /// For the peer's.
    fn rkey(&self) -> u32;
    /// For providers.
    fn as_any(&self) -> &dyn Any;
}

/// A memory window: a range of registered memory under a key of its own, see [`Qp::bind_mw`].
pub trait Mw: Send + Debug {
    /// For providers.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// A completion channel: tells that a completion queue has something.
pub trait CompChannel: Send + Sync + Debug {
    /// Readable when a completion queue that was armed has something.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Takes the notes that wait, and returns how many there were. Never blocks.
    fn consume(&self) -> usize;
    /// For providers.
    fn as_any(&self) -> &dyn Any;
}

/// A completion queue.
pub trait Cq: Send + Sync + Debug {
    /// Takes completions; returns how many.
    ///
    /// # Errors
    /// The queue has failed.
    fn poll(&self, completions: &mut [WorkCompletion]) -> Result<usize, VerbsError>;
    /// Asks for one note on the channel when the next completion comes. What came before may have
    /// made none: poll once more after this.
    ///
    /// # Errors
    /// The system's reason.
    fn arm(&self) -> Result<(), VerbsError>;
    /// Makes it larger: at least `cqe` entries.
    ///
    /// # Errors
    /// The device cannot, or has not as many.
    fn resize(&self, cqe: u32) -> Result<(), VerbsError>;
    /// For providers.
    fn as_any(&self) -> &dyn Any;
}

/// A shared receive queue.
pub trait Srq: Send + Sync + Debug {
    /// Posts receives.
    ///
    /// # Errors
    /// How many were taken, and the system's reason.
    fn post_recv(&self, requests: &[RecvWr]) -> Result<(), PostError>;
    /// For providers.
    fn as_any(&self) -> &dyn Any;
}

/// A queue pair. Dropping it ends it: nothing that was posted to it is carried out any more, and
/// what has not completed will not.
pub trait Qp: Send + Debug {
    /// Its number.
    fn qp_num(&self) -> u32;
    /// Bytes that may be sent inline.
    fn max_inline(&self) -> u32;
    /// Posts sends, in one chain.
    ///
    /// # Errors
    /// How many were taken, and the system's reason.
    fn post_send(&mut self, requests: &[SendWr]) -> Result<(), PostError>;
    /// Posts receives, in one chain; not with a shared receive queue.
    ///
    /// # Errors
    /// How many were taken, and the system's reason.
    fn post_recv(&mut self, requests: &[RecvWr]) -> Result<(), PostError>;
    /// Posts the binding of a window to a range of a registration, and returns the key under which
    /// the peer reaches it once the request has been carried out, which is before any request
    /// that is posted after it. The key was never used before, or long ago. It completes visibly only when
    /// it fails. What the window showed before must have been invalidated.
    ///
    /// # Errors
    /// Not taken, and the system's reason.
    fn bind_mw(&mut self, mw: &mut dyn Mw, mr: &dyn Mr, bind: &Bind) -> Result<u32, PostError>;
    /// Fails it: everything posted is flushed.
    ///
    /// # Errors
    /// The system's reason.
    fn set_error(&mut self) -> Result<(), VerbsError>;
}
