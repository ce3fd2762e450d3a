//! The data structures of NVM Express as they lie in memory and on the wire.
//!
//! What it is: submission and completion queue entries, status codes, SGL descriptors, opcodes,
//! controller registers, and the payloads of Identify, Get Log Page, Get/Set Features and a few
//! I/O commands. Section numbers are those of the NVM Express Base Specification 2.1 ("Base") and
//! the NVM Command Set Specification 1.1 ("NVM"), unless a comment names another.
//!
//! What it is not: no queues, no MMIO, no transport, no policy. What NVMe over Fabrics adds on
//! the wire (Connect, properties, PDUs, discovery log) is in `fabric_wire`.
//!
//! Main types: [`Sqe`], [`Cqe`], [`Status`], [`SglDescriptor`]; the modules [`opcode`],
//! [`registers`], [`pcie`], [`identify`], [`log`], [`feature`], [`event`], [`range`].
//!
//! Layout: every structure is built of little-endian, unaligned `zerocopy` fields. It may be read
//! from and written to any byte buffer of its size, on a host of any byte order; its size is
//! checked when the crate is compiled. Every bit pattern is a value of every structure: reading
//! one never fails, and accessors of a reserved encoding say so instead of panicking. Reserved
//! bytes of a structure made by `Default` or by a constructor are zero, as the specification asks.
//!
//! Threading: plain data, `Send + Sync`. Errors: the crate has none; what is too short is `None`.

#![no_std]

mod cqe;
pub mod event;
pub mod feature;
pub mod identify;
mod ids;
mod layout;
pub mod log;
pub mod opcode;
pub mod pcie;
pub mod range;
pub mod registers;
pub mod reservation;
mod sgl;
mod sqe;
mod status;

pub use cqe::Cqe;
pub use feature::Select;
pub use ids::{Cid, Cntlid, Lba, Nsid, Qid};
pub use range::{CopyRange, DsmRange};
pub use sgl::SglDescriptor;
pub use sqe::{Fuse, Sqe};
pub use status::Status;

#[cfg(test)]
mod tests;
