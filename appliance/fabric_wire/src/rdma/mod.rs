//! What NVMe over RDMA puts on the wire beside capsules (NVMe RDMA Transport Specification 1.0).
//!
//! * [`ConnectRequest`], [`ConnectAccept`], [`ConnectReject`]: the private data of the connection
//!   manager's request, accept and reject, record format 0. [`CmStatus`]: why one is rejected.
//! * [`KeyedSgl`]: where a command's data lies in the host's memory, or in its capsule.
//!
//! A capsule is a submission queue entry, and then data or further SGL descriptors; a response is a
//! completion queue entry. Neither has a header of the transport's own.

mod private_data;
mod sgl;
#[cfg(test)]
mod tests;

pub use private_data::{
    ACCEPT_LEN, CmStatus, ConnectAccept, ConnectReject, ConnectRequest, REJECT_LEN, REQUEST_LEN,
};
pub use sgl::{DESCRIPTORS_MAX, DataPlace, KeyedBlock, KeyedSgl, SglError};

/// Bytes of a command capsule without data.
pub const CAPSULE_LEN: usize = 64;
/// Bytes of a response capsule.
pub const RESPONSE_LEN: usize = 16;
