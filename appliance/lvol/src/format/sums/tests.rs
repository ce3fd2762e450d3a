use proptest::prelude::*;

use super::*;

fn sample() -> SumsRecord {
    SumsRecord {
        recorded_unix_s: 0x0102_0304_0506_0708,
        slots: vec![
            SlotSum {
                slot: 0,
                place: 0x1112_1314,
                data: 0x2122_2324,
            },
            SlotSum {
                slot: 9,
                place: 1,
                data: 2,
            },
            SlotSum {
                slot: 127,
                place: 3,
                data: u32::MAX,
            },
        ],
    }
}

/// Puts the right checksum under changed bytes.
fn sealed(fields: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.bytes(fields);
    out.finish()
}

#[test]
fn a_record_is_these_bytes() {
    let value = sample().encode();
    let fields = [
        [8, 7, 6, 5, 4, 3, 2, 1].as_slice(),
        &[0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80],
        &[0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21],
        &[1, 0, 0, 0, 2, 0, 0, 0],
        &[3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    ]
    .concat();
    assert_eq!(value[0], 1);
    assert_eq!(value[5..], fields);
    assert_eq!(value, sealed(&fields));
    assert_eq!(SumsRecord::decode(&value), Ok(sample()));
}

#[test]
fn truncation_at_every_byte_is_refused() {
    let value = sample().encode();
    for length in 0..value.len() {
        SumsRecord::decode(&value[..length]).unwrap_err();
        if let Some(fields) = value[..length].get(5..) {
            let error = SumsRecord::decode(&sealed(fields)).unwrap_err();
            assert!(!matches!(error, FormatError::Checksum { .. }), "{length}");
        }
    }
    let longer = sealed(&[&value[5..], &[0]].concat());
    let error = SumsRecord::decode(&longer).unwrap_err();
    assert!(matches!(error, FormatError::Trailing { bytes: 1, .. }));
}

#[test]
fn a_flipped_bit_and_a_record_of_nothing_are_refused() {
    let value = sample().encode();
    for bit in 0..value.len() * 8 {
        let mut flipped = value.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        SumsRecord::decode(&flipped).unwrap_err();
    }
    let error = SumsRecord::decode(&sealed(&[0; 24])).unwrap_err();
    assert!(matches!(error, FormatError::Field { .. }), "{error}");
}

#[test]
fn a_place_is_its_cluster_and_what_is_written_there() {
    let granularity = Granularity::new(64 << 10).unwrap();
    let cluster = Cluster::new(1000).unwrap();
    let whole = Granules::from(granularity.whole());
    let full = data_of(&SlotContent::Full(cluster), granularity).unwrap();
    assert_eq!(full, (cluster, whole));
    let sum = place_sum(cluster, whole);
    // Of the bytes e8 03 00 00 00 00 00 00 ff ff 00 ..., as `crc32c` has it.
    let bytes = [[0xe8, 3, 0, 0, 0, 0, 0, 0, 0xff, 0xff].as_slice(), &[0; 30]].concat();
    assert_eq!(sum, crc32c(&bytes));
    assert_ne!(sum, place_sum(Cluster::new(1001).unwrap(), whole));
    let mut less = whole;
    less.clear(15);
    assert_ne!(sum, place_sum(cluster, less));
    for empty in [
        SlotContent::Empty,
        SlotContent::Zero,
        SlotContent::Full(Cluster::LOST),
    ] {
        assert_eq!(data_of(&empty, granularity), None);
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
        let _ = SumsRecord::decode(&bytes);
        if let Ok(record) = SumsRecord::decode(&sealed(&bytes)) {
            prop_assert_eq!(record.encode(), sealed(&bytes));
        }
    }

    #[test]
    fn records_come_back(
        time: u64,
        sums in proptest::collection::btree_map(0_u8..128, any::<(u32, u32)>(), 1..=128)
    ) {
        let slots = sums.into_iter();
        let slots = slots.map(|(slot, (place, data))| SlotSum { slot, place, data });
        let record = SumsRecord { recorded_unix_s: time, slots: slots.collect() };
        prop_assert_eq!(SumsRecord::decode(&record.encode()), Ok(record));
    }
}
