//! `adit-agent`, the node's one gRPC endpoint, as a library: everything but `main`.

pub mod access;
