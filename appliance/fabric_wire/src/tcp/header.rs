//! The headers, byte for byte.

use std::mem::offset_of;

use nvme_spec::{Cqe, Sqe};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The kind of a PDU. The discriminant is PDU-Type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PduType {
    /// Initialize Connection Request, to the controller.
    IcReq = 0x00,
    /// Initialize Connection Response, to the host.
    IcResp = 0x01,
    /// Terminate Connection Request, to the controller.
    H2CTermReq = 0x02,
    /// Terminate Connection Request, to the host.
    C2HTermReq = 0x03,
    /// Command Capsule, to the controller.
    CapsuleCmd = 0x04,
    /// Response Capsule, to the host.
    CapsuleResp = 0x05,
    /// Data, to the controller.
    H2CData = 0x06,
    /// Data, to the host.
    C2HData = 0x07,
    /// Ready to Transfer, to the host.
    R2T = 0x09,
}

impl PduType {
    /// The kind of a PDU-Type value.
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            0x00 => Some(Self::IcReq),
            0x01 => Some(Self::IcResp),
            0x02 => Some(Self::H2CTermReq),
            0x03 => Some(Self::C2HTermReq),
            0x04 => Some(Self::CapsuleCmd),
            0x05 => Some(Self::CapsuleResp),
            0x06 => Some(Self::H2CData),
            0x07 => Some(Self::C2HData),
            0x09 => Some(Self::R2T),
            _ => None,
        }
    }

    /// The value of PDU-Type.
    #[must_use]
    pub const fn to_wire(self) -> u8 {
        self as u8
    }

    /// HLEN: length of the header in bytes, without its digest.
    #[must_use]
    pub const fn header_len(self) -> u8 {
        match self {
            Self::IcReq | Self::IcResp => 128,
            Self::CapsuleCmd => 72,
            Self::H2CTermReq
            | Self::C2HTermReq
            | Self::CapsuleResp
            | Self::H2CData
            | Self::C2HData
            | Self::R2T => 24,
        }
    }

    /// Whether a host sends it to a controller.
    #[must_use]
    pub const fn is_host_to_controller(self) -> bool {
        matches!(
            self,
            Self::IcReq | Self::H2CTermReq | Self::CapsuleCmd | Self::H2CData
        )
    }

    /// Whether it has a header digest once header digests are on.
    #[must_use]
    pub const fn takes_header_digest(self) -> bool {
        !matches!(
            self,
            Self::IcReq | Self::IcResp | Self::H2CTermReq | Self::C2HTermReq
        )
    }
}

/// The first bytes of every PDU.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CommonHeader {
    /// PDU-Type, see [`PduType`].
    pub pdu_type: u8,
    /// FLAGS: HDGSTF, DDGSTF, LAST_PDU, SUCCESS.
    pub flags: u8,
    /// HLEN: length of the header in bytes, without its digest.
    pub hlen: u8,
    /// PDO: offset of the data in the PDU in bytes.
    pub pdo: u8,
    /// PLEN: length of the whole PDU in bytes.
    pub plen: U32,
}

/// Initialize Connection Request.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IcReq {
    /// Common header.
    pub ch: CommonHeader,
    /// PDU format version.
    pub pfv: U16,
    /// HPDA: alignment of data sent to the host, in dwords less one.
    pub hpda: u8,
    /// DGST: digests that the host wants.
    pub dgst: u8,
    /// MAXR2T: outstanding R2Ts per command that the host takes, less one.
    pub maxr2t: U32,
    /// Reserved.
    pub reserved16: [u8; 112],
}

/// Initialize Connection Response.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IcResp {
    /// Common header.
    pub ch: CommonHeader,
    /// PDU format version.
    pub pfv: U16,
    /// CPDA: alignment of data sent to the controller, in dwords less one.
    pub cpda: u8,
    /// DGST: digests that are on.
    pub dgst: u8,
    /// MAXH2CDATA: most data in bytes of one H2CData.
    pub maxh2cdata: U32,
    /// Reserved.
    pub reserved16: [u8; 112],
}

/// Terminate Connection Request, in both directions. The header of the offending PDU follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct TermReq {
    /// Common header.
    pub ch: CommonHeader,
    /// FES: fatal error status.
    pub fes: U16,
    /// FEI: fatal error information.
    pub fei: U32,
    /// Reserved.
    pub reserved14: [u8; 10],
}

/// Command Capsule. In-capsule data may follow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CapsuleCmd {
    /// Common header.
    pub ch: CommonHeader,
    /// The command.
    pub sqe: Sqe,
}

/// Response Capsule.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CapsuleResp {
    /// Common header.
    pub ch: CommonHeader,
    /// The completion.
    pub cqe: Cqe,
}

/// Data from the host to the controller.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct H2CData {
    /// Common header.
    pub ch: CommonHeader,
    /// CCCID: identifier of the command.
    pub cccid: U16,
    /// TTAG: transfer tag of the R2T that is answered.
    pub ttag: U16,
    /// DATAO: offset of this data in that of the command in bytes.
    pub datao: U32,
    /// DATAL: length of this data in bytes.
    pub datal: U32,
    /// Reserved.
    pub reserved20: [u8; 4],
}

/// Data from the controller to the host.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct C2HData {
    /// Common header.
    pub ch: CommonHeader,
    /// CCCID: identifier of the command.
    pub cccid: U16,
    /// Reserved.
    pub reserved10: [u8; 2],
    /// DATAO: offset of this data in that of the command in bytes.
    pub datao: U32,
    /// DATAL: length of this data in bytes.
    pub datal: U32,
    /// Reserved.
    pub reserved20: [u8; 4],
}

/// Ready to Transfer: the controller asks for data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct R2T {
    /// Common header.
    pub ch: CommonHeader,
    /// CCCID: identifier of the command.
    pub cccid: U16,
    /// TTAG: transfer tag of the controller's choice.
    pub ttag: U16,
    /// R2TO: offset in the data of the command in bytes.
    pub r2to: U32,
    /// R2TL: length asked for in bytes.
    pub r2tl: U32,
    /// Reserved.
    pub reserved20: [u8; 4],
}

const _: () = {
    assert!(size_of::<CommonHeader>() == super::COMMON_HEADER_LEN);
    assert!(size_of::<IcReq>() == 128 && size_of::<IcResp>() == 128);
    assert!(size_of::<TermReq>() == 24);
    assert!(size_of::<CapsuleCmd>() == 72 && size_of::<CapsuleResp>() == 24);
    assert!(size_of::<H2CData>() == 24 && size_of::<C2HData>() == 24 && size_of::<R2T>() == 24);
    assert!(offset_of!(CommonHeader, plen) == 4);
    assert!(offset_of!(IcReq, hpda) == 10 && offset_of!(IcReq, maxr2t) == 12);
    assert!(offset_of!(IcResp, cpda) == 10 && offset_of!(IcResp, maxh2cdata) == 12);
    assert!(offset_of!(TermReq, fei) == 10);
    assert!(offset_of!(H2CData, ttag) == 10 && offset_of!(H2CData, datal) == 16);
    assert!(offset_of!(C2HData, datao) == 12 && offset_of!(C2HData, datal) == 16);
    assert!(offset_of!(R2T, r2to) == 12 && offset_of!(R2T, r2tl) == 16);
};
