//! An NVMe controller in this process, for tests of drivers.
//!
//! What it is: registers, admin queue, I/O queues, namespaces with a volatile write cache, and a
//! plan of faults, behind plain calls: [`Emu::read32`] and its sisters stand for BAR 0, a
//! [`dma::BusView`] for the memory it reaches, [`Emu::step`] for the time that passes in the
//! device, [`Emu::take_interrupts`] for its vectors, [`Emu::power_cut`] for the plug.
//!
//! What it is not: no device that anything is stored on, and no model of speed. It has no threads,
//! no clock and no randomness of its own: the same calls give the same results.
//!
//! Main types: [`Emu`], [`EmuOptions`], [`NamespaceOptions`], [`Fault`].
//!
//! Threading: `Send`, one owner; a test that hands it to several threads puts it behind a mutex.
//!
//! Errors: a driver's mistakes are answered as a drive answers them: with a status, an error event,
//! or CSTS.CFS. No input makes it panic.

mod admin;
mod controller;
mod fault;
mod io;
mod log_page;
mod media;
mod options;
mod queue;
mod transfer;

pub use controller::Emu;
pub use fault::{Fault, FaultKind, QueueFilter};
pub use media::{Cut, Media};
pub use options::{EmuOptions, NamespaceOptions};

#[cfg(test)]
mod tests;
