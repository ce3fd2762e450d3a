//! What NVMe over Fabrics puts on the wire, apart from the NVMe commands themselves.
//!
//! * [`Nqn`] and [`TransportAddress`]: who is spoken to, and where.
//! * [`fabrics`]: Connect, Property Get and Set, Disconnect as typed views of a submission queue
//!   entry, and the data of Connect.
//! * [`discovery`]: the discovery log page.
//! * [`tcp`]: the PDUs of the NVMe/TCP transport, their checks and their encoders.
//! * [`rdma`]: the private data of RDMA connections, and keyed SGLs.
//! * [`digest`]: CRC-32C, which NVMe/TCP uses for header and data digests.
//!
//! It is not a transport: nothing here reads a socket, keeps a connection's state or allocates for
//! a PDU. The commands, completions, status codes and identify structures are in `nvme_spec`.
//!
//! Threading: everything is plain data, `Send` and `Sync`.
//!
//! Errors: each parser has an enum of its own ([`NqnError`], [`TransportAddressError`],
//! [`fabrics::FabricsError`], [`fabrics::ConnectDataError`], [`discovery::DiscoveryError`],
//! [`tcp::PduError`], [`rdma::CmStatus`], [`rdma::SglError`]) since each names a different answer to the peer. No parser panics, whatever
//! the bytes are.
//!
//! References are to the NVM Express Base Specification 2.1 ("NVMe Base") and the NVM Express TCP
//! Transport Specification 1.1 ("NVMe TCP"), and the NVM Express RDMA Transport Specification 1.0.

pub mod digest;
pub mod discovery;
pub mod fabrics;
mod nqn;
pub mod rdma;
pub mod tcp;
mod transport_address;

pub use nqn::{DISCOVERY_NQN, NQN_FIELD_LEN, NQN_MAX_LEN, Nqn, NqnError};
pub use transport_address::{
    AddressFamily, DEFAULT_PORT, DISCOVERY_PORT, TransportAddress, TransportAddressError,
    TransportType,
};
