use nvme_spec::{Cntlid, Qid};
use proptest::prelude::*;

use super::*;
use crate::{Nqn, NqnError};

/// An entry with `bytes` put in at their offsets.
fn sqe(parts: &[(usize, &[u8])]) -> Sqe {
    let mut bytes = [0; 64];
    for (offset, part) in parts {
        bytes[*offset..offset + part.len()].copy_from_slice(part);
    }
    Sqe::read_from_bytes(&bytes).unwrap()
}

fn connect() -> ConnectCommand {
    ConnectCommand {
        recfmt: 0,
        qid: Qid(0x0102),
        sqsize: 127,
        cattr: CATTR_DISABLE_SQ_FLOW_CONTROL,
        kato_ms: 0x0001_D4C0,
    }
}

fn connect_golden() -> Sqe {
    sqe(&[
        (0, &[0x7F, 0x40, 0x34, 0x12, 0x01]),
        (42, &[0x02, 0x01, 0x7F, 0x00, 0x04]),
        (48, &[0xC0, 0xD4, 0x01, 0x00]),
    ])
}

#[test]
fn connect_command_has_its_golden_bytes() {
    assert_eq!(connect().to_sqe(Cid(0x1234)), connect_golden());
    assert_eq!(ConnectCommand::parse(&connect_golden()), Ok(connect()));
    assert_eq!(fctype(&connect_golden()), Some(FCTYPE_CONNECT));
    assert_eq!(connect().entries(), 128);
    assert!(connect().disables_sq_flow_control());
    assert!(!connect().can_delete_io_queues());
}

#[test]
fn property_get_has_its_golden_bytes() {
    let golden = sqe(&[
        (0, &[0x7F, 0x40, 0x05, 0x00, 0x04]),
        (40, &[0x01]),
        (44, &[0x00, 0x00, 0x00, 0x00]),
    ]);
    let get = PropertyGet {
        size: PropertySize::Eight,
        offset: 0,
    };
    assert_eq!(get.to_sqe(Cid(5)), golden);
    assert_eq!(PropertyGet::parse(&golden), Ok(get));
    assert_eq!(get.size.bytes(), 8);
}

#[test]
fn property_set_has_its_golden_bytes() {
    let golden = sqe(&[
        (0, &[0x7F, 0x40, 0x06, 0x00, 0x00]),
        (40, &[0x00]),
        (44, &[0x14, 0x00, 0x00, 0x00]),
        (48, &[0x01, 0x00, 0x46, 0x00]),
    ]);
    let set = PropertySet {
        size: PropertySize::Four,
        offset: 0x14,
        value: 0x0046_0001,
    };
    assert_eq!(set.to_sqe(Cid(6)), golden);
    assert_eq!(PropertySet::parse(&golden), Ok(set));
}

#[test]
fn upper_half_of_a_4_byte_property_is_dropped() {
    let high = sqe(&[(0, &[0x7F]), (44, &[0x14]), (48, &[1, 0, 0, 0, 9, 9, 9, 9])]);
    assert_eq!(PropertySet::parse(&high).unwrap().value, 1);
    let set = PropertySet {
        size: PropertySize::Four,
        offset: 0,
        value: u64::MAX,
    };
    assert_eq!(
        PropertySet::parse(&set.to_sqe(Cid(0))).unwrap().value,
        0xFFFF_FFFF
    );
}

#[test]
fn property_of_another_width_is_refused() {
    for attrib in 2..8 {
        let error = FabricsError::Field {
            field: "attrib",
            offset: 40,
            value: attrib.into(),
        };
        let get = sqe(&[(0, &[0x7F, 0, 0, 0, FCTYPE_PROPERTY_GET]), (40, &[attrib])]);
        assert_eq!(PropertyGet::parse(&get), Err(error));
        let set = sqe(&[(0, &[0x7F, 0, 0, 0, FCTYPE_PROPERTY_SET]), (40, &[attrib])]);
        assert_eq!(PropertySet::parse(&set), Err(error));
    }
}

#[test]
fn disconnect_has_its_golden_bytes() {
    let golden = sqe(&[(0, &[0x7F, 0x40, 0x07, 0x00, 0x08])]);
    assert_eq!(Disconnect.to_sqe(Cid(7)), golden);
    assert_eq!(Disconnect::parse(&golden), Ok(Disconnect));
    let wrong = sqe(&[(0, &[0x7F, 0x40, 0x07, 0x00, 0x08]), (40, &[0x01, 0x02])]);
    assert_eq!(
        Disconnect::parse(&wrong),
        Err(FabricsError::RecordFormat { recfmt: 0x0201 })
    );
}

#[test]
fn connect_with_a_wrong_field_is_refused() {
    let mut bytes: [u8; 64] = connect_golden().as_bytes().try_into().unwrap();
    bytes[40] = 1;
    let wrong = Sqe::read_from_bytes(&bytes).unwrap();
    assert_eq!(
        ConnectCommand::parse(&wrong),
        Err(FabricsError::RecordFormat { recfmt: 1 })
    );
    bytes[40] = 0;
    bytes[44] = 0;
    let wrong = Sqe::read_from_bytes(&bytes).unwrap();
    let error = FabricsError::Field {
        field: "sqsize",
        offset: 44,
        value: 0,
    };
    assert_eq!(ConnectCommand::parse(&wrong), Err(error));
}

#[test]
fn another_command_is_refused() {
    let read = sqe(&[(0, &[0x02, 0, 0, 0, 0x01])]);
    assert_eq!(fctype(&read), None);
    assert_eq!(
        ConnectCommand::parse(&read),
        Err(FabricsError::NotFabrics { opcode: 2 })
    );
    let wrong = FabricsError::WrongType {
        found: FCTYPE_CONNECT,
        expected: FCTYPE_DISCONNECT,
    };
    assert_eq!(Disconnect::parse(&connect_golden()), Err(wrong));
}

fn parts() -> ConnectParts {
    ConnectParts {
        hostid: *b"0123456789abcdef",
        cntlid: Cntlid(CNTLID_DYNAMIC),
        subnqn: Nqn::new("nqn.2014-08.com.example:disk1").unwrap(),
        hostnqn: Nqn::new("nqn.2014-08.com.example:host1").unwrap(),
    }
}

#[test]
fn connect_data_has_its_golden_bytes() {
    let mut golden = [0_u8; 1024];
    golden[..16].copy_from_slice(b"0123456789abcdef");
    golden[16] = 0xFF;
    golden[17] = 0xFF;
    golden[256..285].copy_from_slice(b"nqn.2014-08.com.example:disk1");
    golden[512..541].copy_from_slice(b"nqn.2014-08.com.example:host1");
    assert_eq!(parts().to_data().as_bytes(), golden);
    assert_eq!(ConnectData::parse(&golden), Ok(parts()));
    assert!(!parts().hostid_is_zero());
    golden[..16].fill(0);
    assert!(ConnectData::parse(&golden).unwrap().hostid_is_zero());
}

#[test]
fn connect_data_is_refused_at_every_cut() {
    let data = parts().to_data();
    for len in 0..CONNECT_DATA_LEN {
        let error = ConnectData::parse(&data.as_bytes()[..len]).unwrap_err();
        assert_eq!(error, ConnectDataError::TooShort { len });
        assert_eq!(error.offset(), None);
    }
    let mut longer = data.as_bytes().to_vec();
    longer.push(1);
    assert_eq!(ConnectData::parse(&longer), Ok(parts()));
}

#[test]
fn bad_names_of_connect_tell_their_offset() {
    let mut data = parts().to_data();
    data.subnqn = [b'a'; 256];
    let error = data.to_parts().unwrap_err();
    assert_eq!(
        error,
        ConnectDataError::SubNqn {
            error: NqnError::Unterminated { len: 256 }
        }
    );
    assert_eq!(error.offset(), Some(256));
    let mut data = parts().to_data();
    data.hostnqn = [b'a'; 256];
    let error = data.to_parts().unwrap_err();
    assert_eq!(
        error,
        ConnectDataError::HostNqn {
            error: NqnError::Unterminated { len: 256 }
        }
    );
    assert_eq!(error.offset(), Some(512));
}

#[test]
fn a_host_without_a_name_goes_by_its_identifier() {
    let mut data = parts().to_data();
    data.hostnqn = [0; 256];
    let named = data.to_parts().unwrap();
    assert_eq!(
        named.hostnqn,
        "nqn.2014-08.org.nvmexpress:uuid:30313233-3435-3637-3839-616263646566"
    );
}

#[test]
fn results_of_connect_have_their_golden_dwords() {
    assert_eq!(connect_invalid_parameters_result(true, 256), 0x0001_0100);
    assert_eq!(connect_invalid_parameters_result(false, 44), 0x0000_002C);
    assert_eq!(
        parse_connect_invalid_parameters_result(0x0001_0100),
        (true, 256)
    );
    assert_eq!(
        parse_connect_invalid_parameters_result(0x0000_002C),
        (false, 44)
    );
    let result = ConnectResult {
        cntlid: Cntlid(0x0102),
        authreq: AUTHREQ_ATR | AUTHREQ_ASCR,
    };
    assert_eq!(result.to_dword(), 0x0006_0102);
    assert_eq!(ConnectResult::from_dword(0x0006_0102), result);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        mut entry in proptest::array::uniform32(any::<[u8; 2]>()),
        kind in 0_u8..10,
        data in proptest::collection::vec(any::<u8>(), 0..1100),
    ) {
        let _ = ConnectData::parse(&data);
        entry[0][0] = OPCODE;
        entry[2][0] = kind;
        let entry = Sqe::read_from_bytes(entry.as_bytes()).unwrap();
        let _ = ConnectCommand::parse(&entry);
        let _ = PropertyGet::parse(&entry);
        let _ = PropertySet::parse(&entry);
        let _ = Disconnect::parse(&entry);
    }

    #[test]
    fn commands_survive_the_wire(
        qid: u16, sqsize in 1..=u16::MAX, cattr: u8, kato_ms: u32,
        offset: u32, value: u32, cid: u16,
    ) {
        let connect = ConnectCommand { recfmt: 0, qid: Qid(qid), sqsize, cattr, kato_ms };
        let sqe = connect.to_sqe(Cid(cid));
        prop_assert_eq!(sqe.cid(), Cid(cid));
        prop_assert_eq!(ConnectCommand::parse(&sqe), Ok(connect));
        for size in [PropertySize::Four, PropertySize::Eight] {
            let get = PropertyGet { size, offset };
            prop_assert_eq!(PropertyGet::parse(&get.to_sqe(Cid(cid))), Ok(get));
            let set = PropertySet { size, offset, value: value.into() };
            prop_assert_eq!(PropertySet::parse(&set.to_sqe(Cid(cid))), Ok(set));
        }
    }

    #[test]
    fn results_survive_the_wire(cntlid: u16, authreq: u16, in_data: bool, offset: u16) {
        let result = ConnectResult { cntlid: Cntlid(cntlid), authreq };
        prop_assert_eq!(ConnectResult::from_dword(result.to_dword()), result);
        let dword = connect_invalid_parameters_result(in_data, offset);
        prop_assert_eq!(parse_connect_invalid_parameters_result(dword), (in_data, offset));
    }
}
