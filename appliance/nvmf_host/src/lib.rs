//! The NVMe over Fabrics initiator library: connects to subsystems as a host.
//!
//! - [`Controller`]: an association with a controller, from the first connection over keep-alive,
//!   events and reset to an orderly shutdown. [`Admin`]: its admin commands.
//! - [`IoQueue`]: an I/O queue with a connection of its own; takes [`IoRequest`]s, gives
//!   [`Completion`]s.
//! - [`Discovery`]: reads the discovery log, once or whenever it changes.
//! - [`perf`]: a load generator that verifies what it reads. [`check`]: finds out why a host cannot
//!   use a subsystem.
//!
//! It is not a block device, and not a multipath layer: it does not repeat commands, reconnect or
//! choose paths. It says what happened ([`HostError`], [`CommandError`], with CRD and DNR), so that
//! what stands on it can decide. The transports are TCP, without TLS
//! and authentication, and RDMA where [`HostOptions::verbs`] says where that comes from.
//!
//! # Threading
//! Nothing here spawns, sleeps or reads a clock: pass the time in and call `poll`. Everything
//! belongs to one thread; connections of a thread share a [`HostContext`]. An I/O queue may live on
//! another thread than its controller: send it an [`IoQueueConnector`]. To sleep instead of polling,
//! watch the sockets ([`IoQueue::wake_fd`], [`Controller::with_wake_fd`]) until `next_deadline`.
//!
//! # Data
//! A request's buffer belongs to the queue until its completion brings it back, also when the
//! request was aborted or the connection was lost. Commands submitted between two polls go out with one
//! call; long data is received straight into its buffer. An I/O allocates nothing.
//!
//! # Errors
//! [`HostError`] for connections, controllers and operations; [`CommandError`] for single commands.
//! A controller that breaks the protocol gets an H2CTermReq and is disconnected.

mod admin;
mod ana;
mod association;
mod bring_up;
mod buffer;
pub mod check;
mod command;
mod controller;
mod discovery;
mod error;
mod event;
mod host_queue;
mod io;
mod io_queue;
mod options;
pub mod perf;
mod queue;
mod rdma;
mod receive;
pub mod reservation;
mod send;
mod slots;
mod socket;

pub use admin::{Admin, NamespaceInfo};
pub use ana::{AnaGroup, AnaLog, AnaState};
pub use association::Operation;
pub use buffer::Buffer;
pub use command::{Command, Completion, Direction, Refusal, Refused, SglSource, Submit};
pub use controller::{Controller, ControllerInfo, ControllerState};
pub use discovery::{Discovery, DiscoveryLog};
pub use error::{CommandError, HostError, Violation};
pub use event::Event;
pub use io::{IoOp, IoRequest, MAX_BLOCKS, MAX_RANGES, MAX_TAG, copy_ranges, dsm_ranges};
pub use io_queue::{IoQueue, IoQueueConnector};
pub use options::{HostIdentity, HostOptions};
pub use queue::{HostContext, QueueCounters};
