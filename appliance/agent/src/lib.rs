//! `adit-agent`, the node's one gRPC endpoint, as a library: everything but `main`.
//!
//! What it is: [`listener`] takes connections and does TLS ([`tls`]); [`endpoint`] asks who calls and
//! whether they may ([`access`], [`maintenance`]), and has [`services`] answer or [`forward`] carry
//! the call to `aditd`; [`node`] holds which configuration is in force ([`config`], [`store`],
//! [`fetch`]) and what of it outlives the power ([`keep`]); [`network`], [`time`], [`health`] and [`console`] care for the
//! machine.
//!
//! What it is not: it binds no devices, but for a drive that is wiped ([`wipe`]), and starts no programs. That
//! is PID 1's ([`init_client`]).
//!
//! Threading: tokio's current-thread runtime; what blocks runs on its blocking threads, eight at most.
//!
//! Errors: [`error::AgentError`]; [`node::ConfigureError`] for a configuration that is not applied.

pub mod access;
pub mod bundle;
pub mod clock;
pub mod config;
pub mod console;
pub mod endpoint;
pub mod error;
pub mod fetch;
pub mod forward;
pub mod health;
pub mod init_client;
pub mod keep;
pub mod kernel_log;
pub mod listener;
pub mod maintenance;
pub mod network;
pub mod node;
pub mod program;
pub mod services;
pub mod store;
pub mod time;
pub mod tls;
pub mod wipe;
