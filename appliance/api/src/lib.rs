//! The management API of Adit, gRPC package `adit.v1`.
//!
//! What it is: the protobuf definitions (`proto/adit/v1`), the code generated from them ([`v1`]), and
//! what both ends need to work with the messages: addresses as URIs ([`address`]), the JSON form
//! ([`json`]), comparison and partial update by field ([`fields`]), and quantities as people write
//! them ([`quantity`]).
//!
//! What it is not: it holds no rule about what a valid object is. The target does, in one place.
//!
//! Threading: plain data, no threads. Errors: one small enum per module; each says which field or
//! word was wrong and what would be right.

pub mod address;
pub mod fields;
pub mod json;
pub mod quantity;

/// Messages, clients and servers generated from `proto/adit/v1/*.proto`.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    reason = "generated code; the documentation is in the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("adit.v1");
}

/// The compiled definitions, for server reflection and for [`json`].
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/adit_v1.bin"));
