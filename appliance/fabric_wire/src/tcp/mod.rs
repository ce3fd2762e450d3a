//! The PDUs of NVMe/TCP (NVMe TCP 1.1, "NVMe/TCP PDU Definitions").
//!
//! A PDU is a header, then a header digest, padding, data and a data digest where they apply.
//! A receiver goes in two steps, so that nothing is set aside for a PDU that is wrong:
//!
//! 1. With 8 bytes, [`decode_common`] checks the common header and gives the [`PduLayout`]: how many
//!    header bytes follow, where the data starts and how much of it there is.
//! 2. With [`PduLayout::header_len_with_digest`] bytes, [`PduLayout::decode`] checks the header
//!    digest and the fields and gives the [`Pdu`].
//!
//! [`decode_header`] does both at once. Each [`PduError`] tells the fatal error status
//! ([`PduError::fes`]) and the information ([`PduError::fei`]) that go into the TermReq.
//!
//! The encoders write header, digest and padding into the caller's buffer; data and data digest
//! ([`crate::digest`]) are the caller's to append. Nothing here allocates.

mod decode;
mod encode;
mod header;

pub use decode::{DecodeLimits, Pdu, PduError, PduLayout, Receiver, decode_common, decode_header};
pub use encode::{
    EncodeError, EncodeOptions, data_digest, encode_c2h_data, encode_capsule_cmd,
    encode_capsule_resp, encode_h2c_data, encode_ic_req, encode_ic_resp, encode_r2t,
    encode_term_req,
};
pub use header::{
    C2HData, CapsuleCmd, CapsuleResp, CommonHeader, H2CData, IcReq, IcResp, PduType, R2T, TermReq,
};

/// Flag: a header digest follows the header.
pub const HDGSTF: u8 = 1 << 0;
/// Flag: a data digest follows the data.
pub const DDGSTF: u8 = 1 << 1;
/// Flag of H2CData and C2HData: the last PDU of its data transfer.
pub const LAST_PDU: u8 = 1 << 2;
/// Flag of C2HData: the command has succeeded and no CapsuleResp follows.
pub const SUCCESS: u8 = 1 << 3;

/// DGST of ICReq and ICResp: header digests are on.
pub const DGST_HEADER: u8 = 1 << 0;
/// DGST of ICReq and ICResp: data digests are on.
pub const DGST_DATA: u8 = 1 << 1;

/// The PDU format version that exists.
pub const PFV: u16 = 0;

/// Length of the common header in bytes.
pub const COMMON_HEADER_LEN: usize = 8;
/// Length of the longest header with its digest in bytes: that of ICReq and ICResp, without one.
pub const MAX_HEADER_LEN: usize = 128;
/// Most bytes that an encoder other than [`encode_term_req`] writes: CapsuleCmd with a header digest,
/// 76 bytes, padded to twice an alignment of 72.
pub const MAX_ENCODED_HEADER_LEN: usize = 144;
/// Most bytes of the offending PDU that a TermReq carries.
pub const MAX_TERM_REQ_DATA_LEN: usize = 128;
/// Length of the longest TermReq PDU in bytes.
pub const MAX_TERM_REQ_LEN: usize = 24 + MAX_TERM_REQ_DATA_LEN;
/// Largest HPDA and CPDA; the alignment is four bytes more than four times this.
pub const MAX_DATA_ALIGNMENT: u8 = 31;
/// Smallest MAXH2CDATA in bytes that a controller may tell.
pub const MIN_MAXH2CDATA: u32 = 4096;

/// Fatal error status: a field of the header is wrong. FEI is its offset in bytes.
pub const FES_INVALID_HEADER_FIELD: u16 = 0x01;
/// Fatal error status: a PDU came where another was due.
pub const FES_SEQUENCE_ERROR: u16 = 0x02;
/// Fatal error status: the header digest does not match. FEI is the digest that was received.
pub const FES_HEADER_DIGEST_ERROR: u16 = 0x03;
/// Fatal error status: data lies outside of what was asked for.
pub const FES_DATA_OUT_OF_RANGE: u16 = 0x04;
/// Fatal error status in C2HTermReq: more data than a limit allows.
pub const FES_DATA_LIMIT_EXCEEDED: u16 = 0x05;
/// Fatal error status in H2CTermReq: more R2Ts than MAXR2T allows.
pub const FES_R2T_LIMIT_EXCEEDED: u16 = 0x05;
/// Fatal error status: a parameter is not supported. FEI is its offset in bytes.
pub const FES_UNSUPPORTED_PARAMETER: u16 = 0x06;

/// The alignment in bytes that an HPDA or CPDA of `value` asks for.
///
/// `None` for a value above [`MAX_DATA_ALIGNMENT`].
#[must_use]
pub const fn data_alignment_bytes(value: u8) -> Option<u32> {
    if value <= MAX_DATA_ALIGNMENT {
        Some((value as u32 + 1) * 4)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
