use std::vec::Vec;

use super::{assert_golden, assert_truncation_is_rejected, bytes, std};
use crate::identify::{
    ControllerList, IdentifyController, IdentifyIndependentNamespace, IdentifyNamespace,
    IdentifyNvmController, IdentifyNvmNamespace, IoCommandSetVectors, LEN, LbaFormat,
    NamespaceList, NsDescriptor, PowerState, anacap, cmic, cntrltype, ctratt, dlfeat,
    encode_ns_descriptors, fuses, lpa, nmic, ns_descriptors, nsattr, nsfeat, oacs, oaes, ofcs,
    oncs, put_ascii, put_nul_terminated, sgls, trim_ascii, vwc,
};
use crate::registers::Vs;
use crate::{Cntlid, Nsid};

/// A controller as a Fabrics target describes one.
fn fabrics_controller() -> IdentifyController {
    let mut id = IdentifyController {
        cmic: cmic::MULTIPLE_PORTS | cmic::MULTIPLE_CONTROLLERS | cmic::ANA_REPORTING,
        mdts: 5,
        cntlid: 0x0102.into(),
        ver: Vs::V2_1.0.into(),
        oaes: (oaes::NAMESPACE_ATTRIBUTE | oaes::ANA_CHANGE | oaes::DISCOVERY_LOG_CHANGE).into(),
        ctratt: (ctratt::HOST_ID_128 | ctratt::TRAFFIC_BASED_KEEP_ALIVE).into(),
        cntrltype: cntrltype::IO,
        crdt1: 1.into(),
        crdt2: 0x0203.into(),
        crdt3: 0x0405.into(),
        oacs: oacs::GET_LBA_STATUS.into(),
        acl: 3,
        aerl: 4,
        frmw: 0x03,
        lpa: lpa::COMMANDS_EFFECTS | lpa::EXTENDED_DATA | lpa::SUPPORTED_PAGES,
        elpe: 127,
        kas: 10.into(),
        anatt: 10,
        anacap: anacap::OPTIMIZED | anacap::INACCESSIBLE | anacap::CHANGE,
        anagrpmax: 0x0001_0000.into(),
        nanagrpid: 0x0000_0100.into(),
        sqes: 0x66,
        cqes: 0x44,
        maxcmd: 128.into(),
        nn: 1024.into(),
        oncs: (oncs::COMPARE | oncs::DATASET_MANAGEMENT | oncs::COPY | oncs::VERIFY).into(),
        fuses: fuses::COMPARE_AND_WRITE.into(),
        vwc: vwc::PRESENT | vwc::FLUSH_ALL,
        awun: 0x1122.into(),
        awupf: 0x3344.into(),
        acwu: 0x5566.into(),
        sgls: (sgls::SUPPORTED | sgls::OFFSET | sgls::TRANSPORT).into(),
        mnan: 512.into(),
        ioccsz: 0x0000_0204.into(),
        iorcsz: 1.into(),
        icdoff: 0x0a0b.into(),
        fcatt: 0,
        msdbd: 16,
        ofcs: ofcs::DISCONNECT.into(),
        ..Default::default()
    };
    put_ascii(&mut id.sn, "ADIT01");
    put_ascii(&mut id.mn, "Adit");
    put_ascii(&mut id.fr, "0.1.0");
    assert!(put_nul_terminated(
        &mut id.subnqn,
        "nqn.2014-08.org.example:a"
    ));
    id
}

#[test]
fn identify_controller_has_the_golden_bytes() {
    let spaces = [b' '; 36];
    assert_golden(
        &fabrics_controller(),
        &[
            (4, b"ADIT01              "),
            (24, b"Adit"),
            (28, &spaces),
            (64, b"0.1.0   "),
            (76, &[0b1011, 5, 0x02, 0x01, 0x00, 0x01, 0x02, 0x00]),
            (92, &[0x00, 0x09, 0x00, 0x80, 0x41, 0, 0, 0]),
            (111, &[1]),
            (128, &[0x01, 0x00, 0x03, 0x02, 0x05, 0x04]),
            (256, &[0x00, 0x02, 3, 4, 0x03, 0b10_0110, 127]),
            (320, &[10, 0]),
            (
                342,
                &[10, 0b1_0101, 0x00, 0x00, 0x01, 0x00, 0x00, 0x01, 0x00, 0x00],
            ),
            (512, &[0x66, 0x44, 0x80, 0x00, 0x00, 0x04, 0x00, 0x00]),
            (
                520,
                &[0x85, 0x01, 0x01, 0x00, 0x00, 0b111, 0x22, 0x11, 0x44, 0x33],
            ),
            (532, &[0x66, 0x55]),
            (536, &[0x01, 0x00, 0x30, 0x00, 0x00, 0x02, 0x00, 0x00]),
            (768, b"nqn.2014-08.org.example:a"),
            (
                1792,
                &[0x04, 0x02, 0, 0, 1, 0, 0, 0, 0x0b, 0x0a, 0, 16, 1, 0],
            ),
        ],
    );
}

#[test]
fn text_of_a_controller_reads_back() {
    let id = fabrics_controller();
    assert_eq!(trim_ascii(&id.sn), Some("ADIT01"));
    assert_eq!(trim_ascii(&id.fr), Some("0.1.0"));
    assert_eq!(
        crate::identify::nul_terminated(&id.subnqn),
        Some("nqn.2014-08.org.example:a")
    );
}

#[test]
fn power_state_has_the_golden_bytes() {
    let state = PowerState {
        mp: 0x0102.into(),
        flags: 2,
        enlat: 0x0304_0506.into(),
        exlat: 0x0708_090a.into(),
        rrt: 11,
        rwl: 12,
        idlp: 0x0d0e.into(),
        actp: 0x0f10.into(),
        ..Default::default()
    };
    assert_golden(
        &state,
        &[
            (
                0,
                &[
                    2, 1, 0, 2, 6, 5, 4, 3, 0x0a, 9, 8, 7, 11, 0, 0, 12, 0x0e, 0x0d,
                ],
            ),
            (20, &[0x10, 0x0f]),
        ],
    );
    let mut id = IdentifyController::default();
    id.psd[31].mp = 0x0102.into();
    assert_golden(&id, &[(2048 + 31 * 32, &[2, 1])]);
}

#[test]
fn identify_namespace_has_the_golden_bytes() {
    let mut id = IdentifyNamespace {
        nsze: 0x0102_0304_0506_0708.into(),
        ncap: 0x10.into(),
        nuse: 0x20.into(),
        nsfeat: nsfeat::THIN_PROVISIONING | nsfeat::ATOMIC | nsfeat::OPTIMAL_PERFORMANCE,
        nmic: nmic::SHARED,
        dlfeat: dlfeat::READS_ZEROES | dlfeat::WRITE_ZEROES_DEALLOCATE,
        nawupf: 7.into(),
        noiob: 0x0100.into(),
        npwg: 1.into(),
        npwa: 2.into(),
        npdg: 3.into(),
        npda: 4.into(),
        nows: 5.into(),
        mssrl: 0x1000.into(),
        mcl: 0x0002_0000.into(),
        msrc: 127,
        anagrpid: 0x0a0b_0c0d.into(),
        nsattr: nsattr::WRITE_PROTECTED,
        nvmsetid: 6.into(),
        endgid: 7.into(),
        nguid: *b"0123456789abcdef",
        eui64: *b"ABCDEFGH",
        ..Default::default()
    };
    id.lbaf[0] = LbaFormat::new(12);
    id.lbaf[63] = LbaFormat {
        ms: 8.into(),
        lbads: 9,
        rp: 1,
    };
    assert_golden(
        &id,
        &[
            (
                0,
                &[8, 7, 6, 5, 4, 3, 2, 1, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20],
            ),
            (24, &[0b1_0011]),
            (30, &[1]),
            (33, &[0b1001, 0, 0, 7, 0]),
            (46, &[0, 1]),
            (
                64,
                &[1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 0x00, 0x10, 0, 0, 2, 0, 127],
            ),
            (92, &[0x0d, 0x0c, 0x0b, 0x0a, 0, 0, 0, 1, 6, 0, 7, 0]),
            (104, b"0123456789abcdefABCDEFGH"),
            (128, &[0, 0, 12, 0]),
            (128 + 63 * 4, &[8, 0, 9, 1]),
        ],
    );
    assert_eq!(id.block_size(), Some(4096));
    id.flbas = 0x6f;
    assert_eq!((id.format_index(), id.block_size()), (63, Some(512)));
    id.flbas = 1;
    assert_eq!(id.block_size(), None);
}

#[test]
fn nvm_command_set_structures_have_the_golden_bytes() {
    let controller = IdentifyNvmController {
        vsl: 1,
        wzsl: 2,
        wusl: 3,
        dmrl: 4,
        dmrsl: 0x0506_0708.into(),
        dmsl: 0x090a_0b0c_0d0e_0f10.into(),
        ver: Vs::new(1, 1, 0).0.into(),
        ..Default::default()
    };
    assert_golden(
        &controller,
        &[
            (
                0,
                &[
                    1, 2, 3, 4, 8, 7, 6, 5, 0x10, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b, 0x0a, 9,
                ],
            ),
            (20, &[0, 1, 1, 0]),
        ],
    );
    let mut namespace = IdentifyNvmNamespace {
        npdgl: 1.into(),
        ..Default::default()
    };
    namespace.elbaf[63] = 0x0102_0304.into();
    assert_golden(&namespace, &[(12 + 63 * 4, &[4, 3, 2, 1, 1, 0, 0, 0])]);
}

#[test]
fn independent_namespace_has_the_golden_bytes() {
    let id = IdentifyIndependentNamespace {
        nsfeat: nsfeat::UID_REUSE | nsfeat::NO_VWC,
        nmic: nmic::SHARED,
        anagrpid: 0x0102_0304.into(),
        nsattr: nsattr::WRITE_PROTECTED,
        nstat: crate::identify::nstat::READY,
        ..Default::default()
    };
    assert_golden(
        &id,
        &[(0, &[0b10_1000, 1, 0, 0, 4, 3, 2, 1, 1]), (14, &[1])],
    );
}

#[test]
fn lists_have_the_golden_bytes() {
    let namespaces = NamespaceList::after(Nsid(1), [1, 2, 0x0102_0304].map(Nsid));
    assert_golden(&namespaces, &[(0, &[2, 0, 0, 0, 4, 3, 2, 1])]);
    let controllers = ControllerList::from(Cntlid(2), [1, 2, 0x0102].map(Cntlid));
    assert_golden(&controllers, &[(0, &[2, 0, 2, 0, 2, 1])]);
    let mut sets = IoCommandSetVectors::default();
    sets.vector[0] = 1.into();
    assert_golden(&sets, &[(0, &[1])]);
}

#[test]
fn namespace_descriptors_have_the_golden_bytes() {
    let list = [
        NsDescriptor::Uuid(*b"0123456789abcdef"),
        NsDescriptor::Csi(0),
    ];
    let mut buf = [0xff; LEN];
    assert_eq!(encode_ns_descriptors(&mut buf, &list), Some(25));
    assert_eq!(
        &buf[..25],
        b"\x03\x10\x00\x000123456789abcdef\x04\x01\0\0\0"
    );
    assert!(buf[25..].iter().all(|b| *b == 0));
    assert_eq!(ns_descriptors(&buf).collect::<Vec<_>>(), list);
}

#[test]
fn namespace_descriptors_that_do_not_fit_are_refused() {
    let nid = [7; 255];
    let list = std::vec![NsDescriptor::Other { nidt: 9, nid: &nid }; 16];
    let mut buf = [0xff; LEN];
    assert_eq!(encode_ns_descriptors(&mut buf, &list), None);
    assert_eq!(buf, [0; LEN]);
    assert_eq!(encode_ns_descriptors(&mut buf, &list[..15]), Some(15 * 259));
    for nid in [&[][..], &[1; 256][..]] {
        let list = [NsDescriptor::Csi(0), NsDescriptor::Other { nidt: 9, nid }];
        assert_eq!(encode_ns_descriptors(&mut buf, &list), None);
        assert_eq!(buf, [0; LEN]);
    }
}

#[test]
fn ascii_is_padded_cut_and_cleaned() {
    let mut field = [0; 6];
    put_ascii(&mut field, "ab");
    assert_eq!(&field, b"ab    ");
    put_ascii(&mut field, "abcdefgh");
    assert_eq!(&field, b"abcdef");
    put_ascii(&mut field, "a\u{e9}\n");
    assert_eq!(&field, b"a___  ");
    assert_eq!(trim_ascii(b"ab \0 "), Some("ab"));
    assert_eq!(trim_ascii(b"   "), Some(""));
    assert_eq!(trim_ascii(b"\xff"), None);
}

#[test]
fn truncated_structures_are_rejected() {
    assert_truncation_is_rejected::<IdentifyController>();
    assert_truncation_is_rejected::<IdentifyNamespace>();
    assert_truncation_is_rejected::<IdentifyNvmNamespace>();
    assert_truncation_is_rejected::<IdentifyNvmController>();
    assert_truncation_is_rejected::<IdentifyIndependentNamespace>();
    assert_truncation_is_rejected::<NamespaceList>();
}

#[test]
fn defaults_are_zeroes() {
    assert!(
        bytes(&IdentifyController::default())
            .iter()
            .all(|b| *b == 0)
    );
    assert!(bytes(&IdentifyNamespace::default()).iter().all(|b| *b == 0));
}
