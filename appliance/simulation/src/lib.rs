//! A drive in memory that loses power: for tests of what must survive a crash.
//!
//! What it is: [`SimDevice`], a [`block::BlockDevice`] with a volatile write cache. A write is in the
//! cache until a FLUSH (or FUA) makes it durable. [`SimDevice::cut`] gives the [`Image`] that a power
//! cut could leave: what was flushed, and any part of what was not, torn at sectors. An image opens as
//! a new device. A [`Recording`] of everything that reached a device can be replayed and cut at each of
//! its steps, so that a workload runs once and is cut everywhere.
//!
//! What it is not: it has no latency model and no speed. It is not a device for production.
//!
//! Rules that it holds, as strictly as NVMe allows:
//! - FLUSH covers the writes that had *completed* when it was submitted, and none besides.
//! - A write in flight at the cut may be there in part.
//! - Of several unflushed writes of one sector any may be what is found, or none.
//! - Completions come in an order of their own, chosen by the seed.
//!
//! Storage is sparse: a device of 64 TiB costs what was written to it. Everything random comes from a
//! seed; the same calls with the same seed give the same results.
//!
//! Threading: the device is shared by all threads behind one lock; channels as everywhere. No clock,
//! no sleep: a completion arrives some number of polls after its submission.
//!
//! Errors: I/O fails with [`block::IoError`], the synchronous calls with [`std::io::Error`].

mod channel;
mod device;
mod image;
mod medium;
mod random;
mod recording;

pub use device::{SimDevice, SimOptions, SimStats};
pub use image::Image;
pub use random::Random;
pub use recording::{Recording, Replay, Step};

#[cfg(test)]
mod tests;
