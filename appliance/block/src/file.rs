//! File devices.
pub(crate) mod ring;
