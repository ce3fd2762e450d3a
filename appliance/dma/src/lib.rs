//! Memory that devices and sockets move data through: regions, iobuf pools, their planner.
//!
//! This crate is not an allocator, and it does not map memory into an IOMMU: others register
//! its regions with `io_uring`, VFIO or verbs.
//!
//! - [`Region`]: one mapping (hugepages or 4 KiB pages) at a low fixed address.
//! - [`IobufPool`]: small and large buffers for all threads; [`IobufChannel`]: a module's share on
//!   one thread, with caches; [`IoBuf`]: a buffer; [`Payload`]: what an I/O carries.
//! - [`Lessor`]: tells who lends memory when it is looked at no more.
//! - [`planner`]: who will take which buffers, and what does not fit, before it happens.
//! - [`sg`]: `sendmsg` and `recvmsg` over these, safe to call.
//!
//! ```
//! use dma::{ChannelOptions, IobufOptions, IobufPool};
//!
//! # fn main() -> Result<(), dma::DmaError> {
//! let pool = IobufPool::new(IobufOptions::default())?;
//! let mut channel = pool.channel("nvmf_tcp", ChannelOptions::default())?;
//! let slot = 7;
//! match channel.get_or_wait(4096, slot)? {
//!     Some(mut buf) => buf.as_mut_slice().fill(0),
//!     None => {} // Queued: `poll` gives (7, buffer) once there is one.
//! }
//! let mut served = Vec::new();
//! channel.poll(&mut served);
//! # Ok(())
//! # }
//! ```
//!
//! # Threading
//! `Region` and `IobufPool` belong to everyone. A channel and its buffers belong to the thread
//! that opened it. Getting a buffer from the cache and putting it back takes no lock and no
//! atomic read-modify-write. No call blocks but for the pool's short lock; there are no threads,
//! clocks or sleeps in here.
//!
//! # Errors
//! [`DmaError`], a variant per failing operation. Fallbacks are not errors: a region made of
//! something else than was asked carries a sentence about it ([`Region::notice`]).
#![expect(
    unsafe_code,
    reason = "memory mappings, buffers handed to devices, socket calls"
)]

mod buffer;
mod bus;
mod channel;
mod copy;
mod error;
mod iobuf;
mod lease;
mod lent;
pub mod planner;
mod pool;
mod region;
pub mod sg;
mod stats;
mod sync;
mod sys;

pub use bus::{BusFault, BusView};
pub use channel::{ChannelOptions, IobufChannel, POPULATE_BATCH, REFILL_BATCH};
pub use error::DmaError;
pub use iobuf::{IoBuf, Payload};
pub use lease::{Lease, LeaseBoard, Lessor};
pub use lent::Lent;
pub use pool::{IobufOptions, IobufPool, MAX_CHANNELS, MAX_REGIONS};
pub use region::{Backing, BackingPreference, FIRST_ADDRESS, LIMIT_ADDRESS, Region, RegionOptions};
pub use stats::{CacheStats, ChannelStats, ClassStats, ModuleStats, PoolStats};
