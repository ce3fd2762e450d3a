//! `adit-agent`, the node's one gRPC endpoint, as a library: everything but `main`.

pub mod access;
pub mod bundle;
pub mod clock;
pub mod config;
pub mod console;
pub mod endpoint;
pub mod error;
pub mod forward;
pub mod init_client;
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
