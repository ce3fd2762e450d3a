//! What goes wrong at a host, and what to do about it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fabric_wire::TransportAddressError;
use fabric_wire::discovery::DiscoveryError;
use fabric_wire::tcp::PduError;
use nvme_spec::{Cid, Qid, Status};
use thiserror::Error;

/// Why a connection, an association or an operation failed.
///
/// It can be cloned: one broken connection fails many operations.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    /// An option has a value that cannot be used.
    #[error("option {option} is {value}: {reason}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// Its value.
        value: u64,
        /// What would be right.
        reason: &'static str,
    },
    /// The address cannot be connected to.
    #[error("address {address} cannot be used")]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        source: TransportAddressError,
    },
    /// The address is of RDMA, and there are no verbs.
    #[error("{address} needs rdma, which this host was given no verbs for")]
    Transport {
        /// The address.
        address: String,
    },
    /// A socket call failed.
    #[error("{operation} on the connection to {address} failed")]
    Socket {
        /// The call: `connect`, `send`, `receive`.
        operation: &'static str,
        /// The controller's address.
        address: String,
        /// The system's reason.
        source: Arc<io::Error>,
    },
    /// A call of the RDMA libraries failed.
    #[error("{operation} failed on the rdma connection to {address}")]
    Rdma {
        /// What was being done.
        operation: &'static str,
        /// The controller's address.
        address: String,
        /// The reason.
        source: Arc<io::Error>,
    },
    /// The controller refused the RDMA connection.
    #[error("{address} refused the rdma connection of queue {qid}: {reason}")]
    RdmaRejected {
        /// The queue.
        qid: Qid,
        /// The controller's address.
        address: String,
        /// Its reason.
        reason: String,
    },
    /// A work request failed; the connection is gone.
    #[error("the rdma connection of queue {qid} to {address} failed: {status}")]
    WorkRequest {
        /// The controller's address.
        address: String,
        /// The queue.
        qid: Qid,
        /// How the work request ended.
        status: String,
    },
    /// Nothing answered in time.
    #[error("{address} did not answer {what} within {timeout_ms} ms")]
    ConnectTimeout {
        /// The controller's address.
        address: String,
        /// What was not answered: `the TCP connection`, `ICReq`, `Connect`.
        what: &'static str,
        /// The time allowed in milliseconds.
        timeout_ms: u64,
    },
    /// The controller closed the connection.
    #[error("{address} closed the connection of queue {qid}")]
    Closed {
        /// The controller's address.
        address: String,
        /// The queue.
        qid: Qid,
    },
    /// This end closed the connection.
    #[error("the connection of queue {qid} was closed by its owner")]
    ClosedHere {
        /// The queue.
        qid: Qid,
    },
    /// The association of this queue ended.
    #[error("the association of queue {qid} ended")]
    AssociationEnded {
        /// The queue.
        qid: Qid,
    },
    /// The controller sent a PDU that cannot be read.
    #[error("queue {qid}: {address} sent a wrong pdu")]
    Pdu {
        /// The controller's address.
        address: String,
        /// The queue.
        qid: Qid,
        /// What is wrong with it.
        source: PduError,
    },
    /// The controller sent a PDU that breaks the protocol.
    #[error("queue {qid}: protocol broken by {address}: {violation}")]
    Protocol {
        /// The controller's address.
        address: String,
        /// The queue.
        qid: Qid,
        /// What it did.
        violation: Violation,
    },
    /// The controller ended the connection with a C2HTermReq.
    #[error(
        "queue {qid}: {address} ended the connection: {} (status {fes:#06x}, information {fei:#x})",
        fes_name(*fes)
    )]
    Terminated {
        /// The controller's address.
        address: String,
        /// The queue.
        qid: Qid,
        /// Fatal error status.
        fes: u16,
        /// Fatal error information.
        fei: u32,
    },
    /// The controller does not grant a digest that was asked for, or turns on one that was not.
    #[error("{address} answered {granted} to {which} digests where {asked} was asked")]
    Digest {
        /// The controller's address.
        address: String,
        /// `header` or `data`.
        which: &'static str,
        /// What this host asked for.
        asked: bool,
        /// What the controller answered.
        granted: bool,
    },
    /// A command was not answered, not even after an Abort.
    #[error("queue {qid}: command {opcode:#04x} was not answered within {timeout_ms} ms")]
    CommandTimeout {
        /// The queue.
        qid: Qid,
        /// The command's opcode.
        opcode: u8,
        /// The time allowed in milliseconds, with that for the Abort.
        timeout_ms: u64,
    },
    /// Keep Alive was not answered.
    #[error("keep alive was not answered within {timeout_ms} ms; the controller is unreachable")]
    KeepAlive {
        /// The keep-alive time-out in milliseconds.
        timeout_ms: u64,
    },
    /// Connect was refused.
    #[error("connect of queue {qid} to {subnqn} at {address} was refused: {status}; {advice}")]
    Refused {
        /// The queue.
        qid: Qid,
        /// The subsystem asked for.
        subnqn: String,
        /// The controller's address.
        address: String,
        /// The status.
        status: Status,
        /// What the status says of the parameters, and what to do.
        advice: String,
    },
    /// The controller wants authentication, which this library has not.
    #[error("{subnqn} at {address} requires authentication, which is not supported")]
    Authentication {
        /// The subsystem.
        subnqn: String,
        /// The controller's address.
        address: String,
    },
    /// A command ended with an error status.
    #[error("{what} failed: {status}")]
    Command {
        /// The command.
        what: &'static str,
        /// Its status.
        status: Status,
    },
    /// A command succeeded and brought less data than it said.
    #[error("{what} brought {received} of {expected} bytes")]
    ShortData {
        /// The command.
        what: &'static str,
        /// Bytes received.
        received: u32,
        /// Bytes asked for.
        expected: u32,
    },
    /// The data of a command did not match its digest. The command may be repeated.
    #[error("data of {what} did not match its digest")]
    DataDigest {
        /// The command.
        what: &'static str,
    },
    /// CSTS.CFS is set.
    #[error("the controller reports a fatal error (csts.cfs); reset it or connect anew")]
    ControllerFatal,
    /// CSTS.RDY did not change in time.
    #[error("the controller did not become {} within {timeout_ms} ms",
        if *ready { "ready" } else { "disabled" })]
    ReadyTimeout {
        /// The state waited for.
        ready: bool,
        /// CAP.TO in milliseconds.
        timeout_ms: u64,
    },
    /// CSTS.SHST did not come in time.
    #[error("the controller did not finish its shutdown within {timeout_ms} ms")]
    ShutdownTimeout {
        /// The time allowed in milliseconds.
        timeout_ms: u64,
    },
    /// The controller says something of itself that this library cannot work with.
    #[error("the controller cannot be used: {reason}")]
    Unusable {
        /// What it says.
        reason: String,
    },
    /// A structure that the controller returned is malformed.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// The structure.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The discovery log is malformed.
    #[error("the discovery log cannot be used")]
    Discovery {
        /// What is wrong with it.
        #[from]
        source: DiscoveryError,
    },
    /// The discovery log changed each time it was read.
    #[error("the discovery log changed during each of {attempts} reads; read it again later")]
    DiscoveryUnstable {
        /// Times that it was read.
        attempts: u32,
    },
    /// What the operation needs is not there (yet): the controller is not ready, or has ended.
    #[error("{what} needs a ready controller; it is {state}")]
    NotReady {
        /// What was asked for.
        what: &'static str,
        /// The state that the controller is in.
        state: &'static str,
    },
    /// Data read back differs from what was written.
    #[error("data differs: {0}")]
    Miscompare(Box<crate::perf::Mismatch>),
}

impl HostError {
    /// The error with what lies behind it, in one line.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(inner) = source {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            source = inner.source();
        }
        text
    }

    /// The status that a command ended with, if that is what failed.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Refused { status, .. } | Self::Command { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the same attempt may succeed later. `false` where the controller said "do not
    /// retry", or where this host's options or the controller's nature are the reason.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { status, .. } | Self::Command { status, .. } => !status.dnr(),
            Self::Option { .. }
            | Self::Address { .. }
            | Self::Transport { .. }
            | Self::Digest { .. }
            | Self::Authentication { .. }
            | Self::Unusable { .. }
            | Self::Malformed { .. }
            | Self::Miscompare(_) => false,
            _ => true,
        }
    }
}

/// What a controller did against the protocol (NVMe TCP 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// A PDU came where another was due.
    #[error("{found} came where {expected} was due")]
    Sequence {
        /// The PDU that came.
        found: &'static str,
        /// What was due.
        expected: &'static str,
    },
    /// No command with this identifier is outstanding: it never was, or has already ended.
    #[error("{pdu} for command {cid}, which is not outstanding")]
    UnknownCommand {
        /// The PDU that came.
        pdu: &'static str,
        /// The identifier.
        cid: Cid,
    },
    /// Data for a command that takes none.
    #[error("{pdu} for command {cid}, which moves no data that way")]
    WrongDirection {
        /// The PDU that came.
        pdu: &'static str,
        /// The command.
        cid: Cid,
    },
    /// Data does not follow on what came before.
    #[error("{pdu} for command {cid} at offset {offset} where {expected} is next")]
    OutOfOrder {
        /// The PDU that came.
        pdu: &'static str,
        /// The command.
        cid: Cid,
        /// Its offset in bytes.
        offset: u32,
        /// The offset that is next.
        expected: u32,
    },
    /// Data reaches past the end of the command's buffer.
    #[error("{pdu} for command {cid}: {len} bytes at {offset} reach past its {limit} bytes")]
    PastEnd {
        /// The PDU that came.
        pdu: &'static str,
        /// The command.
        cid: Cid,
        /// Offset of the data in bytes.
        offset: u32,
        /// Length of the data in bytes.
        len: u32,
        /// Length of the command's data in bytes.
        limit: u32,
    },
    /// Data after the last.
    #[error("c2hdata for command {cid} after its last one")]
    AfterLast {
        /// The command.
        cid: Cid,
    },
    /// More R2Ts than MAXR2T allows.
    #[error("more than {limit} r2ts for command {cid}")]
    R2tLimit {
        /// The command.
        cid: Cid,
        /// R2Ts that are allowed at a time.
        limit: u16,
    },
    /// ICResp asks for an alignment that headers cannot have.
    #[error("icresp asks for a data alignment of {bytes} bytes")]
    Alignment {
        /// The alignment in bytes.
        bytes: u32,
    },
}

impl Violation {
    /// Fatal error status of the H2CTermReq that answers it.
    pub(crate) fn fes(&self) -> u16 {
        use fabric_wire::tcp;
        match self {
            Self::Sequence { .. } => tcp::FES_SEQUENCE_ERROR,
            Self::PastEnd { .. } | Self::OutOfOrder { .. } => tcp::FES_DATA_OUT_OF_RANGE,
            Self::R2tLimit { .. } => tcp::FES_R2T_LIMIT_EXCEEDED,
            Self::Alignment { .. } => tcp::FES_UNSUPPORTED_PARAMETER,
            _ => tcp::FES_INVALID_HEADER_FIELD,
        }
    }

    /// Fatal error information: where in the header the bad field is.
    pub(crate) fn fei(&self) -> u32 {
        const CCCID_OFFSET: u32 = 8;
        const ALIGNMENT_OFFSET: u32 = 10;
        const FLAGS_OFFSET: u32 = 1;
        /// Of a CapsuleResp: the CQE's CID.
        const CQE_CID_OFFSET: u32 = 8 + 12;
        match self {
            Self::UnknownCommand {
                pdu: "capsuleresp", ..
            } => CQE_CID_OFFSET,
            Self::UnknownCommand { .. } | Self::WrongDirection { .. } => CCCID_OFFSET,
            Self::AfterLast { .. } => FLAGS_OFFSET,
            Self::Alignment { .. } => ALIGNMENT_OFFSET,
            _ => 0,
        }
    }
}

/// How a command ended other than well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The controller answered with this status. See [`Status::dnr`] and [`Status::crd`].
    #[error("{0}")]
    Status(Status),
    /// The data did not match its digest; the connection goes on, the command may be repeated.
    #[error("data digest error")]
    DataDigest,
    /// The controller reported success and sent less data than asked for.
    #[error("{received} of {expected} bytes came")]
    ShortData {
        /// Bytes received.
        received: u32,
        /// Bytes asked for.
        expected: u32,
    },
    /// The connection ended; whether the command was executed is not known.
    #[error("the connection ended before the answer came")]
    ConnectionLost,
}

impl CommandError {
    /// Whether the same command may succeed when it is repeated.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Status(status) => !status.dnr(),
            Self::DataDigest | Self::ConnectionLost => true,
            Self::ShortData { .. } => false,
        }
    }

    /// As an error of the operation `what`; `lost` is why the connection ended, if it did.
    pub(crate) fn of(self, what: &'static str, lost: Option<&HostError>, qid: Qid) -> HostError {
        match self {
            Self::Status(status) => HostError::Command { what, status },
            Self::DataDigest => HostError::DataDigest { what },
            Self::ShortData { received, expected } => HostError::ShortData {
                what,
                received,
                expected,
            },
            Self::ConnectionLost => lost.cloned().unwrap_or(HostError::ClosedHere { qid }),
        }
    }
}

/// Milliseconds of `duration`, as errors tell them.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn fes_name(fes: u16) -> &'static str {
    match fes {
        1 => "invalid pdu header field",
        2 => "pdu sequence error",
        3 => "header digest error",
        4 => "data transfer out of range",
        5 => "data transfer limit exceeded",
        6 => "unsupported parameter",
        _ => "unknown fatal error",
    }
}
