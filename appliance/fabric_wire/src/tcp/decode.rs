//! Checking and reading of PDU headers.

use nvme_spec::{Cid, Cqe, Sqe};
use thiserror::Error;
use zerocopy::FromBytes;

use super::{
    C2HData, COMMON_HEADER_LEN, CapsuleCmd, CapsuleResp, CommonHeader, DDGSTF, DGST_DATA,
    DGST_HEADER, FES_DATA_LIMIT_EXCEEDED, FES_DATA_OUT_OF_RANGE, FES_HEADER_DIGEST_ERROR,
    FES_INVALID_HEADER_FIELD, FES_UNSUPPORTED_PARAMETER, H2CData, HDGSTF, IcReq, IcResp, LAST_PDU,
    MAX_DATA_ALIGNMENT, MAX_TERM_REQ_DATA_LEN, MIN_MAXH2CDATA, PFV, PduType, R2T, SUCCESS, TermReq,
};
use crate::digest::{DIGEST_LEN, crc32c};

// Offsets of fields in bytes, for FEI.
const AT_TYPE: u32 = 0;
const AT_FLAGS: u32 = 1;
const AT_HLEN: u32 = 2;
const AT_PDO: u32 = 3;
const AT_PLEN: u32 = 4;
const AT_PFV: u32 = 8;
const AT_ALIGNMENT: u32 = 10;
const AT_MAXH2CDATA: u32 = 12;
const AT_DATAL: u32 = 16;

/// Who receives the PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Receiver {
    /// A controller; the PDU comes from a host.
    Controller,
    /// A host; the PDU comes from a controller.
    Host,
}

/// What a receiver has agreed to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Header digests are on.
    pub header_digest: bool,
    /// Data digests are on.
    pub data_digest: bool,
    /// Most bytes of in-capsule data in CapsuleCmd.
    pub max_in_capsule: u32,
    /// Most bytes of data in H2CData: MAXH2CDATA.
    pub max_h2c_data: u32,
    /// Most bytes of data in C2HData.
    pub max_c2h_data: u32,
    /// Alignment of received data in its PDU in bytes, a multiple of 4: see
    /// [`super::data_alignment_bytes`], CPDA with a controller, HPDA with a host.
    pub pda: u32,
}

impl Default for DecodeLimits {
    /// Before ICReq and ICResp: no digests, in-capsule data of 8 KiB, H2CData of 128 KiB, C2HData of
    /// any length, an alignment of 4.
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            max_in_capsule: 8 << 10,
            max_h2c_data: 128 << 10,
            max_c2h_data: u32::MAX,
            pda: 4,
        }
    }
}

/// Why a PDU is refused.
///
/// All but [`PduError::Incomplete`] are fatal to the connection: send a TermReq with
/// [`PduError::fes`] and [`PduError::fei`], then close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PduError {
    /// More bytes are needed; nothing is wrong so far.
    #[error("pdu header has {have} of {needed} bytes")]
    Incomplete {
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        have: usize,
    },
    /// A field of the header is wrong.
    #[error("pdu type {pdu_type:#04x}: field {field} at byte {offset} holds {value}, {reason}")]
    Field {
        /// PDU-Type.
        pdu_type: u8,
        /// The name of the field.
        field: &'static str,
        /// Offset of the field in bytes.
        offset: u32,
        /// Its value.
        value: u32,
        /// What would be right.
        reason: &'static str,
    },
    /// The header does not match its digest.
    #[error("pdu type {pdu_type:#04x}: header digest {received:#010x}, computed {computed:#010x}")]
    HeaderDigest {
        /// PDU-Type.
        pdu_type: u8,
        /// The digest in the PDU.
        received: u32,
        /// The digest of the header.
        computed: u32,
    },
    /// DATAO and DATAL reach past 4 GiB.
    #[error("pdu type {pdu_type:#04x}: {len} bytes of data at offset {offset} reach past 4 GiB")]
    DataOutOfRange {
        /// PDU-Type.
        pdu_type: u8,
        /// DATAO or R2TO.
        offset: u32,
        /// DATAL or R2TL.
        len: u32,
    },
    /// More data than was agreed.
    #[error("pdu type {pdu_type:#04x}: {len} bytes of data where at most {limit} are allowed")]
    DataLimit {
        /// PDU-Type.
        pdu_type: u8,
        /// Length of the data in bytes.
        len: u32,
        /// The limit in bytes.
        limit: u32,
    },
    /// PFV is not 0.
    #[error("pdu type {pdu_type:#04x}: pdu format version {pfv}; only 0 is supported")]
    FormatVersion {
        /// PDU-Type.
        pdu_type: u8,
        /// The version.
        pfv: u16,
    },
}

impl PduError {
    /// The fatal error status, or `None` when only bytes are missing.
    #[must_use]
    pub const fn fes(&self) -> Option<u16> {
        match self {
            Self::Incomplete { .. } => None,
            Self::Field { .. } => Some(FES_INVALID_HEADER_FIELD),
            Self::HeaderDigest { .. } => Some(FES_HEADER_DIGEST_ERROR),
            Self::DataOutOfRange { .. } => Some(FES_DATA_OUT_OF_RANGE),
            Self::DataLimit { .. } => Some(FES_DATA_LIMIT_EXCEEDED),
            Self::FormatVersion { .. } => Some(FES_UNSUPPORTED_PARAMETER),
        }
    }

    /// The fatal error information: the offset of the bad field, or the digest that was received.
    /// 0 where the status has none.
    #[must_use]
    pub const fn fei(&self) -> u32 {
        match self {
            Self::Field { offset, .. } => *offset,
            Self::HeaderDigest { received, .. } => *received,
            Self::FormatVersion { .. } => AT_PFV,
            Self::Incomplete { .. } | Self::DataOutOfRange { .. } | Self::DataLimit { .. } => 0,
        }
    }
}

/// What the common header tells of the rest of the PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PduLayout {
    /// The kind of PDU.
    pub pdu_type: PduType,
    /// FLAGS.
    pub flags: u8,
    /// Length of the header in bytes, without its digest.
    pub header_len: usize,
    /// Whether a header digest follows the header.
    pub header_digest: bool,
    /// Offset of the data in the PDU in bytes: PDO, or the end of the header when there is no data.
    pub data_offset: usize,
    /// Length of the data in bytes, without padding and digest.
    pub data_len: u32,
    /// Whether a data digest follows the data.
    pub data_digest: bool,
    /// Length of the whole PDU in bytes.
    pub plen: u32,
}

impl PduLayout {
    /// Length of the header and its digest in bytes: what [`PduLayout::decode`] needs.
    #[must_use]
    pub const fn header_len_with_digest(&self) -> usize {
        self.header_len + if self.header_digest { DIGEST_LEN } else { 0 }
    }

    /// Length in bytes of the padding between header digest and data.
    #[must_use]
    pub const fn pad_len(&self) -> usize {
        self.data_offset - self.header_len_with_digest()
    }

    /// Checks the header digest and the fields of `bytes`, which start with the common header that
    /// gave this layout, and gives the PDU.
    #[inline]
    pub fn decode(&self, bytes: &[u8]) -> Result<Pdu, PduError> {
        let needed = self.header_len_with_digest();
        if bytes.len() < needed {
            return Err(PduError::Incomplete {
                needed,
                have: bytes.len(),
            });
        }
        let (header, after) = bytes.split_at(self.header_len);
        if self.header_digest {
            self.check_header_digest(header, after)?;
        }
        match self.pdu_type {
            PduType::IcReq => self.ic_req(read(header)),
            PduType::IcResp => self.ic_resp(read(header)),
            PduType::H2CTermReq | PduType::C2HTermReq => {
                let pdu: TermReq = read(header);
                let (fes, fei) = (pdu.fes.get(), pdu.fei.get());
                Ok(Pdu::TermReq {
                    fes,
                    fei,
                    data_len: self.data_len,
                })
            }
            PduType::CapsuleCmd => {
                let pdu: CapsuleCmd = read(header);
                Ok(Pdu::CapsuleCmd {
                    sqe: pdu.sqe,
                    data_len: self.data_len,
                })
            }
            PduType::CapsuleResp => {
                let pdu: CapsuleResp = read(header);
                Ok(Pdu::CapsuleResp { cqe: pdu.cqe })
            }
            PduType::H2CData => self.h2c_data(read(header)),
            PduType::C2HData => self.c2h_data(read(header)),
            PduType::R2T => self.r2t(read(header)),
        }
    }

    fn check_header_digest(&self, header: &[u8], after: &[u8]) -> Result<(), PduError> {
        let received = match after.first_chunk() {
            Some(bytes) => u32::from_le_bytes(*bytes),
            None => {
                let needed = self.header_len_with_digest();
                let have = header.len() + after.len();
                return Err(PduError::Incomplete { needed, have });
            }
        };
        let computed = crc32c(header);
        if received == computed {
            Ok(())
        } else {
            Err(PduError::HeaderDigest {
                pdu_type: self.pdu_type.to_wire(),
                received,
                computed,
            })
        }
    }

    fn field(&self, field: &'static str, at: u32, value: u32, reason: &'static str) -> PduError {
        PduError::Field {
            pdu_type: self.pdu_type.to_wire(),
            field,
            offset: at,
            value,
            reason,
        }
    }

    fn check_init(&self, pfv: u16, alignment: u8, name: &'static str) -> Result<(), PduError> {
        if pfv != PFV {
            return Err(PduError::FormatVersion {
                pdu_type: self.pdu_type.to_wire(),
                pfv,
            });
        }
        if alignment > MAX_DATA_ALIGNMENT {
            let value = u32::from(alignment);
            return Err(self.field(name, AT_ALIGNMENT, value, "at most 31 is allowed"));
        }
        Ok(())
    }

    fn ic_req(&self, pdu: IcReq) -> Result<Pdu, PduError> {
        self.check_init(pdu.pfv.get(), pdu.hpda, "hpda")?;
        Ok(Pdu::IcReq {
            hpda: pdu.hpda,
            header_digest: pdu.dgst & DGST_HEADER != 0,
            data_digest: pdu.dgst & DGST_DATA != 0,
            maxr2t: pdu.maxr2t.get(),
        })
    }

    fn ic_resp(&self, pdu: IcResp) -> Result<Pdu, PduError> {
        self.check_init(pdu.pfv.get(), pdu.cpda, "cpda")?;
        let maxh2cdata = pdu.maxh2cdata.get();
        if maxh2cdata < MIN_MAXH2CDATA || !maxh2cdata.is_multiple_of(4) {
            let reason = "a multiple of 4 from 4096 on is needed";
            return Err(self.field("maxh2cdata", AT_MAXH2CDATA, maxh2cdata, reason));
        }
        Ok(Pdu::IcResp {
            cpda: pdu.cpda,
            header_digest: pdu.dgst & DGST_HEADER != 0,
            data_digest: pdu.dgst & DGST_DATA != 0,
            maxh2cdata,
        })
    }

    fn check_data(&self, datao: u32, datal: u32) -> Result<(), PduError> {
        if datal != self.data_len {
            return Err(self.field("datal", AT_DATAL, datal, "plen and pdo say otherwise"));
        }
        self.check_range(datao, datal, "datal")
    }

    fn check_range(&self, offset: u32, len: u32, name: &'static str) -> Result<(), PduError> {
        if len == 0 {
            return Err(self.field(name, AT_DATAL, len, "at least one byte is needed"));
        }
        match offset.checked_add(len) {
            Some(_) => Ok(()),
            None => {
                let pdu_type = self.pdu_type.to_wire();
                Err(PduError::DataOutOfRange {
                    pdu_type,
                    offset,
                    len,
                })
            }
        }
    }

    fn h2c_data(&self, pdu: H2CData) -> Result<Pdu, PduError> {
        let (datao, datal) = (pdu.datao.get(), pdu.datal.get());
        self.check_data(datao, datal)?;
        Ok(Pdu::H2CData {
            cccid: Cid(pdu.cccid.get()),
            ttag: pdu.ttag.get(),
            datao,
            datal,
            last: self.flags & LAST_PDU != 0,
        })
    }

    fn c2h_data(&self, pdu: C2HData) -> Result<Pdu, PduError> {
        let (datao, datal) = (pdu.datao.get(), pdu.datal.get());
        self.check_data(datao, datal)?;
        let last = self.flags & LAST_PDU != 0;
        let success = self.flags & SUCCESS != 0;
        if success && !last {
            let flags = u32::from(self.flags);
            return Err(self.field("flags", AT_FLAGS, flags, "SUCCESS needs LAST_PDU"));
        }
        Ok(Pdu::C2HData {
            cccid: Cid(pdu.cccid.get()),
            datao,
            datal,
            last,
            success,
        })
    }

    fn r2t(&self, pdu: R2T) -> Result<Pdu, PduError> {
        let (r2to, r2tl) = (pdu.r2to.get(), pdu.r2tl.get());
        self.check_range(r2to, r2tl, "r2tl")?;
        Ok(Pdu::R2T {
            cccid: Cid(pdu.cccid.get()),
            ttag: pdu.ttag.get(),
            r2to,
            r2tl,
        })
    }
}

/// A header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pdu {
    /// Initialize Connection Request.
    IcReq {
        /// Alignment of data sent to the host, see [`super::data_alignment_bytes`].
        hpda: u8,
        /// The host wants header digests.
        header_digest: bool,
        /// The host wants data digests.
        data_digest: bool,
        /// Outstanding R2Ts per command that the host takes, less one.
        maxr2t: u32,
    },
    /// Initialize Connection Response.
    IcResp {
        /// Alignment of data sent to the controller, see [`super::data_alignment_bytes`].
        cpda: u8,
        /// Header digests are on.
        header_digest: bool,
        /// Data digests are on.
        data_digest: bool,
        /// Most bytes of data of one H2CData.
        maxh2cdata: u32,
    },
    /// Terminate Connection Request, to the receiver.
    TermReq {
        /// Fatal error status.
        fes: u16,
        /// Fatal error information.
        fei: u32,
        /// Bytes of the offending PDU's header that follow.
        data_len: u32,
    },
    /// Command Capsule.
    CapsuleCmd {
        /// The command.
        sqe: Sqe,
        /// Bytes of in-capsule data that follow.
        data_len: u32,
    },
    /// Response Capsule.
    CapsuleResp {
        /// The completion.
        cqe: Cqe,
    },
    /// Data from the host.
    H2CData {
        /// The command.
        cccid: Cid,
        /// Transfer tag of the R2T that is answered.
        ttag: u16,
        /// Offset in the data of the command in bytes.
        datao: u32,
        /// Bytes of data that follow.
        datal: u32,
        /// The last PDU that answers the R2T.
        last: bool,
    },
    /// Data from the controller.
    C2HData {
        /// The command.
        cccid: Cid,
        /// Offset in the data of the command in bytes.
        datao: u32,
        /// Bytes of data that follow.
        datal: u32,
        /// The last PDU of the command's data.
        last: bool,
        /// The command has succeeded, and no CapsuleResp follows.
        success: bool,
    },
    /// Ready to Transfer.
    R2T {
        /// The command.
        cccid: Cid,
        /// Transfer tag.
        ttag: u16,
        /// Offset in the data of the command in bytes.
        r2to: u32,
        /// Bytes asked for.
        r2tl: u32,
    },
}

/// Checks a whole header, which starts at the start of `bytes`: [`decode_common`] and
/// [`PduLayout::decode`] in one.
#[inline]
pub fn decode_header(
    bytes: &[u8],
    receiver: Receiver,
    limits: &DecodeLimits,
) -> Result<Pdu, PduError> {
    decode_common(bytes, receiver, limits)?.decode(bytes)
}

/// Checks the common header, which starts at the start of `bytes`: type, direction, flags, HLEN, PDO
/// and PLEN.
#[inline]
pub fn decode_common(
    bytes: &[u8],
    receiver: Receiver,
    limits: &DecodeLimits,
) -> Result<PduLayout, PduError> {
    let Ok((common, _)) = CommonHeader::read_from_prefix(bytes) else {
        return Err(PduError::Incomplete {
            needed: COMMON_HEADER_LEN,
            have: bytes.len(),
        });
    };
    common.layout(receiver, limits)
}

impl CommonHeader {
    /// Checks the header as [`decode_common`] does.
    #[inline]
    pub fn layout(&self, receiver: Receiver, limits: &DecodeLimits) -> Result<PduLayout, PduError> {
        let pdu_type = self.checked_type(receiver)?;
        if self.hlen != pdu_type.header_len() {
            let reason = "the length of this header is needed";
            return Err(self.bad("hlen", AT_HLEN, self.hlen.into(), reason));
        }
        let header_digest = limits.header_digest && pdu_type.takes_header_digest();
        if pdu_type.takes_header_digest() && header_digest != (self.flags & HDGSTF != 0) {
            let reason = "HDGSTF does not fit what was agreed";
            return Err(self.bad("flags", AT_FLAGS, self.flags.into(), reason));
        }
        let mut layout = PduLayout {
            pdu_type,
            flags: self.flags,
            header_len: self.hlen.into(),
            header_digest,
            data_offset: 0,
            data_len: 0,
            data_digest: false,
            plen: self.plen.get(),
        };
        layout.data_offset = layout.header_len_with_digest();
        self.lay_out_data(&mut layout, limits)?;
        Ok(layout)
    }

    fn bad(&self, field: &'static str, offset: u32, value: u32, reason: &'static str) -> PduError {
        PduError::Field {
            pdu_type: self.pdu_type,
            field,
            offset,
            value,
            reason,
        }
    }

    fn checked_type(&self, receiver: Receiver) -> Result<PduType, PduError> {
        let bad = |reason| self.bad("pdu-type", AT_TYPE, self.pdu_type.into(), reason);
        let pdu_type =
            PduType::from_wire(self.pdu_type).ok_or_else(|| bad("no PDU has this type"))?;
        match (receiver, pdu_type.is_host_to_controller()) {
            (Receiver::Controller, false) => Err(bad("only a controller sends it")),
            (Receiver::Host, true) => Err(bad("only a host sends it")),
            _ => Ok(pdu_type),
        }
    }

    /// Checks PLEN and PDO and fills in where the data is.
    fn lay_out_data(&self, layout: &mut PduLayout, limits: &DecodeLimits) -> Result<(), PduError> {
        let header_end = layout.data_offset;
        // The header is 132 bytes at most.
        let header_end_u32 = u32::try_from(header_end).expect("a header is short");
        let plen = layout.plen;
        let bad_plen = |reason| self.bad("plen", AT_PLEN, plen, reason);
        if plen < header_end_u32 {
            return Err(bad_plen("it ends within the header"));
        }
        let limit = match layout.pdu_type {
            PduType::IcReq | PduType::IcResp | PduType::CapsuleResp | PduType::R2T => {
                return if plen == header_end_u32 {
                    Ok(())
                } else {
                    Err(bad_plen("the length of header and digest is needed"))
                };
            }
            PduType::H2CTermReq | PduType::C2HTermReq => {
                layout.data_len = plen - header_end_u32;
                return if layout.data_len as usize <= MAX_TERM_REQ_DATA_LEN {
                    Ok(())
                } else {
                    Err(bad_plen("at most 152 is allowed"))
                };
            }
            PduType::CapsuleCmd if plen == header_end_u32 => return Ok(()),
            PduType::CapsuleCmd => limits.max_in_capsule,
            PduType::H2CData => limits.max_h2c_data,
            PduType::C2HData => limits.max_c2h_data,
        };
        self.lay_out_payload(layout, limits, limit)
    }

    /// The part of `lay_out_data` for the kinds that carry a command's data.
    fn lay_out_payload(
        &self,
        layout: &mut PduLayout,
        limits: &DecodeLimits,
        limit: u32,
    ) -> Result<(), PduError> {
        let pdo = u32::from(self.pdo);
        let bad_pdo = |reason| self.bad("pdo", AT_PDO, pdo, reason);
        if usize::from(self.pdo) < layout.header_len_with_digest() {
            return Err(bad_pdo("it lies within the header"));
        }
        if !pdo.is_multiple_of(limits.pda.max(1)) {
            return Err(bad_pdo("it is not aligned as was agreed"));
        }
        layout.data_digest = self.flags & DDGSTF != 0;
        if layout.data_digest != limits.data_digest {
            let reason = "DDGSTF does not fit what was agreed";
            return Err(self.bad("flags", AT_FLAGS, self.flags.into(), reason));
        }
        let digest_len = if layout.data_digest {
            DIGEST_LEN as u32
        } else {
            0
        };
        // A PDU that carries data has at least a byte of it.
        let data_len = layout
            .plen
            .checked_sub(pdo + digest_len)
            .filter(|&len| len > 0);
        let Some(data_len) = data_len else {
            let reason = "no data is left after pdo and digest";
            return Err(self.bad("plen", AT_PLEN, layout.plen, reason));
        };
        if data_len > limit {
            let pdu_type = self.pdu_type;
            return Err(PduError::DataLimit {
                pdu_type,
                len: data_len,
                limit,
            });
        }
        layout.data_offset = usize::from(self.pdo);
        layout.data_len = data_len;
        Ok(())
    }
}

fn read<T: FromBytes>(header: &[u8]) -> T {
    T::read_from_bytes(header).expect("HLEN was compared with the length of this header")
}

const _: () = {
    // Each FEI above is where the field lies.
    use std::mem::offset_of;
    assert!(AT_TYPE as usize == offset_of!(CommonHeader, pdu_type));
    assert!(AT_FLAGS as usize == offset_of!(CommonHeader, flags));
    assert!(AT_HLEN as usize == offset_of!(CommonHeader, hlen));
    assert!(AT_PDO as usize == offset_of!(CommonHeader, pdo));
    assert!(AT_PLEN as usize == offset_of!(CommonHeader, plen));
    assert!(AT_PFV as usize == offset_of!(IcReq, pfv));
    assert!(AT_ALIGNMENT as usize == offset_of!(IcReq, hpda));
    assert!(AT_MAXH2CDATA as usize == offset_of!(IcResp, maxh2cdata));
    assert!(AT_DATAL as usize == offset_of!(H2CData, datal));
};
