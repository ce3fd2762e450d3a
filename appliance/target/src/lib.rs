//! `aditd`, the target, as a library: everything but `main`.
//!
//! What it is: the control plane of a node. [`model`] holds what the node shall be and the rules for it;
//! [`control`] takes calls, keeps the model, the data plane ([`runtime`]) and the store in step;
//! [`services`] offers it over gRPC; [`serve`] listens; [`config`] reads the configuration.
//!
//! What it is not: no NVMe and no I/O. Those are in `nvmf`, its transports and `block`, behind
//! [`runtime::Runtime`].
//!
//! Threading: one control thread with a tokio current-thread runtime runs all of this. The metadata
//! thread belongs to the store, the log writer to [`logging`], reactors to the data plane. They meet in
//! bounded queues only.
//!
//! Errors: [`error::ControlError`] for calls, made a gRPC status in one place, `status.rs`;
//! [`config::ConfigError`] for the configuration, which names the line.

pub mod config;
pub mod control;
pub mod copy;
pub mod data_plane;
pub mod error;
pub mod events;
mod health;
mod hot_plug;
pub mod lvol_driver;
pub mod metrics;
pub mod model;
pub mod nvmf_runtime;
pub mod pool;
pub mod pool_thread;
pub mod program;
pub(crate) mod rdma;
pub mod reservations;
pub mod runtime;
pub mod serve;
pub mod services;
mod status;
mod system_pool;

#[cfg(test)]
mod fake_pool;
#[cfg(test)]
mod fake_runtime;
