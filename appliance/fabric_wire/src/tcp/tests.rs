use nvme_spec::{Cid, Cqe, Lba, Nsid, Sqe, Status};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::digest::crc32c;

const PLAIN: EncodeOptions = EncodeOptions {
    header_digest: false,
    data_digest: false,
    pda: 4,
};
const DIGESTS: EncodeOptions = EncodeOptions {
    header_digest: true,
    data_digest: true,
    pda: 4,
};

fn limits(options: &EncodeOptions) -> DecodeLimits {
    DecodeLimits {
        header_digest: options.header_digest,
        data_digest: options.data_digest,
        pda: options.pda,
        ..DecodeLimits::default()
    }
}

fn sqe() -> Sqe {
    Sqe::read(Cid(0x0102), Nsid(1), Lba(8), 8)
}

/// What `encode` writes, with bytes behind it that must stay as they are.
fn written(encode: impl Fn(&mut [u8]) -> Result<usize, EncodeError>) -> Vec<u8> {
    let mut out = [0xEE; 256];
    let len = encode(&mut out).unwrap();
    assert!(out[len..].iter().all(|&byte| byte == 0xEE));
    for short in 0..len {
        let error = EncodeError::BufferTooSmall {
            needed: len,
            have: short,
        };
        assert_eq!(encode(&mut [0; 256][..short]), Err(error));
    }
    out[..len].to_vec()
}

/// `parts` put into `len` zeros.
fn bytes(len: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (offset, part) in parts {
        bytes[*offset..offset + part.len()].copy_from_slice(part);
    }
    bytes
}

#[test]
fn ic_req_has_its_golden_bytes() {
    let golden = bytes(
        128,
        &[
            (0, &[0x00, 0x00, 0x80, 0x00, 0x80, 0, 0, 0]),
            (10, &[0x1F, 0x03, 0x07, 0, 0, 0]),
        ],
    );
    assert_eq!(written(|out| encode_ic_req(out, 31, true, true, 7)), golden);
    let pdu = Pdu::IcReq {
        hpda: 31,
        header_digest: true,
        data_digest: true,
        maxr2t: 7,
    };
    let limits = DecodeLimits::default();
    assert_eq!(
        decode_header(&golden, Receiver::Controller, &limits),
        Ok(pdu)
    );
}

#[test]
fn ic_resp_has_its_golden_bytes() {
    let golden = bytes(
        128,
        &[
            (0, &[0x01, 0x00, 0x80, 0x00, 0x80, 0, 0, 0]),
            (10, &[0x03, 0x02, 0x00, 0x00, 0x02, 0]),
        ],
    );
    assert_eq!(
        written(|out| encode_ic_resp(out, 3, false, true, 0x20000)),
        golden
    );
    let pdu = Pdu::IcResp {
        cpda: 3,
        header_digest: false,
        data_digest: true,
        maxh2cdata: 0x20000,
    };
    assert_eq!(
        decode_header(&golden, Receiver::Host, &DecodeLimits::default()),
        Ok(pdu)
    );
}

#[test]
fn term_reqs_have_their_golden_bytes() {
    for (to, pdu_type) in [(Receiver::Controller, 0x02), (Receiver::Host, 0x03)] {
        let golden = bytes(
            28,
            &[
                (0, &[pdu_type, 0x00, 0x18, 0x00, 0x1C, 0, 0, 0]),
                (8, &[0x03, 0x00, 0x04, 0x03, 0x02, 0x01]),
                (24, &[9, 8, 7, 6]),
            ],
        );
        let encode = |out: &mut [u8]| encode_term_req(out, to, 3, 0x0102_0304, &[9, 8, 7, 6]);
        assert_eq!(written(encode), golden);
        let pdu = Pdu::TermReq {
            fes: 3,
            fei: 0x0102_0304,
            data_len: 4,
        };
        // Digests never apply to it.
        for options in [PLAIN, DIGESTS] {
            assert_eq!(decode_header(&golden, to, &limits(&options)), Ok(pdu));
        }
    }
}

#[test]
fn term_req_carries_at_most_128_bytes() {
    let long = [5; 200];
    let pdu = written(|out| encode_term_req(out, Receiver::Host, 1, 4, &long));
    assert_eq!(pdu.len(), MAX_TERM_REQ_LEN);
    let layout = decode_common(&pdu, Receiver::Host, &DecodeLimits::default()).unwrap();
    assert_eq!((layout.data_offset, layout.data_len), (24, 128));
    let mut long = pdu;
    long[4] += 1;
    let error = decode_common(&long, Receiver::Host, &DecodeLimits::default()).unwrap_err();
    assert_eq!(
        (error.fes(), error.fei()),
        (Some(FES_INVALID_HEADER_FIELD), 4)
    );
}

#[test]
fn capsule_cmd_without_data_has_its_golden_bytes() {
    let golden = bytes(
        72,
        &[
            (0, &[0x04, 0x00, 0x48, 0x00, 0x48, 0, 0, 0]),
            (8, &[0x02, 0x00, 0x02, 0x01, 0x01]),
            (48, &[8]),
            (56, &[7]),
        ],
    );
    assert_eq!(
        written(|out| encode_capsule_cmd(out, &sqe(), 0, &PLAIN)),
        golden
    );
    let pdu = Pdu::CapsuleCmd {
        sqe: sqe(),
        data_len: 0,
    };
    assert_eq!(
        decode_header(&golden, Receiver::Controller, &limits(&PLAIN)),
        Ok(pdu)
    );
    // A header digest, but no data digest, since there is no data.
    let mut golden = golden;
    golden[1] = HDGSTF;
    golden[4] = 0x4C;
    golden.extend(crc32c(&golden).to_le_bytes());
    assert_eq!(
        written(|out| encode_capsule_cmd(out, &sqe(), 0, &DIGESTS)),
        golden
    );
    assert_eq!(
        decode_header(&golden, Receiver::Controller, &limits(&DIGESTS)),
        Ok(pdu)
    );
}

#[test]
fn capsule_cmd_with_data_has_its_golden_bytes() {
    let options = EncodeOptions {
        pda: 128,
        ..DIGESTS
    };
    let golden = written(|out| encode_capsule_cmd(out, &sqe(), 0x1000, &options));
    assert_eq!(golden.len(), 128);
    assert_eq!(golden[..8], [0x04, 0x03, 0x48, 0x80, 0x84, 0x10, 0, 0]);
    assert_eq!(golden[8..72], *sqe().as_bytes());
    assert_eq!(golden[72..76], crc32c(&golden[..72]).to_le_bytes());
    assert!(golden[76..].iter().all(|&byte| byte == 0));
    let layout = decode_common(&golden, Receiver::Controller, &limits(&options)).unwrap();
    let expected = PduLayout {
        pdu_type: PduType::CapsuleCmd,
        flags: HDGSTF | DDGSTF,
        header_len: 72,
        header_digest: true,
        data_offset: 128,
        data_len: 0x1000,
        data_digest: true,
        plen: 0x1084,
    };
    assert_eq!(layout, expected);
    assert_eq!(
        (layout.header_len_with_digest(), layout.pad_len()),
        (76, 52)
    );
    let pdu = Pdu::CapsuleCmd {
        sqe: sqe(),
        data_len: 0x1000,
    };
    assert_eq!(layout.decode(&golden), Ok(pdu));
}

#[test]
fn capsule_resp_has_its_golden_bytes() {
    let cqe = Cqe::new(Cid(0x0102), Status(0x0002))
        .with_result(0x0605_0403_0201)
        .with_sqhd(0x0A0B);
    let golden = [
        0x05, 0x00, 0x18, 0x00, 0x18, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0x0B, 0x0A, 0, 0, 0x02,
        0x01, 0x04, 0x00,
    ];
    assert_eq!(
        written(|out| encode_capsule_resp(out, &cqe, &PLAIN)),
        golden
    );
    let pdu = Pdu::CapsuleResp { cqe };
    assert_eq!(
        decode_header(&golden, Receiver::Host, &limits(&PLAIN)),
        Ok(pdu)
    );
    let digest = written(|out| encode_capsule_resp(out, &cqe, &DIGESTS));
    assert_eq!(digest[..5], [0x05, 0x01, 0x18, 0x00, 0x1C]);
    assert_eq!(digest[24..], crc32c(&digest[..24]).to_le_bytes());
    assert_eq!(
        decode_header(&digest, Receiver::Host, &limits(&DIGESTS)),
        Ok(pdu)
    );
}

#[test]
fn h2c_data_has_its_golden_bytes() {
    let encode = |out: &mut [u8], options: &EncodeOptions| {
        encode_h2c_data(out, Cid(0x0102), 0x0304, 0x1000, 0x2000, true, options)
    };
    let golden = [
        0x06, 0x04, 0x18, 0x18, 0x18, 0x20, 0, 0, 0x02, 0x01, 0x04, 0x03, 0x00, 0x10, 0, 0, 0x00,
        0x20, 0, 0, 0, 0, 0, 0,
    ];
    // 24 is already a multiple of 4.
    let golden = bytes(24, &[(0, &golden[..24])]);
    assert_eq!(written(|out| encode(out, &PLAIN)), golden);
    let pdu = Pdu::H2CData {
        cccid: Cid(0x0102),
        ttag: 0x0304,
        datao: 0x1000,
        datal: 0x2000,
        last: true,
    };
    assert_eq!(
        decode_header(&golden, Receiver::Controller, &limits(&PLAIN)),
        Ok(pdu)
    );
    let digest = written(|out| encode(out, &DIGESTS));
    assert_eq!(digest[..8], [0x06, 0x07, 0x18, 0x1C, 0x20, 0x20, 0, 0]);
    assert_eq!(digest[24..], crc32c(&digest[..24]).to_le_bytes());
    assert_eq!(
        decode_header(&digest, Receiver::Controller, &limits(&DIGESTS)),
        Ok(pdu)
    );
}

#[test]
fn c2h_data_has_its_golden_bytes() {
    let options = EncodeOptions { pda: 64, ..PLAIN };
    let golden = bytes(
        64,
        &[
            (0, &[0x07, 0x0C, 0x18, 0x40, 0x40, 0x02, 0, 0]),
            (8, &[0x02, 0x01, 0x00, 0x00, 0x00, 0x10, 0, 0, 0x00, 0x02]),
        ],
    );
    let encode =
        |out: &mut [u8]| encode_c2h_data(out, Cid(0x0102), 0x1000, 0x200, false, true, &options);
    assert_eq!(written(encode), golden);
    let pdu = Pdu::C2HData {
        cccid: Cid(0x0102),
        datao: 0x1000,
        datal: 0x200,
        last: true,
        success: true,
    };
    assert_eq!(
        decode_header(&golden, Receiver::Host, &limits(&options)),
        Ok(pdu)
    );
}

#[test]
fn r2t_has_its_golden_bytes() {
    let golden = [
        0x09, 0x00, 0x18, 0x00, 0x18, 0, 0, 0, 0x02, 0x01, 0x04, 0x03, 0x00, 0x10, 0, 0, 0x00,
        0x20, 0, 0, 0, 0, 0, 0,
    ];
    let encode = |out: &mut [u8]| encode_r2t(out, Cid(0x0102), 0x0304, 0x1000, 0x2000, &PLAIN);
    assert_eq!(written(encode), golden);
    let pdu = Pdu::R2T {
        cccid: Cid(0x0102),
        ttag: 0x0304,
        r2to: 0x1000,
        r2tl: 0x2000,
    };
    assert_eq!(
        decode_header(&golden, Receiver::Host, &limits(&PLAIN)),
        Ok(pdu)
    );
}

/// Every PDU that there is, with and without digests, who takes it, and what was agreed.
fn every_pdu() -> Vec<(Vec<u8>, Receiver, DecodeLimits)> {
    use Receiver::{Controller, Host};
    let cqe = Cqe::new(Cid(9), Status(0));
    let mut all = Vec::new();
    for options in [PLAIN, DIGESTS, EncodeOptions { pda: 72, ..DIGESTS }] {
        let limits = limits(&options);
        let o = &options;
        let to_controller = [
            written(|out| encode_ic_req(out, 1, true, false, 0)),
            written(|out| encode_term_req(out, Controller, 1, 2, &[1; 24])),
            written(|out| encode_capsule_cmd(out, &sqe(), 0, o)),
            written(|out| encode_capsule_cmd(out, &sqe(), 512, o)),
            written(|out| encode_h2c_data(out, Cid(1), 2, 0, 4096, false, o)),
        ];
        let to_host = [
            written(|out| encode_ic_resp(out, 1, true, false, 4096)),
            written(|out| encode_term_req(out, Host, 1, 2, &[])),
            written(|out| encode_capsule_resp(out, &cqe, o)),
            written(|out| encode_c2h_data(out, Cid(1), 0, 4096, true, false, o)),
            written(|out| encode_r2t(out, Cid(1), 2, 0, 4096, o)),
        ];
        all.extend(to_controller.map(|pdu| (pdu, Controller, limits)));
        all.extend(to_host.map(|pdu| (pdu, Host, limits)));
    }
    all
}

#[test]
fn a_header_that_is_cut_is_incomplete_at_every_byte() {
    for (pdu, receiver, limits) in every_pdu() {
        let layout = decode_common(&pdu, receiver, &limits).unwrap();
        let needed = layout.header_len_with_digest();
        for have in 0..needed {
            let error = decode_header(&pdu[..have], receiver, &limits).unwrap_err();
            let needed = if have < COMMON_HEADER_LEN {
                COMMON_HEADER_LEN
            } else {
                needed
            };
            assert_eq!(error, PduError::Incomplete { needed, have });
            assert_eq!((error.fes(), error.fei()), (None, 0));
        }
        assert!(decode_header(&pdu[..needed], receiver, &limits).is_ok());
    }
}

#[test]
fn a_pdu_in_the_wrong_direction_is_refused() {
    for (pdu, receiver, limits) in every_pdu() {
        let other = match receiver {
            Receiver::Controller => Receiver::Host,
            Receiver::Host => Receiver::Controller,
        };
        let error = decode_header(&pdu, other, &limits).unwrap_err();
        assert_eq!(
            (error.fes(), error.fei()),
            (Some(FES_INVALID_HEADER_FIELD), 0)
        );
    }
}

#[test]
fn an_unknown_type_is_refused() {
    for (mut pdu, receiver, limits) in every_pdu() {
        for pdu_type in [0x08, 0x0A, 0x0B, 0x80, 0xFF] {
            pdu[0] = pdu_type;
            let error = decode_header(&pdu, receiver, &limits).unwrap_err();
            assert_eq!(
                (error.fes(), error.fei()),
                (Some(FES_INVALID_HEADER_FIELD), 0)
            );
        }
    }
}

#[test]
fn every_other_hlen_is_refused() {
    for (mut pdu, receiver, limits) in every_pdu() {
        let right = pdu[2];
        for hlen in (0..=255).filter(|&hlen| hlen != right) {
            pdu[2] = hlen;
            let error = decode_header(&pdu, receiver, &limits).unwrap_err();
            assert_eq!(
                (error.fes(), error.fei()),
                (Some(FES_INVALID_HEADER_FIELD), 2)
            );
        }
    }
}

#[test]
fn digest_flags_that_were_not_agreed_are_refused() {
    for (mut pdu, receiver, limits) in every_pdu() {
        let layout = decode_common(&pdu, receiver, &limits).unwrap();
        if layout.pdu_type.takes_header_digest() {
            pdu[1] ^= HDGSTF;
            let error = decode_common(&pdu, receiver, &limits).unwrap_err();
            assert_eq!(
                (error.fes(), error.fei()),
                (Some(FES_INVALID_HEADER_FIELD), 1)
            );
            pdu[1] ^= HDGSTF;
        }
        if layout.data_len > 0 && layout.pdu_type.takes_header_digest() {
            pdu[1] ^= DDGSTF;
            let error = decode_common(&pdu, receiver, &limits).unwrap_err();
            assert_eq!(
                (error.fes(), error.fei()),
                (Some(FES_INVALID_HEADER_FIELD), 1)
            );
        }
    }
}

#[test]
fn a_plen_that_ends_before_the_data_is_refused() {
    for (mut pdu, receiver, limits) in every_pdu() {
        let layout = decode_common(&pdu, receiver, &limits).unwrap();
        for plen in 0..u32::try_from(layout.data_offset).unwrap() {
            let alone = plen as usize == layout.header_len_with_digest();
            if alone && layout.pdu_type == PduType::CapsuleCmd {
                continue; // A command without data.
            }
            pdu[4..8].copy_from_slice(&plen.to_le_bytes());
            let error = decode_common(&pdu, receiver, &limits).unwrap_err();
            assert_eq!(
                (error.fes(), error.fei()),
                (Some(FES_INVALID_HEADER_FIELD), 4),
                "{plen}"
            );
        }
    }
}

#[test]
fn a_pdu_without_data_has_one_plen() {
    for (mut pdu, receiver, limits) in every_pdu() {
        let layout = decode_common(&pdu, receiver, &limits).unwrap();
        use PduType as T;
        if matches!(
            layout.pdu_type,
            T::IcReq | T::IcResp | T::CapsuleResp | T::R2T
        ) {
            for plen in [layout.plen + 1, layout.plen + 4, 1 << 20, u32::MAX] {
                pdu[4..8].copy_from_slice(&plen.to_le_bytes());
                let error = decode_common(&pdu, receiver, &limits).unwrap_err();
                assert_eq!(
                    (error.fes(), error.fei()),
                    (Some(FES_INVALID_HEADER_FIELD), 4)
                );
            }
        }
    }
}

#[test]
fn more_data_than_was_agreed_is_refused_with_the_common_header() {
    for (mut pdu, receiver, mut limits) in every_pdu() {
        let layout = decode_common(&pdu, receiver, &limits).unwrap();
        let limit = match layout.pdu_type {
            PduType::CapsuleCmd if layout.data_len > 0 => &mut limits.max_in_capsule,
            PduType::H2CData => &mut limits.max_h2c_data,
            PduType::C2HData => &mut limits.max_c2h_data,
            _ => continue,
        };
        *limit = layout.data_len;
        let limit = *limit;
        assert_eq!(decode_common(&pdu[..8], receiver, &limits), Ok(layout));
        for plen in [layout.plen + 1, u32::MAX] {
            pdu[4..8].copy_from_slice(&plen.to_le_bytes());
            let error = decode_common(&pdu[..8], receiver, &limits).unwrap_err();
            let len = plen - (layout.plen - layout.data_len);
            assert_eq!(
                error,
                PduError::DataLimit {
                    pdu_type: pdu[0],
                    len,
                    limit
                }
            );
            assert_eq!(
                (error.fes(), error.fei()),
                (Some(FES_DATA_LIMIT_EXCEEDED), 0)
            );
        }
    }
}

#[test]
fn pdo_within_the_header_or_unaligned_is_refused() {
    for (mut pdu, receiver, limits) in every_pdu() {
        let layout = decode_common(&pdu, receiver, &limits).unwrap();
        if layout.data_len == 0 || !layout.pdu_type.takes_header_digest() {
            continue;
        }
        for pdo in 0..=255_u8 {
            pdu[3] = pdo;
            let aligned = u32::from(pdo) % limits.pda == 0;
            let beyond = usize::from(pdo) >= layout.header_len_with_digest();
            match decode_common(&pdu, receiver, &limits) {
                Ok(layout) => {
                    assert!(aligned && beyond);
                    let tail = if limits.data_digest { 4 } else { 0 };
                    assert_eq!(layout.plen, u32::from(pdo) + layout.data_len + tail);
                }
                Err(error) => {
                    assert!(!aligned || !beyond);
                    assert_eq!(
                        (error.fes(), error.fei()),
                        (Some(FES_INVALID_HEADER_FIELD), 3)
                    );
                }
            }
        }
    }
}

#[test]
fn a_header_changed_in_one_bit_does_not_match_its_digest() {
    for (pdu, receiver, limits) in every_pdu() {
        let layout = decode_common(&pdu, receiver, &limits).unwrap();
        if !layout.header_digest {
            continue;
        }
        for bit in COMMON_HEADER_LEN * 8..layout.header_len_with_digest() * 8 {
            let mut changed = pdu.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let error = decode_header(&changed, receiver, &limits).unwrap_err();
            let at = layout.header_len;
            let received = u32::from_le_bytes(changed[at..at + 4].try_into().unwrap());
            assert_eq!(
                (error.fes(), error.fei()),
                (Some(FES_HEADER_DIGEST_ERROR), received)
            );
        }
    }
}

/// The status and information of `pdu` with `value` put in at `offset`.
fn refused(pdu: &[u8], offset: usize, value: &[u8], receiver: Receiver) -> (Option<u16>, u32) {
    let mut pdu = pdu.to_vec();
    pdu[offset..offset + value.len()].copy_from_slice(value);
    let error = decode_header(&pdu, receiver, &limits(&PLAIN)).unwrap_err();
    (error.fes(), error.fei())
}

#[test]
fn bad_fields_of_ic_req_and_ic_resp_are_refused() {
    let request = written(|out| encode_ic_req(out, 0, false, false, 0));
    let response = written(|out| encode_ic_resp(out, 0, false, false, 4096));
    for (pdu, receiver) in [
        (&request, Receiver::Controller),
        (&response, Receiver::Host),
    ] {
        let version = refused(pdu, 8, &[1, 0], receiver);
        assert_eq!(version, (Some(FES_UNSUPPORTED_PARAMETER), 8));
        assert_eq!(
            refused(pdu, 10, &[32], receiver),
            (Some(FES_INVALID_HEADER_FIELD), 10)
        );
    }
    for maxh2cdata in [0_u32, 4092, 4098] {
        let error = refused(&response, 12, &maxh2cdata.to_le_bytes(), Receiver::Host);
        assert_eq!(error, (Some(FES_INVALID_HEADER_FIELD), 12));
    }
}

#[test]
fn bad_fields_of_data_pdus_are_refused() {
    let h2c = written(|out| encode_h2c_data(out, Cid(1), 2, 0, 4096, true, &PLAIN));
    let c2h = written(|out| encode_c2h_data(out, Cid(1), 0, 4096, true, false, &PLAIN));
    for (pdu, receiver) in [(&h2c, Receiver::Controller), (&c2h, Receiver::Host)] {
        for datal in [0_u32, 4095, 4097, u32::MAX] {
            let error = refused(pdu, 16, &datal.to_le_bytes(), receiver);
            assert_eq!(error, (Some(FES_INVALID_HEADER_FIELD), 16));
        }
        let error = refused(pdu, 12, &(u32::MAX - 4095).to_le_bytes(), receiver);
        assert_eq!(error, (Some(FES_DATA_OUT_OF_RANGE), 0));
        // The last byte that 32 bits can count is allowed.
        let mut last = pdu.clone();
        last[12..16].copy_from_slice(&(u32::MAX - 4096).to_le_bytes());
        assert!(decode_header(&last, receiver, &limits(&PLAIN)).is_ok());
    }
    let success_alone = refused(&c2h, 1, &[SUCCESS], Receiver::Host);
    assert_eq!(success_alone, (Some(FES_INVALID_HEADER_FIELD), 1));
}

#[test]
fn bad_fields_of_r2t_are_refused() {
    let r2t = written(|out| encode_r2t(out, Cid(1), 2, 0, 4096, &PLAIN));
    let error = refused(&r2t, 16, &[0; 4], Receiver::Host);
    assert_eq!(error, (Some(FES_INVALID_HEADER_FIELD), 16));
    let error = refused(&r2t, 12, &[0xFF; 4], Receiver::Host);
    assert_eq!(error, (Some(FES_DATA_OUT_OF_RANGE), 0));
}

#[test]
fn a_command_without_data_may_have_any_pdo() {
    let mut pdu = written(|out| encode_capsule_cmd(out, &sqe(), 0, &PLAIN));
    for (pdo, flags) in [(0, 0), (72, 0), (255, 0), (0, DDGSTF)] {
        pdu[1] = flags;
        pdu[3] = pdo;
        let layout = decode_common(&pdu, Receiver::Controller, &limits(&PLAIN)).unwrap();
        assert_eq!(
            (layout.data_offset, layout.data_len, layout.data_digest),
            (72, 0, false)
        );
    }
}

#[test]
fn reserved_bytes_are_not_looked_at() {
    let mut pdu = written(|out| encode_h2c_data(out, Cid(1), 2, 0, 4096, true, &PLAIN));
    pdu[1] |= 0xF0;
    pdu[20..24].fill(0xFF);
    assert!(decode_header(&pdu, Receiver::Controller, &limits(&PLAIN)).is_ok());
}

#[test]
fn data_alignment_counts_dwords_from_one() {
    assert_eq!(data_alignment_bytes(0), Some(4));
    assert_eq!(data_alignment_bytes(31), Some(128));
    assert_eq!(data_alignment_bytes(32), None);
}

#[test]
fn no_alignment_needs_more_than_the_encoded_length_promises() {
    let mut longest = 0;
    for value in 0..=MAX_DATA_ALIGNMENT {
        let pda = data_alignment_bytes(value).unwrap();
        for header_digest in [false, true] {
            let options = EncodeOptions {
                header_digest,
                pda,
                ..PLAIN
            };
            let header = written(|out| encode_capsule_cmd(out, &sqe(), 1, &options));
            let data = written(|out| encode_c2h_data(out, Cid(0), 0, 1, true, true, &options));
            longest = longest.max(header.len()).max(data.len());
            assert!(header.len().is_multiple_of(pda as usize));
            assert_eq!(usize::from(header[3]), header.len());
        }
    }
    assert_eq!(longest, MAX_ENCODED_HEADER_LEN);
}

#[test]
fn what_cannot_be_told_in_a_header_is_not_encoded() {
    let mut out = [0; 256];
    let mut encode = |datal, pda| {
        let options = EncodeOptions { pda, ..PLAIN };
        encode_h2c_data(&mut out, Cid(0), 0, 0, datal, true, &options)
    };
    assert_eq!(encode(1, 0), Err(EncodeError::Alignment { pda: 0 }));
    assert_eq!(encode(1, 256), Err(EncodeError::Alignment { pda: 256 }));
    let most = u32::MAX - 24;
    assert_eq!(encode(most, 4), Ok(24));
    assert_eq!(
        encode(most + 1, 4),
        Err(EncodeError::TooMuchData { data_len: most + 1 })
    );
}

#[test]
fn data_digest_is_least_significant_byte_first() {
    assert_eq!(data_digest(crc32c(&[0; 32])), [0xAA, 0x36, 0x91, 0x8A]);
}

fn any_options() -> impl Strategy<Value = EncodeOptions> {
    (any::<bool>(), any::<bool>(), 0..=MAX_DATA_ALIGNMENT).prop_map(
        |(header_digest, data_digest, pda)| EncodeOptions {
            header_digest,
            data_digest,
            pda: data_alignment_bytes(pda).unwrap(),
        },
    )
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        mut pdu in proptest::collection::vec(any::<u8>(), 0..160),
        kind in 0_u8..12,
        shape in any::<bool>(),
        options in any_options(),
    ) {
        // Half of the time a header that gets past the first checks.
        if shape && pdu.len() >= 8 {
            pdu[0] = kind;
            pdu[2] = PduType::from_wire(kind).map_or(24, PduType::header_len);
            pdu[6] = 0;
            pdu[7] = 0;
        }
        for receiver in [Receiver::Controller, Receiver::Host] {
            let limits = limits(&options);
            if let Ok(layout) = decode_common(&pdu, receiver, &limits) {
                let tail = if layout.data_digest { 4 } else { 0 };
                let end = layout.data_offset as u64 + u64::from(layout.data_len) + tail;
                prop_assert_eq!(end, u64::from(layout.plen));
                prop_assert!(layout.header_len_with_digest() <= layout.data_offset);
            }
            let _ = decode_header(&pdu, receiver, &limits);
        }
    }

    #[test]
    fn commands_survive_the_wire(
        command in proptest::array::uniform32(any::<[u8; 2]>()),
        data_len in 0..=8192_u32,
        options in any_options(),
    ) {
        let sqe = Sqe::read_from_bytes(command.as_bytes()).unwrap();
        let mut out = [0; MAX_ENCODED_HEADER_LEN];
        let len = encode_capsule_cmd(&mut out, &sqe, data_len, &options).unwrap();
        let layout = decode_common(&out[..len], Receiver::Controller, &limits(&options)).unwrap();
        prop_assert_eq!(layout.data_offset, len);
        prop_assert_eq!(layout.decode(&out[..len]), Ok(Pdu::CapsuleCmd { sqe, data_len }));
    }

    #[test]
    fn completions_survive_the_wire(bytes: [u8; 16], options in any_options()) {
        let cqe = Cqe::read_from_bytes(&bytes).unwrap();
        let mut out = [0; MAX_ENCODED_HEADER_LEN];
        let len = encode_capsule_resp(&mut out, &cqe, &options).unwrap();
        let pdu = decode_header(&out[..len], Receiver::Host, &limits(&options));
        prop_assert_eq!(pdu, Ok(Pdu::CapsuleResp { cqe }));
    }

    #[test]
    fn data_pdus_survive_the_wire(
        cccid: u16, ttag: u16, datao in 0..u32::MAX / 2, datal in 1..=131_072_u32,
        last: bool, success: bool, options in any_options(),
    ) {
        let (cccid, limits) = (Cid(cccid), limits(&options));
        let mut out = [0; MAX_ENCODED_HEADER_LEN];
        let o = &options;
        let len = encode_h2c_data(&mut out, cccid, ttag, datao, datal, last, o).unwrap();
        let pdu = decode_header(&out[..len], Receiver::Controller, &limits);
        prop_assert_eq!(pdu, Ok(Pdu::H2CData { cccid, ttag, datao, datal, last }));

        let len = encode_c2h_data(&mut out, cccid, datao, datal, last, success, o).unwrap();
        let pdu = decode_header(&out[..len], Receiver::Host, &limits);
        let last = last || success;
        prop_assert_eq!(pdu, Ok(Pdu::C2HData { cccid, datao, datal, last, success }));

        let len = encode_r2t(&mut out, cccid, ttag, datao, datal, o).unwrap();
        let pdu = decode_header(&out[..len], Receiver::Host, &limits);
        prop_assert_eq!(pdu, Ok(Pdu::R2T { cccid, ttag, r2to: datao, r2tl: datal }));
    }

    #[test]
    fn connection_pdus_survive_the_wire(
        pda in 0..=MAX_DATA_ALIGNMENT, header_digest: bool, data_digest: bool,
        maxr2t: u32, dwords in 1024_u32..1 << 30, fes: u16, fei: u32,
        offending in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let limits = DecodeLimits::default();
        let mut out = [0; MAX_TERM_REQ_LEN];
        let len = encode_ic_req(&mut out, pda, header_digest, data_digest, maxr2t).unwrap();
        let pdu = decode_header(&out[..len], Receiver::Controller, &limits);
        prop_assert_eq!(pdu, Ok(Pdu::IcReq { hpda: pda, header_digest, data_digest, maxr2t }));

        let maxh2cdata = dwords * 4;
        let len = encode_ic_resp(&mut out, pda, header_digest, data_digest, maxh2cdata).unwrap();
        let pdu = decode_header(&out[..len], Receiver::Host, &limits);
        prop_assert_eq!(pdu, Ok(Pdu::IcResp { cpda: pda, header_digest, data_digest, maxh2cdata }));

        let len = encode_term_req(&mut out, Receiver::Host, fes, fei, &offending).unwrap();
        let pdu = decode_header(&out[..len], Receiver::Host, &limits);
        let data_len = u32::try_from(offending.len().min(128)).unwrap();
        prop_assert_eq!(pdu, Ok(Pdu::TermReq { fes, fei, data_len }));
    }
}
