//! `adit-agent`: the node's one gRPC endpoint. Everything is in the library.

fn main() {}
