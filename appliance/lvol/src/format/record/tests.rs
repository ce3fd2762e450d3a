use std::fmt::Debug;

use proptest::prelude::*;

use super::*;
use crate::format::value::HEADER_BYTES;

// Values as an encoder in another language made them.
const LAYER_ROOT: &str = "\
    01c61c7466000000000000000000000000000000000000000000000000000000000000";
const LAYER_CHILD: &str = "\
    01ce8562d501080700000000000003000000012c0100000000000005000000000000000200000000\
    000000";
const LAYER_EXTERNAL: &str = "\
    0185a80b0f02000102030405060708090a0b0c0d0e0f04676f6c6400000040000000000100000000\
    010000000000000002000000000000000000000000000000";
const NAME: &str = "\
    01bfbce91501000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f0000\
    00400000000007000000000000000100c086fd6a0000000002047469657204676f6c64016b00";
const POOL: &str = "\
    016d1416ad09000000000000000400000000000000e8030000000000001400000000000000077261\
    636b20c3a41817000000000000";
const OPERATION: &str = "\
    01f1d07d5902030a000000000000001400000000000000070000000000000004766f6c31086e6f207370616365";
const CHUNK_NONE: &str = "01a66ca81001";
const CHUNK_RUNS: &str = "015ee91d7a010001ab02d4fd01";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

/// A value with these fields, whatever they are, under a right checksum.
fn sealed(fields: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.bytes(fields);
    out.finish()
}

/// One record: it is these bytes, and no others are it.
fn check<T: Debug + PartialEq>(
    record: &T,
    hex: &str,
    encode: fn(&T) -> Vec<u8>,
    decode: fn(&[u8]) -> Result<T, FormatError>,
) {
    let mut golden = bytes(hex);
    assert_eq!(encode(record), golden);
    assert_eq!(decode(&golden).as_ref(), Ok(record));
    for length in 0..golden.len() {
        assert!(decode(&golden[..length]).is_err(), "{length} bytes");
        // Also with a right checksum, so that the fields are read.
        if length >= HEADER_BYTES {
            let cut = decode(&sealed(&golden[HEADER_BYTES..length]));
            assert!(cut.as_ref() != Ok(record), "{length} bytes: {cut:?}");
        }
    }
    for bit in 0..golden.len() * 8 {
        golden[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&golden).is_err(), "bit {bit}");
        golden[bit / 8] ^= 1 << (bit % 8);
    }
    golden.push(0);
    assert!(matches!(decode(&golden), Err(FormatError::Checksum { .. })));
    assert!(decode(&sealed(&golden[HEADER_BYTES..])).is_err());
}

fn child() -> LayerRecord {
    LayerRecord {
        parent: Parent::Layer(LayerId(0x0708)),
        children: 3,
        state: LayerState::Garbage,
        clusters: 300,
        pieces: 5,
        progress: 2,
    }
}

fn snapshot() -> NameRecord {
    NameRecord {
        kind: NameKind::Snapshot,
        uuid: std::array::from_fn(|byte| byte as u8),
        nguid: std::array::from_fn(|byte| 16 + byte as u8),
        size_bytes: 1 << 30,
        layer: LayerId(7),
        thick: true,
        read_only: false,
        created_unix_s: 1_795_000_000,
        labels: vec![
            ("tier".to_owned(), "gold".to_owned()),
            ("k".to_owned(), String::new()),
        ],
    }
}

fn pool() -> PoolRecord {
    PoolRecord {
        next_layer: 9,
        next_operation: 4,
        used_clusters: 1000,
        reserved_clusters: 20,
        label: "rack ä".to_owned(),
        log_epoch: 0x1718,
    }
}

#[test]
fn layer_record_is_these_bytes() {
    check(
        &LayerRecord::default(),
        LAYER_ROOT,
        LayerRecord::encode,
        LayerRecord::decode,
    );
    check(
        &child(),
        LAYER_CHILD,
        LayerRecord::encode,
        LayerRecord::decode,
    );
    let external = LayerRecord {
        parent: Parent::External {
            uuid: std::array::from_fn(|byte| byte as u8),
            name: "gold".to_owned(),
            len_bytes: 1 << 30,
        },
        children: 1,
        state: LayerState::Live,
        clusters: 1,
        pieces: 2,
        progress: 0,
    };
    check(
        &external,
        LAYER_EXTERNAL,
        LayerRecord::encode,
        LayerRecord::decode,
    );
}

#[test]
fn name_record_is_these_bytes() {
    check(&snapshot(), NAME, NameRecord::encode, NameRecord::decode);
}

#[test]
fn pool_record_is_these_bytes() {
    check(&pool(), POOL, PoolRecord::encode, PoolRecord::decode);
}

#[test]
fn a_pool_record_without_a_log_epoch_is_of_an_older_program() {
    let golden = bytes(POOL);
    let fields = &golden[HEADER_BYTES..golden.len() - 8];
    let older = PoolRecord {
        log_epoch: 0,
        ..pool()
    };
    assert_eq!(PoolRecord::decode(&sealed(fields)), Ok(older));
}

#[test]
fn operation_record_is_these_bytes() {
    let operation = OperationRecord {
        kind: 2,
        subject: "vol1".to_owned(),
        layer: 7,
        done: 10,
        total: 20,
        state: 3,
        text: "no space".to_owned(),
    };
    check(
        &operation,
        OPERATION,
        OperationRecord::encode,
        OperationRecord::decode,
    );
}

#[test]
fn free_chunk_with_runs_is_these_bytes() {
    let none = FreeChunk::default();
    assert_eq!(none.used_count(), 0);
    check(&none, CHUNK_NONE, FreeChunk::encode, FreeChunk::decode);
    let mut runs = FreeChunk::default();
    runs.set_run(0, 1);
    runs.set_run(300, CHUNK_CLUSTERS);
    assert_eq!(runs.used_count(), 32469);
    check(&runs, CHUNK_RUNS, FreeChunk::encode, FreeChunk::decode);
}

#[test]
fn scattered_free_chunk_is_a_bitmap() {
    let mut chunk = FreeChunk::default();
    chunk.used.fill(0x5555_5555_5555_5555);
    chunk.used[0] = 0x8000_0000_0000_0001;
    let value = chunk.encode();
    assert_eq!(value.len(), HEADER_BYTES + 1 + 4096);
    assert_eq!(
        value[HEADER_BYTES..][..10],
        [0, 1, 0, 0, 0, 0, 0, 0, 0x80, 0x55]
    );
    assert_eq!(FreeChunk::decode(&value), Ok(chunk));
    for cut in 0..4097 {
        let short = sealed(&value[HEADER_BYTES..][..cut]);
        assert!(FreeChunk::decode(&short).is_err(), "{cut}");
    }
    let long = sealed(&[&value[HEADER_BYTES..], &[0]].concat());
    assert!(matches!(
        FreeChunk::decode(&long),
        Err(FormatError::Trailing { bytes: 1, .. })
    ));
}

#[test]
fn full_free_chunk_is_a_few_bytes() {
    let mut chunk = FreeChunk::default();
    chunk.used.fill(u64::MAX);
    assert_eq!(u64::from(chunk.used_count()), CHUNK_CLUSTERS);
    assert!(chunk.encode().len() < 12);
    assert_eq!(FreeChunk::decode(&chunk.encode()), Ok(chunk));
}

#[test]
fn runs_that_cannot_be_are_refused() {
    let cases: [(&str, &[u8]); 6] = [
        ("past the end", &[1, 0, 0x81, 0x80, 2]),
        ("free run past the end", &[1, 0x81, 0x80, 2, 1]),
        ("no used clusters", &[1, 5, 0]),
        ("no free clusters between", &[1, 5, 1, 0, 1]),
        ("half a pair", &[1, 5]),
        ("unknown form", &[2]),
    ];
    for (what, fields) in cases {
        assert!(FreeChunk::decode(&sealed(fields)).is_err(), "{what}");
    }
}

#[test]
fn newer_record_is_told_from_a_damaged_one() {
    let mut value = pool().encode();
    value[0] = 2;
    assert!(matches!(
        PoolRecord::decode(&value),
        Err(FormatError::Checksum { .. })
    ));
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&[2]);
    digest.update(&value[HEADER_BYTES..]);
    value[1..HEADER_BYTES].copy_from_slice(&(digest.finalize() as u32).to_le_bytes());
    assert_eq!(
        PoolRecord::decode(&value),
        Err(FormatError::Version {
            record: "pool record",
            version: 2,
            known: 1
        })
    );
}

#[test]
fn layer_0_is_refused_wherever_it_is_named() {
    let mut parent = child();
    parent.parent = Parent::Layer(LayerId(0));
    assert!(LayerRecord::decode(&parent.encode()).is_err());
    let mut name = snapshot();
    name.layer = LayerId(0);
    assert!(NameRecord::decode(&name.encode()).is_err());
    let mut counters = pool();
    counters.next_layer = 0;
    assert!(PoolRecord::decode(&counters.encode()).is_err());
}

#[test]
fn unknown_kinds_and_flags_are_refused() {
    let cut = |value: Vec<u8>| value[HEADER_BYTES..].to_vec();
    for (at, what) in [(0, "parent kind"), (13, "state")] {
        let mut fields = cut(child().encode());
        fields[at] = 9;
        assert!(LayerRecord::decode(&sealed(&fields)).is_err(), "{what}");
    }
    for (at, what) in [(0, "kind"), (49, "thick"), (50, "read only")] {
        let mut fields = cut(snapshot().encode());
        fields[at] = 2;
        assert!(NameRecord::decode(&sealed(&fields)).is_err(), "{what}");
    }
}

#[test]
fn text_that_cannot_be_is_refused() {
    let counters = [1_u64, 0, 0, 0].map(u64::to_le_bytes).concat();
    let with = |text: &[u8]| PoolRecord::decode(&sealed(&[&counters, text].concat()));
    assert_eq!(with(&[2, b'o', b'k']).unwrap().label, "ok");
    assert!(matches!(with(&[1, 0xff]), Err(FormatError::Text { .. })));
    assert!(matches!(
        with(&[5, b'o']),
        Err(FormatError::Truncated { .. })
    ));
    assert!(with(&[0x82, 0, b'o', b'k']).is_err(), "length is not short");
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    assert!(matches!(with(&huge), Err(FormatError::Truncated { .. })));
    assert!(with(&[0xff; 10]).is_err(), "does not fit 64 bits");
    assert!(with(&[0xff; 11]).is_err());
}

#[test]
fn label_count_is_not_trusted_with_memory() {
    let mut none = snapshot();
    none.labels.clear();
    let mut fields = none.encode()[HEADER_BYTES..].to_vec();
    fields.pop();
    fields.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    assert!(matches!(
        NameRecord::decode(&sealed(&fields)),
        Err(FormatError::Truncated { .. })
    ));
}

prop_compose! {
    fn any_layer()(
        parent in prop_oneof![
            Just(Parent::None),
            Just(Parent::Lost),
            (1_u64..).prop_map(|id| Parent::Layer(LayerId(id))),
            (any::<[u8; 16]>(), "\\PC*", any::<u64>())
                .prop_map(|(uuid, name, len_bytes)| Parent::External { uuid, name, len_bytes }),
        ],
        children: u32,
        garbage: bool,
        clusters: u64,
        pieces: u64,
        progress: u64,
    ) -> LayerRecord {
        let state = if garbage { LayerState::Garbage } else { LayerState::Live };
        LayerRecord { parent, children, state, clusters, pieces, progress }
    }
}

prop_compose! {
    fn any_name()(
        is_snapshot: bool,
        uuid: [u8; 16],
        nguid: [u8; 16],
        size_bytes: u64,
        layer in 1_u64..,
        thick: bool,
        read_only: bool,
        created_unix_s: u64,
        labels in prop::collection::vec(("\\PC*", "\\PC*"), 0..8),
    ) -> NameRecord {
        let kind = if is_snapshot { NameKind::Snapshot } else { NameKind::Volume };
        let layer = LayerId(layer);
        NameRecord {
            kind, uuid, nguid, size_bytes, layer, thick, read_only, created_unix_s, labels,
        }
    }
}

fn any_chunk() -> impl Strategy<Value = FreeChunk> {
    let runs = prop::collection::vec((0..CHUNK_CLUSTERS, 1..5000_u64), 0..40);
    let words = prop::collection::vec((0..CHUNK_WORDS, any::<u64>()), 0..600);
    (runs, words).prop_map(|(runs, words)| {
        let mut chunk = FreeChunk::default();
        for (start, length) in runs {
            chunk.set_run(start, (start + length).min(CHUNK_CLUSTERS));
        }
        words
            .into_iter()
            .for_each(|(word, bits)| chunk.used[word] = bits);
        chunk
    })
}

proptest! {
    #[test]
    fn layer_records_round_trip(record in any_layer()) {
        prop_assert_eq!(LayerRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn name_records_round_trip(record in any_name()) {
        prop_assert_eq!(NameRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn other_records_round_trip(
        numbers: [u64; 5], kind: u8, state: u8, subject in "\\PC*", text in "\\PC{0,300}",
    ) {
        let [next_layer, next_operation, used_clusters, reserved_clusters, log_epoch] = numbers;
        let record = PoolRecord {
            next_layer: next_layer.max(1),
            next_operation,
            used_clusters,
            reserved_clusters,
            label: text.clone(),
            log_epoch,
        };
        prop_assert_eq!(PoolRecord::decode(&record.encode()), Ok(record));
        let record = OperationRecord {
            kind, subject, layer: numbers[2], done: numbers[0], total: numbers[1], state, text,
        };
        prop_assert_eq!(OperationRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn free_chunks_round_trip_and_are_bounded(chunk in any_chunk()) {
        let value = chunk.encode();
        prop_assert!(value.len() <= HEADER_BYTES + 1 + 4096);
        prop_assert_eq!(FreeChunk::decode(&value), Ok(chunk));
    }

    #[test]
    fn random_fields_never_panic_and_have_one_encoding(
        fields in prop::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..120),
    ) {
        let value = sealed(&fields);
        if let Ok(record) = LayerRecord::decode(&value) {
            prop_assert_eq!(record.encode(), value.clone());
        }
        if let Ok(record) = NameRecord::decode(&value) {
            prop_assert_eq!(record.encode(), value.clone());
        }
        if let Ok(record) = PoolRecord::decode(&value) {
            prop_assert_eq!(record.encode(), value.clone());
        }
        if let Ok(record) = OperationRecord::decode(&value) {
            prop_assert_eq!(record.encode(), value.clone());
        }
        if let Ok(record) = FreeChunk::decode(&value) {
            prop_assert_eq!(record.encode(), value);
        }
    }

    #[test]
    fn random_bytes_are_refused(value in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(LayerRecord::decode(&value).is_err());
        prop_assert!(NameRecord::decode(&value).is_err());
        prop_assert!(PoolRecord::decode(&value).is_err());
        prop_assert!(OperationRecord::decode(&value).is_err());
        prop_assert!(FreeChunk::decode(&value).is_err());
    }
}
