//! Writing of PDU headers into the caller's buffer.
//!
//! Each function gives the number of bytes written: header, header digest, and padding up to PDO
//! when data follows.

use nvme_spec::{Cid, Cqe, Sqe};
use thiserror::Error;
use zerocopy::{Immutable, IntoBytes};

use super::{
    C2HData, CapsuleCmd, CapsuleResp, CommonHeader, DDGSTF, DGST_DATA, DGST_HEADER, H2CData,
    HDGSTF, IcReq, IcResp, LAST_PDU, MAX_TERM_REQ_DATA_LEN, PFV, PduType, R2T, Receiver, SUCCESS,
    TermReq,
};
use crate::digest::{DIGEST_LEN, crc32c};

/// Why a header cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The buffer is too small.
    #[error("buffer of {have} bytes is too small for a pdu header of {needed}")]
    BufferTooSmall {
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        have: usize,
    },
    /// The PDU would be longer than PLEN can tell.
    #[error("{data_len} bytes of data do not fit one pdu")]
    TooMuchData {
        /// Length of the data in bytes.
        data_len: u32,
    },
    /// The alignment puts the data beyond what PDO can tell.
    #[error("a data alignment of {pda} bytes is not possible; 4 to 128 are")]
    Alignment {
        /// The alignment in bytes.
        pda: u32,
    },
}

/// What was agreed with the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Header digests are on.
    pub header_digest: bool,
    /// Data digests are on.
    pub data_digest: bool,
    /// Alignment of data in its PDU in bytes: see [`super::data_alignment_bytes`], CPDA when the
    /// sender is a host, HPDA when it is a controller.
    pub pda: u32,
}

impl Default for EncodeOptions {
    /// No digests, an alignment of 4.
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            pda: 4,
        }
    }
}

/// The four bytes that follow data whose CRC-32C is `crc`.
#[must_use]
pub const fn data_digest(crc: u32) -> [u8; DIGEST_LEN] {
    crc.to_le_bytes()
}

/// Writes an ICReq. `hpda` is at most 31, `maxr2t` is less one.
pub fn encode_ic_req(
    out: &mut [u8],
    hpda: u8,
    header_digest: bool,
    data_digest: bool,
    maxr2t: u32,
) -> Result<usize, EncodeError> {
    let pdu = IcReq {
        ch: common(PduType::IcReq),
        pfv: PFV.into(),
        hpda,
        dgst: dgst(header_digest, data_digest),
        maxr2t: maxr2t.into(),
        reserved16: [0; 112],
    };
    write_bytes(out, &pdu)
}

/// Writes an ICResp. `cpda` is at most 31, `maxh2cdata` a multiple of 4 from 4096 on.
pub fn encode_ic_resp(
    out: &mut [u8],
    cpda: u8,
    header_digest: bool,
    data_digest: bool,
    maxh2cdata: u32,
) -> Result<usize, EncodeError> {
    let pdu = IcResp {
        ch: common(PduType::IcResp),
        pfv: PFV.into(),
        cpda,
        dgst: dgst(header_digest, data_digest),
        maxh2cdata: maxh2cdata.into(),
        reserved16: [0; 112],
    };
    write_bytes(out, &pdu)
}

/// Writes a whole TermReq to `to`. Of `offending`, the PDU that is refused, the first 128 bytes go
/// with it: hand in its header and no more.
pub fn encode_term_req(
    out: &mut [u8],
    to: Receiver,
    fes: u16,
    fei: u32,
    offending: &[u8],
) -> Result<usize, EncodeError> {
    let offending = &offending[..offending.len().min(MAX_TERM_REQ_DATA_LEN)];
    let pdu_type = match to {
        Receiver::Controller => PduType::H2CTermReq,
        Receiver::Host => PduType::C2HTermReq,
    };
    let mut pdu = TermReq {
        ch: common(pdu_type),
        fes: fes.into(),
        fei: fei.into(),
        reserved14: [0; 10],
    };
    let len = size_of::<TermReq>() + offending.len();
    pdu.ch.plen = u32::try_from(len).expect("at most 152").into();
    let out = prefix(out, len)?;
    let (header, data) = out.split_at_mut(size_of::<TermReq>());
    header.copy_from_slice(pdu.as_bytes());
    data.copy_from_slice(offending);
    Ok(len)
}

/// Writes a CapsuleCmd with `data_len` bytes of in-capsule data to follow, 0 for none.
pub fn encode_capsule_cmd(
    out: &mut [u8],
    sqe: &Sqe,
    data_len: u32,
    options: &EncodeOptions,
) -> Result<usize, EncodeError> {
    let mut pdu = CapsuleCmd {
        ch: common(PduType::CapsuleCmd),
        sqe: *sqe,
    };
    let end = plan(&mut pdu.ch, data_len, options)?;
    write_header(out, &pdu, end, options)
}

/// Writes a CapsuleResp.
pub fn encode_capsule_resp(
    out: &mut [u8],
    cqe: &Cqe,
    options: &EncodeOptions,
) -> Result<usize, EncodeError> {
    let mut pdu = CapsuleResp {
        ch: common(PduType::CapsuleResp),
        cqe: *cqe,
    };
    let end = plan(&mut pdu.ch, 0, options)?;
    write_header(out, &pdu, end, options)
}

/// Writes the header of an H2CData with `datal` bytes of data to follow.
pub fn encode_h2c_data(
    out: &mut [u8],
    cccid: Cid,
    ttag: u16,
    datao: u32,
    datal: u32,
    last: bool,
    options: &EncodeOptions,
) -> Result<usize, EncodeError> {
    let mut pdu = H2CData {
        ch: common(PduType::H2CData),
        cccid: cccid.0.into(),
        ttag: ttag.into(),
        datao: datao.into(),
        datal: datal.into(),
        reserved20: [0; 4],
    };
    let end = plan(&mut pdu.ch, datal, options)?;
    if last {
        pdu.ch.flags |= LAST_PDU;
    }
    write_header(out, &pdu, end, options)
}

/// Writes the header of a C2HData with `datal` bytes of data to follow. `success`, which stands for
/// a CapsuleResp, sets `last` as well.
pub fn encode_c2h_data(
    out: &mut [u8],
    cccid: Cid,
    datao: u32,
    datal: u32,
    last: bool,
    success: bool,
    options: &EncodeOptions,
) -> Result<usize, EncodeError> {
    let mut pdu = C2HData {
        ch: common(PduType::C2HData),
        cccid: cccid.0.into(),
        reserved10: [0; 2],
        datao: datao.into(),
        datal: datal.into(),
        reserved20: [0; 4],
    };
    let end = plan(&mut pdu.ch, datal, options)?;
    if last || success {
        pdu.ch.flags |= LAST_PDU;
    }
    if success {
        pdu.ch.flags |= SUCCESS;
    }
    write_header(out, &pdu, end, options)
}

/// Writes an R2T.
pub fn encode_r2t(
    out: &mut [u8],
    cccid: Cid,
    ttag: u16,
    r2to: u32,
    r2tl: u32,
    options: &EncodeOptions,
) -> Result<usize, EncodeError> {
    let mut pdu = R2T {
        ch: common(PduType::R2T),
        cccid: cccid.0.into(),
        ttag: ttag.into(),
        r2to: r2to.into(),
        r2tl: r2tl.into(),
        reserved20: [0; 4],
    };
    let end = plan(&mut pdu.ch, 0, options)?;
    write_header(out, &pdu, end, options)
}

const fn dgst(header_digest: bool, data_digest: bool) -> u8 {
    let header = if header_digest { DGST_HEADER } else { 0 };
    let data = if data_digest { DGST_DATA } else { 0 };
    header | data
}

/// A common header without flags and data.
fn common(pdu_type: PduType) -> CommonHeader {
    let hlen = pdu_type.header_len();
    CommonHeader {
        pdu_type: pdu_type.to_wire(),
        flags: 0,
        hlen,
        pdo: 0,
        plen: u32::from(hlen).into(),
    }
}

/// Fills in digest flags, PDO and PLEN, and gives where the data starts or the header ends.
fn plan(
    common: &mut CommonHeader,
    data_len: u32,
    options: &EncodeOptions,
) -> Result<usize, EncodeError> {
    let mut end = u32::from(common.hlen);
    if options.header_digest {
        common.flags |= HDGSTF;
        end += DIGEST_LEN as u32;
    }
    let mut tail = 0;
    if data_len > 0 {
        let wrong = EncodeError::Alignment { pda: options.pda };
        end = end.checked_next_multiple_of(options.pda).ok_or(wrong)?;
        common.pdo = u8::try_from(end).map_err(|_| wrong)?;
        if options.data_digest {
            common.flags |= DDGSTF;
            tail = DIGEST_LEN as u32;
        }
    }
    let plen = data_len
        .checked_add(end + tail)
        .ok_or(EncodeError::TooMuchData { data_len })?;
    common.plen = plen.into();
    Ok(end as usize)
}

fn prefix(out: &mut [u8], needed: usize) -> Result<&mut [u8], EncodeError> {
    let have = out.len();
    out.get_mut(..needed)
        .ok_or(EncodeError::BufferTooSmall { needed, have })
}

fn write_bytes<T: IntoBytes + Immutable>(out: &mut [u8], pdu: &T) -> Result<usize, EncodeError> {
    let bytes = pdu.as_bytes();
    prefix(out, bytes.len())?.copy_from_slice(bytes);
    Ok(bytes.len())
}

/// Writes header, digest and zeros up to `end`.
fn write_header<T: IntoBytes + Immutable>(
    out: &mut [u8],
    pdu: &T,
    end: usize,
    options: &EncodeOptions,
) -> Result<usize, EncodeError> {
    let bytes = pdu.as_bytes();
    let (header, mut rest) = prefix(out, end)?.split_at_mut(bytes.len());
    header.copy_from_slice(bytes);
    if options.header_digest {
        let (digest, pad) = rest.split_at_mut(DIGEST_LEN);
        digest.copy_from_slice(&crc32c(header).to_le_bytes());
        rest = pad;
    }
    rest.fill(0);
    Ok(end)
}
