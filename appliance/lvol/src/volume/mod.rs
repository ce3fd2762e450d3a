//! Volumes as block devices.

mod cache;
mod channel;
mod device;
mod external;
mod flight;
mod in_place;
mod log;
mod read;
mod write;

pub use device::Volume;
