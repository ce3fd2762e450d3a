//! Every request of every role, against every reservation.

use nvme_spec::reservation::ReservationType as Type;

use super::*;

const HOLDER: HostId = [1; 16];
const REGISTRANT: HostId = [2; 16];
const OTHER: HostId = [3; 16];
const STRANGER: HostId = [9; 16];
const ROLES: [HostId; 3] = [HOLDER, REGISTRANT, STRANGER];

fn key_of(host: &HostId) -> u64 {
    0x100 + u64::from(host[0])
}

/// Three registrants, and perhaps a reservation of the first.
fn record(rtype: Option<Type>) -> ReservationRecord {
    let registrants = [HOLDER, REGISTRANT, OTHER].map(|host| (host, key_of(&host)));
    ReservationRecord {
        registrants: registrants.into(),
        reservation: rtype.map(|rtype| Reservation::new(rtype, &HOLDER)),
        generation: 7,
        ..ReservationRecord::default()
    }
}

fn all_records() -> impl Iterator<Item = ReservationRecord> {
    let types = Type::ALL.into_iter().map(Some).chain([None]);
    types.map(record)
}

fn register(action: u8, ignores_key: bool, key: u64, new_key: u64) -> Request {
    Request::Register {
        action,
        ignores_key,
        cptpl: cptpl::KEEP,
        key,
        new_key,
    }
}

fn acquire(action: u8, rtype: Type, key: u64, preempted: u64) -> Request {
    Request::Acquire {
        action,
        ignores_key: false,
        rtype: rtype as u8,
        key,
        preempted,
    }
}

fn release(action: u8, rtype: u8, key: u64) -> Request {
    Request::Release {
        action,
        ignores_key: false,
        rtype,
        key,
    }
}

fn kinds(change: &Change, kind: u8) -> Vec<HostId> {
    let of_kind = change.notices.iter().filter(|(_, of)| *of == kind);
    of_kind.map(|(host, _)| *host).collect()
}

#[test]
fn what_may_run_is_as_the_table_of_the_specification_says() {
    // Columns: holder, registrant, stranger. Rows: type 1 to 6.
    let reads = [
        [true, true, true],
        [true, false, false],
        [true, true, true],
        [true, true, false],
        [true, true, true],
        [true, true, false],
    ];
    let writes = [
        [true, false, false],
        [true, false, false],
        [true, true, false],
        [true, true, false],
        [true, true, false],
        [true, true, false],
    ];
    for (index, rtype) in Type::ALL.into_iter().enumerate() {
        let record = record(Some(rtype));
        for (column, host) in ROLES.iter().enumerate() {
            let may = |access| record.allows(host, access);
            assert_eq!(may(Access::Read), reads[index][column], "{rtype:?}");
            assert_eq!(may(Access::Write), writes[index][column], "{rtype:?}");
            assert_eq!(may(Access::Flush), writes[index][column], "{rtype:?}");
            assert!(may(Access::Reserve));
        }
    }
    for host in ROLES {
        assert!(record(None).allows(&host, Access::Write));
    }
}

#[test]
fn nobody_does_anything_with_a_wrong_key() {
    for before in all_records() {
        for host in ROLES {
            let wrong = key_of(&host) ^ 1;
            let requests = [
                register(register::UNREGISTER, false, wrong, 0),
                register(register::REPLACE, false, wrong, 5),
                acquire(acquire::ACQUIRE, Type::WriteExclusive, wrong, 0),
                acquire(acquire::PREEMPT, Type::WriteExclusive, wrong, 0x101),
                acquire(
                    acquire::PREEMPT_AND_ABORT,
                    Type::WriteExclusive,
                    wrong,
                    0x101,
                ),
                release(release::RELEASE, 1, wrong),
                release(release::CLEAR, 1, wrong),
            ];
            for request in requests {
                assert_eq!(before.apply(&host, &request, true), Err(CONFLICT));
            }
        }
        // A stranger has no key that is right, nor one to be ignored.
        for ignores_key in [false, true] {
            for action in [register::UNREGISTER, register::REPLACE] {
                let request = register(action, ignores_key, 0x101, 5);
                assert_eq!(before.apply(&STRANGER, &request, true), Err(CONFLICT));
            }
        }
    }
}

#[test]
fn what_is_reserved_in_a_command_is_an_invalid_field() {
    for before in all_records() {
        for host in ROLES {
            let key = key_of(&host);
            for action in 3..8 {
                for request in [
                    register(action, false, key, 1),
                    acquire(action, Type::WriteExclusive, key, 1),
                    release(action, 1, key),
                ] {
                    assert_eq!(before.apply(&host, &request, true), Err(INVALID));
                }
            }
            for rtype in (0..=255).filter(|rtype| !(1..=6).contains(rtype)) {
                let request = Request::Acquire {
                    action: 0,
                    ignores_key: false,
                    rtype,
                    key,
                    preempted: 0,
                };
                assert_eq!(before.apply(&host, &request, true), Err(INVALID));
            }
            let ignoring = [
                Request::Acquire {
                    action: 0,
                    ignores_key: true,
                    rtype: 1,
                    key,
                    preempted: 0,
                },
                Request::Release {
                    action: 0,
                    ignores_key: true,
                    rtype: 1,
                    key,
                },
            ];
            for request in ignoring {
                assert_eq!(before.apply(&host, &request, true), Err(INVALID));
            }
        }
    }
}

#[test]
fn a_host_registers_once_and_replaces_its_key() {
    let before = ReservationRecord::default();
    let request = register(register::REGISTER, false, 0xdead, 5);
    let change = before.apply(&STRANGER, &request, false).unwrap();
    assert_eq!(change.record.registrants, [(STRANGER, 5)].into());
    assert_eq!((change.record.generation, change.drains), (1, false));
    let registered = change.record;
    let again = registered.apply(&STRANGER, &request, false).unwrap();
    assert_eq!(again.record.registrants, registered.registrants);
    for ignores_key in [false, true] {
        let other_key = register(register::REGISTER, ignores_key, 5, 6);
        assert_eq!(
            registered.apply(&STRANGER, &other_key, false),
            Err(CONFLICT)
        );
    }
    for request in [
        register(register::REPLACE, false, 5, 6),
        register(register::REPLACE, true, 0xdead, 6),
    ] {
        let change = registered.apply(&STRANGER, &request, false).unwrap();
        assert_eq!(change.record.registrants, [(STRANGER, 6)].into());
    }
}

#[test]
fn the_number_of_registrants_is_bounded() {
    let mut record = ReservationRecord::default();
    for index in 0..REGISTRANTS_MAX as u128 {
        let request = register(register::REGISTER, false, 0, 1);
        record = record
            .apply(&index.to_le_bytes(), &request, false)
            .unwrap()
            .record;
    }
    let one_more = register(register::REGISTER, false, 0, 1);
    let refused = record.apply(&[0xff; 16], &one_more, false);
    assert!(refused.is_err_and(|status| status.is(Status::INTERNAL_ERROR)));
    assert!(record.apply(&[0; 16], &one_more, false).is_ok());
}

#[test]
fn who_unregisters_takes_the_reservation_along_that_it_alone_holds() {
    for before in all_records() {
        for host in [HOLDER, REGISTRANT] {
            for request in [
                register(register::UNREGISTER, false, key_of(&host), 0),
                register(register::UNREGISTER, true, 0, 0),
            ] {
                let change = before.apply(&host, &request, true).unwrap();
                assert!(!change.record.is_registrant(&host));
                assert_eq!(change.record.generation, 8);
                let Some(held) = before.reservation else {
                    continue;
                };
                let is_gone = host == HOLDER && !held.rtype.is_all_registrants();
                assert_eq!(change.record.reservation.is_none(), is_gone);
                let told = kinds(&change, notification::RESERVATION_RELEASED);
                if is_gone && held.rtype.admits_registrants() {
                    assert_eq!(told, [REGISTRANT, OTHER]);
                } else {
                    assert!(told.is_empty());
                }
            }
        }
    }
    // The last registrant takes any reservation along.
    let mut last = record(Some(Type::ExclusiveAccessAllRegistrants));
    for host in [OTHER, HOLDER, REGISTRANT] {
        assert!(last.reservation.is_some());
        let request = register(register::UNREGISTER, true, 0, 0);
        last = last.apply(&host, &request, true).unwrap().record;
    }
    assert_eq!(last.reservation, None);
}

#[test]
fn acquiring_takes_what_is_free_and_keeps_what_is_held() {
    for before in all_records() {
        for rtype in Type::ALL {
            for host in [HOLDER, REGISTRANT] {
                let request = acquire(acquire::ACQUIRE, rtype, key_of(&host), 0);
                let result = before.apply(&host, &request, true);
                match before.reservation {
                    None => {
                        let change = result.unwrap();
                        assert!(change.drains && change.notices.is_empty());
                        assert!(change.record.is_holder(&host));
                        assert_eq!(change.record.reservation.unwrap().rtype, rtype);
                        assert_eq!(change.record.generation, 7);
                    }
                    Some(held) if held.rtype == rtype && before.is_holder(&host) => {
                        assert_eq!(result.unwrap().record, before);
                    }
                    Some(_) => assert_eq!(result, Err(CONFLICT)),
                }
            }
        }
    }
}

#[test]
fn preempting_the_holder_takes_the_reservation_over() {
    for rtype in Type::ALL
        .into_iter()
        .filter(|rtype| !rtype.is_all_registrants())
    {
        for new in Type::ALL {
            for action in [acquire::PREEMPT, acquire::PREEMPT_AND_ABORT] {
                let before = record(Some(rtype));
                let request = acquire(action, new, key_of(&REGISTRANT), key_of(&HOLDER));
                let change = before.apply(&REGISTRANT, &request, true).unwrap();
                let after = &change.record;
                assert!(!after.is_registrant(&HOLDER) && after.is_registrant(&OTHER));
                assert_eq!(after.reservation, Some(Reservation::new(new, &REGISTRANT)));
                assert_eq!(after.generation, 8);
                let preempted = kinds(&change, notification::REGISTRATION_PREEMPTED);
                assert_eq!(preempted, [HOLDER]);
                let released = kinds(&change, notification::RESERVATION_RELEASED);
                assert_eq!(released.is_empty(), new == rtype);
                let is_abort = action == acquire::PREEMPT_AND_ABORT;
                assert_eq!(change.aborted == [HOLDER], is_abort);
                assert!(change.drains);
            }
            // Its own reservation, to change the type: nobody leaves.
            let before = record(Some(rtype));
            let request = acquire(acquire::PREEMPT, new, key_of(&HOLDER), key_of(&HOLDER));
            let after = before.apply(&HOLDER, &request, true).unwrap().record;
            assert_eq!(after.registrants, before.registrants);
            assert_eq!(after.reservation, Some(Reservation::new(new, &HOLDER)));
        }
    }
}

#[test]
fn preempting_others_unregisters_them_and_no_more() {
    for before in all_records() {
        let key = key_of(&REGISTRANT);
        let request = acquire(acquire::PREEMPT, Type::WriteExclusive, key, key_of(&OTHER));
        let change = before.apply(&REGISTRANT, &request, true).unwrap();
        assert_eq!(change.record.reservation, before.reservation);
        assert_eq!(
            change.notices,
            [(OTHER, notification::REGISTRATION_PREEMPTED)]
        );
        assert!(!change.record.is_registrant(&OTHER));
        let nobody = acquire(acquire::PREEMPT, Type::WriteExclusive, key, 0xbad);
        assert_eq!(before.apply(&REGISTRANT, &nobody, true), Err(CONFLICT));
        let zero = acquire(acquire::PREEMPT, Type::WriteExclusive, key, 0);
        let result = before.apply(&REGISTRANT, &zero, true);
        if before
            .reservation
            .is_some_and(|held| held.rtype.is_all_registrants())
        {
            // All others at once.
            let after = result.unwrap().record;
            assert_eq!(after.registrants, [(REGISTRANT, key)].into());
            let mine = Reservation::new(Type::WriteExclusive, &REGISTRANT);
            assert_eq!(after.reservation, Some(mine));
        } else {
            assert_eq!(result, Err(INVALID));
        }
    }
    // Keys need not be different: all who have the key leave.
    let mut same = record(Some(Type::WriteExclusive));
    same.registrants.insert(OTHER, key_of(&HOLDER));
    let request = acquire(
        acquire::PREEMPT,
        Type::WriteExclusive,
        key_of(&REGISTRANT),
        key_of(&HOLDER),
    );
    let after = same.apply(&REGISTRANT, &request, true).unwrap().record;
    assert_eq!(after.registrants.len(), 1);
}

#[test]
fn only_holders_release_and_any_registrant_clears() {
    for before in all_records() {
        for host in [HOLDER, REGISTRANT] {
            for rtype in 0..8 {
                let request = release(release::RELEASE, rtype, key_of(&host));
                let result = before.apply(&host, &request, true);
                let held = before.reservation.filter(|_| before.is_holder(&host));
                let Some(held) = held else {
                    assert_eq!(result.unwrap().record, before, "nothing to release");
                    continue;
                };
                if held.rtype as u8 != rtype {
                    assert_eq!(result, Err(INVALID));
                    continue;
                }
                let change = result.unwrap();
                assert_eq!(change.record.reservation, None);
                assert_eq!(change.record.registrants, before.registrants);
                let told = kinds(&change, notification::RESERVATION_RELEASED);
                let others = if held.rtype.admits_registrants() {
                    2
                } else {
                    0
                };
                assert_eq!(told.len(), others);
                assert!(!told.contains(&host));
            }
            let request = release(release::CLEAR, 0, key_of(&host));
            let change = before.apply(&host, &request, true).unwrap();
            assert_eq!(change.record.reservation, None);
            assert!(change.record.registrants.is_empty());
            assert_eq!(change.record.generation, 8);
            let told = kinds(&change, notification::RESERVATION_PREEMPTED);
            assert_eq!((told.len(), told.contains(&host)), (2, false));
        }
    }
}

#[test]
fn persistence_is_set_with_a_registration_or_by_itself() {
    let with = |cptpl, record: &ReservationRecord, can_persist| {
        let request = Request::Register {
            action: register::REGISTER,
            ignores_key: false,
            cptpl,
            key: 0,
            new_key: key_of(&STRANGER),
        };
        let change = record.apply(&STRANGER, &request, can_persist);
        change.map(|change| change.record)
    };
    let off = record(None);
    let on = with(cptpl::SET, &off, true).unwrap();
    assert!(on.ptpl);
    assert!(with(cptpl::KEEP, &on, true).unwrap().ptpl);
    assert!(!with(cptpl::CLEAR, &on, true).unwrap().ptpl);
    assert_eq!(with(cptpl::SET, &off, false), Err(INVALID));
    assert_eq!(with(0b01, &off, true), Err(INVALID));
    let persist = |is_on| off.apply(&STRANGER, &Request::Persist(is_on), true);
    assert!(persist(true).unwrap().record.ptpl);
    assert_eq!(persist(false).unwrap().record, off);
    let refused = off.apply(&STRANGER, &Request::Persist(true), false);
    assert_eq!(refused, Err(INVALID));
}

#[test]
fn what_is_restored_is_whole() {
    let mut saved = record(Some(Type::ExclusiveAccess));
    assert_eq!(saved.clone().restored(), ReservationRecord::default());
    saved.ptpl = true;
    assert_eq!(saved.clone().restored(), saved);
    saved.registrants.remove(&HOLDER);
    assert_eq!(saved.restored().reservation, None);
    let mut all = record(Some(Type::ExclusiveAccessAllRegistrants));
    all.ptpl = true;
    assert_eq!(all.clone().restored(), all);
    all.registrants.clear();
    assert_eq!(all.restored().reservation, None);
}
