use super::std;
use crate::registers::{Aqa, Cap, Cc, Crto, Csts, ShutdownNotification, ShutdownStatus, Vs, *};

#[test]
fn cap_has_the_golden_value() {
    let cap = Cap::default()
        .with_mqes(0x7f)
        .with_cqr(true)
        .with_to(30)
        .with_dstrd(1)
        .with_nssrs(true)
        .with_css(Cap::CSS_NVM | Cap::CSS_IOCS)
        .with_mpsmin(0)
        .with_mpsmax(4)
        .with_crms(Cap::CRMS_WITH_MEDIA);
    assert_eq!(cap.0, 0x0840_0831_1e01_007f);
    assert_eq!(
        (cap.mqes(), cap.cqr(), cap.to(), cap.css()),
        (0x7f, true, 30, 0x41)
    );
    assert_eq!(
        (cap.dstrd(), cap.nssrs(), cap.mpsmax(), cap.crms()),
        (1, true, 4, 1)
    );
    assert_eq!(std::format!("{cap:?}"), "Cap(0x84008311e01007f)");
}

/// Sets a field to all ones in an empty register, and to zero in a full one.
macro_rules! assert_field {
    ($register:ident, $with:ident, $ones:expr, $zero:expr, $mask:expr) => {
        assert_eq!($register(0).$with($ones).0, $mask, stringify!($with));
        assert_eq!(
            !$register(0).0 & !$register(!0).$with($zero).0,
            $mask,
            stringify!($with)
        );
    };
}

#[test]
fn fields_of_cap_are_at_their_bits() {
    assert_field!(Cap, with_mqes, 0xffff, 0, 0xffff);
    assert_field!(Cap, with_cqr, true, false, 1 << 16);
    assert_field!(Cap, with_ams, 0xff, 0, 0x3 << 17);
    assert_field!(Cap, with_to, 0xff, 0, 0xff << 24);
    assert_field!(Cap, with_dstrd, 0xff, 0, 0xf << 32);
    assert_field!(Cap, with_nssrs, true, false, 1 << 36);
    assert_field!(Cap, with_css, 0xff, 0, 0xff << 37);
    assert_field!(Cap, with_bps, true, false, 1 << 45);
    assert_field!(Cap, with_cps, 0xff, 0, 0x3 << 46);
    assert_field!(Cap, with_mpsmin, 0xff, 0, 0xf << 48);
    assert_field!(Cap, with_mpsmax, 0xff, 0, 0xf << 52);
    assert_field!(Cap, with_pmrs, true, false, 1 << 56);
    assert_field!(Cap, with_cmbs, true, false, 1 << 57);
    assert_field!(Cap, with_nsss, true, false, 1 << 58);
    assert_field!(Cap, with_crms, 0xff, 0, 0x3 << 59);
    assert_field!(Cap, with_nsses, true, false, 1 << 61);
}

#[test]
fn fields_of_cc_are_at_their_bits() {
    use ShutdownNotification::{None, Reserved};
    assert_field!(Cc, with_en, true, false, 1);
    assert_field!(Cc, with_css, 0xff, 0, 0x7 << 4);
    assert_field!(Cc, with_mps, 0xff, 0, 0xf << 7);
    assert_field!(Cc, with_ams, 0xff, 0, 0x7 << 11);
    assert_field!(Cc, with_shn, Reserved, None, 0x3 << 14);
    assert_field!(Cc, with_iosqes, 0xff, 0, 0xf << 16);
    assert_field!(Cc, with_iocqes, 0xff, 0, 0xf << 20);
    assert_field!(Cc, with_crime, true, false, 1 << 24);
}

#[test]
fn fields_of_csts_are_at_their_bits() {
    use ShutdownStatus::{Normal, Reserved};
    assert_field!(Csts, with_rdy, true, false, 1);
    assert_field!(Csts, with_cfs, true, false, 1 << 1);
    assert_field!(Csts, with_shst, Reserved, Normal, 0x3 << 2);
    assert_field!(Csts, with_nssro, true, false, 1 << 4);
    assert_field!(Csts, with_pp, true, false, 1 << 5);
    assert_field!(Csts, with_st, true, false, 1 << 6);
}

#[test]
fn fields_of_small_registers_are_at_their_bits() {
    assert_field!(Crto, with_crwmt, 0xffff, 0, 0xffff);
    assert_field!(Crto, with_crimt, 0xffff, 0, 0xffff << 16);
    assert_field!(Aqa, with_asqs, 0xffff, 0, 0xfff);
    assert_field!(Aqa, with_acqs, 0xffff, 0, 0xfff << 16);
    assert_field!(Vs, with_tertiary, 0xff, 0, 0xff);
    assert_field!(Vs, with_minor, 0xff, 0, 0xff << 8);
    assert_field!(Vs, with_major, 0xffff, 0, 0xffff << 16);
}

#[test]
fn cc_that_a_host_enables_with_reads_as_meant() {
    // What Linux writes: EN, 4 KiB pages, 64-byte and 16-byte entries.
    let cc = Cc::from(0x0046_0001);
    assert_eq!(
        (cc.en(), cc.mps(), cc.iosqes(), cc.iocqes()),
        (true, 0, 6, 4)
    );
    assert_eq!((cc.css(), cc.ams(), cc.crime()), (Cc::CSS_NVM, 0, false));
    assert_eq!(cc.shn(), ShutdownNotification::None);
    assert_eq!(Cc::from(0x0046_4001).shn(), ShutdownNotification::Normal);
    assert_eq!(Cc::from(0x0046_8001).shn(), ShutdownNotification::Abrupt);
    assert_eq!(Cc::from(0x0046_0061).css(), Cc::CSS_IOCS);
    assert_eq!(u32::from(cc), 0x0046_0001);
}

#[test]
fn csts_tells_the_shutdown() {
    let complete = Csts::default()
        .with_rdy(true)
        .with_shst(ShutdownStatus::Complete);
    assert_eq!(complete.0, 0b1001);
    assert_eq!(complete.shst(), ShutdownStatus::Complete);
    assert_eq!(Csts(0b0100).shst(), ShutdownStatus::Occurring);
    assert_eq!(Csts(0b1100).shst(), ShutdownStatus::Reserved);
    assert!(Csts(0b10).cfs() && !Csts(0b10).rdy());
}

#[test]
fn versions_have_the_golden_values() {
    assert_eq!(Vs::V2_1.0, 0x0002_0100);
    assert_eq!(Vs::V2_0.0, 0x0002_0000);
    assert_eq!(Vs::V1_4.0, 0x0001_0400);
    assert_eq!(std::format!("{}", Vs::V2_1), "2.1.0");
}

#[test]
fn offsets_are_those_of_the_specification() {
    let offsets = [
        CAP, VS, INTMS, INTMC, CC, CSTS, NSSR, AQA, ASQ, ACQ, NSSD, CRTO,
    ];
    let expected = [
        0x0, 0x8, 0xc, 0x10, 0x14, 0x1c, 0x20, 0x24, 0x28, 0x30, 0x64, 0x68,
    ];
    assert_eq!(offsets, expected);
    assert_eq!(NSSR_RESET.to_be_bytes(), *b"NVMe");
    assert_eq!(NSSD_NORMAL.to_be_bytes(), *b"Nrml");
    assert_eq!(NSSD_ABRUPT.to_be_bytes(), *b"Abpt");
}
