use proptest::prelude::*;

use super::*;

fn record() -> DiscoveryRecord {
    DiscoveryRecord {
        address: "tcp://[2001:db8::1]:4420".parse().unwrap(),
        subtype: SUBTYPE_NVM,
        treq: TREQ_SECURE_CHANNEL_NOT_REQUIRED | TREQ_DISABLE_SQ_FLOW_CONTROL,
        portid: 0x0102,
        cntlid: Cntlid(0xFFFF),
        asqsz: 128,
        eflags: EFLAGS_DUPRETINFO | EFLAGS_EPCSD,
        subnqn: Nqn::new("nqn.2014-08.com.example:disk1").unwrap(),
        tcp_sectype: TCP_SECTYPE_TLS13,
    }
}

fn golden() -> [u8; 1024] {
    let mut golden = [0; 1024];
    golden[..12].copy_from_slice(&[3, 2, 2, 6, 0x02, 0x01, 0xFF, 0xFF, 0x80, 0x00, 0x03, 0x00]);
    golden[32..64].fill(b' ');
    golden[32..36].copy_from_slice(b"4420");
    golden[256..285].copy_from_slice(b"nqn.2014-08.com.example:disk1");
    golden[512..768].fill(b' ');
    golden[512..523].copy_from_slice(b"2001:db8::1");
    golden[768] = 2;
    golden
}

#[test]
fn header_has_its_golden_bytes() {
    let mut golden = [0_u8; 1024];
    golden[..10].copy_from_slice(&[0x08, 7, 6, 5, 4, 3, 2, 1, 0x10, 0x20]);
    let header = DiscoveryLogHeader::new(0x0102_0304_0506_0708, 0x2010);
    assert_eq!(header.as_bytes(), golden);
    assert_eq!(DiscoveryLogHeader::parse(&golden), Ok(header));
    golden[16] = 9;
    let error = DiscoveryError::RecordFormat { recfmt: 9 };
    assert_eq!(DiscoveryLogHeader::parse(&golden), Err(error));
}

#[test]
fn entry_has_its_golden_bytes() {
    assert_eq!(record().to_entry().as_bytes(), golden());
    assert_eq!(DiscoveryLogEntry::parse(&golden()), Ok(record()));
}

#[test]
fn fields_padded_with_zeros_are_read_too() {
    let mut bytes = golden();
    bytes[36..64].fill(0);
    bytes[523..768].fill(0);
    assert_eq!(DiscoveryLogEntry::parse(&bytes), Ok(record()));
    bytes[36] = b' ';
    assert_eq!(DiscoveryLogEntry::parse(&bytes), Ok(record()));
}

#[test]
fn each_fault_of_an_entry_is_told_apart() {
    use DiscoveryError as E;
    let with = |offset: usize, value: u8| {
        let mut bytes = golden();
        bytes[offset] = value;
        DiscoveryLogEntry::parse(&bytes).unwrap_err()
    };
    assert_eq!(with(0, 2), E::UnknownTransport { trtype: 2 });
    assert_eq!(with(1, 5), E::UnknownFamily { adrfam: 5 });
    assert_eq!(with(2, 0), E::UnknownSubtype { subtype: 0 });
    assert_eq!(with(2, 4), E::UnknownSubtype { subtype: 4 });
    assert_eq!(with(33, 0x07), E::NotAscii { field: "trsvcid" });
    assert_eq!(with(514, 0xFF), E::NotAscii { field: "traddr" });
    assert_eq!(with(600, b'x'), E::NotAscii { field: "traddr" });
    assert!(matches!(
        with(32, b'x'),
        E::Address {
            error: TransportAddressError::Port { .. }
        }
    ));
    assert!(matches!(
        with(512, b'x'),
        E::Address {
            error: TransportAddressError::Host { .. }
        }
    ));
    let family = with(1, 1);
    assert!(matches!(
        family,
        E::Address {
            error: TransportAddressError::FamilyMismatch { .. }
        }
    ));
    assert!(matches!(
        with(256, b'i'),
        E::SubNqn {
            error: NqnError::Prefix { .. }
        }
    ));
}

#[test]
fn page_is_refused_at_every_cut() {
    let header = DiscoveryLogHeader::new(1, 1);
    for len in 0..1024 {
        assert_eq!(
            DiscoveryLogHeader::parse(&header.as_bytes()[..len]),
            Err(DiscoveryError::TooShort {
                what: "header",
                len
            })
        );
        assert_eq!(
            DiscoveryLogEntry::parse(&golden()[..len]),
            Err(DiscoveryError::TooShort { what: "entry", len })
        );
    }
}

#[test]
fn entry_offsets_do_not_overflow() {
    assert_eq!(DiscoveryLogHeader::entry_offset(0), Some(1024));
    assert_eq!(DiscoveryLogHeader::entry_offset(3), Some(4096));
    assert_eq!(DiscoveryLogHeader::entry_offset(u64::MAX), None);
    assert_eq!(DiscoveryLogHeader::entry_offset(u64::MAX / 1024), None);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 1024),
        traddr in "[0-9a-f:.%]{0,40}",
    ) {
        let _ = DiscoveryLogHeader::parse(&bytes);
        let _ = DiscoveryLogEntry::parse(&bytes);
        bytes[..3].copy_from_slice(&[3, 1, 2]);
        bytes[32..64].fill(0);
        bytes[512..768].fill(0);
        bytes[512..512 + traddr.len()].copy_from_slice(traddr.as_bytes());
        let _ = DiscoveryLogEntry::parse(&bytes);
    }

    #[test]
    fn entries_survive_the_wire(
        ip: std::net::IpAddr, port: u16, rdma: bool, subtype in 1_u8..=3, treq: u8,
        portid: u16, cntlid: u16, asqsz: u16, eflags: u16, sectype: u8,
    ) {
        let trtype = if rdma { TransportType::Rdma } else { TransportType::Tcp };
        let record = DiscoveryRecord {
            address: TransportAddress::from_socket_addr(trtype, (ip, port).into()),
            subtype, treq, portid, cntlid: Cntlid(cntlid), asqsz, eflags,
            subnqn: Nqn::discovery(),
            tcp_sectype: if rdma { 0 } else { sectype },
        };
        prop_assert_eq!(DiscoveryLogEntry::parse(record.to_entry().as_bytes()), Ok(record));
    }

    #[test]
    fn headers_survive_the_wire(genctr: u64, numrec: u64) {
        let header = DiscoveryLogHeader::new(genctr, numrec);
        let read = DiscoveryLogHeader::parse(header.as_bytes()).unwrap();
        prop_assert_eq!((read.genctr.get(), read.numrec.get()), (genctr, numrec));
    }
}

#[test]
fn an_entry_of_rdma_tells_its_kind_of_connection() {
    let record = DiscoveryRecord {
        address: "rdma://10.0.0.1:4420".parse().unwrap(),
        tcp_sectype: 0,
        ..record()
    };
    let entry = record.to_entry();
    assert_eq!((entry.trtype, &entry.tsas[..4]), (1, &[1, 1, 1, 0][..]));
    assert_eq!(entry.to_record(), Ok(record));
}
