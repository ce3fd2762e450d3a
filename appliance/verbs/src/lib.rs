//! RDMA verbs and the RDMA connection manager, as far as NVMe over RDMA needs them.
//!
//! It is an interface and one implementation of it. The interface ([`Provider`] and what it makes)
//! is made of safe traits: a transport that stands on it has no unsafe code, and a double can stand
//! in for it (`verbs_emu`). The implementation, [`RdmaCore`], calls libibverbs and librdmacm, which
//! are looked for when the program runs: without them the program runs too, and
//! [`RdmaCore::load`] says what is missing.
//!
//! It is not a transport, and it is no complete verbs: reliable connected queue pairs only, no
//! atomics, no multicast, no datagrams.
//!
//! # Objects
//! [`Device`] makes protection domains ([`Pd`]), completion queues ([`Cq`]) and completion channels
//! ([`CompChannel`]); a protection domain registers memory ([`Mr`]) and makes shared receive queues
//! ([`Srq`]) and memory windows ([`Mw`]). A [`CmChannel`] listens, resolves and reports [`CmEvent`]s; a [`CmId`] is one connection, and makes its [`Qp`]. Each object keeps what it
//! stands on alive: they may be dropped in any order.
//!
//! # Memory
//! A work request names memory by address and key. The device reaches only what is registered, and
//! a registration keeps its [`dma::Region`] alive, so memory that is gone is never written. That
//! nobody else looks at memory between posting and completion is the poster's to see to, as with
//! any device: hold the [`dma::IoBuf`], and make no slice of it until the completion has come or
//! the queue pair has been dropped.
//!
//! # Threading
//! Objects may be used from any thread; each call is short and takes no lock of this crate. A queue
//! pair, an identifier and a connection manager's channel are used by one thread at a time (`&mut`).
//! Nothing here blocks but [`CmId`]'s destruction, which waits for the kernel to let go of it.
//!
//! # Errors
//! [`VerbsError`] tells the call, the object and the system's reason. What goes wrong with a posted
//! work request comes as a [`WorkCompletion`] with its [`WcStatus`].
#![cfg_attr(
    feature = "rdma-core",
    expect(unsafe_code, reason = "calls into libibverbs and librdmacm")
)]

mod error;
#[cfg(feature = "rdma-core")]
mod rdma_core;
mod traits;
mod types;

pub use error::VerbsError;
#[cfg(feature = "rdma-core")]
pub use rdma_core::RdmaCore;
pub use traits::{CmChannel, CmId, CompChannel, Cq, Device, Mr, Mw, Pd, Provider, Qp, Srq};
pub use types::{
    Access, AsyncEvent, AsyncEventKind, Bind, CmEvent, CmEventKind, ConnParam, DeviceCaps,
    DeviceInfo, INLINE_LEN, PRIVATE_DATA_MAX, PostError, PrivateData, QpOptions, RecvWr, SGE_MAX,
    SendOp, SendWr, Sge, SgeList, WcOpcode, WcStatus, WorkCompletion,
};
