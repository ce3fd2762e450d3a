//! Pools and thin volumes on one block device.

pub mod format;
pub mod map;
