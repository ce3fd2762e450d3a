//! The synchronization that the hand-over stands on: the standard library's, or loom's in the
//! model (`tests/loom.rs`). Counters are the standard library's always: nothing depends on them.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::AtomicU32;
#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::AtomicU32;
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};
