//! Fabrics commands as typed views of a submission queue entry (NVMe Base 2.1 §6, "Fabrics Command
//! Set").
//!
//! Every fabrics command has opcode 7Fh and tells its kind in byte 4, FCTYPE.

mod connect;

use nvme_spec::opcode::fabrics;
use nvme_spec::{Cid, Sqe};
use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use connect::{
    AUTHREQ_ASCR, AUTHREQ_ATR, CATTR_DELETE_IO_QUEUES, CATTR_DISABLE_SQ_FLOW_CONTROL,
    CATTR_PRIORITY_MASK, CNTLID_ANY, CNTLID_DYNAMIC, CONNECT_DATA_LEN, ConnectCommand, ConnectData,
    ConnectDataError, ConnectParts, ConnectResult, connect_invalid_parameters_result,
    parse_connect_invalid_parameters_result,
};

/// Opcode of every fabrics command.
pub const OPCODE: u8 = fabrics::OPCODE;

/// FCTYPE of Property Set.
pub const FCTYPE_PROPERTY_SET: u8 = fabrics::PROPERTY_SET;
/// FCTYPE of Connect.
pub const FCTYPE_CONNECT: u8 = fabrics::CONNECT;
/// FCTYPE of Property Get.
pub const FCTYPE_PROPERTY_GET: u8 = fabrics::PROPERTY_GET;
/// FCTYPE of Authentication Send.
pub const FCTYPE_AUTHENTICATION_SEND: u8 = fabrics::AUTHENTICATION_SEND;
/// FCTYPE of Authentication Receive.
pub const FCTYPE_AUTHENTICATION_RECEIVE: u8 = fabrics::AUTHENTICATION_RECEIVE;
/// FCTYPE of Disconnect.
pub const FCTYPE_DISCONNECT: u8 = fabrics::DISCONNECT;

/// Length of a submission queue entry in bytes.
const SQE_LEN: usize = 64;

/// PSDT 01b in the flags: every fabrics command describes its data by an SGL.
const FLAGS_SGL: u8 = Sqe::PSDT_SGL << 6;

/// Why a fabrics command cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FabricsError {
    /// The opcode is not 7Fh.
    #[error("opcode {opcode:#04x} is not that of a fabrics command, 0x7f")]
    NotFabrics {
        /// The opcode.
        opcode: u8,
    },
    /// FCTYPE is that of another command.
    #[error("fabrics command type {found:#04x} where {expected:#04x} is needed")]
    WrongType {
        /// The type that is there.
        found: u8,
        /// The type that was to be read.
        expected: u8,
    },
    /// RECFMT is not 0: the answer is Connect Incompatible Format, or for Disconnect Disconnect
    /// Incompatible Format, both 80h.
    #[error("record format {recfmt} is unknown; 0 is the only one")]
    RecordFormat {
        /// The value of RECFMT.
        recfmt: u16,
    },
    /// A field holds a value that no controller can take.
    #[error("field {field} at byte {offset} of the command holds {value}, which is not allowed")]
    Field {
        /// The name of the field.
        field: &'static str,
        /// Offset of the field in the entry in bytes.
        offset: u16,
        /// Its value.
        value: u64,
    },
}

/// The fabrics command type of `sqe`, or `None` when its opcode is not 7Fh.
#[must_use]
pub fn fctype(sqe: &Sqe) -> Option<u8> {
    sqe.is_fabrics().then(|| sqe.fctype())
}

/// The bytes of `sqe` as one of the layouts here, once its kind has been checked.
fn view<T: FromBytes>(sqe: &Sqe, expected: u8) -> Result<T, FabricsError> {
    match fctype(sqe) {
        None => Err(FabricsError::NotFabrics {
            opcode: sqe.opcode(),
        }),
        Some(found) if found != expected => Err(FabricsError::WrongType { found, expected }),
        Some(_) => {
            Ok(T::read_from_bytes(sqe.as_bytes()).expect("each layout is as long as the entry"))
        }
    }
}

fn to_sqe<T: IntoBytes + Immutable>(layout: &T) -> Sqe {
    Sqe::read_from_bytes(layout.as_bytes()).expect("each layout is as long as the entry")
}

/// Layout of Property Get and Property Set.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PropertySqe {
    opcode: u8,
    flags: u8,
    cid: U16,
    fctype: u8,
    reserved5: [u8; 35],
    attrib: u8,
    reserved41: [u8; 3],
    ofst: U32,
    value: U64,
    reserved56: [u8; 8],
}

/// Layout of Disconnect.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DisconnectSqe {
    opcode: u8,
    flags: u8,
    cid: U16,
    fctype: u8,
    reserved5: [u8; 35],
    recfmt: U16,
    reserved42: [u8; 22],
}

const _: () = {
    assert!(size_of::<PropertySqe>() == SQE_LEN);
    assert!(size_of::<DisconnectSqe>() == SQE_LEN);
    assert!(size_of::<Sqe>() == SQE_LEN);
};

/// How wide a property is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PropertySize {
    /// 4 bytes.
    Four = 0,
    /// 8 bytes.
    Eight = 1,
}

impl PropertySize {
    /// The width in bytes: 4 or 8.
    #[must_use]
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    fn from_attrib(attrib: u8) -> Result<Self, FabricsError> {
        match attrib & 0x07 {
            0 => Ok(Self::Four),
            1 => Ok(Self::Eight),
            size => Err(FabricsError::Field {
                field: "attrib",
                offset: 40,
                value: size.into(),
            }),
        }
    }
}

/// Property Get: reads a controller register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertyGet {
    /// Width of the property.
    pub size: PropertySize,
    /// Offset of the property in the register space in bytes.
    pub offset: u32,
}

impl PropertyGet {
    /// Reads the command.
    pub fn parse(sqe: &Sqe) -> Result<Self, FabricsError> {
        let layout: PropertySqe = view(sqe, FCTYPE_PROPERTY_GET)?;
        let size = PropertySize::from_attrib(layout.attrib)?;
        Ok(Self {
            size,
            offset: layout.ofst.get(),
        })
    }

    /// The entry of this command with identifier `cid`.
    #[must_use]
    pub fn to_sqe(&self, cid: Cid) -> Sqe {
        to_sqe(&property_sqe(
            FCTYPE_PROPERTY_GET,
            cid,
            self.size,
            self.offset,
            0,
        ))
    }
}

/// Property Set: writes a controller register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertySet {
    /// Width of the property.
    pub size: PropertySize,
    /// Offset of the property in the register space in bytes.
    pub offset: u32,
    /// What to write. Of a property of 4 bytes only the low 32 bits count.
    pub value: u64,
}

impl PropertySet {
    /// Reads the command. The upper half of the value of a 4-byte property is dropped.
    pub fn parse(sqe: &Sqe) -> Result<Self, FabricsError> {
        let layout: PropertySqe = view(sqe, FCTYPE_PROPERTY_SET)?;
        let size = PropertySize::from_attrib(layout.attrib)?;
        let value = layout.value.get() & value_mask(size);
        Ok(Self {
            size,
            offset: layout.ofst.get(),
            value,
        })
    }

    /// The entry of this command with identifier `cid`.
    #[must_use]
    pub fn to_sqe(&self, cid: Cid) -> Sqe {
        let value = self.value & value_mask(self.size);
        to_sqe(&property_sqe(
            FCTYPE_PROPERTY_SET,
            cid,
            self.size,
            self.offset,
            value,
        ))
    }
}

const fn value_mask(size: PropertySize) -> u64 {
    match size {
        PropertySize::Four => 0xFFFF_FFFF,
        PropertySize::Eight => u64::MAX,
    }
}

fn property_sqe(fctype: u8, cid: Cid, size: PropertySize, offset: u32, value: u64) -> PropertySqe {
    PropertySqe {
        opcode: OPCODE,
        flags: FLAGS_SGL,
        cid: cid.0.into(),
        fctype,
        reserved5: [0; 35],
        attrib: size as u8,
        reserved41: [0; 3],
        ofst: offset.into(),
        value: value.into(),
        reserved56: [0; 8],
    }
}

/// Disconnect: deletes the I/O queue on which it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disconnect;

impl Disconnect {
    /// Reads the command.
    pub fn parse(sqe: &Sqe) -> Result<Self, FabricsError> {
        let layout: DisconnectSqe = view(sqe, FCTYPE_DISCONNECT)?;
        match layout.recfmt.get() {
            0 => Ok(Self),
            recfmt => Err(FabricsError::RecordFormat { recfmt }),
        }
    }

    /// The entry of this command with identifier `cid`.
    #[must_use]
    pub fn to_sqe(&self, cid: Cid) -> Sqe {
        to_sqe(&DisconnectSqe {
            opcode: OPCODE,
            flags: FLAGS_SGL,
            cid: cid.0.into(),
            fctype: FCTYPE_DISCONNECT,
            reserved5: [0; 35],
            recfmt: 0.into(),
            reserved42: [0; 22],
        })
    }
}

#[cfg(test)]
mod tests;
