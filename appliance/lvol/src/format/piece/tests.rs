use proptest::prelude::*;

use super::*;
use crate::format::value::HEADER_BYTES;
use crate::map::{GranuleRange, Piece};

fn granularity() -> Granularity {
    Granularity::new(1 << 20).unwrap()
}

fn cluster(number: u64) -> Cluster {
    Cluster::new(number).unwrap()
}

fn sealed(fields: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.bytes(fields);
    out.finish()
}

fn decode(value: &[u8]) -> Result<Box<[SlotContent; PIECE_SLOTS]>, FormatError> {
    decode_piece(value, granularity(), 100_000)
}

fn granules(set: &[u16]) -> Granules {
    let mut out = Granules::NONE;
    set.iter().for_each(|granule| out.set(*granule));
    out
}

fn sample() -> [SlotContent; PIECE_SLOTS] {
    let mut slots = [SlotContent::Empty; PIECE_SLOTS];
    slots[1] = SlotContent::Full(cluster(1000));
    slots[2] = SlotContent::Full(cluster(1001));
    slots[3] = SlotContent::Full(cluster(1002));
    slots[4] = SlotContent::Full(cluster(999));
    slots[5] = SlotContent::Zero;
    slots[6] = SlotContent::Zero;
    slots[7] = SlotContent::Partial {
        cluster: Some(cluster(70_000)),
        written: granules(&[0, 15]),
        zero: granules(&[1]),
    };
    slots[8] = SlotContent::Partial {
        cluster: None,
        written: Granules::NONE,
        zero: granules(&[14]),
    };
    slots
}

#[test]
fn piece_is_these_bytes_and_no_others_are_it() {
    let mut golden = [
        &[0x01, 0x1c, 0x5d, 0xab, 0xad][..],
        &[0x04],
        &[0x0d, 0xe8, 0x07],
        &[0x05, 0xe7, 0x07],
        &[0x0a],
        &[0x0b, 0x01, 0xf0, 0xa2, 0x04, 0x01, 0x80, 0x02],
        &[0x03, 0x02, 0x00, 0x40],
    ]
    .concat();
    assert_eq!(encode_piece(&sample()), golden);
    assert_eq!(decode(&golden), Ok(Box::new(sample())));
    for length in 0..golden.len() {
        assert!(decode(&golden[..length]).is_err(), "{length} bytes");
        if length >= HEADER_BYTES {
            let cut = decode(&sealed(&golden[HEADER_BYTES..length]));
            assert!(cut != Ok(Box::new(sample())), "{length} bytes");
        }
    }
    for bit in 0..golden.len() * 8 {
        golden[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&golden).is_err(), "bit {bit}");
        golden[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn empty_piece_is_only_a_header() {
    let slots = [SlotContent::Empty; PIECE_SLOTS];
    assert_eq!(encode_piece(&slots).len(), HEADER_BYTES);
    assert_eq!(decode(&encode_piece(&slots)), Ok(Box::new(slots)));
}

#[test]
fn full_pieces_are_small() {
    let sequential: [_; PIECE_SLOTS] =
        std::array::from_fn(|slot| SlotContent::Full(cluster((1 << 29) + slot as u64)));
    assert!(encode_piece(&sequential).len() <= HEADER_BYTES + 7);
    // 64 TiB of clusters of 64 KiB, in no order.
    let scattered: [_; PIECE_SLOTS] =
        std::array::from_fn(|slot| SlotContent::Full(cluster((1 << 30) - 3 * slot as u64 - 1)));
    assert!(encode_piece(&scattered).len() <= HEADER_BYTES + PIECE_SLOTS * 6);
}

#[test]
fn clusters_that_the_pool_does_not_have_are_refused() {
    let full = |number, count| {
        let mut slots = [SlotContent::Empty; PIECE_SLOTS];
        for (slot, number) in slots.iter_mut().zip(number..number + count) {
            *slot = SlotContent::Full(cluster(number));
        }
        encode_piece(&slots)
    };
    let decode = |value: &[u8]| decode_piece(value, granularity(), 50);
    assert!(decode(&full(49, 1)).is_ok());
    assert!(decode(&full(50, 1)).is_err());
    assert!(decode(&full(45, 5)).is_ok());
    assert!(decode(&full(45, 6)).is_err());
    let last = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    for count in [1, 2] {
        let run = sealed(&[&[count << 2 | 1][..], &last].concat());
        assert!(decode_piece(&run, granularity(), u64::MAX).is_err());
    }
}

#[test]
fn cluster_of_two_slots_is_refused() {
    let mut slots = sample();
    slots[100] = SlotContent::Full(cluster(1001));
    assert_eq!(
        decode(&encode_piece(&slots)),
        Err(FormatError::Slot {
            slot: 100,
            rule: "its cluster is that of another slot"
        })
    );
    slots[100] = SlotContent::Partial {
        cluster: Some(cluster(70_000)),
        written: granules(&[3]),
        zero: Granules::NONE,
    };
    assert!(decode(&encode_piece(&slots)).is_err());
}

#[test]
fn contradicting_bitmaps_are_refused() {
    let partial = |cluster, written: &[u16], zero: &[u16]| {
        let mut slots = [SlotContent::Empty; PIECE_SLOTS];
        slots[3] = SlotContent::Partial {
            cluster,
            written: granules(written),
            zero: granules(zero),
        };
        encode_piece(&slots)
    };
    let of_64_kib = Granularity::new(64 << 10).unwrap();
    let decode = |value: &[u8]| decode_piece(value, of_64_kib, 100);
    let some = Some(cluster(7));
    assert!(decode(&partial(some, &[0, 15], &[1])).is_ok());
    assert!(decode(&partial(some, &[0, 15], &[0])).is_err(), "both");
    assert!(decode(&partial(some, &[16], &[])).is_err(), "past the end");
    assert!(
        decode(&partial(some, &[1], &[255])).is_err(),
        "past the end"
    );
}

#[test]
fn lost_slots_are_kept_as_lost() {
    let mut slots = sample();
    slots[20] = SlotContent::Full(Cluster::LOST);
    slots[21] = SlotContent::Full(Cluster::LOST);
    slots[30] = SlotContent::Partial {
        cluster: Some(Cluster::LOST),
        written: granules(&[1, 2]),
        zero: granules(&[3]),
    };
    assert_eq!(*decode(&encode_piece(&slots)).unwrap(), slots);
    let lost = [SlotContent::Full(Cluster::LOST); PIECE_SLOTS];
    assert_eq!(encode_piece(&lost).len(), HEADER_BYTES + 3, "one run");
}

#[test]
fn what_can_be_saved_of_a_record_is_saved() {
    let lost = SlotContent::Full(Cluster::LOST);
    let slots = sample();
    let record = encode_piece(&slots);
    let all = salvage_piece(&record, granularity(), u64::MAX >> 8);
    assert_eq!(*all, slots);
    let few = salvage_piece(&record, granularity(), 1001);
    for (before, after) in slots.iter().zip(few.iter()) {
        let is_past = before.cluster().is_some_and(|c| c.get() >= 1001);
        assert_eq!(*after, if is_past { lost } else { *before });
    }
    let mut flipped = record;
    flipped[7] ^= 1;
    assert!(
        salvage_piece(&flipped, granularity(), u64::MAX >> 8)
            .iter()
            .all(|slot| *slot == lost)
    );
}

#[test]
fn runs_that_cannot_be_are_refused() {
    let cases: [(&str, &[u8]); 9] = [
        ("no slots", &[2]),
        ("129 slots", &[0x86, 4]),
        ("past the end", &[0x82, 2, 0x82, 2, 0x06]),
        ("slots after the last", &[0x82, 4, 0x06]),
        ("empty slots at the end", &[0x06, 0x04]),
        ("bitmap of 33 bytes", &[0x87, 1]),
        ("zero bitmap of 33 bytes", &[3, 33]),
        ("zero byte at the end of a bitmap", &[3, 1, 0]),
        ("no cluster", &[0x05]),
    ];
    for (what, fields) in cases {
        assert!(decode(&sealed(fields)).is_err(), "{what}");
    }
}

fn any_granules(bits: u16) -> impl Strategy<Value = Granules> {
    let whole = Granules::from(GranuleRange::new(0, bits));
    prop_oneof![
        any::<[u64; 4]>().prop_map(Granules::from_words),
        prop::collection::vec(0..bits, 0..4).prop_map(|set| granules(&set)),
    ]
    .prop_map(move |set| set.and(whole))
}

/// Any slot; its cluster is given later, so that no two are the same.
fn any_slot(bits: u16) -> impl Strategy<Value = SlotContent> {
    prop_oneof![
        3 => Just(SlotContent::Empty),
        3 => Just(SlotContent::Full(cluster(1))),
        2 => Just(SlotContent::Zero),
        1 => (any_granules(bits), any_granules(bits)).prop_map(|(written, zero)| {
            SlotContent::Partial {
                cluster: (!written.is_empty()).then(|| cluster(1)),
                written,
                zero: zero.minus(written),
            }
        }),
    ]
}

/// Stretches of slots of one kind, clusters consecutive or not.
fn any_piece(bits: u16) -> impl Strategy<Value = Box<[SlotContent; PIECE_SLOTS]>> {
    let run = (
        any_slot(bits),
        1..40_usize,
        prop_oneof![Just(1_u64), 1..1000_u64],
    );
    prop::collection::vec(run, 0..40).prop_map(|runs| {
        let mut slots = Box::new([SlotContent::Empty; PIECE_SLOTS]);
        let mut next = 1;
        let contents = runs
            .into_iter()
            .flat_map(|(slot, count, step)| std::iter::repeat_n((slot, step), count));
        for (out, (slot, step)) in slots.iter_mut().zip(contents) {
            next += step;
            *out = match slot {
                SlotContent::Full(_) => SlotContent::Full(cluster(next)),
                SlotContent::Partial {
                    cluster: Some(_),
                    written,
                    zero,
                } => SlotContent::Partial {
                    cluster: Some(cluster(next)),
                    written,
                    zero,
                },
                other => other,
            };
        }
        slots
    })
}

proptest! {
    #[test]
    fn pieces_round_trip(slots in any_piece(256)) {
        let decoded = decode_piece(&encode_piece(&slots), granularity(), 1 << 20);
        prop_assert_eq!(decoded, Ok(slots));
    }

    #[test]
    fn what_decodes_is_accepted_by_a_piece_in_memory(
        fields in prop::collection::vec(prop_oneof![0..40_u8, any::<u8>()], 0..80),
        shift in 16..26_u32,
    ) {
        let granularity = Granularity::new(1 << shift).unwrap();
        if let Ok(slots) = decode_piece(&sealed(&fields), granularity, 1000) {
            prop_assert!(Piece::from_contents(granularity, &slots[..]).is_ok());
            let again = decode_piece(&encode_piece(&slots), granularity, 1000);
            prop_assert_eq!(again, Ok(slots));
        }
    }

    #[test]
    fn random_bytes_are_refused(value in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&value).is_err());
    }
}
