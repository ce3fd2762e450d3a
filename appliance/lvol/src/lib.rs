//! Pools and thin volumes on one block device.

pub mod map;
