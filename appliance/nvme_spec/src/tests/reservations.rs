use super::{assert_golden, assert_truncation_is_rejected};
use crate::opcode::nvm;
use crate::reservation::{
    RCSTS_HOLDER, RegisteredController, RegisteredControllerExtended, ReservationAcquire,
    ReservationNotification, ReservationRegister, ReservationRelease, ReservationStatus,
    ReservationStatusExtended, ReservationType, acquire, cptpl, notification, register, release,
};
use crate::{Cid, Nsid, Sqe};

const KEY: u64 = 0x0102_0304_0506_0708;
const KEY_BYTES: [u8; 8] = [8, 7, 6, 5, 4, 3, 2, 1];
const OTHER: u64 = 0x1112_1314_1516_1718;
const OTHER_BYTES: [u8; 8] = [0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11];

#[test]
fn keys_have_the_golden_bytes() {
    let golden: [(usize, &[u8]); 2] = [(0, &KEY_BYTES), (8, &OTHER_BYTES)];
    let register = ReservationRegister {
        crkey: KEY.into(),
        nrkey: OTHER.into(),
    };
    assert_golden(&register, &golden);
    let acquire = ReservationAcquire {
        crkey: KEY.into(),
        prkey: OTHER.into(),
    };
    assert_golden(&acquire, &golden);
    assert_golden(&ReservationRelease { crkey: KEY.into() }, &golden[..1]);
}

#[test]
fn commands_have_the_golden_bytes() {
    let (cid, nsid) = (Cid(0x1234), Nsid(5));
    let head = |opcode| [opcode, 0, 0x34, 0x12, 5, 0, 0, 0];
    let sqe = Sqe::reservation_register(cid, nsid, register::REPLACE, true, cptpl::SET);
    let golden: [(usize, &[u8]); 2] = [(0, &head(0x0d)), (40, &[0x0a, 0, 0, 0xc0])];
    assert_golden(&sqe, &golden);
    assert_eq!(
        (sqe.reservation_action(), sqe.reservation_ignores_key()),
        (register::REPLACE, true)
    );
    assert_eq!(sqe.reservation_cptpl(), cptpl::SET);
    let sqe = Sqe::reservation_acquire(cid, nsid, acquire::PREEMPT_AND_ABORT, 6);
    assert_golden(&sqe, &[(0, &head(0x11)), (40, &[2, 6, 0, 0])]);
    assert_eq!(sqe.reservation_type(), 6);
    assert!(!sqe.reservation_ignores_key());
    let sqe = Sqe::reservation_release(cid, nsid, release::CLEAR, 0xff);
    assert_golden(&sqe, &[(0, &head(0x15)), (40, &[1, 0xff, 0, 0])]);
    let sqe = Sqe::reservation_report(cid, nsid, 4096, true);
    let golden: [(usize, &[u8]); 3] = [
        (0, &head(0x0e)),
        (40, &[0xff, 3, 0, 0]),
        (44, &[1, 0, 0, 0]),
    ];
    assert_golden(&sqe, &golden);
    assert_eq!(sqe.reservation_report_len(), 4096);
    assert!(sqe.reservation_report_is_extended());
    let most = Sqe::new(nvm::RESERVATION_REPORT, cid).with_cdw10(u32::MAX);
    assert_eq!(most.reservation_report_len(), 1 << 34);
}

#[test]
fn reports_have_the_golden_bytes() {
    let head = ReservationStatus {
        generation: 0x0102_0304.into(),
        rtype: 3,
        registrants: 0x0506.into(),
        ptpls: 1,
        ..Default::default()
    };
    let golden: [(usize, &[u8]); 1] = [(0, &[4, 3, 2, 1, 3, 6, 5, 0, 0, 1])];
    assert_golden(&head, &golden);
    let extended = ReservationStatusExtended {
        head,
        ..Default::default()
    };
    assert_golden(&extended, &golden);
    let short = RegisteredController {
        cntlid: 0xffff.into(),
        rcsts: RCSTS_HOLDER,
        hostid: OTHER.into(),
        rkey: KEY.into(),
        ..Default::default()
    };
    let golden: [(usize, &[u8]); 3] = [(0, &[0xff, 0xff, 1]), (8, &OTHER_BYTES), (16, &KEY_BYTES)];
    assert_golden(&short, &golden);
    let long = RegisteredControllerExtended {
        cntlid: 0x0102.into(),
        rcsts: RCSTS_HOLDER,
        rkey: KEY.into(),
        hostid: [7; 16],
        ..Default::default()
    };
    assert_golden(&long, &[(0, &[2, 1, 1]), (8, &KEY_BYTES), (16, &[7; 16])]);
}

#[test]
fn a_notification_has_the_golden_bytes() {
    let log = ReservationNotification {
        count: KEY.into(),
        kind: notification::RESERVATION_PREEMPTED,
        available: 9,
        nsid: 0x0102_0304.into(),
        ..Default::default()
    };
    let golden: [(usize, &[u8]); 3] = [(0, &KEY_BYTES), (8, &[3, 9]), (12, &[4, 3, 2, 1])];
    assert_golden(&log, &golden);
}

#[test]
fn truncated_structures_are_rejected() {
    assert_truncation_is_rejected::<ReservationRegister>();
    assert_truncation_is_rejected::<ReservationAcquire>();
    assert_truncation_is_rejected::<ReservationRelease>();
    assert_truncation_is_rejected::<ReservationStatus>();
    assert_truncation_is_rejected::<ReservationStatusExtended>();
    assert_truncation_is_rejected::<RegisteredController>();
    assert_truncation_is_rejected::<RegisteredControllerExtended>();
    assert_truncation_is_rejected::<ReservationNotification>();
}

#[test]
fn types_say_whom_they_admit() {
    for value in 0..=u8::MAX {
        let rtype = ReservationType::from_value(value);
        assert_eq!(rtype.is_some(), (1..=6).contains(&value));
        let Some(rtype) = rtype else { continue };
        assert_eq!(rtype as u8, value);
        assert_eq!(ReservationType::ALL[usize::from(value) - 1], rtype);
        assert_eq!(rtype.excludes_reads(), value % 2 == 0);
        assert_eq!(rtype.admits_registrants(), value > 2);
        assert_eq!(rtype.is_all_registrants(), value > 4);
    }
}
