//! Block devices.
//!
//! What it is: one trait for devices ([`BlockDevice`], [`Channel`]), one type for an I/O ([`Io`]), the
//! devices that need no driver ([`malloc`], [`null`], [`mod@file`]), layers for tests ([`error`],
//! [`delay`]), and what is the same for all of them: names and claims ([`Registry`]), range checks,
//! splitting, limits ([`qos`]) and statistics ([`stats`]).
//!
//! What it is not: it knows nothing of NVMe over fabrics, of pools or of drives. It has no threads,
//! never sleeps and never reads a clock: the caller passes `now` in.
//!
//! # Main types
//! - [`Registry`] holds [`Bdev`]s: a device with a name, a UUID, limits and counters.
//! - [`Bdev::open`] gives a [`BdevChannel`] for the calling thread. It takes an [`Io`] in `submit` and
//!   gives a [`Completion`], at once or from `poll`.
//! - A [`BlockDevice`] may assume that the channel above it has checked the I/O.
//!
//! # Threading
//! Devices, bdevs and the registry are `Send + Sync` and for the control plane; their locks are never
//! taken per I/O. Channels stay on the thread that opened them, and so does [`ChannelContext`], of
//! which each thread makes one. Steady I/O allocates nothing and takes no lock. The one exception to
//! "no lock" is compare-and-write, which shuts writers of all threads out for its short time.
//!
//! # Errors
//! Control calls fail with [`BlockError`], I/O with [`IoError`], which is `Copy`, holds no text, and is
//! mapped to a protocol's status by the protocol.

mod bdev;
mod bdev_channel;
mod block_error;
mod device;
mod gate;
pub mod histogram;
mod io;
pub mod malloc;
pub mod null;
pub mod qos;
mod registry;
mod slab;
mod split;
pub mod stats;
mod view;

pub mod delay;
pub mod error;
pub mod file;

pub use bdev::{Bdev, BdevOptions, Claim, ClaimKind};
pub use bdev_channel::BdevChannel;
pub use block_error::BlockError;
pub use device::{BlockDevice, Channel, ChannelContext, DmaReach, Geometry};
pub use io::{Completion, Io, IoError, Lba, Op, OpKind, OpSet, Submit};
pub use qos::QosLimits;
pub use registry::Registry;
