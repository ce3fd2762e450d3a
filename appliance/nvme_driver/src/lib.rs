//! NVMe over PCIe, from user space.
//!
//! What it is: a driver for one NVMe controller that somebody else has taken from the kernel. It
//! brings the controller up, gives each namespace as a [`block::BlockDevice`] with a queue pair for
//! each channel, watches deadlines, resets the controller when it misbehaves and sends again what
//! was in flight, and shuts it down.
//!
//! What it is not: it opens no device files and maps no memory; the traits of [`Device`] do, and
//! `vfio` implements them. It has no threads, never sleeps and never reads a clock.
//!
//! # Main types
//! - [`Controller`]: the one owner. [`Controller::poll`] drives all that is not I/O: bringing up,
//!   admin commands, events, resets, shutdown. It reports by [`Event`].
//! - [`NvmeNamespace`]: a namespace as a block device.
//! - [`AdminRequest`]: format, namespace management, firmware, sanitize, or any other command.
//! - [`Device`]: registers, IOMMU, interrupts and reset of the function.
//!
//! # Threading
//! The controller stays with its owner. Channels belong to the threads that opened them and never
//! wait for the owner: on the hot path they read one atomic of their queue per poll. Only when
//! something is wrong do they meet: a channel asks for an abort or a reset by an atomic, the owner
//! stops queues by another, and each channel says when it has let go of its queue. A channel keeps
//! the payloads of what was in flight until the controller has been stopped or reset: no memory is
//! given back that the device may still write.
//!
//! # What a reset means for I/O
//! Reads, writes and all other commands of this driver can be sent twice without harm: none is
//! acknowledged before it ended, and NVMe orders no two commands in flight. They are sent again up
//! to [`ControllerOptions::retries`] times. A controller reset does not empty the volatile cache.
//!
//! # Errors
//! [`NvmeError`] for control calls, [`block::IoError`] for I/O.

mod admin;
mod channel;
mod controller;
mod device;
mod error;
mod jobs;
mod memory;
mod namespace;
mod options;
mod orphans;
mod reset_request;
mod ring;
mod shared;
mod transfer;

pub use admin::{ADMIN_DATA_MAX, AdminData, AdminId, AdminReply, AdminRequest};
pub use controller::{Controller, Event};
pub use device::{Device, DeviceError, DmaMapper, Interrupts, PciFunction, Registers};
pub use error::NvmeError;
pub use namespace::{LbaFormatInfo, NvmeNamespace};
pub use options::ControllerOptions;
pub use shared::{ControllerState, ControllerStats, ResetReason};
