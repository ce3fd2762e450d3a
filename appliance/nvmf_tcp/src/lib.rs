//! The NVMe/TCP transport of the target library.
//!
//! It turns the bytes of TCP connections into commands for [`nvmf::Core`], and what that answers
//! into bytes, as the NVMe TCP Transport Specification 1.1 says. It is not a target: commands,
//! controllers and namespaces are `nvmf`'s. It has no TLS. The formats of PDUs are `fabric_wire`'s.
//!
//! - [`TcpTransport`] with [`TcpOptions`]: what a program makes and gives to its target.
//! - [`TcpStats`]: counters of rare events.
//!
//! # Threading
//! A transport belongs to everyone. An acceptor and a group are polled by the thread of their poll
//! group, and hold everything of its connections: no lock, no shared cache line, and after warming
//! up no allocation for an I/O. Nothing here spawns, sleeps or reads a clock.
//!
//! # Data
//! A poll receives what a connection has in one call into memory that stays in cache, runs the
//! commands in it, and sends all their responses in one call. In-capsule data and H2CData are
//! received into the command's buffer (what has come with the header is copied there); read data is
//! sent from where it lies. A command waits for its buffer before its data is read, so a target
//! without free buffers slows its hosts down and fails nothing.
//!
//! # Slow and hostile peers
//! How many buffers a host may hold is `nvmf`'s affair. For how long is decided here: a host that
//! owes data and does not send it, or does not read what it asked for, is disconnected when it has
//! made no progress for [`TcpOptions::progress_timeout_ms`]. It gets no C2HTermReq: that is for
//! PDUs that are wrong. Of a connection that broke the protocol only the PDU that is on its way
//! keeps its buffer until the peer has read it, or until [`TcpOptions::linger_timeout_ms`].
//!
//! # Errors
//! [`TcpError`] for options. A host that breaks the protocol gets a C2HTermReq and is disconnected;
//! one that is slow, silent or gone costs its own connection only, see [`TcpOptions`] for the
//! time-outs and limits.

mod commands;
mod connection;
mod error;
mod group;
mod group_io;
mod listener;
mod options;
mod pace;
mod progress;
mod receive;
mod send;
mod slab;
mod socket;
mod stats;
#[cfg(test)]
mod tests;
mod transfer;
mod transport;

pub use error::TcpError;
pub use options::TcpOptions;
pub use stats::{TcpStats, TcpStatsSnapshot};
pub use transport::TcpTransport;
