//! The NVMe over RDMA transport of the target library.
//!
//! It turns capsules that arrive on RDMA connections into commands for [`nvmf::Core`], and moves
//! their data by RDMA READ and RDMA WRITE, as the NVMe RDMA Transport Specification 1.0 says. It is not a target: commands,
//! controllers and namespaces are `nvmf`'s. It has no unsafe code and knows no device: it stands on
//! the traits of [`verbs`].
//!
//! - [`RdmaTransport`] with [`RdmaOptions`]: what a program makes and gives to its target.
//! - [`RdmaStats`]: counters of rare events; [`RdmaGroupStats`]: what a poll group has done, with
//!   how often requests were in each [`RequestState`].
//!
//! # Threading
//! A transport belongs to everyone. An acceptor and a group are polled by the thread of their poll
//! group. A group has one completion queue per device, and everything of its connections: no lock,
//! no shared cache line, and after warming up no allocation for an I/O. Registrations and protection
//! domains of a device are shared by the groups; they change when the pool of buffers grows.
//!
//! # Data
//! The device moves data between the host's memory and the pool's buffers; no byte of it passes
//! through the CPU. Data in a capsule lands in a buffer of the pool too, which then changes places
//! with the one that the command was given. Where that cannot be (admin and fabrics commands, whose
//! buffers may come from a reserve, or a pool with too few buffers to receive into) it is copied,
//! and for I/O commands counted: [`RdmaGroupStats::copied_bytes`].
//!
//! # Receives and requests
//! A capsule may arrive before the completion that says that the response before it was sent. So
//! what receives a capsule and what serves a command are two things: a capsule that finds no free
//! slot waits in its receive. Work requests of one poll are posted as one chain at its end.
//!
//! # Ends
//! A connection that ends fails its queue pair, and everything that was posted is flushed. Its
//! buffers go back when that has happened, or when the queue pair has been destroyed after
//! [`RdmaOptions::linger_timeout_ms`]: never while the device may still reach them.
//!
//! # Errors
//! [`RdmaError`] for options. A host that breaks the protocol is disconnected; one that asks for
//! what cannot be is refused with the status of the specification.

mod accepted;
mod admit;
mod closing;
mod commands;
mod connection;
mod device_events;
mod error;
mod group;
mod group_device;
mod listener;
mod memory;
mod options;
mod receive;
mod request;
mod slab;
mod stats;
mod timeouts;
mod transport;
mod wr_id;

pub use error::RdmaError;
pub use options::RdmaOptions;
pub use request::RequestState;
pub use stats::{RdmaGroupSnapshot, RdmaGroupStats, RdmaStats, RdmaStatsSnapshot};
pub use transport::RdmaTransport;
