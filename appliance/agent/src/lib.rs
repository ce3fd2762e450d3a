//! `adit-agent`, the node's one gRPC endpoint, as a library: everything but `main`.

pub mod access;
pub mod clock;
pub mod error;
pub mod forward;
pub mod init_client;
pub mod maintenance;
pub mod tls;
