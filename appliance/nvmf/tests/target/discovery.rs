//! The discovery log.

use std::sync::Arc;

use fabric_wire::discovery::{
    DiscoveryLogEntry, DiscoveryLogHeader, DiscoveryRecord, SUBTYPE_CURRENT_DISCOVERY, SUBTYPE_NVM,
    SUBTYPE_REFERRAL,
};
use nvme_spec::log::lid;
use nvme_spec::{Cid, Nsid, Sqe, Status};
use nvmf::{AnaState, Referral, SubsystemOptions};

use crate::rig::{HOST, Host, NQN, Rig, address, dnr, nqn, transport};

const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";
const OTHER_HOST: &str = "nqn.2026-11.io.adit:other-host";

fn piece(rig: &mut Rig, host: &Host, offset: u64, len: u32, rae: bool) -> Vec<u8> {
    let sqe = Sqe::get_log_page(Cid(1), Nsid(0), lid::DISCOVERY, len, offset).with_rae(rae);
    let reply = rig.run(&host.admin, transport(sqe, len as usize), &[]);
    assert!(reply.cqe.status().is_success(), "{}", reply.cqe.status());
    reply.data
}

/// As a host reads it: the header, the entries one by one, the header again.
fn read(rig: &mut Rig, host: &Host) -> (u64, Vec<DiscoveryRecord>) {
    let header = DiscoveryLogHeader::parse(&piece(rig, host, 0, 1024, true)).unwrap();
    let records = (0..header.numrec.get())
        .map(|index| {
            let offset = DiscoveryLogHeader::entry_offset(index).unwrap();
            DiscoveryLogEntry::parse(&piece(rig, host, offset, 1024, true)).unwrap()
        })
        .collect();
    (header.genctr.get(), records)
}

fn names(records: &[DiscoveryRecord]) -> Vec<(u8, String, String)> {
    records
        .iter()
        .map(|r| (r.subtype, r.subnqn.to_string(), r.address.to_string()))
        .collect()
}

#[test]
fn the_log_lists_what_this_host_may_connect_to() {
    let mut rig = Rig::new();
    let open = rig.subsystem(NQN);
    let other = "nqn.2026-11.io.adit:private";
    let private = rig.subsystem_with(SubsystemOptions::new(nqn(other)));
    drop(private.add_host(nqn(OTHER_HOST)).unwrap());
    let inactive = rig.subsystem("nqn.2026-11.io.adit:inactive");
    drop(inactive.stop());
    rig.target.listen(&address(4421)).unwrap();
    drop(
        open.add_listener(Arc::new(address(4421)), AnaState::Optimized)
            .unwrap(),
    );
    let v6 = "tcp://[::1]:4420".parse().unwrap();
    drop(
        open.add_listener(Arc::new(v6), AnaState::Optimized)
            .unwrap(),
    );

    let host = rig.host(DISCOVERY);
    let (_, records) = read(&mut rig, &host);
    let at = |port| address(port).to_string();
    let mut expected = vec![
        (SUBTYPE_CURRENT_DISCOVERY, DISCOVERY.to_string(), at(4420)),
        (SUBTYPE_NVM, NQN.to_string(), at(4420)),
        (SUBTYPE_NVM, NQN.to_string(), at(4421)),
    ];
    assert_eq!(names(&records), expected);
    assert_ne!(records[1].portid, records[2].portid);
    assert!(
        records
            .iter()
            .all(|record| record.cntlid.0 == 0xffff && record.asqsz == 32)
    );

    let other_host = rig.host_in(0, DISCOVERY, OTHER_HOST);
    let (_, records) = read(&mut rig, &other_host);
    expected.insert(1, (SUBTYPE_NVM, other.to_string(), at(4420)));
    let mut names = names(&records);
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
}

#[test]
fn a_log_read_in_pieces_is_of_one_moment() {
    let mut rig = Rig::new();
    let subsystems: Vec<_> = (0..5)
        .map(|i| rig.subsystem(&format!("nqn.2026-11.io.adit:s{i}")))
        .collect();
    let host = rig.host(DISCOVERY);
    let header = DiscoveryLogHeader::parse(&piece(&mut rig, &host, 0, 1024, true)).unwrap();
    assert_eq!(header.numrec.get(), 6);
    let mut seen = Vec::new();
    for index in 0..6 {
        // Something changes between any two pieces.
        let name = subsystems[index.min(4)].nqn();
        if index < 5 {
            drop(rig.target.delete_subsystem(name).unwrap());
        }
        let data = piece(&mut rig, &host, 1024 * (index as u64 + 1), 1024, true);
        seen.push(DiscoveryLogEntry::parse(&data).unwrap().subnqn.to_string());
    }
    assert_eq!(
        seen[1..],
        subsystems
            .iter()
            .map(|s| s.nqn().to_string())
            .collect::<Vec<_>>()
    );
    let (generation, records) = read(&mut rig, &host);
    assert!(
        generation > header.genctr.get(),
        "the host sees that it should read again"
    );
    assert_eq!(records.len(), 1);
    assert_eq!(
        read(&mut rig, &host).0,
        generation,
        "reading changes nothing"
    );
}

#[test]
fn the_generation_counts_what_the_log_shows() {
    let mut rig = Rig::new();
    let mut last = rig.target.discovery_generation();
    let mut has_counted = |rig: &Rig| {
        let now = rig.target.discovery_generation();
        std::mem::replace(&mut last, now) < now
    };
    let subsystem = rig.subsystem(NQN);
    assert!(has_counted(&rig));
    drop(subsystem.add_host(nqn(HOST)).unwrap());
    assert!(has_counted(&rig));
    drop(subsystem.set_allow_any_host(false).unwrap());
    assert!(has_counted(&rig));
    drop(subsystem.remove_listener(&address(4420)).unwrap());
    assert!(has_counted(&rig));
    let referral = Referral {
        address: address(8009),
        nqn: nqn(DISCOVERY),
    };
    assert!(rig.target.add_referral(referral.clone()));
    assert!(has_counted(&rig));
    assert!(!rig.target.add_referral(referral.clone()));
    assert!(!has_counted(&rig));
    let host = rig.host(DISCOVERY);
    let (_, records) = read(&mut rig, &host);
    assert_eq!(records.last().unwrap().subtype, SUBTYPE_REFERRAL);
    assert!(rig.target.remove_referral(&referral));
    assert!(!rig.target.remove_referral(&referral));
    assert!(has_counted(&rig));
    drop(rig.target.delete_subsystem(&nqn(NQN)).unwrap());
    assert!(has_counted(&rig));
}

#[test]
fn any_host_may_ask_and_no_more_than_the_limit_at_a_time() {
    let mut options = crate::rig::RigOptions::default();
    options.target.max_discovery_controllers = 2;
    let mut rig = Rig::with(options);
    let first = rig.host(DISCOVERY);
    rig.host(DISCOVERY);
    let end = rig.dial();
    let reply = rig.connect(&end, &crate::rig::Connect::admin(DISCOVERY));
    assert_eq!(reply.cqe.status(), Status::CONNECT_CONTROLLER_BUSY);
    first.admin.wire().is_cut = true;
    rig.poll();
    rig.host(DISCOVERY);
}

#[test]
fn a_discovery_controller_takes_only_what_it_must() {
    let mut rig = Rig::new();
    let host = rig.host(DISCOVERY);
    let refused = dnr(Status::INVALID_OPCODE);
    for opcode in [0x00, 0x01, 0x04, 0x05, 0x08, 0x0d, 0x10, 0x80] {
        assert_eq!(
            rig.status(&host.admin, Sqe::new(opcode, Cid(1)), &[]),
            refused
        );
    }
    assert!(
        rig.status(&host.admin, Sqe::keep_alive(Cid(1)), &[])
            .is_success()
    );
    let beyond = Sqe::get_log_page(Cid(1), Nsid(0), lid::DISCOVERY, 1024, 4096);
    let status = rig.status(&host.admin, transport(beyond, 1024), &[]);
    assert_eq!(status, dnr(Status::INVALID_FIELD));
}
