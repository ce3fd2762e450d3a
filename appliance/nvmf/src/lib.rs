//! The NVMe over Fabrics target library.
//!
//! It holds what a target is, apart from how bytes travel: [`Target`], [`Subsystem`], namespaces,
//! [`Controller`]s, [`PollGroup`]s with their queue pairs, and the commands. Transports plug in
//! behind [`transport::Transport`]; block devices come as [`block::Bdev`].
//!
//! It is not a program: it never spawns, sleeps, reads a clock, or names a runtime. The caller
//! passes the time in and calls [`PollGroup::poll`] in a loop of its own; see
//! `examples/ram_disk.rs`.
//!
//! # Threading
//! A [`PollGroup`] lives on one thread with its connections and its channels to the devices; a
//! command runs there from its first byte to its last, without locks. [`Target`] and
//! [`Subsystem`] belong to the control side and may be called from any thread; what they change
//! reaches the poll groups as an immutable snapshot ([`SubsystemConfig`]) in a message. Calls
//! whose effect a caller may have to wait for return a [`Ticket`].
//!
//! # How a command runs
//! A queue pair owns request slots. A slot's logic is one `async fn`, stored once and polled
//! directly when what it waits for arrives: no executor, no waker, no allocation per command.
//!
//! # Reservations
//! Every namespace has them, whatever its device. The record is the library's
//! ([`ReservationRecord`]); where it is kept when it persists through a loss of power is the
//! program's affair ([`ReservationStore`]).
//!
//! # Hosts that are slow, silent or greedy
//! Every data buffer is charged to the host whose command holds it, from before it is taken until
//! the command has been answered. A host may take one more only while it holds less than half as
//! many as are free in its poll group: whatever it withholds or does not read, the others find
//! buffers. A transport bounds the time: a connection whose host owes data, or does not read what
//! it asked for, without progress is closed, and its buffers come back.
//!
//! # Errors
//! [`TargetError`] for calls of the control side; hosts get NVMe status values. A device's error
//! becomes a status in one place, `status.rs`.

mod config;
mod controller;
mod error;
mod events;
mod exec;
mod features;
mod group_namespace;
mod inbox;
mod limits;
mod poll_group;
mod queue;
mod registers;
mod reservation;
mod share;
mod slot;
mod status;
mod subsystem;
mod target;
mod ticket;
pub mod transport;

pub use config::{
    AnaGroupId, AnaState, ListenerConfig, NamespaceConfig, SubsystemConfig, Visibility,
    WriteProtect,
};
pub use controller::{Controller, IoCounters, QpairInfo};
pub use error::TargetError;
pub use events::TargetEvent;
pub use inbox::{GroupCounters, GroupHandle, PollGroupId};
pub use poll_group::{CommandError, Core, OpenQpair, PollGroup, PollResult};
pub use queue::QpairCounters;
pub use reservation::{
    HostId, REGISTRANTS_MAX, Reservation, ReservationKey, ReservationRecord, ReservationStore,
    SaveDone,
};
pub use subsystem::{Subsystem, SubsystemOptions, SubsystemState};
pub use target::{GroupPicker, Referral, Target, TargetOptions};
pub use ticket::Ticket;
