//! Connect: its command, its data and its results.

use nvme_spec::{Cid, Cntlid, Qid, Sqe};
use thiserror::Error;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FCTYPE_CONNECT, FLAGS_SGL, FabricsError, OPCODE, SQE_LEN, to_sqe, view};
use crate::{NQN_FIELD_LEN, Nqn, NqnError};

/// Length of the data of Connect in bytes.
pub const CONNECT_DATA_LEN: usize = 1024;

/// CNTLID that asks for a controller of the target's choice (dynamic controller model).
pub const CNTLID_DYNAMIC: u16 = 0xFFFF;
/// CNTLID that asks for any free controller (static controller model).
pub const CNTLID_ANY: u16 = 0xFFFE;

/// Bits of CATTR that hold the priority class of the queue.
pub const CATTR_PRIORITY_MASK: u8 = 0x03;
/// Bit of CATTR that asks to do without submission queue flow control.
pub const CATTR_DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;
/// Bit of CATTR that tells that the host can delete I/O queues one by one with Disconnect.
pub const CATTR_DELETE_IO_QUEUES: u8 = 1 << 3;

/// Bit of AUTHREQ: an authentication transaction is needed on this queue.
pub const AUTHREQ_ATR: u16 = 1 << 1;
/// Bit of AUTHREQ: a secure channel and authentication are needed on this queue.
pub const AUTHREQ_ASCR: u16 = 1 << 2;

/// Layout of the Connect command.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ConnectSqe {
    opcode: u8,
    flags: u8,
    cid: U16,
    fctype: u8,
    reserved5: [u8; 19],
    sgl1: [u8; 16],
    recfmt: U16,
    qid: U16,
    sqsize: U16,
    cattr: u8,
    reserved47: u8,
    kato: U32,
    reserved52: [u8; 12],
}

const _: () = assert!(size_of::<ConnectSqe>() == SQE_LEN);

/// The Connect command: creates a queue, and with queue 0 a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectCommand {
    /// Record format; [`ConnectCommand::parse`] accepts 0 only.
    pub recfmt: u16,
    /// Queue to create; 0 is the admin queue.
    pub qid: Qid,
    /// Entries of the queue less one.
    pub sqsize: u16,
    /// Attributes, see the `CATTR_` constants.
    pub cattr: u8,
    /// Keep Alive time-out of the association in milliseconds; 0 is none. Of the admin queue only.
    pub kato_ms: u32,
}

impl ConnectCommand {
    /// Offset of RECFMT in the entry in bytes.
    pub const RECFMT_OFFSET: u16 = 40;
    /// Offset of QID in the entry in bytes.
    pub const QID_OFFSET: u16 = 42;
    /// Offset of SQSIZE in the entry in bytes.
    pub const SQSIZE_OFFSET: u16 = 44;
    /// Offset of CATTR in the entry in bytes.
    pub const CATTR_OFFSET: u16 = 46;
    /// Offset of KATO in the entry in bytes.
    pub const KATO_OFFSET: u16 = 48;

    /// Reads the command.
    ///
    /// An SQSIZE of 0 is refused, since the smallest queue has two entries. The limits of a
    /// controller are the caller's to check.
    pub fn parse(sqe: &Sqe) -> Result<Self, FabricsError> {
        let layout: ConnectSqe = view(sqe, FCTYPE_CONNECT)?;
        let recfmt = layout.recfmt.get();
        if recfmt != 0 {
            return Err(FabricsError::RecordFormat { recfmt });
        }
        let sqsize = layout.sqsize.get();
        if sqsize == 0 {
            let offset = Self::SQSIZE_OFFSET;
            return Err(FabricsError::Field {
                field: "sqsize",
                offset,
                value: 0,
            });
        }
        Ok(Self {
            recfmt,
            qid: Qid(layout.qid.get()),
            sqsize,
            cattr: layout.cattr,
            kato_ms: layout.kato.get(),
        })
    }

    /// The entry of this command with identifier `cid`. SGL1, which describes the data, is left
    /// zero for the transport to fill.
    #[must_use]
    pub fn to_sqe(&self, cid: Cid) -> Sqe {
        to_sqe(&ConnectSqe {
            opcode: OPCODE,
            flags: FLAGS_SGL,
            cid: cid.0.into(),
            fctype: FCTYPE_CONNECT,
            reserved5: [0; 19],
            sgl1: [0; 16],
            recfmt: self.recfmt.into(),
            qid: self.qid.0.into(),
            sqsize: self.sqsize.into(),
            cattr: self.cattr,
            reserved47: 0,
            kato: self.kato_ms.into(),
            reserved52: [0; 12],
        })
    }

    /// Whether the host asks to do without submission queue flow control.
    #[must_use]
    pub const fn disables_sq_flow_control(&self) -> bool {
        self.cattr & CATTR_DISABLE_SQ_FLOW_CONTROL != 0
    }

    /// Whether the host can delete I/O queues one by one.
    #[must_use]
    pub const fn can_delete_io_queues(&self) -> bool {
        self.cattr & CATTR_DELETE_IO_QUEUES != 0
    }

    /// Entries of the queue: SQSIZE and one.
    #[must_use]
    pub const fn entries(&self) -> u32 {
        self.sqsize as u32 + 1
    }
}

/// The data of Connect, byte for byte.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ConnectData {
    /// Host Identifier.
    pub hostid: [u8; 16],
    /// Controller asked for, see [`CNTLID_DYNAMIC`].
    pub cntlid: U16,
    /// Reserved.
    pub reserved18: [u8; 238],
    /// Name of the subsystem, zero-padded.
    pub subnqn: [u8; NQN_FIELD_LEN],
    /// Name of the host, zero-padded.
    pub hostnqn: [u8; NQN_FIELD_LEN],
    /// Reserved.
    pub reserved768: [u8; 256],
}

const _: () = {
    assert!(size_of::<ConnectData>() == CONNECT_DATA_LEN);
    assert!(std::mem::offset_of!(ConnectData, cntlid) == ConnectData::CNTLID_OFFSET as usize);
    assert!(std::mem::offset_of!(ConnectData, subnqn) == ConnectData::SUBNQN_OFFSET as usize);
    assert!(std::mem::offset_of!(ConnectData, hostnqn) == ConnectData::HOSTNQN_OFFSET as usize);
};

/// The data of Connect, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectParts {
    /// Host Identifier. Whether zero is allowed is the caller's rule.
    pub hostid: [u8; 16],
    /// Controller asked for, see [`CNTLID_DYNAMIC`].
    pub cntlid: Cntlid,
    /// Name of the subsystem.
    pub subnqn: Nqn,
    /// Name of the host.
    pub hostnqn: Nqn,
}

/// What is wrong with the data of Connect.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConnectDataError {
    /// Fewer than [`CONNECT_DATA_LEN`] bytes.
    #[error("connect data is {len} bytes long; {CONNECT_DATA_LEN} are needed")]
    TooShort {
        /// Length in bytes.
        len: usize,
    },
    /// The subsystem's name is not an NQN.
    #[error("subsystem name of connect is wrong: {error}")]
    SubNqn {
        /// What is wrong with it.
        error: NqnError,
    },
    /// The host's name is not an NQN.
    #[error("host name of connect is wrong: {error}")]
    HostNqn {
        /// What is wrong with it.
        error: NqnError,
    },
}

impl ConnectDataError {
    /// Offset in bytes of the bad field in the data, for [`connect_invalid_parameters_result`].
    ///
    /// `None` when the data is too short, which is a wrong SGL and not a wrong parameter.
    #[must_use]
    pub const fn offset(&self) -> Option<u16> {
        match self {
            Self::TooShort { .. } => None,
            Self::SubNqn { .. } => Some(ConnectData::SUBNQN_OFFSET),
            Self::HostNqn { .. } => Some(ConnectData::HOSTNQN_OFFSET),
        }
    }
}

impl ConnectData {
    /// Offset of HOSTID in bytes.
    pub const HOSTID_OFFSET: u16 = 0;
    /// Offset of CNTLID in bytes.
    pub const CNTLID_OFFSET: u16 = 16;
    /// Offset of SUBNQN in bytes.
    pub const SUBNQN_OFFSET: u16 = 256;
    /// Offset of HOSTNQN in bytes.
    pub const HOSTNQN_OFFSET: u16 = 512;

    /// Reads and checks the data. Bytes after the first 1024 are not looked at.
    pub fn parse(bytes: &[u8]) -> Result<ConnectParts, ConnectDataError> {
        let (data, _) = Self::ref_from_prefix(bytes)
            .map_err(|_| ConnectDataError::TooShort { len: bytes.len() })?;
        data.to_parts()
    }

    /// Checks the data. Some hosts (SPDK's `perf`) leave HOSTNQN empty: such a host goes by the name
    /// that its Host Identifier makes, so that a subsystem for any host serves it as other targets
    /// do, and one with a list can list it.
    pub fn to_parts(&self) -> Result<ConnectParts, ConnectDataError> {
        let subnqn =
            Nqn::from_padded(&self.subnqn).map_err(|error| ConnectDataError::SubNqn { error })?;
        let hostnqn = match Nqn::from_padded(&self.hostnqn) {
            Err(NqnError::Empty) => Ok(Nqn::from_uuid_bytes(self.hostid)),
            named => named,
        };
        let hostnqn = hostnqn.map_err(|error| ConnectDataError::HostNqn { error })?;
        Ok(ConnectParts {
            hostid: self.hostid,
            cntlid: Cntlid(self.cntlid.get()),
            subnqn,
            hostnqn,
        })
    }

    /// Lays out the data.
    #[must_use]
    pub fn new(hostid: [u8; 16], cntlid: Cntlid, subnqn: &Nqn, hostnqn: &Nqn) -> Self {
        Self {
            hostid,
            cntlid: cntlid.0.into(),
            reserved18: [0; 238],
            subnqn: subnqn.to_padded(),
            hostnqn: hostnqn.to_padded(),
            reserved768: [0; 256],
        }
    }
}

impl ConnectParts {
    /// Whether the Host Identifier is all zero.
    #[must_use]
    pub fn hostid_is_zero(&self) -> bool {
        self.hostid == [0; 16]
    }

    /// Lays out the data.
    #[must_use]
    pub fn to_data(&self) -> ConnectData {
        ConnectData::new(self.hostid, self.cntlid, &self.subnqn, &self.hostnqn)
    }
}

/// Dword 0 of the completion of a Connect that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectResult {
    /// Controller to which the queue belongs.
    pub cntlid: Cntlid,
    /// Authentication that is needed, see [`AUTHREQ_ATR`] and [`AUTHREQ_ASCR`].
    pub authreq: u16,
}

impl ConnectResult {
    /// Reads dword 0.
    #[must_use]
    pub const fn from_dword(dword: u32) -> Self {
        let [c0, c1, a0, a1] = dword.to_le_bytes();
        Self {
            cntlid: Cntlid(u16::from_le_bytes([c0, c1])),
            authreq: u16::from_le_bytes([a0, a1]),
        }
    }

    /// Dword 0.
    #[must_use]
    pub const fn to_dword(self) -> u32 {
        self.cntlid.0 as u32 | (self.authreq as u32) << 16
    }
}

/// Dword 0 of a completion with status Connect Invalid Parameters.
///
/// `in_data` tells whether `offset`, in bytes, counts from the start of the data (IATTR 1) or of the
/// submission queue entry (IATTR 0); it is the IPO field.
#[must_use]
pub const fn connect_invalid_parameters_result(in_data: bool, offset: u16) -> u32 {
    (in_data as u32) << 16 | offset as u32
}

/// The other way: `(in_data, offset)` of a dword 0 with status Connect Invalid Parameters.
#[must_use]
pub const fn parse_connect_invalid_parameters_result(dword: u32) -> (bool, u16) {
    let [o0, o1, iattr, _] = dword.to_le_bytes();
    (iattr & 1 == 1, u16::from_le_bytes([o0, o1]))
}
